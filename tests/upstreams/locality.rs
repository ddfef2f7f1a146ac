//! networking.md §5.4: endpoints nearby come first.

use std::net::{IpAddr, Ipv4Addr};

use super::{Switched, outcomes, rule, service, tally, who_answers};
use crate::harness::eventually;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::Upstream;

/// Ejects with the first error, for longer than a test takes.
const DETECTION: &str = "outlierDetection: {consecutive5xxErrors: 1, maxEjectionPercent: 100}";

async fn start(mesh: Mesh) -> Gateway {
    let labels = ["istio=ingressgateway", "tier=a", "version=v1"];
    let builder = mesh.builder().argument("--locality").argument("region1/zone1/sub1");
    let builder = labels.into_iter().fold(builder, |builder, label| builder.argument("--label").argument(label));
    builder.start().await.unwrap_or_else(|failure| panic!("{failure}"))
}

/// A service whose endpoints have these fields, and to which its own host is routed in turns, with further settings.
fn placed(mesh: Mesh, host: &str, upstreams: &[Switched], fields: &[&str], setting: &str, policy: &str) -> Mesh {
    let upstreams = upstreams.iter().map(|switched| &switched.upstream).zip(fields.iter().copied());
    let balancer = format!("loadBalancer: {{simple: ROUND_ROBIN{setting}}}, {policy}");
    service(mesh, host, "HTTP", upstreams)
        .resource("DestinationRule", &rule(host, &balancer))
        .routes(host, &format!("[{{route: [{{destination: {{host: {host}}}}}], retries: {{attempts: 0}}}}]"))
}

/// Name, fields of the endpoints, setting, and which of them are used after each failure of all that were.
type FailoverRow<'a> = (&'a str, &'a [&'a str], String, &'a [&'a [usize]]);

