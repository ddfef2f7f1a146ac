//! HTTP/1.1 with upstreams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::cluster::Permit;
use super::{Frame, RequestBody, ResponseHead};
use crate::http::buffered::Buffered;
use crate::http::chunked::{Decoded, Decoder, write_chunk_size};
use crate::http::head::{HeadScanner, Version};
use crate::http::headers::Headers;
use crate::http::{content_length, write_line};
use crate::request::{RequestHead, TlsFacts};
use crate::response::Reset;
use crate::stream::Transport;

/// An open connection between requests.
#[derive(Debug)]
pub(super) struct Connection {
    buffered: Buffered,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    tls: Option<Arc<TlsFacts>>,
    /// When it was opened.
    pub opened: Instant,
    /// When its last request ended.
    pub idle_since: Instant,
    /// Requests it has carried.
    pub requests: u32,
    /// Its place among the cluster's connections; given back when it closes.
    _permit: Permit,
}

impl Connection {
    pub fn new(transport: Transport, tls: Option<Arc<TlsFacts>>, permit: Permit) -> Self {
        let now = Instant::now();
        Self {
            local: transport.local_addr(),
            remote: transport.socket().peer_addr(),
            tls,
            buffered: Buffered::new(transport, BytesMut::new()),
            opened: now,
            idle_since: now,
            requests: 0,
            _permit: permit,
        }
    }

    /// Whether the upstream has neither closed the idle connection nor sent something unasked.
    pub fn is_usable(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.buffered.read.is_empty() && self.buffered.poll_fill(&mut cx).is_pending()
    }

    /// Begins a request.
    pub fn begin(self) -> Stream {
        Stream {
            connection: self,
            scanner: HeadScanner::default(),
            request: Sending::Open,
            chunked: false,
            response: None,
            head_request: false,
            upgrade: false,
            connect: false,
            reusable: true,
        }
    }
}

/// State of the request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Open,
    Done,
    /// Writing failed; reading tells what comes of it.
    Broken,
}

/// One request on a connection.
#[derive(Debug)]
pub struct Stream {
    connection: Connection,
    scanner: HeadScanner,
    request: Sending,
    chunked: bool,
    response: Option<Decoder>,
    head_request: bool,
    upgrade: bool,
    /// CONNECT: after 2xx there are only bytes, and their end is that of the connection.
    connect: bool,
    reusable: bool,
}

impl Stream {
    pub(super) fn tls(&self) -> Option<&Arc<TlsFacts>> {
        self.connection.tls.as_ref()
    }

