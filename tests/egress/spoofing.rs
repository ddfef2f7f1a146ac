//! Clients that name one host and want another: none of it leaves, and each attempt is told.
//!
//! What is refused, and how, stands in README ("What leaves").

use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::forward_proxy::{PROXY, ask_for_tunnel};
use super::wildcard::{dynamic, start};
use crate::harness::client::Http1;
use crate::harness::dns::DnsServer;
use crate::harness::mesh::Mesh;
use crate::harness::pki::{Authority, tls_secret};
use crate::harness::table::Table;
use crate::harness::tls_client::Settings;
use crate::harness::tls_server::TlsServer;
use crate::harness::upstream::{Upstream, ok};

/// `allowed.test` and `*.wild.test`, in clear text and TLS, at these backends.
fn mesh(plain: &Upstream, secure: &Upstream) -> Mesh {
    let (http, tls) = (plain.address().port(), secure.address().port());
    let allowed = format!(
        "hosts: [allowed.test]\nlocation: MESH_EXTERNAL\nresolution: STATIC\n\
         ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: tls, protocol: TLS}}]\n\
         endpoints: [{{address: 127.0.0.1, ports: {{http: {http}, tls: {tls}}}}}]\n"
    );
    let wild = format!(
        "hosts: ['*.wild.test']\nlocation: MESH_EXTERNAL\nresolution: DYNAMIC_DNS\n\
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {http}}}, \
         {{number: 443, name: tls, protocol: TLS, targetPort: {tls}}}]\n"
    );
    Mesh::new().servers(PROXY, &[3128]).resource("ServiceEntry", &allowed).resource("ServiceEntry", &wild)
}

