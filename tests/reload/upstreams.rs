//! What is known of upstreams belongs to them: turns, ejections, connections and addresses outlive reloads.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::answer;
use crate::harness::client::{Http1, Response};
use crate::harness::dns::DnsServer;
use crate::harness::eventually;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::pki::Authority;
use crate::harness::tls_server::TlsServer;
use crate::harness::upstream::{H2Step, Received, Upstream, ok, status};

const RELOADS: usize = 100;

/// More than any test takes.
const LONG: u32 = 3600;
const HELD: Duration = Duration::from_secs(3600);

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Ejects at the first error, for longer than any test takes.
const EJECT: &str =
    "outlierDetection: {consecutive5xxErrors: 1, interval: 10s, baseEjectionTime: 300s, maxEjectionPercent: 100}";

fn h2_ok(_: &Received) -> Vec<H2Step> {
    vec![H2Step::ReadBody, H2Step::Head(200, &[], true)]
}

/// Upstreams that answer with their number, from 0.
async fn numbered(count: usize) -> Vec<Upstream> {
    let mut upstreams = Vec::new();
    for number in 0..count {
        let body = number.to_string();
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        upstreams.push(Upstream::answers(text).await);
    }
    upstreams
}

fn addresses(upstreams: &[Upstream]) -> Vec<std::net::SocketAddr> {
    upstreams.iter().map(Upstream::address).collect()
}

fn rule(host: &str, policy: &str) -> String {
    format!("host: {host}\ntrafficPolicy: {{{policy}}}\n")
}

/// A ServiceEntry whose endpoints are these names, with this port.
fn names(host: &str, list: &[(&str, u16)]) -> String {
    let list = list.iter().map(|(name, port)| format!("{{address: {name}, ports: {{main: {port}}}}}"));
    format!(
        "hosts: [{host}]\nresolution: DNS\nports: [{{number: 80, name: main, protocol: HTTP}}]\nendpoints: [{}]\n",
        list.collect::<Vec<_>>().join(", ")
    )
}

/// One connection, so that nothing but the gateway chooses.
struct Client(Http1);

impl Client {
    async fn new(gateway: &Gateway) -> Self {
        Self(Http1::connect(gateway.address(80)).await)
    }

    async fn get(&mut self, host: &str) -> Response {
        self.0.get(host, "/").await
    }

    /// The number of the upstream that answers.
    async fn number(&mut self, host: &str) -> usize {
        let response = self.get(host).await;
        assert_eq!((response.status, &response.failure), (200, &None), "{host}: {response:?}");
        response.text().parse().unwrap()
    }
}

/// Endpoints of a cluster that are ejected.
async fn ejected(gateway: &Gateway, host: &str) -> u64 {
    let series = format!("fairlead_outlier_ejections_active{{cluster_name=\"outbound|80||{host}\"}} ");
    let page = gateway.metrics_page().await;
    let value = page.lines().find_map(|line| line.strip_prefix(&*series));
    value.unwrap_or_else(|| panic!("no {series}in {page}")).parse().unwrap()
}

/// Asks until the endpoint that answers with errors is ejected; it gets no request any more.
async fn eject(gateway: &Gateway, host: &str, sick: &Upstream) {
    let mut client = Client::new(gateway).await;
    while client.get(host).await.status == 200 {}
    eventually("an endpoint is ejected", || async { (ejected(gateway, host).await == 1).then_some(()) }).await;
    sick.take();
}

/// The endpoint after `number` among those in turns.
fn after(turns: &[usize], number: usize) -> usize {
    let place = turns.iter().position(|&turn| turn == number).expect("one of them");
    turns[(place + 1) % turns.len()]
}

