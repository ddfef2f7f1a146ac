//! From servers and VirtualServices to the routes of each host.
//!
//! Source: `reference/networking.md` §3.1-3.3, §3.5.

use std::sync::Arc;

use ahash::AHashMap;

use super::delegates::{self, Delegates};
use super::host::{intersection, is_subset, resolve, resolve_gateway};
use super::listeners::Server;
use super::options::Options;
use super::report::{Field, Report};
use super::routes::{self, Lookup};
use super::services::Registry;
use super::visibility::{Visibility, visibility};
use super::world::{Object, World};
use super::{MeshSettings, common_ends, same};
use crate::diagnostic::{Code, Diagnostic};
use crate::resource::Resource;
use crate::resource::virtual_service::VirtualService;
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
    pub(super) hosts: Vec<HostRoutes<'m>>,
}

/// What one VirtualService adds to a virtual host.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostRoutes<'m> {
    /// Lower case. The same `Arc` as long as the VirtualService and the Gateway are the same.
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
    gateways: Vec<Arc<Resource>>,
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
    domains: Vec<Domains>,
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
    gateway: Arc<Resource>,
    server: usize,
    domains: Arc<[Arc<str>]>,
}

/// Finds or makes the routes of each of `servers`: private VirtualServices first, then those exported to this
/// namespace, then public ones; each group oldest first.
pub(super) fn compile<'m>(
    context: &Context<'_>,
    servers: &[Server<'_>],
    memo: &'m mut Memo,
    report: &mut Report,
) -> Vec<ServerRoutes<'m>> {
    memo.notice_changes(context);
    let delegates = Delegates::new(&context.world.virtual_services, memo.entries.iter().map(|entry| entry.is_delegate));
    let binding = Binding::new(context, servers);
    for (entry, object) in memo.entries.iter_mut().zip(&context.world.virtual_services) {
        let seen = entry.epoch == memo.epoch && (!entry.has_delegates || entry.delegates_epoch == memo.delegates_epoch);
        if !seen {
            entry.look(*object, context, &binding, &delegates, &memo.shared);
            entry.epoch = memo.epoch;
            entry.delegates_epoch = memo.delegates_epoch;
        }
        report.diagnostics.extend_from_slice(&entry.findings);
    }
    let mut groups: Vec<[Vec<HostRoutes<'m>>; 3]> = servers.iter().map(|_| Default::default()).collect();
    for entry in &memo.entries {
        let group = match entry.visibility {
            None => continue,
            Some(Visibility::Private) => 0,
            Some(Visibility::Named) => 1,
            Some(Visibility::Public) => 2,
        };
        for Part { server, domains, routes } in &entry.parts {
            groups[*server][group].extend(domains.iter().map(|domain| HostRoutes { domain, routes }));
        }
    }
    groups.into_iter().map(|groups| ServerRoutes { hosts: groups.concat() }).collect()
}

impl Memo {
    /// Brings the entries in line with the VirtualServices, and counts up what else changed.
    fn notice_changes(&mut self, context: &Context<'_>) {
        let Context { world, options, mesh, registry } = context;
        let export_to = &mesh.virtual_service_export_to;
        if self.retry != mesh.retry || self.export_to != *export_to {
            let (retry, export_to) = (mesh.retry.clone(), export_to.clone());
            *self = Self { retry, export_to, epoch: self.epoch, ..Self::default() };
        }
        let gateways: Vec<&Arc<Resource>> = world.gateways.iter().map(|gateway| gateway.resource).collect();
        let is_same = same(&gateways, &self.gateways) && Arc::ptr_eq(&self.registry, registry);
        if !is_same || self.epoch == 0 {
            self.gateways = gateways.into_iter().cloned().collect();
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

/// What VirtualServices are bound to.
struct Binding<'a> {
    servers: &'a [Server<'a>],
    /// Servers in force by `namespace/name` of their Gateway; Gateways that don't select us have none.
    gateways: AHashMap<String, Vec<usize>>,
}

impl<'a> Binding<'a> {
    fn new(context: &Context<'_>, servers: &'a [Server<'a>]) -> Self {
        let names = context.world.gateways.iter().map(|gateway| {
            let name = format!("{}/{}", gateway.namespace(), gateway.resource.meta.name);
            (name, Vec::new())
        });
        let mut gateways: AHashMap<String, Vec<usize>> = names.collect();
        for (i, server) in servers.iter().enumerate() {
            if let Some(servers) = gateways.get_mut(&*server.gateway_name) {
                servers.push(i);
            }
        }
        Self { servers, gateways }
    }
}

/// Names hosts that none of the VirtualService's Gateways has (IST0132).
fn report_hosts(object: Object<'_, VirtualService>, entry: &Entry, world: &World<'_>, report: &mut Report) {
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
        let mut gateways = world.gateways.iter().filter(|gateway| {
            let name = format!("{}/{}", gateway.namespace(), gateway.resource.meta.name);
            entry.gateways.contains(&name)
        });
        let is_covered = gateways.any(|gateway| {
            let mut hosts = gateway.spec.servers.iter().flat_map(|server| &server.hosts);
            hosts.any(|host| covers(host))
        });
        if !is_covered {
            let message = format!("none of its gateways has the host \"{host}\"");
            report.warning(Code::VirtualServiceHostNotFoundInGateway, list.index(i), message);
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
            domains: Vec::new(),
        }
    }

