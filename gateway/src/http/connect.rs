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
use config::snapshot::egress::PortProtocol;
use config::snapshot::route::Forward;
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::affinity::affinity;
use super::exchange::{Cut, Exchange};
use super::timers::Idle;
use super::{ClientStream, Frame, Gone};
use crate::egress::denials::Reason;
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
/// Bytes read from the upstream at once.
const READ_SIZE: usize = 16 * 1024;

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
    let Some(_permit) = cluster.usage.acquire(|usage| &usage.connections, limits.max_connections) else {
        return exchange.fail(stream, Failure::Upstream { reset: Reset::Overflow, retried: false }).await;
    };
    let worker = std::rc::Rc::clone(&exchange.context.worker);
    let (address, alternatives, under_way) = match cluster.dynamic() {
        Some(dns) => {
            let port = if dns.port == 0 { wanted.port } else { dns.port };
            (Address::Host(Arc::clone(&wanted.host), port), Vec::new(), None)
        }
        None => {
            let hash = affinity(exchange, wanted.action, &cluster).hash;
            match cluster.pick(Pick { hash, ..Pick::default() }, |bound| worker.random_below(bound)) {
                Some(endpoint) => (endpoint.address.clone(), endpoint.alternatives.clone(), Some(endpoint.begin())),
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

    let mut hello = (wanted.protocol == PortProtocol::Tls).then(|| Hello::new(&wanted.host));
    let mut tunnel =
        Tunnel { upstream, rest: Bytes::new(), buffer: BytesMut::new(), client: Side::Open, server: Side::Open };
    let mut idle = limits.idle_timeout.map(Idle::new);
    let mut lifetime = limits.max_connection_duration.map(|limit| Box::pin(tokio::time::sleep(limit)));
    let end = poll_fn(|cx| {
        let before = (exchange.facts.bytes_received, exchange.facts.bytes_sent);
        let end = tunnel.poll(cx, exchange, stream, &mut hello)?;
        if end.is_ready() {
            return end.map(Ok::<End, Gone>);
        }
        if let Some(idle) = &mut idle {
            if before != (exchange.facts.bytes_received, exchange.facts.bytes_sent) {
                idle.moved();
            }
            if idle.poll(cx).is_ready() {
                return Poll::Ready(Ok(End::Time));
            }
        }
        match &mut lifetime {
            Some(lifetime) => lifetime.as_mut().poll(cx).map(|()| Ok(End::Time)),
            None => Poll::Pending,
        }
    })
    .await;
    match end {
        Ok(End::Both | End::Time) => {
            stream.send_end(None);
            exchange.flush(stream).await.map(|_| ())
        }
        Ok(End::Upstream) => {
            exchange.facts.flags.set(Flag::UC);
            exchange.facts.details = Reset::ConnectionTermination.details(false).into();
            Err(Cut::Response)
        }
        Ok(End::Denied(reason)) => {
            exchange.note_denial(reason);
            Err(Cut::Response)
        }
        // The status has been sent; that the client has gone is the end of most tunnels.
        Err(gone) => Err(gone.into()),
    }
}

/// How a tunnel ends.
enum End {
    /// Both sides have said so.
    Both,
    /// Idle for too long, or open for too long.
    Time,
    /// The upstream is gone.
    Upstream,
    /// What the client sends must not leave.
    Denied(Reason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Open,
    /// It has ended, and the other side is yet to be told.
    Ended,
    /// The other side has been told.
    Done,
}

struct Tunnel {
    upstream: Transport,
    /// From the client, and not written yet.
    rest: Bytes,
    /// From the upstream, empty between reads.
    buffer: BytesMut,
    client: Side,
    server: Side,
}

impl Tunnel {
    fn poll<S: ClientStream>(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange,
        stream: &mut S,
        hello: &mut Option<Hello>,
    ) -> Result<Poll<End>, Gone> {
        match self.poll_up(cx, exchange, stream, hello)? {
            Poll::Ready(Err(end)) => return Ok(Poll::Ready(end)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if let Poll::Ready(Err(_)) = self.poll_down(cx, exchange, stream)? {
            return Ok(Poll::Ready(End::Upstream));
        }
        let flushed = stream.poll_flush(cx)?;
        // An HTTP stream has one end for both directions: that of the upstream.
        if self.server == Side::Ended && flushed.is_ready() {
            return Ok(Poll::Ready(End::Both));
        }
        Ok(Poll::Pending)
    }

    /// From the client to the upstream.
    fn poll_up<S: ClientStream>(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange,
        stream: &mut S,
        hello: &mut Option<Hello>,
    ) -> Result<Poll<Result<(), End>>, Gone> {
        loop {
            match self.poll_write_rest(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Ok(Poll::Ready(Err(End::Upstream))),
                Poll::Pending => return Ok(Poll::Pending),
            }
            if self.client != Side::Open {
                return Ok(Poll::Ready(Ok(())));
            }
            let data = match stream.poll_body(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => data,
                Poll::Ready(Some(Ok(Frame::Trailers(_))) | None) => {
                    self.client = Side::Ended;
                    continue;
                }
                Poll::Ready(Some(Err(gone))) => return Err(gone),
                Poll::Pending => {
                    let late = hello.as_mut().is_some_and(|hello| hello.deadline.as_mut().poll(cx).is_ready());
                    return Ok(if late { Poll::Ready(Err(End::Denied(Reason::NotTls))) } else { Poll::Pending });
                }
            };
            exchange.facts.bytes_received += data.len() as u64;
            self.rest = match hello {
                None => data,
                Some(reading) => match reading.read(&data) {
                    Ok(None) => continue,
                    Ok(Some(all)) => {
                        *hello = None;
                        all
                    }
                    Err(reason) => return Ok(Poll::Ready(Err(End::Denied(reason)))),
                },
            };
        }
    }

    fn poll_write_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let written = ready!(Pin::new(&mut self.upstream).poll_write(cx, &self.rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.rest.advance(written);
        }
        if self.client == Side::Ended {
            ready!(Pin::new(&mut self.upstream).poll_shutdown(cx))?;
            self.client = Side::Done;
        }
        Poll::Ready(Ok(()))
    }

    /// From the upstream to the client.
    fn poll_down<S: ClientStream>(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange,
        stream: &mut S,
    ) -> Result<Poll<io::Result<()>>, Gone> {
        while self.server == Side::Open {
            if stream.poll_ready(cx)?.is_pending() {
                return Ok(Poll::Pending);
            }
            self.buffer.reserve(READ_SIZE);
            // The future of `read_buf` holds no state of its own, so a new one each time loses nothing.
            match pin!(self.upstream.read_buf(&mut self.buffer)).poll(cx) {
                Poll::Ready(Ok(0)) => self.server = Side::Ended,
                Poll::Ready(Ok(count)) => {
                    exchange.facts.bytes_sent += count as u64;
                    stream.send_data(self.buffer.split().freeze());
                }
                Poll::Ready(Err(error)) => return Ok(Poll::Ready(Err(error))),
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(Ok(())))
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
