//! networking.md §3.10.

use std::time::{Duration, Instant};

use http::Request;

use super::to;
use crate::harness::client::{Http1, Http2};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::{H2Step, Step, Upstream, ok, status};

/// `200 ok`, after this time.
fn late(time: u64) -> Vec<Step> {
    let mut steps = vec![Step::ReadBody, Step::Pause(Duration::from_millis(time))];
    steps.extend(ok());
    steps
}

fn within(table: &mut Table, took: Duration, low: u64, high: u64) {
    let expected = Duration::from_millis(low)..Duration::from_millis(high);
    table.check(&format!("time, {took:?} in {expected:?}"), &true, &expected.contains(&took));
}

#[tokio::test]
async fn bounds() {
    let fails = Upstream::h1(|_| status(503)).await;
    let hangs = Upstream::hangs().await;
    let slow = Upstream::h1(|_| late(600)).await;
    let mesh = Mesh::new()
        .http("fails.test", &[fails.address()])
        .http("hangs.test", &[hangs.address()])
        .http("slow.test", &[slow.address()])
        .routes(
            "retries.com",
            &to("fails.test", "timeout: 500ms, retries: {attempts: 90, retryOn: 5xx, backoff: 100ms}"),
        )
        .routes(
            "per-try.com",
            &to("hangs.test", "timeout: 500ms, retries: {attempts: 9, retryOn: 5xx, perTryTimeout: 200ms}"),
        )
        .routes(
            "per-try-longer.com",
            &to("hangs.test", "timeout: 300ms, retries: {attempts: 9, retryOn: 5xx, perTryTimeout: 2s}"),
        )
        .routes("unset.com", &to("slow.test", ""));
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §3.10, timeout");
    for (host, upstream, tries) in
        [("retries.com", &fails, 3..20), ("per-try.com", &hangs, 3..4), ("per-try-longer.com", &hangs, 1..2)]
    {
        table.row(host);
        let begin = Instant::now();
        let response = Http1::connect(gateway.address(80)).await.get(host, "/").await;
        let took = begin.elapsed();
        let limit = if host == "per-try-longer.com" { 300 } else { 500 };
        within(&mut table, took, limit, limit + 1500);
        table.check("status", &504, &response.status);
        table.check("body", "upstream request timeout", response.text().as_str());
        let seen = upstream.take().len();
        table.check(&format!("tries, {seen} in {tries:?}"), &true, &tries.contains(&seen));
        table.expect_log(response.client, 504, "UT", "response_timeout");
    }
    table.row("unset: none");
    table.check("status", &200, &Http1::connect(gateway.address(80)).await.get("unset.com", "/").await.status);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn it_starts_when_the_request_is_complete() {
    let slow = Upstream::h1(|_| late(200)).await;
    let gateway = Mesh::new()
        .http("slow.test", &[slow.address()])
        .routes("a.com", &to("slow.test", "timeout: 400ms"))
        .start()
        .await;
    let mut client = Http1::connect(gateway.address(80)).await;
    client.send("POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 4\r\n\r\nha").await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    let response = client.exchange("lf").await;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
}

#[tokio::test]
async fn announced_to_the_upstream() {
    let upstream = Upstream::ok().await;
    let gateway = Mesh::new()
        .http("be.test", &[upstream.address()])
        .routes("timeout.com", &to("be.test", "timeout: 400ms"))
        .routes("none.com", &to("be.test", ""))
        .routes(
            "per-try.com",
            &to("be.test", "timeout: 500ms, retries: {attempts: 1, retryOn: 5xx, perTryTimeout: 200ms}"),
        )
        .start()
        .await;
    let mut table = Table::new("networking.md §3.10, x-envoy-expected-rq-timeout-ms");
    for (host, expected) in [("timeout.com", Some("400")), ("none.com", None), ("per-try.com", Some("200"))] {
        table.row(host);
        Http1::connect(gateway.address(80)).await.get(host, "/").await;
        let received = upstream.take();
        let value = received.first().and_then(|seen| seen.header("x-envoy-expected-rq-timeout-ms"));
        table.check("value", &expected, &value);
    }
    table.row("a plain request's grpc-timeout is ignored");
    let request = "GET / HTTP/1.1\r\nhost: none.com\r\ngrpc-timeout: 300m\r\n\r\n";
    Http1::connect(gateway.address(80)).await.exchange(request).await;
    let received = upstream.take();
    let value = received.first().and_then(|seen| seen.header("x-envoy-expected-rq-timeout-ms"));
    table.check("value", &None, &value);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn grpc_timeout() {
    const ANSWER: &[(&str, &str)] = &[("content-type", "application/grpc"), ("grpc-status", "0")];
    let slow = Upstream::h2(|_| {
        vec![H2Step::ReadBody, H2Step::Pause(Duration::from_millis(1000)), H2Step::Head(200, ANSWER, true)]
    })
    .await;
    let gateway = Mesh::new()
        .http2("slow.test", &[slow.address()])
        .routes("none.com", &to("slow.test", ""))
        .routes("capped.com", &to("slow.test", "timeout: 400ms"))
        .start()
        .await;
    let mut table = Table::new("networking.md §3.10, grpc-timeout");
    // Host; what the client says; whether it expires; what the upstream is told.
    for (host, said, expires, grpc_timeout, expected) in [
        ("none.com", Some("300m"), true, Some("300m"), Some("300")),
        ("none.com", None, false, None, None),
        ("none.com", Some("0m"), false, Some("0m"), None),
        ("none.com", Some("junk"), false, Some("junk"), None),
        ("capped.com", Some("5S"), true, Some("400m"), Some("400")),
        ("capped.com", Some("200m"), true, Some("200m"), Some("200")),
        ("capped.com", None, true, Some("400m"), Some("400")),
    ] {
        table.row(format!("{host}, grpc-timeout {said:?}"));
        slow.take();
        let mut request = Request::post(format!("http://{host}/x"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(said) = said {
            request = request.header("grpc-timeout", said);
        }
        let response = Http2::connect(gateway.address(80)).await.exchange(request.body(()).unwrap(), &[]).await;
        table.check("status", &200, &response.status);
        table.check("grpc-status", if expires { "14" } else { "0" }, response.header("grpc-status"));
        table.check(
            "grpc-message",
            if expires { "upstream request timeout" } else { "" },
            response.header("grpc-message"),
        );
        let (flags, details) = if expires { ("UT", "response_timeout") } else { ("-", "via_upstream") };
        table.expect_log(response.client, 200, flags, details);
        let received = slow.take();
        let header = |name| received.first().and_then(|seen| seen.header(name));
        table.check("grpc-timeout upstream", &grpc_timeout, &header("grpc-timeout"));
        table.check("expected timeout upstream", &expected, &header("x-envoy-expected-rq-timeout-ms"));
    }
    table.check_logs(&gateway).await;
    table.finish();
}
