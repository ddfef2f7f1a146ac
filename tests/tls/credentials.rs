//! Where certificates, keys and CAs come from, and in which forms. `reference/security.md` §4.7, S1-S9, S16.

use std::path::Path;

use rustls::CipherSuite;

use super::{edge, https};
use crate::harness::gateway::Gateway;
use crate::harness::peer;
use crate::harness::pki::{Authority, Identity, Key, Leaf, Mount, Validity, mutual_secret, secret, tls_secret};
use crate::harness::table::Table;
use crate::harness::tls_client::{OpenSsl, Refusal, Settings, Version};
use crate::harness::upstream::Upstream;

/// Content of a Secret.
type Entries = Vec<(&'static str, Vec<u8>)>;

fn document(name: &str, entries: &Entries) -> String {
    let entries: Vec<(&str, &[u8])> = entries.iter().map(|(key, value)| (*key, value.as_slice())).collect();
    secret(name, &entries)
}

/// Checks that this server shows `expected`, or that nobody gets through to it, not even to an alert.
async fn check_shown(table: &mut Table, gateway: &Gateway, host: &str, expected: Option<&Identity>) {
    let address = gateway.address(443);
    match (expected, Settings::new(&[]).connect(address, host).await) {
        (Some(identity), Ok(connected)) => {
            table.check("certificate", identity.der(), &connected.certificate());
            table.check("status", &200, &connected.http1().get(host, "/").await.status);
        }
        (Some(_), Err(refusal)) => table.fail(format!("not served: {refusal:?}")),
        (None, got) => {
            table.check("refusal", &Err(Refusal::Reset), &got.map(|_| ()));
        }
    }
}

#[tokio::test]
async fn secrets_of_every_shape() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let a = authority.server("a.test");
    let b = authority.server("b.test");
    let rsa = authority.issue(&Leaf::server("rsa.test").key(Key::Rsa));
    let p384 = authority.issue(&Leaf::server("p384.test").key(Key::P384));
    let p521 = authority.issue(&Leaf::server("p521.test").key(Key::P521));
    let ed25519 = authority.issue(&Leaf::server("ed25519.test").key(Key::Ed25519));
    let expired = authority.issue(&Leaf::server("expired.test").valid(Validity::Past));
    let early = authority.issue(&Leaf::server("early.test").valid(Validity::Future));
    let staple = authority.issue(&Leaf::server("staple.test").must_staple());
    let chained = authority.intermediate("servers, one below").server("chained.test");

    let tls = |identity: &Identity| -> Entries {
        vec![("tls.crt", identity.chain.clone().into_bytes()), ("tls.key", identity.key.clone().into_bytes())]
    };
    let keyed = |identity: &Identity, key: String| -> Entries {
        vec![("tls.crt", identity.chain.clone().into_bytes()), ("tls.key", key.into_bytes())]
    };
    let text = |text: &str| text.as_bytes().to_vec();
    let (a_chain, a_key, b_chain, b_key) = (text(&a.chain), text(&a.key), text(&b.chain), text(&b.key));
    let junk = text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let junk_key = text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let good = authority.ocsp(&a, false, Validity::Current);
    let stapled = |identity: &Identity, response: Vec<u8>| -> Entries {
        let mut entries = tls(identity);
        entries.push(("tls.ocsp-staple", response));
        entries
    };
    let commented = format!("# of a test\nsubject=CN = a\n{}\n\n# and its key elsewhere\n", a.chain);
    let windows = |text: &str| text.replace("\r\n", "\n").replace('\n', "\r\n").into_bytes();

    // What it is, the Secret, and whose certificate is shown.
    let mut rows: Vec<(&str, Entries, Option<&Identity>)> = vec![
        ("tls keys", tls(&a), Some(&a)),
        ("generic keys", vec![("cert", a_chain.clone()), ("key", a_key.clone())], Some(&a)),
        (
            "both families: generic wins",
            [vec![("cert", a_chain.clone()), ("key", a_key.clone())], tls(&b)].concat(),
            Some(&a),
        ),
        ("half of generic: tls wins", [vec![("cert", a_chain.clone())], tls(&b)].concat(), Some(&b)),
        ("empty generic: tls wins", [vec![("cert", Vec::new()), ("key", Vec::new())], tls(&b)].concat(), Some(&b)),
        ("one of each family", vec![("cert", a_chain.clone()), ("tls.key", a_key.clone())], None),
        ("no key", vec![("tls.crt", a_chain.clone())], None),
        ("no certificate", vec![("tls.key", a_key.clone())], None),
        ("other keys", vec![("certificate", a_chain.clone()), ("private", a_key.clone())], None),
        ("empty values", vec![("tls.crt", Vec::new()), ("tls.key", Vec::new())], None),
        ("broken certificate", vec![("tls.crt", junk.clone()), ("tls.key", a_key.clone())], None),
        ("certificate that is no PEM", vec![("tls.crt", text("junk")), ("tls.key", a_key.clone())], None),
        ("broken key", vec![("tls.crt", a_chain.clone()), ("tls.key", junk_key)], None),
        ("key that is no PEM", vec![("tls.crt", a_chain.clone()), ("tls.key", text("junk"))], None),
        ("key of another certificate", vec![("tls.crt", a_chain.clone()), ("tls.key", b_key)], None),
        ("key of another kind", keyed(&a, rsa.key.clone()), None),
        ("a certificate for a key", vec![("tls.crt", b_chain), ("tls.key", a_chain.clone())], None),
        ("with a chain", tls(&chained), Some(&chained)),
        ("text around the PEM", vec![("tls.crt", commented.into_bytes()), ("tls.key", a_key.clone())], Some(&a)),
        ("line ends of Windows", vec![("tls.crt", windows(&a.chain)), ("tls.key", windows(&a.key))], Some(&a)),
        ("RSA, PKCS#8", tls(&rsa), Some(&rsa)),
        ("P-384", tls(&p384), Some(&p384)),
        ("P-521", tls(&p521), Some(&p521)),
        ("Ed25519", tls(&ed25519), Some(&ed25519)),
        ("expired", tls(&expired), Some(&expired)),
        ("not yet valid", tls(&early), Some(&early)),
        ("OCSP response", stapled(&a, good.clone()), Some(&a)),
        ("OCSP response that says revoked", stapled(&a, authority.ocsp(&a, true, Validity::Current)), Some(&a)),
        ("expired OCSP response", stapled(&a, authority.ocsp(&a, false, Validity::Past)), Some(&a)),
        ("OCSP response for another certificate", stapled(&b, good), None),
        ("broken OCSP response", stapled(&a, text("junk")), None),
        ("must-staple without a response", tls(&staple), None),
        ("must-staple with one", stapled(&staple, authority.ocsp(&staple, false, Validity::Current)), Some(&staple)),
        (
            "OCSP response among generic keys, which have none",
            vec![("cert", a_chain), ("key", a_key), ("tls.ocsp-staple", text("junk"))],
            Some(&a),
        ),
    ];
    if peer::available("openssl") {
        rows.push(("RSA, PKCS#1", keyed(&rsa, rsa.traditional_key()), Some(&rsa)));
        rows.push(("P-256, SEC1", keyed(&a, a.traditional_key()), Some(&a)));
        rows.push(("P-384, SEC1", keyed(&p384, p384.traditional_key()), Some(&p384)));
        rows.push(("encrypted key", keyed(&a, a.encrypted_key()), None));
        let (chain, key) = Identity::short_rsa();
        rows.push(("RSA of 1024 bits", vec![("tls.crt", chain.into_bytes()), ("tls.key", key.into_bytes())], None));
    }
    let mut yaml = String::new();
    let mut secrets = Vec::new();
    for (number, (_, entries, _)) in rows.iter().enumerate() {
        yaml += &https(&format!("row-{number}.test"), &format!("{{mode: SIMPLE, credentialName: row-{number}}}"));
        secrets.push(document(&format!("row-{number}"), entries));
    }
    let mut mesh = edge(&yaml, &[443], upstream.address());
    for secret in &secrets {
        mesh = mesh.document(secret);
    }
    let gateway = mesh.start().await;

    let mut table = Table::new("shapes of secrets, security.md §4.7, S1, S8");
    for (number, (what, _, expected)) in rows.iter().enumerate() {
        table.row(*what);
        check_shown(&mut table, &gateway, &format!("row-{number}.test"), *expected).await;
    }
    if peer::available("openssl") {
        // Staples, as a client that asks for one sees them.
        let staples = [
            ("OCSP response", Some("good")),
            ("OCSP response that says revoked", Some("revoked")),
            ("expired OCSP response", None),
            ("must-staple with one", Some("good")),
            ("tls keys", None),
            ("OCSP response among generic keys, which have none", None),
        ];
        for (what, status) in staples {
            for version in ["-tls1_2", "-tls1_3"] {
                table.row(format!("{what}, asked for, {version}"));
                let number = rows.iter().position(|(name, _, _)| *name == what).unwrap();
                let host = format!("row-{number}.test");
                let seen = OpenSsl::get(gateway.address(443), &host, &["-status", version]).await;
                let got = seen.text.split_once("Cert Status: ").and_then(|(_, rest)| rest.split_whitespace().next());
                table.check("status of the certificate", &status, &got);
                table.check("none was sent", &status.is_none(), &seen.text.contains("OCSP response: no response sent"));
            }
        }
        table.row("with a chain, to openssl");
        let number = rows.iter().position(|(name, _, _)| *name == "with a chain").unwrap();
        let seen = OpenSsl::get(gateway.address(443), &format!("row-{number}.test"), &["-showcerts"]).await;
        table.check("certificates", &2, &seen.text.matches("BEGIN CERTIFICATE").count());
    }
    table.finish();
}

