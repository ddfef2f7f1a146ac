//! Whether a certificate has a trusted issuer, is in its time, for its purpose and not revoked.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::{CertificateError, OtherError};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RequiredEkuNotFoundContext, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::OID_X509_EXT_NAME_CONSTRAINTS;
use x509_parser::x509::X509Version;

use crate::authority::{Authority, Crl, Limits, is_authority};
use crate::certificate;
use crate::signature::{self, Signed};

/// What a certificate is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Client,
    Server,
}

/// Checks a chain as it came in a handshake.
pub(super) fn check(
    authority: Option<&Authority>,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    purpose: Purpose,
) -> Result<(), CertificateError> {
    let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
    let parsed = certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let check = Check { authority, parsed: &parsed, now, purpose };
    if authority.crls().is_empty() && authority.contains(leaf) {
        // OpenSSL needs no issuer for what is in the bundle itself.
        check.own_validity()
    } else if parsed.version() != X509Version::V3 || parsed.is_ca() {
        check.unusual()
    } else {
        check.usual(leaf, intermediates)
    }
}

struct Check<'a> {
    authority: &'a Authority,
    parsed: &'a X509Certificate<'a>,
    now: UnixTime,
    purpose: Purpose,
}

impl Check<'_> {
    fn usual(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), CertificateError> {
        let now = self.time();
        let current: Vec<&Crl> =
            self.authority.crls().iter().filter(|crl| crl.this_update <= now && self.counts(crl)).collect();
        let result = if current.is_empty() || !self.authority.has_namesakes() {
            self.path(leaf, intermediates, self.authority.anchors(), current.iter().copied())
        } else {
            self.by_anchor(leaf, intermediates, &current)
        };
        match result.map_err(translate) {
            Ok(()) => self.own_key_usage(),
            // A list that will be valid in future says more than none.
            Err(CertificateError::UnknownRevocationStatus) if self.future_list(intermediates) => {
                Err(CertificateError::NotValidYet)
            }
            Err(error) => Err(error),
        }
    }

    /// Not a list in the name of a trust anchor that no trust anchor of that name has signed, or not rightly so: webpki
    /// does not see the key usage of an anchor.
    fn counts(&self, crl: &Crl) -> bool {
        !crl.signers.is_empty() || !self.authority.limits().iter().any(|limits| limits.subject == crl.issuer)
    }

    fn path<'c>(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        anchors: &[TrustAnchor<'static>],
        crls: impl Iterator<Item = &'c Crl>,
    ) -> Result<(), webpki::Error> {
        let crls: Vec<&CertRevocationList<'_>> = crls.map(|crl| &crl.list).collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let unchecked = revocation.is_none() && !self.authority.crls().is_empty();

        let leaf = EndEntityCert::try_from(leaf)?;
        let algorithms = signature::algorithms().all;
        let limits: &dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error> = &|path| self.limits(path);
        leaf.verify_for_usage(algorithms, anchors, intermediates, self.now, self.usage(), revocation, Some(limits))?;
        // There are lists, but not yet.
        if unchecked { Err(webpki::Error::UnknownRevocationStatus) } else { Ok(()) }
    }

    /// webpki looks at one list of a name. Where two CAs have the same name, as when one follows the other, that may be
    /// the other's: so each CA is tried with its own lists.
    fn by_anchor(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        crls: &[&Crl],
    ) -> Result<(), webpki::Error> {
        let mut refusal = webpki::Error::UnknownIssuer;
        for (anchor, limits) in self.authority.anchors().iter().zip(self.authority.limits()) {
            let own =
                crls.iter().copied().filter(|crl| crl.issuer != limits.subject || crl.signers.contains(&limits.sha256));
            match self.path(leaf, intermediates, std::slice::from_ref(anchor), own) {
                Ok(()) => return Ok(()),
                Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {}
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// What webpki leaves out: trust anchors have a time, a purpose and a path length, too, and a CA's key usage counts.
    fn limits(&self, path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
        for intermediate in path.intermediate_certificates() {
            if !certificate::parse(&intermediate.der()).is_ok_and(|certificate| is_authority(&certificate)) {
                return Err(webpki::Error::EndEntityUsedAsCa);
            }
        }
        let anchor = path.anchor();
        let Some(limits) = self.authority.limits_of(anchor) else { return Err(webpki::Error::UnknownIssuer) };
        let now = self.time();
        if now < limits.not_before {
            return Err(webpki::Error::CertNotValidYet { time: self.now, not_before: unix(limits.not_before) });
        }
        if now > limits.not_after {
            return Err(webpki::Error::CertExpired { time: self.now, not_after: unix(limits.not_after) });
        }
        if !self.suits(limits) {
            let context = RequiredEkuNotFoundContext { required: self.usage(), present: Vec::new() };
            return Err(webpki::Error::RequiredEkuNotFoundContext(context));
        }
        let between = u32::try_from(path.intermediate_certificates().count()).unwrap_or(u32::MAX);
        if limits.path_length.is_some_and(|longest| between > longest) {
            return Err(webpki::Error::PathLenConstraintViolated);
        }
        if self.authority.crls().is_empty() {
            return Ok(());
        }
        self.status_of_anchor(limits).map_err(|error| match error {
            CertificateError::Revoked => webpki::Error::CertRevoked,
            CertificateError::Expired => webpki::Error::CrlExpired { time: self.now, next_update: self.now },
            _ => webpki::Error::UnknownRevocationStatus,
        })
    }

    /// Leaves that webpki does not take but OpenSSL does: version 1, as `openssl x509 -req` makes them without
    /// extensions, and CAs. They must come from a certificate of the bundle, with nothing in between.
    fn unusual(&self) -> Result<(), CertificateError> {
        let issuer = self.issuer().ok_or(CertificateError::UnknownIssuer)?;
        if !self.suits(issuer) {
            return Err(CertificateError::InvalidPurpose);
        }
        self.own_validity()?;
        if self.authority.crls().is_empty() {
            return Ok(());
        }

        self.status(self.parsed.raw_serial(), issuer)?;
        self.status_of_anchor(issuer)
    }

    /// What the list of the issuer says.
    fn status(&self, serial: &[u8], issuer: &Limits) -> Result<(), CertificateError> {
        let now = self.time();
        let lists = || self.authority.crls().iter().filter(|crl| crl.signers.contains(&issuer.sha256));
        let Some(crl) = lists().find(|crl| crl.this_update <= now) else {
            let future = lists().next().is_some();
            return Err(if future { CertificateError::NotValidYet } else { CertificateError::UnknownRevocationStatus });
        };
        // A list about some of the CA's certificates only.
        if crl.list.issuing_distribution_point().is_some() {
            return Err(CertificateError::UnknownRevocationStatus);
        }
        if crl.next_update.is_none_or(|end| now >= end) {
            return Err(CertificateError::Expired);
        }
        match crl.list.find_serial(serial) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(CertificateError::Revoked),
            Err(_) => Err(CertificateError::UnknownRevocationStatus),
        }
    }

    /// webpki is content with the nearest trust anchor. If that is no root, lists have a say about it as well, and about
    /// those above it.
    fn status_of_anchor(&self, anchor: &Limits) -> Result<(), CertificateError> {
        let mut anchor = anchor;
        // Two may have signed each other.
        for _ in self.authority.limits() {
            let issuer = self.authority.issuer_of(anchor).ok_or(CertificateError::UnknownRevocationStatus)?;
            if std::ptr::eq(issuer, anchor) {
                return Ok(());
            }
            self.status(&anchor.serial, issuer)?;
            anchor = issuer;
        }
        Err(CertificateError::UnknownRevocationStatus)
    }

    /// The CA of the bundle that has signed the leaf.
    fn issuer(&self) -> Option<&Limits> {
        let leaf = self.parsed;
        let signed = Signed::certificate(leaf);
        if leaf.tbs_certificate.signature != leaf.signature_algorithm {
            return None;
        }
        let now = self.time();
        for candidate in self.authority.certificates() {
            let Ok(issuer) = certificate::parse(candidate.der()) else { continue };
            // Name constraints are not looked at here, so there must be none.
            let constrained =
                issuer.extensions().iter().any(|extension| extension.oid == OID_X509_EXT_NAME_CONSTRAINTS);
            let valid = candidate.not_before() <= now && now <= candidate.not_after();
            if issuer.subject().as_raw() == leaf.issuer().as_raw()
                && is_authority(&issuer)
                && valid
                && !constrained
                && signed.is_by(issuer.public_key().raw)
            {
                return self.authority.limits().iter().find(|limits| limits.sha256 == *candidate.sha256());
            }
        }
        None
    }

    /// Time, purpose and critical extensions of the leaf.
    fn own_validity(&self) -> Result<(), CertificateError> {
        let now = self.time();
        let not_before = certificate::time(self.parsed.validity().not_before.timestamp());
        let not_after = certificate::time(self.parsed.validity().not_after.timestamp());
        if now < not_before {
            return Err(CertificateError::NotValidYetContext { time: self.now, not_before: unix(not_before) });
        }
        if now > not_after {
            return Err(CertificateError::ExpiredContext { time: self.now, not_after: unix(not_after) });
        }
        for extension in self.parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    let suits = match self.purpose {
                        Purpose::Client => usage.client_auth,
                        Purpose::Server => usage.server_auth,
                    };
                    if !suits {
                        return Err(CertificateError::InvalidPurpose);
                    }
                }
                ParsedExtension::BasicConstraints(_)
                | ParsedExtension::KeyUsage(_)
                | ParsedExtension::SubjectAlternativeName(_) => {}
                ParsedExtension::ParseError { .. } => return Err(CertificateError::BadEncoding),
                _ if extension.critical => return Err(CertificateError::UnhandledCriticalExtension),
                _ => {}
            }
        }
        self.own_key_usage()
    }

    /// The key must be for what TLS does with it, if it says what it is for. webpki does not look.
    fn own_key_usage(&self) -> Result<(), CertificateError> {
        let usage = self.parsed.key_usage().map_err(|_| CertificateError::BadEncoding)?;
        let suits = usage.is_none_or(|usage| {
            let signs = usage.value.digital_signature() || usage.value.key_agreement();
            signs || self.purpose == Purpose::Server && usage.value.key_encipherment()
        });
        if suits { Ok(()) } else { Err(CertificateError::InvalidPurpose) }
    }

    /// Whether one of the issuers, or of those above a trust anchor among them, has a CRL that is not valid yet.
    fn future_list(&self, intermediates: &[CertificateDer<'_>]) -> bool {
        let now = self.time();
        let is_future = |issuer: &[u8]| {
            let mut anchors = self.authority.limits().iter().filter(|limits| *limits.subject == *issuer);
            self.authority.crls().iter().any(|crl| crl.this_update > now && *crl.issuer == *issuer)
                || anchors.any(|anchor| self.status_of_anchor(anchor) == Err(CertificateError::NotValidYet))
        };
        is_future(self.parsed.issuer().as_raw())
            || intermediates
                .iter()
                .any(|der| certificate::parse(der).is_ok_and(|certificate| is_future(certificate.issuer().as_raw())))
    }

    fn usage(&self) -> KeyUsage {
        match self.purpose {
            Purpose::Client => KeyUsage::client_auth(),
            Purpose::Server => KeyUsage::server_auth(),
        }
    }

    fn suits(&self, anchor: &Limits) -> bool {
        match self.purpose {
            Purpose::Client => anchor.for_clients,
            Purpose::Server => anchor.for_servers,
        }
    }

    fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.now.as_secs())
    }
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// So that rustls sends the alert that Envoy sends. Errors about CRLs have no context, errors about certificates do: by
/// that [`openssl_reason`] tells them apart.
fn translate(error: webpki::Error) -> CertificateError {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) | E::InvalidCertValidity => CertificateError::BadEncoding,
        E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        // A CA of the same name with another key is another CA.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey | E::EndEntityUsedAsCa | E::PathLenConstraintViolated => {
            CertificateError::UnknownIssuer
        }
        E::CertRevoked => CertificateError::Revoked,
        E::CrlExpired { .. } => CertificateError::Expired,
        E::UnknownRevocationStatus
        | E::IssuerNotCrlSigner
        | E::InvalidCrlSignatureForPublicKey
        | E::UnsupportedCrlSignatureAlgorithmContext(_)
        | E::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => CertificateError::UnknownRevocationStatus,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}

/// What OpenSSL calls it.
pub(super) fn openssl_reason(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::UnknownIssuer => "unable to get local issuer certificate",
        CertificateError::ExpiredContext { .. } => "certificate has expired",
        CertificateError::NotValidYetContext { .. } => "certificate is not yet valid",
        CertificateError::InvalidPurpose => "unsupported certificate purpose",
        CertificateError::Revoked => "certificate revocation check against provided CRLs failed: certificate revoked",
        CertificateError::UnknownRevocationStatus => {
            "certificate revocation check against provided CRLs failed: unable to get certificate CRL"
        }
        CertificateError::Expired => "certificate revocation check against provided CRLs failed: CRL has expired",
        CertificateError::NotValidYet => {
            "certificate revocation check against provided CRLs failed: CRL is not yet valid"
        }
        _ => "certificate rejected",
    }
}
