//! Load balancing, outlier detection and what else a cluster does by its traffic policy: `reference/networking.md`
//! §5.2, §5.3, §5.5, §5.6, §5.8.

use std::time::Duration;

use super::*;
use crate::snapshot::balancing::{BalancingPolicy, HashCookie, HashKey, OutlierDetection, Warmup};
use crate::snapshot::cluster::{Cluster, Endpoints, Http2Keepalive, ProxyProtocol, RetryBudget};

const SERVER: &str = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}";

/// A route to `destination` of s.com, which has the ports 80 and 81, both HTTP/1.1, and 90 for HTTP/2.
fn yaml(destination: &str, rule: &str) -> String {
    let http = format!("http: [{{route: [{{destination: {{host: s.com, {destination}}}}}]}}]");
    gateway("gw", "web", SERVER)
        + &virtual_service("n", "v", &format!("{{hosts: [h.com], gateways: [gw/web], {http}}}"))
        + &document(
            "ServiceEntry",
            "n",
            "s",
            "spec: {hosts: [s.com], resolution: STATIC, endpoints: [{address: 192.0.2.1, labels: {v: '1'}}], \
             ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: web, protocol: HTTP}, \
             {number: 90, name: grpc, protocol: GRPC}]}",
        )
        + &document("DestinationRule", "n", "r", &format!("spec: {{host: s.com, {rule}}}"))
}

fn cluster_of(compiled: &Compiled) -> Arc<Cluster> {
    Arc::clone(compiled.snapshot.clusters.values().next().unwrap())
}

fn cluster(destination: &str, rule: &str) -> Arc<Cluster> {
    cluster_of(&compiled(&yaml(destination, rule)))
}

fn of_policy(policy: &str) -> Arc<Cluster> {
    cluster("port: {number: 80}", &format!("trafficPolicy: {{{policy}}}"))
}

#[test]
fn policies() {
    let ring = |minimum_size| BalancingPolicy::RingHash { minimum_size };
    for (settings, expected) in [
        ("", BalancingPolicy::LeastRequest),
        ("simple: UNSPECIFIED", BalancingPolicy::LeastRequest),
        ("simple: LEAST_CONN", BalancingPolicy::LeastRequest),
        ("simple: LEAST_REQUEST", BalancingPolicy::LeastRequest),
        ("simple: ROUND_ROBIN", BalancingPolicy::RoundRobin),
        ("simple: RANDOM", BalancingPolicy::Random),
        ("consistentHash: {useSourceIp: true}", ring(1024)),
        ("consistentHash: {useSourceIp: true, minimumRingSize: 7}", ring(7)),
        ("consistentHash: {useSourceIp: true, ringHash: {}}", ring(1024)),
        ("consistentHash: {useSourceIp: true, ringHash: {minimumRingSize: 9}}", ring(9)),
        (
            "consistentHash: {useSourceIp: true, maglev: {tableSize: 65537}}",
            BalancingPolicy::Maglev { table_size: 65_537 },
        ),
    ] {
        let policy = format!("loadBalancer: {{{settings}}}, outlierDetection: {{}}");
        assert_eq!(of_policy(&policy).balancing.policy, expected, "{settings}");
    }
}

#[test]
fn hash_keys() {
    let cookie = |ttl, path: &str, attributes: &[(&str, &str)]| {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Some(HashKey::Cookie(HashCookie { name: "c".to_owned(), path: path.to_owned(), ttl, attributes }))
    };
    for (hash, expected) in [
        ("httpHeaderName: X-User", Some(HashKey::Header("x-user".to_owned()))),
        ("httpCookie: {name: c}", cookie(None, "", &[])),
        ("httpCookie: {name: c, ttl: 0s}", cookie(Some(Duration::ZERO), "", &[])),
        (
            "httpCookie: {name: c, ttl: 1.5s, path: /p, attributes: [{name: SameSite, value: Lax}, {name: Secure}]}",
            cookie(Some(Duration::from_millis(1500)), "/p", &[("SameSite", "Lax"), ("Secure", "")]),
        ),
        ("useSourceIp: true", Some(HashKey::SourceIp)),
        ("useSourceIp: false", None),
        ("httpQueryParameterName: Q", Some(HashKey::QueryParameter("Q".to_owned()))),
        ("ringHash: {}", None),
    ] {
        let cluster = of_policy(&format!("loadBalancer: {{consistentHash: {{{hash}}}}}"));
        assert!(cluster.balancing.policy.is_consistent(), "{hash}");
        let keys = &cluster.balancing.hash_keys;
        assert_eq!(keys.of_route(true), expected.as_ref(), "{hash}");
        assert_eq!(keys.of_route(false), expected.as_ref(), "{hash}");
    }
}

