//! What keeps like requests at one endpoint: the hash of a header, a cookie, a query parameter or the client's address.
//!
//! Source: `reference/networking.md` §5.3; Envoy's route hash policies.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use config::snapshot::balancing::{HashCookie, HashKey};
use config::snapshot::route::{Forward, query_parameters};
use twox_hash::XxHash64;

use super::exchange::Exchange;
use super::headers::Headers;
use crate::upstream::cluster::Cluster;

/// The hash of a request, and the cookie that its answer sets so that the next one has the same.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    pub hash: Option<u64>,
    /// Value of a `set-cookie` header.
    pub cookies: Vec<Bytes>,
}

/// Hashes the request as it goes upstream. Every destination of a route adds its key, whichever was chosen; only a
/// cluster with consistent hashing asks for it.
pub(super) fn affinity(exchange: &Exchange, action: &Forward, cluster: &Cluster) -> Affinity {
    let mut affinity = Affinity::default();
    if !cluster.config.balancing.policy.is_consistent() {
        return affinity;
    }
    for destination in &action.clusters {
        let Some(cluster) = exchange.state.clusters.get(&destination.cluster) else { continue };
        let Some(key) = cluster.config.balancing.hash_keys.of_route(destination.names_port) else { continue };
        if let Some(hash) = hash(exchange, key, &mut affinity.cookies) {
            // Rotated, so that two keys with the same value don't cancel each other out.
            affinity.hash = Some(affinity.hash.map_or(0, |before| before.rotate_left(1)) ^ hash);
        }
    }
    affinity
}

fn hash(exchange: &Exchange, key: &HashKey, cookies: &mut Vec<Bytes>) -> Option<u64> {
    let request = exchange.facts.request.as_ref()?;
    match key {
        HashKey::Header(name) => header(&request.headers, name),
        HashKey::SourceIp => exchange.facts.client.map(source_ip),
        HashKey::QueryParameter(name) => {
            let mut parameters = query_parameters(request.path.query()?);
            parameters.find(|(key, _)| key == name).map(|(_, value)| XxHash64::oneshot(0, value.as_bytes()))
        }
        HashKey::Cookie(cookie) => {
            if let Some(value) = cookie_value(&request.headers, &cookie.name) {
                return Some(XxHash64::oneshot(0, value));
            }
            let ttl = cookie.ttl?;
            // As Envoy: the same for all requests of a connection.
            let connection = &exchange.facts.connection;
            let end = |address: Option<SocketAddr>| address.map(|it| it.to_string()).unwrap_or_default();
            let ends = end(connection.remote) + &end(connection.local);
            let value = format!("{:016x}", XxHash64::oneshot(0, ends.as_bytes()));
            cookies.push(set_cookie(cookie, ttl, &value));
            Some(XxHash64::oneshot(0, value.as_bytes()))
        }
    }
}

/// The hash of a client's address without its port; also of raw TCP.
pub(crate) fn source_ip(client: SocketAddr) -> u64 {
    XxHash64::oneshot(0, client.ip().to_string().as_bytes())
}

/// Over all lines of the header, in whatever order they came.
fn header(headers: &Headers, name: &str) -> Option<u64> {
    let mut lines = headers.get_all(name);
    let first = lines.next()?;
    let mut values: Vec<&[u8]> = lines.map(|value| &value[..]).collect();
    if values.is_empty() {
        return Some(XxHash64::oneshot(0, first));
    }
    values.push(first);
    values.sort_unstable();
    Some(values.into_iter().fold(0, XxHash64::oneshot))
}

/// The value of a cookie without its quotes; `None` if it is missing or empty.
fn cookie_value<'h>(headers: &'h Headers, name: &str) -> Option<&'h [u8]> {
    let pairs = headers.get_all("cookie").flat_map(|line| line.split(|&byte| byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let pair = pair.trim_ascii();
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        (pair[..equals] == *name.as_bytes()).then(|| &pair[equals + 1..])
    });
    let value = values.next()?;
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    (!value.is_empty()).then_some(value)
}

fn set_cookie(cookie: &HashCookie, ttl: Duration, value: &str) -> Bytes {
    let HashCookie { name, path, ttl: _, attributes } = cookie;
    let mut text = format!("{name}=\"{value}\"");
    if ttl.as_secs() > 0 {
        text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !path.is_empty() {
        text.push_str(&format!("; Path={path}"));
    }
    for (name, value) in attributes {
        text.push_str(&match value.as_str() {
            "" => format!("; {name}"),
            value => format!("; {name}={value}"),
        });
    }
    text.push_str("; HttpOnly");
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> Headers {
        let mut headers = Headers::default();
        lines.iter().for_each(|(name, value)| headers.push(name, *value));
        headers
    }

    #[test]
    fn cookies_are_found_with_and_without_quotes() {
        let value = |lines: &[(&'static str, &'static str)]| {
            cookie_value(&headers(lines), "s").map(|value| String::from_utf8_lossy(value).into_owned())
        };
        for (line, expected) in [
            ("s=abc", Some("abc")),
            ("s=\"abc\"", Some("abc")),
            ("a=1; s=abc; b=2", Some("abc")),
            ("ss=1;s=abc", Some("abc")),
            ("s=", None),
            ("s=\"\"", None),
            ("s", None),
            ("S=abc", None),
            ("s=a=b", Some("a=b")),
        ] {
            assert_eq!(value(&[("cookie", line)]).as_deref(), expected, "{line}");
        }
        assert_eq!(value(&[("cookie", "a=1"), ("cookie", "s=2")]).as_deref(), Some("2"));
    }

    #[test]
    fn the_order_of_lines_does_not_matter() {
        let two = header(&headers(&[("x", "a"), ("x", "b")]), "x");
        assert_eq!(two, header(&headers(&[("x", "b"), ("x", "a")]), "x"));
        assert_ne!(two, header(&headers(&[("x", "a")]), "x"));
        assert_eq!(header(&headers(&[("x", "a")]), "x"), Some(XxHash64::oneshot(0, b"a")));
        assert_eq!(header(&headers(&[]), "x"), None);
    }

    /// `upstream/hash-cookie-*` of the observed data.
    #[test]
    fn cookies_are_written_as_envoy_writes_them() {
        let text = |ttl: f64, path: &str, attributes: &[(&str, &str)]| {
            let attributes = attributes.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
            let ttl = Duration::from_secs_f64(ttl);
            let cookie = HashCookie { name: "s".to_owned(), path: path.to_owned(), ttl: Some(ttl), attributes };
            String::from_utf8_lossy(&set_cookie(&cookie, ttl, "60bb094df33445cd")).into_owned()
        };
        assert_eq!(text(0.0, "", &[]), "s=\"60bb094df33445cd\"; HttpOnly");
        assert_eq!(text(60.0, "/p", &[]), "s=\"60bb094df33445cd\"; Max-Age=60; Path=/p; HttpOnly");
        assert_eq!(text(1.5, "", &[]), "s=\"60bb094df33445cd\"; Max-Age=1; HttpOnly");
        assert_eq!(
            text(90.0, "/", &[("SameSite", "Lax"), ("Secure", ""), ("Domain", "x.com")]),
            "s=\"60bb094df33445cd\"; Max-Age=90; Path=/; SameSite=Lax; Secure; Domain=x.com; HttpOnly"
        );
    }
}
