//! HTTP/2 with upstreams.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::Bytes;
use config::snapshot::cluster::Limits;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};

use super::cluster::{Permit, Usage};
use super::pings::{Doubt, Pings};
use super::{Frame, RequestBody, ResponseHead};
use crate::http::content_length;
use crate::http::headers::Headers;
use crate::http::send_queue::SendQueue;
use crate::request::{RequestHead, TlsFacts};
use crate::response::Reset;
use crate::stream::Transport;

/// Envoy's defaults towards upstreams (`reference/networking.md` §5.5).
const STREAM_WINDOW: u32 = 16 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 24 * 1024 * 1024;
/// Bytes of one stream that wait to be written.
const SEND_BUFFER: usize = 64 * 1024;
/// Decoded header list of a response: what Envoy takes.
const MAX_HEADER_LIST: u32 = 64 * 1024;
const MAX_RESPONSE_HEADERS: usize = 100;

/// An open connection, shared by the requests on it.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    send: SendRequest<Bytes>,
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    tls: Option<Arc<TlsFacts>>,
    opened: Instant,
    idle_since: Cell<Instant>,
    active: Cell<u32>,
    requests: Cell<u32>,
    closed: Cell<bool>,
    doubt: Doubt,
    /// The cluster, some of whose requests may wait for room.
    usage: Arc<Usage>,
}

impl Connection {
    /// Shakes hands on `transport` and drives the connection in a task of this worker until it ends.
    pub async fn open(
        transport: Transport,
        tls: Option<Arc<TlsFacts>>,
        permit: Permit,
        limits: &Limits,
        usage: Arc<Usage>,
    ) -> Result<Self, Reset> {
        let local = transport.local_addr();
        let remote = transport.socket().peer_addr();
        let (send, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(limits.max_concurrent_streams)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_push(false)
            .handshake::<_, Bytes>(transport)
            .await
            .map_err(|error| reset_reason(&error))?;
        let now = Instant::now();
        let shared = Rc::new(Shared {
            local,
            remote,
            tls,
            opened: now,
            idle_since: Cell::new(now),
            active: Cell::new(0),
            requests: Cell::new(0),
            closed: Cell::new(false),
            doubt: Doubt::new(Arc::clone(&usage)),
            usage,
        });
        let driven = Rc::clone(&shared);
        let mut pings = Pings::new(connection.ping_pong(), limits.http2_keepalive);
        tokio::task::spawn_local(async move {
            // Its streams see the error; the connection itself has nobody to tell. One whose peer is gone is dropped with
            // them.
            poll_fn(|cx| {
                let ended = Pin::new(&mut connection).poll(cx).map(|_| ());
                if ended.is_ready() { ended } else { pings.poll(cx, &driven.doubt) }
            })
            .await;
            driven.closed.set(true);
            drop(permit);
        });
        Ok(Self { send, shared })
    }

    /// Whether it is kept for further requests.
    pub fn is_usable(&self, max_requests: u32, max_age: Option<std::time::Duration>) -> bool {
        // A connection that got GOAWAY, or has used up its stream ids, refuses new streams while the old ones go on.
        let mut cx = Context::from_waker(Waker::noop());
        !self.shared.closed.get()
            && matches!(self.send.clone().poll_ready(&mut cx), Poll::Ready(Ok(())))
            && (max_requests == 0 || self.shared.requests.get() < max_requests)
            && max_age.is_none_or(|limit| self.shared.opened.elapsed() < limit)
    }

    /// Whether no request is under way.
    pub fn is_idle(&self) -> bool {
        self.shared.active.get() == 0
    }

    /// When the last request ended.
    pub fn idle_since(&self) -> Instant {
        self.shared.idle_since.get()
    }

    /// Whether a stream may begin now: there is room for it under the limit of either side, and no doubt that the peer is
    /// there.
    pub fn has_room(&self, max_streams: u32) -> bool {
        if self.shared.doubt.is_raised() {
            return false;
        }
        let allowed = self.send.current_max_send_streams().min(max_streams as usize);
        (self.shared.active.get() as usize) < allowed
    }

    /// Begins a request as soon as the peer's limit of streams allows it.
    pub async fn begin(&self) -> Result<Stream, Reset> {
        let send = self.send.clone().ready().await.map_err(|error| reset_reason(&error))?;
        self.shared.active.set(self.shared.active.get() + 1);
        self.shared.requests.set(self.shared.requests.get().saturating_add(1));
        Ok(Stream {
            send,
            guard: ActiveStream(Rc::clone(&self.shared)),
            state: State::Unsent,
            body: None,
            recv: None,
            upgrade: false,
        })
    }
}

/// Counts a stream as active while it lives.
#[derive(Debug)]
struct ActiveStream(Rc<Shared>);

impl Drop for ActiveStream {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
        self.0.usage.wake_waiting();
    }
}

