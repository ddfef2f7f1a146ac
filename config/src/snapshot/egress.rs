//! What a forward proxy lets out: the hosts and ports of ServiceEntries.

use std::collections::BTreeSet;
use std::sync::Arc;

use ahash::AHashMap;

use super::cluster::ClusterName;
use super::route::Route;

/// A forward proxy (a Gateway server with protocol `HTTP_PROXY`).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ForwardProxy {
    /// Hosts that clients of this server may ask for, in lower case: names, `*.suffix`, or `*`.
    pub hosts: Vec<Arc<str>>,
    /// Where requests go.
    pub destinations: Arc<Destinations>,
    /// Where requests for hosts go that no ServiceEntry has: to the host itself (`outboundTrafficPolicy` ALLOW_ANY and
    /// ALLOW_ANY_DYNAMIC_DNS). `None`: they are refused (REGISTRY_ONLY, and when nothing is said).
    pub passthrough: Option<Arc<Route>>,
}

/// The cluster that metrics and logs name for hosts that are refused.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// The cluster of hosts that no ServiceEntry has and that are let through all the same.
pub const PASSTHROUGH: &str = "PassthroughCluster";

/// Where a forward proxy may send requests, by host and port.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Destinations {
    exact: AHashMap<Arc<str>, Vec<Destination>>,
    /// By what follows the `*`: `.example.com`, `-eu.example.com`.
    wildcards: AHashMap<Arc<str>, Vec<Destination>>,
    /// Lengths of those.
    lengths: BTreeSet<usize>,
}

/// A port of a ServiceEntry's host.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    /// As clients name it.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: PortProtocol,
    /// The way of its requests, to its cluster.
    pub route: Arc<Route>,
}

/// What a port speaks, as far as a forward proxy tells protocols apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortProtocol {
    /// HTTP of any version, in clear text.
    Http,
    /// TLS, whose server name must be the host.
    Tls,
    /// Anything.
    Tcp,
}

/// What a look-up has found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Found<'d> {
    /// A port of a ServiceEntry.
    Destination(&'d Destination),
    /// A ServiceEntry has the host, and not the port.
    NoPort,
    /// No ServiceEntry has the host.
    NoHost,
}

impl Destinations {
    /// Adds a port of `host`, a name in lower case or `*.suffix`. The first one of a host and port counts.
    pub fn insert(&mut self, host: &str, destination: Destination) {
        let (map, key) = match host.strip_prefix('*') {
            Some(suffix) => {
                self.lengths.insert(suffix.len());
                (&mut self.wildcards, suffix)
            }
            None => (&mut self.exact, host),
        };
        let ports = map.entry(key.into()).or_default();
        if ports.iter().all(|known| known.port != destination.port) {
            ports.push(destination);
        }
    }

    /// The destination for `host`, in lower case, and `port`: of the host itself, else of the longest wildcard that
    /// covers it. There is no second try with a shorter one.
    ///
    /// Cost: a look-up for each length that a wildcard has, no allocation.
    pub fn find(&self, host: &str, port: u16) -> Found<'_> {
        let ports = self.exact.get(host).or_else(|| {
            let shorter = self.lengths.range(..host.len()).rev();
            shorter.filter_map(|length| host.get(host.len() - length..)).find_map(|suffix| self.wildcards.get(suffix))
        });
        match ports {
            None => Found::NoHost,
            Some(ports) => ports.iter().find(|known| known.port == port).map_or(Found::NoPort, Found::Destination),
        }
    }

    /// All hosts with their ports, in order of their names; wildcards with their `*`.
    pub fn list(&self) -> Vec<(String, &[Destination])> {
        let exact = self.exact.iter().map(|(host, ports)| (host.to_string(), ports.as_slice()));
        let wildcards = self.wildcards.iter().map(|(suffix, ports)| (format!("*{suffix}"), ports.as_slice()));
        let mut list: Vec<_> = exact.chain(wildcards).collect();
        list.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        list
    }
}

impl Destination {
    /// The cluster of its route.
    pub fn cluster(&self) -> Option<&ClusterName> {
        self.route.cluster()
    }
}

impl ForwardProxy {
    /// Whether clients may ask for `host`, in lower case.
    pub fn covers(&self, host: &str) -> bool {
        self.hosts.iter().any(|known| match known.strip_prefix('*') {
            Some("") => true,
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => **known == *host,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ResourceName;

    fn destination(port: u16, name: &str) -> Destination {
        let resource = ResourceName { kind: "ServiceEntry", namespace: "egress".into(), name: "e".into() };
        let route = Route::to_cluster(ClusterName::outbound(port, "", name), resource, None);
        Destination { port, protocol: PortProtocol::Tls, route: Arc::new(route) }
    }

    #[test]
    fn the_longest_name_that_covers_a_host_decides() {
        let mut destinations = Destinations::default();
        for (host, port) in [("*.com", 80), ("*.a.com", 443), ("x.a.com", 8443), ("*.a.com", 443), ("*-eu.a.com", 8080)]
        {
            destinations.insert(host, destination(port, host));
        }
        let found = |host: &str, port: u16| match destinations.find(host, port) {
            Found::Destination(destination) => destination.cluster().map(ToString::to_string).unwrap_or_default(),
            Found::NoPort => "no port".to_owned(),
            Found::NoHost => "no host".to_owned(),
        };
        for (host, port, expected) in [
            ("x.a.com", 8443, "outbound|8443||x.a.com"),
            ("x.a.com", 443, "no port"),
            ("y.a.com", 443, "outbound|443||*.a.com"),
            ("z.y.a.com", 443, "outbound|443||*.a.com"),
            ("y.a.com", 80, "no port"),
            ("x-eu.a.com", 8080, "outbound|8080||*-eu.a.com"),
            ("x-eu.a.com", 443, "no port"),
            ("-eu.a.com", 443, "outbound|443||*.a.com"),
            ("a.com", 80, "outbound|80||*.com"),
            ("a.com", 443, "no port"),
            ("a.org", 80, "no host"),
            ("com", 80, "no host"),
            (".com", 80, "no host"),
            ("", 80, "no host"),
        ] {
            assert_eq!(found(host, port), expected, "{host}:{port}");
        }
    }

    #[test]
    fn a_server_may_be_for_some_hosts_only() {
        let proxy = |hosts: &[&str]| ForwardProxy {
            hosts: hosts.iter().map(|&host| host.into()).collect(),
            ..ForwardProxy::default()
        };
        assert!(proxy(&["*"]).covers("a.com"));
        let some = proxy(&["a.com", "*.b.com"]);
        for (host, expected) in [("a.com", true), ("x.a.com", false), ("x.b.com", true), ("b.com", false), ("", false)]
        {
            assert_eq!(some.covers(host), expected, "{host}");
        }
    }
}
