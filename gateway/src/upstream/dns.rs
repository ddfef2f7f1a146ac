//! Name resolution for clusters whose endpoints are names.
//!
//! One task owns all names: a name that several clusters share is asked for once, every name by its own clock, and
//! clusters get new endpoints as answers come. Requests never wait for any of it.
//!
//! Source: `reference/networking.md` §6.2.

mod lookup;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use config::snapshot::cluster::{DnsEndpoint, Endpoints};
use futures::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

pub use lookup::{Families, SystemLookup};

use super::cluster::Cluster;
use super::endpoint::{Address, Target};
use crate::state::State;
use crate::worker::Gateway;

/// Queries under way at once. Source: Istio's `PILOT_DNS_CARES_UDP_MAX_QUERIES`.
const MAX_QUERIES: usize = 100;

/// Addresses of one name that are used.
const MAX_ADDRESSES: usize = 1_000;

/// Time for one name, search domains and second tries included.
const QUERY_TIMEOUT: Duration = Duration::from_secs(15);

/// A shorter time to live would only hammer the server.
const MIN_TTL: Duration = Duration::from_secs(1);

/// Added at random to every wait, so that names don't stay in step. Source: Istio's `PILOT_DNS_JITTER_DURATION`.
const JITTER: Duration = Duration::from_millis(100);

/// What a name server said about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its addresses, in the server's order, and how long they hold; zero if the server doesn't say.
    Addresses(Vec<IpAddr>, Duration),
    /// It doesn't exist, or has no address.
    Absent,
    /// No answer, or one that says nothing about the name.
    Failed,
}

/// Asks for addresses.
pub trait Lookup: Send + Sync + 'static {
    /// The addresses of `name` in `families`; with both, in turns and IPv6 first.
    fn lookup(&self, name: &str, families: Families) -> impl Future<Output = Answer> + Send;
}

