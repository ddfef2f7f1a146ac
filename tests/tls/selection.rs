//! Which server gets a connection. `reference/networking.md` §2.3-2.6, `reference/security.md` §4.3, §4.5, S14, S15.

use std::process::Command;
use std::time::Duration;

use http::Request;
use rustls::pki_types::CertificateDer;

use super::{edge, https, server};
use crate::harness::PATIENCE;
use crate::harness::client::{End, Http1};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::peer;
use crate::harness::pki::{Authority, Identity, Leaf, secret, tls_secret, workload_files};
use crate::harness::process::stdout;
use crate::harness::table::Table;
use crate::harness::tls_client::{OpenSsl, Refusal, Settings};
use crate::harness::upstream::{Upstream, answer};

/// Names of the servers' certificates, which tell the servers apart.
struct Certificates(Vec<(&'static str, Identity)>);

impl Certificates {
    fn new(authority: &Authority, names: &[&'static str]) -> Self {
        Self(names.iter().map(|name| (*name, authority.server(&format!("{name}.certificate.test")))).collect())
    }

    fn secrets(&self, mut mesh: Mesh) -> Mesh {
        for (name, identity) in &self.0 {
            mesh = mesh.document(&tls_secret(name, identity));
        }
        mesh
    }

    fn name(&self, certificate: &CertificateDer<'_>) -> &'static str {
        let found = self.0.iter().find(|(_, identity)| identity.der() == certificate);
        found.map_or("none of ours", |(name, _)| name)
    }
}

/// Whose certificate a client with this SNI gets, or `None` without a byte and with a reset.
async fn chosen(
    table: &mut Table,
    gateway: &Gateway,
    port: u16,
    sni: Option<&str>,
    certificates: &Certificates,
) -> Option<&'static str> {
    let settings = match sni {
        Some(_) => Settings::new(&[]),
        None => Settings::new(&[]).no_sni(),
    };
    match settings.connect(gateway.address(port), sni.unwrap_or("nothing.test")).await {
        Ok(connected) => Some(certificates.name(&connected.certificate())),
        Err(Refusal::Reset) => None,
        Err(other) => {
            table.fail(format!("neither served nor reset: {other:?}"));
            None
        }
    }
}

#[tokio::test]
async fn the_most_specific_name_wins() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let certificates =
        Certificates::new(&authority, &["exact", "wild", "deep", "upper", "spaced", "list", "below", "star", "other"]);
    let tls = |name: &str| format!("{{mode: SIMPLE, credentialName: {name}}}");
    let yaml = https("a.w.test", &tls("exact"))
        + &https("*.w.test", &tls("wild"))
        + &https("*.deep.w.test", &tls("deep"))
        + &https("Upper.test", &tls("upper"))
        + &https("*/spaced.test", &tls("spaced"))
        + "- port: {number: 443, name: list, protocol: HTTPS}\n  hosts: [one.test, two.test]\n"
        + &format!("  tls: {}\n", tls("list"))
        // A second port has a server for whatever no other wants.
        + &server(8443, "HTTPS", "*.w.test", &tls("below"))
        + &server(8443, "HTTPS", "*", &tls("star"));
    let mesh = edge(&yaml, &[443, 8443], upstream.address());
    // A second Gateway on the same port: its servers join.
    let mesh = mesh.resource(
        "Gateway",
        &format!("selector: {{istio: ingressgateway}}\nservers:\n{}", https("other.test", &tls("other"))),
    );
    let gateway = certificates.secrets(mesh).start().await;

    let mut table = Table::new("choice by SNI, networking.md §2.4, security.md §4.3, S15");
    let rows: &[(u16, Option<&str>, Option<&str>)] = &[
        (443, Some("a.w.test"), Some("exact")),
        (443, Some("b.w.test"), Some("wild")),
        (443, Some("x.a.w.test"), Some("wild")),
        (443, Some("x.y.z.w.test"), Some("wild")),
        (443, Some("x.deep.w.test"), Some("deep")),
        (443, Some("x.y.deep.w.test"), Some("deep")),
        // A wildcard needs a label; that of the level above takes the name.
        (443, Some("deep.w.test"), Some("wild")),
        (443, Some("w.test"), None),
        (443, Some("xw.test"), None),
        (443, Some("upper.test"), Some("upper")),
        (443, Some("spaced.test"), Some("spaced")),
        (443, Some("one.test"), Some("list")),
        (443, Some("two.test"), Some("list")),
        (443, Some("other.test"), Some("other")),
        (443, Some("nobody.test"), None),
        (443, None, None),
        (8443, Some("b.w.test"), Some("below")),
        (8443, Some("w.test"), Some("star")),
        (8443, Some("nobody.test"), Some("star")),
        (8443, None, Some("star")),
    ];
    for (port, sni, expected) in rows {
        table.row(format!("{port}, {sni:?}"));
        let got = chosen(&mut table, &gateway, *port, *sni, &certificates).await;
        table.check("server", expected, &got);
    }
    // Names that rustls doesn't send.
    if peer::available("openssl") {
        for (sni, served) in [("A.W.TEST", true), ("uPPer.test", true), ("a.w.test.", false), ("one.test.", false)] {
            table.row(format!("openssl, {sni}"));
            let seen = OpenSsl::get(gateway.address(443), sni, &[]).await;
            table.check(
                "certificate, alert",
                &(served, None),
                &(seen.text.contains("BEGIN CERTIFICATE"), seen.alert()),
            );
        }
    }
    if peer::available("nghttp") {
        // It sends no SNI for an address.
        for program in [&["nghttp", "-v", "-n", "-m", "5"][..], &["nghttp", "-v", "-n", "-m", "5", "-p", "3"]] {
            table.row(format!("{program:?}"));
            let mut nghttp = Command::new(program[0]);
            nghttp.args(&program[1..]).args(["--no-verify-peer", &format!("https://{}/", gateway.address(8443))]);
            let text = stdout(nghttp).await;
            table.check("answers", &5, &text.matches(":status: 200").count());
        }
    }
    table.finish();
}

#[tokio::test]
async fn what_no_server_wants_is_reset_and_logged() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let certificates = Certificates::new(&authority, &["only", "star"]);
    let yaml = https("only.test", "{mode: SIMPLE, credentialName: only}")
        + &server(8443, "HTTPS", "*", "{mode: SIMPLE, credentialName: star}");
    let gateway = certificates.secrets(edge(&yaml, &[443, 8443], upstream.address())).start().await;

    let mut table = Table::new("nothing matches, networking.md §2.4, security.md §4.3, S15");
    for sni in [Some("other.test"), None] {
        table.row(format!("SNI {sni:?}"));
        let settings = if sni.is_some() { Settings::new(&[]) } else { Settings::new(&[]).no_sni() };
        let stream = crate::harness::client::connect_from(crate::harness::client::CLIENT, gateway.address(443)).await;
        let stream = stream.unwrap();
        let client = stream.local_addr().unwrap();
        let refused = settings.client().handshake(stream, sni.unwrap_or("x.test")).await.map(|_| ());
        table.check("refusal", &Err(Refusal::Reset), &refused);
        table.expect_log(Some(client), 0, "NR", "filter_chain_not_found");
    }
    let get = b"GET / HTTP/1.1\r\nhost: only.test\r\n\r\n".to_vec();
    let garbage = vec![0x41_u8; 64];
    let rows: [(u16, &str, &[u8], End); 4] = [
        (443, "HTTP", &get, End::Reset),
        (443, "garbage", &garbage, End::Reset),
        (8443, "HTTP", &get, End::Closed),
        // A record with the alert protocol_version.
        (8443, "garbage", &garbage, End::Bytes(vec![21, 3, 1, 0, 2, 2, 70])),
    ];
    for (port, what, bytes, expected) in rows {
        table.row(format!("{what} to {port}"));
        let mut client = Http1::connect(gateway.address(port)).await;
        client.send(bytes).await;
        let mut end = client.ended(PATIENCE).await;
        // The version in an alert before any agreement is not laid down.
        if let End::Bytes(bytes) = &mut end
            && bytes.len() > 2
        {
            bytes[2] = 1;
        }
        table.check("end", &expected, &end);
        if port == 443 {
            table.expect_log(Some(client.address()), 0, "NR", "filter_chain_not_found");
        }
    }
    table.check_logs(&gateway).await;
    table.row("the server itself");
    let got = Settings::new(&[]).get(gateway.address(443), "only.test", "/").await.map(|answer| answer.status);
    table.check("status", &Ok(200), &got);
    table.finish();
}

#[tokio::test]
async fn the_first_server_of_a_name_stays() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let certificates = Certificates::new(&authority, &["first", "second", "cased", "tls"]);
    let tls = |name: &str| format!("{{mode: SIMPLE, credentialName: {name}}}");
    let older = https("dup.test", &tls("first")) + &https("case.test", &tls("first"));
    let newer = format!(
        "- port: {{number: 443, name: second, protocol: HTTPS}}\n  hosts: [extra.test, dup.test]\n  tls: {}\n",
        tls("second")
    ) + &https("CASE.test", &tls("cased"))
        + &https("apart.test", &tls("second"));
    let mesh = edge(&older, &[443], upstream.address())
        .resource("Gateway", &format!("selector: {{istio: ingressgateway}}\nservers:\n{newer}"));
    let gateway = certificates.secrets(mesh).start().await;
    let mut table = Table::new("servers of one name, networking.md §2.3, §2.4");
    let rows: &[(&str, Option<&str>)] = &[
        ("dup.test", Some("first")),
        // The server that repeats a name is skipped as a whole.
        ("extra.test", None),
        ("case.test", Some("first")),
        ("apart.test", Some("second")),
    ];
    for (sni, expected) in rows {
        table.row(*sni);
        let got = chosen(&mut table, &gateway, 443, Some(sni), &certificates).await;
        table.check("server", expected, &got);
    }
    table.finish();
}

