//! Servers that change under open connections: only theirs end, in order. `reference/networking.md` §4.8.

use std::time::Duration;

use http::Request;

use super::{https, server};
use crate::harness::PATIENCE;
use crate::harness::client::{End, Http1, Http2};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::pki::{Authority, Leaf, tls_secret};
use crate::harness::tls_client::{Refusal, Settings};
use crate::harness::upstream::Upstream;

/// Servers `a.test` with this addition to its `tls` (`None`: there is no such server), `b.test`, and `tcp.test`; all
/// requests go to `to`.
fn mesh(addition: Option<&str>, to: &str, upstreams: &[Upstream; 3], secret: &str) -> Mesh {
    let mut yaml = String::new();
    if let Some(addition) = addition {
        yaml += &https("a.test", &format!("{{mode: SIMPLE, credentialName: c{addition}}}"));
        yaml += &server(443, "TLS", "tcp.test", &format!("{{mode: SIMPLE, credentialName: c{addition}}}"));
    }
    yaml += &https("b.test", "{mode: SIMPLE, credentialName: c}");
    let [old, new, echo] = upstreams;
    Mesh::new()
        .servers(&yaml, &[443])
        .http("old.up", &[old.address()])
        .http("new.up", &[new.address()])
        .service("echo.up", "TCP", &[echo.address()])
        // The first two keep both clusters, whoever uses them.
        .routes(
            "*",
            &format!(
                "[{{match: [{{uri: {{exact: /old}}}}], route: [{{destination: {{host: old.up}}}}]}}, \
                 {{match: [{{uri: {{exact: /new}}}}], route: [{{destination: {{host: new.up}}}}]}}, \
                 {{route: [{{destination: {{host: {to}}}}}]}}]"
            ),
        )
        .resource(
            "VirtualService",
            "hosts: [tcp.test]\ngateways: [gateway]\ntcp:\n- route: [{destination: {host: echo.up}}]\n",
        )
        .document(secret)
        .mesh_config("defaultConfig: {drainDuration: 2s}")
}

async fn upstreams() -> [Upstream; 3] {
    let answers = |text: &str| Upstream::answers(format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{text}"));
    [answers("old").await, answers("new").await, Upstream::echo().await]
}

async fn http1(gateway: &Gateway, host: &str) -> Http1 {
    Settings::new(&[]).connect(gateway.address(443), host).await.unwrap().http1()
}

async fn http2(gateway: &Gateway, host: &str) -> Http2 {
    Settings::new(&[]).alpn(&["h2"]).connect(gateway.address(443), host).await.unwrap().http2().await
}

fn get(host: &str) -> Request<()> {
    Request::get(format!("https://{host}/")).body(()).unwrap()
}

#[tokio::test]
async fn a_changed_server_drains_and_its_neighbours_do_not() {
    let authority = Authority::new("servers");
    let leaf = Leaf::server("a.test").dns("b.test").dns("tcp.test");
    let secret = tls_secret("c", &authority.issue(&leaf));
    let upstreams = upstreams().await;
    let gateway = mesh(Some(""), "old.up", &upstreams, &secret).start().await;
    let (mut a1, mut a2, mut idle) =
        (http1(&gateway, "a.test").await, http2(&gateway, "a.test").await, http1(&gateway, "a.test").await);
    let (mut b1, mut b2) = (http1(&gateway, "b.test").await, http2(&gateway, "b.test").await);
    let mut tcp = http1(&gateway, "tcp.test").await;
    tcp.send("one").await;
    assert_eq!(tcp.read_exactly(3).await, Ok(b"one".to_vec()));
    assert_eq!(
        (a1.get("a.test", "/").await.text(), idle.get("a.test", "/").await.text()),
        ("old".into(), "old".into())
    );
    assert_eq!(
        (b1.get("b.test", "/").await.text(), b2.exchange(get("b.test"), &[]).await.text()),
        ("old".into(), "old".into())
    );
    assert_eq!(a2.exchange(get("a.test"), &[]).await.text(), "old");

    // A new certificate and other routes alone: nobody is told to go, the new routes hold.
    let again = tls_secret("c", &authority.issue(&leaf));
    gateway.write("config.yaml", &mesh(Some(""), "new.up", &upstreams, &again).yaml()).await;
    let answer = a1.get("a.test", "/").await;
    assert_eq!((answer.text(), answer.has("connection")), ("new".to_owned(), false));
    assert_eq!(a2.exchange(get("a.test"), &[]).await.text(), "new");

    // Other TLS settings, and other routes again: connections of that server keep theirs and end with the next answer.
    let changed = ", minProtocolVersion: TLSV1_3";
    gateway.write("config.yaml", &mesh(Some(changed), "old.up", &upstreams, &again).yaml()).await;
    assert_eq!(idle.ended(Duration::from_millis(50)).await, End::Open);
    let answer = a1.get("a.test", "/").await;
    assert_eq!((answer.text(), answer.header("connection")), ("new".to_owned(), "close"));
    assert_eq!(a1.ended(PATIENCE).await, End::Closed);
    // HTTP/2 is told at once, idle or not.
    assert!(a2.ended(PATIENCE).await.is_some());
    let answer = b1.get("b.test", "/").await;
    assert_eq!((answer.text(), answer.has("connection")), ("old".to_owned(), false));
    assert_eq!(b2.exchange(get("b.test"), &[]).await.text(), "old");
    tcp.send("two").await;
    assert_eq!(tcp.read_exactly(3).await, Ok(b"two".to_vec()));

    // Who stays on is cut at the end of the drain.
    assert_ne!(idle.ended(Duration::from_secs(5)).await, End::Open);
    assert_ne!(tcp.ended(Duration::from_secs(5)).await, End::Open);
    assert_eq!(b1.get("b.test", "/").await.text(), "old");

    // A server that goes: its connections end in order, new ones find nobody.
    let mut last = http1(&gateway, "a.test").await;
    assert_eq!(last.get("a.test", "/").await.text(), "old");
    gateway.write("config.yaml", &mesh(None, "new.up", &upstreams, &again).yaml()).await;
    let answer = last.get("a.test", "/").await;
    assert_eq!((answer.text(), answer.header("connection")), ("old".to_owned(), "close"));
    let refused = Settings::new(&[]).connect(gateway.address(443), "a.test").await.map(|_| ());
    assert_eq!(refused, Err(Refusal::Reset));
    assert_eq!(b1.get("b.test", "/").await.text(), "new");
    assert!(b2.ended(Duration::from_millis(20)).await.is_none());
}
