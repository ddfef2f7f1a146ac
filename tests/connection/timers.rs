//! Deadlines of connections and requests, and the other settings of networking.md §4.6.

use std::time::{Duration, Instant};

use http::Request;

use crate::harness::client::{End, Failure, Http1, Http2};
use crate::harness::exchange::{self, EDGE, check_local_reply, forwarded, refused};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::raw_h2::{GOAWAY, RawH2};
use crate::harness::table::Table;
use crate::harness::upstream::{Step, Upstream};

/// The length of each deadline here, and how much later it may be noticed.
const DEADLINE: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_millis(2500);

/// A gateway whose connection settings are those of the profile EDGE and `settings`, in front of an upstream that
/// hangs (`hangs.com`), one that hangs inside its answer (`stalls.com`) and one that answers.
async fn start(settings: &str, upstreams: &Upstreams) -> Gateway {
    Mesh::new()
        .mesh_config(&format!("defaultConfig: {{connectionSettings: {{profile: EDGE, {settings}}}}}"))
        .http("hangs.test", &[upstreams.hangs.address()])
        .route("hangs.com", "hangs.test")
        .http("stalls.test", &[upstreams.stalls.address()])
        .route("stalls.com", "stalls.test")
        .http("ok.test", &[upstreams.ok.address()])
        .route("*", "ok.test")
        .start()
        .await
}

struct Upstreams {
    hangs: Upstream,
    stalls: Upstream,
    ok: Upstream,
}

impl Upstreams {
    async fn start() -> Self {
        let stalls = |_: &_| {
            let part = Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nab".to_vec());
            vec![Step::ReadBody, part, Step::Hang]
        };
        Self { hangs: Upstream::hangs().await, stalls: Upstream::h1(stalls).await, ok: Upstream::ok().await }
    }
}

/// What a client gets that sends `request` and waits.
struct Expired {
    name: &'static str,
    request: &'static str,
    status: u16,
    body: &'static str,
    flags: &'static str,
    details: &'static str,
    close: bool,
}

async fn check(table: &mut Table, gateway: &Gateway, rows: &[Expired]) {
    for Expired { name, request, status, body, flags, details, close } in rows {
        table.row(*name);
        let begin = Instant::now();
        let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
        let took = begin.elapsed();
        table.check("failure", &None, &response.failure);
        check_local_reply(table, &response, *status, body, *close);
        table.check(&format!("in time, took {took:?}"), &true, &(took >= DEADLINE && took < DEADLINE + LATE));
        table.expect_log(response.client, *status, flags, details);
    }
}

const BODY_INCOMPLETE: &str = "POST / HTTP/1.1\r\nhost: hangs.com\r\ncontent-length: 5\r\n\r\nab";
const HEAD_INCOMPLETE: &str = "GET / HTTP/1.1\r\nhost: a\r\n";
const COMPLETE: &str = "GET / HTTP/1.1\r\nhost: hangs.com\r\n\r\n";

