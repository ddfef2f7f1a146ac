//! The `location` of redirects.
//!
//! Source: `reference/networking.md` §3.7 and §2.8, measured on Envoy.

use bytes::Bytes;
use config::snapshot::route::{Redirect, RedirectPath};

use crate::request::RequestHead;

/// Where a redirect sends `request`.
pub(super) fn location(redirect: &Redirect, request: &RequestHead) -> Bytes {
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let requested = String::from_utf8_lossy(&request.authority);
    let host = match &redirect.authority {
        Some(authority) => authority.as_str(),
        None => kept_host(&requested, request.scheme, scheme, redirect.port),
    };
    let mut location = format!("{scheme}://{host}");
    if let Some(port) = redirect.port {
        location.push_str(&format!(":{port}"));
    }
    let path = request.path.path();
    match &redirect.path {
        Some(RedirectPath::Full(full)) => location.push_str(full),
        Some(RedirectPath::Prefix { length, with }) => {
            location.push_str(with);
            location.push_str(path.get(*length..).unwrap_or_default());
        }
        None => location.push_str(path),
    }
    let replaced = matches!(&redirect.path, Some(RedirectPath::Full(full)) if full.contains('?'));
    if let Some(query) = request.path.query()
        && !replaced
    {
        location.push('?');
        location.push_str(query);
    }
    location.into()
}

/// The request's host, without its port if another one follows or if it was the default of a scheme that changes.
fn kept_host<'h>(host: &'h str, old_scheme: &str, new_scheme: &str, port: Option<u16>) -> &'h str {
    let Some((name, old_port)) = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) else { return host };
    let default = match old_scheme {
        "http" => "80",
        _ => "443",
    };
    if port.is_some() || (old_scheme != new_scheme && old_port == default) { name } else { host }
}

/// The request's own address under https, host and port kept as they are.
pub(super) fn https(request: &RequestHead) -> Bytes {
    own_address(request, "https")
}

/// The request's own address.
pub(super) fn own_address(request: &RequestHead, scheme: &str) -> Bytes {
    format!("{scheme}://{}{}", String::from_utf8_lossy(&request.authority), request.path.as_str()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::PathAndQuery;

    fn redirect() -> Redirect {
        Redirect { path: None, authority: None, port: None, scheme: None, code: 301 }
    }

    /// The table of `reference/networking.md` §3.7; ports that equal the scheme's default are left out by `compile`.
    #[test]
    fn locations_are_envoys() {
        let uri = |uri: &str| Redirect { path: Some(RedirectPath::Full(uri.to_owned())), ..redirect() };
        let authority = |authority: &str| Redirect { authority: Some(authority.to_owned()), ..redirect() };
        let scheme = |scheme: &str| Redirect { scheme: Some(scheme.to_owned()), ..redirect() };
        let port = |port: u16| Redirect { port: Some(port), ..redirect() };
        let prefix = Redirect { path: Some(RedirectPath::Prefix { length: 4, with: "/new".to_owned() }), ..redirect() };
        for (old_scheme, host, path, redirect, expected) in [
            ("http", "a.com", "/x?y=1", uri("/v2"), "http://a.com/v2?y=1"),
            ("http", "a.com:8080", "/x", uri("/v2"), "http://a.com:8080/v2"),
            ("http", "a.com:8080", "/x", authority("b.com"), "http://b.com/x"),
            ("http", "a.com", "/x", scheme("https"), "https://a.com/x"),
            ("http", "a.com", "/x", Redirect { port: Some(8443), ..scheme("https") }, "https://a.com:8443/x"),
            ("http", "a.com", "/x", Redirect { port: Some(8080), ..authority("b.com:1") }, "http://b.com:1:8080/x"),
            ("http", "a.com:80", "/x", scheme("https"), "https://a.com/x"),
            ("http", "a.com:8080", "/x", scheme("https"), "https://a.com:8080/x"),
            ("http", "a.com:443", "/x", scheme("https"), "https://a.com:443/x"),
            ("https", "a.com:443", "/x", scheme("http"), "http://a.com/x"),
            ("http", "a.com:8080", "/x", port(9090), "http://a.com:9090/x"),
            ("http", "a.com:80", "/x", uri("/v2"), "http://a.com:80/v2"),
            ("http", "a.com", "/x?y=1", uri("/v2?z=2"), "http://a.com/v2?z=2"),
            ("http", "a.com", "/foo/bar?x=1", prefix, "http://a.com/new/bar?x=1"),
            ("http", "[::1]", "/x", port(9090), "http://[::1]:9090/x"),
        ] {
            let request = RequestHead {
                authority: host.into(),
                path: PathAndQuery::new(path.into()),
                scheme: old_scheme,
                ..RequestHead::default()
            };
            assert_eq!(location(&redirect, &request), expected, "{old_scheme} {host} {path}");
        }
    }
}
