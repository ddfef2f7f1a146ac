//! What may leave: hosts as clients name them, addresses that they may stand for, and refusals that explain themselves.
//!
//! A ServiceEntry for a wildcard host with resolution DYNAMIC_DNS, and a forward proxy, let the client choose the host.
//! Its name, the address that it resolves to, the SNI and the certificate are bound together here; nothing else is
//! connected to. Source: `reference/networking.md` §6.2, §7.

pub mod addresses;
pub mod denials;
pub mod host;
pub mod learn;
pub mod suggestion;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::OnceLock;

use arc_swap::ArcSwap;
use bytes::Bytes;
use config::snapshot::cluster::DynamicDns;

use crate::http::headers::Headers;
use crate::request::{ConnectionFacts, Protocol};
use addresses::AddressPolicy;
use denials::{Denials, Reason};
use host::{Host, Target};

/// Egress of a gateway.
#[derive(Debug, Default)]
pub struct Egress {
    /// Which addresses a name may stand for.
    pub addresses: AddressPolicy,
    /// Refusals so far.
    pub denials: Denials,
    /// Unknown hosts of every listener are refused egress, not only those of forward proxies.
    pub is_egress_gateway: bool,
    /// What this process calls itself in `via`.
    pseudonym: Pseudonym,
    /// Ports of listeners, in order.
    listener_ports: ArcSwap<Vec<u16>>,
    /// Ports beside them, for as long as the process lives.
    process_ports: OnceLock<Vec<u16>>,
}

/// Drawn anew by every process, so that it finds its own requests when they come back, and says nothing to others.
#[derive(Debug)]
struct Pseudonym(String);

impl Default for Pseudonym {
    fn default() -> Self {
        Self(format!("fairlead-{:016x}", rand::random::<u64>()))
    }
}

impl Egress {
    /// Of a gateway with these labels: one that Istio's selector for egress gateways finds is one.
    pub fn new(addresses: AddressPolicy, labels: &BTreeMap<String, String>) -> Self {
        let names = [("istio", "egressgateway"), ("app", "istio-egressgateway")];
        let is_egress_gateway = names.iter().any(|(key, value)| labels.get(*key).is_some_and(|label| label == value));
        Self { addresses, is_egress_gateway, ..Self::default() }
    }

    /// Takes note of the ports that listeners have: a name must not lead back to them.
    pub fn set_listener_ports(&self, mut ports: Vec<u16>) {
        ports.sort_unstable();
        self.listener_ports.store(ports.into());
    }

    /// Takes note of the ports for operators; once.
    pub fn set_process_ports(&self, ports: Vec<u16>) {
        // They don't change.
        let _ = self.process_ports.set(ports);
    }

    /// Writes down in the headers of a request that it has passed here (RFC 9110 §7.6.3): a host may lead back through
    /// addresses that nobody can know to be ours, a load balancer's.
    ///
    /// # Errors
    /// [`Reason::Loop`]: it has before.
    pub fn pass(&self, headers: &mut Headers, protocol: Option<Protocol>) -> Result<(), Reason> {
        let Pseudonym(name) = &self.pseudonym;
        let has_passed = |line: &Bytes| line.windows(name.len()).any(|part| part == name.as_bytes());
        if headers.get_all("via").any(has_passed) {
            return Err(Reason::Loop);
        }
        let version = match protocol {
            Some(Protocol::Http10) => "1.0",
            Some(Protocol::Http2) => "2.0",
            Some(Protocol::Http11) | None => "1.1",
        };
        headers.push("via", format!("{version} {name}"));
        Ok(())
    }

    /// Whether a connection would come back to this process. `is_ours`: its address may be one of this machine.
    pub fn is_own(&self, is_ours: bool, port: u16) -> bool {
        let has_port = || {
            let others = self.process_ports.get();
            others.is_some_and(|ports| ports.contains(&port)) || self.listener_ports.load().binary_search(&port).is_ok()
        };
        is_ours && has_port()
    }
}

/// The host that a request to `authority` may be sent to through a cluster of hosts that are resolved on demand, and its
/// port.
///
/// # Errors
/// Why it may not.
pub fn admit(dns: &DynamicDns, authority: &[u8]) -> Result<Target, Reason> {
    let mut target = Target::parse(authority).map_err(Reason::InvalidHost)?;
    match &target.host {
        // Only where any host will do; whether the address will is another question.
        Host::Ip(_) if dns.suffix.is_empty() => {}
        Host::Ip(_) => return Err(Reason::AddressLiteral),
        Host::Name(name) if !covers(&dns.suffix, name) => return Err(Reason::NotCovered),
        Host::Name(_) => {}
    }
    if dns.port != 0 {
        target.port = Some(dns.port);
    }
    Ok(target)
}

