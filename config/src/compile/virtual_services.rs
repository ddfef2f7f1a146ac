//! From servers and VirtualServices to the routes of each host.
//!
//! Source: `reference/networking.md` §3.1-3.3, §3.5.

use std::sync::Arc;

use ahash::AHashMap;

use super::delegates::{self, Delegates};
use super::host::{intersection, is_subset, resolve, resolve_gateway};
use super::options::Options;
use super::report::{Field, Report};
use super::routes::{self, Lookup, StreamRoute};
use super::servers::{Host, Rules, Server, Servers};
use super::services::Registry;
use super::visibility::{Visibility, visibility};
use super::world::{Object, World};
use super::{MeshSettings, common_ends};
use crate::diagnostic::{Code, Diagnostic};
use crate::resource::virtual_service::VirtualService;
use crate::resource::{Resource, Spec};
use crate::snapshot::ResourceName;
use crate::snapshot::cluster::ClusterName;
use crate::snapshot::route::{RetryPolicy, Route};

/// What routes are made with.
pub(super) struct Context<'a> {
    pub(super) world: &'a World<'a>,
    pub(super) options: &'a Options,
    pub(super) mesh: &'a MeshSettings,
    pub(super) registry: &'a Arc<Registry>,
}

/// What VirtualServices add to a server, in their order.
#[derive(Debug, Default)]
pub(super) struct ServerRoutes<'m> {
    /// Of a server for HTTP.
    pub(super) hosts: Vec<HostRoutes<'m>>,
    /// Of a server for raw TCP.
    pub(super) streams: Vec<&'m Arc<VirtualServiceRoutes>>,
}

impl<'m> ServerRoutes<'m> {
    /// Each VirtualService, some more than once.
    pub(super) fn all(&self) -> impl Iterator<Item = &'m Arc<VirtualServiceRoutes>> {
        self.hosts.iter().map(|host| host.routes).chain(self.streams.iter().copied())
    }
}

/// What one VirtualService adds to a virtual host.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostRoutes<'m> {
    /// Lower case.
    pub(super) domain: &'m Arc<str>,
    pub(super) routes: &'m Arc<VirtualServiceRoutes>,
}

/// The routes of a VirtualService on one port of one Gateway.
#[derive(Debug)]
pub(super) struct VirtualServiceRoutes {
    pub(super) resource: ResourceName,
    pub(super) routes: Vec<Arc<Route>>,
    /// The route that everything matches. Nothing comes after it, and routes of later VirtualServices come before it.
    pub(super) catch_all: Option<Arc<Route>>,
    /// On a server for raw TCP, which has no other routes.
    pub(super) streams: Vec<Arc<StreamRoute>>,
    pub(super) clusters: Vec<ClusterReference>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// A destination, and where a route names it.
#[derive(Debug, Clone)]
pub(super) struct ClusterReference {
    pub(super) name: ClusterName,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) subset: String,
    /// The host is what an ExternalName stands for, and no service of its own.
    pub(super) external_name: bool,
    pub(super) resource: Arc<Resource>,
    /// Of the destination, below `spec`.
    pub(super) path: String,
}

/// The VirtualServices of the compile before.
#[derive(Debug, Default)]
pub(super) struct Memo {
    retry: Option<Arc<RetryPolicy>>,
    export_to: Vec<String>,
    servers: Arc<Servers>,
    registry: Arc<Registry>,
    shared: routes::Shared,
    /// In order of precedence, as in the world.
    entries: Vec<Entry>,
    /// Counts what all entries depend on: an entry that has seen this number needs no second look.
    epoch: u64,
    /// The same for the delegates that some entries depend on.
    delegates_epoch: u64,
}

