//! `tls` of a server that terminates TLS.
//!
//! Source: `reference/networking.md` §2.6, §2.7; `reference/security.md` §4.1, §4.2, §4.4, §4.5.

use std::sync::Arc;

use super::super::report::{Field, Report};
use super::super::tls::{Credential, TlsDefaults};
use crate::credential::{CredentialUse, Wanted};
use crate::diagnostic::{Code, Severity};
use crate::resource::Resource;
use crate::resource::gateway::{ServerTlsMode, ServerTlsSettings, TlsCertificate, TlsProtocol};
use crate::snapshot::tls::{
    CaSource, CertificateSource, ClientAuthentication, PeerTrust, ServerMode, ServerTls, TlsParameters, TlsVersion,
};
use crate::tls_lists;

const ALPN: &[&str] = &["h2", "http/1.1"];
const ISTIO_MUTUAL_ALPN: &[&str] = &["istio-peer-exchange", "h2", "http/1.1"];
/// One for each kind of key.
const MAX_CERTIFICATES: usize = 2;

/// Where settings stand.
pub(super) struct Context<'a> {
    pub(super) resource: &'a Arc<Resource>,
    /// Of this gateway.
    pub(super) namespace: &'a str,
    pub(super) defaults: &'a TlsDefaults,
    /// Protocol HTTPS, and not TLS.
    pub(super) is_https: bool,
}

/// TLS with these settings, whose mode is one that terminates. What names a credential goes to `uses`.
pub(super) fn server(
    settings: &ServerTlsSettings,
    context: &Context<'_>,
    field: &Field<'_>,
    uses: &mut Vec<CredentialUse>,
    report: &mut Report,
) -> ServerTls {
    let mut credentials = Credentials { context, field, uses, report };
    let ServerTlsSettings { mode, insecure_skip_verify, subject_alt_names, ca_crl, .. } = settings;
    let mode = match mode {
        ServerTlsMode::Simple | ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => ServerMode::Simple,
        ServerTlsMode::Mutual => ServerMode::Mutual,
        ServerTlsMode::OptionalMutual => ServerMode::OptionalMutual,
        ServerTlsMode::IstioMutual => {
            let ca = CaSource::Workload { crl: (!ca_crl.is_empty()).then(|| ca_crl.into()) };
            credentials.note(Wanted::Certificate(CertificateSource::Workload), "mode");
            credentials.note(Wanted::Ca(ca.clone()), if ca_crl.is_empty() { "mode" } else { "caCrl" });
            credentials.warn_about_pins(settings);
            let mut trust = PeerTrust {
                ca,
                subject_alt_names: subject_alt_names.clone(),
                spki_pins: Vec::new(),
                certificate_hashes: Vec::new(),
                skip_verification: insecure_skip_verify.unwrap_or(false),
            };
            credentials.drop_unchecked(&mut trust);
            return ServerTls {
                mode: ServerMode::IstioMutual,
                certificates: vec![CertificateSource::Workload],
                client: ClientAuthentication::Required(trust),
                // Neither the server's nor the mesh's settings count.
                parameters: TlsParameters::default(),
                alpn: if context.is_https { ALPN } else { ISTIO_MUTUAL_ALPN },
            };
        }
    };
    let (certificates, first) = credentials.certificates(settings);
    let client = match mode {
        ServerMode::Mutual => ClientAuthentication::Required(credentials.trust(settings, first.as_ref())),
        ServerMode::OptionalMutual => ClientAuthentication::Optional(credentials.trust(settings, first.as_ref())),
        ServerMode::Simple | ServerMode::IstioMutual => {
            credentials.warn_about_unused_trust(settings);
            ClientAuthentication::None
        }
    };
    let parameters = parameters(settings, context.defaults);
    let is_own = settings.min_protocol_version != TlsProtocol::Auto;
    if !is_own && parameters.max >= TlsVersion::V1_2 && parameters.min > parameters.max {
        let help = "set `minProtocolVersion`, too".to_owned();
        let message = "is below the mesh's `tlsDefaults.minProtocolVersion`: no client can connect";
        let max = field.name("maxProtocolVersion");
        credentials.report.add(Severity::Warning, Code::SchemaWarning, max, message, Some(help));
    }
    ServerTls { mode, certificates, client, parameters, alpn: ALPN }
}

/// The server's settings before the mesh's, which also replace a list of which nothing is left. What can't be offered
/// has been reported when they were validated.
fn parameters(settings: &ServerTlsSettings, defaults: &TlsDefaults) -> TlsParameters {
    let ServerTlsSettings { min_protocol_version, max_protocol_version, cipher_suites, ecdh_curves, .. } = settings;
    let standard = TlsParameters::default();
    TlsParameters {
        min: version(*min_protocol_version).or(defaults.min).unwrap_or(standard.min),
        max: version(*max_protocol_version).unwrap_or(standard.max),
        cipher_suites: own_or(tls_lists::cipher_suites(cipher_suites).items, &defaults.cipher_suites),
        groups: own_or(tls_lists::groups(ecdh_curves).items, &defaults.groups),
    }
}