#[tokio::test]
async fn authorities_of_clients_from_every_place() {
    let servers = Authority::new("servers");
    let (ca, other) = (Authority::new("clients"), Authority::new("others"));
    let upstream = Upstream::ok().await;
    let identity = servers.server("any.test");
    let client = ca.client("client");
    let pair: Entries =
        vec![("tls.crt", identity.chain.clone().into_bytes()), ("tls.key", identity.key.clone().into_bytes())];
    let generic: Entries =
        vec![("cert", identity.chain.clone().into_bytes()), ("key", identity.key.clone().into_bytes())];
    let ca_pem = ca.pem().into_bytes();
    let other_pem = other.pem().into_bytes();
    let with = |pair: &Entries, more: &[(&'static str, &Vec<u8>)]| -> Entries {
        let more = more.iter().map(|(key, value)| (*key, (*value).clone()));
        pair.iter().cloned().chain(more).collect()
    };
    let junk = b"junk".to_vec();
    // What, the Secret, its -cacert, more of `tls`, and whether the client is served (else nobody is).
    type Row<'a> = (&'a str, Entries, Option<Entries>, &'a str, bool);
    let rows: Vec<Row<'_>> = vec![
        ("S3: generic, -cacert with cacert", generic.clone(), Some(vec![("cacert", ca_pem.clone())]), "", true),
        ("-cacert with ca.crt", pair.clone(), Some(vec![("ca.crt", ca_pem.clone())]), "", true),
        ("S4: generic compound", with(&generic, &[("cacert", &ca_pem)]), None, "", true),
        ("S4: tls compound", with(&pair, &[("ca.crt", &ca_pem)]), None, "", true),
        ("cacert before ca.crt", with(&pair, &[("cacert", &ca_pem), ("ca.crt", &other_pem)]), None, "", true),
        (
            "-cacert before its own",
            with(&pair, &[("ca.crt", &other_pem)]),
            Some(vec![("cacert", ca_pem.clone())]),
            "",
            true,
        ),
        (
            "-cacert without a CA: no way back",
            with(&pair, &[("ca.crt", &ca_pem)]),
            Some(vec![("cert", ca_pem.clone())]),
            "",
            false,
        ),
        ("S9: no CA", pair.clone(), None, "", false),
        ("S9: broken CA", with(&pair, &[("ca.crt", &junk)]), None, "", false),
        ("S9: broken -cacert", pair.clone(), Some(vec![("cacert", junk.clone())]), "", false),
        (
            "caCertCredentialName",
            with(&pair, &[("ca.crt", &other_pem)]),
            None,
            ", caCertCredentialName: elsewhere",
            true,
        ),
        (
            "caCertCredentialName of a ConfigMap",
            pair.clone(),
            None,
            ", caCertCredentialName: 'configmap://istio-system/roots'",
            true,
        ),
    ];
    let mut yaml = String::new();
    let mut documents = vec![
        secret("elsewhere", &[("ca.crt", &ca_pem)]),
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: roots, namespace: istio-system}}\ndata: {{ca.crt: {:?}}}\n",
            ca.pem()
        ),
    ];
    for (number, (_, entries, authority, more, _)) in rows.iter().enumerate() {
        let name = format!("row-{number}");
        yaml += &https(&format!("{name}.test"), &format!("{{mode: MUTUAL, credentialName: {name}{more}}}"));
        documents.push(document(&name, entries));
        if let Some(entries) = authority {
            documents.push(document(&format!("{name}-cacert"), entries));
        }
    }
    // Names that mean the same Secret, and such as mean none that may be used.
    documents.push(tls_secret("plain", &identity));
    let spellings = [
        ("plain", true),
        ("kubernetes://plain", true),
        ("kubernetes://istio-system/plain", true),
        ("istio-system/plain", true),
        ("kubernetes://elsewhere/plain", false),
        ("invalid://plain", false),
    ];
    for (number, (name, _)) in spellings.iter().enumerate() {
        yaml += &https(&format!("name-{number}.test"), &format!("{{mode: SIMPLE, credentialName: {name:?}}}"));
    }
    let mut mesh = edge(&yaml, &[443], upstream.address());
    for document in &documents {
        mesh = mesh.document(document);
    }
    let gateway = mesh.builder().argument("--accept-invalid").start().await.unwrap();
    let mut table = Table::new("authorities of clients, names of credentials, security.md §4.7, S3, S4, S9");
    for (number, (what, _, _, _, served)) in rows.iter().enumerate() {
        table.row(*what);
        let host = format!("row-{number}.test");
        let address = gateway.address(443);
        let settings = Settings::new(&[]).identity(&client);
        if *served {
            let got = settings.get(address, &host, "/").await.map(|answer| answer.status);
            table.check("status", &Ok(200), &got);
            let foreign = Settings::new(&[]).identity(&other.client("client")).refusal(address, &host).await;
            table.check("client of another CA", &Err(Refusal::Alert(super::alert::UNKNOWN_CA)), &foreign);
        } else {
            for settings in [settings, Settings::new(&[])] {
                table.check("refusal", &Err(Refusal::Reset), &settings.connect(address, &host).await.map(|_| ()));
            }
        }
    }
    for (number, (name, served)) in spellings.iter().enumerate() {
        table.row(*name);
        check_shown(&mut table, &gateway, &format!("name-{number}.test"), served.then_some(&identity)).await;
    }
    table.finish();
}

