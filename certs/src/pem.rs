//! PEM texts into DER.

use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::Error;
use crate::error::Part;

/// The certificates of `text`, at least one. Other blocks are passed over.
pub(crate) fn certificates(text: &[u8], part: Part) -> Result<Vec<CertificateDer<'static>>, Error> {
    let mut found = blocks::<CertificateDer<'static>>(text, part)?;
    found.shrink_to_fit();
    Ok(found)
}

/// The CRLs of `text`, at least one.
pub(crate) fn crls(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    blocks(text, Part::Crl)
}

/// The first private key of `text`.
pub(crate) fn key(text: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    // PKCS#8 says it in the label, the older forms in a header of the block.
    for mark in [&b"BEGIN ENCRYPTED PRIVATE KEY-----"[..], b"Proc-Type: 4,ENCRYPTED"] {
        if contains(text, mark) {
            return Err(Error::EncryptedKey);
        }
    }
    for block in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
        let (kind, der) = block.map_err(|_| Error::Pem(Part::Key))?;
        if let Some(key) = PrivateKeyDer::from_pem(kind, der) {
            return Ok(key);
        }
    }
    Err(Error::NoBlock(Part::Key))
}

fn blocks<T: PemObject>(text: &[u8], part: Part) -> Result<Vec<T>, Error> {
    let found = T::pem_slice_iter(text).collect::<Result<Vec<T>, _>>().map_err(|_| Error::Pem(part))?;
    if found.is_empty() { Err(Error::NoBlock(part)) } else { Ok(found) }
}

fn contains(text: &[u8], mark: &[u8]) -> bool {
    text.windows(mark.len()).any(|window| window == mark)
}
