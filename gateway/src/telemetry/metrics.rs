//! Counters, gauges and histograms, and the page on which Prometheus reads them.
//!
//! Names that begin with `istio_` are Istio's, with its labels; what Istio has no name for begins with `fairlead_`.

mod certificates;
mod handshakes;
mod labels;
mod page;
mod requests;
mod tcp;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use certificates::{CertificateExpiry, Certificates};
pub use handshakes::{HandshakeFailure, Handshakes};
pub use page::Page;
pub use requests::Requests;
pub use tcp::{TcpConnections, TcpCounts};

/// Who reports: this gateway, as the labels `source_*` say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Name of the Deployment.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// `Kubernetes`, unless said otherwise.
    pub cluster: String,
    /// Labels of the gateway.
    pub labels: BTreeMap<String, String>,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests, by Istio's labels.
    pub requests: Requests,
    /// Raw TCP connections, by Istio's labels.
    pub tcp: TcpConnections,
    /// Downstream connections.
    pub connections: Arc<Connections>,
    /// TLS handshakes with clients.
    pub handshakes: Handshakes,
    /// Reloads.
    pub reloads: Reloads,
    /// Listening addresses.
    pub listeners: ListenerCounts,
    /// Certificates in use.
    pub certificates: Certificates,
    /// Name resolution.
    pub resolutions: Resolutions,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new(source: &Source) -> Self {
        Self { requests: Requests::new(source), tcp: TcpConnections::new(source), ..Self::default() }
    }

    /// Writes everything to `page`.
    pub fn expose(&self, page: &mut Page) {
        page.gauge("istio_build", &[("component", "proxy"), ("tag", VERSION)], 1);
        page.gauge("fairlead_build_info", &[("version", VERSION)], 1);
        self.requests.expose(page);
        self.tcp.expose(page);
        self.connections.expose(page);
        self.handshakes.expose(page);
        self.reloads.expose(page);
        self.listeners.expose(page);
        self.certificates.expose(page);
        self.resolutions.expose(page);
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Open downstream connections and what became of others.
#[derive(Debug)]
pub struct Connections {
    limit: AtomicU64,
    active: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    without_header: AtomicU64,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            limit: AtomicU64::new(DEFAULT_CONNECTION_LIMIT),
            active: AtomicU64::default(),
            accepted: AtomicU64::default(),
            refused: AtomicU64::default(),
            failed: AtomicU64::default(),
            panicked: AtomicU64::default(),
            without_header: AtomicU64::default(),
        }
    }
}

/// Envoy's `overload.global_downstream_max_connections` as Istio sets it.
const DEFAULT_CONNECTION_LIMIT: u64 = 2_147_483_647;

impl Connections {
    /// At most `limit` connections at once.
    pub fn limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Open connections.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Counts a new connection for as long as the permit lives; `None` if there are too many.
    pub fn admit(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let active = self.active.fetch_add(1, Ordering::Relaxed);
        let permit = ConnectionPermit(Arc::clone(self));
        if active >= self.limit.load(Ordering::Relaxed) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Some(permit)
    }

    /// The operating system gave no connection for lack of something.
    pub fn accept_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection ended by a panic.
    pub fn panicked(&self) {
        self.panicked.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection didn't begin with a PROXY protocol header, as it must on its listener.
    pub fn without_header(&self) {
        self.without_header.fetch_add(1, Ordering::Relaxed);
    }

    fn expose(&self, page: &mut Page) {
        page.gauge("fairlead_downstream_connections_active", &[], self.active());
        for (name, counter) in [
            ("fairlead_downstream_connections_total", &self.accepted),
            ("fairlead_downstream_connections_refused_total", &self.refused),
            ("fairlead_accept_failures_total", &self.failed),
            ("fairlead_connection_panics_total", &self.panicked),
            ("fairlead_proxy_protocol_failures_total", &self.without_header),
        ] {
            page.counter(name, &[], counter.load(Ordering::Relaxed));
        }
    }
}

/// One open downstream connection.
#[derive(Debug)]
pub struct ConnectionPermit(Arc<Connections>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What reloads did.
#[derive(Debug, Default)]
pub struct Reloads {
    applied: AtomicU64,
    rejected: AtomicU64,
    durations: Durations,
    last_success: AtomicU64,
    generation: AtomicU64,
    errors: AtomicU64,
    warnings: AtomicU64,
    refusals: AtomicU64,
}

/// What a reload came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReloadOutcome {
    /// The generation that is served.
    pub generation: u64,
    /// Errors in the configuration; what they concern was not applied.
    pub errors: usize,
    /// Warnings in the configuration.
    pub warnings: usize,
    /// Policies that can't be enforced.
    pub refusals: usize,
    /// From the change to the swap.
    pub duration: Duration,
}

impl Reloads {
    /// Counts a reload.
    pub fn record(&self, outcome: &ReloadOutcome) {
        let ReloadOutcome { generation, errors, warnings, refusals, duration } = *outcome;
        if errors == 0 {
            self.applied.fetch_add(1, Ordering::Relaxed);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.last_success.store(now.as_secs(), Ordering::Relaxed);
        } else {
            self.rejected.fetch_add(1, Ordering::Relaxed);
        }
        self.durations.record(duration);
        self.generation.store(generation, Ordering::Relaxed);
        self.errors.store(errors as u64, Ordering::Relaxed);
        self.warnings.store(warnings as u64, Ordering::Relaxed);
        self.refusals.store(refusals as u64, Ordering::Relaxed);
    }

