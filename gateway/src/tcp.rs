//! Raw TCP connections: the bytes go to an upstream and back as they are.
//!
//! The upstream connection is opened at once, whoever speaks first. A connection has one destination and one try.
//!
//! Source: `reference/networking.md` §3.18-3.20, §9; `reference/telemetry-and-operations.md` §1, §4.

mod tunnel;

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use config::snapshot::balancing::HashKey;
use config::snapshot::cluster::{ClusterName, DynamicDns};
use config::snapshot::listener::{TcpChain, TcpDestination, Tunnel};

use crate::egress;
use crate::egress::denials::{Denial, Reason};
use crate::egress::host::Target;
use crate::egress::suggestion::Protocol;
use crate::http::timers::Idle;
use crate::http::{Downstream, affinity};
use crate::relay::{End, Relay, Side};
use crate::request::{ConnectionFacts, Facts};
use crate::response::{Flag, Reset};
use crate::stream::Transport;
use crate::telemetry::metrics::TcpCounts;
use crate::tls::client::Application;
use crate::upstream::balancer::Pick;
use crate::upstream::cluster::{Cluster, Permit};
use crate::upstream::connection::{self, Purpose, Way};
use crate::upstream::endpoint::{Active, Address, Endpoint};
use crate::upstream::on_demand::Unresolved;
use crate::upstream::outlier::Outcome;
use crate::upstream::pool::Key;
use crate::worker::Worker;
use tunnel::Upstream;

/// Serves a connection, whose transport is what the upstream gets to see: plaintext, decrypted TLS, or TLS as the client
/// sent it. It ends when both sides have ended, when one is gone, after the times that `chain` sets, or with the drain.
pub async fn serve(worker: Rc<Worker>, downstream: Downstream, chain: Arc<TcpChain>) {
    let Downstream { transport, facts, drain, .. } = downstream;
    let mut session = Session { worker, facts: Facts::of_connection(facts), counts: None, under_way: None };
    // Pinned here: a future that is handed on by value takes its room twice.
    let running = pin!(session.run(transport, &chain));
    drain.until_closing(running).await;
}

/// Logs a connection that no filter chain wants; it is the caller's to reset it. `failure` is what is wrong with the
/// client's TLS, if that is why.
pub fn unserved(worker: &Worker, connection: Rc<ConnectionFacts>, failure: Option<&'static str>) {
    let mut facts = Facts::of_connection(connection);
    facts.flags.set(Flag::NR);
    facts.details = Cow::Borrowed("filter_chain_not_found");
    facts.downstream_transport_failure = failure.map(Cow::Borrowed);
    if worker.gateway.egress.is_egress_gateway && facts.connection.server_name.is_some() {
        deny(worker, &facts.connection, Reason::NoRoute);
    }
    worker.gateway.telemetry.log(&worker.gateway.state.load(), &facts);
}

/// One connection with what is known of it. When it drops, the connection is counted and logged, whatever ended it.
struct Session {
    worker: Rc<Worker>,
    facts: Facts,
    /// Where the bytes are counted, from the moment that the upstream is connected.
    counts: Option<Arc<TcpCounts>>,
    /// Counts the connection among those of its endpoint.
    under_way: Option<Active>,
}

/// Why there is no upstream connection, as far as the client notices.
enum Refused {
    /// An orderly end.
    Close,
    /// A reset.
    Reset,
}

impl Session {
    async fn run(&mut self, mut downstream: Transport, chain: &TcpChain) {
        let mut lifetime = chain.max_connection_duration.map(|limit| Box::pin(tokio::time::sleep(limit)));
        let is_over = {
            let mut serving = pin!(self.connect_and_relay(&mut downstream, chain));
            poll_fn(|cx| match (serving.as_mut().poll(cx), &mut lifetime) {
                (Poll::Ready(()), _) => Poll::Ready(false),
                (Poll::Pending, Some(lifetime)) => lifetime.as_mut().poll(cx).map(|()| true),
                (Poll::Pending, None) => Poll::Pending,
            })
            .await
        };
        if is_over {
            self.facts.flags.set(Flag::DT);
        }
    }

    async fn connect_and_relay(&mut self, downstream: &mut Transport, chain: &TcpChain) {
        // On the heap: most of the time there is nothing to connect any more.
        match Box::pin(self.connect(chain)).await {
            Ok((mut upstream, _permit)) => self.relay(downstream, &mut upstream, chain).await,
            Err(Refused::Close) => {}
            Err(Refused::Reset) => downstream.reset_on_close(),
        }
    }

