//! Every mode with every kind of client certificate. `reference/networking.md` §2.6, `reference/security.md` §4.1, §4.2.

use rcgen::ExtendedKeyUsagePurpose;

use super::{alert, edge, https};
use crate::harness::gateway::Gateway;
use crate::harness::peer;
use crate::harness::pki::{
    Authority, Identity, Key, Leaf, Validity, hex, mutual_secret, secret, tls_secret, workload_files,
};
use crate::harness::process::stdout;
use crate::harness::table::Table;
use crate::harness::tls_client::{OpenSsl, Refusal, Settings, VERSIONS, Version};
use crate::harness::upstream::Upstream;

/// What has to become of a client.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    /// Its request is served, and the upstream gets this many XFCC elements.
    Served(usize),
    /// The same alert with both versions.
    Alert(u8),
    /// No certificate where one is needed: the alert depends on the version.
    Missing,
    /// Not a pinned one. Envoy's alert is 114 with both versions; with TLS 1.3 it's rustls that sends ours, and it has
    /// no such alert.
    NotPinned,
}

impl Verdict {
    fn alert(self, version: Version) -> Option<u8> {
        match (self, version) {
            (Self::Served(_), _) => None,
            (Self::Alert(alert), _) => Some(alert),
            (Self::Missing, Version::Tls12) => Some(alert::HANDSHAKE_FAILURE),
            (Self::Missing, Version::Tls13) => Some(alert::CERTIFICATE_REQUIRED),
            (Self::NotPinned, Version::Tls12) => Some(alert::BAD_CERTIFICATE_HASH_VALUE),
            (Self::NotPinned, Version::Tls13) => Some(alert::CERTIFICATE_UNKNOWN),
        }
    }
}

use Verdict::{Alert, Missing, NotPinned, Served};

async fn judge(
    table: &mut Table,
    gateway: &Gateway,
    upstream: &Upstream,
    authority: &Authority,
    rows: &[(&str, &str, Option<&Identity>, Verdict)],
) {
    for (host, what, identity, verdict) in rows {
        for version in VERSIONS {
            table.row(format!("{host}, {what}, {version:?}"));
            let mut settings = Settings::new(&[authority]).version(version);
            if let Some(identity) = identity {
                settings = settings.identity(identity);
            }
            upstream.take();
            match verdict.alert(version) {
                Some(alert) => {
                    let got = settings.refusal(gateway.address(443), host).await;
                    table.check("refusal", &Err(Refusal::Alert(alert)), &got);
                    table.check("requests at the upstream", &0, &upstream.take().len());
                }
                None => {
                    let got = settings.get(gateway.address(443), host, "/").await.map(|answer| answer.status);
                    table.check("status", &Ok(200), &got);
                    let seen = upstream.take();
                    let elements = seen.iter().flat_map(|request| request.all("x-forwarded-client-cert")).count();
                    if let Served(expected) = verdict {
                        table.check("XFCC elements", expected, &elements);
                    }
                }
            }
        }
    }
}

/// Clients of all kinds.
struct Clients {
    ca: Authority,
    other: Authority,
    intermediate: Authority,
    good: Identity,
    rsa: Identity,
    below: Identity,
    foreign: Identity,
    self_signed: Identity,
    expired: Identity,
    early: Identity,
    server_only: Identity,
    any_usage: Identity,
    no_usage: Identity,
    alone: Identity,
    named: Identity,
}

impl Clients {
    fn new() -> Self {
        let ca = Authority::new("clients");
        let other = Authority::new("somebody else's clients");
        let intermediate = ca.intermediate("clients, one below");
        let leaf = Leaf::client("client");
        let below = intermediate.issue(&leaf);
        Self {
            good: ca.issue(&leaf),
            rsa: ca.issue(&leaf.clone().key(Key::Rsa)),
            foreign: other.issue(&leaf),
            self_signed: leaf.self_signed(),
            expired: ca.issue(&leaf.clone().valid(Validity::Past)),
            early: ca.issue(&leaf.clone().valid(Validity::Future)),
            server_only: ca.issue(&leaf.clone().usages(&[ExtendedKeyUsagePurpose::ServerAuth])),
            any_usage: ca.issue(&leaf.clone().usages(&[ExtendedKeyUsagePurpose::Any])),
            no_usage: ca.issue(&leaf.clone().usages(&[])),
            named: ca.issue(
                &leaf
                    .clone()
                    .dns("other.client.test")
                    .dns("good.client.test")
                    .uri("spiffe://td/ns/a/sa/b")
                    .email("me@client.test")
                    .ip("192.0.2.7"),
            ),
            alone: below.alone(),
            below,
            ca,
            other,
            intermediate,
        }
    }
}

