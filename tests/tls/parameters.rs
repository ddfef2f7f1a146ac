//! Versions, suites and groups. `reference/networking.md` §2.6, `reference/security.md` §4.4, S20.

use rustls::{CipherSuite, NamedGroup};

use super::{alert, edge, https};
use crate::harness::peer;
use crate::harness::pki::{Authority, Key, Leaf, tls_secret};
use crate::harness::table::Table;
use crate::harness::tls_client::{OpenSsl, Refusal, Settings, Version};
use crate::harness::upstream::Upstream;

const AES128: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
const AES256: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;
const CHACHA: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;
const RSA_AES128: CipherSuite = CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256;

/// What a handshake comes to.
type Agreed = Result<(CipherSuite, NamedGroup), Refusal>;

fn tls12() -> Settings {
    Settings::new(&[]).version(Version::Tls12)
}

fn tls13() -> Settings {
    Settings::new(&[]).version(Version::Tls13)
}

#[tokio::test]
async fn servers_speak_what_they_say() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let servers = [
        ("default.test", ""),
        ("min13.test", ", minProtocolVersion: TLSV1_3"),
        ("max12.test", ", maxProtocolVersion: TLSV1_2"),
        ("auto.test", ", minProtocolVersion: TLS_AUTO, maxProtocolVersion: TLS_AUTO"),
        ("old.test", ", minProtocolVersion: TLSV1_0"),
        ("chacha.test", ", cipherSuites: [ECDHE-ECDSA-CHACHA20-POLY1305]"),
        ("ordered.test", ", cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-ECDSA-AES128-GCM-SHA256]"),
        ("mixed.test", ", cipherSuites: [AES128-SHA, ECDHE-ECDSA-AES256-GCM-SHA384]"),
        ("rsa.test", ", cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256]"),
        ("p384.test", ", ecdhCurves: [P-384]"),
        ("curves.test", ", ecdhCurves: [P-256, X25519]"),
    ];
    let mut yaml = String::new();
    for (host, more) in servers {
        yaml += &https(host, &format!("{{mode: SIMPLE, credentialName: c{more}}}"));
    }
    yaml += &https("rsa-key.test", "{mode: SIMPLE, credentialName: rsa}");
    let mesh = edge(&yaml, &[443], upstream.address())
        .document(&tls_secret("c", &authority.server("c.test")))
        .document(&tls_secret("rsa", &authority.issue(&Leaf::server("rsa.test").key(Key::Rsa))));
    let gateway = mesh.start().await;
    let address = gateway.address(443);

    let mut table = Table::new("versions, suites and groups, security.md §4.4, S20");
    let refused = |alert: u8| -> Agreed { Err(Refusal::Alert(alert)) };
    let suite13 = CipherSuite::TLS13_AES_256_GCM_SHA384;
    let rows: Vec<(&str, &str, Settings, Agreed)> = vec![
        ("default.test", "the order is ours", tls12().suites(&[AES256, AES128]), Ok((AES128, NamedGroup::X25519))),
        ("default.test", "AES256 after CHACHA20", tls12().suites(&[AES256, CHACHA]), Ok((CHACHA, NamedGroup::X25519))),
        (
            "default.test",
            "equals: the client's order",
            tls12().suites(&[CHACHA, AES128]),
            Ok((CHACHA, NamedGroup::X25519)),
        ),
        ("default.test", "equals, turned round", tls12().suites(&[AES128, CHACHA]), Ok((AES128, NamedGroup::X25519))),
        ("default.test", "only AES256", tls12().suites(&[AES256]), Ok((AES256, NamedGroup::X25519))),
        ("default.test", "no suite for the key", tls12().suites(&[RSA_AES128]), refused(alert::HANDSHAKE_FAILURE)),
        ("rsa-key.test", "RSA", tls12().suites(&[RSA_AES128]), Ok((RSA_AES128, NamedGroup::X25519))),
        (
            "default.test",
            "P-256",
            tls13().suites(&[suite13]).groups(&[NamedGroup::secp256r1]),
            Ok((suite13, NamedGroup::secp256r1)),
        ),
        (
            "default.test",
            "post-quantum, though the client prefers another",
            tls13().suites(&[suite13]).groups(&[NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::X25519MLKEM768]),
            Ok((suite13, NamedGroup::X25519MLKEM768)),
        ),
        (
            "default.test",
            "X25519",
            tls13().suites(&[suite13]).groups(&[NamedGroup::X25519]),
            Ok((suite13, NamedGroup::X25519)),
        ),
        (
            "default.test",
            "P-384 with TLS 1.3",
            tls13().groups(&[NamedGroup::secp384r1]),
            refused(alert::HANDSHAKE_FAILURE),
        ),
        (
            "default.test",
            "P-384 with TLS 1.2",
            tls12().groups(&[NamedGroup::secp384r1]),
            refused(alert::HANDSHAKE_FAILURE),
        ),
        ("min13.test", "TLS 1.2", tls12(), refused(alert::PROTOCOL_VERSION)),
        (
            "min13.test",
            "TLS 1.3",
            tls13().suites(&[suite13]).groups(&[NamedGroup::X25519]),
            Ok((suite13, NamedGroup::X25519)),
        ),
        ("max12.test", "TLS 1.3", tls13(), refused(alert::PROTOCOL_VERSION)),
        ("max12.test", "TLS 1.2", tls12().suites(&[AES128]), Ok((AES128, NamedGroup::X25519))),
        ("auto.test", "TLS 1.2", tls12().suites(&[AES128]), Ok((AES128, NamedGroup::X25519))),
        (
            "auto.test",
            "TLS 1.3",
            tls13().suites(&[suite13]).groups(&[NamedGroup::X25519]),
            Ok((suite13, NamedGroup::X25519)),
        ),
        ("old.test", "TLS 1.2", tls12().suites(&[AES128]), Ok((AES128, NamedGroup::X25519))),
        ("chacha.test", "listed", tls12().suites(&[CHACHA, AES128]), Ok((CHACHA, NamedGroup::X25519))),
        ("chacha.test", "not listed", tls12().suites(&[AES128, AES256]), refused(alert::HANDSHAKE_FAILURE)),
        (
            "chacha.test",
            "TLS 1.3 as ever",
            tls13().suites(&[suite13]).groups(&[NamedGroup::X25519]),
            Ok((suite13, NamedGroup::X25519)),
        ),
        (
            "ordered.test",
            "the order is the list's",
            tls12().suites(&[AES128, AES256]),
            Ok((AES256, NamedGroup::X25519)),
        ),
        ("mixed.test", "the one that is safe", tls12(), Ok((AES256, NamedGroup::X25519))),
        ("mixed.test", "others", tls12().suites(&[AES128]), refused(alert::HANDSHAKE_FAILURE)),
        ("rsa.test", "suites of another key", tls12(), refused(alert::HANDSHAKE_FAILURE)),
        (
            "p384.test",
            "listed",
            tls13().suites(&[suite13]).groups(&[NamedGroup::X25519, NamedGroup::secp384r1]),
            Ok((suite13, NamedGroup::secp384r1)),
        ),
        ("p384.test", "not listed", tls13().groups(&[NamedGroup::X25519]), refused(alert::HANDSHAKE_FAILURE)),
        (
            "p384.test",
            "listed, TLS 1.2",
            tls12().suites(&[AES128]).groups(&[NamedGroup::secp384r1]),
            Ok((AES128, NamedGroup::secp384r1)),
        ),
        (
            "curves.test",
            "not the default ones",
            tls13().groups(&[NamedGroup::X25519MLKEM768]),
            refused(alert::HANDSHAKE_FAILURE),
        ),
        (
            "curves.test",
            "the order is the list's",
            tls13().suites(&[suite13]).groups(&[NamedGroup::X25519, NamedGroup::secp256r1]),
            Ok((suite13, NamedGroup::secp256r1)),
        ),
    ];
    for (host, what, settings, expected) in rows {
        table.row(format!("{host}, {what}"));
        let got = settings.connect(address, host).await;
        let got = got.map(|connected| (connected.suite(), connected.group().unwrap_or(NamedGroup::Unknown(0))));
        table.check("agreed", &expected, &got);
    }
    if peer::available("openssl") {
        let rows: &[(&str, &[&str], Option<u8>)] = &[
            ("default.test", &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], Some(alert::PROTOCOL_VERSION)),
            ("default.test", &["-tls1", "-cipher", "ALL:@SECLEVEL=0"], Some(alert::PROTOCOL_VERSION)),
            ("max12.test", &["-tls1_3"], Some(alert::PROTOCOL_VERSION)),
            ("min13.test", &["-tls1_2"], Some(alert::PROTOCOL_VERSION)),
            ("rsa-key.test", &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"], Some(alert::HANDSHAKE_FAILURE)),
            ("rsa-key.test", &["-tls1_2", "-cipher", "AES128-GCM-SHA256"], Some(alert::HANDSHAKE_FAILURE)),
            ("rsa-key.test", &["-tls1_2", "-cipher", "ECDHE-RSA-CHACHA20-POLY1305"], None),
            ("rsa-key.test", &["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"], None),
            ("default.test", &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"], None),
            ("default.test", &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"], None),
            ("default.test", &["-groups", "P-521"], Some(alert::HANDSHAKE_FAILURE)),
            ("default.test", &["-groups", "P-521:X25519"], None),
        ];
        for (host, arguments, expected) in rows {
            table.row(format!("openssl, {host}, {arguments:?}"));
            let seen = OpenSsl::get(address, host, arguments).await;
            let status = expected.is_none().then_some(200);
            if !table.check("alert, status", &(*expected, status), &(seen.alert(), seen.status())) {
                table.fail(seen.text);
            }
        }
    }
    table.finish();
}

#[tokio::test]
async fn the_mesh_says_what_servers_dont() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let yaml = https("mesh.test", "{mode: SIMPLE, credentialName: c}")
        + &https("own.test", "{mode: SIMPLE, credentialName: c, minProtocolVersion: TLSV1_2, ecdhCurves: [X25519]}");
    let mesh = edge(&yaml, &[443], upstream.address())
        .document(&tls_secret("c", &authority.server("c.test")))
        .mesh_config("tlsDefaults:\n  minProtocolVersion: TLSV1_3\n  ecdhCurves: [P-256]\n");
    let gateway = mesh.start().await;
    let address = gateway.address(443);
    let mut table = Table::new("MeshConfig.tlsDefaults, security.md §4.4");
    let rows: Vec<(&str, Settings, Result<NamedGroup, Refusal>)> = vec![
        ("mesh.test", tls12(), Err(Refusal::Alert(alert::PROTOCOL_VERSION))),
        ("mesh.test", tls13(), Ok(NamedGroup::secp256r1)),
        ("mesh.test", tls13().groups(&[NamedGroup::X25519]), Err(Refusal::Alert(alert::HANDSHAKE_FAILURE))),
        ("own.test", tls12(), Ok(NamedGroup::X25519)),
        ("own.test", tls13(), Ok(NamedGroup::X25519)),
    ];
    for (host, settings, expected) in rows {
        table.row(host);
        let got = settings.connect(address, host).await;
        table.check("group", &expected, &got.map(|connected| connected.group().unwrap_or(NamedGroup::Unknown(0))));
    }
    table.finish();
}
