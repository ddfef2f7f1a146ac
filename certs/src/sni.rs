//! Which server a client asks for.

use std::sync::Arc;

use ahash::AHashMap;

/// Things by server name. An exact name goes before the longest `*.suffix`, which stands for any number of labels but
/// not for none; things without names, or with the name `*`, come last. Of things with the same name the first counts.
#[derive(Debug, Clone)]
pub struct SniIndex<T> {
    things: Vec<T>,
    exact: AHashMap<Box<str>, usize>,
    /// By what follows the `*`: `.example.com`.
    suffixes: AHashMap<Box<str>, usize>,
    any: Option<usize>,
}

impl<T> Default for SniIndex<T> {
    fn default() -> Self {
        Self { things: Vec::new(), exact: AHashMap::new(), suffixes: AHashMap::new(), any: None }
    }
}

impl<T> SniIndex<T> {
    /// Things, each with its names; `[]`: any name, and none.
    pub fn new<N: AsRef<[Arc<str>]>>(things: impl IntoIterator<Item = (N, T)>) -> Self {
        let mut index = Self::default();
        for (names, thing) in things {
            let position = index.things.len();
            let names = names.as_ref();
            if names.is_empty() || names.iter().any(|name| &**name == "*") {
                index.any.get_or_insert(position);
            } else {
                for name in names {
                    let name = name.to_ascii_lowercase();
                    match name.strip_prefix('*').filter(|suffix| suffix.starts_with('.')) {
                        Some(suffix) => index.suffixes.entry(suffix.into()).or_insert(position),
                        None => index.exact.entry(name.into()).or_insert(position),
                    };
                }
            }
            index.things.push(thing);
        }
        index
    }

    /// What a client that sent `server_name` gets. Upper and lower case are the same, a trailing dot makes another name.
    pub fn choose(&self, server_name: Option<&str>) -> Option<&T> {
        let position = server_name.and_then(|name| self.named(name)).or(self.any)?;
        self.things.get(position)
    }

    /// Everything, in the order it came.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.things.iter()
    }

    fn named(&self, name: &str) -> Option<usize> {
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.lower_case(&name.to_ascii_lowercase());
        }
        self.lower_case(name)
    }

    fn lower_case(&self, name: &str) -> Option<usize> {
        if let Some(position) = self.exact.get(name) {
            return Some(*position);
        }
        if self.suffixes.is_empty() {
            return None;
        }
        // From the left, so that the longest suffix is met first. A dot in front has no label before it.
        name.match_indices('.')
            .filter(|(dot, _)| *dot > 0)
            .find_map(|(dot, _)| self.suffixes.get(&name[dot..]).copied())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(things: &[(&[&str], u32)]) -> SniIndex<u32> {
        let things = things.iter().map(|(names, thing)| {
            let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
            (names, *thing)
        });
        SniIndex::new(things)
    }

    #[test]
    fn exact_then_longest_suffix_then_any() {
        let index = index(&[
            (&["*.b"], 1),
            (&["*.a.b", "x.b"], 2),
            (&["app.example.com"], 3),
            (&["foo.com", "*"], 4),
            (&["UPPER.com"], 5),
        ]);
        let cases = [
            ("x.b", 2),
            ("y.b", 1),
            ("y.a.b", 2),
            ("z.y.a.b", 2),
            ("a.b", 1),
            ("b", 4),
            ("app.example.com", 3),
            ("APP.example.COM", 3),
            ("app.example.com.", 4),
            ("upper.com", 5),
            ("foo.com", 4),
            (".b", 4),
            ("", 4),
        ];
        for (name, thing) in cases {
            assert_eq!(index.choose(Some(name)), Some(&thing), "{name}");
        }
        assert_eq!(index.choose(None), Some(&4));
    }

    #[test]
    fn nothing_matches_without_a_star() {
        let index = index(&[(&["*.b", "a.com"], 1)]);
        for name in [None, Some("b"), Some("a.com."), Some("10.0.0.1")] {
            assert_eq!(index.choose(name), None, "{name:?}");
        }
        assert_eq!(SniIndex::<u32>::default().choose(Some("a")), None);
    }

    #[test]
    fn the_first_of_equals_counts() {
        let index = index(&[(&["a.b"], 1), (&["A.b"], 2), (&[], 3), (&["*"], 4)]);
        assert_eq!(index.choose(Some("a.b")), Some(&1));
        assert_eq!(index.choose(None), Some(&3));
        assert_eq!(index.iter().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    /// Looks at every name.
    fn scan(things: &[Vec<String>], wanted: Option<&str>) -> Option<usize> {
        let wanted = wanted.map(str::to_lowercase);
        let mut best: Option<(usize, usize)> = None;
        for (position, names) in things.iter().enumerate() {
            let open = names.is_empty() || names.iter().any(|name| name == "*");
            let quality = |name: &String| {
                let wanted = wanted.as_deref()?;
                let name = name.to_lowercase();
                match name.strip_prefix('*') {
                    None => (name == wanted).then_some(usize::MAX),
                    Some(suffix) => (wanted.len() > suffix.len() && wanted.ends_with(suffix)).then_some(suffix.len()),
                }
            };
            let quality = if open { Some(0) } else { names.iter().filter_map(quality).max() };
            if let Some(quality) = quality
                && best.is_none_or(|(_, best)| quality > best)
            {
                best = Some((position, quality));
            }
        }
        best.map(|(position, _)| position)
    }

    proptest! {
        #[test]
        fn as_a_scan_finds_it(
            things in prop::collection::vec(
                prop::collection::vec(r"(\*\.)?[abA](\.[ab]){0,3}|\*", 0..4), 0..8),
            wanted in prop::option::of(r"[abB](\.[ab]){0,4}\.?"),
        ) {
            let index = SniIndex::new(things.iter().enumerate().map(|(position, names)| {
                (names.iter().map(|name| Arc::from(name.as_str())).collect::<Vec<Arc<str>>>(), position)
            }));
            prop_assert_eq!(index.choose(wanted.as_deref()).copied(), scan(&things, wanted.as_deref()));
        }
    }
}
