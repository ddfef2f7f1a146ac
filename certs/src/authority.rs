//! Trust anchors and CRLs.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use ahash::AHashSet;
use rustls::DistinguishedName;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ExtendedKeyUsage;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::X509Version;

use crate::certificate::{self, Certificate};
use crate::credential::content;
use crate::error::{Found, Part};
use crate::signature::Signed;
use crate::{Entries, Error, pem};

/// What peers are checked with. Every CA certificate of the bundle is a trust anchor, an intermediate as well as a root;
/// certificates of the bundle are trusted themselves, too.
pub struct Authority {
    anchors: Arc<Anchors>,
    certificates: Vec<Certificate>,
    crls: Vec<Crl>,
    has_namesakes: bool,
}

/// Trust anchors, and how the certificates that they come from are known again.
struct Anchors {
    anchors: Vec<TrustAnchor<'static>>,
    /// Of the anchor in the same place.
    limits: Vec<Limits>,
    certificates: AHashSet<[u8; 32]>,
    subjects: Vec<DistinguishedName>,
}

/// What webpki does not look at in a trust anchor.
pub(crate) struct Limits {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// How many CAs may stand between it and the leaf.
    pub(crate) path_length: Option<u32>,
    /// Whether its extended key usage lets it vouch for clients.
    pub(crate) for_clients: bool,
    /// The same for servers.
    pub(crate) for_servers: bool,
    /// SHA-256 of its certificate.
    pub(crate) sha256: [u8; 32],
    /// The name, as in certificates.
    pub(crate) subject: Box<[u8]>,
    pub(crate) serial: Box<[u8]>,
    /// Among the limits, the place of those of the anchor that has signed it and may sign CRLs; its own if it bears the
    /// name of its issuer.
    issuer: Option<usize>,
    /// Its SubjectPublicKeyInfo, if it may sign CRLs.
    crl_key: Option<Box<[u8]>>,
}

pub(crate) struct Crl {
    pub(crate) list: CertRevocationList<'static>,
    /// The name, as in certificates.
    pub(crate) issuer: Box<[u8]>,
    pub(crate) this_update: SystemTime,
    pub(crate) next_update: Option<SystemTime>,
    /// SHA-256 of the certificates of the trust anchors that have signed it and may do so.
    pub(crate) signers: Vec<[u8; 32]>,
}

impl Authority {
    /// From a Secret or ConfigMap: `cacert` with `crl`, else `ca.crt` with `ca.crl`.
    ///
    /// # Errors
    /// The keys are missing or empty, or as with [`Authority::from_pem`].
    pub fn from_secret(secret: &dyn Entries) -> Result<Self, Error> {
        let families = [("cacert", "crl"), ("ca.crt", "ca.crl")];
        for (ca, crl) in families {
            if let Some(ca) = content(secret, ca) {
                return Self::from_pem(ca, content(secret, crl));
            }
        }
        for (ca, _) in families {
            if secret.get(ca).is_some() {
                return Err(Error::EmptyAuthority(ca));
            }
        }
        Err(Error::NoAuthority(Found::new(secret)))
    }

    /// From one or more certificates, and one or more CRLs if revocation is to be checked; PEM.
    ///
    /// # Errors
    /// Text that does not parse, a certificate or CRL that can't be used.
    pub fn from_pem(ca: &[u8], crl: Option<&[u8]>) -> Result<Self, Error> {
        let bundle = pem::certificates(ca, Part::Authority)?;
        let mut certificates = Vec::with_capacity(bundle.len());
        for (index, der) in bundle.iter().enumerate() {
            let part = Part::Authority;
            let read = Certificate::parse(der).map_err(|_| Error::Certificate { part, number: index + 1 });
            certificates.push(read?);
        }
        Self::new(Arc::new(Anchors::new(&bundle)?), certificates, crl)
    }

