//! What an edge proxy does to the headers of a request before anything else: removes what a client must not decide,
//! adds what upstreams rely on.
//!
//! Source: `reference/networking.md` §4.4, measured on Envoy.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use config::snapshot::listener::{ForwardClientCert, HttpSettings, Underscores};

use super::headers::{Headers, tokens};
use crate::request::{ConnectionFacts, RequestHead};
use crate::response::Failure;

/// What a client asked the connection to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// Nothing.
    None,
    /// WebSocket.
    WebSocket,
    /// Something that isn't allowed.
    Other,
}

/// Removes hop-by-hop headers and what this client must not say; tells which upgrade is asked for. `certified`: it has
/// shown a certificate.
///
/// # Errors
/// `connection` names a header that must not be dropped that way, or a name has `_` where these are refused.
pub(super) fn sanitize(headers: &mut Headers, settings: &HttpSettings, certified: bool) -> Result<Upgrade, Failure> {
    match settings.underscores {
        Underscores::Allow => {}
        Underscores::Reject => {
            if headers.iter().any(|line| line.name.contains(&b'_')) {
                return Err(Failure::UnexpectedUnderscore);
            }
        }
        Underscores::Drop => headers.retain(|line| !line.name.contains(&b'_')),
    }
    let nominated = headers.get("connection").cloned();
    let mut upgrade = Upgrade::None;
    if let Some(connection) = &nominated {
        if tokens(connection).any(|token| {
            token.eq_ignore_ascii_case(b"host")
                || token.get(..12).is_some_and(|start| start.eq_ignore_ascii_case(b"x-forwarded-"))
        }) {
            return Err(Failure::ConnectionHeaderRejected);
        }
        if tokens(connection).any(|token| token.eq_ignore_ascii_case(b"upgrade")) {
            upgrade = requested_upgrade(headers);
        }
    }
    let keep_upgrade = upgrade == Upgrade::WebSocket;
    headers.retain(|line| match &line.name[..] {
        b"connection" | b"upgrade" => keep_upgrade,
        b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"http2-settings" => false,
        b"te" => tokens(&line.value).any(|token| token.eq_ignore_ascii_case(b"trailers")),
        b"x-envoy-internal" => false,
        b"x-forwarded-client-cert" => match settings.forward_client_cert {
            ForwardClientCert::Sanitize | ForwardClientCert::SanitizeSet => false,
            ForwardClientCert::ForwardOnly | ForwardClientCert::AppendForward => certified,
            ForwardClientCert::AlwaysForwardOnly => true,
        },
        name if name.strip_prefix(b"x-envoy-").is_some_and(is_control_header) => false,
        _ if keep_upgrade => true,
        name => nominated
            .as_ref()
            .is_none_or(|connection| !tokens(connection).any(|token| token.eq_ignore_ascii_case(name))),
    });
    if let Some(te) = headers.get_mut("te") {
        *te = Bytes::from_static(b"trailers");
    }
    Ok(upgrade)
}

fn requested_upgrade(headers: &Headers) -> Upgrade {
    let Some(value) = headers.get("upgrade") else { return Upgrade::None };
    let mut upgrade = Upgrade::None;
    for token in tokens(value) {
        // h2c by upgrade is not offered; the request goes on as HTTP/1.1.
        if token.eq_ignore_ascii_case(b"h2c") {
            continue;
        }
        if !token.eq_ignore_ascii_case(b"websocket") {
            return Upgrade::Other;
        }
        upgrade = Upgrade::WebSocket;
    }
    upgrade
}

/// Headers `x-envoy-…` by which a client could steer the proxy. The others it may invent as it likes.
fn is_control_header(rest: &[u8]) -> bool {
    matches!(
        rest,
        b"retry-on"
            | b"retry-grpc-on"
            | b"max-retries"
            | b"retriable-status-codes"
            | b"retriable-header-names"
            | b"upstream-alt-stat-name"
            | b"upstream-rq-timeout-ms"
            | b"upstream-rq-per-try-timeout-ms"
            | b"upstream-rq-timeout-alt-response"
            | b"upstream-stream-duration-ms"
            | b"expected-rq-timeout-ms"
            | b"force-trace"
            | b"ip-tags"
            | b"decorator-operation"
            | b"downstream-service-cluster"
            | b"downstream-service-node"
            | b"original-path"
            | b"original-host"
            | b"hedge-on-per-try-timeout"
    )
}

/// The client behind `hops` trusted proxies: the peer, or an address of the incoming `x-forwarded-for` (with port 0).
pub(super) fn client_address(headers: &Headers, connection: &ConnectionFacts, hops: u32) -> Option<SocketAddr> {
    if hops == 0 {
        return connection.remote;
    }
    headers
        .get_str("x-forwarded-for")
        .and_then(|list| list.rsplit(',').nth(usize::try_from(hops - 1).ok()?))
        .and_then(|entry| entry.trim().parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 0))
        .or(connection.remote)
}

