//! HTTP/2 with clients: the connection loop and one exchange's stream.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use pingora_core::protocols::http::v2::server::{H2Options, handshake};
use tokio::time::Sleep;

use super::exchange::{self, is_authority_byte};
use super::headers::Headers;
use super::send_queue::{SendQueue, Stopped};
use super::violations::{BodyWatch, FrameWatch, Violations};
use super::{ClientStream, Frame, Gone, PREFACE, Serving, content_length};
use crate::request::{Begun, PathAndQuery, Protocol, RequestHead};
use crate::response::Flag;
use crate::stream::Transport;
use crate::upstream::{from_header_map, to_header_map};
use config::snapshot::listener::{HttpSettings, Underscores};

/// Decoded header list that the codec accepts; smaller limits are checked here, to answer as Envoy does.
const MAX_HEADER_LIST: u32 = 256 * 1024;
/// Decoded header list that a request may have: 60 KiB as for HTTP/1.
const MAX_REQUEST_HEADERS: usize = 60 * 1024;
/// Header fields, pseudo headers included.
const MAX_FIELDS: usize = 100;
/// Bytes of one stream that wait to be written.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that a client may reset right after opening them before the connection is cut (Envoy: 251).
const MAX_PENDING_RESETS: usize = 250;
/// Malformed or oversized requests on one connection before it is cut.
const MAX_REFUSED: u32 = 100;
/// Time between the end of a drain and the close, as Envoy's delayed close.
const CLOSE_DELAY: Duration = Duration::from_secs(1);
/// How long the handshake may take: Envoy's listener filter timeout.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// After a response that came before the request's end: how much of the request is still read, and for how long. Some
/// clients lose a response whose stream is reset under their hands.
const DRAIN_BYTES: usize = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Serves the requests of a connection, all at once.
pub(super) async fn serve(context: Rc<Serving>, mut transport: Transport) {
    let violations = Arc::new(Violations::default());
    transport.watch(FrameWatch::new(Arc::clone(&violations)), BodyWatch::new(Arc::clone(&violations), PREFACE.len()));
    let (_, chain) = context.pin();
    let settings = &*chain.settings;
    let mut options = H2Options::new();
    options
        .initial_window_size(settings.initial_stream_window)
        .initial_connection_window_size(settings.initial_connection_window)
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS);
    if context.worker.gateway.http2_websocket {
        options.enable_connect_protocol();
    }
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(Box::new(transport), Some(options)));
    let Ok(Ok(mut connection)) = handshake.await else { return };
    let active = Rc::new(Cell::new(0_u32));
    let mut lifetime = Lifetime::new(settings, &active);
    let mut draining = pin!(context.drain.draining());
    let mut watched = false;
    let mut refused = 0;
    let resets = Rc::new(EarlyResets::default());
    loop {
        let next = poll_fn(|cx| {
            if resets.are_too_many() {
                return Poll::Ready(Next::Accepted(None));
            }
            if let Poll::Ready(accepted) = connection.poll_accept(cx) {
                return Poll::Ready(Next::Accepted(accepted.map(|accepted| accepted.map(Box::new))));
            }
            // Registers with the drain signal once; whatever happens on the connection takes no lock.
            if lifetime.ending.is_none() && (!watched || context.drain.is_draining()) {
                watched = true;
                if draining.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Next::Drain);
                }
            }
            lifetime.poll(cx)
        })
        .await;
        match next {
            Next::Accepted(Some(Ok(accepted))) => {
                let (request, respond) = *accepted;
                violations.accept(respond.stream_id().as_u32());
                lifetime.moved();
                let (parts, recv) = request.into_parts();
                let stream = Stream::new(respond, recv);
                match request_head(parts, &context) {
                    Ok(head) => {
                        let context = Rc::clone(&context);
                        let guard = Active::new(&active);
                        let resets = Rc::clone(&resets);
                        tokio::task::spawn_local(async move {
                            let _guard = guard;
                            run(&context, stream, head, &resets).await;
                        });
                    }
                    Err(refusal) => {
                        refused += 1;
                        exchange::reset(&context, Begun::now(), refusal.flag(), refusal.details());
                        // Envoy closes the whole connection on a malformed request, without GOAWAY.
                        if matches!(refusal, Refusal::Malformed) {
                            return;
                        }
                        stream.refuse();
                        if refused > MAX_REFUSED {
                            return;
                        }
                    }
                }
            }
            // A broken connection, or its end.
            Next::Accepted(Some(Err(_)) | None) => {
                if violations.found() {
                    let refusal = Refusal::Malformed;
                    exchange::reset(&context, Begun::now(), refusal.flag(), refusal.details());
                }
                return;
            }
            Next::Drain => {
                lifetime.end();
                connection.graceful_shutdown();
            }
            // The client had its time to take the second GOAWAY.
            Next::Close => return,
        }
    }
}

