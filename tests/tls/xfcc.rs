//! `x-forwarded-client-cert`. `reference/security.md` §4.6, `reference/networking.md` §4.5, S17, S18.

use rcgen::DnType;

use super::{edge, https};
use crate::harness::client::Http1;
use crate::harness::gateway::Gateway;
use crate::harness::pki::{Authority, Identity, Leaf, hex, mutual_secret, tls_secret, workload_files};
use crate::harness::table::Table;
use crate::harness::tls_client::Settings;
use crate::harness::upstream::Upstream;

/// The element of a certificate, as Envoy writes it.
fn element(by: &str, identity: &Identity, subject: &str, names: &str) -> String {
    let mut pem = String::new();
    for char in identity.leaf().chars() {
        match char {
            ' ' => pem.push_str("%20"),
            '\n' => pem.push_str("%0A"),
            '+' => pem.push_str("%2B"),
            '/' => pem.push_str("%2F"),
            '=' => pem.push_str("%3D"),
            other => pem.push(other),
        }
    }
    format!("{by}Hash={};Cert=\"{pem}\";Subject=\"{subject}\";{names}", hex(&identity.hash()))
}

/// How a client comes.
#[derive(Debug, Clone, Copy)]
enum Transport {
    Plain,
    Simple,
    OptionalWithout,
    OptionalWith,
    Mutual,
}

use Transport::{Mutual, OptionalWith, OptionalWithout, Plain, Simple};

/// The lines of XFCC that the upstream gets for a request with these.
async fn forwarded(
    gateway: &Gateway,
    upstream: &Upstream,
    transport: Transport,
    identity: &Identity,
    lines: &[&str],
) -> Vec<String> {
    upstream.take();
    let settings = Settings::new(&[]);
    let (port, host, settings) = match transport {
        Plain => (80, "plain.test", settings),
        Simple => (443, "simple.test", settings),
        OptionalWithout => (443, "optional.test", settings),
        OptionalWith => (443, "optional.test", settings.identity(identity)),
        Mutual => (443, "mutual.test", settings.identity(identity)),
    };
    let mut client = match transport {
        Plain => Http1::connect(gateway.address(port)).await,
        _ => settings.connect(gateway.address(port), host).await.unwrap().http1(),
    };
    let lines: String = lines.iter().map(|line| format!("x-forwarded-client-cert: {line}\r\n")).collect();
    let answer = client.exchange(format!("GET / HTTP/1.1\r\nhost: {host}\r\n{lines}\r\n")).await;
    assert_eq!(answer.status, 200, "{transport:?}: {answer:?}");
    let seen = upstream.take();
    seen[0].all("x-forwarded-client-cert").into_iter().map(str::to_owned).collect()
}

async fn start(mode: &str, upstream: &Upstream, server: &Identity, ca: &Authority) -> Gateway {
    let yaml = "- port: {number: 80, name: http, protocol: HTTP}\n  hosts: [plain.test]\n".to_owned()
        + &https("simple.test", "{mode: SIMPLE, credentialName: simple}")
        + &https("optional.test", "{mode: OPTIONAL_MUTUAL, credentialName: c}")
        + &https("mutual.test", "{mode: MUTUAL, credentialName: c}");
    let mut mesh = edge(&yaml, &[80, 443], upstream.address())
        .document(&tls_secret("simple", server))
        .document(&mutual_secret("c", server, &ca.pem()));
    if !mode.is_empty() {
        mesh = mesh.mesh_config(&format!("defaultConfig:\n  gatewayTopology:\n    forwardClientCertDetails: {mode}\n"));
    }
    mesh.start().await
}

