//! The way of a connection from its accept to whoever serves it: filter chain, TLS, handler.
//!
//! Source: `reference/networking.md` §2.4, §2.6; `reference/security.md` §4.2-4.5.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use certs::verify::Refusal;
use config::snapshot::listener::{Handler, Transport as Wire};
use rustls::server::{Accepted, Acceptor as HelloReader};
use rustls::{AlertDescription, Error as TlsError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::SemaphorePermit;
use tokio_rustls::StartHandshake;
use tracing::debug;

use super::accept::Acceptor;
use super::chains::{Chain, ChainTls, Chains};
use super::proxy_protocol;
use crate::http::{self, Downstream};
use crate::request::{Begun, ConnectionFacts, TlsFacts};
use crate::stream::{Probation, Socket, Transport};
use crate::tcp;
use crate::telemetry::metrics::HandshakeFailure;
use crate::tls::handshakes::Handshakes;
use crate::tls::hello::{Arriving, ClientHello, MAX_BYTES, NoHello};
use crate::tls::server::Server;
use crate::worker::Worker;

/// How long a client that was refused may take to read the alert, and what it may send meanwhile.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;
/// Time for the header of the PROXY protocol. Source: `reference/networking.md` §8.1.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// What Envoy logs of a client that speaks HTTP where TLS is expected.
const HTTP_REQUEST: &str = "TLS_error:|268435612:SSL_routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end";

/// Serves one connection from its first byte to its last.
pub(super) async fn serve(worker: Rc<Worker>, acceptor: Arc<Acceptor>, mut socket: Socket, remote: Option<SocketAddr>) {
    let mut client = Client { begun: Begun::now(), local: socket.local_addr(), remote, direct_remote: remote };
    let chains = worker.gateway.state.load().listeners.get(&acceptor.key).map(Arc::clone);
    // The listener has just gone.
    let Some(chains) = chains else { return socket.reset_on_close() };
    if chains.config.proxy_protocol {
        let header = Box::pin(tokio::time::timeout(HEADER_TIMEOUT, proxy_protocol::read(&mut socket)));
        match acceptor.drain.until_closing(header).await {
            Some(Ok(Ok(None))) => {}
            Some(Ok(Ok(Some(header)))) => {
                (client.local, client.remote) = (Some(header.destination), Some(header.source));
            }
            Some(Ok(Err(error))) => {
                debug!(%error, peer = ?remote, port = acceptor.key.port, "refused");
                worker.gateway.telemetry.metrics.connections.without_header();
                return socket.reset_on_close();
            }
            Some(Err(_)) => {
                worker.gateway.telemetry.metrics.connections.without_header();
                return socket.reset_on_close();
            }
            None => return,
        }
    }
    let admitted = match chains.config.filter_chains.as_slice() {
        [only] if only.transport == Wire::Plaintext => {
            let Some(chain) = chains.plaintext() else { return socket.reset_on_close() };
            Admitted { transport: socket.into(), chain: Arc::clone(chain), tls: None, server_name: None }
        }
        _ => {
            // On the heap: the many connections in plaintext need no room for it.
            let admission = Box::pin(admit(&worker, &acceptor, chains, &client, socket));
            let Some(Some(admitted)) = acceptor.drain.until_closing(admission).await else { return };
            admitted
        }
    };
    let Admitted { transport, chain, tls, server_name } = admitted;
    let facts = client.facts(&worker, acceptor.key.port, tls.map(Arc::new), server_name);
    let downstream = Downstream { transport, listener: acceptor.key.clone(), facts, drain: chain.drain.clone() };
    match &chain.config.handler {
        // On the heap: connections of raw TCP need no room for it.
        Handler::Http(_) => Box::pin(http::serve(worker, downstream, chain)).await,
        Handler::Tcp(tcp) => {
            let tcp = Arc::clone(tcp);
            drop(chain);
            tcp::serve(worker, downstream, tcp).await;
        }
    }
}

/// The client as far as it is known before it has said anything.
struct Client {
    begun: Begun,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    direct_remote: Option<SocketAddr>,
}

impl Client {
    fn facts(
        &self,
        worker: &Worker,
        port: u16,
        tls: Option<Arc<TlsFacts>>,
        server_name: Option<Arc<str>>,
    ) -> Rc<ConnectionFacts> {
        let Self { begun, local, remote, direct_remote } = *self;
        let id = worker.gateway.next_connection_id();
        Rc::new(ConnectionFacts { id, begun, local, remote, direct_remote, port, tls, server_name })
    }
}

/// A connection that has found its chain and done its handshake.
struct Admitted {
    transport: Transport,
    chain: Arc<Chain>,
    tls: Option<TlsFacts>,
    server_name: Option<Arc<str>>,
}

/// Finds the chain for a connection of a listener with TLS, and does what that asks for; `None`: the connection is over.
async fn admit(
    worker: &Worker,
    acceptor: &Acceptor,
    accepted: Arc<Chains>,
    client: &Client,
    mut socket: Socket,
) -> Option<Admitted> {
    let count = |failure| worker.gateway.telemetry.metrics.handshakes.failed(failure);
    let (place, cut, full) = worker.handshakes.begin();
    if full {
        count(HandshakeFailure::Cut);
    }
    let deadline = worker.gateway.handshakes.timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout)));
    socket.set_probation(Some(Probation { deadline, cut: Some(cut), alert: None }));
    let hello = match read_hello(&mut socket).await {
        Ok(hello) => hello,
        Err(error) => {
            // Whoever stops within a ClientHello gets a reset.
            if error.kind() == io::ErrorKind::TimedOut && !socket.ahead().is_empty() {
                socket.reset_on_close();
            }
            if let Some(failure) = io_failure(&error) {
                count(failure);
            }
            return None;
        }
    };
    let chains = current(worker, acceptor, accepted);
    let server_name = hello.as_ref().ok().and_then(|hello| hello.server_name.clone());
    let Some(chain) = chains.choose(server_name.as_deref()).map(Arc::clone) else {
        socket.reset_on_close();
        count(HandshakeFailure::NoFilterChain);
        let reason = (hello == Err(NoHello::NotTls) && is_http(socket.ahead())).then_some(HTTP_REQUEST);
        tcp::unserved(worker, client.facts(worker, chains.config.port, None, server_name), reason);
        return None;
    };
    let (transport, tls) = match &chain.tls {
        ChainTls::None | ChainTls::Passthrough => {
            socket.set_probation(None);
            (Transport::from(socket), None)
        }
        ChainTls::Unavailable(reason) => {
            debug!(chain = &*chain.config.name, reason, "no TLS");
            socket.reset_on_close();
            count(HandshakeFailure::NoCredential);
            return None;
        }
        ChainTls::Terminate(server) => match shake_hands(worker, server, socket, hello).await {
            Ok((transport, facts)) => {
                worker.gateway.telemetry.metrics.handshakes.completed(facts.resumed);
                (transport, Some(facts))
            }
            Err(Failed { failure, farewell }) => {
                if let Some(failure) = failure {
                    count(failure);
                }
                // What follows is bounded by itself, and no reason to cut others.
                drop(place);
                if let Some(farewell) = farewell {
                    farewell.say().await;
                }
                return None;
            }
        },
    };
    Some(Admitted { transport, chain, tls, server_name })
}

