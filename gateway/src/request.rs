//! What is known of one request, grouped by phase and filled once. Header format strings and the access log read it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use certs::certificate::Certificate;
use certs::credential::Credential;
use config::snapshot::host::VirtualHost;
use config::snapshot::route::Route;
use rustls::{CommonState, HandshakeKind, ProtocolVersion};

use crate::http::headers::Headers;
use crate::response::Flags;
use crate::tls::parameters::{group_name, suite_name};
use crate::upstream::cluster::Cluster;
use crate::upstream::endpoint::Address;

/// When a connection or a request began.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    /// Wall clock.
    pub clock: SystemTime,
    /// Monotonic clock.
    pub instant: Instant,
}

impl Begun {
    /// This moment.
    pub fn now() -> Self {
        Self { clock: SystemTime::now(), instant: Instant::now() }
    }
}

/// What is known of a downstream connection.
#[derive(Debug)]
pub struct ConnectionFacts {
    /// Counts the connections of this process, downstream and upstream together.
    pub id: u64,
    /// When it was accepted.
    pub begun: Begun,
    /// The address the client connected to, by the PROXY protocol if that is spoken; `None` on unix sockets.
    pub local: Option<SocketAddr>,
    /// The address of the client, likewise.
    pub remote: Option<SocketAddr>,
    /// The address of the socket's peer.
    pub direct_remote: Option<SocketAddr>,
    /// Port of the server as the Gateway says.
    pub port: u16,
    /// TLS that is terminated on this connection.
    pub tls: Option<Arc<TlsFacts>>,
    /// SNI in lower case, if there was one; also of TLS that is passed through.
    pub server_name: Option<Arc<str>>,
}

impl ConnectionFacts {
    /// A plaintext connection to port 80 of whose peers nothing is known.
    #[cfg(test)]
    pub(crate) fn unknown() -> Self {
        let (local, remote, direct_remote, tls, server_name) = (None, None, None, None, None);
        Self { id: 1, begun: Begun::now(), local, remote, direct_remote, port: 80, tls, server_name }
    }

    /// `http`, or `https` where TLS is terminated.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// What a TLS handshake agreed on, with a client or with an upstream.
#[derive(Debug, Clone)]
pub struct TlsFacts {
    /// As Envoy logs it: `TLSv1.2`, `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite by OpenSSL's name.
    pub cipher: &'static str,
    /// The key exchange group: `X25519MLKEM768`, `X25519`, `P-256`; unknown where an earlier session goes on without one.
    pub group: Option<&'static str>,
    /// The protocol that ALPN chose.
    pub alpn: Option<Arc<str>>,
    /// The peer's certificate, if it has shown one; on resumed connections, that of the session.
    pub peer: Option<Certificate>,
    /// What was to be shown to the peer.
    pub local: Option<Arc<Credential>>,
    /// An earlier session goes on: nobody has shown a certificate again.
    pub resumed: bool,
}

impl TlsFacts {
    /// The facts of a complete handshake, in which we had `local` to show.
    pub fn new(connection: &CommonState, local: Option<Arc<Credential>>) -> Self {
        let peer = connection.peer_certificates().and_then(|chain| chain.first());
        let alpn = connection.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into());
        Self {
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            cipher: connection.negotiated_cipher_suite().map_or("unknown", |suite| suite_name(suite.suite())),
            group: connection.negotiated_key_exchange_group().map(|group| group_name(group.name())),
            alpn,
            // A certificate that was verified can be read.
            peer: peer.and_then(|leaf| Certificate::parse(leaf).ok()),
            local,
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }

    /// Our certificate.
    pub fn local_certificate(&self) -> Option<&Certificate> {
        self.local.as_deref().map(Credential::leaf)
    }
}

/// HTTP version spoken with the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the versions")]
pub enum Protocol {
    Http10,
    Http11,
    Http2,
}

impl Protocol {
    /// As the access log prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// The request line or pseudo headers and the header lines, as they stand at the moment: normalised, then with our own
/// headers, then rewritten.
#[derive(Debug, Clone, Default)]
pub struct RequestHead {
    /// As received.
    pub method: Bytes,
    /// Path with query, normalised, later rewritten. Always valid UTF-8 (visible ASCII).
    pub path: PathAndQuery,
    /// Host header or `:authority`.
    pub authority: Bytes,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Header lines with lower-case names, in wire order, without `host`.
    pub headers: Headers,
}

/// A request target in origin form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathAndQuery {
    text: Bytes,
    /// Index of `?`, or the length.
    query: usize,
}

impl PathAndQuery {
    /// Splits `text` at its first `?`. Bytes that are no UTF-8 make an empty path.
    pub fn new(text: Bytes) -> Self {
        let text = if std::str::from_utf8(&text).is_ok() { text } else { Bytes::new() };
        let query = text.iter().position(|&byte| byte == b'?').unwrap_or(text.len());
        Self { text, query }
    }

