//! HTTP/1.1 with clients: the connection loop and one exchange's framing.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use config::snapshot::listener::HttpSettings;
use tokio::time::Sleep;

use super::buffered::Buffered;
use super::chunked::{Decoded, Decoder, write_chunk_size};
use super::exchange;
use super::head::{HeadScanner, InvalidHead, RequestHead, Version, reason};
use super::headers::Headers;
use super::timers::{Expired, Timers};
use super::{ClientStream, Frame, Gone, Serving};
use crate::request::{Begun, Protocol};
use crate::response::Failure;

/// How long a closed connection's peer may go on sending, as Envoy's delayed close.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes a peer may send after the close before it is cut.
const LINGER_BYTES: usize = 1 << 20;
/// Bytes of following requests that are read ahead while one is served.
const PIPELINE_LIMIT: usize = 64 * 1024;

/// Serves the requests of a connection, one after the other.
pub(super) async fn serve(context: &Rc<Serving>, mut connection: Buffered) {
    let mut idle = Idle::default();
    let mut served = 0_u64;
    let opened = Instant::now();
    loop {
        let (waiting, begun) = wait_for_head(context, &mut connection, &mut idle, served).await;
        let outcome = match waiting {
            Head::Request(head) => {
                served += 1;
                let settings = &context.pin().1.settings;
                let too_old = settings.max_connection_duration.is_some_and(|limit| opened.elapsed() >= limit);
                let close = idle.expired || too_old;
                request(context, &mut connection, *head, begun, close).await
            }
            Head::Refused(failure) => {
                let mut stream = Stream::new(&mut connection, Decoder::Done, Version::Http11, false);
                exchange::refuse(context, &mut stream, &failure, begun).await;
                stream.end()
            }
            Head::Aborted => {
                exchange::aborted(context, begun);
                return;
            }
            Head::Closed => return,
        };
        match outcome {
            After::Reuse => {}
            After::Close => return linger(connection).await,
            After::Cut => return,
        }
    }
}

/// What comes after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// The next request.
    Reuse,
    /// A close that lets the peer read the response.
    Close,
    /// A close at once.
    Cut,
}

/// What a wait for a request head came to.
enum Head {
    Request(Box<RequestHead>),
    Refused(Failure),
    /// The peer went away within a head.
    Aborted,
    /// Between two requests: closed by the peer, or idle for too long.
    Closed,
}

/// The timer of an idle connection. It is set once and looked at when it fires, so a request costs nothing.
#[derive(Default)]
struct Idle {
    timer: Option<Pin<Box<Sleep>>>,
    /// The idle time was over once; the next response closes the connection.
    expired: bool,
}

/// The next head, and when its first byte was there.
async fn wait_for_head(context: &Serving, connection: &mut Buffered, idle: &mut Idle, served: u64) -> (Head, Begun) {
    let chain = context.pin().1;
    let settings = &*chain.settings;
    let mut scanner = HeadScanner::keeping_case(settings.preserve_header_case);
    let mut incomplete = IncompleteHead::default();
    let mut begun = None;
    let since = Instant::now();
    let head = poll_fn(|cx| {
        loop {
            if !connection.read.is_empty() {
                begun.get_or_insert_with(Begun::now);
                match scanner.request(&mut connection.read) {
                    Ok(Some(head)) => return Poll::Ready(Head::Request(Box::new(head))),
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Head::Refused(refusal(error))),
                }
            }
            match connection.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => {
                    let within = !connection.read.is_empty();
                    return Poll::Ready(if within { Head::Aborted } else { Head::Closed });
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        if !connection.read.is_empty() {
            return incomplete.poll(cx, settings, connection.read.len()).map(Head::Refused);
        }
        let Some(limit) = settings.idle_timeout else { return Poll::Pending };
        // After the first idle time a connection that was used gets the drain time on top, as in Envoy.
        let allowed = if idle.expired { settings.drain_timeout } else { limit };
        let timer = idle.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(allowed)));
        while timer.as_mut().poll(cx).is_ready() {
            let left = allowed.saturating_sub(since.elapsed());
            if left.is_zero() {
                if served == 0 || idle.expired {
                    return Poll::Ready(Head::Closed);
                }
                idle.expired = true;
                timer.as_mut().reset(tokio::time::Instant::now() + settings.drain_timeout);
                continue;
            }
            timer.as_mut().reset(tokio::time::Instant::now() + left);
        }
        Poll::Pending
    })
    .await;
    (head, begun.unwrap_or_else(Begun::now))
}

