//! Upstream connections of one worker, by cluster, endpoint, protocol and TLS.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;
use config::snapshot::cluster::{ClusterName, Endpoints};
use tokio::sync::Notify;

use super::cluster::{Cluster, ClusterTls};
use super::connection::{Purpose, Way};
use super::endpoint::Address;
use super::on_demand::Resolver;
use super::{Stream, connection, h1, h2};
use crate::request::ConnectionFacts;
use crate::response::Reset;
use crate::state::State;
use crate::tls::client::{Application, Client};
use crate::tls::credentials::is_same;

/// Idle connections kept for one place, whatever they are for: clients choose the names, and are many.
const MAX_IDLE: usize = 1024;

/// The pools of a worker.
#[derive(Debug)]
pub struct Pools {
    /// Tells all workers that somebody waits for a connection that may be idle with one of them.
    crowded: Arc<Notify>,
    /// Knows the addresses of hosts that are resolved on demand.
    pub resolver: Resolver,
    h1: RefCell<AHashMap<Place, Idle<h1::Connection>>>,
    h2: RefCell<AHashMap<Key, Rc<Shared2>>>,
}

/// What a request needs a connection for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    place: Place,
    address: Address,
    purpose: Purpose,
}

/// An endpoint and how to speak with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    cluster: ClusterName,
    /// `None`: any host that is resolved on demand.
    endpoint: Option<Address>,
    tls: Option<Tls>,
}

/// Connections that were made with other settings or other certificates are not for this request.
#[derive(Debug, Clone)]
struct Tls(Arc<Client>);

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tls {}

impl Hash for Tls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl Key {
    /// For a request to `authority`, the host after rewrites, that came on `connection`.
    pub fn new(cluster: &Cluster, address: &Address, authority: &[u8], connection: &ConnectionFacts) -> Self {
        let client = cluster.tls.client();
        let (endpoint, host) = match address {
            Address::Host(name, _) => (None, Some(Arc::clone(name))),
            _ => (Some(address.clone()), client.and_then(|client| client.server_name(authority))),
        };
        let tls = client.map(|client| Tls(Arc::clone(client)));
        let place = Place { cluster: cluster.config.name.clone(), endpoint, tls };
        Self { place, address: address.clone(), purpose: Purpose::new(cluster, connection, host) }
    }
}

/// Connections that nobody uses, each with what it is for; the most recently used last.
#[derive(Debug)]
struct Idle<C>(VecDeque<(Key, C)>);

impl<C> Default for Idle<C> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<C> Idle<C> {
    /// The most recently used one for `key`.
    fn take(&mut self, key: &Key) -> Option<C> {
        let position = self.0.iter().rposition(|(other, _)| other == key)?;
        self.0.remove(position).map(|(_, connection)| connection)
    }

    /// Keeps `connection`; what has to give way to it.
    fn put(&mut self, key: Key, connection: C) -> Option<C> {
        let oldest = if self.0.len() < MAX_IDLE { None } else { self.0.pop_front() };
        self.0.push_back((key, connection));
        oldest.map(|(_, connection)| connection)
    }
}

/// The HTTP/2 connections to one endpoint.
#[derive(Debug, Default)]
struct Shared2 {
    connections: RefCell<Vec<h2::Connection>>,
    /// Held while a connection is being opened, so that one serves all who wait.
    opening: tokio::sync::Mutex<()>,
    /// Counts failures to open one, and the last of them: those who waited for it fail with it.
    failures: Cell<u64>,
    last_failure: RefCell<Option<Reset>>,
}

impl Pools {
    /// Empty pools. `crowded` is shared by all workers, which sweep their pools when it is signalled.
    pub fn new(crowded: Arc<Notify>, resolver: Resolver) -> Self {
        Self { crowded, resolver, h1: RefCell::default(), h2: RefCell::default() }
    }