    fn expose(&self, page: &mut Page) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        page.counter("fairlead_reload_total", &[("result", "success")], read(&self.applied));
        page.counter("fairlead_reload_total", &[("result", "rejected")], read(&self.rejected));
        self.durations.expose("fairlead_reload_duration_seconds", page);
        page.gauge("fairlead_reload_last_success_timestamp_seconds", &[], read(&self.last_success));
        page.gauge("fairlead_config_generation", &[], read(&self.generation));
        page.gauge("fairlead_config_diagnostics", &[("severity", "error")], read(&self.errors));
        page.gauge("fairlead_config_diagnostics", &[("severity", "warning")], read(&self.warnings));
        page.gauge("fairlead_config_refusals", &[], read(&self.refusals));
    }
}

/// Upper bounds of the buckets of [`Durations`] in microseconds, and as Prometheus writes them in seconds.
const DURATION_BOUNDS: [(u64, &str); 10] = [
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (10_000_000, "10"),
];

#[derive(Debug, Default)]
struct Durations {
    buckets: [AtomicU64; DURATION_BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Durations {
    fn record(&self, duration: Duration) {
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS.partition_point(|(bound, _)| *bound < microseconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }

    fn expose(&self, name: &'static str, page: &mut Page) {
        let bounds: Vec<&str> = DURATION_BOUNDS.iter().map(|(_, text)| *text).collect();
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let sum = Duration::from_micros(self.microseconds.load(Ordering::Relaxed)).as_secs_f64();
        page.histogram(name, "", &bounds, &counts, sum);
    }
}

/// How many addresses are open, and how many can't be bound.
#[derive(Debug, Default)]
pub struct ListenerCounts {
    bound: AtomicU64,
    failed: AtomicU64,
}

impl ListenerCounts {
    /// Replaces both numbers.
    pub fn set(&self, bound: usize, failed: usize) {
        self.bound.store(bound as u64, Ordering::Relaxed);
        self.failed.store(failed as u64, Ordering::Relaxed);
    }

    fn expose(&self, page: &mut Page) {
        page.gauge("fairlead_listener_addresses", &[("state", "bound")], self.bound.load(Ordering::Relaxed));
        page.gauge("fairlead_listener_addresses", &[("state", "failed")], self.failed.load(Ordering::Relaxed));
    }
}

/// Results of name resolution.
#[derive(Debug, Default)]
pub struct Resolutions {
    /// Addresses came back.
    pub resolved: AtomicU64,
    /// The name doesn't exist, or has no address.
    pub absent: AtomicU64,
    /// No answer, or none that says anything.
    pub failed: AtomicU64,
}

impl Resolutions {
    fn expose(&self, page: &mut Page) {
        for (result, counter) in [("success", &self.resolved), ("no_address", &self.absent), ("failure", &self.failed)]
        {
            page.counter("fairlead_dns_resolutions_total", &[("result", result)], counter.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_end_at_the_limit_and_come_back() {
        let connections = Arc::new(Connections::default());
        connections.limit(1);
        let first = connections.admit();
        assert!(first.is_some());
        assert!(connections.admit().is_none());
        assert_eq!(connections.active(), 1);
        drop(first);
        assert!(connections.admit().is_some());
    }

    #[test]
    fn a_reload_with_errors_is_no_success() {
        let reloads = Reloads::default();
        let outcome = ReloadOutcome {
            generation: 2,
            errors: 1,
            warnings: 3,
            refusals: 0,
            duration: Duration::from_micros(2_500),
        };
        reloads.record(&outcome);
        let mut page = Page::default();
        reloads.expose(&mut page);
        let text = page.finish();
        for line in [
            "fairlead_reload_total{result=\"success\"} 0\n",
            "fairlead_reload_total{result=\"rejected\"} 1\n",
            "fairlead_reload_last_success_timestamp_seconds{} 0\n",
            "fairlead_config_generation{} 2\n",
            "fairlead_config_diagnostics{severity=\"error\"} 1\n",
            "fairlead_reload_duration_seconds_bucket{le=\"0.001\"} 0\n",
            "fairlead_reload_duration_seconds_bucket{le=\"0.0025\"} 1\n",
            "fairlead_reload_duration_seconds_sum{} 0.0025\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