    /// Finds out what it adds to which server.
    fn look(
        &mut self,
        object: Object<'_, VirtualService>,
        context: &Context<'_>,
        binding: &Binding<'_>,
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
            match binding.gateways.get(gateway) {
                Some(bound) => servers.extend(bound),
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
        if self.visibility.is_some() && !servers.is_empty() {
            for &index in &servers {
                let server = &binding.servers[index];
                let domains = self.domains(server, &object);
                if domains.is_empty() {
                    continue;
                }
                if let Some(routes) = self.routes(context, server, object, delegates, shared) {
                    report.diagnostics.extend_from_slice(&routes.diagnostics);
                    self.parts.push(Part { server: index, domains, routes });
                }
            }
            report_hosts(object, self, context.world, &mut report);
        }
        self.findings = report.diagnostics;
    }

    /// The virtual hosts on `server`: the intersection of both host lists, which is lower-cased only then.
    fn domains(&mut self, server: &Server<'_>, object: &Object<'_, VirtualService>) -> Arc<[Arc<str>]> {
        let resource = server.gateway.resource;
        let is_same = |known: &Domains| Arc::ptr_eq(&known.gateway, resource) && known.server == server.index;
        if let Some(known) = self.domains.iter().find(|known| is_same(known)) {
            return Arc::clone(&known.domains);
        }
        let namespace = object.namespace();
        let server_hosts: Vec<&str> = (server.hosts.iter())
            .filter(|host| host.namespace.as_deref().is_none_or(|only| only == &**namespace))
            .map(|host| host.name.as_str())
            .collect();
        let hosts: Vec<&str> = self.hosts.iter().map(String::as_str).collect();
        let mut domains: Vec<Arc<str>> = Vec::new();
        for domain in intersection(&server_hosts, &hosts) {
            let domain: Arc<str> = domain.to_ascii_lowercase().into();
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
        let domains: Arc<[Arc<str>]> = domains.into();
        // A Gateway of before that has this name is gone.
        self.domains.retain(|known| {
            known.server != server.index
                || known.gateway.meta.name != resource.meta.name
                || known.gateway.meta.namespace != resource.meta.namespace
        });
        let gateway = Arc::clone(resource);
        self.domains.push(Domains { gateway, server: server.index, domains: Arc::clone(&domains) });
        domains
    }

    /// The routes on `server`, made anew only if something changed that they were made of.
    fn routes(
        &mut self,
        context: &Context<'_>,
        server: &Server<'_>,
        object: Object<'_, VirtualService>,
        delegates: &Delegates<'_>,
        shared: &routes::Shared,
    ) -> Option<Arc<VirtualServiceRoutes>> {
        let found = delegates.of(object);
        // Most rules don't care which Gateway they are bound to, and are the same for all.
        let names_gateways = |object: Object<'_, VirtualService>| {
            object.spec.http.iter().flat_map(|rule| &rule.match_).any(|request| !request.gateways.is_empty())
        };
        let is_bound = names_gateways(object) || found.iter().flatten().any(|delegate| names_gateways(*delegate));
        let gateway = is_bound.then(|| Arc::clone(&server.gateway_name));
        let is_here = |known: &Translation| known.gateway == gateway && known.port == server.port;
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
        let mut report = Report::default();
        let rules = delegates::expand(object, &found, context, &mut report);
        let destinations = routes::Place {
            options: context.options,
            registry: context.registry,
            retry: context.mesh.retry.as_ref(),
            gateway: &server.gateway_name,
            port: server.port,
            shared,
        };
        let (routes, lookups) = routes::translate(object, &rules, &destinations, report);
        let translation = Translation {
            gateway,
            port: server.port,
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