#[tokio::test]
async fn every_mode_judges_every_certificate() {
    let clients = Clients::new();
    let Clients { ca, good, .. } = &clients;
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let place = tempfile::tempdir().unwrap();
    let workload = ca.issue(&Leaf::workload("spiffe://cluster.local/ns/istio-system/sa/gateway"));
    workload_files(place.path(), &workload, &ca.pem());

    let two = format!("{}{}", clients.other.pem(), ca.pem());
    let below_only = clients.intermediate.pem();
    let servers: &[(&str, &str, &str, &str)] = &[
        ("simple.test", "SIMPLE", "", ""),
        ("mutual.test", "MUTUAL", "", &ca.pem()),
        ("optional.test", "OPTIONAL_MUTUAL", "", &ca.pem()),
        ("skip.test", "MUTUAL", ", insecureSkipVerify: true", &ca.pem()),
        ("skip-optional.test", "OPTIONAL_MUTUAL", ", insecureSkipVerify: true", &ca.pem()),
        ("two.test", "MUTUAL", "", &two),
        ("below.test", "MUTUAL", "", &below_only),
    ];
    let mut yaml = String::new();
    let mut secrets = Vec::new();
    for (host, mode, more, ca) in servers {
        yaml += &https(host, &format!("{{mode: {mode}, credentialName: {host}{more}}}"));
        let identity = authority.server(host);
        secrets.push(if ca.is_empty() { tls_secret(host, &identity) } else { mutual_secret(host, &identity, ca) });
    }
    yaml += &https("istio.test", "{mode: ISTIO_MUTUAL}");
    let mut mesh = edge(&yaml, &[443], upstream.address());
    for secret in &secrets {
        mesh = mesh.document(secret);
    }
    let identity = place.path().to_str().unwrap();
    let gateway = mesh.builder().argument("--identity").argument(identity).start().await.unwrap();

    let mut table = Table::new("modes and client certificates, security.md §4.1, §4.2");
    let kinds: &[(&str, Option<&Identity>, Verdict)] = &[
        ("none", None, Missing),
        ("good", Some(good), Served(1)),
        ("RSA", Some(&clients.rsa), Served(1)),
        ("below an intermediate", Some(&clients.below), Served(1)),
        ("no extended key usage", Some(&clients.no_usage), Served(1)),
        ("other CA", Some(&clients.foreign), Alert(alert::UNKNOWN_CA)),
        ("self-signed", Some(&clients.self_signed), Alert(alert::UNKNOWN_CA)),
        ("missing intermediate", Some(&clients.alone), Alert(alert::UNKNOWN_CA)),
        ("expired", Some(&clients.expired), Alert(alert::CERTIFICATE_EXPIRED)),
        ("not yet valid", Some(&clients.early), Alert(alert::CERTIFICATE_EXPIRED)),
        ("for servers only", Some(&clients.server_only), Alert(alert::UNSUPPORTED_CERTIFICATE)),
        ("any extended key usage", Some(&clients.any_usage), Alert(alert::UNSUPPORTED_CERTIFICATE)),
    ];
    for (what, identity, verdict) in kinds {
        let without = match verdict {
            Missing => Served(0),
            verdict => *verdict,
        };
        // Nothing is asked for, so that nothing is sent.
        judge(&mut table, &gateway, &upstream, &authority, &[("simple.test", what, *identity, Served(0))]).await;
        judge(&mut table, &gateway, &upstream, &authority, &[("mutual.test", what, *identity, *verdict)]).await;
        judge(&mut table, &gateway, &upstream, &authority, &[("optional.test", what, *identity, without)]).await;
        let anything = if identity.is_some() { Served(1) } else { *verdict };
        judge(&mut table, &gateway, &upstream, &authority, &[("skip.test", what, *identity, anything)]).await;
        let anything = Served(usize::from(identity.is_some()));
        judge(&mut table, &gateway, &upstream, &authority, &[("skip-optional.test", what, *identity, anything)]).await;
    }
    // The workload's certificate has no DNS name, so that these clients don't check it.
    let mut istio = Vec::new();
    for (what, identity, verdict) in kinds {
        istio.push(("istio.test", *what, *identity, *verdict));
    }
    for (host, what, identity, verdict) in istio {
        for version in VERSIONS {
            table.row(format!("{host}, {what}, {version:?}"));
            let mut settings = Settings::new(&[]).version(version);
            if let Some(identity) = identity {
                settings = settings.identity(identity);
            }
            match verdict.alert(version) {
                Some(alert) => {
                    let got = settings.refusal(gateway.address(443), host).await;
                    table.check("refusal", &Err(Refusal::Alert(alert)), &got);
                }
                None => {
                    let got = settings.get(gateway.address(443), host, "/").await.map(|answer| answer.status);
                    table.check("status", &Ok(200), &got);
                }
            }
        }
    }
    let rows: &[(&str, &str, Option<&Identity>, Verdict)] = &[
        ("two.test", "client of the second CA", Some(good), Served(1)),
        ("two.test", "client of the first CA", Some(&clients.foreign), Served(1)),
        ("two.test", "self-signed", Some(&clients.self_signed), Alert(alert::UNKNOWN_CA)),
        // An intermediate in the bundle is an anchor by itself.
        ("below.test", "client below the intermediate", Some(&clients.below), Served(1)),
        ("below.test", "the same, without its chain", Some(&clients.alone), Served(1)),
        ("below.test", "client of the root", Some(good), Alert(alert::UNKNOWN_CA)),
    ];
    judge(&mut table, &gateway, &upstream, &authority, rows).await;
    table.finish();
}

