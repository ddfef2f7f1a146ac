//! What a peer may send: a certificate in DER, taken apart and judged by itself as authority.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use certs::authority::Authority;
use certs::certificate::Certificate;
use certs::verify::{self, ClientRules};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::{CertificateDer, UnixTime};

fuzz_target!(|der: &[u8]| {
    // Either is fine; neither may panic.
    if let Ok(certificate) = Certificate::parse(der) {
        let _ = certificate.xfcc_element(Some("spiffe://cluster.local/ns/a/sa/b"));
    }
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", base64(der));
    let Ok(authority) = Authority::from_pem(pem.as_bytes(), None) else { return };
    let rules = ClientRules { subject_alt_names: vec!["a.example.com".into()], ..ClientRules::default() };
    let verifier = verify::client(Some(Arc::new(authority)), true, rules);
    let leaf = CertificateDer::from(der);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    let _ = verifier.verify_client_cert(&leaf, std::slice::from_ref(&leaf), now);
});

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().chain([&0, &0]).take(3).fold(0, |number, byte| number << 8 | usize::from(*byte));
        for digit in 0..4 {
            let unused = digit > chunk.len();
            text.push(if unused { '=' } else { char::from(DIGITS[number >> (18 - 6 * digit) & 63]) });
        }
    }
    text
}