/// §5.3: subset port-level > subset > port-level > top-level; ports count only where the route names one.
#[test]
fn sources_of_hash_keys() {
    let hash = |key: &str| format!("loadBalancer: {{consistentHash: {{httpHeaderName: {key}}}}}");
    let at_port = |key: &str| format!("portLevelSettings: [{{port: {{number: 80}}, {}}}]", hash(key));
    let policy = |parts: &[String]| format!("trafficPolicy: {{{}}}", parts.join(", "));
    let top = policy(&[hash("top")]);
    let top_and_port = policy(&[hash("top"), at_port("port")]);
    let only_port = policy(&[at_port("port")]);
    let subset = |parts: &[String]| match parts {
        [] => "subsets: [{name: v1, labels: {v: '1'}}]".to_owned(),
        parts => format!("subsets: [{{name: v1, labels: {{v: '1'}}, {}}}]", policy(parts)),
    };
    let whole = "port: {number: 80}";
    let of_subset = "subset: v1, port: {number: 80}";
    for (destination, rule, with_port, without_port) in [
        (whole, top.clone(), Some("top"), Some("top")),
        (whole, top_and_port.clone(), Some("port"), Some("top")),
        (whole, only_port, Some("port"), None),
        (of_subset, format!("{top_and_port}, {}", subset(&[])), Some("port"), Some("top")),
        (of_subset, format!("{top_and_port}, {}", subset(&[hash("subset")])), Some("subset"), Some("subset")),
        (
            of_subset,
            format!("{top_and_port}, {}", subset(&[hash("subset"), at_port("both")])),
            Some("both"),
            Some("subset"),
        ),
        (of_subset, format!("{top_and_port}, {}", subset(&[at_port("both")])), Some("both"), Some("top")),
        // Another subset's settings are none of its business.
        (whole, format!("{top}, {}", subset(&[hash("subset")])), Some("top"), Some("top")),
    ] {
        let balancing = cluster(destination, &rule).balancing.clone();
        let header = |names_port| match balancing.hash_keys.of_route(names_port) {
            Some(HashKey::Header(name)) => Some(name.as_str()),
            None => None,
            Some(other) => panic!("{other:?}"),
        };
        assert_eq!((header(true), header(false)), (with_port, without_port), "{destination} {rule}");
    }
    // A port that hashes nothing has no keys, though the rule has one.
    let rule =
        policy(&[hash("top"), "portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]".to_owned()]);
    let balancing = cluster(whole, &rule).balancing.clone();
    assert_eq!((balancing.policy, balancing.hash_keys.of_route(false)), (BalancingPolicy::Random, None));
}

#[test]
fn warmups() {
    let warmup = |seconds, minimum_percent, aggression| {
        Some(Warmup { duration: Duration::from_secs(seconds), minimum_percent, aggression })
    };
    let ignored = |field: &str| vec![format!("GW0102 spec.trafficPolicy.loadBalancer.{field}: ")];
    for (settings, expected, warnings) in [
        ("warmup: {duration: 30s}", warmup(30, 10.0, 1.0), vec![]),
        (
            "simple: ROUND_ROBIN, warmup: {duration: 30s, minimumPercent: 0, aggression: 2.5}",
            warmup(30, 0.0, 2.5),
            vec![],
        ),
        ("warmupDurationSecs: 45s", warmup(45, 10.0, 1.0), vec![]),
        ("simple: RANDOM, warmup: {duration: 30s}", None, ignored("warmup")),
        ("consistentHash: {useSourceIp: true}, warmupDurationSecs: 3s", None, ignored("warmupDurationSecs")),
    ] {
        let rule = format!("trafficPolicy: {{loadBalancer: {{{settings}}}}}");
        let compiled = compiled(&yaml("port: {number: 80}", &rule));
        assert_eq!(cluster_of(&compiled).balancing.warmup, expected, "{settings}");
        let found = findings(&compiled, Severity::Warning);
        assert_eq!(found.len(), warnings.len(), "{settings}: {found:?}");
        assert!(found.iter().zip(&warnings).all(|(found, start)| found.starts_with(start.as_str())), "{found:?}");
    }
}

