//! §10.3.

use std::collections::BTreeSet;

use super::Findings;
use super::primitive::{is_dns_label, is_ip, is_unix_address, is_wildcard_domain, port, tls_list};
use crate::resource::Meta;
use crate::resource::gateway::{Gateway, Server, ServerTlsMode, ServerTlsSettings, TlsProtocol};
use crate::tls_lists;

/// What a protocol means for its server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Http,
    Tls,
    Tcp,
}

fn class(protocol: &str) -> Option<Class> {
    match protocol.to_ascii_uppercase().as_str() {
        "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" | "HTTP_PROXY" => Some(Class::Http),
        "HTTPS" | "TLS" => Some(Class::Tls),
        "TCP" | "MONGO" | "REDIS" | "MYSQL" => Some(Class::Tcp),
        _ => None,
    }
}

pub(super) fn validate(meta: &Meta, gateway: &Gateway, findings: &mut Findings) {
    let Gateway { servers, selector: _ } = gateway;
    if !is_dns_label(&meta.name) {
        findings.error("metadata.name", format!("`{}` can't be the name of a Gateway: no DNS label", meta.name));
    }
    if servers.is_empty() {
        findings.error("spec.servers", "a Gateway needs a server");
    }
    let mut names = BTreeSet::new();
    for (index, server) in servers.iter().enumerate() {
        let path = format!("spec.servers[{index}]");
        self::server(&path, server, findings);
        if let Some(port) = &server.port
            && !port.name.is_empty()
            && !names.insert(&port.name)
        {
            findings
                .error(format!("{path}.port.name"), format!("port name `{}` stands twice in this Gateway", port.name));
        }
    }
}

fn server(path: &str, server: &Server, findings: &mut Findings) {
    let Server { port, bind, hosts, tls, default_endpoint: _, name: _ } = server;
    if hosts.is_empty() {
        findings.error(format!("{path}.hosts"), "a server needs hosts").help("`*` takes all");
    }
    for (index, host) in hosts.iter().enumerate() {
        self::host(&format!("{path}.hosts[{index}]"), host, findings);
    }
    let unix = bind.strip_prefix("unix://");
    match unix {
        Some(address) if !is_unix_address(address) => {
            findings.error(format!("{path}.bind"), format!("`{bind}` is no unix socket"));
        }
        None if !bind.is_empty() && !is_ip(bind) => {
            findings.error(format!("{path}.bind"), format!("`{bind}` is neither an IP address nor a unix socket"));
        }
        _ => {}
    }
    let Some(port) = port else {
        findings.error(format!("{path}.port"), "a server needs a port");
        return;
    };
    match unix {
        Some(_) if port.number != 0 => {
            findings.error(format!("{path}.port.number"), "a server on a unix socket has port 0");
        }
        Some(_) => {}
        None => self::port(&format!("{path}.port.number"), port.number, findings),
    }
    if port.name.is_empty() {
        findings.error(format!("{path}.port.name"), "a port needs a name");
    }
    if port.target_port > 0 {
        findings
            .error(format!("{path}.port.targetPort"), "a Gateway has no target port")
            .help("the targetPort of the Service in front decides");
    }
    let Some(class) = class(&port.protocol) else {
        let message = format!("unknown protocol `{}`", port.protocol);
        findings
            .error(format!("{path}.port.protocol"), message)
            .help("use one of: HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO, REDIS, MYSQL");
        return;
    };
    match (class, tls) {
        (Class::Tls, None) => {
            findings.error(format!("{path}.tls"), format!("a server of protocol {} needs `tls`", port.protocol));
        }
        (Class::Http, Some(tls)) if tls.mode != ServerTlsMode::Passthrough || has_credentials(tls) => {
            findings
                .error(format!("{path}.tls"), format!("a server of protocol {} can't terminate TLS", port.protocol))
                .help("use protocol HTTPS, or leave only `httpsRedirect`");
        }
        (Class::Tcp, Some(_)) => {
            findings
                .error(format!("{path}.tls"), format!("a server of protocol {} can't have `tls`", port.protocol))
                .help("use protocol TLS");
        }
        (Class::Http, Some(tls)) => {
            unused(&format!("{path}.tls"), tls, "has no effect on a server of plain HTTP", findings);
        }
        (Class::Tls, Some(settings)) => {
            self::tls(&format!("{path}.tls"), settings, findings);
            if settings.https_redirect {
                findings
                    .warning(format!("{path}.tls.httpsRedirect"), "has no effect on a server that isn't plain HTTP");
            }
        }
        _ => {}
    }
}

