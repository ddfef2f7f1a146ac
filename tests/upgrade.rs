//! Upgrades, CONNECT and protocol versions: networking.md §3.21.

use std::time::Duration;

use http::Request;

use crate::harness::client::{End, Http1, Http2};
use crate::harness::exchange::{self, EDGE, check_local_reply, check_received, expected, forwarded, refused, steady};
use crate::harness::mesh::Mesh;
use crate::harness::raw_h2::RawH2;
use crate::harness::table::Table;
use crate::harness::upstream::{Step, Upstream};

const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n";

/// Accepts every upgrade and echoes what comes then.
async fn echoes() -> Upstream {
    Upstream::h1(|_| vec![Step::ReadBody, Step::Send(SWITCH.to_vec()), Step::Echo]).await
}

fn to(service: &str, fields: &str) -> String {
    format!("[{{route: [{{destination: {{host: {service}}}}}]{}{fields}}}]", if fields.is_empty() { "" } else { ", " })
}

#[tokio::test]
async fn websocket() {
    let echo = echoes().await;
    let late_echo = Upstream::h1(|_| {
        vec![Step::ReadBody, Step::Pause(Duration::from_millis(1200)), Step::Send(SWITCH.to_vec()), Step::Echo]
    })
    .await;
    let refuses = Upstream::answers("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let forbids = Upstream::answers("HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\nno").await;
    let leaves = Upstream::h1(|_| {
        vec![Step::ReadBody, Step::Send(SWITCH.to_vec()), Step::Pause(Duration::from_millis(50)), Step::Close]
    })
    .await;
    let gateway = Mesh::new()
        .http("echo.test", &[echo.address()])
        .route("a.com", "echo.test")
        .routes("rewrite.com", &to("echo.test", "rewrite: {uri: /ws/}"))
        .routes("timeout.com", &to("echo.test", "timeout: 500ms"))
        .http("late.test", &[late_echo.address()])
        .routes("late.com", &to("late.test", "timeout: 500ms"))
        .http("refuses.test", &[refuses.address()])
        .route("refuses.com", "refuses.test")
        .http("forbids.test", &[forbids.address()])
        .route("forbids.com", "forbids.test")
        .http("leaves.test", &[leaves.address()])
        .route("leaves.com", "leaves.test")
        .start()
        .await;
    let mut table = Table::new("networking.md §3.21, WebSocket");
    let handshake =
        |host: &str| format!("GET /chat HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");

    for (name, request, line, headers) in [
        (
            "plain",
            "GET /chat HTTP/1.1\r\nhost: a.com\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\nsec-websocket-version: 13\r\n\r\n",
            "GET /chat HTTP/1.1",
            vec![
                "host: a.com",
                "connection: Upgrade",
                "upgrade: websocket",
                "sec-websocket-key: k",
                "sec-websocket-version: 13",
                EDGE,
            ],
        ),
        (
            "letter case and keep-alive",
            "GET /chat HTTP/1.1\r\nhost: a.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n",
            "GET /chat HTTP/1.1",
            vec!["host: a.com", "connection: keep-alive, Upgrade", "upgrade: WebSocket", EDGE],
        ),
        (
            "rewritten",
            "GET /chat HTTP/1.1\r\nhost: rewrite.com\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
            "GET /ws/chat HTTP/1.1",
            vec![
                "host: rewrite.com",
                "connection: Upgrade",
                "upgrade: websocket",
                EDGE,
                "x-envoy-original-path: /chat",
            ],
        ),
    ] {
        table.row(name);
        let mut client = Http1::connect(gateway.address(80)).await;
        let response = client.exchange(request).await;
        table.check("status", &101, &response.status);
        let lines =
            ["connection: Upgrade", "upgrade: websocket", "sec-websocket-accept: x", "date: *", "server: istio-envoy"];
        table.check("headers", &expected(&lines), &steady(&response.headers));
        client.send("hello").await;
        table.check("echo", &Ok(b"hello".to_vec()), &client.read_exactly(5).await);
        let received = echo.take();
        table.check(
            "request line",
            line,
            received.first().map(|seen| format!("GET {} HTTP/1.1", seen.target)).unwrap_or_default().as_str(),
        );
        table.check(
            "request headers",
            &expected(&headers),
            &received.first().map(|seen| steady(&seen.headers)).unwrap_or_default(),
        );
    }

    table.row("a megabyte both ways");
    let mut client = Http1::connect(gateway.address(80)).await;
    client.exchange(handshake("a.com")).await;
    let data: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    for piece in data.chunks(10_000) {
        client.send(piece).await;
        if client.read_exactly(piece.len()).await.as_deref() != Ok(piece) {
            table.fail("what came back isn't what was sent");
            break;
        }
    }

    table.row("the timeout is over with the handshake");
    let mut client = Http1::connect(gateway.address(80)).await;
    client.exchange(handshake("timeout.com")).await;
    table.check("after the timeout", &End::Open, &client.ended(Duration::from_millis(1000)).await);
    client.send("hi").await;
    table.check("echo", &Ok(b"hi".to_vec()), &client.read_exactly(2).await);

    table.row("the timeout covers the handshake");
    let response = Http1::connect(gateway.address(80)).await.exchange(handshake("late.com")).await;
    check_local_reply(&mut table, &response, 504, "upstream request timeout", true);
    table.expect_log(response.client, 504, "UT", "response_timeout");

    table.row("the upstream answers 200");
    let response = Http1::connect(gateway.address(80)).await.exchange(handshake("refuses.com")).await;
    check_local_reply(&mut table, &response, 200, "", true);
    table.expect_log(response.client, 200, "-", "websocket_handshake_unsuccessful");

    table.row("the upstream answers 403");
    let response = Http1::connect(gateway.address(80)).await.exchange(handshake("forbids.com")).await;
    table.check("answer", &(403, "no".to_owned()), &(response.status, response.text()));
    let lines = ["content-length: 2", "date: *", "server: istio-envoy", "connection: close"];
    table.check("headers", &expected(&lines), &steady(&response.headers));
    table.expect_log(response.client, 403, "-", "via_upstream");

    table.row("the upstream ends it");
    let mut client = Http1::connect(gateway.address(80)).await;
    client.exchange(handshake("leaves.com")).await;
    table.check("connection", &End::Closed, &client.ended(Duration::from_secs(5)).await);
    let details = "upstream_reset_after_response_started{connection_termination}";
    table.expect_log(Some(client.address()), 101, "UC", details);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn other_upgrades() {
    let upstream = Upstream::ok().await;
    let gateway = Mesh::new().http("be.test", &[upstream.address()]).route("a.com", "be.test").start().await;
    let mut table = Table::new("networking.md §3.21, other upgrades and CONNECT");
    #[rustfmt::skip]
    let rows = [
        refused("another protocol", b"GET / HTTP/1.1\r\nhost: a.com\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n", 403, "", "-", "upgrade_failed"),
        refused("another protocol with a body", b"POST / HTTP/1.1\r\nhost: a.com\r\nconnection: upgrade\r\nupgrade: foo\r\ncontent-length: 2\r\n\r\nhi", 403, "", "-", "upgrade_failed"),
        forwarded("h2c is dropped", b"GET / HTTP/1.1\r\nhost: a.com\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n", "GET / HTTP/1.1", &["host: a.com", EDGE], ""),
        forwarded("websocket without connection", b"GET /chat HTTP/1.1\r\nhost: a.com\r\nupgrade: websocket\r\n\r\n", "GET /chat HTTP/1.1", &["host: a.com", EDGE], ""),
        refused("CONNECT", b"CONNECT a.com:80 HTTP/1.1\r\nhost: a.com:80\r\n\r\n", 404, "", "NR", "route_not_found"),
        refused("CONNECT to another host", b"CONNECT zzz.com:80 HTTP/1.1\r\nhost: zzz.com:80\r\n\r\n", 404, "", "NR", "route_not_found"),
        refused("HTTP/1.0", b"GET / HTTP/1.0\r\nhost: a.com\r\n\r\n", 426, "Upgrade Required", "DPE", "low_version"),
    ];
    exchange::run(&mut table, &gateway, 80, &upstream, &rows).await;

    table.row("CONNECT over HTTP/2");
    let request = Request::connect("a.com:80").body(()).unwrap();
    let response = Http2::connect(gateway.address(80)).await.exchange(request, &[]).await;
    table.check("status", &404, &response.status);
    table.expect_log(response.client, 404, "NR", "route_not_found");

    // Envoy ends the connection. Here the codec resets the stream, as RFC 9113 §8.1.1 says for malformed requests.
    table.row("extended CONNECT is off");
    let mut client = RawH2::connect(gateway.address(80)).await;
    let fields: [(&str, &[u8]); 5] = [
        (":method", b"CONNECT"),
        (":protocol", b"websocket"),
        (":scheme", b"http"),
        (":authority", b"a.com"),
        (":path", b"/"),
    ];
    client.headers(1, &fields, false).await;
    table.check("refused", &Ok(()), &client.refuses_stream(1).await);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn http10_on_demand() {
    let upstream = Upstream::ok().await;
    let mesh = Mesh::new().http("be.test", &[upstream.address()]).route("a.com", "be.test");
    let gateway =
        mesh.builder().environment("PILOT_HTTP10", "1").start().await.unwrap_or_else(|failure| panic!("{failure}"));
    let mut table = Table::new("networking.md §3.21, PILOT_HTTP10");
    for (name, lines, connection, end) in
        [("close", "", "close", End::Closed), ("keep-alive", "connection: keep-alive\r\n", "keep-alive", End::Open)]
    {
        table.row(name);
        let mut client = Http1::connect(gateway.address(80)).await;
        let response = client.exchange(format!("GET / HTTP/1.0\r\nhost: a.com\r\n{lines}\r\n")).await;
        table.check("version", "HTTP/1.0", response.version.as_str());
        table.check("answer", &(200, "ok".to_owned()), &(response.status, response.text()));
        let connection = format!("connection: {connection}");
        let headers =
            ["content-length: 2", "x-envoy-upstream-service-time: *", "date: *", "server: istio-envoy", &*connection];
        table.check("headers", &expected(&headers), &steady(&response.headers));
        check_received(&mut table, upstream.take(), "GET / HTTP/1.1", &["host: a.com", EDGE], "");
        let patience = Duration::from_millis(if end == End::Open { 50 } else { 3000 });
        table.check("connection", &end, &client.ended(patience).await);
    }
    table.row("no host");
    let response = Http1::connect(gateway.address(80)).await.exchange("GET / HTTP/1.0\r\n\r\n").await;
    table.check("version", "HTTP/1.0", response.version.as_str());
    check_local_reply(&mut table, &response, 400, "", true);
    table.finish();
}

/// RFC 6455 §5.2: a masked text frame `hi` as clients send it, and the frame that echoes it.
const FRAME: &[u8] = b"\x81\x82\x01\x02\x03\x04ik";
const ECHOED: &[u8] = b"\x81\x02hi";

/// The echo backend with HTTP/2, which takes the extended CONNECT form.
async fn echo_backend() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = gateway::echo::EchoOptions {
        bind: Vec::new(),
        name: "echo".to_owned(),
        version: "v1".to_owned(),
        tcp: Vec::new(),
        tls: None,
    };
    tokio::spawn(gateway::echo::serve(listener, options));
    address
}

/// An HTTP/1.1 handshake towards an HTTP/2 cluster goes upstream in the extended CONNECT form (RFC 8441).
#[tokio::test]
async fn websocket_to_http2_upstreams() {
    let gateway = Mesh::new().http2("echo.test", &[echo_backend().await]).route("a.com", "echo.test").start().await;
    let mut client = Http1::connect(gateway.address(80)).await;
    client
        .send(
            "GET /ws HTTP/1.1\r\nhost: a.com\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(client.read_exactly(1).await.unwrap_or_else(|failure| panic!("{failure:?} after {head:?}")));
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    // RFC 6455 §1.3 gives the answer to this key.
    assert!(head.contains("\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    client.send(FRAME).await;
    assert_eq!(client.read_exactly(ECHOED.len()).await, Ok(ECHOED.to_vec()));
}

/// With `--http2-websocket`, HTTP/2 clients may open WebSockets (RFC 8441), whatever the upstream speaks.
#[tokio::test]
async fn websocket_from_http2_clients_on_demand() {
    let echo = echo_backend().await;
    let gateway = Mesh::new()
        .http("h1.test", &[echo])
        .http2("h2.test", &[echo])
        .route("h1.com", "h1.test")
        .route("h2.com", "h2.test")
        .builder()
        .argument("--http2-websocket")
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    for host in ["h1.com", "h2.com"] {
        let socket = tokio::net::TcpStream::connect(gateway.address(80)).await.unwrap();
        let (send, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        crate::harness::eventually("the gateway's settings", || async {
            send.is_extended_connect_protocol_enabled().then_some(())
        })
        .await;
        let mut request =
            Request::connect(format!("http://{host}/ws")).header("sec-websocket-version", "13").body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, mut body) = send.ready().await.unwrap().send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200, "{host}");
        assert!(!response.headers().contains_key("connection"), "{host}");
        body.send_data(bytes::Bytes::from_static(FRAME), false).unwrap();
        let mut received = Vec::new();
        let mut stream = response.into_body();
        while received.len() < ECHOED.len() {
            let data = stream.data().await.unwrap_or_else(|| panic!("{host}: ended after {received:?}")).unwrap();
            received.extend_from_slice(&data);
        }
        assert_eq!(received, ECHOED, "{host}");
    }
}
