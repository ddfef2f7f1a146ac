//! What the data plane serves: one [`State`], swapped as a whole.

use std::sync::Arc;

use ahash::AHashMap;
use config::snapshot::Snapshot;
use config::snapshot::cluster::ClusterName;
use config::snapshot::listener::Bind;

use crate::listener::chains::Chains;
use crate::tls::credentials::Credentials;
use crate::upstream::cluster::Cluster;

/// A snapshot with the runtime clusters that serve it. A request pins the `Arc` it began with.
#[derive(Debug, Default)]
pub struct State {
    /// Counts swaps; 0 is the empty state before the first load.
    pub generation: u64,
    /// The compiled configuration.
    pub snapshot: Arc<Snapshot>,
    /// The filter chains of the snapshot's listeners, by key.
    pub listeners: AHashMap<ListenerKey, Arc<Chains>>,
    /// Runtime clusters, one for each of the snapshot's. The same `Arc` as long as the snapshot's is.
    pub clusters: Arc<AHashMap<ClusterName, Arc<Cluster>>>,
}

/// What identifies a listener across reloads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerKey {
    /// Bind address.
    pub bind: Bind,
    /// Port as the Gateway says; 0 for unix sockets.
    pub port: u16,
}

impl State {
    /// The state for `snapshot`, which takes over from `previous` every cluster that did not change, with its
    /// connections, counters and resolved addresses, and likewise every filter chain.
    pub fn build(snapshot: Arc<Snapshot>, credentials: &Credentials, previous: &Self) -> Self {
        let listeners = snapshot.listeners.iter().map(|listener| {
            let key = ListenerKey { bind: listener.bind.clone(), port: listener.port };
            let chains = Chains::build(listener, credentials, previous.listeners.get(&key));
            (key, chains)
        });
        let listeners = listeners.collect();
        let clusters = if is_same_plaintext(&snapshot, previous) {
            Arc::clone(&previous.clusters)
        } else {
            let clusters = snapshot
                .clusters
                .iter()
                .map(|(name, config)| (name.clone(), Cluster::build(config, credentials, previous.clusters.get(name))));
            Arc::new(clusters.collect())
        };
        Self { generation: previous.generation + 1, snapshot, listeners, clusters }
    }
}

/// Whether clusters are what they were, whatever has become of credentials.
fn is_same_plaintext(snapshot: &Snapshot, previous: &State) -> bool {
    Arc::ptr_eq(&snapshot.clusters, &previous.snapshot.clusters)
        && snapshot.clusters.values().all(|cluster| cluster.tls.is_none())
}
