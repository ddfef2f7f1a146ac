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
