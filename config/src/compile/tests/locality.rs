//! Where endpoints are, and which of them are used first: `reference/networking.md` §5.4.

use super::*;
use crate::snapshot::balancing::Placement;
use crate::snapshot::cluster::{Cluster, EndpointAddress, Endpoints};

const SERVER: &str = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}";
const EJECTS: &str = ", outlierDetection: {}";

/// A gateway in subzone c of zone b of region a.
fn here() -> Options {
    let mut options = Options { locality: Some("a/b/c".to_owned()), ..Options::default() };
    options.labels.insert("rack".to_owned(), "7".to_owned());
    options
}

fn route_to(host: &str) -> String {
    let spec = format!("{{hosts: [h.com], gateways: [gw/web], http: [{{route: [{{destination: {{{host}}}}}]}}]}}");
    gateway("gw", "web", SERVER) + &virtual_service("n", "v", &spec)
}

fn entry(fields: &str, endpoints: &[String]) -> String {
    let endpoints = endpoints.join(", ");
    let spec =
        format!("spec: {{hosts: [s.com], ports: [{{number: 80, name: http}}], {fields}, endpoints: [{endpoints}]}}");
    document("ServiceEntry", "n", "s", &spec)
}

/// Endpoints 192.0.2.1, .2 and so on with these fields.
fn addresses(fields: &[&str]) -> Vec<String> {
    let numbered = fields.iter().zip(1..);
    numbered.map(|(fields, number)| format!("{{address: 192.0.2.{number}, {fields}}}")).collect()
}

fn in_localities(localities: &[&str]) -> Vec<String> {
    let fields: Vec<String> = localities.iter().map(|locality| format!("locality: {locality}")).collect();
    addresses(&fields.iter().map(String::as_str).collect::<Vec<_>>())
}

fn rule(policy: &str) -> String {
    document("DestinationRule", "n", "r", &format!("spec: {{host: s.com, trafficPolicy: {{{policy}}}}}"))
}

fn setting(fields: &str) -> String {
    format!("loadBalancer: {{localityLbSetting: {{{fields}}}}}")
}

fn cluster(yaml: &str, options: &Options) -> Arc<Cluster> {
    Arc::clone(compiled_with(yaml, options).snapshot.clusters.values().next().unwrap())
}

/// The last number of each address, with its placement.
fn placements(cluster: &Cluster) -> Vec<(u8, Placement)> {
    let Endpoints::Static(endpoints) = &cluster.endpoints else { panic!("{:?}", cluster.endpoints) };
    let number = |address: &EndpointAddress| match address {
        EndpointAddress::Ip(std::net::IpAddr::V4(ip), _) => ip.octets()[3],
        other => panic!("{other:?}"),
    };
    endpoints.iter().map(|endpoint| (number(&endpoint.address), endpoint.placement.clone())).collect()
}

fn priorities(cluster: &Cluster) -> Vec<u32> {
    placements(cluster).into_iter().map(|(_, placement)| placement.priority).collect()
}

const EVERYWHERE: [&str; 5] = ["b/b/c", "a/x/c", "a/b/x", "a/b/c", "d"];

/// Failover needs ejections; without gaps, whoever is there.
#[test]
fn priorities_by_distance() {
    let all = &EVERYWHERE[..];
    for (localities, policy, expected) in [
        (all, "loadBalancer: {}".to_owned(), vec![0, 0, 0, 0, 0]),
        (all, format!("loadBalancer: {{}}{EJECTS}"), vec![3, 2, 1, 0, 3]),
        (all, setting(""), vec![0, 0, 0, 0, 0]),
        (all, setting("") + EJECTS, vec![3, 2, 1, 0, 3]),
        (all, setting("enabled: true") + EJECTS, vec![3, 2, 1, 0, 3]),
        (all, setting("enabled: false") + EJECTS, vec![0, 0, 0, 0, 0]),
        (all, setting("failover: [{from: a, to: d}]") + EJECTS, vec![4, 2, 1, 0, 3]),
        (all, setting("failover: [{from: a, to: d}]"), vec![0, 0, 0, 0, 0]),
        // The first entry for our region counts, and those for others don't.
        (
            all,
            setting("failover: [{from: b, to: a}, {from: a, to: b}, {from: a, to: d}]") + EJECTS,
            vec![3, 2, 1, 0, 4],
        ),
        (all, setting("failover: [{from: b, to: d}]") + EJECTS, vec![3, 2, 1, 0, 3]),
        (&["b", "a/b", "c"], setting("") + EJECTS, vec![1, 0, 1]),
        (&["b", "d"], setting("") + EJECTS, vec![0, 0]),
        (&["b", "d"], setting("failover: [{from: a, to: d}]") + EJECTS, vec![1, 0]),
    ] {
        let yaml = route_to("host: s.com") + &entry("resolution: STATIC", &in_localities(localities)) + &rule(&policy);
        assert_eq!(priorities(&cluster(&yaml, &here())), expected, "{localities:?} {policy}");
    }
}