    /// Path and query.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    /// The path alone.
    pub fn path(&self) -> &str {
        std::str::from_utf8(&self.text[..self.query]).unwrap_or_default()
    }

    /// The query without `?`; `None` without `?`.
    pub fn query(&self) -> Option<&str> {
        self.text.get(self.query + 1..).and_then(|query| std::str::from_utf8(query).ok())
    }

    /// The bytes of path and query.
    pub fn as_bytes(&self) -> &Bytes {
        &self.text
    }
}

/// Everything about one request that logs, metrics and header formats may ask for; or about one raw TCP connection, which
/// has no values of HTTP.
#[derive(Debug)]
pub struct Facts {
    /// The connection it came on.
    pub connection: Rc<ConnectionFacts>,
    /// Version the client speaks; `None`: raw TCP.
    pub protocol: Option<Protocol>,
    /// Wall clock at the first byte; for raw TCP when the connection was accepted.
    pub started_at: SystemTime,
    /// The same on the monotonic clock.
    pub started: Instant,
    /// The client after trusted proxies; port 0 when it comes from `x-forwarded-for`.
    pub client: Option<SocketAddr>,
    /// `None` when the request could not be parsed.
    pub request: Option<RequestHead>,
    /// Path before a rewrite, if there was one.
    pub original_path: Option<PathAndQuery>,
    /// The virtual host that was found.
    pub virtual_host: Option<Arc<VirtualHost>>,
    /// The route that was chosen.
    pub route: Option<Arc<Route>>,
    /// The cluster that was chosen, even if a filter answered.
    pub cluster: Option<Arc<Cluster>>,
    /// The endpoint of the last try.
    pub upstream_host: Option<Address>,
    /// Our address towards it; `None` if the connect failed.
    pub upstream_local: Option<SocketAddr>,
    /// TLS towards it.
    pub upstream_tls: Option<Arc<TlsFacts>>,
    /// Tries so far.
    pub attempts: u32,
    /// Transport error of the last try's failed connect, blanks as `_`.
    pub transport_failure: Option<Cow<'static, str>>,
    /// Status sent, 0 if none.
    pub status: u16,
    /// Response header lines as sent.
    pub response_headers: Headers,
    /// Response trailers as sent (HTTP/2).
    pub response_trailers: Headers,
    /// Response flags in the order they were set.
    pub flags: Flags,
    /// Response code details; empty if none.
    pub details: Cow<'static, str>,
    /// Why the gateway ended a raw TCP connection; empty if it didn't, or if a flag tells.
    pub termination_details: Cow<'static, str>,
    /// Why the client's transport failed, blanks as `_`.
    pub downstream_transport_failure: Option<Cow<'static, str>>,
    /// Request body bytes, or all that a raw TCP client sent.
    pub bytes_received: u64,
    /// Response body bytes, or all that was sent to a raw TCP client.
    pub bytes_sent: u64,
    /// When the last request byte arrived.
    pub request_complete: Option<Instant>,
    /// When the first byte of the upstream's response arrived.
    pub response_started: Option<Instant>,
    /// The request's content type is gRPC.
    pub grpc: bool,
}

impl Facts {
    /// What is known at the first byte of a request.
    pub fn new(connection: Rc<ConnectionFacts>, protocol: Protocol) -> Self {
        Self::begin(connection, Some(protocol), Begun::now())
    }

    /// What is known of a connection that carries no requests.
    pub fn of_connection(connection: Rc<ConnectionFacts>) -> Self {
        let begun = connection.begun;
        Self::begin(connection, None, begun)
    }

    fn begin(connection: Rc<ConnectionFacts>, protocol: Option<Protocol>, begun: Begun) -> Self {
        Self {
            client: connection.remote,
            connection,
            protocol,
            started_at: begun.clock,
            started: begun.instant,
            request: None,
            original_path: None,
            virtual_host: None,
            route: None,
            cluster: None,
            upstream_host: None,
            upstream_local: None,
            upstream_tls: None,
            attempts: 0,
            transport_failure: None,
            status: 0,
            response_headers: Headers::default(),
            response_trailers: Headers::default(),
            flags: Flags::default(),
            details: Cow::Borrowed(""),
            termination_details: Cow::Borrowed(""),
            downstream_transport_failure: None,
            bytes_received: 0,
            bytes_sent: 0,
            request_complete: None,
            response_started: None,
            grpc: false,
        }
    }
}