#[tokio::test]
async fn names_and_pins_admit_the_listed() {
    let clients = Clients::new();
    let Clients { ca, good, named, .. } = &clients;
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let wild = ca.issue(&Leaf::client("wild").dns("*.client.test"));
    let common = ca.client("good.client.test");
    let foreign_named = clients.other.issue(&Leaf::client("client").dns("good.client.test"));

    let (pin, hash) = (good.pin(), hex(&good.hash()));
    let colons: Vec<_> = good.hash().iter().map(|byte| format!("{byte:02X}")).collect();
    let (colons, other_pin) = (colons.join(":"), named.pin());
    let servers = [
        ("dns.test", "subjectAltNames: [good.client.test]".to_owned()),
        ("uri.test", "subjectAltNames: ['spiffe://td/ns/a/sa/b']".to_owned()),
        ("email.test", "subjectAltNames: [me@client.test]".to_owned()),
        ("ip.test", "subjectAltNames: [192.0.2.7]".to_owned()),
        ("either.test", "subjectAltNames: [nobody.test, good.client.test]".to_owned()),
        ("star.test", "subjectAltNames: ['*.client.test']".to_owned()),
        ("prefix.test", "subjectAltNames: ['spiffe://td/*']".to_owned()),
        ("spki.test", format!("verifyCertificateSpki: [{pin:?}]")),
        ("hash.test", format!("verifyCertificateHash: [{hash:?}]")),
        ("colons.test", format!("verifyCertificateHash: [{colons:?}]")),
        ("pins.test", format!("verifyCertificateSpki: [{other_pin:?}], verifyCertificateHash: [{hash:?}]")),
    ];
    let mut yaml = String::new();
    let mut secrets = Vec::new();
    for (host, rule) in &servers {
        yaml += &https(host, &format!("{{mode: MUTUAL, credentialName: {host}, {rule}}}"));
        secrets.push(mutual_secret(host, &authority.server(host), &ca.pem()));
    }
    yaml += &https("optional.test", "{mode: OPTIONAL_MUTUAL, credentialName: dns.test, subjectAltNames: [x.test]}");
    let mut mesh = edge(&yaml, &[443], upstream.address());
    for secret in &secrets {
        mesh = mesh.document(secret);
    }
    let gateway = mesh.start().await;

    let mut table = Table::new("names and pins of clients, security.md §4.2");
    let unknown = Alert(alert::CERTIFICATE_UNKNOWN);
    let rows: &[(&str, &str, Option<&Identity>, Verdict)] = &[
        ("dns.test", "a DNS name of two", Some(named), Served(1)),
        ("dns.test", "no name", Some(good), unknown),
        ("dns.test", "the common name doesn't count", Some(&common), unknown),
        ("dns.test", "a wildcard in the certificate", Some(&wild), Served(1)),
        ("dns.test", "right name, other CA", Some(&foreign_named), Alert(alert::UNKNOWN_CA)),
        ("uri.test", "a URI", Some(named), Served(1)),
        ("uri.test", "no URI", Some(&wild), unknown),
        ("email.test", "an e-mail address", Some(named), Served(1)),
        ("email.test", "no e-mail address", Some(&wild), unknown),
        ("ip.test", "an IP address", Some(named), Served(1)),
        ("ip.test", "no IP address", Some(&wild), unknown),
        ("either.test", "one of the listed", Some(named), Served(1)),
        ("either.test", "none of the listed", Some(good), unknown),
        ("star.test", "the pattern isn't one", Some(named), unknown),
        ("star.test", "but it is a name", Some(&wild), Served(1)),
        ("prefix.test", "nor is this", Some(named), unknown),
        ("spki.test", "the pinned key", Some(good), Served(1)),
        ("spki.test", "another key", Some(named), NotPinned),
        ("spki.test", "another CA", Some(&clients.foreign), Alert(alert::UNKNOWN_CA)),
        ("spki.test", "none", None, Missing),
        ("hash.test", "the pinned certificate", Some(good), Served(1)),
        ("hash.test", "another certificate", Some(named), NotPinned),
        ("colons.test", "upper case with colons", Some(good), Served(1)),
        ("colons.test", "another certificate", Some(named), NotPinned),
        ("pins.test", "in the one list", Some(good), Served(1)),
        ("pins.test", "in the other", Some(named), Served(1)),
        ("pins.test", "in neither", Some(&wild), NotPinned),
    ];
    judge(&mut table, &gateway, &upstream, &authority, rows).await;
    table.row("optional.test, none and a wrong one");
    let settings = Settings::new(&[]);
    let address = gateway.address(443);
    table.check("none", &Ok(200), &settings.get(address, "optional.test", "/").await.map(|answer| answer.status));
    let refused = settings.clone().identity(named).refusal(address, "optional.test").await;
    table.check("wrong", &Err(Refusal::Alert(alert::CERTIFICATE_UNKNOWN)), &refused);
    table.finish();
}

