//! TLS towards the endpoints of a cluster.
//!
//! Source: `reference/networking.md` §5.7; `reference/security.md` §4.8.

use std::sync::Arc;

use super::super::mesh::ClusterDefaults;
use super::super::report::{Field, Report};
use super::super::services::Service;
use super::super::tls::{Credential, TlsDefaults};
use super::super::virtual_services::ClusterReference;
use super::policy::TlsBlock;
use crate::credential::{CredentialUse, Wanted};
use crate::diagnostic::{Code, Severity};
use crate::resource::destination_rule::{ClientTlsMode, ClientTlsSettings};
use crate::snapshot::tls::{CaSource, CertificateSource, ClientMode, ClientTls, ServerNameSource, TlsParameters};

/// What a mode says of TLS; `None` for plaintext.
fn client_mode(mode: ClientTlsMode) -> Option<ClientMode> {
    match mode {
        ClientTlsMode::Disable => None,
        ClientTlsMode::Simple => Some(ClientMode::Simple),
        ClientTlsMode::Mutual => Some(ClientMode::Mutual),
        ClientTlsMode::IstioMutual => Some(ClientMode::IstioMutual),
    }
}

/// TLS with these settings for the destination `reference`; `None` for plaintext.
pub(super) fn client(
    settings: &ClientTlsSettings,
    reference: &ClusterReference,
    service: Option<&Service>,
    defaults: &ClusterDefaults,
    namespace: &str,
) -> Option<ClientTls> {
    let ClientTlsSettings { mode, subject_alt_names, sni, .. } = settings;
    let ClusterReference { host, port, subset, .. } = reference;
    let mode = client_mode(*mode)?;
    let Sources { ca, certificate } = Sources::new(settings, mode, namespace);
    let is_mesh = mode == ClientMode::IstioMutual;
    let skip_verification = skips(settings, mode);
    let own_names = || subject_alt_names.iter().map(|name| name.as_str().into()).collect::<Vec<Arc<str>>>();
    let service_names = service.map(|service| service.subject_alt_names.clone()).unwrap_or_default();
    let subject_alt_names: Vec<Arc<str>> = if skip_verification {
        Vec::new()
    } else if !subject_alt_names.is_empty() {
        own_names()
    } else if is_mesh {
        let mut names = service.map(|service| service.identities(&defaults.trust_domains)).unwrap_or_default();
        names.extend(service_names);
        names
    } else {
        service_names
    };
    Some(ClientTls {
        mode,
        server_name: match sni.as_str() {
            "" if is_mesh => ServerNameSource::Fixed(format!("outbound_.{port}_.{subset}_.{host}").into()),
            "" => ServerNameSource::Request,
            sni => ServerNameSource::Fixed(sni.into()),
        },
        ca: ca.map(|(ca, _)| ca),
        subject_alt_names,
        verify_server_name: !is_mesh && !skip_verification && sni.is_empty() && settings.subject_alt_names.is_empty(),
        skip_verification,
        certificate: certificate.map(|(certificate, _)| certificate),
        parameters: match is_mesh {
            true => TlsParameters::default(),
            false => {
                let TlsDefaults { min: _, cipher_suites, groups } = defaults.tls.clone();
                TlsParameters { cipher_suites, groups, ..TlsParameters::default() }
            }
        },
    })
}

/// Mesh peers are verified in any case.
fn skips(settings: &ClientTlsSettings, mode: ClientMode) -> bool {
    mode != ClientMode::IstioMutual && settings.insecure_skip_verify.unwrap_or(false)
}

