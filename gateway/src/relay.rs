//! The two directions of a raw connection or of a tunnel, which move independently of each other.
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
pub(crate) enum Side {
    Downstream,
    Upstream,
}

/// How it came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides have said that they end, and both were told so.
    Both,
    /// One side can't be read or written any more; with `reset` because its peer said so.
    Gone { side: Side, reset: bool },
}

/// A connection in both directions.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    /// From the client to the upstream.
    up: Way,
    /// From the upstream to the client.
    down: Way,
    /// A side that takes no more bytes. What it sent before is still delivered.
    gone: Option<End>,
}

impl Relay {
    /// One that writes out first what the client's side has queued already.
    pub fn behind_answer() -> Self {
        Self { down: Way { unflushed: true, ..Way::default() }, ..Self::default() }
    }

    /// Bytes read from the client.
    pub fn received(&self) -> u64 {
        self.up.read
    }

    /// Bytes written to the client.
    pub fn sent(&self) -> u64 {
        self.down.written
    }

    /// The side that has ended, while the other one goes on. Nobody reads it any more.
    pub fn half_ended(&self) -> Option<Side> {
        let has_ended = |way: &Way| way.ended && way.done;
        match (has_ended(&self.up), has_ended(&self.down)) {
            (true, false) => Some(Side::Downstream),
            (false, true) => Some(Side::Upstream),
            _ => None,
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// A connection that reads `pieces` and then fails or ends, and doesn't take a byte if `deaf`.
    struct Scripted {
        pieces: Vec<&'static [u8]>,
        end: Option<io::ErrorKind>,
        deaf: Option<io::ErrorKind>,
        written: Vec<u8>,
        is_shut: bool,
    }

    impl Scripted {
        fn new(pieces: &[&'static [u8]], end: Option<io::ErrorKind>) -> Self {
            let pieces = pieces.iter().rev().copied().collect();
            Self { pieces, end, deaf: None, written: Vec::new(), is_shut: false }
        }
    }

    impl AsyncRead for Scripted {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            match (self.pieces.pop(), self.end) {
                (Some(piece), _) => buf.put_slice(piece),
                (None, Some(kind)) => return Poll::Ready(Err(kind.into())),
                (None, None) => {}
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Scripted {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            if let Some(kind) = self.deaf {
                return Poll::Ready(Err(kind.into()));
            }
            self.written.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.is_shut = true;
            Poll::Ready(Ok(()))
        }
    }

    async fn run(relay: &mut Relay, downstream: &mut Scripted, upstream: &mut Scripted) -> End {
        poll_fn(|cx| relay.poll(cx, downstream, upstream)).await
    }

    #[tokio::test]
    async fn each_direction_ends_for_itself_and_nothing_is_lost() {
        let (mut client, mut downstream) = duplex(1000);
        let (mut server, mut upstream) = duplex(700);
        let mut relay = Relay::default();
        let sent: Vec<u8> = (0..300_000_u32).map(|index| index.to_le_bytes()[1]).collect();
        let answered: Vec<u8> = (0..200_000_u32).map(|index| index.to_le_bytes()[0]).collect();
        let client_side = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            received
        };
        let server_side = async {
            let mut received = Vec::new();
            server.read_to_end(&mut received).await.unwrap();
            server.write_all(&answered).await.unwrap();
            server.shutdown().await.unwrap();
            received
        };
        let relaying = poll_fn(|cx| relay.poll(cx, &mut downstream, &mut upstream));
        let (end, at_client, at_server) = tokio::join!(relaying, client_side, server_side);
        assert_eq!(end, End::Both);
        assert!(at_client == answered && at_server == sent);
        assert_eq!((relay.received(), relay.sent()), (300_000, 200_000));
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_other_side() {
        let (mut client, mut downstream) = duplex(1 << 20);
        let (_server, mut upstream) = duplex(1000);
        client.write_all(&[0; 1 << 20]).await.unwrap();
        let mut relay = Relay::default();
        let polled = poll_fn(|cx| Poll::Ready(relay.poll(cx, &mut downstream, &mut upstream))).await;
        assert!(polled.is_pending());
        assert_eq!(relay.received(), BUFFER_SIZE as u64);
        assert_eq!(relay.up.rest.len(), BUFFER_SIZE - 1000);
    }

    #[tokio::test]
    async fn a_reset_ends_both_directions_at_once() {
        let reset = Some(io::ErrorKind::ConnectionReset);
        let (mut downstream, mut upstream) = (Scripted::new(&[b"a"], reset), Scripted::new(&[], None));
        let end = run(&mut Relay::default(), &mut downstream, &mut upstream).await;
        assert_eq!(end, End::Gone { side: Side::Downstream, reset: true });
        let (mut downstream, mut upstream) = (Scripted::new(&[], None), Scripted::new(&[b"a"], reset));
        let end = run(&mut Relay::default(), &mut downstream, &mut upstream).await;
        assert_eq!(end, End::Gone { side: Side::Upstream, reset: true });
        assert_eq!(downstream.written, b"a");
    }

    #[tokio::test]
    async fn what_a_side_sent_before_it_went_deaf_is_delivered() {
        let mut downstream = Scripted::new(&[b"request"], None);
        let mut upstream = Scripted::new(&[b"answer", b" and more"], None);
        upstream.deaf = Some(io::ErrorKind::BrokenPipe);
        let end = run(&mut Relay::default(), &mut downstream, &mut upstream).await;
        assert_eq!(end, End::Gone { side: Side::Upstream, reset: false });
        assert_eq!(downstream.written, b"answer and more");
        assert!(downstream.is_shut);
    }

    #[tokio::test]
    async fn tls_that_is_cut_off_counts_as_ended() {
        let cut = Some(io::ErrorKind::UnexpectedEof);
        let (mut downstream, mut upstream) = (Scripted::new(&[b"a"], cut), Scripted::new(&[], None));
        assert_eq!(run(&mut Relay::default(), &mut downstream, &mut upstream).await, End::Both);
        assert_eq!(upstream.written, b"a");
        assert!(upstream.is_shut);
    }
}
