//! When certificates end.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ahash::AHashSet;
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
    /// Takes the place of what was known before. Of certificates with one serial number, such as the roots of a bundle,
    /// the first in the list stands for all: each time series must be told once.
    pub fn set(&self, mut certificates: Vec<CertificateExpiry>) {
        let mut seen = AHashSet::new();
        certificates.retain(|certificate| seen.insert((certificate.credential.clone(), certificate.serial.clone())));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_told_once_and_by_the_first_to_end() {
        let certificates = Certificates::default();
        let expiry = |credential: &str, serial: &str, end| CertificateExpiry {
            credential: credential.to_owned(),
            serial: serial.to_owned(),
            is_identity: false,
            not_after: UNIX_EPOCH + Duration::from_secs(end),
        };
        let (first, other) = (expiry("the CA of secret a", "01", 1), expiry("the CA of secret b", "01", 3));
        certificates.set(vec![first.clone(), expiry("the CA of secret a", "01", 2), other.clone()]);
        assert_eq!(**certificates.0.load(), [first, other]);
    }
}