#[tokio::test]
async fn revocation_lists_are_complete_and_current() {
    let clients = Clients::new();
    let Clients { ca, other, intermediate, good, below, foreign, .. } = &clients;
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let stranger = ca.client("stranger");
    let place = tempfile::tempdir().unwrap();

    let current = Validity::Current;
    let own = ca.crl(&[stranger.serial()], current);
    let two = format!("{}{}", ca.pem(), other.pem());
    let listed = ca.crl(&[stranger.serial(), good.serial()], current);
    let intermediate_listed =
        format!("{}{}", ca.crl(&[intermediate.serial()], current), intermediate.crl(&[], current));
    let below_listed = format!("{own}{}", intermediate.crl(&[below.serial()], current));
    let both = format!("{}{own}", intermediate.crl(&[], current));
    let revoked = Alert(alert::CERTIFICATE_REVOKED);
    let unknown = Alert(alert::UNKNOWN_CA);
    let stale = Alert(alert::CERTIFICATE_EXPIRED);
    // Host, CA bundle, CRLs, then the clients.
    type Row<'a> = (&'a str, String, String, Vec<(&'a str, Option<&'a Identity>, Verdict)>);
    let rows: Vec<Row<'_>> = vec![
        (
            "listed.test",
            ca.pem(),
            listed.clone(),
            vec![("a listed leaf", Some(good), revoked), ("none", None, Missing)],
        ),
        ("unlisted.test", ca.pem(), own.clone(), vec![("not listed", Some(good), Served(1))]),
        (
            "middle.test",
            ca.pem(),
            intermediate_listed,
            vec![("a listed intermediate", Some(below), revoked), ("a client of the root", Some(good), Served(1))],
        ),
        ("below.test", ca.pem(), below_listed, vec![("listed by the intermediate", Some(below), revoked)]),
        ("root-only.test", ca.pem(), own.clone(), vec![("none of the intermediate", Some(below), unknown)]),
        (
            "both.test",
            ca.pem(),
            both,
            vec![
                ("lists of both, the lower", Some(below), Served(1)),
                ("lists of both, the upper", Some(good), Served(1)),
            ],
        ),
        (
            "one-of-two.test",
            two,
            own.clone(),
            vec![("CA with a list", Some(good), Served(1)), ("CA without", Some(foreign), unknown)],
        ),
        ("foreign.test", ca.pem(), other.crl(&[], current), vec![("list of another CA", Some(good), unknown)]),
        ("past.test", ca.pem(), ca.crl(&[], Validity::Past), vec![("past list", Some(good), stale)]),
        ("future.test", ca.pem(), ca.crl(&[], Validity::Future), vec![("future list", Some(good), stale)]),
        ("empty.test", ca.pem(), ca.crl(&[], current), vec![("empty list", Some(good), Served(1))]),
    ];
    let mut yaml = String::new();
    let mut secrets = Vec::new();
    for (host, ca, crl, _) in &rows {
        let identity = authority.server(host);
        yaml += &https(host, &format!("{{mode: MUTUAL, credentialName: {host}}}"));
        let entries: [(&str, &[u8]); 4] = [
            ("tls.crt", identity.chain.as_bytes()),
            ("tls.key", identity.key.as_bytes()),
            ("ca.crt", ca.as_bytes()),
            ("ca.crl", crl.as_bytes()),
        ];
        secrets.push(secret(host, &entries));
    }
    // The same list from elsewhere: generic keys, a CA of its own, files, and where nothing need be sent.
    let generic = authority.server("generic.test");
    yaml += &https("generic.test", "{mode: MUTUAL, credentialName: generic}");
    let entries: [(&str, &[u8]); 4] = [
        ("cert", generic.chain.as_bytes()),
        ("key", generic.key.as_bytes()),
        ("cacert", &ca.pem().into_bytes()),
        ("crl", listed.as_bytes()),
    ];
    secrets.push(secret("generic", &entries));
    yaml += &https("apart.test", "{mode: MUTUAL, credentialName: apart}");
    secrets.push(tls_secret("apart", &authority.server("apart.test")));
    secrets.push(secret("apart-cacert", &[("cacert", ca.pem().as_bytes()), ("crl", listed.as_bytes())]));
    let (chain, key) = authority.server("files.test").write(place.path(), "files");
    let (ca_file, crl_file) = (place.path().join("ca.pem"), place.path().join("crl.pem"));
    std::fs::write(&ca_file, ca.pem()).unwrap();
    std::fs::write(&crl_file, &listed).unwrap();
    yaml += &https(
        "files.test",
        &format!(
            "{{mode: MUTUAL, serverCertificate: {chain}, privateKey: {key}, caCertificates: {}, caCrl: {}}}",
            ca_file.display(),
            crl_file.display()
        ),
    );
    yaml += &https("optional.test", "{mode: OPTIONAL_MUTUAL, credentialName: listed.test}");
    let mut mesh = edge(&yaml, &[443], upstream.address());
    for secret in &secrets {
        mesh = mesh.document(secret);
    }
    let gateway = mesh.start().await;

    let mut table = Table::new("revocation lists, security.md §4.2, S11-S13");
    for (host, _, _, clients) in &rows {
        for (what, identity, verdict) in clients {
            judge(&mut table, &gateway, &upstream, &authority, &[(host, what, *identity, *verdict)]).await;
        }
    }
    for host in ["generic.test", "apart.test", "files.test"] {
        let rows = [(host, "listed", Some(good), revoked), (host, "not listed", Some(&clients.rsa), Served(1))];
        judge(&mut table, &gateway, &upstream, &authority, &rows).await;
    }
    for version in VERSIONS {
        table.row(format!("optional.test, {version:?}"));
        let settings = Settings::new(&[]).version(version);
        let address = gateway.address(443);
        let got = settings.get(address, "optional.test", "/").await.map(|answer| answer.status);
        table.check("none", &Ok(200), &got);
        let got = settings.identity(good).refusal(address, "optional.test").await;
        table.check("listed", &Err(Refusal::Alert(alert::CERTIFICATE_REVOKED)), &got);
    }
    table.finish();
}