/// The chains as they are now: a client may have taken its time to say hello. `accepted` if the listener has gone or moved
/// meanwhile, as they drain with the socket that the connection came from.
fn current(worker: &Worker, acceptor: &Acceptor, accepted: Arc<Chains>) -> Arc<Chains> {
    let state = worker.gateway.state.load();
    let now = state.listeners.get(&acceptor.key).filter(|now| now.drain.is_same(&accepted.drain));
    now.map_or(accepted, Arc::clone)
}

/// Waits for a whole ClientHello, or for bytes that can't become one.
async fn read_hello(socket: &mut Socket) -> io::Result<Result<ClientHello, NoHello>> {
    let mut arriving = Arriving::default();
    loop {
        match arriving.read(socket.ahead()) {
            Ok(Some(hello)) => return Ok(Ok(hello)),
            Ok(None) if socket.ahead().len() < MAX_BYTES => {}
            Ok(None) => return Ok(Err(NoHello::Broken)),
            Err(no_hello) => return Ok(Err(no_hello)),
        }
        if socket.fill().await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A handshake that came to nothing.
struct Failed {
    /// `None`: counted by whoever took its place.
    failure: Option<HandshakeFailure>,
    farewell: Option<Farewell>,
}

/// A peer that is to read what we have sent.
struct Farewell {
    socket: Socket,
    /// And this fatal alert, in plaintext.
    alert: Option<u8>,
}

async fn shake_hands(
    worker: &Worker,
    server: &Server,
    mut socket: Socket,
    hello: Result<ClientHello, NoHello>,
) -> Result<(Transport, TlsFacts), Failed> {
    let hello = match hello {
        Ok(hello) => hello,
        Err(NoHello::NotTls) if is_http(socket.ahead()) => {
            return Err(end(socket, HandshakeFailure::NotTls));
        }
        Err(NoHello::NotTls) => return Err(refuse(socket, PROTOCOL_VERSION, HandshakeFailure::NotTls)),
        Err(NoHello::Broken) => return Err(refuse(socket, DECODE_ERROR, HandshakeFailure::Protocol)),
    };
    let Some(handshake) = server.handshake(&hello) else {
        return Err(refuse(socket, PROTOCOL_VERSION, HandshakeFailure::Version));
    };
    let accepted = match accept(&socket.ahead()[..hello.length]) {
        Ok(accepted) => accepted,
        Err((error, alert)) => {
            debug!(%error, "unusable ClientHello");
            return Err(refuse(socket, alert, HandshakeFailure::Protocol));
        }
    };
    socket.consume(hello.length);
    socket.read_ahead();
    let turn = match turn(&worker.handshakes, &mut socket).await {
        Ok(turn) => turn,
        Err(error) => return Err(Failed { failure: io_failure(&error), farewell: None }),
    };
    let stream = StartHandshake::from_parts(accepted, socket).into_stream(Arc::clone(&handshake.config));
    // Sockets are looked at before the next one's turn.
    tokio::task::yield_now().await;
    drop(turn);
    match stream.into_fallible().await {
        Ok(mut stream) => {
            let (socket, connection) = stream.get_mut();
            socket.set_probation(None);
            let facts = server.facts(&handshake, connection);
            Ok((stream.into(), facts))
        }
        Err((error, socket)) => Err(explain(&error, socket)),
    }
}

/// Waits for the turn to compute, and no longer than the client's probation: whoever was cut gets no signature.
async fn turn<'h>(handshakes: &'h Handshakes, socket: &mut Socket) -> io::Result<Option<SemaphorePermit<'h>>> {
    tokio::select! {
        biased;
        error = socket.probation_over() => Err(error),
        turn = handshakes.turn() => Ok(turn),
    }
}

