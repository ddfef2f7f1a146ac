//! Which bytes are a request: networking.md §4.7.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Request};

use crate::harness::client::{End, Failure, Http1, Http2};
use crate::harness::exchange::{self, EDGE, Exchange, answered, check_received, forwarded, refused};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::raw_h2::{GOAWAY, RST_STREAM, RawH2};
use crate::harness::table::Table;
use crate::harness::upstream::{H2Step, Step, Upstream, answer, ok};

async fn start(upstream: &Upstream) -> Gateway {
    Mesh::new().http("be.test", &[upstream.address()]).route("*", "be.test").start().await
}

#[rustfmt::skip]
fn measured() -> Vec<Exchange> {
    vec![
        refused("dup cl same", b"POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("dup cl diff", b"POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("cl list", b"POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 2, 2\r\n\r\nhi", 400, "Bad Request", "DPE", "http1.codec_error"),
        forwarded("many lines forwarded", b"GET / HTTP/1.1\r\nhost: a.com\r\nX-A: 1\r\nx-b: 2\r\nx-A: 3\r\ncookie: a=1\r\ncookie: b=2\r\naccept: a\r\naccept: b\r\n\r\n", "GET / HTTP/1.1", &["host: a.com", "x-a: 1", "x-b: 2", "x-a: 3", "cookie: a=1", "cookie: b=2", "accept: a,b", EDGE], ""),
        refused("cl and te", b"POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "Bad Request", "DPE", "http1.content_length_and_chunked_not_allowed"),
        forwarded("te chunked upper", b"POST / HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "POST / HTTP/1.1", &["host: a.com", EDGE, "transfer-encoding: chunked"], "hi"),
        refused("te identity", b"POST / HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: identity\r\n\r\n", 501, "Not Implemented", "DPE", "http1.invalid_transfer_encoding"),
        refused("te gzip chunked", b"POST / HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "Not Implemented", "DPE", "http1.invalid_transfer_encoding"),
        refused("te chunked twice", b"POST / HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 501, "Not Implemented", "DPE", "http1.invalid_transfer_encoding"),
        refused("te space before colon", b"POST / HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        forwarded("chunk ext", b"POST / HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\n\r\n", "POST / HTTP/1.1", &["host: a.com", EDGE, "transfer-encoding: chunked"], "hi"),
        refused("chunk bad size", b"POST / HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhi\r\n0\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("chunk lf only", b"POST / HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: chunked\r\n\r\n2\nhi\n0\n\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("chunk no crlf after data", b"POST / HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhiXX0\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        forwarded("trailers h1", b"POST / HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n", "POST / HTTP/1.1", &["host: a.com", "trailer: x-t", EDGE, "transfer-encoding: chunked"], "hi"),
        refused("cl negative", b"POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: -1\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("cl plus", b"POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: +2\r\n\r\nhi", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("cl hex", b"POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 0x2\r\n\r\nhi", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("cl huge", b"POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 99999999999999999999\r\n\r\nhi", 400, "Bad Request", "DPE", "http1.codec_error"),
        forwarded("get with body", b"GET / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 2\r\n\r\nhi", "GET / HTTP/1.1", &["host: a.com", "content-length: 2", EDGE], "hi"),
        forwarded("lf only lines", b"GET / HTTP/1.1\nhost: a.com\n\n", "GET / HTTP/1.1", &["host: a.com", EDGE], ""),
        forwarded("leading crlf", b"\r\n\r\nGET / HTTP/1.1\r\nhost: a.com\r\n\r\n", "GET / HTTP/1.1", &["host: a.com", EDGE], ""),
        forwarded("obs fold", b"GET / HTTP/1.1\r\nhost: a.com\r\nx-a: 1\r\n  2\r\n\r\n", "GET / HTTP/1.1", &["host: a.com", "x-a: 1  2", EDGE], ""),
        refused("header no colon", b"GET / HTTP/1.1\r\nhost: a.com\r\nfoo\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("header empty name", b"GET / HTTP/1.1\r\nhost: a.com\r\n: x\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("header space name", b"GET / HTTP/1.1\r\nhost: a.com\r\nx a: 1\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("header nul", b"GET / HTTP/1.1\r\nhost: a.com\r\nx: a\x00b\r\n\r\n", 400, "Bad Request", "DPE", "http1.invalid_characters"),
        // Envoy deletes a lone CR and goes on; RFC 9112 §2.2 makes it invalid, and strict framing refuses it.
        refused("header cr", b"GET / HTTP/1.1\r\nhost: a.com\r\nx: a\rb\r\n\r\n", 400, "Bad Request", "DPE", "*"),
        forwarded("header highbit", b"GET / HTTP/1.1\r\nhost: a.com\r\nx: \xff\xfe\r\n\r\n", "GET / HTTP/1.1", &["host: a.com", "x: \u{ff}\u{fe}", EDGE], ""),
        refused("header ctl", b"GET / HTTP/1.1\r\nhost: a.com\r\nx: a\x01b\r\n\r\n", 400, "Bad Request", "DPE", "http1.invalid_characters"),
        forwarded("header tab", b"GET / HTTP/1.1\r\nhost: a.com\r\nx:\ta\tb\t\r\n\r\n", "GET / HTTP/1.1", &["host: a.com", "x: a\tb", EDGE], ""),
        refused("header name paren", b"GET / HTTP/1.1\r\nhost: a.com\r\nx(y): 1\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("bad request line", b"GET\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        forwarded("two spaces", b"GET  / HTTP/1.1\r\nhost: a.com\r\n\r\n", "GET / HTTP/1.1", &["host: a.com", EDGE], ""),
        refused("method lower", b"get / HTTP/1.1\r\nhost: a.com\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("method custom", b"FOO / HTTP/1.1\r\nhost: a.com\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        forwarded("method propfind", b"PROPFIND / HTTP/1.1\r\nhost: a.com\r\n\r\n", "PROPFIND / HTTP/1.1", &["host: a.com", EDGE, "content-length: 0"], ""),
        forwarded("method purge", b"PURGE / HTTP/1.1\r\nhost: a.com\r\n\r\n", "PURGE / HTTP/1.1", &["host: a.com", EDGE, "content-length: 0"], ""),
        refused("method query", b"QUERY / HTTP/1.1\r\nhost: a.com\r\n\r\n", 400, "", "-", "query_missing_content_type"),
        forwarded("method patch", b"PATCH / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 0\r\n\r\n", "PATCH / HTTP/1.1", &["host: a.com", "content-length: 0", EDGE], ""),
        forwarded("method trace", b"TRACE / HTTP/1.1\r\nhost: a.com\r\n\r\n", "TRACE / HTTP/1.1", &["host: a.com", EDGE], ""),
        refused("method long", b"VERYLONGMETHODNAME / HTTP/1.1\r\nhost: a.com\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("version lower", b"GET / http/1.1\r\nhost: a.com\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("version junk", b"GET / HTTPX\r\nhost: a.com\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
        refused("host space inside", b"GET / HTTP/1.1\r\nhost: a b.com\r\n\r\n", 400, "Bad Request", "DPE", "http.invalid_authority"),
    ]
}

#[tokio::test]
async fn raw_requests() {
    let upstream = Upstream::ok().await;
    let gateway = start(&upstream).await;
    let mut table = Table::new("networking.md §4.7, raw requests");
    let mut rows = measured();
    // Protocol versions (§3.21) and the Host line (§3.4) have their own words.
    rows.extend([
        refused("HTTP/1.0", b"GET / HTTP/1.0\r\nhost: a.com\r\n\r\n", 426, "Upgrade Required", "DPE", "low_version"),
        refused("HTTP/1.0 without host", b"GET / HTTP/1.0\r\n\r\n", 426, "Upgrade Required", "DPE", "low_version"),
        refused("HTTP/0.9", b"GET /\r\n\r\n", 426, "Upgrade Required", "DPE", "low_version"),
        refused("HTTP/1.2", b"GET / HTTP/1.2\r\nhost: a.com\r\n\r\n", 426, "Upgrade Required", "DPE", "low_version"),
        refused(
            "HTTP/2.0 in text",
            b"GET / HTTP/2.0\r\nhost: a.com\r\n\r\n",
            426,
            "Upgrade Required",
            "DPE",
            "low_version",
        ),
        refused("no host", b"GET / HTTP/1.1\r\n\r\n", 400, "", "-", "missing_host_header"),
        answered("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nhost: a.com\r\n\r\n", 404, "", "-", "absolute_path_rejected"),
        refused("CONNECT", b"CONNECT a.com:80 HTTP/1.1\r\nhost: a.com:80\r\n\r\n", 404, "", "NR", "route_not_found"),
    ]);
    // Without a body, these methods get a length on the way and the others don't.
    for (method, length) in [("GET", false), ("DELETE", false), ("POST", true), ("PUT", true), ("OPTIONS", true)] {
        let request = format!("{method} / HTTP/1.1\r\nhost: a.com\r\n\r\n");
        let headers: &[&str] =
            if length { &["host: a.com", EDGE, "content-length: 0"] } else { &["host: a.com", EDGE] };
        let line: &'static str = format!("{method} / HTTP/1.1").leak();
        rows.push(forwarded(line, request.as_bytes(), line, headers, ""));
    }
    exchange::run(&mut table, &gateway, 80, &upstream, &rows).await;
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn ambiguous_requests_never_pass() {
    let upstream = Upstream::ok().await;
    let gateway = start(&upstream).await;
    let mut table = Table::new("networking.md §3.4, two Host lines are refused");
    for (name, hosts) in [("equal", "host: a.com\r\nhost: a.com"), ("different", "host: a.com\r\nhost: b.com")] {
        table.row(name);
        let mut client = Http1::connect(gateway.address(80)).await;
        let response = client.exchange(format!("GET / HTTP/1.1\r\n{hosts}\r\n\r\n")).await;
        table.check("status", &400, &response.status);
        table.check("connection", "close", response.header("connection"));
        table.check("requests at the upstream", &0, &upstream.take().len());
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn header_limits() {
    let upstream = Upstream::ok().await;
    let gateway = start(&upstream).await;
    let mut table = Table::new("networking.md §4.7, limits of the request head");
    let many = |count: usize| (0..count).map(|number| format!("x-{number}: v\r\n")).collect::<String>();
    let with = |lines: String| format!("GET / HTTP/1.1\r\nhost: a.com\r\n{lines}\r\n");
    let long_path = |length: usize| format!("GET /{} HTTP/1.1\r\nhost: a.com\r\n\r\n", "a".repeat(length));
    let too_large = (431, "DPE", "http1.headers_too_large");
    let too_many = (431, "DPE", "http1.too_many_headers");
    let passes = (200, "-", "via_upstream");
    for (name, request, (status, flags, details)) in [
        ("98 fields and host", with(many(98)), passes),
        ("99 fields and host", with(many(99)), passes),
        ("100 fields and host", with(many(100)), too_many),
        ("150 fields and host", with(many(150)), too_many),
        ("a field of 60416 bytes", with(format!("x-big: {}\r\n", "v".repeat(60416))), passes),
        ("a field of 61240 bytes", with(format!("x-big: {}\r\n", "v".repeat(61240))), passes),
        ("a field of 61640 bytes", with(format!("x-big: {}\r\n", "v".repeat(61640))), too_large),
        ("a field of 102400 bytes", with(format!("x-big: {}\r\n", "v".repeat(102_400))), too_large),
        ("a path of 8 KiB", long_path(8192), passes),
        ("a path of 59000 bytes", long_path(59000), passes),
        ("a path of 62000 bytes", long_path(62000), too_large),
    ] {
        table.row(name);
        let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
        table.check("status", &status, &response.status);
        if status == 431 {
            exchange::check_local_reply(&mut table, &response, 431, "Request Header Fields Too Large", true);
        }
        table.expect_log(response.client, status, flags, details);
    }
    let reset = Some(Failure::StreamReset(h2::Reason::INTERNAL_ERROR.into()));
    for (name, count, size, details) in [
        ("HTTP/2, 90 fields and 4 pseudo headers", 90, 0, None),
        ("HTTP/2, 99 fields and 4 pseudo headers", 99, 0, Some("http2.too_many_headers")),
        ("HTTP/2, 101 fields and 4 pseudo headers", 101, 0, Some("http2.too_many_headers")),
        ("HTTP/2, a field of 60416 bytes", 0, 60416, None),
        ("HTTP/2, a field of 61640 bytes", 0, 61640, Some("http2.header_list_size_too_large")),
        ("HTTP/2, a field of 71680 bytes", 0, 71680, Some("http2.header_list_size_too_large")),
    ] {
        table.row(name);
        let mut request = Request::get("http://a.com/");
        for number in 0..count {
            request = request.header(format!("x-{number}"), "v");
        }
        if size > 0 {
            request = request.header("x-big", "v".repeat(size));
        }
        let mut client = Http2::connect(gateway.address(80)).await;
        let response = client.exchange(request.body(()).unwrap(), &[]).await;
        match details {
            None => table.check("status", &200, &response.status),
            Some(details) => {
                table.expect_log(response.client, 0, "DR", details);
                table.check("end of the stream", &reset, &response.failure)
            }
        };
        table.check("the connection goes on", &200, &client.get("a.com", "/").await.status);
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn limits_of_the_response_head() {
    let response = |count: usize, size: usize| {
        let mut head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n".to_owned();
        (0..count.saturating_sub(1)).for_each(|number| head += &format!("x-{number}: v\r\n"));
        if size > 0 {
            head += &format!("x-big: {}\r\n", "v".repeat(size));
        }
        head + "\r\nok"
    };
    let mut table = Table::new("networking.md §4.7, limits of the response head");
    let mut mesh = Mesh::new();
    let mut upstreams = Vec::new();
    let rows = [
        ("count-99", response(99, 0), 200, "-"),
        ("count-101", response(101, 0), 502, "UPE"),
        ("count-120", response(120, 0), 502, "UPE"),
        ("size-59k", response(1, 59 * 1024), 200, "-"),
        ("size-61k", response(1, 61 * 1024), 200, "-"),
        ("size-90k", response(1, 90 * 1024), 502, "UPE"),
    ];
    for (name, bytes, _, _) in &rows {
        let upstream = Upstream::answers(bytes.clone()).await;
        let service = format!("{name}.test");
        mesh = mesh.http(&service, &[upstream.address()]).route(&format!("{name}.com"), &service);
        upstreams.push(upstream);
    }
    let gateway = mesh.start().await;
    for (name, _, status, flags) in rows {
        table.row(name);
        let response = Http1::connect(gateway.address(80)).await.get(&format!("{name}.com"), "/").await;
        table.check("status", &status, &response.status);
        let details =
            if status == 200 { "via_upstream" } else { "upstream_reset_before_response_started{protocol_error}" };
        table.expect_log(response.client, status, flags, details);
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn responses_of_upstreams() {
    let protocol_error =
        Some("upstream connect error or disconnect/reset before headers. reset reason: protocol error");
    let rows = [
        ("no content", "HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        ("not modified", "HTTP/1.1 304 Not Modified\r\ncontent-length: 0\r\n\r\n", 304, None),
        ("reset content", "HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n", 205, None),
        ("status 600", "HTTP/1.1 600 X\r\ncontent-length: 0\r\n\r\n", 600, None),
        ("status 999", "HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n", 999, None),
        (
            "length and chunked",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            502,
            protocol_error,
        ),
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok", 502, protocol_error),
        ("HTTP/1.0", "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, Some("ok")),
        (
            "interim",
            "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            200,
            Some("ok"),
        ),
        ("own reason", "HTTP/1.1 200 Fine Thanks\r\ncontent-length: 0\r\n\r\n", 200, None),
        ("unknown status", "HTTP/1.1 299 Odd\r\ncontent-length: 0\r\n\r\n", 299, None),
    ];
    let mut mesh = Mesh::new();
    let mut upstreams = Vec::new();
    for (number, (_, bytes, _, _)) in rows.iter().enumerate() {
        let upstream = Upstream::answers(*bytes).await;
        let service = format!("s{number}.test");
        mesh = mesh.http(&service, &[upstream.address()]);
        mesh = mesh.routes(
            &format!("s{number}.com"),
            &format!("[{{route: [{{destination: {{host: {service}}}}}], retries: {{attempts: 0}}}}]"),
        );
        upstreams.push(upstream);
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §4.7, responses of upstreams");
    for (number, (name, _, status, body)) in rows.into_iter().enumerate() {
        table.row(name);
        let mut client = Http1::connect(gateway.address(80)).await;
        let response = client.get(&format!("s{number}.com"), "/").await;
        table.check("status", &status, &response.status);
        table.check("body", body.unwrap_or_default(), response.text().as_str());
        let reason = match status {
            200 => "OK",
            204 => "No Content",
            205 => "Reset Content",
            304 => "Not Modified",
            502 => "Bad Gateway",
            _ => "Unknown",
        };
        table.check("reason", reason, response.reason.as_str());
        if name == "interim" {
            let hints = vec![(103, vec![("link".to_owned(), "</x>".to_owned())])];
            table.check("interim", &hints, &response.interim);
            let over_h2 = Http2::connect(gateway.address(80)).await.get(&format!("s{number}.com"), "/").await;
            table.check("interim over HTTP/2", &hints, &over_h2.interim);
        }
        table.check("connection", &End::Open, &client.ended(Duration::from_millis(20)).await);
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn head_has_no_body() {
    let upstream = Upstream::h1(|received| {
        let body = if received.method == "HEAD" { "" } else { "hello" };
        answer(format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{body}"))
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let response = client.exchange("HEAD / HTTP/1.1\r\nhost: a.com\r\n\r\n").await;
    assert_eq!((response.status, response.header("content-length")), (200, "5"));
    // The connection is in step: the next answer is a whole one.
    assert_eq!(client.get("a.com", "/").await.text(), "hello");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::h1(|received| {
        let body = received.target.clone();
        answer(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let request = |number: u8| format!("GET /{number} HTTP/1.1\r\nhost: a.com\r\n\r\n");
    client.send([request(1), request(2), request(3)].concat()).await;
    for number in 1..=3 {
        assert_eq!(client.response().await.text(), format!("/{number}"));
    }
}

#[tokio::test]
async fn incomplete_request_ends_with_its_client() {
    let upstream = Upstream::ok().await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    client.send("POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 9\r\n\r\nhalf").await;
    client.half_close().await;
    assert_eq!(client.ended(Duration::from_secs(5)).await, End::Closed);
    let line = gateway.log_line_of(client.address()).await.expect("an access log line");
    assert_eq!((line.code(), line.flags(), line.details()), ("0", "DC", "downstream_remote_disconnect"));
}

#[tokio::test]
async fn closing_waits_a_second_for_the_client() {
    let upstream = Upstream::ok().await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let begin = Instant::now();
    assert_eq!(client.exchange("GARBAGE\r\n\r\n").await.status, 400);
    assert_eq!(client.ended(Duration::from_secs(5)).await, End::Closed);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn trailers() {
    let h1 = Upstream::ok().await;
    let h1_trailers =
        Upstream::answers("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-rt: 1\r\n\r\n").await;
    let h2 = Upstream::h2(|_| {
        vec![
            H2Step::ReadBody,
            H2Step::Head(200, &[], false),
            H2Step::Data(b"ok", false),
            H2Step::Trailers(&[("x-rt", "1")]),
        ]
    })
    .await;
    let gateway = Mesh::new()
        .http("h1.test", &[h1.address()])
        .route("h1.com", "h1.test")
        .http("h1-trailers.test", &[h1_trailers.address()])
        .route("h1-trailers.com", "h1-trailers.test")
        .http2("h2.test", &[h2.address()])
        .route("h2.com", "h2.test")
        .start()
        .await;
    let mut table = Table::new("networking.md §4.7, trailers");
    let sent: HeaderMap = [(http::HeaderName::from_static("x-t"), HeaderValue::from_static("1"))].into_iter().collect();
    let pass = vec![("x-rt".to_owned(), "1".to_owned())];
    for (name, host, request_passes, response_passes) in [
        ("HTTP/2 to HTTP/2", "h2.com", true, true),
        ("HTTP/2 to HTTP/1.1", "h1.com", false, false),
        ("HTTP/1.1 trailers to HTTP/2", "h1-trailers.com", false, false),
    ] {
        table.row(name);
        let mut client = Http2::connect(gateway.address(80)).await;
        let request = Request::post(format!("http://{host}/")).header("te", "trailers").body(()).unwrap();
        let (pending, mut sender) = client.open(request, false).await.unwrap();
        sender.send_data("hi".into(), false).unwrap();
        sender.send_trailers(sent.clone()).unwrap();
        let response = crate::harness::client::read_h2(pending).await;
        table.check("body", "ok", response.text().as_str());
        let expected = if response_passes { pass.clone() } else { Vec::new() };
        table.check("response trailers", &expected, &response.trailers);
        let upstream = match host {
            "h2.com" => &h2,
            "h1.com" => &h1,
            _ => &h1_trailers,
        };
        let Some(received) = upstream.received().await else {
            table.fail("the upstream got nothing");
            continue;
        };
        table.check("request body", &b"hi"[..], received.body.as_slice());
        let expected = if request_passes { vec![("x-t".to_owned(), "1".to_owned())] } else { Vec::new() };
        table.check("request trailers", &expected, &received.trailers);
    }
    table.row("HTTP/2 trailers to HTTP/1.1");
    let response = Http1::connect(gateway.address(80)).await.get("h2.com", "/").await;
    table.check("body", "ok", response.text().as_str());
    table.check("response trailers", &Vec::<(String, String)>::new(), &response.trailers);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn http2_to_http1() {
    let upstream = Upstream::ok().await;
    let gateway = start(&upstream).await;
    let mut table = Table::new("networking.md §4.7 and §4.4, HTTP/2 clients");
    let pseudo: [(&str, &[u8]); 4] =
        [(":method", b"GET"), (":scheme", b"http"), (":authority", b"a.com"), (":path", b"/")];
    let scheme = |scheme: &'static [u8]| {
        let mut fields = pseudo.to_vec();
        fields[1].1 = scheme;
        fields
    };
    let with = |more: &[(&'static str, &'static [u8])]| [&pseudo[..], more].concat();
    for (name, fields, headers) in [
        ("host differs from :authority", with(&[("host", b"other.com")]), vec!["host: a.com", EDGE]),
        ("cookies", with(&[("cookie", b"a=1"), ("cookie", b"b=2")]), vec!["host: a.com", "cookie: a=1; b=2", EDGE]),
        ("lines of one name", with(&[("x-a", b"1"), ("x-a", b"2")]), vec!["host: a.com", "x-a: 1", "x-a: 2", EDGE]),
        ("joined lines", with(&[("accept", b"a"), ("accept", b"b")]), vec!["host: a.com", "accept: a,b", EDGE]),
        ("scheme https in plain text", scheme(b"https"), vec!["host: a.com", EDGE]),
        ("unknown scheme", scheme(b"gopher"), vec!["host: a.com", EDGE]),
    ] {
        table.row(name);
        upstream.take();
        let mut client = RawH2::connect(gateway.address(80)).await;
        client.headers(1, &fields, true).await;
        table.check("an answer", &true, &client.next(Duration::from_secs(5)).await.is_ok());
        check_received(&mut table, upstream.take(), "GET / HTTP/1.1", &headers, "");
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn http2_violations_end_the_connection() {
    let upstream = Upstream::ok().await;
    let gateway = start(&upstream).await;
    let mut table = Table::new("networking.md §4.7 and §3.4, HTTP/2 violations");
    let pseudo: [(&str, &[u8]); 4] =
        [(":method", b"GET"), (":scheme", b"http"), (":authority", b"a.com"), (":path", b"/")];
    let with = |name: &'static str, value: &'static [u8]| [&pseudo[..], &[(name, value)]].concat();
    let without = |name: &str| pseudo.iter().copied().filter(|(key, _)| *key != name).collect::<Vec<_>>();
    let authority = |value: &'static [u8]| {
        let mut fields = pseudo.to_vec();
        fields[2].1 = value;
        fields
    };
    for (name, fields) in [
        ("upper-case name", with("X-Upper", b"1")),
        ("connection", with("connection", b"keep-alive")),
        ("te: gzip", with("te", b"gzip")),
        ("transfer-encoding", with("transfer-encoding", b"chunked")),
        ("NUL", with("x", b"a\0b")),
        ("extended CONNECT, which is off", with(":protocol", b"websocket")),
        ("unknown pseudo header", with(":x", b"1")),
        ("no :path", without(":path")),
        ("no :method", without(":method")),
        ("no :scheme", without(":scheme")),
        ("empty :authority", authority(b"")),
        ("illegal :authority", authority(b"a b")),
    ] {
        table.row(name);
        let mut client = RawH2::connect(gateway.address(80)).await;
        client.headers(1, &fields, true).await;
        let (frames, end) = client.rest(Duration::from_secs(5)).await;
        table.check("ended", &true, &matches!(end, End::Closed | End::Reset));
        table.check("GOAWAY", &0, &frames.iter().filter(|frame| frame.kind == GOAWAY).count());
        table.expect_log(Some(client.address()), 0, "DPE", "http2.violation.of.messaging.rule");
        table.check("requests at the upstream", &0, &upstream.take().len());
    }

    table.row("neither :authority nor host");
    let mut client = RawH2::connect(gateway.address(80)).await;
    client.headers(1, &without(":authority"), true).await;
    let (frames, end) = client.rest(Duration::from_secs(5)).await;
    table.check("ended", &true, &matches!(end, End::Closed | End::Reset));
    table.check("GOAWAY", &0, &frames.iter().filter(|frame| frame.kind == GOAWAY).count());
    table.expect_log(Some(client.address()), 0, "DPE", "http2.violation.of.messaging.rule");

    table.row("content-length differs from the data");
    let mut client = RawH2::connect(gateway.address(80)).await;
    let mut fields = with("content-length", b"5");
    fields[0].1 = b"POST";
    client.headers(1, &fields, false).await;
    client.data(1, b"hi", true).await;
    match client.next(Duration::from_secs(5)).await {
        Ok(frame) => {
            table.check("frame", &RST_STREAM, &frame.kind);
            table.check("code", &u32::from(h2::Reason::PROTOCOL_ERROR), &frame.code());
        }
        Err(end) => table.fail(format!("the connection ended: {end:?}")),
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn settings_are_envoys() {
    use crate::harness::raw_h2::{SETTINGS, WINDOW_UPDATE};
    let upstream = Upstream::ok().await;
    let plain = start(&upstream).await;
    let edge = Mesh::new()
        .mesh_config("defaultConfig: {connectionSettings: {profile: EDGE}}")
        .http("be.test", &[upstream.address()])
        .route("*", "be.test")
        .start()
        .await;
    let mut table = Table::new("networking.md §8.2, HTTP/2 SETTINGS");
    for (name, gateway, streams, window, connection_window) in
        [("default", &plain, 1024, 16_777_216, 25_165_824), ("EDGE", &edge, 100, 65_536, 1_048_576)]
    {
        table.row(name);
        let mut client = RawH2::connect(gateway.address(80)).await;
        let mut settings = std::collections::BTreeMap::new();
        let mut update = 0;
        // Both come unasked, at the begin.
        while let Ok(frame) = client.any(Duration::from_millis(300)).await {
            match frame.kind {
                SETTINGS => settings.extend(frame.payload.chunks_exact(6).map(|setting| {
                    (u16::from_be_bytes([setting[0], setting[1]]), u32::from_be_bytes(setting[2..].try_into().unwrap()))
                })),
                WINDOW_UPDATE if frame.stream == 0 => {
                    update += u32::from_be_bytes(frame.payload[..].try_into().unwrap())
                }
                _ => {}
            }
        }
        // A setting that isn't sent has its initial value (RFC 9113 §6.5.2).
        table.check("HEADER_TABLE_SIZE", &4096, settings.get(&1).unwrap_or(&4096));
        table.check("MAX_CONCURRENT_STREAMS", &Some(&streams), &settings.get(&3));
        table.check("INITIAL_WINDOW_SIZE", &window, settings.get(&4).unwrap_or(&65_535));
        table.check("ENABLE_CONNECT_PROTOCOL", &0, settings.get(&8).unwrap_or(&0));
        table.check("connection window", &connection_window, &(65_535 + update));
    }
    table.finish();
}

#[tokio::test]
async fn rapid_reset_is_cut() {
    let hangs = Upstream::hangs().await;
    let gateway = start(&hangs).await;
    let mut client = RawH2::connect(gateway.address(80)).await;
    let pseudo: [(&str, &[u8]); 4] =
        [(":method", b"GET"), (":scheme", b"http"), (":authority", b"a.com"), (":path", b"/")];
    // 251 streams that are reset at once are the end of a connection; twice as many leave no doubt.
    for stream in (1..1000).step_by(2) {
        client.headers(stream, &pseudo, true).await;
        client.reset(stream, h2::Reason::CANCEL.into()).await;
    }
    let (_, end) = client.rest(Duration::from_secs(5)).await;
    assert!(matches!(end, End::Closed | End::Reset), "{end:?}");
    assert_eq!(Http1::connect(gateway.address(80)).await.exchange("GET / HTTP/1.0\r\n\r\n").await.status, 426);
}

#[tokio::test]
async fn rapid_reset_is_cut_at_any_pace() {
    let hangs = Upstream::hangs().await;
    let gateway = start(&hangs).await;
    let mut client = RawH2::connect(gateway.address(80)).await;
    let pseudo: [(&str, &[u8]); 4] =
        [(":method", b"GET"), (":scheme", b"http"), (":authority", b"a.com"), (":path", b"/")];
    // Each is under way when it is reset, so that no queue of the codec tells them.
    for stream in (1..1000).step_by(2) {
        client.headers(stream, &pseudo, true).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        client.reset(stream, h2::Reason::CANCEL.into()).await;
    }
    let (_, end) = client.rest(Duration::from_secs(5)).await;
    assert!(matches!(end, End::Closed | End::Reset), "{end:?}");
    // One that resets few of its requests goes on.
    let mut client = RawH2::connect(gateway.address(80)).await;
    for stream in (1..401).step_by(2) {
        client.headers(stream, &pseudo, true).await;
        client.reset(stream, h2::Reason::CANCEL.into()).await;
    }
    let (_, end) = client.rest(Duration::from_millis(300)).await;
    assert_eq!(end, End::Open);
}

#[tokio::test]
async fn early_answer_is_relayed_while_the_client_sends() {
    let early = Upstream::h1(|_| {
        let mut steps = vec![Step::Send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n".to_vec())];
        steps.push(Step::ReadBody);
        steps.extend(ok());
        steps
    })
    .await;
    let gateway = start(&early).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    client.send("POST / HTTP/1.1\r\nhost: a.com\r\ncontent-length: 100\r\n\r\nhalf").await;
    let response = client.response().await;
    assert_eq!((response.status, response.header("connection")), (413, "close"));
}