/// Where credentials come from, each with the field that says so.
struct Sources {
    ca: Option<(CaSource, &'static str)>,
    certificate: Option<(CertificateSource, &'static str)>,
}

impl Sources {
    fn new(settings: &ClientTlsSettings, mode: ClientMode, namespace: &str) -> Self {
        let ClientTlsSettings {
            mode: _,
            client_certificate,
            private_key,
            ca_certificates,
            credential_name,
            subject_alt_names: _,
            sni: _,
            insecure_skip_verify: _,
            ca_crl,
        } = settings;
        if mode == ClientMode::IstioMutual {
            let ca = CaSource::Workload { crl: None };
            return Self { ca: Some((ca, "mode")), certificate: Some((CertificateSource::Workload, "mode")) };
        }
        let credential = (!credential_name.is_empty()).then(|| Credential::parse(credential_name, namespace));
        let crl = || (!ca_crl.is_empty()).then(|| ca_crl.into());
        let ca = match (&credential, ca_certificates.as_str()) {
            (Some(credential), _) => (credential.companion_ca(), "credentialName"),
            (None, "") => (CaSource::System { crl: crl() }, if ca_crl.is_empty() { "mode" } else { "caCrl" }),
            (None, "system") => (CaSource::System { crl: crl() }, "caCertificates"),
            (None, file) => (CaSource::Files { ca: file.into(), crl: crl() }, "caCertificates"),
        };
        let certificate = (mode == ClientMode::Mutual).then(|| match &credential {
            Some(credential) => (credential.certificate(), "credentialName"),
            None if client_certificate.is_empty() || private_key.is_empty() => {
                let reason = "MUTUAL needs `clientCertificate` and `privateKey`, or `credentialName`";
                (CertificateSource::Unusable(reason.into()), "clientCertificate")
            }
            None => {
                let files =
                    CertificateSource::Files { certificate: client_certificate.into(), key: private_key.into() };
                (files, "clientCertificate")
            }
        });
        Self { ca: (!skips(settings, mode)).then_some(ca), certificate }
    }
}

/// Puts what settings in force name in `uses`.
pub(super) fn credentials(block: &TlsBlock<'_>, namespace: &str, uses: &mut Vec<CredentialUse>) {
    let TlsBlock { settings, resource, path } = block;
    let Some(mode) = client_mode(settings.mode) else { return };
    let Sources { ca, certificate } = Sources::new(settings, mode, namespace);
    let mut add = |wanted, field| {
        uses.push(CredentialUse { wanted, resource: Arc::clone(resource), path: format!("{path}.{field}") });
    };
    match certificate {
        None | Some((CertificateSource::Unusable(_), _)) => {}
        Some((certificate, field)) => add(Wanted::Certificate(certificate), field),
    }
    match ca {
        None | Some((CaSource::Unusable(_), _)) => {}
        Some((ca, field)) => add(Wanted::Ca(ca), field),
    }
}

/// Names what can't be honoured of settings.
pub(super) fn report(settings: &ClientTlsSettings, field: &Field<'_>, namespace: &str, report: &mut Report) {
    let ClientTlsSettings {
        mode,
        client_certificate,
        private_key,
        ca_certificates,
        credential_name,
        subject_alt_names: _,
        sni: _,
        insecure_skip_verify,
        ca_crl,
    } = settings;
    let Some(mode) = client_mode(*mode) else { return };
    let Sources { ca, certificate } = Sources::new(settings, mode, namespace);
    let unusable_certificate = match &certificate {
        Some((CertificateSource::Unusable(reason), field)) => Some((reason, *field)),
        _ => None,
    };
    let unusable_ca = match &ca {
        Some((CaSource::Unusable(reason), field)) => Some((reason, *field)),
        _ => None,
    };
    if let Some((reason, name)) = unusable_certificate.or(unusable_ca) {
        let message = format!("{reason} (no connection succeeds: 503, UF)");
        report.error(Code::InvalidGatewayCredential, field.name(name), message);
    }
    if mode == ClientMode::IstioMutual {
        let unused = [
            ("clientCertificate", !client_certificate.is_empty()),
            ("privateKey", !private_key.is_empty()),
            ("caCertificates", !ca_certificates.is_empty()),
            ("credentialName", !credential_name.is_empty()),
            ("caCrl", !ca_crl.is_empty()),
            ("insecureSkipVerify", insecure_skip_verify.unwrap_or(false)),
        ];
        for (name, _) in unused.into_iter().filter(|(_, is_set)| *is_set) {
            let message = "has no effect with ISTIO_MUTUAL, which uses the workload's identity";
            report.warning(Code::Ignored, field.name(name), message);
        }
    } else if skips(settings, mode) && !ca_crl.is_empty() {
        let message = "has no effect with `insecureSkipVerify`, in Istio neither: any certificate is accepted";
        report.warning(Code::Ignored, field.name("caCrl"), message);
    } else if !credential_name.is_empty() && !ca_crl.is_empty() {
        let help = "put the CRL into the Secret of the CA, as `ca.crl`".to_owned();
        let message = "has no effect with `credentialName`, in Istio neither: revoked certificates are accepted";
        report.add(Severity::Warning, Code::Ignored, field.name("caCrl"), message, Some(help));
    }
}
