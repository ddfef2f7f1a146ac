//! A cluster at run time: its endpoints of the moment and the counters that its limits are checked against.
//!
//! What is known of a cluster belongs to its name and outlives reloads: a reload that doesn't change a cluster leaves it
//! as it is, and one that does keeps the endpoints that it still has, with their health and requests, and the counters.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use arc_swap::ArcSwap;
use config::snapshot::cluster as snapshot;
use config::snapshot::cluster::{ClusterName, DynamicDns, Endpoints};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::balancer::{Balancer, Member, Members, Pick};
use super::endpoint::{Address, Endpoint, Target};
use super::outlier::{self, Outcome};

use crate::telemetry::metrics::Page;
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
    /// What is in use; survives a reload.
    pub usage: Arc<Usage>,
    /// The endpoints of the moment; replaced by name resolution and when endpoints are ejected or return.
    balancer: ArcSwap<Balancer>,
    /// Held while that is replaced.
    balancing: Mutex<()>,
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
    /// Requests that began of late; kept only where a retry budget asks.
    recent: Mutex<Recent>,
    /// Held while it is decided who is ejected.
    ejecting: Mutex<()>,
    /// Counts changes of who is ejected.
    ejection_changes: AtomicU64,
    /// Endpoints that were ejected so far.
    pub ejections_total: AtomicU64,
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

    /// Takes note of a request that begins, for [`Usage::recent`].
    pub fn note_request(&self, interval: Duration) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.roll(Instant::now(), interval);
        recent.current = recent.current.saturating_add(1);
    }

    /// About how many requests have begun within the last `interval`.
    pub fn recent(&self, interval: Duration) -> f64 {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).estimate(Instant::now(), interval)
    }

    /// Changes so far of who is ejected; what was made of fewer is out of date.
    pub fn ejections(&self) -> u64 {
        self.ejection_changes.load(Ordering::SeqCst)
    }

    /// Somebody was ejected (`count` of them), or returns.
    fn ejected(&self, count: u64) {
        self.ejections_total.fetch_add(count, Ordering::Relaxed);
        self.ejection_changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes one of `counter` if fewer than `limit` are taken; given back when the permit drops.
    pub fn acquire(self: &Arc<Self>, counter: fn(&Self) -> &AtomicU32, limit: u32) -> Option<Permit> {
        counter(self)
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| (taken < limit).then(|| taken + 1))
            .ok()
            .map(|_| Permit { usage: Arc::clone(self), counter })
    }
}

/// Counts within a sliding interval, by two that stand: what the older one is still worth is in proportion to how much of
/// it the interval covers.
#[derive(Debug, Default)]
struct Recent {
    since: Option<Instant>,
    current: u32,
    previous: u32,
}

impl Recent {
    fn roll(&mut self, now: Instant, interval: Duration) {
        let age = self.since.map(|since| now.saturating_duration_since(since));
        match age {
            Some(age) if age < interval => {}
            Some(age) if age < interval * 2 => {
                self.since = self.since.map(|since| since + interval);
                self.previous = std::mem::take(&mut self.current);
            }
            _ => *self = Self { since: Some(now), current: 0, previous: 0 },
        }
    }

