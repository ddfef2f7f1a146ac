//! networking.md §5.8: what goes to an upstream before, or around, what the client sends.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{rule, service};
use crate::harness::client::{End, Http1, Http2, ended_after};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::pki::Authority;
use crate::harness::table::Table;
use crate::harness::tls_server::TlsServer;
use crate::harness::upstream::{H2Step, Upstream};
use crate::harness::{PATIENCE, eventually};

/// What each connection began with, by its number.
type Told = Arc<Mutex<Vec<Vec<u8>>>>;

/// What an upstream speaks after the PROXY header.
#[derive(Clone)]
enum Spoken {
    Http1,
    Http2,
    Tls(TlsServer),
    Echo,
}

/// An upstream that reads a PROXY header from each connection before it speaks anything else.
async fn told(spoken: Spoken) -> (Upstream, Told) {
    let told = Told::default();
    let kept = told.clone();
    let upstream = Upstream::raw(move |mut stream, _| {
        let (spoken, kept) = (spoken.clone(), kept.clone());
        async move {
            let Some(header) = proxy_header(&mut stream).await else { return };
            kept.lock().unwrap().push(header);
            match spoken {
                Spoken::Http1 => serve(stream).await,
                Spoken::Http2 => serve_h2(stream).await,
                Spoken::Tls(server) => {
                    if let Some(stream) = server.accept(stream).await {
                        serve(stream).await;
                    }
                }
                Spoken::Echo => {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                }
            }
        }
    });
    (upstream.await, told)
}

/// The bytes of a header of either version, and no more.
async fn proxy_header(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut header = Vec::new();
    while !header.ends_with(b"\r\n") || header.starts_with(b"\r\n") {
        header.push(stream.read_u8().await.ok()?);
        if header.starts_with(b"\r\n") && header.len() == 16 {
            let mut rest = vec![0; usize::from(u16::from_be_bytes([header[14], header[15]]))];
            stream.read_exact(&mut rest).await.ok()?;
            return Some([header, rest].concat());
        }
    }
    Some(header)
}

/// Answers requests without a body.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut request = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        request.push(byte);
        if request.ends_with(b"\r\n\r\n") {
            // Another header in between would be taken for a part of the request.
            let answer = if request.starts_with(b"GET ") { "200 OK" } else { "400 Bad" };
            let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            request.clear();
        }
    }
}

async fn serve_h2(stream: tokio::net::TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let _ = respond.send_response(http::Response::new(()), true);
    }
}

/// The header for a connection from `client` to `gateway`, written by hand.
fn header(version: u8, client: SocketAddr, gateway: SocketAddr) -> Vec<u8> {
    if version == 1 {
        return format!("PROXY TCP4 127.0.0.2 127.0.0.1 {} {}\r\n", client.port(), gateway.port()).into_bytes();
    }
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x02\x7f\0\0\x01".to_vec();
    header.extend([client.port().to_be_bytes(), gateway.port().to_be_bytes()].concat());
    header
}