    /// A stream for one request, on a pooled connection or a new one, to one of `alternatives` if the key's address
    /// can't be reached.
    ///
    /// # Errors
    /// The connect failed or took too long, a limit of the cluster is reached, or its TLS has no usable credential: then
    /// a connection from before, in plaintext, must not be used either.
    pub async fn acquire(
        &self,
        cluster: &Arc<Cluster>,
        key: &Key,
        alternatives: &[SocketAddr],
        http2: bool,
    ) -> Result<Stream, Reset> {
        if let ClusterTls::Unavailable(_) = cluster.tls {
            return Err(Reset::ConnectionFailure(Cow::Borrowed(connection::NO_SECRET)));
        }
        let way = Way { address: &key.address, alternatives, resolver: &self.resolver };
        if http2 { self.acquire_h2(key, way, cluster).await } else { self.acquire_h1(key, way, cluster).await }
    }

    async fn acquire_h1(&self, key: &Key, way: Way<'_>, cluster: &Arc<Cluster>) -> Result<Stream, Reset> {
        if let Some(connection) = self.checkout(key, cluster) {
            return Ok(Stream::H1(Box::new(connection.begin())));
        }
        let limits = &cluster.config.limits;
        let _pending =
            cluster.usage.acquire(|usage| &usage.pending, limits.max_pending_requests).ok_or(Reset::Overflow)?;
        loop {
            let freed = cluster.usage.freed.notified();
            if let Some(permit) = cluster.usage.acquire(|usage| &usage.connections, limits.max_connections) {
                let transport = connection::connect(cluster, way, Application::Http1, &key.purpose).await?;
                let tls = connection::tls_facts(cluster, &transport);
                return Ok(Stream::H1(Box::new(h1::Connection::new(transport, tls, permit).begin())));
            }
            // Idle connections of other workers and endpoints make room.
            self.crowded.notify_waiters();
            self.close_idle_of(&key.place.cluster);
            if cluster.usage.is_crowded(limits.max_connections) {
                freed.await;
            }
            if let Some(connection) = self.checkout(key, cluster) {
                return Ok(Stream::H1(Box::new(connection.begin())));
            }
        }
    }

    async fn acquire_h2(&self, key: &Key, way: Way<'_>, cluster: &Arc<Cluster>) -> Result<Stream, Reset> {
        let limits = &cluster.config.limits;
        let slot = Rc::clone(self.h2.borrow_mut().entry(key.clone()).or_default());
        let usable = |slot: &Shared2| {
            let mut connections = slot.connections.borrow_mut();
            connections.retain(|connection| {
                connection.is_usable(limits.max_requests_per_connection, limits.max_connection_duration)
            });
            connections.iter().find(|connection| connection.has_room(limits.max_concurrent_streams)).cloned()
        };
        if let Some(connection) = usable(&slot) {
            return begin_h2(&connection).await;
        }
        let _pending =
            cluster.usage.acquire(|usage| &usage.pending, limits.max_pending_requests).ok_or(Reset::Overflow)?;
        let failures = slot.failures.get();
        let _opening = slot.opening.lock().await;
        let permit = loop {
            let freed = cluster.usage.freed.notified();
            if let Some(connection) = usable(&slot) {
                return begin_h2(&connection).await;
            }
            if slot.failures.get() != failures
                && let Some(failure) = slot.last_failure.borrow().clone()
            {
                return Err(failure);
            }
            if let Some(permit) = cluster.usage.acquire(|usage| &usage.connections, limits.max_connections) {
                break permit;
            }
            // Idle connections of other workers and endpoints make room.
            self.crowded.notify_waiters();
            self.close_idle_of(&key.place.cluster);
            if cluster.usage.is_crowded(limits.max_connections) {
                freed.await;
            }
        };
        let usage = Arc::clone(&cluster.usage);
        let opened = async {
            let transport = connection::connect(cluster, way, Application::Http2, &key.purpose).await?;
            let tls = connection::tls_facts(cluster, &transport);
            h2::Connection::open(transport, tls, permit, limits, usage).await
        };
        let opened = tokio::time::timeout(cluster.config.connect_timeout, opened).await;
        match opened.unwrap_or(Err(Reset::ConnectionTimeout)) {
            Ok(connection) => {
                if key.purpose.host.is_some() || key.purpose.client.is_some() {
                    self.make_room_h2(&key.place);
                }
                slot.connections.borrow_mut().push(connection.clone());
                begin_h2(&connection).await
            }
            Err(failure) => {
                slot.failures.set(failures + 1);
                *slot.last_failure.borrow_mut() = Some(failure.clone());
                Err(failure)
            }
        }
    }

