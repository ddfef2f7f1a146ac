//! What a certificate says.

mod name;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::Error;

/// The facts of one certificate, read once. Cheap to keep: of its own bytes only what is not held elsewhere.
#[derive(Clone)]
pub struct Certificate {
    der: Der,
    subject: Box<str>,
    issuer: Box<str>,
    serial: Box<str>,
    subject_alt_names: Box<[SubjectAltName]>,
    not_before: SystemTime,
    not_after: SystemTime,
    sha256: [u8; 32],
    spki_sha256: [u8; 32],
}

/// One entry of a certificate's SubjectAltName. Kinds that nothing compares with are left out, and so is text with a
/// blank, a control byte or anything beyond ASCII: it is no name, and must get into no header and no log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectAltName {
    /// A host name, perhaps with a wildcard.
    Dns(Box<str>),
    /// E.g. a SPIFFE ID.
    Uri(Box<str>),
    /// An e-mail address.
    Email(Box<str>),
    /// An IP address.
    Ip(IpAddr),
}

impl fmt::Display for SubjectAltName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) | Self::Uri(name) | Self::Email(name) => f.write_str(name),
            Self::Ip(address) => write!(f, "{address}"),
        }
    }
}

/// The certificate's bytes, which a credential has anyway.
#[derive(Clone)]
enum Der {
    Own(Arc<[u8]>),
    Leaf(Arc<CertifiedKey>),
}

