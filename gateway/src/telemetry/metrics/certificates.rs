//! When certificates end.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use super::Page;

/// The certificates in use that end soonest. A bounded number: each is a time series.
#[derive(Debug, Default)]
pub struct Certificates(ArcSwap<Vec<CertificateExpiry>>);

/// When a certificate ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// Where it comes from: `secret shop-cert`.
    pub credential: String,
    /// Lower-case hex.
    pub serial: String,
    /// It is the workload's own.
    pub is_identity: bool,
    /// Its last moment.
    pub not_after: SystemTime,
}

impl Certificates {
    /// Takes the place of what was known before.
    pub fn set(&self, certificates: Vec<CertificateExpiry>) {
        self.0.store(Arc::new(certificates));
    }

    pub(super) fn expose(&self, page: &mut Page) {
        let certificates = self.0.load();
        let now = SystemTime::now();
        let left = |certificate: &CertificateExpiry| certificate.not_after.duration_since(now).unwrap_or_default();
        // Envoy's word for "there is none".
        let days = certificates.iter().map(|certificate| left(certificate).as_secs() / 86_400).min();
        page.gauge("envoy_server_days_until_first_cert_expiring", &[], days.unwrap_or(u32::MAX.into()));
        for certificate in certificates.iter() {
            let CertificateExpiry { credential, serial, is_identity, not_after } = certificate;
            let labels = [("credential", credential.as_str()), ("serial", serial.as_str())];
            let end = not_after.duration_since(UNIX_EPOCH).as_ref().map_or(0, Duration::as_secs);
            page.gauge("fairlead_certificate_expiry_timestamp_seconds", &labels, end);
            if *is_identity {
                let labels = [("resource_name", "default")];
                page.gauge("istio_agent_cert_expiry_seconds", &labels, left(certificate).as_secs());
            }
        }
    }
}
