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

    /// What an operator should know of its validity at `now`: not yet valid, over, over within 14 days, or that the staple
    /// is over.
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
        let staple_end = self.stapled.as_ref().and_then(|stapled| stapled.next_update);
        if let Some(end) = staple_end.filter(|end| now >= *end) {
            let end = date(end);
            warnings.push(format!("OCSP staple of certificate \"{subject}\" has expired on {end} and is not sent"));
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

/// TLS feature (RFC 7633) `status_request`: 5, among others perhaps.
fn demands_staple(leaf: &X509Certificate<'_>) -> bool {
    let mut extensions = leaf.extensions().iter();
    let Some(features) = extensions.find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.24") else {
        return false;
    };
    // A SEQUENCE of INTEGERs, all of one byte.
    matches!(features.value, [0x30, _, list @ ..] if list.chunks(3).any(|feature| feature == [2, 1, 5]))
}

fn date(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "a time out of range".into(), |time| time.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::collections::BTreeMap;

    use rcgen::{
        CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
        PKCS_RSA_SHA256, PublicKeyData, RsaKeySize, SignatureAlgorithm as KeyAlgorithm,
    };
    use rustls::version::{TLS12, TLS13};

    use super::*;
    use crate::choice::Choice;
    use crate::pki::{self, Ca, DAY, Leaf, handshake, lasting, parameters, sequence, tlv};

    fn secret<'a>(entries: &[(&'a str, &str)]) -> BTreeMap<&'a str, Vec<u8>> {
        entries.iter().map(|(key, value)| (*key, value.as_bytes().to_vec())).collect()
    }

    fn leaf(name: &str) -> (String, String) {
        let leaf = Leaf::self_signed(&parameters(name, &[]));
        (leaf.certificate.pem(), leaf.key.serialize_pem())
    }

    fn error(entries: &[(&str, &str)]) -> String {
        Credential::from_secret(&secret(entries)).unwrap_err().to_string()
    }

    #[test]
    fn generic_keys_go_first() {
        let ((a, a_key), (b, b_key)) = (leaf("a"), leaf("b"));
        let subject = |entries: &[(&str, &str)]| {
            Credential::from_secret(&secret(entries)).map(|credential| credential.leaf().subject().to_owned())
        };
        assert_eq!(subject(&[("tls.crt", &a), ("tls.key", &a_key)]).as_deref(), Ok("CN=a"));
        let both = [("cert", a.as_str()), ("key", &a_key), ("tls.crt", &b), ("tls.key", &b_key)];
        assert_eq!(subject(&both).as_deref(), Ok("CN=a"));
        let empty = [("cert", ""), ("key", &a_key), ("tls.crt", &b), ("tls.key", &b_key)];
        assert_eq!(subject(&empty).as_deref(), Ok("CN=b"), "an empty pair does not count");
        // The staple belongs to the other family.
        assert!(subject(&[("cert", &a), ("key", &a_key), ("tls.ocsp-staple", "junk")]).is_ok());
        assert_eq!(subject(&[("tls.crt", &a), ("tls.key", &a_key), ("tls.ocsp-staple", "junk")]), Err(Error::Staple));
    }

    #[test]
    fn texts_of_istio() {
        let missing = "found secret, but didn't have expected keys (cert and key) or (tls.crt and tls.key); found: ";
        assert_eq!(error(&[]), missing);
        assert_eq!(error(&[("b", ""), ("a", "")]), format!("{missing}a, b"));
        assert_eq!(error(&[("cert", "x"), ("tls.key", "x")]), format!("{missing}cert, tls.key"));
        assert_eq!(
            error(&[("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", "")]),
            format!("{missing}a, b, c, and 2 more...")
        );
        let empty = "found keys \"tls.crt\" and \"tls.key\", but they were empty";
        assert_eq!(error(&[("tls.crt", ""), ("tls.key", "")]), empty);
        assert_eq!(error(&[("tls.crt", ""), ("tls.key", "x")]), empty);
        assert_eq!(error(&[("cert", ""), ("key", "")]), "found keys \"cert\" and \"key\", but they were empty");
    }

    #[test]
    fn texts_that_are_no_credential() {
        let ((a, a_key), (_, b_key)) = (leaf("a"), leaf("b"));
        let made = |chain: &str, key: &str| Credential::from_pem(chain.as_bytes(), key.as_bytes(), None).map(drop);
        assert_eq!(made("junk", &a_key), Err(Error::NoBlock(Part::Chain)));
        assert_eq!(made(&a_key, &a_key), Err(Error::NoBlock(Part::Chain)));
        assert_eq!(made(&a, "junk"), Err(Error::NoBlock(Part::Key)));
        assert_eq!(made(&a, &a), Err(Error::NoBlock(Part::Key)));
        assert_eq!(made(&a, &b_key), Err(Error::Mismatch));
        assert_eq!(made(&a[..a.len() / 2], &a_key), Err(Error::Pem(Part::Chain)));
        assert_eq!(made(&a, &a_key[..a_key.len() / 2]), Err(Error::Pem(Part::Key)));
        let (part, number) = (Part::Chain, 2);
        assert_eq!(
            made(&(a.clone() + &pki::pem("CERTIFICATE", b"junk")), &a_key),
            Err(Error::Certificate { part, number })
        );
        assert_eq!(made(&a, &pki::pem("PRIVATE KEY", b"junk")), Err(Error::Key));
        assert_eq!(made(&a, &pki::pem("ENCRYPTED PRIVATE KEY", b"junk")), Err(Error::EncryptedKey));
        let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n\
                      AAAA\n-----END RSA PRIVATE KEY-----\n";
        assert_eq!(made(&a, legacy), Err(Error::EncryptedKey));
        // Texts around the blocks do not matter.
        assert_eq!(made(&format!("Bag Attributes\n{a}\nend"), &format!("# key\n{a_key}")), Ok(()));
    }

    /// A public RSA key of 1024 bits.
    struct Weak(Vec<u8>);

    impl PublicKeyData for Weak {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }

        fn algorithm(&self) -> &'static KeyAlgorithm {
            &PKCS_RSA_SHA256
        }
    }

    #[test]
    fn an_rsa_key_of_1024_bits_is_refused() {
        let modulus = tlv(2, &[&[0][..], &[0xc1; 128]].concat());
        let weak = Weak(sequence(&[modulus, tlv(2, &[1, 0, 1])].concat()));
        let chain = parameters("weak", &[]).signed_by(&weak, &Ca::new("ca").issuer).unwrap().pem();
        let key = pki::pem("RSA PRIVATE KEY", &sequence(b"\x02\x01\x00"));
        let made = Credential::from_pem(chain.as_bytes(), key.as_bytes(), None).map(drop);
        assert_eq!(made, Err(Error::WeakKey(1024)));
    }

    #[test]
    fn kinds_of_keys() {
        let ca = Ca::new("ca");
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let curves = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ECDSA_P521_SHA512, &PKCS_ED25519];
        let keys = curves.into_iter().map(pki::key).chain([rsa]);
        for key in keys {
            let credential = ca.leaf_of(parameters("server", &["a"]), key).credential(&[]);
            for version in [&TLS12, &TLS13] {
                let choice = Arc::new(Choice::new(vec![credential.clone()]));
                let outcome = handshake(pki::client(None), pki::server(choice, version), "a");
                assert_eq!(outcome.server_certificate.as_deref(), Some(credential.leaf().der()));
            }
        }
    }

    #[test]
    fn older_forms_of_keys() {
        let ca = Ca::new("ca");
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        for (label, key) in [("EC PRIVATE KEY", pki::ecdsa()), ("RSA PRIVATE KEY", rsa)] {
            // PKCS#8: version, algorithm, the older form as an OCTET STRING, perhaps attributes.
            let pkcs8 = key.serialize_der();
            let info = x509_parser::der_parser::parse_der(&pkcs8).unwrap().1;
            let older = info.as_sequence().unwrap()[2].as_slice().unwrap().to_vec();
            let chain = ca.leaf_of(parameters("server", &[]), key).certificate.pem();
            let mut text = pki::pem(label, &older);
            if label.starts_with("EC") {
                // openssl ecparam puts the curve in front.
                text.insert_str(0, &pki::pem("EC PARAMETERS", &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]));
            }
            assert!(Credential::from_pem(chain.as_bytes(), text.as_bytes(), None).is_ok(), "{label}");
        }
    }

    #[test]
    fn warnings_about_time() {
        let warnings = |start, end, now: SystemTime| {
            let mut parameters = parameters("a", &[]);
            lasting(&mut parameters, start, end);
            Leaf::self_signed(&parameters).credential(&[]).warnings(now).join("; ")
        };
        let now = SystemTime::now();
        assert_eq!(warnings(-1, 15, now), "");
        assert!(warnings(-1, 14, now).starts_with("certificate \"CN=a\" expires on "));
        assert!(warnings(-3, -1, now).starts_with("certificate \"CN=a\" has expired on "));
        assert!(warnings(1, 30, now).starts_with("certificate \"CN=a\" is not valid before "));
        assert!(warnings(-1, 15, now + 2 * DAY).contains("expires on"));
        let mut parameters = parameters("a", &[]);
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let warnings = Leaf::self_signed(&parameters).credential(&[]).warnings(now);
        assert_eq!(warnings, ["certificate \"CN=a\" has expired on 2021-01-01T00:00:00Z"]);
    }

    #[test]
    fn nothing_prints_the_key() {
        let leaf = Leaf::self_signed(&parameters("a", &[]));
        let text = format!("{:?}", leaf.credential(&[]));
        let pkcs8 = leaf.key.serialize_der();
        let private: Vec<String> = pkcs8[36..44].iter().map(|byte| byte.to_string()).collect();
        assert!(text.contains("CN=a") && !text.contains(&private.join(", ")), "{text}");
    }

    #[test]
    fn a_must_staple_certificate_needs_a_staple() {
        let made = |features: &[u8]| {
            let mut parameters = parameters("a", &[]);
            let features = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], features.to_vec());
            parameters.custom_extensions.push(features);
            let leaf = Ca::new("ca").leaf(parameters);
            let (chain, key) = (leaf.certificate.pem(), leaf.key.serialize_pem());
            Credential::from_pem(chain.as_bytes(), key.as_bytes(), None).map(drop)
        };
        // status_request is 5, status_request_v2 is 17.
        assert_eq!(made(&[0x30, 3, 2, 1, 5]), Err(Error::MissingStaple));
        assert_eq!(made(&[0x30, 6, 2, 1, 17, 2, 1, 5]), Err(Error::MissingStaple));
        assert_eq!(made(&[0x30, 3, 2, 1, 17]), Ok(()));
    }
}
