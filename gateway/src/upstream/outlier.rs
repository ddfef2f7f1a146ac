//! Outlier detection: endpoints that fail are left out for a while.
//!
//! Counting is done where answers arrive, by atomics of the endpoint. Whether an endpoint is ejected is decided at once;
//! whether it may return only every [`OutlierDetection::interval`], by one task for all clusters.
//!
//! Source: `reference/networking.md` §5.6; Envoy's outlier detection, of which Istio uses the consecutive detectors.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ahash::AHashMap;
use config::snapshot::balancing::OutlierDetection;
use config::snapshot::cluster::ClusterName;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info};

use super::balancer::Member;
use super::cluster::Cluster;
use super::endpoint::Endpoint;
use crate::state::State;

/// What came of a request or a connection to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer with this status; for gRPC that of its `grpc-status` (see [`grpc_http_status`]).
    Answer(u16),
    /// A connection to it is there.
    Connected,
    /// No connection, or one that broke before the answer.
    Failed,
    /// No answer in time.
    TimedOut,
}

/// What the answers of an endpoint say of it.
#[derive(Debug, Default)]
pub struct Health {
    consecutive_5xx: AtomicU32,
    consecutive_gateway_errors: AtomicU32,
    consecutive_failures: AtomicU32,
    ejected: AtomicBool,
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    /// Ejections that count for the length of the next one.
    ejections: u32,
    last: Option<Instant>,
}

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detector {
    /// Errors in a row.
    Consecutive5xx,
    /// Gateway errors in a row.
    ConsecutiveGatewayErrors,
    /// Failures without an answer in a row.
    ConsecutiveLocalOriginFailures,
}

impl Health {
    /// Whether the endpoint is left out.
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::SeqCst)
    }

    /// Counts an outcome; the detector whose threshold it reaches. Its count begins anew then.
    pub(super) fn count(&self, outcome: Outcome, settings: &OutlierDetection) -> Option<Detector> {
        let split = settings.split_local_origin;
        let status = match outcome {
            Outcome::Answer(status) => status,
            Outcome::Connected => {
                if split {
                    self.consecutive_failures.store(0, Ordering::Relaxed);
                }
                return None;
            }
            Outcome::Failed | Outcome::TimedOut if split => {
                let threshold = settings.consecutive_local_origin_failures;
                let reached = increment(&self.consecutive_failures, threshold);
                return reached.then_some(Detector::ConsecutiveLocalOriginFailures);
            }
            Outcome::Failed => 503,
            Outcome::TimedOut => 504,
        };
        let is_local = !matches!(outcome, Outcome::Answer(_));
        if !is_local && !settings.is_error(status) {
            // The common case of a healthy endpoint writes nothing.
            for count in [&self.consecutive_5xx, &self.consecutive_gateway_errors] {
                if count.load(Ordering::Relaxed) != 0 {
                    count.store(0, Ordering::Relaxed);
                }
            }
            return None;
        }
        let mut detected = None;
        if (502..=504).contains(&status) {
            if increment(&self.consecutive_gateway_errors, settings.consecutive_gateway_errors) {
                detected = Some(Detector::ConsecutiveGatewayErrors);
            }
        } else {
            self.consecutive_gateway_errors.store(0, Ordering::Relaxed);
        }
        if increment(&self.consecutive_5xx, settings.consecutive_5xx) {
            detected = detected.or(Some(Detector::Consecutive5xx));
        }
        detected
    }

    fn eject(&self, now: Instant) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.ejections = history.ejections.saturating_add(1);
        history.last = Some(now);
        self.ejected.store(true, Ordering::SeqCst);
    }

    /// One look of the interval; whether the endpoint returns with it.
    fn look_again(&self, now: Instant, settings: &OutlierDetection) -> bool {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_ejected() {
            history.ejections = history.ejections.saturating_sub(1);
            return false;
        }
        let time = settings.base_ejection_time.saturating_mul(history.ejections).min(settings.max_ejection_time);
        if history.last.is_some_and(|last| now.saturating_duration_since(last) < time) {
            return false;
        }
        self.reset();
        true
    }

    /// Lets the endpoint return, with nothing held against it.
    fn reset(&self) {
        for count in [&self.consecutive_5xx, &self.consecutive_gateway_errors, &self.consecutive_failures] {
            count.store(0, Ordering::Relaxed);
        }
        self.ejected.store(false, Ordering::SeqCst);
    }
}

/// Counts one more; whether that reaches `threshold`, after which the count begins anew. Zero is never reached.
fn increment(count: &AtomicU32, threshold: u32) -> bool {
    let counted = count.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    if threshold == 0 || counted < threshold {
        return false;
    }
    count.store(0, Ordering::Relaxed);
    true
}

