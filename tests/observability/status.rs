//! Readiness and the state of the configuration.

use serde_json::Value;

use crate::harness::client::Http1;
use crate::harness::mesh::Mesh;
use crate::harness::status::{Status, text};
use crate::harness::upstream::Upstream;

#[tokio::test]
async fn readiness() {
    let gateway = Mesh::new().start().await;
    let mut client = Http1::connect(gateway.status()).await;
    let response = client.get("localhost", "/healthz/ready").await;
    assert_eq!((response.status, response.text().as_str()), (200, ""));
    assert_eq!(client.get("localhost", "/else").await.status, 404);
    let response = Http1::connect(gateway.admin()).await.get("localhost", "/ready").await;
    assert_eq!((response.status, response.text().as_str()), (200, "LIVE\n"));
}

#[tokio::test]
async fn configuration() {
    let mesh = Mesh::new().routes("a.test", "[{directResponse: {status: 200}}]");
    let gateway = mesh.builder().argument("--accept-invalid").file("b.yaml", "kind: [x\n").start().await;
    let gateway = gateway.unwrap_or_else(|failure| panic!("{failure}"));
    let response = Http1::connect(gateway.admin()).await.get("localhost", "/config/status").await;
    assert_eq!((response.status, response.header("content-type")), (200, "application/json"));
    let status = Status(serde_json::from_slice(&response.body).expect("JSON"));
    assert!(status.0["generation"].as_u64() >= Some(1), "{}", status.0);
    // Every file and resource with its state.
    assert_eq!(status.state("Gateway", "gateway"), "accepted");
    assert_eq!(status.state("VirtualService", "virtualservice-0001"), "accepted");
    let files: Vec<_> = status.0["files"].as_array().unwrap().iter().map(|file| text(file, "path")).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(files[0].ends_with("/b.yaml") && files[1].ends_with("/config.yaml"), "{files:?}");
    assert_eq!(status.errors().len(), 1);
    let listener = &status.0["listeners"][0];
    assert_eq!((&listener["port"], &listener["addresses"][0]), (&80.into(), &gateway.address(80).to_string().into()));

    let response = Http1::connect(gateway.admin()).await.get("localhost", "/config/routes").await;
    let routes: Value = serde_json::from_slice(&response.body).expect("JSON");
    assert_eq!(routes["listeners"][0]["hosts"][0]["domain"], "a.test");
}

/// The page of endpoints has Envoy's lines.
#[tokio::test]
async fn clusters() {
    let upstream = Upstream::h1(|_| crate::harness::upstream::status(503)).await;
    let rule = "host: a.test\ntrafficPolicy: {outlierDetection: {consecutive5xxErrors: 1, maxEjectionPercent: 100}}\n";
    let mesh =
        Mesh::new().http("a.test", &[upstream.address()]).resource("DestinationRule", rule).route("a.test", "a.test");
    let gateway = mesh.start().await;
    let page = async || Http1::connect(gateway.admin()).await.get("localhost", "/clusters").await.text();
    let line = |fact: &str| format!("outbound|80||a.test::{}::{fact}\n", upstream.address());
    let before = page().await;
    for fact in
        ["rq_active::0", "health_flags::healthy", "weight::1", "region::", "zone::", "sub_zone::", "priority::0"]
    {
        assert!(before.contains(&line(fact)), "{fact}: {before}");
    }
    assert_eq!(Http1::connect(gateway.address(80)).await.get("a.test", "/").await.status, 503);
    assert!(page().await.contains(&line("health_flags::/failed_outlier_check")));
}
