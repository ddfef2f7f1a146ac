//! TLS towards destinations: `reference/networking.md` §5.7, `reference/security.md` §4.8.

use super::*;
use crate::credential::Wanted;
use crate::snapshot::cluster::Cluster;
use crate::snapshot::tls::{
    CaSource, CertificateSource, CipherSuite, ClientMode, ClientTls, Group, ServerNameSource, TlsParameters,
};

const SERVER: &str = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}";
const HTTP: &str = "http: [{route: [{destination: {host: s.com, port: {number: 443}}}]}]";

fn yaml(entry: &str, rule: &str) -> String {
    gateway("gw", "web", SERVER)
        + &virtual_service("n", "v", &format!("{{hosts: [h.com], gateways: [gw/web], {HTTP}}}"))
        + &document(
            "ServiceEntry",
            "n",
            "s",
            &format!(
                "spec: {{hosts: [s.com], ports: [{{number: 443, name: https, protocol: HTTPS}}], resolution: DNS{entry}}}"
            ),
        )
        + &document("DestinationRule", "n", "r", &format!("spec: {{host: s.com, {rule}}}"))
}

fn cluster(compiled: &Compiled) -> &Arc<Cluster> {
    compiled.snapshot.clusters.values().next().unwrap()
}

fn client(entry: &str, tls: &str) -> Option<Arc<ClientTls>> {
    let compiled = compiled(&yaml(entry, &format!("trafficPolicy: {{tls: {{{tls}}}}}")));
    cluster(&compiled).tls.clone()
}

/// `mode: SIMPLE` and nothing else.
fn simple() -> ClientTls {
    ClientTls {
        mode: ClientMode::Simple,
        server_name: ServerNameSource::Request,
        ca: Some(CaSource::System { crl: None }),
        subject_alt_names: Vec::new(),
        verify_server_name: true,
        skip_verification: false,
        certificate: None,
        parameters: TlsParameters::default(),
    }
}

#[test]
fn settings() {
    let fixed = |name: &str| ServerNameSource::Fixed(name.into());
    let names = |names: &[&str]| names.iter().map(|&name| name.into()).collect::<Vec<Arc<str>>>();
    let secret = || Some(CertificateSource::Secret("c".into()));
    let files = || Some(CertificateSource::Files { certificate: "/c".into(), key: "/k".into() });
    let istio = |names: Vec<Arc<str>>| ClientTls {
        mode: ClientMode::IstioMutual,
        server_name: fixed("outbound_.443_._.s.com"),
        ca: Some(CaSource::Workload { crl: None }),
        subject_alt_names: names,
        verify_server_name: false,
        certificate: Some(CertificateSource::Workload),
        ..simple()
    };
    let mutual = || ClientTls {
        mode: ClientMode::Mutual,
        ca: Some(CaSource::Credential("c".into())),
        certificate: secret(),
        ..simple()
    };
    let entry = ", subjectAltNames: [x, y]";
    for (service, tls, expected) in [
        ("", "", None),
        ("", "mode: DISABLE, sni: s.com", None),
        ("", "mode: SIMPLE", Some(simple())),
        ("", "mode: SIMPLE, caCertificates: system", Some(simple())),
        (
            "",
            "mode: SIMPLE, sni: o.com",
            Some(ClientTls { server_name: fixed("o.com"), verify_server_name: false, ..simple() }),
        ),
        (
            "",
            "mode: SIMPLE, subjectAltNames: [a, b]",
            Some(ClientTls { subject_alt_names: names(&["a", "b"]), verify_server_name: false, ..simple() }),
        ),
        // Names of the ServiceEntry are checked next to the host's, unless the rule says something.
        (entry, "mode: SIMPLE", Some(ClientTls { subject_alt_names: names(&["x", "y"]), ..simple() })),
        (
            entry,
            "mode: SIMPLE, sni: o.com",
            Some(ClientTls {
                server_name: fixed("o.com"),
                subject_alt_names: names(&["x", "y"]),
                verify_server_name: false,
                ..simple()
            }),
        ),
        (
            entry,
            "mode: SIMPLE, subjectAltNames: [a]",
            Some(ClientTls { subject_alt_names: names(&["a"]), verify_server_name: false, ..simple() }),
        ),
        (
            "",
            "mode: SIMPLE, caCertificates: /ca, caCrl: /crl",
            Some(ClientTls { ca: Some(CaSource::Files { ca: "/ca".into(), crl: Some("/crl".into()) }), ..simple() }),
        ),
        (
            "",
            "mode: SIMPLE, caCrl: /crl",
            Some(ClientTls { ca: Some(CaSource::System { crl: Some("/crl".into()) }), ..simple() }),
        ),
        (
            "",
            "mode: SIMPLE, credentialName: c",
            Some(ClientTls { ca: Some(CaSource::Credential("c".into())), ..simple() }),
        ),
        (
            entry,
            "mode: SIMPLE, insecureSkipVerify: true",
            Some(ClientTls { ca: None, verify_server_name: false, skip_verification: true, ..simple() }),
        ),
        ("", "mode: MUTUAL, credentialName: c", Some(mutual())),
        (
            "",
            "mode: MUTUAL, clientCertificate: /c, privateKey: /k",
            Some(ClientTls { ca: Some(CaSource::System { crl: None }), certificate: files(), ..mutual() }),
        ),
        (
            "",
            "mode: MUTUAL, credentialName: c, insecureSkipVerify: true",
            Some(ClientTls { ca: None, verify_server_name: false, skip_verification: true, ..mutual() }),
        ),
        ("", "mode: ISTIO_MUTUAL", Some(istio(Vec::new()))),
        ("", "mode: ISTIO_MUTUAL, insecureSkipVerify: true", Some(istio(Vec::new()))),
        ("", "mode: ISTIO_MUTUAL, sni: o.com", Some(ClientTls { server_name: fixed("o.com"), ..istio(Vec::new()) })),
        (entry, "mode: ISTIO_MUTUAL, subjectAltNames: [a]", Some(istio(names(&["a"])))),
        (
            ", endpoints: [{address: a.com, serviceAccount: web}, {address: b.com, serviceAccount: web}], subjectAltNames: [x]",
            "mode: ISTIO_MUTUAL",
            Some(istio(names(&["spiffe://cluster.local/ns/n/sa/web", "x"]))),
        ),
    ] {
        assert_eq!(client(service, tls).as_deref(), expected.as_ref(), "{service} {tls}");
    }
}