/// Ejects `endpoint` unless that would leave out more of `members` than the settings allow; whether it did. The caller
/// lets nobody else eject of the same cluster meanwhile.
pub(super) fn eject(endpoint: &Endpoint, members: &[Member], settings: &OutlierDetection) -> bool {
    if endpoint.health.is_ejected() {
        return false;
    }
    let ejected = members.iter().filter(|member| member.endpoint.health.is_ejected()).count() as u64;
    if (ejected + 1) * 100 > u64::from(settings.max_ejection_percent) * members.len() as u64 {
        return false;
    }
    endpoint.health.eject(Instant::now());
    true
}

/// One look at the endpoints of a cluster; those that return. Without settings all do.
pub(super) fn look_again(members: &[Member], settings: Option<&OutlierDetection>) -> Vec<Arc<Endpoint>> {
    let now = Instant::now();
    let returns = members.iter().map(|member| &member.endpoint).filter(|endpoint| match settings {
        Some(settings) => endpoint.health.look_again(now, settings),
        None => {
            let is_ejected = endpoint.health.is_ejected();
            if is_ejected {
                endpoint.health.reset();
            }
            is_ejected
        }
    });
    returns.cloned().collect()
}

/// The HTTP status that a `grpc-status` counts as.
pub fn grpc_http_status(code: u8) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Looks at the ejected endpoints of the clusters of every state in `states`, each cluster by its own interval, until the
/// sender is gone. A reload doesn't move the moment of the next look.
pub async fn watch_over(mut states: watch::Receiver<Arc<State>>) {
    let mut looks = Looks::default();
    looks.follow(&states.borrow_and_update().clone());
    loop {
        tokio::select! {
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
                looks.follow(&states.borrow_and_update().clone());
            }
            () = looks.next() => looks.look(Instant::now()),
        }
    }
}

#[derive(Default)]
struct Looks {
    /// The clusters of the last state.
    seen: Option<Arc<AHashMap<ClusterName, Arc<Cluster>>>>,
    clusters: AHashMap<ClusterName, (Instant, Arc<Cluster>)>,
    due: BTreeSet<(Instant, ClusterName)>,
}

impl Looks {
    fn follow(&mut self, state: &State) {
        if self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &state.clusters)) {
            return;
        }
        self.seen = Some(Arc::clone(&state.clusters));
        let now = Instant::now();
        let mut clusters = AHashMap::new();
        for (name, cluster) in &*state.clusters {
            let Some(settings) = &cluster.config.outlier_detection else {
                // Whoever was ejected before there were no settings any more.
                cluster.look_again();
                continue;
            };
            let due = now + settings.interval;
            let due = self.clusters.get(name).map_or(due, |(before, _)| due.min(*before));
            clusters.insert(name.clone(), (due, Arc::clone(cluster)));
        }
        self.due = clusters.iter().map(|(name, (due, _))| (*due, name.clone())).collect();
        self.clusters = clusters;
    }

    async fn next(&self) {
        match self.due.first() {
            Some((due, _)) => tokio::time::sleep_until(*due).await,
            None => std::future::pending().await,
        }
    }

    fn look(&mut self, now: Instant) {
        while let Some((due, name)) = self.due.pop_first() {
            if due > now {
                self.due.insert((due, name));
                return;
            }
            let Some((next, cluster)) = self.clusters.get_mut(&name) else { continue };
            let Some(settings) = &cluster.config.outlier_detection else { continue };
            for endpoint in cluster.look_again() {
                info!(cluster = %name, endpoint = %endpoint.address, "endpoint returns");
            }
            *next = now + settings.interval.max(SHORTEST_INTERVAL);
            self.due.insert((*next, name));
        }
    }
}

/// Shorter intervals would only burn time. Istio's validation allows a millisecond.
const SHORTEST_INTERVAL: std::time::Duration = std::time::Duration::from_millis(1);

