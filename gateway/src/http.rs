//! HTTP connections: codecs, connection loops and the life of a request.
//!
//! [`serve`] takes an accepted connection and finds out what it speaks; `h1` and `h2` run its requests; `exchange` is the
//! life of one request, `forward` its way to an upstream and back. Everything is driven by polling on one thread, so the
//! two directions of a request move independently and nothing is shared with other workers.

pub(crate) mod affinity;
pub mod buffered;
pub mod chunked;
mod connect;
mod edge;
mod exchange;
mod forward;
mod h1;
mod h2;
pub mod head;
pub mod headers;
mod mirror;
pub mod normalize;
mod redirect;
pub(crate) mod send_queue;
pub(crate) mod timers;
pub mod violations;

use std::cell::{OnceCell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use config::snapshot::listener::HttpChain;

use crate::drain::Drain;
use crate::listener::chains::Chain;
use crate::request::{ConnectionFacts, Protocol};
use crate::state::{ListenerKey, State};
use crate::stream::Transport;
use crate::worker::Worker;
use buffered::Buffered;
pub(crate) use h1::{content_length, write_line};
use headers::Headers;

/// One connection that has found its filter chain and, where that has TLS, done its handshake.
#[derive(Debug)]
pub struct Downstream {
    /// What is read and written, decrypted where TLS ends here.
    pub transport: Transport,
    /// The listener that accepted it.
    pub listener: ListenerKey,
    /// Addresses and so on.
    pub facts: Rc<ConnectionFacts>,
    /// The chain's drain signal.
    pub drain: Drain,
}

/// What HTTP/2 clients send first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a connection may take to show what it speaks where no idle timeout is configured: Envoy's default for it.
const SNIFF_TIMEOUT: Duration = Duration::from_secs(3600);

/// Serves a connection that `chain` has taken, HTTP/1.1 or HTTP/2 as ALPN has it or else by its first bytes, until it ends
/// or its drain does.
pub async fn serve(worker: Rc<Worker>, downstream: Downstream, chain: Arc<Chain>) {
    let drain = downstream.drain.clone();
    // Pinned here: a future that is handed on by value takes its room twice.
    let serving = pin!(serve_connection(worker, downstream, chain));
    drain.until_closing(serving).await;
}

async fn serve_connection(worker: Rc<Worker>, downstream: Downstream, chain: Arc<Chain>) {
    let Downstream { transport, listener, facts, drain } = downstream;
    let mut connection = Buffered::new(transport, BytesMut::new());
    let context = Rc::new(Serving::new(worker, listener, facts, drain, &chain));
    drop(chain);
    let limit = context.pin().1.settings.idle_timeout.unwrap_or(SNIFF_TIMEOUT);
    let first = tokio::time::timeout(limit, poll_fn(|cx| connection.poll_fill(cx))).await;
    let Ok(Ok(1..)) = first else { return };
    let alpn = context.facts.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
    let http2 = match alpn {
        Some(protocol) => protocol == "h2",
        None => {
            // Whoever stops within the preface is served as HTTP/1.1, whose deadlines for heads hold.
            let patience = context.pin().1.settings.request_headers_timeout.unwrap_or(limit);
            tokio::time::timeout(patience, sniff(&mut connection)).await.unwrap_or(false)
        }
    };
    if http2 {
        let (mut transport, read) = connection.into_parts();
        transport.rewind(read);
        h2::serve(context, transport).await;
    } else {
        h1::serve(&context, connection).await;
    }
}

/// Whether the connection begins with the HTTP/2 preface.
async fn sniff(connection: &mut Buffered) -> bool {
    loop {
        let seen = connection.read.len().min(PREFACE.len());
        if connection.read[..seen] != PREFACE[..seen] {
            return false;
        }
        if seen == PREFACE.len() {
            return true;
        }
        match poll_fn(|cx| connection.poll_fill(cx)).await {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

/// What the requests of a connection have in common.
#[derive(Debug)]
struct Serving {
    worker: Rc<Worker>,
    listener: ListenerKey,
    facts: Rc<ConnectionFacts>,
    drain: Drain,
    /// Name of the filter chain that took the connection.
    chain: Arc<str>,
    /// What it serves, and the generation this is of: looked up again only after a reload.
    current: RefCell<(u64, Arc<HttpChain>)>,
    /// The client's certificate for upstreams, see [`Serving::client_certificate`].
    client_certificate: OnceCell<Option<Bytes>>,
}

impl Serving {
    fn new(worker: Rc<Worker>, listener: ListenerKey, facts: Rc<ConnectionFacts>, drain: Drain, chain: &Chain) -> Self {
        // No generation is 0: the first look finds what the state has.
        let current = RefCell::new((0, chain.config.http().map(Arc::clone).unwrap_or_default()));
        let chain = Arc::clone(&chain.config.name);
        Self { worker, listener, facts, drain, chain, current, client_certificate: OnceCell::new() }
    }

    /// The state of this moment and what the chain serves. A chain that is gone, or not the one that took the
    /// connection any more, goes on with what it had.
    fn pin(&self) -> (Arc<State>, Arc<HttpChain>) {
        let mut current = self.current.borrow_mut();
        let latest = self.worker.gateway.state.load_full();
        if current.0 != latest.generation {
            current.0 = latest.generation;
            let chain = latest.listeners.get(&self.listener).and_then(|chains| chains.by_name(&self.chain));
            if let Some(chain) = chain.filter(|chain| chain.drain.is_same(&self.drain))
                && let Some(http) = chain.config.http()
            {
                current.1 = Arc::clone(http);
            }
        }
        (latest, Arc::clone(&current.1))
    }

    /// The client's certificate as an element of `x-forwarded-client-cert`, if it has shown one. Made once.
    fn client_certificate(&self) -> Option<&Bytes> {
        let element = || {
            let tls = self.facts.tls.as_ref()?;
            let by = tls.local_certificate().and_then(|own| own.uris().next());
            Some(tls.peer.as_ref()?.xfcc_element(by).into())
        };
        self.client_certificate.get_or_init(element).as_ref()
    }
}

/// A piece of a message body.
#[derive(Debug)]
enum Frame {
    Data(Bytes),
    /// The end, with trailers (HTTP/2 and gRPC only).
    Trailers(Headers),
}

/// Why the client's side of an exchange is over before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// The connection ended: flag `DC`.
    Disconnected,
    /// The client reset the stream (HTTP/2): flag `DR`.
    Reset,
    /// The request body broke its framing: flag `DPE`, 400 if nothing was sent yet.
    BadBody,
}

/// The client's side of one exchange, whatever the HTTP version. Sending queues; [`ClientStream::poll_flush`] writes.
trait ClientStream {
    fn protocol(&self) -> Protocol;

    /// The next piece of the request body; `None` at its end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Gone>>>;

    /// Whether the whole request has arrived.
    fn is_request_complete(&self) -> bool;

    /// Ready when the client has gone. To be polled while nothing is being read from it. In a tunnel, a client that has
    /// ended its side is still there.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone>;

    fn send_informational(&mut self, status: u16, headers: &Headers);

    /// Sends the response head; with `end` there is no body.
    fn send_head(&mut self, status: u16, headers: &Headers, end: bool);

    fn send_data(&mut self, data: Bytes);

    fn send_end(&mut self, trailers: Option<Headers>);

    /// Ready when there is room for more data.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>>;

    /// Writes what is queued.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>>;

    /// The response can't be completed: cuts the connection or resets the stream.
    fn abort(&mut self);

    /// The connection ends after this exchange (HTTP/1; HTTP/2 connections end by GOAWAY).
    fn close_after(&mut self);

    /// The bytes on both sides are no longer HTTP messages (101, CONNECT): bodies pass as they come.
    fn start_tunnel(&mut self);
}
