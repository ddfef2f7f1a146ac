//! Lists in TLS settings (cipher suites, curves, pins): what of them can be used, and what is wrong with the rest.
//!
//! `validate` reports what is wrong, `compile` takes what is left. Source: `reference/networking.md` §2.6.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::snapshot::tls::{CipherSuite, Group};

/// Suites that Istio knows and that are not offered: no forward secrecy, CBC, or 3DES.
const OLD_SUITES: [&str; 9] = [
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// Groups that Istio knows and that are not offered.
const OLD_GROUPS: [&str; 2] = ["P-224", "X25519Kyber768Draft00"];

/// What is left of a list.
#[derive(Debug)]
pub(crate) struct Usable<T> {
    /// In the order of the list, without repetition.
    pub(crate) items: Vec<T>,
    /// Entries that are left out, by their number, with the reason.
    pub(crate) dropped: Vec<(usize, String)>,
}

/// The suites of `cipherSuites`.
pub(crate) fn cipher_suites(names: &[String]) -> Usable<CipherSuite> {
    let mut list = Usable { items: Vec::new(), dropped: Vec::new() };
    for (i, name) in names.iter().enumerate() {
        if name.is_empty() {
            continue;
        }
        if name == "ALL" {
            CipherSuite::ALL.iter().for_each(|&suite| _ = list.add(suite));
            continue;
        }
        // Suites of equal rank: the client chooses. Here they are ranked as written.
        let group = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        for name in group.unwrap_or(name).split('|') {
            match CipherSuite::by_name(name) {
                Some(suite) if list.add(suite) => {}
                Some(_) => list.drop(i, format!("`{name}` stands there twice")),
                None if OLD_SUITES.contains(&name) => {
                    list.drop(i, format!("`{name}` is not offered, because it is not safe"));
                }
                None if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) => {
                    list.drop(i, format!("`{name}`: operators of OpenSSL's lists are not supported"));
                }
                None => list.drop(i, format!("`{name}` is no cipher suite of TLS 1.2")),
            }
        }
    }
    list
}

/// The groups of `ecdhCurves`.
pub(crate) fn groups(names: &[String]) -> Usable<Group> {
    let mut list = Usable { items: Vec::new(), dropped: Vec::new() };
    for (i, name) in names.iter().enumerate() {
        match Group::by_name(name) {
            Some(group) if list.add(group) => {}
            Some(_) => list.drop(i, format!("`{name}` stands there twice")),
            None if OLD_GROUPS.contains(&name.as_str()) => {
                list.drop(i, format!("`{name}` is not offered, because it is not safe"));
            }
            None => list.drop(i, format!("`{name}` is no curve")),
        }
    }
    list
}

/// An entry of `verifyCertificateSpki`: the SHA-256 of a public key in base64.
pub(crate) fn spki_pin(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// An entry of `verifyCertificateHash`: the SHA-256 of a certificate in hexadecimal digits, with or without colons.
pub(crate) fn certificate_hash(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let is_spaced = text.contains(':');
    let pairs: Vec<&[u8]> = match is_spaced {
        true => text.split(':').map(str::as_bytes).collect(),
        false => text.as_bytes().chunks(2).collect(),
    };
    let bytes: Option<Vec<u8>> = pairs
        .into_iter()
        .map(|pair| match pair {
            &[high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect();
    bytes?.try_into().ok()
}

impl<T: PartialEq> Usable<T> {
    /// Whether `item` is new.
    fn add(&mut self, item: T) -> bool {
        let is_new = !self.items.contains(&item);
        if is_new {
            self.items.push(item);
        }
        is_new
    }

    fn drop(&mut self, index: usize, reason: String) {
        self.dropped.push((index, reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn suites() {
        use CipherSuite::{EcdheEcdsaAes128GcmSha256 as Ecdsa, EcdheRsaAes128GcmSha256 as Rsa};

        for (names, suites, dropped) in [
            (&[][..], &[][..], &[][..]),
            (&["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"], &[Rsa, Ecdsa], &[]),
            (&["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"], &[Rsa], &[1]),
            (&["AES128-SHA", "ECDHE-RSA-AES128-GCM-SHA256", "TLS_AES_128_GCM_SHA256", "x"], &[Rsa], &[0, 2, 3]),
            (&["[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-ECDSA-AES128-GCM-SHA256]", "-ALL", ""], &[Rsa, Ecdsa], &[1]),
            (&["ALL"], CipherSuite::ALL, &[]),
        ] {
            let found = cipher_suites(&list(names));
            assert_eq!(found.items, suites, "{names:?}");
            assert_eq!(found.dropped.iter().map(|(i, _)| *i).collect::<Vec<_>>(), dropped, "{names:?}");
        }
    }

    #[test]
    fn curves() {
        let found = groups(&list(&["P-384", "P-224", "X25519MLKEM768", "P-384", "x", "X25519Kyber768Draft00"]));
        assert_eq!(found.items, [Group::P384, Group::X25519MlKem768]);
        assert_eq!(found.dropped.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [1, 3, 4, 5]);
    }

    #[test]
    fn pins() {
        assert_eq!(spki_pin("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), Some([0; 32]));
        assert_eq!(spki_pin("AAAA"), None);
        assert_eq!(spki_pin("not base64"), None);
        assert_eq!(certificate_hash(&"aB".repeat(32)), Some([0xab; 32]));
        assert_eq!(certificate_hash(&vec!["AB"; 32].join(":")), Some([0xab; 32]));
        for wrong in ["", "ab", &"zz".repeat(32), &"a".repeat(63), &vec!["a"; 32].join(":"), &"ab".repeat(33)] {
            assert_eq!(certificate_hash(wrong), None, "{wrong}");
        }
    }
}
