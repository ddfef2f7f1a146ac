//! networking.md §3.12.

use std::time::{Duration, Instant};

use http::Request;

use super::to;
use crate::harness::client::{Http1, Http2};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::Upstream;

const ALWAYS: &str = "percentage: {value: 100}";

#[tokio::test]
async fn faults() {
    let upstream = Upstream::ok().await;
    let hangs = Upstream::hangs().await;
    let delay = |time: &str| format!("delay: {{fixedDelay: {time}, {ALWAYS}}}");
    let abort = |code: u16| format!("abort: {{httpStatus: {code}, {ALWAYS}}}");
    let fault = |fields: &str| format!("fault: {{{fields}}}");
    let gateway = Mesh::new()
        .http("be.test", &[upstream.address()])
        .http("hangs.test", &[hangs.address()])
        .routes("delay.com", &to("be.test", &format!("timeout: 300ms, {}", fault(&delay("0.6s")))))
        .routes("delay-hang.com", &to("hangs.test", &format!("timeout: 300ms, {}", fault(&delay("0.6s")))))
        .routes("both.com", &to("be.test", &fault(&format!("{}, {}", delay("300ms"), abort(503)))))
        .routes("abort200.com", &to("be.test", &fault(&abort(200))))
        .routes("abort418.com", &to("be.test", &fault(&abort(418))))
        .routes(
            "abort-retry.com",
            &to("be.test", &format!("retries: {{attempts: 2, retryOn: 5xx}}, {}", fault(&abort(503)))),
        )
        .routes("grpc.com", &to("be.test", &fault(&format!("abort: {{grpcStatus: UNAVAILABLE, {ALWAYS}}}"))))
        .routes("missing.com", &to("nowhere.test", &fault(&abort(503))))
        .routes(
            "none.com",
            &to("be.test", &fault("abort: {httpStatus: 503}, delay: {fixedDelay: 5s, percentage: {value: 0}}")),
        )
        .routes("no-percentage.com", &to("be.test", &fault("delay: {fixedDelay: 5s}")))
        .routes("percent.com", &to("be.test", &fault("delay: {fixedDelay: 300ms, percent: 100}")))
        .routes("plain.com", &to("be.test", ""))
        .start()
        .await;
    let mut table = Table::new("networking.md §3.12, fault");
    for (host, status, body, flags, details, low, high) in [
        ("delay.com", 200, "ok", "DI", "via_upstream", 600, 2500),
        ("delay-hang.com", 504, "upstream request timeout", "DI,UT", "response_timeout", 900, 3000),
        ("both.com", 503, "fault filter abort", "DI,FI", "fault_filter_abort", 300, 2000),
        ("abort200.com", 200, "fault filter abort", "FI", "fault_filter_abort", 0, 1000),
        ("abort418.com", 418, "fault filter abort", "FI", "fault_filter_abort", 0, 1000),
        ("abort-retry.com", 503, "fault filter abort", "FI", "fault_filter_abort", 0, 1000),
        ("grpc.com", 200, "fault filter abort", "FI", "fault_filter_abort", 0, 1000),
        ("missing.com", 503, "fault filter abort", "FI", "fault_filter_abort", 0, 1000),
        ("none.com", 200, "ok", "-", "via_upstream", 0, 1000),
        ("no-percentage.com", 200, "ok", "-", "via_upstream", 0, 1000),
        ("percent.com", 200, "ok", "DI", "via_upstream", 300, 2000),
    ] {
        table.row(host);
        let begin = Instant::now();
        let response = Http1::connect(gateway.address(80)).await.get(host, "/").await;
        let took = begin.elapsed();
        table.check("answer", &(status, body.to_owned()), &(response.status, response.text()));
        let expected = Duration::from_millis(low)..Duration::from_millis(high);
        table.check(&format!("time, {took:?} in {expected:?}"), &true, &expected.contains(&took));
        table.expect_log(response.client, status, flags, details);
    }

    table.row("grpcStatus for a gRPC request");
    let request = Request::post("http://grpc.com/").header("content-type", "application/grpc").body(()).unwrap();
    let response = Http2::connect(gateway.address(80)).await.exchange(request, &[]).await;
    table.check("grpc-status", "14", response.header("grpc-status"));
    table.check("grpc-message", "fault filter abort", response.header("grpc-message"));

    table.row("clients have no say");
    upstream.take();
    let request = "GET / HTTP/1.1\r\nhost: plain.com\r\nx-envoy-fault-abort-request: 503\r\nx-envoy-fault-delay-request: 5000\r\n\r\n";
    let begin = Instant::now();
    let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
    table.check("answer", &(200, "ok".to_owned()), &(response.status, response.text()));
    table.check("at once", &true, &(begin.elapsed() < Duration::from_secs(2)));
    table.check(
        "passes",
        &Some("503"),
        &upstream.take().first().and_then(|seen| seen.header("x-envoy-fault-abort-request")),
    );
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn percentages() {
    let upstream = Upstream::ok().await;
    let gateway = Mesh::new()
        .http("be.test", &[upstream.address()])
        .routes("half.com", &to("be.test", "fault: {abort: {httpStatus: 503, percentage: {value: 50}}}"))
        .start()
        .await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let mut aborted = 0;
    for _ in 0..200 {
        aborted += usize::from(client.get("half.com", "/").await.status == 503);
    }
    // Six standard deviations.
    assert!((58..=142).contains(&aborted), "{aborted} of 200 at 50 %");
}