#[tokio::test]
async fn hosts_that_are_none() {
    let (plain, secure) = (Upstream::ok().await, Upstream::ok().await);
    let dns = DnsServer::start().await;
    for name in ["rebound.wild.test", "metadata.wild.test", "mixed.wild.test"] {
        dns.set(name, &[], 60);
    }
    dns.set("rebound.wild.test", &["10.0.0.1".parse().unwrap()], 60);
    dns.set("metadata.wild.test", &["169.254.169.254".parse().unwrap()], 60);
    dns.set("unspecified.wild.test", &["0.0.0.0".parse().unwrap()], 60);
    let gateway = start(&mesh(&plain, &secure), &dns).await;
    let mut table = Table::new("hosts that are none");
    let long = format!("{}.wild.test", "a".repeat(64));
    // Of requests and of tunnels alike; with 443 as the port of tunnels.
    let rows: [(&str, &str, u16, &str); 24] = [
        ("trailing dot", "allowed.test.", 400, "trailing_dot"),
        ("trailing dot below a wildcard", "a.wild.test.", 400, "trailing_dot"),
        ("two dots", "a..wild.test", 400, "invalid_host"),
        ("leading dot", ".wild.test", 400, "invalid_host"),
        ("userinfo", "user@allowed.test", 400, "userinfo"),
        ("another host as userinfo", "allowed.test@evil.test", 400, "userinfo"),
        ("a port as userinfo", "allowed.test:80@evil.test", 400, "userinfo"),
        ("percent-encoding", "allowed%2etest", 400, "invalid_host"),
        ("a wildcard", "*.wild.test", 400, "invalid_host"),
        ("a label too long", &long, 400, "invalid_host"),
        ("loopback", "127.0.0.1", 403, "address_literal"),
        ("private", "10.0.0.1", 403, "address_literal"),
        ("IPv6 loopback", "[::1]", 403, "address_literal"),
        ("mapped loopback", "[::ffff:127.0.0.1]", 403, "address_literal"),
        ("short loopback", "127.1", 400, "invalid_host"),
        ("decimal loopback", "2130706433", 400, "invalid_host"),
        ("hexadecimal loopback", "0x7f000001", 400, "invalid_host"),
        ("octal loopback", "0177.0.0.1", 400, "invalid_host"),
        ("the wildcard's own name", "wild.test", 502, "unknown_host"),
        ("a longer name", "evilwild.test", 502, "unknown_host"),
        ("the name in front", "a.wild.test.evil.test", 502, "unknown_host"),
        ("rebinding", "rebound.wild.test", 403, "forbidden_address"),
        ("metadata of the cloud", "metadata.wild.test", 403, "forbidden_address"),
        ("this host", "unspecified.wild.test", 403, "forbidden_address"),
    ];
    for (row, host, code, reason) in rows {
        let details = format!("egress_denied{{{reason}}}");
        table.row(format!("{row}, by request"));
        let mut client = Http1::connect(gateway.address(3128)).await;
        let answer = client.exchange(format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        table.check("status", &code, &answer.status);
        table.expect_log(answer.client, code, "-", &details);

        table.row(format!("{row}, by tunnel"));
        let (stream, head) = ask_for_tunnel(&gateway, &format!("{host}:443")).await;
        table.check("status line", &true, &head.starts_with(&format!("HTTP/1.1 {code} ")));
        table.expect_log(stream.local_addr().ok(), code, "-", &details);
    }
    for (row, authority, code, reason) in [
        ("no port", "allowed.test", 400, "invalid_port"),
        ("port 0", "allowed.test:0", 400, "invalid_port"),
        ("a port too large", "allowed.test:65979", 400, "invalid_port"),
        ("a port with a sign", "allowed.test:+443", 400, "invalid_port"),
        ("two ports", "allowed.test:443:22", 400, "invalid_port"),
        ("SSH", "allowed.test:22", 502, "unknown_port"),
        ("mail", "allowed.test:25", 502, "unknown_port"),
        ("the gateway's admin port", "allowed.test:15000", 502, "unknown_port"),
        ("another port below a wildcard", "a.wild.test:22", 502, "unknown_port"),
    ] {
        table.row(format!("CONNECT with {row}"));
        let (stream, head) = ask_for_tunnel(&gateway, authority).await;
        table.check("status line", &true, &head.starts_with(&format!("HTTP/1.1 {code} ")));
        table.expect_log(stream.local_addr().ok(), code, "-", &format!("egress_denied{{{reason}}}"));
    }
    // The codec refuses these before anybody looks at hosts.
    for (row, target) in [
        ("unicode", "GET http://b\u{fc}cher.test/ HTTP/1.1\r\nhost: x\r\n\r\n"),
        ("a blank", "CONNECT allowed.test :443 HTTP/1.1\r\nhost: x\r\n\r\n"),
        ("two Host lines", "GET http://allowed.test/ HTTP/1.1\r\nhost: allowed.test\r\nhost: evil.test\r\n\r\n"),
    ] {
        table.row(row);
        let answer = Http1::connect(gateway.address(3128)).await.exchange(target).await;
        table.check("status", &400, &answer.status);
    }
    table.row("nothing has left");
    table.check("requests", &0, &(plain.take().len() + secure.take().len()));
    table.check("connections", &0, &(plain.connections() + secure.connections()));
    table.check_logs(&gateway).await;
    table.finish();
}

/// What a tunnel to a TLS port may carry: TLS for the host that was asked for.
#[tokio::test]
async fn tunnels_that_lie() {
    let ca = Authority::new("ca");
    let server = TlsServer::new(&ca.server("*.wild.test"));
    let (plain, secure) = (Upstream::ok().await, Upstream::h1_tls(&server, |_| ok()).await);
    let dns = DnsServer::start().await;
    dns.set("a.wild.test", &["127.0.0.1".parse().unwrap()], 60);
    let gateway = start(&mesh(&plain, &secure), &dns).await;
    let mut table = Table::new("tunnels that lie");
    for (row, name, sni) in
        [("below a wildcard", "a.wild.test", "a.wild.test"), ("in capitals", "A.WILD.test", "a.wild.test")]
    {
        table.row(format!("the truth {row}"));
        let (stream, _) = ask_for_tunnel(&gateway, &format!("{name}:443")).await;
        let connected = Settings::new(&[&ca]).client().handshake(stream, sni).await;
        table.check("handshake", &true, &connected.is_ok());
    }
    let client = Settings::new(&[&ca]);
    for (row, asked, settings, sni, reason) in [
        ("another host", "a.wild.test", client.clone(), "b.wild.test", "server_name_mismatch"),
        ("a host that is not allowed", "allowed.test", client.clone(), "evil.test", "server_name_mismatch"),
        ("no SNI", "allowed.test", client.no_sni(), "allowed.test", "server_name_mismatch"),
    ] {
        table.row(row);
        let (stream, head) = ask_for_tunnel(&gateway, &format!("{asked}:443")).await;
        table.check("status", &true, &head.starts_with("HTTP/1.1 200 "));
        let from = stream.local_addr().ok();
        table.check("handshake", &false, &settings.client().handshake(stream, sni).await.is_ok());
        table.expect_log(from, 200, "-", &format!("egress_denied{{{reason}}}"));
    }
    for (row, bytes) in [
        ("HTTP", &b"GET / HTTP/1.1\r\nhost: evil.test\r\n\r\n"[..]),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n"),
        ("a broken ClientHello", b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00"),
    ] {
        table.row(row);
        let (mut stream, _) = ask_for_tunnel(&gateway, "allowed.test:443").await;
        let from = stream.local_addr().ok();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        table.check("nothing comes back", &0, &rest.len());
        table.expect_log(from, 200, "-", "egress_denied{not_tls}");
    }
    table.row("what has arrived");
    table.check("bytes of requests", &0, &(plain.take().len() + secure.take().len()));
    // The tunnel is connected before it is known what it carries; none of that has been passed on.
    let names: Vec<_> = server.take().into_iter().filter_map(|seen| seen.server_name).collect();
    table.check("names of handshakes", &vec!["a.wild.test".to_owned(); 2], &names);
    table.check_logs(&gateway).await;
    table.finish();
}

/// TLS that ends here was begun for one host; within it, no other one may be asked for.
#[tokio::test]
async fn server_names_and_hosts_agree() {
    let ca = Authority::new("ca");
    let identity = ca.server("*.wild.test");
    let backend = Upstream::ok().await;
    let dns = DnsServer::start().await;
    for name in ["a.wild.test", "b.wild.test"] {
        dns.set(name, &["127.0.0.1".parse().unwrap()], 60);
    }
    let servers = "- port: {number: 443, name: https, protocol: HTTPS}\n  hosts: ['*.wild.test']\n  \
                   tls: {mode: SIMPLE, credentialName: wild}\n";
    let mesh = Mesh::new()
        .servers(servers, &[443])
        .document(&tls_secret("wild", &identity))
        .resource("ServiceEntry", &dynamic(80, "HTTP", backend.address().port()))
        .routes("*.wild.test", "[{route: [{destination: {host: '*.wild.test', port: {number: 80}}}]}]");
    let gateway = start(&mesh, &dns).await;
    let client = Settings::new(&[&ca]);
    let mut http = client.connect(gateway.address(443), "a.wild.test").await.unwrap().http1();
    assert_eq!(http.get("a.wild.test", "/").await.status, 200);
    let answer = http.get("b.wild.test", "/").await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (421, "egress denied: the connection was made for another host")
    );
    let mut http = client.alpn(&["h2"]).connect(gateway.address(443), "a.wild.test").await.unwrap().http2().await;
    let request = |host: &str| Request::get(format!("https://{host}/")).body(()).unwrap();
    assert_eq!(http.exchange(request("a.wild.test"), &[]).await.status, 200);
    assert_eq!(http.exchange(request("b.wild.test"), &[]).await.status, 421);
    assert_eq!(backend.take().len(), 2);
    gateway.says("reason=server_name_mismatch").await;
}