/// Adds what upstreams are told about the client. `own_address` stands in for a peer on 127.0.0.1, as in Envoy.
pub(super) fn forwarded(
    head: &mut RequestHead,
    connection: &ConnectionFacts,
    client: Option<SocketAddr>,
    settings: &HttpSettings,
    own_address: Option<IpAddr>,
) {
    let headers = &mut head.headers;
    if let Some(peer) = connection.remote {
        let peer = match own_address {
            Some(own) if peer.ip() == IpAddr::from([127, 0, 0, 1]) => own,
            _ => peer.ip(),
        };
        match headers.get_mut("x-forwarded-for") {
            Some(line) if !line.is_empty() => *line = [&line[..], b",", peer.to_string().as_bytes()].concat().into(),
            Some(line) => *line = peer.to_string().into(),
            None => headers.push("x-forwarded-for", peer.to_string()),
        }
    }
    if settings.trusted_proxies == 0 || !headers.contains("x-forwarded-proto") {
        headers.set("x-forwarded-proto", head.scheme);
    }
    if settings.forwarded_port
        && let Some(local) = connection.local
    {
        headers.set("x-forwarded-port", local.port().to_string());
    }
    if let Some(client) = client {
        headers.set("x-envoy-external-address", client.ip().to_string());
    }
}

/// Tells upstreams which certificate the client has shown: `element` for it in `x-forwarded-client-cert`.
pub(super) fn certificate(headers: &mut Headers, mode: ForwardClientCert, element: &Bytes) {
    match mode {
        ForwardClientCert::Sanitize | ForwardClientCert::ForwardOnly | ForwardClientCert::AlwaysForwardOnly => {}
        ForwardClientCert::SanitizeSet => headers.set("x-forwarded-client-cert", element.clone()),
        ForwardClientCert::AppendForward => {
            let lines: Vec<&[u8]> = headers.get_all("x-forwarded-client-cert").map(|line| &line[..]).collect();
            let all = [&lines[..], &[&element[..]]].concat().join(&b","[..]);
            headers.set("x-forwarded-client-cert", all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> Headers {
        let mut headers = Headers::default();
        for (name, value) in lines {
            headers.receive(Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes()));
        }
        headers
    }

    fn connection() -> ConnectionFacts {
        ConnectionFacts { remote: Some(SocketAddr::from(([9, 9, 9, 9], 1234))), ..ConnectionFacts::unknown() }
    }

    #[test]
    fn the_client_is_found_behind_trusted_proxies() {
        let peer = "9.9.9.9";
        for (hops, list, expected) in [
            (0, "1.1.1.1", peer),
            (1, "1.1.1.1, 2.2.2.2", "2.2.2.2"),
            (2, "1.1.1.1, 2.2.2.2", "1.1.1.1"),
            (2, "1.1.1.1", peer),
            (1, "1.1.1.1:99", peer),
            (1, "[::1]:5", peer),
            (1, "2001:db8::1", "2001:db8::1"),
            (1, "1.1.1.1, junk", peer),
            (1, "1.1.1.1, ", peer),
        ] {
            let found = client_address(&headers(&[("x-forwarded-for", list)]), &connection(), hops);
            assert_eq!(found.map(|address| address.ip().to_string()).as_deref(), Some(expected), "{hops} {list}");
        }
    }

    #[test]
    fn hop_by_hop_headers_go() {
        let mut lines = headers(&[
            ("connection", "close, X-A"),
            ("x-a", "1"),
            ("keep-alive", "5"),
            ("te", "gzip, trailers"),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-overloaded", "true"),
            ("upgrade", "websocket"),
        ]);
        assert_eq!(sanitize(&mut lines, &HttpSettings::default(), false), Ok(Upgrade::None));
        assert_eq!(lines, headers(&[("te", "trailers"), ("x-envoy-overloaded", "true")]));
    }

    #[test]
    fn upgrades_are_told_apart() {
        for (value, expected) in [
            ("websocket", Upgrade::WebSocket),
            ("WebSocket", Upgrade::WebSocket),
            ("h2c", Upgrade::None),
            ("foo", Upgrade::Other),
        ] {
            let mut lines = headers(&[("connection", "Upgrade"), ("upgrade", value)]);
            assert_eq!(sanitize(&mut lines, &HttpSettings::default(), false), Ok(expected), "{value}");
        }
        let mut lines = headers(&[("connection", "x-forwarded-for")]);
        assert_eq!(sanitize(&mut lines, &HttpSettings::default(), false), Err(Failure::ConnectionHeaderRejected));
    }

    #[test]
    fn client_certificates_are_told_as_the_mode_says() {
        use ForwardClientCert::{AlwaysForwardOnly, AppendForward, ForwardOnly, Sanitize, SanitizeSet};
        // Source: reference/security.md 4.6.
        for (mode, certified, expected) in [
            (Sanitize, true, None),
            (Sanitize, false, None),
            (ForwardOnly, true, Some("a,b")),
            (ForwardOnly, false, None),
            (AppendForward, true, Some("a,b,ours")),
            (AppendForward, false, None),
            (SanitizeSet, true, Some("ours")),
            (SanitizeSet, false, None),
            (AlwaysForwardOnly, true, Some("a,b")),
            (AlwaysForwardOnly, false, Some("a,b")),
        ] {
            let settings = HttpSettings { forward_client_cert: mode, ..HttpSettings::default() };
            let mut lines = headers(&[("x-forwarded-client-cert", "a,b")]);
            assert_eq!(sanitize(&mut lines, &settings, certified), Ok(Upgrade::None));
            if certified {
                certificate(&mut lines, mode, &Bytes::from_static(b"ours"));
            }
            assert_eq!(lines.get_str("x-forwarded-client-cert"), expected, "{mode:?} {certified}");
        }
        let mut lines = headers(&[("x-forwarded-client-cert", "a"), ("x-forwarded-client-cert", "b")]);
        certificate(&mut lines, AppendForward, &Bytes::from_static(b"ours"));
        assert_eq!(lines, headers(&[("x-forwarded-client-cert", "a,b,ours")]));
    }
}