impl Certificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`Error::NotACertificate`].
    pub fn parse(der: &[u8]) -> Result<Self, Error> {
        Self::read(der, || Der::Own(der.into()))
    }

    /// Reads the leaf of a chain without copying it.
    pub(crate) fn of_leaf(key: &Arc<CertifiedKey>) -> Result<Self, Error> {
        let leaf = key.cert.first().ok_or(Error::NotACertificate)?;
        Self::read(leaf, || Der::Leaf(key.clone()))
    }

    fn read(der: &[u8], keep: impl FnOnce() -> Der) -> Result<Self, Error> {
        let parsed = parse(der)?;
        Ok(Self {
            subject: name::rfc2253(parsed.subject()).into(),
            issuer: name::rfc2253(parsed.issuer()).into(),
            serial: serial(parsed.raw_serial()).into(),
            subject_alt_names: subject_alt_names(&parsed),
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
            sha256: sha256(der),
            spki_sha256: sha256(parsed.public_key().raw),
            der: keep(),
        })
    }

    /// The whole certificate.
    pub fn der(&self) -> &[u8] {
        match &self.der {
            Der::Own(der) => der,
            Der::Leaf(key) => key.cert.first().map_or(&[], |leaf: &CertificateDer<'_>| leaf.as_ref()),
        }
    }

    /// The subject as OpenSSL prints it by RFC 2253: `CN=client,O=Acme\, Inc.`.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The issuer, in the same form.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The serial number in lower-case hex, whole bytes.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The names in the certificate's order.
    pub fn subject_alt_names(&self) -> &[SubjectAltName] {
        &self.subject_alt_names
    }

    /// The DNS names in the certificate's order.
    pub fn dns(&self) -> impl Iterator<Item = &str> {
        self.subject_alt_names.iter().filter_map(|name| match name {
            SubjectAltName::Dns(name) => Some(&**name),
            SubjectAltName::Uri(_) | SubjectAltName::Email(_) | SubjectAltName::Ip(_) => None,
        })
    }

    /// The URIs in the certificate's order.
    pub fn uris(&self) -> impl Iterator<Item = &str> {
        self.subject_alt_names.iter().filter_map(|name| match name {
            SubjectAltName::Uri(uri) => Some(&**uri),
            SubjectAltName::Dns(_) | SubjectAltName::Email(_) | SubjectAltName::Ip(_) => None,
        })
    }

    /// The e-mail addresses in the certificate's order.
    pub fn emails(&self) -> impl Iterator<Item = &str> {
        self.subject_alt_names.iter().filter_map(|name| match name {
            SubjectAltName::Email(address) => Some(&**address),
            SubjectAltName::Dns(_) | SubjectAltName::Uri(_) | SubjectAltName::Ip(_) => None,
        })
    }

    /// The IP addresses in the certificate's order.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.subject_alt_names.iter().filter_map(|name| match name {
            SubjectAltName::Ip(address) => Some(*address),
            SubjectAltName::Dns(_) | SubjectAltName::Uri(_) | SubjectAltName::Email(_) => None,
        })
    }

    /// Valid from here on.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Valid up to here.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// SHA-256 of the whole certificate.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// SHA-1 of the whole certificate, for logs; computed at each call.
    pub fn sha1(&self) -> [u8; 20] {
        let mut hash = [0; 20];
        hash.copy_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, self.der()).as_ref());
        hash
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn spki_sha256(&self) -> &[u8; 32] {
        &self.spki_sha256
    }

    /// The PEM text, as it stands in `X-Forwarded-Client-Cert` and access logs: `%20`, `%0A`, `%2B`, `%2F`, `%3D` for
    /// blanks, ends of lines and what base64 has beyond letters and digits.
    pub fn url_encoded_pem(&self) -> String {
        let mut text = String::with_capacity(self.der().len() * 3 / 2 + 100);
        self.write_url_encoded_pem(&mut text);
        text
    }

    fn write_url_encoded_pem(&self, text: &mut String) {
        text.push_str("-----BEGIN%20CERTIFICATE-----%0A");
        // 48 bytes make a line of 64 columns.
        for line in self.der().chunks(48) {
            let start = text.len();
            STANDARD.encode_string(line, text);
            if text.as_bytes()[start..].iter().any(|byte| matches!(byte, b'+' | b'/' | b'=')) {
                let line = text.split_off(start);
                for character in line.chars() {
                    match character {
                        '+' => text.push_str("%2B"),
                        '/' => text.push_str("%2F"),
                        '=' => text.push_str("%3D"),
                        plain => text.push(plain),
                    }
                }
            }
            text.push_str("%0A");
        }
        text.push_str("-----END%20CERTIFICATE-----%0A");
    }

    /// This certificate, the client's, as an element of `X-Forwarded-Client-Cert`; `by`: the URI SAN of ours, if it has
    /// one. To be made once a connection.
    pub fn xfcc_element(&self, by: Option<&str>) -> String {
        let mut element = String::with_capacity(self.der().len() * 3 / 2 + self.subject.len() + 400);
        if let Some(by) = by {
            element.push_str("By=");
            element.push_str(by);
            element.push(';');
        }
        element.push_str("Hash=");
        push_hex(&mut element, &self.sha256);
        element.push_str(";Cert=\"");
        self.write_url_encoded_pem(&mut element);
        element.push_str("\";Subject=\"");
        element.push_str(&self.subject);
        element.push('"');
        // Envoy asks for the first URI even where there is none.
        if self.uris().next().is_none() {
            element.push_str(";URI=");
        }
        for uri in self.uris() {
            element.push_str(";URI=");
            element.push_str(uri);
        }
        for name in self.dns() {
            element.push_str(";DNS=");
            element.push_str(name);
        }
        element
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("subject", &self.subject)
            .field("issuer", &self.issuer)
            .field("serial", &self.serial)
            .field("subject_alt_names", &self.subject_alt_names)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The same bytes.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl Eq for Certificate {}

/// One certificate and nothing behind it.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Error::NotACertificate),
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// Seconds since 1970, which may lie before.
pub(crate) fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

fn subject_alt_names(certificate: &X509Certificate<'_>) -> Box<[SubjectAltName]> {
    let mut names = Vec::new();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(list) = extension.parsed_extension() else { continue };
        for name in &list.general_names {
            names.extend(match name {
                GeneralName::DNSName(name) => visible(name).map(SubjectAltName::Dns),
                GeneralName::URI(uri) => visible(uri).map(SubjectAltName::Uri),
                GeneralName::RFC822Name(address) => visible(address).map(SubjectAltName::Email),
                GeneralName::IPAddress(bytes) => address(bytes).map(SubjectAltName::Ip),
                _ => None,
            });
        }
    }
    names.into_boxed_slice()
}