/// Name, host, fields of the endpoints, setting, rest of the policy, and each one's share of 300 requests.
type SharesRow<'a> = (&'a str, &'a str, &'a [&'a str], &'a str, &'a str, [usize; 4]);

/// Endpoints fail one after the other, always those that are used.
#[tokio::test]
async fn failover() {
    let near = ["locality: region1/zone1/sub1", "locality: region1/zone1/sub2", "locality: region1/zone2/sub1"];
    let all = [near[0], near[1], near[2], "locality: region2/zone1/sub1"];
    let mixed = [all[3], all[2], all[1], all[0]];
    let regions = [near[0], "locality: region2/zone1", "locality: region3/zone1", "locality: region4"];
    let by_labels = [
        "labels: {tier: a, version: v1}",
        "labels: {tier: a, version: v2}",
        "labels: {tier: b, version: v1}",
        "labels: {tier: b, version: v2}",
    ];
    let topology = |region: &str, zone: &str| {
        format!("labels: {{topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: {zone}}}")
    };
    let topologies = [topology("region1", "zone1"), topology("region1", "zone2"), topology("region2", "zone1")];
    let topologies = topologies.each_ref().map(String::as_str);
    let lb = |setting: &str| format!(", localityLbSetting: {{{setting}}}");
    let rows: [FailoverRow<'_>; 10] = [
        ("distance", &all, String::new(), &[&[0], &[1], &[2], &[3], &[]]),
        ("not by their order", &mixed, String::new(), &[&[3], &[2], &[1], &[0], &[]]),
        ("none in the subzone", &all[1..], String::new(), &[&[0], &[1], &[2], &[]]),
        ("enabled", &all, lb("enabled: true"), &[&[0], &[1], &[2], &[3], &[]]),
        ("regions are equal", &regions, String::new(), &[&[0], &[1, 2, 3], &[]]),
        ("a region to fail over to", &regions, lb("failover: [{from: region1, to: region3}]"), &[&[0], &[2], &[1, 3]]),
        ("of another region", &regions, lb("failover: [{from: region2, to: region3}]"), &[&[0], &[1, 2, 3]]),
        ("labels", &by_labels, lb("failoverPriority: [tier, version]"), &[&[0], &[1], &[2, 3], &[]]),
        ("labels with values", &by_labels, lb("failoverPriority: ['tier=b', 'version=v2']"), &[&[3], &[2], &[0, 1]]),
        (
            "labels of the topology",
            &topologies,
            lb("failoverPriority: [topology.kubernetes.io/region, topology.kubernetes.io/zone]"),
            &[&[0], &[1], &[2], &[]],
        ),
    ];
    let upstreams = Switched::several(4).await;
    let host = |row: usize| format!("row-{row}.test");
    let mut mesh = Mesh::new();
    for (row, (_, fields, setting, _)) in rows.iter().enumerate() {
        mesh = placed(mesh, &host(row), &upstreams, fields, setting, DETECTION);
    }
    let gateway = start(mesh).await;
    let mut table = Table::new("networking.md §5.4, failover");
    for (row, (name, _, _, expected)) in rows.iter().enumerate() {
        table.row(*name);
        upstreams.iter().for_each(|upstream| upstream.answers(200));
        for (failed, wanted) in expected.iter().enumerate() {
            if wanted.is_empty() {
                table.check("outcomes", &vec!["UH".to_owned(); 3], &outcomes(&gateway, &host(row), 3).await);
                continue;
            }
            let used = tally(&who_answers(&gateway, &host(row), 12).await, 4);
            let mut share = vec![0; 4];
            wanted.iter().for_each(|&number| share[number] = 12 / wanted.len());
            if !table.check(&format!("after {failed} failures"), &share, &used) {
                break;
            }
            wanted.iter().for_each(|&number| upstreams[number].answers(503));
            // Each fails once and is ejected.
            eventually("none of them is asked any more", || async {
                let outcomes = outcomes(&gateway, &host(row), 12).await;
                (!outcomes.contains(&"503".to_owned())).then_some(())
            })
            .await;
        }
    }
    table.finish();
}

/// `upstream/priority-failover`.
#[tokio::test]
async fn a_failing_priority_is_left() {
    let upstreams = Switched::several(2).await;
    upstreams[0].answers(503);
    let fields = ["locality: region1/zone1/sub1", "locality: region2"];
    let detection = "outlierDetection: {consecutive5xxErrors: 2, maxEjectionPercent: 100}";
    let gateway = start(placed(Mesh::new(), "a.test", &upstreams, &fields, "", detection)).await;
    assert_eq!(outcomes(&gateway, "a.test", 8).await, ["503", "503", "200", "200", "200", "200", "200", "200"]);
}

/// `endpoints_dns/priority-half-healthy`, `endpoints_dns/locality-weights`, and where localities don't count.
#[tokio::test]
async fn shares() {
    let upstreams = Switched::several(4).await;
    let places = [
        "locality: region1/zone1/sub1",
        "locality: region1/zone1/sub1",
        "locality: region1/zone2/sub1",
        "locality: region2",
    ];
    let halves = ["locality: region1/zone1/sub1", "locality: region1/zone1/sub1", "locality: region2"];
    let distributed = [
        "locality: region1/zone1/sub1",
        "locality: region1/zone2/sub1",
        "locality: region1/zone2/sub1",
        "locality: region2",
    ];
    let distribute =
        |from: &str, to: &str| format!(", localityLbSetting: {{distribute: [{{from: {from}, to: {{{to}}}}}]}}");
    let shares = distribute("'region1/zone1/*'", "'region1/zone1/*': 80, 'region1/zone2/*': 20");
    // The entry that counts is that for our own locality.
    let shares = shares.replace("[{from: ", "[{from: 'region2/*', to: {'region2': 100}}, {from: ");
    let exact = distribute("region1/zone1/sub1", "region1/zone1/sub1: 80, region1/zone2/sub1: 20");
    let elsewhere = distribute("'region2/*'", "'region2/*': 100");
    let regions_share = distribute("'*'", "'region1/*': 90, region2: 10");
    let rows: [SharesRow<'_>; 8] = [
        ("distribute", "shares.test", &distributed, &shares, DETECTION, [240, 30, 30, 0]),
        ("distribute without detection", "plain.test", &distributed, &exact, "", [240, 30, 30, 0]),
        ("distribute from elsewhere", "elsewhere.test", &distributed, &elsewhere, "", [75, 75, 75, 75]),
        ("distribute to regions", "region.test", &distributed, &regions_share, "", [90, 90, 90, 30]),
        ("without detection", "undetected.test", &places, "", "", [75, 75, 75, 75]),
        (
            "failover without detection",
            "failover.test",
            &places,
            ", localityLbSetting: {failover: [{from: region1, to: region2}]}",
            "",
            [75, 75, 75, 75],
        ),
        ("disabled", "disabled.test", &places, ", localityLbSetting: {enabled: false}", DETECTION, [75, 75, 75, 75]),
        ("two in the subzone", "near.test", &places, "", DETECTION, [150, 150, 0, 0]),
    ];
    let mut mesh = placed(Mesh::new(), "halves.test", &upstreams, &halves, "", DETECTION);
    for (_, host, fields, setting, policy, _) in &rows {
        mesh = placed(mesh, host, &upstreams, fields, setting, policy);
    }
    let gateway = start(mesh).await;
    let mut table = Table::new("networking.md §5.4, shares");
    for (name, host, _, _, _, expected) in rows {
        table.row(name);
        let counts = tally(&who_answers(&gateway, host, 300).await, 4);
        // Turns are due at sums of fractions, as in Envoy: of three that fall together any may
        // come first.
        let tolerance = usize::from(host == "region.test");
        if counts.iter().zip(expected).any(|(&got, expected)| got.abs_diff(expected) > tolerance) {
            table.fail(format!("{counts:?} of 300 requests instead of {expected:?}"));
        }
    }
    table.row("half ejected");
    upstreams[0].answers(503);
    outcomes(&gateway, "halves.test", 2).await;
    upstreams[0].answers(200);
    let counts = tally(&who_answers(&gateway, "halves.test", 300).await, 3);
    table.check("the ejected one", &0, &counts[0]);
    // 30 % of 300, give or take six standard deviations.
    if !(42..=138).contains(&counts[2]) {
        table.fail(format!("{counts:?} of 300 requests"));
    }
    table.finish();
}

/// Who decides: the rule, the Service's wish, the mesh.
#[tokio::test]
async fn precedence() {
    let addresses = [1, 2, 3].map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)));
    let upstreams = Upstream::ok_on(&addresses).await;
    let port = upstreams[0].address().port();
    let kubernetes = |name: &str, annotation: &str| {
        let endpoints: Vec<_> = ["zone1", "zone1", "zone2"]
            .iter()
            .zip(addresses)
            .map(|(zone, address)| format!("{{addresses: [{address}], zone: {zone}, conditions: {{ready: true}}}}"))
            .collect();
        format!(
            "apiVersion: v1\nkind: Service\n\
             metadata: {{name: {name}, namespace: default, annotations: {{{annotation}}}}}\n\
             spec: {{clusterIP: 10.0.0.1, ports: [{{name: http, port: 80, targetPort: {port}}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: default, \
             labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
             ports: [{{name: http, port: {port}}}]\nendpoints: [{}]\n",
            endpoints.join(", ")
        )
    };
    let close = "networking.istio.io/traffic-distribution: PreferClose";
    let off = "localityLbSetting: {enabled: false}";
    let all = [30, 30, 30];
    let near = [45, 45, 0];
    // The Service's annotation, whether the rule has the setting and detection, and what that means with each setting
    // of the mesh.
    let rows = [
        ("plain", "", "", "", [all, all, near]),
        ("close", close, "", "", [near, near, near]),
        ("detected", "", "", DETECTION, [near, all, near]),
        ("close-off", close, off, "", [all, all, all]),
        ("detected-off", "", off, DETECTION, [all, all, all]),
        ("close-detected-off", close, off, DETECTION, [all, all, all]),
    ];
    let meshes = [
        "",
        "localityLbSetting: {enabled: false}",
        "localityLbSetting: {distribute: [{from: '*', to: {'region1/zone1': 100}}]}",
    ];
    let mut table = Table::new("networking.md §5.4, precedence");
    for (index, setting) in meshes.into_iter().enumerate() {
        let mut mesh = Mesh::new();
        for (name, annotation, setting, detection, _) in rows {
            let balancer = format!("simple: ROUND_ROBIN{}{setting}", if setting.is_empty() { "" } else { ", " });
            let host = format!("{name}.default.svc.cluster.local");
            mesh = mesh
                .document(&kubernetes(name, annotation))
                .resource("DestinationRule", &rule(&host, &format!("loadBalancer: {{{balancer}}}, {detection}")))
                .route(&host, &host);
        }
        let gateway = start(if setting.is_empty() { mesh } else { mesh.mesh_config(setting) }).await;
        for (name, _, _, _, expected) in rows {
            table.row(format!("{name}, mesh {setting:?}"));
            let host = format!("{name}.default.svc.cluster.local");
            let outcomes = outcomes(&gateway, &host, 90).await;
            table.check("outcomes", &true, &outcomes.iter().all(|outcome| outcome == "200"));
            let counts: Vec<_> = upstreams.iter().map(|upstream| upstream.take().len()).collect();
            table.check("of 90 requests", &expected[index][..], &counts[..]);
        }
    }
    table.finish();
}
