//! Opening a connection to an endpoint.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{io, iter};

use config::snapshot::cluster::TcpKeepalive;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

use super::cluster::{Cluster, ClusterTls};
use super::endpoint::Address;
use super::on_demand::Resolver;
use super::proxy_header::ClientConnection;
use crate::request::{ConnectionFacts, TlsFacts};
use crate::response::Reset;
use crate::stream::{Socket, Transport};
use crate::tls::client::Application;

/// How long an address may take before the next is tried as well. Source: Envoy's happy eyeballs.
const HEAD_START: Duration = Duration::from_millis(300);

/// What Envoy says while it waits for a secret.
pub(super) const NO_SECRET: &str = "TLS_error:_Secret_is_not_supplied_by_SDS";

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Purpose {
    /// The host, where connections are made for one: that which TLS asks for by name, in lower case without port.
    pub host: Option<Arc<str>>,
    /// The client, where the upstream is told of it: then nobody else may use the connection.
    pub client: Option<ClientConnection>,
}

impl Purpose {
    /// For what comes from `connection`, and for `host` if it is raw TCP for a host that is known.
    pub fn new(cluster: &Cluster, connection: &ConnectionFacts, host: Option<Arc<str>>) -> Self {
        let ConnectionFacts { remote, local, .. } = *connection;
        Self { host, client: cluster.config.proxy_protocol.map(|_| ClientConnection { remote, local }) }
    }
}

/// How to get to an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Way<'w> {
    /// Where it is.
    pub address: &'w Address,
    /// Other addresses of the same server.
    pub alternatives: &'w [SocketAddr],
    /// Knows the addresses of hosts.
    pub resolver: &'w Resolver,
}

/// Connects and shakes hands, if the cluster has TLS, within the cluster's connect timeout.
///
/// # Errors
/// [`Reset::ConnectionTimeout`], [`Reset::Unresolved`], or [`Reset::ConnectionFailure`] with the transport's reason.
pub async fn connect(
    cluster: &Cluster,
    way: Way<'_>,
    application: Application,
    purpose: &Purpose,
) -> Result<Transport, Reset> {
    let opened = async {
        let client = match &cluster.tls {
            ClusterTls::None => None,
            ClusterTls::Available(client) => Some(client),
            ClusterTls::Unavailable(_) => return Err(Reset::ConnectionFailure(Cow::Borrowed(NO_SECRET))),
        };
        let mut socket = open(cluster, way, purpose).await?;
        let Some(client) = client else { return Ok(Transport::from(socket)) };
        socket.read_ahead();
        let peer = socket.peer_addr().map(|peer| peer.ip());
        let shaken = client.connect(socket, application, purpose.host.as_deref(), peer).await;
        shaken.map(Transport::from).map_err(Reset::ConnectionFailure)
    };
    within_connect_timeout(cluster, opened).await
}

/// Connects without TLS, whatever the cluster has: what will be sent is TLS of the client's own.
///
/// # Errors
/// As [`connect`].
pub async fn connect_raw(cluster: &Cluster, way: Way<'_>, purpose: &Purpose) -> Result<Transport, Reset> {
    within_connect_timeout(cluster, async { open(cluster, way, purpose).await.map(Transport::from) }).await
}

async fn within_connect_timeout(
    cluster: &Cluster,
    opened: impl Future<Output = Result<Transport, Reset>>,
) -> Result<Transport, Reset> {
    tokio::time::timeout(cluster.config.connect_timeout, opened).await.unwrap_or(Err(Reset::ConnectionTimeout))
}

/// What the handshake on a connection to `cluster` agreed on; `None` without TLS.
pub fn tls_facts(cluster: &Cluster, transport: &Transport) -> Option<Arc<TlsFacts>> {
    Some(Arc::new(cluster.tls.client()?.facts(transport.tls()?)))
}

/// A socket, on which the upstream has been told of the client if it wants to be.
async fn open(cluster: &Cluster, way: Way<'_>, purpose: &Purpose) -> Result<Socket, Reset> {
    let failed = |error| Reset::ConnectionFailure(transport_reason(&error));
    let keepalive = cluster.config.limits.tcp_keepalive.as_ref();
    let opened = match way.address {
        Address::Ip(address) => open_first(iter::once(address).chain(way.alternatives).copied(), keepalive).await,
        Address::Host(name, port) => {
            let addresses = way.resolver.addresses(name, *port).await.map_err(Reset::Unresolved)?;
            open_first(addresses.into_iter(), keepalive).await
        }
        Address::UnixPath(path) => UnixStream::connect(path).await.map(Socket::from),
        Address::UnixAbstract(name) => UnixStream::connect(format!("\0{name}")).await.map(Socket::from),
    };
    let mut socket = opened.map_err(failed)?;
    if let (Some(version), Some(client)) = (cluster.config.proxy_protocol, &purpose.client) {
        socket.write_all(&client.header(version)).await.map_err(failed)?;
    }
    Ok(socket)
}