/// What is known of a VirtualService as long as its resource stays the same.
#[derive(Debug)]
struct Entry {
    resource: Arc<Resource>,
    /// What was last seen.
    epoch: u64,
    delegates_epoch: u64,
    /// It has no hosts.
    is_delegate: bool,
    has_delegates: bool,
    visibility: Option<Visibility>,
    parts: Vec<Part>,
    findings: Vec<Diagnostic>,
    /// `namespace/name`.
    gateways: Vec<String>,
    /// With short names resolved.
    hosts: Vec<String>,
    translations: Vec<Translation>,
    /// By the address of the Gateway and the number of its server.
    domains: AHashMap<(usize, usize), Domains>,
}

/// What it adds to a server.
#[derive(Debug)]
struct Part {
    server: usize,
    domains: Arc<[Arc<str>]>,
    routes: Arc<VirtualServiceRoutes>,
}

/// Its routes for a port of a Gateway, and what they depend on.
#[derive(Debug)]
struct Translation {
    /// `None` if the rules are the same for all.
    gateway: Option<Arc<str>>,
    port: u16,
    rules: Rules,
    delegates: Vec<Option<Arc<Resource>>>,
    lookups: Vec<Lookup>,
    /// The registry with which the look-ups were last found to be the same.
    registry: Arc<Registry>,
    /// `None` if no rule is for this server.
    routes: Option<Arc<VirtualServiceRoutes>>,
}

/// Its virtual hosts on a server.
#[derive(Debug)]
struct Domains {
    /// Kept so that no address is reused.
    _gateway: Arc<Resource>,
    domains: Arc<[Arc<str>]>,
}

/// Finds or makes the routes of each of `servers`: private VirtualServices first, then those exported to this
/// namespace, then public ones; each group oldest first.
pub(super) fn compile<'m>(
    context: &Context<'_>,
    servers: &Arc<Servers>,
    memo: &'m mut Memo,
    report: &mut Report,
) -> Vec<ServerRoutes<'m>> {
    memo.notice_changes(context, servers);
    let delegates = Delegates::new(&context.world.virtual_services, memo.entries.iter().map(|entry| entry.is_delegate));
    for (entry, object) in memo.entries.iter_mut().zip(&context.world.virtual_services) {
        let seen = entry.epoch == memo.epoch && (!entry.has_delegates || entry.delegates_epoch == memo.delegates_epoch);
        if !seen {
            entry.look(*object, context, servers, &delegates, &memo.shared);
            entry.epoch = memo.epoch;
            entry.delegates_epoch = memo.delegates_epoch;
        }
        report.diagnostics.extend_from_slice(&entry.findings);
    }
    let mut found: Vec<ServerRoutes<'m>> = servers.list.iter().map(|_| ServerRoutes::default()).collect();
    for group in [Visibility::Private, Visibility::Named, Visibility::Public] {
        for entry in memo.entries.iter().filter(|entry| entry.visibility == Some(group)) {
            for Part { server, domains, routes } in &entry.parts {
                match servers.list[*server].kind.rules() {
                    Rules::Http => {
                        let hosts = domains.iter().map(|domain| HostRoutes { domain, routes });
                        found[*server].hosts.extend(hosts);
                    }
                    Rules::Tls => found[*server].streams.push(routes),
                    Rules::Tcp => add_tcp(&mut found[*server].streams, routes, report),
                }
            }
        }
    }
    found
}

/// Only one VirtualService has the say on a TCP server.
fn add_tcp<'m>(
    streams: &mut Vec<&'m Arc<VirtualServiceRoutes>>,
    routes: &'m Arc<VirtualServiceRoutes>,
    report: &mut Report,
) {
    match (streams.first(), routes.streams.first()) {
        (_, None) => {}
        (None, Some(_)) => streams.push(routes),
        (Some(first), Some(stream)) => {
            let message =
                format!("the server takes the `tcp` rule of {}: this one has no effect there", first.resource);
            let spec = Field::spec(&stream.resource);
            report.warning(Code::Conflict, spec.name(&stream.path), message);
        }
    }
}