/// Says that an endpoint was ejected.
pub(super) fn log(cluster: &Cluster, endpoint: &Endpoint, detector: Detector, ejected: bool) {
    let (cluster, endpoint) = (&cluster.config.name, &endpoint.address);
    match ejected {
        true => info!(%cluster, %endpoint, ?detector, "endpoint ejected"),
        false => debug!(%cluster, %endpoint, ?detector, "not ejected: too many are"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::upstream::endpoint::Address;

    /// Ejects after three errors, all endpoints if it must.
    pub(in crate::upstream) fn settings() -> OutlierDetection {
        OutlierDetection {
            consecutive_5xx: 3,
            consecutive_gateway_errors: 0,
            split_local_origin: false,
            consecutive_local_origin_failures: 5,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 100,
            panic_percent: 0,
            error_codes: Vec::new(),
        }
    }

    fn members(count: u16) -> Vec<Member> {
        (1..=count)
            .map(|port| {
                let address = Address::Ip(([127, 0, 0, 1], port).into());
                Member { endpoint: Arc::new(Endpoint::new(address)), weight: 1, placement: Default::default() }
            })
            .collect()
    }

    /// The outcomes, as text, of which each reached a threshold.
    fn detections(settings: &OutlierDetection, outcomes: &[Outcome]) -> Vec<Option<Detector>> {
        let health = Health::default();
        outcomes.iter().map(|&outcome| health.count(outcome, settings)).collect()
    }

    #[test]
    fn errors_in_a_row_are_counted() {
        use Outcome::{Answer, Connected, Failed, TimedOut};
        let (none, found) = (None, Some(Detector::Consecutive5xx));
        let usual = settings();
        assert_eq!(detections(&usual, &[Answer(500); 4]), [none, none, found, none], "it begins anew");
        assert_eq!(detections(&usual, &[Answer(500), Answer(500), Answer(200), Answer(500), Answer(500)]), [none; 5]);
        assert_eq!(detections(&usual, &[Answer(500), Answer(404), Answer(500), Answer(501)]), [none; 4]);
        assert_eq!(detections(&usual, &[Failed, TimedOut, Answer(599)]), [none, none, found], "not told apart");
        assert_eq!(
            detections(&usual, &[Failed, Connected, Failed, Connected, Failed]),
            [none, none, none, none, found]
        );

        let off = OutlierDetection { consecutive_5xx: 0, ..settings() };
        assert_eq!(detections(&off, &[Answer(500); 9]), [none; 9]);

        let codes = OutlierDetection { error_codes: vec![404, 429], ..settings() };
        assert_eq!(detections(&codes, &[Answer(500); 4]), [none; 4]);
        assert_eq!(detections(&codes, &[Answer(404), Answer(429), Answer(404)]), [none, none, found]);
        assert_eq!(detections(&codes, &[Failed; 3]), [none, none, found], "no answer is no good answer");
    }

    #[test]
    fn gateway_errors_have_a_count_of_their_own() {
        use Outcome::{Answer, Failed, TimedOut};
        let (none, found) = (None, Some(Detector::ConsecutiveGatewayErrors));
        let gateway = OutlierDetection { consecutive_5xx: 0, consecutive_gateway_errors: 2, ..settings() };
        assert_eq!(detections(&gateway, &[Answer(502), Answer(504)]), [none, found]);
        assert_eq!(detections(&gateway, &[Answer(503), Answer(500), Answer(503)]), [none; 3], "500 is none of them");
        assert_eq!(detections(&gateway, &[Failed, TimedOut]), [none, found]);
    }

    #[test]
    fn failures_without_an_answer_are_counted_apart_if_asked() {
        use Outcome::{Answer, Connected, Failed, TimedOut};
        let (none, found) = (None, Some(Detector::ConsecutiveLocalOriginFailures));
        let split = OutlierDetection { split_local_origin: true, consecutive_local_origin_failures: 2, ..settings() };
        assert_eq!(detections(&split, &[Failed, TimedOut]), [none, found]);
        assert_eq!(detections(&split, &[Failed, Connected, Failed]), [none; 3]);
        assert_eq!(detections(&split, &[Failed, Answer(200), Failed]), [none, none, found], "answers are apart");
        let five = OutlierDetection { split_local_origin: true, ..settings() };
        assert_eq!(detections(&five, &[Failed, Failed, Failed, Answer(500), Answer(500)]), [none; 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_allowed_share_is_ejected() {
        // Hosts, share, ejections that succeed.
        for (count, percent, expected) in [(1, 10, 0), (9, 10, 0), (10, 10, 1), (4, 50, 2), (2, 100, 2), (3, 66, 1)] {
            let members = members(count);
            let settings = OutlierDetection { max_ejection_percent: percent, ..settings() };
            let ejected = members.iter().filter(|member| eject(&member.endpoint, &members, &settings)).count();
            assert_eq!(ejected, expected, "{count} hosts, {percent} %");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ejections_grow_and_are_forgiven() {
        let members = members(1);
        let settings = OutlierDetection { max_ejection_time: Duration::from_secs(70), ..settings() };
        let endpoint = Arc::clone(&members[0].endpoint);
        let look = || look_again(&members, Some(&settings)).len();
        // Ejected for 1, 2 and 3 times the base, at most for the longest time.
        for seconds in [30, 60, 70, 70] {
            assert!(eject(&endpoint, &members, &settings));
            assert!(!eject(&endpoint, &members, &settings), "it is out already");
            tokio::time::sleep(Duration::from_secs(seconds - 1)).await;
            assert_eq!((look(), endpoint.health.is_ejected()), (0, true));
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!((look(), endpoint.health.is_ejected()), (1, false));
        }
        // Three looks at a healthy endpoint forgive three of four.
        (0..3).for_each(|_| assert_eq!(look(), 0));
        assert!(eject(&endpoint, &members, &settings));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(look(), 1);
        assert!(eject(&endpoint, &members, &settings));
        assert_eq!(look_again(&members, None).len(), 1, "without settings everybody returns");
    }
}