/// A subset's endpoints are counted by themselves.
#[test]
fn priorities_of_a_subset() {
    let endpoints = addresses(&["locality: a/b/c", "locality: a/x, labels: {v: '1'}", "locality: d, labels: {v: '1'}"]);
    let rule = document(
        "DestinationRule",
        "n",
        "r",
        "spec: {host: s.com, trafficPolicy: {outlierDetection: {}}, subsets: [{name: v1, labels: {v: '1'}}]}",
    );
    let yaml = route_to("host: s.com, subset: v1") + &entry("resolution: STATIC", &endpoints) + &rule;
    assert_eq!(priorities(&cluster(&yaml, &here())), [0, 1]);
    // Labels of the topology may choose, too.
    let yaml = yaml.replace("{v: '1'}}]", "{topology.kubernetes.io/region: a}}]");
    assert_eq!(priorities(&cluster(&yaml, &here())), [0, 1]);
}

/// §5.4: N labels in order; later ones count only if all before them match.
#[test]
fn priorities_by_labels() {
    let endpoints = addresses(&[
        "labels: {rack: '7', disk: ssd}",
        "labels: {rack: '7', disk: tape}",
        "labels: {rack: '8', disk: ssd}",
        "locality: a/b/c, labels: {disk: ssd}",
    ]);
    for (labels, more, expected) in [
        ("[rack]", "", vec![0, 0, 1, 1]),
        ("[rack, disk=ssd]", "", vec![0, 1, 2, 2]),
        ("[disk=ssd, rack]", "", vec![0, 2, 1, 1]),
        // We have no disk, so that endpoints without one match us.
        ("[disk]", "", vec![0, 0, 0, 0]),
        ("[topology.istio.io/subzone, disk=ssd]", "", vec![1, 1, 1, 0]),
        ("[topology.istio.io/cluster, disk=ssd]", "", vec![0, 1, 0, 0]),
        ("[topology.kubernetes.io/region=d, rack]", "", vec![0, 0, 0, 0]),
        // With `failover`, distance decides among those that labels hold for equal.
        ("[disk=ssd]", ", failover: [{from: a, to: d}]", vec![1, 2, 1, 0]),
    ] {
        let policy = setting(&format!("failoverPriority: {labels}{more}")) + EJECTS;
        let yaml = route_to("host: s.com") + &entry("resolution: STATIC", &endpoints) + &rule(&policy);
        assert_eq!(priorities(&cluster(&yaml, &here())), expected, "{labels}{more}");
        let without = yaml.replace(EJECTS, "");
        assert_eq!(priorities(&cluster(&without, &here())), [0, 0, 0, 0], "{labels}{more}");
    }
}

