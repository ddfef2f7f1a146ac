//! Listeners and filter chains: where the gateway accepts and what it does with a connection.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::ResourceName;
use super::cluster::ClusterName;
use super::egress::ForwardProxy;
use super::host::RouteTable;
use super::tls::ServerTls;

/// One listening address and port with its filter chains.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// Where to listen.
    pub bind: Bind,
    /// The port as the Gateway's server says; everything user-visible uses it. 0 for unix sockets.
    pub port: u16,
    /// The port to open, after `--port-map` or the Service's `targetPort`; equal to `port` without either.
    pub target_port: u16,
    /// Every connection begins with a PROXY protocol header, version 1 or 2 (`gatewayTopology.proxyProtocol`).
    pub proxy_protocol: bool,
    /// A plaintext listener has exactly one chain. The chains of a TLS listener have disjoint `server_names`, and at
    /// most one has none.
    pub filter_chains: Vec<Arc<FilterChain>>,
}

/// The address of a listener. Two servers of one port with different `bind`s are two listeners.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bind {
    /// No `bind`: the addresses of `--bind`, by default `0.0.0.0` and `::`.
    Default,
    /// One IP address.
    Ip(IpAddr),
    /// `unix:///path`.
    UnixPath(PathBuf),
    /// `unix://@name`: Linux's abstract name space.
    UnixAbstract(String),
}

/// What happens to the connections of a listener that this chain accepts.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterChain {
    /// Identifies the chain within its listener across reloads: the route table's name for HTTP
    /// (`https.443.https-a.gateway.namespace`), else made of the server and its route.
    pub name: Arc<str>,
    /// The Gateways whose servers are merged in this chain, oldest first.
    pub gateways: Vec<ResourceName>,
    /// SNI names in lower case, exact or `*.suffix`; empty: whatever no other chain wants, also without SNI.
    pub server_names: Vec<Arc<str>>,
    /// What is on the socket.
    pub transport: Transport,
    /// What is done with what it carries.
    pub handler: Handler,
}

/// What the connections of a filter chain carry on the socket.
#[derive(Debug, Clone, PartialEq)]
pub enum Transport {
    /// What the handler reads.
    Plaintext,
    /// TLS that ends here.
    Terminate(Arc<ServerTls>),
    /// TLS that ends at the upstream; the ClientHello is forwarded unchanged.
    Passthrough,
}

/// What is done with the bytes of a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Handler {
    /// HTTP/1.1 and HTTP/2, by the first bytes.
    Http(Arc<HttpChain>),
    /// Bytes are copied to and from an upstream.
    Tcp(Arc<TcpChain>),
}

impl FilterChain {
    /// The HTTP side of the chain; `None` for raw TCP.
    pub fn http(&self) -> Option<&Arc<HttpChain>> {
        match &self.handler {
            Handler::Http(http) => Some(http),
            Handler::Tcp(_) => None,
        }
    }
}

/// Where the connections of a raw TCP chain go.
///
/// Source: VirtualService `tcp` and `tls` routes; `reference/networking.md` §3.18-3.20.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpChain {
    /// Destinations, of which each connection gets one by weight. A single one is unconditional; none has weight 0.
    pub destinations: Vec<TcpDestination>,
    /// Time without a byte in either direction after which both ends are closed; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// The longest time that a connection lives; `None` = no limit.
    pub max_connection_duration: Option<Duration>,
    /// The bytes travel through an HTTP proxy, which the destinations then are.
    pub tunnel: Option<Arc<Tunnel>>,
    /// The VirtualService of the route.
    pub resource: ResourceName,
}

/// What is asked of an HTTP proxy.
///
/// Source: DestinationRule `tunnel`; `reference/networking.md` §5.8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// POST instead of CONNECT.
    pub post: bool,
    /// `host:port` of the target; IPv6 addresses in brackets.
    pub target: String,
}

/// A destination of a raw TCP chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpDestination {
    /// A cluster that may be absent from the snapshot: connections are then reset with flag `NC`.
    pub cluster: ClusterName,
    /// Relative to the others.
    pub weight: u32,
}

/// HTTP connection settings and the route table of a filter chain.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HttpChain {
    /// Virtual hosts and routes.
    pub routes: Arc<RouteTable>,
    /// How connections and requests are treated before routing.
    pub settings: Arc<HttpSettings>,
    /// Clients may ask for hosts that no route knows (protocol `HTTP_PROXY`).
    pub forward_proxy: Option<Arc<ForwardProxy>>,
}

