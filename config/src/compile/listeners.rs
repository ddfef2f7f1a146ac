//! Servers of Gateways become listeners with their route tables.
//!
//! Source: `reference/networking.md` §2.1-2.3, §2.5, §2.8, §3.2, §3.3.

mod tables;

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::MeshSettings;
use super::options::Options;
use super::protocol::Protocol;
use super::report::{Field, Report};
use super::services::Registry;
use super::virtual_services::{ServerRoutes, split_host};
use super::world::{Object, World};
use crate::diagnostic::Code;
use crate::resource::gateway::{Gateway, Port, Server as ServerSpec};
use crate::snapshot::listener::{Bind, FilterChain, Handler, HttpChain, HttpSettings, Listener, Transport};

use tables::Tables;

/// A server in force, which is a plaintext HTTP server.
pub(super) struct Server<'a> {
    pub(super) gateway: Object<'a, Gateway>,
    /// `namespace/name`.
    pub(super) gateway_name: Arc<str>,
    /// In `spec.servers`.
    pub(super) index: usize,
    pub(super) bind: Bind,
    /// As the Gateway says.
    pub(super) port: u16,
    pub(super) hosts: Vec<Host>,
    /// Plain requests are sent to https.
    pub(super) https_redirect: bool,
}

/// A host of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// Only VirtualServices of this namespace may bind.
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

/// What the first server of a port makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PortState {
    Http,
    Tcp,
    Tls,
}

/// The servers of the Gateways that select this gateway, oldest first, without those that conflict with older ones.
pub(super) fn select<'a>(world: &World<'a>, options: &Options, report: &mut Report) -> Vec<Server<'a>> {
    let mut selection = Selection::default();
    for &gateway in &world.gateways {
        let Gateway { servers, selector } = gateway.spec;
        let in_scope = !options.features.scope_gateway_to_namespace || *gateway.namespace() == options.namespace;
        if !in_scope || !options.is_selected_by(selector) {
            continue;
        }
        let name: Arc<str> = format!("{}/{}", gateway.namespace(), gateway.resource.meta.name).into();
        for (index, server) in servers.iter().enumerate() {
            selection.add(gateway, &name, index, server, report);
        }
    }
    selection.servers
}

#[derive(Default)]
struct Selection<'a> {
    servers: Vec<Server<'a>>,
    ports: AHashMap<(Bind, u16), PortState>,
    /// Hosts of servers with a `tls` block, as written: none of them may be repeated on the port.
    tls_hosts: AHashSet<(Bind, u16, String)>,
}

