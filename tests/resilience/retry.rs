//! networking.md §3.11.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http::Request;

use super::to;
use crate::harness::client::{Http1, Http2, Response};
use crate::harness::mesh::Mesh;
use crate::harness::raw_h2::{GOAWAY, HEADERS};
use crate::harness::table::Table;
use crate::harness::upstream::{H2Step, Received, Step, Upstream, answer, ok, status};

/// Every token of `retryOn`; `418` stands for the list of status codes.
const TOKENS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "418",
    "envoy-ratelimited",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// An upstream that always fails in one way, and the tokens that retry it.
struct Failing {
    name: String,
    upstream: Upstream,
    protocol: &'static str,
    grpc: bool,
    retried_by: &'static [&'static str],
}

async fn failing() -> Vec<Failing> {
    let mut failing = Vec::new();
    let no_response: &[&str] = &["5xx", "gateway-error", "reset"];
    let h1 = |name: &str, upstream, retried_by| Failing {
        name: name.to_owned(),
        upstream,
        protocol: "HTTP",
        grpc: false,
        retried_by,
    };
    for (code, retried_by) in [
        (500, &["5xx"][..]),
        (501, &["5xx"]),
        (502, &["5xx", "gateway-error"]),
        (503, &["5xx", "gateway-error"]),
        (504, &["5xx", "gateway-error"]),
        (404, &[]),
        (409, &["retriable-4xx"]),
        (418, &["418"]),
        (429, &[]),
    ] {
        failing.push(h1(&format!("s{code}"), Upstream::h1(move |_| status(code)).await, retried_by));
    }
    for (name, head, retried_by) in [
        ("ratelimited429", "429 X\r\nx-envoy-ratelimited: true", &["envoy-ratelimited"][..]),
        ("ratelimited503", "503 X\r\nx-envoy-ratelimited: true", &["envoy-ratelimited"]),
        ("overloaded503", "503 X\r\nx-envoy-overloaded: true", &["5xx", "gateway-error"]),
    ] {
        let upstream = Upstream::answers(format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n")).await;
        failing.push(h1(name, upstream, retried_by));
    }
    let end = |step: Step| move |_: &Received| vec![Step::ReadBody, step.clone()];
    failing.push(h1("close", Upstream::h1(end(Step::Close)).await, no_response));
    failing.push(h1("rst", Upstream::h1(end(Step::Reset)).await, no_response));
    failing.push(h1("hang", Upstream::hangs().await, no_response));
    failing.push(h1("garbage", Upstream::answers("nonsense\r\n\r\n").await, no_response));
    failing.push(h1(
        "refused",
        Upstream::refuses().await,
        &["5xx", "gateway-error", "reset", "reset-before-request", "connect-failure"],
    ));

    let h2 = |name: &str, upstream, retried_by| Failing {
        name: name.to_owned(),
        upstream,
        protocol: "HTTP2",
        grpc: false,
        retried_by,
    };
    let reset = |reason: h2::Reason| move |_: &Received| vec![H2Step::ReadBody, H2Step::Reset(reason)];
    let refused: &[&str] = &["5xx", "gateway-error", "reset", "refused-stream"];
    failing.push(h2("h2-refused-stream", Upstream::h2(reset(h2::Reason::REFUSED_STREAM)).await, refused));
    failing.push(h2("h2-internal-error", Upstream::h2(reset(h2::Reason::INTERNAL_ERROR)).await, no_response));
    failing.push(h2("h2-cancel", Upstream::h2(reset(h2::Reason::CANCEL)).await, no_response));
    failing.push(h2("h2-goaway", Upstream::raw(go_away_at_once).await, refused));
    failing.push(h2("h2-close", Upstream::h2(|_| vec![H2Step::ReadBody, H2Step::Close]).await, no_response));
    for (status, retried_by) in [
        ("1", "cancelled"),
        ("4", "deadline-exceeded"),
        ("13", "internal"),
        ("8", "resource-exhausted"),
        ("14", "unavailable"),
        ("2", ""),
    ] {
        let trailers: &'static [(&str, &str)] = vec![("grpc-status", status)].leak();
        let head: &'static [(&str, &str)] = vec![("content-type", "application/grpc"), ("grpc-status", status)].leak();
        let retried_by: &'static [&str] = if retried_by.is_empty() { &[] } else { vec![retried_by].leak() };
        let in_headers = Upstream::h2(move |_| vec![H2Step::ReadBody, H2Step::Head(200, head, true)]).await;
        let in_trailers = Upstream::h2(move |_| {
            let head = H2Step::Head(200, &[("content-type", "application/grpc")], false);
            vec![H2Step::ReadBody, head, H2Step::Trailers(trailers)]
        })
        .await;
        failing.push(Failing { grpc: true, ..h2(&format!("grpc-{status}-headers"), in_headers, retried_by) });
        failing.push(Failing { grpc: true, ..h2(&format!("grpc-{status}-trailers"), in_trailers, &[]) });
    }
    failing
}

/// An HTTP/2 peer that answers a stream with GOAWAY(NO_ERROR), last stream 0.
async fn go_away_at_once(mut stream: tokio::net::TcpStream, _: usize) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
    let mut preface = [0; 24];
    let _ = stream.read_exact(&mut preface).await;
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        let _ = stream.read_exact(&mut payload).await;
        if head[3] == HEADERS {
            let _ = stream.write_all(&[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await;
        }
    }
}

#[tokio::test]
async fn tokens() {
    let failing = failing().await;
    let mut mesh = Mesh::new();
    for case in &failing {
        let service = format!("{}.test", case.name);
        let rules: Vec<_> = TOKENS
            .iter()
            .map(|token| {
                format!(
                    "{{match: [{{uri: {{exact: /{token}}}}}], route: [{{destination: {{host: {service}}}}}], \
                     retries: {{attempts: 1, perTryTimeout: 250ms, retryOn: '{token}'}}}}"
                )
            })
            .collect();
        mesh = mesh
            .service(&service, case.protocol, &[case.upstream.address()])
            .routes(&format!("{}.com", case.name), &format!("[{}]", rules.join(", ")));
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §3.11, tokens by situations");
    let mut clients = Vec::new();
    for case in &failing {
        let requests = TOKENS.iter().map(|token| {
            let gateway = &gateway;
            async move {
                let mut request = Request::post(format!("http://{}.com/{token}", case.name));
                if case.grpc {
                    request = request.header("content-type", "application/grpc").header("te", "trailers");
                }
                Http2::connect(gateway.address(80)).await.exchange(request.body(()).unwrap(), &[]).await.client.unwrap()
            }
        });
        clients.push(futures::future::join_all(requests).await);
    }
    for (case, clients) in failing.iter().zip(clients) {
        for (token, client) in TOKENS.iter().zip(clients) {
            table.row(format!("{} with {token}", case.name));
            // Everything fails for good, so what was retried has used its retries up.
            let retried = gateway.log_line_of(client).await.map(|line| line.flags().contains("URX"));
            table.check("retried", &Some(case.retried_by.contains(token)), &retried);
        }
    }
    table.finish();
}

/// An upstream that answers with these in turn, by the request's path.
async fn sequence(codes: &'static [u16]) -> Upstream {
    let seen: Mutex<HashMap<String, usize>> = Mutex::default();
    Upstream::h1(move |received| {
        let mut seen = seen.lock().unwrap();
        let count = seen.entry(received.target.clone()).or_default();
        let code = codes.get(*count).copied().unwrap_or(200);
        *count += 1;
        if code == 200 { ok() } else { status(code) }
    })
    .await
}

/// Attempt numbers that the upstream was told.
fn attempts(received: &[Received]) -> Vec<String> {
    received.iter().map(|seen| seen.header("x-envoy-attempt-count").unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn policies() {
    let fails = Upstream::h1(|_| status(503)).await;
    let recovers = sequence(&[503, 409]).await;
    let once = sequence(&[503]).await;
    let accepts = Upstream::raw(|stream, _| async move { drop(stream) }).await;
    let default_policy = "defaultHttpRetryPolicy: {attempts: 1, retryOn: '503'}";
    let codes = "retries: {attempts: 3, retryOn: '503,409'}";
    let mesh = Mesh::new()
        .http("fails.test", &[fails.address()])
        .http("recovers.test", &[recovers.address()])
        .http("once.test", &[once.address()])
        .http("accepts.test", &[accepts.address()])
        .routes("default.com", &to("fails.test", ""))
        .routes("three.com", &to("fails.test", "retries: {attempts: 3, retryOn: '503'}"))
        .routes("off.com", &to("fails.test", "retries: {attempts: 0}"))
        .routes("empty.com", &to("fails.test", "retries: {}"))
        .routes("recovers.com", &to("recovers.test", codes))
        .routes("once.com", &to("once.test", codes))
        .routes("accepts.com", &to("accepts.test", ""))
        .routes("accepts-rbr.com", &to("accepts.test", "retries: {attempts: 2, retryOn: reset-before-request}"));
    let gateway = mesh.start().await;
    let with_default = Mesh::new()
        .mesh_config(default_policy)
        .http("fails.test", &[fails.address()])
        .routes("default.com", &to("fails.test", ""))
        .routes("off.com", &to("fails.test", "retries: {attempts: 0}"))
        .start()
        .await;
    let mut table = Table::new("networking.md §3.11, policies");
    for (name, gateway, host, tries, flags) in [
        ("default: no status is retried", &gateway, "default.com", 1, "-"),
        ("A21: attempts are retries", &gateway, "three.com", 4, "URX"),
        ("attempts 0", &gateway, "off.com", 1, "-"),
        ("an empty policy", &gateway, "empty.com", 1, "-"),
        ("the mesh's default", &with_default, "default.com", 2, "URX"),
        ("attempts 0 against the mesh's default", &with_default, "off.com", 1, "-"),
    ] {
        table.row(name);
        let response = Http1::connect(gateway.address(80)).await.get(host, "/").await;
        table.check("status", &503, &response.status);
        let expected: Vec<_> = (1..=tries).map(|number| number.to_string()).collect();
        table.check("x-envoy-attempt-count", &expected, &attempts(&fails.take()));
        table.expect_log(response.client, 503, flags, "via_upstream");
        table.check_logs(gateway).await;
    }
    for (name, host, request, upstream, tries) in [
        ("status codes", "recovers.com", "GET /1 HTTP/1.1\r\nhost: recovers.com\r\n\r\n", &recovers, 3),
        ("second try succeeds", "once.com", "GET /2 HTTP/1.1\r\nhost: once.com\r\n\r\n", &once, 2),
        (
            "POST is no exception",
            "once.com",
            "POST /3 HTTP/1.1\r\nhost: once.com\r\ncontent-length: 4\r\n\r\nbody",
            &once,
            2,
        ),
    ] {
        table.row(format!("{name}, {host}"));
        let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
        table.check("answer", &(200, "ok".to_owned()), &(response.status, response.text()));
        let received = upstream.take();
        table.check("tries", &tries, &received.len());
        let body: &[u8] = if request.ends_with("body") { b"body" } else { b"" };
        table.check("bodies", &true, &received.iter().all(|seen| seen.body == body));
        table.expect_log(response.client, 200, "-", "via_upstream");
    }
    for host in ["accepts.com", "accepts-rbr.com"] {
        table.row(format!("accepted and closed at once isn't retried, {host}"));
        let connections = accepts.connections();
        let response = Http1::connect(gateway.address(80)).await.get(host, "/").await;
        table.check("status", &503, &response.status);
        table.check("connections", &1, &(accepts.connections() - connections));
        table.expect_log(response.client, 503, "UC", "upstream_reset_before_response_started{connection_termination}");
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn bodies_up_to_a_mebibyte_are_retried() {
    let mut table = Table::new("networking.md §3.11, request bodies");
    let recovers = sequence(&[503]).await;
    let mesh = Mesh::new().http("once.test", &[recovers.address()]);
    let gateway = mesh.routes("a.com", &to("once.test", "retries: {attempts: 1, retryOn: 5xx}")).start().await;
    for (size, status) in [(65_536, 200), (1_048_566, 200), (1_048_576, 200), (1_048_577, 503), (2_097_152, 503)] {
        table.row(format!("{size} bytes"));
        recovers.take();
        let head = format!("POST /{size} HTTP/1.1\r\nhost: a.com\r\ncontent-length: {size}\r\n\r\n");
        let body: Vec<u8> = (0..size).map(|number| (number % 251) as u8).collect();
        let response = Http1::connect(gateway.address(80)).await.exchange([head.as_bytes(), &body].concat()).await;
        table.check("status", &status, &response.status);
        let received = recovers.take();
        table.check("tries", &(if status == 200 { 2 } else { 1 }), &received.len());
        table.check("the last body is whole", &true, &received.last().is_some_and(|seen| seen.body == body));
    }
    table.finish();
}

#[tokio::test]
async fn default_policy_and_grpc() {
    const UNAVAILABLE: &[(&str, &str)] = &[("content-type", "application/grpc"), ("grpc-status", "14")];
    let in_headers = Upstream::h2(|_| vec![H2Step::ReadBody, H2Step::Head(200, UNAVAILABLE, true)]).await;
    let in_trailers = Upstream::h2(|_| {
        let head = H2Step::Head(200, &[("content-type", "application/grpc")], false);
        vec![H2Step::ReadBody, head, H2Step::Trailers(&[("grpc-status", "14")])]
    })
    .await;
    let gateway = Mesh::new()
        .http2("headers.test", &[in_headers.address()])
        .route("headers.com", "headers.test")
        .http2("trailers.test", &[in_trailers.address()])
        .route("trailers.com", "trailers.test")
        .start()
        .await;
    let mut table = Table::new("networking.md §3.11, default policy and gRPC");
    for (host, upstream, tries, flags) in
        [("headers.com", &in_headers, 3, "URX"), ("trailers.com", &in_trailers, 1, "-")]
    {
        table.row(host);
        let request =
            Request::post(format!("http://{host}/")).header("content-type", "application/grpc").body(()).unwrap();
        let response: Response = Http2::connect(gateway.address(80)).await.exchange(request, b"\0\0\0\0\0").await;
        table.check("status", &200, &response.status);
        let trailers: Vec<_> = response.trailers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        table.check(
            "grpc-status",
            &true,
            &(response.header("grpc-status") == "14" || trailers == [("grpc-status", "14")]),
        );
        let expected: Vec<_> = (1..=tries).map(|number: usize| number.to_string()).collect();
        table.check("x-envoy-attempt-count", &expected, &attempts(&upstream.take()));
        table.expect_log(response.client, 200, flags, "via_upstream");
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn previous_hosts_are_avoided() {
    let (first, second) = (Upstream::h1(|_| status(503)).await, Upstream::h1(|_| status(503)).await);
    let both = [first.address(), second.address()];
    let gateway = Mesh::new()
        .http("both.test", &both)
        .routes("avoid.com", &to("both.test", "retries: {attempts: 1, retryOn: 5xx}"))
        .start()
        .await;
    for round in 0..20 {
        Http1::connect(gateway.address(80)).await.get("avoid.com", "/").await;
        let tries = (first.take().len(), second.take().len());
        assert_eq!(tries, (1, 1), "round {round}: the second of two tries goes to the other endpoint");
    }
}

#[tokio::test]
async fn back_off_grows_with_jitter() {
    let times: std::sync::Arc<Mutex<Vec<Instant>>> = std::sync::Arc::default();
    let noted = times.clone();
    let fails = Upstream::h1(move |_| {
        noted.lock().unwrap().push(Instant::now());
        answer("HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    let gateway = Mesh::new()
        .http("fails.test", &[fails.address()])
        .routes("a.com", &to("fails.test", "retries: {attempts: 5, retryOn: 5xx}"))
        .start()
        .await;
    let mut client = Http1::connect(gateway.address(80)).await;
    // The n-th delay is uniform in [0, min(25 ms · 2^(n-1), 250 ms)): its mean over 30 requests is near the half.
    let limits = [25.0, 50.0, 100.0, 200.0, 250.0];
    let mut sums = [0.0; 5];
    for _ in 0..30 {
        times.lock().unwrap().clear();
        client.get("a.com", "/").await;
        let times = times.lock().unwrap();
        assert_eq!(times.len(), 6);
        for (number, pair) in times.windows(2).enumerate() {
            let gap = pair[1].duration_since(pair[0]);
            sums[number] += gap.as_secs_f64() * 1000.0;
            let limit = Duration::from_secs_f64(limits[number] / 1000.0) + Duration::from_millis(200);
            assert!(gap < limit, "delay {} was {gap:?}", number + 1);
        }
    }
    for (number, (sum, limit)) in sums.iter().zip(limits).enumerate() {
        let mean = sum / 30.0;
        assert!(mean > limit * 0.25, "delay {} has a mean of {mean} ms, the limit is {limit} ms", number + 1);
    }
}
