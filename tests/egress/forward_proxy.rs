//! Gateway servers with protocol `HTTP_PROXY`: absolute-form requests and CONNECT, held to ServiceEntries.
//!
//! Expected values: RFC 9110 §9.3.6 and RFC 9112 §3.2 for the protocol; where Istio has no forward proxies, the rules that
//! README states.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::client::{End, Http1, Http2, connect_from, read_h2};
use crate::harness::dns::DnsServer;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::peer;
use crate::harness::pki::Authority;
use crate::harness::process::run;
use crate::harness::table::Table;
use crate::harness::tls_client::Settings;
use crate::harness::tls_server::TlsServer;
use crate::harness::upstream::Upstream;
use crate::harness::{PATIENCE, eventually};

/// A forward proxy for all hosts on port 3128.
pub(super) const PROXY: &str = "- port: {number: 3128, name: proxy, protocol: HTTP_PROXY}\n  hosts: ['*']\n";

/// A ServiceEntry for `host` with this port at this backend.
pub(super) fn entry(host: &str, port: u16, protocol: &str, backend: &Upstream) -> String {
    let (ip, at) = (backend.address().ip(), backend.address().port());
    format!(
        "hosts: [{host:?}]\nlocation: MESH_EXTERNAL\nresolution: STATIC\n\
         ports: [{{number: {port}, name: main, protocol: {protocol}}}]\n\
         endpoints: [{{address: {ip}, ports: {{main: {at}}}}}]\n"
    )
}