/// Keeps the endpoints of the clusters of every state in `states` up to date, until the sender is gone.
pub async fn resolve(
    gateway: Arc<Gateway>,
    mut states: watch::Receiver<Arc<State>>,
    lookup: Arc<impl Lookup>,
    families: Families,
) {
    let mut names = Names { gateway, refresh: Duration::ZERO, names: AHashMap::new(), due: BTreeSet::new() };
    names.follow(&states.borrow_and_update().clone());
    let mut queries: JoinSet<(Arc<str>, Answer)> = JoinSet::new();
    loop {
        let now = Instant::now();
        while queries.len() < MAX_QUERIES
            && let Some(name) = names.take_due(now)
        {
            let lookup = Arc::clone(&lookup);
            queries.spawn(async move {
                let query = tokio::time::timeout(QUERY_TIMEOUT, lookup.lookup(&name, families));
                // A name whose query panics is asked again like any that fails.
                let answer = AssertUnwindSafe(query).catch_unwind().await;
                let answer = answer.ok().and_then(Result::ok).unwrap_or(Answer::Failed);
                (name, answer)
            });
        }
        // With all queries busy the next one starts when one ends.
        let next = if queries.len() < MAX_QUERIES { names.next_due() } else { None };
        tokio::select! {
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
                names.follow(&states.borrow_and_update().clone());
            }
            Some(result) = queries.join_next(), if !queries.is_empty() => {
                if let Ok((name, answer)) = result {
                    names.answered(&name, answer);
                }
            }
            () = sleep_until(next) => {}
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// All names that the state of the moment asks for.
struct Names {
    gateway: Arc<Gateway>,
    /// `dnsRefreshRate`.
    refresh: Duration,
    names: AHashMap<Arc<str>, Name>,
    /// When each name is asked again, in the order of time. A name with a query under way isn't here.
    due: BTreeSet<(Instant, Arc<str>)>,
}

#[derive(Default)]
struct Name {
    /// `None` before the first answer or failure.
    addresses: Option<Vec<IpAddr>>,
    clusters: Vec<Arc<Cluster>>,
}

impl Names {
    /// Takes the names of `state`, forgets those that it has no more, and gives its clusters what is known.
    fn follow(&mut self, state: &State) {
        self.refresh = state.snapshot.mesh.dns_refresh;
        for name in self.names.values_mut() {
            name.clusters.clear();
        }
        let now = Instant::now();
        let mut resolved = Vec::new();
        for cluster in state.clusters.values() {
            let endpoints = dns_endpoints(cluster);
            let mut hosts: AHashSet<&Arc<str>> = AHashSet::new();
            for endpoint in endpoints {
                if endpoint.host.parse::<IpAddr>().is_err() && hosts.insert(&endpoint.host) {
                    let name = self.names.entry(Arc::clone(&endpoint.host)).or_insert_with(|| {
                        self.due.insert((now, Arc::clone(&endpoint.host)));
                        Name::default()
                    });
                    name.clusters.push(Arc::clone(cluster));
                }
            }
            if !hosts.is_empty() {
                resolved.push(Arc::clone(cluster));
            }
        }
        self.names.retain(|_, name| !name.clusters.is_empty());
        self.due.retain(|(_, name)| self.names.contains_key(name));
        for cluster in &resolved {
            self.publish(cluster);
        }
    }

    fn take_due(&mut self, now: Instant) -> Option<Arc<str>> {
        if self.next_due()? > now {
            return None;
        }
        self.due.pop_first().map(|(_, name)| name)
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    fn answered(&mut self, key: &Arc<str>, answer: Answer) {
        let counts = &self.gateway.telemetry.metrics.resolutions;
        let Some(name) = self.names.get_mut(key) else { return };
        let key_text = &**key;
        let wait = match answer {
            Answer::Addresses(mut addresses, ttl) => {
                counts.resolved.fetch_add(1, Ordering::Relaxed);
                addresses.truncate(MAX_ADDRESSES);
                debug!(name = key_text, ?addresses, ?ttl, "resolved");
                name.addresses = Some(addresses);
                if ttl.is_zero() { self.refresh } else { ttl.max(MIN_TTL) }
            }
            Answer::Absent => {
                counts.absent.fetch_add(1, Ordering::Relaxed);
                if name.addresses.as_ref().is_none_or(|addresses| !addresses.is_empty()) {
                    warn!(name = key_text, "the name has no address");
                }
                name.addresses = Some(Vec::new());
                self.refresh
            }
            Answer::Failed => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                // Good addresses are better than none.
                name.addresses.get_or_insert_default();
                self.refresh
            }
        };
        self.due.insert((Instant::now() + wait + JITTER.mul_f64(rand::random()), Arc::clone(key)));
        let clusters = name.clusters.clone();
        for cluster in &clusters {
            self.publish(cluster);
        }
    }

    /// Gives `cluster` the endpoints that follow from the answers so far. One answered name is enough to be ready.
    fn publish(&self, cluster: &Cluster) {
        let answered = dns_endpoints(cluster).iter().filter_map(|endpoint| {
            let addresses = match endpoint.host.parse() {
                Ok(literal) => vec![literal],
                Err(_) => self.names.get(&endpoint.host)?.addresses.clone()?,
            };
            Some((endpoint, addresses))
        });
        let answered: Vec<(&DnsEndpoint, Vec<IpAddr>)> = answered.collect();
        if answered.is_empty() {
            return;
        }
        let is_logical = matches!(cluster.config.endpoints, Endpoints::LogicalDns(_));
        let endpoints = answered.into_iter().flat_map(|(endpoint, addresses)| {
            let mut addresses: Vec<_> = addresses.into_iter().map(|ip| SocketAddr::new(ip, endpoint.port)).collect();
            // Servers give the same addresses in another order each time; that is no change.
            if !is_logical {
                addresses.sort_unstable();
            }
            // One server, of which the first address counts; the others are there in case that can't be reached.
            let alternatives = if is_logical && !addresses.is_empty() { addresses.split_off(1) } else { Vec::new() };
            addresses.into_iter().map(move |address| Target {
                address: Address::Ip(address),
                alternatives: alternatives.clone(),
                weight: endpoint.weight.max(1),
                placement: endpoint.placement.clone(),
            })
        });
        cluster.set_endpoints(endpoints.collect());
    }
}

fn dns_endpoints(cluster: &Cluster) -> &[DnsEndpoint] {
    match &cluster.config.endpoints {
        Endpoints::Static(_) => &[],
        Endpoints::StrictDns(endpoints) => endpoints,
        Endpoints::LogicalDns(endpoint) => std::slice::from_ref(endpoint),
        Endpoints::Dynamic(_) => &[],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::collections::VecDeque;
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use config::snapshot::Snapshot;
    use config::snapshot::balancing::Placement;
    use config::snapshot::cluster as snapshot;
    use config::snapshot::cluster::{ClusterName, ServiceIdentity};

    use super::*;
    use crate::telemetry::Telemetry;
    use crate::tls::credentials::Credentials;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    /// Answers from a list, and says who asked when.
    #[derive(Clone, Default)]
    struct Script {
        answers: Arc<Mutex<VecDeque<Answer>>>,
        asked: Arc<Mutex<Vec<(String, Duration)>>>,
        start: Option<Instant>,
    }

    impl Script {
        fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
            let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
            Self { answers, asked: Arc::default(), start: Some(Instant::now()) }
        }

        fn asked(&self) -> Vec<(String, Duration)> {
            self.asked.lock().unwrap().clone()
        }
    }

    impl Lookup for Script {
        async fn lookup(&self, name: &str, _: Families) -> Answer {
            let time = self.start.map(|start| start.elapsed()).unwrap_or_default();
            self.asked.lock().unwrap().push((name.to_owned(), time));
            let answer = self.answers.lock().unwrap().pop_front();
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
    }

    fn cluster(name: &str, endpoints: Endpoints) -> Arc<snapshot::Cluster> {
        let service = ServiceIdentity { host: name.into(), name: name.into(), namespace: "shop".into() };
        let name = ClusterName::outbound(80, "", name);
        Arc::new(snapshot::Cluster::new(name, Arc::new(service), 80, endpoints))
    }

    fn names(hosts: &[&str]) -> Endpoints {
        Endpoints::StrictDns(hosts.iter().map(|host| name(host)).collect())
    }

    fn name(host: &str) -> DnsEndpoint {
        DnsEndpoint { host: host.into(), port: 80, weight: 1, placement: Placement::default() }
    }

    fn state(clusters: &[Arc<snapshot::Cluster>], previous: &State) -> Arc<State> {
        let clusters = clusters.iter().map(|cluster| (cluster.name.clone(), Arc::clone(cluster)));
        let clusters = Arc::new(clusters.collect());
        let snapshot = Arc::new(Snapshot { clusters, ..Snapshot::default() });
        Arc::new(State::build(snapshot, &Credentials::default(), previous))
    }

    fn addresses(state: &State, name: &str) -> Option<Vec<String>> {
        let cluster = &state.clusters[&ClusterName::outbound(80, "", name)];
        let members = cluster.members();
        members.ready.then(|| members.list.iter().map(|member| member.endpoint.address.to_string()).collect())
    }

    fn start(state: &Arc<State>, script: &Script) -> watch::Sender<Arc<State>> {
        let (sender, receiver) = watch::channel(Arc::clone(state));
        let gateway = Arc::new(Gateway::new(Telemetry::default()));
        tokio::spawn(resolve(gateway, receiver, Arc::new(script.clone()), Families::V4));
        sender
    }

    /// Lets the clock run; it is paused, so this takes no time.
    async fn pass(seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[tokio::test(start_paused = true)]
    async fn answers_hold_for_their_time_to_live() {
        let script =
            Script::new([Answer::Addresses(vec![ONE, TWO], seconds(5)), Answer::Addresses(vec![TWO], seconds(300))]);
        let state = state(&[cluster("a", names(&["a.example"]))], &State::default());
        assert_eq!(addresses(&state, "a"), None, "not ready before the first answer");
        let _sender = start(&state, &script);
        pass(1.0).await;
        assert_eq!(addresses(&state, "a").unwrap(), ["192.0.2.1:80", "192.0.2.2:80"]);
        pass(5.0).await;
        assert_eq!(addresses(&state, "a").unwrap(), ["192.0.2.2:80"]);
        let asked = script.asked();
        assert_eq!(asked.len(), 2);
        assert!(asked[1].1 >= seconds(5) && asked[1].1 <= seconds(5) + JITTER * 2, "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_keep_addresses_and_nxdomain_drops_them() {
        let script = Script::new([
            Answer::Addresses(vec![ONE], seconds(5)),
            Answer::Failed,
            Answer::Absent,
            Answer::Addresses(vec![TWO], seconds(5)),
        ]);
        let state = state(&[cluster("a", names(&["a.example"]))], &State::default());
        let _sender = start(&state, &script);
        pass(6.0).await;
        assert_eq!(script.asked().len(), 2);
        assert_eq!(addresses(&state, "a").unwrap(), ["192.0.2.1:80"], "kept over a failure");
        pass(60.5).await;
        assert_eq!(script.asked().len(), 3);
        assert_eq!(addresses(&state, "a").unwrap(), [] as [String; 0], "emptied by NXDOMAIN");
        pass(58.0).await;
        assert_eq!(script.asked().len(), 3, "asked again only after dnsRefreshRate");
        pass(2.0).await;
        assert_eq!(addresses(&state, "a").unwrap(), ["192.0.2.2:80"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_failure_makes_ready_and_empty() {
        let script = Script::new([Answer::Failed]);
        let state = state(&[cluster("a", names(&["a.example"]))], &State::default());
        let _sender = start(&state, &script);
        pass(1.0).await;
        assert_eq!(addresses(&state, "a").unwrap(), [] as [String; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_query_serves_all_clusters_and_later_states() {
        let script = Script::new([Answer::Addresses(vec![ONE, TWO], seconds(300))]);
        let clusters =
            [cluster("a", names(&["a.example", "192.0.2.9"])), cluster("b", Endpoints::LogicalDns(name("a.example")))];
        let first = state(&clusters, &State::default());
        let sender = start(&first, &script);
        pass(1.0).await;
        assert_eq!(addresses(&first, "a").unwrap(), ["192.0.2.1:80", "192.0.2.2:80", "192.0.2.9:80"]);
        assert_eq!(addresses(&first, "b").unwrap(), ["192.0.2.1:80"], "logical DNS takes the first address");
        let second = state(&[cluster("c", names(&["a.example"]))], &first);
        sender.send(Arc::clone(&second)).unwrap();
        pass(1.0).await;
        assert_eq!(addresses(&second, "c").unwrap(), ["192.0.2.1:80", "192.0.2.2:80"]);
        assert_eq!(script.asked().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn another_order_changes_no_endpoint() {
        let three = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3));
        let orders = [vec![ONE, TWO, three], vec![ONE, three, TWO], vec![three, ONE, TWO]];
        let script = Script::new(orders.map(|order| Answer::Addresses(order, seconds(5))));
        let clusters = [cluster("a", names(&["a.example"])), cluster("b", Endpoints::LogicalDns(name("a.example")))];
        let state = state(&clusters, &State::default());
        let _sender = start(&state, &script);
        let members = |name: &str| state.clusters[&ClusterName::outbound(80, "", name)].members();
        let others = || {
            let addresses = members("b").list[0].endpoint.alternatives();
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        pass(1.0).await;
        let (strict, logical) = (members("a"), members("b"));
        assert_eq!(others(), ["192.0.2.2:80", "192.0.2.3:80"]);
        pass(5.5).await;
        assert_eq!(script.asked().len(), 2);
        assert!(Arc::ptr_eq(&strict, &members("a")) && Arc::ptr_eq(&logical, &members("b")));
        assert_eq!(others(), ["192.0.2.3:80", "192.0.2.2:80"], "what can be tried is up to date");
        pass(5.5).await;
        assert_eq!(script.asked().len(), 3);
        assert!(Arc::ptr_eq(&strict, &members("a")));
        assert_eq!(addresses(&state, "b").unwrap(), ["192.0.2.3:80"], "another first one is another endpoint");
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_left_are_asked_no_more() {
        let answers = (0..100).map(|_| Answer::Addresses(vec![ONE], seconds(1)));
        let script = Script::new(answers);
        let first = state(&[cluster("a", names(&["a.example"]))], &State::default());
        let sender = start(&first, &script);
        pass(1.0).await;
        sender.send(state(&[], &first)).unwrap();
        pass(0.5).await;
        let asked = script.asked().len();
        pass(60.0).await;
        assert_eq!(script.asked().len(), asked);
    }
}
