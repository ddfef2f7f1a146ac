//! networking.md §6.2: how endpoints are resolved, and what holds while names change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::rr::RecordType;

use crate::harness::client::{Http1, Response};
use crate::harness::dns::DnsServer;
use crate::harness::eventually;
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::Upstream;

const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const THREE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const SIX: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Longer than any test.
const LONG: u32 = 3600;

/// Much longer than any test.
const HELD: Duration = Duration::from_secs(3600);

/// Answers on one port of several loopback addresses.
struct Backends(Vec<Upstream>);

impl Backends {
    async fn start(addresses: &[IpAddr]) -> Self {
        Self(Upstream::ok_on(addresses).await)
    }

    fn port(&self) -> u16 {
        self.0[0].address().port()
    }

    /// Requests since the last call, by address.
    fn take(&self) -> Vec<usize> {
        self.0.iter().map(|backend| backend.take().len()).collect()
    }
}

/// Services whose port 80 is `port` of their endpoints. A host is routed to the service of its name, in turns.
struct Services {
    mesh: Mesh,
    port: u16,
}

impl Services {
    fn new(port: u16) -> Self {
        Self { mesh: Mesh::new(), port }
    }

    /// `endpoints` is a YAML list, empty for the host itself.
    fn service(self, host: &str, resolution: &str, endpoints: &str) -> Self {
        let Self { mesh, port } = self;
        let endpoints = if endpoints.is_empty() { String::new() } else { format!("endpoints: [{endpoints}]\n") };
        let mesh = mesh
            .resource(
                "ServiceEntry",
                &format!(
                    "hosts: [{host}]\nlocation: MESH_EXTERNAL\nresolution: {resolution}\n\
                     ports: [{{number: 80, name: main, protocol: HTTP, targetPort: {port}}}]\n{endpoints}"
                ),
            )
            .resource(
                "DestinationRule",
                &format!("host: {host}\ntrafficPolicy: {{loadBalancer: {{simple: ROUND_ROBIN}}}}\n"),
            )
            .route(host, host);
        Self { mesh, port }
    }

    /// A service whose name is resolved.
    fn dns(self, host: &str) -> Self {
        self.service(host, "DNS", "")
    }

    fn builder(&self, server: &DnsServer) -> Builder {
        // The pod's own address decides about families, so that this machine's don't.
        self.mesh
            .builder()
            .argument("--name-server")
            .argument(&server.address().to_string())
            .environment("INSTANCE_IP", "127.0.0.1")
    }

    async fn start(&self, server: &DnsServer) -> Gateway {
        self.builder(server).start().await.unwrap_or_else(|failure| panic!("{failure}"))
    }
}

/// Status, or the access log's flag for one of the gateway's own: each has a body of its own.
fn outcome(response: &Response) -> &'static str {
    match (response.status, &*response.text()) {
        (200, _) => "200",
        (503, "no healthy upstream") => "503 UH",
        (503, "") => "503 NC",
        _ => "something else",
    }
}

async fn get(gateway: &Gateway, host: &str) -> Response {
    Http1::connect(gateway.address(80)).await.get(host, "/").await
}

/// Asks for `host` until its answer is `wanted`.
async fn becomes(gateway: &Gateway, host: &str, wanted: &str) -> Response {
    eventually(&format!("{host} answers {wanted}"), || async {
        let response = get(gateway, host).await;
        (outcome(&response) == wanted).then_some(response)
    })
    .await
}

/// Asks for `host` until each of these backends has answered, and no other one in the end.
async fn reaches(gateway: &Gateway, host: &str, backends: &Backends, wanted: &[bool]) {
    backends.take();
    eventually(&format!("{host} is served by {wanted:?}"), || async {
        let mut client = Http1::connect(gateway.address(80)).await;
        for _ in 0..2 * wanted.len() {
            client.get(host, "/").await;
        }
        let seen: Vec<bool> = backends.take().iter().map(|&count| count > 0).collect();
        (seen == wanted).then_some(())
    })
    .await;
}

/// Outcomes of `count` requests on one connection: the only one there was, or all of them.
async fn ask(gateway: &Gateway, host: &str, count: usize) -> (String, Option<SocketAddr>) {
    let mut client = Http1::connect(gateway.address(80)).await;
    let mut outcomes = Vec::new();
    for _ in 0..count {
        outcomes.push(outcome(&client.get(host, "/").await));
    }
    let address = client.address();
    if outcomes.iter().all(|outcome| *outcome == outcomes[0]) {
        outcomes.truncate(1);
    }
    (outcomes.join(", "), Some(address))
}

