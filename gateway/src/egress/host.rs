//! Hosts as clients name them, taken strictly: what two readers could understand differently is refused.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// Longest name and label. Source: RFC 1035 §2.3.4.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// A host and the port that was named with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// From 1; `None` if none was named.
    pub port: Option<u16>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// In lower case.
    Name(Arc<str>),
    /// A literal.
    Ip(IpAddr),
}

/// Why an authority is no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invalid {
    /// `user@host`.
    UserInfo,
    /// The name ends with a dot: the same host to DNS, another one to policies and certificates.
    TrailingDot,
    /// Not labels of letters, digits, `-` and `_`; or a number that some take for an address.
    Name,
    /// Not a number from 1 to 65535.
    Port,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl Target {
    /// Reads `host`, `host:port`, `[v6]` or `[v6]:port`.
    ///
    /// # Errors
    /// See [`Invalid`].
    pub fn parse(authority: &[u8]) -> Result<Self, Invalid> {
        let text = std::str::from_utf8(authority).map_err(|_| Invalid::Name)?;
        if text.contains('@') {
            return Err(Invalid::UserInfo);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (ip, port) = rest.split_once(']').ok_or(Invalid::Name)?;
            let ip: Ipv6Addr = ip.parse().map_err(|_| Invalid::Name)?;
            let port = match port.strip_prefix(':') {
                Some(port) => Some(parse_port(port)?),
                None if port.is_empty() => None,
                None => return Err(Invalid::Port),
            };
            return Ok(Self { host: Host::Ip(IpAddr::V6(ip)), port });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(parse_port(port)?)),
            None => (text, None),
        };
        Ok(Self { host: Host::parse(host)?, port })
    }
}

impl Host {
    /// The name, or the literal as text.
    pub fn into_text(self) -> Arc<str> {
        match self {
            Self::Name(name) => name,
            Self::Ip(ip) => ip.to_string().into(),
        }
    }

    /// Reads a name or an IPv4 literal.
    ///
    /// # Errors
    /// See [`Invalid`].
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(ip));
        }
        if text.ends_with('.') {
            return Err(Invalid::TrailingDot);
        }
        let is_label = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        // `127.1` and `0x7f000001` are addresses to some resolvers (WHATWG URL §3.5: a host that ends in a number).
        let last = text.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if text.len() > MAX_NAME || is_number || !text.split('.').all(is_label) {
            return Err(Invalid::Name);
        }
        Ok(Self::Name(text.to_ascii_lowercase().into()))
    }
}

fn parse_port(text: &str) -> Result<u16, Invalid> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port| is_number && port != 0).ok_or(Invalid::Port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_read_strictly() {
        for (authority, expected) in [
            ("a.com", Ok(("a.com", None))),
            ("A.Com:443", Ok(("a.com", Some(443)))),
            ("a_b-c.com:1", Ok(("a_b-c.com", Some(1)))),
            ("xn--bcher-kva.example", Ok(("xn--bcher-kva.example", None))),
            ("localhost", Ok(("localhost", None))),
            ("192.0.2.1:80", Ok(("192.0.2.1", Some(80)))),
            ("[2001:db8::1]:80", Ok(("2001:db8::1", Some(80)))),
            ("[2001:db8::1]", Ok(("2001:db8::1", None))),
            ("", Err(Invalid::Name)),
            (":443", Err(Invalid::Name)),
            ("a.com.", Err(Invalid::TrailingDot)),
            ("a.com.:443", Err(Invalid::TrailingDot)),
            ("a..com", Err(Invalid::Name)),
            (".a.com", Err(Invalid::Name)),
            ("a com", Err(Invalid::Name)),
            ("*.com", Err(Invalid::Name)),
            ("a.com/x", Err(Invalid::Name)),
            ("a%2ecom", Err(Invalid::Name)),
            ("b\u{fc}cher.example", Err(Invalid::Name)),
            ("user@a.com", Err(Invalid::UserInfo)),
            ("a.com@10.0.0.1:80", Err(Invalid::UserInfo)),
            ("a.com:", Err(Invalid::Port)),
            ("a.com:0", Err(Invalid::Port)),
            ("a.com:65536", Err(Invalid::Port)),
            ("a.com:+80", Err(Invalid::Port)),
            ("a.com:80:80", Err(Invalid::Port)),
            ("::1", Err(Invalid::Port)),
            ("[::1", Err(Invalid::Name)),
            ("[::1]x", Err(Invalid::Port)),
            ("[a.com]", Err(Invalid::Name)),
            ("127.1", Err(Invalid::Name)),
            ("2130706433", Err(Invalid::Name)),
            ("0x7f000001", Err(Invalid::Name)),
            ("0x7f.1", Err(Invalid::Name)),
            ("0177.0.0.1", Err(Invalid::Name)),
        ] {
            let target = Target::parse(authority.as_bytes()).map(|target| (target.host.to_string(), target.port));
            assert_eq!(target, expected.map(|(host, port)| (host.to_owned(), port)), "{authority}");
        }
        let label = "a".repeat(64);
        assert_eq!(Target::parse(label.as_bytes()), Err(Invalid::Name));
        let name = vec!["a"; 128].join(".");
        assert_eq!(Target::parse(name.as_bytes()), Err(Invalid::Name));
        assert_eq!(Target::parse(b"a\xff.com"), Err(Invalid::Name));
    }
}