    /// The operating system's roots (or those of `SSL_CERT_FILE`, `SSL_CERT_DIR`), read once a process.
    ///
    /// # Errors
    /// There are none, or as with [`Authority::from_pem`].
    pub fn system(crl: Option<&[u8]>) -> Result<Self, Error> {
        static ROOTS: OnceLock<Option<Arc<Anchors>>> = OnceLock::new();
        let anchors = ROOTS.get_or_init(system_roots).clone().ok_or(Error::NoSystemRoots)?;
        Self::new(anchors, Vec::new(), crl)
    }

    /// As if these were the operating system's roots.
    #[cfg(test)]
    pub(crate) fn of_roots(roots: &[CertificateDer<'_>], crl: Option<&[u8]>) -> Result<Self, Error> {
        Self::new(Arc::new(Anchors::new(roots)?), Vec::new(), crl)
    }

    fn new(anchors: Arc<Anchors>, certificates: Vec<Certificate>, crl: Option<&[u8]>) -> Result<Self, Error> {
        let crls = crls(crl, &anchors.limits)?;
        let bearers = |name: &[u8]| anchors.limits.iter().filter(|limits| *limits.subject == *name).count();
        let has_namesakes = crls.iter().any(|crl| bearers(&crl.issuer) > 1);
        Ok(Self { anchors, certificates, crls, has_namesakes })
    }

    /// The certificates of the bundle; none for the operating system's.
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors.anchors
    }

    /// The limits of one of [`Authority::anchors`].
    pub(crate) fn limits_of(&self, anchor: &TrustAnchor<'_>) -> Option<&Limits> {
        let position = self.anchors().iter().position(|candidate| std::ptr::eq(candidate, anchor))?;
        self.limits().get(position)
    }

    /// The limits of the trust anchor above.
    pub(crate) fn issuer_of(&self, limits: &Limits) -> Option<&Limits> {
        self.limits().get(limits.issuer?)
    }

    /// The limits of [`Authority::anchors`], in the same order.
    pub(crate) fn limits(&self) -> &[Limits] {
        &self.anchors.limits
    }

    /// Whether two trust anchors have the same name, and there is a CRL in that name.
    pub(crate) fn has_namesakes(&self) -> bool {
        self.has_namesakes
    }

    /// Whether `der` is one of the bundle's certificates.
    pub(crate) fn contains(&self, der: &[u8]) -> bool {
        self.anchors.certificates.contains(&certificate::sha256(der))
    }

    pub(crate) fn crls(&self) -> &[Crl] {
        &self.crls
    }

    /// The names that a server tells its clients.
    pub(crate) fn subjects(&self) -> &[DistinguishedName] {
        &self.anchors.subjects
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("certificates", &self.certificates)
            .field("anchors", &self.anchors.anchors.len())
            .field("crls", &self.crls.len())
            .finish()
    }
}

