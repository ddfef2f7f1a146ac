//! networking.md §7.2: the patterns of egress, as `config/samples/egress-*` have them, over the network.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::PATIENCE;
use crate::harness::client::{CLIENT, End, Http1, Response, connect_from};
use crate::harness::dns::DnsServer;
use crate::harness::gateway::{Gateway, LogLine};
use crate::harness::sample::{self, Pki};
use crate::harness::tls_client::{Refusal, Settings};
use crate::harness::tls_server::{Handshake, TlsServer};
use crate::harness::upstream::{Upstream, ok};

const EDITION: &str = "edition.example.com";

/// What the access log says of the connection from `client`; its flags are those expected.
async fn logged(gateway: &Gateway, client: SocketAddr, code: &str, flags: &str) -> LogLine {
    let line = gateway.log_line_of(client).await.expect("a line in the access log");
    assert_eq!((line.code(), line.flags()), (code, flags), "{}", line.text);
    line
}

/// A request for `host` in clear text comes to `upstream`, as itself, by this cluster.
async fn arrives(gateway: &Gateway, host: &str, cluster: &str, upstream: &Upstream) {
    let response = Http1::connect(gateway.address(80)).await.get(host, "/path").await;
    arrived(gateway, &response, host, cluster, upstream).await;
}

async fn arrived(gateway: &Gateway, response: &Response, host: &str, cluster: &str, upstream: &Upstream) {
    assert_eq!(response.status, 200, "{host}: {response:?}");
    let seen = upstream.received().await.unwrap_or_else(|| panic!("{host}: the upstream sees the request"));
    assert_eq!((&*seen.target, seen.all("host")), ("/path", vec![host]));
    let line = logged(gateway, response.client.unwrap(), "200", "-").await;
    assert_eq!((line.authority(), line.cluster()), (host, cluster), "{}", line.text);
    assert_eq!(line.upstream_host(), upstream.address().to_string(), "{}", line.text);
}

/// A request for a host that no VirtualService of the server has.
async fn no_such_host(gateway: &Gateway, host: &str) {
    let response = Http1::connect(gateway.address(80)).await.get(host, "/").await;
    assert_eq!(response.status, 404, "{host}: {response:?}");
    logged(gateway, response.client.unwrap(), "404", "NR").await;
}

/// TLS with `name` passes through to `upstream`, which ends it, by this cluster.
async fn passes(pki: &Pki, gateway: &Gateway, name: &str, cluster: &str, (server, upstream): (&TlsServer, &Upstream)) {
    let response = pki.trusting().get(gateway.address(443), name, "/path").await.unwrap();
    assert_eq!(response.status, 200, "{name}: {response:?}");
    assert_eq!(server.handshake_seen().await.unwrap().server_name.as_deref(), Some(name));
    assert_eq!(upstream.received().await.unwrap().all("host"), [name]);
    let line = logged(gateway, response.client.unwrap(), "0", "-").await;
    assert_eq!(line.cluster(), cluster, "{}", line.text);
    assert_eq!(line.upstream_host(), upstream.address().to_string(), "{}", line.text);
}

/// TLS with this name is refused without a byte; its access log line has these flags.
async fn refused(gateway: &Gateway, name: &str, flags: &str) -> LogLine {
    let stream = connect_from(CLIENT, gateway.address(443)).await.unwrap();
    let client = stream.local_addr().unwrap();
    let refusal = Settings::new(&[]).client().handshake(stream, name).await.map(|_| ());
    assert_eq!(refusal, Err(Refusal::Reset), "{name}");
    logged(gateway, client, "0", flags).await
}

/// A host outside that speaks TLS for these names.
async fn tls_host(pki: &Pki, names: &str) -> (TlsServer, Upstream) {
    let server = TlsServer::new(&pki.ca.server(names));
    let upstream = Upstream::h1_tls(&server, |_| ok()).await;
    (server, upstream)
}

