//! The immutable runtime form of a configuration, with its pure match functions.
//!
//! A [`Snapshot`] is complete: whoever holds one can decide every request without asking anything else. Nothing in it
//! parses, reads a clock or does I/O. Parts that did not change between two compiles are the same `Arc`.

pub mod balancing;
pub mod cluster;
pub mod egress;
pub mod format;
pub mod header;
pub mod host;
pub mod listener;
pub mod matcher;
pub mod mesh;
pub mod render;
pub mod route;
pub mod route_index;
pub mod secret;
pub mod telemetry;
pub mod tls;

use std::fmt;
use std::sync::Arc;

use ahash::AHashMap;

use cluster::{Cluster, ClusterName};
use listener::Listener;
use mesh::Mesh;
use secret::Secrets;

/// Everything that the data plane needs to know, as of one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Listeners in the order of their key: bind address, then port.
    pub listeners: Vec<Arc<Listener>>,
    /// Clusters by name. A route that names a cluster which is absent here answers 503 with flag `NC`.
    /// The same `Arc` as long as none of them changes.
    pub clusters: Arc<AHashMap<ClusterName, Arc<Cluster>>>,
    /// Where credentials are looked up. The same `Arc` as long as none of them changes.
    pub secrets: Arc<Secrets>,
    /// Settings of the whole gateway.
    pub mesh: Arc<Mesh>,
    /// Policies that can't be honoured. While there is one, every request of this gateway answers 503: security fails
    /// closed.
    pub refusals: Vec<Refusal>,
}

/// Why the gateway refuses to serve: a security resource that selects it and can't be enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The resource in question.
    pub resource: ResourceName,
    /// What is wrong with it, for the log and the admin page. Never sent to a client.
    pub reason: String,
}

/// Kind, namespace and name of the resource that a part of the snapshot comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceName {
    /// `VirtualService`, `Gateway` ...
    pub kind: &'static str,
    /// Namespace, never empty.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}
