//! Matchers of single strings.

use std::fmt;

use regex::bytes::Regex;

/// A regular expression that must match a whole value, compared by its text.
///
/// RE2 syntax as far as the `regex` crate shares it; both refuse look-around. Matched on bytes.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles `text` for full matches.
    ///
    /// # Errors
    /// The text is not a regular expression, or compiles to more than the size limit.
    pub fn new(text: &str) -> Result<Self, regex::Error> {
        // `.` matches a single byte and not `\n`, as RE2 does in Envoy, which matches on bytes.
        let regex = regex::bytes::RegexBuilder::new(&format!("^(?:{text})$")).unicode(false).build().or_else(|_| {
            // Unicode classes (`\pL`) need Unicode mode.
            regex::bytes::RegexBuilder::new(&format!("^(?:{text})$")).build()
        })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// Whether the whole of `value` matches.
    pub fn is_match(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }

    /// The text as configured.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
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
