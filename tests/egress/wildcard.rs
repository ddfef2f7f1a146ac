//! ServiceEntries for wildcard hosts with resolution DYNAMIC_DNS at the gateway: the host that a request names is the one
//! that is resolved, connected to and verified.
//!
//! Beyond Istio, whose gateways don't resolve such hosts (networking.md §6.2); the rules are those that README states.

use std::net::IpAddr;
use std::time::Duration;

use crate::harness::client::Http1;
use crate::harness::dns::DnsServer;
use crate::harness::eventually;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::pki::Authority;
use crate::harness::table::Table;
use crate::harness::tls_client::{Refusal, Settings};
use crate::harness::tls_server::TlsServer;
use crate::harness::upstream::{Upstream, ok};

const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 3));
const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 4));

/// `*.wild.test` with this port, whose endpoints have `target`.
pub(super) fn dynamic(number: u16, protocol: &str, target: u16) -> String {
    format!(
        "hosts: ['*.wild.test']\nlocation: MESH_EXTERNAL\nresolution: DYNAMIC_DNS\n\
         ports: [{{number: {number}, name: main, protocol: {protocol}, targetPort: {target}}}]\n"
    )
}

pub(super) const TO_WILD: &str = "[{route: [{destination: {host: '*.wild.test'}}]}]";

/// With names from `dns`, on loopback addresses.
pub(super) async fn start(mesh: &Mesh, dns: &DnsServer) -> Gateway {
    let builder = mesh.builder().argument("--name-server").argument(&dns.address().to_string());
    let started = builder.argument("--egress-allow").argument("127.0.0.0/8").start().await;
    started.unwrap_or_else(|failure| panic!("{failure}"))
}

