//! What format strings tell of TLS connections and their certificates.
//!
//! Source: `reference/telemetry-and-operations.md` §4.5.

use std::fmt::Display;
use std::io::Write;

use certs::certificate::Certificate;
use config::snapshot::format::{CertificateFact, TlsEnd, TlsFact};

use super::{Kind, text, time};
use crate::request::{Facts, TlsFacts};

/// Appends the value of one command.
pub(super) fn write(end: TlsEnd, fact: &TlsFact, facts: &Facts, out: &mut Vec<u8>) -> Kind {
    let tls = match end {
        TlsEnd::Downstream => &facts.connection.tls,
        TlsEnd::Upstream => &facts.upstream_tls,
    };
    let Some(tls) = tls else { return Kind::Absent };
    let TlsFacts { version, cipher, group, peer, .. } = &**tls;
    match fact {
        TlsFact::Version => text(Some(version), out),
        TlsFact::Cipher => text(Some(cipher), out),
        TlsFact::Group => text(*group, out),
        TlsFact::Peer(fact) => certificate(fact, peer.as_ref(), out),
        TlsFact::Local(fact) => certificate(fact, tls.local_certificate(), out),
    }
}

fn certificate(fact: &CertificateFact, certificate: Option<&Certificate>, out: &mut Vec<u8>) -> Kind {
    let Some(certificate) = certificate else { return Kind::Absent };
    match fact {
        CertificateFact::Subject => text(Some(certificate.subject()).filter(|name| !name.is_empty()), out),
        CertificateFact::Issuer => text(Some(certificate.issuer()).filter(|name| !name.is_empty()), out),
        CertificateFact::Serial => text(Some(certificate.serial()), out),
        CertificateFact::Fingerprint256 => hex(certificate.sha256(), out),
        CertificateFact::Fingerprint1 => hex(&certificate.sha1(), out),
        CertificateFact::UriSans => list(certificate.uris(), out),
        CertificateFact::DnsSans => list(certificate.dns(), out),
        CertificateFact::IpSans => list(certificate.ips(), out),
        CertificateFact::EmailSans => list(certificate.emails(), out),
        CertificateFact::Pem => text(Some(certificate.url_encoded_pem()), out),
        CertificateFact::NotBefore(format) => time(certificate.not_before(), format.as_deref(), out),
        CertificateFact::NotAfter(format) => time(certificate.not_after(), format.as_deref(), out),
    }
}