/// HTTP connection manager settings.
///
/// Sources: `MeshConfig.pathNormalization`, `ProxyConfig.gatewayTopology`, `.proxyHeaders`, `.connectionSettings`.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    /// Which path normalisation runs before routing.
    pub path_normalization: PathNormalization,
    /// What to do with `%2F` and `%5C` in a path.
    pub escaped_slashes: EscapedSlashes,
    /// `gatewayTopology.numTrustedProxies`.
    pub trusted_proxies: u32,
    /// `server` response header: overwrite with this text, or pass the upstream's through (`None`).
    pub server: Option<String>,
    /// Generate `x-request-id` (`proxyHeaders.requestId`).
    pub request_id: bool,
    /// Send `x-envoy-attempt-count` upstream (`proxyHeaders.attemptCount`).
    pub attempt_count: bool,
    /// Send Envoy's debug headers (`proxyHeaders.envoyDebugHeaders`).
    pub debug_headers: bool,
    /// Append the old host to `x-forwarded-host` on a host rewrite.
    pub forwarded_host: bool,
    /// Replace `x-forwarded-port` by the listening port.
    pub forwarded_port: bool,
    /// Keep the case of HTTP/1.1 header names.
    pub preserve_header_case: bool,
    /// What becomes of `x-forwarded-client-cert`.
    pub forward_client_cert: ForwardClientCert,
    /// Answer HTTP/1.0 requests instead of 426 (`PILOT_HTTP10`).
    pub http10: bool,
    /// What to do with header names that contain `_`.
    pub underscores: Underscores,
    /// Time from the first byte of a request to the end of its head; `None` = no limit.
    pub request_headers_timeout: Option<Duration>,
    /// Time for the whole request to arrive; `None` = no limit.
    pub request_timeout: Option<Duration>,
    /// Idle time of one stream; `None` = no limit.
    pub stream_idle_timeout: Option<Duration>,
    /// Duration of one stream; `None` = no limit.
    pub max_stream_duration: Option<Duration>,
    /// Idle time of a connection without a request; `None` = no limit.
    pub idle_timeout: Option<Duration>,
    /// Duration of a connection; `None` = no limit.
    pub max_connection_duration: Option<Duration>,
    /// Time between the two GOAWAYs of a drain.
    pub drain_timeout: Duration,
    /// HTTP/2 SETTINGS_MAX_CONCURRENT_STREAMS.
    pub max_concurrent_streams: u32,
    /// HTTP/2 stream window in bytes.
    pub initial_stream_window: u32,
    /// HTTP/2 connection window in bytes.
    pub initial_connection_window: u32,
}

impl Default for HttpSettings {
    /// Envoy's and Istio's values for a gateway without any setting.
    fn default() -> Self {
        Self {
            path_normalization: PathNormalization::Base,
            escaped_slashes: EscapedSlashes::Keep,
            trusted_proxies: 0,
            server: Some("istio-envoy".to_owned()),
            request_id: true,
            attempt_count: true,
            debug_headers: true,
            forwarded_host: false,
            forwarded_port: false,
            preserve_header_case: false,
            forward_client_cert: ForwardClientCert::SanitizeSet,
            http10: false,
            underscores: Underscores::Allow,
            request_headers_timeout: None,
            request_timeout: None,
            stream_idle_timeout: None,
            max_stream_duration: None,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            drain_timeout: Duration::from_secs(5),
            max_concurrent_streams: 1024,
            initial_stream_window: 16_777_216,
            initial_connection_window: 25_165_824,
        }
    }
}

/// `MeshConfig.pathNormalization.normalization`, with `httpMergeSlashes` folded in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathNormalization {
    /// Paths are taken as they come (`#fragment` is still cut off).
    None,
    /// Dot segments, backslashes and unreserved escapes are normalised.
    Base,
    /// `Base`, and runs of slashes become one.
    MergeSlashes,
    /// `%2F` and `%5C` are decoded first, then `MergeSlashes`.
    DecodeAndMergeSlashes,
    /// Only runs of slashes become one (`NONE` with `httpMergeSlashes: true`).
    MergeOnly,
}

/// `connectionSettings.httpPathWithEscapedSlashesAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// Leave them.
    Keep,
    /// Answer 400.
    Reject,
    /// Answer 307 with the decoded path.
    UnescapeAndRedirect,
    /// Decode and go on.
    UnescapeAndForward,
}

/// `connectionSettings.httpHeadersWithUnderscoresAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underscores {
    /// Pass them.
    Allow,
    /// Answer 400 (HTTP/1) or reset the stream (HTTP/2).
    Reject,
    /// Drop the header.
    Drop,
}

/// `gatewayTopology.forwardClientCertDetails`. All but the last drop what a client sends that has shown no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardClientCert {
    /// Drop it.
    Sanitize,
    /// Pass it on as it is.
    ForwardOnly,
    /// Append an element for the client.
    AppendForward,
    /// Replace it by an element for the client.
    SanitizeSet,
    /// Pass it on, whoever sends it.
    AlwaysForwardOnly,
}
