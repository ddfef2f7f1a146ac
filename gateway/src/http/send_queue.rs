//! The sending side of one HTTP/2 stream, with clients and upstreams alike.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderMap;

/// A body on its way out: what flow control does not admit yet waits here.
#[derive(Debug)]
pub(crate) struct SendQueue {
    stream: SendStream<Bytes>,
    pending: Bytes,
    /// The end waits behind `pending`, with its trailers.
    end: Option<Option<HeaderMap>>,
    ended: bool,
}

/// The rest of a body can't be sent any more.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The stream has been closed or reset; reading tells why.
    Closed,
    /// The stream or its connection broke.
    Broken(h2::Error),
}

impl From<h2::Error> for Stopped {
    fn from(error: h2::Error) -> Self {
        Self::Broken(error)
    }
}

impl SendQueue {
    /// A stream whose head has been sent.
    pub fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, pending: Bytes::new(), end: None, ended: false }
    }

    /// Queues data.
    pub fn push(&mut self, data: Bytes) {
        self.pending = if self.pending.is_empty() { data } else { [&self.pending[..], &data[..]].concat().into() };
    }

    /// Queues the end.
    pub fn end(&mut self, trailers: Option<HeaderMap>) {
        self.end = Some(trailers);
    }

    /// Whether the end has been handed to the connection.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Hands what is queued to the connection as flow control allows; ready when nothing is left. After an error nothing
    /// is.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        let flushed = ready!(self.poll_send(cx));
        if flushed.is_err() {
            self.pending = Bytes::new();
            self.end = None;
        }
        Poll::Ready(flushed)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        while !self.pending.is_empty() {
            self.stream.reserve_capacity(self.pending.len());
            let Some(capacity) = ready!(self.stream.poll_capacity(cx)) else {
                return Poll::Ready(Err(Stopped::Closed));
            };
            let piece = self.pending.split_to(capacity?.min(self.pending.len()));
            let last = self.pending.is_empty() && matches!(self.end, Some(None));
            self.stream.send_data(piece, last)?;
            if last {
                self.end = None;
                self.ended = true;
            }
        }
        if let Some(trailers) = self.end.take() {
            match trailers {
                Some(trailers) => self.stream.send_trailers(trailers)?,
                None => self.stream.send_data(Bytes::new(), true)?,
            }
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the peer has reset the stream.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reason, h2::Error>> {
        self.stream.poll_reset(cx)
    }

    /// Resets the stream.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }
}
