//! Clusters at run time: endpoints, limits, connection pools.

pub mod balancer;
pub mod cluster;
pub mod connection;
pub mod dns;
pub mod endpoint;
mod h1;
mod h2;
pub mod on_demand;
pub mod outlier;
mod pings;
pub mod pool;
pub mod proxy_header;

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

pub(crate) use h2::{from_header_map, to_header_map};

use crate::http::headers::Headers;
use crate::request::{RequestHead, TlsFacts};
use crate::response::Reset;

/// How a request body is framed towards the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestBody {
    /// There is none.
    Empty,
    /// There is one; its length, if known, stands in `content-length`.
    Streamed,
    /// The connection becomes a tunnel if the upstream agrees (WebSocket).
    Upgrade,
    /// The connection becomes a tunnel if the upstream answers with 2xx (CONNECT).
    Connect,
}

/// Status and header lines of an upstream's response.
#[derive(Debug)]
pub struct ResponseHead {
    /// 1xx for interim responses, after which another head follows; 101 is final.
    pub status: u16,
    /// Lines as received.
    pub headers: Headers,
    /// The message ends with its head.
    pub end: bool,
}

/// A piece of a response body.
#[derive(Debug)]
pub enum Frame {
    /// Bytes.
    Data(Bytes),
    /// The end, with trailers (HTTP/2).
    Trailers(Headers),
}

/// One request on an upstream connection. Sending queues; [`Stream::poll_flush`] writes. A failure to send is not
/// reported: the upstream may have answered before it stopped reading, and reading tells.
#[derive(Debug)]
pub enum Stream {
    /// HTTP/1.1.
    H1(Box<h1::Stream>),
    /// HTTP/2.
    H2(Box<h2::Stream>),
}

impl Stream {
    /// Sends the request head.
    pub fn send_head(&mut self, head: &RequestHead, body: RequestBody) {
        match self {
            Self::H1(stream) => stream.send_head(head, body),
            Self::H2(stream) => stream.send_head(head, body),
        }
    }

    /// Ready when there is room for more data.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(stream) => stream.poll_ready(cx),
            Self::H2(stream) => stream.poll_ready(cx),
        }
    }

    /// Queues a piece of the body.
    pub fn send_data(&mut self, data: Bytes) {
        match self {
            Self::H1(stream) => stream.send_data(data),
            Self::H2(stream) => stream.send_data(data),
        }
    }

    /// Ends the body.
    pub fn send_end(&mut self, trailers: Option<&Headers>) {
        match self {
            Self::H1(stream) => stream.send_end(),
            Self::H2(stream) => stream.send_end(trailers),
        }
    }

    /// Writes what is queued.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(stream) => stream.poll_flush(cx),
            Self::H2(stream) => stream.poll_ready(cx),
        }
    }

    /// The next response head, interim ones included.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Reset>> {
        match self {
            Self::H1(stream) => stream.poll_head(cx),
            Self::H2(stream) => stream.poll_head(cx),
        }
    }

    /// The next piece of the response body; `None` at its end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Reset>>> {
        match self {
            Self::H1(stream) => stream.poll_frame(cx),
            Self::H2(stream) => stream.poll_frame(cx),
        }
    }

    /// Says that the upstream has let a request wait in vain: its connection is asked for a sign of life.
    pub fn doubt(&self) {
        match self {
            // Nobody else uses the connection, and it closes.
            Self::H1(_) => {}
            Self::H2(stream) => stream.doubt(),
        }
    }

    /// TLS of the connection.
    pub fn tls(&self) -> Option<&Arc<TlsFacts>> {
        match self {
            Self::H1(stream) => stream.tls(),
            Self::H2(stream) => stream.tls(),
        }
    }

    /// The upstream's address.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self {
            Self::H1(stream) => stream.remote(),
            Self::H2(stream) => stream.remote(),
        }
    }

    /// Our address on the connection.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::H1(stream) => stream.local(),
            Self::H2(stream) => stream.local(),
        }
    }
}
