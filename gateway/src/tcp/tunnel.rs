//! Raw TCP through an HTTP proxy: CONNECT, or POST with the bytes as its body.
//!
//! Source: DestinationRule `tunnel`; `reference/networking.md` §5.8; RFC 9110 §9.3.6.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use config::snapshot::cluster::UpstreamProtocol;
use config::snapshot::listener::Tunnel;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::headers::Headers;
use crate::request::{PathAndQuery, RequestHead, TlsFacts};
use crate::response::Reset;
use crate::stream::Transport;
use crate::upstream::cluster::Cluster;
use crate::upstream::pool::{Key, Pools};
use crate::upstream::{Frame, RequestBody, Stream};

/// The connection to an upstream, or what stands for it.
#[allow(clippy::large_enum_variant, reason = "nearly all are direct")]
pub(super) enum Upstream {
    Direct(Transport),
    Tunnel(Box<Tunneled>),
}

/// A stream of bytes that a proxy carries.
pub(super) struct Tunneled {
    stream: Stream,
    /// Read and not yet asked for.
    ahead: Bytes,
    ended: bool,
}

/// Asks the proxy at the endpoint of `key` for a tunnel, within the cluster's connect timeout.
///
/// # Errors
/// No connection to the proxy, or it refuses: then the reason is `tunnel_response:<status>`.
pub(super) async fn open(
    pools: &Pools,
    cluster: &Arc<Cluster>,
    key: &Key,
    alternatives: &[SocketAddr],
    tunnel: &Tunnel,
) -> Result<Tunneled, Reset> {
    let asked = async {
        let http2 = cluster.config.protocol == UpstreamProtocol::Http2;
        let mut stream = pools.acquire(cluster, key, alternatives, http2).await?;
        let Tunnel { post, target } = tunnel;
        let target = Bytes::copy_from_slice(target.as_bytes());
        let (method, path, body) = match post {
            true => (&b"POST"[..], Bytes::from_static(b"/"), RequestBody::Streamed),
            false => (&b"CONNECT"[..], target.clone(), RequestBody::Connect),
        };
        let head = RequestHead {
            method: Bytes::from_static(method),
            path: PathAndQuery::new(path),
            authority: target,
            scheme: if cluster.config.tls.is_some() { "https" } else { "http" },
            headers: Headers::default(),
        };
        stream.send_head(&head, body);
        let status = poll_fn(|cx| {
            let _ = stream.poll_flush(cx);
            loop {
                let head = ready!(stream.poll_head(cx))?;
                if head.status >= 200 {
                    return Poll::Ready(Ok::<u16, Reset>(head.status));
                }
            }
        })
        .await?;
        match status {
            200..300 => Ok(Tunneled { stream, ahead: Bytes::new(), ended: false }),
            _ => Err(Reset::ConnectionFailure(Cow::Owned(format!("tunnel_response:{status}")))),
        }
    };
    tokio::time::timeout(cluster.config.connect_timeout, asked).await.unwrap_or(Err(Reset::ConnectionTimeout))
}

impl Upstream {
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Direct(transport) => transport.local_addr(),
            Self::Tunnel(tunneled) => tunneled.stream.local(),
        }
    }

    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Direct(transport) => transport.socket().peer_addr(),
            Self::Tunnel(tunneled) => tunneled.stream.remote(),
        }
    }

    /// Waits until the connection is lost; a tunnel tells when it is read.
    pub fn loss(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        match self {
            Self::Direct(transport) => Box::pin(transport.socket().loss()),
            Self::Tunnel(_) => Box::pin(std::future::pending()),
        }
    }

    /// Makes the close a reset; a tunnel that is dropped before its end is one.
    pub fn reset_on_close(&self) {
        match self {
            Self::Direct(transport) => transport.reset_on_close(),
            Self::Tunnel(_) => {}
        }
    }
}

impl Tunneled {
    /// TLS with the proxy.
    pub fn tls(&self) -> Option<Arc<TlsFacts>> {
        self.stream.tls().cloned()
    }
}

impl AsyncRead for Tunneled {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            match ready!(this.stream.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => this.ahead = data,
                Some(Ok(Frame::Trailers(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(_)) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
        let count = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..count]);
        this.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunneled {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.stream.poll_ready(cx));
        this.stream.send_data(Bytes::copy_from_slice(bytes));
        let _ = this.stream.poll_flush(cx);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.poll_flush(cx).map(Ok)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            this.ended = true;
            this.stream.send_end(None);
        }
        this.stream.poll_flush(cx).map(Ok)
    }
}

impl AsyncRead for Upstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(transport) => Pin::new(transport).poll_read(cx, buf),
            Self::Tunnel(tunneled) => Pin::new(&mut **tunneled).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Direct(transport) => Pin::new(transport).poll_write(cx, bytes),
            Self::Tunnel(tunneled) => Pin::new(&mut **tunneled).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(transport) => Pin::new(transport).poll_flush(cx),
            Self::Tunnel(tunneled) => Pin::new(&mut **tunneled).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(transport) => Pin::new(transport).poll_shutdown(cx),
            Self::Tunnel(tunneled) => Pin::new(&mut **tunneled).poll_shutdown(cx),
        }
    }
}
