//! The socket below a transport: TCP or unix, with bytes that were read ahead of their time.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::Sleep;

/// What one read asks for below TLS, which itself asks for 4 KiB: two full records.
const READ_SIZE: usize = 32 * 1024;
/// What one read asks for before it is known what the client speaks.
const FILL_SIZE: usize = 2 * 1024;
/// Empty buffers that a thread keeps for the next read.
const SPARE_BUFFERS: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An open TCP or unix socket.
#[derive(Debug)]
pub struct Socket {
    kind: Kind,
    /// Bytes that are to be read before those of the kernel.
    ahead: BytesMut,
    /// Small reads take more from the kernel than they were asked for. A buffer is held only while it has something.
    reads_ahead: bool,
    /// Set until the handshake of a server is over.
    probation: Option<Box<Probation>>,
}

/// What holds for a client until it has shown what it wants and done its handshake.
#[derive(Debug)]
pub struct Probation {
    /// When reads and waits fail with `TimedOut`; `None`: never.
    pub deadline: Option<Pin<Box<Sleep>>>,
    /// When it says so, reads and waits fail with `ConnectionAborted`, and the close is a reset.
    pub cut: Option<oneshot::Receiver<()>>,
    /// The last alert that was written in plaintext. It is kept back, as the TLS library doesn't always know the right one.
    pub alert: Option<u8>,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Self {
        Self::new(Kind::Tcp(socket))
    }
}

impl From<UnixStream> for Socket {
    fn from(socket: UnixStream) -> Self {
        Self::new(Kind::Unix(socket))
    }
}

impl Socket {
    fn new(kind: Kind) -> Self {
        Self { kind, ahead: BytesMut::new(), reads_ahead: false, probation: None }
    }

    /// Our address of a TCP connection.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(socket) => socket.local_addr().ok(),
            Kind::Unix(_) => None,
        }
    }

    /// The peer's address of a TCP connection.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(socket) => socket.peer_addr().ok(),
            Kind::Unix(_) => None,
        }
    }

    /// What has been read and not been used, see [`Socket::fill`].
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Reads more bytes behind those that are ahead; 0 at the end of the stream. Until they are consumed, whoever reads
    /// gets them.
    ///
    /// # Errors
    /// Those of the socket and of its probation.
    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| {
            self.poll_probation(cx)?;
            self.ahead.reserve(FILL_SIZE);
            self.poll_fill(cx)
        })
        .await
    }

    /// Drops `count` of the bytes that are ahead.
    pub fn consume(&mut self, count: usize) {
        self.ahead.advance(count.min(self.ahead.len()));
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
    }

    /// From now on small reads take as much as there is: what stands above asks for little at a time.
    pub fn read_ahead(&mut self) {
        self.reads_ahead = true;
    }

    /// Puts the client on probation, or ends it; what it was.
    pub fn set_probation(&mut self, probation: Option<Probation>) -> Option<Probation> {
        std::mem::replace(&mut self.probation, probation.map(Box::new)).map(|before| *before)
    }

    /// Waits for the end of the probation, and never returns if there is none.
    pub async fn probation_over(&mut self) -> io::Error {
        poll_fn(|cx| match self.poll_probation(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        })
        .await
    }

    /// Makes the close of this socket a reset instead of a FIN.
    pub fn reset_on_close(&self) {
        if let Kind::Tcp(socket) = &self.kind {
            // Best effort: a socket that refuses the option closes with a FIN.
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// Waits for an error, such as a reset, which nobody sees who neither reads nor writes. The kernel tells it to a
    /// duplicate too, which is why this borrows nothing.
    pub fn loss(&self) -> impl Future<Output = ()> + use<> {
        let duplicate = match &self.kind {
            Kind::Tcp(socket) => socket.as_fd().try_clone_to_owned().ok(),
            // Knows no resets.
            Kind::Unix(_) => None,
        };
        async move {
            match duplicate.and_then(|duplicate| TcpStream::from_std(duplicate.into()).ok()) {
                Some(duplicate) => _ = duplicate.ready(Interest::ERROR).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Writes what the kernel takes at once.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.kind {
            Kind::Tcp(socket) => socket.try_write(bytes),
            Kind::Unix(socket) => socket.try_write(bytes),
        }
    }

    /// Reads into the free space behind `ahead`.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // The future of `read_buf` holds no state of its own, so a new one each time loses nothing.
        match &mut self.kind {
            Kind::Tcp(socket) => pin!(socket.read_buf(&mut self.ahead)).poll(cx),
            Kind::Unix(socket) => pin!(socket.read_buf(&mut self.ahead)).poll(cx),
        }
    }

    /// A write as the kernel took it. Nobody waits for a peer that doesn't read for longer than its probation.
    fn within_probation(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.poll_probation(cx)?;
        }
        written
    }

    fn poll_probation(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(probation) = &mut self.probation else { return Ok(()) };
        if let Some(cut) = &mut probation.cut
            && let Poll::Ready(signal) = Pin::new(cut).poll(cx)
        {
            probation.cut = None;
            if signal.is_ok() {
                self.reset_on_close();
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        if let Some(deadline) = &mut probation.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

/// Keeps an empty buffer for the next read on this thread.
fn recycle(buffer: BytesMut) {
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    });
}

/// Content type of alerts (RFC 8446 §5.1). Those in plaintext have two bytes, and the TLS library writes each in one piece.
const ALERT: u8 = 21;

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match &self.kind {
            Kind::Tcp(socket) => socket.as_raw_fd(),
            Kind::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.poll_probation(cx)?;
        if this.ahead.is_empty() {
            if !this.reads_ahead || buf.remaining() >= READ_SIZE {
                return match &mut this.kind {
                    Kind::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
                    Kind::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
                };
            }
            this.ahead = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
            this.ahead.reserve(READ_SIZE);
            let read = this.poll_fill(cx);
            if this.ahead.is_empty() {
                recycle(std::mem::take(&mut this.ahead));
            }
            if ready!(read)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let count = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..count]);
        this.ahead.advance(count);
        if this.ahead.is_empty() {
            recycle(std::mem::take(&mut this.ahead));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let (Some(probation), &[ALERT, 3, _, 0, 2, _, description]) = (&mut this.probation, bytes) {
            probation.alert = Some(description);
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = match &mut this.kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Kind::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
        };
        this.within_probation(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.probation.is_some()
            && let Some(alert) = parts.iter().position(|part| matches!(**part, [ALERT, 3, _, 0, 2, _, _]))
        {
            if alert == 0 {
                return self.poll_write(cx, &parts[0]);
            }
            parts = &parts[..alert];
        }
        let this = &mut *self;
        let written = match &mut this.kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, parts),
            Kind::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, parts),
        };
        this.within_probation(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets have no buffer of their own to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Kind::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn probation_ends_writes_that_nobody_reads() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut socket = Socket::from(ours);
        let full = vec![0; 1 << 20];
        let deadline = Some(Box::pin(tokio::time::sleep(Duration::from_secs(15))));
        socket.set_probation(Some(Probation { deadline, cut: None, alert: None }));
        assert_eq!(socket.write_all(&full).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (cut, receiver) = oneshot::channel();
        socket.set_probation(Some(Probation { deadline: None, cut: Some(receiver), alert: None }));
        cut.send(()).unwrap();
        assert_eq!(socket.write_all(&full).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
