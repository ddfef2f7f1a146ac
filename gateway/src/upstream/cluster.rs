//! A cluster at run time: its endpoints of the moment and the counters that its limits are checked against.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use config::snapshot::cluster as snapshot;
use config::snapshot::cluster::{EndpointAddress, Endpoints};
use tokio::sync::Notify;

use crate::tls::client::Client;
use crate::tls::credentials::Credentials;

/// A cluster that serves requests. Shared by all workers; a change of its configuration makes a new one that keeps the
/// counters.
#[derive(Debug)]
pub struct Cluster {
    /// The compiled configuration.
    pub config: Arc<snapshot::Cluster>,
    /// TLS towards its endpoints.
    pub tls: ClusterTls,
    /// The endpoints of the moment; replaced by name resolution.
    endpoints: ArcSwap<EndpointSet>,
    /// What is in use; survives a reload.
    pub usage: Arc<Usage>,
    next: AtomicUsize,
}

/// TLS of a cluster.
#[derive(Debug, Clone)]
pub enum ClusterTls {
    /// Plaintext.
    None,
    /// With usable credentials.
    Available(Arc<Client>),
    /// Why there is no TLS to speak: no usable credential. Connections fail; nothing is ever sent in plaintext instead.
    Unavailable(Arc<str>),
}

impl ClusterTls {
    /// TLS as `config` asks for it; as in `previous`, if nothing about it has changed.
    fn build(config: &snapshot::Cluster, credentials: &Credentials, previous: Option<&Self>) -> Self {
        let Some(settings) = &config.tls else { return Self::None };
        match (credentials.client(settings), previous) {
            (Ok(material), Some(Self::Available(client))) if client.is_same(settings, &material, config.protocol) => {
                Self::Available(Arc::clone(client))
            }
            (Ok(material), _) => {
                Self::Available(Arc::new(Client::new(Arc::clone(settings), material, config.protocol)))
            }
            (Err(reason), _) => Self::Unavailable(reason.into()),
        }
    }

    /// The setting, if it can be used.
    pub fn client(&self) -> Option<&Arc<Client>> {
        match self {
            Self::Available(client) => Some(client),
            Self::None | Self::Unavailable(_) => None,
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Available(a), Self::Available(b)) => Arc::ptr_eq(a, b),
            (Self::Unavailable(a), Self::Unavailable(b)) => a == b,
            _ => false,
        }
    }
}

/// The endpoints of a cluster at one moment.
#[derive(Debug, Default, PartialEq)]
pub struct EndpointSet {
    /// `false` until names were resolved for the first time (or failed): requests answer 503 `NC` as in Envoy's
    /// warming.
    pub ready: bool,
    /// The addresses; each appears as often as its weight says relative to the others.
    pub endpoints: Vec<Endpoint>,
    /// Indexes into `endpoints`, spread for weighted round robin.
    schedule: Vec<u32>,
}

/// An address to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where.
    pub address: Address,
    /// Weight, at least 1.
    pub weight: u32,
}

/// The address of an upstream connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Ip(SocketAddr),
    /// Unix socket path.
    UnixPath(PathBuf),
    /// Abstract unix socket.
    UnixAbstract(String),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::UnixPath(path) => path.display().fmt(f),
            Self::UnixAbstract(name) => write!(f, "@{name}"),
        }
    }
}

/// What a cluster has in use, over all workers.
#[derive(Debug, Default)]
pub struct Usage {
    /// Open connections.
    pub connections: AtomicU32,
    /// Requests that wait for a connection.
    pub pending: AtomicU32,
    /// Requests under way.
    pub requests: AtomicU32,
    /// Retries under way.
    pub retries: AtomicU32,
    /// Wakes those who wait for a connection.
    pub freed: Notify,
}

impl Usage {
    /// Wakes those who wait for a connection or a stream, if there are any.
    ///
    /// Sequentially consistent with the counters: whoever begins to wait has counted itself as pending before it found
    /// everything taken.
    pub fn wake_waiting(&self) {
        if self.pending.load(Ordering::SeqCst) > 0 {
            self.freed.notify_waiters();
        }
    }

