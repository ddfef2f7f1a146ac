//! Which servers of Gateways are in force, and what each makes of its port.
//!
//! Source: `reference/networking.md` §2.1-2.5.

mod host;
mod index;
mod tls;

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::options::Options;
use super::protocol::Protocol;
use super::report::{Field, Report};
use super::same;
use super::tls::TlsDefaults;
use super::world::{Object, World};
use crate::credential::CredentialUse;
use crate::diagnostic::{Code, Diagnostic, Severity};
use crate::resource::Resource;
use crate::resource::gateway::{Gateway, Port, Server as ServerSpec, ServerTlsMode, ServerTlsSettings};
use crate::snapshot::listener::Bind;
use crate::snapshot::tls::ServerTls;

pub(super) use host::Host;
pub(super) use index::Bound;

/// A server in force.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) gateway: Arc<Resource>,
    /// `namespace/name`.
    pub(super) gateway_name: Arc<str>,
    /// In `spec.servers`.
    pub(super) index: usize,
    pub(super) bind: Bind,
    /// As the Gateway says.
    pub(super) port: u16,
    pub(super) hosts: Vec<Host>,
    /// `https.<port>.<port name>.<gateway>.<namespace>`, or with `tcp` and `tls` in place of `https`. Plaintext HTTP
    /// servers share a chain, which has another name.
    pub(super) chain_name: Arc<str>,
    pub(super) kind: ServerKind,
    /// It has a `tls` block, if only for a redirect.
    has_tls: bool,
    credentials: Vec<CredentialUse>,
}

/// What a server does with connections.
#[derive(Debug)]
pub(super) enum ServerKind {
    /// HTTP, with one route table for all such servers of a port.
    Http {
        /// Plain requests are sent to https.
        https_redirect: bool,
        /// Clients may ask for hosts that no route knows.
        forward_proxy: bool,
    },
    /// TLS with HTTP inside, and a route table of its own.
    Https(Terminated),
    /// TLS with anything else inside.
    Tls(Terminated),
    /// TLS that is passed on, by SNI.
    Passthrough,
    /// Bytes.
    Tcp,
}

/// TLS that ends at a server.
#[derive(Debug)]
pub(super) struct Terminated {
    pub(super) tls: Arc<ServerTls>,
    /// In lower case; none if one of the hosts is `*`.
    pub(super) server_names: Vec<Arc<str>>,
}

/// The list of a VirtualService that a server takes its routes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    Http,
    Tls,
    Tcp,
}

/// What the first server of a port makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PortKind {
    Http,
    Tls,
    Tcp,
}

impl ServerKind {
    /// The routes that count.
    pub(super) fn rules(&self) -> Rules {
        match self {
            Self::Http { .. } | Self::Https(_) => Rules::Http,
            Self::Passthrough => Rules::Tls,
            Self::Tls(_) | Self::Tcp => Rules::Tcp,
        }
    }

    fn port_kind(&self) -> PortKind {
        match self {
            Self::Http { .. } => PortKind::Http,
            Self::Https(_) | Self::Tls(_) | Self::Passthrough => PortKind::Tls,
            Self::Tcp => PortKind::Tcp,
        }
    }
}

impl PortKind {
    fn describe(self) -> &'static str {
        match self {
            Self::Http => "plaintext HTTP",
            Self::Tls => "TLS",
            Self::Tcp => "plaintext TCP",
        }
    }
}

impl Server {
    /// Whether clients may ask for hosts that no route knows (protocol `HTTP_PROXY`).
    pub(super) fn is_forward_proxy(&self) -> bool {
        matches!(self.kind, ServerKind::Http { forward_proxy: true, .. })
    }

