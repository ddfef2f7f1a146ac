//! Heads of HTTP/1 messages: from bytes to request or status line and header lines, and back.
//!
//! The rules are Envoy's as measured (`reference/networking.md` §4.7), stricter where a lenient reading could make two
//! peers disagree about framing: a lone CR anywhere is an error.

use bytes::{Bytes, BytesMut};

use super::headers::Headers;

/// Largest head of a request in bytes, as Envoy's `max_request_headers_kb` of 60 counts it.
pub const MAX_REQUEST_HEAD: usize = 60 * 1024;
/// Largest head of an upstream's response. Envoy takes somewhere between 61 and 90 KiB.
pub const MAX_RESPONSE_HEAD: usize = 80 * 1024;
/// Header lines of a message.
pub const MAX_HEADERS: usize = 100;
/// Empty lines before a request line that are skipped.
const MAX_LEADING_BLANKS: usize = 16;

/// Request line and header lines.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// A registered method.
    pub method: Bytes,
    /// The target as it stands; visible ASCII.
    pub target: Bytes,
    /// The version.
    pub version: Version,
    /// Header lines with lower-case names, `host` included.
    pub headers: Headers,
}

/// Status line and header lines.
#[derive(Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Any three digits, and whatever else is a number below 1000.
    pub status: u16,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// Header lines with lower-case names.
    pub headers: Headers,
}

/// Version of an HTTP/1 message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the versions")]
pub enum Version {
    Http10,
    Http11,
    /// A well-formed version that isn't spoken here.
    Other,
}

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHead {
    /// Not HTTP, or against its grammar.
    #[error("malformed head")]
    Malformed,
    /// A control character in a value.
    #[error("invalid character in a header value")]
    InvalidCharacters,
    /// More bytes than allowed.
    #[error("head too large")]
    TooLarge,
    /// More lines than allowed.
    #[error("too many header lines")]
    TooManyLines,
}

/// Finds and takes heads off the front of a read buffer; remembers how far it has looked.
#[derive(Debug, Default)]
pub struct HeadScanner {
    looked: usize,
    line_start: usize,
    keep_case: bool,
}

impl HeadScanner {
    /// A scanner whose heads remember how header names were written, if `keep_case`.
    pub fn keeping_case(keep_case: bool) -> Self {
        Self { keep_case, ..Self::default() }
    }

