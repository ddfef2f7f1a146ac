//! The access log, field by field: telemetry-and-operations.md §4.1 and §4.2.

use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use serde_json::Value;

use crate::harness::client::{Http1, Http2};
use crate::harness::gateway::{Gateway, LogLine};
use crate::harness::mesh::Mesh;
use crate::harness::raw_h2::RawH2;
use crate::harness::table::Table;
use crate::harness::upstream::{H2Step, Step, Upstream, answer};

const REFUSED: &str =
    "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}";
const TERMINATED: &str = "upstream_reset_before_response_started{connection_termination}";
const REFUSED_REASON: &str = "delayed_connect_error:_Connection_refused";

/// A line as the reference shows it. Stands for what differs from run to run: `<ms>` a number, `<id>` a request id.
struct Line {
    request: &'static str,
    code: &'static str,
    flags: &'static str,
    details: &'static str,
    transport_failure: &'static str,
    received: &'static str,
    sent: &'static str,
    service_time: &'static str,
    forwarded_for: &'static str,
    request_id: &'static str,
    authority: &'static str,
    upstream: Option<SocketAddr>,
    cluster: &'static str,
    /// Whether a connection to the upstream came about.
    connected: bool,
    route: &'static str,
}

impl Line {
    /// A request for `authority` that the gateway answered by itself.
    fn local(authority: &'static str, code: &'static str, flags: &'static str, details: &'static str) -> Self {
        Self {
            request: "GET / HTTP/1.1",
            code,
            flags,
            details,
            transport_failure: "-",
            received: "0",
            sent: "0",
            service_time: "-",
            forwarded_for: "127.0.0.2",
            request_id: "<id>",
            authority,
            upstream: None,
            cluster: "-",
            connected: false,
            route: "-",
        }
    }

    /// One that never became a request.
    fn malformed(code: &'static str, details: &'static str, sent: &'static str) -> Self {
        let line = Self::local("-", code, "DPE", details);
        Self { request: "- - HTTP/1.1", sent, forwarded_for: "-", request_id: "-", ..line }
    }

    /// Notes where `line` differs; `local` and `remote` are the ends of the client's connection.
    fn check(&self, table: &mut Table, line: &LogLine, local: SocketAddr, remote: SocketAddr, agent: &str) {
        let upstream = self.upstream.map_or("-".to_owned(), |upstream| upstream.to_string());
        let upstream_local = if self.connected { "127.0.0.1:<port>" } else { "-" };
        let (local, remote) = (local.to_string(), remote.to_string());
        let expected = [
            ("START_TIME", "<time>"),
            ("request", self.request),
            ("RESPONSE_CODE", self.code),
            ("RESPONSE_FLAGS", self.flags),
            ("RESPONSE_CODE_DETAILS", self.details),
            ("CONNECTION_TERMINATION_DETAILS", "-"),
            ("UPSTREAM_TRANSPORT_FAILURE_REASON", self.transport_failure),
            ("BYTES_RECEIVED", self.received),
            ("BYTES_SENT", self.sent),
            ("DURATION", "<ms>"),
            ("X-ENVOY-UPSTREAM-SERVICE-TIME", self.service_time),
            ("X-FORWARDED-FOR", self.forwarded_for),
            ("USER-AGENT", agent),
            ("X-REQUEST-ID", self.request_id),
            ("AUTHORITY", self.authority),
            ("UPSTREAM_HOST", upstream.as_str()),
            ("UPSTREAM_CLUSTER_RAW", self.cluster),
            ("UPSTREAM_LOCAL_ADDRESS", upstream_local),
            ("DOWNSTREAM_LOCAL_ADDRESS", local.as_str()),
            ("DOWNSTREAM_REMOTE_ADDRESS", remote.as_str()),
            ("REQUESTED_SERVER_NAME", "-"),
            ("ROUTE_NAME", self.route),
        ];
        table.check("number of fields", &expected.len(), &line.fields().len());
        for ((name, expected), got) in expected.iter().zip(line.fields()) {
            if !fits(expected, got) {
                table.fail(format!("{name}: expected {expected:?}, got {got:?}"));
            }
        }
    }
}