impl Memo {
    /// Brings the entries in line with the VirtualServices, and counts up what else changed.
    fn notice_changes(&mut self, context: &Context<'_>, servers: &Arc<Servers>) {
        let Context { world, options, mesh, registry } = context;
        let export_to = &mesh.virtual_service_export_to;
        if self.retry != mesh.retry || self.export_to != *export_to {
            let (retry, export_to) = (mesh.retry.clone(), export_to.clone());
            *self = Self { retry, export_to, epoch: self.epoch, ..Self::default() };
        }
        let is_same = Arc::ptr_eq(&self.servers, servers) && Arc::ptr_eq(&self.registry, registry);
        if !is_same || self.epoch == 0 {
            self.servers = Arc::clone(servers);
            self.registry = Arc::clone(registry);
            self.epoch += 1;
        }
        let virtual_services = &world.virtual_services;
        let (first, last) =
            common_ends(&self.entries, virtual_services, |entry, object| Arc::ptr_eq(&entry.resource, object.resource));
        let changed = first..self.entries.len() - last;
        let objects = &virtual_services[first..virtual_services.len() - last];
        let tail = self.entries.split_off(changed.end);
        let mut gone: AHashMap<usize, Entry> =
            self.entries.drain(changed.start..).map(|entry| (Arc::as_ptr(&entry.resource).addr(), entry)).collect();
        for &object in objects {
            let known = gone.remove(&Arc::as_ptr(object.resource).addr());
            self.entries.push(known.unwrap_or_else(|| Entry::new(object, options)));
        }
        let fresh = &self.entries[changed.start..];
        // An entry that is new has seen no epoch yet.
        let delegates_changed = gone.values().any(|entry| entry.is_delegate)
            || fresh.iter().any(|entry| entry.is_delegate && entry.epoch == 0);
        self.delegates_epoch += u64::from(delegates_changed);
        self.entries.extend(tail);
    }
}

/// Names hosts that none of the VirtualService's Gateways has (IST0132).
fn report_hosts(object: Object<'_, VirtualService>, entry: &Entry, servers: &Servers, report: &mut Report) {
    // Whoever has a virtual host for each host needs no closer look.
    if entry.parts.iter().any(|part| part.domains.len() >= entry.hosts.len()) {
        return;
    }
    let spec = Field::spec(object.resource);
    let list = spec.name("hosts");
    for (i, host) in entry.hosts.iter().enumerate() {
        let covers = |server_host: &str| {
            let (namespace, name) = split_host(server_host);
            (matches!(namespace, "" | "*" | ".") || namespace == &**object.namespace())
                && (is_subset(host, name) || is_subset(name, host))
        };
        let is_covered = entry.gateways.iter().filter_map(|name| servers.gateway(name)).any(|bound| {
            let Spec::Gateway(gateway) = &bound.gateway.spec else { return false };
            gateway.servers.iter().flat_map(|server| &server.hosts).any(|host| covers(host))
        });
        if !is_covered {
            let message = format!("none of its gateways has the host \"{host}\"");
            report.warning(Code::VirtualServiceHostNotFoundInGateway, list.index(i), message);
        }
    }
}

/// Names lists of rules that no server of the VirtualService's Gateways takes its routes from.
fn report_rules(object: Object<'_, VirtualService>, entry: &Entry, kinds: &[Rules], report: &mut Report) {
    let VirtualService { hosts: _, gateways: _, http, tls, tcp, export_to: _ } = object.spec;
    // Those may be for the mesh.
    if kinds.is_empty() || entry.gateways.iter().any(|gateway| gateway == "mesh") {
        return;
    }
    let spec = Field::spec(object.resource);
    for (name, is_set, rules, servers) in [
        ("http", !http.is_empty(), Rules::Http, "HTTP, or HTTPS that is terminated"),
        ("tls", !tls.is_empty(), Rules::Tls, "mode PASSTHROUGH"),
        ("tcp", !tcp.is_empty(), Rules::Tcp, "TCP, or TLS that is terminated"),
    ] {
        if is_set && !kinds.contains(&rules) {
            let message = format!("none of its servers takes `{name}` rules: they are for {servers}");
            report.warning(Code::Ignored, spec.name(name), message);
        }
    }
}