/// Whether these are the first bytes of requests that BoringSSL knows, and closes without an alert.
fn is_http(bytes: &[u8]) -> bool {
    ["GET ", "POST ", "HEAD ", "PUT ", "CONNE"].iter().any(|start| bytes.starts_with(start.as_bytes()))
}

/// Lets the TLS library read a ClientHello; in an error also the alert that it would send.
fn accept(mut bytes: &[u8]) -> Result<Accepted, (TlsError, u8)> {
    let mut reader = HelloReader::default();
    while !bytes.is_empty() {
        if let Err(error) = reader.read_tls(&mut bytes) {
            return Err((TlsError::General(error.to_string()), DECODE_ERROR));
        }
        match reader.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut record = Vec::new();
                // Writing to memory doesn't fail.
                let _ = alert.write_all(&mut record);
                return Err((error, record.last().copied().unwrap_or(DECODE_ERROR)));
            }
        }
    }
    Err((TlsError::HandshakeNotComplete, DECODE_ERROR))
}

// Alerts (RFC 8446 §6).
const HANDSHAKE_FAILURE: u8 = 40;
const DECODE_ERROR: u8 = 50;
const PROTOCOL_VERSION: u8 = 70;
const BAD_CERTIFICATE_HASH_VALUE: u8 = 114;

