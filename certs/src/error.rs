//! Why material can't be used.

use std::fmt;

use crate::Entries;

/// Why a certificate, key, CA, CRL or OCSP response can't be used, and what cures it. Never shows what a key consists
/// of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A Secret without certificate and key.
    #[error("found secret, but didn't have expected keys (cert and key) or (tls.crt and tls.key); found: {0}")]
    NoPair(Found),
    /// A Secret without trust anchors.
    #[error("found secret, but didn't have expected keys cacert or ca.crt; found: {0}")]
    NoAuthority(Found),
    /// Certificate and key are there, without content.
    #[error("found keys \"{0}\" and \"{1}\", but they were empty")]
    EmptyPair(&'static str, &'static str),
    /// Trust anchors are there, without content.
    #[error("found key \"{0}\", but it was empty")]
    EmptyAuthority(&'static str),
    /// The text is no PEM.
    #[error("the {0} is not valid PEM; it must consist of intact -----BEGIN …----- blocks")]
    Pem(Part),
    /// PEM without a block of the kind that is needed.
    #[error("the {part} has no PEM block {label}", label = .0.label(), part = .0)]
    NoBlock(Part),
    /// A certificate that is no X.509.
    #[error("block {number} of the {part} is not an X.509 certificate")]
    Certificate {
        /// Where it stands.
        part: Part,
        /// Counted from 1.
        number: usize,
    },
    /// Not the DER of one certificate.
    #[error("not an X.509 certificate")]
    NotACertificate,
    /// A certificate that can't be a trust anchor.
    #[error("certificate {0} of the CA bundle can't be used as a trust anchor: its DER is not valid")]
    Anchor(usize),
    /// A key that a pass phrase protects.
    #[error("the private key is encrypted, which is not supported; decrypt it, e.g. with openssl pkey")]
    EncryptedKey,
    /// An RSA key below 2048 bits.
    #[error("the RSA key has {0} bits, which is too few; make one of 2048 bits or more")]
    WeakKey(usize),
    /// A key of a kind or in a form that is not known.
    #[error(
        "the private key can't be used; it must be RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521) or Ed25519"
    )]
    Key,
    /// The key is another certificate's.
    #[error("the private key does not belong to the certificate; the chain must begin with the certificate of the key")]
    Mismatch,
    /// An OCSP response that is no such thing.
    #[error("the OCSP staple is not a successful OCSP response in DER")]
    Staple,
    /// An OCSP response about something else.
    #[error("the OCSP staple is for another certificate")]
    ForeignStaple,
    /// A certificate that asks for a staple and has none.
    #[error(
        "the certificate demands an OCSP staple (TLS feature status_request), but there is none; add tls.ocsp-staple"
    )]
    MissingStaple,
    /// A CRL that can't be used.
    #[error("CRL {0} can't be used: it must be a valid X.509 v2 CRL with nextUpdate, and no delta CRL")]
    Crl(usize),
    /// The operating system has no roots.
    #[error("the operating system has no CA certificates; install ca-certificates or set SSL_CERT_FILE")]
    NoSystemRoots,
}

/// What a PEM text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants say it")]
pub enum Part {
    Chain,
    Key,
    Authority,
    Crl,
}

impl Part {
    fn label(self) -> &'static str {
        match self {
            Self::Chain | Self::Authority => "CERTIFICATE",
            Self::Key => "PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY",
            Self::Crl => "X509 CRL",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chain => "certificate chain",
            Self::Key => "private key",
            Self::Authority => "CA bundle",
            Self::Crl => "CRL",
        })
    }
}

/// The keys of a Secret, as Istio lists them: the first three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found(Vec<String>);

impl Found {
    pub(crate) fn new(entries: &dyn Entries) -> Self {
        let mut keys: Vec<String> = entries.keys().into_iter().map(str::to_owned).collect();
        keys.sort_unstable();
        Self(keys)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [a, b, c, rest @ ..] if !rest.is_empty() => write!(f, "{a}, {b}, {c}, and {} more...", rest.len()),
            keys => f.write_str(&keys.join(", ")),
        }
    }
}
