//! Authorities, certificates, CRLs and OCSP responses of throw-away keys, and the forms in which a gateway gets them.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams,
    SanType, SerialNumber, SigningKey, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// What a key can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    P256,
    P384,
    P521,
    /// Of 2048 bits. All certificates of a process share one, since making them takes long.
    Rsa,
    Ed25519,
}

/// When something is valid, as seen from today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    Current,
    Past,
    Future,
}

/// A certificate authority.
pub struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
    serial: Vec<u8>,
    /// Certificates between what it issues and the root, as PEM.
    chain: String,
}

/// A certificate to be issued.
#[derive(Clone)]
pub struct Leaf {
    params: CertificateParams,
    key: Key,
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Identity {
    /// PEM, leaf first, without the root.
    pub chain: String,
    /// PEM, PKCS#8.
    pub key: String,
    leaf: CertificateDer<'static>,
    spki: Vec<u8>,
    serial: Vec<u8>,
}

impl Authority {
    /// A root.
    pub fn new(name: &str) -> Self {
        let (params, serial, key) = authority(name);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key), serial, chain: String::new() }
    }

    /// An authority below this one.
    pub fn intermediate(&self, name: &str) -> Self {
        let (params, serial, key) = authority(name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain = format!("{}{}", certificate.pem(), self.chain);
        Self { certificate, issuer: Issuer::new(params, key), serial, chain }
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    /// Serial number, for a CRL of the authority above.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    pub fn issue(&self, leaf: &Leaf) -> Identity {
        let key = leaf.key.pair();
        let params = leaf.numbered();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity::new(&params, &certificate, &key, &self.chain)
    }

    /// A certificate for `name`, for servers.
    pub fn server(&self, name: &str) -> Identity {
        self.issue(&Leaf::server(name))
    }

    /// A certificate with this common name, for clients.
    pub fn client(&self, name: &str) -> Identity {
        self.issue(&Leaf::client(name))
    }

    /// A CRL as PEM with these serial numbers.
    pub fn crl(&self, revoked: &[&[u8]], validity: Validity) -> String {
        let (this_update, next_update) = validity.years();
        let revoked_certs = revoked
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(this_update, 1, 1),
            next_update: date_time_ymd(next_update, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// An OCSP response (RFC 6960, DER) of this authority about a certificate that it issued.
    pub fn ocsp(&self, identity: &Identity, revoked: bool, validity: Validity) -> Vec<u8> {
        const SHA1: &[u8] = &[0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00];
        const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        const OCSP_BASIC: &[u8] = &[0x06, 0x09, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];
        let sha1 = |bytes: &[u8]| der(0x04, &[digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref()]);
        let time = |year: i32| der(0x18, &[format!("{year}0101000000Z").as_bytes()]);
        let (this_update, next_update) = validity.years();
        let own = self.certificate.der();
        let (_, parsed) = x509_parser::parse_x509_certificate(own).unwrap();
        let key_hash = sha1(self.issuer.key().der_bytes());
        let id = der(0x30, &[SHA1, &sha1(parsed.subject().as_raw()), &key_hash, &der(0x02, &[&identity.serial])]);
        let status = if revoked { der(0xa1, &[&time(2020)]) } else { der(0x80, &[]) };
        let single = der(0x30, &[&id, &status, &time(this_update), &der(0xa0, &[&time(next_update)])]);
        let responder = der(0xa2, &[&key_hash]);
        let data = der(0x30, &[&responder, &time(this_update), &der(0x30, &[&single])]);
        let signature = self.issuer.key().sign(&data).unwrap();
        let basic = der(0x30, &[&data, ECDSA_SHA256, &der(0x03, &[&[0], &signature])]);
        let bytes = der(0x30, &[OCSP_BASIC, &der(0x04, &[&basic])]);
        der(0x30, &[&der(0x0a, &[&[0]]), &der(0xa0, &[&bytes])])
    }
}

/// One DER element.
fn der(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let length = content.len();
    let mut element = vec![tag];
    match length {
        0..128 => element.push(length as u8),
        128..256 => element.extend([0x81, length as u8]),
        _ => element.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    element.extend(content);
    element
}

fn authority(name: &str) -> (CertificateParams, Vec<u8>, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let serial = next_serial();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    (params, serial, Key::P256.pair())
}

fn named(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// Positive, of eight bytes, never the same twice in a process.
fn next_serial() -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0x1122_3344_0000_0001);
    NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes().to_vec()
}

impl Key {
    fn pair(self) -> KeyPair {
        static RSA: OnceLock<String> = OnceLock::new();
        let algorithm = match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::P521 => &rcgen::PKCS_ECDSA_P521_SHA512,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::Rsa => {
                let pem = RSA.get_or_init(|| {
                    let made = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
                    made.serialize_pem()
                });
                return KeyPair::from_pem_and_sign_algo(pem, &rcgen::PKCS_RSA_SHA256).unwrap();
            }
        };
        KeyPair::generate_for(algorithm).unwrap()
    }
}

impl Validity {
    fn years(self) -> (i32, i32) {
        match self {
            Self::Current => (2020, 2090),
            Self::Past => (2020, 2021),
            Self::Future => (2090, 2091),
        }
    }
}

impl Leaf {
    /// For a server of this name.
    pub fn server(name: &str) -> Self {
        Self::new(name).usages(&[ExtendedKeyUsagePurpose::ServerAuth]).dns(name)
    }

    /// For a client with this common name and no alternative name.
    pub fn client(name: &str) -> Self {
        Self::new(name).usages(&[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// For a workload of a mesh, which is server and client.
    pub fn workload(uri: &str) -> Self {
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let mut leaf = Self::new("").usages(&usages).uri(uri);
        leaf.params.distinguished_name = DistinguishedName::new();
        leaf
    }

    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Self { params, key: Key::P256 }.valid(Validity::Current)
    }

    pub fn key(mut self, key: Key) -> Self {
        self.key = key;
        self
    }

    pub fn valid(mut self, validity: Validity) -> Self {
        let (begin, end) = validity.years();
        self.params.not_before = date_time_ymd(begin, 1, 1);
        self.params.not_after = date_time_ymd(end, 1, 1);
        self
    }

    /// The certificate ends at the begin of this day.
    pub fn until(mut self, year: i32, month: u8, day: u8) -> Self {
        self.params.not_after = date_time_ymd(year, month, day);
        self
    }

    /// Extended key usages; none at all if empty.
    pub fn usages(mut self, usages: &[ExtendedKeyUsagePurpose]) -> Self {
        self.params.extended_key_usages = usages.to_vec();
        self
    }

    pub fn dns(self, name: &str) -> Self {
        let name = name.try_into().unwrap();
        self.alternative(SanType::DnsName(name))
    }

    pub fn uri(self, uri: &str) -> Self {
        let uri = uri.try_into().unwrap();
        self.alternative(SanType::URI(uri))
    }

    pub fn email(self, email: &str) -> Self {
        let email = email.try_into().unwrap();
        self.alternative(SanType::Rfc822Name(email))
    }

    pub fn ip(self, ip: &str) -> Self {
        let ip: IpAddr = ip.parse().unwrap();
        self.alternative(SanType::IpAddress(ip))
    }

    fn alternative(mut self, name: SanType) -> Self {
        self.params.subject_alt_names.push(name);
        self
    }

    /// Replaces the subject, first attribute first.
    pub fn subject(mut self, attributes: &[(DnType, &str)]) -> Self {
        let mut subject = DistinguishedName::new();
        for (kind, value) in attributes {
            subject.push(kind.clone(), *value);
        }
        self.params.distinguished_name = subject;
        self
    }

    /// With the extension that demands an OCSP staple (RFC 7633).
    pub fn must_staple(mut self) -> Self {
        let feature =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], vec![0x30, 0x03, 0x02, 0x01, 0x05]);
        self.params.custom_extensions.push(feature);
        self
    }

    /// Signed with its own key.
    pub fn self_signed(&self) -> Identity {
        let key = self.key.pair();
        let params = self.numbered();
        let certificate = params.self_signed(&key).unwrap();
        Identity::new(&params, &certificate, &key, "")
    }

    /// With a serial number of its own.
    fn numbered(&self) -> CertificateParams {
        let mut params = self.params.clone();
        params.serial_number = Some(SerialNumber::from_slice(&next_serial()));
        params
    }
}

impl Identity {
    fn new(params: &CertificateParams, certificate: &rcgen::Certificate, key: &KeyPair, chain: &str) -> Self {
        Self {
            chain: format!("{}{chain}", certificate.pem()),
            key: key.serialize_pem(),
            leaf: certificate.der().clone(),
            spki: key.subject_public_key_info(),
            serial: params.serial_number.as_ref().unwrap().to_bytes(),
        }
    }

    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    /// The certificate alone, as PEM.
    pub fn leaf(&self) -> String {
        let end = "-----END CERTIFICATE-----";
        let (first, _) = self.chain.split_once(end).unwrap();
        format!("{first}{end}\n").replace("\r\n", "\n")
    }

    /// The same without its intermediates.
    pub fn alone(&self) -> Self {
        Self { chain: self.leaf(), ..self.clone() }
    }

    /// SHA-256 of the certificate.
    pub fn hash(&self) -> Vec<u8> {
        digest(&SHA256, &self.leaf).as_ref().to_vec()
    }

    /// SHA-256 of the public key, in base64, as `verifyCertificateSpki` wants it.
    pub fn pin(&self) -> String {
        STANDARD.encode(digest(&SHA256, &self.spki))
    }

    /// What rustls takes.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        Arc::new(CertifiedKey::new(chain, rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap()))
    }

    /// The key in its older form: PKCS#1 for RSA, SEC1 for ECDSA. Needs openssl.
    pub fn traditional_key(&self) -> String {
        openssl(&["pkey", "-traditional"], &self.key)
    }

    /// The key with a pass phrase. Needs openssl.
    pub fn encrypted_key(&self) -> String {
        openssl(&["pkcs8", "-topk8", "-passout", "pass:secret"], &self.key)
    }

    /// A self-signed certificate with an RSA key of 1024 bits, and the key. Needs openssl.
    pub fn short_rsa() -> (String, String) {
        let key = openssl(&["genrsa", "1024"], "");
        let certificate = openssl(&["req", "-x509", "-key", "/dev/stdin", "-subj", "/CN=short", "-days", "30"], &key);
        (certificate, key)
    }

    /// Writes chain and key to files of this name, for programs that want files.
    pub fn write(&self, directory: &Path, name: &str) -> (String, String) {
        let (chain, key) = (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        std::fs::write(&chain, &self.chain).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        (chain.to_str().unwrap().to_owned(), key.to_str().unwrap().to_owned())
    }

    /// The lines of the key's PEM, of which none may ever be seen.
    pub fn key_lines(&self) -> Vec<String> {
        self.key.lines().filter(|line| !line.starts_with('-')).map(|line| line.trim().to_owned()).collect()
    }
}

fn openssl(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A Secret of the gateway's namespace.
pub fn secret(name: &str, entries: &[(&str, &[u8])]) -> String {
    let data: Vec<_> = entries.iter().map(|(key, value)| format!("{key}: {:?}", STANDARD.encode(value))).collect();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: istio-system}}\ndata: {{{}}}\n",
        data.join(", ")
    )
}

