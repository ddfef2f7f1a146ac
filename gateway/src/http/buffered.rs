//! A transport with a read buffer and a write queue, driven by polling, so that both directions can move at once.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::stream::Transport;

/// Bytes asked for by one read.
const READ_SIZE: usize = 16 * 1024;
/// Pieces up to this size are copied next to each other; larger ones are queued as they are and written together.
const COPY_LIMIT: usize = 4 * 1024;
/// A queue above this size asks its user to wait until it has been written.
const HIGH_WATER: usize = 64 * 1024;
/// Pieces handed to one vectored write.
const MAX_SLICES: usize = 16;

/// A transport with its buffers.
#[derive(Debug)]
pub struct Buffered {
    io: Transport,
    /// What has been read and not been used.
    pub read: BytesMut,
    /// The peer has closed its sending side.
    pub eof: bool,
    queue: VecDeque<Bytes>,
    tail: Vec<u8>,
    /// How much of `tail` is written already.
    tail_written: usize,
    queued: usize,
}

impl Buffered {
    /// Wraps `io`; `read` holds bytes that were read before.
    pub fn new(io: Transport, read: BytesMut) -> Self {
        Self { io, read, eof: false, queue: VecDeque::new(), tail: Vec::new(), tail_written: 0, queued: 0 }
    }

    /// The transport itself.
    pub fn transport(&self) -> &Transport {
        &self.io
    }

    /// Transport and unused bytes, for another protocol on the same connection. What is queued is lost.
    pub fn into_parts(self) -> (Transport, BytesMut) {
        (self.io, self.read)
    }

    /// Reads more bytes behind those in `read`; 0 at the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        if self.read.capacity() - self.read.len() < READ_SIZE / 4 {
            self.read.reserve(READ_SIZE);
        }
        // The future of `read_buf` holds no state of its own, so a new one each time loses nothing.
        let count = ready!(pin!(self.io.read_buf(&mut self.read)).poll(cx))?;
        if count == 0 {
            self.eof = true;
        }
        Poll::Ready(Ok(count))
    }

    /// Queues bytes for writing.
    pub fn push(&mut self, bytes: Bytes) {
        self.queued += bytes.len();
        if bytes.len() <= COPY_LIMIT {
            self.tail.extend_from_slice(&bytes);
            return;
        }
        self.seal_tail();
        self.queue.push_back(bytes);
    }

    /// Writes into the queue through `write`, which appends to the buffer it is given.
    pub fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.tail.len();
        write(&mut self.tail);
        self.queued += self.tail.len() - before;
    }

    /// Whether everything queued has been written.
    pub fn is_flushed(&self) -> bool {
        self.queued == 0
    }

    /// Ready when there is room to queue more.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.queued < HIGH_WATER { Poll::Ready(Ok(())) } else { self.poll_flush(cx) }
    }

    /// Writes everything queued.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.queued > 0 {
            let written = if self.queue.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.tail[self.tail_written..]))?
            } else {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let mut count = 0;
                for bytes in self.queue.iter().take(MAX_SLICES - 1) {
                    slices[count] = IoSlice::new(bytes);
                    count += 1;
                }
                if self.queue.len() < MAX_SLICES {
                    slices[count] = IoSlice::new(&self.tail[self.tail_written..]);
                    count += 1;
                }
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.consume(written);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Ends the sending side.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn seal_tail(&mut self) {
        if self.tail.len() == self.tail_written {
            self.tail.clear();
            self.tail_written = 0;
            return;
        }
        let mut tail = Bytes::from(std::mem::take(&mut self.tail));
        tail.advance(self.tail_written);
        self.tail_written = 0;
        self.queue.push_back(tail);
    }

    fn consume(&mut self, mut written: usize) {
        self.queued -= written.min(self.queued);
        while written > 0 {
            let Some(front) = self.queue.front_mut() else { break };
            if front.len() > written {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.queue.pop_front();
        }
        self.tail_written += written;
        if self.tail_written >= self.tail.len() {
            self.tail.clear();
            self.tail_written = 0;
        } else if self.tail_written >= HIGH_WATER {
            // A queue that never runs dry must not keep what it has written.
            self.tail.drain(..self.tail_written);
            self.tail_written = 0;
        }
    }
}
