//! TLS clients: rustls, which shows the alert that it got, and openssl.

use std::io;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, HandshakeKind, NamedGroup, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::PATIENCE;
use super::client::{CLIENT, Http1, Http2, Response, connect_from};
use super::pki::{Authority, Identity};
use super::stream::Counted;

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Tls12,
    Tls13,
}

/// Both versions.
pub const VERSIONS: [Version; 2] = [Version::Tls12, Version::Tls13];

/// What a client does in its handshakes. Tickets are kept from one connection of a [`Client`] to the next.
#[derive(Clone)]
pub struct Settings {
    authorities: Vec<CertificateDer<'static>>,
    version: Option<Version>,
    alpn: Vec<Vec<u8>>,
    identity: Option<Arc<CertifiedKey>>,
    groups: Vec<NamedGroup>,
    suites: Vec<rustls::CipherSuite>,
    sni: bool,
    tickets: bool,
}

/// A client with these settings.
#[derive(Clone)]
pub struct Client(Arc<ClientConfig>);

/// A connection after its handshake.
pub struct Connected {
    pub stream: TlsStream<Counted>,
    pub address: SocketAddr,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The gateway's alert.
    Alert(u8),
    /// Reset without a byte.
    Reset,
    /// Closed in order, without a byte.
    Closed,
    /// Ended without an alert, after that many bytes.
    Cut(usize),
    /// This client refused the gateway: why.
    Ours(String),
    /// Nothing happened in time.
    TimedOut,
}

impl Settings {
    /// Trusts `authorities`; with none, it takes any certificate.
    pub fn new(authorities: &[&Authority]) -> Self {
        Self {
            authorities: authorities.iter().map(|authority| authority.der()).collect(),
            version: None,
            alpn: Vec::new(),
            identity: None,
            groups: Vec::new(),
            suites: Vec::new(),
            sni: true,
            tickets: false,
        }
    }

    /// Only this version.
    pub fn version(mut self, version: Version) -> Self {
        self.version = Some(version);
        self
    }

    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Shows this certificate if the server asks for any, whatever it would accept.
    pub fn identity(mut self, identity: &Identity) -> Self {
        self.identity = Some(identity.certified());
        self
    }

    pub fn groups(mut self, groups: &[NamedGroup]) -> Self {
        self.groups = groups.to_vec();
        self
    }

    pub fn suites(mut self, suites: &[rustls::CipherSuite]) -> Self {
        self.suites = suites.to_vec();
        self
    }

    pub fn no_sni(mut self) -> Self {
        self.sni = false;
        self
    }

    /// Keeps tickets and offers them.
    pub fn tickets(mut self) -> Self {
        self.tickets = true;
        self
    }

    pub fn client(&self) -> Client {
        let mut provider = aws_lc_rs::default_provider();
        if !self.groups.is_empty() {
            provider.kx_groups = self.groups.iter().map(|group| key_exchange(*group)).collect();
        }
        if !self.suites.is_empty() {
            provider.cipher_suites = self.suites.iter().map(|suite| cipher_suite(*suite)).collect();
        }
        let provider = Arc::new(provider);
        let versions: &[&SupportedProtocolVersion] = match self.version {
            None => rustls::ALL_VERSIONS,
            Some(Version::Tls12) => &[&rustls::version::TLS12],
            Some(Version::Tls13) => &[&rustls::version::TLS13],
        };
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).unwrap();
        let verifier: Arc<dyn ServerCertVerifier> = if self.authorities.is_empty() {
            Arc::new(AnyCertificate(provider))
        } else {
            let mut roots = RootCertStore::empty();
            for authority in &self.authorities {
                roots.add(authority.clone()).unwrap();
            }
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap()
        };
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(Shown(self.identity.clone())));
        config.alpn_protocols.clone_from(&self.alpn);
        config.enable_sni = self.sni;
        if !self.tickets {
            config.resumption = Resumption::disabled();
        }
        Client(Arc::new(config))
    }

    /// Connects once.
    pub async fn connect(&self, address: SocketAddr, name: &str) -> Result<Connected, Refusal> {
        self.client().connect(address, name).await
    }

    /// How the gateway refuses this client. With TLS 1.3 that shows on the first read only, so one follows.
    pub async fn refusal(&self, address: SocketAddr, name: &str) -> Result<(), Refusal> {
        self.client().refusal(address, name).await
    }

    /// `GET target` on a connection of its own.
    pub async fn get(&self, address: SocketAddr, name: &str, target: &str) -> Result<Response, Refusal> {
        self.client().get(address, name, target).await
    }
}

impl Client {
    pub async fn connect(&self, address: SocketAddr, name: &str) -> Result<Connected, Refusal> {
        let stream =
            connect_from(CLIENT, address).await.unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        self.handshake(stream, name).await
    }

