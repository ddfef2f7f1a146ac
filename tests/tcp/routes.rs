//! Where a connection goes. `reference/networking.md` §3.18, §3.19, §2.5.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{counted, servers};
use crate::harness::PATIENCE;
use crate::harness::client::{End, Failure, Http1, ended_after};
use crate::harness::mesh::Mesh;
use crate::harness::pki::{Authority, tls_secret};
use crate::harness::table::Table;
use crate::harness::tls_client::Settings;
use crate::harness::tls_server::TlsServer;
use crate::harness::upstream::{Upstream, ok};

/// A ClientHello with this server name.
fn hello(name: Option<&str>) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    config.enable_sni = name.is_some();
    let name = ServerName::try_from(name.unwrap_or("x.test").to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Answers the first bytes with its letter and closes.
async fn letter(letter: u8) -> Upstream {
    Upstream::raw(move |mut stream, _| async move {
        let mut bytes = [0; 4096];
        let _ = stream.read(&mut bytes).await;
        let _ = stream.write_all(&[letter]).await;
        let _ = stream.shutdown().await;
    })
    .await
}

fn passthrough(port: u16, hosts: &str) -> String {
    format!(
        "- port: {{number: {port}, name: tls-{port}, protocol: TLS}}\n  hosts: {hosts}\n  tls: {{mode: PASSTHROUGH}}\n"
    )
}

fn tls_route(sni: &str, host: &str) -> String {
    format!("- match: [{{sniHosts: {sni}}}]\n  route: [{{destination: {{host: {host}}}}}]\n")
}

#[tokio::test]
async fn tls_routes_go_by_the_most_specific_name() {
    let mut upstreams = Vec::new();
    let mut mesh = Mesh::new();
    for name in b'a'..=b'h' {
        let upstream = letter(name).await;
        mesh = mesh.service(&format!("{}.up", char::from(name)), "TLS", &[upstream.address()]);
        upstreams.push(upstream);
    }
    let refuses = Upstream::refuses().await;
    let yaml =
        passthrough(443, "['*.w.test', '*.only.test', one.test, two.test, empty.test, missing.test, refused.test]")
            + &passthrough(8443, "['*']");
    let first =
        tls_route("['*.w.test']", "a.up") + &tls_route("[x.w.test]", "b.up") + &tls_route("['*.deep.w.test']", "c.up");
    // Two matches of one rule; then a rule of which one name is taken.
    let second = "- match: [{sniHosts: [one.test]}, {sniHosts: [two.test]}]\n  route: [{destination: {host: d.up}}]\n";
    let third = tls_route("[one.test, free.only.test]", "e.up") + &tls_route("[other.only.test]", "f.up");
    let gateway = mesh
        .servers(&yaml, &[443, 8443])
        .service("empty.up", "TLS", &[])
        .service("refused.up", "TLS", &[refuses.address()])
        .resource("VirtualService", &format!("hosts: ['*.w.test']\ngateways: [gateway]\ntls:\n{first}"))
        .resource("VirtualService", &format!("hosts: [one.test, two.test]\ngateways: [gateway]\ntls:\n{second}"))
        .resource("VirtualService", &format!("hosts: ['*.only.test', one.test]\ngateways: [gateway]\ntls:\n{third}"))
        .resource(
            "VirtualService",
            &format!(
                "hosts: [empty.test, missing.test, refused.test]\ngateways: [gateway]\ntls:\n{}{}{}",
                tls_route("[empty.test]", "empty.up"),
                tls_route("[missing.test]", "missing.up"),
                tls_route("[refused.test]", "refused.up")
            ),
        )
        .resource(
            "VirtualService",
            "hosts: ['*']\ngateways: [gateway]\ntls:\n\
             - match: [{sniHosts: ['*'], port: 8443}]\n  route: [{destination: {host: g.up}}]\n\
             - match: [{sniHosts: [named.test], port: 8443}]\n  route: [{destination: {host: h.up}}]\n",
        )
        .start()
        .await;
    let mut table = Table::new("tls routes, networking.md §3.18");
    let rows: &[(u16, Option<&str>, Result<u8, &str>)] = &[
        (443, Some("y.w.test"), Ok(b'a')),
        (443, Some("x.w.test"), Ok(b'b')),
        (443, Some("z.x.w.test"), Ok(b'a')),
        (443, Some("q.deep.w.test"), Ok(b'c')),
        (443, Some("deep.w.test"), Ok(b'a')),
        (443, Some("one.test"), Ok(b'd')),
        (443, Some("two.test"), Ok(b'd')),
        // The whole entry goes if one of its names is taken.
        (443, Some("free.only.test"), Err("NR")),
        (443, Some("other.only.test"), Ok(b'f')),
        (443, Some("w.test"), Err("NR")),
        (443, Some("nobody.test"), Err("NR")),
        (443, None, Err("NR")),
        (443, Some("empty.test"), Err("UH")),
        (443, Some("missing.test"), Err("NC")),
        (443, Some("refused.test"), Err("UF,URX")),
        (8443, Some("anything.test"), Ok(b'g')),
        (8443, None, Ok(b'g')),
        (8443, Some("named.test"), Ok(b'h')),
    ];
    for (port, sni, expected) in rows {
        table.row(format!("{port}, {sni:?}"));
        match expected {
            Ok(letter) => {
                let mut client = Http1::connect(gateway.address(*port)).await;
                client.send(hello(*sni)).await;
                let got = client.read_exactly(1).await.map(|bytes| char::from(bytes[0]));
                table.check("upstream", &Ok::<_, Failure>(char::from(*letter)), &got);
            }
            Err(flags) => {
                let (client, end) = ended_after(gateway.address(*port), hello(*sni)).await;
                table.check("end", &End::Reset, &end);
                let details = if *flags == "NR" { "filter_chain_not_found" } else { "-" };
                table.expect_log(Some(client), 0, flags, details);
            }
        }
    }
    table.row("not TLS");
    let mut client = Http1::connect(gateway.address(443)).await;
    client.send("GET / HTTP/1.1\r\n\r\n").await;
    table.check("end", &End::Reset, &client.ended(PATIENCE).await);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn what_passes_through_is_unchanged() {
    let authority = Authority::new("the upstream's");
    let echo = Upstream::echo().await;
    let server = TlsServer::offering(&authority.server("web.test"), &["h2", "http/1.1"]);
    let web = Upstream::h1_tls(&server, |_| ok()).await;
    let gateway = Mesh::new()
        .servers(&passthrough(443, "[echo.test, web.test]"), &[443])
        .service("echo.up", "TLS", &[echo.address()])
        .service("web.up", "TLS", &[web.address()])
        .resource(
            "VirtualService",
            &format!(
                "hosts: [echo.test, web.test]\ngateways: [gateway]\ntls:\n{}{}",
                tls_route("[echo.test]", "echo.up"),
                tls_route("[web.test]", "web.up")
            ),
        )
        .start()
        .await;
    let bytes = hello(Some("echo.test"));
    // At once, and so that the name comes late.
    for size in [bytes.len(), 1, 100] {
        let mut client = Http1::connect(gateway.address(443)).await;
        for piece in bytes.chunks(size) {
            client.send(piece).await;
        }
        client.send("and more").await;
        assert_eq!(client.read_exactly(bytes.len()).await.as_ref(), Ok(&bytes));
        assert_eq!(client.read_exactly(8).await, Ok(b"and more".to_vec()));
        client.half_close().await;
        assert_eq!(client.ended(PATIENCE).await, End::Closed);
        let line = gateway.log_line_of(client.address()).await.expect("a line in the access log");
        let length = bytes.len() as u64 + 8;
        assert_eq!(counted(&line), (length, length), "{}", line.text);
        assert_eq!(&*line.fields()[20], "echo.test", "{}", line.text);
    }
    // Names, protocols and certificates are between the two ends.
    let settings = Settings::new(&[&authority]).alpn(&["http/1.1"]);
    let connected = settings.connect(gateway.address(443), "web.test").await.unwrap();
    assert_eq!(connected.alpn().as_deref(), Some("http/1.1"));
    assert_eq!(connected.http1().get("web.test", "/").await.status, 200);
    let seen = server.handshake_seen().await.unwrap();
    assert_eq!((seen.server_name.as_deref(), seen.offered), (Some("web.test"), vec!["http/1.1".to_owned()]));
}

#[tokio::test]
async fn passthrough_stands_beside_termination() {
    let (authority, theirs) = (Authority::new("ours"), Authority::new("the upstream's"));
    let server = TlsServer::new(&theirs.server("passed.test"));
    let web = Upstream::h1_tls(&server, |_| ok()).await;
    let plain = Upstream::ok().await;
    let yaml = passthrough(443, "[passed.test]")
        + "- port: {number: 443, name: https, protocol: HTTPS}\n  hosts: [ended.test]\n  \
           tls: {mode: SIMPLE, credentialName: c}\n";
    let gateway = Mesh::new()
        .servers(&yaml, &[443])
        .service("web.up", "TLS", &[web.address()])
        .http("plain.up", &[plain.address()])
        .resource(
            "VirtualService",
            &format!("hosts: [passed.test]\ngateways: [gateway]\ntls:\n{}", tls_route("[passed.test]", "web.up")),
        )
        .route("ended.test", "plain.up")
        .document(&tls_secret("c", &authority.server("ended.test")))
        .start()
        .await;
    let address = gateway.address(443);
    assert_eq!(Settings::new(&[&theirs]).get(address, "passed.test", "/").await.unwrap().status, 200);
    assert_eq!(Settings::new(&[&authority]).get(address, "ended.test", "/").await.unwrap().status, 200);
    // A route that comes and goes with an edit.
    let before = gateway.generation().await;
    let file = gateway.config().join("config.yaml");
    let text = std::fs::read_to_string(&file).unwrap().replace("sniHosts: [passed.test]", "sniHosts: [moved.test]");
    let text = text.replace("hosts: [passed.test]", "hosts: [moved.test]");
    std::fs::write(&file, text).unwrap();
    gateway.reloaded_since(before).await;
    let moved = Settings::new(&[]).get(address, "moved.test", "/").await.unwrap();
    assert_eq!(moved.status, 200);
    assert!(Settings::new(&[]).connect(address, "passed.test").await.is_err());
    assert_eq!(Settings::new(&[&authority]).get(address, "ended.test", "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn weights_choose_once_for_a_connection() {
    let (a, b, never) = (letter(b'a').await, letter(b'b').await, letter(b'n').await);
    let route = "- route:\n  - {destination: {host: a.up}, weight: 80}\n  - {destination: {host: b.up}, weight: 20}\n  \
                 - {destination: {host: never.up}, weight: 0}\n";
    let gateway = Mesh::new()
        .servers(&servers(&[9000]), &[9000])
        .service("a.up", "TCP", &[a.address()])
        .service("b.up", "TCP", &[b.address()])
        .service("never.up", "TCP", &[never.address()])
        .resource("VirtualService", &format!("hosts: ['*']\ngateways: [gateway]\ntcp:\n{route}"))
        .start()
        .await;
    let mut first = 0;
    for _ in 0..400 {
        let mut client = Http1::connect(gateway.address(9000)).await;
        client.send("x").await;
        match client.read_exactly(1).await.unwrap()[0] {
            b'a' => first += 1,
            b'b' => {}
            other => panic!("{}", char::from(other)),
        }
    }
    // 320 on average; the standard deviation is 8.
    assert!((260..=380).contains(&first), "{first} of 400");
}

#[tokio::test]
async fn without_a_route_there_is_no_listener() {
    let echo = Upstream::echo().await;
    let routed = "hosts: ['*']\ngateways: [gateway]\ntcp:\n- match: [{port: 9000}]\n  \
                  route: [{destination: {host: echo.test}}]\n";
    let gateway = Mesh::new()
        .servers(&servers(&[9000, 9001]), &[9000, 9001])
        .service("echo.test", "TCP", &[echo.address()])
        .resource("VirtualService", routed)
        .start()
        .await;
    assert_eq!(gateway.bound(9000).await.len(), 1);
    assert_eq!(gateway.bound(9001).await, Vec::<String>::new());
    // A session outlives its endpoint.
    let mut client = Http1::connect(gateway.address(9000)).await;
    client.send("a").await;
    assert_eq!(client.read_exactly(1).await, Ok(b"a".to_vec()));
    let before = gateway.generation().await;
    let file = gateway.config().join("config.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let endpoint = format!("{{address: 127.0.0.1, ports: {{main: {}}}}}", echo.address().port());
    std::fs::write(&file, text.replace(&endpoint, "")).unwrap();
    gateway.reloaded_since(before).await;
    client.send("b").await;
    assert_eq!(client.read_exactly(1).await, Ok(b"b".to_vec()));
    assert_eq!(ended_after(gateway.address(9000), "").await.1, End::Reset);
}
