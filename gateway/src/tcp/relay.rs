//! The two directions of a raw connection, which move independently of each other.
//!
//! Bytes pass through one buffer of the thread. Only what the other side doesn't take at once is kept, and while there
//! is such a rest, nothing more is read: a connection without traffic holds no buffer, one with traffic a bounded one.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read at once, and so the most that may be left over.
const BUFFER_SIZE: usize = 64 * 1024;
/// Reads of one direction before other connections of the thread get their turn.
const MAX_ROUNDS: usize = 8;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_SIZE].into());
}

/// Which of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Downstream,
    Upstream,
}

/// How it came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides have said that they end, and both were told so.
    Both,
    /// One side can't be read or written any more; with `reset` because its peer said so.
    Gone { side: Side, reset: bool },
}

/// A connection in both directions.
#[derive(Debug, Default)]
pub(super) struct Relay {
    /// From the client to the upstream.
    up: Way,
    /// From the upstream to the client.
    down: Way,
    /// A side that takes no more bytes. What it sent before is still delivered.
    gone: Option<End>,
}

impl Relay {
    /// Bytes read from the client.
    pub fn received(&self) -> u64 {
        self.up.read
    }

    /// Bytes written to the client.
    pub fn sent(&self) -> u64 {
        self.down.written
    }

    /// Moves whatever can be moved.
    pub fn poll<D, U>(&mut self, cx: &mut Context<'_>, downstream: &mut D, upstream: &mut U) -> Poll<End>
    where
        D: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        if let Poll::Ready(Err(broken)) = self.up.poll(cx, downstream, upstream) {
            match broken {
                Broken::Reader(error) => return Poll::Ready(End::gone(Side::Downstream, &error)),
                Broken::Writer(error) => self.gone = Some(End::gone(Side::Upstream, &error)),
            }
        }
        if let Poll::Ready(Err(broken)) = self.down.poll(cx, upstream, downstream) {
            match broken {
                Broken::Reader(error) => return Poll::Ready(End::gone(Side::Upstream, &error)),
                Broken::Writer(error) => self.gone = Some(End::gone(Side::Downstream, &error)),
            }
        }
        if self.up.done && self.down.done { Poll::Ready(self.gone.unwrap_or(End::Both)) } else { Poll::Pending }
    }
}

impl End {
    fn gone(side: Side, error: &io::Error) -> Self {
        Self::Gone { side, reset: error.kind() == io::ErrorKind::ConnectionReset }
    }
}

/// Which end of a direction failed.
enum Broken {
    Reader(io::Error),
    Writer(io::Error),
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Read and not written yet.
    rest: BytesMut,
    /// Written to something that may not have given it to the kernel.
    unflushed: bool,
    /// There is nothing more to read.
    ended: bool,
    /// Nothing more happens in this direction.
    done: bool,
    read: u64,
    written: u64,
}

impl Way {
    /// Ready when the direction has ended and the writer was told, or when one of the two failed.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..MAX_ROUNDS {
            if let Err(error) = ready!(self.poll_write_rest(cx, writer)) {
                self.done = true;
                return Poll::Ready(Err(Broken::Writer(error)));
            }
            if self.ended {
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if let Err(broken) = ready!(self.poll_move(cx, reader, writer)) {
                self.done = true;
                return Poll::Ready(Err(broken));
            }
        }
        // There is more, but others wait.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and writes what the writer takes at once.
    fn poll_move<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            match ready!(Pin::new(reader).poll_read(cx, &mut buffer)) {
                Ok(()) => {}
                // TLS that was cut off without a word: to Envoy an end like any other.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Poll::Ready(Err(Broken::Reader(error))),
            }
            let bytes = buffer.filled();
            if bytes.is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            self.read += bytes.len() as u64;
            let written = match Pin::new(writer).poll_write(cx, bytes) {
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Writer(error))),
                Poll::Pending => 0,
            };
            self.written += written as u64;
            self.unflushed = true;
            self.rest.extend_from_slice(&bytes[written..]);
            Poll::Ready(Ok(()))
        })
    }

    /// Writes what is left over, and after the last of it the end.
    fn poll_write_rest<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let written = ready!(Pin::new(&mut *writer).poll_write(cx, &self.rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written as u64;
            self.rest.advance(written);
        }
        self.rest = BytesMut::new();
        if self.unflushed {
            ready!(Pin::new(&mut *writer).poll_flush(cx))?;
            self.unflushed = false;
        }
        if self.ended { Pin::new(writer).poll_shutdown(cx) } else { Poll::Ready(Ok(())) }
    }
}