/// Whether a field is what is expected, placeholders included.
fn fits(expected: &str, got: &str) -> bool {
    match expected {
        "<ms>" => got.parse::<u64>().is_ok(),
        // 8-4-4-4-12 hexadecimal digits.
        "<id>" => {
            let groups: Vec<_> = got.split('-').map(str::len).collect();
            groups == [8, 4, 4, 4, 12] && got.chars().all(|digit| digit == '-' || digit.is_ascii_hexdigit())
        }
        // 2026-11-22T00:45:21.280Z
        "<time>" => {
            let shape: String = got.chars().map(|char| if char.is_ascii_digit() { '0' } else { char }).collect();
            shape == "0000-00-00T00:00:00.000Z"
        }
        "127.0.0.1:<port>" => got.strip_prefix("127.0.0.1:").is_some_and(|port| port.parse::<u16>().is_ok()),
        _ => expected == got,
    }
}

struct Upstreams {
    teapot: Upstream,
    refuses: Upstream,
    closes: Upstream,
    hangs: Upstream,
    unwell: Upstream,
    web_socket: Upstream,
    grpc: Upstream,
}

impl Upstreams {
    async fn start() -> Self {
        const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        Self {
            teapot: Upstream::answers(format!("HTTP/1.1 418 Teapot\r\ncontent-length: 135\r\n\r\n{:135}", "x")).await,
            refuses: Upstream::refuses().await,
            closes: Upstream::h1(|_| vec![Step::ReadBody, Step::Close]).await,
            hangs: Upstream::hangs().await,
            unwell: Upstream::h1(|_| answer("HTTP/1.1 503 No\r\ncontent-length: 10\r\n\r\n0123456789")).await,
            web_socket: Upstream::h1(|_| vec![Step::ReadBody, Step::Send(SWITCH.to_vec()), Step::Echo]).await,
            grpc: Upstream::h2(|_| {
                vec![
                    H2Step::ReadBody,
                    H2Step::Head(200, &[("content-type", "application/grpc")], false),
                    H2Step::Data(b"\0\0\0\0\x05hello", false),
                    H2Step::Trailers(&[("grpc-status", "0")]),
                ]
            })
            .await,
        }
    }

    fn mesh(&self) -> Mesh {
        let no_retry =
            |host: &str| format!("[{{route: [{{destination: {{host: {host}}}}}], retries: {{attempts: 0}}}}]");
        Mesh::new()
            .http("teapot.test", &[self.teapot.address()])
            .route("teapot.test", "teapot.test")
            .route("missing.test", "nowhere.test")
            .http("empty.test", &[])
            .route("empty.test", "empty.test")
            .http("refuses.test", &[self.refuses.address()])
            .routes("refuses.test", &no_retry("refuses.test"))
            .route("retried.test", "refuses.test")
            .http("closes.test", &[self.closes.address()])
            .route("closes.test", "closes.test")
            .http("hangs.test", &[self.hangs.address()])
            .route("hangs.test", "hangs.test")
            .routes("timeout.test", "[{route: [{destination: {host: hangs.test}}], timeout: 200ms}]")
            .http("unwell.test", &[self.unwell.address()])
            .routes(
                "unwell.test",
                "[{route: [{destination: {host: unwell.test}}], retries: {attempts: 1, retryOn: 5xx}}]",
            )
            .routes(
                "fault.test",
                "[{route: [{destination: {host: teapot.test}}], fault: {abort: {httpStatus: 418, percentage: {value: 100}}}}]",
            )
            .routes("redirect.test", "[{name: moved, redirect: {uri: /elsewhere}}]")
            .routes("named.test", "[{name: all, match: [{name: root, uri: {exact: /}}], directResponse: {status: 200}}]")
            .routes("rewrite.test", "[{rewrite: {uri: /inside}, route: [{destination: {host: teapot.test}}]}]")
            .http("ws.test", &[self.web_socket.address()])
            .route("ws.test", "ws.test")
            .service("grpc.test", "GRPC", &[self.grpc.address()])
            .route("grpc.test", "grpc.test")
    }
}

