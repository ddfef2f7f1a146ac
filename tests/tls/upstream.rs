//! TLS towards upstreams. `reference/networking.md` §5.7, §9, `reference/security.md` §4.8, S21, S22.

use std::fmt::Write;

use rustls::{NamedGroup, ProtocolVersion};

use crate::harness::client::{Failure, Http1};
use crate::harness::gateway::{Gateway, write_into};
use crate::harness::mesh::Mesh;
use crate::harness::pki::{Authority, Identity, Leaf, Validity, mutual_secret, secret, tls_secret, workload_files};
use crate::harness::table::Table;
use crate::harness::tls_server::TlsServer;
use crate::harness::upstream::{H2Step, Received, Upstream, ok};
use crate::harness::{PATIENCE, eventually};

/// A destination per row, reached below `/<name>/` of every host.
struct Destinations {
    mesh: Mesh,
    routes: String,
}

impl Destinations {
    fn new() -> Self {
        Self { mesh: Mesh::new(), routes: String::new() }
    }

    /// A service with this upstream and this YAML as its `trafficPolicy.tls`; none if empty.
    fn add(&mut self, name: &str, upstream: &Upstream, tls: &str) {
        self.add_service(name, "HTTP", upstream, tls);
    }

    fn add_service(&mut self, name: &str, protocol: &str, upstream: &Upstream, tls: &str) {
        let mut mesh = std::mem::replace(&mut self.mesh, Mesh::new());
        mesh = mesh.service(&format!("{name}.up"), protocol, &[upstream.address()]);
        if !tls.is_empty() {
            mesh = mesh.resource("DestinationRule", &format!("host: {name}.up\ntrafficPolicy: {{tls: {tls}}}\n"));
        }
        self.mesh = mesh;
        self.route(name, "");
    }

    fn route(&mut self, name: &str, more: &str) {
        let _ = writeln!(
            self.routes,
            "- match: [{{uri: {{prefix: /{name}/}}}}]\n  route: [{{destination: {{host: {name}.up}}}}]\n  \
             retries: {{attempts: 0}}{more}"
        );
    }

    fn mesh(self) -> Mesh {
        self.mesh.routes("*", &self.routes)
    }
}

async fn get(gateway: &Gateway, host: &str, name: &str) -> crate::harness::client::Response {
    Http1::connect(gateway.address(80)).await.get(host, &format!("/{name}/")).await
}

const FAILED: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
const VERIFY: &str = "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:";

/// What the gateway says about a certificate that it refuses.
fn unverified(reason: &str) -> String {
    format!("{VERIFY}{reason}:TLS_error_end")
}

const NO_ISSUER: &str =
    "_X509_verify_cert:_certificate_verification_error_at_depth_0:_unable_to_get_local_issuer_certificate";
const HAS_EXPIRED: &str = "_X509_verify_cert:_certificate_verification_error_at_depth_0:_certificate_has_expired";

