//! CONNECT through a forward proxy: from the answer on, bytes go to the host that was asked for and back.
//!
//! Source: RFC 9110 §9.3.6; the rules of egress are those of [`crate::egress`].

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use config::snapshot::cluster::Limits;
use config::snapshot::egress::PortProtocol;
use config::snapshot::route::Forward;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::affinity::affinity;
use super::exchange::{Cut, Exchange};
use super::timers::Idle;
use super::{ClientStream, Frame, Gone};
use crate::egress::denials::Reason;
use crate::relay::{End, Relay, Side};
use crate::response::{Failure, Flag, Reset};
use crate::stream::Transport;
use crate::tls::hello::{Arriving, MAX_BYTES, NoHello};
use crate::upstream::balancer::Pick;
use crate::upstream::cluster::Cluster;
use crate::upstream::connection::{self, Purpose, Way};
use crate::upstream::endpoint::Address;
use crate::upstream::outlier::Outcome;

/// How long a client may take to begin TLS after the answer. Source: Envoy's listener filter timeout in Istio.
const HELLO_TIMEOUT: Duration = Duration::from_secs(15);

/// What a tunnel is for.
pub(super) struct Wanted<'a> {
    pub cluster: Arc<Cluster>,
    /// What leads to the cluster.
    pub action: &'a Forward,
    /// In lower case.
    pub host: Arc<str>,
    pub port: u16,
    /// What must be spoken.
    pub protocol: PortProtocol,
}

impl Wanted<'_> {
    /// Why there must be no tunnel: what goes through it is the client's own, and the rules for requests are not for it.
    /// Where the port is for TLS it must be TLS for the host, and nothing is left out. `is_routed`: a VirtualService of
    /// the gateway has the host.
    pub fn refusal(&self, is_routed: bool) -> Option<Reason> {
        match self.protocol {
            PortProtocol::Tls => None,
            _ if self.cluster.config.tls.is_some() => Some(Reason::PastTls),
            PortProtocol::Http if is_routed => Some(Reason::PastRoutes),
            PortProtocol::Http | PortProtocol::Tcp => None,
        }
    }
}

