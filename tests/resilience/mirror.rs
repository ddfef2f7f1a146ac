//! networking.md §3.13.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::to;
use crate::harness::client::Http1;
use crate::harness::eventually;
use crate::harness::exchange::{EDGE, check_received, steady};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::{Received, Upstream, status};

/// Everything that has come, once there are `count` complete requests.
async fn collect(upstream: &Upstream, count: usize) -> Vec<Received> {
    let mut received = Vec::new();
    for _ in 0..count {
        received.extend(upstream.received().await);
    }
    received
}

#[tokio::test]
async fn mirrors() {
    let primary = Upstream::ok().await;
    let (shadow, other) = (Upstream::ok().await, Upstream::ok().await);
    let fails = Upstream::h1(|_| status(500)).await;
    let hangs = Upstream::hangs().await;
    let refuses = Upstream::refuses().await;
    let mirror = |service: &str| format!("mirror: {{host: {service}}}");
    let gateway = Mesh::new()
        .http("be.test", &[primary.address()])
        .http("shadow.test", &[shadow.address()])
        .http("other.test", &[other.address()])
        .http("fails.test", &[fails.address()])
        .http("hangs.test", &[hangs.address()])
        .http("refuses.test", &[refuses.address()])
        .routes(
            "mirror.com",
            &to("be.test", &format!("{}, headers: {{request: {{set: {{x-a: op}}}}}}", mirror("shadow.test"))),
        )
        .routes(
            "rewrite.com",
            &to("be.test", &format!("{}, rewrite: {{uri: /z/, authority: up.com}}", mirror("shadow.test"))),
        )
        .routes("timeout.com", &to("be.test", &format!("{}, timeout: 500ms", mirror("shadow.test"))))
        .routes("none.com", &to("be.test", &format!("{}, mirrorPercentage: {{value: 0}}", mirror("shadow.test"))))
        .routes(
            "two.com",
            &to("be.test", "mirrors: [{destination: {host: shadow.test}}, {destination: {host: other.test}}]"),
        )
        .routes("missing.com", &to("be.test", &mirror("nowhere.test")))
        .routes("down.com", &to("be.test", &mirror("refuses.test")))
        .routes("fails.com", &to("be.test", &mirror("fails.test")))
        .routes("hangs.com", &to("be.test", &mirror("hangs.test")))
        .routes("half.com", &to("be.test", &format!("{}, mirrorPercentage: {{value: 50}}", mirror("shadow.test"))))
        .start()
        .await;
    let mut table = Table::new("networking.md §3.13, mirror");
    let post = |host: &str| format!("POST /p?x HTTP/1.1\r\nhost: {host}:81\r\ncontent-length: 4\r\n\r\nbody");
    // The copy has our own address behind the client's; which of our addresses, the upstream can't foresee.
    let copy_of = |headers: &[&str]| -> Vec<String> {
        let lines = crate::harness::exchange::expected(headers).into_iter();
        lines
            .map(
                |line| {
                    if line.starts_with("x-forwarded-for") { "x-forwarded-for: 127.0.0.2,*".to_owned() } else { line }
                },
            )
            .collect()
    };
    let steady_copy = |received: &Received| -> Vec<String> {
        let lines = steady(&received.headers).into_iter();
        lines
            .map(|line| {
                if line.starts_with("x-forwarded-for: 127.0.0.2,") {
                    "x-forwarded-for: 127.0.0.2,*".to_owned()
                } else {
                    line
                }
            })
            .collect()
    };
    for (name, host, line, headers) in [
        (
            "body and header operations",
            "mirror.com",
            "POST /p?x HTTP/1.1",
            vec!["host: mirror.com:81", "content-length: 4", EDGE, "x-a: op"],
        ),
        (
            "rewrites",
            "rewrite.com",
            "POST /z/p?x HTTP/1.1",
            vec![
                "host: up.com",
                "content-length: 4",
                EDGE,
                "x-envoy-original-host: rewrite.com:81",
                "x-envoy-original-path: /p?x",
            ],
        ),
        (
            "timeout",
            "timeout.com",
            "POST /p?x HTTP/1.1",
            vec![
                "host: timeout.com:81",
                "content-length: 4",
                "x-forwarded-for: 127.0.0.2",
                "x-forwarded-proto: http",
                "x-envoy-external-address: 127.0.0.2",
                "x-request-id: *",
                "x-envoy-expected-rq-timeout-ms: 500",
                "x-envoy-attempt-count: 1",
            ],
        ),
    ] {
        table.row(name);
        let response = Http1::connect(gateway.address(80)).await.exchange(post(host)).await;
        table.check("status", &200, &response.status);
        let mirrored = collect(&shadow, 1).await;
        let original = primary.take();
        let ids = [&original, &mirrored]
            .map(|seen| seen.first().and_then(|seen| seen.header("x-request-id")).map(str::to_owned));
        table.check("the same request id", &ids[0], &ids[1]);
        check_received(&mut table, original, line, &headers, "body");
        let Some(mirrored) = mirrored.first() else {
            table.fail("nothing mirrored");
            continue;
        };
        table.check("mirrored target", line, format!("POST {} HTTP/1.1", mirrored.target).as_str());
        let mut expected = copy_of(&headers);
        expected.push("x-envoy-internal: true".to_owned());
        table.check("mirrored headers", &expected, &steady_copy(mirrored));
        table.check("mirrored body", &b"body"[..], mirrored.body.as_slice());
    }

    table.row("two mirrors");
    Http1::connect(gateway.address(80)).await.exchange(post("two.com")).await;
    table.check("first", &1, &collect(&shadow, 1).await.len());
    table.check("second", &1, &collect(&other, 1).await.len());

    for host in ["missing.com", "down.com", "fails.com", "hangs.com"] {
        table.row(format!("{host} doesn't matter"));
        let begin = Instant::now();
        let response = Http1::connect(gateway.address(80)).await.exchange(post(host)).await;
        table.check("answer", &(200, "ok".to_owned()), &(response.status, response.text()));
        table.check("at once", &true, &(begin.elapsed() < Duration::from_secs(2)));
    }

    table.row("a body of 2 MiB");
    primary.take();
    let head = format!("POST / HTTP/1.1\r\nhost: mirror.com\r\ncontent-length: {}\r\n\r\n", 2 << 20);
    Http1::connect(gateway.address(80)).await.exchange([head.as_bytes(), &vec![b'x'; 2 << 20]].concat()).await;
    table.check("length", &Some(2 << 20), &shadow.received().await.map(|seen| seen.body.len()));

    table.row("0 percent");
    Http1::connect(gateway.address(80)).await.exchange(post("none.com")).await;
    table.row("50 percent");
    let mut client = Http1::connect(gateway.address(80)).await;
    for _ in 0..100 {
        client.get("half.com", "/").await;
    }
    // The last request is mirrored always; what was copied before it has come before it.
    client.get("mirror.com", "/last").await;
    let mut mirrored = 0;
    while shadow.received().await.is_some_and(|seen| seen.target != "/last") {
        mirrored += 1;
    }
    table.check(&format!("{mirrored} of 100"), &true, &(20..=80).contains(&mirrored));
    table.finish();
}