    /// Domains of virtual hosts that are there for the redirect alone.
    pub(super) fn redirect_domains(&self) -> Vec<Arc<str>> {
        match self.kind {
            ServerKind::Http { https_redirect: true, .. } => {
                self.hosts.iter().filter_map(Host::redirect_domain).collect()
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn redirects(&self) -> bool {
        matches!(self.kind, ServerKind::Http { https_redirect: true, .. })
    }

    /// The server as findings about others name it.
    pub(super) fn describe(&self) -> String {
        format!("spec.servers[{}] of {}", self.index, self.gateway.name())
    }
}

/// All servers in force, oldest Gateway first.
#[derive(Debug, Default)]
pub(super) struct Servers {
    pub(super) list: Vec<Arc<Server>>,
    by_gateway: AHashMap<String, Bound>,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) credentials: Vec<CredentialUse>,
}

impl Servers {
    /// What there is to know about the Gateway `namespace/name`; `None` if there is none, selected or not.
    pub(super) fn gateway(&self, name: &str) -> Option<&Bound> {
        self.by_gateway.get(name)
    }
}

/// The servers of the compile before.
#[derive(Debug, Default)]
pub(super) struct Memo {
    gateways: Vec<Arc<Resource>>,
    defaults: TlsDefaults,
    /// What each Gateway says, by the address of its resource.
    read: AHashMap<usize, Read>,
    servers: Arc<Servers>,
}

/// The servers of one Gateway, before the others are looked at.
#[derive(Debug, Clone)]
struct Read {
    /// Kept so that no address is reused.
    _resource: Arc<Resource>,
    servers: Arc<[Arc<Server>]>,
    findings: Arc<[Diagnostic]>,
}

/// The servers of the Gateways that select this gateway, without those that conflict with older ones. The same as in
/// the compile before if all Gateways are.
pub(super) fn select(world: &World<'_>, options: &Options, defaults: &TlsDefaults, memo: &mut Memo) -> Arc<Servers> {
    let gateways: Vec<&Arc<Resource>> = world.gateways.iter().map(|gateway| gateway.resource).collect();
    let is_same = same(&gateways, &memo.gateways) && memo.defaults == *defaults;
    if is_same {
        return Arc::clone(&memo.servers);
    }
    let before = std::mem::take(&mut memo.read);
    let before = if memo.defaults == *defaults { before } else { AHashMap::new() };
    let mut selection = Selection::default();
    for &gateway in &world.gateways {
        let Gateway { servers, selector } = gateway.spec;
        let in_scope = !options.features.scope_gateway_to_namespace || *gateway.namespace() == options.namespace;
        let name = format!("{}/{}", gateway.namespace(), gateway.resource.meta.name);
        let first = selection.servers.len();
        if in_scope && options.is_selected_by(selector) {
            let address = Arc::as_ptr(gateway.resource).addr();
            let read = before.get(&address).cloned().unwrap_or_else(|| {
                let reader = Reader { gateway, name: name.as_str().into(), options, defaults };
                reader.read(servers)
            });
            selection.report.diagnostics.extend_from_slice(&read.findings);
            read.servers.iter().for_each(|server| selection.add(server));
            memo.read.insert(address, read);
        }
        let bound = Bound::new(gateway.resource, first, &selection.servers[first..]);
        selection.by_gateway.insert(name, bound);
    }
    let Selection { servers: list, by_gateway, report, ports: _, tables: _ } = selection;
    let credentials = list.iter().flat_map(|server| server.credentials.iter().cloned()).collect();
    memo.servers = Arc::new(Servers { list, by_gateway, diagnostics: report.diagnostics, credentials });
    memo.gateways = gateways.into_iter().cloned().collect();
    memo.defaults.clone_from(defaults);
    Arc::clone(&memo.servers)
}

/// The servers that were taken so far, and what they claim.
#[derive(Default)]
struct Selection {
    servers: Vec<Arc<Server>>,
    by_gateway: AHashMap<String, Bound>,
    ports: AHashMap<(Bind, u16), Claims>,
    /// Names of route tables.
    tables: AHashSet<Arc<str>>,
    report: Report,
}

/// Who has what of a port.
struct Claims {
    first: Arc<Server>,
    /// Hosts of servers with a `tls` block, as written: none of them may be repeated on the port.
    hosts: AHashMap<String, Arc<Server>>,
}

impl Selection {
    fn add(&mut self, server: &Arc<Server>) {
        let Self { servers, by_gateway: _, ports, tables, report } = self;
        let spec = Field::spec(&server.gateway);
        let list = spec.name("servers");
        let field = list.index(server.index);
        let port_field = field.name("port");
        let port = server.port;
        let claims = ports
            .entry((server.bind.clone(), port))
            .or_insert_with(|| Claims { first: Arc::clone(server), hosts: AHashMap::new() });
        if server.has_tls {
            let taken = server.hosts.iter().find_map(|host| Some((host, claims.hosts.get(host.text())?)));
            if let Some((host, owner)) = taken {
                let message = format!(
                    "{} has the host \"{}\" on port {port}: this server is left out as a whole",
                    owner.describe(),
                    host.text()
                );
                report.warning(Code::Conflict, field.name("hosts"), message);
                return;
            }
        }
        let (kind, first) = (server.kind.port_kind(), &claims.first);
        let is_second_stream = kind == PortKind::Tcp && !Arc::ptr_eq(first, server);
        if first.kind.port_kind() != kind || is_second_stream {
            let message = format!(
                "port {port} belongs to {} ({}): this server is left out",
                first.describe(),
                first.kind.port_kind().describe()
            );
            report.warning(Code::Conflict, port_field.name("protocol"), message);
            return;
        }
        if matches!(server.kind, ServerKind::Https(_)) && !tables.insert(Arc::clone(&server.chain_name)) {
            let message = "an earlier server of this Gateway has the same port and port name: this one is left out";
            report.warning(Code::Conflict, port_field.name("name"), message);
            return;
        }
        if server.has_tls {
            let hosts = server.hosts.iter().map(|host| (host.text().to_owned(), Arc::clone(server)));
            claims.hosts.extend(hosts);
        }
        servers.push(Arc::clone(server));
    }
}

/// Reads the servers of one Gateway.
struct Reader<'a> {
    gateway: Object<'a, Gateway>,
    /// `namespace/name`.
    name: Arc<str>,
    options: &'a Options,
    defaults: &'a TlsDefaults,
}

impl Reader<'_> {
    fn read(&self, servers: &[ServerSpec]) -> Read {
        let mut report = Report::default();
        let spec = Field::spec(self.gateway.resource);
        let list = spec.name("servers");
        let servers = servers.iter().enumerate();
        let servers = servers.filter_map(|(index, server)| self.server(index, server, &list.index(index), &mut report));
        Read {
            servers: servers.map(Arc::new).collect(),
            findings: report.diagnostics.into(),
            _resource: Arc::clone(self.gateway.resource),
        }
    }

