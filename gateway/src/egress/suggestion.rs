//! The smallest ServiceEntry that allows what was refused, as one line for a log and as a document for a file.
//!
//! Hosts come from peers that may be hostile: no text of theirs is written but a [`Host`], whose characters mean nothing
//! to YAML or to a log.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};

/// Bytes of a host name (RFC 1035 §2.3.4, without the root's dot).
const MAX_HOST: usize = 253;
/// Bytes of a DNS label.
const MAX_LABEL: usize = 63;
/// Bytes that stay of a name that is too long for a label: room is left for `---` and 16 digits.
const KEPT_OF_LONG: usize = MAX_LABEL - 3 - 16;
/// The end of host names that stand for addresses. No such top-level domain exists.
const INVENTED: &str = ".ip";
/// Words that YAML readers take for something other than text; those of YAML 1.1 as well, which Kubernetes reads.
const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];

/// Something that was asked for and refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// A name or an IP address, as the client wrote it, without a port.
    pub host: String,
    /// Port of the host.
    pub port: u16,
    /// What the client would have spoken.
    pub protocol: Protocol,
}

/// Protocol of a port of a ServiceEntry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP in clear text.
    Http,
    /// TLS, which is passed through.
    Tls,
    /// Anything else.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Http => "HTTP",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
        })
    }
}

/// The smallest ServiceEntry that allows all of `wanted`, which must be of one host.
///
/// `None` if there is none: nothing is wanted, the hosts differ, a host is none that a ServiceEntry can have (see
/// [`Host::parse`]), a port is 0. A port has one protocol: the first that is wanted.
pub fn service_entry(wanted: &[Wanted]) -> Option<ServiceEntry> {
    let host = Host::parse(&wanted.first()?.host)?;
    let mut ports: Vec<(u16, Protocol)> = Vec::new();
    for Wanted { host: name, port, protocol } in wanted {
        if *port == 0 || Host::parse(name).as_ref() != Some(&host) {
            return None;
        }
        if ports.iter().all(|(known, _)| known != port) {
            ports.push((*port, *protocol));
        }
    }
    ports.sort_unstable();
    Some(ServiceEntry { host, ports, namespace: None })
}

/// A ServiceEntry of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    host: Host,
    /// In order of their numbers, which differ.
    ports: Vec<(u16, Protocol)>,
    namespace: Option<Namespace>,
}

impl ServiceEntry {
    /// The same in a namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// Whom it lets clients reach.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The whole as one line of YAML's flow form, without a line end.
    pub fn one_line(&self) -> String {
        let namespace = self.namespace.as_ref().map(|Namespace(name)| format!(", namespace: {}", scalar(name)));
        let ports: Vec<String> = self
            .ports
            .iter()
            .map(|(number, protocol)| {
                let name = port_name(*number, *protocol);
                format!("{{number: {number}, name: {name}, protocol: {protocol}}}")
            })
            .collect();
        let place = match &self.host {
            Host::Name(_) => "resolution: DNS".to_owned(),
            Host::Address(address) => {
                let address = scalar(&address.to_string());
                format!("addresses: [{address}], resolution: STATIC, endpoints: [{{address: {address}}}]")
            }
        };
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {}{}}}, spec: {{hosts: [{}], \
             ports: [{}], location: MESH_EXTERNAL, {place}}}}}",
            scalar(&self.name()),
            namespace.unwrap_or_default(),
            scalar(&self.host.in_hosts()),
            ports.join(", "),
        )
    }

    /// The whole as a YAML document in block form, without `---`.
    pub fn document(&self) -> String {
        let namespace = self.namespace.as_ref().map(|Namespace(name)| format!("  namespace: {}\n", scalar(name)));
        let ports: String = self
            .ports
            .iter()
            .map(|(number, protocol)| {
                let name = port_name(*number, *protocol);
                format!("  - number: {number}\n    name: {name}\n    protocol: {protocol}\n")
            })
            .collect();
        let place = match &self.host {
            Host::Name(_) => "  resolution: DNS\n".to_owned(),
            Host::Address(address) => {
                let address = scalar(&address.to_string());
                format!("  addresses:\n  - {address}\n  resolution: STATIC\n  endpoints:\n  - address: {address}\n")
            }
        };
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {}\n{}spec:\n  hosts:\n  - {}\n  \
             ports:\n{ports}  location: MESH_EXTERNAL\n{place}",
            scalar(&self.name()),
            namespace.unwrap_or_default(),
            scalar(&self.host.in_hosts()),
        )
    }

    /// `metadata.name`: the host as a DNS label, another one for each host.
    ///
    /// A dot becomes `-` and a `-` becomes `--`, which can be undone, since neither a label nor a host begins or ends
    /// with `-`. What is too long is cut and ends with a hash after `---`, which no other name contains.
    fn name(&self) -> String {
        let host = self.host.in_hosts();
        let mut name = host.replace('-', "--").replace('.', "-");
        if name.len() > MAX_LABEL {
            let hash: String =
                digest(&SHA256, host.as_bytes()).as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            name.truncate(KEPT_OF_LONG);
            name = format!("{}---{hash}", name.trim_end_matches('-'));
        }
        name
    }
}