/// A destination whose DestinationRule asks for TLS, and which speaks none, gets nothing in clear text: no copy either.
#[tokio::test]
async fn nothing_is_mirrored_in_clear_text_that_should_be_encrypted() {
    let primary = Upstream::ok().await;
    // Answers what it can't read as a server without TLS does, and notes it if it is no ClientHello.
    let clear = Arc::new(AtomicUsize::new(0));
    let noted = clear.clone();
    let shadow = Upstream::raw(move |mut stream, _| {
        let noted = noted.clone();
        async move {
            if stream.read_u8().await.is_ok_and(|first| first != 22) {
                noted.fetch_add(1, Ordering::SeqCst);
            }
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    })
    .await;
    let gateway = Mesh::new()
        .http("be.test", &[primary.address()])
        .http("shadow.test", &[shadow.address()])
        .resource("DestinationRule", "host: shadow.test\ntrafficPolicy:\n  tls: {mode: SIMPLE}\n")
        .routes("a.com", &to("be.test", "mirror: {host: shadow.test}"))
        .routes("direct.com", &to("shadow.test", "timeout: 5s"))
        .start()
        .await;
    let mut client = Http1::connect(gateway.address(80)).await;
    assert_eq!(client.exchange("GET / HTTP/1.1\r\nhost: direct.com\r\n\r\n").await.status, 503);
    for _ in 0..5 {
        assert_eq!(client.exchange("GET / HTTP/1.1\r\nhost: a.com\r\n\r\n").await.status, 200);
    }
    assert_eq!(primary.take().len(), 5);
    let counted = || async { (shadow.connections() >= 2).then_some(()) };
    eventually("a copy is tried", counted).await;
    assert_eq!(clear.load(Ordering::SeqCst), 0);
}
