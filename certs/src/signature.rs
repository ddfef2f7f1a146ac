//! Signatures by public keys of certificates.

use std::sync::LazyLock;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use webpki::RawPublicKeyEntity;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::BitString;
use x509_parser::x509::AlgorithmIdentifier;

use crate::certificate;

/// What signatures may be made with.
pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    // A constant, which is to be had only with the rest of a provider.
    static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> =
        LazyLock::new(|| aws_lc_rs::default_provider().signature_verification_algorithms);
    *ALGORITHMS
}

/// A signed part of a certificate or CRL.
pub(crate) struct Signed<'a> {
    pub(crate) message: &'a [u8],
    pub(crate) algorithm: &'a AlgorithmIdentifier<'a>,
    pub(crate) signature: &'a BitString<'a>,
}

impl<'a> Signed<'a> {
    pub(crate) fn certificate(certificate: &'a X509Certificate<'_>) -> Self {
        Self {
            message: certificate.tbs_certificate.as_ref(),
            algorithm: &certificate.signature_algorithm,
            signature: &certificate.signature_value,
        }
    }

    /// Whether the key of this SubjectPublicKeyInfo has made the signature.
    pub(crate) fn is_by(&self, key: &[u8]) -> bool {
        let key = SubjectPublicKeyInfoDer::from(key);
        let Ok(key) = RawPublicKeyEntity::try_from(&key) else { return false };
        let named = self.algorithm.algorithm.as_bytes();
        algorithms().all.iter().any(|algorithm| {
            // An OBJECT IDENTIFIER, and parameters behind it.
            let id = algorithm.signature_alg_id();
            let [6, length, id @ ..] = id.as_ref() else { return false };
            id.get(..usize::from(*length)) == Some(named)
                && key.verify_signature(*algorithm, self.message, &self.signature.data).is_ok()
        })
    }
}

/// The proof of TLS 1.2 that the peer has the key of its certificate. Of the certificate nothing but the key matters:
/// rustls's own function refuses some that OpenSSL takes.
pub(crate) fn check_tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let key = public_key(certificate)?;
    let key = RawPublicKeyEntity::try_from(&key).map_err(|_| CertificateError::BadEncoding)?;
    let algorithms = algorithms();
    let mapped = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
    let Some((_, candidates)) = mapped else {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    };
    // The scheme does not tell the curve.
    if candidates.iter().any(|candidate| key.verify_signature(*candidate, message, signed.signature()).is_ok()) {
        Ok(HandshakeSignatureValid::assertion())
    } else {
        Err(CertificateError::BadSignature.into())
    }
}

/// The same for TLS 1.3.
pub(crate) fn check_tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(message, &public_key(certificate)?, signed, &algorithms())
}

fn public_key(certificate: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    let parsed = certificate::parse(certificate).map_err(|_| CertificateError::BadEncoding)?;
    Ok(SubjectPublicKeyInfoDer::from(parsed.public_key().raw.to_vec()))
}
