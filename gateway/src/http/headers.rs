//! Header lines in wire order.

use bytes::Bytes;
use config::snapshot::route::HeaderLines;

/// Header lines in the order they stand on the wire; names are lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<Header>);

/// One header line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Lower-case name.
    pub name: Bytes,
    /// The value without outer blanks.
    pub value: Bytes,
}

impl Headers {
    /// Room for `lines` without another allocation.
    pub fn with_capacity(lines: usize) -> Self {
        Self(Vec::with_capacity(lines))
    }

    /// Number of lines.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All lines in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Header> {
        self.0.iter()
    }

    /// The first line of that name.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().find(|line| line.name == name.as_bytes()).map(|line| &line.value)
    }

    /// The first line of that name, if it is UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All lines of that name.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Bytes> {
        self.0.iter().filter(move |line| line.name == name.as_bytes()).map(|line| &line.value)
    }

    /// Whether there is a line of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Adds a line at the end.
    pub fn append(&mut self, name: Bytes, value: Bytes) {
        self.0.push(Header { name, value });
    }

    /// Adds a line with a name known at compile time.
    pub fn push(&mut self, name: &'static str, value: impl Into<Bytes>) {
        self.append(Bytes::from_static(name.as_bytes()), value.into());
    }

    /// Replaces the value of the first line of that name in place and removes the others; adds the line at the end if
    /// there is none.
    pub fn set(&mut self, name: &'static str, value: impl Into<Bytes>) {
        self.set_bytes(Bytes::from_static(name.as_bytes()), value.into());
    }

    /// As [`Self::set`], for a name that isn't known at compile time.
    pub fn set_bytes(&mut self, name: Bytes, value: Bytes) {
        let Some(first) = self.0.iter().position(|line| line.name == name) else {
            self.append(name, value);
            return;
        };
        self.0[first].value = value;
        let mut index = 0;
        self.0.retain(|line| {
            index += 1;
            index - 1 <= first || line.name != name
        });
    }

    /// Removes all lines of that name; whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|line| line.name != name.as_bytes());
        self.0.len() != before
    }

    /// Keeps the lines for which `keep` is true.
    pub fn retain(&mut self, keep: impl FnMut(&Header) -> bool) {
        self.0.retain(keep);
    }

    /// Puts a line first.
    pub fn prepend(&mut self, name: &'static str, value: impl Into<Bytes>) {
        self.0.insert(0, Header { name: Bytes::from_static(name.as_bytes()), value: value.into() });
    }

    /// The first line of that name, to be changed in place.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Bytes> {
        self.0.iter_mut().find(|line| line.name == name.as_bytes()).map(|line| &mut line.value)
    }
}

impl HeaderLines for Headers {
    fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.iter().any(|line| line.name == name.as_bytes() && test(&line.value))
    }

    fn each_line(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        for line in &self.0 {
            // A name that is no UTF-8 is no name that a route could ask for.
            if let Ok(name) = std::str::from_utf8(&line.name) {
                visit(name, &line.value);
            }
        }
    }
}