#[tokio::test]
async fn http() {
    let (pki, upstream) = (Pki::new(), Upstream::ok().await);
    let gateway = pki.start("egress-http", &[80], &[("http: 8080", &upstream)]).await;
    arrives(&gateway, EDITION, "outbound|80||edition.example.com", &upstream).await;
    no_such_host(&gateway, "other.example.com").await;
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn tls_passthrough() {
    let pki = Pki::new();
    let (server, upstream) = tls_host(&pki, EDITION).await;
    let gateway = pki.start("egress-tls-passthrough", &[443], &[("tls: 9443", &upstream)]).await;
    passes(&pki, &gateway, EDITION, "outbound|443||edition.example.com", (&server, &upstream)).await;
    refused(&gateway, "other.example.com", "NR").await;
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn tls_origination() {
    let pki = Pki::new();
    let clear = Upstream::ok().await;
    let (server, upstream) = tls_host(&pki, EDITION).await;
    let gateway =
        pki.start("egress-tls-origination", &[80], &[("http: 8080", &clear), ("https: 9443", &upstream)]).await;
    arrives(&gateway, EDITION, "outbound|443||edition.example.com", &upstream).await;
    let Handshake { server_name, client, failure, .. } = server.handshake_seen().await.unwrap();
    assert_eq!((server_name.as_deref(), client, failure), (Some(EDITION), None, None));
    no_such_host(&gateway, "other.example.com").await;

    // A host that isn't the one that it should be gets no request.
    let (other, impostor) = tls_host(&pki, "other.example.com").await;
    let gateway =
        pki.start("egress-tls-origination", &[80], &[("http: 8080", &clear), ("https: 9443", &impostor)]).await;
    let response = Http1::connect(gateway.address(80)).await.get(EDITION, "/").await;
    assert_eq!(response.status, 503, "{response:?}");
    let line = gateway.log_line_of(response.client.unwrap()).await.expect("a line in the access log");
    assert!(line.flags().contains("UF"), "{}", line.text);
    assert_eq!(other.handshake_seen().await.unwrap().server_name.as_deref(), Some(EDITION));
    assert!(impostor.take().is_empty());
    assert_eq!(clear.connections(), 0);
}

#[tokio::test]
async fn mutual_tls_origination() {
    const NGINX: &str = "nginx.example.com";
    let pki = Pki::new();
    let server = TlsServer::mutual(&pki.server, &pki.ca, &[]);
    let upstream = Upstream::h1_tls(&server, |_| ok()).await;
    let gateway = pki.start("egress-mutual-tls-origination", &[443], &[("https: 9443", &upstream)]).await;
    let address = gateway.address(443);

    // The sidecar is a workload of the mesh; what it shows is not what the host outside sees.
    let sidecar = Settings::new(&[]).identity(&pki.identity);
    let connected = sidecar.connect(address, NGINX).await.unwrap();
    assert_eq!(&connected.certificate(), pki.identity.der());
    let response = connected.http1().get(NGINX, "/path").await;
    arrived(&gateway, &response, NGINX, "outbound|443||nginx.example.com", &upstream).await;
    let Handshake { server_name, client, .. } = server.handshake_seen().await.unwrap();
    assert_eq!((server_name.as_deref(), client), (Some(NGINX), Some(pki.client.der().to_vec())));

    let response = sidecar.connect(address, NGINX).await.unwrap().http1().get("other.example.com", "/").await;
    assert_eq!(response.status, 404, "{response:?}");
    logged(&gateway, response.client.unwrap(), "404", "NR").await;
    refused(&gateway, "other.example.com", "NR").await;
    assert_eq!(Settings::new(&[]).refusal(address, NGINX).await, Err(Refusal::Alert(116)));
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn wildcard_host() {
    let pki = Pki::new();
    let (server, upstream) = tls_host(&pki, "*.example.org").await;
    let gateway = pki.start("egress-wildcard-host", &[443], &[("tls: 9443", &upstream)]).await;
    for name in ["www.example.org", "en.example.org", "de.example.org"] {
        passes(&pki, &gateway, name, "outbound|443||www.example.org", (&server, &upstream)).await;
    }
    for name in ["example.org", "en.example.com"] {
        refused(&gateway, name, "NR").await;
    }
    assert_eq!(upstream.connections(), 3);
}

#[tokio::test]
async fn tcp() {
    let (pki, echo) = (Pki::new(), Upstream::echo().await);
    let gateway = pki.start("egress-tcp", &[5432], &[("tcp-postgres: 9000", &echo)]).await;
    let mut client = Http1::connect(gateway.address(5432)).await;
    client.send("hello").await;
    assert_eq!(client.read_exactly(5).await, Ok(b"hello".to_vec()));
    client.half_close().await;
    assert_eq!(client.ended(PATIENCE).await, End::Closed);
    let line = logged(&gateway, client.address(), "0", "-").await;
    assert_eq!(line.cluster(), "outbound|5432||postgres.example.com", "{}", line.text);
    assert_eq!(line.upstream_host(), echo.address().to_string(), "{}", line.text);
}

#[tokio::test]
async fn several_hosts() {
    let pki = Pki::new();
    let (news, weather) = (Upstream::ok().await, Upstream::ok().await);
    let (news_tls, payments) = (tls_host(&pki, "news.example.com").await, tls_host(&pki, "payments.example.com").await);
    let backends =
        [("http: 8080", &news), ("http: 8081", &weather), ("tls: 9443", &news_tls.1), ("tls: 9444", &payments.1)];
    let gateway = pki.start("egress-several-hosts", &[80, 443], &backends).await;
    for (host, cluster, upstream) in [
        ("news.example.com", "outbound|80||news.example.com", &news),
        ("weather.example.com", "outbound|80||weather.example.com", &weather),
    ] {
        arrives(&gateway, host, cluster, upstream).await;
    }
    for (name, cluster, (server, upstream)) in [
        ("news.example.com", "outbound|443||news.example.com", &news_tls),
        ("payments.example.com", "outbound|443||payments.example.com", &payments),
    ] {
        passes(&pki, &gateway, name, cluster, (server, upstream)).await;
    }
    for host in ["payments.example.com", "other.example.com"] {
        no_such_host(&gateway, host).await;
    }
    for name in ["weather.example.com", "other.example.com"] {
        refused(&gateway, name, "NR").await;
    }
    for upstream in [&news, &weather, &news_tls.1, &payments.1] {
        assert_eq!(upstream.connections(), 1);
    }
}

#[tokio::test]
async fn kubernetes_services() {
    let (pki, httpbin, wiki) = (Pki::new(), Upstream::ok().await, Upstream::ok().await);
    let gateway = pki.start("egress-kubernetes-service", &[80], &[("8080", &httpbin), ("8081", &wiki)]).await;
    // The cluster of an ExternalName is that of the name that it stands for.
    let cluster = format!("outbound|{}||localhost", httpbin.address().port());
    arrives(&gateway, "my-httpbin.default.svc.cluster.local", &cluster, &httpbin).await;
    let cluster = "outbound|80||my-wiki.wiki.svc.cluster.local";
    arrives(&gateway, "my-wiki.wiki.svc.cluster.local", cluster, &wiki).await;
    no_such_host(&gateway, "localhost").await;
    no_such_host(&gateway, "other.default.svc.cluster.local").await;
}

/// A forward proxy that opens tunnels to www.example.com alone, and the heads of what it was asked for.
async fn forward_proxy(server: &TlsServer) -> (Upstream, Arc<Mutex<Vec<String>>>) {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let (server, asked) = (server.clone(), heads.clone());
    let proxy = Upstream::raw(move |mut stream, _| {
        let (server, asked) = (server.clone(), asked.clone());
        async move {
            // Byte by byte, since what comes after it is for the target.
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            let allowed = head.starts_with(b"CONNECT www.example.com:443 ");
            asked.lock().unwrap().push(String::from_utf8(head).unwrap());
            if !allowed {
                let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
                return;
            }
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            let Some(mut target) = server.accept(stream).await else { return };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let Ok(byte) = target.read_u8().await else { return };
                request.push(byte);
            }
            target.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            let _ = target.read_u8().await;
        }
    })
    .await;
    (proxy, heads)
}

#[tokio::test]
async fn external_proxy() {
    let pki = Pki::new();
    let server = TlsServer::new(&pki.server);
    let (proxy, asked) = forward_proxy(&server).await;
    let gateway = pki.start("egress-external-proxy", &[443], &[("tcp-proxy: 3128", &proxy)]).await;

    let response = pki.trusting().get(gateway.address(443), "www.example.com", "/").await.unwrap();
    assert_eq!((response.status, &*response.text()), (200, "ok"), "{response:?}");
    let head = "CONNECT www.example.com:443 HTTP/1.1\r\nhost: www.example.com:443\r\n\r\n";
    assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), [head]);
    assert_eq!(server.handshake_seen().await.unwrap().server_name.as_deref(), Some("www.example.com"));
    let line = logged(&gateway, response.client.unwrap(), "0", "-").await;
    assert_eq!(line.cluster(), "outbound|3128|to-example-com|proxy.example.com", "{}", line.text);
    assert_eq!(line.upstream_host(), proxy.address().to_string(), "{}", line.text);

    let line = refused(&gateway, "www.example.org", "UF,URX").await;
    assert_eq!(line.transport_failure(), "tunnel_response:403", "{}", line.text);
    let head = "CONNECT www.example.org:443 HTTP/1.1\r\nhost: www.example.org:443\r\n\r\n";
    assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), [head]);

    refused(&gateway, "other.example.org", "NR").await;
    assert!(asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_forward_proxy() {
    let pki = Pki::new();
    let server = TlsServer::new(&pki.server);
    let (plain, secure) = (Upstream::ok().await, Upstream::h1_tls(&server, |_| ok()).await);
    let gateway = pki.start("egress-forward-proxy", &[3128], &[("http: 8080", &plain), ("tls: 9443", &secure)]).await;

    let mut client = Http1::connect(gateway.address(3128)).await;
    let response = client.exchange(format!("GET http://{EDITION}/path HTTP/1.1\r\nhost: {EDITION}\r\n\r\n")).await;
    arrived(&gateway, &response, EDITION, "outbound|80||edition.example.com", &plain).await;

    let (stream, head) = super::forward_proxy::ask_for_tunnel(&gateway, &format!("{EDITION}:443")).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut inner = pki.trusting().client().handshake(stream, EDITION).await.unwrap().http1();
    assert_eq!(inner.get(EDITION, "/").await.status, 200);

    let response = client.exchange("GET http://other.example.com/ HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(response.status, 502);
    gateway
        .says("allow=\"{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: other-example-com}")
        .await;
}

#[tokio::test]
async fn dynamic_dns() {
    let pki = Pki::new();
    let server = TlsServer::new(&pki.server);
    let (plain, secure) = (Upstream::ok().await, Upstream::h1_tls(&server, |_| ok()).await);
    let dns = DnsServer::start().await;
    dns.set("www.example.com", &[plain.address().ip()], 3600);
    dns.set("evil.example.com", &["10.0.0.1".parse().unwrap()], 3600);
    let text = std::fs::read_to_string(sample::directory("egress-dynamic-dns").join("gateway.yaml")).unwrap();
    // The sample's ports are those of real hosts; the last ones are the ServiceEntry's.
    let (servers, entry) = text.split_at(text.rfind("ports:").unwrap());
    let (http, tls) = (plain.address().port(), secure.address().port());
    let entry = entry.replace("protocol: HTTP}", &format!("protocol: HTTP, targetPort: {http}}}"));
    let entry = entry.replace("protocol: TLS}", &format!("protocol: TLS, targetPort: {tls}}}"));
    let text = format!("{servers}{entry}");
    let mut builder = Gateway::builder().file("gateway.yaml", text).ports(&[80, 443]);
    let name_server = dns.address().to_string();
    for argument in ["--label", "istio=egressgateway", "--name-server", &name_server, "--egress-allow", "127.0.0.0/8"] {
        builder = builder.argument(argument);
    }
    let gateway = builder.start().await.unwrap();

    arrives(&gateway, "www.example.com", "outbound|80||*.example.com", &plain).await;
    passes(&pki, &gateway, "www.example.com", "outbound|443||*.example.com", (&server, &secure)).await;
    no_such_host(&gateway, "www.example.org").await;
    let response = Http1::connect(gateway.address(80)).await.get("evil.example.com", "/").await;
    assert_eq!((response.status, &*response.text()), (403, "egress denied: the host has no public address"));
    // An egress gateway explains what it has no route for, too.
    gateway.says("reason=no_route").await;
}