fn has_credentials(tls: &ServerTlsSettings) -> bool {
    !tls.server_certificate.is_empty()
        || !tls.private_key.is_empty()
        || !tls.tls_certificates.is_empty()
        || !tls.credential_name.is_empty()
        || !tls.credential_names.is_empty()
        || !tls.ca_certificates.is_empty()
        || !tls.ca_cert_credential_name.is_empty()
}

/// Names what says how to terminate TLS, where none is; without the credentials.
fn unused(path: &str, tls: &ServerTlsSettings, message: &str, findings: &mut Findings) {
    let ServerTlsSettings {
        https_redirect: _,
        mode: _,
        server_certificate: _,
        private_key: _,
        ca_certificates: _,
        ca_crl,
        tls_certificates: _,
        credential_name: _,
        credential_names: _,
        ca_cert_credential_name: _,
        subject_alt_names,
        verify_certificate_spki,
        verify_certificate_hash,
        min_protocol_version,
        max_protocol_version,
        cipher_suites,
        ecdh_curves,
        insecure_skip_verify,
    } = tls;
    let fields = [
        ("caCrl", !ca_crl.is_empty()),
        ("subjectAltNames", !subject_alt_names.is_empty()),
        ("verifyCertificateSpki", !verify_certificate_spki.is_empty()),
        ("verifyCertificateHash", !verify_certificate_hash.is_empty()),
        ("minProtocolVersion", *min_protocol_version != TlsProtocol::Auto),
        ("maxProtocolVersion", *max_protocol_version != TlsProtocol::Auto),
        ("cipherSuites", !cipher_suites.is_empty()),
        ("ecdhCurves", !ecdh_curves.is_empty()),
        ("insecureSkipVerify", insecure_skip_verify.unwrap_or(false)),
    ];
    for (field, _) in fields.into_iter().filter(|(_, is_set)| *is_set) {
        findings.warning(format!("{path}.{field}"), message);
    }
}

/// `[namespace/]name`.
fn host(path: &str, host: &str, findings: &mut Findings) {
    let (namespace, name) = host.split_once('/').map_or((None, host), |(namespace, name)| (Some(namespace), name));
    if let Some(namespace) = namespace
        && !matches!(namespace, "*" | ".")
        && !is_dns_label(namespace)
    {
        findings.error(path, format!("`{namespace}` is no namespace"));
    }
    if name == "*" || is_ip(name) {
        return;
    }
    if name.starts_with('*') && !name.starts_with("*.") {
        findings.error(path, format!("`{name}`: a `*` must be a whole label")).help("`*.example.com` or `*`");
    } else if !is_wildcard_domain(name) {
        findings.error(path, format!("`{name}` is no host name"));
    } else if !name.contains('.') {
        findings.error(path, format!("`{name}` is a short name, which a Gateway can't have"));
    }
}