/// The deadlines of a request whose head has begun to arrive.
#[derive(Default)]
struct IncompleteHead {
    timers: Timers,
    started: bool,
    seen: usize,
}

impl IncompleteHead {
    /// Ready with the reply to a head that took too long; `received` bytes of it are there.
    fn poll(&mut self, cx: &mut Context<'_>, settings: &HttpSettings, received: usize) -> Poll<Failure> {
        if !self.started {
            self.started = true;
            if let Some(limit) = settings.request_headers_timeout {
                self.timers.head.start(limit);
            }
            if let Some(limit) = settings.request_timeout {
                self.timers.request.start(limit);
            }
            if let Some(limit) = settings.max_stream_duration {
                self.timers.max_duration.start(limit);
            }
            if let Some(limit) = settings.stream_idle_timeout.or(settings.idle_timeout) {
                self.timers.watch_idle(limit);
            }
        }
        if received > self.seen {
            self.seen = received;
            self.timers.moved();
        }
        self.timers.poll(cx).map(|expired| match expired {
            Expired::Request => Failure::RequestTimeout,
            Expired::MaxDuration => Failure::MaxStreamDuration(false),
            Expired::Idle => Failure::StreamIdle(false),
            Expired::Head | Expired::Route | Expired::PerTry => Failure::RequestHeaderTimeout,
        })
    }
}

fn refusal(error: InvalidHead) -> Failure {
    match error {
        InvalidHead::Malformed => Failure::CodecError,
        InvalidHead::InvalidCharacters => Failure::InvalidCharacters,
        InvalidHead::TooLarge => Failure::HeadTooLarge,
        InvalidHead::TooManyLines => Failure::TooManyHeaders,
    }
}

/// Serves one request whose head has arrived.
async fn request(
    context: &Rc<Serving>,
    connection: &mut Buffered,
    mut head: RequestHead,
    begun: Begun,
    close: bool,
) -> After {
    let framing = check_version(&head, context.pin().1.settings.http10).and_then(|()| framing(&mut head.headers));
    let decoder = match framing {
        Ok(decoder) => decoder,
        Err(failure) => {
            let mut stream = Stream::new(connection, Decoder::Done, Version::Http11, false);
            exchange::refuse(context, &mut stream, &failure, begun).await;
            return stream.end();
        }
    };
    let keep_alive = persistent(&head);
    let mut stream = Stream::new(connection, decoder, head.version, head.method == "HEAD");
    stream.close = close || !keep_alive;
    stream.keep_alive_reply = head.version == Version::Http10 && keep_alive;
    exchange::run_h1(context, &mut stream, head, begun).await;
    stream.end()
}

fn check_version(head: &RequestHead, http10: bool) -> Result<(), Failure> {
    match head.version {
        Version::Http11 => Ok(()),
        // HTTP/1.0 has no chunks: a server on the way may read the body as the next request (RFC 9112 §6.1).
        Version::Http10 if http10 && head.headers.get("transfer-encoding").is_some() => Err(Failure::CodecError),
        Version::Http10 if http10 => Ok(()),
        Version::Http10 | Version::Other => Err(Failure::LowVersion),
    }
}

/// How the body of a request is framed, by the strict rules of `reference/networking.md` §4.7.
fn framing(headers: &mut Headers) -> Result<Decoder, Failure> {
    let length =
        headers.get("content-length").map(|value| content_length(value).ok_or(Failure::CodecError)).transpose()?;
    let Some(coding) = headers.get("transfer-encoding") else {
        return Ok(length.map_or(Decoder::Done, Decoder::length));
    };
    if !coding.eq_ignore_ascii_case(b"chunked") {
        return Err(Failure::InvalidTransferEncoding);
    }
    if length.is_some() {
        return Err(Failure::LengthAndChunked);
    }
    Ok(Decoder::chunked())
}

/// The value of `content-length`: digits only, and one of them.
pub(crate) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Whether the client wants to keep the connection (RFC 9112 §9.3).
fn persistent(head: &RequestHead) -> bool {
    let names = |token| head.headers.lists("connection", token) || head.headers.lists("proxy-connection", token);
    match head.version {
        Version::Http10 => names("keep-alive"),
        _ => !names("close"),
    }
}