/// Groups are localities; each entry of `to` shares its weight among them by the weights of their endpoints, rounded up.
#[test]
fn shares_of_localities() {
    let endpoints = addresses(&[
        "locality: a/b/c, weight: 3",
        "locality: a/x",
        "locality: a/b/c",
        "locality: d/e/f",
        "locality: g",
        "weight: 1",
    ]);
    for (distribute, expected, groups) in [
        // a/b/c weighs 4 of 5, a/x 1 of 5: of 80 that is 64 and 16.
        ("[{from: a/*, to: {'a/*': 80, 'd/*': 20}}]", vec![(1, 0), (2, 1), (3, 0), (4, 2)], vec![64, 16, 20]),
        ("[{from: 'a/b/*', to: {a/b/c: 99, g: 1}}]", vec![(1, 0), (3, 0), (5, 1)], vec![99, 1]),
        // 4/7, 1/7, 1/7 and 1/7 of 100; the endpoint without a locality is in `*`, too.
        ("[{from: a, to: {'*': 100}}]", vec![(1, 1), (2, 2), (3, 1), (4, 3), (5, 4), (6, 0)], vec![13, 50, 13, 13, 13]),
        // The one that matches us.
        ("[{from: x, to: {g: 100}}, {from: a/b, to: {d: 100}}, {from: a/x, to: {g: 100}}]", vec![(4, 0)], vec![100]),
        ("[{from: a/b/c, to: {nowhere: 100}}]", vec![], vec![]),
        // None: nothing happens.
        ("[{from: x, to: {g: 100}}]", vec![(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)], vec![]),
    ] {
        for more in ["", EJECTS] {
            let policy = setting(&format!("distribute: {distribute}")) + more;
            let yaml = route_to("host: s.com") + &entry("resolution: STATIC", &endpoints) + &rule(&policy);
            let cluster = cluster(&yaml, &here());
            let found = placements(&cluster);
            assert!(found.iter().all(|(_, placement)| placement.priority == 0), "{distribute}");
            let found: Vec<(u8, u32)> =
                found.into_iter().map(|(number, placement)| (number, placement.group)).collect();
            assert_eq!((found, cluster.balancing.groups.to_vec()), (expected.clone(), groups.clone()), "{distribute}");
        }
    }
}

/// Names to be resolved have their place like addresses.
#[test]
fn names_have_places() {
    let endpoints = ["{address: one.com, locality: d}".to_owned(), "{address: two.com, locality: a/b/c}".to_owned()];
    let text = |fields: &str, policy: &str| {
        let yaml = route_to("host: s.com") + &entry(fields, &endpoints) + &rule(policy);
        match &cluster(&yaml, &here()).endpoints {
            Endpoints::StrictDns(names) => {
                names.iter().map(|name| (name.host.to_string(), name.placement.clone())).collect::<Vec<_>>()
            }
            Endpoints::Static(none) if none.is_empty() => Vec::new(),
            other => panic!("{other:?}"),
        }
    };
    let place = |locality: &str, priority| Placement { locality: locality.into(), priority, group: 0 };
    let (one, two) = ("one.com".to_owned(), "two.com".to_owned());
    let expected = [(one, place("d", 1)), (two.clone(), place("a/b/c", 0))];
    assert_eq!(text("resolution: DNS", "outlierDetection: {}"), expected);
    let to = |to: &str| setting(&format!("distribute: [{{from: a, to: {{{to}: 100}}}}]"));
    assert_eq!(text("resolution: DNS", &to("a")), [(two, place("a/b/c", 0))]);
    assert_eq!(text("resolution: DNS", &to("nowhere")), []);
}

