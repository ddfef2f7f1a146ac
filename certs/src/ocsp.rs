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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::{Arc, LazyLock};
    use std::time::Duration;

    use rcgen::{PublicKeyData, SerialNumber};
    use rustls::version::{TLS12, TLS13};

    use super::*;
    use crate::choice::Choice;
    use crate::credential::Credential;
    use crate::pki::{self, Ca, Leaf, handshake, parameters, sequence, tlv};

    const GOOD: &[u8] = &[0x80, 0];
    const SHA1: &[u8] = &[6, 5, 0x2b, 0x0e, 3, 2, 0x1a, 5, 0];
    const SHA256: &[u8] = &[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0];

    struct Answer<'a> {
        ca: &'a Ca,
        hash: &'a [u8],
        serial: u8,
        status: &'a [u8],
        next_update: &'a str,
        status_of_all: u8,
    }

    impl Answer<'_> {
        /// The response in DER, with a signature that nobody looks at.
        fn der(&self) -> Vec<u8> {
            let algorithm = if self.hash == SHA1 { &digest::SHA1_FOR_LEGACY_USE_ONLY } else { &digest::SHA256 };
            let (_, ca) = x509_parser::parse_x509_certificate(self.ca.certificate.der()).unwrap();
            let name = digest(algorithm, ca.subject().as_raw());
            let key = digest(algorithm, self.ca.issuer.key().der_bytes());
            let id = [sequence(self.hash), tlv(4, name.as_ref()), tlv(4, key.as_ref()), tlv(2, &[self.serial])];
            let time = |text: &str| tlv(0x18, text.as_bytes());
            let single = [
                sequence(&id.concat()),
                self.status.to_vec(),
                time("20200101000000Z"),
                tlv(0xa0, &time(self.next_update)),
            ];
            let data = [tlv(0xa2, &tlv(4, &[0; 20])), time("20200101000000Z"), sequence(&sequence(&single.concat()))];
            let ecdsa = sequence(&[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
            let basic = sequence(&[sequence(&data.concat()), ecdsa, tlv(3, &[0, 0])].concat());
            let kind = tlv(6, &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1]);
            let bytes = tlv(0xa0, &sequence(&[kind, tlv(4, &basic)].concat()));
            sequence(&[tlv(10, &[self.status_of_all]), bytes].concat())
        }
    }

    fn answer(ca: &Ca) -> Answer<'_> {
        Answer { ca, hash: SHA1, serial: 7, status: GOOD, next_update: "20990101000000Z", status_of_all: 0 }
    }

    fn leaf(ca: &Ca) -> Leaf {
        let mut parameters = parameters("a", &["a"]);
        parameters.serial_number = Some(SerialNumber::from(7));
        ca.leaf(parameters)
    }

    fn stapled(leaf: &Leaf, ca: &Ca, staple: &[u8]) -> Result<Arc<Credential>, Error> {
        let chain = leaf.certificate.pem() + &ca.pem();
        let key = leaf.key.serialize_pem();
        Credential::from_pem(chain.as_bytes(), key.as_bytes(), Some(staple)).map(Arc::new)
    }

    fn staple_at(credential: &Credential, now: SystemTime) -> Option<Vec<u8>> {
        credential.certified_key(now).ocsp.clone()
    }

    #[test]
    fn a_current_staple_is_shown() {
        let ca = Ca::new("ca");
        let leaf = leaf(&ca);
        let revoked = tlv(0xa1, &tlv(0x18, b"20200101000000Z"));
        for (hash, status) in [(SHA1, GOOD), (SHA256, GOOD), (SHA1, &revoked), (SHA1, &[0x82, 0])] {
            let staple = Answer { hash, status, ..answer(&ca) }.der();
            let credential = stapled(&leaf, &ca, &staple).unwrap();
            assert_eq!(staple_at(&credential, SystemTime::now()), Some(staple));
            // The handshake goes on with it.
            for version in [&TLS12, &TLS13] {
                let choice = Arc::new(Choice::new(vec![credential.clone()]));
                assert_eq!(handshake(pki::client(None), pki::server(choice, version), "a").alert(), None);
            }
        }
    }

    #[test]
    fn an_expired_staple_is_not_shown() {
        let ca = Ca::new("ca");
        let staple = Answer { next_update: "20300101000000Z", ..answer(&ca) }.der();
        let credential = stapled(&leaf(&ca), &ca, &staple).unwrap();
        let end = UNIX_EPOCH + Duration::from_secs(1_893_456_000);
        assert_eq!(staple_at(&credential, end - Duration::from_secs(1)), Some(staple));
        assert_eq!(staple_at(&credential, end), None);
        let warning = "OCSP staple of certificate \"CN=a\" has expired on 2030-01-01T00:00:00Z and is not sent";
        assert_eq!(credential.warnings(end).last().map(String::as_str), Some(warning));
    }

    #[test]
    fn staples_for_others() {
        let (ca, other) = (Ca::new("ca"), Ca::new("other"));
        let same_name = Ca::new("ca");
        let leaf = leaf(&ca);
        let refused = |answer: Answer<'_>| stapled(&leaf, &ca, &answer.der()).map(drop);
        assert_eq!(refused(answer(&ca)), Ok(()));
        assert_eq!(refused(Answer { serial: 8, ..answer(&ca) }), Err(Error::ForeignStaple));
        assert_eq!(refused(answer(&other)), Err(Error::ForeignStaple));
        assert_eq!(refused(answer(&same_name)), Err(Error::ForeignStaple));
        assert_eq!(refused(Answer { hash: SHA256, ..answer(&same_name) }), Err(Error::ForeignStaple));
    }

    #[test]
    fn what_is_no_staple() {
        let ca = Ca::new("ca");
        let leaf = leaf(&ca);
        let good = answer(&ca).der();
        let try_later = Answer { status_of_all: 3, ..answer(&ca) }.der();
        for junk in [b"junk".as_slice(), &good[1..], &good[..good.len() - 1], &[&good[..], b"\0"].concat(), &try_later]
        {
            assert_eq!(stapled(&leaf, &ca, junk).map(drop), Err(Error::Staple));
        }
    }

    proptest::proptest! {
        #[test]
        fn damaged_staples(place: proptest::sample::Index, value: u8) {
            static SOUND: LazyLock<(Ca, Leaf, Vec<u8>)> = LazyLock::new(|| {
                let ca = Ca::new("ca");
                let (leaf, staple) = (leaf(&ca), answer(&ca).der());
                (ca, leaf, staple)
            });
            let (ca, leaf, staple) = &*SOUND;
            let mut staple = staple.clone();
            let place = place.index(staple.len());
            staple[place] = value;
            // It must not panic.
            let _ = stapled(leaf, ca, &staple);
        }
    }
}