#[derive(Debug)]
enum State {
    Unsent,
    Sent(ResponseFuture),
    /// The request could not be sent.
    Failed(Reset),
}

/// One request on a connection.
#[derive(Debug)]
pub struct Stream {
    send: SendRequest<Bytes>,
    guard: ActiveStream,
    state: State,
    /// Until it has ended.
    body: Option<SendQueue>,
    recv: Option<RecvStream>,
    upgrade: bool,
}

impl Stream {
    pub(super) fn tls(&self) -> Option<&Arc<TlsFacts>> {
        self.guard.0.tls.as_ref()
    }

    pub(super) fn remote(&self) -> Option<SocketAddr> {
        self.guard.0.remote
    }

    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.guard.0.local
    }

    pub(super) fn doubt(&self) {
        self.guard.0.doubt.raise();
    }

    pub(super) fn send_head(&mut self, head: &RequestHead, body: RequestBody) {
        self.upgrade = body == RequestBody::Upgrade;
        let request = match body {
            RequestBody::Connect => to_connect(head),
            _ => to_request(head, self.upgrade),
        };
        let Some(request) = request else {
            self.state = State::Failed(Reset::Inexpressible);
            return;
        };
        self.state = match self.send.send_request(request, body == RequestBody::Empty) {
            Ok((response, send)) => {
                self.body = (body != RequestBody::Empty).then(|| SendQueue::new(send));
                State::Sent(response)
            }
            Err(error) => State::Failed(reset_reason(&error)),
        };
    }

    /// Hands pending data to the connection as flow control allows; ready when none is left. A failure shows when reading.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(body) = &mut self.body {
            let flushed = ready!(body.poll_flush(cx));
            if flushed.is_err() || body.is_ended() {
                self.body = None;
            }
        }
        Poll::Ready(())
    }

    pub(super) fn send_data(&mut self, data: Bytes) {
        if let Some(body) = &mut self.body {
            body.push(data);
        }
    }

    pub(super) fn send_end(&mut self, trailers: Option<&Headers>) {
        if let Some(body) = &mut self.body {
            body.end(trailers.map(to_header_map));
        }
    }

    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Reset>> {
        let response = match &mut self.state {
            State::Sent(response) => response,
            State::Failed(reset) => return Poll::Ready(Err(reset.clone())),
            State::Unsent => return Poll::Pending,
        };
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
            if interim.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                return Poll::Ready(Err(Reset::ProtocolError));
            }
            let headers = from_header_map(interim.headers());
            return Poll::Ready(Ok(ResponseHead { status: interim.status().as_u16(), headers, end: false }));
        }
        let (parts, recv) =
            ready!(std::pin::Pin::new(response).poll(cx)).map_err(|error| reset_reason(&error))?.into_parts();
        self.guard.0.doubt.answered();
        let headers = from_header_map(&parts.headers);
        if headers.len() + 1 > MAX_RESPONSE_HEADERS {
            return Poll::Ready(Err(Reset::RemoteReset));
        }
        if headers.get("content-length").is_some_and(|length| content_length(length).is_none()) {
            return Poll::Ready(Err(Reset::ProtocolError));
        }
        let end = recv.is_end_stream();
        self.recv = Some(recv);
        let mut status = parts.status.as_u16();
        // The extended CONNECT form of an upgrade is accepted with 200 (RFC 8441 §5).
        if self.upgrade && status == 200 {
            status = 101;
        }
        Poll::Ready(Ok(ResponseHead { status, headers, end }))
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Reset>>> {
        let Some(recv) = &mut self.recv else { return Poll::Ready(None) };
        loop {
            match ready!(recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The caller takes data only when it has room; an error shows with the next read.
                    let _ = recv.flow_control().release_capacity(data.len());
                    if data.is_empty() {
                        continue;
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(reset_reason(&error)))),
                None => break,
            }
        }
        match ready!(recv.poll_trailers(cx)) {
            Ok(Some(trailers)) => {
                self.recv = None;
                Poll::Ready(Some(Ok(Frame::Trailers(from_header_map(&trailers)))))
            }
            Ok(None) => {
                self.recv = None;
                Poll::Ready(None)
            }
            Err(error) => Poll::Ready(Some(Err(reset_reason(&error)))),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(body) = &mut self.body {
            body.reset(Reason::CANCEL);
        }
    }
}

