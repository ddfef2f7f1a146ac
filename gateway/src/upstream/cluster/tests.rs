use config::snapshot::balancing::{Balancing, BalancingPolicy, OutlierDetection, Placement};
use config::snapshot::cluster::{ClusterName, DnsEndpoint, Endpoint as Configured, EndpointAddress, ServiceIdentity};

use super::*;

/// A cluster of endpoints with these ports.
fn config(ports: &[u16]) -> snapshot::Cluster {
    let endpoint = |port: &u16| Configured {
        address: EndpointAddress::Ip([127, 0, 0, 1].into(), *port),
        weight: 1,
        workload: None,
        placement: Placement::default(),
    };
    with_endpoints(Endpoints::Static(ports.iter().map(endpoint).collect()))
}

fn with_endpoints(endpoints: Endpoints) -> snapshot::Cluster {
    let service = ServiceIdentity { host: "a".into(), name: "a".into(), namespace: "shop".into() };
    let balancing = Balancing { policy: BalancingPolicy::RoundRobin, ..Balancing::default() };
    let name = ClusterName::outbound(80, "", "a");
    snapshot::Cluster { balancing, ..snapshot::Cluster::new(name, Arc::new(service), 80, endpoints) }
}

fn names(hosts: &[&str]) -> Endpoints {
    let endpoint =
        |host: &&str| DnsEndpoint { host: (*host).into(), port: 80, weight: 1, placement: Placement::default() };
    Endpoints::StrictDns(hosts.iter().map(endpoint).collect())
}

fn build(config: snapshot::Cluster, previous: Option<&Arc<Cluster>>) -> Arc<Cluster> {
    Cluster::build(&Arc::new(config), &Credentials::default(), previous)
}

fn target(port: u16) -> Target {
    Target { address: address(port), alternatives: Vec::new(), weight: 1, placement: Placement::default() }
}

fn address(port: u16) -> Address {
    Address::Ip(([127, 0, 0, 1], port).into())
}

fn pick(cluster: &Cluster) -> Option<Arc<Endpoint>> {
    cluster.pick(Pick::default(), |bound| rand::random::<u64>() % bound)
}

/// Ports of the next picks.
fn picks(cluster: &Cluster, count: usize) -> Vec<u16> {
    let port = |endpoint: Arc<Endpoint>| match &endpoint.address {
        Address::Ip(address) => address.port(),
        _ => 0,
    };
    (0..count).map(|_| pick(cluster).map_or(0, port)).collect()
}

fn outliers() -> Option<Arc<OutlierDetection>> {
    Some(Arc::new(OutlierDetection { consecutive_5xx: 1, ..outlier::tests::settings() }))
}

#[test]
fn permits_end_at_the_limit_and_come_back() {
    let usage = Arc::new(Usage::default());
    let first = usage.acquire(|usage| &usage.requests, 1);
    assert!(first.is_some());
    assert!(usage.acquire(|usage| &usage.requests, 1).is_none());
    drop(first);
    assert!(usage.acquire(|usage| &usage.requests, 1).is_some());
}

#[tokio::test(start_paused = true)]
async fn requests_of_late_are_counted() {
    let usage = Usage::default();
    let interval = Duration::from_secs(10);
    (0..20).for_each(|_| usage.note_request(interval));
    assert!((usage.recent(interval) - 20.0).abs() < 0.1);
    tokio::time::advance(Duration::from_secs(15)).await;
    assert!((usage.recent(interval) - 10.0).abs() < 0.1, "half of them count");
    usage.note_request(interval);
    assert!((usage.recent(interval) - 11.0).abs() < 0.1);
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(usage.recent(interval) < 0.1);
}

#[test]
fn endpoints_are_the_same_over_reloads() {
    let first = build(config(&[1, 2]), None);
    let kept = Arc::clone(&first.members().list[1].endpoint);
    let _active = kept.begin();
    let second = build(config(&[2, 3]), Some(&first));
    let list = &second.members().list;
    assert!(Arc::ptr_eq(&list[0].endpoint, &kept));
    assert_eq!((list[0].endpoint.active(), list[1].endpoint.active()), (1, 0));
    assert_eq!(first.members().list.len(), 2, "requests that began before still see what was");
    let same = build((*second.config).clone(), Some(&second));
    assert!(Arc::ptr_eq(&same.members(), &second.members()));
}