/// Namespace (empty without one) and name of a server's host.
pub(super) fn split_host(host: &str) -> (&str, &str) {
    host.split_once('/').unwrap_or(("", host))
}

impl Entry {
    fn new(object: Object<'_, VirtualService>, options: &Options) -> Self {
        let namespace = object.namespace();
        let VirtualService { hosts, gateways, http, tls: _, tcp: _, export_to: _ } = object.spec;
        let gateways = gateways.iter().map(|gateway| resolve_gateway(gateway, namespace).into_owned());
        let resolved = hosts.iter().map(|host| resolve(host, namespace, &options.domain).into_owned());
        Self {
            resource: Arc::clone(object.resource),
            epoch: 0,
            delegates_epoch: 0,
            is_delegate: hosts.is_empty(),
            has_delegates: http.iter().any(|rule| rule.delegate.is_some()),
            visibility: None,
            parts: Vec::new(),
            findings: Vec::new(),
            gateways: gateways.collect(),
            hosts: resolved.collect(),
            translations: Vec::new(),
            domains: AHashMap::new(),
        }
    }

    /// Finds out what it adds to which server.
    fn look(
        &mut self,
        object: Object<'_, VirtualService>,
        context: &Context<'_>,
        all: &Servers,
        delegates: &Delegates<'_>,
        shared: &routes::Shared,
    ) {
        let mut report = Report::default();
        let default = &context.mesh.virtual_service_export_to;
        let viewer = &context.options.namespace;
        self.visibility = visibility(&object.spec.export_to, default, object.namespace(), viewer);
        self.parts.clear();
        let mut servers: Vec<usize> = Vec::new();
        for (i, gateway) in self.gateways.iter().enumerate().filter(|(_, gateway)| *gateway != "mesh") {
            match all.gateway(gateway) {
                Some(bound) => bound.find(&self.hosts, &mut servers),
                None if self.visibility.is_none() => {}
                None => {
                    let spec = Field::spec(object.resource);
                    let list = spec.name("gateways");
                    let message = format!("gateway not found: \"{gateway}\"");
                    report.warning(Code::ReferencedResourceNotFound, list.index(i), message);
                }
            }
        }
        servers.sort_unstable();
        servers.dedup();
        let mut before = std::mem::take(&mut self.domains);
        if self.visibility.is_some() {
            let mut kinds = Vec::new();
            for &index in &servers {
                let server = &all.list[index];
                let domains = self.domains(server, &object, &mut before);
                if domains.is_empty() {
                    continue;
                }
                let rules = server.kind.rules();
                if !kinds.contains(&rules) {
                    kinds.push(rules);
                }
                if let Some(routes) = self.routes(context, server, object, delegates, shared) {
                    report.diagnostics.extend_from_slice(&routes.diagnostics);
                    self.parts.push(Part { server: index, domains, routes });
                }
            }
            let is_bound = self.gateways.iter().filter_map(|name| all.gateway(name)).any(|bound| !bound.is_empty());
            if is_bound {
                report_hosts(object, self, all, &mut report);
            }
            report_rules(object, self, &kinds, &mut report);
        }
        self.findings = report.diagnostics;
    }

