//! Secrets: chains, keys, staples, CA bundles, CRLs. The input is cut at `|` into chain, key, staple and CRL.
#![no_main]

use std::time::UNIX_EPOCH;

use certs::authority::Authority;
use certs::credential::Credential;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(4, |byte| *byte == b'|');
    let chain = parts.next().unwrap_or_default();
    let key = parts.next().unwrap_or_default();
    let (staple, crl) = (parts.next(), parts.next());
    // Either is fine; neither may panic.
    if let Ok(credential) = Credential::from_pem(chain, key, staple) {
        let _ = (credential.certified_key(UNIX_EPOCH), credential.warnings(UNIX_EPOCH));
        let _ = credential.leaf().xfcc_element(None);
    }
    let _ = Authority::from_pem(chain, crl);
});