fn own_or<T: Clone>(own: Vec<T>, default: &[T]) -> Vec<T> {
    if own.is_empty() { default.to_vec() } else { own }
}

fn version(version: TlsProtocol) -> Option<TlsVersion> {
    match version {
        TlsProtocol::Auto => None,
        TlsProtocol::V1_0 => Some(TlsVersion::V1_0),
        TlsProtocol::V1_1 => Some(TlsVersion::V1_1),
        TlsProtocol::V1_2 => Some(TlsVersion::V1_2),
        TlsProtocol::V1_3 => Some(TlsVersion::V1_3),
    }
}

/// Gathers the credentials that settings name.
struct Credentials<'a> {
    context: &'a Context<'a>,
    field: &'a Field<'a>,
    uses: &'a mut Vec<CredentialUse>,
    report: &'a mut Report,
}

impl Credentials<'_> {
    /// The certificates, and what the first one's name stands for if it is a name.
    fn certificates(&mut self, settings: &ServerTlsSettings) -> (Vec<CertificateSource>, Option<Credential>) {
        let ServerTlsSettings {
            credential_name,
            credential_names,
            server_certificate,
            private_key,
            tls_certificates,
            ..
        } = settings;
        let names: Vec<(String, &String)> = match (credential_names.as_slice(), credential_name.as_str()) {
            ([], "") => Vec::new(),
            ([], _) => vec![("credentialName".to_owned(), credential_name)],
            (names, _) => {
                let names = names.iter().enumerate().take(MAX_CERTIFICATES);
                names.map(|(i, name)| (format!("credentialNames[{i}]"), name)).collect()
            }
        };
        if !names.is_empty() {
            let mut first = None;
            let mut certificates = Vec::with_capacity(names.len());
            for (path, name) in names {
                let credential = Credential::parse(name, self.context.namespace);
                certificates.push(self.certificate(credential.certificate(), &path));
                first.get_or_insert(credential);
            }
            return (certificates, first);
        }
        let mut pairs: Vec<(String, &String, &String)> = Vec::new();
        for (i, pair) in tls_certificates.iter().enumerate().take(MAX_CERTIFICATES) {
            // Istio ignores a CA in a pair, too.
            let TlsCertificate { server_certificate, private_key, ca_certificates: _ } = pair;
            pairs.push((format!("tlsCertificates[{i}].serverCertificate"), server_certificate, private_key));
        }
        if pairs.is_empty() && !(server_certificate.is_empty() && private_key.is_empty()) {
            pairs.push(("serverCertificate".to_owned(), server_certificate, private_key));
        }
        let files = pairs.into_iter().map(|(path, certificate, key)| {
            let source = match certificate.is_empty() || key.is_empty() {
                true => CertificateSource::Unusable("a certificate needs its file and that of its key".into()),
                false => CertificateSource::Files { certificate: certificate.into(), key: key.into() },
            };
            self.certificate(source, &path)
        });
        let files: Vec<_> = files.collect();
        if files.is_empty() {
            let message = "no certificate is named: no handshake can succeed";
            self.report.error(Code::InvalidGatewayCredential, *self.field, message);
        }
        (files, None)
    }

    /// Whom a server with client certificates trusts. `first` is what the first certificate's name stands for.
    fn trust(&mut self, settings: &ServerTlsSettings, first: Option<&Credential>) -> PeerTrust {
        let ServerTlsSettings {
            ca_certificates,
            ca_crl,
            ca_cert_credential_name,
            credential_names,
            subject_alt_names,
            verify_certificate_spki,
            verify_certificate_hash,
            insecure_skip_verify,
            ..
        } = settings;
        let mut trust = PeerTrust {
            ca: CaSource::Unusable("client certificates can't be verified without a CA".into()),
            subject_alt_names: subject_alt_names.clone(),
            spki_pins: Vec::new(),
            certificate_hashes: Vec::new(),
            skip_verification: insecure_skip_verify.unwrap_or(false),
        };
        let (ca, path) = match first {
            Some(_) if !ca_cert_credential_name.is_empty() => {
                let credential = Credential::parse(ca_cert_credential_name, self.context.namespace);
                (credential.ca(), "caCertCredentialName")
            }
            Some(first) => (
                first.companion_ca(),
                if credential_names.is_empty() { "credentialName" } else { "credentialNames[0]" },
            ),
            None if ca_certificates.is_empty() => (trust.ca.clone(), "caCertificates"),
            None => {
                let crl = (!ca_crl.is_empty()).then(|| ca_crl.into());
                (CaSource::Files { ca: ca_certificates.into(), crl }, "caCertificates")
            }
        };
        trust.ca = self.ca(ca, path);
        if first.is_none() {
            self.warn_about_pins(settings);
            if !ca_cert_credential_name.is_empty() {
                let message = "has an effect only next to `credentialName`: `caCertificates` counts here";
                self.report.warning(Code::Ignored, self.field.name("caCertCredentialName"), message);
            }
            self.drop_unchecked(&mut trust);
            return trust;
        }
        if !ca_crl.is_empty() {
            let help = "put the CRL into the Secret of the CA, as `ca.crl`".to_owned();
            let message = "has no effect with `credentialName`, in Istio neither: revoked certificates are accepted";
            self.report.add(Severity::Warning, Code::Ignored, self.field.name("caCrl"), message, Some(help));
        }
        if !ca_certificates.is_empty() {
            let message = "has no effect with `credentialName`: the CA comes from the Secret";
            self.report.warning(Code::Ignored, self.field.name("caCertificates"), message);
        }
        let pins = verify_certificate_spki.iter().map(|pin| tls_lists::spki_pin(pin));
        let hashes = verify_certificate_hash.iter().map(|hash| tls_lists::certificate_hash(hash));
        match (pins.collect::<Option<Vec<_>>>(), hashes.collect::<Option<Vec<_>>>()) {
            (Some(pins), Some(hashes)) => (trust.spki_pins, trust.certificate_hashes) = (pins, hashes),
            // A Gateway with such a pin is not accepted in the first place.
            _ => trust.ca = CaSource::Unusable("a pin of a client certificate can't be read".into()),
        }
        self.drop_unchecked(&mut trust);
        trust
    }

    /// Without verification no list counts.
    fn drop_unchecked(&mut self, trust: &mut PeerTrust) {
        let PeerTrust { ca: _, subject_alt_names, spki_pins, certificate_hashes, skip_verification } = trust;
        if !*skip_verification {
            return;
        }
        let lists = [
            ("subjectAltNames", !std::mem::take(subject_alt_names).is_empty()),
            ("verifyCertificateSpki", !std::mem::take(spki_pins).is_empty()),
            ("verifyCertificateHash", !std::mem::take(certificate_hashes).is_empty()),
        ];
        for (name, _) in lists.into_iter().filter(|(_, is_set)| *is_set) {
            let message = "is not checked, because `insecureSkipVerify` takes any certificate";
            self.report.warning(Code::Ignored, self.field.name(name), message);
        }
    }

    fn warn_about_pins(&mut self, settings: &ServerTlsSettings) {
        let lists = [
            ("verifyCertificateSpki", &settings.verify_certificate_spki),
            ("verifyCertificateHash", &settings.verify_certificate_hash),
        ];
        for (name, _) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            let message = "has an effect only with MUTUAL or OPTIONAL_MUTUAL and `credentialName`, in Istio too";
            self.report.warning(Code::Ignored, self.field.name(name), message);
        }
    }

    /// Names what SIMPLE has no use for.
    fn warn_about_unused_trust(&mut self, settings: &ServerTlsSettings) {
        self.warn_about_pins(settings);
        let unused = [
            ("subjectAltNames", !settings.subject_alt_names.is_empty()),
            ("caCertificates", !settings.ca_certificates.is_empty()),
            ("caCertCredentialName", !settings.ca_cert_credential_name.is_empty()),
            ("caCrl", !settings.ca_crl.is_empty()),
            ("insecureSkipVerify", settings.insecure_skip_verify.unwrap_or(false)),
        ];
        for (name, _) in unused.into_iter().filter(|(_, is_set)| *is_set) {
            let help = "use MUTUAL or OPTIONAL_MUTUAL".to_owned();
            let message = "has no effect with SIMPLE, which asks clients for no certificate";
            self.report.add(Severity::Warning, Code::Ignored, self.field.name(name), message, Some(help));
        }
    }

    fn certificate(&mut self, source: CertificateSource, path: &str) -> CertificateSource {
        if let CertificateSource::Unusable(reason) = &source {
            self.refuse(path, reason);
        } else {
            self.note(Wanted::Certificate(source.clone()), path);
        }
        source
    }

    fn ca(&mut self, source: CaSource, path: &str) -> CaSource {
        match &source {
            // Said of the certificate already, if it is the same name.
            CaSource::Unusable(_) if path.starts_with("credentialName") => {}
            CaSource::Unusable(reason) => self.refuse(path, reason),
            _ => self.note(Wanted::Ca(source.clone()), path),
        }
        source
    }

    fn refuse(&mut self, path: &str, reason: &str) {
        let message = format!("{reason} (connections are reset)");
        self.report.error(Code::InvalidGatewayCredential, self.field.name(path), message);
    }

    fn note(&mut self, wanted: Wanted, path: &str) {
        let path = self.field.name(path).path();
        self.uses.push(CredentialUse { wanted, resource: Arc::clone(self.context.resource), path });
    }
}
