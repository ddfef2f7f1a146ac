//! Upstreams' side of TLS: what they show, what they ask for, and what they saw.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::PATIENCE;
use super::pki::{Authority, Identity};

/// How an upstream does handshakes.
#[derive(Clone)]
pub struct TlsServer {
    config: Arc<ServerConfig>,
    seen: Arc<Mutex<Vec<Handshake>>>,
}

/// One handshake as the upstream saw it.
#[derive(Debug, Clone, Default)]
pub struct Handshake {
    pub server_name: Option<String>,
    /// Protocols that the client offered.
    pub offered: Vec<String>,
    /// The client's certificate, DER.
    pub client: Option<Vec<u8>>,
    pub version: Option<rustls::ProtocolVersion>,
    pub suite: Option<rustls::CipherSuite>,
    pub group: Option<rustls::NamedGroup>,
    pub resumed: bool,
    /// Why it failed.
    pub failure: Option<String>,
}

#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl TlsServer {
    /// Shows this certificate and asks for none.
    pub fn new(identity: &Identity) -> Self {
        Self::build(identity, WebPkiClientVerifier::no_client_auth(), &[], rustls::ALL_VERSIONS)
    }

    /// Offers these protocols, too.
    pub fn offering(identity: &Identity, alpn: &[&str]) -> Self {
        Self::build(identity, WebPkiClientVerifier::no_client_auth(), alpn, rustls::ALL_VERSIONS)
    }

    /// Needs a certificate of `authority`.
    pub fn mutual(identity: &Identity, authority: &Authority, alpn: &[&str]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        Self::build(identity, verifier, alpn, rustls::ALL_VERSIONS)
    }

    /// Speaks TLS 1.2 only.
    pub fn tls12(identity: &Identity) -> Self {
        Self::build(identity, WebPkiClientVerifier::no_client_auth(), &[], &[&rustls::version::TLS12])
    }

    fn build(
        identity: &Identity,
        verifier: Arc<dyn ClientCertVerifier>,
        alpn: &[&str],
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Shown(identity.certified())));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        Self { config: Arc::new(config), seen: Arc::default() }
    }

    /// The handshake on a connection; `None` if it fails, for a reason that is noted.
    pub async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let mut handshake = Handshake::default();
        let accepted = timeout(PATIENCE, self.handshake(stream, &mut handshake)).await;
        let accepted = accepted.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
        handshake.failure = accepted.as_ref().err().map(ToString::to_string);
        self.seen.lock().unwrap().push(handshake);
        accepted.ok()
    }

    async fn handshake(&self, stream: TcpStream, seen: &mut Handshake) -> io::Result<TlsStream<TcpStream>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let hello = start.client_hello();
        seen.server_name = hello.server_name().map(str::to_owned);
        let offered = hello.alpn().into_iter().flatten();
        seen.offered = offered.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        // A server without a protocol in common goes on without one, as most do.
        let ours = &self.config.alpn_protocols;
        let overlap = seen.offered.iter().any(|name| ours.iter().any(|our| our == name.as_bytes()));
        let config = if overlap || ours.is_empty() {
            self.config.clone()
        } else {
            let mut config = ServerConfig::clone(&self.config);
            config.alpn_protocols.clear();
            Arc::new(config)
        };
        let stream = start.into_stream(config).await?;
        let tls = stream.get_ref().1;
        seen.client = tls.peer_certificates().map(|chain| chain[0].to_vec());
        seen.version = tls.protocol_version();
        seen.suite = tls.negotiated_cipher_suite().map(|suite| suite.suite());
        seen.group = tls.negotiated_key_exchange_group().map(|group| group.name());
        seen.resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        Ok(stream)
    }

    /// Handshakes since the last call, oldest first.
    pub fn take(&self) -> Vec<Handshake> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// Waits for the oldest handshake that wasn't taken yet.
    pub async fn handshake_seen(&self) -> Option<Handshake> {
        super::eventually_within(Duration::from_secs(5), || async {
            let mut seen = self.seen.lock().unwrap();
            (!seen.is_empty()).then(|| seen.remove(0))
        })
        .await
    }
}
