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
