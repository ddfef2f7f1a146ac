//! What operators see of a certificate in use.

use std::time::SystemTime;

use certs::authority::Authority;
use certs::certificate::{Certificate, SubjectAltName};
use certs::credential::Credential;
use config::snapshot::tls::{CaSource, CertificateSource};

use super::slot::Material;
use crate::telemetry::metrics::CertificateExpiry;

/// A certificate that is shown to peers, or that peers are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialReport {
    /// Where it comes from: `secret shop-cert`.
    pub name: String,
    /// It is a CA's.
    pub is_authority: bool,
    /// It is the workload's own.
    pub is_identity: bool,
    /// Lower-case hex.
    pub serial: String,
    /// In the order of the certificate.
    pub subject_alt_names: Vec<SubjectAltName>,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin<'s> {
    Certificate(&'s CertificateSource),
    Ca(&'s CaSource),
}

impl Origin<'_> {
    /// It is the workload's own.
    pub(super) fn is_identity(self) -> bool {
        self == Self::Certificate(&CertificateSource::Workload)
    }
}

impl CredentialReport {
    pub(super) fn new(origin: Origin<'_>, certificate: &Certificate) -> Self {
        let (name, is_authority) = match origin {
            Origin::Certificate(source) => (Credential::name(source), false),
            Origin::Ca(source) => (Authority::name(source), true),
        };
        Self {
            name,
            is_authority,
            is_identity: origin.is_identity(),
            serial: certificate.serial().to_owned(),
            subject_alt_names: certificate.subject_alt_names().to_vec(),
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
        }
    }
}

impl From<CredentialReport> for CertificateExpiry {
    fn from(report: CredentialReport) -> Self {
        let CredentialReport { name, is_identity, serial, not_after, .. } = report;
        Self { credential: name, serial, is_identity, not_after }
    }
}