/// A ConfigMap holds CAs, and no keys; MUTUAL with one fails closed.
#[test]
fn config_maps_hold_cas() {
    let of = |mode: &str| {
        let rule = format!("trafficPolicy: {{tls: {{mode: {mode}, credentialName: 'configmap://n/ca'}}}}");
        let options = Options { namespace: "n".into(), ..Options::default() };
        let compiled = compiled_with(&yaml("", &rule), &options);
        (cluster(&compiled).tls.clone().unwrap(), findings(&compiled, Severity::Error))
    };
    let (tls, errors) = of("SIMPLE");
    assert_eq!((tls.ca.clone(), errors.len()), (Some(CaSource::ConfigMap("ca".into())), 0));
    let (tls, errors) = of("MUTUAL");
    assert!(matches!(tls.certificate, Some(CertificateSource::Unusable(_))), "{tls:?}");
    assert!(matches!(errors.as_slice(), [one] if one.starts_with("IST0161 spec.trafficPolicy.tls.credentialName: ")));
}

/// §5.2: the block of the port and subset that counts.
#[test]
fn blocks_are_taken_whole() {
    let top = "trafficPolicy: {tls: {mode: SIMPLE, sni: top}";
    for (rule, expected) in [
        (format!("{top}}}"), Some("top")),
        (
            format!("{top}, portLevelSettings: [{{port: {{number: 443}}, tls: {{mode: SIMPLE, sni: port}}}}]}}"),
            Some("port"),
        ),
        (format!("{top}, portLevelSettings: [{{port: {{number: 443}}, connectionPool: {{tcp: {{}}}}}}]}}"), None),
        (
            format!("{top}, portLevelSettings: [{{port: {{number: 80}}, tls: {{mode: SIMPLE, sni: port}}}}]}}"),
            Some("top"),
        ),
    ] {
        let compiled = compiled(&yaml("", &rule));
        let name = cluster(&compiled).tls.as_ref().map(|tls| tls.server_name.clone());
        assert_eq!(name, expected.map(|name| ServerNameSource::Fixed(name.into())), "{rule}");
    }
    // A subset's block is for the subset, and its mesh name has the subset in it.
    let rule = "subsets: [{name: v1, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}]";
    let text = yaml("", rule).replace("host: s.com, port", "host: s.com, subset: v1, port");
    let compiled = compiled(&text);
    let tls = cluster(&compiled).tls.clone().unwrap();
    assert_eq!(tls.server_name, ServerNameSource::Fixed("outbound_.443_.v1_.s.com".into()));
}

