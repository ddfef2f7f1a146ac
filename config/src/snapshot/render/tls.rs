//! TLS in words. Certificates are named by where they come from, which is no secret.

use crate::snapshot::tls::{
    CaSource, CertificateSource, ClientAuthentication, ClientMode, ClientTls, PeerTrust, ServerMode, ServerNameSource,
    ServerTls, TlsParameters, TlsVersion,
};

/// `SIMPLE`.
pub(super) fn server_mode(mode: ServerMode) -> &'static str {
    match mode {
        ServerMode::Simple => "SIMPLE",
        ServerMode::Mutual => "MUTUAL",
        ServerMode::OptionalMutual => "OPTIONAL_MUTUAL",
        ServerMode::IstioMutual => "ISTIO_MUTUAL",
    }
}

/// Of a server: certificates, what is asked of clients, and parameters that differ from the default.
pub(super) fn server(tls: &ServerTls) -> Vec<String> {
    let ServerTls { mode: _, certificates, client, parameters, alpn } = tls;
    let mut lines: Vec<String> = certificates.iter().map(certificate).collect();
    if certificates.is_empty() {
        lines.push("no certificate".to_owned());
    }
    match client {
        ClientAuthentication::None => {}
        ClientAuthentication::Optional(trust) => lines.extend(peer(trust, "client certificate if sent")),
        ClientAuthentication::Required(trust) => lines.extend(peer(trust, "client certificate needed")),
    }
    lines.extend(self::parameters(parameters));
    lines.push(format!("alpn {}", alpn.join(", ")));
    lines
}

fn peer(trust: &PeerTrust, what: &str) -> Vec<String> {
    let PeerTrust { ca: source, subject_alt_names, spki_pins, certificate_hashes, skip_verification } = trust;
    let skip = if *skip_verification { ", not verified" } else { "" };
    let mut lines = vec![format!("{what}{skip}"), ca(source)];
    if !subject_alt_names.is_empty() {
        lines.push(format!("client names {}", subject_alt_names.join(", ")));
    }
    for (what, pins) in [("key", spki_pins), ("certificate", certificate_hashes)] {
        if !pins.is_empty() {
            lines.push(format!("client {what} is one of {} pinned", pins.len()));
        }
    }
    lines
}

/// Of a cluster, as the first line and further ones.
pub(super) fn client(tls: &ClientTls) -> Vec<String> {
    let ClientTls {
        mode,
        server_name,
        ca: source,
        subject_alt_names,
        verify_server_name,
        skip_verification,
        certificate: own,
        parameters,
    } = tls;
    let mode = match mode {
        ClientMode::Simple => "SIMPLE",
        ClientMode::Mutual => "MUTUAL",
        ClientMode::IstioMutual => "ISTIO_MUTUAL",
    };
    let name = match server_name {
        ServerNameSource::Request => "the request's host",
        ServerNameSource::Fixed(name) => name,
    };
    let check = match (skip_verification, verify_server_name) {
        (true, _) => ", not verified",
        (false, true) => ", which is verified",
        (false, false) => "",
    };
    let mut lines = vec![format!("tls {mode}, SNI {name}{check}")];
    lines.extend(own.as_ref().map(certificate));
    lines.extend(source.as_ref().map(ca));
    if !subject_alt_names.is_empty() {
        lines.push(format!("server names {}", subject_alt_names.join(", ")));
    }
    lines.extend(self::parameters(parameters));
    lines
}

fn certificate(source: &CertificateSource) -> String {
    match source {
        CertificateSource::Secret(name) => format!("certificate Secret {name}"),
        CertificateSource::Files { certificate, key } => {
            format!("certificate {}, key {}", certificate.display(), key.display())
        }
        CertificateSource::Workload => "certificate of this workload".to_owned(),
        CertificateSource::Unusable(reason) => format!("no certificate: {reason}"),
    }
}

fn ca(source: &CaSource) -> String {
    let (text, crl) = match source {
        CaSource::Credential(name) => (format!("ca Secret {name}-cacert or {name}"), &None),
        CaSource::Secret(name) => (format!("ca Secret {name}"), &None),
        CaSource::ConfigMap(name) => (format!("ca ConfigMap {name}"), &None),
        CaSource::Files { ca, crl } => (format!("ca {}", ca.display()), crl),
        CaSource::Workload { crl } => ("ca of the mesh".to_owned(), crl),
        CaSource::System { crl } => ("ca of the operating system".to_owned(), crl),
        CaSource::Unusable(reason) => (format!("no ca: {reason}"), &None),
    };
    match crl {
        Some(crl) => format!("{text}, crl {}", crl.display()),
        None => text,
    }
}

/// What differs from the default.
fn parameters(parameters: &TlsParameters) -> Vec<String> {
    let TlsParameters { min, max, cipher_suites, groups } = parameters;
    let default = TlsParameters::default();
    let mut lines = Vec::new();
    if (*min, *max) != (default.min, default.max) {
        lines.push(format!("versions {} to {}", version(*min), version(*max)));
    }
    if !cipher_suites.is_empty() {
        let names: Vec<_> = cipher_suites.iter().map(|suite| suite.name()).collect();
        lines.push(format!("cipher suites {}", names.join(", ")));
    }
    if !groups.is_empty() {
        let names: Vec<_> = groups.iter().map(|group| group.name()).collect();
        lines.push(format!("curves {}", names.join(", ")));
    }
    lines
}

fn version(version: TlsVersion) -> &'static str {
    match version {
        TlsVersion::V1_0 => "1.0",
        TlsVersion::V1_1 => "1.1",
        TlsVersion::V1_2 => "1.2",
        TlsVersion::V1_3 => "1.3",
    }
}
