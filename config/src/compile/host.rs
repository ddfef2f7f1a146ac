//! Istio's host name algebra: what covers what, and short names.
//!
//! Names are compared byte by byte, case included. Source: `reference/networking.md` §1.3, §1.4.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;

/// Whether `name` is covered by `by`. An exact name never covers a wildcard.
pub(super) fn is_subset(name: &str, by: &str) -> bool {
    match by.strip_prefix('*') {
        None => name == by,
        Some(suffix) => match name.strip_prefix('*') {
            Some(name_suffix) => name_suffix.len() >= suffix.len() && name_suffix.ends_with(suffix),
            None => name.len() >= suffix.len() && name.ends_with(suffix),
        },
    }
}

/// More specific names first: exact before wildcard, then longer, then in order of their bytes.
pub(super) fn by_specificity(a: &str, b: &str) -> Ordering {
    let key = |name: &str| (name.starts_with('*'), usize::MAX - name.len());
    key(a).cmp(&key(b)).then_with(|| a.cmp(b))
}

/// For each pair the one that the other covers, without repetition, in the order of `a` and then `b`.
pub(super) fn intersection<'n>(a: &[&'n str], b: &[&'n str]) -> Vec<&'n str> {
    let mut found: Vec<&str> = Vec::new();
    for &a in a {
        for &b in b {
            let shared = if is_subset(a, b) {
                a
            } else if is_subset(b, a) {
                b
            } else {
                continue;
            };
            if !found.contains(&shared) {
                found.push(shared);
            }
        }
    }
    found
}

/// The full name of a host that a resource in `namespace` refers to: a name without a dot is a service next to it.
pub(super) fn resolve<'h>(host: &'h str, namespace: &str, domain: &str) -> Cow<'h, str> {
    if host == "*" || host.contains('.') || host.parse::<IpAddr>().is_ok() || host.is_empty() {
        return Cow::Borrowed(host);
    }
    Cow::Owned(service_host(host, namespace, domain))
}

/// `<name>.<namespace>.svc.<domain>`.
pub(super) fn service_host(name: &str, namespace: &str, domain: &str) -> String {
    if domain.is_empty() { format!("{name}.{namespace}") } else { format!("{name}.{namespace}.svc.{domain}") }
}

/// `<namespace>/<name>` of a Gateway that a VirtualService in `namespace` refers to; `mesh` stays.
pub(super) fn resolve_gateway<'g>(gateway: &'g str, namespace: &str) -> Cow<'g, str> {
    match gateway.split_once('/') {
        _ if gateway == "mesh" => Cow::Borrowed(gateway),
        Some((".", name)) => Cow::Owned(format!("{namespace}/{name}")),
        Some(_) => Cow::Borrowed(gateway),
        // The old form `name.namespace[.svc.domain]`.
        None => match gateway.split_once('.') {
            Some((name, rest)) => {
                let namespace = rest.split('.').next().unwrap_or(rest);
                Cow::Owned(format!("{namespace}/{name}"))
            }
            None => Cow::Owned(format!("{namespace}/{gateway}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_and_intersections() {
        // Source: `reference/networking.md` §1.4.
        for (a, b, subset, shared) in [
            ("foo.com", "*.com", true, Some("foo.com")),
            ("*.foo.com", "foo.com", false, None),
            ("*", "*.com", false, Some("*.com")),
            ("*.foo.com", "*.bar.foo.com", false, Some("*.bar.foo.com")),
            ("Foo.com", "*.com", true, Some("Foo.com")),
            ("Foo.com", "foo.com", false, None),
            ("a.b.foo.com", "*.foo.com", true, Some("a.b.foo.com")),
            ("xfoo.com", "*foo.com", true, Some("xfoo.com")),
            ("foo.com", "*", true, Some("foo.com")),
        ] {
            assert_eq!(is_subset(a, b), subset, "{a} in {b}");
            assert_eq!(intersection(&[a], &[b]), shared.into_iter().collect::<Vec<_>>(), "{a} and {b}");
            assert_eq!(intersection(&[b], &[a]), shared.into_iter().collect::<Vec<_>>(), "{b} and {a}");
        }
        assert_eq!(intersection(&["*.foo.com", "a.foo.com"], &["a.foo.com", "b.foo.com"]), ["a.foo.com", "b.foo.com"]);
    }

    #[test]
    fn specific_names_come_first() {
        let mut names = ["*", "*.com", "b.com", "*.foo.com", "aa.com", "a.com"];
        names.sort_by(|a, b| by_specificity(a, b));
        assert_eq!(names, ["aa.com", "a.com", "b.com", "*.foo.com", "*.com", "*"]);
    }

    #[test]
    fn short_names() {
        for (host, domain, expected) in [
            ("reviews", "cluster.local", "reviews.shop.svc.cluster.local"),
            ("reviews", "", "reviews.shop"),
            ("reviews.other", "cluster.local", "reviews.other"),
            ("*", "cluster.local", "*"),
            ("::1", "cluster.local", "::1"),
            ("10.0.0.1", "cluster.local", "10.0.0.1"),
        ] {
            assert_eq!(resolve(host, "shop", domain), expected, "{host}");
        }
    }

    #[test]
    fn gateway_references() {
        for (gateway, expected) in [
            ("mesh", "mesh"),
            ("web", "shop/web"),
            ("./web", "shop/web"),
            ("edge/web", "edge/web"),
            ("web.edge.svc.cluster.local", "edge/web"),
            ("web.edge", "edge/web"),
        ] {
            assert_eq!(resolve_gateway(gateway, "shop"), expected, "{gateway}");
        }
    }
}
