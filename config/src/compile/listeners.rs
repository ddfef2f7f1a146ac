//! Servers become listeners: a filter chain for each way in which a connection may go on.
//!
//! Source: `reference/networking.md` §2.3-2.5, §2.8, §3.2, §3.18-3.20.

mod chains;
mod tables;

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::clusters;
use super::egress::Egress;
use super::options::Options;
use super::report::{Field, Report};
use super::servers::{Server, ServerKind, Terminated};
use super::virtual_services::ServerRoutes;
use crate::diagnostic::{Code, Severity};
use crate::snapshot::ResourceName;
use crate::snapshot::egress::ForwardProxy;
use crate::snapshot::listener::{Bind, FilterChain, HttpSettings, Listener};

use chains::{Draft, DraftHandler, DraftTransport, Known};
use tables::Tables;

/// What listeners are made with.
pub(super) struct Context<'a> {
    pub(super) options: &'a Options,
    pub(super) destinations: &'a clusters::Context<'a>,
    /// What forward proxies let out.
    pub(super) egress: Option<&'a Egress>,
}

/// The listeners of the compile before.
#[derive(Debug, Default)]
pub(super) struct Memo {
    settings: Arc<HttpSettings>,
    tables: Tables,
    listeners: AHashMap<(Bind, u16), Arc<Listener>>,
}

