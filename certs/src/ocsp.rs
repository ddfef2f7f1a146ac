//! OCSP responses that are stapled to a handshake.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{self, digest};
use der::Decode;
use x509_ocsp::{BasicOcspResponse, OcspResponse, OcspResponseStatus};
use x509_parser::certificate::X509Certificate;

use crate::Error;

/// A response about one certificate. Its status does not matter here: `revoked` is shown to clients, too.
pub(crate) struct Staple {
    pub(crate) der: Vec<u8>,
    /// When newer information will be there; none: at any time.
    pub(crate) next_update: Option<SystemTime>,
}

impl Staple {
    /// A response about `leaf`, whose issuer is known if it is part of the chain.
    pub(crate) fn parse(
        bytes: &[u8],
        leaf: &X509Certificate<'_>,
        issuer: Option<&X509Certificate<'_>>,
    ) -> Result<Self, Error> {
        let response = OcspResponse::from_der(bytes).map_err(|_| Error::Staple)?;
        if response.response_status != OcspResponseStatus::Successful {
            return Err(Error::Staple);
        }
        let basic = response.response_bytes.ok_or(Error::Staple)?;
        // id-pkix-ocsp-basic, the only kind there is.
        if basic.response_type.to_string() != "1.3.6.1.5.5.7.48.1.1" {
            return Err(Error::Staple);
        }
        let basic = BasicOcspResponse::from_der(basic.response.as_bytes()).map_err(|_| Error::Staple)?;
        let [single] = basic.tbs_response_data.responses.as_slice() else {
            return Err(Error::ForeignStaple);
        };

        let id = &single.cert_id;
        if unpadded(id.serial_number.as_bytes()) != unpadded(leaf.raw_serial()) {
            return Err(Error::ForeignStaple);
        }
        let algorithm = match id.hash_algorithm.oid.to_string().as_str() {
            "1.3.14.3.2.26" => Some(&digest::SHA1_FOR_LEGACY_USE_ONLY),
            "2.16.840.1.101.3.4.2.1" => Some(&digest::SHA256),
            _ => None,
        };
        if let Some(algorithm) = algorithm {
            let named = digest(algorithm, leaf.issuer().as_raw());
            let same_name = named.as_ref() == id.issuer_name_hash.as_bytes();
            // The second certificate of a chain may be anything; only the leaf's issuer says something about it.
            let same_key =
                issuer.filter(|issuer| issuer.subject().as_raw() == leaf.issuer().as_raw()).is_none_or(|issuer| {
                    let key = digest(algorithm, &issuer.public_key().subject_public_key.data);
                    key.as_ref() == id.issuer_key_hash.as_bytes()
                });
            if !same_name || !same_key {
                return Err(Error::ForeignStaple);
            }
        }
        let next_update = single.next_update.map(|time| UNIX_EPOCH + time.0.to_unix_duration());
        Ok(Self { der: bytes.to_vec(), next_update })
    }
}

fn unpadded(serial: &[u8]) -> &[u8] {
    let first = serial.iter().position(|byte| *byte != 0).unwrap_or(serial.len());
    &serial[first..]
}