#[tokio::test]
async fn openssl_and_curl_see_the_same() {
    if !peer::available("openssl") || !peer::available("curl") {
        return;
    }
    let clients = Clients::new();
    let ca = &clients.ca;
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let place = tempfile::tempdir().unwrap();
    let yaml = https("mutual.test", "{mode: MUTUAL, credentialName: c}")
        + &https("optional.test", "{mode: OPTIONAL_MUTUAL, credentialName: c}")
        + &https("simple.test", "{mode: SIMPLE, credentialName: c}");
    let leaf = Leaf::server("mutual.test").dns("optional.test").dns("simple.test");
    let mesh =
        edge(&yaml, &[443], upstream.address()).document(&mutual_secret("c", &authority.issue(&leaf), &ca.pem()));
    let gateway = mesh.start().await;
    let address = gateway.address(443);
    let root = place.path().join("root.pem");
    std::fs::write(&root, authority.pem()).unwrap();
    let root = root.to_str().unwrap();
    let good = clients.good.write(place.path(), "good");
    let foreign = clients.foreign.write(place.path(), "foreign");
    let expired = clients.expired.write(place.path(), "expired");

    let mut table = Table::new("openssl and curl, security.md §4.2");
    let rows = [
        ("mutual.test", None, Missing),
        ("mutual.test", Some(&good), Served(1)),
        ("mutual.test", Some(&foreign), Alert(alert::UNKNOWN_CA)),
        ("mutual.test", Some(&expired), Alert(alert::CERTIFICATE_EXPIRED)),
        ("optional.test", None, Served(0)),
        ("optional.test", Some(&good), Served(1)),
        ("optional.test", Some(&foreign), Alert(alert::UNKNOWN_CA)),
        ("simple.test", None, Served(0)),
    ];
    for (host, identity, verdict) in rows {
        for (version, option) in [(Version::Tls12, "-tls1_2"), (Version::Tls13, "-tls1_3")] {
            table.row(format!("openssl, {host}, {identity:?}, {option}"));
            let mut arguments = vec![option, "-CAfile", root, "-verify_return_error"];
            if let Some((chain, key)) = identity {
                arguments.extend(["-cert", chain, "-key", key]);
            }
            let expected = verdict.alert(version);
            // Nothing is said, so that the alert isn't lost behind bytes that nobody reads any more.
            let seen = match expected {
                Some(_) => OpenSsl::run(address, &[&["-servername", host], &arguments[..]].concat(), "").await,
                None => OpenSsl::get(address, host, &arguments).await,
            };
            let status = expected.is_none().then_some(200);
            if !table.check("alert, status", &(expected, status), &(seen.alert(), seen.status())) {
                table.fail(seen.text);
            }
        }
    }
    for (host, identity, version) in [
        ("mutual.test", Some(&good), "--http2"),
        ("optional.test", None, "--http1.1"),
        ("simple.test", None, "--http2"),
    ] {
        table.row(format!("curl, {host}, {version}"));
        let mut curl = std::process::Command::new("curl");
        curl.args(["-q", "--silent", "--show-error", "--max-time", "20", "--cacert", root, version]);
        curl.args(["--resolve", &format!("{host}:{}:{}", address.port(), address.ip())]);
        if let Some((chain, key)) = identity {
            curl.args(["--cert", chain, "--key", key]);
        }
        curl.args(["--write-out", "|%{http_version} %{http_code} %{ssl_verify_result}"]);
        curl.arg(format!("https://{host}:{}/", address.port()));
        let version = if version == "--http2" { "2" } else { "1.1" };
        table.check("printed", &format!("ok|{version} 200 0"), &stdout(curl).await);
    }
    table.finish();
}
