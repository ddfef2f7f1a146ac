//! Clusters: a destination host, port and subset with its endpoints and limits.

use std::borrow::Borrow;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::balancing::{Balancing, OutlierDetection, Placement};
use super::tls::ClientTls;

/// The name of a cluster as Istio writes it: `outbound|<port>|<subset>|<host>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(Arc<str>);

impl ClusterName {
    /// The name for a destination; `subset` is empty for the whole service.
    pub fn outbound(port: u16, subset: &str, host: &str) -> Self {
        Self(format!("outbound|{port}|{subset}|{host}").into())
    }

    /// A cluster of Istio's own that belongs to no service.
    pub fn special(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for ClusterName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// One destination of routes.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// `outbound|<port>|<subset>|<host>`.
    pub name: ClusterName,
    /// The service behind it, for metrics and logs.
    pub service: Arc<ServiceIdentity>,
    /// Service port number.
    pub port: u16,
    /// Subset name, empty for the whole service.
    pub subset: String,
    /// Where its endpoints come from.
    pub endpoints: Endpoints,
    /// The HTTP version spoken upstream.
    pub protocol: UpstreamProtocol,
    /// Time for TCP (and TLS) to connect.
    pub connect_timeout: Duration,
    /// Limits and timeouts of its connections.
    pub limits: Limits,
    /// TLS towards its endpoints; `None` = plaintext.
    pub tls: Option<Arc<ClientTls>>,
    /// How its endpoints share requests.
    pub balancing: Balancing,
    /// When endpoints are left out; `None` = never.
    pub outlier_detection: Option<Arc<OutlierDetection>>,
    /// The PROXY protocol header that connections to it begin with, before TLS.
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl Cluster {
    /// A cluster of a whole service with Istio's defaults: plaintext HTTP/1.1, LEAST_REQUEST, no limits.
    pub fn new(name: ClusterName, service: Arc<ServiceIdentity>, port: u16, endpoints: Endpoints) -> Self {
        Self {
            name,
            service,
            port,
            subset: String::new(),
            endpoints,
            protocol: UpstreamProtocol::Http1,
            // Source: `reference/networking.md` §8.1.
            connect_timeout: Duration::from_secs(10),
            limits: Limits::default(),
            tls: None,
            balancing: Balancing::default(),
            outlier_detection: None,
            proxy_protocol: None,
        }
    }
}

/// Versions of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are the versions")]
pub enum ProxyProtocol {
    V1,
    V2,
}

/// Names of the service that a cluster belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceIdentity {
    /// Full host name, `reviews.shop.svc.cluster.local` or a ServiceEntry's host.
    pub host: Arc<str>,
    /// Short name: `reviews`; the host itself for a ServiceEntry.
    pub name: Arc<str>,
    /// Namespace of the service.
    pub namespace: Arc<str>,
}

/// The endpoints of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Endpoints {
    /// Known addresses (EndpointSlices, Endpoints, STATIC entries). An empty list answers 503 `UH`.
    Static(Arc<[Endpoint]>),
    /// Every address that every name resolves to (Istio `DNS`, Envoy STRICT_DNS).
    StrictDns(Arc<[DnsEndpoint]>),
    /// The first address of one name (Istio `DNS_ROUND_ROBIN`, Envoy LOGICAL_DNS).
    LogicalDns(DnsEndpoint),
    /// The addresses of the host that each request names (Istio `DYNAMIC_DNS`).
    Dynamic(DynamicDns),
}

/// Hosts that are resolved when a request names them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DynamicDns {
    /// Names that may be asked for: those that end in this lower-case suffix, as it stands behind the `*` of the entry's
    /// host (`.example.com`, or `-a.example.com`); all if it is empty.
    pub suffix: Arc<str>,
    /// Port of every address.
    pub port: u16,
}

/// One address of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where to connect.
    pub address: EndpointAddress,
    /// Load balancing weight, at least 1.
    pub weight: u32,
    /// Workload name for metrics, if known.
    pub workload: Option<Arc<str>>,
    /// Where it stands among the others.
    pub placement: Placement,
}

/// The address of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// IP address and port.
    Ip(IpAddr, u16),
    /// Unix socket path.
    UnixPath(PathBuf),
    /// Abstract unix socket.
    UnixAbstract(String),
}

/// A name to resolve, with the port and weight of each address that comes back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DnsEndpoint {
    /// Host name (or IP literal, which resolves to itself).
    pub host: Arc<str>,
    /// Port of every address.
    pub port: u16,
    /// Weight of every address, at least 1.
    pub weight: u32,
    /// Where every address stands among the others.
    pub placement: Placement,
}

/// The HTTP version spoken to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2: with prior knowledge, or agreed on in the TLS handshake.
    Http2,
    /// Whatever the client speaks (`useClientProtocol`).
    SameAsClient,
}

/// Connection pool limits of a cluster, per gateway process.
///
/// Source: DestinationRule `trafficPolicy.connectionPool`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Connections at once.
    pub max_connections: u32,
    /// Requests waiting for a connection.
    pub max_pending_requests: u32,
    /// Active requests.
    pub max_requests: u32,
    /// Retries at once.
    pub max_retries: u32,
    /// Share of active requests that may be retries; replaces `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// Requests a connection may carry; 0 = unlimited.
    pub max_requests_per_connection: u32,
    /// Concurrent HTTP/2 streams of a connection.
    pub max_concurrent_streams: u32,
    /// Idle time of a pooled connection; `None` = kept for ever.
    pub idle_timeout: Option<Duration>,
    /// Age at which a connection is no longer used.
    pub max_connection_duration: Option<Duration>,
    /// TCP keep-alive of upstream connections; `None` = off.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// PINGs on HTTP/2 connections; `None` = none.
    pub http2_keepalive: Option<Http2Keepalive>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: u32::MAX,
            max_pending_requests: u32::MAX,
            max_requests: u32::MAX,
            max_retries: u32::MAX,
            retry_budget: None,
            max_requests_per_connection: 0,
            max_concurrent_streams: 1024,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            tcp_keepalive: None,
            http2_keepalive: None,
        }
    }
}

/// DestinationRule `retryBudget`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Percent of active and pending requests that may be retries.
    pub percent: f64,
    /// Retries that are always allowed.
    pub min_concurrency: u32,
    /// The percentage is of all requests that began within this time, instead of those that are active or pending.
    ///
    /// Source: Envoy, `CircuitBreakers.Thresholds.RetryBudget.budget_interval`.
    pub interval: Option<Duration>,
}

/// DestinationRule `connectionPool.http.http2KeepAlive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Time between two PINGs.
    pub interval: Duration,
    /// Time without an answer after which the connection is dead.
    pub timeout: Duration,
}

/// SO_KEEPALIVE settings; `None` leaves the operating system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpKeepalive {
    /// Unanswered probes before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}
