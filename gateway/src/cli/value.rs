//! Values of options and of Istio's environment variables.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

/// `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyValue {
    pub(super) key: String,
    pub(super) value: String,
}

impl FromStr for KeyValue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
            _ => Err("must be KEY=VALUE".to_owned()),
        }
    }
}

/// `A:B`: server port and port to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortMapping {
    pub(super) from: u16,
    pub(super) to: u16,
}

impl FromStr for PortMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ports = text.split_once(':').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        match ports {
            Some((from @ 1.., to)) => Ok(Self { from, to }),
            _ => Err("must be A:B, two port numbers".to_owned()),
        }
    }
}

/// `ADDR:PORT`, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Port(pub(super) Option<SocketAddr>);

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self(None)),
            _ => match text.parse() {
                Ok(address) => Ok(Self(Some(address))),
                Err(_) => Err("must be ADDR:PORT (as 127.0.0.1:15000 or [::1]:15000), or off".to_owned()),
            },
        }
    }
}

/// `IP` or `IP:PORT` of a name server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NameServer(pub(super) SocketAddr);

/// The port of DNS.
const DNS: u16 = 53;

impl FromStr for NameServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, DNS)));
        match address {
            Ok(address) if address.port() != 0 => Ok(Self(address)),
            _ => Err("must be IP or IP:PORT (as 169.254.20.10, 127.0.0.1:5353 or [::1]:5353)".to_owned()),
        }
    }
}

/// An environment variable of Istio's; `None` if it is unset or empty.
pub(super) fn from_environment<T>(name: &str, parse: fn(&str) -> Option<T>) -> Result<Option<T>, String> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("environment variable {name}: `{text}` is no value for it")),
        },
        _ => Ok(None),
    }
}

pub(super) fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// As Go's `strconv.ParseBool`.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// As Go's `time.ParseDuration`, without signs and fractions: `1m30s`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit())?;
        let (count, unit) = rest.split_at(digits);
        let count: u32 = count.parse().ok()?;
        let (unit, length) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)]
            .into_iter()
            .find(|(name, _)| unit.starts_with(name))?;
        total = total.checked_add(Duration::from_millis(length).checked_mul(count)?)?;
        rest = &rest[digits + unit.len()..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, milliseconds) in
            [("5s", Some(5000)), ("1m30s", Some(90_000)), ("250ms", Some(250)), ("2h", Some(7_200_000)), ("0", Some(0))]
        {
            assert_eq!(duration(text), milliseconds.map(Duration::from_millis), "{text}");
        }
        for text in ["", "5", "s", "5x", "-5s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn booleans_are_gos() {
        assert_eq!(boolean("true"), Some(true));
        assert_eq!(boolean("0"), Some(false));
        assert_eq!(boolean("yes"), None);
    }
}