#[tokio::test]
async fn unrelated_reloads_lose_nothing() {
    let authority = Authority::new("upstreams");
    let identity = authority.server("up.test");
    let (tls, tls2) = (TlsServer::new(&identity), TlsServer::offering(&identity, &["h2"]));
    let turns = numbered(5).await;
    let (well, sick) = (Upstream::ok().await, Upstream::h1(|_| status(500)).await);
    let more = Upstream::ok().await;
    let pooled = [
        ("h1.test", Upstream::ok().await),
        ("h2.test", Upstream::h2(h2_ok).await),
        ("h1-tls.test", Upstream::h1_tls(&tls, |_| ok()).await),
        ("h2-tls.test", Upstream::h2_tls(&tls2, h2_ok).await),
        ("dns.test", Upstream::ok().await),
    ];
    let of = |host: &str| pooled.iter().find(|(name, _)| *name == host).unwrap().1.address();
    let server = DnsServer::start().await;
    server.set("name.test", &[LOCAL], LONG);
    let encrypted = "tls: {mode: SIMPLE, insecureSkipVerify: true}";
    let mut mesh = Mesh::new()
        .http("turns.test", &addresses(&turns))
        .resource("DestinationRule", &rule("turns.test", "loadBalancer: {simple: ROUND_ROBIN}"))
        .http("out.test", &[well.address(), sick.address()])
        .resource("DestinationRule", &rule("out.test", &format!("loadBalancer: {{simple: ROUND_ROBIN}}, {EJECT}")))
        .http("h1.test", &[of("h1.test")])
        .http2("h2.test", &[of("h2.test")])
        .http("h1-tls.test", &[of("h1-tls.test")])
        .resource("DestinationRule", &rule("h1-tls.test", encrypted))
        .http2("h2-tls.test", &[of("h2-tls.test")])
        .resource("DestinationRule", &rule("h2-tls.test", encrypted))
        .resource("ServiceEntry", &names("dns.test", &[("name.test", of("dns.test").port())]))
        .route("turns.test", "turns.test")
        .route("out.test", "out.test");
    for (host, _) in &pooled {
        mesh = mesh.route(host, host);
    }
    let gateway = mesh
        .builder()
        .argument("--name-server")
        .argument(&server.address().to_string())
        .environment("INSTANCE_IP", "127.0.0.1")
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    eject(&gateway, "out.test", &sick).await;
    let mut client = Client::new(&gateway).await;
    eventually("the name is resolved", || async {
        (Client::new(&gateway).await.get("dns.test").await.status == 200).then_some(())
    })
    .await;
    for (host, upstream) in &pooled {
        assert_eq!(client.get(host).await.status, 200, "{host}");
        assert_eq!(upstream.connections(), 1, "{host}");
    }
    assert_eq!(client.get("out.test").await.status, 200);
    let mut last = client.number("turns.test").await;
    for _ in 1..turns.len() {
        last = client.number("turns.test").await;
    }
    let queries = server.queries("name.test").len();

    for reload in 0..RELOADS {
        let mut unrelated = answer("unrelated", "unrelated.test", &format!("v{reload}"));
        if reload % 2 == 1 {
            // A cluster that comes and goes, too.
            unrelated += "---\n";
            unrelated += &Mesh::new()
                .http("more.test", &[more.address()])
                .resource("DestinationRule", &rule("more.test", "loadBalancer: {simple: RANDOM}"))
                .route("more.test", "more.test")
                .yaml()
                .split_once("---\n")
                .unwrap()
                .1
                // The names of the first configuration are taken.
                .replace("metadata: {name: ", "metadata: {name: more-");
        }
        gateway.write("unrelated.yaml", &unrelated).await;
        assert_eq!(client.get("unrelated.test").await.text(), format!("v{reload}"), "the reload was real");
        let expected = if reload % 2 == 1 { 200 } else { 404 };
        assert_eq!(client.get("more.test").await.status, expected, "reload {reload}, more.test");
        let next = client.number("turns.test").await;
        assert_eq!(next, after(&[0, 1, 2, 3, 4], last), "reload {reload}: whose turn it is");
        last = next;
        assert_eq!(client.get("out.test").await.status, 200, "reload {reload}");
        for (host, upstream) in &pooled {
            assert_eq!(client.get(host).await.status, 200, "reload {reload}, {host}");
            assert_eq!(upstream.connections(), 1, "reload {reload}, {host}: connections");
        }
    }
    assert_eq!(sick.take().len(), 0, "requests to the ejected endpoint");
    assert_eq!(ejected(&gateway, "out.test").await, 1);
    assert_eq!(well.connections(), 1, "connections of the cluster with an ejected endpoint");
    assert_eq!(turns.iter().map(Upstream::connections).collect::<Vec<_>>(), [1; 5]);
    assert_eq!(pooled.iter().map(|(_, upstream)| upstream.open()).collect::<Vec<_>>(), [1; 5]);
    assert_eq!((tls.take().len(), tls2.take().len()), (1, 1), "handshakes");
    assert_eq!(server.queries("name.test").len(), queries, "queries");
}