    fn server(&self, index: usize, server: &ServerSpec, field: &Field<'_>, report: &mut Report) -> Option<Server> {
        let ServerSpec {
            port,
            bind,
            hosts,
            tls,
            default_endpoint,
            // Names statistics of HTTPS servers.
            name: _,
        } = server;
        let port_field = field.name("port");
        if !default_endpoint.is_empty() {
            report.warning(Code::Ignored, field.name("defaultEndpoint"), "has no effect, in Istio neither");
        }
        let Some(Port { number, protocol: protocol_name, name: port_name, target_port: _ }) = port else {
            report.error(Code::SchemaValidationError, port_field, "a server needs a port");
            return None;
        };
        let Some(bind) = parse_bind(bind) else {
            let message = "not an IP address, unix:///path or unix://@name";
            report.error(Code::SchemaValidationError, field.name("bind"), message);
            return None;
        };
        let is_unix = matches!(bind, Bind::UnixPath(_) | Bind::UnixAbstract(_));
        let Some(port) = u16::try_from(*number).ok().filter(|&port| (port == 0) == is_unix) else {
            report.error(Code::SchemaValidationError, port_field.name("number"), "not a port from 1 to 65535");
            return None;
        };
        let hosts = Host::list(hosts, self.gateway.namespace());
        let mut credentials = Vec::new();
        let protocol = Protocol::parse(protocol_name);
        let is_https = protocol_name.eq_ignore_ascii_case("https");
        let kind = match (protocol, tls) {
            (protocol, tls) if protocol.is_http() => ServerKind::Http {
                https_redirect: tls.as_ref().is_some_and(|tls| tls.https_redirect),
                forward_proxy: protocol_name.eq_ignore_ascii_case("HTTP_PROXY"),
            },
            (Protocol::Tls, Some(tls)) => match tls.mode {
                ServerTlsMode::Passthrough => ServerKind::Passthrough,
                ServerTlsMode::AutoPassthrough => {
                    let tls_field = field.name("tls");
                    let help = "this is for gateways between networks; use PASSTHROUGH with `tls` routes".to_owned();
                    let message = "AUTO_PASSTHROUGH is not supported: this server accepts nothing";
                    let mode = tls_field.name("mode");
                    report.add(Severity::Error, Code::Unsupported, mode, message, Some(help));
                    return None;
                }
                ServerTlsMode::Simple
                | ServerTlsMode::Mutual
                | ServerTlsMode::OptionalMutual
                | ServerTlsMode::IstioMutual => {
                    let terminated = self.terminated(tls, is_https, &hosts, field, &mut credentials, report);
                    if is_https { ServerKind::Https(terminated) } else { ServerKind::Tls(terminated) }
                }
            },
            (Protocol::Tls, None) => {
                let message = format!("a server of protocol {protocol_name} needs `tls`: nothing listens here");
                report.error(Code::SchemaValidationError, field.name("tls"), message);
                return None;
            }
            (_, Some(_)) => {
                let message = format!("a server of protocol {protocol_name} can't have `tls`: nothing listens here");
                report.error(Code::SchemaValidationError, field.name("tls"), message);
                return None;
            }
            (_, None) => ServerKind::Tcp,
        };
        let prefix = match &kind {
            ServerKind::Http { .. } => "http",
            ServerKind::Https(_) => "https",
            ServerKind::Tls(_) | ServerKind::Tcp => "tcp",
            ServerKind::Passthrough => "tls",
        };
        let meta = &self.gateway.resource.meta;
        Some(Server {
            gateway: Arc::clone(self.gateway.resource),
            gateway_name: Arc::clone(&self.name),
            index,
            bind,
            port,
            hosts,
            chain_name: format!("{prefix}.{port}.{port_name}.{}.{}", meta.name, meta.namespace).into(),
            kind,
            has_tls: tls.is_some(),
            credentials,
        })
    }

    fn terminated(
        &self,
        settings: &ServerTlsSettings,
        is_https: bool,
        hosts: &[Host],
        field: &Field<'_>,
        credentials: &mut Vec<CredentialUse>,
        report: &mut Report,
    ) -> Terminated {
        let context = tls::Context {
            resource: self.gateway.resource,
            namespace: &self.options.namespace,
            defaults: self.defaults,
            is_https,
        };
        let tls = tls::server(settings, &context, &field.name("tls"), credentials, report);
        let mut server_names: Vec<Arc<str>> = Vec::with_capacity(hosts.len());
        let mut known = AHashSet::with_capacity(hosts.len());
        for host in hosts {
            if host.name() == "*" {
                server_names.clear();
                break;
            }
            let name: Arc<str> = host.name().to_ascii_lowercase().into();
            if known.insert(Arc::clone(&name)) {
                server_names.push(name);
            }
        }
        Terminated { tls: Arc::new(tls), server_names }
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
}