/// Lets the peer read the last response: ends our side, then reads what still comes for a moment.
async fn linger(mut connection: Buffered) {
    let ended = async {
        poll_fn(|cx| {
            ready!(connection.poll_flush(cx))?;
            connection.poll_shutdown(cx)
        })
        .await?;
        let mut left = LINGER_BYTES;
        loop {
            connection.read.clear();
            let count = poll_fn(|cx| connection.poll_fill(cx)).await?;
            if count == 0 || count > left {
                return Ok::<(), std::io::Error>(());
            }
            left -= count;
        }
    };
    // Whatever comes of it, the connection ends here.
    let _ = tokio::time::timeout(LINGER, ended).await;
}

/// How the response body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// No head has been sent.
    Unsent,
    /// By `content-length`, or there is no body.
    Plain,
    Chunked,
    /// A body that must not be sent (HEAD).
    Suppressed,
}

/// The client's side of one HTTP/1 exchange.
pub(super) struct Stream<'c> {
    connection: &'c mut Buffered,
    request: Decoder,
    framing: Framing,
    version: Version,
    head_request: bool,
    /// The connection ends after this exchange.
    pub close: bool,
    /// An HTTP/1.0 client asked for `keep-alive` and wants to hear that it gets it.
    keep_alive_reply: bool,
    ended: bool,
    cut: bool,
    tunnel: bool,
    /// Waits for a reset by a client that has ended its side of a tunnel.
    loss: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl<'c> Stream<'c> {
    fn new(connection: &'c mut Buffered, request: Decoder, version: Version, head_request: bool) -> Self {
        Self {
            connection,
            request,
            framing: Framing::Unsent,
            version,
            head_request,
            close: false,
            keep_alive_reply: false,
            ended: false,
            cut: false,
            tunnel: false,
            loss: None,
        }
    }

    /// What is to become of the connection.
    fn end(self) -> After {
        if self.cut || !self.ended {
            After::Cut
        } else if self.close || !self.request.is_done() || self.tunnel {
            After::Close
        } else {
            After::Reuse
        }
    }

    fn write_head(&mut self, status: u16, headers: &Headers) {
        let version = self.version;
        self.connection.append(|out| {
            out.extend_from_slice(if version == Version::Http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
            write_decimal(u64::from(status), out);
            out.push(b' ');
            out.extend_from_slice(reason(status).as_bytes());
            out.extend_from_slice(b"\r\n");
            for line in headers.iter() {
                write_line(headers.spelling(&line.name), &line.value, out);
            }
        });
    }
}

/// Appends `name: value` with its line end.
pub(crate) fn write_line(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal.
pub(crate) fn write_decimal(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut rest = number;
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

impl ClientStream for Stream<'_> {
    fn protocol(&self) -> Protocol {
        if self.version == Version::Http10 { Protocol::Http10 } else { Protocol::Http11 }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Gone>>> {
        loop {
            match self.request.decode(&mut self.connection.read) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Err(_) => return Poll::Ready(Some(Err(Gone::BadBody))),
                Ok(Decoded::NeedMore) => {
                    let filled = self.connection.poll_fill(cx);
                    if self.tunnel && filled.is_pending() && self.connection.read.is_empty() {
                        // Tunnels live long, and most of them wait for most of the time.
                        self.connection.read = BytesMut::new();
                    }
                    match ready!(filled) {
                        Ok(0) if self.tunnel => {
                            self.request = Decoder::Done;
                            return Poll::Ready(None);
                        }
                        Ok(0) | Err(_) => return Poll::Ready(Some(Err(Gone::Disconnected))),
                        Ok(_) => {}
                    }
                }
            }
        }
    }

    fn is_request_complete(&self) -> bool {
        self.request.is_done()
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        if self.tunnel && self.connection.eof {
            let socket = self.connection.transport().socket();
            let loss = self.loss.get_or_insert_with(|| Box::pin(socket.loss()));
            return loss.as_mut().poll(cx).map(|()| Gone::Disconnected);
        }
        // A half-closed client aborts the request, as in Envoy. What it sends ahead is kept, within bounds.
        while self.connection.read.len() < PIPELINE_LIMIT {
            match ready!(self.connection.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Gone::Disconnected),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    fn send_informational(&mut self, status: u16, headers: &Headers) {
        // HTTP/1.0 knows no interim responses.
        if self.version != Version::Http10 {
            self.write_head(status, headers);
            self.connection.append(|out| out.extend_from_slice(b"\r\n"));
        }
    }

    fn send_head(&mut self, status: u16, headers: &Headers, end: bool) {
        let bodiless = matches!(status, 100..=199 | 204);
        let has_length = headers.contains("content-length");
        // In a tunnel, the body is what comes after the answer.
        self.close |= !self.request.is_done() && !self.tunnel;
        self.write_head(status, headers);
        let close = self.close && !self.tunnel;
        let chunked = !end && !has_length && !bodiless && !self.tunnel && self.version != Version::Http10;
        // Without a length, only the close tells an HTTP/1.0 client where the body ends.
        let until_close = !end && !has_length && !bodiless && self.version == Version::Http10;
        self.close |= until_close;
        let keep_alive = self.keep_alive_reply && !self.close;
        let head_request = self.head_request;
        self.connection.append(|out| {
            if close || until_close {
                out.extend_from_slice(b"connection: close\r\n");
            } else if keep_alive {
                out.extend_from_slice(b"connection: keep-alive\r\n");
            }
            if chunked {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            } else if end && !has_length && !head_request && !bodiless && status != 304 {
                out.extend_from_slice(b"content-length: 0\r\n");
            }
            out.extend_from_slice(b"\r\n");
        });
        self.framing = match (self.head_request || bodiless || status == 304, chunked) {
            (true, _) if !self.tunnel => Framing::Suppressed,
            (false, true) => Framing::Chunked,
            _ => Framing::Plain,
        };
        self.ended = end;
    }

    fn send_data(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        match self.framing {
            Framing::Chunked => {
                self.connection.append(|out| write_chunk_size(data.len(), out));
                self.connection.push(data);
                self.connection.append(|out| out.extend_from_slice(b"\r\n"));
            }
            Framing::Plain => self.connection.push(data),
            Framing::Suppressed | Framing::Unsent => {}
        }
    }

    fn send_end(&mut self, _trailers: Option<Headers>) {
        // Trailers are not passed to HTTP/1.1 clients, as Envoy's default has it.
        if self.framing == Framing::Chunked {
            self.connection.append(|out| out.extend_from_slice(b"0\r\n\r\n"));
        }
        self.ended = true;
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        self.connection.poll_ready(cx).map_err(|_| Gone::Disconnected)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        self.connection.poll_flush(cx).map_err(|_| Gone::Disconnected)
    }

    fn abort(&mut self) {
        self.cut = true;
    }

    fn close_after(&mut self) {
        self.close = true;
    }

    fn start_tunnel(&mut self) {
        self.tunnel = true;
        self.request = Decoder::UntilClose;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_digits_and_nothing_else() {
        assert_eq!(content_length(b"12"), Some(12));
        for value in ["", "-1", "+2", "0x2", "2, 2", "2,2", " 2", "99999999999999999999"] {
            assert_eq!(content_length(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn framing_is_strict() {
        let headers = |lines: &[(&'static str, &'static str)]| {
            let mut headers = Headers::default();
            for (name, value) in lines {
                headers.receive(Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes()));
            }
            headers
        };
        type Lines = [(&'static str, &'static str)];
        let cases: [(&Lines, Result<Decoder, Failure>); 8] = [
            (&[], Ok(Decoder::Done)),
            (&[("content-length", "2")], Ok(Decoder::Length(2))),
            (&[("transfer-encoding", "Chunked")], Ok(Decoder::chunked())),
            (&[("transfer-encoding", "identity")], Err(Failure::InvalidTransferEncoding)),
            (&[("transfer-encoding", "gzip, chunked")], Err(Failure::InvalidTransferEncoding)),
            (
                &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
                Err(Failure::InvalidTransferEncoding),
            ),
            (&[("content-length", "3"), ("transfer-encoding", "chunked")], Err(Failure::LengthAndChunked)),
            (&[("content-length", "2"), ("content-length", "2")], Err(Failure::CodecError)),
        ];
        for (lines, expected) in cases {
            assert_eq!(framing(&mut headers(lines)), expected, "{lines:?}");
        }
    }
}