impl Anchors {
    fn new(bundle: &[CertificateDer<'_>]) -> Result<Self, Error> {
        let mut anchors = Self {
            anchors: Vec::with_capacity(bundle.len()),
            limits: Vec::with_capacity(bundle.len()),
            certificates: AHashSet::with_capacity(bundle.len()),
            subjects: Vec::with_capacity(bundle.len()),
        };
        for (index, der) in bundle.iter().enumerate() {
            anchors.add(der).map_err(|_| Error::Anchor(index + 1))?;
        }
        for der in bundle {
            anchors.find_issuer(der);
        }
        Ok(anchors)
    }

    fn add(&mut self, der: &CertificateDer<'_>) -> Result<(), Error> {
        let parsed = certificate::parse(der)?;
        let sha256 = certificate::sha256(der);
        if !self.certificates.insert(sha256) {
            return Ok(());
        }
        self.subjects.push(parsed.subject().as_raw().to_vec().into());
        // A server's own certificate may be in a bundle; it must not vouch for others.
        if !is_authority(&parsed) {
            return Ok(());
        }
        let anchor = anchor_from_trusted_cert(der).map_err(|_| Error::NotACertificate)?;
        self.anchors.push(anchor.to_owned());
        let constraints = parsed.basic_constraints().ok().flatten();
        let purposes = parsed.extended_key_usage();
        let is_for = |purpose: fn(&ExtendedKeyUsage<'_>) -> bool| match &purposes {
            Ok(purposes) => purposes.as_ref().is_none_or(|purposes| purpose(purposes.value)),
            Err(_) => false,
        };
        let usage = parsed.key_usage().ok().flatten();
        let signs_crls = usage.is_none_or(|usage| usage.value.crl_sign());
        self.limits.push(Limits {
            not_before: certificate::time(parsed.validity().not_before.timestamp()),
            not_after: certificate::time(parsed.validity().not_after.timestamp()),
            path_length: constraints.and_then(|constraints| constraints.value.path_len_constraint),
            for_clients: is_for(|purposes| purposes.client_auth),
            for_servers: is_for(|purposes| purposes.server_auth),
            sha256,
            subject: parsed.subject().as_raw().into(),
            serial: parsed.raw_serial().into(),
            issuer: None,
            crl_key: signs_crls.then(|| parsed.public_key().raw.into()),
        });
        Ok(())
    }

    fn find_issuer(&mut self, der: &CertificateDer<'_>) {
        let Ok(parsed) = certificate::parse(der) else { return };
        let sha256 = certificate::sha256(der);
        let Some(own) = self.limits.iter().position(|limits| limits.sha256 == sha256) else { return };
        self.limits[own].issuer = if is_self_issued(&parsed) {
            Some(own)
        } else {
            let signed = Signed::certificate(&parsed);
            self.limits.iter().position(|limits| limits.has_signed(parsed.issuer().as_raw(), &signed))
        };
    }
}

impl Limits {
    /// Whether it has signed what was issued in the name of `issuer`, and may sign CRLs.
    fn has_signed(&self, issuer: &[u8], signed: &Signed<'_>) -> bool {
        *self.subject == *issuer && self.crl_key.as_ref().is_some_and(|key| signed.is_by(key))
    }
}

/// What can't be read is passed over: on most systems some root is odd.
fn system_roots() -> Option<Arc<Anchors>> {
    let mut roots = rustls_native_certs::load_native_certs().certs;
    roots.retain(|der| anchor_from_trusted_cert(der).is_ok() && certificate::parse(der).is_ok());
    Anchors::new(&roots).ok().filter(|anchors| !anchors.anchors.is_empty()).map(Arc::new)
}

/// Whether a certificate may vouch for others, by BoringSSL's rules: its constraints say so, or it is too old to have any
/// and self-signed.
pub(crate) fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let (Ok(constraints), Ok(usage)) = (certificate.basic_constraints(), certificate.key_usage()) else { return false };
    if usage.as_ref().is_some_and(|usage| !usage.value.key_cert_sign()) {
        return false;
    }
    match constraints {
        Some(constraints) => constraints.value.ca,
        None => certificate.version() == X509Version::V1 && is_self_issued(certificate),
    }
}

fn is_self_issued(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

/// The newest first: of several lists by one issuer the first one counts.
fn crls(text: Option<&[u8]>, anchors: &[Limits]) -> Result<Vec<Crl>, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Vec::new()) };
    let mut crls = Vec::new();
    for (index, der) in pem::crls(text)?.iter().enumerate() {
        let unusable = Error::Crl(index + 1);
        let Ok(([], parsed)) = CertificateRevocationList::from_der(der) else { return Err(unusable) };
        let list = OwnedCertRevocationList::from_der(der).map_err(|_| unusable)?;
        crls.push(Crl {
            list: list.into(),
            issuer: parsed.issuer().as_raw().into(),
            this_update: certificate::time(parsed.last_update().timestamp()),
            next_update: parsed.next_update().map(|time| certificate::time(time.timestamp())),
            signers: signers(&parsed, anchors),
        });
    }
    crls.sort_by_key(|crl| std::cmp::Reverse(crl.this_update));
    Ok(crls)
}