/// x509-parser takes any UTF-8, ends of lines as well.
fn visible(text: &str) -> Option<Box<str>> {
    text.bytes().all(|byte| byte.is_ascii_graphic()).then(|| text.into())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn serial(bytes: &[u8]) -> String {
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let mut text = String::with_capacity(2 * bytes.len());
    push_hex(&mut text, &bytes[first..]);
    if text.is_empty() {
        text.push('0');
    }
    text
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use rcgen::{CertificateParams, date_time_ymd};
    use rcgen::{DistinguishedName, DnType, SanType, SerialNumber};

    use super::*;
    use crate::pki::Leaf;

    fn certificate(adjust: impl FnOnce(&mut CertificateParams)) -> (Certificate, String) {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        adjust(&mut parameters);
        let leaf = Leaf::self_signed(&parameters);
        (Certificate::parse(leaf.certificate.der()).unwrap(), leaf.certificate.pem())
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn uri(name: &str) -> SanType {
        SanType::URI(name.try_into().unwrap())
    }

    #[test]
    fn facts() {
        let (certificate, _) = certificate(|parameters| {
            parameters.distinguished_name.push(DnType::OrganizationName, "O");
            parameters.distinguished_name.push(DnType::CommonName, "cn");
            parameters.serial_number = Some(SerialNumber::from_slice(&[0xab, 0x01]));
            parameters.not_before = date_time_ymd(1965, 1, 1);
            parameters.not_after = date_time_ymd(2030, 1, 1);
            parameters.subject_alt_names = vec![
                dns("b.example.com"),
                uri("spiffe://td/x"),
                SanType::Rfc822Name("x@example.com".try_into().unwrap()),
                SanType::IpAddress("10.0.0.1".parse().unwrap()),
                dns("a.example.com"),
            ];
        });
        assert_eq!(certificate.subject(), "CN=cn,O=O");
        assert_eq!(certificate.issuer(), "CN=cn,O=O");
        assert_eq!(certificate.serial(), "ab01");
        assert_eq!(certificate.dns().collect::<Vec<_>>(), ["b.example.com", "a.example.com"]);
        assert_eq!(certificate.uris().collect::<Vec<_>>(), ["spiffe://td/x"]);
        assert_eq!(certificate.emails().collect::<Vec<_>>(), ["x@example.com"]);
        assert_eq!(certificate.ips().collect::<Vec<_>>(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let names: Vec<String> = certificate.subject_alt_names().iter().map(SubjectAltName::to_string).collect();
        assert_eq!(names, ["b.example.com", "spiffe://td/x", "x@example.com", "10.0.0.1", "a.example.com"]);
        // Five years of 365 days and the 29th of February 1968.
        assert_eq!(certificate.not_before(), UNIX_EPOCH - Duration::from_secs(1826 * 86_400));
        assert_eq!(certificate.not_after(), UNIX_EPOCH + Duration::from_secs(1_893_456_000));
    }

    #[test]
    fn xfcc_of_everything() {
        let (certificate, pem) = certificate(|parameters| {
            parameters.distinguished_name.push(DnType::OrganizationName, "Acme, Inc.");
            parameters.distinguished_name.push(DnType::CommonName, "Müller \"x\"");
            parameters.subject_alt_names = vec![
                dns("a.example.com"),
                uri("https://example.com/a,b;c=d"),
                SanType::Rfc822Name("x@example.com".try_into().unwrap()),
                uri("spiffe://td/x"),
                SanType::IpAddress("10.0.0.1".parse().unwrap()),
                dns("b.example.com"),
            ];
        });
        // rcgen ends its lines as Windows does.
        let pem = pem.replace('\r', "").replace(' ', "%20").replace('\n', "%0A");
        let pem = pem.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        assert_eq!(certificate.url_encoded_pem(), pem);
        let hash: String = certificate.sha256().iter().map(|byte| format!("{byte:02x}")).collect();
        let rest = format!(
            "Hash={hash};Cert=\"{pem}\";Subject=\"CN=M\\C3\\BCller \\\"x\\\",O=Acme\\, Inc.\";\
             URI=https://example.com/a,b;c=d;URI=spiffe://td/x;DNS=a.example.com;DNS=b.example.com"
        );
        assert_eq!(certificate.xfcc_element(None), rest);
        assert_eq!(certificate.xfcc_element(Some("spiffe://td/gateway")), format!("By=spiffe://td/gateway;{rest}"));
    }

    #[test]
    fn xfcc_without_names() {
        let (certificate, _) = certificate(|parameters| {
            parameters.distinguished_name.push(DnType::OrganizationName, "O");
            parameters.distinguished_name.push(DnType::CommonName, "no san");
        });
        assert!(certificate.xfcc_element(None).ends_with("%0A\";Subject=\"CN=no san,O=O\";URI="));
        let (certificate, _) = super::tests::certificate(|_| {});
        assert!(certificate.xfcc_element(None).ends_with("%0A\";Subject=\"\";URI="));
    }

    #[test]
    fn text_that_is_no_name_is_left_out() {
        let odd = ["x\r\nx-evil: 1", "x\ny", "x\ry", "x\0y", "x y", "x\ty", "x\x7fy"];
        let (certificate, _) = certificate(|parameters| {
            parameters.distinguished_name.push(DnType::CommonName, "a\r\nx-evil: 1\0");
            for text in odd {
                let email = SanType::Rfc822Name(text.try_into().unwrap());
                parameters.subject_alt_names.extend([dns(text), uri(text), email]);
            }
            parameters.subject_alt_names.extend([dns("a.example.com"), uri("spiffe://td/caf!")]);
        });
        let names: Vec<String> = certificate.subject_alt_names().iter().map(SubjectAltName::to_string).collect();
        assert_eq!(names, ["a.example.com", "spiffe://td/caf!"]);
        let element = certificate.xfcc_element(None);
        let end = "Subject=\"CN=a\\0D\\0Ax-evil: 1\\00\";URI=spiffe://td/caf!;DNS=a.example.com";
        assert!(element.ends_with(end), "{element}");
        assert!(element.bytes().all(|byte| matches!(byte, b' '..=b'~')));

        // UTF-8, of the same length.
        let mut der = certificate.der().to_vec();
        let place = der.windows(2).position(|bytes| bytes == b"f!").unwrap();
        der[place..place + 2].copy_from_slice("é".as_bytes());
        assert_eq!(Certificate::parse(&der).unwrap().uris().count(), 0);
    }

    #[test]
    fn hashes() {
        let leaf = Leaf::self_signed(&CertificateParams::default());
        let certificate = Certificate::parse(leaf.certificate.der()).unwrap();
        assert_eq!(*certificate.sha256(), sha256(leaf.certificate.der()));
        let spki = rcgen::PublicKeyData::subject_public_key_info(&leaf.key);
        assert_eq!(*certificate.spki_sha256(), sha256(&spki));
        // SHA-256 of "abc", FIPS 180-2.
        assert_eq!(sha256(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
    }

    #[test]
    fn what_is_no_certificate() {
        let leaf = Leaf::self_signed(&CertificateParams::default());
        let der = leaf.certificate.der().as_ref();
        for bytes in [&b""[..], b"x", &der[1..], &der[..der.len() - 1], &[der, b"\0"].concat()] {
            assert_eq!(Certificate::parse(bytes), Err(Error::NotACertificate));
        }
    }
}
