//! The transport of a connection, downstream or upstream: one type, which is a Pingora `IO`.

mod socket;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
};
use rustls::CommonState;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{client, server};

use crate::http::violations::{BodyWatch, FrameWatch};
pub use socket::{Probation, Socket};

/// An open connection, in plaintext or TLS. What it reads and writes is what the application sees.
#[derive(Debug)]
pub struct Transport {
    stream: Stream,
    established: SystemTime,
    /// Bytes that were read ahead and are to be read again.
    ahead: BytesMut,
    /// Looks at what is written, on HTTP/2 connections of clients.
    watch: Option<(FrameWatch, BodyWatch)>,
}

#[derive(Debug)]
enum Stream {
    Plain(Socket),
    Server(Box<server::TlsStream<Socket>>),
    Client(Box<client::TlsStream<Socket>>),
}

impl From<Socket> for Transport {
    fn from(socket: Socket) -> Self {
        Self::new(Stream::Plain(socket))
    }
}

impl From<TcpStream> for Transport {
    fn from(socket: TcpStream) -> Self {
        Socket::from(socket).into()
    }
}

impl From<UnixStream> for Transport {
    fn from(socket: UnixStream) -> Self {
        Socket::from(socket).into()
    }
}

impl From<server::TlsStream<Socket>> for Transport {
    fn from(stream: server::TlsStream<Socket>) -> Self {
        Self::new(Stream::Server(Box::new(stream)))
    }
}

impl From<client::TlsStream<Socket>> for Transport {
    fn from(stream: client::TlsStream<Socket>) -> Self {
        Self::new(Stream::Client(Box::new(stream)))
    }
}

impl Transport {
    fn new(stream: Stream) -> Self {
        Self { stream, established: SystemTime::now(), ahead: BytesMut::new(), watch: None }
    }

    /// Our address of a TCP connection.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.socket().local_addr()
    }

    /// Gives back bytes that were read ahead: the next read returns them.
    pub fn rewind(&mut self, bytes: BytesMut) {
        self.ahead = bytes;
    }

    /// Lets `written` and `read` look at everything from now on; a write that is refused fails.
    pub fn watch(&mut self, written: FrameWatch, read: BodyWatch) {
        self.watch = Some((written, read));
    }

    /// Makes the close of this connection a reset instead of an orderly end.
    pub fn reset_on_close(&self) {
        self.socket().reset_on_close();
    }

    /// The socket below.
    pub fn socket(&self) -> &Socket {
        match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Server(stream) => stream.get_ref().0,
            Stream::Client(stream) => stream.get_ref().0,
        }
    }

    /// What the TLS handshake agreed on; `None` without TLS.
    pub fn tls(&self) -> Option<&CommonState> {
        match &self.stream {
            Stream::Plain(_) => None,
            Stream::Server(stream) => Some(stream.get_ref().1),
            Stream::Client(stream) => Some(stream.get_ref().1),
        }
    }
}

/// TLS says that it ends, whoever ends it; the peer could not tell the end from a cut otherwise. What the socket doesn't
/// take at once is lost, as in Envoy.
impl Drop for Transport {
    fn drop(&mut self) {
        match &mut self.stream {
            Stream::Plain(_) => {}
            Stream::Server(stream) => {
                let (socket, connection) = stream.get_mut();
                connection.send_close_notify();
                let _ = connection.write_tls(&mut AtOnce(socket));
            }
            Stream::Client(stream) => {
                let (socket, connection) = stream.get_mut();
                connection.send_close_notify();
                let _ = connection.write_tls(&mut AtOnce(socket));
            }
        }
    }
}

/// Writes what the kernel takes at once.
struct AtOnce<'s>(&'s mut Socket);

impl io::Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.ahead.is_empty() {
            match &mut self.stream {
                Stream::Plain(socket) => ready!(Pin::new(socket).poll_read(cx, buf))?,
                Stream::Server(stream) => ready!(ended(Pin::new(&mut **stream).poll_read(cx, buf)))?,
                Stream::Client(stream) => ready!(ended(Pin::new(&mut **stream).poll_read(cx, buf)))?,
            }
        } else {
            let count = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(count));
        }
        if let Some((_, watch)) = &mut self.watch {
            watch.follow(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

/// A peer that ends TCP without ending TLS has ended, as for Envoy: many HTTP servers do so.
fn ended(read: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
    match read {
        Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
        read => read,
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.watch.as_ref().is_some_and(|(watch, _)| watch.refuses([bytes])) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let written = match &mut self.stream {
            Stream::Plain(socket) => ready!(Pin::new(socket).poll_write(cx, bytes))?,
            Stream::Server(stream) => ready!(Pin::new(&mut **stream).poll_write(cx, bytes))?,
            Stream::Client(stream) => ready!(Pin::new(&mut **stream).poll_write(cx, bytes))?,
        };
        if let Some((watch, _)) = &mut self.watch {
            watch.follow(&bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.watch.as_ref().is_some_and(|(watch, _)| watch.refuses(parts.iter().map(|part| &**part))) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let written = match &mut self.stream {
            Stream::Plain(socket) => ready!(Pin::new(socket).poll_write_vectored(cx, parts))?,
            Stream::Server(stream) => ready!(Pin::new(&mut **stream).poll_write_vectored(cx, parts))?,
            Stream::Client(stream) => ready!(Pin::new(&mut **stream).poll_write_vectored(cx, parts))?,
        };
        if let Some((watch, _)) = &mut self.watch {
            let mut left = written;
            for part in parts {
                let count = part.len().min(left);
                watch.follow(&part[..count]);
                left -= count;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// TLS accepts bytes that the socket doesn't take yet; only a flush has written everything.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(_) => Poll::Ready(Ok(())),
            Stream::Server(stream) => Pin::new(&mut **stream).poll_flush(cx),
            Stream::Client(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Stream::Server(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Stream::Client(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}

#[async_trait]
impl Shutdown for Transport {
    async fn shutdown(&mut self) {
        // The peer may be gone already; there is nobody to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Transport {
    fn id(&self) -> RawFd {
        self.socket().as_raw_fd()
    }
}

impl Ssl for Transport {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        None
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        let protocol = self.tls()?.alpn_protocol()?;
        Some(if matches!(protocol, b"h2" | b"istio-h2") { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for Transport {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest {
            established_ts: self.established,
            establishment_duration: None,
            offload_wait_duration: None,
        })]
    }
}

impl GetProxyDigest for Transport {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Transport {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::new(SocketDigest::from_raw_fd(self.socket().as_raw_fd())))
    }
}

#[async_trait]
impl Peek for Transport {}