impl<'a> Selection<'a> {
    fn add(
        &mut self,
        gateway: Object<'a, Gateway>,
        name: &Arc<str>,
        index: usize,
        server: &ServerSpec,
        report: &mut Report,
    ) {
        let ServerSpec {
            port,
            bind,
            hosts,
            tls,
            default_endpoint,
            // Names statistics of HTTPS servers.
            name: _,
        } = server;
        let spec = Field::spec(gateway.resource);
        let list = spec.name("servers");
        let field = list.index(index);
        let port_field = field.name("port");
        if !default_endpoint.is_empty() {
            report.warning(Code::Ignored, field.name("defaultEndpoint"), "has no effect, in Istio neither");
        }
        let Some(Port { number, protocol: protocol_name, name: _, target_port: _ }) = port else {
            report.error(Code::SchemaValidationError, port_field, "a server needs a port");
            return;
        };
        let Some(bind) = parse_bind(bind) else {
            report.error(
                Code::SchemaValidationError,
                field.name("bind"),
                "not an IP address, unix:///path or unix://@name",
            );
            return;
        };
        let is_unix = matches!(bind, Bind::UnixPath(_) | Bind::UnixAbstract(_));
        let Some(port) = u16::try_from(*number).ok().filter(|&port| (port == 0) == is_unix) else {
            report.error(Code::SchemaValidationError, port_field.name("number"), "not a port from 1 to 65535");
            return;
        };
        let hosts = clean_hosts(hosts, gateway.namespace());
        let key = (bind.clone(), port);
        if tls.is_some() {
            let taken = |host: &&String| self.tls_hosts.contains(&(bind.clone(), port, (*host).clone()));
            if let Some(host) = hosts.iter().find(taken) {
                let message = format!(
                    "an older server on port {port} has the host \"{host}\" too: this server is left out as a whole"
                );
                report.warning(Code::Conflict, field.name("hosts"), message);
                return;
            }
        }
        let protocol = Protocol::parse(protocol_name);
        let kind = match (protocol, tls) {
            (protocol, _) if protocol.is_http() => PortState::Http,
            (_, Some(_)) | (Protocol::Tls, None) => PortState::Tls,
            (_, None) => PortState::Tcp,
        };
        let state = *self.ports.entry(key).or_insert(kind);
        if state != kind {
            let message = format!("an older server makes port {port} something else: this one is left out");
            report.warning(Code::Conflict, port_field.name("protocol"), message);
            return;
        }
        if tls.is_some() {
            self.tls_hosts.extend(hosts.iter().map(|host| (bind.clone(), port, host.clone())));
        }
        match kind {
            PortState::Http => {}
            PortState::Tls => {
                let field = if tls.is_some() { field.name("tls") } else { port_field.name("protocol") };
                report.error(Code::Unsupported, field, "TLS servers are not supported yet: nothing listens here");
                return;
            }
            PortState::Tcp => {
                let message = "TCP servers are not supported yet: nothing listens here";
                report.error(Code::Unsupported, port_field.name("protocol"), message);
                return;
            }
        }
        self.servers.push(Server {
            gateway,
            gateway_name: Arc::clone(name),
            index,
            bind,
            port,
            hosts: hosts.iter().map(|host| Host::parse(host)).collect(),
            https_redirect: tls.as_ref().is_some_and(|tls| tls.https_redirect),
        });
    }
}

fn parse_bind(bind: &str) -> Option<Bind> {
    if bind.is_empty() {
        return Some(Bind::Default);
    }
    match bind.strip_prefix("unix://") {
        None => bind.parse().ok().map(Bind::Ip),
        Some("") => None,
        Some(path) => Some(match path.strip_prefix('@') {
            Some(name) => Bind::UnixAbstract(name.to_owned()),
            None => Bind::UnixPath(path.into()),
        }),
    }
}

/// Hosts with `./` resolved. `*/*` makes all others superfluous.
fn clean_hosts(hosts: &[String], namespace: &str) -> Vec<String> {
    if hosts.iter().any(|host| host == "*/*") {
        return vec!["*".to_owned()];
    }
    let resolve = |host: &String| match host.strip_prefix("./") {
        Some(name) => format!("{namespace}/{name}"),
        None => host.clone(),
    };
    hosts.iter().map(resolve).collect()
}

impl Server<'_> {
    /// Domains of virtual hosts that are there for the redirect alone.
    fn redirect_domains(&self) -> Vec<Arc<str>> {
        match self.https_redirect {
            true => self.hosts.iter().filter_map(Host::redirect_domain).collect(),
            false => Vec::new(),
        }
    }
}

impl Host {
    fn parse(host: &str) -> Self {
        let (namespace, name) = split_host(host);
        let namespace = Some(namespace).filter(|namespace| !matches!(*namespace, "" | "*"));
        Self { namespace: namespace.map(str::to_owned), name: name.to_owned() }
    }

    /// The domain of a virtual host that only redirects: there must be no namespace before it, as in Istio, which uses
    /// the text as it stands.
    fn redirect_domain(&self) -> Option<Arc<str>> {
        self.namespace.is_none().then(|| self.name.to_ascii_lowercase().into())
    }
}

/// The listeners of the compile before.
#[derive(Debug, Default)]
pub(super) struct Memo {
    settings: Arc<HttpSettings>,
    tables: Tables,
    listeners: Vec<Arc<Listener>>,
}

