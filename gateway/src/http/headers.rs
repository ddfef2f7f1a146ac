//! Header lines in wire order.

use bytes::Bytes;
use config::snapshot::route::HeaderLines;

/// Header lines in the order they stand on the wire; names are lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    lines: Vec<Header>,
    /// The names as they were received, where their case is to be kept (`preserveHttp1HeaderCase`).
    received_names: Option<Box<[Bytes]>>,
}

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
        Self { lines: Vec::with_capacity(lines), received_names: None }
    }

    /// Number of lines.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// All lines in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Header> {
        self.lines.iter()
    }

    /// The first line of that name.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.lines.iter().find(|line| line.name == name.as_bytes()).map(|line| &line.value)
    }

    /// The first line of that name, if it is UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All lines of that name.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Bytes> {
        self.lines.iter().filter(move |line| line.name == name.as_bytes()).map(|line| &line.value)
    }

    /// Whether there is a line of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether a line `name` lists `token`, in any case.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.get_all(name).flat_map(|line| tokens(line)).any(|found| found.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Keeps the names as they were received, for [`Self::spelling`].
    pub fn keep_names(&mut self, names: Box<[Bytes]>) {
        self.received_names = Some(names);
    }

    /// Whether the case of names is kept.
    pub fn keeps_names(&self) -> bool {
        self.received_names.is_some()
    }

    /// How `name` (lower case) is to be written to an HTTP/1 peer: as it was received, if that is kept.
    pub fn spelling<'a>(&'a self, name: &'a [u8]) -> &'a [u8] {
        let Some(names) = &self.received_names else { return name };
        names.iter().find(|received| received.eq_ignore_ascii_case(name)).map_or(name, |received| received)
    }

    /// Adds a line that was received: a second line of a header that HTTP defines as a list, and that Envoy keeps as one
    /// line, is joined to the first with `,`.
    pub fn receive(&mut self, name: Bytes, value: Bytes) {
        if is_single_line(&name)
            && let Some(line) = self.lines.iter_mut().find(|line| line.name == name)
        {
            line.value = [&line.value[..], b",", &value[..]].concat().into();
            return;
        }
        self.append(name, value);
    }

    /// Adds a value as Envoy's `append` does: joined to the present line for single-line headers, as a line of its own for
    /// others.
    pub fn add(&mut self, name: Bytes, value: Bytes) {
        if name == "cookie" {
            self.append(name, value);
        } else {
            self.receive(name, value);
        }
    }

    /// Adds a line at the end.
    pub fn append(&mut self, name: Bytes, value: Bytes) {
        self.lines.push(Header { name, value });
    }

    /// Adds a line with a name known at compile time.
    pub fn push(&mut self, name: &'static str, value: impl Into<Bytes>) {
        self.append(Bytes::from_static(name.as_bytes()), value.into());
    }

    /// Replaces the value of the first line of that name in place and removes the others; adds the line at the end if
    /// there is none.
    pub fn set(&mut self, name: &'static str, value: impl Into<Bytes>) {
        let (name, value) = (Bytes::from_static(name.as_bytes()), value.into());
        // What the gateway puts together itself must not end the line.
        debug_assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{name:?}: {value:?}");
        let Some(first) = self.lines.iter().position(|line| line.name == name) else {
            self.append(name, value);
            return;
        };
        self.lines[first].value = value;
        let mut index = 0;
        self.lines.retain(|line| {
            index += 1;
            index - 1 <= first || line.name != name
        });
    }

    /// Removes all lines of that name; whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.lines.len();
        self.lines.retain(|line| line.name != name.as_bytes());
        self.lines.len() != before
    }

    /// Keeps the lines for which `keep` is true.
    pub fn retain(&mut self, keep: impl FnMut(&Header) -> bool) {
        self.lines.retain(keep);
    }

    /// Puts a line first.
    pub fn prepend(&mut self, name: &'static str, value: impl Into<Bytes>) {
        self.lines.insert(0, Header { name: Bytes::from_static(name.as_bytes()), value: value.into() });
    }

    /// The first line of that name, to be changed in place.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Bytes> {
        self.lines.iter_mut().find(|line| line.name == name.as_bytes()).map(|line| &mut line.value)
    }
}

/// The members of a comma-separated list (RFC 9110 §5.6.1).
pub fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Headers that Envoy keeps as one line each (its inline headers), request and response together.
fn is_single_line(name: &[u8]) -> bool {
    match name.len() {
        2 => name == b"te",
        3 => name == b"via",
        4 => matches!(name, b"etag" | b"date" | b"vary"),
        6 => matches!(name, b"accept" | b"expect" | b"origin" | b"server"),
        7 => matches!(name, b"upgrade" | b"referer"),
        10 => matches!(name, b"user-agent" | b"connection" | b"keep-alive"),
        11 => name == b"grpc-status",
        12 => matches!(name, b"content-type" | b"x-request-id" | b"grpc-timeout" | b"grpc-message"),
        13 => matches!(name, b"authorization" | b"cache-control" | b"x-ot-span-context"),
        14 => name == b"content-length",
        15 => matches!(name, b"accept-encoding" | b"x-envoy-internal" | b"x-forwarded-for"),
        16 => matches!(name, b"content-encoding" | b"proxy-connection" | b"x-forwarded-host" | b"x-forwarded-port"),
        17 => matches!(name, b"transfer-encoding" | b"x-forwarded-proto" | b"if-modified-since"),
        24 => name == b"x-envoy-external-address",
        27 => name == b"x-forwarded-client-cert",
        _ => false,
    }
}

impl HeaderLines for Headers {
    fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.lines.iter().any(|line| line.name == name.as_bytes() && test(&line.value))
    }

    fn each_line(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        for line in &self.lines {
            // A name that is no UTF-8 is no name that a route could ask for.
            if let Ok(name) = std::str::from_utf8(&line.name) {
                visit(name, &line.value);
            }
        }
    }
}