    /// The bytes of a whole head with its empty line, or `None` if more input is needed.
    ///
    /// # Errors
    /// The head is longer than `limit`, or doesn't begin like a head.
    fn take(&mut self, buffer: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, InvalidHead> {
        while let Some(offset) = memchr_newline(&buffer[self.looked..]) {
            let newline = self.looked + offset;
            let line = &buffer[self.line_start..newline];
            if line.is_empty() || line == b"\r" {
                let end = newline + 1;
                *self = Self::keeping_case(self.keep_case);
                if end > limit + 4 {
                    return Err(InvalidHead::TooLarge);
                }
                return Ok(Some(buffer.split_to(end)));
            }
            self.looked = newline + 1;
            self.line_start = self.looked;
        }
        self.looked = buffer.len();
        if buffer.len() > limit { Err(InvalidHead::TooLarge) } else { Ok(None) }
    }

    /// The next request head, or `None` if more input is needed.
    ///
    /// # Errors
    /// See [`InvalidHead`].
    pub fn request(&mut self, buffer: &mut BytesMut) -> Result<Option<RequestHead>, InvalidHead> {
        if self.looked == 0 {
            skip_blank_lines(buffer)?;
            // Something that can't be a method is refused without waiting for a line that may never end.
            if buffer.iter().take(32).take_while(|&&byte| byte != b' ').any(|&byte| !is_method_byte(byte)) {
                return Err(InvalidHead::Malformed);
            }
        }
        let Some(mut head) = self.take(buffer, MAX_REQUEST_HEAD)? else { return Ok(None) };
        let line_end = memchr_newline(&head).ok_or(InvalidHead::Malformed)?;
        let line = RequestLine::parse(strip_cr(&head[..line_end])?)?;
        let lines = header_lines(&mut head, line_end + 1, self.keep_case)?;
        let head = head.freeze();
        Ok(Some(RequestHead {
            method: head.slice(line.method),
            target: head.slice(line.target),
            version: line.version,
            headers: lines.slice(&head),
        }))
    }

    /// The next response head, or `None` if more input is needed.
    ///
    /// # Errors
    /// See [`InvalidHead`].
    pub fn response(&mut self, buffer: &mut BytesMut) -> Result<Option<ResponseHead>, InvalidHead> {
        if self.looked == 0 {
            let seen = buffer.len().min(5);
            if buffer[..seen] != b"HTTP/"[..seen] {
                return Err(InvalidHead::Malformed);
            }
        }
        let Some(mut head) = self.take(buffer, MAX_RESPONSE_HEAD)? else { return Ok(None) };
        let line_end = memchr_newline(&head).ok_or(InvalidHead::Malformed)?;
        let line = strip_cr(&head[..line_end])?;
        let (version, rest) = line.split_at_checked(9).ok_or(InvalidHead::Malformed)?;
        let version = match version {
            b"HTTP/1.1 " => Version::Http11,
            b"HTTP/1.0 " => Version::Http10,
            _ => return Err(InvalidHead::Malformed),
        };
        let digits = rest.split(|&byte| byte == b' ').next().unwrap_or_default();
        let status = std::str::from_utf8(digits)
            .ok()
            .filter(|digits| (1..=3).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .ok_or(InvalidHead::Malformed)?;
        let lines = header_lines(&mut head, line_end + 1, self.keep_case)?;
        let head = head.freeze();
        Ok(Some(ResponseHead { status, version, headers: lines.slice(&head) }))
    }
}

/// Ranges of a request line.
struct RequestLine {
    method: std::ops::Range<usize>,
    target: std::ops::Range<usize>,
    version: Version,
}

impl RequestLine {
    fn parse(line: &[u8]) -> Result<Self, InvalidHead> {
        let space = |from: usize| line[from..].iter().position(|&byte| byte == b' ').map(|at| from + at);
        let text = |from: usize| line[from..].iter().position(|&byte| byte != b' ').map(|at| from + at);
        let method_end = space(0).ok_or(InvalidHead::Malformed)?;
        let target_start = text(method_end).ok_or(InvalidHead::Malformed)?;
        let target_end = space(target_start).unwrap_or(line.len());
        let version_start = text(target_end);
        if !is_known_method(&line[..method_end]) {
            return Err(InvalidHead::Malformed);
        }
        if line[target_start..target_end].iter().any(|byte| !byte.is_ascii_graphic()) {
            return Err(InvalidHead::Malformed);
        }
        let version = match version_start.map_or(&b"HTTP/0.9"[..], |start| &line[start..]) {
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/1.0" => Version::Http10,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                Version::Other
            }
            _ => return Err(InvalidHead::Malformed),
        };
        Ok(Self { method: 0..method_end, target: target_start..target_end, version })
    }
}

/// A header line: slices of the head, or text of its own where lines were folded.
struct Line {
    name: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
    folded: Option<Vec<u8>>,
}

struct Lines {
    lines: Vec<Line>,
    /// Names before they became lower case, if these are kept.
    received_names: Option<Vec<Bytes>>,
}

impl Lines {
    fn slice(self, head: &Bytes) -> Headers {
        let mut headers = Headers::with_capacity(self.lines.len() + 8);
        for line in self.lines {
            let value = line.folded.map_or_else(|| head.slice(line.value), Bytes::from);
            let name = head.slice(line.name);
            headers.receive(name, value);
        }
        if let Some(names) = self.received_names {
            headers.keep_names(names.into());
        }
        headers
    }
}

/// Parses the header lines of `head` from `start` on; names become lower case in place.
fn header_lines(head: &mut BytesMut, start: usize, keep_case: bool) -> Result<Lines, InvalidHead> {
    let mut lines: Vec<Line> = Vec::with_capacity(16);
    let mut received_names = keep_case.then(Vec::new);
    let mut at = start;
    loop {
        let length = memchr_newline(&head[at..]).ok_or(InvalidHead::Malformed)?;
        let end = at + strip_cr(&head[at..at + length])?.len();
        let next = at + length + 1;
        if end == at {
            return Ok(Lines { lines, received_names });
        }
        if matches!(head[at], b' ' | b'\t') {
            // obs-fold: the line goes on; its blanks stay, as Envoy keeps them (RFC 9112 §5.2 allows a single blank).
            let line = lines.last_mut().ok_or(InvalidHead::Malformed)?;
            check_value(&head[at..end])?;
            let mut value = line.folded.take().unwrap_or_else(|| head[line.value.clone()].to_vec());
            value.extend_from_slice(head[at..end].trim_ascii_end());
            line.folded = Some(value);
        } else {
            if lines.len() == MAX_HEADERS {
                return Err(InvalidHead::TooManyLines);
            }
            let colon = head[at..end].iter().position(|&byte| byte == b':').ok_or(InvalidHead::Malformed)? + at;
            if colon == at || !head[at..colon].iter().all(|&byte| is_token_byte(byte)) {
                return Err(InvalidHead::Malformed);
            }
            if let Some(names) = &mut received_names {
                names.push(Bytes::copy_from_slice(&head[at..colon]));
            }
            head[at..colon].make_ascii_lowercase();
            check_value(&head[colon + 1..end])?;
            let value = &head[colon + 1..end];
            let trimmed_start = value.len() - trim_start(value).len();
            let first = colon + 1 + trimmed_start;
            let last = first + trim_end(&head[first..end]).len();
            lines.push(Line { name: at..colon, value: first..last, folded: None });
        }
        at = next;
    }
}

fn trim_start(value: &[u8]) -> &[u8] {
    let blanks = value.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    &value[blanks..]
}

fn trim_end(value: &[u8]) -> &[u8] {
    let blanks = value.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    &value[..value.len() - blanks]
}

/// The line without the CR at its end; a CR anywhere else is refused.
fn strip_cr(line: &[u8]) -> Result<&[u8], InvalidHead> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.contains(&b'\r') { Err(InvalidHead::Malformed) } else { Ok(line) }
}