#[tokio::test]
async fn a_changed_cluster_keeps_what_is_known_of_its_endpoints() {
    let turns = numbered(4).await;
    let (sick, new) = (Upstream::h1(|_| status(500)).await, numbered(5).await.pop().unwrap());
    let mut endpoints = addresses(&turns);
    // Amidst the others, so that it is missed when it gets a turn.
    endpoints.insert(2, sick.address());
    let yaml = |endpoints: &[std::net::SocketAddr], more: &str| {
        let policy = format!("loadBalancer: {{simple: ROUND_ROBIN}}, {EJECT}{more}");
        Mesh::new()
            .http("up.test", endpoints)
            .resource("DestinationRule", &rule("up.test", &policy))
            .route("up.test", "up.test")
            .yaml()
    };
    let gateway = Gateway::start(yaml(&endpoints, "")).await;
    eject(&gateway, "up.test", &sick).await;
    let mut client = Client::new(&gateway).await;
    let mut last = client.number("up.test").await;

    // Settings that have nothing to do with who is next: of the cluster, and of what its endpoints are judged by.
    for seconds in 11..=30 {
        let changed = match seconds % 2 {
            0 => yaml(&endpoints, &format!(", connectionPool: {{tcp: {{connectTimeout: {seconds}s}}}}")),
            _ => yaml(&endpoints, "").replace("interval: 10s", &format!("interval: {seconds}s")),
        };
        gateway.write("config.yaml", &changed).await;
        let next = client.number("up.test").await;
        assert_eq!(next, after(&[0, 1, 2, 3], last), "change to {seconds}s: whose turn it is");
        last = next;
        assert_eq!(ejected(&gateway, "up.test").await, 1, "change to {seconds}s");
    }

    // An endpoint that comes has no part in what another one has done.
    endpoints.push(new.address());
    gateway.write("config.yaml", &yaml(&endpoints, "")).await;
    let mut counts = [0; 5];
    for _ in 0..20 {
        counts[client.number("up.test").await] += 1;
    }
    assert_eq!(counts, [4; 5], "all but the ejected one take turns");
    assert_eq!(ejected(&gateway, "up.test").await, 1);

    // One that goes takes nothing with it, either.
    endpoints.remove(0);
    gateway.write("config.yaml", &yaml(&endpoints, "")).await;
    let mut counts = [0; 5];
    for _ in 0..20 {
        counts[client.number("up.test").await] += 1;
    }
    assert_eq!(counts, [0, 5, 5, 5, 5]);
    assert_eq!(ejected(&gateway, "up.test").await, 1);
    assert_eq!(sick.take().len(), 0, "requests to the ejected endpoint");

    // It comes back only with its rule's end.
    gateway.write("config.yaml", &yaml(&endpoints, "").replace(&format!(", {EJECT}"), "")).await;
    eventually("the sick one is asked again", || async {
        Client::new(&gateway).await.get("up.test").await;
        (!sick.take().is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn other_names_are_used_when_they_are_resolved() {
    let authority = Authority::new("upstreams");
    let tls = TlsServer::new(&authority.server("up.test"));
    let (old, new, encrypted) = (
        Upstream::ok().await,
        Upstream::answers("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnew").await,
        Upstream::h1_tls(&tls, |_| ok()).await,
    );
    let server = DnsServer::start().await;
    server.set("old.test", &[LOCAL], LONG);
    for name in ["new.test", "encrypted.test"] {
        server.set(name, &[LOCAL], LONG);
        server.delay(name, HELD);
    }
    let plain = "loadBalancer: {simple: ROUND_ROBIN}";
    let yaml = |name: &str, upstream: &Upstream, policy: &str| {
        Mesh::new()
            .resource("ServiceEntry", &names("up.test", &[(name, upstream.address().port())]))
            .resource("DestinationRule", &rule("up.test", policy))
            .route("up.test", "up.test")
            .yaml()
    };
    let gateway = Gateway::builder()
        .file("config.yaml", yaml("old.test", &old, plain))
        .argument("--name-server")
        .argument(&server.address().to_string())
        .environment("INSTANCE_IP", "127.0.0.1")
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let mut client = Client::new(&gateway).await;
    let becomes = |body: &'static str| {
        let gateway = &gateway;
        async move {
            eventually(body, || async {
                let response = Client::new(gateway).await.get("up.test").await;
                (response.status == 200 && response.text() == body).then_some(())
            })
            .await;
        }
    };
    becomes("ok").await;

    // The old addresses serve until there are new ones.
    gateway.write("config.yaml", &yaml("new.test", &new, plain)).await;
    eventually("the new name is asked for", || async { (!server.queries("new.test").is_empty()).then_some(()) }).await;
    old.take();
    for _ in 0..10 {
        assert_eq!(client.get("up.test").await.text(), "ok");
    }
    assert_eq!((old.take().len(), new.connections()), (10, 0));
    server.delay("new.test", Duration::ZERO);
    becomes("new").await;
    old.take();
    for _ in 0..10 {
        assert_eq!(client.get("up.test").await.text(), "new");
    }
    assert_eq!(old.take().len(), 0);

    // But what is to be encrypted from now on goes nowhere until it can be.
    new.take();
    let policy = "tls: {mode: SIMPLE, insecureSkipVerify: true}";
    gateway.write("config.yaml", &yaml("encrypted.test", &encrypted, policy)).await;
    let response = client.get("up.test").await;
    assert_eq!((response.status, &*response.text()), (503, ""), "{response:?}");
    let log = gateway.log_line_since(0, |line| line.code() == "503" && line.flags() == "NC").await;
    assert_eq!(log.map(|line| line.details().to_owned()).as_deref(), Some("cluster_not_found"));
    server.delay("encrypted.test", Duration::ZERO);
    becomes("ok").await;
    assert_eq!((new.take().len(), old.take().len()), (0, 0), "nothing was said in the clear");
    assert_eq!(tls.take().len(), encrypted.connections());
    assert!(encrypted.connections() > 0);
}