/// Answers a CONNECT and carries bytes until both sides have ended.
pub(super) async fn connect<S: ClientStream>(
    exchange: &mut Exchange,
    stream: &mut S,
    wanted: Wanted<'_>,
) -> Result<(), Cut> {
    let cluster = Arc::clone(&wanted.cluster);
    exchange.facts.cluster = Some(Arc::clone(&cluster));
    if !cluster.is_ready() {
        return exchange.fail(stream, Failure::NoCluster).await;
    }
    exchange.facts.attempts = 1;
    let limits = cluster.config.limits;
    let Some(permit) = cluster.usage.acquire(|usage| &usage.connections, limits.max_connections) else {
        return exchange.fail(stream, Failure::Upstream { reset: Reset::Overflow, retried: false }).await;
    };
    let worker = std::rc::Rc::clone(&exchange.context.worker);
    let (address, alternatives, under_way) = match cluster.dynamic() {
        Some(dns) => {
            let port = if dns.port == 0 { wanted.port } else { dns.port };
            (Address::Host(Arc::clone(&wanted.host), port), Arc::default(), None)
        }
        None => {
            let hash = affinity(exchange, wanted.action, &cluster).hash;
            match cluster.pick(Pick { hash, ..Pick::default() }, |bound| worker.random_below(bound)) {
                Some(endpoint) => (endpoint.address.clone(), endpoint.alternatives(), Some(endpoint.begin())),
                None => return exchange.fail(stream, Failure::NoHealthyUpstream).await,
            }
        }
    };
    exchange.facts.upstream_host = Some(address.clone());
    let way = Way { address: &address, alternatives: &alternatives, resolver: &worker.pools.resolver };
    let purpose = Purpose::new(&cluster, &exchange.facts.connection, None);
    let connected = {
        let mut connecting = pin!(connection::connect_raw(&cluster, way, &purpose));
        poll_fn(|cx| match connecting.as_mut().poll(cx) {
            Poll::Ready(connected) => Poll::Ready(Ok(connected)),
            Poll::Pending => stream.poll_gone(cx).map(Err),
        })
        .await?
    };
    if let Some(under_way) = &under_way {
        let outcomes: &[Outcome] = match &connected {
            Ok(_) => &[Outcome::Connected, Outcome::Answer(200)],
            Err(_) => &[Outcome::Failed],
        };
        outcomes.iter().for_each(|&outcome| cluster.report(under_way.endpoint(), outcome));
    }
    let upstream = match connected {
        Ok(upstream) => upstream,
        Err(reset) => return exchange.fail_upstream(stream, reset, false).await,
    };
    exchange.facts.upstream_local = upstream.local_addr();
    if let Some(remote) = upstream.socket().peer_addr() {
        exchange.facts.upstream_host = Some(Address::Ip(remote));
    }
    exchange.facts.status = 200;
    exchange.facts.details = "via_upstream".into();
    exchange.timers.stop_all();
    stream.start_tunnel();
    exchange.send_head(stream, false);

    let hello = (wanted.protocol == PortProtocol::Tls).then(|| Hello::new(&wanted.host));
    let mut client = Client { stream, hello, rest: Bytes::new(), received: 0, is_told: false, stopped: None };
    let end = relay(exchange, &mut client, upstream, &limits).await;
    // However long the client takes from here on, it holds nothing of the upstream.
    drop((permit, under_way));
    let Client { stream, is_told, stopped, .. } = client;
    match (stopped, end) {
        (Some(Stopped::Denied(reason)), _) => {
            exchange.note_denial(reason);
            Err(Cut::Response)
        }
        // The status has been sent; that the client has gone is the end of most tunnels.
        (Some(Stopped::Gone(gone)), _) => Err(gone.into()),
        (None, End::Gone { .. }) => {
            exchange.facts.flags.set(Flag::UC);
            exchange.facts.details = Reset::ConnectionTermination.details(false).into();
            if is_told {
                return Ok(());
            }
            // An HTTP/2 connection writes in a task of its own, and a reset drops what that has not taken yet.
            tokio::task::yield_now().await;
            Err(Cut::Response)
        }
        (None, End::Both) => {
            if !is_told {
                stream.send_end(None);
            }
            exchange.flush_reply(stream).await
        }
    }
}

/// Carries bytes until both sides have ended, one is gone, or a time is over. The upstream is closed then.
async fn relay<S: ClientStream>(
    exchange: &mut Exchange,
    client: &mut Client<'_, S>,
    mut upstream: Transport,
    limits: &Limits,
) -> End {
    let mut relay = Relay::behind_answer();
    let mut idle = limits.idle_timeout.map(Idle::new);
    let mut lifetime = limits.max_connection_duration.map(|limit| Box::pin(tokio::time::sleep(limit)));
    let end = poll_fn(|cx| {
        let end = relay.poll(cx, client, &mut upstream);
        let facts = &mut exchange.facts;
        if (facts.bytes_received, facts.bytes_sent) != (client.received, relay.sent()) {
            (facts.bytes_received, facts.bytes_sent) = (client.received, relay.sent());
            if let Some(idle) = &mut idle {
                idle.moved();
            }
        }
        if end.is_ready() {
            return end;
        }
        match relay.half_ended() {
            // An HTTP stream has one end for both directions: that of the upstream.
            Some(Side::Upstream) => return Poll::Ready(End::Both),
            Some(Side::Downstream) => {
                if let Poll::Ready(gone) = client.stream.poll_gone(cx) {
                    client.stopped = Some(Stopped::Gone(gone));
                    return Poll::Ready(End::Gone { side: Side::Downstream, reset: true });
                }
            }
            None => {}
        }
        let is_idle = idle.as_mut().is_some_and(|idle| idle.poll(cx).is_ready());
        let is_old = lifetime.as_mut().is_some_and(|lifetime| lifetime.as_mut().poll(cx).is_ready());
        if is_idle || is_old { Poll::Ready(End::Both) } else { Poll::Pending }
    })
    .await;
    if let End::Gone { side: Side::Downstream, .. } = end {
        // Its end must not look like a good one (RFC 9113 §8.5).
        upstream.reset_on_close();
    }
    end
}