fn check_value(value: &[u8]) -> Result<(), InvalidHead> {
    if value.iter().any(|&byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f) {
        return Err(InvalidHead::InvalidCharacters);
    }
    Ok(())
}

fn skip_blank_lines(buffer: &mut BytesMut) -> Result<(), InvalidHead> {
    let blanks = buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if blanks > MAX_LEADING_BLANKS {
        return Err(InvalidHead::Malformed);
    }
    if blanks > 0 {
        let _blanks = buffer.split_to(blanks);
    }
    Ok(())
}

fn memchr_newline(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == b'\n')
}

fn is_method_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'-'
}

/// RFC 9110 §5.6.2.
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The methods that Envoy's HTTP/1 codec knows; others are a codec error.
pub fn is_known_method(method: &[u8]) -> bool {
    const KNOWN: [&[u8]; 36] = [
        b"GET",
        b"HEAD",
        b"POST",
        b"PUT",
        b"DELETE",
        b"PATCH",
        b"OPTIONS",
        b"TRACE",
        b"CONNECT",
        b"ACL",
        b"BIND",
        b"CHECKOUT",
        b"COPY",
        b"LINK",
        b"LOCK",
        b"MERGE",
        b"MKACTIVITY",
        b"MKCALENDAR",
        b"MKCOL",
        b"MOVE",
        b"M-SEARCH",
        b"NOTIFY",
        b"PROPFIND",
        b"PROPPATCH",
        b"PURGE",
        b"QUERY",
        b"REBIND",
        b"REPORT",
        b"SEARCH",
        b"SOURCE",
        b"SUBSCRIBE",
        b"UNBIND",
        b"UNLINK",
        b"UNLOCK",
        b"UNSUBSCRIBE",
        b"VERSION-CONTROL",
    ];
    KNOWN.contains(&method)
}