/// Record types that `name` was asked for, after its first `skip` queries. How often is not ours to say: a datagram that
/// isn't answered in time is sent again.
fn types(server: &DnsServer, name: &str, skip: usize) -> Vec<RecordType> {
    let mut types: Vec<RecordType> = server.queries(name)[skip..].iter().map(|(record, _)| *record).collect();
    types.sort();
    types.dedup();
    types
}

/// How many resolutions gave addresses, no address, nothing.
async fn resolved(gateway: &Gateway) -> [u64; 3] {
    let page = gateway.metrics_page().await;
    ["success", "no_address", "failure"].map(|result| {
        let series = format!("fairlead_dns_resolutions_total{{result=\"{result}\"}} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&*series));
        value.unwrap_or_else(|| panic!("no {series}in {page}")).parse().unwrap()
    })
}

#[tokio::test]
async fn resolutions() {
    let backends = Backends::start(&[ONE, TWO, THREE]).await;
    let port = backends.port();
    let server = DnsServer::start().await;
    server.set("multi.test", &[ONE, TWO], LONG);
    server.set("one.test", &[THREE], LONG);
    server.set_alias("alias.test", "www.alias.test", LONG);
    server.set_alias("www.alias.test", "one.test", LONG);
    server.set("no-address.test", &[], LONG);
    server.fail("servfail.test");
    let ips = "{address: 127.0.0.1}, {address: 127.0.0.2}, {address: 127.0.0.3}";
    let names = "{address: multi.test}, {address: one.test}";
    let overrides = format!(
        "{{address: multi.test, ports: {{main: {port}}}, weight: 2}}, {{address: one.test, ports: {{main: {port}}}}}"
    );
    let services = Services::new(port)
        .service("static.test", "STATIC", ips)
        .service("none.test", "NONE", "")
        .service("names.test", "DNS", names)
        .dns("multi.test")
        .service("round-robin.test", "DNS_ROUND_ROBIN", "{address: multi.test}")
        .dns("alias.test")
        .service("literals.test", "DNS", "{address: 127.0.0.2}, {address: 127.0.0.3}")
        .service("mixed.test", "DNS", "{address: 127.0.0.1}, {address: one.test}")
        .dns("nxdomain.test")
        .dns("servfail.test")
        .dns("no-address.test")
        .service("one-of-two.test", "DNS", "{address: nxdomain.test}, {address: one.test}");
    // The port of the service itself leads nowhere.
    let services = Services { port: 9, ..services }.service("overrides.test", "DNS", &overrides);
    let gateway = services.start(&server).await;
    let mut table = Table::new("networking.md §6.2, resolutions");
    let empty = [0, 0, 0];
    for (name, host, expected, counts) in [
        ("STATIC", "static.test", "200", [30, 30, 30]),
        ("NONE", "none.test", "503 UH", empty),
        ("DNS: each address has the full weight", "names.test", "200", [30, 30, 30]),
        ("DNS without endpoints: the host itself", "multi.test", "200", [45, 45, 0]),
        ("DNS_ROUND_ROBIN: the first address alone", "round-robin.test", "200", [90, 0, 0]),
        ("an alias of an alias", "alias.test", "200", [0, 0, 90]),
        ("IP literals", "literals.test", "200", [0, 45, 45]),
        ("an IP literal and a name", "mixed.test", "200", [45, 0, 45]),
        ("NXDOMAIN at first", "nxdomain.test", "503 UH", empty),
        ("SERVFAIL at first", "servfail.test", "503 UH", empty),
        ("a name without addresses", "no-address.test", "503 UH", empty),
        ("NXDOMAIN of one of two names", "one-of-two.test", "200", [0, 0, 90]),
        ("ports and weights of endpoints", "overrides.test", "200", [36, 36, 18]),
    ] {
        table.row(name);
        if expected == "200" {
            reaches(&gateway, host, &backends, &counts.map(|count| count > 0)).await;
        } else {
            becomes(&gateway, host, expected).await;
        }
        let (got, client) = ask(&gateway, host, 90).await;
        table.check("outcomes", expected, &*got);
        table.check("requests by address", &counts[..], &backends.take()[..]);
        if expected == "503 UH" {
            table.expect_log(client, 503, "UH", "no_healthy_upstream");
        }
    }
    table.row("a name of several clusters is asked for once");
    // multi.test, one.test and alias.test; nxdomain.test and no-address.test; servfail.test.
    table.check("resolutions", &[3, 2, 1], &resolved(&gateway).await);
    table.row("nobody asks for the address of an address");
    table.check("queries for 127.0.0.2", &0, &server.queries("127.0.0.2").len());
    table.row("A alone by default");
    table.check("types", &[RecordType::A][..], &types(&server, "multi.test", 0)[..]);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn changes() {
    let backends = Backends::start(&[ONE, TWO, THREE]).await;
    let server = DnsServer::start().await;
    for name in ["flip.test", "gone.test", "broken.test", "clock.test"] {
        server.set(name, &[ONE], 1);
    }
    let services =
        Services::new(backends.port()).dns("flip.test").dns("gone.test").dns("broken.test").dns("clock.test");
    let gateway = services.start(&server).await;
    let mut table = Table::new("networking.md §6.2, changes");
    for name in ["flip.test", "gone.test", "broken.test"] {
        reaches(&gateway, name, &backends, &[true, false, false]).await;
    }

    table.row("a change is followed when the TTL is over");
    server.set("flip.test", &[TWO], 1);
    reaches(&gateway, "flip.test", &backends, &[false, true, false]).await;
    table.check("outcomes", "200", &*ask(&gateway, "flip.test", 30).await.0);
    table.check("requests by address", &[0, 30, 0][..], &backends.take()[..]);

    table.row("NXDOMAIN empties");
    server.set_absent("gone.test");
    becomes(&gateway, "gone.test", "503 UH").await;
    let asked_gone = server.queries("gone.test").len();
    backends.take();
    let (got, client) = ask(&gateway, "gone.test", 30).await;
    table.check("outcomes", "503 UH", &*got);
    table.check("requests by address", &[0, 0, 0][..], &backends.take()[..]);
    table.expect_log(client, 503, "UH", "no_healthy_upstream");

    table.row("SERVFAIL keeps the addresses");
    server.fail("broken.test");
    eventually("a resolution fails", || async { (resolved(&gateway).await[2] > 0).then_some(()) }).await;
    let asked_broken = server.queries("broken.test").len();
    table.check("outcomes", "200", &*ask(&gateway, "broken.test", 30).await.0);
    table.check("requests by address", &[30, 0, 0][..], &backends.take()[..]);

    table.row("neither is asked again before dnsRefreshRate is over");
    server.asked_again("clock.test", 3).await;
    table.check("queries for gone.test", &asked_gone, &server.queries("gone.test").len());
    table.check("queries for broken.test", &asked_broken, &server.queries("broken.test").len());
    table.check("outcomes", "200", &*ask(&gateway, "broken.test", 1).await.0);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn failures_are_retried_at_the_refresh_rate() {
    let backends = Backends::start(&[ONE, TWO, THREE]).await;
    let server = DnsServer::start().await;
    server.fail("servfail.test");
    let mut services = Services::new(backends.port()).dns("nxdomain.test").dns("servfail.test");
    services.mesh = services.mesh.mesh_config("dnsRefreshRate: 1s");
    let gateway = services.start(&server).await;
    for name in ["nxdomain.test", "servfail.test"] {
        becomes(&gateway, name, "503 UH").await;
        server.asked_again(name, 1).await;
        server.set(name, &[TWO], LONG);
        reaches(&gateway, name, &backends, &[false, true, false]).await;
    }
}

#[tokio::test]
async fn warming() {
    let backends = Backends::start(&[ONE, TWO, THREE]).await;
    let server = DnsServer::start().await;
    server.set("early.test", &[ONE], LONG);
    server.set("late.test", &[TWO], LONG);
    server.delay("late.test", HELD);
    let port = backends.port();
    let services = || Services::new(port).dns("early.test");
    let gateway = services().start(&server).await;
    let mut table = Table::new("networking.md §6.2, warming");
    becomes(&gateway, "early.test", "200").await;

    table.row("the first answer is awaited");
    let endpoints = |address: &str| services().service("new.test", "DNS", &format!("{{address: {address}}}"));
    gateway.write("config.yaml", &endpoints("late.test").mesh.yaml()).await;
    eventually("late.test is asked for", || async { (!server.queries("late.test").is_empty()).then_some(()) }).await;
    let (got, client) = ask(&gateway, "new.test", 1).await;
    table.check("outcome", "503 NC", &*got);
    table.expect_log(client, 503, "NC", "cluster_not_found");

    table.row("others are served in the meantime");
    backends.take();
    table.check("outcome", "200", &*ask(&gateway, "early.test", 1).await.0);

    table.row("the first answer has come");
    server.delay("late.test", Duration::ZERO);
    let response = becomes(&gateway, "new.test", "200").await;
    table.check("requests by address", &[1, 1, 0][..], &backends.take()[..]);
    table.expect_log(response.client, 200, "-", "via_upstream");

    table.row("replaced by a name that does not exist");
    gateway.write("config.yaml", &endpoints("nope.test").mesh.yaml()).await;
    let response = becomes(&gateway, "new.test", "503 UH").await;
    table.expect_log(response.client, 503, "UH", "no_healthy_upstream");
    // Until the name server has said so, the address from before is used.
    backends.take();
    table.check("outcome", "503 UH", &*ask(&gateway, "new.test", 1).await.0);
    table.check("requests by address", &[0, 0, 0][..], &backends.take()[..]);

    table.row("known names need no second answer");
    let before = resolved(&gateway).await;
    gateway.write("config.yaml", &endpoints("early.test").mesh.yaml()).await;
    becomes(&gateway, "new.test", "200").await;
    table.check("resolutions", &before, &resolved(&gateway).await);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn families() {
    // Some containers have no IPv6 at all.
    if std::net::TcpListener::bind((SIX, 0)).is_err() {
        eprintln!("skipped: ::1 can't be bound");
        return;
    }
    let backends = Backends::start(&[ONE, SIX]).await;
    let server = DnsServer::start().await;
    server.set("both.test", &[ONE, SIX], LONG);
    server.set("v4.test", &[ONE], LONG);
    server.set("v6.test", &[SIX], LONG);
    let services = || {
        Services::new(backends.port()).dns("both.test").dns("v4.test").dns("v6.test").service(
            "round-robin.test",
            "DNS_ROUND_ROBIN",
            "{address: both.test}",
        )
    };
    let (a, aaaa) = (RecordType::A, RecordType::AAAA);
    let mut table = Table::new("networking.md §6.2, families");
    for (name, variable, value, queries, expected) in [
        // What a family doesn't reach is `None`.
        ("IPv4", "INSTANCE_IP", "127.0.0.1", &[a][..], [Some([90, 0]), Some([90, 0]), None, Some([90, 0])]),
        ("IPv6 alone", "INSTANCE_IP", "::1", &[aaaa], [Some([0, 90]), None, Some([0, 90]), Some([0, 90])]),
        (
            "dual stack",
            "ISTIO_DUAL_STACK",
            "true",
            &[a, aaaa],
            [Some([45, 45]), Some([90, 0]), Some([0, 90]), Some([0, 90])],
        ),
    ] {
        let server = &server;
        let before = server.queries("both.test").len();
        let gateway = services().builder(server).environment(variable, value).start().await;
        let gateway = gateway.unwrap_or_else(|failure| panic!("{failure}"));
        for (host, counts) in ["both.test", "v4.test", "v6.test", "round-robin.test"].into_iter().zip(expected) {
            table.row(format!("{name}: {host}"));
            match counts {
                Some(counts) => reaches(&gateway, host, &backends, &counts.map(|count| count > 0)).await,
                None => drop(becomes(&gateway, host, "503 UH").await),
            }
            let outcome = if counts.is_some() { "200" } else { "503 UH" };
            table.check("outcomes", outcome, &*ask(&gateway, host, 90).await.0);
            table.check("requests by address", &counts.unwrap_or_default()[..], &backends.take()[..]);
        }
        table.row(format!("{name}: queries"));
        table.check("types", queries, &types(server, "both.test", before)[..]);
    }
    table.finish();
}

/// More addresses than a datagram holds.
#[tokio::test]
async fn long_answers_come_over_tcp() {
    let addresses: Vec<IpAddr> = (1..=60).map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))).collect();
    let backends = Backends::start(&addresses).await;
    let server = DnsServer::start().await;
    server.set("many.test", &addresses, LONG);
    let gateway = Services::new(backends.port()).dns("many.test").start(&server).await;
    becomes(&gateway, "many.test", "200").await;
    backends.take();
    assert_eq!(ask(&gateway, "many.test", 60).await.0, "200");
    assert_eq!(backends.take(), [1; 60]);
}

#[tokio::test]
async fn any_name_server_will_do() {
    let backends = Backends::start(&[ONE]).await;
    let server = DnsServer::start().await;
    server.set("a.test", &[ONE], LONG);
    // Bound and never read, so that it is nobody else's.
    let silent = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let servers = format!("{},{}", silent.local_addr().unwrap(), server.address());
    let services = Services::new(backends.port()).dns("a.test");
    let gateway = services.mesh.builder().environment("FAIRLEAD_NAME_SERVER", &servers);
    let gateway = gateway.environment("INSTANCE_IP", "127.0.0.1").start().await;
    becomes(&gateway.unwrap_or_else(|failure| panic!("{failure}")), "a.test", "200").await;
}
