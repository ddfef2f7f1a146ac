//! Settings of the whole gateway, from MeshConfig and ProxyConfig.

use std::time::Duration;

use super::telemetry::AccessLog;

/// What MeshConfig and ProxyConfig say about the whole gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    /// Time a removed listener's connections get to finish (`drainDuration`).
    pub drain: Duration,
    /// Time from SIGTERM to exit (`terminationDrainDuration`).
    pub termination_drain: Duration,
    /// How long a failed name resolution waits for its next try, and the longest time an answer is used
    /// (`dnsRefreshRate`).
    pub dns_refresh: Duration,
    /// Access log of the gateway; `None` = off.
    pub access_log: Option<AccessLog>,
    /// `%ENVIRONMENT(X)%` values that a format string of this snapshot asks for are read by the gateway, not here.
    pub domain: String,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(45),
            termination_drain: Duration::from_secs(5),
            dns_refresh: Duration::from_secs(60),
            access_log: None,
            domain: "cluster.local".to_owned(),
        }
    }
}
