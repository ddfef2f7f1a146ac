//! The start is the first reload, with nothing to keep; and every reload leaves a trace.

use std::time::Duration;

use super::{answer, get, stays};
use crate::harness::eventually;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::status::Status;

fn with_errors() -> crate::harness::gateway::Builder {
    Mesh::new()
        .builder()
        .file("good.yaml", answer("good", "good.test", "good"))
        .file("timeout.yaml", format!("{}    timeout: soon\n", answer("timeout", "timeout.test", "x")))
        .file("field.yaml", answer("field", "field.test", "x").replace("gateways:", "gatewayz:"))
        .file("yaml.yaml", "kind: [VirtualService\n")
        .file("a.yaml", answer("twice", "twice.test", "a"))
        .file("b.yaml", answer("twice", "twice.test", "b"))
}

#[tokio::test]
async fn errors_at_start_are_all_told_and_end_the_process() {
    let failure = with_errors().start().await.err().expect("it must not start");
    assert_eq!(failure.status.and_then(|status| status.code()), Some(1), "{failure}");
    let told = &failure.stderr;
    for part in
        ["timeout.yaml:", "spec.http[0].timeout", "field.yaml:", "gatewayz", "gateways", "yaml.yaml:", "b.yaml:"]
    {
        assert!(told.contains(part), "{part} isn't told:\n{told}");
    }
}

#[tokio::test]
async fn accept_invalid_starts_with_what_is_right() {
    let gateway =
        with_errors().argument("--accept-invalid").start().await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(get(&gateway, "good.test").await, "good");
    assert_eq!(get(&gateway, "timeout.test").await, "404");
    assert_eq!(get(&gateway, "field.test").await, "404");
    assert_eq!(get(&gateway, "twice.test").await, "a", "the first by path");
    let status = Status::of(&gateway).await;
    assert_eq!(status.state("VirtualService", "good"), "accepted");
    assert_eq!(status.state("VirtualService", "timeout"), "rejected");
    assert!(status.errors().len() >= 4, "{:?}", status.errors());
}

#[tokio::test]
async fn a_directory_without_resources_is_no_error() {
    let gateway = Gateway::builder().start().await.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(gateway.bound(80).await.is_empty());
    gateway.write("config.yaml", &Mesh::new().yaml()).await;
    eventually("port 80 is bound", || async { (gateway.bound(80).await.len() == 1).then_some(()) }).await;
}

#[tokio::test]
async fn a_missing_directory_is_an_error_at_start() {
    let started = Mesh::new().builder().argument("--config").argument("/nowhere/at/all").start().await;
    let failure = started.err().expect("it must not start");
    assert_eq!(failure.status.and_then(|status| status.code()), Some(1), "{failure}");
    assert!(failure.stderr.contains("/nowhere/at/all"), "{failure}");
}

#[tokio::test]
async fn reloads_are_counted_and_logged_once() {
    let gateway = super::start().await;
    let value = |page: &str, name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{page}")).trim().parse::<f64>().unwrap()
    };
    let before = gateway.metrics_page().await;
    gateway.write("route.yaml", &answer("route", "a.test", "v1")).await;
    let after = gateway.metrics_page().await;
    let success = "fairlead_reload_total{result=\"success\"}";
    assert_eq!(value(&after, success), value(&before, success) + 1.0);
    let generation = gateway.generation().await;
    assert_eq!(value(&after, "fairlead_config_generation{}"), generation as f64);
    gateway.says(&format!("generation={generation} ")).await;

    // A broken document is counted as such, and told once although others change.
    let broken = format!("{}    timeout: soon\n", answer("broken", "b.test", "x"));
    std::fs::write(gateway.config().join("broken.yaml"), broken).unwrap();
    stays(&gateway, "a.test", "v1").await;
    let page = gateway.metrics_page().await;
    assert_eq!(value(&page, "fairlead_config_diagnostics{severity=\"error\"}"), 1.0);
    assert!(value(&page, "fairlead_reload_total{result=\"rejected\"}") >= 1.0);
    gateway.write("more.yaml", &answer("more", "c.test", "v1")).await;
    assert_eq!(gateway.stderr().matches("spec.http[0].timeout").count(), 1, "{}", gateway.stderr());

    // Writing the same again changes nothing.
    let generation = gateway.generation().await;
    std::fs::write(gateway.config().join("route.yaml"), answer("route", "a.test", "v1")).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(gateway.generation().await, generation);
}
