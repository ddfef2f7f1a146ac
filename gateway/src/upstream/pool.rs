//! Upstream connections of one worker, by cluster, endpoint, protocol and TLS.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;
use config::snapshot::cluster::ClusterName;
use tokio::sync::Notify;

use super::cluster::{Address, Cluster, ClusterTls};
use super::{Stream, connection, h1, h2};
use crate::response::Reset;
use crate::state::State;
use crate::tls::client::{Application, Client};
use crate::tls::credentials::is_same;

/// Idle connections kept for one endpoint.
const MAX_IDLE: usize = 1024;

/// The pools of a worker.
#[derive(Debug)]
pub struct Pools {
    /// Tells all workers that somebody waits for a connection that may be idle with one of them.
    crowded: Arc<Notify>,
    h1: RefCell<AHashMap<Key, VecDeque<h1::Connection>>>,
    h2: RefCell<AHashMap<Key, Rc<Shared2>>>,
}

/// What a request needs a connection for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    cluster: ClusterName,
    address: Address,
    tls: Option<TlsKey>,
}

/// Connections that were made with other settings, other certificates or for another name are not for this request.
#[derive(Debug, Clone)]
struct TlsKey {
    client: Arc<Client>,
    server_name: Option<Arc<str>>,
}

impl PartialEq for TlsKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.client, &other.client) && self.server_name == other.server_name
    }
}

impl Eq for TlsKey {}

impl Hash for TlsKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.client).hash(state);
        self.server_name.hash(state);
    }
}

impl Key {
    /// For a request to `authority`, the host after rewrites.
    pub fn new(cluster: &Cluster, address: &Address, authority: &[u8]) -> Self {
        let tls = cluster
            .tls
            .client()
            .map(|client| TlsKey { client: Arc::clone(client), server_name: client.server_name(authority) });
        Self { cluster: cluster.config.name.clone(), address: address.clone(), tls }
    }