    /// Closes the connections that are idle longest, whatever they are for, so that there may be one more.
    fn make_room_h2(&self, place: &Place) {
        let slots = self.slots(|other| other == place);
        let mut idle: Vec<Instant> = Vec::new();
        for slot in &slots {
            let connections = slot.connections.borrow();
            idle.extend(connections.iter().filter(|it| it.is_idle()).map(h2::Connection::idle_since));
        }
        let Some(excess) = idle.len().checked_sub(MAX_IDLE) else { return };
        let (_, latest, _) = idle.select_nth_unstable(excess);
        for slot in slots {
            slot.connections.borrow_mut().retain(|it| !it.is_idle() || it.idle_since() > *latest);
        }
    }

    /// An idle connection that is still good, the most recently used first.
    fn checkout(&self, key: &Key, cluster: &Cluster) -> Option<h1::Connection> {
        let limits = &cluster.config.limits;
        let mut pools = self.h1.borrow_mut();
        let idle = pools.get_mut(&key.place)?;
        while let Some(mut connection) = idle.take(key) {
            let fresh = limits.idle_timeout.is_none_or(|limit| connection.idle_since.elapsed() < limit)
                && limits.max_connection_duration.is_none_or(|limit| connection.opened.elapsed() < limit);
            if fresh && connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    /// Takes back the connection of a finished request, if it can be used again.
    pub fn give_back(&self, cluster: &Arc<Cluster>, key: Key, stream: Stream) {
        let Stream::H1(stream) = stream else { return };
        let Some(connection) = stream.into_reusable() else { return };
        let limits = &cluster.config.limits;
        let spent = limits.max_requests_per_connection > 0 && connection.requests >= limits.max_requests_per_connection;
        if spent {
            return;
        }
        let oldest = {
            let mut pools = self.h1.borrow_mut();
            match pools.get_mut(&key.place) {
                Some(idle) => idle.put(key, connection),
                None => pools.entry(key.place.clone()).or_default().put(key, connection),
            }
        };
        drop(oldest);
        // Somebody waits for a connection: on this worker it finds this one, on another it needs its place.
        if cluster.usage.is_crowded(limits.max_connections) {
            cluster.usage.freed.notify_waiters();
            self.crowded.notify_waiters();
        }
    }

    /// Closes idle connections of one cluster, to make room for others.
    fn close_idle_of(&self, cluster: &ClusterName) {
        // Dropped after the pools are free again: a dropped connection wakes those who wait.
        let h1: Vec<_> = self.h1.borrow_mut().extract_if(|place, _| place.cluster == *cluster).collect();
        drop(h1);
        let slots = self.slots(|place| place.cluster == *cluster);
        for slot in slots {
            slot.connections.borrow_mut().retain(|connection| !connection.is_idle());
        }
    }

    fn slots(&self, of: impl Fn(&Place) -> bool) -> Vec<Rc<Shared2>> {
        self.h2.borrow().iter().filter(|(key, _)| of(&key.place)).map(|(_, slot)| Rc::clone(slot)).collect()
    }

    /// Closes connections that the upstream has closed, that are idle for too long, or whose endpoint is gone.
    pub fn sweep(&self, state: &State) {
        let now = Instant::now();
        self.h1.borrow_mut().retain(|place, idle| {
            let Some(cluster) = serving(state, place) else { return false };
            let limits = &cluster.config.limits;
            let crowded = cluster.usage.is_crowded(limits.max_connections);
            idle.0.retain_mut(|(_, connection)| {
                !crowded
                    && limits.idle_timeout.is_none_or(|limit| now.duration_since(connection.idle_since) < limit)
                    && limits.max_connection_duration.is_none_or(|limit| connection.opened.elapsed() < limit)
                    && connection.is_usable()
            });
            !idle.0.is_empty()
        });
        self.h2.borrow_mut().retain(|key, slot| {
            let cluster = serving(state, &key.place);
            let mut connections = slot.connections.borrow_mut();
            connections.retain(|connection| {
                let Some(cluster) = cluster else { return !connection.is_idle() };
                let limits = &cluster.config.limits;
                let expired = limits
                    .idle_timeout
                    .is_some_and(|limit| connection.is_idle() && now.duration_since(connection.idle_since()) >= limit);
                let unwanted = connection.is_idle() && cluster.usage.is_crowded(limits.max_connections);
                !expired
                    && !unwanted
                    && connection.is_usable(limits.max_requests_per_connection, limits.max_connection_duration)
            });
            !connections.is_empty() || Rc::strong_count(slot) > 1
        });
    }
}

/// The cluster of a pool, if it still has the endpoint and the same TLS.
fn serving<'s>(state: &'s State, place: &Place) -> Option<&'s Arc<Cluster>> {
    let cluster = state.clusters.get(&place.cluster)?;
    let same_tls = is_same(cluster.tls.client(), place.tls.as_ref().map(|tls| &tls.0));
    let same_endpoint = || match &place.endpoint {
        // Idle time ends what nobody asks for any more.
        None => matches!(cluster.config.endpoints, Endpoints::Dynamic(_)),
        Some(address) => cluster.has_endpoint(address),
    };
    let has_tls = !matches!(cluster.tls, ClusterTls::Unavailable(_));
    (has_tls && same_tls && same_endpoint()).then_some(cluster)
}

