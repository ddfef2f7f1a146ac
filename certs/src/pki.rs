//! A CA for tests, and handshakes without sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, PKCS_ECDSA_P256_SHA256, RevokedCertParams,
    SerialNumber, SignatureAlgorithm, SigningKey, date_time_ymd,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection, SupportedProtocolVersion,
};
use rustls_pki_types::ServerName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Entries;
use crate::choice::Choice;
use crate::credential::Credential;
use crate::verify::{self, ServerRules};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// So many days from now, in a type that rcgen does not re-export.
macro_rules! day {
    ($offset:expr) => {{
        let offset: i64 = $offset;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
        let then = now + offset * DAY.as_secs().cast_signed();
        date_time_ymd(1970, 1, 1) + Duration::from_secs(then.cast_unsigned())
    }};
}

impl Entries for BTreeMap<&str, Vec<u8>> {
    fn get(&self, key: &str) -> Option<&[u8]> {
        BTreeMap::get(self, key).map(Vec::as_slice)
    }

    fn keys(&self) -> Vec<&str> {
        BTreeMap::keys(self).copied().collect()
    }
}

/// A CA, root or intermediate.
pub(crate) struct Ca {
    pub(crate) certificate: Certificate,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key and what stands above it.
pub(crate) struct Leaf {
    pub(crate) certificate: Certificate,
    pub(crate) key: KeyPair,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    pub(crate) fn with(name: &str, adjust: impl FnOnce(&mut CertificateParams)) -> Self {
        let (parameters, key) = Self::parameters(name, adjust);
        let certificate = parameters.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(parameters, key) }
    }

    /// An intermediate below this one.
    pub(crate) fn below(&self, name: &str, adjust: impl FnOnce(&mut CertificateParams)) -> Self {
        let (parameters, key) = Self::parameters(name, adjust);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        Self { certificate, issuer: Issuer::new(parameters, key) }
    }