/// The first of `addresses` that answers. Each gets a head start before the next is tried as well (RFC 8305 §5), and none
/// once it has failed.
async fn open_first(
    addresses: impl Iterator<Item = SocketAddr>,
    keepalive: Option<&TcpKeepalive>,
) -> io::Result<Socket> {
    let mut addresses = addresses.peekable();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match addresses.next() {
            Some(address) => attempts.push(TcpStream::connect(address)),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        let head_start = async {
            match addresses.peek() {
                Some(_) => tokio::time::sleep(HEAD_START).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(opened) = attempts.next() => match opened {
                Ok(socket) => return Ok(prepared(socket, keepalive)),
                Err(error) => failure = error,
            },
            () = head_start => {}
        }
    }
}

fn prepared(socket: TcpStream, keepalive: Option<&TcpKeepalive>) -> Socket {
    // A socket that refuses these options still carries the request.
    let _ = socket.set_nodelay(true);
    if let Some(keepalive) = keepalive {
        let _ = socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive_options(keepalive));
    }
    Socket::from(socket)
}

fn keepalive_options(keepalive: &TcpKeepalive) -> socket2::TcpKeepalive {
    let mut options = socket2::TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        options = options.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        options = options.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        options = options.with_retries(probes);
    }
    options
}

/// `delayed_connect_error:_Connection_refused`, as Envoy writes it.
fn transport_reason(error: &io::Error) -> Cow<'static, str> {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return Cow::Borrowed("delayed_connect_error:_Connection_refused");
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    Cow::Owned(format!("delayed_connect_error:_{}", text.replace(' ', "_")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use ahash::AHashMap;
    use config::snapshot::Snapshot;
    use config::snapshot::cluster as snapshot;
    use config::snapshot::cluster::{ClusterName, Endpoints, ServiceIdentity};
    use config::snapshot::tls::{CaSource, ClientMode, ClientTls, ServerNameSource, TlsParameters};
    use config::source::Rescan;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::egress::Egress;
    use crate::state::State;
    use crate::tls::credentials::Credentials;
    use crate::upstream::on_demand;

    /// A CA, and a server with a certificate of its for one name.
    struct Upstream {
        directory: tempfile::TempDir,
        address: Address,
        listener: TcpListener,
        acceptor: TlsAcceptor,
    }

    async fn upstream(name: &str) -> Upstream {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(directory.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        Upstream { directory, address, listener, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    impl Upstream {
        /// The SNI of the next connection, `-` without; `None` if the handshake fails.
        async fn accept(&self) -> Option<String> {
            let (socket, _) = self.listener.accept().await.unwrap();
            let mut stream = self.acceptor.accept(socket).await.ok()?;
            let name = stream.get_ref().1.server_name().unwrap_or("-").to_owned();
            let _ = stream.write_all(name.as_bytes()).await;
            let _ = stream.shutdown().await;
            Some(name)
        }

        fn ca(&self) -> std::path::PathBuf {
            self.directory.path().join("ca.pem")
        }
    }

    /// TLS whose SNI follows the request, checked with the CA in `ca`.
    fn cluster(ca: &Path, verify_server_name: bool) -> Arc<Cluster> {
        let tls = ClientTls {
            mode: ClientMode::Simple,
            server_name: ServerNameSource::Request,
            ca: Some(CaSource::Files { ca: ca.to_owned(), crl: None }),
            subject_alt_names: Vec::new(),
            verify_server_name,
            skip_verification: false,
            certificate: None,
            parameters: TlsParameters::default(),
        };
        let name = ClusterName::outbound(443, "", "up.example.com");
        let identity = ServiceIdentity { host: "up".into(), name: "up".into(), namespace: "shop".into() };
        let endpoints = Endpoints::Static(Arc::default());
        let config = snapshot::Cluster {
            tls: Some(Arc::new(tls)),
            ..snapshot::Cluster::new(name.clone(), Arc::new(identity), 443, endpoints)
        };
        let clusters = Arc::new(AHashMap::from([(name.clone(), Arc::new(config))]));
        let snapshot = Arc::new(Snapshot { clusters, ..Snapshot::default() });
        let mut credentials = Credentials::default();
        credentials.refresh(&snapshot, &Arc::default(), Rescan::All);
        Arc::clone(&State::build(snapshot, &credentials, &State::default()).clusters[&name])
    }

    fn host(name: Option<&str>) -> Purpose {
        Purpose { host: name.map(Arc::from), client: None }
    }

    async fn connected(
        cluster: &Cluster,
        upstream: &Upstream,
        application: Application,
        purpose: &Purpose,
    ) -> Result<Transport, Reset> {
        let resolver = Resolver::new(on_demand::channel().0, Arc::<Egress>::default());
        let way = Way { address: &upstream.address, alternatives: &[], resolver: &resolver };
        connect(cluster, way, application, purpose).await
    }

    async fn failure(cluster: &Cluster, upstream: &Upstream, name: Option<&str>) -> String {
        let purpose = host(name);
        let connecting = connected(cluster, upstream, Application::Http1, &purpose);
        match tokio::join!(connecting, upstream.accept()).0.unwrap_err() {
            Reset::ConnectionFailure(reason) => reason.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_name_is_sent_and_checked() {
        let upstream = upstream("up.example.com").await;
        let cluster = cluster(&upstream.ca(), true);
        let purpose = host(Some("up.example.com"));
        let connecting = connected(&cluster, &upstream, Application::Http1, &purpose);
        let (transport, name) = tokio::join!(connecting, upstream.accept());
        assert_eq!(name.as_deref(), Some("up.example.com"));
        let mut text = String::new();
        transport.unwrap().read_to_string(&mut text).await.ok();
        assert_eq!(text, "up.example.com");
        // reference/networking.md §5.7.
        assert_eq!(
            failure(&cluster, &upstream, Some("wrong.com")).await,
            "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:\
             _verify_SAN_list,_expected_SANs:_[wrong.com],_certificate_SANs:_[up.example.com]:TLS_error_end"
        );
        let reason = failure(&cluster, &upstream, Some("10.9.8.7")).await;
        assert!(reason.contains("_verify_SAN_list,_expected_SANs:_[10.9.8.7],"), "{reason}");
    }

    #[tokio::test]
    async fn raw_tcp_sends_no_name_and_checks_the_chain_alone() {
        let upstream = upstream("up.example.com").await;
        let cluster = cluster(&upstream.ca(), true);
        let purpose = host(None);
        let connecting = connected(&cluster, &upstream, Application::Tcp, &purpose);
        let (transport, name) = tokio::join!(connecting, upstream.accept());
        assert!(transport.is_ok());
        assert_eq!(name.as_deref(), Some("-"));
    }

    #[tokio::test]
    async fn another_ca_is_not_trusted() {
        let (upstream, other) = (upstream("up.example.com").await, upstream("up.example.com").await);
        let cluster = cluster(&other.ca(), false);
        let reason = failure(&cluster, &upstream, Some("up.example.com")).await;
        assert!(reason.contains("depth_0:_unable_to_get_local_issuer_certificate"), "{reason}");
    }

    #[tokio::test]
    async fn a_missing_ca_fails_before_anything_is_sent() {
        let upstream = upstream("up.example.com").await;
        let cluster = cluster(Path::new("/nonexistent/ca.pem"), false);
        let purpose = host(Some("up.example.com"));
        let connected = connected(&cluster, &upstream, Application::Http1, &purpose).await;
        let reason = Reset::ConnectionFailure("TLS_error:_Secret_is_not_supplied_by_SDS".into());
        assert_eq!(connected.unwrap_err(), reason);
    }

    #[tokio::test]
    async fn a_plaintext_server_is_no_tls_server() {
        let upstream = upstream("up.example.com").await;
        let cluster = cluster(&upstream.ca(), false);
        let purpose = host(Some("up.example.com"));
        let connecting = connected(&cluster, &upstream, Application::Http1, &purpose);
        let answer = async {
            let (mut socket, _) = upstream.listener.accept().await.unwrap();
            socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            socket
        };
        let (connected, _socket) = tokio::join!(connecting, answer);
        let reason = "TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end";
        assert_eq!(connected.unwrap_err(), Reset::ConnectionFailure(reason.into()));
    }

    #[tokio::test]
    async fn a_silent_server_takes_no_longer_than_the_connect_timeout() {
        let upstream = upstream("up.example.com").await;
        let cluster = cluster(&upstream.ca(), false);
        tokio::time::pause();
        let purpose = host(None);
        let connecting = connected(&cluster, &upstream, Application::Http1, &purpose);
        assert_eq!(connecting.await.unwrap_err(), Reset::ConnectionTimeout);
    }

    /// An address where connecting neither succeeds nor fails: its queue of connections is full.
    async fn silent() -> (TcpListener, Vec<TcpStream>) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            held.push(stream);
        }
        (listener, held)
    }

    #[tokio::test]
    async fn the_address_that_answers_first_is_taken() {
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (silent, _held) = silent().await;
        let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (good, silent) = (good.local_addr().unwrap(), silent.local_addr().unwrap());
        for list in [vec![good, silent], vec![silent, good], vec![refused, good], vec![refused, silent, good]] {
            let socket = open_first(list.iter().copied(), None).await.unwrap();
            assert_eq!(socket.peer_addr(), Some(good), "{list:?}");
        }
        let failure = open_first([refused, refused].into_iter(), None).await.unwrap_err();
        assert_eq!(failure.kind(), io::ErrorKind::ConnectionRefused);
        assert!(open_first(iter::empty(), None).await.is_err());
    }
}