    /// The upstream connection, with its place among those of the cluster.
    async fn connect(&mut self, chain: &TcpChain) -> Result<(Upstream, Option<Permit>), Refused> {
        let state = self.worker.gateway.state.load_full();
        if !state.snapshot.refusals.is_empty() {
            self.facts.termination_details = Cow::Borrowed("policy_not_enforceable");
            return Err(Refused::Close);
        }
        let name = choose(&chain.destinations, |bound| self.worker.random_below(bound));
        let cluster = name.and_then(|name| state.clusters.get(name)).filter(|cluster| cluster.is_ready());
        let Some(cluster) = cluster.cloned() else { return Err(self.refuse(Flag::NC)) };
        // A connection may live for days; the configuration that it began with need not.
        drop(state);
        self.facts.cluster = Some(Arc::clone(&cluster));
        let hash = match &cluster.config.balancing.hash_keys.without_port {
            Some(key) if **key == HashKey::SourceIp => self.facts.connection.remote.map(affinity::source_ip),
            _ => None,
        };
        let endpoint = match cluster.dynamic() {
            Some(dns) => match self.dynamic_host(dns) {
                Ok(address) => Arc::new(Endpoint::new(address)),
                Err(reason) => {
                    self.deny(reason);
                    return Err(Refused::Reset);
                }
            },
            None => {
                let pick = Pick { hash, ..Pick::default() };
                let picked = cluster.pick(pick, |bound| self.worker.random_below(bound));
                picked.ok_or_else(|| self.refuse(Flag::UH))?
            }
        };
        self.under_way = Some(endpoint.begin());
        self.facts.attempts = 1;
        self.facts.upstream_host = Some(endpoint.address.clone());
        let connected = match &chain.tunnel {
            None => self.connect_directly(&cluster, &endpoint).await,
            Some(tunnel) => self.connect_by_proxy(&cluster, &endpoint, tunnel).await,
        };
        match connected {
            Ok((upstream, permit)) => {
                cluster.report(&endpoint, Outcome::Connected);
                cluster.report(&endpoint, Outcome::Answer(200));
                self.facts.upstream_local = upstream.local_addr();
                if let (Some(_), Some(remote)) = (cluster.dynamic(), upstream.peer_addr()) {
                    self.facts.upstream_host = Some(Address::Ip(remote));
                }
                Ok((upstream, permit))
            }
            Err(Reset::Overflow) => {
                self.facts.flags.set(Flag::UO);
                self.facts.attempts = 0;
                self.facts.upstream_host = None;
                Err(Refused::Close)
            }
            Err(Reset::Unresolved(unresolved)) => {
                match unresolved {
                    Unresolved::NoAddress => self.facts.flags.set(Flag::DF),
                    Unresolved::Forbidden => self.deny(Reason::ForbiddenAddress),
                    Unresolved::Loop => self.deny(Reason::Loop),
                }
                Err(Refused::Reset)
            }
            Err(reset) => {
                cluster.report(&endpoint, Outcome::Failed);
                if let Reset::ConnectionFailure(reason) = reset {
                    self.facts.transport_failure = Some(reason);
                }
                self.facts.flags.set(Flag::UF);
                Err(self.refuse(Flag::URX))
            }
        }
    }

    /// The host to connect to, which only the SNI can tell.
    fn dynamic_host(&self, dns: &DynamicDns) -> Result<Address, Reason> {
        let server_name = self.facts.connection.server_name.as_deref().unwrap_or_default();
        let Target { host, port } = egress::admit(dns, server_name.as_bytes())?;
        Ok(Address::Host(host.into_text(), port.unwrap_or(self.facts.connection.port)))
    }

    /// Counts and logs refused egress.
    fn deny(&mut self, reason: Reason) {
        self.facts.termination_details = Cow::Owned(format!("egress_denied{{{reason}}}"));
        deny(&self.worker, &self.facts.connection, reason);
    }

    async fn connect_directly(
        &mut self,
        cluster: &Arc<Cluster>,
        endpoint: &Endpoint,
    ) -> Result<(Upstream, Option<Permit>), Reset> {
        let limit = cluster.config.limits.max_connections;
        let permit = cluster.usage.acquire(|usage| &usage.connections, limit).ok_or(Reset::Overflow)?;
        let host = match &endpoint.address {
            Address::Host(name, _) => Some(Arc::clone(name)),
            _ => None,
        };
        let purpose = Purpose::new(cluster, &self.facts.connection, host);
        let alternatives = endpoint.alternatives();
        let way =
            Way { address: &endpoint.address, alternatives: &alternatives, resolver: &self.worker.pools.resolver };
        let transport = connection::connect(cluster, way, Application::Tcp, &purpose).await?;
        self.facts.upstream_tls = connection::tls_facts(cluster, &transport);
        Ok((Upstream::Direct(transport), Some(permit)))
    }

