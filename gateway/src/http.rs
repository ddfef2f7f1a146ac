//! HTTP connections: codecs, connection loops and the life of a request.
//!
//! [`serve`] takes an accepted connection and finds out what it speaks; `h1` and `h2` run its requests; `exchange` is the
//! life of one request, `forward` its way to an upstream and back. Everything is driven by polling on one thread, so the
//! two directions of a request move independently and nothing is shared with other workers.

pub mod buffered;
pub mod chunked;
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
mod timers;
pub mod violations;

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use config::snapshot::listener::HttpChain;

use crate::drain::Drain;
use crate::request::{ConnectionFacts, Protocol};
use crate::state::{ListenerKey, State};
use crate::stream::Transport;
use crate::worker::Worker;
use buffered::Buffered;
pub(crate) use h1::{content_length, write_line};
use headers::Headers;

/// One accepted connection of an HTTP listener.
#[derive(Debug)]
pub struct Downstream {
    /// The socket.
    pub transport: Transport,
    /// The listener that accepted it.
    pub listener: ListenerKey,
    /// Addresses and so on.
    pub facts: Rc<ConnectionFacts>,
    /// The listener's drain signal.
    pub drain: Drain,
}

/// What HTTP/2 clients send first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a connection may take to show what it speaks where no idle timeout is configured: Envoy's default for it.
const SNIFF_TIMEOUT: Duration = Duration::from_secs(3600);

/// Serves a plaintext connection, HTTP/1.1 or HTTP/2 by its first bytes, until it ends or its listener's drain does.
pub async fn serve(worker: Rc<Worker>, downstream: Downstream) {
    let drain = downstream.drain.clone();
    drain.until_closing(serve_connection(worker, downstream)).await;
}

async fn serve_connection(worker: Rc<Worker>, downstream: Downstream) {
    let Downstream { transport, listener, facts, drain } = downstream;
    let mut connection = Buffered::new(transport, BytesMut::new());
    let context = Rc::new(Serving { worker, listener, facts, drain, current: RefCell::default() });
    let limit = context.pin().1.settings.idle_timeout.unwrap_or(SNIFF_TIMEOUT);
    let first = tokio::time::timeout(limit, poll_fn(|cx| connection.poll_fill(cx))).await;
    let Ok(Ok(1..)) = first else { return };
    // Whoever stops within the preface is served as HTTP/1.1, whose deadlines for heads hold.
    let patience = context.pin().1.settings.request_headers_timeout.unwrap_or(limit);
    match tokio::time::timeout(patience, sniff(&mut connection)).await {
        Ok(true) => {
            let (mut transport, read) = connection.into_parts();
            transport.rewind(read);
            h2::serve(context, transport).await;
        }
        Ok(false) | Err(_) => h1::serve(&context, connection).await,
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
    /// This listener's chain, and the generation it is of: looked up again only after a reload.
    current: RefCell<Option<(u64, Arc<HttpChain>)>>,
}

impl Serving {
    /// The state of this moment and the chain that serves this connection. A listener that was removed goes on with the
    /// chain it had.
    fn pin(&self) -> (Arc<State>, Arc<HttpChain>) {
        let mut current = self.current.borrow_mut();
        let latest = self.worker.gateway.state.load_full();
        if let Some((generation, chain)) = &*current
            && *generation == latest.generation
        {
            return (latest, Arc::clone(chain));
        }
        let chain = latest.listeners.get(&self.listener).and_then(|chains| chains.plaintext()?.config.http());
        let chain = match (chain, &*current) {
            (Some(chain), _) => Arc::clone(chain),
            (None, Some((_, chain))) => Arc::clone(chain),
            (None, None) => Arc::default(),
        };
        *current = Some((latest.generation, Arc::clone(&chain)));
        (latest, chain)
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

    /// Ready when the client has gone. To be polled while nothing is being read from it.
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
