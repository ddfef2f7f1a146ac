//! TLS that a filter chain terminates.
//!
//! A chain has a handful of TLS configurations, made when they are first needed: what the client says in its ClientHello
//! decides which of them it gets, as the TLS library knows no server's order of groups and no suites of equal rank.
//!
//! Source: `reference/networking.md` §2.6, `reference/security.md` §4.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use certs::authority::Authority;
use certs::choice::Choice;
use certs::credential::Credential;
use certs::verify::{self, ClientRules};
use config::snapshot::tls::{ClientAuthentication, PeerTrust, ServerTls};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, CommonState, ProtocolVersion, ServerConfig, SupportedProtocolVersion};

use super::hello::ClientHello;
use super::parameters::{provider, versions};
use super::tickets::Authenticated;
use crate::request::TlsFacts;

/// Tickets after a TLS 1.3 handshake, as many as BoringSSL's.
const TICKETS: usize = 2;

/// What a chain does with TLS connections. Costs little until it is used.
#[derive(Debug)]
pub struct Server {
    certificates: Vec<Arc<Credential>>,
    template: Template,
    /// Clients may show a certificate.
    asks_clients: bool,
    /// The configuration names suites: it orders them strictly.
    strict_order: bool,
    /// One for each group and [`Order`], made when it is needed: most chains are never connected to.
    configs: Box<[OnceLock<Option<Arc<ServerConfig>>>]>,
}

/// How one connection's handshake goes on.
#[derive(Debug)]
pub struct Handshake {
    /// For the TLS library.
    pub config: Arc<ServerConfig>,
    /// Tells which of several certificates it has shown.
    shown: Option<Arc<Shown>>,
}

impl Server {
    /// TLS with `certificates`, which may be one for each kind of key. `authority` is needed where clients are verified.
    /// `tickets` seal sessions: they must not outlive a change of what clients have to prove.
    ///
    /// # Errors
    /// Why no handshake could succeed: no certificate, no authority, no version or group that rustls speaks.
    pub fn new(
        tls: &ServerTls,
        certificates: Vec<Arc<Credential>>,
        authority: Option<Arc<Authority>>,
        tickets: Arc<dyn ProducesTickets>,
    ) -> Result<Self, String> {
        let ServerTls { mode: _, certificates: _, client, parameters, alpn } = tls;
        if certificates.is_empty() {
            return Err("there is no certificate".to_owned());
        }
        let verifier = match client {
            ClientAuthentication::None => WebPkiClientVerifier::no_client_auth(),
            ClientAuthentication::Optional(trust) => client_verifier(trust, authority, false)?,
            ClientAuthentication::Required(trust) => client_verifier(trust, authority, true)?,
        };
        let template = Template {
            choice: Arc::new(Choice::new(certificates.clone())),
            verifier,
            tickets,
            alpn: alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect(),
            versions: versions(parameters),
            provider: provider(parameters),
        };
        if template.versions.is_empty() {
            return Err("no version of TLS between minProtocolVersion and maxProtocolVersion is supported".to_owned());
        }
        if template.provider.kx_groups.is_empty() {
            return Err("none of the ecdhCurves is supported".to_owned());
        }
        // What can be made for the first group can be made for the others.
        template.build(0, Order::Aes).map_err(|error| error.to_string())?;
        let configs = (0..template.provider.kx_groups.len() * ORDERS).map(|_| OnceLock::new()).collect();
        let strict_order = !parameters.cipher_suites.is_empty();
        let asks_clients = *client != ClientAuthentication::None;
        Ok(Self { certificates, template, asks_clients, strict_order, configs })
    }

    /// How the handshake with this client goes on; `None`: there is no version in common.
    pub fn handshake(&self, hello: &ClientHello) -> Option<Handshake> {
        let Template { choice, alpn, versions, .. } = &self.template;
        let version = versions.iter().map(|version| version.version).find(|version| hello.supports(*version))?;
        let mut config = self.config(hello, version)?;
        // The TLS library would refuse a client that offers none of our protocols.
        let no_alpn = !hello.alpn.is_empty() && !hello.alpn.iter().any(|protocol| alpn.contains(protocol));
        let shown =
            (self.certificates.len() > 1).then(|| Arc::new(Shown { choice: Arc::clone(choice), key: OnceLock::new() }));
        if no_alpn || shown.is_some() || self.asks_clients {
            let own = Arc::make_mut(&mut config);
            if self.asks_clients {
                own.ticketer = Arc::new(Authenticated::new(Arc::clone(&self.template.tickets), SystemTime::now()));
            }
            if no_alpn {
                own.alpn_protocols.clear();
            }
            if let Some(shown) = &shown {
                own.cert_resolver = Arc::clone(shown) as Arc<dyn ResolvesServerCert>;
            }
        }
        Some(Handshake { config, shown })
    }