fn tls(path: &str, tls: &ServerTlsSettings, findings: &mut Findings) {
    let files = !tls.server_certificate.is_empty() || !tls.private_key.is_empty();
    let sources =
        [!tls.credential_name.is_empty(), !tls.credential_names.is_empty(), files, !tls.tls_certificates.is_empty()];
    if sources.iter().filter(|used| **used).count() > 1 {
        findings
            .error(path, "certificates come from more than one place")
            .help("use one of: credentialName, credentialNames, serverCertificate with privateKey, tlsCertificates");
    }
    let by_name = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    if tls.mode == ServerTlsMode::IstioMutual {
        if has_credentials(tls) {
            findings.error(path, "ISTIO_MUTUAL uses the workload's own certificate, and takes no other");
        }
        let parameters = [
            ("minProtocolVersion", tls.min_protocol_version != TlsProtocol::Auto),
            ("maxProtocolVersion", tls.max_protocol_version != TlsProtocol::Auto),
            ("cipherSuites", !tls.cipher_suites.is_empty()),
            ("ecdhCurves", !tls.ecdh_curves.is_empty()),
        ];
        for (field, _) in parameters.into_iter().filter(|(_, is_set)| *is_set) {
            findings.warning(format!("{path}.{field}"), "has no effect with ISTIO_MUTUAL");
        }
        return;
    }
    let terminates = matches!(tls.mode, ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    if !terminates {
        if has_credentials(tls) {
            let help = "set `mode` (SIMPLE, MUTUAL ...), whose default is PASSTHROUGH";
            findings.warning(path, "certificates are not used, because TLS is passed through").help(help);
        }
        unused(path, tls, "has no effect, because TLS is passed through", findings);
        return;
    }
    if tls.tls_certificates.len() > 2 {
        findings.warning(format!("{path}.tlsCertificates"), "only two certificates are used");
    }
    for (index, pair) in tls.tls_certificates.iter().enumerate() {
        if pair.server_certificate.is_empty() || pair.private_key.is_empty() {
            let path = format!("{path}.tlsCertificates[{index}]");
            findings.error(path, "needs `serverCertificate` and `privateKey`");
        }
    }
    if !by_name && tls.tls_certificates.is_empty() {
        for (field, value) in [("serverCertificate", &tls.server_certificate), ("privateKey", &tls.private_key)] {
            if value.is_empty() {
                findings
                    .error(format!("{path}.{field}"), format!("{} TLS needs `{field}`", mode_name(tls.mode)))
                    .help("or name a Secret with `credentialName`");
            }
        }
    }
    let verifies = matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    if verifies && !by_name && tls.ca_certificates.is_empty() {
        findings
            .error(format!("{path}.caCertificates"), "client certificates can't be verified without `caCertificates`");
    }
    if !tls.ca_crl.is_empty() && tls.mode == ServerTlsMode::Simple && !by_name {
        findings.error(format!("{path}.caCrl"), "SIMPLE TLS verifies no client certificate, and needs no CRL");
    }
    if tls.mode == ServerTlsMode::Simple && by_name && !tls.subject_alt_names.is_empty() {
        findings
            .error(format!("{path}.subjectAltNames"), "SIMPLE TLS asks clients for no certificate to have such a name")
            .help("use MUTUAL, or leave them out");
    }
    if tls.credential_names.len() > 2 {
        findings.error(format!("{path}.credentialNames"), "at most two certificates can be named");
    }
    if let Some(index) = tls.credential_names.iter().position(String::is_empty) {
        findings.error(format!("{path}.credentialNames[{index}]"), "must not be empty");
    }
    pins(path, tls, findings);
    parameters(path, tls, findings);
}

fn pins(path: &str, tls: &ServerTlsSettings, findings: &mut Findings) {
    for (index, pin) in tls.verify_certificate_spki.iter().enumerate() {
        if tls_lists::spki_pin(pin).is_none() {
            let message = format!("`{pin}` is no SHA-256 in base64");
            findings.error(format!("{path}.verifyCertificateSpki[{index}]"), message);
        }
    }
    for (index, hash) in tls.verify_certificate_hash.iter().enumerate() {
        if tls_lists::certificate_hash(hash).is_none() {
            let message = format!("`{hash}` is no SHA-256 in hexadecimal digits");
            findings.error(format!("{path}.verifyCertificateHash[{index}]"), message);
        }
    }
}

/// Versions, suites and curves.
fn parameters(path: &str, tls: &ServerTlsSettings, findings: &mut Findings) {
    let is_old = |version| matches!(version, TlsProtocol::V1_0 | TlsProtocol::V1_1);
    let (min, max) = (tls.min_protocol_version, tls.max_protocol_version);
    if is_old(min) {
        findings
            .warning(format!("{path}.minProtocolVersion"), "TLS below 1.2 is not offered")
            .help("clients that can't speak TLS 1.2 are refused");
    }
    if is_old(max) {
        findings
            .warning(format!("{path}.maxProtocolVersion"), "TLS below 1.2 is not offered: no client can connect")
            .help("use TLSV1_2 or TLSV1_3");
    } else if max != TlsProtocol::Auto && min > max {
        findings.warning(format!("{path}.maxProtocolVersion"), "is below the minimum: no client can connect");
    }
    let suites = tls_lists::cipher_suites(&tls.cipher_suites);
    tls_list(&format!("{path}.cipherSuites"), &tls.cipher_suites, &suites, findings);
    tls_list(&format!("{path}.ecdhCurves"), &tls.ecdh_curves, &tls_lists::groups(&tls.ecdh_curves), findings);
}

fn mode_name(mode: ServerTlsMode) -> &'static str {
    match mode {
        ServerTlsMode::Passthrough => "PASSTHROUGH",
        ServerTlsMode::Simple => "SIMPLE",
        ServerTlsMode::Mutual => "MUTUAL",
        ServerTlsMode::AutoPassthrough => "AUTO_PASSTHROUGH",
        ServerTlsMode::IstioMutual => "ISTIO_MUTUAL",
        ServerTlsMode::OptionalMutual => "OPTIONAL_MUTUAL",
    }
}