#[tokio::test]
async fn proxy_protocol() {
    let server = TlsServer::new(&Authority::new("upstreams").server("up.test"));
    let rows: [(&str, u8, Spoken, &str, &str); 5] = [
        ("v1", 1, Spoken::Http1, "HTTP", ""),
        ("v2", 2, Spoken::Http1, "HTTP", ""),
        ("tls-v1", 1, Spoken::Tls(server.clone()), "HTTP", ", tls: {mode: SIMPLE, insecureSkipVerify: true}"),
        ("tls-v2", 2, Spoken::Tls(server), "HTTP", ", tls: {mode: SIMPLE, insecureSkipVerify: true}"),
        ("h2-v2", 2, Spoken::Http2, "HTTP2", ""),
    ];
    let mut mesh = Mesh::new();
    let mut upstreams = Vec::new();
    for (name, version, spoken, protocol, more) in &rows {
        let (upstream, told) = told(spoken.clone()).await;
        let host = format!("{name}.test");
        mesh = service(mesh, &host, protocol, [(&upstream, "")])
            .resource("DestinationRule", &rule(&host, &format!("proxyProtocol: {{version: V{version}}}{more}")))
            .route(&host, &host);
        upstreams.push((upstream, told));
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §5.8, proxyProtocol");
    for ((name, version, ..), (upstream, told)) in rows.iter().zip(&upstreams) {
        table.row(*name);
        let host = format!("{name}.test");
        let mut expected = Vec::new();
        let mut one = Http1::connect(gateway.address(80)).await;
        let mut other = Http1::connect(gateway.address(80)).await;
        // Taking turns: whoever comes second finds the connection of the other idle.
        for _ in 0..2 {
            for client in [&mut one, &mut other] {
                let response = client.get(&host, "/").await;
                table.check("status", &200, &response.status);
                expected.push(header(*version, client.address(), gateway.address(80)));
                table.expect_log(response.client, 200, "-", "via_upstream");
            }
        }
        expected.truncate(2);
        table.check("headers, one by client", &expected, &*told.lock().unwrap());
        table.check("connections, one by client", &2, &upstream.connections());
    }
    table.row("parallel requests of one client");
    let (upstream, told) = &upstreams[4];
    let client = Http2::connect(gateway.address(80)).await;
    let address = client.address();
    let mut client = client;
    let mut pending = Vec::new();
    for _ in 0..3 {
        let request = http::Request::get("http://h2-v2.test/").body(()).unwrap();
        pending.push(client.open(request, true).await.unwrap().0);
    }
    for response in futures::future::join_all(pending.into_iter().map(crate::harness::client::read_h2)).await {
        table.check("status", &200, &response.status);
    }
    table.check("header", &Some(header(2, address, gateway.address(80))), &told.lock().unwrap().get(2).cloned());
    table.check("connections", &3, &upstream.connections());
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn proxy_protocol_of_tcp() {
    let ports = [9000, 9001];
    let mut mesh = Mesh::new().servers(&crate::tcp::servers(&ports), &ports);
    let (mut routes, mut upstreams) = (String::new(), Vec::new());
    for (port, version) in ports.into_iter().zip([1, 2]) {
        let (upstream, told) = told(Spoken::Echo).await;
        let host = format!("v{version}.test");
        mesh = service(mesh, &host, "TCP", [(&upstream, "")])
            .resource("DestinationRule", &rule(&host, &format!("proxyProtocol: {{version: V{version}}}")));
        routes += &crate::tcp::to(port, &host);
        upstreams.push((upstream, told));
    }
    let routes = format!("hosts: ['*']\ngateways: [gateway]\ntcp:\n{routes}");
    let gateway = mesh.resource("VirtualService", &routes).start().await;
    for ((port, version), (_, told)) in ports.into_iter().zip([1, 2]).zip(&upstreams) {
        let mut expected = Vec::new();
        for _ in 0..2 {
            let mut client = Http1::connect(gateway.address(port)).await;
            client.send("hello").await;
            assert_eq!(client.read_exactly(5).await, Ok(b"hello".to_vec()));
            expected.push(header(version, client.address(), gateway.address(port)));
        }
        assert_eq!(*told.lock().unwrap(), expected);
    }
}

/// A forward proxy over HTTP/1.1: it answers with `answer`, then with `tun:` and every byte that comes. What it was
/// asked is kept byte by byte. After the client's end it says `:end` and closes.
async fn forward_proxy(answer: &'static str) -> (Upstream, Arc<Mutex<Vec<String>>>) {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = heads.clone();
    let proxy = Upstream::raw(move |mut stream, _| {
        let kept = kept.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            kept.lock().unwrap().push(String::from_utf8(head).unwrap());
            let _ = stream.write_all(answer.as_bytes()).await;
            if !answer.starts_with("HTTP/1.1 2") {
                // Whoever asks has to go.
                while stream.read_u8().await.is_ok() {}
                return;
            }
            let _ = stream.write_all(b"tun:").await;
            let mut bytes = [0; 1024];
            while let Ok(length) = stream.read(&mut bytes).await {
                let bytes = &bytes[..length];
                let _ = stream.write_all(bytes).await;
                // The end of the client is that of the connection, or of a body in chunks.
                if bytes.is_empty() || bytes.ends_with(b"0\r\n\r\n") {
                    break;
                }
            }
            let _ = stream.write_all(b":end").await;
            let _ = stream.shutdown().await;
        }
    });
    (proxy.await, heads)
}

const OPENED: &str = "HTTP/1.1 200 OK\r\n\r\n";
const CONNECT: &str = "CONNECT target.com:443 HTTP/1.1\r\nhost: target.com:443\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: target.com:443\r\ntransfer-encoding: chunked\r\n\r\n";
const TUNNEL: &str = "targetHost: target.com, targetPort: 443";

/// One TCP server for each service, `tunnel-<port>.test`, of this protocol, proxy and `tunnel`.
async fn tunnels<'u>(services: impl IntoIterator<Item = (u16, &'u str, &'u Upstream, &'u str)>) -> Gateway {
    let mut mesh = Mesh::new();
    let (mut ports, mut routes) = (Vec::new(), String::new());
    for (port, protocol, proxy, tunnel) in services {
        let host = format!("tunnel-{port}.test");
        mesh = service(mesh, &host, protocol, [(proxy, "")])
            .resource("DestinationRule", &rule(&host, &format!("tunnel: {{{tunnel}, {TUNNEL}}}")));
        routes += &crate::tcp::to(port, &host);
        ports.push(port);
    }
    let routes = format!("hosts: ['*']\ngateways: [gateway]\ntcp:\n{routes}");
    mesh.servers(&crate::tcp::servers(&ports), &ports).resource("VirtualService", &routes).start().await
}