    /// TLS on a connection that exists.
    pub async fn handshake(&self, stream: TcpStream, name: &str) -> Result<Connected, Refusal> {
        let address = stream.local_addr().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let (stream, received) = Counted::new(stream);
        match timeout(PATIENCE, TlsConnector::from(self.0.clone()).connect(name, stream)).await {
            Err(_) => Err(Refusal::TimedOut),
            Ok(Ok(stream)) => Ok(Connected { stream, address }),
            Ok(Err(error)) => Err(Refusal::of(&error, received.load(Ordering::SeqCst))),
        }
    }

    pub async fn refusal(&self, address: SocketAddr, name: &str) -> Result<(), Refusal> {
        let mut connected = self.connect(address, name).await?;
        match timeout(Duration::from_secs(3), connected.stream.read_u8()).await {
            Err(_) => Ok(()),
            Ok(Ok(_)) => Err(Refusal::Ours("bytes that nobody asked for".to_owned())),
            Ok(Err(error)) => Err(Refusal::of(&error, 1)),
        }
    }

    pub async fn get(&self, address: SocketAddr, name: &str, target: &str) -> Result<Response, Refusal> {
        let mut http = self.connect(address, name).await?.http1();
        let response = http.get(name, target).await;
        match response.failure {
            Some(super::client::Failure::Alert(alert)) => Err(Refusal::Alert(alert)),
            _ => Ok(response),
        }
    }
}

impl Connected {
    pub fn http1(self) -> Http1 {
        Http1::over(self.stream)
    }

    pub async fn http2(self) -> Http2 {
        Http2::over(self.stream).await
    }

    pub fn resumed(&self) -> bool {
        self.stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub fn alpn(&self) -> Option<String> {
        self.stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
    }

    pub fn suite(&self) -> rustls::CipherSuite {
        self.stream.get_ref().1.negotiated_cipher_suite().unwrap().suite()
    }

    pub fn group(&self) -> Option<NamedGroup> {
        self.stream.get_ref().1.negotiated_key_exchange_group().map(|group| group.name())
    }

    pub fn version(&self) -> rustls::ProtocolVersion {
        self.stream.get_ref().1.protocol_version().unwrap()
    }

    /// The server's certificate.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    }
}

impl Refusal {
    fn of(error: &io::Error, received: usize) -> Self {
        if let Some(alert) = alert(error) {
            return Self::Alert(alert);
        }
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe if received == 0 => Self::Reset,
            io::ErrorKind::UnexpectedEof if received == 0 => Self::Closed,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Self::Cut(received)
            }
            _ => Self::Ours(error.to_string()),
        }
    }
}

/// The alert that ended a connection.
pub fn alert(error: &io::Error) -> Option<u8> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(u8::from(*alert)),
        _ => None,
    }
}

fn key_exchange(name: NamedGroup) -> &'static dyn rustls::crypto::SupportedKxGroup {
    *aws_lc_rs::ALL_KX_GROUPS.iter().find(|group| group.name() == name).unwrap_or_else(|| panic!("no {name:?}"))
}

fn cipher_suite(name: rustls::CipherSuite) -> rustls::SupportedCipherSuite {
    *aws_lc_rs::ALL_CIPHER_SUITES.iter().find(|suite| suite.suite() == name).unwrap_or_else(|| panic!("no {name:?}"))
}

#[derive(Debug)]
struct Shown(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

/// Checks that the server has the key of its certificate, and nothing else.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// `openssl s_client`: what it printed.
pub struct OpenSsl {
    pub text: String,
}

impl OpenSsl {
    /// Connects with these arguments, sends `input`, and reads to the end, which `input` must bring about.
    pub async fn run(address: SocketAddr, arguments: &[&str], input: &str) -> Self {
        let mut command = Command::new("timeout");
        command.args(["20", "openssl", "s_client", "-connect", &address.to_string(), "-ign_eof"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let output: Output = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            // The peer may have gone, which the output says.
            let _ = io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes());
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap();
        let both = [output.stdout, output.stderr].concat();
        Self { text: String::from_utf8_lossy(&both).into_owned() }
    }

    /// One request, after which the gateway closes.
    pub async fn get(address: SocketAddr, name: &str, arguments: &[&str]) -> Self {
        let request = format!("GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
        Self::run(address, &[&["-servername", name], arguments].concat(), &request).await
    }

    /// Number of the alert that it received.
    pub fn alert(&self) -> Option<u8> {
        let (_, rest) = self.text.split_once("SSL alert number ")?;
        rest.split_whitespace().next()?.parse().ok()
    }

    /// Status of the HTTP answer.
    pub fn status(&self) -> Option<u16> {
        let (_, rest) = self.text.split_once("HTTP/1.1 ")?;
        rest.get(..3)?.parse().ok()
    }

    pub fn resumed(&self) -> bool {
        self.text.contains("\nReused, ")
    }
}