#[tokio::test]
async fn request_headers_timeout() {
    let upstreams = Upstreams::start().await;
    let gateway = start("httpRequestHeadersTimeout: 0.5s", &upstreams).await;
    let mut table = Table::new("networking.md §4.6, request headers timeout");
    let expired = |name, request| Expired {
        name,
        request,
        status: 408,
        body: "request header timeout",
        flags: "-",
        details: "request_header_timeout",
        close: true,
    };
    check(&mut table, &gateway, &[expired("one byte", "G"), expired("a part of the head", HEAD_INCOMPLETE)]).await;
    table.row("a connection without a byte stays");
    let mut idle = Http1::connect(gateway.address(80)).await;
    table.check("connection", &End::Open, &idle.ended(DEADLINE * 2).await);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn request_timeout() {
    let upstreams = Upstreams::start().await;
    let gateway = start("httpRequestTimeout: 0.5s", &upstreams).await;
    let mut table = Table::new("networking.md §4.6, request timeout");
    let expired = |name, request| Expired {
        name,
        request,
        status: 408,
        body: "request timeout",
        flags: "-",
        details: "request_overall_timeout",
        close: true,
    };
    check(
        &mut table,
        &gateway,
        &[expired("body incomplete", BODY_INCOMPLETE), expired("head incomplete", HEAD_INCOMPLETE)],
    )
    .await;
    table.row("a complete request may wait for its answer");
    let mut client = Http1::connect(gateway.address(80)).await;
    client.send(COMPLETE).await;
    table.check("connection", &End::Open, &client.ended(DEADLINE * 2).await);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn stream_idle_timeout() {
    let upstreams = Upstreams::start().await;
    let gateway = start("httpStreamIdleTimeout: 0.5s", &upstreams).await;
    let mut table = Table::new("networking.md §4.6, stream idle timeout");
    let (body, flags, details) = ("stream timeout", "SI", "stream_idle_timeout");
    let expired = |name, request, status| Expired { name, request, status, body, flags, details, close: status == 408 };
    let rows = [
        expired("body incomplete", BODY_INCOMPLETE, 408),
        expired("head incomplete", HEAD_INCOMPLETE, 408),
        expired("waiting for the upstream", COMPLETE, 504),
    ];
    check(&mut table, &gateway, &rows).await;
    over_http2(&mut table, &gateway, body, "14", flags, details).await;
    mid_response(&mut table, &gateway, flags, details).await;
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn max_stream_duration() {
    let upstreams = Upstreams::start().await;
    let gateway = start("httpMaxStreamDuration: 0.5s", &upstreams).await;
    let mut table = Table::new("networking.md §4.6, max stream duration");
    let (body, flags, details) = ("downstream duration timeout", "-", "max_duration_timeout");
    let expired = |name, request, status| Expired { name, request, status, body, flags, details, close: status == 408 };
    let rows = [expired("body incomplete", BODY_INCOMPLETE, 408), expired("waiting for the upstream", COMPLETE, 504)];
    check(&mut table, &gateway, &rows).await;
    over_http2(&mut table, &gateway, body, "4", flags, details).await;
    mid_response(&mut table, &gateway, flags, details).await;
    table.check_logs(&gateway).await;
    table.finish();
}

/// The deadline while the upstream hangs, for clients of HTTP/2 and gRPC.
async fn over_http2(table: &mut Table, gateway: &Gateway, body: &str, grpc: &str, flags: &str, details: &str) {
    for (kind, status) in [("HTTP/2", 504), ("gRPC", 200)] {
        table.row(format!("{kind}, waiting for the upstream"));
        let request = match kind {
            "gRPC" => Request::post("http://hangs.com/").header("content-type", "application/grpc").body(()).unwrap(),
            _ => Request::get("http://hangs.com/").body(()).unwrap(),
        };
        let response = Http2::connect(gateway.address(80)).await.exchange(request, &[]).await;
        table.check("status", &status, &response.status);
        if kind == "gRPC" {
            table.check("grpc-status", grpc, response.header("grpc-status"));
            table.check("grpc-message", body, response.header("grpc-message"));
        } else {
            table.check("body", body, response.text().as_str());
        }
        table.expect_log(response.client, status, flags, details);
    }
}

/// The deadline inside an answer, for both versions.
async fn mid_response(table: &mut Table, gateway: &Gateway, flags: &str, details: &str) {
    for kind in ["HTTP/1.1", "HTTP/2"] {
        table.row(format!("{kind}, inside the response"));
        let (response, failure) = if kind == "HTTP/2" {
            let internal_error = Failure::StreamReset(h2::Reason::INTERNAL_ERROR.into());
            (Http2::connect(gateway.address(80)).await.get("stalls.com", "/").await, internal_error)
        } else {
            (Http1::connect(gateway.address(80)).await.get("stalls.com", "/").await, Failure::Closed)
        };
        table.check("status", &200, &response.status);
        table.check("body", "ab", response.text().as_str());
        table.check("end", &Some(failure), &response.failure);
        table.expect_log(response.client, 200, flags, details);
    }
}

#[tokio::test]
async fn connection_idle_timeout() {
    let upstreams = Upstreams::start().await;
    let gateway = start("httpIdleTimeout: 0.5s, httpDrainTimeout: 0.5s", &upstreams).await;
    let mut table = Table::new("networking.md §4.6, connection idle");

    table.row("never used: closed at once");
    let mut unused = Http1::connect(gateway.address(80)).await;
    let begin = Instant::now();
    table.check("connection", &End::Closed, &unused.ended(Duration::from_secs(5)).await);
    let took = begin.elapsed();
    table.check(
        &format!("in time, took {took:?}"),
        &true,
        &(took >= DEADLINE - Duration::from_millis(50) && took < DEADLINE + LATE),
    );

    table.row("HTTP/1.1, used before: closed after the drain timeout");
    let mut used = Http1::connect(gateway.address(80)).await;
    used.get("a.com", "/").await;
    let begin = Instant::now();
    table.check("connection", &End::Closed, &used.ended(Duration::from_secs(5)).await);
    let took = begin.elapsed();
    table.check(
        &format!("not before idle and drain time, took {took:?}"),
        &true,
        &(took >= Duration::from_millis(950)),
    );

    table.row("HTTP/1.1, a request while draining");
    let mut used = Http1::connect(gateway.address(80)).await;
    used.get("a.com", "/").await;
    tokio::time::sleep(Duration::from_millis(750)).await;
    let response = used.get("a.com", "/").await;
    table.check("status", &200, &response.status);
    table.check("connection", "close", response.header("connection"));

    table.row("HTTP/2, used before: two GOAWAYs");
    let mut client = RawH2::connect(gateway.address(80)).await;
    let pseudo: [(&str, &[u8]); 4] =
        [(":method", b"GET"), (":scheme", b"http"), (":authority", b"a.com"), (":path", b"/")];
    client.headers(1, &pseudo, true).await;
    let (frames, end) = client.rest(Duration::from_secs(5)).await;
    check_goaways(&mut table, &frames, 1);
    table.check("connection", &End::Closed, &end);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn max_connection_duration() {
    let upstreams = Upstreams::start().await;
    let gateway = start("httpMaxConnectionDuration: 0.7s, httpDrainTimeout: 0.3s", &upstreams).await;
    let mut table = Table::new("networking.md §4.6, max connection duration");

    table.row("HTTP/1.1: the next response says close");
    let mut client = Http1::connect(gateway.address(80)).await;
    let begin = Instant::now();
    let mut closed = false;
    while !closed && begin.elapsed() < Duration::from_secs(5) {
        let response = client.get("a.com", "/").await;
        table.check("status", &200, &response.status);
        closed = response.header("connection") == "close";
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = begin.elapsed();
    table.check(&format!("in time, took {took:?}"), &true, &(closed && took > Duration::from_millis(650)));
    table.check("connection", &End::Closed, &client.ended(Duration::from_secs(5)).await);

    table.row("HTTP/2, idle: two GOAWAYs");
    let mut client = RawH2::connect(gateway.address(80)).await;
    let (frames, end) = client.rest(Duration::from_secs(5)).await;
    check_goaways(&mut table, &frames, 0);
    table.check("connection", &End::Closed, &end);
    table.check_logs(&gateway).await;
    table.finish();
}

/// GOAWAY(NO_ERROR, 2³¹-1), later GOAWAY(NO_ERROR, `last`).
fn check_goaways(table: &mut Table, frames: &[crate::harness::raw_h2::Frame], last: u32) {
    let goaways = frames.iter().filter(|frame| frame.kind == GOAWAY);
    let goaways: Vec<_> =
        goaways.map(|frame| (u32::from_be_bytes(frame.payload[..4].try_into().unwrap()), frame.code())).collect();
    table.check("GOAWAYs (last stream, code)", &vec![(0x7fff_ffff, 0), (last, 0)], &goaways);
}

#[tokio::test]
async fn headers_with_underscores() {
    let upstreams = Upstreams::start().await;
    let mut table = Table::new("networking.md §4.6, headers with underscores");
    let request = b"GET / HTTP/1.1\r\nhost: a.com\r\nx_under: 1\r\nx-ok: 1\r\n\r\n";

    let gateway = start("httpHeadersWithUnderscoresAction: REJECT", &upstreams).await;
    let rows = [refused("REJECT", request, 400, "Bad Request", "DPE", "http1.unexpected_underscore")];
    exchange::run(&mut table, &gateway, 80, &upstreams.ok, &rows).await;
    table.row("REJECT over HTTP/2");
    let request_h2 = Request::get("http://a.com/").header("x_under", "1").body(()).unwrap();
    let response = Http2::connect(gateway.address(80)).await.exchange(request_h2, &[]).await;
    table.check("end", &Some(Failure::StreamReset(h2::Reason::INTERNAL_ERROR.into())), &response.failure);
    table.expect_log(response.client, 0, "DR", "http2.unexpected_underscore");

    table.check_logs(&gateway).await;

    let gateway = start("httpHeadersWithUnderscoresAction: DROP_HEADER", &upstreams).await;
    let rows = [forwarded("DROP_HEADER", request, "GET / HTTP/1.1", &["host: a.com", "x-ok: 1", EDGE], "")];
    exchange::run(&mut table, &gateway, 80, &upstreams.ok, &rows).await;

    let gateway = start("httpHeadersWithUnderscoresAction: ALLOW", &upstreams).await;
    let rows = [forwarded("ALLOW", request, "GET / HTTP/1.1", &["host: a.com", "x_under: 1", "x-ok: 1", EDGE], "")];
    exchange::run(&mut table, &gateway, 80, &upstreams.ok, &rows).await;
    table.check_logs(&gateway).await;
    table.finish();
}
