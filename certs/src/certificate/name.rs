//! Distinguished names as text, exactly as OpenSSL prints them with `XN_FLAG_RFC2253`.

use std::fmt::Write;

use x509_parser::der_parser::asn1_rs::{Any, Tag, ToDer};
use x509_parser::x509::X509Name;

/// `CN=client,O=Acme\, Inc.,C=US`: the last part first.
pub(super) fn rfc2253(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (position, part) in parts.iter().rev().enumerate() {
        if position > 0 {
            text.push(',');
        }
        // The attributes of one part are turned round, too.
        let attributes: Vec<_> = part.iter().collect();
        for (position, attribute) in attributes.iter().rev().enumerate() {
            if position > 0 {
                text.push('+');
            }
            let id = attribute.attr_type().to_id_string();
            let known = short_name(&id);
            text.push_str(known.unwrap_or(&id));
            text.push('=');
            match characters(attribute.attr_value()).filter(|_| known.is_some()) {
                Some(value) => escape(&mut text, &value),
                None => dump(&mut text, attribute.attr_value()),
            }
        }
    }
    text
}

/// OpenSSL's short names.
fn short_name(id: &str) -> Option<&'static str> {
    Some(match id {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.13" => "description",
        "2.5.4.15" => "businessCategory",
        "2.5.4.16" => "postalAddress",
        "2.5.4.17" => "postalCode",
        "2.5.4.18" => "postOfficeBox",
        "2.5.4.19" => "physicalDeliveryOfficeName",
        "2.5.4.20" => "telephoneNumber",
        "2.5.4.41" => "name",
        "2.5.4.42" => "GN",
        "2.5.4.43" => "initials",
        "2.5.4.44" => "generationQualifier",
        "2.5.4.45" => "x500UniqueIdentifier",
        "2.5.4.46" => "dnQualifier",
        "2.5.4.65" => "pseudonym",
        "2.5.4.72" => "role",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.3" => "mail",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "1.2.840.113549.1.9.2" => "unstructuredName",
        "1.2.840.113549.1.9.8" => "unstructuredAddress",
        _ => return None,
    })
}

/// The text of a string type; `None` for other types, or if the bytes are no such text.
fn characters(value: &Any<'_>) -> Option<String> {
    match value.tag() {
        Tag::Utf8String => std::str::from_utf8(value.data).ok().map(str::to_owned),
        // OpenSSL takes all of these for Latin-1.
        Tag::NumericString
        | Tag::PrintableString
        | Tag::T61String
        | Tag::Ia5String
        | Tag::UtcTime
        | Tag::GeneralizedTime
        | Tag::VisibleString => Some(value.data.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let units: Vec<u32> = value.data.chunks(2).map(number).collect();
            units.into_iter().map(char::from_u32).collect()
        }
        Tag::UniversalString => value.data.chunks(4).map(number).map(char::from_u32).collect(),
        _ => None,
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn escape(text: &mut String, value: &str) {
    let last = value.len().saturating_sub(1);
    for (position, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' ' if position == 0 || position == last => text.push_str("\\ "),
            b'#' if position == 0 => text.push_str("\\#"),
            0x20..0x7f => text.push(char::from(byte)),
            _ => push_hex(text, "\\", &[byte]),
        }
    }
}

/// What is no known text stands as the hex of its DER.
fn dump(text: &mut String, value: &Any<'_>) {
    push_hex(text, "#", &value.to_der_vec().unwrap_or_default());
}

fn push_hex(text: &mut String, mark: &str, bytes: &[u8]) {
    text.push_str(mark);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02X}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use x509_parser::prelude::FromDer;

    use super::*;
    use crate::pki::{sequence, tlv};

    const UTF8: u8 = 12;
    const PRINTABLE: u8 = 19;
    const T61: u8 = 20;
    const BMP: u8 = 30;

    const CN: &[u8] = &[0x55, 4, 3];
    const C: &[u8] = &[0x55, 4, 6];
    const L: &[u8] = &[0x55, 4, 7];
    const ST: &[u8] = &[0x55, 4, 8];
    const O: &[u8] = &[0x55, 4, 10];
    const OU: &[u8] = &[0x55, 4, 11];

    /// Type, tag, value.
    type Attribute<'a> = (&'a [u8], u8, &'a [u8]);

    /// Parts in the order of the DER.
    fn text(parts: &[&[Attribute<'_>]]) -> String {
        let parts: Vec<u8> = parts
            .iter()
            .flat_map(|attributes| {
                let attributes: Vec<u8> = attributes
                    .iter()
                    .flat_map(|(id, tag, value)| sequence(&[tlv(6, id), tlv(*tag, value)].concat()))
                    .collect();
                tlv(0x31, &attributes)
            })
            .collect();
        let der = sequence(&parts);
        let (_, name) = X509Name::from_der(&der).unwrap();
        rfc2253(&name)
    }

    #[test]
    fn example_of_the_reference() {
        let name = text(&[
            &[(C, PRINTABLE, b"US")],
            &[(ST, UTF8, b"CA")],
            &[(L, UTF8, b"San Francisco")],
            &[(O, UTF8, b"Acme, Inc.")],
            &[(OU, UTF8, b"Dev")],
            &[(OU, UTF8, b"Q\"x\"")],
            &[(CN, UTF8, b"cl=ient;1")],
        ]);
        assert_eq!(name, r#"CN=cl=ient\;1,OU=Q\"x\",OU=Dev,O=Acme\, Inc.,L=San Francisco,ST=CA,C=US"#);
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn escapes() {
        let common_name = |value: &[u8]| text(&[&[(CN, UTF8, value)]]);
        assert_eq!(common_name(b"a+b\\c<d>e"), r"CN=a\+b\\c\<d\>e");
        assert_eq!(common_name(b" a b "), r"CN=\ a b\ ");
        assert_eq!(common_name(b" "), r"CN=\ ");
        assert_eq!(common_name(b"#a#b"), r"CN=\#a#b");
        assert_eq!(common_name("Müller".as_bytes()), r"CN=M\C3\BCller");
        assert_eq!(common_name("日".as_bytes()), r"CN=\E6\97\A5");
        assert_eq!(common_name(b"a\nb\x7f"), r"CN=a\0Ab\7F");
        assert_eq!(common_name(b""), "CN=");
    }

    #[test]
    fn kinds_of_text() {
        assert_eq!(text(&[&[(CN, T61, b"M\xfcller")]]), r"CN=M\C3\BCller");
        assert_eq!(text(&[&[(CN, BMP, b"\0M\0\xfc")]]), r"CN=M\C3\BC");
        // An OCTET STRING is none: the hex of its DER.
        assert_eq!(text(&[&[(CN, 4, b"\x01\xff")]]), "CN=#040201FF");
        assert_eq!(text(&[&[(CN, UTF8, b"\xff")]]), "CN=#0C01FF");
        // So are the values of unknown types.
        assert_eq!(text(&[&[(&[0x2a, 3, 4], UTF8, b"x")]]), "1.2.3.4=#0C0178");
    }

    #[test]
    fn types_and_joint_parts() {
        let domain: &[u8] = &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25];
        let user: &[u8] = &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1];
        let email: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1];
        let serial: &[u8] = &[0x55, 4, 5];
        let name = text(&[
            &[(domain, 22, b"com")],
            &[(user, UTF8, b"u")],
            &[(CN, UTF8, b"a"), (serial, PRINTABLE, b"1")],
            &[(email, 22, b"x@example.com")],
        ]);
        assert_eq!(name, "emailAddress=x@example.com,serialNumber=1+CN=a,UID=u,DC=com");
    }
}