/// As people call ports; the number makes those unique that aren't the protocol's own.
fn port_name(number: u16, protocol: Protocol) -> String {
    match (protocol, number) {
        (Protocol::Http, 80) => "http".to_owned(),
        (Protocol::Tls, 443) => "tls".to_owned(),
        _ => format!("{}-{number}", protocol.to_string().to_ascii_lowercase()),
    }
}

/// A host that a ServiceEntry can be for: all of it is safe to be written anywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A name in lower case, without a dot at its end.
    Name(String),
    /// An address; an IPv4 address in IPv6 is the former.
    Address(IpAddr),
}

impl Host {
    /// Reads a host as a client has written it, IPv6 with or without brackets.
    ///
    /// `None` for what can't stand in `hosts`: that must be labels of 1 to 63 letters, digits and inner `-`, 253 bytes in
    /// all, the last label not all digits. Names with `_` do exist, but Istio refuses them. The names that
    /// [`service_entry`] invents for addresses are refused, too: they would stand for two things.
    ///
    /// Source: `reference/networking.md` §10.1.
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let last = name.rsplit('.').next().unwrap_or_default();
        if name.len() > MAX_HOST || !name.split('.').all(is_label) || last.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let name = name.to_ascii_lowercase();
        (!is_invented(&name)).then_some(Self::Name(name))
    }

    /// As it stands in `hosts`, where Istio takes names only. For addresses people invent one, which is never resolved.
    fn in_hosts(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Address(address) => invented(*address),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => formatter.write_str(name),
            Self::Address(address) => address.fmt(formatter),
        }
    }
}

/// `192-0-2-1.ip`, `2001-db8-0-0-0-0-0-1.ip`.
fn invented(address: IpAddr) -> String {
    let parts: Vec<String> = match address {
        IpAddr::V4(address) => address.octets().iter().map(ToString::to_string).collect(),
        IpAddr::V6(address) => address.segments().iter().map(|segment| format!("{segment:x}")).collect(),
    };
    parts.join("-") + INVENTED
}

fn is_invented(name: &str) -> bool {
    let Some(parts) = name.strip_suffix(INVENTED) else { return false };
    [".", ":"].iter().any(|dot| parts.replace('-', dot).parse().is_ok_and(|address| invented(address) == name))
}

/// A namespace: a DNS label in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace(String);

/// A text is no name of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 63 lower-case letters, digits and inner `-`")]
pub struct NotANamespace;

impl FromStr for Namespace {
    type Err = NotANamespace;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = is_label(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase());
        if fits { Ok(Self(text.to_owned())) } else { Err(NotANamespace) }
    }
}

fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Letters, digits, `-`, `.` and `:` as a scalar of YAML that every reader takes for text.
fn scalar(text: &str) -> String {
    let is_plain =
        text.starts_with(|first: char| first.is_ascii_alphabetic()) && !text.contains(':') && !WORDS.contains(&text);
    if is_plain { text.to_owned() } else { format!("'{text}'") }
}

#[cfg(test)]
mod tests;