/// There is no original destination at a gateway.
#[test]
fn passthrough_has_no_endpoints() {
    for (destination, rule, path) in [
        ("port: {number: 80}", "trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}", "spec.trafficPolicy"),
        (
            "subset: v1, port: {number: 80}",
            "subsets: [{name: v1, labels: {v: '1'}, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}]",
            "spec.subsets[0].trafficPolicy",
        ),
    ] {
        let compiled = compiled(&yaml(destination, rule));
        assert_eq!(cluster_of(&compiled).endpoints, Endpoints::Static(Arc::default()));
        let found = findings(&compiled, Severity::Warning);
        let start = format!("GW0102 {path}.loadBalancer.simple: a gateway knows no original destination");
        assert!(matches!(found.as_slice(), [one] if one.starts_with(&start)), "{found:?}");
    }
}

#[test]
fn outlier_detections() {
    let default = OutlierDetection {
        consecutive_5xx: 5,
        consecutive_gateway_errors: 0,
        split_local_origin: false,
        consecutive_local_origin_failures: 5,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_percent: 10,
        panic_percent: 0,
        error_codes: Vec::new(),
    };
    for (settings, expected) in [
        ("", default.clone()),
        ("consecutive5xxErrors: 0", OutlierDetection { consecutive_5xx: 0, ..default.clone() }),
        (
            "consecutive5xxErrors: 7, consecutiveGatewayErrors: 3",
            OutlierDetection { consecutive_5xx: 7, consecutive_gateway_errors: 3, ..default.clone() },
        ),
        (
            "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2",
            OutlierDetection { split_local_origin: true, consecutive_local_origin_failures: 2, ..default.clone() },
        ),
        ("maxEjectionPercent: 0", default.clone()),
        (
            "interval: 1s, baseEjectionTime: 400s, maxEjectionPercent: 100, minHealthPercent: 50",
            OutlierDetection {
                interval: Duration::from_secs(1),
                base_ejection_time: Duration::from_secs(400),
                max_ejection_time: Duration::from_secs(400),
                max_ejection_percent: 100,
                panic_percent: 50,
                ..default.clone()
            },
        ),
        (
            "outlierDetectionHttpErrorCodes: [503, 429, 503]",
            OutlierDetection { error_codes: vec![429, 503], ..default.clone() },
        ),
    ] {
        let cluster = of_policy(&format!("outlierDetection: {{{settings}}}"));
        assert_eq!(cluster.outlier_detection.as_deref(), Some(&expected), "{settings}");
    }
    assert_eq!(of_policy("loadBalancer: {}").outlier_detection, None);
}

/// §5.2: blocks are taken whole, the mesh's stands in for one that is missing.
#[test]
fn layers() {
    let errors = |errors: u32| format!("outlierDetection: {{consecutive5xxErrors: {errors}}}");
    let port = |block: &str| format!("portLevelSettings: [{{port: {{number: 80}}, {block}}}]");
    let pool = "connectionPool: {tcp: {maxConnections: 1}}";
    let mesh = mesh_config(&format!("defaultTrafficPolicy: {{{}}}", errors(9)));
    let top = errors(1);
    let of_subset = "subset: v1, port: {number: 80}";
    let subset = |policy: &str| format!("subsets: [{{name: v1, labels: {{v: '1'}}, trafficPolicy: {{{policy}}}}}]");
    for (destination, rule, alone, with_mesh) in [
        ("port: {number: 80}", format!("trafficPolicy: {{{top}}}"), Some(1), Some(1)),
        ("port: {number: 80}", format!("trafficPolicy: {{{pool}}}"), None, Some(9)),
        ("port: {number: 80}", format!("trafficPolicy: {{{top}, {}}}", port(&errors(2))), Some(2), Some(2)),
        ("port: {number: 80}", format!("trafficPolicy: {{{top}, {}}}", port(pool)), None, Some(9)),
        ("port: {number: 81}", format!("trafficPolicy: {{{top}, {}}}", port(pool)), Some(1), Some(1)),
        (of_subset, format!("trafficPolicy: {{{top}}}, {}", subset(pool)), Some(1), Some(1)),
        (of_subset, format!("trafficPolicy: {{{top}}}, {}", subset(&errors(3))), Some(3), Some(3)),
        (of_subset, format!("trafficPolicy: {{{top}}}, {}", subset(&port(&errors(4)))), Some(4), Some(4)),
        (of_subset, subset(pool), None, Some(9)),
        // What the port of a subset leaves out is unset, whatever it is elsewhere.
        (of_subset, format!("trafficPolicy: {{{top}}}, {}", subset(&port(pool))), None, None),
    ] {
        let text = yaml(destination, &rule);
        let errors = |text: &str| {
            cluster_of(&compiled(text)).outlier_detection.as_ref().map(|detection| detection.consecutive_5xx)
        };
        assert_eq!((errors(&text), errors(&(text.clone() + &mesh))), (alone, with_mesh), "{destination} {rule}");
    }
    // The mesh's default needs no rule, and is no finding.
    let bare = yaml("port: {number: 80}", "trafficPolicy: {loadBalancer: {}}")
        .replace("host: s.com, traffic", "host: o.com, traffic");
    let compiled = compiled(&(bare + &mesh));
    assert!(cluster_of(&compiled).outlier_detection.is_some());
    assert!(findings(&compiled, Severity::Warning).iter().all(|found| found.contains("o.com")));
    // The policy is layered like the rest.
    let balancing = |rule: String| cluster(of_subset, &rule).balancing.policy;
    let simple = |name: &str| format!("loadBalancer: {{simple: {name}}}");
    let top = format!("trafficPolicy: {{{}}}", simple("RANDOM"));
    assert_eq!(balancing(format!("{top}, {}", subset(&simple("ROUND_ROBIN")))), BalancingPolicy::RoundRobin);
    assert_eq!(balancing(format!("{top}, {}", subset(pool))), BalancingPolicy::Random);
    assert_eq!(balancing(format!("{top}, {}", subset(&port(pool)))), BalancingPolicy::LeastRequest);
}