/// `upstream/tunnel-*`.
#[tokio::test]
async fn tunnels_over_http1() {
    const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n";
    const BAD: &str = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 3\r\n\r\nbad";
    let rows = [
        (9000, "protocol: CONNECT", OPENED, CONNECT, Ok(("hi", "tun:hi", ":end"))),
        // CONNECT is what an unset protocol means.
        (9001, "protocol: ''", "HTTP/1.1 204 None\r\n\r\n", CONNECT, Ok(("hi", "tun:hi", ":end"))),
        (9002, "protocol: POST", OPENED, POST, Ok(("hi", "tun:2\r\nhi\r\n", "0\r\n\r\n:end"))),
        (9003, "protocol: CONNECT", FORBIDDEN, CONNECT, Err("tunnel_response:403")),
        (9004, "protocol: POST", FORBIDDEN, POST, Err("tunnel_response:403")),
        (9005, "protocol: CONNECT", BAD, CONNECT, Err("tunnel_response:502")),
        (9006, "protocol: POST", BAD, POST, Err("tunnel_response:502")),
    ];
    let mut proxies = Vec::new();
    for (_, _, answer, _, _) in rows {
        proxies.push(forward_proxy(answer).await);
    }
    let services = rows.iter().zip(&proxies).map(|((port, tunnel, ..), (proxy, _))| (*port, "TCP", proxy, *tunnel));
    let gateway = tunnels(services).await;
    let mut table = Table::new("networking.md §5.8, tunnels over HTTP/1.1");
    for ((port, tunnel, _, request, expected), (proxy, heads)) in rows.into_iter().zip(&proxies) {
        table.row(format!("{port} {tunnel}"));
        match expected {
            Ok((sent, received, rest)) => {
                let mut client = Http1::connect(gateway.address(port)).await;
                client.send(sent).await;
                table.check("data", &Ok(received.into()), &client.read_exactly(received.len()).await);
                client.half_close().await;
                table.check("after the half close", &Ok(rest.into()), &client.read_exactly(rest.len()).await);
                table.check("end", &End::Closed, &client.ended(PATIENCE).await);
                table.expect_log(Some(client.address()), 0, "-", "-");
            }
            Err(reason) => {
                let (client, end) = ended_after(gateway.address(port), "hi").await;
                table.check("end", &End::Reset, &end);
                match gateway.log_line_of(client).await {
                    None => table.fail("no line in the access log"),
                    Some(line) => {
                        let got = (line.code(), line.flags(), line.transport_failure());
                        table.check("access log", &("0", "UF,URX", reason), &got);
                    }
                }
                eventually("the proxy is let go", || async { (proxy.open() == 0).then_some(()) }).await;
            }
        }
        table.check("to the proxy", &[request][..], &heads.lock().unwrap()[..]);
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn tunnels_over_http2() {
    let opens = |_: &_| {
        vec![H2Step::Head(200, &[], false), H2Step::Data(b"tun:", false), H2Step::ReadBody, H2Step::Data(b":end", true)]
    };
    let forbids = |_: &_| vec![H2Step::Head(403, &[], true), H2Step::Hang];
    let (one, two, three) = (Upstream::h2(opens).await, Upstream::h2(opens).await, Upstream::h2(forbids).await);
    let services = [
        (9000, "HTTP2", &one, "protocol: CONNECT"),
        (9001, "HTTP2", &two, "protocol: POST"),
        (9002, "HTTP2", &three, "protocol: CONNECT"),
        (9003, "HTTP2", &three, "protocol: POST"),
    ];
    let gateway = tunnels(services).await;
    let mut table = Table::new("networking.md §5.8, tunnels over HTTP/2");
    let connect = [(":method", "CONNECT"), (":scheme", ""), (":authority", "target.com:443"), (":path", "")];
    let post = [(":method", "POST"), (":scheme", "http"), (":authority", "target.com:443"), (":path", "/")];
    for (port, proxy, expected) in [(9000, &one, connect), (9001, &two, post)] {
        table.row(expected[0].1);
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = Http1::connect(gateway.address(port)).await;
            table.check("data", &Ok(b"tun:".to_vec()), &client.read_exactly(4).await);
            clients.push(client);
        }
        table.check("connections", &1, &proxy.connections());
        for mut client in clients {
            client.send("hi").await;
            client.half_close().await;
            table.check("after the half close", &Ok(b":end".to_vec()), &client.read_exactly(4).await);
            table.check("end", &End::Closed, &client.ended(PATIENCE).await);
            table.expect_log(Some(client.address()), 0, "-", "-");
        }
        for request in proxy.take() {
            let headers: Vec<_> = request.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            table.check("header lines", &expected[..], &headers[..]);
            table.check("body", &("hi".as_bytes(), true), &(&*request.body, request.complete));
        }
    }
    for port in [9002, 9003] {
        table.row(format!("refused, {port}"));
        let (client, end) = ended_after(gateway.address(port), "hi").await;
        table.check("end", &End::Reset, &end);
        let line = gateway.log_line_of(client).await.expect("a line in the access log");
        let got = (line.code(), line.flags(), line.transport_failure());
        table.check("access log", &("0", "UF,URX", "tunnel_response:403"), &got);
    }
    table.check_logs(&gateway).await;
    table.finish();
}

/// A client that goes away takes its tunnel with it, and the other way round.
#[tokio::test]
async fn the_end_of_one_side_is_the_end_of_a_tunnel() {
    let (proxy, _) = forward_proxy(OPENED).await;
    let resets = Upstream::h2(|_| {
        vec![H2Step::Head(200, &[], false), H2Step::Data(b"tun:", false), H2Step::Reset(h2::Reason::CANCEL)]
    });
    let resets = resets.await;
    let services = [(9000, "TCP", &proxy, "protocol: CONNECT"), (9001, "HTTP2", &resets, "protocol: CONNECT")];
    let gateway = tunnels(services).await;
    let mut client = Http1::connect(gateway.address(9000)).await;
    assert_eq!(client.read_exactly(4).await, Ok(b"tun:".to_vec()));
    client.reset();
    eventually("the proxy is let go", || async { (proxy.open() == 0).then_some(()) }).await;

    let mut client = Http1::connect(gateway.address(9000)).await;
    assert_eq!(client.read_exactly(4).await, Ok(b"tun:".to_vec()));
    drop(proxy);
    assert!(matches!(client.ended(PATIENCE).await, End::Closed | End::Reset));

    let mut client = Http1::connect(gateway.address(9001)).await;
    while !matches!(client.ended(PATIENCE).await, End::Closed | End::Reset) {}
}

/// The tunnel of a subset comes before that of the service, and HTTP routes have none.
#[tokio::test]
async fn levels() {
    let (proxy, heads) = forward_proxy(OPENED).await;
    let plain = Upstream::ok().await;
    let spec = format!(
        "host: levels.test\ntrafficPolicy: {{tunnel: {{protocol: CONNECT, {TUNNEL}}}}}\nsubsets:\n\
         - {{name: own, trafficPolicy: {{tunnel: {{protocol: CONNECT, targetHost: other.com, targetPort: 80}}}}}}\n"
    );
    let routes = crate::tcp::to(9000, "levels.test") + &crate::tcp::to(9001, "'levels.test', subset: own");
    let servers =
        crate::tcp::servers(&[9000, 9001]) + "- port: {number: 80, name: http, protocol: HTTP}\n  hosts: ['*']\n";
    let mesh = Mesh::new().servers(&servers, &[9000, 9001, 80]);
    let mesh = service(mesh, "levels.test", "TCP", [(&proxy, "")]).resource("DestinationRule", &spec);
    let mesh = service(mesh, "http.test", "HTTP", [(&plain, "")])
        .resource("DestinationRule", &rule("http.test", &format!("tunnel: {{protocol: CONNECT, {TUNNEL}}}")));
    let gateway = mesh
        .resource("VirtualService", &format!("hosts: ['*']\ngateways: [gateway]\ntcp:\n{routes}"))
        .route("http.test", "http.test")
        .start()
        .await;
    let mut table = Table::new("networking.md §5.2, §5.8, tunnels by level");
    let other = CONNECT.replace("target.com:443", "other.com:80");
    for (name, port, expected) in [("service", 9000, CONNECT), ("subset", 9001, &other)] {
        table.row(name);
        let mut client = Http1::connect(gateway.address(port)).await;
        table.check("data", &Ok(b"tun:".to_vec()), &client.read_exactly(4).await);
        table.check("to the proxy", &[expected][..], &std::mem::take(&mut *heads.lock().unwrap())[..]);
    }
    table.row("HTTP routes");
    let response = Http1::connect(gateway.address(80)).await.get("http.test", "/").await;
    table.check("answer", &(200, "ok".to_owned()), &(response.status, response.text()));
    table.check("method", "GET", &*plain.take()[0].method);
    table.finish();
}