#[tokio::test]
async fn files_and_mounted_secrets() {
    let authority = Authority::new("servers");
    let ca = Authority::new("clients");
    let upstream = Upstream::ok().await;
    let place = tempfile::tempdir().unwrap();
    let mounted = authority.server("mounted.test");
    let second = authority.server("second.test");
    let document = authority.server("document.test");
    let ecdsa = authority.issue(&Leaf::server("pair.test"));
    let rsa = authority.issue(&Leaf::server("pair.test").key(Key::Rsa));
    let (first_directory, second_directory) = (place.path().join("first"), place.path().join("second"));
    let entries = |identity: &Identity| [("tls.crt", identity.chain.clone()), ("tls.key", identity.key.clone())];
    let mount = |directory: &Path, name: &str, entries: &[(&str, String)]| {
        let entries: Vec<(&str, &[u8])> = entries.iter().map(|(key, value)| (*key, value.as_bytes())).collect();
        Mount::new(directory.join(name), &entries);
    };
    mount(&first_directory, "mounted", &entries(&mounted));
    mount(&first_directory, "mounted-cacert", &[("ca.crt", ca.pem())]);
    mount(&second_directory, "second", &[("cert", second.chain.clone()), ("key", second.key.clone())]);
    let (ecdsa_chain, ecdsa_key) = ecdsa.write(place.path(), "ecdsa");
    let (rsa_chain, rsa_key) = rsa.write(place.path(), "rsa");
    let ca_file = place.path().join("ca.pem");
    std::fs::write(&ca_file, ca.pem()).unwrap();
    let yaml = https("mounted.test", "{mode: SIMPLE, credentialName: mounted}")
        + &https("mutual.test", "{mode: MUTUAL, credentialName: mounted}")
        + &https("second.test", "{mode: SIMPLE, credentialName: second}")
        + &https("document.test", "{mode: SIMPLE, credentialName: document}")
        + &https("files.test", &format!("{{mode: SIMPLE, serverCertificate: {ecdsa_chain}, privateKey: {ecdsa_key}}}"))
        + &https(
            "mutual-files.test",
            &format!(
                "{{mode: MUTUAL, serverCertificate: {rsa_chain}, privateKey: {rsa_key}, caCertificates: {}}}",
                ca_file.display()
            ),
        )
        + &https(
            "pair.test",
            &format!(
                "{{mode: SIMPLE, tlsCertificates: [{{serverCertificate: {rsa_chain}, privateKey: {rsa_key}}}, \
                 {{serverCertificate: {ecdsa_chain}, privateKey: {ecdsa_key}}}]}}"
            ),
        )
        + &https("absent.test", "{mode: SIMPLE, serverCertificate: /nowhere/a.crt, privateKey: /nowhere/a.key}");
    let mesh = edge(&yaml, &[443], upstream.address()).document(&tls_secret("document", &document));
    let mut builder = mesh.builder();
    for directory in [&first_directory, &second_directory] {
        builder = builder.argument("--certs").argument(directory.to_str().unwrap());
    }
    let gateway = builder.start().await.unwrap();

    let mut table = Table::new("files and mounted secrets, security.md §4.7, networking.md §2.6");
    let rows = [
        ("mounted.test", Some(&mounted)),
        ("second.test", Some(&second)),
        ("document.test", Some(&document)),
        ("files.test", Some(&ecdsa)),
        ("pair.test", Some(&ecdsa)),
        ("absent.test", None),
    ];
    for (host, expected) in rows {
        table.row(host);
        check_shown(&mut table, &gateway, host, expected).await;
    }
    for host in ["mutual.test", "mutual-files.test"] {
        table.row(host);
        let settings = Settings::new(&[]);
        let address = gateway.address(443);
        let refused = settings.clone().version(Version::Tls12).refusal(address, host).await;
        table.check("none", &Err(Refusal::Alert(super::alert::HANDSHAKE_FAILURE)), &refused);
        let got = settings.identity(&ca.client("c")).get(address, host, "/").await.map(|answer| answer.status);
        table.check("status", &Ok(200), &got);
    }
    table.finish();
}

