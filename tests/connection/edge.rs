//! Headers at the edge: networking.md §4.4, and request targets of §4.3.

use crate::harness::client::{Http1, Http2};
use crate::harness::exchange::{self, EDGE, check_received, expected, forwarded, refused, steady};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::{H2Step, Step, Upstream, ok};

async fn start(mesh_config: &str, upstream: &Upstream) -> Gateway {
    let to_upstream = "route: [{destination: {host: be.test}}]";
    Mesh::new()
        .mesh_config(mesh_config)
        .http("be.test", &[upstream.address()])
        .routes("timeout.com", &format!("[{{{to_upstream}, timeout: 15s}}]"))
        .routes("rewrite.com", &format!("[{{{to_upstream}, rewrite: {{uri: /z}}, match: [{{uri: {{exact: /}}}}]}}]"))
        .route("*", "be.test")
        .start()
        .await
}

/// A GET for `a.com` with these header lines.
fn get(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nhost: a.com\r\n{lines}\r\n").into_bytes()
}

#[tokio::test]
async fn request_headers() {
    let upstream = Upstream::ok().await;
    let gateway = start("", &upstream).await;
    let mut table = Table::new("networking.md §4.4, request headers");
    let line = "GET / HTTP/1.1";
    #[rustfmt::skip]
    let rows = [
        forwarded("plain", &get(""), line, &["host: a.com", EDGE], ""),
        forwarded("other headers that proxies add", &get("x-forwarded-port: 1234\r\nx-forwarded-host: evil.com\r\nx-real-ip: 6.6.6.6\r\nforwarded: for=6.6.6.6\r\nvia: 1.1 x\r\nuser-agent: ua\r\nx-forwarded-server: s\r\nx-forwarded-prefix: /p\r\n"), line, &["host: a.com", "x-forwarded-port: 1234", "x-forwarded-host: evil.com", "x-real-ip: 6.6.6.6", "forwarded: for=6.6.6.6", "via: 1.1 x", "user-agent: ua", "x-forwarded-server: s", "x-forwarded-prefix: /p", EDGE], ""),
        forwarded("x-request-id is replaced in place", &get("x-request-id: mine\r\n"), line, &["host: a.com", "x-request-id: *", "x-forwarded-for: 127.0.0.2", "x-forwarded-proto: http", "x-envoy-external-address: 127.0.0.2", "x-envoy-attempt-count: 1"], ""),
        forwarded("route timeout", b"GET / HTTP/1.1\r\nhost: timeout.com\r\n\r\n", line, &["host: timeout.com", "x-forwarded-for: 127.0.0.2", "x-forwarded-proto: http", "x-envoy-external-address: 127.0.0.2", "x-request-id: *", "x-envoy-expected-rq-timeout-ms: 15000", "x-envoy-attempt-count: 1"], ""),
        forwarded("hop by hop", &get("connection: close, x-foo\r\nx-foo: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nte: gzip\r\ntrailer: x-t\r\nproxy-authorization: Basic x\r\nproxy-authenticate: x\r\n"), line, &["host: a.com", "trailer: x-t", "proxy-authorization: Basic x", "proxy-authenticate: x", EDGE], ""),
        forwarded("te: trailers, gzip", &get("te: trailers, gzip\r\n"), line, &["host: a.com", "te: trailers", EDGE], ""),
        forwarded("te: trailers", &get("te: trailers\r\n"), line, &["host: a.com", "te: trailers", EDGE], ""),
        forwarded("underscore", &get("x_under: 1\r\n"), line, &["host: a.com", "x_under: 1", EDGE], ""),
        forwarded("letter case", &get("X-CamelCase: 1\r\n"), line, &["host: a.com", "x-camelcase: 1", EDGE], ""),
        forwarded("expect: something", &get("expect: something\r\n"), line, &["host: a.com", "expect: something", EDGE], ""),
        refused("connection names x-forwarded-for", &get("connection: x-forwarded-for, authorization\r\nauthorization: Bearer x\r\n"), 400, "Bad Request", "DPE", "http1.connection_header_rejected"),
        forwarded("absolute form replaces host", b"GET http://real.com/x HTTP/1.1\r\nhost: other.com\r\n\r\n", "GET /x HTTP/1.1", &["host: real.com", EDGE], ""),
        forwarded("absolute form without host", b"GET http://real.com/x HTTP/1.1\r\n\r\n", "GET /x HTTP/1.1", &["host: real.com", EDGE], ""),
        forwarded("absolute form with port and user", b"GET http://user:pw@real.com:99/x HTTP/1.1\r\n\r\n", "GET /x HTTP/1.1", &["host: real.com:99", EDGE], ""),
        forwarded("Host keeps port and case", b"GET /x HTTP/1.1\r\nhost: A.com:8080\r\n\r\n", "GET /x HTTP/1.1", &["host: A.com:8080", EDGE], ""),
        refused("authority form", b"GET a.com:80 HTTP/1.1\r\nhost: a.com\r\n\r\n", 400, "Bad Request", "DPE", "http1.codec_error"),
    ];
    exchange::run(&mut table, &gateway, 80, &upstream, &rows).await;
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn forwarded_for_and_trusted_proxies() {
    let upstream = Upstream::ok().await;
    let mut table = Table::new("networking.md §4.4, x-forwarded-for");
    // Value of the header; the client's address with no, one and two trusted proxies.
    const PEER: &str = "127.0.0.2";
    let rows = [
        ("", [PEER, PEER, PEER]),
        ("1.1.1.1", [PEER, "1.1.1.1", PEER]),
        ("1.1.1.1, 2.2.2.2", [PEER, "2.2.2.2", "1.1.1.1"]),
        ("1.1.1.1,2.2.2.2,3.3.3.3", [PEER, "3.3.3.3", "2.2.2.2"]),
        ("junk", [PEER, PEER, PEER]),
        ("1.1.1.1, junk", [PEER, PEER, "1.1.1.1"]),
        ("junk, 2.2.2.2", [PEER, "2.2.2.2", PEER]),
        ("1.1.1.1:99", [PEER, PEER, PEER]),
        ("[::1]:5", [PEER, PEER, PEER]),
        ("2001:db8::1", [PEER, "2001:db8::1", PEER]),
        ("10.0.0.1", [PEER, "10.0.0.1", PEER]),
        ("1.1.1.1, 2.2.2.2, ", [PEER, PEER, "2.2.2.2"]),
    ];
    for proxies in 0..3 {
        let config = format!("defaultConfig: {{gatewayTopology: {{numTrustedProxies: {proxies}}}}}");
        let gateway = start(&config, &upstream).await;
        for (value, external) in rows {
            table.row(format!("{proxies} trusted, {value:?}"));
            upstream.take();
            let line = if value.is_empty() { String::new() } else { format!("x-forwarded-for: {value}\r\n") };
            Http1::connect(gateway.address(80)).await.exchange(get(&line)).await;
            // Blanks around a header's value are no part of it.
            let value = value.trim();
            let chain = if value.is_empty() { PEER.to_owned() } else { format!("{value},{PEER}") };
            let (chain, external) =
                (format!("x-forwarded-for: {chain}"), format!("x-envoy-external-address: {}", external[proxies]));
            let headers = [
                "host: a.com",
                &*chain,
                "x-forwarded-proto: http",
                &*external,
                "x-request-id: *",
                "x-envoy-attempt-count: 1",
            ];
            check_received(&mut table, upstream.take(), "GET / HTTP/1.1", &headers, "");
        }
        table.row(format!("{proxies} trusted, two lines"));
        Http1::connect(gateway.address(80))
            .await
            .exchange(get("x-forwarded-for: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\n"))
            .await;
        let received = upstream.take();
        let chain = received.first().map(|seen| seen.all("x-forwarded-for")).unwrap_or_default();
        table.check("x-forwarded-for", &["1.1.1.1,2.2.2.2,127.0.0.2"][..], &chain[..]);

        for (value, kept) in [("https", proxies > 0), ("gopher", proxies > 0)] {
            table.row(format!("{proxies} trusted, x-forwarded-proto: {value}"));
            Http1::connect(gateway.address(80)).await.exchange(get(&format!("x-forwarded-proto: {value}\r\n"))).await;
            let proto = format!("x-forwarded-proto: {}", if kept { value } else { "http" });
            let headers = [
                "host: a.com",
                &*proto,
                "x-forwarded-for: 127.0.0.2",
                "x-envoy-external-address: 127.0.0.2",
                "x-request-id: *",
                "x-envoy-attempt-count: 1",
            ];
            check_received(&mut table, upstream.take(), "GET / HTTP/1.1", &headers, "");
        }
    }
    table.finish();
}

#[tokio::test]
async fn forged_envoy_headers() {
    let upstream = Upstream::ok().await;
    let gateway = start("", &upstream).await;
    let mut table = Table::new("networking.md §4.4, client-supplied x-envoy headers");
    let removed = [
        "x-envoy-retry-on",
        "x-envoy-retry-grpc-on",
        "x-envoy-max-retries",
        "x-envoy-retriable-status-codes",
        "x-envoy-retriable-header-names",
        "x-envoy-upstream-alt-stat-name",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-rq-per-try-timeout-ms",
        "x-envoy-upstream-rq-timeout-alt-response",
        "x-envoy-upstream-stream-duration-ms",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-force-trace",
        "x-envoy-ip-tags",
        "x-envoy-decorator-operation",
        "x-envoy-downstream-service-cluster",
        "x-envoy-downstream-service-node",
        "x-envoy-original-path",
        "x-envoy-original-host",
        "x-envoy-internal",
        "x-envoy-hedge-on-per-try-timeout",
    ];
    let passed = [
        "x-envoy-is-timeout-retry",
        "x-envoy-overloaded",
        "x-envoy-ratelimited",
        "x-envoy-upstream-service-time",
        "x-envoy-upstream-canary",
        "x-envoy-immediate-health-check-fail",
        "x-envoy-degraded",
        "x-envoy-original-dst-host",
        "x-envoy-original-method",
        "x-envoy-fault-delay-request",
        "x-envoy-fault-abort-request",
        "x-envoy-upstream-rq-timeout-ms2",
        "x-envoy-livenessprobe",
        "x-envoy-cluster-header",
        "x-envoy-local-overloaded",
        "x-envoy-protocol-version",
        "x-envoy-tunnel-custom",
    ];
    for host in ["a.com", "rewrite.com"] {
        for name in removed {
            table.row(format!("{host}: {name} is removed"));
            Http1::connect(gateway.address(80))
                .await
                .exchange(format!("GET / HTTP/1.1\r\nhost: {host}\r\n{name}: 7\r\n\r\n"))
                .await;
            let received = upstream.take();
            let values = received.first().map(|seen| seen.all(name)).unwrap_or_default();
            let expected: &[&str] = if host == "rewrite.com" && name == "x-envoy-original-path" { &["/"] } else { &[] };
            table.check(name, expected, &values[..]);
        }
    }
    for name in passed {
        table.row(format!("{name} passes"));
        Http1::connect(gateway.address(80)).await.exchange(get(&format!("{name}: 7\r\n"))).await;
        let received = upstream.take();
        let values = received.first().map(|seen| seen.all(name)).unwrap_or_default();
        table.check(name, &["7"][..], &values[..]);
    }
    for (name, expected) in [("x-envoy-external-address", "127.0.0.2"), ("x-envoy-attempt-count", "1")] {
        table.row(format!("{name} is set"));
        Http1::connect(gateway.address(80)).await.exchange(get(&format!("{name}: 6.6.6.6\r\n"))).await;
        let received = upstream.take();
        let values = received.first().map(|seen| seen.all(name)).unwrap_or_default();
        table.check(name, &[expected][..], &values[..]);
    }
    table.finish();
}

/// §4.5: nobody shows a client certificate on a plaintext port, so a client can't claim to have one.
#[tokio::test]
async fn forwarded_client_certificates_are_not_believed() {
    let upstream = Upstream::ok().await;
    let mut table = Table::new("networking.md §4.5, without mutual TLS");
    for (mode, passes) in [
        ("UNDEFINED", false),
        ("SANITIZE", false),
        ("FORWARD_ONLY", false),
        ("APPEND_FORWARD", false),
        ("SANITIZE_SET", false),
        ("ALWAYS_FORWARD_ONLY", true),
    ] {
        table.row(mode);
        let settings = format!("defaultConfig: {{gatewayTopology: {{forwardClientCertDetails: {mode}}}}}");
        let gateway = start(&settings, &upstream).await;
        let forged = "x-forwarded-client-cert: URI=spiffe://a/admin\r\n";
        Http1::connect(gateway.address(80)).await.exchange(get(forged)).await;
        let received = upstream.take();
        let found = received.first().is_some_and(|seen| !seen.all("x-forwarded-client-cert").is_empty());
        table.check("the upstream sees it", &passes, &found);
    }
    table.finish();
}

#[tokio::test]
async fn proxy_headers_settings() {
    let upstream = Upstream::answers("HTTP/1.1 200 OK\r\nserver: mine\r\ncontent-length: 2\r\n\r\nok").await;
    let with =
        async |settings: &str| start(&format!("defaultConfig: {{proxyHeaders: {{{settings}}}}}"), &upstream).await;
    let mut table = Table::new("networking.md §4.4, proxyHeaders");

    let gateway = with("xForwardedPort: {enabled: true}").await;
    let port = format!("x-forwarded-port: {}", gateway.address(80).port());
    table.row("xForwardedPort replaces the client's");
    Http1::connect(gateway.address(80)).await.exchange(get("x-forwarded-port: 1234\r\n")).await;
    check_received(&mut table, upstream.take(), "GET / HTTP/1.1", &["host: a.com", &port, EDGE], "");
    table.row("xForwardedPort adds it");
    Http1::connect(gateway.address(80)).await.exchange(get("")).await;
    let headers = [
        "host: a.com",
        "x-forwarded-for: 127.0.0.2",
        "x-forwarded-proto: http",
        &*port,
        "x-envoy-external-address: 127.0.0.2",
        "x-request-id: *",
        "x-envoy-attempt-count: 1",
    ];
    check_received(&mut table, upstream.take(), "GET / HTTP/1.1", &headers, "");

    let gateway = with("requestId: {disabled: true}, envoyDebugHeaders: {disabled: true}").await;
    let edge = [
        "x-forwarded-for: 127.0.0.2",
        "x-forwarded-proto: http",
        "x-envoy-external-address: 127.0.0.2",
        "x-envoy-attempt-count: 1",
    ];
    table.row("requestId disabled");
    let response = Http1::connect(gateway.address(80)).await.exchange(get("")).await;
    check_received(&mut table, upstream.take(), "GET / HTTP/1.1", &[&["host: a.com"], &edge[..]].concat(), "");
    table.row("envoyDebugHeaders disabled: no service time");
    table.check(
        "response",
        &expected(&["content-length: 2", "date: *", "server: istio-envoy"]),
        &steady_but_order(&response.headers),
    );
    table.row("requestId disabled, the client's passes");
    Http1::connect(gateway.address(80)).await.exchange(get("x-request-id: mine\r\n")).await;
    check_received(
        &mut table,
        upstream.take(),
        "GET / HTTP/1.1",
        &[&["host: a.com", "x-request-id: mine"], &edge[..]].concat(),
        "",
    );
    table.row("envoyDebugHeaders disabled: no expected timeout");
    Http1::connect(gateway.address(80)).await.get("timeout.com", "/").await;
    check_received(&mut table, upstream.take(), "GET / HTTP/1.1", &[&["host: timeout.com"], &edge[..]].concat(), "");

    let gateway = with("attemptCount: {disabled: true}, server: {value: teapot}").await;
    table.row("attemptCount disabled");
    let response = Http1::connect(gateway.address(80)).await.get("a.com", "/").await;
    let headers = [
        "host: a.com",
        "x-forwarded-for: 127.0.0.2",
        "x-forwarded-proto: http",
        "x-envoy-external-address: 127.0.0.2",
        "x-request-id: *",
    ];
    check_received(&mut table, upstream.take(), "GET / HTTP/1.1", &headers, "");
    table.row("server has another value");
    table.check("server", &["teapot"][..], &response.all("server")[..]);
    table.row("server has another value in local replies");
    let response = Http1::connect(gateway.address(80)).await.exchange("GET / HTTP/1.0\r\n\r\n").await;
    table.check("server", &["teapot"][..], &response.all("server")[..]);

    let gateway = with("server: {disabled: true}, xForwardedHost: {enabled: true}").await;
    table.row("server disabled: the upstream's passes");
    let response = Http1::connect(gateway.address(80)).await.get("a.com", "/").await;
    table.check("server", &["mine"][..], &response.all("server")[..]);
    table.row("server disabled: local replies have none");
    let response = Http1::connect(gateway.address(80)).await.exchange("GET / HTTP/1.0\r\n\r\n").await;
    table.check("server", &Vec::<&str>::new(), &response.all("server"));
    table.finish();
}

/// Header lines in the order of their names: the order of `server` here is the upstream's.
fn steady_but_order(headers: &crate::harness::client::Fields) -> Vec<String> {
    let mut lines = steady(headers);
    lines.sort();
    lines
}

#[tokio::test]
async fn response_headers() {
    let mixed = "HTTP/1.1 200 Fine\r\nServer: mine\r\nX-Camel: 1\r\nContent-Type: text/plain\r\nVia: x\r\n\
                 X-Envoy-Upstream-Service-Time: 99999\r\nX-Envoy-Decorator-Operation: op\r\n\
                 X-Envoy-Immediate-Health-Check-Fail: 1\r\nConnection: x-h\r\nX-H: 1\r\nKeep-Alive: timeout=5\r\n\
                 Proxy-Connection: x\r\nX-Request-Id: r\r\nDate: nonsense\r\nContent-Length: 2\r\n\r\nok";
    let mixed = Upstream::answers(mixed).await;
    let closes = Upstream::h1(|_| {
        vec![
            Step::ReadBody,
            Step::Send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok".to_vec()),
            Step::Close,
        ]
    })
    .await;
    let gateway = Mesh::new()
        .http("mixed.test", &[mixed.address()])
        .route("mixed.com", "mixed.test")
        .http("closes.test", &[closes.address()])
        .route("closes.com", "closes.test")
        .start()
        .await;
    let mut table = Table::new("networking.md §4.4, response headers");
    let mut client = Http1::connect(gateway.address(80)).await;
    let response = client.get("mixed.com", "/").await;
    for (name, values) in [
        ("server", vec!["istio-envoy"]),
        ("x-camel", vec!["1"]),
        ("via", vec!["x"]),
        ("date", vec!["nonsense"]),
        ("x-envoy-decorator-operation", vec!["op"]),
        ("x-envoy-immediate-health-check-fail", vec!["1"]),
        ("connection", vec![]),
        ("x-h", vec!["1"]),
        ("keep-alive", vec![]),
        ("proxy-connection", vec![]),
        ("x-request-id", vec!["r"]),
    ] {
        table.row(name);
        table.check("lines", &values, &response.all(name));
    }
    table.row("x-envoy-upstream-service-time");
    let times = response.all("x-envoy-upstream-service-time");
    table.check(
        "one small number",
        &true,
        &(times.len() == 1 && times[0].parse().is_ok_and(|time: u32| time < 10_000)),
    );
    table.row("names are lower case");
    table.check(
        "names",
        &Vec::<&str>::new(),
        &response.names().into_iter().filter(|name| name.to_lowercase() != **name).collect::<Vec<_>>(),
    );
    table.row("reason");
    table.check("reason", "OK", response.reason.as_str());

    table.row("connection: close of the upstream isn't passed on");
    let response = client.get("closes.com", "/").await;
    table.check("connection", &Vec::<&str>::new(), &response.all("connection"));
    table.check("the next request", "ok", client.get("closes.com", "/").await.text().as_str());
    table.check("connections to the upstream", &2, &closes.connections());
    table.finish();
}

#[tokio::test]
async fn expect_continue() {
    let patient = Upstream::h1(|_| {
        let mut steps = vec![Step::Send(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()), Step::ReadBody];
        steps.extend(ok());
        steps
    })
    .await;
    let refuses = Upstream::h1(|_| vec![Step::Send(b"HTTP/1.1 417 No\r\ncontent-length: 0\r\n\r\n".to_vec())]).await;
    let gateway = Mesh::new()
        .http("patient.test", &[patient.address()])
        .route("patient.com", "patient.test")
        .http("refuses.test", &[refuses.address()])
        .route("refuses.com", "refuses.test")
        .start()
        .await;
    let mut table = Table::new("networking.md §4.4, expect");
    let head =
        |host: &str| format!("POST / HTTP/1.1\r\nhost: {host}\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");

    table.row("the upstream's 100 is relayed before the body is sent");
    let mut client = Http1::connect(gateway.address(80)).await;
    client.send(head("patient.com")).await;
    let interim = client.read_exactly(b"HTTP/1.1 100 Continue\r\n\r\n".len()).await;
    table.check("interim", &Ok(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()), &interim);
    let response = client.exchange("hi").await;
    table.check("status", &200, &response.status);
    let headers = ["host: patient.com", "expect: 100-continue", "content-length: 2", EDGE];
    check_received(&mut table, patient.take(), "POST / HTTP/1.1", &headers, "hi");

    table.row("a final answer instead");
    let mut client = Http1::connect(gateway.address(80)).await;
    let response = client.exchange(head("refuses.com")).await;
    table.check("status", &417, &response.status);
    table.check("connection", "close", response.header("connection"));
    table.finish();
}

#[tokio::test]
async fn http1_to_http2() {
    let upstream =
        Upstream::h2(|_| vec![H2Step::ReadBody, H2Step::Head(200, &[], false), H2Step::Data(b"ok", true)]).await;
    let gateway = Mesh::new().http2("h2.test", &[upstream.address()]).route("to-h2.com", "h2.test").start().await;
    let request = "POST /x HTTP/1.1\r\nhost: to-h2.com:8080\r\nte: trailers\r\nconnection: keep-alive\r\ncookie: a=1; b=2\r\ncontent-length: 2\r\n\r\nhi";
    let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    let received = upstream.received().await.expect("a request");
    for (name, value) in [
        (":authority", "to-h2.com:8080"),
        (":path", "/x"),
        (":method", "POST"),
        (":scheme", "http"),
        ("te", "trailers"),
        ("content-length", "2"),
        ("x-forwarded-for", "127.0.0.2"),
        ("x-envoy-attempt-count", "1"),
        ("cookie", "a=1; b=2"),
    ] {
        assert_eq!(received.all(name), [value], "{name}");
    }
    assert_eq!(received.header("connection"), None);
    assert_eq!(received.body, b"hi");
}

#[tokio::test]
async fn one_port_speaks_both_versions() {
    // Both versions are accepted on one plain port, whatever the server's protocol says (networking.md §2.5).
    let upstream = Upstream::ok().await;
    let gateway = start("", &upstream).await;
    assert_eq!(Http2::connect(gateway.address(80)).await.get("a.com", "/").await.status, 200);
    assert_eq!(Http1::connect(gateway.address(80)).await.get("a.com", "/").await.status, 200);
}
