//! The transport of a connection, downstream or upstream: one type, which is a Pingora `IO`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::http::violations::{BodyWatch, FrameWatch};

/// An open socket.
#[derive(Debug)]
pub struct Transport {
    socket: Socket,
    established: SystemTime,
    /// Bytes that were read ahead and are to be read again.
    ahead: BytesMut,
    /// Looks at what is written, on HTTP/2 connections of clients.
    watch: Option<(FrameWatch, BodyWatch)>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<TcpStream> for Transport {
    fn from(socket: TcpStream) -> Self {
        Self { socket: Socket::Tcp(socket), established: SystemTime::now(), ahead: BytesMut::new(), watch: None }
    }
}

impl From<UnixStream> for Transport {
    fn from(socket: UnixStream) -> Self {
        Self { socket: Socket::Unix(socket), established: SystemTime::now(), ahead: BytesMut::new(), watch: None }
    }
}

impl Transport {
    /// Our address of a TCP connection.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        match &self.socket {
            Socket::Tcp(socket) => socket.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// Gives back bytes that were read ahead: the next read returns them.
    pub fn rewind(&mut self, bytes: BytesMut) {
        self.ahead = bytes;
    }

    /// Lets `written` and `read` look at everything from now on; a write that is refused fails.
    pub fn watch(&mut self, written: FrameWatch, read: BodyWatch) {
        self.watch = Some((written, read));
    }

    /// Makes the close of this socket a reset instead of a FIN.
    pub fn reset_on_close(&self) {
        if let Socket::Tcp(socket) = &self.socket {
            // Best effort: a socket that refuses the option closes with a FIN.
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }

    fn fd(&self) -> RawFd {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.ahead.is_empty() {
            match &mut self.socket {
                Socket::Tcp(socket) => ready!(Pin::new(socket).poll_read(cx, buf))?,
                Socket::Unix(socket) => ready!(Pin::new(socket).poll_read(cx, buf))?,
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

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.watch.as_ref().is_some_and(|(watch, _)| watch.refuses([bytes])) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let written = match &mut self.socket {
            Socket::Tcp(socket) => ready!(Pin::new(socket).poll_write(cx, bytes))?,
            Socket::Unix(socket) => ready!(Pin::new(socket).poll_write(cx, bytes))?,
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
        let written = match &mut self.socket {
            Socket::Tcp(socket) => ready!(Pin::new(socket).poll_write_vectored(cx, parts))?,
            Socket::Unix(socket) => ready!(Pin::new(socket).poll_write_vectored(cx, parts))?,
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

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets have no buffer of their own to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Socket::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
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
        self.fd()
    }
}

impl Ssl for Transport {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        None
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        None
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
        Some(Arc::new(SocketDigest::from_raw_fd(self.fd())))
    }
}

#[async_trait]
impl Peek for Transport {}
