//! Istio's request metrics as a gateway reports them.
//!
//! Each thread counts for itself and finds its counters by one lookup of a small key; the labels are put together when
//! a series is seen for the first time, and the sums when the page is read.
//!
//! Source: `reference/telemetry-and-operations.md` §1.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use ahash::AHashMap;
use config::snapshot::cluster::ServiceIdentity;

use super::Source;
use super::labels::{Destination, MAX_SERIES, Principals, Reporter, pack};
use super::page::Page;
use crate::request::{Facts, RequestHead};
use crate::response::Flags;
use crate::telemetry::format::grpc_status;

/// Entries of a thread's cache at most. It is emptied then, since most of them belong to clusters that are gone.
const MAX_CACHED: usize = 8_192;

/// Upper bounds of the buckets, for milliseconds and bytes alike. All values are whole numbers, so 0.5 is 0 here.
const BOUNDS: [u64; 19] = [
    0, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000,
    3_600_000,
];

/// [`BOUNDS`] as they are printed.
const BOUND_LABELS: [&str; 19] = [
    "0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500", "5000", "10000", "30000", "60000",
    "300000", "600000", "1800000", "3600000",
];

/// Counts requests by Istio's labels.
#[derive(Debug)]
pub struct Requests {
    /// Tells the caches of several instances apart.
    instance: u64,
    reporter: Reporter,
    series: Mutex<AHashMap<Labels, Series>>,
    dropped: AtomicU64,
}

/// What distinguishes series.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels {
    destination: Destination,
    outcome: Outcome,
}

/// The part of [`Labels`] that a request brings with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Outcome {
    status: u16,
    grpc: bool,
    grpc_status: Option<u16>,
    /// Response flags, a byte each, the first one highest.
    flags: u32,
}

#[derive(Debug)]
struct Series {
    rendered: String,
    /// Each is written by one thread alone.
    counts: AHashMap<ThreadId, Arc<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::default();
}

/// A thread's own counters.
#[derive(Default)]
struct Cache {
    instance: u64,
    entries: AHashMap<CacheKey, Cached>,
}

/// The address of the service's identity stands for its three strings; [`Cached`] keeps it from being used again.
#[derive(PartialEq, Eq, Hash)]
struct CacheKey {
    service: usize,
    principals: Principals,
    outcome: Outcome,
}

struct Cached {
    counts: Arc<Counts>,
    _service: Option<Arc<ServiceIdentity>>,
}

impl Default for Requests {
    fn default() -> Self {
        Self::new(&Source::default())
    }
}