/// `proxyProtocol` and `retryBudget` are lost under the settings of a port, unless a subset has them.
#[test]
fn proxy_protocols() {
    let port = "portLevelSettings: [{port: {number: 80}, loadBalancer: {}}]";
    let whole = "port: {number: 80}";
    let of_subset = "subset: v1, port: {number: 80}";
    for (destination, rule, expected) in [
        (whole, "trafficPolicy: {proxyProtocol: {}}".to_owned(), Some(ProxyProtocol::V1)),
        (whole, "trafficPolicy: {proxyProtocol: {version: V2}}".to_owned(), Some(ProxyProtocol::V2)),
        (whole, format!("trafficPolicy: {{proxyProtocol: {{}}, {port}}}"), None),
        (
            of_subset,
            "trafficPolicy: {proxyProtocol: {}}, subsets: [{name: v1, labels: {v: '1'}}]".to_owned(),
            Some(ProxyProtocol::V1),
        ),
        (
            of_subset,
            format!(
                "subsets: [{{name: v1, labels: {{v: '1'}}, trafficPolicy: {{proxyProtocol: {{version: V2}}, {port}}}}}]"
            ),
            Some(ProxyProtocol::V2),
        ),
    ] {
        let compiled = compiled(&yaml(destination, &rule));
        assert_eq!(cluster_of(&compiled).proxy_protocol, expected, "{rule}");
        assert!(compiled.diagnostics.is_empty(), "{rule}: {:?}", compiled.diagnostics);
    }
}

#[test]
fn pings_need_http2() {
    let pool = |more: &str| {
        format!("trafficPolicy: {{connectionPool: {{http: {{http2KeepAlive: {{interval: 30s, timeout: 5s}}{more}}}}}}}")
    };
    let pings = Some(Http2Keepalive { interval: Duration::from_secs(30), timeout: Duration::from_secs(5) });
    for (port, more, expected) in [
        (80, "", None),
        (80, ", h2UpgradePolicy: UPGRADE", pings),
        (80, ", useClientProtocol: true", None),
        (90, "", pings),
    ] {
        let compiled = compiled(&yaml(&format!("port: {{number: {port}}}"), &pool(more)));
        assert_eq!(cluster_of(&compiled).limits.http2_keepalive, expected, "{port} {more}");
        assert!(compiled.diagnostics.is_empty());
    }
}

#[test]
fn retry_budgets() {
    let budget = |percent, min_concurrency, interval| Some(RetryBudget { percent, min_concurrency, interval });
    for (settings, expected) in [
        ("", budget(20.0, 3, None)),
        ("percent: 12.5, minRetryConcurrency: 7", budget(12.5, 7, None)),
        ("percent: {value: 5}, budgetInterval: 10s", budget(5.0, 3, Some(Duration::from_secs(10)))),
        ("budgetInterval: 0s", budget(20.0, 3, None)),
    ] {
        let cluster = of_policy(&format!("retryBudget: {{{settings}}}"));
        assert_eq!(cluster.limits.retry_budget, expected, "{settings}");
    }
}
