//! PROXY protocol before HTTP, TLS and TCP. `reference/networking.md` §4.4, §4.6;
//! <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>.

use std::net::SocketAddr;
use std::time::Duration;

use crate::harness::PATIENCE;
use crate::harness::client::{CLIENT, End, Http1, connect_from};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::pki::{Authority, tls_secret};
use crate::harness::table::Table;
use crate::harness::tls_client::Settings;
use crate::harness::upstream::Upstream;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";

/// A header of version 2: command, family with transport, addresses and what follows.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([0x20 | command, family]);
    header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    header.extend(rest);
    header
}

/// 9.8.7.6:1111 to 1.2.3.4:80.
const INET: &[u8] = &[9, 8, 7, 6, 1, 2, 3, 4, 0x04, 0x57, 0, 80];

fn inet6() -> Vec<u8> {
    let mut addresses = vec![0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    addresses.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    addresses.extend([0x04, 0x57, 0, 80]);
    addresses
}

async fn start(upstream: &Upstream, echo: &Upstream) -> Gateway {
    let authority = Authority::new("servers");
    let servers = "- port: {number: 80, name: http, protocol: HTTP}\n  hosts: ['*']\n\
                   - port: {number: 443, name: https, protocol: HTTPS}\n  hosts: [a.test]\n  \
                   tls: {mode: SIMPLE, credentialName: c}\n\
                   - port: {number: 9000, name: tcp, protocol: TCP}\n  hosts: ['*']\n";
    Mesh::new()
        .servers(servers, &[80, 443, 9000])
        .http("up.test", &[upstream.address()])
        .service("echo.test", "TCP", &[echo.address()])
        .resource(
            "VirtualService",
            "hosts: ['*']\ngateways: [gateway]\nhttp:\n- route: [{destination: {host: up.test}}]\ntcp:\n\
             - route: [{destination: {host: echo.test}}]\n",
        )
        .document(&tls_secret("c", &authority.server("a.test")))
        .mesh_config("defaultConfig:\n  gatewayTopology:\n    proxyProtocol: {}\n")
        .start()
        .await
}

#[tokio::test]
async fn headers_of_both_versions() {
    let (upstream, echo) = (Upstream::ok().await, Upstream::echo().await);
    let gateway = start(&upstream, &echo).await;
    let tlvs = {
        // A CRC that nobody checks here, a host name, and one that isn't known.
        let mut rest = INET.to_vec();
        rest.extend([0x02, 0, 6]);
        rest.extend(b"a.test");
        rest.extend([0xe4, 0, 2, 1, 2]);
        rest
    };
    // Whose address counts: that in the header, or `None` for the socket's own.
    let rows: Vec<(&str, Vec<u8>, Option<&str>)> = vec![
        ("1, TCP4", b"PROXY TCP4 9.8.7.6 1.2.3.4 1111 80\r\n".to_vec(), Some("9.8.7.6:1111")),
        ("1, TCP6", b"PROXY TCP6 2001:db8::9 2001:db8::1 1111 80\r\n".to_vec(), Some("[2001:db8::9]:1111")),
        ("1, UNKNOWN", b"PROXY UNKNOWN\r\n".to_vec(), None),
        ("1, UNKNOWN with more", b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
        ("2, INET", v2(1, 0x11, INET), Some("9.8.7.6:1111")),
        ("2, INET6", v2(1, 0x21, &inet6()), Some("[2001:db8::9]:1111")),
        ("2, LOCAL", v2(0, 0, &[]), None),
        ("2, LOCAL with addresses", v2(0, 0x11, INET), None),
        ("2, TLVs", v2(1, 0x11, &tlvs), Some("9.8.7.6:1111")),
    ];
    let mut table = Table::new("PROXY protocol, networking.md §4.4");
    for (what, header, client) in &rows {
        for pieces in [false, true] {
            table.row(format!("{what}, in {}", if pieces { "single bytes" } else { "one piece" }));
            upstream.take();
            let mark = gateway.log_mark();
            let mut connection = Http1::connect(gateway.address(80)).await;
            let own = connection.address().to_string();
            if pieces {
                for byte in header {
                    connection.send([*byte]).await;
                    tokio::task::yield_now().await;
                }
                connection.send(GET).await;
            } else {
                connection.send([header, GET].concat()).await;
            }
            table.check("status", &200, &connection.response().await.status);
            let expected = client.map_or(own, str::to_owned);
            let address: SocketAddr = expected.parse().unwrap();
            let seen = upstream.take();
            let ip = address.ip().to_string();
            table.check("x-forwarded-for", &Some(&*ip), &seen.first().and_then(|seen| seen.header("x-forwarded-for")));
            table.check(
                "x-envoy-external-address",
                &Some(&*ip),
                &seen.first().and_then(|seen| seen.header("x-envoy-external-address")),
            );
            let wanted = expected.clone();
            let line = gateway.log_line_since(mark, move |line| line.remote() == wanted).await;
            table.check("in the access log", &true, &line.is_some());
            // The header is for the connection, not for each request.
            table.check("second request", &200, &connection.get("a.test", "/").await.status);
        }
    }
    // The client's own x-forwarded-for stays, as from any client.
    table.row("with x-forwarded-for");
    upstream.take();
    let mut connection = Http1::connect(gateway.address(80)).await;
    let request = b"GET / HTTP/1.1\r\nhost: a.test\r\nx-forwarded-for: 5.5.5.5\r\n\r\n";
    connection.send([&v2(1, 0x11, INET)[..], request].concat()).await;
    table.check("status", &200, &connection.response().await.status);
    let seen = upstream.take();
    table.check("x-forwarded-for", &Some("5.5.5.5,9.8.7.6"), &seen[0].header("x-forwarded-for"));
    table.finish();
}

#[tokio::test]
async fn what_is_no_header_is_reset() {
    let (upstream, echo) = (Upstream::ok().await, Upstream::echo().await);
    let gateway = start(&upstream, &echo).await;
    let mut long = b"PROXY TCP4 9.8.7.6 1.2.3.4 1111 80".to_vec();
    long.extend([b' '; 100]);
    let mut version3 = v2(1, 0x11, INET);
    version3[12] = 0x31;
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("none", Vec::new()),
        ("unknown protocol", b"PROXY FOO BAR\r\n".to_vec()),
        ("no addresses", b"PROXY TCP4\r\n".to_vec()),
        ("an address that isn't one", b"PROXY TCP4 9.8.7.256 1.2.3.4 1111 80\r\n".to_vec()),
        ("of another family", b"PROXY TCP4 2001:db8::9 2001:db8::1 1111 80\r\n".to_vec()),
        ("a port that isn't one", b"PROXY TCP4 9.8.7.6 1.2.3.4 66666 80\r\n".to_vec()),
        ("longer than 107 bytes", long),
        ("version 3", version3),
        ("command 2", v2(2, 0x11, INET)),
        ("too short for its family", v2(1, 0x11, &INET[..8])),
    ];
    let mut table = Table::new("malformed PROXY headers, networking.md §4.4");
    for (what, header) in rows {
        table.row(what);
        upstream.take();
        let mut connection = Http1::connect(gateway.address(80)).await;
        connection.send([&header[..], GET].concat()).await;
        table.check("end", &End::Reset, &connection.ended(PATIENCE).await);
        table.check("requests at the upstream", &0, &upstream.take().len());
    }
    // One that stops midway holds nobody up.
    table.row("half of one");
    let mut half = Http1::connect(gateway.address(80)).await;
    half.send(&v2(1, 0x11, INET)[..20]).await;
    let mut other = Http1::connect(gateway.address(80)).await;
    other.send([&v2(0, 0, &[])[..], GET].concat()).await;
    table.check("another client", &200, &other.response().await.status);
    table.check("it", &End::Open, &half.ended(Duration::from_millis(20)).await);
    table.finish();
}

#[tokio::test]
async fn before_tls_and_tcp_too() {
    let (upstream, echo) = (Upstream::ok().await, Upstream::echo().await);
    let gateway = start(&upstream, &echo).await;
    let mut stream = connect_from(CLIENT, gateway.address(443)).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &v2(1, 0x11, INET)).await.unwrap();
    let mut http = Settings::new(&[]).client().handshake(stream, "a.test").await.unwrap().http1();
    assert_eq!(http.get("a.test", "/").await.status, 200);
    assert_eq!(upstream.take()[0].header("x-forwarded-for"), Some("9.8.7.6"));

    let mut tcp = Http1::connect(gateway.address(9000)).await;
    tcp.send(b"PROXY TCP4 7.7.7.7 1.2.3.4 2222 80\r\nhello").await;
    assert_eq!(tcp.read_exactly(5).await, Ok(b"hello".to_vec()));
    tcp.half_close().await;
    assert_eq!(tcp.ended(PATIENCE).await, End::Closed);
    let line = gateway.log_line_since(0, |line| line.remote() == "7.7.7.7:2222").await.expect("a line");
    // The header isn't payload.
    assert_eq!((&*line.fields()[7], &*line.fields()[8]), ("5", "5"), "{}", line.text);
}
