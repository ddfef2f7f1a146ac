//! Istio's metrics of raw TCP connections.
//!
//! A connection gets its labels once, when its upstream is connected, or at its end if that never happens; they hold for
//! everything that is counted of it. Bytes are counted as they pass.
//!
//! Source: `reference/telemetry-and-operations.md` §1.1.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use ahash::AHashMap;

use super::Source;
use super::labels::{Destination, MAX_SERIES, Principals, Reporter, pack};
use super::page::Page;
use crate::request::Facts;

/// Counts raw TCP connections by Istio's labels.
#[derive(Debug, Default)]
pub struct TcpConnections {
    reporter: Reporter,
    series: Mutex<AHashMap<Labels, Series>>,
    dropped: AtomicU64,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Labels {
    destination: Destination,
    flags: u32,
}

#[derive(Debug)]
struct Series {
    rendered: String,
    /// Each is written by one thread alone.
    counts: AHashMap<ThreadId, Arc<TcpCounts>>,
}

/// What one thread has counted under one set of labels. Only that thread may count.
#[derive(Debug, Default)]
pub struct TcpCounts {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl TcpConnections {
    /// Nothing counted yet.
    pub fn new(source: &Source) -> Self {
        Self { reporter: Reporter::new(source), ..Self::default() }
    }

    /// Counts a connection as opened. What it comes to is counted in the result, on the same thread; `None` if there are
    /// too many series.
    pub fn open(&self, facts: &Facts) -> Option<Arc<TcpCounts>> {
        let service = facts.cluster.as_ref().map(|cluster| &cluster.config.service);
        let labels =
            Labels { destination: Destination::new(service, Principals::of(facts)), flags: pack(&facts.flags) };
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_SERIES && !all.contains_key(&labels) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let series = all.entry(labels).or_insert_with_key(|labels| Series {
            rendered: self.reporter.render(&labels.destination, &[("request_protocol", "tcp")], &facts.flags),
            counts: AHashMap::new(),
        });
        let counts = series.counts.entry(thread::current().id()).or_default();
        increase(&counts.opened, 1);
        Some(Arc::clone(counts))
    }

    /// Writes all series to `page`.
    pub(super) fn expose(&self, page: &mut Page) {
        page.counter("fairlead_tcp_metrics_series_dropped_total", &[], self.dropped.load(Ordering::Relaxed));
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let mut series: Vec<&Series> = series.values().collect();
        series.sort_unstable_by(|a, b| a.rendered.cmp(&b.rendered));
        for Series { rendered, counts } in series {
            for (name, counter) in [
                ("istio_tcp_connections_opened_total", (|counts| &counts.opened) as fn(&TcpCounts) -> &AtomicU64),
                ("istio_tcp_connections_closed_total", |counts| &counts.closed),
                ("istio_tcp_sent_bytes_total", |counts| &counts.sent),
                ("istio_tcp_received_bytes_total", |counts| &counts.received),
            ] {
                let total = counts.values().map(|counts| counter(counts).load(Ordering::Relaxed)).sum();
                page.counter_with(name, rendered, total);
            }
        }
    }
}

impl TcpCounts {
    /// Bytes that came from the client, and bytes that went to it.
    pub fn moved(&self, received: u64, sent: u64) {
        increase(&self.received, received);
        increase(&self.sent, sent);
    }

    /// The connection has ended.
    pub fn closed(&self) {
        increase(&self.closed, 1);
    }
}

/// Each counter has one writing thread, so no locked instruction is needed.
fn increase(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::request::ConnectionFacts;
    use crate::response::Flag;

    fn facts() -> Facts {
        Facts::of_connection(Rc::new(ConnectionFacts { port: 9000, ..ConnectionFacts::unknown() }))
    }

    #[test]
    fn a_connection_keeps_the_labels_that_it_began_with() {
        let connections = TcpConnections::new(&Source { workload: "gw".to_owned(), ..Source::default() });
        let mut facts = facts();
        let counts = connections.open(&facts).unwrap();
        facts.flags.set(Flag::UR);
        counts.moved(5, 10);
        counts.moved(1, 0);
        counts.closed();
        connections.open(&facts).unwrap();
        let mut page = Page::default();
        connections.expose(&mut page);
        let page = page.finish();
        let labels = "reporter=\"source\",source_workload=\"gw\",source_canonical_service=\"gw\",\
            source_canonical_revision=\"latest\",source_workload_namespace=\"\",source_principal=\"unknown\",\
            source_app=\"\",source_version=\"\",source_cluster=\"\",destination_workload=\"unknown\",\
            destination_workload_namespace=\"unknown\",destination_principal=\"unknown\",destination_app=\"unknown\",\
            destination_version=\"unknown\",destination_service=\"unknown\",\
            destination_canonical_service=\"unknown\",destination_canonical_revision=\"latest\",\
            destination_service_name=\"unknown\",destination_service_namespace=\"unknown\",\
            destination_cluster=\"unknown\",request_protocol=\"tcp\",response_flags=\"-\",\
            connection_security_policy=\"unknown\"";
        for (name, value) in [
            ("istio_tcp_connections_opened_total", 1),
            ("istio_tcp_connections_closed_total", 1),
            ("istio_tcp_sent_bytes_total", 10),
            ("istio_tcp_received_bytes_total", 6),
        ] {
            assert!(page.contains(&format!("\n{name}{{{labels}}} {value}\n")), "{page}");
        }
        let reset = "response_flags=\"UR\",connection_security_policy=\"unknown\"} 1\n";
        assert_eq!(page.matches(reset).count(), 1, "{page}");
    }
}
