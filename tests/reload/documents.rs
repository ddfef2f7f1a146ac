//! Documents that are wrong, beside others that are right.

use std::fs;

use super::{answer, becomes, get, settled, start, stays, turns};
use crate::harness::status::{Status, text};

/// A VirtualService whose timeout, in line `line`, is none.
struct Broken {
    yaml: String,
    line: u64,
}

fn broken(name: &str, host: &str) -> Broken {
    let yaml = format!("{}    timeout: soon\n", answer(name, host, "broken"));
    let line = yaml.lines().count() as u64;
    Broken { yaml, line }
}

#[tokio::test]
async fn a_broken_document_beside_good_ones() {
    let gateway = start().await;
    let file = gateway.config().join("routes.yaml");
    let documents = |first: &str, second: &str, third: &str| format!("{first}---\n{second}---\n{third}");
    fs::write(
        &file,
        documents(&answer("a", "a.test", "a1"), &answer("b", "b.test", "b1"), &answer("c", "c.test", "c1")),
    )
    .unwrap();
    for (host, body) in [("a.test", "a1"), ("b.test", "b1"), ("c.test", "c1")] {
        becomes(&gateway, host, body).await;
    }

    // In one change: two edits that are right, and between them one that is wrong.
    let Broken { yaml, line } = broken("b", "b.test");
    let first = answer("a", "a.test", "a2");
    let text_of_file = documents(&first, &yaml, &answer("c", "c.test", "c2"));
    fs::write(&file, text_of_file).unwrap();
    turns(&gateway, "a.test", "a1", "a2").await;
    // One swap: who sees one half of the change sees the other half, too.
    assert_eq!(get(&gateway, "c.test").await, "c2");
    assert_eq!(get(&gateway, "b.test").await, "b1", "the last accepted version stays");

    let status = Status::of(&gateway).await;
    assert_eq!(status.state("VirtualService", "a"), "accepted");
    assert_eq!(status.state("VirtualService", "b"), "last-good");
    assert_eq!(status.state("VirtualService", "c"), "accepted");
    let errors = status.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let error = &errors[0];
    assert!(text(error, "file").ends_with("/routes.yaml"), "{error}");
    assert_eq!(error["line"], first.lines().count() as u64 + 1 + line, "{error}");
    assert_eq!(
        (text(error, "kind"), text(error, "namespace"), text(error, "name")),
        ("VirtualService".to_owned(), "default".to_owned(), "b".to_owned())
    );
    assert_eq!(text(error, "path"), "spec.http[0].timeout");
    assert!(!text(error, "message").is_empty() && text(error, "code").starts_with("GW"), "{error}");
    gateway.says("spec.http[0].timeout").await;

    // Repaired.
    fs::write(&file, documents(&first, &answer("b", "b.test", "b3"), &answer("c", "c.test", "c2"))).unwrap();
    turns(&gateway, "b.test", "b1", "b3").await;
    let status = Status::of(&gateway).await;
    assert!(status.errors().is_empty(), "{:?}", status.errors());
    assert_eq!(status.state("VirtualService", "b"), "accepted");
}

#[tokio::test]
async fn a_document_that_was_never_right_is_absent() {
    let gateway = start().await;
    let file = gateway.config().join("new.yaml");
    fs::write(&file, broken("new", "new.test").yaml).unwrap();
    settled(&gateway).await;
    assert_eq!(get(&gateway, "new.test").await, "404");
    assert_eq!(Status::of(&gateway).await.state("VirtualService", "new"), "rejected");
    fs::write(&file, answer("new", "new.test", "repaired")).unwrap();
    turns(&gateway, "new.test", "404", "repaired").await;
    // Removed while wrong: gone.
    fs::write(&file, broken("new", "new.test").yaml).unwrap();
    stays(&gateway, "new.test", "repaired").await;
    fs::remove_file(&file).unwrap();
    turns(&gateway, "new.test", "repaired", "404").await;
    assert!(Status::of(&gateway).await.errors().is_empty());
}