    /// Whether requests wait while no more connections may be opened.
    pub fn is_crowded(&self, max_connections: u32) -> bool {
        max_connections < u32::MAX
            && self.pending.load(Ordering::SeqCst) > 0
            && self.connections.load(Ordering::SeqCst) >= max_connections
    }

    /// Takes one of `counter` if fewer than `limit` are taken; given back when the permit drops.
    pub fn acquire(self: &Arc<Self>, counter: fn(&Self) -> &AtomicU32, limit: u32) -> Option<Permit> {
        counter(self)
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| (taken < limit).then(|| taken + 1))
            .ok()
            .map(|_| Permit { usage: Arc::clone(self), counter })
    }
}

/// One taken unit of a [`Usage`] counter.
#[derive(Debug)]
pub struct Permit {
    usage: Arc<Usage>,
    counter: fn(&Usage) -> &AtomicU32,
}

impl Drop for Permit {
    fn drop(&mut self) {
        (self.counter)(&self.usage).fetch_sub(1, Ordering::SeqCst);
        self.usage.wake_waiting();
    }
}

impl Cluster {
    /// The cluster of `config`, which takes over from `previous` its counters, its TLS as far as that is the same, and
    /// resolved addresses if the names are the same. `previous` itself if nothing has changed.
    pub fn build(
        config: &Arc<snapshot::Cluster>,
        credentials: &Credentials,
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let tls = ClusterTls::build(config, credentials, previous.map(|previous| &previous.tls));
        let config = Arc::clone(config);
        let Some(previous) = previous else {
            let endpoints = ArcSwap::from_pointee(EndpointSet::initial(&config.endpoints));
            return Arc::new(Self { config, tls, endpoints, usage: Arc::default(), next: AtomicUsize::new(0) });
        };
        let same_config = Arc::ptr_eq(&config, &previous.config);
        if same_config && tls.is_same(&previous.tls) {
            return Arc::clone(previous);
        }
        let has_names = !matches!(config.endpoints, Endpoints::Static(_));
        let endpoints = if same_config || (has_names && config.endpoints == previous.config.endpoints) {
            ArcSwap::new(previous.endpoints.load_full())
        } else {
            ArcSwap::from_pointee(EndpointSet::initial(&config.endpoints))
        };
        let next = AtomicUsize::new(previous.next.load(Ordering::Relaxed));
        Arc::new(Self { config, tls, endpoints, usage: Arc::clone(&previous.usage), next })
    }

    /// The endpoints of this moment.
    pub fn endpoints(&self) -> arc_swap::Guard<Arc<EndpointSet>> {
        self.endpoints.load()
    }

    /// Replaces the endpoints after name resolution: every address with its weight, in the resolver's order.
    pub fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        let set = EndpointSet::new(endpoints);
        if **self.endpoints.load() != set {
            self.endpoints.store(Arc::new(set));
        }
    }

    /// The next endpoint in weighted round robin, avoiding those in `tried` as long as another one is found within
    /// `reselections` further picks. `None` without endpoints.
    pub fn pick(&self, tried: &[Address], reselections: u32) -> Option<Endpoint> {
        let set = self.endpoints.load();
        if set.schedule.is_empty() {
            return None;
        }
        let mut picked = None;
        for _ in 0..=reselections {
            let turn = self.next.fetch_add(1, Ordering::Relaxed) % set.schedule.len();
            let endpoint = &set.endpoints[set.schedule[turn] as usize];
            let fresh = !tried.contains(&endpoint.address);
            picked = Some(endpoint);
            if fresh {
                break;
            }
        }
        picked.cloned()
    }
}

