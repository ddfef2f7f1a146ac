//! networking.md §3.16: destinations, weights, ports.

use std::collections::BTreeMap;

use crate::harness::client::Http1;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::{Upstream, answer, status};

/// An upstream that answers with its name.
async fn named(name: &'static str) -> Upstream {
    Upstream::h1(move |_| answer(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len()))).await
}

/// How often each body comes in `count` requests.
async fn spread(gateway: &Gateway, host: &str, count: usize) -> BTreeMap<String, usize> {
    let mut client = Http1::connect(gateway.address(80)).await;
    let mut spread = BTreeMap::new();
    for _ in 0..count {
        let response = client.get(host, "/").await;
        *spread.entry(format!("{} {}", response.status, response.text())).or_default() += 1;
    }
    spread
}

#[tokio::test]
async fn weights() {
    let (a, b) = (named("a").await, named("b").await);
    let destinations = |weights: &[(&str, u32)]| {
        let destinations: Vec<_> = weights
            .iter()
            .map(|(service, weight)| format!("{{destination: {{host: {service}.test}}, weight: {weight}}}"))
            .collect();
        format!("[{{route: [{}]}}]", destinations.join(", "))
    };
    let gateway = Mesh::new()
        .http("a.test", &[a.address()])
        .http("b.test", &[b.address()])
        .routes("zero.com", &destinations(&[("a", 0), ("b", 100)]))
        .routes("single-zero.com", &destinations(&[("a", 0)]))
        .routes("any-sum.com", &destinations(&[("a", 1), ("b", 1)]))
        .routes("quarter.com", &destinations(&[("a", 75), ("b", 225)]))
        .start()
        .await;
    let mut table = Table::new("networking.md §3.16, weights");
    table.row("0 and 100: only the second");
    table.check("spread", &BTreeMap::from([("200 b".to_owned(), 50)]), &spread(&gateway, "zero.com", 50).await);
    table.row("one destination: its weight is ignored");
    table.check("spread", &BTreeMap::from([("200 a".to_owned(), 50)]), &spread(&gateway, "single-zero.com", 50).await);
    // 400 draws; the bounds are six standard deviations wide.
    for (name, host, low, high) in [("any sum", "any-sum.com", 140, 260), ("a quarter", "quarter.com", 48, 152)] {
        table.row(name);
        let spread = spread(&gateway, host, 400).await;
        let first = spread.get("200 a").copied().unwrap_or_default();
        table.check(&format!("share of the first, {spread:?}"), &true, &(low..=high).contains(&first));
        table.check(
            "all answered",
            &400,
            &spread.iter().filter(|(body, _)| body.starts_with("200")).map(|(_, count)| count).sum::<usize>(),
        );
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn a_retry_stays_at_its_destination() {
    let (a, b) = (Upstream::h1(|_| status(503)).await, Upstream::h1(|_| status(503)).await);
    let gateway = Mesh::new()
        .http("a.test", &[a.address()])
        .http("b.test", &[b.address()])
        .routes(
            "w.com",
            "[{route: [{destination: {host: a.test}, weight: 1}, {destination: {host: b.test}, weight: 1}], \
             retries: {attempts: 3, retryOn: 5xx}}]",
        )
        .start()
        .await;
    let mut client = Http1::connect(gateway.address(80)).await;
    for _ in 0..12 {
        client.get("w.com", "/").await;
        let tries = (a.take().len(), b.take().len());
        assert!(matches!(tries, (4, 0) | (0, 4)), "{tries:?}");
    }
}

#[tokio::test]
async fn resolution() {
    let (main, other, default_ns) = (named("main").await, named("other").await, named("default").await);
    let port = |upstream: &Upstream| upstream.address().port();
    // Two ports, one of them the server's own.
    let two_ports = format!(
        "hosts: [two.test]\nlocation: MESH_EXTERNAL\nresolution: STATIC\n\
         ports: [{{number: 80, name: main, protocol: HTTP}}, {{number: 81, name: other, protocol: HTTP}}]\n\
         endpoints: [{{address: 127.0.0.1, ports: {{main: {}, other: {}}}}}]\n",
        port(&main),
        port(&other)
    );
    let foreign_ports = two_ports.replace("two.test", "foreign.test").replace("number: 80,", "number: 82,");
    let one_port = two_ports
        .replace("two.test", "one.test")
        .replace("{number: 80, name: main, protocol: HTTP}, ", "")
        .replace(&format!("main: {}, ", port(&main)), "");
    let to = |destination: &str| format!("[{{route: [{{destination: {{{destination}}}}}]}}]");
    let subsets = "host: two.test\nsubsets:\n- {name: v1, labels: {version: v1}}\n";
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: short, namespace: default}}\n\
         spec: {{clusterIP: 10.0.0.1, ports: [{{name: http, port: 80, targetPort: {}}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: short-1, namespace: default, labels: {{kubernetes.io/service-name: short}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: {}}}]\nendpoints: [{{addresses: [127.0.0.1], conditions: {{ready: true}}}}]\n",
        port(&default_ns),
        port(&default_ns)
    );
    let gateway = Mesh::new()
        .resource("ServiceEntry", &two_ports)
        .resource("ServiceEntry", &foreign_ports)
        .resource("ServiceEntry", &one_port)
        .resource("DestinationRule", subsets)
        .document(&service)
        .routes("only-port.com", &to("host: one.test"))
        .routes("server-port.com", &to("host: two.test"))
        .routes("chosen-port.com", &to("host: two.test, port: {number: 81}"))
        .routes("missing-server-port.com", &to("host: foreign.test"))
        .routes("unknown-port.com", &to("host: two.test, port: {number: 99}"))
        .routes("unknown-host.com", &to("host: nowhere.test"))
        .routes("upper-host.com", &to("host: TWO.test"))
        .routes("unknown-subset.com", &to("host: two.test, subset: v9, port: {number: 80}"))
        .routes("empty-subset.com", &to("host: two.test, subset: v1, port: {number: 80}"))
        .routes("short-name.com", &to("host: short"))
        .routes("full-name.com", &to("host: short.default.svc.cluster.local"))
        .start()
        .await;
    let mut table = Table::new("networking.md §3.16, destinations");
    for (host, status, body, flags, details) in [
        ("only-port.com", 200, "other", "-", "via_upstream"),
        ("server-port.com", 200, "main", "-", "via_upstream"),
        ("chosen-port.com", 200, "other", "-", "via_upstream"),
        ("missing-server-port.com", 503, "", "NC", "cluster_not_found"),
        ("unknown-port.com", 503, "", "NC", "cluster_not_found"),
        ("unknown-host.com", 503, "", "NC", "cluster_not_found"),
        ("upper-host.com", 503, "", "NC", "cluster_not_found"),
        ("unknown-subset.com", 503, "", "NC", "cluster_not_found"),
        ("empty-subset.com", 503, "no healthy upstream", "UH", "no_healthy_upstream"),
        ("short-name.com", 200, "default", "-", "via_upstream"),
        ("full-name.com", 200, "default", "-", "via_upstream"),
    ] {
        table.row(host);
        let response = Http1::connect(gateway.address(80)).await.get(host, "/").await;
        table.check("status", &status, &response.status);
        table.check("body", body, response.text().as_str());
        table.expect_log(response.client, status, flags, details);
    }
    table.check_logs(&gateway).await;
    table.finish();
}