type Accepted = (http::Request<RecvStream>, SendResponse<Bytes>);

enum Next {
    Accepted(Option<Result<Box<Accepted>, h2::Error>>),
    Drain,
    Close,
}

/// Idle time and age of a connection.
struct Lifetime {
    active: Rc<Cell<u32>>,
    /// GOAWAY has been sent; when this fires without a request under way, the connection closes.
    ending: Option<Pin<Box<Sleep>>>,
    /// Time from GOAWAY to the close.
    drain_timeout: Duration,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
    age: Option<Pin<Box<Sleep>>>,
    last: Instant,
}

impl Lifetime {
    fn new(settings: &HttpSettings, active: &Rc<Cell<u32>>) -> Self {
        Self {
            active: Rc::clone(active),
            ending: None,
            drain_timeout: settings.drain_timeout + CLOSE_DELAY,
            idle: settings.idle_timeout.map(|limit| (limit, Box::pin(tokio::time::sleep(limit)))),
            age: settings.max_connection_duration.map(|limit| Box::pin(tokio::time::sleep(limit))),
            last: Instant::now(),
        }
    }

    fn moved(&mut self) {
        self.last = Instant::now();
    }

    fn end(&mut self) {
        self.ending = Some(Box::pin(tokio::time::sleep(self.drain_timeout)));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Some(timer) = &mut self.ending {
            while timer.as_mut().poll(cx).is_ready() {
                if self.active.get() == 0 {
                    return Poll::Ready(Next::Close);
                }
                timer.as_mut().reset(tokio::time::Instant::now() + self.drain_timeout);
            }
            return Poll::Pending;
        }
        if let Some(age) = &mut self.age
            && age.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Next::Drain);
        }
        let Some((limit, timer)) = &mut self.idle else { return Poll::Pending };
        while timer.as_mut().poll(cx).is_ready() {
            if self.active.get() > 0 {
                self.last = Instant::now();
            }
            let left = limit.saturating_sub(self.last.elapsed());
            if left.is_zero() {
                return Poll::Ready(Next::Drain);
            }
            timer.as_mut().reset(tokio::time::Instant::now() + left);
        }
        Poll::Pending
    }
}

/// Counts a request as under way while it lives.
struct Active(Rc<Cell<u32>>);

impl Active {
    fn new(count: &Rc<Cell<u32>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Requests that the client reset soon after it had opened them: they cost it nothing, and us a try each (CVE-2023-44487).
/// The codec's own limit only knows those that were reset before we saw them.
#[derive(Default)]
struct EarlyResets {
    requests: Cell<u32>,
    early: Cell<u32>,
}

impl EarlyResets {
    /// Envoy's `premature_reset_min_stream_lifetime_seconds`.
    const EARLY: Duration = Duration::from_secs(1);
    /// Envoy's `premature_reset_total_stream_count`.
    const LEAST_REQUESTS: u32 = 500;

    fn note(&self, lifetime: Duration, reset: bool) {
        self.requests.set(self.requests.get().saturating_add(1));
        if reset && lifetime < Self::EARLY {
            self.early.set(self.early.get().saturating_add(1));
        }
    }

    /// More than half, where a connection counts as if it had had some requests already.
    fn are_too_many(&self) -> bool {
        self.early.get() > self.requests.get().max(Self::LEAST_REQUESTS) / 2
    }
}

async fn run(context: &Rc<Serving>, mut stream: Stream, head: RequestHead, resets: &EarlyResets) {
    let opened = Instant::now();
    exchange::run_h2(context, &mut stream, head, Begun::now()).await;
    resets.note(opened.elapsed(), stream.reset);
    stream.drain().await;
}

/// Why a request is reset without an answer.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    TooLarge,
    TooMany,
    Underscore,
    Malformed,
}

impl Refusal {
    fn flag(self) -> Flag {
        match self {
            Self::Malformed => Flag::DPE,
            Self::TooLarge | Self::TooMany | Self::Underscore => Flag::DR,
        }
    }