    fn estimate(&mut self, now: Instant, interval: Duration) -> f64 {
        self.roll(now, interval);
        let age = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let covered = 1.0 - (age.as_secs_f64() / interval.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0);
        f64::from(self.current) + f64::from(self.previous) * covered
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
    /// The cluster of `config`, which takes over from `previous` its counters, its TLS as far as that is the same, its
    /// endpoints as far as it still has them, with what is known of them, and resolved addresses if the names are the
    /// same. `previous` itself if nothing has changed.
    pub fn build(
        config: &Arc<snapshot::Cluster>,
        credentials: &Credentials,
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let tls = ClusterTls::build(config, credentials, previous.map(|previous| &previous.tls));
        let config = Arc::clone(config);
        let Some(previous) = previous else {
            let cluster =
                Self { balancer: ArcSwap::default(), balancing: Mutex::default(), usage: Arc::default(), config, tls };
            cluster.replace(|known| {
                initial(&cluster.config.endpoints).map_or_else(Members::default, |targets| members(targets, known))
            });
            return Arc::new(cluster);
        };
        let same_config = Arc::ptr_eq(&config, &previous.config);
        if same_config && tls.is_same(&previous.tls) {
            return Arc::clone(previous);
        }
        let before = previous.balancer.load_full();
        let cluster = Self {
            balancer: ArcSwap::new(Arc::clone(&before)),
            balancing: Mutex::default(),
            usage: Arc::clone(&previous.usage),
            config,
            tls,
        };
        let (new, old) = (&*cluster.config, &*previous.config);
        let members = if new.endpoints == old.endpoints {
            Arc::clone(&before.members)
        } else {
            match initial(&new.endpoints) {
                Some(targets) => Arc::new(members(targets, &before.members)),
                // As Envoy, which serves with the old cluster until the new one has resolved its names; but nobody is
                // spoken to in another way than the configuration has said.
                None if new.tls == old.tls && new.proxy_protocol == old.proxy_protocol => Arc::clone(&before.members),
                None => Arc::default(),
            }
        };
        let is_balanced_alike = new.balancing == old.balancing && new.outlier_detection == old.outlier_detection;
        if !(is_balanced_alike && Arc::ptr_eq(&members, &before.members)) {
            cluster.rebalance(members, &before);
        }
        Arc::new(cluster)
    }

    /// The endpoints of this moment.
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.balancer.load().members)
    }

    /// The hosts that may be asked for, if they are resolved on demand.
    pub fn dynamic(&self) -> Option<&DynamicDns> {
        match &self.config.endpoints {
            Endpoints::Dynamic(dns) => Some(dns),
            _ => None,
        }
    }

    /// Whether requests may be sent: not before names were resolved for the first time (or failed).
    pub fn is_ready(&self) -> bool {
        self.balancer.load().members.ready
    }

    /// Whether the cluster has an endpoint at `address`.
    pub fn has_endpoint(&self, address: &Address) -> bool {
        self.balancer.load().members.list.iter().any(|member| member.endpoint.address == *address)
    }

    /// Replaces the endpoints after name resolution, in the resolver's order.
    pub fn set_endpoints(&self, targets: Vec<Target>) {
        self.replace(|known| members(targets, known));
    }

    /// The endpoint for a request. `None` without one that may be used.
    pub fn pick(&self, pick: Pick<'_>, random: impl FnMut(u64) -> u64) -> Option<Arc<Endpoint>> {
        let balancer = self.balancer.load();
        if balancer.ejections == self.usage.ejections() {
            return balancer.pick(pick, random);
        }
        drop(balancer);
        // Somebody was ejected or may return. One request sees to it; for others the old balancer will do meanwhile.
        if let Ok(_one_at_a_time) = self.balancing.try_lock() {
            self.catch_up();
        }
        self.balancer.load().pick(pick, random)
    }

    /// Takes note of what came of a request or connection to `endpoint`, and ejects it if it fails too often.
    pub fn report(&self, endpoint: &Endpoint, outcome: Outcome) {
        let Some(settings) = &self.config.outlier_detection else { return };
        let Some(detector) = endpoint.health.count(outcome, settings) else { return };
        let _one_at_a_time = self.usage.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let ejected = outlier::eject(endpoint, &self.members().list, settings);
        if ejected {
            self.usage.ejected(1);
        }
        outlier::log(self, endpoint, detector, ejected);
    }

    /// Lets endpoints return whose time is over; which ones.
    pub fn look_again(&self) -> Vec<Arc<Endpoint>> {
        let settings = self.config.outlier_detection.as_deref();
        if settings.is_none() && self.usage.ejections() == 0 {
            return Vec::new();
        }
        let _one_at_a_time = self.usage.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let returned = outlier::look_again(&self.members().list, settings);
        if !returned.is_empty() {
            self.usage.ejected(0);
            let _one_at_a_time = self.balancing.lock().unwrap_or_else(PoisonError::into_inner);
            self.catch_up();
        }
        returned
    }

    /// Writes to `page` how many endpoints are and were ejected; nothing without outlier detection.
    pub fn expose(&self, name: &ClusterName, page: &mut Page) {
        if self.config.outlier_detection.is_none() {
            return;
        }
        let labels = [("cluster_name", name.as_str())];
        let ejected = self.members().list.iter().filter(|member| member.endpoint.health.is_ejected()).count();
        page.counter("fairlead_outlier_ejections_total", &labels, self.usage.ejections_total.load(Ordering::Relaxed));
        page.gauge("fairlead_outlier_ejections_active", &labels, ejected as u64);
    }

    /// Puts what `change` makes of the endpoints in their place, unless it is the same.
    fn replace(&self, change: impl FnOnce(&Members) -> Members) {
        let _one_at_a_time = self.balancing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.balancer.load_full();
        let members = change(&before.members);
        if !members.is_same(&before.members) {
            self.rebalance(Arc::new(members), &before);
        }
    }

    /// Puts a balancer in place that knows of all ejections. The caller holds the lock.
    fn catch_up(&self) {
        let before = self.balancer.load_full();
        if before.ejections != self.usage.ejections() {
            self.rebalance(Arc::clone(&before.members), &before);
        }
    }

    fn rebalance(&self, members: Arc<Members>, before: &Balancer) {
        // Read before the endpoints are looked at: whoever is ejected meanwhile makes this one stale, too.
        let ejections = self.usage.ejections();
        let panic_percent = self.config.outlier_detection.as_ref().map(|settings| settings.panic_percent);
        let balancing = &self.config.balancing;
        let balancer =
            Balancer::new(members, ejections, balancing, panic_percent, Some(before), rand::random::<u32>() as usize);
        self.balancer.store(Arc::new(balancer));
    }
}