/// A Secret of type `kubernetes.io/tls` with this certificate and key.
pub fn tls_secret(name: &str, identity: &Identity) -> String {
    secret(name, &[("tls.crt", identity.chain.as_bytes()), ("tls.key", identity.key.as_bytes())])
}

/// A Secret with this certificate and key, and a CA for clients.
pub fn mutual_secret(name: &str, identity: &Identity, ca: &str) -> String {
    let (chain, key) = (identity.chain.as_bytes(), identity.key.as_bytes());
    secret(name, &[("tls.crt", chain), ("tls.key", key), ("ca.crt", ca.as_bytes())])
}

/// Writes a workload's certificate, key and root as a mesh mounts them.
pub fn workload_files(directory: &Path, identity: &Identity, root: &str) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("cert-chain.pem"), &identity.chain).unwrap();
    std::fs::write(directory.join("key.pem"), &identity.key).unwrap();
    std::fs::write(directory.join("root-cert.pem"), root).unwrap();
}

/// A directory of files that is changed as Kubernetes changes mounted secrets: all files at once, by one link.
pub struct Mount {
    directory: PathBuf,
    version: usize,
}

impl Mount {
    /// Mounts `entries` at `directory`, which must not exist yet.
    pub fn new(directory: impl Into<PathBuf>, entries: &[(&str, &[u8])]) -> Self {
        let directory = directory.into();
        std::fs::create_dir_all(&directory).unwrap();
        let mut mount = Self { directory, version: 0 };
        mount.replace(entries);
        for (key, _) in entries {
            std::os::unix::fs::symlink(Path::new("..data").join(key), mount.directory.join(key)).unwrap();
        }
        mount
    }

    /// Replaces the content of all files.
    pub fn replace(&mut self, entries: &[(&str, &[u8])]) {
        let old = format!("..version-{}", self.version);
        self.version += 1;
        let new = format!("..version-{}", self.version);
        let version = self.directory.join(&new);
        std::fs::create_dir(&version).unwrap();
        for (key, value) in entries {
            std::fs::write(version.join(key), value).unwrap();
        }
        let draft = self.directory.join("..data_tmp");
        std::os::unix::fs::symlink(&new, &draft).unwrap();
        std::fs::rename(&draft, self.directory.join("..data")).unwrap();
        // As the kubelet does, what nobody links to goes.
        let _ = std::fs::remove_dir_all(self.directory.join(old));
    }
}