    fn details(self) -> &'static str {
        match self {
            Self::TooLarge => "http2.header_list_size_too_large",
            Self::TooMany => "http2.too_many_headers",
            Self::Underscore => "http2.unexpected_underscore",
            Self::Malformed => "http2.violation.of.messaging.rule",
        }
    }
}

/// The request of an HTTP/2 head.
fn request_head(parts: http::request::Parts, context: &Serving) -> Result<RequestHead, Refusal> {
    let size: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if size + parts.uri.path_and_query().map_or(0, |path| path.as_str().len()) > MAX_REQUEST_HEADERS {
        return Err(Refusal::TooLarge);
    }
    let pseudo = 4;
    if parts.headers.len() + pseudo > MAX_FIELDS {
        return Err(Refusal::TooMany);
    }
    let mut headers = from_header_map(&parts.headers);
    if context.pin().1.settings.underscores == Underscores::Reject
        && headers.iter().any(|line| line.name.contains(&b'_'))
    {
        return Err(Refusal::Underscore);
    }
    if headers.get("content-length").is_some_and(|length| content_length(length).is_none()) {
        return Err(Refusal::Malformed);
    }
    let host = headers.get("host").cloned();
    headers.remove("host");
    join_cookies(&mut headers);
    let authority = match parts.uri.authority() {
        Some(authority) => Bytes::copy_from_slice(authority.as_str().as_bytes()),
        None => host.ok_or(Refusal::Malformed)?,
    };
    if authority.is_empty() || !authority.iter().all(|&byte| is_authority_byte(byte)) {
        return Err(Refusal::Malformed);
    }
    let mut method = Bytes::copy_from_slice(parts.method.as_str().as_bytes());
    // WebSocket over HTTP/2 goes on as the upgrade that it stands for (RFC 8441 §5).
    if let Some(protocol) = parts.extensions.get::<h2::ext::Protocol>() {
        method = Bytes::from_static(b"GET");
        headers.push("connection", Bytes::from_static(b"upgrade"));
        // Written out, not copied: the codec doesn't check what a client sends here.
        let name = if protocol.as_str().eq_ignore_ascii_case("websocket") { "websocket" } else { "unknown" };
        headers.push("upgrade", name);
        if !headers.contains("sec-websocket-key") {
            headers.push("sec-websocket-key", websocket_key(context));
        }
    }
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    if method != "CONNECT" && !path.starts_with('/') {
        return Err(Refusal::Malformed);
    }
    Ok(RequestHead {
        method,
        path: PathAndQuery::new(escape_high_bytes(path)),
        authority,
        scheme: context.facts.scheme(),
        headers,
    })
}

/// Bytes from 0x80 on are percent-encoded, as Envoy does for HTTP/2 paths.
fn escape_high_bytes(path: &str) -> Bytes {
    if path.is_ascii() {
        return Bytes::copy_from_slice(path.as_bytes());
    }
    percent_encoding::percent_encode(path.as_bytes(), &percent_encoding::AsciiSet::EMPTY).to_string().into()
}

/// HTTP/2 may split cookies over lines; HTTP/1.1 knows one (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut Headers) {
    if headers.get_all("cookie").nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all("cookie").map(|cookie| &cookie[..]).collect();
    let joined = all.join(&b"; "[..]);
    headers.set("cookie", joined);
}

fn websocket_key(context: &Serving) -> String {
    use base64::Engine;
    let random = context.worker.random_below(u64::MAX).to_be_bytes();
    base64::engine::general_purpose::STANDARD.encode([random, random].concat())
}

/// The client's side of one HTTP/2 exchange.
struct Stream {
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    received: bool,
    send: Option<SendQueue>,
    /// The response ended with its head.
    bodiless: bool,
    /// The client has reset it.
    reset: bool,
    tunnel: bool,
}