/// Makes the listeners of `servers`, whose routes are `routes`, in order of bind address and port.
pub(super) fn compile(
    registry: &Registry,
    options: &Options,
    mesh: &MeshSettings,
    servers: &[Server<'_>],
    routes: &[ServerRoutes<'_>],
    memo: &mut Memo,
) -> Vec<Arc<Listener>> {
    if *memo.settings != mesh.http {
        memo.settings = Arc::new(mesh.http.clone());
    }
    let mut groups: BTreeMap<(Bind, u16), Vec<(&Server<'_>, &ServerRoutes<'_>)>> = BTreeMap::new();
    for (server, routes) in servers.iter().zip(routes) {
        groups.entry((server.bind.clone(), server.port)).or_default().push((server, routes));
    }
    let mut listeners = Vec::with_capacity(groups.len());
    for ((bind, port), servers) in groups {
        let routes = memo.tables.table(table_name(&bind, port), port, &servers);
        let mut gateways = Vec::new();
        for (server, _) in &servers {
            let gateway = server.gateway.resource.name();
            if !gateways.contains(&gateway) {
                gateways.push(gateway);
            }
        }
        let mapped = options.port_map.get(&port).copied();
        let target = mapped.or_else(|| registry.target_port(port));
        let chain = FilterChain {
            name: routes.name.as_str().into(),
            gateways,
            server_names: Vec::new(),
            transport: Transport::Plaintext,
            handler: Handler::Http(Arc::new(HttpChain { routes, settings: Arc::clone(&memo.settings) })),
        };
        listeners.push(reuse(&memo.listeners, bind, port, target.unwrap_or(port), chain));
    }
    memo.tables.forget_unused();
    memo.listeners.clone_from(&listeners);
    listeners
}

/// The listener of before, if nothing about it changed.
fn reuse(before: &[Arc<Listener>], bind: Bind, port: u16, target_port: u16, chain: FilterChain) -> Arc<Listener> {
    let known = before.iter().find(|known| {
        let [known_chain] = known.filter_chains.as_slice() else { return false };
        let (Some(known_http), Some(http)) = (known_chain.http(), chain.http()) else { return false };
        known.bind == bind
            && known.port == port
            && known.target_port == target_port
            && known_chain.gateways == chain.gateways
            && Arc::ptr_eq(&known_http.routes, &http.routes)
            && Arc::ptr_eq(&known_http.settings, &http.settings)
    });
    match known {
        Some(known) => Arc::clone(known),
        None => {
            Arc::new(Listener { bind, port, target_port, proxy_protocol: false, filter_chains: vec![Arc::new(chain)] })
        }
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
    fn binds() {
        assert_eq!(parse_bind(""), Some(Bind::Default));
        assert_eq!(parse_bind("127.0.0.1"), "127.0.0.1".parse().ok().map(Bind::Ip));
        assert_eq!(parse_bind("::1"), "::1".parse().ok().map(Bind::Ip));
        assert_eq!(parse_bind("unix:///run/x"), Some(Bind::UnixPath("/run/x".into())));
        assert_eq!(parse_bind("unix://@x"), Some(Bind::UnixAbstract("x".to_owned())));
        assert_eq!(parse_bind("unix://"), None);
        assert_eq!(parse_bind("localhost"), None);
    }

    #[test]
    fn hosts_of_servers() {
        let clean = |hosts: &[&str]| {
            let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
            clean_hosts(&hosts, "gw")
        };
        assert_eq!(clean(&["a.com", "*/*", "b.com"]), ["*"]);
        assert_eq!(clean(&["./a.com", "ns/b.com", "*/c.com"]), ["gw/a.com", "ns/b.com", "*/c.com"]);
        for (host, namespace, name, redirect) in [
            ("a.com", None, "a.com", Some("a.com")),
            ("A.com", None, "A.com", Some("a.com")),
            ("*/a.com", None, "a.com", Some("a.com")),
            ("ns/*.a.com", Some("ns"), "*.a.com", None),
        ] {
            let parsed = Host::parse(host);
            assert_eq!(parsed, Host { namespace: namespace.map(str::to_owned), name: name.to_owned() }, "{host}");
            assert_eq!(parsed.redirect_domain().as_deref(), redirect, "{host}");
        }
    }

    #[test]
    fn table_names() {
        assert_eq!(table_name(&Bind::Default, 80), "http.80");
        assert_eq!(table_name(&Bind::Ip([127, 0, 0, 1].into()), 80), "http.80.127.0.0.1");
    }
}