fn signers(crl: &CertificateRevocationList<'_>, anchors: &[Limits]) -> Vec<[u8; 32]> {
    let signed = Signed {
        message: crl.tbs_cert_list.as_ref(),
        algorithm: &crl.signature_algorithm,
        signature: &crl.signature_value,
    };
    let signs = |anchor: &&Limits| anchor.has_signed(crl.issuer().as_raw(), &signed);
    anchors.iter().filter(signs).map(|anchor| anchor.sha256).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pki::{self, Ca};

    fn secret<'a>(entries: &[(&'a str, &str)]) -> BTreeMap<&'a str, Vec<u8>> {
        entries.iter().map(|(key, value)| (*key, value.as_bytes().to_vec())).collect()
    }

    fn subjects(authority: &Authority) -> Vec<&str> {
        authority.certificates().iter().map(Certificate::subject).collect()
    }

    #[test]
    fn families_of_keys() {
        let (a, b) = (Ca::new("a"), Ca::new("b"));
        let (a_pem, b_pem) = (a.pem(), b.pem());
        let read = |entries: &[(&str, &str)]| Authority::from_secret(&secret(entries)).unwrap();
        assert_eq!(subjects(&read(&[("ca.crt", &a_pem)])), ["CN=a"]);
        assert_eq!(subjects(&read(&[("ca.crt", &a_pem), ("cacert", &b_pem)])), ["CN=b"]);
        assert_eq!(subjects(&read(&[("ca.crt", &(a_pem.clone() + &b_pem)), ("cacert", "")])), ["CN=a", "CN=b"]);

        // A CRL counts in its own family only.
        let crl = a.crl(-1, 1, &[]);
        assert_eq!(read(&[("ca.crt", &a_pem), ("ca.crl", &crl)]).crls.len(), 1);
        assert_eq!(read(&[("cacert", &a_pem), ("crl", &(crl.clone() + &b.crl(-1, 1, &[])))]).crls.len(), 2);
        assert_eq!(read(&[("cacert", &a_pem), ("ca.crl", &crl)]).crls.len(), 0);
        assert_eq!(read(&[("ca.crt", &a_pem), ("crl", &crl)]).crls.len(), 0);
        assert_eq!(read(&[("ca.crt", &a_pem), ("ca.crl", "")]).crls.len(), 0);
    }

    #[test]
    fn texts_of_istio() {
        let error = |entries: &[(&str, &str)]| Authority::from_secret(&secret(entries)).unwrap_err().to_string();
        let missing = "found secret, but didn't have expected keys cacert or ca.crt; found: ";
        assert_eq!(error(&[("tls.key", ""), ("tls.crt", "")]), format!("{missing}tls.crt, tls.key"));
        assert_eq!(error(&[("ca.crt", "")]), "found key \"ca.crt\", but it was empty");
    }

    #[test]
    fn what_is_no_authority() {
        let ca = Ca::new("a");
        let read = |ca: &str, crl: Option<&str>| Authority::from_pem(ca.as_bytes(), crl.map(str::as_bytes)).map(drop);
        let (part, pem) = (Part::Authority, ca.pem());
        assert_eq!(read("junk", None), Err(Error::NoBlock(part)));
        assert_eq!(read(&pem[..100], None), Err(Error::Pem(part)));
        let junk = pki::pem("CERTIFICATE", b"junk");
        assert_eq!(read(&(pem.clone() + &junk), None), Err(Error::Certificate { part, number: 2 }));
        let crl = ca.crl(-1, 1, &[]);
        assert_eq!(read(&pem, Some("junk")), Err(Error::NoBlock(Part::Crl)));
        assert_eq!(read(&pem, Some(&crl[..100])), Err(Error::Pem(Part::Crl)));
        assert_eq!(read(&pem, Some(&(crl + &pki::pem("X509 CRL", b"junk")))), Err(Error::Crl(2)));
    }

    #[test]
    fn the_same_certificate_twice_is_one_anchor() {
        let pem = Ca::new("a").pem();
        let authority = Authority::from_pem((pem.clone() + &pem).as_bytes(), None).unwrap();
        assert_eq!(authority.anchors().len(), 1);
        assert_eq!(authority.subjects().len(), 1);
    }
}