/// Two servers of one port with their own certificates and routes, besides a broken one.
async fn three_servers(authority: &Authority, options: &[&str]) -> (Gateway, Upstream, Upstream) {
    let (first, second) =
        (Upstream::answers("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst").await, Upstream::ok().await);
    let yaml = https("a.test", "{mode: SIMPLE, credentialName: a}")
        + &https("b.test", "{mode: SIMPLE, credentialName: b}")
        + &https("broken.test", "{mode: SIMPLE, credentialName: broken}")
        + &https("absent.test", "{mode: SIMPLE, credentialName: absent}");
    let (a, b) = (authority.server("a.test"), authority.server("b.test"));
    let mesh = Mesh::new()
        .servers(&yaml, &[443])
        .http("a.up", &[first.address()])
        .http("b.up", &[second.address()])
        .route("a.test", "a.up")
        .route("b.test", "b.up")
        .document(&tls_secret("a", &a))
        .document(&tls_secret("b", &b))
        .document(&secret("broken", &[("tls.crt", b.chain.as_bytes()), ("tls.key", a.key.as_bytes())]));
    let mut builder = mesh.builder();
    for option in options {
        builder = builder.argument(option);
    }
    (builder.start().await.unwrap(), first, second)
}

#[tokio::test]
async fn a_server_sees_its_own_hosts_only() {
    let authority = Authority::new("servers");
    let mut table = Table::new("one port, several servers, security.md §4.3, S14");
    for (options, misdirected) in [(&[][..], 404), (&["--strict-sni"], 421)] {
        let (gateway, _first, _second) = three_servers(&authority, options).await;
        let address = gateway.address(443);
        let rows = [
            ("a.test", "a.test", 200),
            ("b.test", "b.test", 200),
            ("a.test", "b.test", misdirected),
            ("b.test", "a.test", misdirected),
        ];
        for (sni, host, status) in rows {
            table.row(format!("HTTP/1.1, SNI {sni}, Host {host}, {options:?}"));
            let connected = Settings::new(&[&authority]).connect(address, sni).await.unwrap();
            let mut http = connected.http1();
            let answer = http.get(host, "/").await;
            table.check("status", &status, &answer.status);
            table.row(format!("HTTP/2, SNI {sni}, Host {host}, {options:?}"));
            let connected = Settings::new(&[&authority]).alpn(&["h2"]).connect(address, sni).await.unwrap();
            let mut http = connected.http2().await;
            let request = Request::get(format!("https://{host}/")).body(()).unwrap();
            let answer = http.exchange(request, &[]).await;
            table.check("status", &status, &answer.status);
            // The same connection serves its own host, before and after.
            let request = Request::get(format!("https://{sni}/")).body(()).unwrap();
            table.check("status of its own host", &200, &http.exchange(request, &[]).await.status);
        }
        for sni in ["broken.test", "absent.test"] {
            table.row(format!("{sni}, {options:?}"));
            let refused = Settings::new(&[]).connect(address, sni).await.map(|_| ());
            table.check("refusal", &Err(Refusal::Reset), &refused);
        }
        table.row(format!("a host that no server has, {options:?}"));
        let mut http = Settings::new(&[&authority]).connect(address, "a.test").await.unwrap().http1();
        table.check("status", &404, &http.get("nobody.test", "/").await.status);
    }
    table.finish();
}