    fn parameters(name: &str, adjust: impl FnOnce(&mut CertificateParams)) -> (CertificateParams, KeyPair) {
        let mut parameters = parameters(name, &[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        adjust(&mut parameters);
        (parameters, ecdsa())
    }

    pub(crate) fn leaf(&self, parameters: CertificateParams) -> Leaf {
        self.leaf_of(parameters, ecdsa())
    }

    pub(crate) fn leaf_of(&self, parameters: CertificateParams, key: KeyPair) -> Leaf {
        Leaf { certificate: parameters.signed_by(&key, &self.issuer).unwrap(), key }
    }

    /// A CRL from `start` to `end`, in days from now, about these serial numbers.
    pub(crate) fn crl(&self, start: i64, end: i64, revoked: &[u64]) -> String {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let parameters = CertificateRevocationListParams {
            this_update: day!(start),
            next_update: day!(end),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        parameters.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }
}

impl Leaf {
    /// With CAs that a peer needs to find the root.
    pub(crate) fn credential(&self, above: &[&Ca]) -> Arc<Credential> {
        let mut chain = self.certificate.pem();
        chain.extend(above.iter().map(|ca| ca.pem()));
        Arc::new(Credential::from_pem(chain.as_bytes(), self.key.serialize_pem().as_bytes(), None).unwrap())
    }

    /// Made with nothing but itself.
    pub(crate) fn self_signed(parameters: &CertificateParams) -> Self {
        let key = ecdsa();
        Self { certificate: parameters.self_signed(&key).unwrap(), key }
    }
}

/// For the names, with the common name `name`, for thirty days.
pub(crate) fn parameters(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(names).unwrap();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    lasting(&mut parameters, -1, 30);
    parameters
}

pub(crate) fn client_parameters() -> CertificateParams {
    let mut parameters = parameters("client", &["client.example.com"]);
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    parameters
}

/// Valid from `start` to `end`, in days from now.
pub(crate) fn lasting(parameters: &mut CertificateParams, start: i64, end: i64) {
    (parameters.not_before, parameters.not_after) = (day!(start), day!(end));
}

pub(crate) fn ecdsa() -> KeyPair {
    key(&PKCS_ECDSA_P256_SHA256)
}

pub(crate) fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

/// `certificate` without version and extensions, signed anew: version 1.
pub(crate) fn as_version_1(certificate: &[u8], ca: &Ca) -> Vec<u8> {
    let (_, parsed) = X509Certificate::from_der(certificate).unwrap();
    let tbs: &[u8] = parsed.tbs_certificate.as_ref();
    let spki = parsed.public_key().raw;
    let end = spki.as_ptr().addr() + spki.len() - tbs.as_ptr().addr();
    let header = 2 + usize::from(tbs[1] & 0x7f);
    // The version takes five bytes.
    let message = sequence(&tbs[header + 5..end]);
    let signature = ca.issuer.key().sign(&message).unwrap();
    let mut bits = vec![3, u8::try_from(signature.len() + 1).unwrap(), 0];
    bits.extend(signature);
    // ecdsa-with-SHA256
    let algorithm = sequence(&[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
    sequence(&[message, algorithm, bits].concat())
}

pub(crate) fn sequence(content: &[u8]) -> Vec<u8> {
    tlv(0x30, content)
}

/// Tag, length and content in DER.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let mut der = match content.len() {
        ..0x80 => vec![tag, length[1]],
        0x80..0x100 => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    der.extend(content);
    der
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A server of `versions` with these certificates, asking for none.
pub(crate) fn server(
    certificates: Arc<dyn ResolvesServerCert>,
    version: &'static SupportedProtocolVersion,
) -> ServerConfig {
    asking_server(certificates, WebPkiClientVerifier::no_client_auth(), version)
}

pub(crate) fn asking_server(
    certificates: Arc<dyn ResolvesServerCert>,
    clients: Arc<dyn ClientCertVerifier>,
    version: &'static SupportedProtocolVersion,
) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificates)
}

/// A client that takes any server and shows `certificate`.
pub(crate) fn client(certificate: Option<Arc<Credential>>) -> ClientConfig {
    let rules = ServerRules { skip_verification: true, ..ServerRules::default() };
    client_with(default_provider(), verify::server(None, rules), certificate)
}

pub(crate) fn client_with(
    provider: CryptoProvider,
    servers: Arc<dyn ServerCertVerifier>,
    certificate: Option<Arc<Credential>>,
) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(servers)
        .with_client_cert_resolver(Arc::new(Choice::new(certificate.into_iter().collect())))
}

/// What became of a handshake.
pub(crate) struct Outcome {
    pub(crate) client: Result<(), Error>,
    pub(crate) server: Result<(), Error>,
    /// What the server has shown.
    pub(crate) server_certificate: Option<Vec<u8>>,
}

impl Outcome {
    /// The alert that the other side of the refusing one has read; `None`: both are content.
    pub(crate) fn alert(&self) -> Option<AlertDescription> {
        match (&self.client, &self.server) {
            (Ok(()), Ok(())) => None,
            (Err(Error::AlertReceived(alert)), _) | (_, Err(Error::AlertReceived(alert))) => Some(*alert),
            (client, server) => panic!("no alert: {client:?}, {server:?}"),
        }
    }
}

/// Moves bytes between both until they are through, and then some: in TLS 1.3 a client learns late of a refusal.
pub(crate) fn handshake(client: ClientConfig, server: ServerConfig, name: &str) -> Outcome {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut outcome = Outcome { client: Ok(()), server: Ok(()), server_certificate: None };
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        while outcome.server.is_ok() && !input.is_empty() {
            server.read_tls(&mut input).unwrap();
            outcome.server = server.process_new_packets().map(drop);
        }

        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        while outcome.client.is_ok() && !input.is_empty() {
            client.read_tls(&mut input).unwrap();
            outcome.client = client.process_new_packets().map(drop);
        }
    }
    outcome.server_certificate =
        client.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.as_ref().to_vec());
    if outcome.client.is_ok() && outcome.server.is_ok() {
        assert!(!client.is_handshaking() && !server.is_handshaking());
    }
    outcome
}
