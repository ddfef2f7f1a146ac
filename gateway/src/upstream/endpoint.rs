//! Endpoints of clusters, and what is known of them for as long as a cluster has them.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use config::snapshot::balancing::Placement;
use config::snapshot::cluster::{self as snapshot, EndpointAddress};
use tokio::time::Instant;

use super::outlier::Health;

/// The address of an upstream connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Ip(SocketAddr),
    /// Unix socket path.
    UnixPath(PathBuf),
    /// Abstract unix socket.
    UnixAbstract(String),
    /// A host that is resolved when a connection is needed, and its port.
    Host(Arc<str>, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::UnixPath(path) => path.display().fmt(f),
            Self::UnixAbstract(name) => write!(f, "@{name}"),
            Self::Host(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// An address of a cluster, as the configuration or a name server gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub address: Address,
    /// Other addresses of the same server, for when it can't be reached there.
    pub alternatives: Vec<SocketAddr>,
    /// Load balancing weight, at least 1.
    pub weight: u32,
    /// Where it stands among the others.
    pub placement: Placement,
}

impl From<&snapshot::Endpoint> for Target {
    fn from(endpoint: &snapshot::Endpoint) -> Self {
        let address = match &endpoint.address {
            EndpointAddress::Ip(ip, port) => Address::Ip(SocketAddr::new(*ip, *port)),
            EndpointAddress::UnixPath(path) => Address::UnixPath(path.clone()),
            EndpointAddress::UnixAbstract(name) => Address::UnixAbstract(name.clone()),
        };
        let (weight, placement) = (endpoint.weight.max(1), endpoint.placement.clone());
        Self { address, alternatives: Vec::new(), weight, placement }
    }
}

/// An endpoint of a cluster. It is the same as long as the cluster has its address, whatever else changes.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// Other addresses of the same server. It is the same one when they change.
    alternatives: ArcSwap<Vec<SocketAddr>>,
    /// When the cluster got it.
    pub since: Instant,
    /// What its answers say of it.
    pub health: Health,
    active: AtomicU32,
}

impl Endpoint {
    /// An endpoint that nothing is known of.
    pub fn new(address: Address) -> Self {
        Self::with_alternatives(address, Vec::new())
    }

    /// The same, of a server that has other addresses, too.
    pub fn with_alternatives(address: Address, alternatives: Vec<SocketAddr>) -> Self {
        let alternatives = ArcSwap::from_pointee(alternatives);
        Self { address, alternatives, since: Instant::now(), health: Health::default(), active: AtomicU32::new(0) }
    }

    /// Other addresses of the same server, for when it can't be reached at its own.
    pub fn alternatives(&self) -> Arc<Vec<SocketAddr>> {
        self.alternatives.load_full()
    }

    /// Takes what a name server has said last.
    pub fn set_alternatives(&self, alternatives: Vec<SocketAddr>) {
        if **self.alternatives.load() != alternatives {
            self.alternatives.store(Arc::new(alternatives));
        }
    }

    /// Requests and raw TCP connections that are under way.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Counts one more request until the guard drops.
    pub fn begin(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        Active(Arc::clone(self))
    }
}

/// A request under way at an endpoint.
#[derive(Debug)]
pub struct Active(Arc<Endpoint>);

impl Active {
    /// Where it is under way.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