impl Requests {
    /// Nothing counted yet.
    pub fn new(source: &Source) -> Self {
        static INSTANCES: AtomicU64 = AtomicU64::new(1);
        Self {
            instance: INSTANCES.fetch_add(1, Ordering::Relaxed),
            reporter: Reporter::new(source),
            series: Mutex::default(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Counts a finished request.
    pub fn record(&self, facts: &Facts) {
        let service = facts.cluster.as_ref().map(|cluster| &cluster.config.service);
        let key = CacheKey {
            service: service.map_or(0, |service| Arc::as_ptr(service).addr()),
            principals: Principals::of(facts),
            outcome: Outcome {
                status: facts.status,
                grpc: facts.grpc,
                grpc_status: grpc_status(facts),
                flags: pack(&facts.flags),
            },
        };
        CACHE.with_borrow_mut(|cache| {
            if cache.instance != self.instance || cache.entries.len() >= MAX_CACHED {
                *cache = Cache { instance: self.instance, entries: AHashMap::new() };
            }
            if let Some(cached) = cache.entries.get(&key) {
                return cached.counts.record(facts);
            }
            let Some(counts) = self.counts(service, &key, &facts.flags) else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            };
            counts.record(facts);
            cache.entries.insert(key, Cached { counts, _service: service.cloned() });
        });
    }

    /// This thread's counters of a series, which is begun if need be.
    fn counts(&self, service: Option<&Arc<ServiceIdentity>>, key: &CacheKey, flags: &Flags) -> Option<Arc<Counts>> {
        let CacheKey { service: _, principals, outcome } = key;
        let labels = Labels { destination: Destination::new(service, principals.clone()), outcome: *outcome };
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_SERIES && !all.contains_key(&labels) {
            return None;
        }
        let series = all
            .entry(labels)
            .or_insert_with_key(|labels| Series { rendered: self.render(labels, flags), counts: AHashMap::new() });
        Some(Arc::clone(series.counts.entry(thread::current().id()).or_default()))
    }

    fn render(&self, labels: &Labels, flags: &Flags) -> String {
        let Outcome { status, grpc, grpc_status, flags: _ } = labels.outcome;
        let protocol = [
            ("request_protocol", if grpc { "grpc" } else { "http" }),
            ("response_code", &status.to_string()),
            ("grpc_response_status", &grpc_status.map(|status| status.to_string()).unwrap_or_default()),
        ];
        self.reporter.render(&labels.destination, &protocol, flags)
    }

    /// Writes all series to `page`.
    pub(super) fn expose(&self, page: &mut Page) {
        page.counter("fairlead_metrics_series_dropped_total", &[], self.dropped.load(Ordering::Relaxed));
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let mut series: Vec<&Series> = series.values().collect();
        series.sort_unstable_by(|a, b| a.rendered.cmp(&b.rendered));
        for Series { rendered, counts } in series {
            let total = counts.values().map(|counts| counts.requests.load(Ordering::Relaxed)).sum();
            page.counter_with("istio_requests_total", rendered, total);
            for (name, histogram) in [
                ("istio_request_duration_milliseconds", (|counts| &counts.duration) as fn(&Counts) -> &Histogram),
                ("istio_request_bytes", |counts| &counts.request_bytes),
                ("istio_response_bytes", |counts| &counts.response_bytes),
            ] {
                let mut buckets = [0; BOUNDS.len() + 1];
                let mut sum = 0;
                for counts in counts.values() {
                    let histogram = histogram(counts);
                    sum += histogram.sum.load(Ordering::Relaxed);
                    for (total, bucket) in buckets.iter_mut().zip(&histogram.buckets) {
                        *total += bucket.load(Ordering::Relaxed);
                    }
                }
                page.histogram(name, rendered, &BOUND_LABELS, &buckets, sum);
            }
        }
    }
}

impl Counts {
    fn record(&self, facts: &Facts) {
        increase(&self.requests, 1);
        self.duration.record(u64::try_from(facts.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.request_bytes.record(facts.bytes_received + facts.request.as_ref().map_or(0, head_size));
        let lines: usize = facts.response_headers.iter().map(|line| line.name.len() + line.value.len() + 4).sum();
        self.response_bytes.record(facts.bytes_sent + lines as u64);
    }
}

/// About the size of a request head on the wire.
fn head_size(request: &RequestHead) -> u64 {
    let lines: usize = request.headers.iter().map(|line| line.name.len() + line.value.len() + 4).sum();
    (request.method.len() + request.path.as_bytes().len() + request.authority.len() + lines) as u64
}

impl Histogram {
    fn record(&self, value: u64) {
        increase(&self.buckets[BOUNDS.partition_point(|bound| *bound < value)], 1);
        increase(&self.sum, value);
    }
}

/// Each counter has one writing thread, so no locked instruction is needed.
fn increase(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::request::{ConnectionFacts, Protocol};
    use crate::response::Flag;

    fn facts() -> Facts {
        let connection = ConnectionFacts::unknown();
        let mut facts = Facts::new(Rc::new(connection), Protocol::Http11);
        facts.status = 404;
        facts.flags.set(Flag::NR);
        facts
    }

    fn requests() -> Requests {
        let labels = [("app", "istio-ingressgateway"), ("istio", "ingressgateway")];
        Requests::new(&Source {
            workload: "istio-ingressgateway".to_owned(),
            namespace: "istio-ingress".to_owned(),
            cluster: "Kubernetes".to_owned(),
            labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        })
    }

    fn page(requests: &Requests) -> String {
        let mut page = Page::default();
        requests.expose(&mut page);
        page.finish()
    }

    #[test]
    fn a_request_without_route_has_istios_labels_in_istios_order() {
        let requests = requests();
        requests.record(&facts());
        requests.record(&facts());
        let expected = "istio_requests_total{reporter=\"source\",source_workload=\"istio-ingressgateway\",\
            source_canonical_service=\"istio-ingressgateway\",source_canonical_revision=\"latest\",\
            source_workload_namespace=\"istio-ingress\",source_principal=\"unknown\",\
            source_app=\"istio-ingressgateway\",source_version=\"\",source_cluster=\"Kubernetes\",\
            destination_workload=\"unknown\",destination_workload_namespace=\"unknown\",\
            destination_principal=\"unknown\",destination_app=\"unknown\",destination_version=\"unknown\",\
            destination_service=\"unknown\",destination_canonical_service=\"unknown\",\
            destination_canonical_revision=\"latest\",destination_service_name=\"unknown\",\
            destination_service_namespace=\"unknown\",destination_cluster=\"unknown\",request_protocol=\"http\",\
            response_code=\"404\",grpc_response_status=\"\",response_flags=\"NR\",\
            connection_security_policy=\"unknown\"} 2\n";
        let text = page(&requests);
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn threads_count_for_themselves_and_are_summed() {
        let requests = requests();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| requests.record(&facts()));
            }
        });
        let text = page(&requests);
        assert!(text.contains("connection_security_policy=\"unknown\"} 2\n"), "{text}");
        assert!(text.contains("connection_security_policy=\"unknown\",le=\"+Inf\"} 2\n"), "{text}");
    }

    #[test]
    fn flags_and_statuses_make_series_of_their_own() {
        let requests = requests();
        let mut retried = facts();
        retried.status = 503;
        retried.flags = Flags::default();
        retried.flags.set(Flag::URX);
        retried.flags.set(Flag::UF);
        requests.record(&facts());
        requests.record(&retried);
        let text = page(&requests);
        let total = text.lines().filter(|line| line.starts_with("istio_requests_total")).collect::<Vec<_>>();
        assert_eq!(total.len(), 2, "{text}");
        assert!(total[1].contains("response_code=\"503\""), "{text}");
        assert!(total[1].contains("response_flags=\"URX,UF\""), "{text}");
    }

    #[test]
    fn buckets_hold_values_up_to_their_bound() {
        let histogram = Histogram::default();
        for value in [0, 1, 2, 5, 3_600_000, 3_600_001] {
            histogram.record(value);
        }
        let counts: Vec<u64> = histogram.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!(counts[..4], [1, 1, 2, 0]);
        assert_eq!(counts[18..], [1, 1]);
    }
}