#[tokio::test]
async fn requests_name_the_host() {
    let backends = Upstream::ok_on(&[ONE, TWO]).await;
    let port = backends[0].address().port();
    let dns = DnsServer::start().await;
    dns.set("a.wild.test", &[ONE], 3600);
    dns.set("deep.b.wild.test", &[TWO], 3600);
    dns.set("same.wild.test", &[ONE], 3600);
    dns.set_absent("absent.wild.test");
    dns.fail("fails.wild.test");
    dns.set("copy.wild.test", &[TWO], 3600);
    let original = Upstream::ok().await;
    let mesh = Mesh::new()
        .resource("ServiceEntry", &dynamic(80, "HTTP", port))
        .service("original.test", "HTTP", &[original.address()])
        .routes("*.wild.test", TO_WILD)
        .routes(
            "copy.wild.test",
            "[{route: [{destination: {host: original.test, port: {number: 80}}}], mirror: {host: '*.wild.test'}}]",
        );
    let gateway = start(&mesh, &dns).await;
    let get = async |host: &str| Http1::connect(gateway.address(80)).await.get(host, "/").await;
    let mut table = Table::new("DYNAMIC_DNS, HTTP");

    for (host, backend) in [("a.wild.test", 0), ("deep.b.wild.test", 1), ("A.Wild.Test", 0)] {
        table.row(host);
        let answer = get(host).await;
        table.check("status", &200, &answer.status);
        let seen = backends[backend].take();
        table.check("host", &Some(host), &seen.first().and_then(|seen| seen.header("host")));
        let line = gateway.log_line_of(answer.client.unwrap()).await.unwrap();
        table.check("upstream", &*backends[backend].address().to_string(), line.upstream_host());
        table.check("cluster", "outbound|80||*.wild.test", line.cluster());
    }
    table.row("a name is asked for once as long as its answer holds");
    table.check("queries", &1, &dns.queries("a.wild.test").len());

    table.row("connections are kept for their host alone");
    let before = backends[0].connections();
    for _ in 0..3 {
        table.check("status", &200, &get("same.wild.test").await.status);
    }
    table.check("connections", &1, &(backends[0].connections() - before));

    table.row("copies go to the host, too");
    table.check("status", &200, &get("copy.wild.test").await.status);
    table.check("original", &1, &original.take().len());
    let copy = eventually("the copy", || async { backends[1].take().pop() }).await;
    table.check("host", &Some("copy.wild.test"), &copy.header("host"));

    table.row("a name that doesn't exist");
    let answer = get("absent.wild.test").await;
    table.check("answer", &(503, "DNS resolution failure".to_owned()), &(answer.status, answer.text()));
    table.expect_log(answer.client, 503, "DF", "dns_resolution_failure");
    table.row("a name server that fails");
    let answer = get("fails.wild.test").await;
    table.check("status", &503, &answer.status);
    table.expect_log(answer.client, 503, "DF", "dns_resolution_failure");

    table.row("the name of the wildcard itself");
    let answer = get("wild.test").await;
    table.check("status", &404, &answer.status);
    table.expect_log(answer.client, 404, "NR", "route_not_found");
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn certificates_are_checked_for_the_host() {
    let ca = Authority::new("ca");
    let server = TlsServer::new(&ca.server("a.wild.test"));
    let upstream = Upstream::h1_tls(&server, |_| ok()).await;
    let dns = DnsServer::start().await;
    for name in ["a.wild.test", "other.wild.test"] {
        dns.set(name, &[upstream.address().ip()], 3600);
    }
    let ca_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca_file.path(), ca.pem()).unwrap();
    let tls = format!("{{mode: SIMPLE, caCertificates: {:?}}}", ca_file.path());
    let mesh = Mesh::new()
        .resource("ServiceEntry", &dynamic(443, "TLS", upstream.address().port()))
        .resource("DestinationRule", &format!("host: '*.wild.test'\ntrafficPolicy: {{tls: {tls}}}\n"))
        .routes("*.wild.test", "[{route: [{destination: {host: '*.wild.test', port: {number: 443}}}]}]");
    let gateway = start(&mesh, &dns).await;
    let answer = Http1::connect(gateway.address(80)).await.get("a.wild.test", "/").await;
    assert_eq!(answer.status, 200);
    assert_eq!(server.handshake_seen().await.unwrap().server_name.as_deref(), Some("a.wild.test"));
    // At the same address, and not who it is taken for; a pooled connection is not used for it either.
    let answer = Http1::connect(gateway.address(80)).await.get("other.wild.test", "/").await;
    assert_eq!(answer.status, 503);
    let line = gateway.log_line_of(answer.client.unwrap()).await.unwrap();
    assert!(line.flags().contains("UF"), "{}", line.text);
    assert!(line.transport_failure().contains("_expected_SANs:_[other.wild.test]"), "{}", line.text);
    assert_eq!(upstream.take().len(), 1);
}

#[tokio::test]
async fn tls_passes_through_by_its_server_name() {
    let ca = Authority::new("ca");
    let server = TlsServer::new(&ca.server("*.wild.test"));
    let upstream = Upstream::h1_tls(&server, |_| ok()).await;
    let dns = DnsServer::start().await;
    dns.set("a.wild.test", &[upstream.address().ip()], 3600);
    dns.set("evil.wild.test", &["10.0.0.1".parse().unwrap()], 3600);
    dns.set_absent("absent.wild.test");
    let servers =
        "- port: {number: 443, name: tls, protocol: TLS}\n  hosts: ['*.wild.test']\n  tls: {mode: PASSTHROUGH}\n";
    let tls = "hosts: ['*.wild.test']\ngateways: [gateway]\n\
               tls: [{match: [{sniHosts: ['*.wild.test']}], route: [{destination: {host: '*.wild.test'}}]}]\n";
    let mesh = Mesh::new()
        .servers(servers, &[443])
        .resource("ServiceEntry", &dynamic(443, "TLS", upstream.address().port()))
        .resource("VirtualService", tls);
    let gateway = start(&mesh, &dns).await;
    let client = Settings::new(&[&ca]);
    assert_eq!(client.get(gateway.address(443), "a.wild.test", "/").await.unwrap().status, 200);
    for (name, reason) in [("evil.wild.test", "forbidden_address"), ("absent.wild.test", "")] {
        let refused = client.connect(gateway.address(443), name).await.map(|_| ());
        assert_eq!(refused, Err(Refusal::Reset), "{name}");
        if !reason.is_empty() {
            gateway.says(&format!("reason={reason}")).await;
        }
    }
    let line = gateway.log_line_since(0, |line| line.text.contains("absent.wild.test")).await.unwrap();
    assert_eq!(line.flags(), "DF");
}

