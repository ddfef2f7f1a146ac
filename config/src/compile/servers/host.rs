//! Hosts of servers: `[namespace/]name`.
//!
//! Source: `reference/networking.md` §2.2, §2.8.

use std::sync::Arc;

/// A host of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Host {
    /// As written, with `./` resolved.
    text: String,
    /// Where the name begins.
    name: usize,
}

impl Host {
    /// The hosts of a server of a Gateway in `namespace`. `*/*` makes all others superfluous.
    pub(super) fn list(hosts: &[String], namespace: &str) -> Vec<Self> {
        if hosts.iter().any(|host| host == "*/*") {
            return vec![Self::new("*".to_owned())];
        }
        let resolve = |host: &String| match host.strip_prefix("./") {
            Some(name) => format!("{namespace}/{name}"),
            None => host.clone(),
        };
        hosts.iter().map(|host| Self::new(resolve(host))).collect()
    }

    fn new(text: String) -> Self {
        let name = text.find('/').map_or(0, |slash| slash + 1);
        Self { text, name }
    }

    /// As written, with `./` resolved.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(in super::super) fn name(&self) -> &str {
        &self.text[self.name..]
    }

    /// Whether VirtualServices of `namespace` may bind.
    pub(in super::super) fn admits(&self, namespace: &str) -> bool {
        match self.text.split_once('/') {
            None | Some(("" | "*", _)) => true,
            Some((only, _)) => only == namespace,
        }
    }

    /// The domain of a virtual host that only redirects: there must be no namespace before it, as in Istio, which uses
    /// the text as it stands.
    pub(super) fn redirect_domain(&self) -> Option<Arc<str>> {
        let is_open = matches!(self.text.split_once('/'), None | Some(("" | "*", _)));
        is_open.then(|| self.name().to_ascii_lowercase().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_servers() {
        let list = |hosts: &[&str]| {
            let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
            Host::list(&hosts, "gw").iter().map(|host| host.text().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(list(&["a.com", "*/*", "b.com"]), ["*"]);
        assert_eq!(list(&["./a.com", "ns/b.com", "*/c.com"]), ["gw/a.com", "ns/b.com", "*/c.com"]);
        for (text, name, admits_gw, redirect) in [
            ("a.com", "a.com", true, Some("a.com")),
            ("A.com", "A.com", true, Some("a.com")),
            ("*/a.com", "a.com", true, Some("a.com")),
            ("ns/*.a.com", "*.a.com", false, None),
            ("gw/a.com", "a.com", true, None),
        ] {
            let host = Host::new(text.to_owned());
            assert_eq!(host.name(), name, "{text}");
            assert_eq!(host.admits("gw"), admits_gw, "{text}");
            assert_eq!(host.redirect_domain().as_deref(), redirect, "{text}");
        }
    }
}
