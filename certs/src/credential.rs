//! A certificate chain with its private key, as shown to peers.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::certificate::{self, Certificate};
use crate::error::{Found, Part};
use crate::ocsp::Staple;
use crate::{Entries, Error, pem};

/// How long before its end a certificate is worth a warning.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// A chain, leaf first, and the key of the leaf. `Debug` prints the leaf's facts only.
pub struct Credential {
    leaf: Certificate,
    plain: Arc<CertifiedKey>,
    stapled: Option<Stapled>,
}

struct Stapled {
    key: Arc<CertifiedKey>,
    /// When the staple ends, if it does.
    next_update: Option<SystemTime>,
}

impl Credential {
    /// From a Secret: `cert` and `key`, else `tls.crt` and `tls.key` (then with `tls.ocsp-staple`).
    ///
    /// # Errors
    /// The keys are missing or empty, or as with [`Credential::from_pem`].
    pub fn from_secret(secret: &dyn Entries) -> Result<Self, Error> {
        let families = [("cert", "key", None), ("tls.crt", "tls.key", Some("tls.ocsp-staple"))];
        for (certificate, key, staple) in families {
            if let (Some(chain), Some(key)) = (content(secret, certificate), content(secret, key)) {
                return Self::from_pem(chain, key, staple.and_then(|staple| content(secret, staple)));
            }
        }
        for (certificate, key, _) in families {
            if secret.get(certificate).is_some() && secret.get(key).is_some() {
                return Err(Error::EmptyPair(certificate, key));
            }
        }
        Err(Error::NoPair(Found::new(secret)))
    }

    /// From a chain and a key in PEM and an OCSP response in DER. A certificate out of its time is fine, see
    /// [`Credential::warnings`].
    ///
    /// # Errors
    /// Text that does not parse, a key that can't be used or is another certificate's, a staple that is another
    /// certificate's or missing where the certificate demands one.
    pub fn from_pem(chain: &[u8], key: &[u8], staple: Option<&[u8]>) -> Result<Self, Error> {
        let chain = pem::certificates(chain, Part::Chain)?;
        let key = pem::key(key)?;
        let mut parsed = Vec::with_capacity(chain.len());
        for (index, der) in chain.iter().enumerate() {
            let part = Part::Chain;
            parsed.push(certificate::parse(der).map_err(|_| Error::Certificate { part, number: index + 1 })?);
        }
        let leaf = parsed.first().ok_or(Error::NoBlock(Part::Chain))?;

        let key = any_supported_type(&key).map_err(|_| unusable_key(leaf))?;
        let public = key.public_key().ok_or(Error::Key)?;
        let (_, public) = SubjectPublicKeyInfo::from_der(&public).map_err(|_| Error::Key)?;
        // The bits alone: the algorithm of an RSA key may be written in more than one way.
        if public.subject_public_key.data != leaf.public_key().subject_public_key.data {
            return Err(Error::Mismatch);
        }
        let staple = staple.map(|der| Staple::parse(der, leaf, parsed.get(1))).transpose()?;
        if staple.is_none() && demands_staple(leaf) {
            return Err(Error::MissingStaple);
        }

        let plain = Arc::new(CertifiedKey::new(chain, key));
        let stapled = staple.map(|Staple { der, next_update }| {
            let mut key = CertifiedKey::clone(&plain);
            key.ocsp = Some(der);
            Stapled { key: Arc::new(key), next_update }
        });
        Ok(Self { leaf: Certificate::of_leaf(&plain)?, plain, stapled })
    }

    /// A certificate that we do not have the key of, for tests of those who should notice.
    #[cfg(test)]
    #[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    pub(crate) fn with_foreign_key(certificate: &[u8], pkcs8: &[u8]) -> Self {
        let key = any_supported_type(&rustls_pki_types::PrivatePkcs8KeyDer::from(pkcs8).into()).unwrap();
        let plain = Arc::new(CertifiedKey::new(vec![certificate.to_vec().into()], key));
        Self { leaf: Certificate::of_leaf(&plain).unwrap(), plain, stapled: None }
    }

    /// The certificate of the key.
    pub fn leaf(&self) -> &Certificate {
        &self.leaf
    }

    /// Whether only clients that can do ECDSA can use it.
    pub fn is_ecdsa(&self) -> bool {
        self.plain.key.algorithm() == SignatureAlgorithm::ECDSA
    }

    /// Whether the key can sign with one of `schemes`.
    pub(crate) fn can_sign(&self, schemes: &[SignatureScheme]) -> bool {
        self.plain.key.choose_scheme(schemes).is_some()
    }

    /// What rustls needs to show it at `now`: with the OCSP staple while that is current.
    pub fn certified_key(&self, now: SystemTime) -> Arc<CertifiedKey> {
        match &self.stapled {
            Some(Stapled { key, next_update }) if next_update.is_none_or(|end| now < end) => key.clone(),
            _ => self.plain.clone(),
        }
    }

    /// What an operator should know of its validity at `now`: not yet valid, over, or over within 14 days.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let subject = self.leaf.subject();
        let (start, end) = (self.leaf.not_before(), self.leaf.not_after());
        let mut warnings = Vec::new();
        if now < start {
            warnings.push(format!("certificate \"{subject}\" is not valid before {}", date(start)));
        }
        if now > end {
            warnings.push(format!("certificate \"{subject}\" has expired on {}", date(end)));
        } else if end.duration_since(now).is_ok_and(|left| left <= EXPIRES_SOON) {
            warnings.push(format!("certificate \"{subject}\" expires on {}", date(end)));
        }
        warnings
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

/// The value of `key` unless it is empty.
pub(crate) fn content<'a>(entries: &'a dyn Entries, key: &str) -> Option<&'a [u8]> {
    entries.get(key).filter(|value| !value.is_empty())
}

/// Why a well-formed key was not taken: the certificate tells what it was meant to be.
fn unusable_key(leaf: &X509Certificate<'_>) -> Error {
    match leaf.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < 2048 => Error::WeakKey(key.key_size()),
        _ => Error::Key,
    }
}

/// TLS feature (RFC 7633) `status_request`.
fn demands_staple(leaf: &X509Certificate<'_>) -> bool {
    leaf.extensions().iter().any(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.24")
}

fn date(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "a time out of range".into(), |time| time.to_string())
}