    fn server_name(&self) -> Option<&str> {
        self.tls.as_ref()?.server_name.as_deref()
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
    pub fn new(crowded: Arc<Notify>) -> Self {
        Self { crowded, h1: RefCell::default(), h2: RefCell::default() }
    }

    /// A stream for one request, on a pooled connection or a new one.
    ///
    /// # Errors
    /// The connect failed or took too long, a limit of the cluster is reached, or its TLS has no usable credential: then
    /// a connection from before, in plaintext, must not be used either.
    pub async fn acquire(&self, cluster: &Arc<Cluster>, key: &Key, http2: bool) -> Result<Stream, Reset> {
        if let ClusterTls::Unavailable(_) = cluster.tls {
            return Err(Reset::ConnectionFailure(Cow::Borrowed(connection::NO_SECRET)));
        }
        if http2 { self.acquire_h2(key, cluster).await } else { self.acquire_h1(key, cluster).await }
    }

    async fn acquire_h1(&self, key: &Key, cluster: &Arc<Cluster>) -> Result<Stream, Reset> {
        if let Some(connection) = self.checkout(key, cluster) {
            return Ok(Stream::H1(Box::new(connection.begin())));
        }
        let limits = &cluster.config.limits;
        let _pending =
            cluster.usage.acquire(|usage| &usage.pending, limits.max_pending_requests).ok_or(Reset::Overflow)?;
        loop {
            let freed = cluster.usage.freed.notified();
            if let Some(permit) = cluster.usage.acquire(|usage| &usage.connections, limits.max_connections) {
                let name = key.server_name();
                let transport = connection::connect(cluster, &key.address, Application::Http1, name).await?;
                let tls = connection::tls_facts(cluster, &transport);
                return Ok(Stream::H1(Box::new(h1::Connection::new(transport, tls, permit).begin())));
            }
            // Idle connections of other workers and endpoints make room.
            self.crowded.notify_waiters();
            self.close_idle_of(&key.cluster);
            if cluster.usage.is_crowded(limits.max_connections) {
                freed.await;
            }
            if let Some(connection) = self.checkout(key, cluster) {
                return Ok(Stream::H1(Box::new(connection.begin())));
            }
        }
    }

    async fn acquire_h2(&self, key: &Key, cluster: &Arc<Cluster>) -> Result<Stream, Reset> {
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
            self.close_idle_of(&key.cluster);
            if cluster.usage.is_crowded(limits.max_connections) {
                freed.await;
            }
        };
        let usage = Arc::clone(&cluster.usage);
        let opened = async {
            let name = key.server_name();
            let transport = connection::connect(cluster, &key.address, Application::Http2, name).await?;
            let tls = connection::tls_facts(cluster, &transport);
            h2::Connection::open(transport, tls, permit, limits.max_concurrent_streams, usage).await
        };
        let opened = tokio::time::timeout(cluster.config.connect_timeout, opened).await;
        match opened.unwrap_or(Err(Reset::ConnectionTimeout)) {
            Ok(connection) => {
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

    /// An idle connection that is still good, the most recently used first.
    fn checkout(&self, key: &Key, cluster: &Cluster) -> Option<h1::Connection> {
        let limits = &cluster.config.limits;
        let mut pools = self.h1.borrow_mut();
        let idle = pools.get_mut(key)?;
        while let Some(mut connection) = idle.pop_back() {
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
        let mut pools = self.h1.borrow_mut();
        let idle = pools.entry(key).or_default();
        if idle.len() < MAX_IDLE {
            idle.push_back(connection);
        }
        // Somebody waits for a connection: on this worker it finds this one, on another it needs its place.
        if cluster.usage.is_crowded(limits.max_connections) {
            cluster.usage.freed.notify_waiters();
            self.crowded.notify_waiters();
        }
    }

    /// Closes idle connections of one cluster, to make room for others.
    fn close_idle_of(&self, cluster: &ClusterName) {
        // Dropped after the pools are free again: a dropped connection wakes those who wait.
        let h1: Vec<_> = self.h1.borrow_mut().extract_if(|key, _| key.cluster == *cluster).collect();
        drop(h1);
        let slots: Vec<_> = self
            .h2
            .borrow()
            .iter()
            .filter(|(key, _)| key.cluster == *cluster)
            .map(|(_, slot)| Rc::clone(slot))
            .collect();
        for slot in slots {
            slot.connections.borrow_mut().retain(|connection| !connection.is_idle());
        }
    }

    /// Closes connections that the upstream has closed, that are idle for too long, or whose endpoint is gone.
    pub fn sweep(&self, state: &State) {
        let now = Instant::now();
        self.h1.borrow_mut().retain(|key, idle| {
            let Some(cluster) = serving(state, key) else { return false };
            let limits = &cluster.config.limits;
            let crowded = cluster.usage.is_crowded(limits.max_connections);
            idle.retain_mut(|connection| {
                !crowded
                    && limits.idle_timeout.is_none_or(|limit| now.duration_since(connection.idle_since) < limit)
                    && limits.max_connection_duration.is_none_or(|limit| connection.opened.elapsed() < limit)
                    && connection.is_usable()
            });
            !idle.is_empty()
        });
        self.h2.borrow_mut().retain(|key, slot| {
            let cluster = serving(state, key);
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
fn serving<'s>(state: &'s State, key: &Key) -> Option<&'s Arc<Cluster>> {
    let cluster = state.clusters.get(&key.cluster)?;
    let same_tls = is_same(cluster.tls.client(), key.tls.as_ref().map(|tls| &tls.client));
    let same_endpoint = || cluster.endpoints().endpoints.iter().any(|endpoint| endpoint.address == key.address);
    let has_tls = !matches!(cluster.tls, ClusterTls::Unavailable(_));
    (has_tls && same_tls && same_endpoint()).then_some(cluster)
}

async fn begin_h2(connection: &h2::Connection) -> Result<Stream, Reset> {
    connection.begin().await.map(|stream| Stream::H2(Box::new(stream)))
}