#[tokio::test]
async fn rsa_beside_ecdsa() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let ecdsa = authority.issue(&Leaf::server("pair.test"));
    let rsa = authority.issue(&Leaf::server("pair.test").key(Key::Rsa));
    let ca = Authority::new("clients");
    let yaml = https("er.test", "{mode: SIMPLE, credentialNames: [ecdsa, rsa]}")
        + &https("re.test", "{mode: SIMPLE, credentialNames: [rsa, ecdsa]}")
        + &https("one.test", "{mode: SIMPLE, credentialNames: [rsa]}")
        + &https("mutual.test", "{mode: MUTUAL, credentialNames: [rsa, ecdsa]}");
    let mesh = edge(&yaml, &[443], upstream.address()).document(&tls_secret("ecdsa", &ecdsa)).document(&mutual_secret(
        "rsa",
        &rsa,
        &ca.pem(),
    ));
    let gateway = mesh.start().await;
    let address = gateway.address(443);
    let mut table = Table::new("two certificates, security.md §4.7");
    let rsa_only =
        [CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384];
    let ecdsa_only = [CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];
    for host in ["er.test", "re.test"] {
        let tls12 = Settings::new(&[]).version(Version::Tls12);
        let rows = [
            ("TLS 1.3", Settings::new(&[]).version(Version::Tls13), &ecdsa),
            ("TLS 1.2", tls12.clone(), &ecdsa),
            ("TLS 1.2, RSA suites", tls12.clone().suites(&rsa_only), &rsa),
            ("TLS 1.2, ECDSA suites", tls12.suites(&ecdsa_only), &ecdsa),
        ];
        for (what, settings, expected) in rows {
            table.row(format!("{host}, {what}"));
            match settings.connect(address, host).await {
                Ok(connected) => {
                    table.check("certificate", expected.der(), &connected.certificate());
                }
                Err(refusal) => table.fail(format!("{refusal:?}")),
            }
        }
        if peer::available("openssl") {
            for (sigalgs, kind) in [("rsa_pss_rsae_sha256", "RSA"), ("ECDSA+SHA256:rsa_pss_rsae_sha256", "ECDSA")] {
                table.row(format!("{host}, TLS 1.3, signatures {sigalgs}"));
                let seen = OpenSsl::get(address, host, &["-tls1_3", "-sigalgs", sigalgs]).await;
                let wanted = format!("Peer signature type: {}", if kind == "RSA" { "RSA-PSS" } else { kind });
                table.check("signature", &true, &seen.text.contains(&wanted));
            }
        }
    }
    table.row("one.test");
    check_shown(&mut table, &gateway, "one.test", Some(&rsa)).await;
    table.row("mutual.test: the CA of the first");
    let got = Settings::new(&[]).identity(&ca.client("c")).get(address, "mutual.test", "/").await;
    table.check("status", &Ok(200), &got.map(|answer| answer.status));
    table.finish();
}