/// Bytes that clients send in paths and queries and that the codec refuses.
const REFUSED_IN_PATH: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'|')
    .add(b'^')
    .add(b'\\');

/// The request in HTTP/2 form; `None` if a part can't be said in it.
fn to_request(head: &RequestHead, upgrade: bool) -> Option<http::Request<()>> {
    let uri = |path: &str| {
        http::Uri::builder().scheme(head.scheme).authority(&head.authority[..]).path_and_query(path).build().ok()
    };
    let path = head.path.as_str();
    let uri = if path.contains('#') { None } else { uri(path) }.or_else(|| {
        // The codec takes fewer bytes in a path than HTTP/1.1 peers send.
        uri(&percent_encoding::utf8_percent_encode(path, REFUSED_IN_PATH).to_string())
    })?;
    let mut request = http::Request::new(());
    *request.method_mut() =
        if upgrade { http::Method::CONNECT } else { http::Method::from_bytes(&head.method).ok()? };
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    if upgrade {
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    }
    let headers = request.headers_mut();
    for line in head.headers.iter() {
        if upgrade && matches!(&line.name[..], b"connection" | b"upgrade") {
            continue;
        }
        headers.append(
            http::HeaderName::from_bytes(&line.name).ok()?,
            http::HeaderValue::from_maybe_shared(line.value.clone()).ok()?,
        );
    }
    Some(request)
}

/// A CONNECT request, which has neither scheme nor path (RFC 9113 §8.5).
fn to_connect(head: &RequestHead) -> Option<http::Request<()>> {
    let mut request = http::Request::new(());
    *request.method_mut() = http::Method::CONNECT;
    *request.uri_mut() = http::Uri::builder().authority(&head.authority[..]).build().ok()?;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = to_header_map(&head.headers);
    Some(request)
}

/// Header lines for the `h2` crate; lines that can't be said in HTTP/2 are left out.
pub(crate) fn to_header_map(headers: &Headers) -> http::HeaderMap {
    let mut map = http::HeaderMap::with_capacity(headers.len());
    for line in headers.iter() {
        if let (Ok(name), Ok(value)) =
            (http::HeaderName::from_bytes(&line.name), http::HeaderValue::from_maybe_shared(line.value.clone()))
        {
            map.append(name, value);
        }
    }
    map
}

/// Header lines from the `h2` crate.
pub(crate) fn from_header_map(map: &http::HeaderMap) -> Headers {
    let mut headers = Headers::with_capacity(map.len() + 8);
    for (name, value) in map {
        headers.receive(Bytes::copy_from_slice(name.as_str().as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    }
    headers
}

fn reset_reason(error: &h2::Error) -> Reset {
    if error.is_io() {
        return Reset::ConnectionTermination;
    }
    if error.is_library() && !error.is_remote() {
        return Reset::ProtocolError;
    }
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => Reset::RemoteRefused,
        _ if error.is_go_away() => Reset::RemoteRefused,
        Some(Reason::PROTOCOL_ERROR) => Reset::ProtocolError,
        _ if error.is_reset() => Reset::RemoteReset,
        _ => Reset::ConnectionTermination,
    }
}