impl Stream {
    fn new(respond: SendResponse<Bytes>, recv: RecvStream) -> Self {
        let received = recv.is_end_stream();
        Self { respond, recv, received, send: None, bodiless: false, reset: false, tunnel: false }
    }

    fn refuse(mut self) {
        self.respond.send_reset(Reason::INTERNAL_ERROR);
    }

    /// After a complete response: reads what the client still sends, within bounds.
    async fn drain(mut self) {
        let ended = self.bodiless || self.send.as_ref().is_some_and(SendQueue::is_ended);
        if self.received || !ended {
            return;
        }
        let mut left = DRAIN_BYTES;
        let rest = poll_fn(|cx| {
            while let Some(Ok(Frame::Data(data))) = ready!(self.poll_body(cx)) {
                left = left.saturating_sub(data.len());
                if left == 0 {
                    break;
                }
            }
            Poll::Ready(())
        });
        // A client that goes on is reset when the stream drops.
        let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
    }

    fn gone(&mut self, error: &h2::Error) -> Gone {
        let gone = match error.reason() {
            // Data that belies its content-length is the codec's own finding.
            Some(Reason::PROTOCOL_ERROR) if !error.is_remote() => Gone::BadBody,
            _ if error.is_reset() => Gone::Reset,
            _ => Gone::Disconnected,
        };
        self.reset |= gone == Gone::Reset;
        gone
    }
}

impl ClientStream for Stream {
    fn protocol(&self) -> Protocol {
        Protocol::Http2
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Gone>>> {
        loop {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The caller takes data only when it has room; an error shows with the next read.
                    let _ = self.recv.flow_control().release_capacity(data.len());
                    if data.is_empty() {
                        continue;
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.gone(&error)))),
                None => break,
            }
        }
        let trailers = ready!(self.recv.poll_trailers(cx));
        self.received = true;
        Poll::Ready(match trailers {
            Ok(Some(trailers)) => Some(Ok(Frame::Trailers(from_header_map(&trailers)))),
            Ok(None) => None,
            Err(error) => Some(Err(self.gone(&error))),
        })
    }

    fn is_request_complete(&self) -> bool {
        self.received
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        let reset = match &mut self.send {
            Some(send) => ready!(send.poll_reset(cx)),
            None => ready!(self.respond.poll_reset(cx)),
        };
        Poll::Ready(match reset {
            Ok(_) => {
                self.reset = true;
                Gone::Reset
            }
            Err(error) => self.gone(&error),
        })
    }

    fn send_informational(&mut self, status: u16, headers: &Headers) {
        let Ok(status) = http::StatusCode::from_u16(status) else { return };
        let mut response = http::Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = to_header_map(headers);
        // A client that has gone is noticed elsewhere.
        let _ = self.respond.send_informational(response);
    }

    fn send_head(&mut self, status: u16, headers: &Headers, end: bool) {
        let mut response = http::Response::new(());
        *response.headers_mut() = to_header_map(headers);
        let mut status = status;
        if self.tunnel {
            status = 200;
            for name in ["connection", "upgrade", "sec-websocket-accept"] {
                response.headers_mut().remove(name);
            }
        }
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_GATEWAY);
        if let Ok(send) = self.respond.send_response(response, end) {
            self.send = (!end).then(|| SendQueue::new(send));
        }
        self.bodiless = end;
    }

    fn send_data(&mut self, data: Bytes) {
        if let Some(send) = &mut self.send {
            send.push(data);
        }
    }

    fn send_end(&mut self, trailers: Option<Headers>) {
        if let Some(send) = &mut self.send {
            send.end(trailers.as_ref().map(to_header_map));
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let Some(send) = &mut self.send else { return Poll::Ready(Ok(())) };
        Poll::Ready(ready!(send.poll_flush(cx)).map_err(|stopped| match stopped {
            Stopped::Closed => Gone::Reset,
            Stopped::Broken(error) => self.gone(&error),
        }))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        self.poll_ready(cx)
    }

    fn abort(&mut self) {
        match &mut self.send {
            Some(send) => send.reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn close_after(&mut self) {}

    fn start_tunnel(&mut self) {
        self.tunnel = true;
    }
}
