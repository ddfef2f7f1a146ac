//! Whether a peer's certificate is good, by Envoy's rules and with Envoy's alerts.
//!
//! rustls turns the error into the alert: [`CertificateError::UnknownIssuer`] and
//! [`CertificateError::UnknownRevocationStatus`] into `unknown_ca` (48), the expired ones into `certificate_expired` (45),
//! [`CertificateError::Revoked`] into `certificate_revoked` (44), [`CertificateError::InvalidPurpose`] into
//! `unsupported_certificate` (43), [`CertificateError::Other`] into `certificate_unknown` (46). For a pin that is not met
//! Envoy sends `bad_certificate_hash_value` (114), which rustls has no error for; it gets 46. A client of TLS 1.2 that sends
//! no certificate gets `certificate_required` (116) from rustls, from Envoy `handshake_failure` (40).
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
        if !*skip_verification {
            chain::check(self.authority.as_deref(), leaf, intermediates, now, Purpose::Client)?;
        }
        // Applications are told of whoever gets in, so it must be readable in any case.
        let certificate = Certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
        if *skip_verification {
            return Ok(ClientCertVerified::assertion());
        }
        check_list(&certificate, subject_alt_names)?;
        let pinned = !spki_pins.is_empty() || !certificate_hashes.is_empty();
        let hit = spki_pins.contains(certificate.spki_sha256()) || certificate_hashes.contains(certificate.sha256());
        if pinned && !hit {
            return Err(Refusal::Pin.into());
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
            if *verify_name && !names::are_of(certificate.subject_alt_names(), server_name) {
                let presented = Presented(certificate.subject_alt_names().to_vec());
                return Err(Refusal::ServerName { expected: server_name.to_str().into_owned(), presented }.into());
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use rcgen::{
        CertificateParams, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, SanType,
        SerialNumber,
    };
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::version::{TLS12, TLS13};
    use rustls::{AlertDescription, SupportedProtocolVersion};

    use super::*;
    use crate::choice::Choice;
    use crate::credential::Credential;
    use crate::pki::{self, Ca, Leaf, Outcome, client_parameters, handshake, lasting, parameters, pem};

    /// A server with `authority` and `rules` meets a client with `certificate`, in both versions of TLS.
    fn alert(authority: Authority, rules: &ClientRules, certificate: Arc<Credential>) -> Option<AlertDescription> {
        let authority = Some(Arc::new(authority));
        let [old, new] = [&TLS12, &TLS13]
            .map(|version| meet(authority.clone(), true, rules, Some(certificate.clone()), version).alert());
        assert_eq!(old, new, "TLS 1.2 and 1.3");
        new
    }

    fn meet(
        authority: Option<Arc<Authority>>,
        mandatory: bool,
        rules: &ClientRules,
        certificate: Option<Arc<Credential>>,
        version: &'static SupportedProtocolVersion,
    ) -> Outcome {
        let server = Ca::new("server ca").leaf(parameters("server", &["server.example.com"]));
        let choice = Arc::new(Choice::new(vec![server.credential(&[])]));
        let server = pki::asking_server(choice, client(authority, mandatory, rules.clone()), version);
        handshake(pki::client(certificate), server, "server.example.com")
    }

    fn bundle(cas: &[&Ca], crls: &[String]) -> Authority {
        let ca: String = cas.iter().map(|ca| ca.pem()).collect();
        let crl = crls.concat();
        Authority::from_pem(ca.as_bytes(), (!crls.is_empty()).then_some(crl.as_bytes())).unwrap()
    }

    fn serial(serial: u64) -> CertificateParams {
        let mut parameters = client_parameters();
        parameters.serial_number = Some(SerialNumber::from(serial));
        parameters
    }

    const UNKNOWN_CA: Option<AlertDescription> = Some(AlertDescription::UnknownCA);
    const EXPIRED: Option<AlertDescription> = Some(AlertDescription::CertificateExpired);
    const REVOKED: Option<AlertDescription> = Some(AlertDescription::CertificateRevoked);
    const UNKNOWN: Option<AlertDescription> = Some(AlertDescription::CertificateUnknown);
    const UNSUPPORTED: Option<AlertDescription> = Some(AlertDescription::UnsupportedCertificate);

    #[test]
    fn a_client_without_a_certificate() {
        let authority = Arc::new(bundle(&[&Ca::new("a")], &[]));
        let rules = ClientRules::default();
        let alert = |mandatory, version| meet(Some(authority.clone()), mandatory, &rules, None, version).alert();
        assert_eq!(alert(true, &TLS13), Some(AlertDescription::CertificateRequired));
        // Envoy: handshake_failure (40).
        assert_eq!(alert(true, &TLS12), Some(AlertDescription::CertificateRequired));
        assert_eq!(alert(false, &TLS13), None);
        assert_eq!(alert(false, &TLS12), None);
    }

    #[test]
    fn trust() {
        let (a, b) = (Ca::new("a"), Ca::new("b"));
        let middle = a.below("middle", |_| {});
        let rules = ClientRules::default();
        let of_a = a.leaf(client_parameters());
        let of_middle = middle.leaf(client_parameters());
        let check = |cas: &[&Ca], certificate| alert(bundle(cas, &[]), &rules, certificate);

        assert_eq!(check(&[&a], of_a.credential(&[])), None);
        assert_eq!(check(&[&b, &a], of_a.credential(&[])), None);
        assert_eq!(check(&[&a], of_middle.credential(&[&middle])), None);
        assert_eq!(check(&[&middle], of_middle.credential(&[])), None, "an intermediate is a trust anchor");
        assert_eq!(check(&[&b], of_a.credential(&[])), UNKNOWN_CA);
        assert_eq!(check(&[&Ca::new("a")], of_a.credential(&[])), UNKNOWN_CA, "another CA of the same name");
        assert_eq!(check(&[&a], of_middle.credential(&[])), UNKNOWN_CA, "missing intermediate");
        assert_eq!(check(&[&a], Leaf::self_signed(&client_parameters()).credential(&[])), UNKNOWN_CA);
        // No authority, no trust.
        let outcome = meet(None, false, &rules, Some(of_a.credential(&[])), &TLS13);
        assert_eq!(outcome.alert(), UNKNOWN_CA);
    }

    #[test]
    fn time_and_purpose() {
        let ca = Ca::new("a");
        let check = |adjust: fn(&mut CertificateParams)| {
            let mut parameters = client_parameters();
            adjust(&mut parameters);
            alert(bundle(&[&ca], &[]), &ClientRules::default(), ca.leaf(parameters).credential(&[]))
        };
        assert_eq!(check(|parameters| lasting(parameters, -3, -2)), EXPIRED);
        assert_eq!(check(|parameters| lasting(parameters, 2, 3)), EXPIRED, "not yet valid");
        assert_eq!(check(|parameters| parameters.extended_key_usages.clear()), None);
        let server_only = |parameters: &mut CertificateParams| {
            parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        };
        assert_eq!(check(server_only), UNSUPPORTED);
        let any_only = |parameters: &mut CertificateParams| {
            parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
        };
        assert_eq!(check(any_only), UNSUPPORTED);
        let encipher_only = |parameters: &mut CertificateParams| {
            parameters.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
        };
        assert_eq!(check(encipher_only), UNSUPPORTED);
        let sign = |parameters: &mut CertificateParams| {
            parameters.key_usages = vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature];
        };
        assert_eq!(check(sign), None);
    }

    #[test]
    fn limits_of_authorities() {
        let old = Ca::with("old", |parameters| lasting(parameters, -10, -5));
        let leaf = old.leaf(client_parameters()).credential(&[]);
        assert_eq!(alert(bundle(&[&old], &[]), &ClientRules::default(), leaf), EXPIRED);

        let short =
            Ca::with("short", |parameters| parameters.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0)));
        let middle = short.below("middle", |_| {});
        let leaf = middle.leaf(client_parameters()).credential(&[&middle]);
        assert_eq!(alert(bundle(&[&short], &[]), &ClientRules::default(), leaf), UNKNOWN_CA);
        let leaf = short.leaf(client_parameters()).credential(&[]);
        assert_eq!(alert(bundle(&[&short], &[]), &ClientRules::default(), leaf), None);
    }

    #[test]
    fn purposes_of_authorities() {
        let root = Ca::new("root");
        let check = |usages: &[ExtendedKeyUsagePurpose]| {
            let middle = root.below("middle", |parameters| parameters.extended_key_usages = usages.to_vec());
            let mut also_ca = client_parameters();
            also_ca.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let [usual, unusual] = [client_parameters(), also_ca].map(|parameters| {
                alert(bundle(&[&middle], &[]), &ClientRules::default(), middle.leaf(parameters).credential(&[]))
            });
            assert_eq!(usual, unusual);
            usual
        };
        assert_eq!(check(&[]), None);
        assert_eq!(check(&[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]), None);
        assert_eq!(check(&[ExtendedKeyUsagePurpose::ServerAuth]), UNSUPPORTED);
        assert_eq!(check(&[ExtendedKeyUsagePurpose::Any]), UNSUPPORTED);
    }

    #[test]
    fn a_certificate_of_the_bundle_is_trusted_but_vouches_for_none() {
        let check = |authority: &Leaf, leaf: &Leaf| {
            let authority = Authority::from_pem(authority.certificate.pem().as_bytes(), None).unwrap();
            alert(authority, &ClientRules::default(), leaf.credential(&[]))
        };
        let single = Leaf::self_signed(&client_parameters());
        assert_eq!(check(&single, &single), None);

        // As openssl req -x509 makes them.
        let mut parameters = client_parameters();
        parameters.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let single = Leaf::self_signed(&parameters);
        assert_eq!(check(&single, &single), None);
        lasting(&mut parameters, -3, -2);
        let single = Leaf::self_signed(&parameters);
        assert_eq!(check(&single, &single), EXPIRED);
        let mut parameters = client_parameters();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let single = Leaf::self_signed(&parameters);
        assert_eq!(check(&single, &single), UNSUPPORTED);

        // rcgen signs with anything. A key usage alone does not make a CA.
        for usages in [vec![], vec![KeyUsagePurpose::KeyCertSign]] {
            let key = pki::ecdsa();
            let mut parameters = client_parameters();
            parameters.key_usages = usages;
            let certificate = parameters.self_signed(&key).unwrap();
            let no_ca = Ca { certificate, issuer: rcgen::Issuer::new(parameters, key) };
            let below = no_ca.leaf(client_parameters());
            assert_eq!(alert(bundle(&[&no_ca], &[]), &ClientRules::default(), below.credential(&[])), UNKNOWN_CA);
        }
    }

    #[test]
    fn leaves_that_openssl_takes() {
        let (ca, other) = (Ca::new("a"), Ca::new("b"));
        let version_1 = |ca: &Ca| {
            let leaf = ca.leaf(serial(7));
            let der = pki::as_version_1(leaf.certificate.der(), ca);
            let chain = pem("CERTIFICATE", &der);
            Arc::new(Credential::from_pem(chain.as_bytes(), leaf.key.serialize_pem().as_bytes(), None).unwrap())
        };
        let mut parameters = serial(7);
        parameters.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let also_ca = ca.leaf(parameters).credential(&[]);
        let rules = ClientRules::default();
        for leaf in [version_1(&ca), also_ca] {
            let check = |ca: &Ca, crls: &[String]| alert(bundle(&[ca], crls), &rules, leaf.clone());
            assert_eq!(check(&ca, &[]), None);
            assert_eq!(check(&other, &[]), UNKNOWN_CA);
            assert_eq!(check(&Ca::new("a"), &[]), UNKNOWN_CA);
            assert_eq!(check(&ca, &[ca.crl(-1, 1, &[8])]), None);
            assert_eq!(check(&ca, &[ca.crl(-1, 1, &[7])]), REVOKED);
            assert_eq!(check(&ca, &[ca.crl(-2, -1, &[])]), EXPIRED);
            assert_eq!(check(&ca, &[ca.crl(1, 2, &[])]), EXPIRED);
            assert_eq!(check(&ca, &[other.crl(-1, 1, &[])]), UNKNOWN_CA);
            assert_eq!(check(&ca, &[Ca::new("a").crl(-1, 1, &[])]), UNKNOWN_CA, "forged CRL");
            let next = Ca::new("a");
            let crls = [next.crl(-1, 1, &[7]), ca.crl(-1, 1, &[])];
            assert_eq!(alert(bundle(&[&next, &ca], &crls), &rules, leaf.clone()), None, "of two CAs of one name");
        }

        // A CA for some names only: whether this is one of them is not known.
        let constrained = Ca::with("a", |parameters| {
            let permitted_subtrees = vec![GeneralSubtree::DnsName("example.com".into())];
            parameters.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        });
        assert_eq!(alert(bundle(&[&constrained], &[]), &rules, version_1(&constrained)), UNKNOWN_CA);
        let usual = constrained.leaf(client_parameters()).credential(&[]);
        assert_eq!(alert(bundle(&[&constrained], &[]), &rules, usual), None);
    }

    #[test]
    fn revocation() {
        let (root, other) = (Ca::new("root"), Ca::new("other"));
        let middle = root.below("middle", |parameters| parameters.serial_number = Some(SerialNumber::from(99)));
        let rules = ClientRules::default();
        let leaf = root.leaf(serial(7)).credential(&[]);
        let check = |crls: &[String]| alert(bundle(&[&root, &other], crls), &rules, leaf.clone());
        assert_eq!(check(&[root.crl(-1, 1, &[8])]), None);
        assert_eq!(check(&[root.crl(-1, 1, &[6, 7])]), REVOKED);
        assert_eq!(check(&[other.crl(-1, 1, &[])]), UNKNOWN_CA, "none of its issuer");
        assert_eq!(check(&[root.crl(-2, -1, &[])]), EXPIRED);
        assert_eq!(check(&[root.crl(1, 2, &[])]), EXPIRED, "not yet valid");
        assert_eq!(check(&[other.crl(1, 2, &[])]), UNKNOWN_CA);
        assert_eq!(check(&[other.crl(-1, 1, &[]), root.crl(-1, 1, &[])]), None);
        assert_eq!(check(&[root.crl(-3, -2, &[]), root.crl(-1, 1, &[])]), None, "the newest counts");
        assert_eq!(check(&[root.crl(-3, 3, &[]), root.crl(-1, 1, &[7])]), REVOKED, "the newest counts");
        assert_eq!(check(&[root.crl(1, 2, &[7]), root.crl(-1, 1, &[])]), None, "the future does not count");
        assert_eq!(check(&[Ca::new("root").crl(-1, 1, &[])]), UNKNOWN_CA, "forged");

        let leaf = middle.leaf(serial(7)).credential(&[&middle]);
        let check = |crls: &[String]| alert(bundle(&[&root], crls), &rules, leaf.clone());
        assert_eq!(check(&[root.crl(-1, 1, &[]), middle.crl(-1, 1, &[])]), None);
        assert_eq!(check(&[root.crl(-1, 1, &[])]), UNKNOWN_CA, "none of the intermediate");
        assert_eq!(check(&[middle.crl(-1, 1, &[])]), UNKNOWN_CA, "none of the root");
        assert_eq!(check(&[root.crl(-1, 1, &[99]), middle.crl(-1, 1, &[])]), REVOKED);
        assert_eq!(check(&[root.crl(-1, 1, &[]), middle.crl(-1, 1, &[7])]), REVOKED);
        assert_eq!(check(&[root.crl(1, 2, &[]), middle.crl(-1, 1, &[])]), EXPIRED);

        // An intermediate of the bundle is judged as well, whether the client sends it or not.
        for above in [&[][..], &[&middle]] {
            let leaf = middle.leaf(serial(7)).credential(above);
            for cas in [[&root, &middle], [&middle, &root]] {
                let check = |crls: &[String]| alert(bundle(&cas, crls), &rules, leaf.clone());
                assert_eq!(check(&[root.crl(-1, 1, &[]), middle.crl(-1, 1, &[])]), None);
                assert_eq!(check(&[root.crl(-1, 1, &[99]), middle.crl(-1, 1, &[])]), REVOKED);
                assert_eq!(check(&[root.crl(-1, 1, &[]), middle.crl(-1, 1, &[7])]), REVOKED);
                assert_eq!(check(&[middle.crl(-1, 1, &[])]), UNKNOWN_CA, "none of the root");
                assert_eq!(check(&[root.crl(-2, -1, &[]), middle.crl(-1, 1, &[])]), EXPIRED);
                assert_eq!(check(&[root.crl(1, 2, &[]), middle.crl(-1, 1, &[])]), EXPIRED, "not yet valid");
            }
        }
        let mut also_ca = serial(7);
        also_ca.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let leaf = middle.leaf(also_ca).credential(&[]);
        let crls = [root.crl(-1, 1, &[99]), middle.crl(-1, 1, &[])];
        assert_eq!(alert(bundle(&[&root, &middle], &crls), &rules, leaf), REVOKED);
        // Without the root nobody can tell whether its list is genuine.
        let leaf = middle.leaf(serial(7)).credential(&[]);
        let crls = [root.crl(-1, 1, &[]), middle.crl(-1, 1, &[])];
        assert_eq!(alert(bundle(&[&middle], &crls), &rules, leaf), UNKNOWN_CA);

        // Two CAs of one name, each with its list.
        let next = Ca::new("root");
        let crls = [root.crl(-1, 1, &[7]), next.crl(-1, 1, &[8])];
        for crls in [crls.clone(), [crls[1].clone(), crls[0].clone()]] {
            let check = |ca: &Ca, number| {
                alert(bundle(&[&root, &next], &crls), &rules, ca.leaf(serial(number)).credential(&[]))
            };
            assert_eq!(check(&root, 8), None);
            assert_eq!(check(&next, 7), None);
            assert_eq!(check(&root, 7), REVOKED);
            assert_eq!(check(&next, 8), REVOKED);
        }

        // Without a certificate there is nothing to look up.
        let authority = Arc::new(bundle(&[&root], &[root.crl(-1, 1, &[])]));
        assert_eq!(meet(Some(authority), false, &rules, None, &TLS13).alert(), None);
    }

    #[test]
    fn revocation_below_many_roots() {
        let (root, twins) = (Ca::new("root"), [Ca::new("twin"), Ca::new("twin")]);
        let roots = [&root, &twins[0], &twins[1]].map(|ca| ca.certificate.der().clone());
        let check = |ca: &Ca, crls: &[String]| {
            let authority = Authority::of_roots(&roots, Some(crls.concat().as_bytes())).unwrap();
            alert(authority, &ClientRules::default(), ca.leaf(serial(7)).credential(&[]))
        };
        assert_eq!(check(&root, &[root.crl(-1, 1, &[8])]), None);
        assert_eq!(check(&root, &[root.crl(-1, 1, &[7])]), REVOKED);
        assert_eq!(check(&twins[0], &[root.crl(-1, 1, &[])]), UNKNOWN_CA, "none of its issuer");
        let crls = [twins[0].crl(-1, 1, &[7]), twins[1].crl(-1, 1, &[])];
        assert_eq!(check(&twins[0], &crls), REVOKED);
        assert_eq!(check(&twins[1], &crls), None);
    }

    #[test]
    fn who_may_sign_lists() {
        let usage = |usages: &[KeyUsagePurpose]| {
            let (mut parameters, key) = (parameters("a", &[]), pki::ecdsa());
            parameters.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            parameters.key_usages = usages.to_vec();
            let certificate = parameters.self_signed(&key).unwrap();
            // Else rcgen does not sign.
            parameters.key_usages.clear();
            let ca = Ca { certificate, issuer: rcgen::Issuer::new(parameters, key) };
            let leaf = ca.leaf(client_parameters()).credential(&[]);
            alert(bundle(&[&ca], &[ca.crl(-1, 1, &[])]), &ClientRules::default(), leaf)
        };
        assert_eq!(usage(&[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]), None);
        assert_eq!(usage(&[KeyUsagePurpose::KeyCertSign]), UNKNOWN_CA);
    }

    #[test]
    fn names() {
        let ca = Ca::new("a");
        let mut parameters = client_parameters();
        parameters.subject_alt_names = vec![
            SanType::DnsName("client.example.com".try_into().unwrap()),
            SanType::DnsName("*.wild.example.com".try_into().unwrap()),
            SanType::URI("spiffe://cluster.local/ns/foo/sa/bar".try_into().unwrap()),
            SanType::Rfc822Name("x@example.com".try_into().unwrap()),
            SanType::IpAddress("10.0.0.1".parse().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
        ];
        let leaf = ca.leaf(parameters).credential(&[]);
        let check = |allowed: &[&str]| {
            let subject_alt_names = allowed.iter().map(|name| Arc::from(*name)).collect();
            let rules = ClientRules { subject_alt_names, ..ClientRules::default() };
            meet(Some(Arc::new(bundle(&[&ca], &[]))), true, &rules, Some(leaf.clone()), &TLS13)
        };
        for allowed in [
            "client.example.com",
            "spiffe://cluster.local/ns/foo/sa/bar",
            "x@example.com",
            "10.0.0.1",
            "2001:db8::1",
            "a.wild.example.com",
            "*.wild.example.com",
        ] {
            assert_eq!(check(&["nope", allowed]).alert(), None, "{allowed}");
        }
        for refused in [
            "client",
            "example.com",
            "*.example.com",
            "wild.example.com",
            "a.b.wild.example.com",
            "spiffe://cluster.local/ns/foo/sa/*",
            "spiffe://cluster.local/ns/foo/sa/BAR",
            "10.0.0.2",
        ] {
            let outcome = check(&[refused]);
            assert_eq!(outcome.alert(), UNKNOWN, "{refused}");
            // As in the log of Envoy.
            let names = "client.example.com,_*.wild.example.com,_spiffe://cluster.local/ns/foo/sa/bar,_x@example.com,\
                         _10.0.0.1,_2001:db8::1";
            let reason = format!("_SAN_matcher,_certificate_SANs_are_[{names}]");
            assert_eq!(envoy_reason(&outcome.server.unwrap_err()), Some(reason));
        }
    }

    #[test]
    fn pins() {
        let ca = Ca::new("a");
        let leaf = ca.leaf(client_parameters()).credential(&[]);
        let check = |spki_pins: &[[u8; 32]], certificate_hashes: &[[u8; 32]]| {
            let (spki_pins, certificate_hashes) = (spki_pins.to_vec(), certificate_hashes.to_vec());
            let rules = ClientRules { spki_pins, certificate_hashes, ..ClientRules::default() };
            meet(Some(Arc::new(bundle(&[&ca], &[]))), true, &rules, Some(leaf.clone()), &TLS13)
        };
        let (spki, whole) = (*leaf.leaf().spki_sha256(), *leaf.leaf().sha256());
        assert_eq!(check(&[spki], &[]).alert(), None);
        assert_eq!(check(&[], &[whole]).alert(), None);
        assert_eq!(check(&[[0; 32]], &[[0; 32], whole]).alert(), None, "either list");
        assert_eq!(check(&[spki, [0; 32]], &[[0; 32]]).alert(), None, "either list");
        for outcome in [check(&[whole], &[spki]), check(&[[0; 32]], &[])] {
            // Envoy's is 114, see above.
            assert_eq!(outcome.alert(), UNKNOWN);
            let error = outcome.server.unwrap_err();
            assert_eq!(Refusal::of(&error), Some(&Refusal::Pin));
            assert_eq!(envoy_reason(&error).as_deref(), Some("_cert_hash_and_spki"));
        }
        // Pins do not replace the chain.
        let rules = ClientRules { spki_pins: vec![spki], ..ClientRules::default() };
        assert_eq!(alert(bundle(&[&Ca::new("b")], &[]), &rules, leaf), UNKNOWN_CA);
    }

    #[test]
    fn what_can_not_be_read_is_refused_even_without_verification() {
        let rules = ClientRules { skip_verification: true, ..ClientRules::default() };
        let leaf = CertificateDer::from_slice(b"\x30\x03\x02\x01\x00");
        let verified = client(None, true, rules).verify_client_cert(&leaf, &[], UnixTime::now());
        assert_eq!(verified.unwrap_err(), Error::InvalidCertificate(CertificateError::BadEncoding));
    }

    #[test]
    fn skipped_verification_still_wants_the_key() {
        let rules = ClientRules { skip_verification: true, ..ClientRules::default() };
        let mut old = parameters("old", &[]);
        lasting(&mut old, -3, -2);
        old.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = Leaf::self_signed(&old);
        assert_eq!(alert(bundle(&[&Ca::new("a")], &[]), &rules, leaf.credential(&[])), None);
        for version in [&TLS12, &TLS13] {
            let outcome = meet(None, true, &rules, None, version);
            assert!(outcome.alert().is_some(), "a certificate must be sent");
        }

        // Another key signs.
        let thief = Arc::new(Credential::with_foreign_key(leaf.certificate.der(), &pki::ecdsa().serialize_der()));
        for version in [&TLS12, &TLS13] {
            let outcome = meet(None, true, &rules, Some(thief.clone()), version);
            assert_eq!(outcome.alert(), Some(AlertDescription::DecryptError));
        }
    }

    #[test]
    fn clients_are_told_the_authorities() {
        let (a, b) = (Ca::new("a"), Ca::new("b"));
        let verifier = client(Some(Arc::new(bundle(&[&a, &b], &[]))), true, ClientRules::default());
        let names: Vec<String> = verifier
            .root_hint_subjects()
            .iter()
            .map(|name| String::from_utf8_lossy(name.as_ref()).into_owned())
            .collect();
        assert!(names[0].ends_with('a') && names[1].ends_with('b') && names.len() == 2, "{names:?}");
    }

    /// A server with names meets a client that expects `name`.
    fn ask(rules: &ServerRules, authority: &Arc<Authority>, name: &str, server: &Arc<Credential>) -> Outcome {
        let [_, outcome] = [&TLS12, &TLS13].map(|version| {
            let servers = super::server(Some(authority.clone()), rules.clone());
            let client = pki::client_with(default_provider(), servers, None);
            handshake(client, pki::server(Arc::new(Choice::new(vec![server.clone()])), version), name)
        });
        outcome
    }

    #[test]
    fn servers() {
        let (ca, other) = (Ca::new("a"), Ca::new("b"));
        let server = ca.leaf(parameters("no.san", &["up.com", "*.up.com", "10.1.2.3"])).credential(&[]);
        let reason = |rules: &ServerRules, ca: &Ca, name: &str| {
            let outcome = ask(rules, &Arc::new(bundle(&[ca], &[])), name, &server);
            outcome.client.err().map(|error| envoy_reason(&error).unwrap())
        };
        let chain_only = ServerRules::default();
        assert_eq!(reason(&chain_only, &ca, "wrong.com"), None);
        let unknown =
            "_X509_verify_cert:_certificate_verification_error_at_depth_0:_unable_to_get_local_issuer_certificate";
        assert_eq!(reason(&chain_only, &other, "up.com").as_deref(), Some(unknown));

        let named = ServerRules { verify_name: true, ..ServerRules::default() };
        for name in ["up.com", "UP.com", "x.up.com", "10.1.2.3"] {
            assert_eq!(reason(&named, &ca, name), None, "{name}");
        }
        for name in ["wrong.com", "x.y.up.com", "10.9.8.7", "no.san"] {
            let expected =
                format!("_verify_SAN_list,_expected_SANs:_[{name}],_certificate_SANs:_[up.com,_*.up.com,_10.1.2.3]");
            assert_eq!(reason(&named, &ca, name), Some(expected));
        }

        let listed = |verify_name, name: &str| ServerRules {
            subject_alt_names: vec![name.into()],
            verify_name,
            ..ServerRules::default()
        };
        assert_eq!(reason(&listed(false, "up.com"), &ca, "wrong.com"), None);
        assert_eq!(reason(&listed(true, "up.com"), &ca, "x.up.com"), None);
        assert!(reason(&listed(true, "up.com"), &ca, "wrong.com").unwrap().starts_with("_verify_SAN_list"), "both");
        assert!(reason(&listed(true, "other"), &ca, "up.com").unwrap().starts_with("_SAN_matcher"), "both");

        let skip = ServerRules { verify_name: true, skip_verification: true, ..ServerRules::default() };
        assert_eq!(reason(&skip, &other, "wrong.com"), None);
    }

    #[test]
    fn reasons_of_chains() {
        let ca = Ca::new("a");
        let depth_0 = "_X509_verify_cert:_certificate_verification_error_at_depth_0:";
        let reason = |adjust: fn(&mut CertificateParams), crls: &[String]| {
            let mut parameters = parameters("up", &["up.com"]);
            parameters.serial_number = Some(SerialNumber::from(7));
            adjust(&mut parameters);
            let server = ca.leaf(parameters).credential(&[]);
            let outcome = ask(&ServerRules::default(), &Arc::new(bundle(&[&ca], crls)), "up.com", &server);
            let reason = envoy_reason(&outcome.client.unwrap_err()).unwrap();
            reason.strip_prefix(depth_0).unwrap().to_owned()
        };
        let crl = |text: &str| format!("_certificate_revocation_check_against_provided_CRLs_failed:_{text}");
        assert_eq!(reason(|parameters| lasting(parameters, -3, -2), &[]), "_certificate_has_expired");
        assert_eq!(reason(|parameters| lasting(parameters, 2, 3), &[]), "_certificate_is_not_yet_valid");
        let client_only = |parameters: &mut CertificateParams| {
            parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        };
        assert_eq!(reason(client_only, &[]), "_unsupported_certificate_purpose");
        assert_eq!(reason(|_| {}, &[ca.crl(-1, 1, &[7])]), crl("certificate_revoked"));
        assert_eq!(reason(|_| {}, &[Ca::new("b").crl(-1, 1, &[])]), crl("unable_to_get_certificate_CRL"));
        assert_eq!(reason(|_| {}, &[ca.crl(-2, -1, &[])]), crl("CRL_has_expired"));
        assert_eq!(reason(|_| {}, &[ca.crl(1, 2, &[])]), crl("CRL_is_not_yet_valid"));
    }
}