#[tokio::test]
async fn an_absent_or_broken_secret_hurts_its_own_names_and_heals() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let good = authority.server("good.test");
    let late = authority.server("late.test");
    let yaml = https("good.test", "{mode: SIMPLE, credentialName: good}")
        + &https("late.test", "{mode: SIMPLE, credentialName: late}")
        + &https("mutual.test", "{mode: MUTUAL, credentialName: good}");
    let mesh = edge(&yaml, &[443], upstream.address()).document(&tls_secret("good", &good));
    let gateway = mesh.start().await;
    let mut table = Table::new("secrets that arrive, security.md §4.7, S8, S16");
    table.row("before");
    check_shown(&mut table, &gateway, "good.test", Some(&good)).await;
    check_shown(&mut table, &gateway, "late.test", None).await;
    check_shown(&mut table, &gateway, "mutual.test", None).await;
    table.row("a broken one");
    gateway.write("late.yaml", &secret("late", &[("tls.crt", b"junk"), ("tls.key", b"junk")])).await;
    check_shown(&mut table, &gateway, "late.test", None).await;
    table.row("a good one");
    gateway.write("late.yaml", &tls_secret("late", &late)).await;
    check_shown(&mut table, &gateway, "late.test", Some(&late)).await;
    check_shown(&mut table, &gateway, "good.test", Some(&good)).await;
    table.row("a CA, from then on");
    let ca = Authority::new("clients");
    gateway.write("ca.yaml", &secret("good-cacert", &[("cacert", ca.pem().as_bytes())])).await;
    let got = Settings::new(&[]).identity(&ca.client("c")).get(gateway.address(443), "mutual.test", "/").await;
    table.check("status", &Ok(200), &got.map(|answer| answer.status));
    table.finish();
}
