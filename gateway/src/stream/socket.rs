//! The socket below a transport: TCP or unix, with bytes that were read ahead of their time.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// What one read asks for below TLS, which itself asks for 4 KiB: two full records.
const READ_SIZE: usize = 32 * 1024;
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
    /// Set during a handshake: which alert the peer gets in place of the TLS library's.
    alerts: Option<fn(u8) -> u8>,
    received: u64,
    sent: u64,
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
        Self { kind, ahead: BytesMut::new(), reads_ahead: false, alerts: None, received: 0, sent: 0 }
    }

    /// Our address of a TCP connection.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(socket) => socket.local_addr().ok(),
            Kind::Unix(_) => None,
        }
    }

    /// Bytes taken from the kernel so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes given to the kernel so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Gives back bytes that were read: the next reads return them.
    pub fn rewind(&mut self, mut bytes: BytesMut) {
        bytes.unsplit(std::mem::take(&mut self.ahead));
        self.ahead = bytes;
    }

    /// From now on small reads take as much as there is: what stands above asks for little at a time.
    pub fn read_ahead(&mut self) {
        self.reads_ahead = true;
    }

    /// Alerts that are sent in plaintext get the description that `translation` makes of theirs; `None`: their own.
    pub fn translate_alerts(&mut self, translation: Option<fn(u8) -> u8>) {
        self.alerts = translation;
    }

    /// Makes the close of this socket a reset instead of a FIN.
    pub fn reset_on_close(&self) {
        if let Kind::Tcp(socket) = &self.kind {
            // Best effort: a socket that refuses the option closes with a FIN.
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// Writes what the kernel takes at once.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.kind {
            Kind::Tcp(socket) => socket.try_write(bytes),
            Kind::Unix(socket) => socket.try_write(bytes),
        }
    }

    /// Reads as much as there is into `ahead`; 0 at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        buffer.reserve(READ_SIZE);
        // The future of `read_buf` holds no state of its own, so a new one each time loses nothing.
        let read = match &mut self.kind {
            Kind::Tcp(socket) => pin!(socket.read_buf(&mut buffer)).poll(cx),
            Kind::Unix(socket) => pin!(socket.read_buf(&mut buffer)).poll(cx),
        };
        if let Poll::Ready(Ok(1..)) = read {
            self.ahead = buffer;
        } else {
            recycle(buffer);
        }
        read
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

/// Length of a record with an alert.
const ALERT_LENGTH: usize = 7;

/// Whether `record` is an alert that isn't encrypted (RFC 8446 §5.1, §6): the TLS library writes it in one piece.
fn is_plaintext_alert(record: &[u8]) -> bool {
    matches!(record, [21, 3, _, 0, 2, _, _])
}

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
        if this.ahead.is_empty() {
            if this.reads_ahead && buf.remaining() < READ_SIZE {
                let count = ready!(this.poll_fill(cx))?;
                this.received += count as u64;
            } else {
                let before = buf.filled().len();
                match &mut this.kind {
                    Kind::Tcp(socket) => ready!(Pin::new(socket).poll_read(cx, buf))?,
                    Kind::Unix(socket) => ready!(Pin::new(socket).poll_read(cx, buf))?,
                }
                this.received += (buf.filled().len() - before) as u64;
                return Poll::Ready(Ok(()));
            }
        }
        let count = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..count]);
        bytes::Buf::advance(&mut this.ahead, count);
        if count > 0 && this.ahead.is_empty() {
            recycle(std::mem::take(&mut this.ahead));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let translated = this.alerts.filter(|_| is_plaintext_alert(bytes)).map(|translation| {
            let mut alert = bytes.to_vec();
            alert[ALERT_LENGTH - 1] = translation(alert[ALERT_LENGTH - 1]);
            alert
        });
        let bytes = translated.as_deref().unwrap_or(bytes);
        let written = match &mut this.kind {
            Kind::Tcp(socket) => ready!(Pin::new(socket).poll_write(cx, bytes))?,
            Kind::Unix(socket) => ready!(Pin::new(socket).poll_write(cx, bytes))?,
        };
        this.sent += written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.alerts.is_some()
            && let Some(alert) = parts.iter().position(|part| is_plaintext_alert(part))
        {
            if alert == 0 {
                return self.poll_write(cx, &parts[0]);
            }
            parts = &parts[..alert];
        }
        let this = &mut *self;
        let written = match &mut this.kind {
            Kind::Tcp(socket) => ready!(Pin::new(socket).poll_write_vectored(cx, parts))?,
            Kind::Unix(socket) => ready!(Pin::new(socket).poll_write_vectored(cx, parts))?,
        };
        this.sent += written as u64;
        Poll::Ready(Ok(written))
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