/// Asks for a tunnel to `authority`; the connection and the head of the answer.
pub(super) async fn ask_for_tunnel(gateway: &Gateway, authority: &str) -> (TcpStream, String) {
    let address = gateway.address(3128);
    let mut stream = connect_from(crate::harness::client::CLIENT, address).await.unwrap();
    let request = format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // One byte at a time: what follows is not ours to read.
        match tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("an answer to CONNECT") {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    (stream, String::from_utf8(head).unwrap())
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// The `allow=` of the last refusal that the gateway has logged for `host`, as YAML.
async fn suggested(gateway: &Gateway, host: &str) -> String {
    eventually("a refusal in the log", || async {
        let log = gateway.stderr();
        let line =
            log.lines().rfind(|line| line.contains("egress denied") && line.contains(&format!("host=\"{host}\"")))?;
        let allow = line.split("allow=\"").nth(1)?;
        Some(allow.split("\" left_out=").next()?.replace("\\\"", "\""))
    })
    .await
}

/// Whoever has routes for a host says all that may be asked of it, and who shares a port with a proxy is no proxy.
#[tokio::test]
async fn routes_restrict_what_is_let_out() {
    let (api, free, shop) = (Upstream::ok().await, Upstream::ok().await, Upstream::ok().await);
    let servers = "- port: {number: 3128, name: proxy, protocol: HTTP_PROXY}\n  hosts: ['*.out.test']\n\
                   - port: {number: 3128, name: shop, protocol: HTTP}\n  hosts: [shop.test]\n";
    let gateway = Mesh::new()
        .servers(servers, &[3128])
        .service("backend.test", "HTTP", &[shop.address()])
        .resource("ServiceEntry", &entry("api.out.test", 80, "HTTP", &api))
        .resource("ServiceEntry", &entry("free.out.test", 80, "HTTP", &free))
        .routes(
            "api.out.test",
            "[{match: [{uri: {prefix: /v1/}}], route: [{destination: {host: api.out.test}}], headers: {request: {set: {x-by: rule}}}}]",
        )
        .routes("shop.test", "[{route: [{destination: {host: backend.test}}]}]")
        .start()
        .await;
    let mut table = Table::new("routes of a forward proxy");
    for (row, host, path, code, details) in [
        ("what a rule allows", "api.out.test", "/v1/x", 200, "via_upstream"),
        ("what none does", "api.out.test", "/admin", 404, "route_not_found"),
        ("a host without rules", "free.out.test", "/admin", 200, "via_upstream"),
        ("a host of a server that is no proxy", "shop.test", "/", 200, "via_upstream"),
        ("a host of no server", "free.test", "/", 502, "egress_denied{host_not_served}"),
    ] {
        table.row(row);
        let request = format!("GET http://{host}{path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        let answer = Http1::connect(gateway.address(3128)).await.exchange(&request).await;
        table.check("status", &code, &answer.status);
        table.expect_log(answer.client, code, if code == 404 { "NR" } else { "-" }, details);
    }
    table.row("requests that have arrived");
    let seen = api.take();
    table.check("paths", &vec!["/v1/x"], &seen.iter().map(|request| &*request.target).collect::<Vec<_>>());
    table.check("header of the rule", &Some("rule"), &seen[0].header("x-by"));
    table.check("at the free host", &1, &free.take().len());
    table.check("at the shop", &1, &shop.take().len());
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn requests_and_tunnels() {
    let ca = Authority::new("ca");
    let server = TlsServer::new(&ca.server("api.test"));
    let origin_server = TlsServer::new(&ca.server("origin.test"));
    let (api, routed, second) = (Upstream::ok().await, Upstream::ok().await, Upstream::ok().await);
    let secure = Upstream::h1_tls(&server, |_| crate::harness::upstream::ok()).await;
    let origin = Upstream::h1_tls(&origin_server, |_| crate::harness::upstream::ok()).await;
    let (echo, refuses) = (Upstream::echo().await, Upstream::refuses().await);
    let ca_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca_file.path(), ca.pem()).unwrap();
    let tls = format!("{{mode: SIMPLE, caCertificates: {:?}}}", ca_file.path());
    let two_ports = format!(
        "hosts: [api.test]\nlocation: MESH_EXTERNAL\nresolution: STATIC\n\
         ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: tls, protocol: TLS}}]\n\
         endpoints: [{{address: 127.0.0.1, ports: {{http: {}, tls: {}}}}}]\n",
        api.address().port(),
        secure.address().port()
    );
    let servers = format!(
        "{PROXY}- port: {{number: 3129, name: some, protocol: HTTP_PROXY}}\n  hosts: ['*.api.test', api.test]\n"
    );
    let gateway = Mesh::new()
        .servers(&servers, &[3128, 3129])
        .resource("ServiceEntry", &two_ports)
        .resource("ServiceEntry", &entry("second.test", 8080, "HTTP", &second))
        .resource("ServiceEntry", &entry("routed.test", 80, "HTTP", &routed))
        .resource("ServiceEntry", &entry("origin.test", 443, "HTTPS", &origin))
        .resource("ServiceEntry", &entry("db.test", 5432, "TCP", &echo))
        .resource("ServiceEntry", &entry("down.test", 443, "TLS", &refuses))
        .resource("DestinationRule", &format!("host: origin.test\ntrafficPolicy: {{tls: {tls}}}\n"))
        .routes("alias.test", "[{route: [{destination: {host: routed.test}}], rewrite: {uri: /r/}}]")
        .start()
        .await;
    let proxy = gateway.address(3128);
    let mut table = Table::new("forward proxy");

    table.row("absolute form");
    let mut client = Http1::connect(proxy).await;
    let request = "GET http://api.test/x?y=1 HTTP/1.1\r\nhost: api.test\r\nproxy-authorization: Basic x\r\n\
                   proxy-connection: keep-alive\r\n\r\n";
    let answer = client.exchange(request).await;
    table.check("answer", &(200, "ok".to_owned()), &(answer.status, answer.text()));
    let seen = api.take().remove(0);
    table.check("target and host", &("/x?y=1", Some("api.test")), &(&*seen.target, seen.header("host")));
    for name in ["proxy-authorization", "proxy-connection"] {
        table.check(name, &None, &seen.header(name));
    }
    table.expect_log(answer.client, 200, "-", "via_upstream");
    let line = gateway.log_line_of(client.address()).await.unwrap();
    table.check("cluster", "outbound|80||api.test", line.cluster());

    table.row("another host on the same connection");
    let answer = client.exchange("GET http://second.test:8080/ HTTP/1.1\r\nhost: second.test:8080\r\n\r\n").await;
    table.check("status", &200, &answer.status);
    table.check("host", &Some("second.test:8080"), &second.take()[0].header("host"));

    table.row("a body");
    let post = "POST http://api.test/p HTTP/1.1\r\nhost: api.test\r\ncontent-length: 5\r\n\r\nhello";
    table.check("status", &200, &client.exchange(post).await.status);
    table.check("body", &b"hello"[..], &api.take()[0].body[..]);

    table.row("the target counts, not the Host header");
    let answer = client.exchange("GET http://api.test/ HTTP/1.1\r\nhost: second.test:8080\r\n\r\n").await;
    table.check("status", &200, &answer.status);
    table.check("host", &Some("api.test"), &api.take()[0].header("host"));
    table.check("nothing there", &0, &second.take().len());

    table.row("origin form");
    table.check("status", &200, &client.get("api.test", "/origin").await.status);

    table.row("upper case is the same host");
    table.check("status", &200, &client.exchange("GET http://API.Test/ HTTP/1.1\r\nhost: x\r\n\r\n").await.status);

    table.row("routes of VirtualServices come first");
    table.check(
        "status",
        &200,
        &client.exchange("GET http://alias.test/a HTTP/1.1\r\nhost: alias.test\r\n\r\n").await.status,
    );
    table.check("rewritten", "/r/a", &*routed.take()[0].target);

    table.row("TLS is begun where the DestinationRule says so");
    let answer = client.exchange("GET http://origin.test:443/ HTTP/1.1\r\nhost: origin.test:443\r\n\r\n").await;
    table.check("status", &200, &answer.status);
    let handshake = origin_server.handshake_seen().await.unwrap();
    table.check("SNI", &Some("origin.test"), &handshake.server_name.as_deref());

    table.row("CONNECT to TLS");
    let (stream, head) = ask_for_tunnel(&gateway, "api.test:443").await;
    let from = stream.local_addr().unwrap();
    table.check("status line", "HTTP/1.1 200 OK", head.lines().next().unwrap_or_default());
    for name in ["content-length", "transfer-encoding", "connection"] {
        table.check(name, &false, &head.contains(name));
    }
    let connected = Settings::new(&[&ca]).client().handshake(stream, "api.test").await.unwrap();
    let seen = server.handshake_seen().await.unwrap();
    table.check("SNI", &Some("api.test"), &seen.server_name.as_deref());
    let mut inner = connected.http1();
    table.check("answer", &200, &inner.get("api.test", "/secret").await.status);
    drop(inner);
    let line = gateway.log_line_of(from).await.unwrap();
    table.check("request", "CONNECT - HTTP/1.1", line.request());
    table.check("code", "200", line.code());
    table.check("cluster", "outbound|443||api.test", line.cluster());
    table.check("authority", "api.test:443", line.authority());
    table.check("upstream", &*secure.address().to_string(), line.upstream_host());

    table.row("CONNECT to TLS whose rule begins TLS: the client's own goes through");
    let (stream, head) = ask_for_tunnel(&gateway, "origin.test:443").await;
    table.check("status", &200, &status(&head));
    let mut inner = Settings::new(&[&ca]).client().handshake(stream, "origin.test").await.unwrap().http1();
    table.check("answer", &200, &inner.get("origin.test", "/").await.status);

    table.row("CONNECT to TCP, with what comes at once");
    let (mut stream, head) = ask_for_tunnel(&gateway, "db.test:5432").await;
    table.check("status", &200, &status(&head));
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).await.unwrap();
    table.check("echo", b"hello", &echoed);
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    table.check("the end passes through", &0, &rest.len());

    table.row("CONNECT over HTTP/2");
    let mut client = Http2::connect(proxy).await;
    let request = Request::connect("db.test:5432").body(()).unwrap();
    let (response, mut sender) = client.open(request, false).await.unwrap();
    sender.send_data(Bytes::from_static(b"ping"), true).unwrap();
    let answer = read_h2(response).await;
    table.check("answer", &(200, "ping".to_owned()), &(answer.status, answer.text()));

    table.row("HTTP/2 requests");
    table.check("status", &200, &client.get("api.test", "/two").await.status);

    for (row, authority, code, details) in [
        ("CONNECT to an unknown host", "unknown.test:443", 502, "egress_denied{unknown_host}"),
        ("CONNECT to an unknown port", "api.test:22", 502, "egress_denied{unknown_port}"),
    ] {
        table.row(row);
        let (stream, head) = ask_for_tunnel(&gateway, authority).await;
        table.check("status", &code, &status(&head));
        table.expect_log(stream.local_addr().ok(), code, "-", details);
    }
    table.row("CONNECT to what refuses");
    let (stream, head) = ask_for_tunnel(&gateway, "down.test:443").await;
    table.check("status", &503, &status(&head));
    let refused =
        "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}";
    table.expect_log(stream.local_addr().ok(), 503, "UF", refused);

    for (row, port, url, code, body, details) in [
        ("unknown host", 3128, "http://unknown.test/", 502, "no ServiceEntry has this host", "unknown_host"),
        ("unknown port", 3128, "http://api.test:81/", 502, "no ServiceEntry has this port of the host", "unknown_port"),
        ("clear text to TLS", 3128, "http://api.test:443/", 403, "this port is for TLS: use https", "clear_text"),
        (
            "host of no server",
            3129,
            "http://second.test:8080/",
            502,
            "the Gateway's server is not for this host",
            "host_not_served",
        ),
    ] {
        table.row(row);
        let mut client = Http1::connect(gateway.address(port)).await;
        let answer = client.exchange(format!("GET {url} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        table.check("answer", &(code, format!("egress denied: {body}")), &(answer.status, answer.text()));
        table.expect_log(answer.client, code, "-", &format!("egress_denied{{{details}}}"));
    }
    table.row("a server for some hosts");
    let answer =
        Http1::connect(gateway.address(3129)).await.exchange("GET http://api.test/ HTTP/1.1\r\nhost: x\r\n\r\n").await;
    table.check("status", &200, &answer.status);

    table.check_logs(&gateway).await;
    let page = gateway.metrics_page().await;
    table.row("metrics");
    for part in [
        "fairlead_egress_denied_total{reason=\"unknown_host\",source=\"127.0.0.2\",host=\"unknown.test\",port=\"443\",sni=\"\"} 1",
        "fairlead_egress_denied_total{reason=\"unknown_host\",source=\"127.0.0.2\",host=\"unknown.test\",port=\"80\",sni=\"\"} 1",
        "destination_service=\"BlackHoleCluster\"",
    ] {
        table.check(part, &true, &page.contains(part));
    }
    table.finish();
}

/// What is refused tells how to allow it; that, put into the directory, allows it.
#[tokio::test]
async fn refusals_say_what_allows_them() {
    let backend = Upstream::ok_on(&["127.0.0.3".parse().unwrap()]).await.remove(0);
    let dns = DnsServer::start().await;
    dns.set("wanted.test", &[backend.address().ip()], 60);
    let port = backend.address().port();
    let gateway = Mesh::new()
        .servers(PROXY, &[3128])
        .builder()
        .argument("--name-server")
        .argument(&dns.address().to_string())
        .start()
        .await
        .unwrap();
    let request = format!("GET http://wanted.test:{port}/ HTTP/1.1\r\nhost: wanted.test:{port}\r\n\r\n");
    let mut client = Http1::connect(gateway.address(3128)).await;
    assert_eq!(client.exchange(&request).await.status, 502);
    let suggestion = suggested(&gateway, "wanted.test").await;
    gateway.write("learned.yaml", &suggestion).await;
    eventually("the host is allowed", || async {
        let answer = Http1::connect(gateway.address(3128)).await.exchange(&request).await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(gateway.config_status().await["diagnostics"], serde_json::Value::Array(Vec::new()));
    std::fs::remove_file(gateway.config().join("learned.yaml")).unwrap();
    eventually("and refused again", || async {
        let answer = Http1::connect(gateway.address(3128)).await.exchange(&request).await;
        (answer.status == 502).then_some(())
    })
    .await;
}

/// `outboundTrafficPolicy: {mode: ALLOW_ANY}`: unknown hosts are resolved, and may stand for public addresses.
#[tokio::test]
async fn unknown_hosts_on_demand() {
    let backend = Upstream::ok_on(&["127.0.0.3".parse().unwrap()]).await.remove(0);
    let (ip, port) = (backend.address().ip(), backend.address().port());
    let dns = DnsServer::start().await;
    dns.set("any.test", &[ip], 60);
    dns.set("self.test", &["127.0.0.1".parse().unwrap()], 60);
    dns.set_absent("absent.test");
    let mesh = Mesh::new().servers(PROXY, &[3128]).mesh_config("outboundTrafficPolicy: {mode: ALLOW_ANY}\n");
    let start = async |allow: Option<&str>| {
        let mut builder = mesh.builder().argument("--name-server").argument(&dns.address().to_string());
        if let Some(range) = allow {
            builder = builder.argument("--egress-allow").argument(range);
        }
        builder.start().await.unwrap()
    };
    let mut table = Table::new("outboundTrafficPolicy ALLOW_ANY");
    let (public, local) = (start(None).await, start(Some("127.0.0.0/8")).await);
    let own = local.address(3128).port();
    let admin = local.admin().port();
    for (row, gateway, authority, code, details) in [
        ("a private address", &public, format!("any.test:{port}"), 403, "egress_denied{forbidden_address}"),
        ("a private literal", &public, format!("{ip}:{port}"), 403, "egress_denied{forbidden_address}"),
        ("metadata of the cloud", &public, "169.254.169.254:80".to_owned(), 403, "egress_denied{forbidden_address}"),
        ("allowed", &local, format!("any.test:{port}"), 200, "via_upstream"),
        ("an allowed literal", &local, format!("{ip}:{port}"), 200, "via_upstream"),
        ("no such name", &local, format!("absent.test:{port}"), 503, "dns_resolution_failure"),
        ("back to the proxy", &local, format!("self.test:{own}"), 403, "egress_denied{loop}"),
        ("to the admin port", &local, format!("self.test:{admin}"), 403, "egress_denied{loop}"),
    ] {
        table.row(format!("{row}, by request"));
        let request = format!("GET http://{authority}/ HTTP/1.1\r\nhost: {authority}\r\n\r\n");
        let answer = Http1::connect(gateway.address(3128)).await.exchange(request).await;
        table.check("status", &code, &answer.status);
        let flags = if code == 503 { "DF" } else { "-" };
        table.expect_log(answer.client, code, flags, details);
        table.check_logs(gateway).await;
        if code == 200 {
            let line = gateway.log_line_of(answer.client.unwrap()).await.unwrap();
            table.check("cluster", "PassthroughCluster", line.cluster());
            table.check("upstream", &*backend.address().to_string(), line.upstream_host());
        }
        table.row(format!("{row}, by tunnel"));
        let (stream, head) = ask_for_tunnel(gateway, &authority).await;
        table.check("status", &code, &status(&head));
        if code == 200 {
            table.check("answer", &200, &Http1::over(stream).get("any.test", "/").await.status);
        }
    }
    table.finish();
}

/// A policy that can't be enforced lets nothing out, by tunnels neither.
#[tokio::test]
async fn policies_fail_closed() {
    let (web, echo) = (Upstream::ok().await, Upstream::echo().await);
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: policy, namespace: istio-system}\n\
                  spec: {action: DENY, rules: [{to: [{operation: {hosts: [nobody.test]}}]}]}\n";
    let mesh = Mesh::new()
        .servers(PROXY, &[3128])
        .resource("ServiceEntry", &entry("web.test", 80, "HTTP", &web))
        .resource("ServiceEntry", &entry("db.test", 5432, "TCP", &echo));
    let gateway = mesh.start().await;
    let request = "GET http://web.test/ HTTP/1.1\r\nhost: web.test\r\n\r\n";
    assert_eq!(Http1::connect(gateway.address(3128)).await.exchange(request).await.status, 200);
    assert_eq!(status(&ask_for_tunnel(&gateway, "db.test:5432").await.1), 200);

    gateway.write("policy.yaml", policy).await;
    assert_eq!(Http1::connect(gateway.address(3128)).await.exchange(request).await.status, 503);
    assert_eq!(status(&ask_for_tunnel(&gateway, "db.test:5432").await.1), 503);
    assert_eq!((web.connections(), echo.connections()), (1, 1));
}

/// A load balancer in front of the gateway has an address that the gateway doesn't know to be its own.
#[tokio::test]
async fn requests_that_come_back_end() {
    let gateway_address = Arc::new(OnceLock::new());
    let seen = Arc::clone(&gateway_address);
    let balancer = Upstream::raw(move |mut stream, _| {
        let gateway = seen.get().copied();
        async move {
            let Ok(mut gateway) = TcpStream::connect(gateway.expect("a gateway that runs")).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut gateway).await;
        }
    })
    .await;
    let outside = Upstream::ok_on(&["127.0.0.3".parse().unwrap()]).await.remove(0);
    let dns = DnsServer::start().await;
    dns.set("front.test", &[balancer.address().ip()], 60);
    dns.set("outside.test", &[outside.address().ip()], 60);
    let mesh = Mesh::new().servers(PROXY, &[3128]).mesh_config("outboundTrafficPolicy: {mode: ALLOW_ANY}\n");
    let builder = mesh.builder().argument("--name-server").argument(&dns.address().to_string());
    let gateway = builder.argument("--egress-allow").argument("127.0.0.0/8").start().await.unwrap();
    gateway_address.set(gateway.address(3128)).unwrap();

    let get = async |host: &str, port: u16, lines: &str| {
        let request = format!("GET http://{host}:{port}/ HTTP/1.1\r\nhost: {host}:{port}\r\n{lines}\r\n");
        Http1::connect(gateway.address(3128)).await.exchange(request).await
    };
    let mut table = Table::new("loops");
    table.row("through a load balancer");
    table.check("status", &403, &get("front.test", balancer.address().port(), "").await.status);
    table.check("it came back once", &1, &balancer.connections());
    table.row("other proxies are no loop");
    let answer = get("outside.test", outside.address().port(), "via: 1.1 fairlead-0123456789abcdef\r\n").await;
    table.check("status", &200, &answer.status);
    let request = outside.take().remove(0);
    let lines: Vec<_> = request.headers.iter().filter(|(name, _)| name == "via").map(|(_, value)| &**value).collect();
    table.check("lines", &2, &lines.len());
    table.check("our own", &true, &lines[1].starts_with("1.1 fairlead-"));
    table.finish();
}

/// What goes through a tunnel sees no TLS of a DestinationRule and no route of a VirtualService; where those would be left
/// out, there is no tunnel.
#[tokio::test]
async fn tunnels_leave_no_rule_out() {
    let (plain, echo) = (Upstream::ok().await, Upstream::echo().await);
    let mut mesh = Mesh::new()
        .servers(PROXY, &[3128])
        .resource("ServiceEntry", &entry("db.test", 5432, "TCP", &echo))
        .resource("ServiceEntry", &entry("missing.test", 5432, "TCP", &echo))
        .resource("ServiceEntry", &entry("web.test", 80, "HTTP", &plain))
        .resource("ServiceEntry", &entry("off.test", 5432, "TCP", &echo))
        .resource("ServiceEntry", &entry("free.test", 80, "HTTP", &plain))
        .resource("DestinationRule", "host: db.test\ntrafficPolicy: {tls: {mode: SIMPLE}}\n")
        .resource(
            "DestinationRule",
            "host: missing.test\ntrafficPolicy: {tls: {mode: MUTUAL, credentialName: nowhere}}\n",
        )
        .resource("DestinationRule", "host: web.test\ntrafficPolicy: {tls: {mode: SIMPLE}}\n")
        .resource("DestinationRule", "host: off.test\ntrafficPolicy: {tls: {mode: DISABLE}}\n");
    for (host, protocol) in [("routed.test", "HTTP"), ("routed2.test", "HTTP2"), ("rpc.test", "GRPC")] {
        mesh = mesh.resource("ServiceEntry", &entry(host, 80, protocol, &plain)).routes(
            host,
            "[{match: [{headers: {allowed: {exact: 'yes'}}}], route: [{destination: {host: free.test}}]}]",
        );
    }
    mesh = mesh
        .resource("ServiceEntry", &entry("a.wild.test", 80, "HTTP", &plain))
        .routes("*.wild.test", "[{route: [{destination: {host: free.test}}]}]")
        .resource("ServiceEntry", &entry("stream.test", 5432, "TCP", &echo))
        .routes("stream.test", "[{route: [{destination: {host: free.test}}]}]");
    let gateway = mesh.start().await;
    let mut table = Table::new("tunnels and rules");
    for (authority, code, details) in [
        ("db.test:5432", 403, "egress_denied{past_tls}"),
        ("missing.test:5432", 403, "egress_denied{past_tls}"),
        ("web.test:80", 403, "egress_denied{past_tls}"),
        ("routed.test:80", 403, "egress_denied{past_routes}"),
        ("ROUTED.test:80", 403, "egress_denied{past_routes}"),
        ("routed2.test:80", 403, "egress_denied{past_routes}"),
        ("rpc.test:80", 403, "egress_denied{past_routes}"),
        ("a.wild.test:80", 403, "egress_denied{past_routes}"),
        ("off.test:5432", 200, "via_upstream"),
        ("free.test:80", 200, "via_upstream"),
        ("stream.test:5432", 200, "via_upstream"),
    ] {
        table.row(authority);
        let (stream, head) = ask_for_tunnel(&gateway, authority).await;
        table.check("status", &code, &status(&head));
        table.expect_log(stream.local_addr().ok(), code, "-", details);
    }
    table.row("over HTTP/2");
    let mut client = Http2::connect(gateway.address(3128)).await;
    for (authority, body) in [
        ("db.test:5432", "egress denied: the gateway begins TLS for this port: no tunnels"),
        ("routed.test:80", "egress denied: a VirtualService has routes for this host: no tunnels to HTTP"),
    ] {
        let (response, _) = client.open(Request::connect(authority).body(()).unwrap(), true).await.unwrap();
        let answer = read_h2(response).await;
        table.check(authority, &(403, body.to_owned()), &(answer.status, answer.text()));
    }
    table.row("what has left");
    let opened = eventually("three connections", || async {
        let opened = plain.connections() + echo.connections();
        (opened >= 3).then_some(opened)
    });
    table.check("connections", &3, &opened.await);
    table.check_logs(&gateway).await;
    table.finish();
}

/// Consistent hashing keeps the tunnels of a client at one endpoint, as its requests.
#[tokio::test]
async fn tunnels_stay_with_their_hash() {
    let servers = [Upstream::ok().await, Upstream::ok().await, Upstream::ok().await, Upstream::ok().await];
    let endpoints: Vec<String> = servers
        .iter()
        .map(|server| format!("{{address: 127.0.0.1, ports: {{main: {}}}}}", server.address().port()))
        .collect();
    let entry = format!(
        "hosts: [many.test]\nlocation: MESH_EXTERNAL\nresolution: STATIC\n\
         ports: [{{number: 80, name: main, protocol: HTTP}}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    );
    let gateway = Mesh::new()
        .servers(PROXY, &[3128])
        .resource("ServiceEntry", &entry)
        .resource(
            "DestinationRule",
            "host: many.test\ntrafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}\n",
        )
        .start()
        .await;
    let mut client = Http1::connect(gateway.address(3128)).await;
    assert_eq!(client.exchange("GET http://many.test/ HTTP/1.1\r\nhost: many.test\r\n\r\n").await.status, 200);
    for _ in 0..8 {
        assert_eq!(status(&ask_for_tunnel(&gateway, "many.test:80").await.1), 200);
    }
    eventually("all at one endpoint", || async {
        let mut connections: Vec<usize> = servers.iter().map(Upstream::connections).collect();
        connections.sort_unstable();
        (connections == [0, 0, 0, 9]).then_some(())
    })
    .await;
}

/// Names that nobody answers are the business of who asks for them.
#[tokio::test]
async fn silent_name_servers_hold_up_nobody_else() {
    let backend = Upstream::ok_on(&["127.0.0.3".parse().unwrap()]).await.remove(0);
    let port = backend.address().port();
    let dns = DnsServer::start().await;
    let dead: Vec<String> = (0..150).map(|number| format!("n{number}.dead.test")).collect();
    for name in &dead {
        dns.delay(name, 10 * PATIENCE);
    }
    dns.set("good.test", &[backend.address().ip()], 60);
    let mesh = Mesh::new().servers(PROXY, &[3128]).mesh_config("outboundTrafficPolicy: {mode: ALLOW_ANY}\n");
    let builder = mesh.builder().argument("--name-server").argument(&dns.address().to_string());
    let gateway = builder.argument("--egress-allow").argument("127.0.0.0/8").start().await.unwrap();
    let proxy = gateway.address(3128);
    let get = async |host: &str| {
        let mut client = Http1::connect(proxy).await;
        client.exchange(format!("GET http://{host}:{port}/ HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n")).await
    };
    let mut waiting = Vec::new();
    for host in &dead {
        let mut client = Http1::connect(proxy).await;
        client.send(format!("GET http://{host}:{port}/ HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n")).await;
        waiting.push(client);
    }
    let first = &dead[0];
    eventually("names are asked for", || async { (!dns.queries(first).is_empty()).then_some(()) }).await;
    assert_eq!(get("good.test").await.status, 200);
    let answer = waiting.remove(0).response().await;
    assert_eq!((answer.status, answer.text()), (503, "DNS resolution failure".to_owned()));
    assert_eq!(get("good.test").await.status, 200);
}

/// A tunnel ends with either side, and leaves nothing behind.
#[tokio::test]
async fn tunnels_end() {
    let closes = Upstream::raw(|mut stream, _| async move {
        let mut byte = [0];
        let _ = stream.read_exact(&mut byte).await;
        let _ = stream.write_all(b"bye").await;
    })
    .await;
    let echo = Upstream::echo().await;
    let gateway = Mesh::new()
        .servers(PROXY, &[3128])
        .resource("ServiceEntry", &entry("closes.test", 9000, "TCP", &closes))
        .resource("ServiceEntry", &entry("echo.test", 9000, "TCP", &echo))
        .resource(
            "DestinationRule",
            "host: echo.test\ntrafficPolicy: {connectionPool: {tcp: {maxConnections: 1, idleTimeout: 500ms}}}\n",
        )
        .start()
        .await;
    let (mut stream, _) = ask_for_tunnel(&gateway, "closes.test:9000").await;
    stream.write_all(b"x").await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"bye");

    let (stream, head) = ask_for_tunnel(&gateway, "echo.test:9000").await;
    assert_eq!(status(&head), 200);
    let (refused, head) = ask_for_tunnel(&gateway, "echo.test:9000").await;
    assert_eq!(status(&head), 503, "one connection is allowed");
    let line = gateway.log_line_of(refused.local_addr().unwrap()).await.unwrap();
    assert_eq!(line.flags(), "UO");
    let mut idle = Http1::over(stream);
    assert_eq!(idle.ended(PATIENCE).await, End::Closed, "idle for too long");
    eventually("its place is free again", || async {
        let (_, head) = ask_for_tunnel(&gateway, "echo.test:9000").await;
        (status(&head) == 200).then_some(())
    })
    .await;
    eventually("no connection is left", || async { (echo.open() <= 1).then_some(()) }).await;
}

/// A client that reads nothing holds nothing of the upstream once the tunnel's time is over, and is cut in the end.
#[tokio::test]
async fn deaf_clients_hold_no_upstream() {
    let floods = Upstream::raw(|mut stream, _| async move {
        let piece = [0; 64 * 1024];
        while stream.write_all(&piece).await.is_ok() {}
    })
    .await;
    let limits = "{tcp: {maxConnections: 1, idleTimeout: 500ms}}";
    let gateway = Mesh::new()
        .servers(PROXY, &[3128])
        .resource("ServiceEntry", &entry("floods.test", 9000, "TCP", &floods))
        .resource("DestinationRule", &format!("host: floods.test\ntrafficPolicy: {{connectionPool: {limits}}}\n"))
        .builder()
        .environment("ISTIO_META_IDLE_TIMEOUT", "1s")
        .start()
        .await
        .unwrap();
    let (stream, head) = ask_for_tunnel(&gateway, "floods.test:9000").await;
    assert_eq!(status(&head), 200);
    let from = stream.local_addr().unwrap();
    eventually("the upstream is let go", || async { (floods.open() == 0).then_some(()) }).await;
    assert_eq!(gateway.log_line_of(from).await.expect("the client is cut").code(), "200");
    drop(stream);

    let mut client = Http2::connect(gateway.address(3128)).await;
    let (response, _sender) = client.open(Request::connect("floods.test:9000").body(()).unwrap(), false).await.unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    eventually("the upstream is let go", || async { (floods.open() == 0).then_some(()) }).await;
    assert_eq!(gateway.log_line_of(client.address()).await.expect("the stream is cut").code(), "200");
}

/// A client that has ended its side and goes away takes the upstream's connection with it.
#[tokio::test]
async fn half_closed_clients_are_missed() {
    // Says nothing, so that only its own connection can tell.
    let ends = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&ends);
    let silent = Upstream::raw(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            seen.fetch_add(1, Ordering::SeqCst);
            let _ = stream.ready(tokio::io::Interest::ERROR).await;
        }
    })
    .await;
    let ended = async |count| {
        eventually("the client's end", || async { (ends.load(Ordering::SeqCst) == count).then_some(()) }).await;
    };
    let gateway = Mesh::new()
        .servers(PROXY, &[3128])
        .resource("ServiceEntry", &entry("silent.test", 9000, "TCP", &silent))
        .start()
        .await;
    let mut client = Http2::connect(gateway.address(3128)).await;
    let (response, mut sender) =
        client.open(Request::connect("silent.test:9000").body(()).unwrap(), false).await.unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    sender.send_data(Bytes::from_static(b"question"), true).unwrap();
    ended(1).await;
    let from = client.address();
    drop((client, sender));
    eventually("the upstream is let go", || async { (silent.open() == 0).then_some(()) }).await;
    assert_eq!(gateway.log_line_of(from).await.unwrap().flags(), "DC");

    let (mut stream, _) = ask_for_tunnel(&gateway, "silent.test:9000").await;
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    ended(2).await;
    assert_eq!(silent.open(), 1, "a half-closed client waits for its answer");
    Http1::over(stream).reset();
    eventually("the upstream is let go", || async { (silent.open() == 0).then_some(()) }).await;
}

/// An upstream may answer and close although the client still sends: the answer counts.
#[tokio::test]
async fn last_words_are_delivered() {
    let refuses = Upstream::raw(|mut stream, _| async move {
        // Until nothing more fits between the two.
        let _ = stream.read_u8().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let _ = stream.write_all(b"too large").await;
        // What was not read makes the close a reset.
    })
    .await;
    let resets = Upstream::raw(|mut stream, _| async move {
        let _ = stream.read_u8().await;
        let _ = stream.write_all(b"too late").await;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let gateway = Mesh::new()
        .servers(PROXY, &[3128])
        .resource("ServiceEntry", &entry("refuses.test", 9000, "TCP", &refuses))
        .resource("ServiceEntry", &entry("resets.test", 9000, "TCP", &resets))
        .start()
        .await;
    let mut table = Table::new("last words");
    for (host, length, words) in [("refuses.test", 64 << 20, "too large"), ("resets.test", 1, "too late")] {
        for round in 0..5 {
            table.row(format!("{host}, {round}"));
            let (stream, _) = ask_for_tunnel(&gateway, &format!("{host}:9000")).await;
            let from = stream.local_addr().unwrap();
            let (mut read, mut write) = stream.into_split();
            let sending = tokio::spawn(async move {
                let _ = write.write_all(&vec![b'x'; length]).await;
                write
            });
            let mut received = Vec::new();
            let _ = tokio::time::timeout(PATIENCE, read.read_to_end(&mut received)).await.expect("an end");
            table.check("answer", words, &*String::from_utf8_lossy(&received));
            sending.abort();
            drop((read, sending));
            table.check("flags", "UC", gateway.log_line_of(from).await.unwrap().flags());

            table.row(format!("{host} over HTTP/2, {round}"));
            let mut client = Http2::connect(gateway.address(3128)).await;
            let request = Request::connect(format!("{host}:9000")).body(()).unwrap();
            let (response, mut sender) = client.open(request, false).await.unwrap();
            sender.send_data(Bytes::from(vec![b'x'; length]), false).unwrap();
            let answer = read_h2(response).await;
            table.check("answer", &(200, words.to_owned()), &(answer.status, answer.text()));
        }
    }
    table.finish();
}

/// A tunnel that waits holds no buffers, whatever has gone through it.
#[tokio::test]
async fn idle_tunnels_hold_little() {
    let echo = Upstream::echo().await;
    let gateway = Mesh::new()
        .servers(PROXY, &[3128])
        .resource("ServiceEntry", &entry("echo.test", 9000, "TCP", &echo))
        .start()
        .await;
    let block = vec![1; 64 * 1024];
    let mut streams = Vec::new();
    let mut before = 0;
    for count in 0..300 {
        // What the first ones need is there for the others.
        if count == 100 {
            before = gateway.resident();
        }
        let (mut stream, _) = ask_for_tunnel(&gateway, "echo.test:9000").await;
        let (mut read, mut write) = stream.split();
        let mut echoed = vec![0; block.len()];
        let (sent, received) = tokio::join!(write.write_all(&block), read.read_exact(&mut echoed));
        sent.unwrap();
        received.unwrap();
        streams.push(stream);
    }
    let each = gateway.resident().saturating_sub(before) / 200;
    eprintln!("an idle tunnel: {each} KiB of memory");
    assert!(each < 48, "{each} KiB");
}

/// `HTTPS_PROXY=http://egress:3128 curl https://api.example.com`, for real.
#[tokio::test]
async fn curl_goes_through() {
    if !peer::available("curl") {
        return;
    }
    let ca = Authority::new("ca");
    let server = TlsServer::new(&ca.server("api.example.com"));
    let secure = Upstream::h1_tls(&server, |_| crate::harness::upstream::ok()).await;
    let plain = Upstream::ok().await;
    let ca_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca_file.path(), ca.pem()).unwrap();
    let gateway = Mesh::new()
        .servers(PROXY, &[3128])
        .resource("ServiceEntry", &entry("api.example.com", 443, "TLS", &secure))
        .resource("ServiceEntry", &entry("plain.example.com", 80, "HTTP", &plain))
        .start()
        .await;
    let curl = async |url: &str| {
        let mut command = std::process::Command::new("curl");
        let proxy = format!("http://{}", gateway.address(3128));
        command.env("HTTPS_PROXY", &proxy).env("http_proxy", &proxy).env_remove("NO_PROXY").env_remove("no_proxy");
        command.args(["-q", "--silent", "--max-time", "20", "--cacert"]).arg(ca_file.path());
        command.args(["--output", "/dev/null", "--write-out", "%{http_code} %{http_connect}"]).arg(url);
        let output = run(command).await;
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(curl("https://api.example.com/").await, "200 200");
    assert_eq!(curl("http://plain.example.com/").await, "200 000");
    assert_eq!(curl("https://else.example.com/").await, "000 502");
    assert_eq!(curl("http://else.example.com/").await, "502 000");
}