/// The client's side of a tunnel, as bytes.
struct Client<'s, S> {
    stream: &'s mut S,
    /// What must come first.
    hello: Option<Hello>,
    /// Received, and not read yet.
    rest: Bytes,
    received: u64,
    /// The end is on its way to the client.
    is_told: bool,
    stopped: Option<Stopped>,
}

/// Why nothing more is read from a client, or written to it.
#[derive(Debug, Clone, Copy)]
enum Stopped {
    Gone(Gone),
    /// What it sends must not leave.
    Denied(Reason),
}

impl<S: ClientStream> Client<'_, S> {
    /// What the client has sent and what may leave; nothing at its end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Stopped>> {
        loop {
            let data = match self.stream.poll_body(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => data,
                Poll::Ready(Some(Ok(Frame::Trailers(_))) | None) => return Poll::Ready(Ok(Bytes::new())),
                Poll::Ready(Some(Err(gone))) => return Poll::Ready(Err(Stopped::Gone(gone))),
                Poll::Pending => {
                    let late = self.hello.as_mut().is_some_and(|hello| hello.deadline.as_mut().poll(cx).is_ready());
                    return if late { Poll::Ready(Err(Stopped::Denied(Reason::NotTls))) } else { Poll::Pending };
                }
            };
            self.received += data.len() as u64;
            let leaving = match &mut self.hello {
                None => data,
                Some(hello) => match hello.read(&data) {
                    Ok(None) => continue,
                    Ok(Some(all)) => {
                        self.hello = None;
                        all
                    }
                    Err(reason) => return Poll::Ready(Err(Stopped::Denied(reason))),
                },
            };
            if !leaving.is_empty() {
                return Poll::Ready(Ok(leaving));
            }
        }
    }

    fn stop(&mut self, stopped: Stopped) -> io::Error {
        self.stopped = Some(stopped);
        io::ErrorKind::ConnectionAborted.into()
    }
}

impl<S: ClientStream> AsyncRead for Client<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            self.rest = ready!(self.poll_receive(cx)).map_err(|stopped| self.stop(stopped))?;
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: ClientStream> AsyncWrite for Client<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.stream.poll_ready(cx)).map_err(|gone| self.stop(Stopped::Gone(gone)))?;
        self.stream.send_data(Bytes::copy_from_slice(bytes));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush(cx).map_err(|gone| self.stop(Stopped::Gone(gone)))
    }

    /// The end of this stream, which the client gets to see; an HTTP/1 connection is closed later.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_told {
            self.stream.send_end(None);
            self.is_told = true;
        }
        self.poll_flush(cx)
    }
}

/// The ClientHello that a tunnel to a TLS port must begin with.
struct Hello {
    host: Arc<str>,
    bytes: BytesMut,
    arriving: Arriving,
    deadline: Pin<Box<tokio::time::Sleep>>,
}

impl Hello {
    fn new(host: &Arc<str>) -> Self {
        let deadline = Box::pin(tokio::time::sleep(HELLO_TIMEOUT));
        Self { host: Arc::clone(host), bytes: BytesMut::new(), arriving: Arriving::default(), deadline }
    }

    /// Reads on; everything so far once it is seen to be for the host.
    fn read(&mut self, data: &[u8]) -> Result<Option<Bytes>, Reason> {
        self.bytes.extend_from_slice(data);
        match self.arriving.read(&self.bytes) {
            Ok(Some(hello)) if hello.server_name.as_deref() == Some(&*self.host) => {
                Ok(Some(self.bytes.split().freeze()))
            }
            // Also without a name, which would let the server choose.
            Ok(Some(_)) => Err(Reason::ServerNameMismatch),
            Ok(None) if self.bytes.len() < MAX_BYTES => Ok(None),
            Ok(None) | Err(NoHello::NotTls | NoHello::Broken) => Err(Reason::NotTls),
        }
    }
}
