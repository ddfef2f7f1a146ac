//! Route tables: from the host of a request to its virtual host.

use std::sync::Arc;

use ahash::AHashMap;

use super::ResourceName;
use super::route::RouteList;

/// The virtual hosts of one server port (plaintext) or one HTTPS server.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RouteTable {
    /// `http.80`, `https.443.<portName>.<gateway>.<namespace>`.
    pub name: String,
    hosts: HostIndex,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct HostIndex {
    exact: AHashMap<Arc<str>, Arc<VirtualHost>>,
    /// `*.suffix` and `*suffix` domains by the text after the star.
    suffixes: AHashMap<Arc<str>, Arc<VirtualHost>>,
    /// The distinct lengths of suffixes, longest first.
    suffix_lengths: Vec<usize>,
    any: Option<Arc<VirtualHost>>,
}

/// One domain with its routes.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualHost {
    /// `<domain>:<port>`.
    pub name: String,
    /// Lower-case host name, `*suffix` or `*`.
    pub domain: Arc<str>,
    /// The routes in their order, with their index.
    pub routes: Arc<RouteList>,
    /// Every request that did not come over TLS answers 301 to https.
    pub https_redirect: bool,
    /// The VirtualServices merged here, in their order.
    pub resources: Vec<ResourceName>,
}

impl RouteTable {
    /// A table of `virtual_hosts`, whose domains must differ (the first of equal ones wins).
    pub fn new(name: String, virtual_hosts: impl IntoIterator<Item = Arc<VirtualHost>>) -> Self {
        let mut hosts = HostIndex::default();
        for virtual_host in virtual_hosts {
            let domain = Arc::clone(&virtual_host.domain);
            if &*domain == "*" {
                hosts.any.get_or_insert(virtual_host);
            } else if let Some(suffix) = domain.strip_prefix('*') {
                hosts.suffixes.entry(suffix.into()).or_insert(virtual_host);
            } else {
                hosts.exact.entry(domain).or_insert(virtual_host);
            }
        }
        hosts.measure();
        Self { name, hosts }
    }

    /// This table with other virtual hosts for some domains; `None` removes one.
    pub fn with_changes(&self, changes: impl IntoIterator<Item = (Arc<str>, Option<Arc<VirtualHost>>)>) -> Self {
        let Self { name, hosts } = self;
        let mut hosts = hosts.clone();
        for (domain, virtual_host) in changes {
            if &*domain == "*" {
                hosts.any = virtual_host;
                continue;
            }
            let (map, key) = match domain.strip_prefix('*') {
                Some(suffix) => (&mut hosts.suffixes, suffix.into()),
                None => (&mut hosts.exact, domain),
            };
            match virtual_host {
                Some(virtual_host) => map.insert(key, virtual_host),
                None => map.remove(&key),
            };
        }
        hosts.measure();
        Self { name: name.clone(), hosts }
    }

    /// The virtual host for `authority` as received, or `None` (404, flag `NR`).
    ///
    /// Everything after the last `:` is ignored and the rest lower-cased, then: exact domain, longest `*suffix` with
    /// at least one character before it, `*`. Source: `reference/networking.md` §3.4.
    /// Cost: one hash lookup, plus one for each distinct suffix length.
    pub fn virtual_host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        let host = strip_port(authority);
        if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.hosts.find(&host.to_ascii_lowercase());
        }
        self.hosts.find(host)
    }

    /// All virtual hosts, in no particular order.
    pub fn virtual_hosts(&self) -> impl Iterator<Item = &Arc<VirtualHost>> {
        self.hosts.exact.values().chain(self.hosts.suffixes.values()).chain(self.hosts.any.iter())
    }
}

impl HostIndex {
    fn measure(&mut self) {
        self.suffix_lengths = self.suffixes.keys().map(|suffix| suffix.len()).collect();
        self.suffix_lengths.sort_unstable_by(|a, b| b.cmp(a));
        self.suffix_lengths.dedup();
    }

    fn find(&self, host: &str) -> Option<&Arc<VirtualHost>> {
        if let Some(found) = self.exact.get(host) {
            return Some(found);
        }
        for &length in &self.suffix_lengths {
            if host.len() > length
                && let Some(found) = host.get(host.len() - length..).and_then(|suffix| self.suffixes.get(suffix))
            {
                return Some(found);
            }
        }
        self.any.as_ref()
    }
}

/// `host` of `host:port`; a bracketed IPv6 literal without port stays whole.
fn strip_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !(authority.starts_with('[') && authority.ends_with(']')) => &authority[..colon],
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(domains: &[&str]) -> RouteTable {
        RouteTable::new(
            "http.80".to_owned(),
            domains.iter().map(|&domain| {
                Arc::new(VirtualHost {
                    name: format!("{domain}:80"),
                    domain: domain.into(),
                    routes: Arc::default(),
                    https_redirect: false,
                    resources: Vec::new(),
                })
            }),
        )
    }

    #[test]
    fn most_specific_domain_wins() {
        let table = table(&["foo.com", "*.foo.com", "*oo.net", "*", "[::1]", "*.b.foo.com"]);
        for (authority, domain) in [
            ("foo.com", "foo.com"),
            ("FOO.com:80", "foo.com"),
            ("foo.com:abc", "foo.com"),
            ("foo.com:", "foo.com"),
            ("a.foo.com", "*.foo.com"),
            ("a.b.foo.com", "*.b.foo.com"),
            (".foo.com", "*"),
            ("oo.net", "*"),
            ("foo.net", "*oo.net"),
            ("foo.com.", "*"),
            ("foo.com:80:80", "*"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
            ("", "*"),
        ] {
            let found = table.virtual_host(authority).map(|host| &*host.domain);
            assert_eq!(found, Some(domain), "{authority}");
        }
    }

    #[test]
    fn no_domain_is_no_virtual_host() {
        assert_eq!(table(&["foo.com"]).virtual_host("bar.com"), None);
        assert_eq!(table(&["[::1]"]).virtual_host("::1"), None);
    }
}