#[tokio::test]
async fn every_mode_over_every_transport() {
    let (authority, ca) = (Authority::new("servers"), Authority::new("clients"));
    let upstream = Upstream::ok().await;
    let server = authority.issue(&Leaf::server("mutual.test").uri("spiffe://td/ns/edge/sa/gateway"));
    let client =
        ca.issue(&Leaf::client("client").uri("spiffe://td/ns/a/sa/b").dns("a.client.test").dns("b.client.test"));
    let ours = element(
        "By=spiffe://td/ns/edge/sa/gateway;",
        &client,
        "CN=client",
        "URI=spiffe://td/ns/a/sa/b;DNS=a.client.test;DNS=b.client.test",
    );
    const THEIRS: &str = "By=spiffe://x;Hash=abc;URI=spiffe://y";
    const SECOND: &str = "URI=second";
    let both = format!("{THEIRS},{ours}");
    let all = format!("{THEIRS},{SECOND},{ours}");

    let mut table = Table::new("XFCC modes, security.md §4.6, S17, S18");
    // Mode, what the client sends, what comes of it with a certificate, what without.
    let none: &[&str] = &[];
    let one: &[&str] = &[THEIRS];
    let two: &[&str] = &[THEIRS, SECOND];
    type Lines<'a> = &'a [&'a str];
    let rows: &[(&str, Lines<'_>, Lines<'_>, Lines<'_>)] = &[
        ("", none, &[&ours], none),
        ("", one, &[&ours], none),
        ("UNDEFINED", one, &[&ours], none),
        ("SANITIZE", none, none, none),
        ("SANITIZE", one, none, none),
        ("SANITIZE", two, none, none),
        ("FORWARD_ONLY", none, none, none),
        ("FORWARD_ONLY", one, one, none),
        ("APPEND_FORWARD", none, &[&ours], none),
        ("APPEND_FORWARD", one, &[&both], none),
        ("APPEND_FORWARD", two, &[&all], none),
        ("SANITIZE_SET", none, &[&ours], none),
        ("SANITIZE_SET", one, &[&ours], none),
        ("SANITIZE_SET", two, &[&ours], none),
        ("ALWAYS_FORWARD_ONLY", none, none, none),
        ("ALWAYS_FORWARD_ONLY", one, one, one),
    ];
    let mut running: Option<(&str, Gateway)> = None;
    for (mode, sent, with, without) in rows {
        if running.as_ref().is_none_or(|(running, _)| running != mode) {
            running = Some((mode, start(mode, &upstream, &server, &ca).await));
        }
        let Some((_, gateway)) = &running else { continue };
        for transport in [Plain, Simple, OptionalWithout, OptionalWith, Mutual] {
            table.row(format!("{mode}, {transport:?}, {} lines", sent.len()));
            let expected = if matches!(transport, OptionalWith | Mutual) { with } else { without };
            let got = forwarded(gateway, &upstream, transport, &client, sent).await;
            table.check("lines", *expected, &got[..]);
        }
    }
    table.finish();
}

#[tokio::test]
async fn every_kind_of_name_has_its_form() {
    let (authority, ca) = (Authority::new("servers"), Authority::new("clients"));
    let upstream = Upstream::ok().await;
    let gateway = start("", &upstream, &authority.server("mutual.test"), &ca).await;
    let subject = |attributes: &[(DnType, &str)]| Leaf::client("").subject(attributes);
    let other = |oid: &[u64]| DnType::CustomDnType(oid.to_vec());
    let intermediate = ca.intermediate("below");
    // RFC 2253, with the names that OpenSSL prints.
    let rows: Vec<(&str, Identity, &str, &str)> = vec![
        ("no alternative name", ca.client("no san"), "CN=no san", "URI="),
        (
            "escapes",
            ca.issue(&subject(&[
                (DnType::CountryName, "US"),
                (DnType::StateOrProvinceName, "CA"),
                (DnType::LocalityName, "San Francisco"),
                (DnType::OrganizationName, "Acme, Inc."),
                (DnType::OrganizationalUnitName, "Dev"),
                (other(&[2, 5, 4, 11]), "Q\"x\""),
                (DnType::CommonName, "cl=ient;1"),
            ])),
            "CN=cl=ient\\;1,OU=Q\\\"x\\\",OU=Dev,O=Acme\\, Inc.,L=San Francisco,ST=CA,C=US",
            "URI=",
        ),
        ("no subject", ca.issue(&subject(&[]).uri("spiffe://td/x")), "", "URI=spiffe://td/x"),
        (
            "not ASCII, other marks",
            ca.issue(&subject(&[(DnType::OrganizationName, "A+B<C>#D\\E"), (DnType::CommonName, "Müller €")])),
            "CN=M\\C3\\BCller \\E2\\82\\AC,O=A\\+B\\<C\\>#D\\\\E",
            "URI=",
        ),
        (
            "blanks at the ends",
            ca.issue(&subject(&[(DnType::CommonName, " lead trail ")])),
            "CN=\\ lead trail\\ ",
            "URI=",
        ),
        (
            "attributes",
            ca.issue(&subject(&[
                (other(&[2, 5, 4, 9]), "Main Street"),
                (other(&[2, 5, 4, 12]), "t"),
                (other(&[0, 9, 2342, 19_200_300, 100, 1, 1]), "u1"),
                (other(&[0, 9, 2342, 19_200_300, 100, 1, 25]), "com"),
                (other(&[2, 5, 4, 5]), "42"),
                (other(&[1, 2, 840, 113_549, 1, 9, 1]), "m@example.com"),
                (DnType::CommonName, "x"),
            ])),
            "CN=x,emailAddress=m@example.com,serialNumber=42,DC=com,UID=u1,title=t,street=Main Street",
            "URI=",
        ),
        (
            "several URIs, not quoted",
            ca.issue(&Leaf::client("c").uri("spiffe://td/a").uri("https://x.test/a,b;c=d")),
            "CN=c",
            "URI=spiffe://td/a;URI=https://x.test/a,b;c=d",
        ),
        (
            "DNS names only",
            ca.issue(&Leaf::client("c").dns("*.x.test").dns("y.test")),
            "CN=c",
            "URI=;DNS=*.x.test;DNS=y.test",
        ),
        (
            "others don't show",
            ca.issue(&Leaf::client("c").email("m@x.test").ip("192.0.2.1").dns("y.test")),
            "CN=c",
            "URI=;DNS=y.test",
        ),
        ("below an intermediate", intermediate.client("inter"), "CN=inter", "URI="),
    ];
    let mut table = Table::new("the element of XFCC, security.md §4.6");
    for (what, identity, subject, names) in &rows {
        table.row(*what);
        let got = forwarded(&gateway, &upstream, Mutual, identity, &[]).await;
        // Our certificate has no URI: no `By`.
        table.check("lines", &vec![element("", identity, subject, names)], &got);
    }
    table.finish();
}

#[tokio::test]
async fn a_mesh_client_is_named_after_its_workload() {
    let mesh_ca = Authority::new("mesh");
    let upstream = Upstream::ok().await;
    let place = tempfile::tempdir().unwrap();
    let ours = mesh_ca.issue(&Leaf::workload("spiffe://cluster.local/ns/istio-system/sa/gateway"));
    workload_files(place.path(), &ours, &mesh_ca.pem());
    let mesh = edge(&https("mutual.test", "{mode: ISTIO_MUTUAL}"), &[443], upstream.address());
    let gateway = mesh.builder().argument("--identity").argument(place.path().to_str().unwrap()).start().await.unwrap();
    let client = mesh_ca.issue(&Leaf::workload("spiffe://cluster.local/ns/shop/sa/reviews"));
    let got = forwarded(&gateway, &upstream, Mutual, &client, &["URI=forged"]).await;
    let by = "By=spiffe://cluster.local/ns/istio-system/sa/gateway;";
    assert_eq!(got, [element(by, &client, "", "URI=spiffe://cluster.local/ns/shop/sa/reviews")]);
}
