//! What becomes of a connection. `reference/networking.md` §3.20, §9.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

use super::{counted, servers, to};
use crate::harness::client::{End, Http1, ended_after};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::pki::{Authority, mutual_secret, tls_secret};
use crate::harness::table::Table;
use crate::harness::tls_client::{Refusal, Settings, VERSIONS};
use crate::harness::upstream::Upstream;
use crate::harness::{PATIENCE, eventually};

/// A DestinationRule with this `connectionPool.tcp`.
fn pool(host: &str, tcp: &str) -> String {
    format!("host: {host}\ntrafficPolicy: {{connectionPool: {{tcp: {{{tcp}}}}}}}\n")
}

const CLUSTER: &str = "outbound|80||";

#[tokio::test]
async fn a_connection_ends_as_it_must() {
    let (echo, refuses) = (Upstream::echo().await, Upstream::refuses().await);
    let ports = [9000, 9001, 9002, 9003, 9004, 9005, 9006];
    let routes = to(9000, "echo.test")
        + &to(9001, "empty.test")
        + &to(9002, "missing.test")
        + &to(9003, "refused.test")
        + &to(9004, "idle.test")
        + &to(9005, "brief.test")
        + &to(9006, "one.test");
    let gateway = Mesh::new()
        .servers(&servers(&ports), &ports)
        .service("echo.test", "TCP", &[echo.address()])
        .service("empty.test", "TCP", &[])
        .service("refused.test", "TCP", &[refuses.address()])
        .service("idle.test", "TCP", &[echo.address()])
        .service("brief.test", "TCP", &[echo.address()])
        .service("one.test", "TCP", &[echo.address()])
        .resource("VirtualService", &format!("hosts: ['*']\ngateways: [gateway]\ntcp:\n{routes}"))
        .resource("DestinationRule", &pool("idle.test", "idleTimeout: 500ms"))
        .resource("DestinationRule", &pool("brief.test", "maxConnectionDuration: 600ms"))
        .resource("DestinationRule", &pool("one.test", "maxConnections: 1"))
        .start()
        .await;
    let mut table = Table::new("TCP connections, networking.md §3.20, §9");

    table.row("echo");
    let mut client = Http1::connect(gateway.address(9000)).await;
    client.send("hello").await;
    table.check("echo", &Ok(b"hello".to_vec()), &client.read_exactly(5).await);
    client.half_close().await;
    table.check("end", &End::Closed, &client.ended(PATIENCE).await);
    match gateway.log_line_of(client.address()).await {
        None => table.fail("no line in the access log"),
        Some(line) => {
            let fields = line.fields();
            table.check("request", "- - -", line.request());
            table.check("code, flags, details", &("0", "-", "-"), &(line.code(), line.flags(), line.details()));
            table.check("bytes", &(5, 5), &counted(&line));
            table.check("headers", &["-"; 5][..], &[10, 11, 12, 13, 14].map(|field: usize| &*fields[field])[..]);
            table.check("upstream", &*echo.address().to_string(), line.upstream_host());
            table.check("cluster", &*format!("{CLUSTER}echo.test"), line.cluster());
            table.check("local address", &*gateway.address(9000).to_string(), &*fields[18]);
            table.check("server name, route", &["-"; 2][..], &[&*fields[20], &*fields[21]][..]);
        }
    }

    let ended: [(&str, u16, &str, &str); 3] = [
        ("no endpoints", 9001, "UH", "-"),
        ("no such cluster", 9002, "NC", "-"),
        ("refused", 9003, "UF,URX", "delayed_connect_error:_Connection_refused"),
    ];
    for (what, port, flags, failure) in ended {
        table.row(what);
        let (client, end) = ended_after(gateway.address(port), "hello").await;
        table.check("end", &End::Reset, &end);
        match gateway.log_line_of(client).await {
            None => table.fail("no line in the access log"),
            Some(line) => {
                let got = (line.code(), line.flags(), line.details(), line.transport_failure());
                table.check("access log", &("0", flags, "-", failure), &got);
                table.check("bytes", &(0, 0), &(0, counted(&line).1));
            }
        }
    }

    for (what, port, limit, flags) in [("idle", 9004, 500, "-"), ("brief", 9005, 600, "DT")] {
        table.row(what);
        let mut client = Http1::connect(gateway.address(port)).await;
        let begin = Instant::now();
        client.send("hello").await;
        table.check("echo", &Ok(b"hello".to_vec()), &client.read_exactly(5).await);
        table.check("end", &End::Closed, &client.ended(PATIENCE).await);
        let passed = begin.elapsed();
        let limit = Duration::from_millis(limit);
        if passed < limit - Duration::from_millis(30) || passed > limit + Duration::from_secs(3) {
            table.fail(format!("ended after {passed:?} instead of {limit:?}"));
        }
        table.expect_log(Some(client.address()), 0, flags, "-");
    }
    // Traffic in either direction keeps an idle limit away.
    table.row("not idle");
    let mut client = Http1::connect(gateway.address(9004)).await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(900) {
        client.send("x").await;
        table.check("echo", &Ok(b"x".to_vec()), &client.read_exactly(1).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    table.row("one at a time");
    let mut first = Http1::connect(gateway.address(9006)).await;
    first.send("hello").await;
    table.check("echo", &Ok(b"hello".to_vec()), &first.read_exactly(5).await);
    let (second, end) = ended_after(gateway.address(9006), "").await;
    table.check("end", &End::Closed, &end);
    table.expect_log(Some(second), 0, "UO", "-");
    first.half_close().await;
    table.check("end of the first", &End::Closed, &first.ended(PATIENCE).await);
    let again = eventually("a place for another", || async {
        let mut third = Http1::connect(gateway.address(9006)).await;
        third.send("hello").await;
        third.read_exactly(5).await.ok()
    });
    table.check("echo of the third", &b"hello".to_vec(), &again.await);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn either_side_may_close_its_half_first() {
    // Counts what comes, and answers only after the end of it.
    let counts = Upstream::raw(|mut stream, _| async move {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        let _ = stream.write_all(format!("{} bytes", bytes.len()).as_bytes()).await;
        let _ = stream.shutdown().await;
    })
    .await;
    // Speaks first and closes its half, then echoes nothing but notes what comes.
    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
    let first = Upstream::raw(move |mut stream, _| {
        let sender = sender.clone();
        async move {
            let _ = stream.write_all(b"banner").await;
            let _ = stream.shutdown().await;
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
            let _ = sender.send(bytes);
        }
    })
    .await;
    let authority = Authority::new("servers");
    let yaml = servers(&[9000, 9001])
        + "- port: {number: 9443, name: tls, protocol: TLS}\n  hosts: [a.test]\n  \
           tls: {mode: SIMPLE, credentialName: c}\n";
    let gateway = Mesh::new()
        .servers(&yaml, &[9000, 9001, 9443])
        .service("counts.test", "TCP", &[counts.address()])
        .service("first.test", "TCP", &[first.address()])
        .resource(
            "VirtualService",
            &format!(
                "hosts: ['*']\ngateways: [gateway]\ntcp:\n{}{}{}",
                to(9000, "counts.test"),
                to(9001, "first.test"),
                to(9443, "counts.test")
            ),
        )
        .document(&tls_secret("c", &authority.server("a.test")))
        .start()
        .await;
    let tls = Settings::new(&[&authority]).connect(gateway.address(9443), "a.test").await.unwrap().http1();
    for mut client in [Http1::connect(gateway.address(9000)).await, tls] {
        client.send(vec![7; 100_000]).await;
        client.half_close().await;
        assert_eq!(client.read_exactly(12).await, Ok(b"100000 bytes".to_vec()));
        assert_eq!(client.ended(PATIENCE).await, End::Closed);
        let line = gateway.log_line_of(client.address()).await.expect("a line in the access log");
        assert_eq!(counted(&line), (100_000, 12), "{}", line.text);
    }

    // The server speaks before the client has said a word.
    let mut client = Http1::connect(gateway.address(9001)).await;
    assert_eq!(client.read_exactly(6).await, Ok(b"banner".to_vec()));
    assert_eq!(client.ended(PATIENCE).await, End::Closed);
    client.send("still here").await;
    client.half_close().await;
    let bytes = tokio::time::timeout(PATIENCE, received.recv()).await.expect("in time");
    assert_eq!(bytes.as_deref(), Some(&b"still here"[..]));
}

#[tokio::test]
async fn an_abort_reaches_the_other_side() {
    let resets = Upstream::raw(|mut stream, _| async move {
        let _ = stream.read_u8().await;
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    })
    .await;
    let hangs = Upstream::raw(|mut stream, _| async move {
        let mut bytes = [0; 100];
        while matches!(stream.read(&mut bytes).await, Ok(length) if length > 0) {}
    })
    .await;
    let ponders = Upstream::raw(|mut stream, _| async move {
        while stream.read_u8().await.is_ok() {}
        let _ = stream.ready(Interest::ERROR).await;
    })
    .await;
    let routes = [to(9000, "resets.test"), to(9001, "hangs.test"), to(9002, "ponders.test")].concat();
    let gateway = Mesh::new()
        .servers(&servers(&[9000, 9001, 9002]), &[9000, 9001, 9002])
        .service("resets.test", "TCP", &[resets.address()])
        .service("hangs.test", "TCP", &[hangs.address()])
        .service("ponders.test", "TCP", &[ponders.address()])
        .resource("VirtualService", &format!("hosts: ['*']\ngateways: [gateway]\ntcp:\n{routes}"))
        .start()
        .await;
    let mut client = Http1::connect(gateway.address(9000)).await;
    client.send("x").await;
    assert!(matches!(client.ended(PATIENCE).await, End::Reset | End::Closed));

    let mut client = Http1::connect(gateway.address(9001)).await;
    client.send("x").await;
    eventually("the connection to the upstream", || async { (hangs.open() == 1).then_some(()) }).await;
    client.reset();
    eventually("its end", || async { (hangs.open() == 0).then_some(()) }).await;

    // An abort after the client's end, which nobody reads.
    let mut client = Http1::connect(gateway.address(9002)).await;
    client.half_close().await;
    eventually("the connection to the upstream", || async { (ponders.open() == 1).then_some(()) }).await;
    client.reset();
    eventually("its end", || async { (ponders.open() == 0).then_some(()) }).await;
}

#[tokio::test]
async fn tls_ends_here_and_tcp_goes_on() {
    let authority = Authority::new("servers");
    let ca = Authority::new("clients");
    let echo = Upstream::echo().await;
    let server = |host: &str, tls: &str| {
        format!(
            "- port: {{number: 9443, name: {}, protocol: TLS}}\n  hosts: [{host}]\n  tls: {tls}\n",
            host.replace('.', "-")
        )
    };
    let yaml = server("simple.test", "{mode: SIMPLE, credentialName: simple}")
        + &server("mutual.test", "{mode: MUTUAL, credentialName: mutual}")
        + &server("absent.test", "{mode: SIMPLE, credentialName: absent}");
    let gateway: Gateway = Mesh::new()
        .servers(&yaml, &[9443])
        .service("echo.test", "TCP", &[echo.address()])
        .resource(
            "VirtualService",
            "hosts: ['*']\ngateways: [gateway]\ntcp:\n- route: [{destination: {host: echo.test}}]\n",
        )
        .document(&tls_secret("simple", &authority.server("simple.test")))
        .document(&mutual_secret("mutual", &authority.server("mutual.test"), &ca.pem()))
        .start()
        .await;
    let address = gateway.address(9443);
    let mut table = Table::new("TLS-terminated TCP, networking.md §2.5, §3.19");
    let client = ca.client("client");
    for version in VERSIONS {
        for host in ["simple.test", "mutual.test"] {
            table.row(format!("{host}, {version:?}"));
            let settings = Settings::new(&[&authority]).version(version).identity(&client);
            let mut tcp = match settings.connect(address, host).await {
                Ok(connected) => connected.http1(),
                Err(refusal) => {
                    table.fail(format!("{refusal:?}"));
                    continue;
                }
            };
            tcp.send("hello").await;
            table.check("echo", &Ok(b"hello".to_vec()), &tcp.read_exactly(5).await);
            tcp.half_close().await;
            table.check("end", &End::Closed, &tcp.ended(PATIENCE).await);
            match gateway.log_line_of(tcp.address()).await {
                None => table.fail("no line in the access log"),
                Some(line) => {
                    table.check("code, flags", &("0", "-"), &(line.code(), line.flags()));
                    // Payload, not TLS.
                    table.check("bytes", &(5, 5), &counted(&line));
                    table.check("server name", host, &*line.fields()[20]);
                }
            }
        }
        table.row(format!("mutual.test without a certificate, {version:?}"));
        let refused = Settings::new(&[]).version(version).refusal(address, "mutual.test").await;
        table.check("refused", &true, &matches!(refused, Err(Refusal::Alert(40 | 116))));
    }
    table.row("absent.test");
    let refused = Settings::new(&[]).connect(address, "absent.test").await.map(|_| ());
    table.check("refusal", &Err(Refusal::Reset), &refused);
    table.row("connections at the upstream");
    table.check("count", &4, &echo.connections());
    table.finish();
}

#[tokio::test]
async fn metrics_count_connections_and_bytes() {
    let echo = Upstream::echo().await;
    let refuses = Upstream::refuses().await;
    let gateway = Mesh::new()
        .servers(&servers(&[9000, 9001]), &[9000, 9001])
        .service("echo.test", "TCP", &[echo.address()])
        .service("refused.test", "TCP", &[refuses.address()])
        .resource(
            "VirtualService",
            &format!("hosts: ['*']\ngateways: [gateway]\ntcp:\n{}{}", to(9000, "echo.test"), to(9001, "refused.test")),
        )
        .start()
        .await;
    for _ in 0..3 {
        let mut client = Http1::connect(gateway.address(9000)).await;
        client.send("0123456789").await;
        assert_eq!(client.read_exactly(10).await, Ok(b"0123456789".to_vec()));
        client.half_close().await;
        assert_eq!(client.ended(PATIENCE).await, End::Closed);
    }
    assert_eq!(ended_after(gateway.address(9001), "").await.1, End::Reset);
    let value = |page: &str, name: &str, service: &str, flags: &str| -> Option<f64> {
        let line = page.lines().find(|line| {
            line.starts_with(&format!("{name}{{"))
                && line.contains(&format!("destination_service=\"{service}\""))
                && line.contains(&format!("response_flags=\"{flags}\""))
                && line.contains("request_protocol=\"tcp\"")
        })?;
        line.rsplit(' ').next()?.parse().ok()
    };
    let page = eventually("the last connection in the metrics", || async {
        let page = gateway.metrics_page().await;
        let closed = value(&page, "istio_tcp_connections_closed_total", "echo.test", "-");
        let failed = value(&page, "istio_tcp_connections_closed_total", "refused.test", "UF,URX");
        (closed == Some(3.0) && failed == Some(1.0)).then_some(page)
    })
    .await;
    assert_eq!(value(&page, "istio_tcp_connections_opened_total", "echo.test", "-"), Some(3.0));
    assert_eq!(value(&page, "istio_tcp_received_bytes_total", "echo.test", "-"), Some(30.0));
    assert_eq!(value(&page, "istio_tcp_sent_bytes_total", "echo.test", "-"), Some(30.0));
    assert_eq!(value(&page, "istio_tcp_connections_opened_total", "refused.test", "UF,URX"), Some(1.0));
    // TCP metrics have no response code.
    let line = page.lines().find(|line| line.starts_with("istio_tcp_sent_bytes_total{")).unwrap();
    assert!(!line.contains("response_code") && !line.contains("grpc_response_status"), "{line}");
}
