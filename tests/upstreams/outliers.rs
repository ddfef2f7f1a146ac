//! networking.md §5.6: endpoints that fail are left out.

use std::time::{Duration, Instant};

use http::Request;

use super::{Switched, ejections, outcomes, rule, service};
use crate::harness::client::{End, Http1, Http2, ended_after};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::{H2Step, Step, Upstream, answer, ok, status};
use crate::harness::{PATIENCE, eventually};

/// An HTTP service with these upstreams, to which its own host is routed in turns.
fn watched<'u>(mesh: Mesh, host: &str, upstreams: impl IntoIterator<Item = &'u Upstream>, detection: &str) -> Mesh {
    let upstreams = upstreams.into_iter().map(|upstream| (upstream, ""));
    let policy = format!("loadBalancer: {{simple: ROUND_ROBIN}}, outlierDetection: {{{detection}}}");
    service(mesh, host, "HTTP", upstreams)
        .resource("DestinationRule", &rule(host, &policy))
        .routes(host, &format!("[{{route: [{{destination: {{host: {host}}}}}], retries: {{attempts: 0}}}}]"))
}

/// `outcomes`, in short: `503 503 UH`.
async fn ask(gateway: &Gateway, host: &str, count: usize) -> String {
    outcomes(gateway, host, count).await.join(" ")
}