/// Whether a client that has begun TLS for one host asks for another one within it. Names that are no such hosts, as those
/// that sidecars use between themselves, say nothing.
///
/// # Errors
/// [`Reason::ServerNameMismatch`].
pub fn check_server_name(dns: &DynamicDns, authority: &[u8], connection: &ConnectionFacts) -> Result<(), Reason> {
    let Some(server) = connection.server_name.as_deref().filter(|_| connection.tls.is_some()) else { return Ok(()) };
    match Target::parse(authority) {
        Ok(Target { host: Host::Name(name), .. }) if covers(&dns.suffix, server) && *server != *name => {
            Err(Reason::ServerNameMismatch)
        }
        // What is no host at all is refused anyway.
        _ => Ok(()),
    }
}

fn covers(suffix: &str, name: &str) -> bool {
    suffix.is_empty() || (name.len() > suffix.len() && name.ends_with(suffix))
}

/// Whether an address is one of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ours {
    /// It is.
    Yes,
    /// It isn't.
    No,
    /// Nobody can say at the moment, for want of descriptors perhaps.
    Unknown,
}

/// Whether `ip` is an address of this machine.
pub fn ours(ip: IpAddr) -> Ours {
    let ip = addresses::plain(ip);
    // Only those can be bound. A datagram socket disturbs nobody.
    match UdpSocket::bind((ip, 0)) {
        Ok(_) if may_bind_any(ip) => routed_here(ip),
        Ok(_) => Ours::Yes,
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ours::No,
        Err(_) => Ours::Unknown,
    }
}

/// Whether this machine's sockets can have addresses of others, as where several share one that floats between them.
fn may_bind_any(ip: IpAddr) -> bool {
    let file = match ip {
        IpAddr::V4(_) => "/proc/sys/net/ipv4/ip_nonlocal_bind",
        IpAddr::V6(_) => "/proc/sys/net/ipv6/ip_nonlocal_bind",
    };
    std::fs::read(file).is_ok_and(|value| value.trim_ascii() != b"0")
}

/// Whether what is sent to `ip` stays here: it is then sent from the same address. Connecting a datagram socket sends
/// nothing.
fn routed_here(ip: IpAddr) -> Ours {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, DISCARD))?;
        socket.local_addr()
    });
    match source {
        Ok(source) if source.ip() == ip || source.ip().is_loopback() => Ours::Yes,
        Ok(_) => Ours::No,
        Err(error) if error.kind() == io::ErrorKind::NetworkUnreachable => Ours::No,
        Err(_) => Ours::Unknown,
    }
}

/// Any port will do. Source: RFC 863.
const DISCARD: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_below_the_wildcard_are_admitted() {
        let dns = DynamicDns { suffix: ".example.com".into(), port: 443 };
        let admitted =
            |authority: &str| admit(&dns, authority.as_bytes()).map(|target| (target.host.to_string(), target.port));
        for authority in ["a.example.com", "A.EXAMPLE.com", "a.example.com:80", "b.a.example.com:443"] {
            let host = authority.split(':').next().unwrap_or_default().to_ascii_lowercase();
            assert_eq!(admitted(authority), Ok((host, Some(443))), "{authority}");
        }
        for (authority, reason) in [
            ("example.com", Reason::NotCovered),
            (".example.com", Reason::InvalidHost(host::Invalid::Name)),
            ("aexample.com", Reason::NotCovered),
            ("a.example.com.evil.org", Reason::NotCovered),
            ("127.0.0.1", Reason::AddressLiteral),
            ("[::1]:443", Reason::AddressLiteral),
            ("a.example.com.", Reason::InvalidHost(host::Invalid::TrailingDot)),
            ("evil.org@a.example.com", Reason::InvalidHost(host::Invalid::UserInfo)),
        ] {
            assert_eq!(admitted(authority), Err(reason), "{authority}");
        }
    }

    #[test]
    fn any_host_may_be_asked_for_where_there_is_no_suffix() {
        let any = DynamicDns { suffix: "".into(), port: 0 };
        let target = admit(&any, b"a.org:8443");
        assert_eq!(target.map(|target| (target.host.to_string(), target.port)), Ok(("a.org".into(), Some(8443))));
        assert!(admit(&any, b"192.0.2.1:80").is_ok());
    }

    #[test]
    fn a_name_must_not_lead_back() {
        let egress = Egress::default();
        egress.set_listener_ports(vec![8443, 80]);
        egress.set_process_ports(vec![15_000]);
        assert!([80, 8443, 15_000].into_iter().all(|port| egress.is_own(true, port)));
        assert!(!egress.is_own(true, 443) && !egress.is_own(false, 80));
    }

    #[test]
    fn this_machine_knows_its_addresses() {
        for (ip, expected) in [
            (IpAddr::from([127, 0, 0, 1]), Ours::Yes),
            (IpAddr::from([127, 1, 2, 3]), Ours::Yes),
            (IpAddr::from(Ipv4Addr::LOCALHOST.to_ipv6_mapped()), Ours::Yes),
            (IpAddr::from([192, 0, 2, 1]), Ours::No),
        ] {
            assert_eq!(ours(ip), expected, "{ip}");
            assert_eq!(routed_here(addresses::plain(ip)), expected, "{ip}, by its route");
        }
        // No address that a socket can have, which says nothing.
        assert_eq!(ours(IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1])), Ours::Unknown);
    }
}