/// Makes the listeners of `servers`, whose routes are `routes`, in order of bind address and port.
pub(super) fn compile(
    context: &Context<'_>,
    servers: &[Arc<Server>],
    routes: &[ServerRoutes<'_>],
    memo: &mut Memo,
    report: &mut Report,
) -> Vec<Arc<Listener>> {
    let mesh = context.destinations.mesh;
    if *memo.settings != mesh.http {
        memo.settings = Arc::new(mesh.http.clone());
    }
    let mut groups: BTreeMap<(Bind, u16), Vec<(&Server, &ServerRoutes<'_>)>> = BTreeMap::new();
    for (server, routes) in servers.iter().zip(routes) {
        groups.entry((server.bind.clone(), server.port)).or_default().push((server, routes));
    }
    let mut listeners = Vec::with_capacity(groups.len());
    let mut made = AHashMap::with_capacity(groups.len());
    for (key, servers) in groups {
        let known = memo.listeners.remove(&key);
        let (bind, port) = key;
        let mut port_chains = PortChains {
            context,
            bind: &bind,
            port,
            tables: &mut memo.tables,
            settings: &memo.settings,
            known: Known::new(known.as_ref().map(|known| known.filter_chains.as_slice()).unwrap_or_default()),
            claims: AHashMap::new(),
            chains: Vec::new(),
            report,
        };
        port_chains.add(&servers);
        let filter_chains = port_chains.chains;
        if filter_chains.is_empty() {
            continue;
        }
        let mapped = context.options.port_map.get(&port).copied();
        let target_port = mapped.or_else(|| context.destinations.registry.target_port(port)).unwrap_or(port);
        let listener =
            Listener { bind: bind.clone(), port, target_port, proxy_protocol: mesh.proxy_protocol, filter_chains };
        let listener = match known {
            Some(known) if is_same(&known, &listener) => known,
            _ => Arc::new(listener),
        };
        made.insert((bind, port), Arc::clone(&listener));
        listeners.push(listener);
    }
    memo.tables.forget_unused();
    memo.listeners = made;
    listeners
}

fn is_same(known: &Listener, listener: &Listener) -> bool {
    let Listener { bind, port, target_port, proxy_protocol, filter_chains } = known;
    *bind == listener.bind
        && *port == listener.port
        && *target_port == listener.target_port
        && *proxy_protocol == listener.proxy_protocol
        && filter_chains.len() == listener.filter_chains.len()
        && filter_chains.iter().zip(&listener.filter_chains).all(|(known, chain)| Arc::ptr_eq(known, chain))
}

/// The chains of a port in the making.
struct PortChains<'a, 'r> {
    context: &'a Context<'a>,
    bind: &'a Bind,
    port: u16,
    tables: &'a mut Tables,
    settings: &'a Arc<HttpSettings>,
    /// Of the compile before.
    known: Known<'a>,
    /// Server names that chains have, with the chain's owner; the empty name stands for all that no other has.
    claims: AHashMap<Arc<str>, Owner<'a>>,
    chains: Vec<Arc<FilterChain>>,
    report: &'r mut Report,
}

/// Whose chain a server name leads to.
#[derive(Clone)]
enum Owner<'a> {
    Server(&'a Server),
    Route(ResourceName),
}

impl Owner<'_> {
    fn describe(&self) -> String {
        match self {
            Self::Server(server) => server.describe(),
            Self::Route(resource) => resource.to_string(),
        }
    }
}

impl<'a> PortChains<'a, '_> {
    /// Adds the chains of all servers of the port. Those of plaintext HTTP share one.
    fn add(&mut self, servers: &[(&'a Server, &'a ServerRoutes<'_>)]) {
        if servers.iter().any(|(server, _)| matches!(server.kind, ServerKind::Http { .. })) {
            self.add_plaintext_http(servers);
            return;
        }
        for &(server, routes) in servers {
            match &server.kind {
                ServerKind::Http { .. } => {}
                ServerKind::Https(terminated) => self.add_https(server, terminated, routes),
                ServerKind::Tls(terminated) => self.add_tcp(server, Some(terminated), routes),
                ServerKind::Tcp => self.add_tcp(server, None, routes),
                ServerKind::Passthrough => self.add_passthrough(server, routes),
            }
        }
    }

    fn add_plaintext_http(&mut self, servers: &[(&Server, &ServerRoutes<'_>)]) {
        self.report_mixed(servers);
        let name: Arc<str> = table_name(self.bind, self.port).into();
        let routes = self.tables.table(&name, self.port, servers);
        let mut gateways: Vec<ResourceName> = Vec::new();
        let mut known = AHashSet::new();
        for (server, _) in servers {
            if known.insert(&server.gateway_name) {
                gateways.push(server.gateway.name());
            }
        }
        self.push(Draft {
            name: &name,
            gateways,
            server_names: &[],
            transport: DraftTransport::Plaintext,
            handler: DraftHandler::Http { routes, settings: self.settings, forward_proxy: self.forward_proxy(servers) },
        });
    }

    /// The forward proxy of the port, for the hosts of all servers that are one.
    fn forward_proxy(&self, servers: &[(&Server, &ServerRoutes<'_>)]) -> Option<ForwardProxy> {
        let egress = self.context.egress?;
        let proxies = servers.iter().map(|(server, _)| *server).filter(|server| server.is_forward_proxy());
        let mut hosts: Vec<Arc<str>> = Vec::new();
        for host in proxies.flat_map(|server| &server.hosts) {
            let host: Arc<str> = host.name().to_ascii_lowercase().into();
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        (!hosts.is_empty()).then(|| ForwardProxy {
            hosts,
            destinations: Arc::clone(&egress.destinations),
            passthrough: egress.passthrough.clone(),
        })
    }

    fn add_https(&mut self, server: &'a Server, terminated: &Terminated, routes: &ServerRoutes<'_>) {
        if !self.claim_for_server(server, &terminated.server_names) {
            return;
        }
        let routes = self.tables.table(&server.chain_name, self.port, &[(server, routes)]);
        self.push(Draft {
            name: &server.chain_name,
            gateways: vec![server.gateway.name()],
            server_names: &terminated.server_names,
            transport: DraftTransport::Terminate(&terminated.tls),
            handler: DraftHandler::Http { routes, settings: self.settings, forward_proxy: None },
        });
    }

    /// Bytes, inside of TLS that ends here or by themselves.
    fn add_tcp(&mut self, server: &'a Server, terminated: Option<&Terminated>, routes: &ServerRoutes<'_>) {
        let Some(route) = routes.streams.iter().find_map(|routes| routes.streams.first()) else {
            let loss = match terminated {
                Some(_) => "its connections are reset".to_owned(),
                None => format!("nothing listens on port {}, and no other server can have it", self.port),
            };
            self.report_unrouted(server, "tcp", &loss);
            return;
        };
        let (server_names, transport): (&[Arc<str>], _) = match terminated {
            Some(Terminated { tls, server_names }) => (server_names, DraftTransport::Terminate(tls)),
            None => (&[], DraftTransport::Plaintext),
        };
        if !self.claim_for_server(server, server_names) {
            return;
        }
        let chain = chains::tcp_chain(route, self.context);
        self.push(Draft {
            name: &server.chain_name,
            gateways: vec![server.gateway.name()],
            server_names,
            transport,
            handler: DraftHandler::Tcp(chain),
        });
    }

    /// A chain for each match entry of the routes.
    fn add_passthrough(&mut self, server: &'a Server, routes: &ServerRoutes<'_>) {
        let mut streams = routes.streams.iter().flat_map(|routes| &routes.streams).peekable();
        if streams.peek().is_none() {
            self.report_unrouted(server, "tls", "its connections are reset");
        }
        for route in streams {
            let owner = Owner::Route(route.resource.name());
            if let Some((name, owner)) = self.claim(&route.server_names, owner) {
                let spec = Field::spec(&route.resource);
                let entry = spec.name(&route.path);
                let message = format!(
                    "{} has {name} on port {}: this match entry is left out as a whole",
                    owner.describe(),
                    self.port
                );
                self.report.warning(Code::Conflict, entry.name("sniHosts"), message);
                continue;
            }
            // The first server name tells the chain from all others of the listener.
            let first = route.server_names.first().map_or("*", |name| &**name);
            let meta = &route.resource.meta;
            let name = format!("{}/{}/{}/{first}", server.chain_name, meta.namespace, meta.name).into();
            let chain = chains::tcp_chain(route, self.context);
            self.push(Draft {
                name: &name,
                gateways: vec![server.gateway.name()],
                server_names: &route.server_names,
                transport: DraftTransport::Passthrough,
                handler: DraftHandler::Tcp(chain),
            });
        }
    }

    /// Whether none of the names belongs to an older chain.
    fn claim_for_server(&mut self, server: &'a Server, names: &[Arc<str>]) -> bool {
        let Some((name, owner)) = self.claim(names, Owner::Server(server)) else { return true };
        let message =
            format!("{} has {name} on port {}: this server is left out as a whole", owner.describe(), self.port);
        let spec = Field::spec(&server.gateway);
        let list = spec.name("servers");
        let field = list.index(server.index);
        self.report.warning(Code::Conflict, field.name("hosts"), message);
        false
    }

    /// Claims all of `names` for `owner`, or none: then says which is taken, and by whom.
    fn claim(&mut self, names: &[Arc<str>], owner: Owner<'a>) -> Option<(String, Owner<'a>)> {
        let all: Arc<str>;
        let names = match names {
            [] => {
                all = "".into();
                std::slice::from_ref(&all)
            }
            names => names,
        };
        for name in names {
            if let Some(taken) = self.claims.get(name) {
                let name = match &**name {
                    "" => "what no other name stands for".to_owned(),
                    name => format!("the server name \"{name}\""),
                };
                return Some((name, taken.clone()));
            }
        }
        self.claims.extend(names.iter().map(|name| (Arc::clone(name), owner.clone())));
        None
    }

    /// Says that clients of a server can use the forward proxy that shares its port.
    fn report_mixed(&mut self, servers: &[(&Server, &ServerRoutes<'_>)]) {
        let servers = || servers.iter().map(|(server, _)| *server);
        let Some(other) = servers().find(|server| !server.is_forward_proxy()) else { return };
        for proxy in servers().filter(|server| server.is_forward_proxy()) {
            let spec = Field::spec(&proxy.gateway);
            let list = spec.name("servers");
            let server = list.index(proxy.index);
            let port = server.name("port");
            let message = format!(
                "{} serves port {} as well: all of its clients can use this forward proxy",
                other.describe(),
                self.port
            );
            let help = "give the forward proxy a port of its own".to_owned();
            self.report.add(Severity::Warning, Code::SchemaWarning, port.name("protocol"), message, Some(help));
        }
    }

    fn report_unrouted(&mut self, server: &Server, list: &str, loss: &str) {
        let spec = Field::spec(&server.gateway);
        let servers = spec.name("servers");
        let message = format!("no VirtualService has a `{list}` rule for this server: {loss}");
        let help = format!("add a VirtualService with one of these hosts, this Gateway and a `{list}` rule");
        let field = servers.index(server.index);
        self.report.add(Severity::Warning, Code::SchemaWarning, field.name("hosts"), message, Some(help));
    }

    fn push(&mut self, draft: Draft<'_>) {
        let chain = self.known.same_or_new(self.chains.len(), draft);
        self.chains.push(chain);
    }
}

/// `http.<port>[.<bind>]`.
fn table_name(bind: &Bind, port: u16) -> String {
    match bind {
        Bind::Default => format!("http.{port}"),
        Bind::Ip(ip) => format!("http.{port}.{ip}"),
        Bind::UnixPath(path) => format!("http.{port}.unix://{}", path.display()),
        Bind::UnixAbstract(name) => format!("http.{port}.unix://@{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names() {
        assert_eq!(table_name(&Bind::Default, 80), "http.80");
        assert_eq!(table_name(&Bind::Ip([127, 0, 0, 1].into()), 80), "http.80.127.0.0.1");
    }
}