    /// Through an HTTP proxy, whose connections the pool counts.
    async fn connect_by_proxy(
        &mut self,
        cluster: &Arc<Cluster>,
        endpoint: &Endpoint,
        tunnel: &Tunnel,
    ) -> Result<(Upstream, Option<Permit>), Reset> {
        // Nothing names the proxy in a request, so TLS with it is for the host that the route names. Envoy sends no SNI.
        let host = cluster.config.service.host.as_bytes();
        let key = Key::new(cluster, &endpoint.address, host, &self.facts.connection);
        let tunneled = tunnel::open(&self.worker.pools, cluster, &key, &endpoint.alternatives(), tunnel).await?;
        self.facts.upstream_tls = tunneled.tls();
        Ok((Upstream::Tunnel(Box::new(tunneled)), None))
    }

    fn refuse(&mut self, flag: Flag) -> Refused {
        self.facts.flags.set(flag);
        Refused::Reset
    }

    /// Copies both ways until it is over. An end by time closes both sides in good order.
    async fn relay(&mut self, downstream: &mut Transport, upstream: &mut Upstream, chain: &TcpChain) {
        self.counts = self.worker.gateway.telemetry.metrics.tcp.open(&self.facts);
        let mut idle = chain.idle_timeout.map(Idle::new);
        let mut relay = Relay::default();
        let mut loss: Option<Pin<Box<dyn Future<Output = ()>>>> = None;
        let end = poll_fn(|cx| {
            let mut end = relay.poll(cx, downstream, upstream);
            if self.note_bytes(&relay)
                && let Some(idle) = &mut idle
            {
                idle.moved();
            }
            if end.is_pending()
                && let Some(side) = relay.half_ended()
            {
                let loss = loss.get_or_insert_with(|| match side {
                    Side::Downstream => Box::pin(downstream.socket().loss()),
                    Side::Upstream => upstream.loss(),
                });
                // A client that has its upstream's end keeps what it was sent before.
                end = loss.as_mut().poll(cx).map(|()| End::Gone { side, reset: side == Side::Downstream });
            }
            if end.is_pending()
                && let Some(idle) = &mut idle
            {
                return idle.poll(cx).map(|()| End::Both);
            }
            end
        })
        .await;
        match end {
            End::Gone { side: Side::Upstream, reset: true } => {
                self.facts.flags.set(Flag::UR);
                downstream.reset_on_close();
            }
            End::Gone { side: Side::Downstream, reset: true } => upstream.reset_on_close(),
            End::Gone { .. } | End::Both => {}
        }
    }

    /// Counts what has passed since the last time; whether there was anything.
    fn note_bytes(&mut self, relay: &Relay) -> bool {
        let (received, sent) = (relay.received(), relay.sent());
        let news = (received - self.facts.bytes_received, sent - self.facts.bytes_sent);
        if news == (0, 0) {
            return false;
        }
        (self.facts.bytes_received, self.facts.bytes_sent) = (received, sent);
        if let Some(counts) = &self.counts {
            counts.moved(news.0, news.1);
        }
        true
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let telemetry = &self.worker.gateway.telemetry;
        let counts = self.counts.take().or_else(|| telemetry.metrics.tcp.open(&self.facts));
        if let Some(counts) = counts {
            counts.closed();
        }
        telemetry.log(&self.worker.gateway.state.load(), &self.facts);
    }
}

/// Counts and logs refused egress of raw TCP, which has no host but in its SNI.
fn deny(worker: &Worker, connection: &ConnectionFacts, reason: Reason) {
    worker.gateway.egress.denials.deny(&Denial {
        reason,
        connection,
        client: connection.remote,
        authority: connection.server_name.as_deref().unwrap_or_default().as_bytes(),
        port: connection.port,
        protocol: Protocol::Tls,
    });
}

/// One destination by weight; `draw` returns a number below the one it is given.
fn choose(destinations: &[TcpDestination], draw: impl FnOnce(u64) -> u64) -> Option<&ClusterName> {
    if let [only] = destinations {
        return Some(&only.cluster);
    }
    let total: u64 = destinations.iter().map(|destination| u64::from(destination.weight)).sum();
    let mut drawn = draw(total);
    for destination in destinations {
        let weight = u64::from(destination.weight);
        if drawn < weight {
            return Some(&destination.cluster);
        }
        drawn -= weight;
    }
    None
}

#[cfg(test)]
mod tests;