/// §5.4: the rule's setting, the service's wish, the mesh's setting.
#[test]
fn precedence() {
    let slice = |zones: &[(&str, &str)]| {
        let endpoints: Vec<String> = (zones.iter().zip(1..))
            .map(|((zone, node), number)| {
                format!("{{addresses: [192.0.2.{number}], zone: '{zone}', nodeName: '{node}'}}")
            })
            .collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, namespace: n, \
             labels: {{kubernetes.io/service-name: s}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
             endpoints: [{}]\n---\n",
            endpoints.join(", ")
        )
    };
    let endpoints = slice(&[("x", "other"), ("b", "other"), ("b", "node-1"), ("", "other")]);
    let service = |annotation: &str, field: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: n, annotations: \
             {{networking.istio.io/traffic-distribution: '{annotation}'}}}}\nspec: {{trafficDistribution: '{field}', \
             ports: [{{name: http, port: 80}}]}}\n---\n"
        )
    };
    let rule = |policy: &str| rule(policy).replace("s.com", "s");
    let mut options = here();
    options.labels.insert("kubernetes.io/hostname".to_owned(), "node-1".to_owned());
    let found = |service: &str, more: &str| {
        priorities(&cluster(&(route_to("host: s") + &endpoints + service + more), &options))
    };

    let (plain, close) = (service("", ""), service("", "PreferClose"));
    let ejects = rule("outlierDetection: {}");
    assert_eq!(found(&plain, ""), [0, 0, 0, 0]);
    // Where the zone alone is known, ours is in our region, and others are in none that we know.
    assert_eq!(found(&plain, &ejects), [1, 0, 0, 1]);
    // The service's wish needs no ejections. All match the network; of others the region is unknown.
    assert_eq!(found(&close, ""), [1, 0, 0, 1]);
    assert_eq!(found(&service("", "PreferSameZone"), ""), [1, 0, 0, 1]);
    assert_eq!(found(&service("preferclose", ""), ""), [1, 0, 0, 1]);
    assert_eq!(found(&service("PreferSameNode", ""), ""), [1, 0, 0, 1]);
    assert_eq!(found(&service("PreferSameNode", "PreferClose"), ""), [1, 0, 0, 1]);
    assert_eq!(found(&service("Whatever", "Something"), ""), [0, 0, 0, 0]);
    // The node counts only where the subzone is the same.
    let near = Options { locality: Some("a/b".to_owned()), ..options.clone() };
    let of_node = |service: &str| priorities(&cluster(&(route_to("host: s") + &endpoints + service), &near));
    assert_eq!(of_node(&service("", "PreferSameNode")), [2, 1, 0, 2]);
    assert_eq!(of_node(&close), [1, 0, 0, 1]);

    // The mesh's comes last, the rule's first.
    let mesh = |setting: &str| mesh_config(&format!("localityLbSetting: {setting}"));
    assert_eq!(found(&plain, &mesh("{failoverPriority: [kubernetes.io/hostname]}")), [0, 0, 0, 0]);
    let by_node = mesh("{failoverPriority: [kubernetes.io/hostname]}");
    assert_eq!(found(&plain, &(ejects.clone() + &by_node)), [1, 1, 0, 1]);
    assert_eq!(found(&plain, &(ejects.clone() + &mesh("{enabled: false}"))), [0, 0, 0, 0]);
    assert_eq!(found(&close, &(ejects.clone() + &by_node)), [1, 0, 0, 1]);
    assert_eq!(found(&close, &mesh("{enabled: false}")), [1, 0, 0, 1]);
    assert_eq!(found(&close, &rule(&setting("enabled: false"))), [0, 0, 0, 0]);
    assert_eq!(found(&close, &rule(&setting("failoverPriority: [kubernetes.io/hostname]"))), [0, 0, 0, 0]);
    let of_rule = setting("failoverPriority: ['kubernetes.io/hostname=other']") + EJECTS;
    assert_eq!(found(&close, &(rule(&of_rule) + &by_node)), [0, 0, 1, 0]);
    // The mesh's default ejections are ejections.
    let default = mesh_config("defaultTrafficPolicy: {outlierDetection: {}}");
    assert_eq!(found(&plain, &default), [1, 0, 0, 1]);
}

/// The annotation counts on a ServiceEntry, too, and on names to be resolved.
#[test]
fn service_entries_wish() {
    let endpoints = in_localities(&EVERYWHERE);
    let annotated = |word: &str| {
        let metadata = "metadata: {name: s, namespace: n";
        let annotation = format!("{metadata}, annotations: {{networking.istio.io/traffic-distribution: {word}}}");
        route_to("host: s.com") + &entry("resolution: STATIC", &endpoints).replace(metadata, &annotation)
    };
    assert_eq!(priorities(&cluster(&annotated("PreferClose"), &here())), [3, 2, 1, 0, 3]);
    assert_eq!(priorities(&cluster(&annotated("Any"), &here())), [0, 0, 0, 0, 0]);
}