    /// The virtual hosts on `server`: the intersection of both host lists, which is lower-cased only then. A server for
    /// raw TCP has none, but needs a host in common as well.
    fn domains(
        &mut self,
        server: &Server,
        object: &Object<'_, VirtualService>,
        before: &mut AHashMap<(usize, usize), Domains>,
    ) -> Arc<[Arc<str>]> {
        let key = (Arc::as_ptr(&server.gateway).addr(), server.index);
        if let Some(known) = before.remove(&key) {
            let domains = Arc::clone(&known.domains);
            self.domains.insert(key, known);
            return domains;
        }
        let namespace = object.namespace();
        let server_hosts: Vec<&str> =
            server.hosts.iter().filter(|host| host.admits(namespace)).map(Host::name).collect();
        let hosts: Vec<&str> = self.hosts.iter().map(String::as_str).collect();
        let mut domains: Vec<Arc<str>> = Vec::new();
        for domain in intersection(&server_hosts, &hosts) {
            let domain: Arc<str> = domain.to_ascii_lowercase().into();
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
        let domains: Arc<[Arc<str>]> = domains.into();
        self.domains.insert(key, Domains { _gateway: Arc::clone(&server.gateway), domains: Arc::clone(&domains) });
        domains
    }

    /// The routes on `server`, made anew only if something changed that they were made of.
    fn routes(
        &mut self,
        context: &Context<'_>,
        server: &Server,
        object: Object<'_, VirtualService>,
        delegates: &Delegates<'_>,
        shared: &routes::Shared,
    ) -> Option<Arc<VirtualServiceRoutes>> {
        let rules = server.kind.rules();
        // Only HTTP rules are delegated.
        let found = if rules == Rules::Http { delegates.of(object) } else { Vec::new() };
        // Most rules don't care which Gateway they are bound to, and are the same for all.
        let is_bound =
            names_gateways(object, rules) || found.iter().flatten().any(|delegate| names_gateways(*delegate, rules));
        let gateway = is_bound.then(|| Arc::clone(&server.gateway_name));
        let is_here =
            |known: &Translation| known.gateway == gateway && known.port == server.port && known.rules == rules;
        let place = self.translations.iter().position(is_here);
        if let Some(known) = place.map(|place| &mut self.translations[place]) {
            let same_delegates = known.delegates.len() == found.len()
                && known.delegates.iter().zip(&found).all(|(known, found)| match (known, found) {
                    (Some(known), Some(found)) => Arc::ptr_eq(known, found.resource),
                    (None, None) => true,
                    _ => false,
                });
            let same_lookups = Arc::ptr_eq(&known.registry, context.registry)
                || known.lookups.iter().all(|lookup| lookup.is_same_in(context.registry));
            if same_delegates && same_lookups {
                known.registry = Arc::clone(context.registry);
                return known.routes.clone();
            }
        }
        let here = routes::Place {
            options: context.options,
            registry: context.registry,
            retry: context.mesh.retry.as_ref(),
            gateway: &server.gateway_name,
            port: server.port,
            shared,
        };
        let (routes, lookups) = match rules {
            Rules::Http => {
                let mut report = Report::default();
                let rules = delegates::expand(object, &found, context, &mut report);
                routes::translate(object, &rules, &here, report)
            }
            Rules::Tls | Rules::Tcp => routes::streams(object, rules, &here),
        };
        let translation = Translation {
            gateway,
            port: server.port,
            rules,
            delegates: found.iter().map(|found| found.map(|found| Arc::clone(found.resource))).collect(),
            lookups,
            registry: Arc::clone(context.registry),
            routes: routes.map(Arc::new),
        };
        let routes = translation.routes.clone();
        match place {
            Some(place) => self.translations[place] = translation,
            None => self.translations.push(translation),
        }
        routes
    }
}

/// Whether any match entry says which Gateway it is for.
fn names_gateways(object: Object<'_, VirtualService>, rules: Rules) -> bool {
    let VirtualService { hosts: _, gateways: _, http, tls, tcp, export_to: _ } = object.spec;
    match rules {
        Rules::Http => http.iter().flat_map(|rule| &rule.match_).any(|request| !request.gateways.is_empty()),
        Rules::Tls => tls.iter().flat_map(|rule| &rule.match_).any(|entry| !entry.gateways.is_empty()),
        Rules::Tcp => tcp.iter().flat_map(|rule| &rule.match_).any(|entry| !entry.gateways.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_may_name_a_namespace() {
        for (host, expected) in [
            ("foo.com", ("", "foo.com")),
            ("ns/foo.com", ("ns", "foo.com")),
            ("*/*", ("*", "*")),
            ("./a.b", (".", "a.b")),
        ] {
            assert_eq!(split_host(host), expected, "{host}");
        }
    }
}