/// One endpoint that always fails the same way.
#[tokio::test]
async fn what_counts() {
    let fails = |code: u16| Upstream::h1(move |_| status(code));
    let (fails_500, fails_502, fails_429) = (fails(500).await, fails(502).await, fails(429).await);
    let refuses = Upstream::refuses().await;
    let closes = Upstream::h1(|_| vec![Step::ReadBody, Step::Close]).await;
    let hangs = Upstream::hangs().await;
    let two = "consecutive5xxErrors: 2, maxEjectionPercent: 100";
    let gateway_errors = "consecutiveGatewayErrors: 2, consecutive5xxErrors: 0, maxEjectionPercent: 100";
    let codes = "outlierDetectionHttpErrorCodes: [429], consecutive5xxErrors: 2, maxEjectionPercent: 100";
    let split = "splitExternalLocalOriginErrors: true, maxEjectionPercent: 100";
    let local = format!("{split}, consecutiveLocalOriginFailures: 2, consecutive5xxErrors: 100");
    let one = format!("{split}, consecutiveLocalOriginFailures: 1, consecutive5xxErrors: 100");
    let rows: [(&str, &Upstream, &str, &str, u64); 21] = [
        ("c5xx", &fails_500, two, "500 500 UH UH UH", 1),
        ("default-percent", &fails_500, "consecutive5xxErrors: 2", "500 500 500 500 500", 0),
        ("nothing-set", &fails_500, "", "500 500 500 500 500 500 500", 0),
        ("five-by-default", &fails_500, "maxEjectionPercent: 100", "500 500 500 500 500 UH UH", 1),
        ("off", &fails_500, "consecutive5xxErrors: 0, maxEjectionPercent: 100", "500 500 500 500 500 500", 0),
        ("panic", &fails_500, &format!("{two}, minHealthPercent: 50"), "500 500 500 500 500", 1),
        ("no-error", &fails_429, two, "429 429 429 429", 0),
        ("gateway-500", &fails_500, gateway_errors, "500 500 500 500", 0),
        ("gateway-502", &fails_502, gateway_errors, "502 502 UH UH", 1),
        ("gateway-refused", &refuses, gateway_errors, "UF UF UH UH", 1),
        ("codes-500", &fails_500, codes, "500 500 500 500", 0),
        ("codes-429", &fails_429, codes, "429 429 UH UH", 1),
        ("refused", &refuses, two, "UF UF UH UH UH", 1),
        ("closed", &closes, two, "UC UC UH UH", 1),
        ("timeout", &hangs, two, "504 504 UH UH", 1),
        ("split-refused", &refuses, &local, "UF UF UH UH", 1),
        ("split-closed", &closes, &one, "UC UH UH", 1),
        ("split-timeout", &hangs, &one, "504 UH UH", 1),
        // In Envoy a connection that stands is a success of its own, so that there are no two failures in a row.
        ("split-connects", &closes, &local, "UC UC UC UC", 0),
        ("split-answers", &fails_502, &local, "502 502 502 502", 0),
        ("split-5xx", &refuses, &format!("{split}, consecutive5xxErrors: 2"), "UF UF UF UF UF UH", 1),
    ];
    let mut mesh = Mesh::new();
    for (name, upstream, detection, _, _) in &rows {
        let host = format!("{name}.test");
        let policy = format!("outlierDetection: {{{detection}}}");
        let route = format!("route: [{{destination: {{host: {host}}}}}], retries: {{attempts: 0}}, timeout: 500ms");
        mesh = service(mesh, &host, "HTTP", [(*upstream, "")])
            .resource("DestinationRule", &rule(&host, &policy))
            .routes(&host, &format!("[{{{route}}}]"));
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §5.6, what counts");
    for (name, _, _, expected, ejected) in &rows {
        table.row(*name);
        let host = format!("{name}.test");
        let count = expected.split(' ').count();
        table.check("outcomes", *expected, &*ask(&gateway, &host, count).await);
        table.check("ejections", &(*ejected, *ejected), &ejections(&gateway, &host).await);
    }
    table.finish();
}

/// A gRPC call counts by its `grpc-status`, wherever that stands (Envoy's `Grpc::Utility::grpcToHttpStatus`).
#[tokio::test]
async fn statuses_of_grpc() {
    let head = |end: bool| H2Step::Head(200, if end { &[("grpc-status", "14")] } else { &[] }, end);
    let at_once = Upstream::h2(move |_| vec![head(true)]).await;
    let in_trailers =
        Upstream::h2(move |_| vec![head(false), H2Step::Data(b"x", false), H2Step::Trailers(&[("grpc-status", "13")])])
            .await;
    let of_client = Upstream::h2(move |_| vec![head(false), H2Step::Trailers(&[("grpc-status", "5")])]).await;
    let rows = [
        ("unavailable", &at_once, "consecutiveGatewayErrors: 2, consecutive5xxErrors: 0", 1),
        ("internal", &in_trailers, "consecutive5xxErrors: 2", 1),
        ("internal-is-no-gateway-error", &in_trailers, "consecutiveGatewayErrors: 2, consecutive5xxErrors: 0", 0),
        ("not-found", &of_client, "consecutive5xxErrors: 2", 0),
    ];
    let mut mesh = Mesh::new();
    for (name, upstream, detection, _) in &rows {
        let host = format!("{name}.test");
        let policy = format!("outlierDetection: {{{detection}, maxEjectionPercent: 100}}");
        mesh = service(mesh, &host, "GRPC", [(*upstream, "")])
            .resource("DestinationRule", &rule(&host, &policy))
            .routes(&host, &format!("[{{route: [{{destination: {{host: {host}}}}}], retries: {{attempts: 0}}}}]"));
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §5.6, gRPC");
    for (name, _, _, ejected) in rows {
        table.row(name);
        let host = format!("{name}.test");
        let mut client = Http2::connect(gateway.address(80)).await;
        for _ in 0..2 {
            let request = Request::post(format!("http://{host}/s/m")).header("content-type", "application/grpc");
            let response = client.exchange(request.body(()).unwrap(), b"").await;
            table.check("status", &200, &response.status);
        }
        table.check("ejections", &(ejected, ejected), &ejections(&gateway, &host).await);
    }
    table.finish();
}

/// What is never sent is nobody's failure: such hosts can be asked for in HTTP/1.1, and not be named in HTTP/2.
#[tokio::test]
async fn clients_eject_nobody_by_themselves() {
    let upstream = Upstream::h2(|_| vec![H2Step::Head(200, &[], true)]).await;
    let policy = "outlierDetection: {consecutive5xxErrors: 1, maxEjectionPercent: 100}";
    let gateway = service(Mesh::new(), "two.test", "HTTP2", [(&upstream, "")])
        .resource("DestinationRule", &rule("two.test", policy))
        .route("*.odd.test", "two.test")
        .start()
        .await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let mut table = Table::new("hosts that HTTP/2 has no word for");
    for (host, status) in [("a%b.odd.test", 502), ("a]b.odd.test", 502), ("plain.odd.test", 200)] {
        table.row(host);
        table.check("status", &status, &client.get(host, "/").await.status);
    }
    table.check("ejections", &(0, 0), &ejections(&gateway, "two.test").await);
    table.finish();
}

#[tokio::test]
async fn pools_of_several() {
    let upstreams = Switched::several(10).await;
    let list = |count: usize| upstreams[..count].iter().map(|switched| &switched.upstream);
    let rows: [(&str, usize, &str); 5] = [
        ("two-default", 2, "consecutive5xxErrors: 2"),
        ("two-100", 2, "consecutive5xxErrors: 2, maxEjectionPercent: 100"),
        ("four-50", 4, "consecutive5xxErrors: 1, maxEjectionPercent: 50"),
        ("ten-default", 10, ""),
        ("success-between", 1, "consecutive5xxErrors: 2, maxEjectionPercent: 100"),
    ];
    let mut mesh = Mesh::new();
    for (name, count, detection) in rows {
        mesh = watched(mesh, &format!("{name}.test"), list(count), detection);
    }
    let gateway = mesh.start().await;
    let failures = |outcomes: &[String]| outcomes.iter().filter(|outcome| *outcome == "503").count();
    let mut table = Table::new("networking.md §5.6, pools");

    upstreams[0].answers(503);
    table.row("of two none is ejected by default");
    let got = outcomes(&gateway, "two-default.test", 30).await;
    table.check("503", &15, &failures(&got));
    table.check("ejections", &(0, 0), &ejections(&gateway, "two-default.test").await);

    table.row("of two one is ejected with 100 %");
    let got = outcomes(&gateway, "two-100.test", 30).await;
    table.check("503", &2, &failures(&got));
    table.check("503 among the first four", &2, &failures(&got[..4]));
    table.check("ejections", &(1, 1), &ejections(&gateway, "two-100.test").await);

    table.row("of ten one is ejected by default, after five errors");
    let got = outcomes(&gateway, "ten-default.test", 100).await;
    table.check("503", &5, &failures(&got));
    table.check("ejections", &(1, 1), &ejections(&gateway, "ten-default.test").await);
    table.row("of ten no second one is ejected");
    upstreams[1].answers(503);
    let got = outcomes(&gateway, "ten-default.test", 90).await;
    table.check("503", &10, &failures(&got));
    table.check("ejections", &(1, 1), &ejections(&gateway, "ten-default.test").await);

    table.row("of four two are ejected with 50 %");
    upstreams[..4].iter().for_each(|upstream| upstream.answers(503));
    let got = outcomes(&gateway, "four-50.test", 30).await;
    table.check("503", &30, &failures(&got));
    table.check("ejections", &(2, 2), &ejections(&gateway, "four-50.test").await);

    table.row("a good answer begins the count anew");
    for status in [503, 200, 503, 404, 503, 200] {
        upstreams[0].answers(status);
        table.check("outcome", &*status.to_string(), &*ask(&gateway, "success-between.test", 1).await);
    }
    table.check("ejections", &(0, 0), &ejections(&gateway, "success-between.test").await);
    table.finish();
}

/// `upstream/outlier-all-ejected`, `upstream/outlier-back`.
#[tokio::test]
async fn an_endpoint_returns() {
    const BASE: Duration = Duration::from_secs(1);
    let upstream = Switched::start(7).await;
    let detection = "consecutive5xxErrors: 2, maxEjectionPercent: 100, baseEjectionTime: 1s, interval: 200ms";
    let gateway = watched(Mesh::new(), "a.test", [&upstream.upstream], detection).start().await;
    let mut table = Table::new("networking.md §5.6, all ejected");
    upstream.answers(503);
    table.row("ejected");
    let before = Instant::now();
    table.check("outcomes", "503 503 UH", &*ask(&gateway, "a.test", 3).await);
    let response = Http1::connect(gateway.address(80)).await.get("a.test", "/").await;
    table.check("names", &["content-length", "content-type", "date", "server"][..], &response.names()[..]);
    table.check("answer", &(503, "no healthy upstream".to_owned()), &(response.status, response.text()));
    table.expect_log(response.client, 503, "UH", "no_healthy_upstream");
    table.row("back");
    upstream.answers(200);
    eventually("the endpoint returns", || async { (ask(&gateway, "a.test", 1).await == "200").then_some(()) }).await;
    table.check("not before its time is over", &true, &(before.elapsed() >= BASE));
    table.check("ejections", &(0, 1), &ejections(&gateway, "a.test").await);
    table.row("its count begins anew");
    upstream.answers(503);
    table.check("outcomes", "503 503 UH", &*ask(&gateway, "a.test", 3).await);
    table.check_logs(&gateway).await;
    table.finish();
}

/// `upstream/outlier-ejection-growth`: once, twice, three times as long.
#[tokio::test]
async fn ejections_grow() {
    const BASE: Duration = Duration::from_millis(600);
    let (upstream, other) = (Switched::start(0).await, Switched::start(1).await);
    upstream.answers(503);
    // An endpoint that stays healthy from one look to the next is forgiven an ejection, so that looks must be rare.
    let detection = "consecutive5xxErrors: 1, maxEjectionPercent: 100, baseEjectionTime: 600ms, interval: 400ms";
    let gateway = watched(Mesh::new(), "a.test", [&upstream.upstream, &other.upstream], detection).start().await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let begin = Instant::now();
    let mut failures: Vec<Instant> = Vec::new();
    while failures.len() < 4 {
        assert!(begin.elapsed() < 2 * PATIENCE, "{} failures so far", failures.len());
        let asked = Instant::now();
        if client.get("a.test", "/").await.status == 503 {
            failures.push(asked);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for (number, pair) in (1..).zip(failures.windows(2)) {
        let (gap, least) = (pair[1] - pair[0], BASE * number);
        // Until the next look, and a busy machine.
        let most = least + Duration::from_millis(400) + Duration::from_secs(1);
        assert!(gap >= least && gap <= most, "ejection {number} took {gap:?}, {least:?} and not {most:?} is right");
    }
    assert_eq!(ejections(&gateway, "a.test").await.1, 4);
}

/// What is under way at an ejected endpoint goes on.
#[tokio::test]
async fn requests_under_way_are_left_alone() {
    let upstream = Upstream::h1(|received| match &*received.target {
        "/slow" => [vec![Step::ReadBody, Step::Pause(Duration::from_millis(700))], ok()].concat(),
        _ => answer("HTTP/1.1 503 Whatever\r\ncontent-length: 0\r\n\r\n"),
    })
    .await;
    let detection = "consecutive5xxErrors: 1, maxEjectionPercent: 100";
    let gateway = watched(Mesh::new(), "a.test", [&upstream], detection).start().await;
    let mut slow = Http1::connect(gateway.address(80)).await;
    slow.send("GET /slow HTTP/1.1\r\nhost: a.test\r\n\r\n").await;
    upstream.received().await.expect("the slow request");
    assert_eq!(ask(&gateway, "a.test", 2).await, "503 UH");
    let response = slow.response().await;
    assert_eq!((response.status, &*response.text()), (200, "ok"));
}

#[tokio::test]
async fn reloads() {
    let upstreams = Switched::several(2).await;
    let list = || upstreams.iter().map(|switched| &switched.upstream);
    let detection = "consecutive5xxErrors: 1, maxEjectionPercent: 100";
    let with = || watched(Mesh::new(), "a.test", list(), detection);
    let gateway = with().start().await;
    upstreams[0].answers(503);
    let mut table = Table::new("networking.md §5.6, reloads");
    outcomes(&gateway, "a.test", 2).await;
    upstreams[0].answers(200);
    upstreams.iter().for_each(|switched| drop(switched.upstream.take()));
    let counts = || upstreams.iter().map(|switched| switched.upstream.take().len()).collect::<Vec<_>>();

    table.row("of something else");
    gateway.write("config.yaml", &watched(with(), "b.test", list(), detection).yaml()).await;
    table.check("outcomes", &vec!["200".to_owned(); 10], &outcomes(&gateway, "a.test", 10).await);
    table.check("requests", &[0, 10][..], &counts()[..]);

    table.row("of its policy");
    let changed = watched(Mesh::new(), "a.test", list(), &format!("{detection}, minHealthPercent: 10"));
    gateway.write("config.yaml", &changed.yaml()).await;
    table.check("outcomes", &vec!["200".to_owned(); 10], &outcomes(&gateway, "a.test", 10).await);
    table.check("requests", &[0, 10][..], &counts()[..]);

    table.row("that ends outlier detection");
    let all = list().map(|upstream| (upstream, ""));
    let policy = rule("a.test", "loadBalancer: {simple: ROUND_ROBIN}");
    let without = service(Mesh::new(), "a.test", "HTTP", all).resource("DestinationRule", &policy);
    gateway.write("config.yaml", &without.route("a.test", "a.test").yaml()).await;
    eventually("the endpoint returns", || async {
        outcomes(&gateway, "a.test", 2).await;
        (counts()[0] > 0).then_some(())
    })
    .await;
    table.check("outcomes", &vec!["200".to_owned(); 10], &outcomes(&gateway, "a.test", 10).await);
    table.check("requests", &[5, 5][..], &counts()[..]);
    table.finish();
}

/// Whichever worker has a connection, and however often a request is tried.
#[tokio::test]
async fn all_tries_of_all_workers_count() {
    let upstreams = Switched::several(2).await;
    upstreams[0].answers(503);
    let five = "consecutive5xxErrors: 5, maxEjectionPercent: 100";
    let retried = format!("loadBalancer: {{simple: ROUND_ROBIN}}, outlierDetection: {{{five}}}");
    let list = upstreams.iter().map(|switched| (&switched.upstream, ""));
    let mesh = watched(Mesh::new(), "alone.test", [&upstreams[0].upstream], five);
    let mesh = service(mesh, "retried.test", "HTTP", list)
        .resource("DestinationRule", &rule("retried.test", &retried))
        .routes(
            "retried.test",
            "[{route: [{destination: {host: retried.test}}], retries: {attempts: 2, retryOn: 5xx}}]",
        );
    let gateway = mesh.builder().workers(3).start().await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..30 {
        seen.append(&mut outcomes(&gateway, "alone.test", 1).await);
    }
    assert_eq!(seen.iter().filter(|outcome| *outcome == "503").count(), 5, "{seen:?}");
    assert!(seen[5..].iter().all(|outcome| outcome == "UH"), "{seen:?}");

    upstreams.iter().for_each(|switched| drop(switched.upstream.take()));
    for _ in 0..30 {
        assert_eq!(ask(&gateway, "retried.test", 1).await, "200");
    }
    assert_eq!(upstreams[0].upstream.take().len(), 5);
    assert_eq!(ejections(&gateway, "retried.test").await, (1, 1));
}

/// `upstream/outlier-tcp`.
#[tokio::test]
async fn connections_count_too() {
    let (echo, refuses) = (Upstream::echo().await, Upstream::refuses().await);
    let policy = "loadBalancer: {simple: ROUND_ROBIN}, \
                  outlierDetection: {consecutive5xxErrors: 2, maxEjectionPercent: 100}";
    let mesh = Mesh::new().servers(&crate::tcp::servers(&[9000]), &[9000]);
    let gateway = service(mesh, "a.test", "TCP", [(&echo, ""), (&refuses, "")])
        .resource("DestinationRule", &rule("a.test", policy))
        .resource(
            "VirtualService",
            &format!("hosts: ['*']\ngateways: [gateway]\ntcp:\n{}", crate::tcp::to(9000, "a.test")),
        )
        .start()
        .await;
    let mut resets = Vec::new();
    for _ in 0..10 {
        let (_, end) = ended_after(gateway.address(9000), "hi").await;
        resets.push(match end {
            End::Reset => true,
            End::Bytes(bytes) if bytes == b"hi" => false,
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(resets.iter().filter(|reset| **reset).count(), 2, "{resets:?}");
    assert!(resets[4..].iter().all(|reset| !reset), "{resets:?}");
    assert_eq!(ejections(&gateway, "a.test").await, (1, 1));
}