impl EndpointSet {
    /// A set that is ready to serve.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        let schedule = schedule(&endpoints);
        Self { ready: true, endpoints, schedule }
    }

    fn initial(endpoints: &Endpoints) -> Self {
        match endpoints {
            Endpoints::Static(list) => Self::new(
                list.iter()
                    .map(|endpoint| {
                        let address = match &endpoint.address {
                            EndpointAddress::Ip(ip, port) => Address::Ip(SocketAddr::new(*ip, *port)),
                            EndpointAddress::UnixPath(path) => Address::UnixPath(path.clone()),
                            EndpointAddress::UnixAbstract(name) => Address::UnixAbstract(name.clone()),
                        };
                        Endpoint { address, weight: endpoint.weight.max(1) }
                    })
                    .collect(),
            ),
            // An IP literal needs no resolver.
            Endpoints::StrictDns(names) if names.iter().all(|name| name.host.parse::<IpAddr>().is_ok()) => {
                Self::new(names.iter().filter_map(literal).collect())
            }
            Endpoints::LogicalDns(name) => literal(name).map_or_else(Self::default, |only| Self::new(vec![only])),
            Endpoints::StrictDns(_) | Endpoints::Dynamic(_) => Self::default(),
        }
    }
}

fn literal(name: &snapshot::DnsEndpoint) -> Option<Endpoint> {
    let ip = name.host.parse().ok()?;
    Some(Endpoint { address: Address::Ip(SocketAddr::new(ip, name.port)), weight: name.weight.max(1) })
}

/// The longest schedule that is built; larger weights are scaled down to it.
const MAX_SCHEDULE: u64 = 1 << 16;

/// Smooth weighted round robin as a list of indexes: each endpoint appears in proportion to its weight, spread evenly.
fn schedule(endpoints: &[Endpoint]) -> Vec<u32> {
    let Some(first) = endpoints.first() else { return Vec::new() };
    let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
    if endpoints.iter().all(|endpoint| endpoint.weight == first.weight) {
        return (0..count).collect();
    }
    let divisor = endpoints.iter().fold(0, |divisor, endpoint| gcd(divisor, endpoint.weight)).max(1);
    let mut weights: Vec<u64> = endpoints.iter().map(|endpoint| u64::from(endpoint.weight / divisor)).collect();
    let total: u64 = weights.iter().sum();
    if total > MAX_SCHEDULE {
        for weight in &mut weights {
            *weight = (*weight * MAX_SCHEDULE / total).max(1);
        }
    }
    // Each endpoint's k-th turn of w stands at (k + 1/2) / w of the round.
    let mut turns: Vec<(f64, u32)> = (0..count)
        .zip(&weights)
        .flat_map(|(index, &weight)| (0..weight).map(move |turn| ((turn as f64 + 0.5) / weight as f64, index)))
        .collect();
    turns.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    turns.into_iter().map(|(_, index)| index).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16, weight: u32) -> Endpoint {
        Endpoint { address: Address::Ip(SocketAddr::from(([127, 0, 0, 1], port))), weight }
    }

    #[test]
    fn weights_share_a_round_exactly() {
        let turns = schedule(&[endpoint(1, 1), endpoint(2, 3)]);
        assert_eq!(turns.len(), 4);
        assert_eq!(turns.iter().filter(|&&index| index == 1).count(), 3);
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(schedule(&[endpoint(1, 7), endpoint(2, 7)]), [0, 1]);
    }

    #[test]
    fn huge_weights_are_scaled_down() {
        let turns = schedule(&[endpoint(1, u32::MAX), endpoint(2, 1)]);
        assert!(turns.len() as u64 <= MAX_SCHEDULE + 1);
        assert!(turns.contains(&1));
    }

    #[test]
    fn permits_end_at_the_limit_and_come_back() {
        let usage = Arc::new(Usage::default());
        let first = usage.acquire(|usage| &usage.requests, 1);
        assert!(first.is_some());
        assert!(usage.acquire(|usage| &usage.requests, 1).is_none());
        drop(first);
        assert!(usage.acquire(|usage| &usage.requests, 1).is_some());
    }
}
