//! Matchers of single strings.

use std::fmt;
use std::sync::Arc;

use regex::bytes::Regex;
use regex_syntax::ParserBuilder;
use regex_syntax::hir::Hir;
use regex_syntax::hir::literal::{ExtractKind, Extractor};

/// A regular expression that must match a whole value, compared by its text.
///
/// RE2 syntax as far as the `regex` crate shares it; both refuse look-around. Matched on bytes.
/// Small, because routes have room for several and mostly have none.
#[derive(Clone)]
pub struct Pattern(Arc<Compiled>);

struct Compiled {
    text: String,
    regex: Regex,
    unicode: bool,
    literals: Literals,
}

/// What every value that a [`Pattern`] matches begins or ends with; lets an index leave most patterns alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Literals {
    /// One of these texts stands at the beginning. A single empty text says nothing.
    Prefixes(Box<[Box<[u8]>]>),
    /// One of these texts stands at the end.
    Suffixes(Box<[Box<[u8]>]>),
}

impl Pattern {
    /// Compiles `text` for full matches.
    ///
    /// # Errors
    /// The text is not a regular expression, or compiles to more than the size limit.
    pub fn new(text: &str) -> Result<Self, regex::Error> {
        // `.` matches a single byte and not `\n`, as RE2 does in Envoy, which matches on bytes. Unicode classes (`\pL`)
        // need Unicode mode.
        let (hir, unicode) = match parse(text, false) {
            Ok(hir) => (hir, false),
            Err(_) => (parse(text, true)?, true),
        };
        let regex = regex::bytes::RegexBuilder::new(&anchored(text)).unicode(unicode).build()?;
        Ok(Self(Arc::new(Compiled { text: text.to_owned(), regex, unicode, literals: literals(&hir) })))
    }

    /// Whether the whole of `value` matches.
    pub fn is_match(&self, value: &[u8]) -> bool {
        self.0.regex.is_match(value)
    }

    /// The text as configured.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// What all matching values have in common.
    pub(super) fn literals(&self) -> &Literals {
        &self.0.literals
    }

    /// The anchored expression with its mode in it, to be compiled together with others.
    pub(super) fn standalone(&self) -> String {
        let anchored = anchored(self.as_str());
        if self.0.unicode { anchored } else { format!("(?-u:{anchored})") }
    }
}

fn anchored(text: &str) -> String {
    format!("^(?:{text})$")
}

/// The text is parsed alone first, so that `a)|(?:b` can't break out of the anchors.
fn parse(text: &str, unicode: bool) -> Result<Hir, regex::Error> {
    let hir = ParserBuilder::new().unicode(unicode).utf8(false).build().parse(text);
    hir.map_err(|error| regex::Error::Syntax(error.to_string()))
}

/// The more telling of a pattern's prefixes and suffixes.
fn literals(hir: &Hir) -> Literals {
    let prefixes = extract(hir, ExtractKind::Prefix);
    let suffixes = extract(hir, ExtractKind::Suffix);
    let shortest = |texts: &[Box<[u8]>]| texts.iter().map(|text| text.len()).min().unwrap_or(0);
    if shortest(&suffixes) > shortest(&prefixes) { Literals::Suffixes(suffixes) } else { Literals::Prefixes(prefixes) }
}

fn extract(hir: &Hir, kind: ExtractKind) -> Box<[Box<[u8]>]> {
    /// A pattern stands once in an index for each of its literals.
    const MAX_LITERALS: usize = 16;

    let mut extractor = Extractor::new();
    extractor.kind(kind).limit_total(MAX_LITERALS);
    let sequence = extractor.extract(hir);
    match sequence.literals() {
        // No literal at all is an expression that can't match; it may stand anywhere.
        Some(literals) if !literals.is_empty() && literals.iter().all(|literal| !literal.is_empty()) => {
            literals.iter().map(|literal| literal.as_bytes().into()).collect()
        }
        _ => Box::new([Box::default()]),
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.as_str())
    }
}

/// Istio's `StringMatch` on one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    /// Equal, case-sensitive.
    Exact(String),
    /// Begins with the text.
    Prefix(String),
    /// Full match.
    Regex(Pattern),
    /// Any value, the empty one too (`{}`, or regex `*` in `withoutHeaders`).
    Present,
}

impl StringMatch {
    /// Whether `value` matches.
    pub fn is_match(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == text.as_bytes(),
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Regex(pattern) => pattern.is_match(value),
            Self::Present => true,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

    use super::*;

    #[test]
    fn patterns_match_whole_values_on_bytes() {
        let table: &[(&str, &[u8], bool)] = &[
            ("a+", b"aab", false),
            ("a+", b"aaa", true),
            ("/a|/ab", b"/ab", true),
            ("/a|/ab", b"/abc", false),
            (".*", b"a\nb", false),
            (".", b"\xe9", true),
            (".", "\u{e9}".as_bytes(), false),
            (r"\pL+", "\u{e9}".as_bytes(), true),
            ("(?i)/FOO", b"/foo", true),
            ("", b"", true),
            ("", b"x", false),
        ];
        for (text, value, expected) in table {
            assert_eq!(Pattern::new(text).unwrap().is_match(value), *expected, "{text:?} on {value:?}");
        }
    }

    #[test]
    fn unbalanced_groups_are_refused() {
        for text in ["a)|(?:b", "(", "*", "(?=a)", r"\1"] {
            assert!(Pattern::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn literals_are_what_all_matches_share() {
        let prefixes = |texts: &[&str]| Literals::Prefixes(texts.iter().map(|text| text.as_bytes().into()).collect());
        let suffixes = |texts: &[&str]| Literals::Suffixes(texts.iter().map(|text| text.as_bytes().into()).collect());
        for (text, expected) in [
            ("/users/[^/]+/orders/.*", prefixes(&["/users/"])),
            ("/(a|b)/.*", prefixes(&["/a/", "/b/"])),
            ("/[^/]+/item-7", suffixes(&["/item-7"])),
            (".*", prefixes(&[""])),
            ("a?b?", prefixes(&[""])),
        ] {
            assert_eq!(*Pattern::new(text).unwrap().literals(), expected, "{text}");
        }
    }
}