async fn begin_h2(connection: &h2::Connection) -> Result<Stream, Reset> {
    connection.begin().await.map(|stream| Stream::H2(Box::new(stream)))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use config::snapshot::cluster as snapshot;
    use config::snapshot::cluster::ServiceIdentity;

    use super::*;
    use crate::tls::credentials::Credentials;

    /// What requests for any host on port 80 need, by number.
    fn for_any_host(cluster: &Cluster, number: usize) -> Key {
        let name: Arc<str> = format!("n{number}.example.com").into();
        Key::new(cluster, &Address::Host(name, 80), b"", &ConnectionFacts::unknown())
    }

    #[test]
    fn idle_connections_are_bounded_over_all_names() {
        let service = ServiceIdentity { host: "*".into(), name: "*".into(), namespace: "egress".into() };
        let name = ClusterName::outbound(80, "", "*.example.com");
        let endpoints = Endpoints::Dynamic(snapshot::DynamicDns { suffix: ".example.com".into(), port: 0 });
        let config = snapshot::Cluster::new(name, Arc::new(service), 80, endpoints);
        let cluster = Cluster::build(&Arc::new(config), &Credentials::default(), None);
        let key = |number| for_any_host(&cluster, number);

        // Names that clients choose share their bounds; endpoints have each their own.
        assert_eq!(key(0).place, key(1).place);
        let at = |port| Address::Ip((Ipv4Addr::LOCALHOST, port).into());
        let known = |port| Key::new(&cluster, &at(port), b"", &ConnectionFacts::unknown());
        assert_ne!(known(80).place, known(81).place);

        let mut idle = Idle::default();
        for number in 0..MAX_IDLE {
            assert_eq!(idle.put(key(number), number), None);
        }
        assert_eq!(idle.put(key(0), MAX_IDLE), Some(0), "the oldest gives way");
        assert_eq!(idle.put(key(7), MAX_IDLE + 1), Some(1));
        assert_eq!(idle.0.len(), MAX_IDLE);
        // For its own name and port only, the most recently used first.
        assert_eq!(idle.take(&known(80)), None);
        let elsewhere = Address::Host("n7.example.com".into(), 81);
        assert_eq!(idle.take(&Key::new(&cluster, &elsewhere, b"", &ConnectionFacts::unknown())), None);
        assert_eq!([7; 3].map(|number| idle.take(&key(number))), [Some(MAX_IDLE + 1), Some(7), None]);
    }
}