    /// What the handshake agreed on, once it is complete.
    pub fn facts(&self, handshake: &Handshake, connection: &CommonState) -> TlsFacts {
        let shown = handshake.shown.as_ref().and_then(|shown| shown.key.get()?.cert.first());
        let local = match shown {
            Some(leaf) => self.certificates.iter().find(|credential| credential.leaf().der() == &leaf[..]),
            None => self.certificates.first(),
        };
        TlsFacts::new(connection, local.cloned())
    }

    /// The configuration with the group that we like best of the client's, and with its order of suites of equal rank.
    fn config(&self, hello: &ClientHello, version: ProtocolVersion) -> Option<Arc<ServerConfig>> {
        let suits =
            |group: &&dyn SupportedKxGroup| group.usable_for_version(version) && hello.groups.contains(&group.name());
        // Without a group in common any configuration will say so.
        let group = self.template.provider.kx_groups.iter().position(suits).unwrap_or_default();
        let order = match version {
            ProtocolVersion::TLSv1_3 => Order::Client,
            _ if self.strict_order => Order::Aes,
            _ => Order::of(hello),
        };
        let build = || self.template.build(group, order).ok().map(Arc::new);
        self.configs[group * ORDERS + order as usize].get_or_init(build).clone()
    }
}

/// What the configurations of a chain have in common.
#[derive(Debug)]
struct Template {
    choice: Arc<Choice>,
    verifier: Arc<dyn ClientCertVerifier>,
    tickets: Arc<dyn ProducesTickets>,
    alpn: Vec<Vec<u8>>,
    versions: Vec<&'static SupportedProtocolVersion>,
    /// With all groups, most preferred first.
    provider: CryptoProvider,
}

impl Template {
    fn build(&self, group: usize, order: Order) -> Result<ServerConfig, rustls::Error> {
        let mut provider = self.provider.clone();
        provider.kx_groups = vec![self.provider.kx_groups[group]];
        if order == Order::Chacha {
            provider.cipher_suites.sort_by_key(|suite| rank(suite.suite()));
        }
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&self.versions)?
            .with_client_cert_verifier(Arc::clone(&self.verifier))
            .with_cert_resolver(Arc::clone(&self.choice) as Arc<dyn ResolvesServerCert>);
        config.ignore_client_order = order != Order::Client;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::clone(&self.tickets);
        config.send_tls13_tickets = TICKETS;
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(config)
    }
}

/// Which suites go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Ours, of two with equal rank the one with AES128.
    Aes,
    /// Ours, of two with equal rank the one with CHACHA20.
    Chacha,
    /// The client's: suites of TLS 1.3 are all equal.
    Client,
}

const ORDERS: usize = 3;

impl Order {
    /// That of a client with TLS 1.2.
    fn of(hello: &ClientHello) -> Self {
        let place = |wanted: u8| hello.suites.iter().position(|suite| rank(*suite) == wanted);
        match (place(CHACHA), place(AES_128)) {
            (Some(chacha), Some(aes)) if chacha < aes => Self::Chacha,
            (Some(_), None) => Self::Chacha,
            _ => Self::Aes,
        }
    }
}

const CHACHA: u8 = 0;
const AES_128: u8 = 1;
const OTHER: u8 = 2;

/// The place of a TLS 1.2 suite where CHACHA20 goes first.
fn rank(suite: CipherSuite) -> u8 {
    match suite {
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => CHACHA,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => {
            AES_128
        }
        _ => OTHER,
    }
}

/// Chooses a certificate for one connection, and remembers which.
#[derive(Debug)]
struct Shown {
    choice: Arc<Choice>,
    key: OnceLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let key = self.choice.resolve(hello)?;
        let _ = self.key.set(Arc::clone(&key));
        Some(key)
    }
}