#[tokio::test]
async fn names_authorities_and_revocation() {
    let (ca, other) = (Authority::new("upstreams"), Authority::new("other upstreams"));
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let identity = ca.issue(&Leaf::server("up.test").dns("alt.up.test"));
    let server = TlsServer::new(&identity);
    let upstream = Upstream::h1_tls(&server, |_| ok()).await;
    let made = |identity: &Identity| TlsServer::new(identity);
    let expired = Upstream::h1_tls(&made(&ca.issue(&Leaf::server("up.test").valid(Validity::Past))), |_| ok()).await;
    let self_signed = Leaf::server("up.test").self_signed();
    let alone = Upstream::h1_tls(&made(&self_signed), |_| ok()).await;
    let by_ip = Upstream::h1_tls(&made(&ca.issue(&Leaf::server("up.test").ip("10.9.8.7"))), |_| ok()).await;
    let wild = Upstream::h1_tls(&made(&ca.issue(&Leaf::server("*.up.test"))), |_| ok()).await;
    let spiffe =
        Upstream::h1_tls(&made(&ca.issue(&Leaf::workload("spiffe://cluster.local/ns/foo/sa/httpbin"))), |_| ok()).await;
    let revoked_identity = ca.server("up.test");
    let revoked = Upstream::h1_tls(&made(&revoked_identity), |_| ok()).await;
    let plain = Upstream::raw(|mut stream, _| async move {
        let _ = tokio::io::AsyncReadExt::read_u8(&mut stream).await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;

    let ca_file = file("ca.pem", ca.pem());
    let bundle = file("bundle.pem", format!("{}{}", other.pem(), ca.pem()));
    let other_file = file("other.pem", other.pem());
    let own_file = file("own.pem", self_signed.chain.clone());
    let crl = file("crl.pem", ca.crl(&[revoked_identity.serial()], Validity::Current));
    let stale = file("stale.pem", ca.crl(&[], Validity::Past));

    let trust = format!("caCertificates: {ca_file}");
    // Name, upstream, `tls`, Host, what comes of it: the SNI, or the reason in the log.
    type Row<'a> = (&'a str, &'a Upstream, String, &'a str, Result<Option<&'a str>, String>);
    let sans = |names: &str| unverified(&format!("_SAN_matcher,_certificate_SANs_are_[{names}]"));
    let auto = |expected: &str, names: &str| {
        unverified(&format!("_verify_SAN_list,_expected_SANs:_[{expected}],_certificate_SANs:_[{names}]"))
    };
    let both = "up.test,_alt.up.test";
    let rows: Vec<Row<'_>> = vec![
        ("auto", &upstream, format!("{{mode: SIMPLE, {trust}}}"), "up.test", Ok(Some("up.test"))),
        ("auto-port", &upstream, format!("{{mode: SIMPLE, {trust}}}"), "up.test:8443", Ok(Some("up.test"))),
        ("auto-case", &upstream, format!("{{mode: SIMPLE, {trust}}}"), "UP.test", Ok(Some("up.test"))),
        ("auto-alt", &upstream, format!("{{mode: SIMPLE, {trust}}}"), "alt.up.test", Ok(Some("alt.up.test"))),
        ("auto-wrong", &upstream, format!("{{mode: SIMPLE, {trust}}}"), "wrong.test", Err(auto("wrong.test", both))),
        ("auto-ip-wrong", &upstream, format!("{{mode: SIMPLE, {trust}}}"), "10.9.8.7", Err(auto("10.9.8.7", both))),
        ("auto-ip", &by_ip, format!("{{mode: SIMPLE, {trust}}}"), "10.9.8.7", Ok(None)),
        ("auto-wild", &wild, format!("{{mode: SIMPLE, {trust}}}"), "x.up.test", Ok(Some("x.up.test"))),
        (
            "wild-depth",
            &wild,
            format!("{{mode: SIMPLE, {trust}}}"),
            "y.x.up.test",
            Err(auto("y.x.up.test", "*.up.test")),
        ),
        ("skip", &upstream, "{mode: SIMPLE, insecureSkipVerify: true}".to_owned(), "any.test", Ok(Some("any.test"))),
        ("skip-self", &alone, "{mode: SIMPLE, insecureSkipVerify: true}".to_owned(), "any.test", Ok(Some("any.test"))),
        // S22: with an explicit name the chain alone is checked.
        ("sni", &upstream, format!("{{mode: SIMPLE, sni: fixed.test, {trust}}}"), "any.test", Ok(Some("fixed.test"))),
        (
            "sni-sans",
            &upstream,
            format!("{{mode: SIMPLE, sni: fixed.test, subjectAltNames: [zzz.test], {trust}}}"),
            "up.test",
            Err(sans(both)),
        ),
        (
            "sans",
            &upstream,
            format!("{{mode: SIMPLE, subjectAltNames: [zzz.test, alt.up.test], {trust}}}"),
            "any.test",
            Ok(Some("any.test")),
        ),
        (
            "sans-bad",
            &upstream,
            format!("{{mode: SIMPLE, subjectAltNames: [zzz.test], {trust}}}"),
            "up.test",
            Err(sans(both)),
        ),
        (
            "sans-uri",
            &spiffe,
            format!("{{mode: SIMPLE, subjectAltNames: ['spiffe://cluster.local/ns/foo/sa/httpbin'], {trust}}}"),
            "any.test",
            Ok(Some("any.test")),
        ),
        (
            "sans-uri-bad",
            &spiffe,
            format!("{{mode: SIMPLE, subjectAltNames: ['spiffe://cluster.local/ns/foo/sa/other'], {trust}}}"),
            "any.test",
            Err(sans("spiffe://cluster.local/ns/foo/sa/httpbin")),
        ),
        (
            "sans-ip",
            &by_ip,
            format!("{{mode: SIMPLE, subjectAltNames: [10.9.8.7], {trust}}}"),
            "any.test",
            Ok(Some("any.test")),
        ),
        ("bundle", &upstream, format!("{{mode: SIMPLE, caCertificates: {bundle}}}"), "up.test", Ok(Some("up.test"))),
        (
            "bad-ca",
            &upstream,
            format!("{{mode: SIMPLE, caCertificates: {other_file}}}"),
            "up.test",
            Err(unverified(NO_ISSUER)),
        ),
        // S21: system roots don't know it, its own certificate as CA does.
        ("system", &upstream, "{mode: SIMPLE}".to_owned(), "up.test", Err(unverified(NO_ISSUER))),
        ("self-own", &alone, format!("{{mode: SIMPLE, caCertificates: {own_file}}}"), "up.test", Ok(Some("up.test"))),
        ("expired", &expired, format!("{{mode: SIMPLE, {trust}}}"), "up.test", Err(unverified(HAS_EXPIRED))),
        ("crl-good", &upstream, format!("{{mode: SIMPLE, {trust}, caCrl: {crl}}}"), "up.test", Ok(Some("up.test"))),
        (
            "plaintext",
            &plain,
            format!("{{mode: SIMPLE, {trust}}}"),
            "up.test",
            Err("TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end".to_owned()),
        ),
        ("secret", &upstream, "{mode: SIMPLE, credentialName: upstream}".to_owned(), "up.test", Ok(Some("up.test"))),
        ("secret-apart", &upstream, "{mode: SIMPLE, credentialName: apart}".to_owned(), "up.test", Ok(Some("up.test"))),
    ];
    // These fail too, for reasons that the reference doesn't give in words.
    let failing: Vec<(&str, &Upstream, String)> = vec![
        ("crl-revoked", &revoked, format!("{{mode: SIMPLE, {trust}, caCrl: {crl}}}")),
        ("crl-stale", &upstream, format!("{{mode: SIMPLE, {trust}, caCrl: {stale}}}")),
        ("self", &alone, format!("{{mode: SIMPLE, {trust}}}")),
        ("no-file", &upstream, "{mode: SIMPLE, caCertificates: /nowhere/ca.pem}".to_owned()),
        ("no-ca-in-secret", &upstream, "{mode: SIMPLE, credentialName: pair}".to_owned()),
        ("no-secret", &upstream, "{mode: SIMPLE, credentialName: absent}".to_owned()),
    ];
    let mut destinations = Destinations::new();
    for (name, upstream, tls, _, _) in &rows {
        destinations.add(name, upstream, tls);
    }
    for (name, upstream, tls) in &failing {
        destinations.add(name, upstream, tls);
    }
    let mesh = destinations
        .mesh()
        .document(&secret("upstream", &[("ca.crt", ca.pem().as_bytes())]))
        .document(&secret("apart-cacert", &[("cacert", ca.pem().as_bytes())]))
        .document(&tls_secret("pair", &identity));
    let gateway = mesh.start().await;

    let mut table = Table::new("TLS towards upstreams, networking.md §5.7, S21, S22");
    for (name, _, _, host, expected) in &rows {
        table.row(*name);
        server.take();
        let answer = get(&gateway, host, name).await;
        match expected {
            Ok(sni) => {
                table.check("status", &200, &answer.status);
                // A refused handshake of the row before may be noted late.
                let seen: Vec<_> = server.take().into_iter().filter(|seen| seen.failure.is_none()).collect();
                if let [seen] = &seen[..] {
                    table.check("SNI", sni, &seen.server_name.as_deref());
                    table.check("ALPN", &Vec::<String>::new(), &seen.offered);
                }
            }
            Err(reason) => {
                table.check("status", &503, &answer.status);
                table.check("body", FAILED, &*answer.text());
                let details = format!("upstream_reset_before_response_started{{remote_connection_failure|{reason}}}");
                table.expect_log(answer.client, 503, "UF", &details);
            }
        }
    }
    for (name, _, _) in &failing {
        table.row(*name);
        let answer = get(&gateway, "up.test", name).await;
        table.check("status, body", &(503, FAILED), &(answer.status, &*answer.text()));
        table.expect_log(answer.client, 503, "UF", "*");
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn the_name_follows_the_request() {
    let ca = Authority::new("upstreams");
    let place = tempfile::tempdir().unwrap();
    let ca_file = place.path().join("ca.pem");
    std::fs::write(&ca_file, ca.pem()).unwrap();
    let server = TlsServer::new(&ca.issue(&Leaf::server("up.test").dns("other.test").dns("se.test")));
    let upstream = Upstream::h1_tls(&server, |_| ok()).await;
    let echo_server = TlsServer::new(&ca.server("tcp.test"));
    let echo = Upstream::echo_tls(&echo_server).await;
    let mut destinations = Destinations::new();
    let trust = format!("caCertificates: {}", ca_file.display());
    destinations.add("auto", &upstream, &format!("{{mode: SIMPLE, {trust}}}"));
    destinations.add("rewritten", &upstream, &format!("{{mode: SIMPLE, {trust}}}"));
    destinations.routes = destinations.routes.replace(
        "host: rewritten.up}}]\n  retries",
        "host: rewritten.up}}]\n  rewrite: {authority: 'other.test:99'}\n  retries",
    );
    let tcp_servers = "- port: {number: 80, name: http, protocol: HTTP}\n  hosts: ['*']\n\
                       - port: {number: 9000, name: tcp, protocol: TCP}\n  hosts: ['*']\n\
                       - port: {number: 9001, name: sni, protocol: TCP}\n  hosts: ['*']\n";
    let gateway = destinations
        .mesh()
        .servers(tcp_servers, &[80, 9000, 9001])
        .service("tcp.up", "TCP", &[echo.address()])
        .service("tcp-sni.up", "TCP", &[echo.address()])
        .resource("DestinationRule", &format!("host: tcp.up\ntrafficPolicy: {{tls: {{mode: SIMPLE, {trust}}}}}\n"))
        .resource(
            "DestinationRule",
            &format!("host: tcp-sni.up\ntrafficPolicy: {{tls: {{mode: SIMPLE, sni: tcp.test, {trust}}}}}\n"),
        )
        .resource(
            "VirtualService",
            "hosts: ['*']\ngateways: [gateway]\ntcp:\n- match: [{port: 9000}]\n  \
             route: [{destination: {host: tcp.up}}]\n- match: [{port: 9001}]\n  \
             route: [{destination: {host: tcp-sni.up}}]\n",
        )
        .start()
        .await;
    // One client connection, several hosts: each has a connection of its own name, which is then kept.
    let mut client = Http1::connect(gateway.address(80)).await;
    for host in ["up.test", "other.test", "up.test", "other.test", "up.test"] {
        assert_eq!(client.get(host, "/auto/").await.status, 200);
    }
    let mut names: Vec<_> = server.take().into_iter().map(|seen| seen.server_name.unwrap_or_default()).collect();
    names.sort();
    assert_eq!(names, ["other.test", "up.test"]);
    let answer = client.get("up.test", "/rewritten/").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(server.take()[0].server_name.as_deref(), Some("other.test"));

    // Raw TCP has no host: no name, and none is checked.
    for (port, name) in [(9000, None), (9001, Some("tcp.test"))] {
        let mut tcp = Http1::connect(gateway.address(port)).await;
        tcp.send("hello").await;
        assert_eq!(tcp.read_exactly(5).await, Ok::<_, Failure>(b"hello".to_vec()), "{port}");
        let seen = echo_server.handshake_seen().await.unwrap();
        assert_eq!((seen.server_name.as_deref(), &seen.offered[..]), (name, &[][..]));
        tcp.half_close().await;
        assert_eq!(tcp.ended(PATIENCE).await, crate::harness::client::End::Closed);
    }
}

fn h2_ok(_: &Received) -> Vec<H2Step> {
    vec![H2Step::Head(200, &[], false), H2Step::Data(b"ok", true)]
}

#[tokio::test]
async fn certificates_of_ours_and_protocols() {
    let (ca, clients) = (Authority::new("upstreams"), Authority::new("gateways"));
    let place = tempfile::tempdir().unwrap();
    let ca_file = place.path().join("ca.pem");
    std::fs::write(&ca_file, ca.pem()).unwrap();
    let ours = clients.client("the gateway");
    let (chain, key) = ours.write(place.path(), "ours");
    let up = ca.server("up.test");
    let mutual = TlsServer::mutual(&up, &clients, &[]);
    let mutual_upstream = Upstream::h1_tls(&mutual, |_| ok()).await;
    let h2 = TlsServer::offering(&up, &["h2"]);
    let h2_upstream = Upstream::h2_tls(&h2, h2_ok).await;
    let no_alpn = TlsServer::new(&up);
    let no_alpn_upstream = Upstream::h1_tls(&no_alpn, |_| ok()).await;
    let old = TlsServer::tls12(&up);
    let old_upstream = Upstream::h1_tls(&old, |_| ok()).await;

    let trust = format!("caCertificates: {}", ca_file.display());
    let mut destinations = Destinations::new();
    let files = format!("{{mode: MUTUAL, clientCertificate: {chain}, privateKey: {key}, {trust}}}");
    destinations.add("files", &mutual_upstream, &files);
    destinations.add("secret", &mutual_upstream, "{mode: MUTUAL, credentialName: c}");
    destinations.add("none", &mutual_upstream, &format!("{{mode: SIMPLE, {trust}}}"));
    destinations.add("absent", &mutual_upstream, "{mode: MUTUAL, credentialName: absent}");
    destinations.add_service("h2", "HTTP2", &h2_upstream, &format!("{{mode: SIMPLE, {trust}}}"));
    destinations.add_service("h2-on-h1", "HTTP2", &no_alpn_upstream, &format!("{{mode: SIMPLE, {trust}}}"));
    destinations.add("old", &old_upstream, &format!("{{mode: SIMPLE, {trust}}}"));
    let closes = Upstream::raw(|mut stream, _| async move {
        let _ = tokio::io::AsyncReadExt::read_u8(&mut stream).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
    })
    .await;
    destinations.add("to-tls", &closes, "");
    let gateway = destinations.mesh().document(&mutual_secret("c", &ours, &ca.pem())).start().await;

    let mut table = Table::new("client certificates and protocols, networking.md §5.7, §9");
    for name in ["files", "secret"] {
        table.row(name);
        table.check("status", &200, &get(&gateway, "up.test", name).await.status);
        let seen = mutual.handshake_seen().await.unwrap_or_default();
        table.check("certificate", &Some(ours.der().to_vec()), &seen.client);
    }
    table.row("a certificate is wanted, none configured");
    let answer = get(&gateway, "up.test", "none").await;
    const TERMINATED: &str =
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
    table.check("status, body", &(503, TERMINATED), &(answer.status, &*answer.text()));
    table.expect_log(answer.client, 503, "UC", "upstream_reset_before_response_started{connection_termination}");
    table.row("the credential is missing");
    let answer = get(&gateway, "up.test", "absent").await;
    table.check("status, body", &(503, FAILED), &(answer.status, &*answer.text()));
    table.expect_log(answer.client, 503, "UF", "*");

    table.row("HTTP/2 by ALPN");
    let answer = get(&gateway, "up.test", "h2").await;
    table.check("status", &200, &answer.status);
    let seen = h2.handshake_seen().await.unwrap_or_default();
    table.check("offered", &vec!["h2".to_owned()], &seen.offered);
    table.check(
        "version, group",
        &(Some(ProtocolVersion::TLSv1_3), Some(NamedGroup::X25519MLKEM768)),
        &(seen.version, seen.group),
    );
    table.row("an HTTP/2 cluster whose server doesn't");
    let answer = get(&gateway, "up.test", "h2-on-h1").await;
    const PROTOCOL: &str = "upstream connect error or disconnect/reset before headers. reset reason: protocol error";
    table.check("status, body", &(502, PROTOCOL), &(answer.status, &*answer.text()));
    table.expect_log(answer.client, 502, "UPE", "upstream_reset_before_response_started{protocol_error}");
    table.row("TLS 1.2");
    table.check("status", &200, &get(&gateway, "up.test", "old").await.status);
    let seen = old.handshake_seen().await.unwrap_or_default();
    table.check("version", &Some(ProtocolVersion::TLSv1_2), &seen.version);
    table.row("plaintext to a TLS port");
    let answer = get(&gateway, "up.test", "to-tls").await;
    table.check("status, body", &(503, TERMINATED), &(answer.status, &*answer.text()));
    table.expect_log(answer.client, 503, "UC", "upstream_reset_before_response_started{connection_termination}");
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn the_mesh_is_spoken_to_as_one_of_it() {
    let root = Authority::new("mesh");
    let place = tempfile::tempdir().unwrap();
    let gateway_identity = Leaf::workload("spiffe://cluster.local/ns/istio-system/sa/gateway");
    let ours = root.issue(&gateway_identity);
    workload_files(place.path(), &ours, &root.pem());
    let theirs = root.issue(&Leaf::workload("spiffe://cluster.local/ns/shop/sa/reviews"));
    let h1 = TlsServer::mutual(&theirs, &root, &["istio", "istio-http/1.1", "http/1.1"]);
    let upstream = Upstream::h1_tls(&h1, |_| ok()).await;
    let h2 = TlsServer::mutual(&theirs, &root, &["istio-h2", "istio", "h2"]);
    let h2_upstream = Upstream::h2_tls(&h2, h2_ok).await;
    let stranger = Authority::new("another mesh");
    let foreign = TlsServer::new(&stranger.issue(&Leaf::workload("spiffe://cluster.local/ns/shop/sa/reviews")));
    let foreign_upstream = Upstream::h1_tls(&foreign, |_| ok()).await;
    let mut destinations = Destinations::new();
    destinations.add("plain", &upstream, "{mode: ISTIO_MUTUAL}");
    destinations.add("named", &upstream, "{mode: ISTIO_MUTUAL, sni: reviews.test}");
    let right = "{mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/reviews']}";
    destinations.add("right", &upstream, right);
    let wrong = "{mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/ratings']}";
    destinations.add("wrong", &upstream, wrong);
    destinations.add("foreign", &foreign_upstream, "{mode: ISTIO_MUTUAL}");
    destinations.add_service("h2", "HTTP2", &h2_upstream, "{mode: ISTIO_MUTUAL}");
    let gateway =
        destinations.mesh().builder().argument("--identity").argument(place.path().to_str().unwrap()).start().await;
    let gateway = gateway.unwrap();

    let mut table = Table::new("ISTIO_MUTUAL, security.md §4.8");
    for (name, sni) in
        [("plain", "outbound_.80_._.plain.up"), ("named", "reviews.test"), ("right", "outbound_.80_._.right.up")]
    {
        table.row(name);
        table.check("status", &200, &get(&gateway, "any.test", name).await.status);
        let seen = h1.handshake_seen().await.unwrap_or_default();
        table.check("SNI", &Some(sni), &seen.server_name.as_deref());
        table.check(
            "ALPN",
            &vec!["istio-http/1.1", "istio", "http/1.1"],
            &seen.offered.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        table.check("certificate", &Some(ours.der().to_vec()), &seen.client);
    }
    table.row("h2");
    table.check("status", &200, &get(&gateway, "any.test", "h2").await.status);
    let seen = h2.handshake_seen().await.unwrap_or_default();
    table.check("ALPN", &vec!["istio-h2", "istio", "h2"], &seen.offered.iter().map(String::as_str).collect::<Vec<_>>());
    for name in ["wrong", "foreign"] {
        table.row(name);
        let answer = get(&gateway, "any.test", name).await;
        table.check("status, body", &(503, FAILED), &(answer.status, &*answer.text()));
        table.expect_log(answer.client, 503, "UF", "*");
    }
    table.check_logs(&gateway).await;

    // A new certificate is shown on the next connection; the old one goes on.
    table.row("rotation");
    let mut open = Http1::connect(gateway.address(80)).await;
    table.check("status", &200, &open.get("any.test", "/plain/").await.status);
    let new = root.issue(&gateway_identity);
    workload_files(place.path(), &new, &root.pem());
    h1.take();
    let shown = eventually("the new certificate", || async {
        // A new name makes a new connection.
        let _ = Http1::connect(gateway.address(80)).await.get("any.test", "/right/").await;
        h1.take().into_iter().find_map(|seen| seen.client.filter(|client| client[..] == new.der()[..]))
    });
    table.check("certificate", &new.der().to_vec(), &shown.await);
    table.check("status", &200, &open.get("any.test", "/plain/").await.status);
    table.finish();
}

#[tokio::test]
async fn handshakes_are_resumed_and_credentials_rotate() {
    let (ca, next_ca) = (Authority::new("upstreams"), Authority::new("next upstreams"));
    let clients = Authority::new("gateways");
    // One connection a request, so that every request shakes hands.
    const CLOSE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    let closing = |_: &Received| crate::harness::upstream::answer(CLOSE);
    let server = TlsServer::mutual(&ca.server("up.test"), &clients, &[]);
    let upstream = Upstream::h1_tls(&server, closing).await;
    let next = TlsServer::mutual(&next_ca.server("up.test"), &clients, &[]);
    let next_upstream = Upstream::h1_tls(&next, closing).await;
    let first = clients.client("first");
    let mut destinations = Destinations::new();
    destinations.add("a", &upstream, "{mode: MUTUAL, credentialName: c}");
    destinations.add("b", &next_upstream, "{mode: MUTUAL, credentialName: c}");
    let mesh = destinations.mesh();
    let gateway = mesh.builder().file("secret.yaml", mutual_secret("c", &first, &ca.pem())).start().await.unwrap();
    let statuses = async |name: &str, count: usize| {
        let mut statuses = Vec::new();
        for _ in 0..count {
            statuses.push(get(&gateway, "up.test", name).await.status);
        }
        statuses
    };
    assert_eq!(statuses("a", 10).await, [200; 10]);
    let seen = server.take();
    let resumed = seen.iter().filter(|handshake| handshake.resumed).count();
    eprintln!("{resumed} of {} handshakes with an upstream resumed", seen.len());
    assert_eq!((seen.len(), resumed), (10, 9));
    assert_eq!(statuses("b", 1).await, [503]);

    // Another certificate is shown at once: no resumption carries the old one on.
    let second = clients.client("second");
    gateway.write("secret.yaml", &mutual_secret("c", &second, &ca.pem())).await;
    assert_eq!(statuses("a", 1).await, [200]);
    assert_eq!(server.take()[0].client.as_deref(), Some(&second.der()[..]));
    // Another CA counts at once.
    gateway.write("secret.yaml", &mutual_secret("c", &second, &next_ca.pem())).await;
    assert_eq!((statuses("a", 1).await, statuses("b", 1).await), (vec![503], vec![200]));
    // A broken one doesn't.
    let before = gateway.generation().await;
    write_into(&gateway.config(), "secret.yaml", &mutual_secret("c", &second, "junk"));
    gateway.reloaded_since(before).await;
    assert_eq!(statuses("b", 2).await, [200; 2]);
}

#[tokio::test]
async fn mirrors_and_retries_speak_tls_too() {
    let ca = Authority::new("upstreams");
    let server = TlsServer::new(&ca.server("up.test"));
    let (main, mirror) = (Upstream::h1_tls(&server, |_| ok()).await, Upstream::h1_tls(&server, |_| ok()).await);
    let tls = "{mode: SIMPLE, sni: up.test, credentialName: ca}";
    let rule = |host: &str| format!("host: {host}\ntrafficPolicy: {{tls: {tls}}}\n");
    let refused = "{mode: SIMPLE, sni: up.test}";
    let gateway = Mesh::new()
        .http("main.up", &[main.address()])
        .http("mirror.up", &[mirror.address()])
        .http("bad.up", &[main.address()])
        .resource("DestinationRule", &rule("main.up"))
        .resource("DestinationRule", &rule("mirror.up"))
        .resource("DestinationRule", &format!("host: bad.up\ntrafficPolicy: {{tls: {refused}}}\n"))
        .routes(
            "up.test",
            "[{match: [{uri: {prefix: /bad}}], route: [{destination: {host: bad.up}}]}, \
             {route: [{destination: {host: main.up}}], mirrors: [{destination: {host: mirror.up}}]}]",
        )
        .document(&secret("ca", &[("ca.crt", ca.pem().as_bytes())]))
        .start()
        .await;
    let mut client = Http1::connect(gateway.address(80)).await;
    assert_eq!(client.get("up.test", "/").await.status, 200);
    assert!(mirror.received().await.is_some());
    server.take();
    // A failed handshake counts as a failed connect: it is tried again, and then told.
    let answer = client.get("up.test", "/bad").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.text(),
        "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: remote \
         connection failure"
    );
    let mut tries = 0;
    eventually("two more tries", || {
        tries += server.take().len();
        let done = (tries >= 3).then_some(());
        async move { done }
    })
    .await;
    assert_eq!(tries, 3);
}

/// A connection from the time before TLS is not for requests that must be encrypted, not even while the secret is missing.
#[tokio::test]
async fn connections_in_plaintext_are_not_used_for_a_cluster_that_waits_for_its_secret() {
    for http2 in [false, true] {
        let upstream = if http2 { Upstream::h2(h2_ok).await } else { Upstream::ok().await };
        let mesh = if http2 {
            Mesh::new().http2("be.test", &[upstream.address()])
        } else {
            Mesh::new().http("be.test", &[upstream.address()])
        };
        let mesh = mesh.route("any.test", "be.test");
        // One worker, so that there is one pool.
        let gateway = mesh.builder().workers(1).start().await.unwrap();
        let mut client = Http1::connect(gateway.address(80)).await;
        assert_eq!(client.get("any.test", "/").await.status, 200);
        upstream.take();
        let generation = gateway.generation().await;
        let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: tls, namespace: istio-system}\n\
                    spec: {host: be.test, trafficPolicy: {tls: {mode: SIMPLE, credentialName: absent}}}\n";
        gateway.write("tls.yaml", rule).await;
        gateway.reloaded_since(generation).await;
        for _ in 0..3 {
            assert_eq!(client.get("any.test", "/").await.status, 503);
        }
        assert!(upstream.take().is_empty());
    }
}
