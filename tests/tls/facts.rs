//! What logs and metrics know of TLS. `reference/telemetry-and-operations.md` §4.5, §2.

use super::{edge, https};
use crate::harness::client::Http1;
use crate::harness::eventually;
use crate::harness::mesh::Mesh;
use crate::harness::pki::{Authority, Leaf, hex, mutual_secret, workload_files};
use crate::harness::table::Table;
use crate::harness::tls_client::{Settings, Version};
use crate::harness::tls_server::TlsServer;
use crate::harness::upstream::{Upstream, ok};

#[tokio::test]
async fn the_access_log_tells_of_both_certificates() {
    let (authority, ca) = (Authority::new("servers"), Authority::new("clients"));
    let upstream = Upstream::ok().await;
    let server = authority.issue(&Leaf::server("a.test").uri("spiffe://td/ns/edge/sa/gateway"));
    let leaf = Leaf::client("client one").uri("spiffe://td/a").uri("spiffe://td/b").dns("c.test").ip("192.0.2.7");
    let client = ca.issue(&leaf.email("me@c.test"));
    let serial = hex(client.serial());
    let hash = hex(&client.hash());
    let operators: &[(&str, &str, &str)] = &[
        // With a certificate and TLS 1.2; without one and TLS 1.3.
        ("DOWNSTREAM_TLS_VERSION", "TLSv1.2", "TLSv1.3"),
        ("DOWNSTREAM_TLS_CIPHER", "ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_AES_256_GCM_SHA384"),
        ("DOWNSTREAM_PEER_URI_SAN", "spiffe://td/a,spiffe://td/b", "-"),
        ("DOWNSTREAM_PEER_DNS_SAN", "c.test", "-"),
        ("DOWNSTREAM_PEER_IP_SAN", "192.0.2.7", "-"),
        ("DOWNSTREAM_PEER_EMAIL_SAN", "me@c.test", "-"),
        ("DOWNSTREAM_PEER_SUBJECT", "CN=client one", "-"),
        ("DOWNSTREAM_PEER_ISSUER", "CN=clients", "-"),
        ("DOWNSTREAM_PEER_SERIAL", &serial, "-"),
        ("DOWNSTREAM_PEER_FINGERPRINT_256", &hash, "-"),
        ("DOWNSTREAM_LOCAL_URI_SAN", "spiffe://td/ns/edge/sa/gateway", "spiffe://td/ns/edge/sa/gateway"),
        ("DOWNSTREAM_LOCAL_DNS_SAN", "a.test", "a.test"),
        ("DOWNSTREAM_LOCAL_SUBJECT", "CN=a.test", "CN=a.test"),
        ("REQUESTED_SERVER_NAME", "a.test", "a.test"),
    ];
    let format: Vec<_> = operators.iter().map(|(operator, _, _)| format!("%{operator}%")).collect();
    let yaml = https("a.test", "{mode: OPTIONAL_MUTUAL, credentialName: c}");
    let mesh = edge(&yaml, &[443], upstream.address())
        .document(&mutual_secret("c", &server, &ca.pem()))
        .mesh_config(&format!("accessLogFile: /dev/stdout\naccessLogFormat: \"FACTS|{}|\\n\"\n", format.join("|")));
    let gateway = mesh.builder().access_log(None).start().await.unwrap();
    let mut table = Table::new("TLS in the access log, telemetry-and-operations.md §4.5");
    let aes128 = [rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];
    let aes256 = [rustls::CipherSuite::TLS13_AES_256_GCM_SHA384];
    let with = Settings::new(&[]).version(Version::Tls12).suites(&aes128).identity(&client);
    let without = Settings::new(&[]).version(Version::Tls13).suites(&aes256);
    for (settings, with) in [(with, true), (without, false)] {
        let mark = gateway.log_mark();
        assert_eq!(settings.get(gateway.address(443), "a.test", "/").await.unwrap().status, 200);
        let line = gateway.output_since(mark, |line| line.starts_with("FACTS|")).await.expect("a line");
        let values: Vec<_> = line.split('|').skip(1).collect();
        for ((operator, expected_with, expected_without), value) in operators.iter().zip(values) {
            table.row(format!("{operator}, {}", if with { "with a certificate" } else { "without" }));
            table.check("value", if with { *expected_with } else { *expected_without }, value);
        }
    }
    table.finish();
}

#[tokio::test]
async fn metrics_name_both_ends_of_an_upstream_connection() {
    let root = Authority::new("mesh");
    let place = tempfile::tempdir().unwrap();
    let ours = root.issue(&Leaf::workload("spiffe://cluster.local/ns/istio-system/sa/gateway"));
    workload_files(place.path(), &ours, &root.pem());
    let theirs = root.issue(&Leaf::workload("spiffe://cluster.local/ns/shop/sa/reviews"));
    let server = TlsServer::mutual(&theirs, &root, &["istio"]);
    let upstream = Upstream::h1_tls(&server, |_| ok()).await;
    let mesh = Mesh::new()
        .http("mesh.up", &[upstream.address()])
        .route("a.test", "mesh.up")
        .resource("DestinationRule", "host: mesh.up\ntrafficPolicy: {tls: {mode: ISTIO_MUTUAL}}\n");
    let gateway = mesh.builder().argument("--identity").argument(place.path().to_str().unwrap()).start().await.unwrap();
    assert_eq!(Http1::connect(gateway.address(80)).await.get("a.test", "/").await.status, 200);
    let line = eventually("the request in the metrics", || async {
        let page = gateway.metrics_page().await;
        page.lines().find(|line| line.starts_with("istio_requests_total{")).map(str::to_owned)
    })
    .await;
    for label in [
        "source_principal=\"spiffe://cluster.local/ns/istio-system/sa/gateway\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/reviews\"",
        "connection_security_policy=\"unknown\"",
    ] {
        assert!(line.contains(label), "no {label} in {line}");
    }
}