/// What to do about a handshake that broke off. An alert in plaintext is the one that Envoy would send; what is encrypted
/// has been sent as the TLS library has it.
fn explain(error: &io::Error, mut socket: Socket) -> Failed {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<TlsError>()) else {
        return Failed { failure: io_failure(error), farewell: None };
    };
    debug!(error = %cause, "handshake");
    let failure = match cause {
        TlsError::NoCertificatesPresented => HandshakeFailure::NoClientCertificate,
        TlsError::InvalidCertificate(_) => HandshakeFailure::ClientCertificate,
        TlsError::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled) => {
            HandshakeFailure::Closed
        }
        TlsError::AlertReceived(_) => HandshakeFailure::RefusedByClient,
        _ => HandshakeFailure::Protocol,
    };
    let held_back = socket.set_probation(None).and_then(|probation| probation.alert);
    match held_back {
        None => end(socket, failure),
        Some(alert) => {
            let alert = match (cause, Refusal::of(cause)) {
                // TLS 1.2 knows no `certificate_required`.
                (TlsError::NoCertificatesPresented, _) => HANDSHAKE_FAILURE,
                (_, Some(Refusal::Pin)) => BAD_CERTIFICATE_HASH_VALUE,
                _ => alert,
            };
            refuse(socket, alert, failure)
        }
    }
}

/// What becomes of a handshake when its socket fails; `None`: counted by whoever took its place.
fn io_failure(error: &io::Error) -> Option<HandshakeFailure> {
    match error.kind() {
        io::ErrorKind::TimedOut => Some(HandshakeFailure::Timeout),
        io::ErrorKind::ConnectionAborted => None,
        _ => Some(HandshakeFailure::Closed),
    }
}

/// The end, with a fatal alert in plaintext.
fn refuse(socket: Socket, alert: u8, failure: HandshakeFailure) -> Failed {
    Failed { failure: Some(failure), farewell: Some(Farewell { socket, alert: Some(alert) }) }
}

/// The end, with what has been sent.
fn end(socket: Socket, failure: HandshakeFailure) -> Failed {
    Failed { failure: Some(failure), farewell: Some(Farewell { socket, alert: None }) }
}

impl Farewell {
    /// Ends our side, and reads what still comes for a moment: bytes that nobody has read would make the close a reset,
    /// and take the alert with them.
    async fn say(self) {
        let Self { mut socket, alert } = self;
        socket.set_probation(None);
        let rest = async {
            if let Some(alert) = alert {
                socket.write_all(&[21, 3, 3, 0, 2, 2, alert]).await?;
            }
            socket.shutdown().await?;
            let mut left = LINGER_BYTES;
            let mut scratch = [0; 1024];
            loop {
                let count = socket.read(&mut scratch).await?;
                if count == 0 || count > left {
                    return Ok::<(), io::Error>(());
                }
                left -= count;
            }
        };
        // Whether it arrives or not, the connection is over.
        let _ = tokio::time::timeout(LINGER, rest).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    /// A socket on probation, for a minute or until it is cut.
    fn on_probation(cut: tokio::sync::oneshot::Receiver<()>) -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut socket = Socket::from(ours);
        let deadline = Some(Box::pin(tokio::time::sleep(Duration::from_secs(60))));
        socket.set_probation(Some(Probation { deadline, cut: Some(cut), alert: None }));
        (socket, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_cut_or_late_gets_no_turn() {
        let handshakes = Handshakes::new(2);
        let (_first, cut, _) = handshakes.begin();
        let (mut first, _peer) = on_probation(cut);
        let (_second, cut, _) = handshakes.begin();
        let (mut second, _peer) = on_probation(cut);
        let busy = turn(&handshakes, &mut second).await.unwrap();
        assert!(busy.is_some());
        {
            let mut waits = std::pin::pin!(turn(&handshakes, &mut first));
            assert!(futures::poll!(&mut waits).is_pending());
            // Both at once: it is the oldest of too many, and it would be its turn.
            let (_third, _, full) = handshakes.begin();
            drop(busy);
            assert!(full);
            assert_eq!(waits.await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        }
        let busy = turn(&handshakes, &mut second).await.unwrap();
        let (_fourth, cut, _) = handshakes.begin();
        let (mut fourth, _peer) = on_probation(cut);
        assert_eq!(turn(&handshakes, &mut fourth).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(busy);
    }
}