/// The reason phrase Envoy writes for a status.
pub fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &[u8]) -> Result<Option<RequestHead>, InvalidHead> {
        HeadScanner::default().request(&mut BytesMut::from(text))
    }

    fn lines(head: &RequestHead) -> Vec<(String, String)> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        head.headers.iter().map(|line| (text(&line.name), text(&line.value))).collect()
    }

    #[test]
    fn a_head_is_read_whatever_its_pieces() {
        let text = b"\r\nGET  /a?b HTTP/1.1\r\nHost: a.com\nX-Tab:\ta\tb\t\r\nEmpty:\r\nFold: 1\r\n  2\r\n\r\nrest";
        for piece in 1..text.len() {
            let mut scanner = HeadScanner::default();
            let mut buffer = BytesMut::new();
            let mut found = None;
            for bytes in text.chunks(piece) {
                buffer.extend_from_slice(bytes);
                if found.is_none() {
                    found = scanner.request(&mut buffer).expect("well-formed");
                }
            }
            let head = found.expect("complete");
            assert_eq!((&head.method[..], &head.target[..]), (&b"GET"[..], &b"/a?b"[..]));
            let expected = [("host", "a.com"), ("x-tab", "a\tb"), ("empty", ""), ("fold", "1  2")];
            assert_eq!(lines(&head), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
            assert_eq!(&buffer[..], b"rest");
        }
    }

    #[test]
    fn malformed_heads_are_refused() {
        for (text, error) in [
            (&b"GET\r\n\r\n"[..], InvalidHead::Malformed),
            (b"get / HTTP/1.1\r\n\r\n", InvalidHead::Malformed),
            (b"FOO / HTTP/1.1\r\n\r\n", InvalidHead::Malformed),
            (b"GET / http/1.1\r\n\r\n", InvalidHead::Malformed),
            (b"GET / HTTPX\r\n\r\n", InvalidHead::Malformed),
            (b"GET /a b HTTP/1.1\r\n\r\n", InvalidHead::Malformed),
            (b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n", InvalidHead::Malformed),
            (b"GET / HTTP/1.1\r\nfoo\r\n\r\n", InvalidHead::Malformed),
            (b"GET / HTTP/1.1\r\n: x\r\n\r\n", InvalidHead::Malformed),
            (b"GET / HTTP/1.1\r\nx a: 1\r\n\r\n", InvalidHead::Malformed),
            (b"GET / HTTP/1.1\r\ntransfer-encoding : chunked\r\n\r\n", InvalidHead::Malformed),
            (b"GET / HTTP/1.1\r\nx: a\rb\r\n\r\n", InvalidHead::Malformed),
            (b"GET / HTTP/1.1\r\nx: a\0b\r\n\r\n", InvalidHead::InvalidCharacters),
            (b"GET / HTTP/1.1\r\nx: a\x01b\r\n\r\n", InvalidHead::InvalidCharacters),
            (b"\x16\x03\x01\x00\xa5", InvalidHead::Malformed),
            (b" GET / HTTP/1.1\r\n\r\n", InvalidHead::Malformed),
        ] {
            assert_eq!(request(text), Err(error), "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn limits_hold() {
        let head = |lines: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "x: v\r\n".repeat(lines));
        assert!(matches!(request(head(100).as_bytes()), Ok(Some(_))));
        assert_eq!(request(head(101).as_bytes()), Err(InvalidHead::TooManyLines));
        let big = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "v".repeat(MAX_REQUEST_HEAD));
        assert_eq!(request(big.as_bytes()), Err(InvalidHead::TooLarge));
        // Without an end in sight, the limit ends the wait.
        assert_eq!(request(&big.as_bytes()[..MAX_REQUEST_HEAD + 1]), Err(InvalidHead::TooLarge));
    }

    #[test]
    fn responses_keep_odd_statuses() {
        let parse = |text: &[u8]| HeadScanner::default().response(&mut BytesMut::from(text));
        assert_eq!(parse(b"HTTP/1.1 999\r\n\r\n").map(|head| head.map(|head| head.status)), Ok(Some(999)));
        assert_eq!(
            parse(b"HTTP/1.0 200 OK\r\n\r\n").map(|head| head.map(|head| head.version)),
            Ok(Some(Version::Http10))
        );
        assert_eq!(parse(b"garbage"), Err(InvalidHead::Malformed));
        assert_eq!(parse(b"HTTP/1.1 2x0 OK\r\n\r\n"), Err(InvalidHead::Malformed));
    }
}