/// The members with commas between; absent without any.
fn list(members: impl Iterator<Item = impl Display>, out: &mut Vec<u8>) -> Kind {
    let mut kind = Kind::Absent;
    for member in members {
        let comma = if kind == Kind::Absent { "" } else { "," };
        // Writing to a `Vec` can't fail.
        let _ = write!(out, "{comma}{member}");
        kind = Kind::Text;
    }
    kind
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) -> Kind {
    for byte in bytes {
        // Writing to a `Vec` can't fail.
        let _ = write!(out, "{byte:02x}");
    }
    Kind::Text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;

    use certs::credential::Credential;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, SerialNumber, date_time_ymd};

    use super::*;
    use crate::request::ConnectionFacts;

    /// A certificate of its own, with its key.
    fn credential() -> Credential {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "exp, Inc");
        params.distinguished_name.push(DnType::CommonName, "client one");
        params.serial_number = Some(SerialNumber::from_slice(&[0x1a, 0x2b]));
        params.not_before = date_time_ymd(2026, 1, 2);
        params.not_after = date_time_ymd(2036, 9, 18);
        params.subject_alt_names = vec![
            SanType::URI("spiffe://cluster.local/ns/a/sa/b".try_into().unwrap()),
            SanType::DnsName("client.example.com".try_into().unwrap()),
            SanType::URI("urn:x".try_into().unwrap()),
            SanType::IpAddress("10.1.2.3".parse().unwrap()),
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Credential::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes(), None).unwrap()
    }

    fn facts(downstream: Option<TlsFacts>, upstream: Option<TlsFacts>) -> Facts {
        let mut facts = Facts::of_connection(Rc::new(ConnectionFacts {
            port: 443,
            tls: downstream.map(Arc::new),
            ..ConnectionFacts::unknown()
        }));
        facts.upstream_tls = upstream.map(Arc::new);
        facts
    }

    fn evaluate(end: TlsEnd, fact: &TlsFact, facts: &Facts) -> Option<String> {
        let mut out = Vec::new();
        let kind = write(end, fact, facts, &mut out);
        assert_ne!(kind, Kind::Number);
        (kind == Kind::Text).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn connections_and_certificates_print_as_envoy_prints_them() {
        let credential = Arc::new(credential());
        let tls = TlsFacts {
            version: "TLSv1.3",
            cipher: "TLS_AES_256_GCM_SHA384",
            group: Some("X25519"),
            alpn: None,
            peer: Some(credential.leaf().clone()),
            local: None,
            resumed: false,
        };
        let upstream = TlsFacts { peer: None, local: Some(Arc::clone(&credential)), version: "TLSv1.2", ..tls.clone() };
        let facts = facts(Some(tls), Some(upstream));
        for (end, fact, expected) in [
            (TlsEnd::Downstream, TlsFact::Version, Some("TLSv1.3")),
            (TlsEnd::Downstream, TlsFact::Cipher, Some("TLS_AES_256_GCM_SHA384")),
            (TlsEnd::Downstream, TlsFact::Group, Some("X25519")),
            (TlsEnd::Upstream, TlsFact::Version, Some("TLSv1.2")),
            (TlsEnd::Downstream, TlsFact::Peer(CertificateFact::Subject), Some("CN=client one,O=exp\\, Inc")),
            (TlsEnd::Downstream, TlsFact::Peer(CertificateFact::Issuer), Some("CN=client one,O=exp\\, Inc")),
            (TlsEnd::Downstream, TlsFact::Peer(CertificateFact::Serial), Some("1a2b")),
            (
                TlsEnd::Downstream,
                TlsFact::Peer(CertificateFact::UriSans),
                Some("spiffe://cluster.local/ns/a/sa/b,urn:x"),
            ),
            (TlsEnd::Downstream, TlsFact::Peer(CertificateFact::DnsSans), Some("client.example.com")),
            (TlsEnd::Downstream, TlsFact::Peer(CertificateFact::IpSans), Some("10.1.2.3")),
            (TlsEnd::Downstream, TlsFact::Peer(CertificateFact::EmailSans), None),
            (TlsEnd::Downstream, TlsFact::Peer(CertificateFact::NotBefore(None)), Some("2026-01-02T00:00:00.000Z")),
            (TlsEnd::Downstream, TlsFact::Peer(CertificateFact::NotAfter(Some("%b_%Y".to_owned()))), Some("Sep_2036")),
            (TlsEnd::Downstream, TlsFact::Local(CertificateFact::Subject), None),
            (TlsEnd::Upstream, TlsFact::Peer(CertificateFact::Subject), None),
            (TlsEnd::Upstream, TlsFact::Local(CertificateFact::DnsSans), Some("client.example.com")),
        ] {
            assert_eq!(evaluate(end, &fact, &facts).as_deref(), expected, "{end:?} {fact:?}");
        }
        let der = credential.leaf().der();
        let digest = |algorithm| {
            let digest = aws_lc_rs::digest::digest(algorithm, der);
            digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        for (fact, algorithm) in [
            (CertificateFact::Fingerprint256, &aws_lc_rs::digest::SHA256),
            (CertificateFact::Fingerprint1, &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY),
        ] {
            assert_eq!(evaluate(TlsEnd::Downstream, &TlsFact::Peer(fact), &facts), Some(digest(algorithm)));
        }
    }

    #[test]
    fn plaintext_has_nothing_to_tell() {
        let facts = facts(None, None);
        for fact in [TlsFact::Version, TlsFact::Peer(CertificateFact::Subject)] {
            assert_eq!(evaluate(TlsEnd::Downstream, &fact, &facts), None);
            assert_eq!(evaluate(TlsEnd::Upstream, &fact, &facts), None);
        }
    }
}
