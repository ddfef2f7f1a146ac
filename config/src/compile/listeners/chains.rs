//! Filter chains: those of the compile before wherever nothing about them changed.
//!
//! Source: `reference/networking.md` §3.20, §5.8.

use std::cell::OnceCell;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use super::super::destination_rules::Rule;
use super::super::routes::StreamRoute;
use super::Context;
use crate::resource::destination_rule::TunnelSettings;
use crate::snapshot::ResourceName;
use crate::snapshot::egress::ForwardProxy;
use crate::snapshot::host::RouteTable;
use crate::snapshot::listener::{FilterChain, Handler, HttpChain, HttpSettings, TcpChain, Transport, Tunnel};
use crate::snapshot::tls::ServerTls;

/// A connection without a byte in either direction is closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// A filter chain in the making.
pub(super) struct Draft<'a> {
    pub(super) name: &'a Arc<str>,
    pub(super) gateways: Vec<ResourceName>,
    pub(super) server_names: &'a [Arc<str>],
    pub(super) transport: DraftTransport<'a>,
    pub(super) handler: DraftHandler<'a>,
}

pub(super) enum DraftTransport<'a> {
    Plaintext,
    Terminate(&'a Arc<ServerTls>),
    Passthrough,
}

pub(super) enum DraftHandler<'a> {
    Http { routes: Arc<RouteTable>, settings: &'a Arc<HttpSettings>, forward_proxy: Option<ForwardProxy> },
    Tcp(TcpChain),
}

/// The chains of a listener in the compile before.
pub(super) struct Known<'a> {
    chains: &'a [Arc<FilterChain>],
    by_name: OnceCell<AHashMap<&'a str, &'a Arc<FilterChain>>>,
}

impl<'a> Known<'a> {
    pub(super) fn new(chains: &'a [Arc<FilterChain>]) -> Self {
        Self { chains, by_name: OnceCell::new() }
    }

    /// The chain of before that is called like `draft`. Most are still at the same `position`.
    fn find(&self, position: usize, name: &str) -> Option<&'a Arc<FilterChain>> {
        if let Some(chain) = self.chains.get(position).filter(|chain| *chain.name == *name) {
            return Some(chain);
        }
        let index = || self.chains.iter().map(|chain| (&*chain.name, chain)).collect();
        self.by_name.get_or_init(index).get(name).copied()
    }

    /// The chain that `draft` describes: the one of before, or a new one with the parts of it that are the same.
    pub(super) fn same_or_new(&self, position: usize, draft: Draft<'_>) -> Arc<FilterChain> {
        let Draft { name, gateways, server_names, transport, handler } = draft;
        let known = self.find(position, name);
        let transport = match (transport, known.map(|known| &known.transport)) {
            (DraftTransport::Plaintext, _) => Transport::Plaintext,
            (DraftTransport::Passthrough, _) => Transport::Passthrough,
            (DraftTransport::Terminate(tls), Some(Transport::Terminate(known)))
                if Arc::ptr_eq(known, tls) || known == tls =>
            {
                Transport::Terminate(Arc::clone(known))
            }
            (DraftTransport::Terminate(tls), _) => Transport::Terminate(Arc::clone(tls)),
        };
        let handler = match (handler, known.map(|known| &known.handler)) {
            (DraftHandler::Http { routes, settings, forward_proxy }, Some(Handler::Http(known)))
                if Arc::ptr_eq(&known.routes, &routes)
                    && Arc::ptr_eq(&known.settings, settings)
                    && is_same_proxy(known.forward_proxy.as_deref(), forward_proxy.as_ref()) =>
            {
                Handler::Http(Arc::clone(known))
            }
            (DraftHandler::Http { routes, settings, forward_proxy }, _) => {
                let (settings, forward_proxy) = (Arc::clone(settings), forward_proxy.map(Arc::new));
                Handler::Http(Arc::new(HttpChain { routes, settings, forward_proxy }))
            }
            (DraftHandler::Tcp(chain), Some(Handler::Tcp(known))) if **known == chain => {
                Handler::Tcp(Arc::clone(known))
            }
            (DraftHandler::Tcp(chain), _) => Handler::Tcp(Arc::new(chain)),
        };
        if let Some(known) = known
            && known.gateways == gateways
            && *known.server_names == *server_names
            && is_same_transport(&known.transport, &transport)
            && is_same_handler(&known.handler, &handler)
        {
            return Arc::clone(known);
        }
        let (name, server_names) = (Arc::clone(name), server_names.to_vec());
        Arc::new(FilterChain { name, gateways, server_names, transport, handler })
    }
}

fn is_same_proxy(known: Option<&ForwardProxy>, new: Option<&ForwardProxy>) -> bool {
    let (Some(known), Some(new)) = (known, new) else { return known.is_none() && new.is_none() };
    let ForwardProxy { hosts, destinations, passthrough } = known;
    let is_same_route = match (passthrough, &new.passthrough) {
        (Some(known), Some(new)) => Arc::ptr_eq(known, new),
        (known, new) => known.is_none() && new.is_none(),
    };
    *hosts == new.hosts && Arc::ptr_eq(destinations, &new.destinations) && is_same_route
}

fn is_same_transport(known: &Transport, new: &Transport) -> bool {
    match (known, new) {
        (Transport::Plaintext, Transport::Plaintext) | (Transport::Passthrough, Transport::Passthrough) => true,
        (Transport::Terminate(known), Transport::Terminate(new)) => Arc::ptr_eq(known, new),
        _ => false,
    }
}

fn is_same_handler(known: &Handler, new: &Handler) -> bool {
    match (known, new) {
        (Handler::Http(known), Handler::Http(new)) => Arc::ptr_eq(known, new),
        (Handler::Tcp(known), Handler::Tcp(new)) => Arc::ptr_eq(known, new),
        _ => false,
    }
}

/// Where `route` leads, with the time limits and the tunnel that the DestinationRule of its first destination sets for
/// the whole service.
pub(super) fn tcp_chain(route: &StreamRoute, context: &Context<'_>) -> TcpChain {
    let StreamRoute { resource, path: _, server_names: _, destinations, first_host, only_subset } = route;
    let rule = context.destinations.rule(first_host);
    let policy = rule.as_deref().and_then(Rule::traffic_policy);
    let tcp = policy.and_then(|policy| policy.connection_pool.as_ref()).and_then(|pool| pool.tcp.as_ref());
    let idle_timeout = tcp.and_then(|tcp| tcp.idle_timeout).or(context.options.features.idle_timeout);
    let subset = rule.as_deref().and_then(|rule| rule.subset_part(only_subset)?.2.traffic_policy.as_ref());
    let tunnel_settings = subset.and_then(|policy| policy.tunnel.as_ref());
    let tunnel_settings = tunnel_settings.or_else(|| policy.and_then(|policy| policy.tunnel.as_ref()));
    TcpChain {
        destinations: destinations.clone(),
        idle_timeout: Some(idle_timeout.unwrap_or(IDLE_TIMEOUT)).filter(|timeout| !timeout.is_zero()),
        max_connection_duration: tcp.and_then(|tcp| tcp.max_connection_duration).filter(|limit| !limit.is_zero()),
        tunnel: tunnel_settings.map(|settings| Arc::new(tunnel(settings))),
        resource: resource.name(),
    }
}

/// Source: `reference/networking.md` §5.8.
fn tunnel(settings: &TunnelSettings) -> Tunnel {
    let TunnelSettings { protocol, target_host, target_port } = settings;
    let target = match target_host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{target_port}"),
        Err(_) => format!("{target_host}:{target_port}"),
    };
    Tunnel { post: protocol == "POST", target }
}
