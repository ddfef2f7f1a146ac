//! Damaged certificates, CRLs and OCSP responses: none of them may make anything panic. `fuzz` goes deeper.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::prelude::*;
use rcgen::{KeyUsagePurpose, SanType, SerialNumber};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::authority::Authority;
use crate::certificate::Certificate;
use crate::credential::Credential;
use crate::pki::{Ca, Leaf, parameters, pem};
use crate::verify::{self, ClientRules};

struct Sound {
    ca: Ca,
    leaf: Leaf,
    crl: Vec<u8>,
}

static SOUND: LazyLock<Sound> = LazyLock::new(|| {
    let ca = Ca::with("ca", |parameters| {
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    });
    let mut parameters = parameters("Müller, Inc.", &["a.example.com", "10.0.0.1"]);
    parameters.subject_alt_names.push(SanType::URI("spiffe://td/x".try_into().unwrap()));
    parameters.serial_number = Some(SerialNumber::from(7));
    let leaf = ca.leaf(parameters);
    let text = ca.crl(-1, 1, &[7, 8]);
    let crl = rustls_pki_types::pem::PemObject::from_pem_slice(text.as_bytes()).unwrap();
    let crl: rustls_pki_types::CertificateRevocationListDer<'_> = crl;
    Sound { crl: crl.to_vec(), ca, leaf }
});

/// Some bytes changed, and perhaps the end cut off.
fn damage(der: &[u8], changes: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) -> Vec<u8> {
    let mut der = der.to_vec();
    for (place, value) in changes {
        let place = place.index(der.len());
        der[place] = *value;
    }
    if let Some(cut) = cut {
        der.truncate(cut.index(der.len()));
    }
    der
}

fn changes() -> impl Strategy<Value = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)> {
    (
        prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4),
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
    )
}

/// Takes a certificate apart and judges it below `authority`.
fn judge(authority: Authority, leaf: &[u8], intermediate: &[u8]) {
    if let Ok(certificate) = Certificate::parse(leaf) {
        certificate.xfcc_element(Some("spiffe://td/gateway"));
    }
    let rules = ClientRules { subject_alt_names: vec!["a.example.com".into()], ..ClientRules::default() };
    let verifier = verify::client(Some(Arc::new(authority)), true, rules);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()));
    let _ = verifier.verify_client_cert(&CertificateDer::from(leaf), &[CertificateDer::from(intermediate)], now);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn leaves((changes, cut) in changes()) {
        let Sound { ca, leaf, .. } = &*SOUND;
        let der = damage(leaf.certificate.der(), &changes, cut);
        judge(Authority::from_pem(ca.pem().as_bytes(), None).unwrap(), &der, ca.certificate.der());
        let chain = pem("CERTIFICATE", &der);
        let _ = Credential::from_pem(chain.as_bytes(), leaf.key.serialize_pem().as_bytes(), None);
        // Beside its signature, too.
        if let Ok(authority) = Authority::from_pem(chain.as_bytes(), None) {
            judge(authority, &der, &der);
        }
    }

    #[test]
    fn authorities((changes, cut) in changes()) {
        let Sound { ca, leaf, .. } = &*SOUND;
        let der = damage(ca.certificate.der(), &changes, cut);
        if let Ok(authority) = Authority::from_pem(pem("CERTIFICATE", &der).as_bytes(), None) {
            judge(authority, leaf.certificate.der(), &der);
        }
    }

    #[test]
    fn crls((changes, cut) in changes()) {
        let Sound { ca, leaf, crl } = &*SOUND;
        let crl = pem("X509 CRL", &damage(crl, &changes, cut));
        if let Ok(authority) = Authority::from_pem(ca.pem().as_bytes(), Some(crl.as_bytes())) {
            judge(authority, leaf.certificate.der(), ca.certificate.der());
        }
    }

    #[test]
    fn keys((changes, cut) in changes()) {
        let Sound { leaf, .. } = &*SOUND;
        let der = damage(&leaf.key.serialize_der(), &changes, cut);
        for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
            let _ = Credential::from_pem(leaf.certificate.pem().as_bytes(), pem(label, &der).as_bytes(), None);
        }
    }
}