/// The mesh's suites and curves are for clusters too, its minimum isn't.
#[test]
fn parameters_come_from_the_mesh() {
    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
                tlsDefaults: {minProtocolVersion: TLSV1_3, cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384], ecdhCurves: [P-384]}\n---\n";
    let of = |mode: &str| {
        let compiled = compiled(&(yaml("", &format!("trafficPolicy: {{tls: {{mode: {mode}}}}}")) + mesh));
        cluster(&compiled).tls.as_ref().unwrap().parameters.clone()
    };
    let expected = TlsParameters {
        cipher_suites: vec![CipherSuite::EcdheRsaAes256GcmSha384],
        groups: vec![Group::P384],
        ..TlsParameters::default()
    };
    assert_eq!(of("SIMPLE"), expected);
    assert_eq!(of("ISTIO_MUTUAL"), TlsParameters::default());
}

/// Each field that names a credential is handed out with its place, once.
#[test]
fn credentials_are_named() {
    let wanted = |compiled: &Compiled| {
        let text = |used: &crate::credential::CredentialUse| {
            let what = match &used.wanted {
                Wanted::Certificate(source) => format!("{source:?}"),
                Wanted::Ca(source) => format!("{source:?}"),
            };
            format!("{} {}: {what}", used.resource.meta.name, used.path)
        };
        compiled.credentials.iter().map(text).collect::<Vec<_>>()
    };
    let https = "{port: {number: 443, name: a, protocol: HTTPS}, hosts: [a.com], tls: {mode: MUTUAL, credentialName: c}}, \
                 {port: {number: 443, name: b, protocol: HTTPS}, hosts: [a.com], tls: {mode: SIMPLE, credentialName: lost}}";
    let rule = "trafficPolicy: {tls: {mode: MUTUAL, credentialName: d}}, \
                subsets: [{name: unused, trafficPolicy: {tls: {mode: MUTUAL, credentialName: e}}}]";
    let compiled = compiled(&(gateway("gw", "https", https) + &yaml("", rule)));
    assert_eq!(
        wanted(&compiled),
        [
            "https spec.servers[0].tls.credentialName: Secret(\"c\")",
            "https spec.servers[0].tls.credentialName: Credential(\"c\")",
            "r spec.trafficPolicy.tls.credentialName: Secret(\"d\")",
            "r spec.trafficPolicy.tls.credentialName: Credential(\"d\")",
        ]
    );
}

/// A CRL that can't count is named.
#[test]
fn ignored_lists_of_revoked_certificates() {
    for tls in [
        "mode: SIMPLE, insecureSkipVerify: true, caCrl: /crl",
        "mode: MUTUAL, insecureSkipVerify: true, credentialName: c, caCrl: /crl",
        "mode: SIMPLE, credentialName: c, caCrl: /crl",
        "mode: ISTIO_MUTUAL, caCrl: /crl",
    ] {
        let found = findings(&compiled(&yaml("", &format!("trafficPolicy: {{tls: {{{tls}}}}}"))), Severity::Warning);
        let expected = "GW0102 spec.trafficPolicy.tls.caCrl: ";
        assert!(matches!(found.as_slice(), [one] if one.starts_with(expected)), "{tls}: {found:?}");
    }
}

/// Raw TCP names no host to send; endpoints that want mutual TLS don't get it by themselves.
#[test]
fn warnings() {
    let tcp = "{port: {number: 9000, name: t, protocol: TCP}, hosts: ['*']}";
    let text =
        yaml("", "trafficPolicy: {tls: {mode: SIMPLE}}").replace(SERVER, tcp).replace("http: [{route", "tcp: [{route");
    let found = findings(&compiled(&text), Severity::Warning);
    let expected = "IST0133 spec.tcp[0].route[0].destination.host: TLS to s.com is begun without SNI";
    assert!(matches!(found.as_slice(), [one] if one.starts_with(expected)), "{found:?}");

    let entry = ", location: MESH_INTERNAL, endpoints: [{address: a.com, labels: {security.istio.io/tlsMode: istio}}]";
    let found = findings(&compiled(&yaml(entry, "trafficPolicy: {connectionPool: {tcp: {}}}")), Severity::Warning);
    let expected = "GW0101 spec.http[0].route[0].destination.host: endpoints of s.com speak Istio's mutual TLS";
    assert!(matches!(found.as_slice(), [one] if one.starts_with(expected)), "{found:?}");
    for (entry, rule) in [
        (entry, "trafficPolicy: {tls: {mode: DISABLE}}"),
        (entry, "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}"),
        (
            ", endpoints: [{address: a.com, labels: {security.istio.io/tlsMode: istio}}]",
            "trafficPolicy: {connectionPool: {tcp: {}}}",
        ),
    ] {
        assert!(compiled(&yaml(entry, rule)).diagnostics.is_empty(), "{entry} {rule}");
    }
}
