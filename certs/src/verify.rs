//! Whether a peer's certificate is good, by Envoy's rules and with Envoy's alerts.
//!
//! rustls turns the error into the alert: [`CertificateError::UnknownIssuer`] and
//! [`CertificateError::UnknownRevocationStatus`] into `unknown_ca` (48), the expired ones into `certificate_expired` (45),
//! [`CertificateError::Revoked`] into `certificate_revoked` (44), [`CertificateError::InvalidPurpose`] into
//! `unsupported_certificate` (43), [`CertificateError::Other`] into `certificate_unknown` (46). For a pin that is not met
//! Envoy sends `bad_certificate_hash_value` (114), which rustls has no error for; it gets 46.
//!
//! Source: `reference/security.md` §4.2, `reference/networking.md` §2.6, §5.7.

mod chain;
mod names;

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::authority::Authority;
use crate::certificate::{Certificate, SubjectAltName};
use crate::signature;
use chain::Purpose;

/// What a client's certificate must be like besides having a trusted issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientRules {
    /// One of these must be one of its names, of any type; empty: not checked.
    pub subject_alt_names: Vec<Arc<str>>,
    /// SHA-256 of SubjectPublicKeyInfos. With `certificate_hashes`, a hit in either list will do; both empty: not checked.
    pub spki_pins: Vec<[u8; 32]>,
    /// SHA-256 of whole certificates.
    pub certificate_hashes: Vec<[u8; 32]>,
    /// Take every certificate that the client has the key of.
    pub skip_verification: bool,
}

/// What a server's certificate must be like besides having a trusted issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerRules {
    /// One of these must be one of its names, of any type; empty: not checked.
    pub subject_alt_names: Vec<Arc<str>>,
    /// It must be valid for the name that rustls connects to, too.
    pub verify_name: bool,
    /// Take every certificate that the server has the key of.
    pub skip_verification: bool,
}

/// Why a certificate with a trusted issuer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// None of the names is in the list.
    #[error("none of the certificate's names [{presented}] is allowed")]
    SubjectAltNames {
        /// The certificate's names.
        presented: Presented,
    },
    /// It is not for the server that was asked for.
    #[error("the certificate is for [{presented}], not for {expected}")]
    ServerName {
        /// Host name or IP address.
        expected: String,
        /// The certificate's names.
        presented: Presented,
    },
    /// Neither its key nor itself is among those that are pinned.
    #[error("neither the certificate nor its key is pinned")]
    Pin,
}

impl Refusal {
    /// The refusal in an error of a handshake.
    pub fn of(error: &Error) -> Option<&Self> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.downcast_ref(),
            _ => None,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// The names of a certificate: `a, b`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented(Vec<SubjectAltName>);

impl std::fmt::Display for Presented {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, name) in self.0.iter().enumerate() {
            let separator = if position > 0 { ", " } else { "" };
            write!(f, "{separator}{name}")?;
        }
        Ok(())
    }
}

/// Checks clients. Without an authority every certificate is refused, unless verification is skipped; `mandatory`: one
/// must be sent.
pub fn client(authority: Option<Arc<Authority>>, mandatory: bool, rules: ClientRules) -> Arc<dyn ClientCertVerifier> {
    Arc::new(Clients { authority, mandatory, rules })
}

/// Checks servers. Without an authority every certificate is refused, unless verification is skipped.
pub fn server(authority: Option<Arc<Authority>>, rules: ServerRules) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Servers { authority, rules })
}

/// How Envoy says in its log why a certificate was refused: what stands between `verify_cert_failed:` and
/// `:TLS_error_end`. `None` for errors of another kind.
pub fn envoy_reason(error: &Error) -> Option<String> {
    let Error::InvalidCertificate(error_of_certificate) = error else { return None };
    let reason = match (Refusal::of(error), error_of_certificate) {
        (Some(Refusal::SubjectAltNames { presented }), _) => {
            format!(" SAN matcher, certificate SANs are [{presented}]")
        }
        (Some(Refusal::ServerName { expected, presented }), _) => {
            format!(" verify SAN list, expected SANs: [{expected}], certificate SANs: [{presented}]")
        }
        (Some(Refusal::Pin), _) => " cert hash and spki".to_owned(),
        (None, error) => {
            let reason = chain::openssl_reason(error);
            format!(" X509_verify_cert: certificate verification error at depth 0: {reason}")
        }
    };
    Some(reason.replace(' ', "_"))
}

#[derive(Debug)]
struct Clients {
    authority: Option<Arc<Authority>>,
    mandatory: bool,
    rules: ClientRules,
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authority.as_ref().map_or(&[], |authority| authority.subjects())
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let ClientRules { subject_alt_names, spki_pins, certificate_hashes, skip_verification } = &self.rules;
        if *skip_verification {
            return Ok(ClientCertVerified::assertion());
        }
        chain::check(self.authority.as_deref(), leaf, intermediates, now, Purpose::Client)?;

        let pinned = !spki_pins.is_empty() || !certificate_hashes.is_empty();
        if !subject_alt_names.is_empty() || pinned {
            let certificate = Certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
            check_list(&certificate, subject_alt_names)?;
            let hit =
                spki_pins.contains(certificate.spki_sha256()) || certificate_hashes.contains(certificate.sha256());
            if pinned && !hit {
                return Err(Refusal::Pin.into());
            }
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::check_tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::check_tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature::algorithms().supported_schemes()
    }
}

#[derive(Debug)]
struct Servers {
    authority: Option<Arc<Authority>>,
    rules: ServerRules,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ServerRules { subject_alt_names, verify_name, skip_verification } = &self.rules;
        if *skip_verification {
            return Ok(ServerCertVerified::assertion());
        }
        chain::check(self.authority.as_deref(), leaf, intermediates, now, Purpose::Server)?;

        if *verify_name || !subject_alt_names.is_empty() {
            let certificate = Certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
            let expected = server_name.to_str();
            if *verify_name && !names::matches(certificate.subject_alt_names(), &expected) {
                let presented = Presented(certificate.subject_alt_names().to_vec());
                return Err(Refusal::ServerName { expected: expected.into_owned(), presented }.into());
            }
            check_list(&certificate, subject_alt_names)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::check_tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::check_tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature::algorithms().supported_schemes()
    }
}

fn check_list(certificate: &Certificate, allowed: &[Arc<str>]) -> Result<(), Error> {
    let names = certificate.subject_alt_names();
    if allowed.is_empty() || allowed.iter().any(|allowed| names::matches(names, allowed)) {
        return Ok(());
    }
    Err(Refusal::SubjectAltNames { presented: Presented(names.to_vec()) }.into())
}