fn client_verifier(
    trust: &PeerTrust,
    authority: Option<Arc<Authority>>,
    mandatory: bool,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let PeerTrust { ca: _, subject_alt_names, spki_pins, certificate_hashes, skip_verification } = trust;
    if authority.is_none() && !skip_verification {
        return Err("there is no CA to verify clients with".to_owned());
    }
    let rules = ClientRules {
        subject_alt_names: subject_alt_names.iter().map(|name| Arc::from(&**name)).collect(),
        spki_pins: spki_pins.clone(),
        certificate_hashes: certificate_hashes.clone(),
        skip_verification: *skip_verification,
    };
    Ok(verify::client(authority, mandatory, rules))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use config::snapshot::tls::{CaSource, CipherSuite as Suite, ServerMode, TlsParameters, TlsVersion};
    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::aws_lc_rs::{Ticketer, kx_group};
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, ServerConnection};

    use super::*;

    /// A certificate that is its own issuer, with its key; DER.
    struct Identity {
        certificate: rcgen::Certificate,
        key: KeyPair,
    }

    impl Identity {
        fn new() -> Self {
            Self::with(&rcgen::PKCS_ECDSA_P256_SHA256)
        }

        fn with(algorithm: &'static rcgen::SignatureAlgorithm) -> Self {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let params = CertificateParams::new(vec!["a.example.com".to_owned()]).unwrap();
            Self { certificate: params.self_signed(&key).unwrap(), key }
        }

        fn credential(&self) -> Arc<Credential> {
            let key = self.key.serialize_pem();
            Arc::new(Credential::from_pem(self.certificate.pem().as_bytes(), key.as_bytes(), None).unwrap())
        }
    }

    fn settings(client: ClientAuthentication, parameters: TlsParameters) -> ServerTls {
        ServerTls { mode: ServerMode::Simple, certificates: Vec::new(), client, parameters, alpn: &["h2", "http/1.1"] }
    }

    fn server(identity: &Identity, parameters: TlsParameters) -> Server {
        let settings = settings(ClientAuthentication::None, parameters);
        Server::new(&settings, vec![identity.credential()], None, Ticketer::new().unwrap()).unwrap()
    }

    /// A client that trusts everybody, with these suites and groups in its order.
    fn client(
        suites: &[rustls::SupportedCipherSuite],
        groups: &[&'static dyn SupportedKxGroup],
        identity: Option<&Identity>,
    ) -> ClientConfig {
        let mut provider = provider(&TlsParameters::default());
        if !suites.is_empty() {
            provider.cipher_suites = suites.to_vec();
        }
        if !groups.is_empty() {
            provider.kx_groups = groups.to_vec();
        }
        let versions: Vec<&SupportedProtocolVersion> = if suites.iter().any(|suite| suite.tls13().is_none()) {
            vec![&rustls::version::TLS12]
        } else {
            rustls::ALL_VERSIONS.to_vec()
        };
        let rules = verify::ServerRules { skip_verification: true, ..Default::default() };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verify::server(None, rules));
        match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        }
    }

    /// Both ends of a connection in memory.
    fn connect(server: &Server, client: &Arc<ClientConfig>) -> Option<TlsFacts> {
        let name = ServerName::try_from("a.example.com").unwrap();
        let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
        let mut flight = Vec::new();
        client.write_tls(&mut flight).unwrap();
        let hello = ClientHello::read(&flight).unwrap().unwrap();
        let handshake = server.handshake(&hello)?;
        let mut connection = ServerConnection::new(Arc::clone(&handshake.config)).unwrap();
        connection.read_tls(&mut &flight[..]).unwrap();
        connection.process_new_packets().unwrap();
        while connection.wants_write() || client.wants_write() {
            flight.clear();
            connection.write_tls(&mut flight).unwrap();
            let mut rest = &flight[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
            flight.clear();
            client.write_tls(&mut flight).unwrap();
            let mut rest = &flight[..];
            while !rest.is_empty() {
                connection.read_tls(&mut rest).unwrap();
                connection.process_new_packets().unwrap();
            }
        }
        assert!(!connection.is_handshaking() && !client.is_handshaking());
        Some(server.facts(&handshake, &connection))
    }

    #[test]
    fn our_order_of_groups_counts() {
        let server = server(&Identity::new(), TlsParameters::default());
        for (groups, expected) in [
            (&[kx_group::X25519, kx_group::X25519MLKEM768][..], "X25519MLKEM768"),
            (&[kx_group::SECP256R1, kx_group::X25519], "X25519"),
            (&[kx_group::SECP256R1], "P-256"),
        ] {
            let facts = connect(&server, &Arc::new(client(&[], groups, None))).unwrap();
            assert_eq!((facts.version, facts.group), ("TLSv1.3", Some(expected)));
        }
    }

    #[test]
    fn suites_of_equal_rank_are_the_clients_choice() {
        use rustls::crypto::aws_lc_rs::cipher_suite::{
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 as AES_128, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 as AES_256,
            TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 as CHACHA, TLS13_AES_128_GCM_SHA256 as NEW_AES_128,
            TLS13_AES_256_GCM_SHA384 as NEW_AES_256,
        };
        let strict = TlsParameters {
            cipher_suites: vec![Suite::EcdheEcdsaAes256GcmSha384, Suite::EcdheEcdsaChacha20Poly1305],
            ..TlsParameters::default()
        };
        let identity = Identity::new();
        let usual = server(&identity, TlsParameters::default());
        let strict = server(&identity, strict);
        for (server, suites, expected) in [
            (&usual, &[AES_256, CHACHA, AES_128][..], "ECDHE-ECDSA-CHACHA20-POLY1305"),
            (&usual, &[AES_256, AES_128, CHACHA], "ECDHE-ECDSA-AES128-GCM-SHA256"),
            (&usual, &[AES_256], "ECDHE-ECDSA-AES256-GCM-SHA384"),
            (&strict, &[CHACHA, AES_128, AES_256], "ECDHE-ECDSA-AES256-GCM-SHA384"),
            (&usual, &[NEW_AES_256, NEW_AES_128], "TLS_AES_256_GCM_SHA384"),
            (&usual, &[NEW_AES_128, NEW_AES_256], "TLS_AES_128_GCM_SHA256"),
        ] {
            assert_eq!(connect(server, &Arc::new(client(suites, &[], None))).unwrap().cipher, expected);
        }
    }

    #[test]
    fn without_a_protocol_in_common_there_is_none() {
        let server = server(&Identity::new(), TlsParameters::default());
        for (offered, expected) in
            [(&["http/1.1", "h2"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&["istio"], None), (&[], None)]
        {
            let mut client = client(&[], &[], None);
            client.alpn_protocols = offered.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
            assert_eq!(connect(&server, &Arc::new(client)).unwrap().alpn.as_deref(), expected, "{offered:?}");
        }
    }

    #[test]
    fn without_a_version_in_common_there_is_no_handshake() {
        use rustls::crypto::aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 as AES_128;
        let parameters = TlsParameters { min: TlsVersion::V1_3, ..TlsParameters::default() };
        let server = server(&Identity::new(), parameters);
        assert!(connect(&server, &Arc::new(client(&[AES_128], &[], None))).is_none());
    }

    #[test]
    fn a_resumed_session_keeps_its_client() {
        use rustls::crypto::aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 as AES_128;
        let trust = PeerTrust {
            ca: CaSource::System { crl: None },
            subject_alt_names: Vec::new(),
            spki_pins: Vec::new(),
            certificate_hashes: Vec::new(),
            skip_verification: true,
        };
        let identity = Identity::new();
        let settings = settings(ClientAuthentication::Required(trust), TlsParameters::default());
        let server = || Server::new(&settings, vec![identity.credential()], None, Ticketer::new().unwrap()).unwrap();
        let (first, second) = (server(), server());
        let other = Identity::new();
        for suites in [&[][..], &[AES_128]] {
            let client = Arc::new(client(suites, &[], Some(&other)));
            let shown = connect(&first, &client).unwrap();
            assert!(!shown.resumed);
            let resumed = connect(&first, &client).unwrap();
            assert!(resumed.resumed, "{}", resumed.version);
            assert_eq!(resumed.peer, shown.peer);
            assert_eq!(resumed.peer.as_ref().map(|peer| peer.der()), Some(&other.certificate.der()[..]));
            assert!(!connect(&second, &client).unwrap().resumed, "other tickets");
        }
    }

    #[test]
    fn the_certificate_of_a_resumed_session_is_known() {
        let (rsa, ecdsa) = (Identity::with(&rcgen::PKCS_RSA_SHA256), Identity::new());
        let settings = settings(ClientAuthentication::None, TlsParameters::default());
        let certificates = vec![rsa.credential(), ecdsa.credential()];
        let server = Server::new(&settings, certificates, None, Ticketer::new().unwrap()).unwrap();
        let client = Arc::new(client(&[], &[], None));
        for resumed in [false, true] {
            let facts = connect(&server, &client).unwrap();
            assert_eq!(facts.resumed, resumed);
            assert_eq!(facts.local_certificate().unwrap().der(), &ecdsa.certificate.der()[..]);
        }
    }

    #[test]
    fn what_no_client_can_use_is_refused() {
        let identity = Identity::new();
        let refused = |certificates, client, parameters| {
            Server::new(&settings(client, parameters), certificates, None, Ticketer::new().unwrap()).is_err()
        };
        let trust = PeerTrust {
            ca: CaSource::System { crl: None },
            subject_alt_names: Vec::new(),
            spki_pins: Vec::new(),
            certificate_hashes: Vec::new(),
            skip_verification: false,
        };
        let usual = TlsParameters::default;
        assert!(refused(Vec::new(), ClientAuthentication::None, usual()));
        assert!(refused(vec![identity.credential()], ClientAuthentication::Optional(trust), usual()));
        let old = TlsParameters { min: TlsVersion::V1_0, max: TlsVersion::V1_1, ..usual() };
        assert!(refused(vec![identity.credential()], ClientAuthentication::None, old));
    }
}