#[test]
fn turns_go_on_over_reloads() {
    let first = build(config(&[1, 2, 3]), None);
    let before = picks(&first, 2);
    let mut changed = config(&[1, 2, 3]);
    changed.connect_timeout = Duration::from_secs(1);
    let second = build(changed, Some(&first));
    assert!(!before.contains(&picks(&second, 1)[0]), "the third one's turn");
    let mut changed = config(&[1, 2, 3]);
    changed.outlier_detection = outliers();
    let third = build(changed, Some(&second));
    assert_eq!(picks(&third, 1), before[..1], "the first one's turn again");
}

#[test]
fn ejections_hold_for_every_state() {
    let configured = || snapshot::Cluster { outlier_detection: outliers(), ..config(&[1, 2, 3]) };
    let first = build(configured(), None);
    let mut changed = configured();
    changed.connect_timeout = Duration::from_secs(1);
    let second = build(changed, Some(&first));
    let endpoint = Arc::clone(&first.members().list[0].endpoint);
    // A request that began before the reload finds out.
    first.report(&endpoint, Outcome::Answer(500));
    assert!(endpoint.health.is_ejected());
    for cluster in [&first, &second] {
        assert!(!picks(cluster, 6).contains(&1));
    }
    let third = build(snapshot::Cluster { outlier_detection: outliers(), ..config(&[1, 2]) }, Some(&second));
    assert_eq!(picks(&third, 3), [2; 3], "it is out, whatever else changes");
    assert_eq!(third.usage.ejections_total.load(Ordering::Relaxed), 1);
    let fourth = build(config(&[1, 2]), Some(&third));
    let in_order = |mut ports: Vec<u16>| {
        ports.sort_unstable();
        ports
    };
    assert_eq!(in_order(picks(&fourth, 2)), [1, 2], "nobody is out without outlier detection");
    // A request that began before there was none finds out now.
    third.report(&fourth.members().list[1].endpoint, Outcome::Answer(500));
    assert_eq!(in_order(picks(&fourth, 4)), [1, 1, 2, 2]);
    let returned = fourth.look_again();
    assert!(!returned.is_empty() && !returned.iter().any(|endpoint| endpoint.health.is_ejected()));
}

#[test]
fn nobody_is_picked_when_all_are_out() {
    let cluster = build(snapshot::Cluster { outlier_detection: outliers(), ..config(&[1]) }, None);
    cluster.report(&cluster.members().list[0].endpoint, Outcome::Failed);
    assert!(pick(&cluster).is_none());
    assert!(cluster.is_ready(), "no healthy upstream, which is another thing than no cluster");
}

#[test]
fn new_names_keep_the_old_addresses_until_they_are_resolved() {
    let first = build(with_endpoints(names(&["a.test"])), None);
    assert!(!first.is_ready());
    first.set_endpoints(vec![target(1), target(2), target(1)]);
    assert_eq!(first.members().list.len(), 2, "an address counts once");
    let balanced = first.balancer.load_full();
    first.set_endpoints(vec![target(1), target(2)]);
    assert!(Arc::ptr_eq(&balanced, &first.balancer.load()), "the same answer changes nothing");

    let second = build(with_endpoints(names(&["b.test"])), Some(&first));
    assert!(second.is_ready());
    assert!(second.has_endpoint(&address(1)));
    second.set_endpoints(vec![target(3)]);
    assert_eq!(picks(&second, 2), [3, 3]);
    assert!(first.has_endpoint(&address(1)) && !first.has_endpoint(&address(3)));

    // Not where something else would be said to the old ones.
    let proxied =
        snapshot::Cluster { proxy_protocol: Some(snapshot::ProxyProtocol::V1), ..with_endpoints(names(&["c.test"])) };
    assert!(!build(proxied, Some(&second)).is_ready());
    let literal = build(with_endpoints(names(&["127.0.0.1"])), None);
    assert_eq!(picks(&literal, 1), [80]);
}
