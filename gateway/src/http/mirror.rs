//! Copies of requests for mirror destinations: sent and forgotten.
//!
//! Source: `reference/networking.md` §3.13.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use config::snapshot::cluster::UpstreamProtocol;
use config::snapshot::route::Forward;
use tokio::sync::mpsc;

use super::exchange::Exchange;
use crate::filter::fault;
use crate::request::{ConnectionFacts, Protocol, RequestHead};
use crate::response::Reset;
use crate::upstream::RequestBody;
use crate::upstream::balancer::Pick;
use crate::upstream::cluster::Cluster;
use crate::upstream::endpoint::{Address, Endpoint};
use crate::upstream::pool::Key;
use crate::worker::Worker;

/// Body pieces that wait for a mirror. One that falls further behind is cut off: the client never waits for it.
const QUEUE: usize = 256;
/// How long a copy may take in all.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The running copies of one request.
#[derive(Debug, Default)]
pub(super) struct Mirrors(Vec<mpsc::Sender<Piece>>);

/// A piece of a copied body. Copies whose channel closes before `End` are reset.
#[derive(Debug)]
enum Piece {
    Data(Bytes),
    End,
}

impl Mirrors {
    /// Starts the copies that the dice ask for. The request's head is final by now.
    pub fn start(exchange: &Exchange, action: &Forward) -> Self {
        if action.mirrors.is_empty() || exchange.upgrade {
            return Self::default();
        }
        let Some(request) = &exchange.facts.request else { return Self::default() };
        let worker = &exchange.context.worker;
        let complete = exchange.facts.request_complete.is_some();
        let mut senders = Vec::new();
        for mirror in &action.mirrors {
            if !fault::hits(mirror.share, worker) {
                continue;
            }
            let Some(cluster) = exchange.state.clusters.get(&mirror.cluster) else { continue };
            // A copy leaves for no host that the request itself could not.
            let admitted = exchange.check_server_name(cluster).and_then(|()| exchange.dynamic_host(cluster));
            let Ok(host) = admitted else { continue };
            let copy = Copy {
                head: copied_head(request, exchange),
                cluster: Arc::clone(cluster),
                host,
                http2: match cluster.config.protocol {
                    UpstreamProtocol::Http1 => false,
                    UpstreamProtocol::Http2 => true,
                    UpstreamProtocol::SameAsClient => exchange.facts.protocol == Some(Protocol::Http2),
                },
                empty: complete,
                connection: Rc::clone(&exchange.facts.connection),
            };
            let (sender, receiver) = mpsc::channel(QUEUE);
            let worker = Rc::clone(worker);
            tokio::task::spawn_local(async move {
                // Nobody is told how a copy fares.
                let _ = tokio::time::timeout(TIMEOUT, copy.send(&worker, receiver)).await;
            });
            if !complete {
                senders.push(sender);
            }
        }
        Self(senders)
    }

    /// Passes a piece of the body to all copies that keep up.
    pub fn send(&mut self, data: &Bytes) {
        self.0.retain(|sender| sender.try_send(Piece::Data(data.clone())).is_ok());
    }

    /// Ends the copies' bodies.
    pub fn end(&mut self) {
        for sender in self.0.drain(..) {
            // A copy that has no room left is incomplete and ends as such.
            let _ = sender.try_send(Piece::End);
        }
    }
}

/// The head of a copy: Envoy adds its own address to `x-forwarded-for` once more and calls the copy internal.
fn copied_head(request: &RequestHead, exchange: &Exchange) -> RequestHead {
    let mut head = request.clone();
    let own = exchange
        .context
        .worker
        .gateway
        .own_address
        .or(exchange.facts.connection.local.map(|local| local.ip()))
        .map(|ip| ip.to_string());
    if let (Some(own), Some(line)) = (own, head.headers.get_mut("x-forwarded-for")) {
        *line = [&line[..], b",", own.as_bytes()].concat().into();
    }
    head.headers.set("x-envoy-internal", Bytes::from_static(b"true"));
    head
}

/// One copy.
struct Copy {
    head: RequestHead,
    cluster: Arc<Cluster>,
    /// Where to, if that is the request's host.
    host: Option<Address>,
    http2: bool,
    empty: bool,
    /// Whose request it is.
    connection: Rc<ConnectionFacts>,
}

impl Copy {
    async fn send(self, worker: &Worker, mut pieces: mpsc::Receiver<Piece>) -> Result<(), Reset> {
        let limits = &self.cluster.config.limits;
        let _active =
            self.cluster.usage.acquire(|usage| &usage.requests, limits.max_requests).ok_or(Reset::Overflow)?;
        let pick = |bound| worker.random_below(bound);
        let endpoint = match &self.host {
            Some(host) => Arc::new(Endpoint::new(host.clone())),
            None => match self.cluster.pick(Pick::default(), pick) {
                Some(endpoint) => endpoint,
                None => return Ok(()),
            },
        };
        let _under_way = endpoint.begin();
        let key = Key::new(&self.cluster, &endpoint.address, &self.head.authority, &self.connection);
        let mut upstream = worker.pools.acquire(&self.cluster, &key, &endpoint.alternatives(), self.http2).await?;
        upstream.send_head(&self.head, if self.empty { RequestBody::Empty } else { RequestBody::Streamed });
        let mut sent = self.empty;
        let mut answered = false;
        poll_fn(|cx| {
            while !sent {
                if upstream.poll_ready(cx).is_pending() {
                    break;
                }
                match pieces.poll_recv(cx) {
                    Poll::Ready(Some(Piece::Data(data))) => upstream.send_data(data),
                    Poll::Ready(Some(Piece::End)) => {
                        upstream.send_end(None);
                        sent = true;
                    }
                    Poll::Ready(None) => return Poll::Ready(Err(Reset::ConnectionTermination)),
                    Poll::Pending => break,
                }
            }
            let _ = upstream.poll_flush(cx);
            loop {
                if !answered {
                    match std::task::ready!(upstream.poll_head(cx)) {
                        Ok(head) => answered = head.status >= 200,
                        Err(reset) => return Poll::Ready(Err(reset)),
                    }
                    continue;
                }
                match std::task::ready!(upstream.poll_frame(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(reset)) => return Poll::Ready(Err(reset)),
                    None => return Poll::Ready(Ok(())),
                }
            }
        })
        .await?;
        worker.pools.give_back(&self.cluster, key, upstream);
        Ok(())
    }
}
