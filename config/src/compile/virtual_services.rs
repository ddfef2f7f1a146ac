//! From servers and VirtualServices to the routes of each host.
//!
//! Source: `reference/networking.md` §3.1-3.3, §3.5.

use std::sync::Arc;

use ahash::AHashMap;

use super::MeshSettings;
use super::delegates::{self, Delegates};
use super::host::{intersection, is_subset, resolve, resolve_gateway};
use super::listeners::Server;
use super::options::Options;
use super::report::{Field, Report};
use super::routes::{self, Lookup};
use super::services::Registry;
use super::visibility::{Visibility, visibility};
use super::world::{Object, World};
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
pub(super) struct ServerRoutes {
    pub(super) hosts: Vec<HostRoutes>,
}

/// What one VirtualService adds to a virtual host.
#[derive(Debug, Clone)]
pub(super) struct HostRoutes {
    /// Lower case.
    pub(super) domain: Arc<str>,
    pub(super) routes: Arc<VirtualServiceRoutes>,
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
    retry: Option<RetryPolicy>,
    shared: routes::Shared,
    /// By the address of the resource, which the entry keeps from being reused.
    entries: AHashMap<usize, Entry>,
    compiles: u64,
}

/// What is known of a VirtualService as long as its resource stays the same.
#[derive(Debug)]
struct Entry {
    /// Kept so that its address isn't reused.
    _resource: Arc<Resource>,
    /// The last compile that had it.
    used: u64,
    /// `namespace/name`.
    gateways: Vec<String>,
    /// With short names resolved.
    hosts: Vec<String>,
    translations: Vec<Translation>,
    domains: Vec<Domains>,
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

/// Finds or makes the routes of each of `servers`.
pub(super) fn compile(
    context: &Context<'_>,
    servers: &[Server<'_>],
    memo: &mut Memo,
    report: &mut Report,
) -> Vec<ServerRoutes> {
    if memo.retry != context.mesh.retry {
        *memo = Memo { retry: context.mesh.retry.clone(), ..Memo::default() };
    }
    memo.compiles += 1;
    let bound = bind(context, servers, memo, report);
    let delegates = Delegates::new(&context.world.virtual_services);
    let mut compiled = Vec::with_capacity(servers.len());
    for server in servers {
        let mut hosts = Vec::new();
        for object in bound.get(&*server.gateway_name).into_iter().flatten() {
            let Some(entry) = memo.entries.get_mut(&key(object.resource)) else { continue };
            let domains = entry.domains(server, object);
            if domains.is_empty() {
                continue;
            }
            let Some(routes) = entry.routes(context, server, *object, &delegates, &memo.shared) else { continue };
            report.diagnostics.extend_from_slice(&routes.diagnostics);
            hosts.extend(
                domains.iter().map(|domain| HostRoutes { domain: Arc::clone(domain), routes: Arc::clone(&routes) }),
            );
        }
        compiled.push(ServerRoutes { hosts });
    }
    let compiles = memo.compiles;
    if memo.entries.len() > context.world.virtual_services.len() {
        memo.entries.retain(|_, entry| entry.used == compiles);
    }
    compiled
}

fn key(resource: &Arc<Resource>) -> usize {
    Arc::as_ptr(resource).addr()
}

/// The VirtualServices of each Gateway: private ones first, then those exported to this namespace, then public ones.
fn bind<'a>(
    context: &Context<'a>,
    servers: &[Server<'_>],
    memo: &mut Memo,
    report: &mut Report,
) -> AHashMap<String, Vec<Object<'a, VirtualService>>> {
    let gateways: AHashMap<String, bool> = (context.world.gateways.iter())
        .map(|gateway| {
            let name = format!("{}/{}", gateway.namespace(), gateway.resource.meta.name);
            let is_served = servers.iter().any(|server| *server.gateway_name == *name);
            (name, is_served)
        })
        .collect();
    let mut bound: AHashMap<String, [Vec<Object<'a, VirtualService>>; 3]> = AHashMap::new();
    let default = &context.mesh.virtual_service_export_to;
    for &object in &context.world.virtual_services {
        let entry = memo.entries.entry(key(object.resource)).or_insert_with(|| Entry::new(object, context.options));
        entry.used = memo.compiles;
        let viewer = &context.options.namespace;
        let Some(visibility) = visibility(&object.spec.export_to, default, object.namespace(), viewer) else {
            continue;
        };
        let mut is_served = false;
        for (i, gateway) in entry.gateways.iter().enumerate() {
            match gateways.get(gateway) {
                _ if gateway == "mesh" => {}
                None => {
                    let spec = Field::spec(object.resource);
                    let list = spec.name("gateways");
                    let message = format!("gateway not found: \"{gateway}\"");
                    report.warning(Code::ReferencedResourceNotFound, list.index(i), message);
                }
                Some(false) => {}
                Some(true) => {
                    is_served = true;
                    let group = match visibility {
                        Visibility::Private => 0,
                        Visibility::Named => 1,
                        Visibility::Public => 2,
                    };
                    let groups = match bound.get_mut(gateway) {
                        Some(groups) => groups,
                        None => bound.entry(gateway.clone()).or_default(),
                    };
                    groups[group].push(object);
                }
            }
        }
        if is_served {
            report_hosts(object, entry, context.world, report);
        }
    }
    bound.into_iter().map(|(gateway, groups)| (gateway, groups.into_iter().flatten().collect())).collect()
}

/// Names hosts that none of the VirtualService's Gateways has (IST0132).
fn report_hosts(object: Object<'_, VirtualService>, entry: &mut Entry, world: &World<'_>, report: &mut Report) {
    // Whoever has a virtual host needs no closer look.
    if entry.domains.iter().any(|domains| domains.domains.len() >= entry.hosts.len()) {
        return;
    }
    let spec = Field::spec(object.resource);
    let list = spec.name("hosts");
    for (i, host) in entry.hosts.iter().enumerate() {
        let covers = |server_host: &str| {
            let (namespace, name) = split_host(server_host);
            (namespace.is_empty() || namespace == "*" || namespace == &**object.namespace() || namespace == ".")
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
        let gateways = object.spec.gateways.iter().map(|gateway| resolve_gateway(gateway, namespace).into_owned());
        let hosts = object.spec.hosts.iter().map(|host| resolve(host, namespace, &options.domain).into_owned());
        Self {
            _resource: Arc::clone(object.resource),
            used: 0,
            gateways: gateways.collect(),
            hosts: hosts.collect(),
            translations: Vec::new(),
            domains: Vec::new(),
        }
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