#[tokio::test]
async fn protocols_are_agreed_on_by_the_gateways_order() {
    let authority = Authority::new("servers");
    let upstream = Upstream::h1(|_| answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")).await;
    let echo = Upstream::echo().await;
    let place = tempfile::tempdir().unwrap();
    let workload = authority.issue(&Leaf::workload("spiffe://cluster.local/ns/istio-system/sa/gateway"));
    workload_files(place.path(), &workload, &authority.pem());
    let yaml = https("https.test", "{mode: SIMPLE, credentialName: c}")
        + &https("mesh.test", "{mode: ISTIO_MUTUAL}")
        + &server(9443, "TLS", "tls.test", "{mode: SIMPLE, credentialName: c}")
        + &server(9443, "TLS", "mesh-tls.test", "{mode: ISTIO_MUTUAL}");
    let mesh = edge(&yaml, &[443, 9443], upstream.address())
        .service("echo.test", "TCP", &[echo.address()])
        .resource(
            "VirtualService",
            "hosts: ['*']\ngateways: [gateway]\ntcp:\n- route: [{destination: {host: echo.test}}]\n",
        )
        .document(&tls_secret("c", &authority.server("https.test")));
    let gateway = mesh.builder().argument("--identity").argument(place.path().to_str().unwrap()).start().await.unwrap();

    let mut table = Table::new("ALPN, security.md §4.5");
    let rows: &[(u16, &str, &[&str], Option<&str>)] = &[
        (443, "https.test", &["h2", "http/1.1"], Some("h2")),
        (443, "https.test", &["http/1.1", "h2"], Some("h2")),
        (443, "https.test", &["http/1.1"], Some("http/1.1")),
        (443, "https.test", &["http/1.0"], None),
        (443, "https.test", &["istio", "foo"], None),
        (443, "https.test", &["foo", "http/1.1"], Some("http/1.1")),
        (443, "https.test", &[], None),
        (443, "mesh.test", &["istio-peer-exchange", "h2"], Some("h2")),
        (443, "mesh.test", &["istio-peer-exchange", "istio"], None),
        (9443, "tls.test", &["h2"], Some("h2")),
        (9443, "tls.test", &["istio-peer-exchange", "http/1.1"], Some("http/1.1")),
        (9443, "tls.test", &["foo"], None),
        (9443, "mesh-tls.test", &["h2", "istio-peer-exchange"], Some("istio-peer-exchange")),
        (9443, "mesh-tls.test", &["http/1.1"], Some("http/1.1")),
    ];
    let client = authority.client("client");
    for (port, name, offered, expected) in rows {
        table.row(format!("{name}, {offered:?}"));
        let settings = Settings::new(&[]).alpn(offered).identity(&client);
        let connected = match settings.connect(gateway.address(*port), name).await {
            Ok(connected) => connected,
            Err(refusal) => {
                table.fail(format!("{refusal:?}"));
                continue;
            }
        };
        table.check("protocol", expected, &connected.alpn().as_deref());
        if *port == 9443 {
            let mut tcp = connected.http1();
            tcp.send("anything").await;
            table.check("echo", &Ok(b"anything".to_vec()), &tcp.read_exactly(8).await);
        } else if expected.is_none_or(|name| name == "h2") {
            // Without a protocol the first bytes decide.
            let mut http = connected.http2().await;
            let request = Request::get(format!("https://{name}/")).body(()).unwrap();
            table.check("status", &200, &http.exchange(request, &[]).await.status);
        } else {
            table.check("status", &200, &connected.http1().get(name, "/").await.status);
        }
    }
    table.row("HTTP/1.1 without a protocol");
    let connected = Settings::new(&[]).connect(gateway.address(443), "https.test").await.unwrap();
    table.check("status", &200, &connected.http1().get("https.test", "/").await.status);
    table.finish();
}

#[tokio::test]
async fn a_handshake_that_stalls_holds_nobody_up_and_ends() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let yaml = https("a.test", "{mode: SIMPLE, credentialName: c}");
    let mesh = edge(&yaml, &[443], upstream.address()).document(&tls_secret("c", &authority.server("a.test")));
    let gateway = mesh.start().await;
    let address = gateway.address(443);
    // Three that stall: without a byte, in the ClientHello, and after it.
    let mut silent = Http1::connect(address).await;
    let mut half = Http1::connect(address).await;
    half.send([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await;
    let begin = std::time::Instant::now();
    for _ in 0..20 {
        let answer = Settings::new(&[&authority]).get(address, "a.test", "/").await.unwrap();
        assert_eq!(answer.status, 200);
    }
    // 15 s, PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT.
    let (silent_end, half_end) =
        tokio::join!(silent.ended(Duration::from_secs(25)), half.ended(Duration::from_secs(25)));
    let passed = begin.elapsed();
    assert_eq!((silent_end, half_end), (End::Closed, End::Reset));
    assert!((Duration::from_secs(14)..Duration::from_secs(20)).contains(&passed), "{passed:?}");
}