/// Connections that are there are used as long as they are good, as with logical DNS; new ones follow the name.
#[tokio::test]
async fn a_name_that_moves_is_followed() {
    let backends = Upstream::ok_on(&[ONE, TWO]).await;
    let dns = DnsServer::start().await;
    dns.set("moves.wild.test", &[ONE], 1);
    let rule = "host: '*.wild.test'\ntrafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}\n";
    let mesh = Mesh::new()
        .resource("ServiceEntry", &dynamic(80, "HTTP", backends[0].address().port()))
        .resource("DestinationRule", rule)
        .routes("*.wild.test", TO_WILD);
    let gateway = start(&mesh, &dns).await;
    let get = async || Http1::connect(gateway.address(80)).await.get("moves.wild.test", "/").await.status;
    assert_eq!(get().await, 200);
    assert_eq!(backends[0].take().len(), 1);
    dns.set("moves.wild.test", &[TWO], 1);
    eventually("the name is followed", || async {
        assert_eq!(get().await, 200);
        (!backends[1].take().is_empty()).then_some(())
    })
    .await;
    // The name server falls silent, and what it said last still holds.
    dns.fail("moves.wild.test");
    let asked = dns.queries("moves.wild.test").len();
    eventually("the name is asked for again", || async {
        assert_eq!(get().await, 200);
        (dns.queries("moves.wild.test").len() > asked).then_some(())
    })
    .await;
    assert_eq!(get().await, 200);
    dns.set_absent("moves.wild.test");
    eventually("the name is gone", || async { (get().await == 503).then_some(()) }).await;
}

/// A host that can't be reached at its first address is reached at another one.
#[tokio::test]
async fn all_addresses_are_tried() {
    let backend = Upstream::ok_on(&[TWO]).await.remove(0);
    let dns = DnsServer::start().await;
    // Nobody listens on the first.
    dns.set("a.wild.test", &[ONE, TWO], 3600);
    let mesh = Mesh::new()
        .resource("ServiceEntry", &dynamic(80, "HTTP", backend.address().port()))
        .routes("*.wild.test", TO_WILD);
    let gateway = start(&mesh, &dns).await;
    let answer = Http1::connect(gateway.address(80)).await.get("a.wild.test", "/").await;
    assert_eq!(answer.status, 200);
    let line = gateway.log_line_of(answer.client.unwrap()).await.unwrap();
    assert_eq!(line.upstream_host(), backend.address().to_string());
}

/// Old answers serve while a name server is silent, and nothing waits for it longer than it may.
#[tokio::test]
async fn a_silent_name_server_holds_nobody_up() {
    let backend = Upstream::ok_on(&[ONE]).await.remove(0);
    let dns = DnsServer::start().await;
    dns.set("slow.wild.test", &[ONE], 3600);
    dns.delay("slow.wild.test", Duration::from_secs(3600));
    let rule = "host: '*.wild.test'\ntrafficPolicy: {connectionPool: {tcp: {connectTimeout: 500ms}}}\n";
    let mesh = Mesh::new()
        .resource("ServiceEntry", &dynamic(80, "HTTP", backend.address().port()))
        .resource("DestinationRule", rule)
        .routes("*.wild.test", "[{route: [{destination: {host: '*.wild.test'}}], retries: {attempts: 0}}]");
    let gateway = start(&mesh, &dns).await;
    let answer = Http1::connect(gateway.address(80)).await.get("slow.wild.test", "/").await;
    assert_eq!(answer.status, 503);
    let line = gateway.log_line_of(answer.client.unwrap()).await.unwrap();
    assert_eq!(line.details(), "upstream_reset_before_response_started{connection_timeout}");
    dns.delay("slow.wild.test", Duration::ZERO);
    eventually("the name is resolved", || async {
        let answer = Http1::connect(gateway.address(80)).await.get("slow.wild.test", "/").await;
        (answer.status == 200).then_some(())
    })
    .await;
}