/// The endpoints at `targets`, with those of `known` that are among them.
fn members(targets: Vec<Target>, known: &Members) -> Members {
    let known: AHashMap<&Address, &Arc<Endpoint>> =
        known.list.iter().map(|member| (&member.endpoint.address, &member.endpoint)).collect();
    let mut seen = AHashSet::with_capacity(targets.len());
    let mut list = Vec::with_capacity(targets.len());
    for Target { address, alternatives, weight, placement } in targets {
        // As in Envoy, an address counts once, with what is said of it first.
        if !seen.insert(address.clone()) {
            continue;
        }
        let endpoint = match known.get(&address) {
            Some(&known) => {
                known.set_alternatives(alternatives);
                Arc::clone(known)
            }
            None => Arc::new(Endpoint::with_alternatives(address, alternatives)),
        };
        list.push(Member { endpoint, weight, placement });
    }
    Members { ready: true, list }
}

/// What the endpoints are before any name is resolved; `None` if nothing is known.
fn initial(endpoints: &Endpoints) -> Option<Vec<Target>> {
    match endpoints {
        Endpoints::Static(list) => Some(list.iter().map(Target::from).collect()),
        // An IP literal needs no resolver.
        Endpoints::StrictDns(names) => names.iter().map(literal).collect(),
        Endpoints::LogicalDns(name) => literal(name).map(|only| vec![only]),
        // Every request brings its own.
        Endpoints::Dynamic(_) => Some(Vec::new()),
    }
}

fn literal(name: &snapshot::DnsEndpoint) -> Option<Target> {
    let snapshot::DnsEndpoint { host, port, weight, placement } = name;
    let ip = host.parse().ok()?;
    let address = Address::Ip(SocketAddr::new(ip, *port));
    let (weight, placement) = ((*weight).max(1), placement.clone());
    Some(Target { address, alternatives: Vec::new(), weight, placement })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests;