    pub(super) fn remote(&self) -> Option<SocketAddr> {
        self.connection.remote
    }

    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.connection.local
    }

    pub(super) fn send_head(&mut self, head: &RequestHead, body: RequestBody) {
        self.connection.requests += 1;
        self.scanner = HeadScanner::keeping_case(head.headers.keeps_names());
        self.head_request = head.method == "HEAD";
        self.connect = body == RequestBody::Connect;
        self.upgrade = self.connect || body == RequestBody::Upgrade;
        let has_length = head.headers.contains("content-length");
        self.chunked = body == RequestBody::Streamed && !has_length;
        let chunked = self.chunked;
        let empty = body == RequestBody::Empty && !has_length && announces_empty_body(&head.method);
        self.connection.buffered.append(|out| {
            out.extend_from_slice(&head.method);
            out.push(b' ');
            out.extend_from_slice(head.path.as_bytes());
            out.extend_from_slice(b" HTTP/1.1\r\n");
            write_line(head.headers.spelling(b"host"), &head.authority, out);
            for line in head.headers.iter() {
                write_line(head.headers.spelling(&line.name), &line.value, out);
            }
            if chunked {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            } else if empty {
                out.extend_from_slice(b"content-length: 0\r\n");
            }
            out.extend_from_slice(b"\r\n");
        });
        if body == RequestBody::Empty {
            self.request = Sending::Done;
        }
    }

    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.request == Sending::Broken {
            return Poll::Ready(());
        }
        if ready!(self.connection.buffered.poll_ready(cx)).is_err() {
            self.request = Sending::Broken;
        }
        Poll::Ready(())
    }

    pub(super) fn send_data(&mut self, data: Bytes) {
        if self.request != Sending::Open || data.is_empty() {
            return;
        }
        if self.chunked {
            self.connection.buffered.append(|out| write_chunk_size(data.len(), out));
            self.connection.buffered.push(data);
            self.connection.buffered.append(|out| out.extend_from_slice(b"\r\n"));
        } else {
            self.connection.buffered.push(data);
        }
    }

    pub(super) fn send_end(&mut self) {
        if self.request != Sending::Open {
            return;
        }
        if self.chunked {
            self.connection.buffered.append(|out| out.extend_from_slice(b"0\r\n\r\n"));
        }
        self.request = Sending::Done;
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.request == Sending::Broken {
            return Poll::Ready(());
        }
        let mut flushed = ready!(self.connection.buffered.poll_flush(cx));
        if flushed.is_ok() && self.connect && self.request == Sending::Done {
            flushed = ready!(self.connection.buffered.poll_shutdown(cx));
        }
        if flushed.is_err() {
            self.request = Sending::Broken;
        }
        Poll::Ready(())
    }

    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Reset>> {
        loop {
            if !self.connection.buffered.read.is_empty() {
                match self.scanner.response(&mut self.connection.buffered.read) {
                    Ok(Some(head)) => return Poll::Ready(self.accept(head)),
                    Ok(None) => {}
                    Err(_) => return Poll::Ready(Err(Reset::ProtocolError)),
                }
            }
            match ready!(self.connection.buffered.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(Reset::ConnectionTermination)),
                Ok(_) => {}
            }
        }
    }

    /// Takes note of how the body that follows `head` is framed (RFC 9112 §6.3).
    fn accept(&mut self, head: crate::http::head::ResponseHead) -> Result<ResponseHead, Reset> {
        let crate::http::head::ResponseHead { status, version, headers } = head;
        if status == 101 && (!self.upgrade || self.connect) {
            return Err(Reset::ProtocolError);
        }
        if self.connect && (200..300).contains(&status) {
            // Whatever its headers say of a body (RFC 9110 §9.3.6).
            self.reusable = false;
            self.response = Some(Decoder::UntilClose);
            return Ok(ResponseHead { status, headers, end: false });
        }
        if (100..200).contains(&status) && status != 101 {
            return Ok(ResponseHead { status, headers, end: false });
        }
        let length =
            headers.get("content-length").map(|value| content_length(value).ok_or(Reset::ProtocolError)).transpose()?;
        let coding = headers.get("transfer-encoding");
        if coding.is_some() && length.is_some() {
            return Err(Reset::ProtocolError);
        }
        let decoder = match (coding, length) {
            _ if status == 101 => Decoder::UntilClose,
            _ if self.head_request || status == 204 || status == 304 => Decoder::Done,
            (Some(coding), _) if coding.eq_ignore_ascii_case(b"chunked") => Decoder::chunked(),
            (Some(_), _) => return Err(Reset::ProtocolError),
            (None, Some(length)) => Decoder::length(length),
            (None, None) => Decoder::UntilClose,
        };
        self.reusable &= status != 101 && decoder != Decoder::UntilClose && persistent(version, &headers);
        let end = decoder.is_done();
        self.response = Some(decoder);
        Ok(ResponseHead { status, headers, end })
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Reset>>> {
        let Some(decoder) = &mut self.response else { return Poll::Ready(None) };
        loop {
            match decoder.decode(&mut self.connection.buffered.read) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Err(_) => return Poll::Ready(Some(Err(Reset::ProtocolError))),
                Ok(Decoded::NeedMore) => match ready!(self.connection.buffered.poll_fill(cx)) {
                    Ok(0) if *decoder == Decoder::UntilClose => {
                        *decoder = Decoder::Done;
                        return Poll::Ready(None);
                    }
                    // Envoy's HTTP/1 codec calls any end within a body a protocol error. A tunnel has no such rule.
                    Err(_) if self.upgrade => return Poll::Ready(Some(Err(Reset::ConnectionTermination))),
                    Ok(0) | Err(_) => return Poll::Ready(Some(Err(Reset::ProtocolError))),
                    Ok(_) => {}
                },
            }
        }
    }

    /// Whether the response has been read to its end.
    pub(super) fn is_complete(&self) -> bool {
        self.response.as_ref().is_some_and(Decoder::is_done)
    }

    /// The connection, if another request may use it.
    pub(super) fn into_reusable(mut self) -> Option<Connection> {
        let clean = self.reusable
            && self.is_complete()
            && self.request == Sending::Done
            && self.connection.buffered.is_flushed()
            && self.connection.buffered.read.is_empty();
        self.connection.idle_since = Instant::now();
        clean.then_some(self.connection)
    }
}

/// The methods for which Envoy writes `content-length: 0` when there is no body.
fn announces_empty_body(method: &[u8]) -> bool {
    !matches!(method, b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT")
}

fn persistent(version: Version, headers: &Headers) -> bool {
    match version {
        Version::Http11 => !headers.lists("connection", "close"),
        _ => headers.lists("connection", "keep-alive"),
    }
}