/// The first line after `mark` about a client connection.
async fn line_from(gateway: &Gateway, mark: usize, client: SocketAddr) -> Option<LogLine> {
    let remote = client.to_string();
    gateway.log_line_since(mark, move |line| line.fields().contains(&remote)).await
}

#[tokio::test]
async fn lines_of_requests() {
    let upstreams = Upstreams::start().await;
    let gateway = upstreams.mesh().start().await;
    let local = gateway.address(80);
    let to = |upstream: &Upstream| Some(upstream.address());
    let mut table = Table::new("telemetry-and-operations.md §4.1, lines of requests");
    let rows = [
        (
            "success",
            "GET /status/418?x=1&y=%20z HTTP/1.1\r\nhost: teapot.test",
            Line {
                request: "GET /status/418?x=1&y=%20z HTTP/1.1",
                sent: "135",
                service_time: "<ms>",
                upstream: to(&upstreams.teapot),
                cluster: "outbound|80||teapot.test",
                connected: true,
                ..Line::local("teapot.test", "418", "-", "via_upstream")
            },
        ),
        (
            "with a body, and a path before its rewrite",
            "PUT /outside HTTP/1.1\r\nhost: rewrite.test\r\ncontent-length: 0",
            Line {
                request: "PUT /outside HTTP/1.1",
                sent: "135",
                service_time: "<ms>",
                upstream: to(&upstreams.teapot),
                cluster: "outbound|80||teapot.test",
                connected: true,
                ..Line::local("rewrite.test", "418", "-", "via_upstream")
            },
        ),
        (
            "a path as the gateway saw it after normalization",
            "GET /x/../ok HTTP/1.1\r\nhost: unknown.test",
            Line { request: "GET /ok HTTP/1.1", ..Line::local("unknown.test", "404", "NR", "route_not_found") },
        ),
        (
            "no route",
            "GET / HTTP/1.1\r\nhost: unknown.test",
            Line::local("unknown.test", "404", "NR", "route_not_found"),
        ),
        (
            "missing cluster",
            "GET / HTTP/1.1\r\nhost: missing.test",
            Line::local("missing.test", "503", "NC", "cluster_not_found"),
        ),
        (
            "no endpoint",
            "GET / HTTP/1.1\r\nhost: empty.test",
            Line {
                sent: "19",
                cluster: "outbound|80||empty.test",
                ..Line::local("empty.test", "503", "UH", "no_healthy_upstream")
            },
        ),
        (
            "connect refused",
            "GET / HTTP/1.1\r\nhost: refuses.test",
            Line {
                sent: "98",
                transport_failure: REFUSED_REASON,
                upstream: to(&upstreams.refuses),
                cluster: "outbound|80||refuses.test",
                ..Line::local("refuses.test", "503", "UF", REFUSED)
            },
        ),
        (
            "connect refused, retries used up",
            "GET / HTTP/1.1\r\nhost: retried.test",
            Line {
                sent: "121",
                transport_failure: REFUSED_REASON,
                upstream: to(&upstreams.refuses),
                cluster: "outbound|80||refuses.test",
                ..Line::local("retried.test", "503", "URX,UF", REFUSED)
            },
        ),
        (
            "upstream closed",
            "GET / HTTP/1.1\r\nhost: closes.test",
            Line {
                sent: "95",
                upstream: to(&upstreams.closes),
                cluster: "outbound|80||closes.test",
                connected: true,
                ..Line::local("closes.test", "503", "UC", TERMINATED)
            },
        ),
        (
            "timeout",
            "GET / HTTP/1.1\r\nhost: timeout.test",
            Line {
                sent: "24",
                upstream: to(&upstreams.hangs),
                cluster: "outbound|80||hangs.test",
                connected: true,
                ..Line::local("timeout.test", "504", "UT", "response_timeout")
            },
        ),
        (
            "503 on every try",
            "GET / HTTP/1.1\r\nhost: unwell.test",
            Line {
                sent: "10",
                service_time: "<ms>",
                upstream: to(&upstreams.unwell),
                cluster: "outbound|80||unwell.test",
                connected: true,
                ..Line::local("unwell.test", "503", "URX", "via_upstream")
            },
        ),
        (
            "fault abort",
            "GET / HTTP/1.1\r\nhost: fault.test",
            Line {
                sent: "18",
                cluster: "outbound|80||teapot.test",
                ..Line::local("fault.test", "418", "FI", "fault_filter_abort")
            },
        ),
        (
            "redirect, named route",
            "GET / HTTP/1.1\r\nhost: redirect.test",
            Line { route: "moved", ..Line::local("redirect.test", "301", "-", "direct_response") },
        ),
        (
            "direct response, named route and match",
            "GET / HTTP/1.1\r\nhost: named.test",
            Line { route: "all.root", ..Line::local("named.test", "200", "-", "direct_response") },
        ),
        ("HTTP/1.0", "GET / HTTP/1.0\r\nhost: teapot.test", Line::malformed("426", "low_version", "16")),
        ("bad request line", "GET\r\nhost: teapot.test", Line::malformed("400", "http1.codec_error", "11")),
    ];
    for (name, head, expected) in rows {
        table.row(name);
        let mark = gateway.log_mark();
        let mut client = Http1::connect(local).await;
        let remote = client.address();
        client.send(format!("{head}\r\nuser-agent: curl/8.5\r\n\r\n")).await;
        client.response().await;
        let agent = if expected.authority == "-" { "-" } else { "curl/8.5" };
        match line_from(&gateway, mark, remote).await {
            Some(line) => expected.check(&mut table, &line, local, remote, agent),
            None => table.fail("no line"),
        }
    }

    table.row("nothing is escaped, and nothing cut");
    let mark = gateway.log_mark();
    let long = "z".repeat(50_000);
    let mut client = Http1::connect(local).await;
    client
        .exchange(format!("GET / HTTP/1.1\r\nhost: unknown.test\r\nuser-agent: a \"b\" \\ \u{e9} {long}\r\n\r\n"))
        .await;
    let raw = format!("\"a \"b\" \\ \u{e9} {long}\"");
    let found = gateway.output_since(mark, move |line| line.contains(&raw)).await;
    table.check("the line", &true, &found.is_some());

    table.row("no host");
    let mark = gateway.log_mark();
    let mut client = Http1::connect(local).await;
    let remote = client.address();
    client.exchange("GET /ok HTTP/1.1\r\n\r\n").await;
    let expected = Line {
        request: "GET /ok HTTP/1.1",
        forwarded_for: "-",
        request_id: "-",
        ..Line::local("-", "400", "-", "missing_host_header")
    };
    match line_from(&gateway, mark, remote).await {
        Some(line) => expected.check(&mut table, &line, local, remote, "-"),
        None => table.fail("no line"),
    }

    table.row("client gone");
    upstreams.hangs.take();
    let mark = gateway.log_mark();
    let mut client = Http1::connect(local).await;
    let remote = client.address();
    client.send("GET /slow HTTP/1.1\r\nhost: hangs.test\r\n\r\n").await;
    upstreams.hangs.received().await;
    drop(client);
    let expected = Line {
        request: "GET /slow HTTP/1.1",
        upstream: to(&upstreams.hangs),
        cluster: "outbound|80||hangs.test",
        connected: true,
        ..Line::local("hangs.test", "0", "DC", "downstream_remote_disconnect")
    };
    match line_from(&gateway, mark, remote).await {
        Some(line) => expected.check(&mut table, &line, local, remote, "-"),
        None => table.fail("no line"),
    }

    table.row("websocket");
    let mark = gateway.log_mark();
    let mut client = Http1::connect(local).await;
    let remote = client.address();
    client.exchange("GET /ws HTTP/1.1\r\nhost: ws.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    client.send("12345678").await;
    let echoed = client.read_exactly(8).await;
    table.check("echo", &Ok(b"12345678".to_vec()), &echoed);
    drop(client);
    let expected = Line {
        request: "GET /ws HTTP/1.1",
        received: "8",
        sent: "8",
        upstream: to(&upstreams.web_socket),
        cluster: "outbound|80||ws.test",
        connected: true,
        ..Line::local("ws.test", "101", "DC", "downstream_remote_disconnect")
    };
    match line_from(&gateway, mark, remote).await {
        Some(line) => expected.check(&mut table, &line, local, remote, "-"),
        None => table.fail("no line"),
    }
    table.finish();
}

#[tokio::test]
async fn lines_of_http2() {
    let upstreams = Upstreams::start().await;
    let gateway = upstreams.mesh().start().await;
    let mut table = Table::new("telemetry-and-operations.md §4.1, lines of HTTP/2");
    let agent = |agent: &'static str| move |line: &LogLine| line.user_agent() == agent;

    table.row("gRPC");
    let mark = gateway.log_mark();
    let mut client = Http2::connect(gateway.address(80)).await;
    let call = |host: &str, agent: &str| {
        Request::post(format!("http://{host}/pkg.Svc/M"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", agent)
            .body(())
            .unwrap()
    };
    client.exchange(call("grpc.test", "grpc"), b"\0\0\0\0\x03abc").await;
    match gateway.log_line_since(mark, agent("grpc")).await {
        Some(line) => {
            table.check("request", "POST /pkg.Svc/M HTTP/2", line.request());
            table.check(
                "code, flags, details",
                &("200", "-", "via_upstream"),
                &(line.code(), line.flags(), line.details()),
            );
            table.check("bytes", &["8".to_owned(), "10".to_owned()][..], &line.fields()[7..9]);
        }
        None => table.fail("no line"),
    }

    table.row("gRPC, refused: local replies to gRPC are 200");
    client.exchange(call("refuses.test", "grpc refused"), b"\0\0\0\0\x03abc").await;
    match gateway.log_line_since(mark, agent("grpc refused")).await {
        Some(line) => {
            table.check("code, flags, details", &("200", "UF", REFUSED), &(line.code(), line.flags(), line.details()));
            table.check("transport failure", REFUSED_REASON, line.transport_failure());
        }
        None => table.fail("no line"),
    }

    table.row("client RST");
    let mut client = RawH2::connect(gateway.address(80)).await;
    let fields: [(&str, &[u8]); 5] = [
        (":method", b"GET"),
        (":scheme", b"http"),
        (":authority", b"hangs.test"),
        (":path", b"/slow"),
        ("user-agent", b"reset"),
    ];
    client.headers(1, &fields, true).await;
    upstreams.hangs.received().await;
    client.reset(1, 8).await;
    match gateway.log_line_since(mark, agent("reset")).await {
        Some(line) => {
            table.check("request", "GET /slow HTTP/2", line.request());
            table.check(
                "code, flags, details",
                &("0", "DR", "http2.remote_reset"),
                &(line.code(), line.flags(), line.details()),
            );
        }
        None => table.fail("no line"),
    }
    table.finish();
}

#[tokio::test]
async fn json() {
    let upstreams = Upstreams::start().await;
    let gateway = upstreams.mesh().builder().access_log("json").start().await.unwrap_or_else(|error| panic!("{error}"));
    let mut client = Http1::connect(gateway.address(80)).await;
    let line = |mark| gateway.output_since(mark, |line| line.starts_with('{'));

    client.exchange("GET /x HTTP/1.1\r\nhost: unknown.test\r\nuser-agent: exp/1.0\r\n\r\n").await;
    let text = line(0).await.expect("a line");
    let object: Value = serde_json::from_str(&text).expect("JSON");
    let id = object["request_id"].as_str().expect("a request id");
    let time = object["start_time"].as_str().expect("a time");
    assert!(fits("<id>", id) && fits("<time>", time), "{text}");
    // Byte by byte but for what differs from run to run.
    let expected = format!(
        "{{\"authority\":\"unknown.test\",\"bytes_received\":0,\"bytes_sent\":0,\"connection_termination_details\":null,\
         \"downstream_local_address\":\"{}\",\"downstream_remote_address\":\"{}\",\"duration\":{},\"method\":\"GET\",\
         \"path\":\"/x\",\"protocol\":\"HTTP/1.1\",\"request_id\":\"{id}\",\"requested_server_name\":null,\
         \"response_code\":404,\"response_code_details\":\"route_not_found\",\"response_flags\":\"NR\",\
         \"route_name\":null,\"start_time\":\"{time}\",\"upstream_cluster\":null,\"upstream_host\":null,\
         \"upstream_local_address\":null,\"upstream_service_time\":null,\"upstream_transport_failure_reason\":null,\
         \"user_agent\":\"exp/1.0\",\"x_forwarded_for\":\"127.0.0.2\"}}",
        gateway.address(80),
        client.address(),
        object["duration"].as_u64().expect("a number"),
    );
    assert_eq!(text, expected);

    let mark = gateway.log_mark();
    client.exchange("GET / HTTP/1.1\r\nhost: teapot.test\r\nuser-agent: a\"b\\c\td/e\u{e9}\r\n\r\n").await;
    let text = line(mark).await.expect("a line");
    let object: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&object["response_code"], &object["response_flags"]), (&418.into(), &"-".into()));
    assert!(object["upstream_service_time"].is_string(), "header operators are strings: {text}");
    assert_eq!(object["upstream_host"], upstreams.teapot.address().to_string());
    assert_eq!(object["upstream_cluster"], "outbound|80||teapot.test");
    assert!(text.contains("\"user_agent\":\"a\\\"b\\\\c\\td/e\u{e9}\""), "{text}");
}

#[tokio::test]
async fn mesh_config_decides_unless_told_otherwise() {
    let start = |mesh_config: &'static str, option: Option<&'static str>| async move {
        let mut mesh = Mesh::new().routes("a.test", "[{directResponse: {status: 200}}]");
        if !mesh_config.is_empty() {
            mesh = mesh.mesh_config(mesh_config);
        }
        let builder = mesh.builder().access_log(option);
        builder.start().await.unwrap_or_else(|failure| panic!("{failure}"))
    };
    for (mesh_config, option, expected) in [
        ("", None, None),
        ("accessLogFile: /dev/stdout", None, Some("[2")),
        ("accessLogFile: /dev/stdout\naccessLogEncoding: JSON", None, Some("{\"authority\"")),
        ("accessLogFile: /dev/stdout\naccessLogFormat: \"%RESPONSE_CODE% of %REQ(:PATH)%\"", None, Some("200 of /x")),
        ("accessLogFile: /dev/stdout", Some("off"), None),
        ("accessLogFile: /dev/stdout", Some("json"), Some("{\"authority\"")),
    ] {
        let gateway = start(mesh_config, option).await;
        Http1::connect(gateway.address(80)).await.get("a.test", "/x").await;
        match expected {
            Some(expected) => {
                let line = gateway.output_since(0, |_| true).await;
                assert!(line.as_deref().is_some_and(|line| line.starts_with(expected)), "{mesh_config}: {line:?}");
            }
            None => {
                // The line would be there before that of a request that is known to be done.
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert_eq!(gateway.log_mark(), 0, "{mesh_config}, {option:?}");
            }
        }
    }
}