/// Of several endpoints DNS_ROUND_ROBIN takes one, which stands for itself.
#[test]
fn a_single_name_has_no_rivals() {
    let workload = |name: &str, locality: &str| {
        let spec = format!("spec: {{address: {name}.com, labels: {{app: s}}, locality: {locality}}}");
        document("WorkloadEntry", "n", name, &spec)
    };
    let entry = "spec: {hosts: [s.com], ports: [{number: 80, name: http}], resolution: DNS_ROUND_ROBIN, \
                 workloadSelector: {labels: {app: s}}}";
    let yaml = route_to("host: s.com")
        + &document("ServiceEntry", "n", "s", entry)
        + &workload("a", "d")
        + &workload("b", "a/b/c");
    let place = |policy: &str| match &cluster(&(yaml.clone() + &rule(policy)), &here()).endpoints {
        Endpoints::LogicalDns(name) => Some((name.host.to_string(), name.placement.priority)),
        Endpoints::Static(none) if none.is_empty() => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(place("outlierDetection: {}"), Some(("a.com".to_owned(), 0)));
    assert_eq!(place(&setting("distribute: [{from: a, to: {a: 100}}]")), None);
}

/// §6.3, and what Kubernetes says of its endpoints.
#[test]
fn localities_of_endpoints() {
    let localities = |yaml: &str| -> Vec<String> {
        let cluster = cluster(yaml, &here());
        placements(&cluster).into_iter().map(|(_, placement)| placement.locality.to_string()).collect()
    };
    let endpoints = addresses(&[
        "locality: r/z/s",
        "locality: r, labels: {istio-locality: x.y.z}",
        "labels: {istio-locality: x.y.z}",
        "labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}",
        "weight: 1",
    ]);
    let yaml = route_to("host: s.com") + &entry("resolution: STATIC", &endpoints);
    assert_eq!(localities(&yaml), ["r/z/s", "r", "x/y/z", "r/z", ""]);

    let service = document("Service", "n", "s", "spec: {selector: {app: s}, ports: [{name: http, port: 80}]}");
    let old = "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: s, namespace: n, \
               labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\n\
               endpoints: [{addresses: [192.0.2.1], topology: {topology.kubernetes.io/region: r, \
               topology.kubernetes.io/zone: z, kubernetes.io/hostname: n}}]\n---\n";
    let workload = document("WorkloadEntry", "n", "w", "spec: {address: 192.0.2.2, labels: {app: s}, locality: q}");
    assert_eq!(localities(&(route_to("host: s") + &service + old + &workload)), ["r/z", "q"]);
}

/// Where a Service is resolved by name nothing is known of its endpoints: a setting for all must not cut it off.
#[test]
fn services_without_endpoints_are_in_one_pool() {
    let service = document("Service", "n", "s", "spec: {ports: [{name: http, port: 80}]}");
    let mesh = mesh_config("localityLbSetting: {distribute: [{from: a, to: {a: 100}}]}");
    let cluster = cluster(&(route_to("host: s") + &service + &mesh), &here());
    assert!(matches!(&cluster.endpoints, Endpoints::StrictDns(names) if names.len() == 1), "{:?}", cluster.endpoints);
    assert!(cluster.balancing.groups.is_empty());
}

/// A gateway that doesn't know where it is can't tell what is near.
#[test]
fn unknown_places_are_named() {
    let warnings = |policy: &str, more: &str, options: &Options| {
        let endpoints = in_localities(&EVERYWHERE);
        let yaml = route_to("host: s.com") + &entry("resolution: STATIC", &endpoints) + &rule(policy) + more;
        findings(&compiled_with(&yaml, options), Severity::Warning)
    };
    let nowhere = Options::default();
    let path = "GW0102 spec.trafficPolicy.loadBalancer.localityLbSetting: the locality of this gateway is unknown";
    for (fields, is_named) in [
        ("distribute: [{from: a, to: {a: 100}}]", true),
        ("distribute: [{from: '*', to: {a: 100}}]", false),
        ("failover: [{from: a, to: b}]", true),
        ("failoverPriority: [topology.kubernetes.io/region]", true),
        ("failoverPriority: [topology.kubernetes.io/region=a, rack]", false),
        ("enabled: false, failover: [{from: a, to: b}]", false),
        ("", false),
    ] {
        let policy = setting(fields) + EJECTS;
        let found = warnings(&policy, "", &nowhere);
        assert_eq!(found.len(), usize::from(is_named), "{fields}: {found:?}");
        assert!(found.iter().all(|found| found.starts_with(path)), "{found:?}");
        assert_eq!(warnings(&policy, "", &here()), [""; 0], "{fields}");
    }
    let mesh = mesh_config("localityLbSetting: {failover: [{from: a, to: b}]}");
    let found = warnings("outlierDetection: {}", &mesh, &nowhere);
    assert!(
        matches!(found.as_slice(), [one] if one.starts_with("GW0102 localityLbSetting: ") || one.contains("unknown")),
        "{found:?}"
    );
    for (policy, more) in [
        ("loadBalancer: {zoneAwareLbSetting: {}}", String::new()),
        ("outlierDetection: {}", mesh_config("zoneAwareLbSetting: {}")),
    ] {
        let found = warnings(policy, &more, &here());
        assert!(matches!(found.as_slice(), [one] if one.contains("zoneAwareLbSetting: not supported")), "{found:?}");
    }
}