#[tokio::test]
async fn a_file_whose_yaml_is_broken_keeps_all_it_had() {
    let gateway = start().await;
    let (file, other) = (gateway.config().join("routes.yaml"), gateway.config().join("other.yaml"));
    fs::write(&file, format!("{}---\n{}", answer("a", "a.test", "a1"), answer("b", "b.test", "b1"))).unwrap();
    fs::write(&other, answer("c", "c.test", "c1")).unwrap();
    for (host, body) in [("a.test", "a1"), ("b.test", "b1"), ("c.test", "c1")] {
        becomes(&gateway, host, body).await;
    }
    fs::write(&file, "apiVersion: networking.istio.io/v1\nkind: [VirtualService\nmetadata: {name: a\n").unwrap();
    fs::write(&other, answer("c", "c.test", "c2")).unwrap();
    turns(&gateway, "c.test", "c1", "c2").await;
    stays(&gateway, "a.test", "a1").await;
    assert_eq!(get(&gateway, "b.test").await, "b1");
    let errors = Status::of(&gateway).await.errors();
    assert!(errors.iter().any(|error| text(error, "file").ends_with("/routes.yaml")), "{errors:?}");
    fs::write(&file, answer("a", "a.test", "a2")).unwrap();
    turns(&gateway, "a.test", "a1", "a2").await;
    becomes(&gateway, "b.test", "404").await;
}

#[tokio::test]
async fn a_security_resource_that_is_wrong_closes_what_it_selects() {
    let gateway = start().await;
    fs::write(gateway.config().join("route.yaml"), answer("route", "a.test", "open")).unwrap();
    becomes(&gateway, "a.test", "open").await;
    let policy = gateway.config().join("policy.yaml");
    let with = |metadata: &str, spec: &str| {
        format!("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {metadata}\nspec:\n{spec}")
    };

    // Of another workload: not our business, however wrong it is.
    let spec = "  selector: {matchLabels: {app: somebody-else}}\n  action: ALLOWED\n  rules: [{}]\n";
    fs::write(&policy, with("{name: policy, namespace: istio-system}", spec)).unwrap();
    stays(&gateway, "a.test", "open").await;

    // Of this gateway.
    let spec = "  selector: {matchLabels: {istio: ingressgateway}}\n  action: ALLOWED\n  rules: [{}]\n";
    fs::write(&policy, with("{name: policy, namespace: istio-system}", spec)).unwrap();
    turns(&gateway, "a.test", "open", "503").await;
    assert_eq!(get(&gateway, "unknown.test").await, "503", "whatever the host");
    let status = Status::of(&gateway).await;
    assert_eq!(status.state("AuthorizationPolicy", "policy"), "rejected");
    assert_eq!(status.refusals().len(), 1, "{:?}", status.refusals());
    let errors = status.errors();
    assert!(errors.iter().any(|error| text(error, "path") == "spec.action"), "{errors:?}");
    // It is the configuration that is wrong: this process works, and must not be restarted for it.
    let probe = crate::harness::client::Http1::connect(gateway.status()).await.get("localhost", "/healthz/ready").await;
    assert_eq!(probe.status, 200);

    fs::remove_file(&policy).unwrap();
    turns(&gateway, "a.test", "503", "open").await;
    assert!(Status::of(&gateway).await.refusals().is_empty());

    // What it selects can't be read: then it may be anything.
    fs::write(&policy, with("{name: policy, namespace: istio-system}", "  selector: 7\n  rules: [{}]\n")).unwrap();
    turns(&gateway, "a.test", "open", "503").await;
    fs::remove_file(&policy).unwrap();
    turns(&gateway, "a.test", "503", "open").await;
}

#[tokio::test]
async fn duplicates() {
    let gateway = start().await;
    let (first, second) = (gateway.config().join("m.yaml"), gateway.config().join("a.yaml"));
    fs::write(&first, answer("route", "a.test", "first")).unwrap();
    becomes(&gateway, "a.test", "first").await;
    // Accepted first wins, wherever the other one is.
    fs::write(&second, answer("route", "a.test", "second")).unwrap();
    stays(&gateway, "a.test", "first").await;
    let status = Status::of(&gateway).await;
    let mut states = status.states("VirtualService", "route");
    states.sort();
    assert_eq!(states, [("a.yaml".to_owned(), "duplicate".to_owned()), ("m.yaml".to_owned(), "accepted".to_owned())]);
    let errors = status.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let told = format!("{} {}", text(&errors[0], "file"), text(&errors[0], "message"));
    assert!(told.contains("a.yaml") && told.contains("m.yaml"), "both places: {told}");
    assert_eq!(errors[0]["code"], "GW0009");

    // The winner may be edited, and the other one takes its place when it goes.
    fs::write(&first, answer("route", "a.test", "first-edited")).unwrap();
    turns(&gateway, "a.test", "first", "first-edited").await;
    fs::remove_file(&first).unwrap();
    turns(&gateway, "a.test", "first-edited", "second").await;
    assert!(Status::of(&gateway).await.errors().is_empty());
}
