//! The clusters that routes name.
//!
//! Source: `reference/networking.md` §3.16, §5.2, §5.5, §1.6.

mod balancing;
mod locality;
mod outliers;
mod policy;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use super::MeshSettings;
use super::common_ends;
use super::destination_rules::{Rule, Rules};
use super::egress::Egress;
use super::mesh::ClusterDefaults;
use super::options::Options;
use super::protocol::Protocol;
use super::report::{Field, Report};
use super::services::{Backend, Registry, Service, ServicePort};
use super::virtual_services::{ClusterReference, ServerRoutes, VirtualServiceRoutes};
use crate::credential::{CredentialUse, Wanted};
use crate::diagnostic::{Code, Diagnostic, Severity};
use crate::resource::destination_rule::{
    ConnectionPoolSettings, H2UpgradePolicy, Http2KeepAlive, HttpSettings, Percentage, ProxyProtocol,
    ProxyProtocolVersion, RetryBudget, TcpKeepalive, TcpSettings,
};
use crate::snapshot::balancing::{Balancing, Placement};
use crate::snapshot::cluster::{
    self, Cluster, ClusterName, DnsEndpoint, Endpoints, Limits, ServiceIdentity, UpstreamProtocol,
};
use crate::snapshot::tls::ServerNameSource;

use locality::Strategy;
use policy::{Policy, TlsBlock};

/// What destinations are looked up in.
pub(super) struct Context<'a> {
    pub(super) options: &'a Options,
    pub(super) mesh: &'a MeshSettings,
    pub(super) registry: &'a Arc<Registry>,
    pub(super) rules: &'a Arc<Rules>,
}

/// The clusters of the compile before.
#[derive(Debug, Default)]
pub(super) struct Memo {
    defaults: Option<ClusterDefaults>,
    /// In which every cluster was found; while they stay, so do the clusters.
    registry: Arc<Registry>,
    rules: Arc<Rules>,
    /// Whose destinations there are clusters for, in order.
    users: Vec<Arc<VirtualServiceRoutes>>,
    made: AHashMap<ClusterName, Made>,
    /// Those that belong to no service.
    special: Vec<Arc<Cluster>>,
    clusters: Clusters,
    findings: Vec<Diagnostic>,
}

/// All clusters, and what is needed to connect to them.
#[derive(Debug, Clone, Default)]
pub(super) struct Clusters {
    /// The same `Arc` as long as none of them changes.
    pub(super) by_name: Arc<AHashMap<ClusterName, Arc<Cluster>>>,
    /// What DestinationRules in use name, by name of the rule. The same `Arc` as long as nothing about it changes.
    pub(super) credentials: Arc<[CredentialUse]>,
}

/// A cluster, and what it was made of.
#[derive(Debug)]
struct Made {
    service: Option<Arc<Service>>,
    rule: Option<Arc<Rule>>,
    outcome: Result<Arc<Cluster>, Missing>,
    /// Who names it, once for each mention.
    users: Vec<Arc<VirtualServiceRoutes>>,
}

/// Why there is no cluster, so that requests answer 503 with flag `NC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Host,
    Port,
    Subset,
    Endpoints,
}

/// Makes the clusters that the routes of `servers` name, and reports those that don't exist.
pub(super) fn compile(
    context: &Context<'_>,
    servers: &[ServerRoutes<'_>],
    egress: Option<&Egress>,
    memo: &mut Memo,
    report: &mut Report,
) -> Clusters {
    let defaults = &context.mesh.clusters;
    if memo.defaults.as_ref() != Some(defaults) {
        *memo = Memo { defaults: Some(defaults.clone()), ..Memo::default() };
    }
    let moved = !Arc::ptr_eq(&memo.registry, context.registry) || !Arc::ptr_eq(&memo.rules, context.rules);
    if moved {
        for (name, made) in &mut memo.made {
            context.renew(name, made);
        }
        memo.registry = Arc::clone(context.registry);
        memo.rules = Arc::clone(context.rules);
    }
    if memo.follow(context, servers, egress) || moved {
        memo.publish();
        memo.findings = memo.find(context);
        memo.gather_credentials(context);
    }
    report.diagnostics.extend_from_slice(&memo.findings);
    memo.clusters.clone()
}

impl Memo {
    /// Takes up destinations that came and lets go of those that went, as the routes say. Whether there were any.
    fn follow(&mut self, context: &Context<'_>, servers: &[ServerRoutes<'_>], egress: Option<&Egress>) -> bool {
        let of_routes = servers.iter().flat_map(ServerRoutes::all);
        let mut users: Vec<_> = of_routes.chain(egress.map(|egress| &egress.user)).collect();
        self.special = egress.map(|egress| egress.clusters.clone()).unwrap_or_default();
        users.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let (first, last) = common_ends(&self.users, &users, |a, b| Arc::ptr_eq(a, b));
        let gone = first..self.users.len() - last;
        let come = &users[first..users.len() - last];
        let changed = !gone.is_empty() || !come.is_empty();
        let gone: Vec<_> = self.users.splice(gone, come.iter().map(|&user| Arc::clone(user))).collect();
        for user in come {
            for reference in &user.clusters {
                let made = match self.made.get_mut(&reference.name) {
                    Some(made) => made,
                    None => self.made.entry(reference.name.clone()).or_insert_with(|| context.make(reference)),
                };
                made.users.push(Arc::clone(user));
            }
        }
        for user in &gone {
            for reference in &user.clusters {
                let Some(made) = self.made.get_mut(&reference.name) else { continue };
                if let Some(place) = made.users.iter().position(|known| Arc::ptr_eq(known, user)) {
                    made.users.swap_remove(place);
                }
                if made.users.is_empty() {
                    self.made.remove(&reference.name);
                }
            }
        }
        changed
    }

    /// A new map only if a cluster is another, new or gone.
    fn publish(&mut self) {
        let of_services = || self.made.iter().filter_map(|(name, made)| Some((name, made.outcome.as_ref().ok()?)));
        let present = || of_services().chain(self.special.iter().map(|cluster| (&cluster.name, cluster)));
        let known = &self.clusters.by_name;
        let is_same = present().count() == known.len()
            && present().all(|(name, cluster)| known.get(name).is_some_and(|known| Arc::ptr_eq(known, cluster)));
        if !is_same {
            let clusters = present().map(|(name, cluster)| (name.clone(), Arc::clone(cluster))).collect();
            self.clusters.by_name = Arc::new(clusters);
        }
    }

    /// What there is to say about the clusters, and about the services and rules that they are made of.
    fn find(&self, context: &Context<'_>) -> Vec<Diagnostic> {
        let mut report = Report::default();
        let mut rules: Vec<&Arc<Rule>> = Vec::new();
        let mut services: Vec<&Arc<Service>> = Vec::new();
        for (name, made) in &self.made {
            rules.extend(&made.rule);
            services.extend(made.service.iter().filter(|service| !service.diagnostics.is_empty()));
            let is_dull = match &made.outcome {
                Ok(cluster) => cluster.subset.is_empty() && cluster.tls.is_none() && !made.wants_mutual_tls(context),
                Err(_) => false,
            };
            if is_dull {
                continue;
            }
            if let Ok(cluster) = &made.outcome {
                made.report_fixed_name(cluster, &mut report);
            }
            if made.wants_mutual_tls(context)
                && let Some(reference) = made.references(name).next()
            {
                report_auto_mtls(reference, &mut report);
            }
            for user in &made.users {
                let is_stream = !user.streams.is_empty();
                for reference in user.clusters.iter().filter(|reference| reference.name == *name) {
                    match &made.outcome {
                        Err(missing) => context.report_missing(reference, *missing, is_stream, &mut report),
                        Ok(cluster) => {
                            if !made.is_passthrough(cluster) {
                                let is_dynamic = made.service.as_ref().is_some_and(|service| service.is_dynamic());
                                report_empty_subset(reference, cluster, is_dynamic, is_stream, &mut report);
                            }
                            report_no_server_name(reference, cluster, is_stream, &mut report);
                        }
                    }
                }
            }
        }
        rules.sort_unstable_by_key(|rule| Arc::as_ptr(rule));
        rules.dedup_by_key(|rule| Arc::as_ptr(rule));
        rules.into_iter().for_each(|rule| policy::report(rule, context.options, &mut report));
        services.sort_unstable_by_key(|service| Arc::as_ptr(service));
        services.dedup_by_key(|service| Arc::as_ptr(service));
        report.diagnostics.extend(services.into_iter().flat_map(|service| service.diagnostics.clone()));
        report.diagnostics
    }

    /// What the rules in use name; a new list only if it says something else.
    fn gather_credentials(&mut self, context: &Context<'_>) {
        let mut uses = Vec::new();
        let with_tls = self.made.values().filter_map(|made| {
            let cluster = made.outcome.as_ref().ok().filter(|cluster| cluster.tls.is_some())?;
            Policy::new(made.rule.as_deref(), cluster.port, &cluster.subset)?.tls
        });
        with_tls.for_each(|block| tls::credentials(&block, &context.options.namespace, &mut uses));
        uses.sort_by_cached_key(|used| {
            // A field names a certificate before it names a CA.
            (used.resource.name(), used.path.clone(), matches!(used.wanted, Wanted::Ca(_)))
        });
        let is_same = |a: &CredentialUse, b: &CredentialUse| {
            Arc::ptr_eq(&a.resource, &b.resource) && a.path == b.path && a.wanted == b.wanted
        };
        uses.dedup_by(|a, b| is_same(a, b));
        let known = &self.clusters.credentials;
        if known.len() != uses.len() || !known.iter().zip(&uses).all(|(known, used)| is_same(known, used)) {
            self.clusters.credentials = uses.into();
        }
    }
}

impl Made {
    /// The mentions of the cluster, which is called `name`.
    fn references(&self, name: &ClusterName) -> impl Iterator<Item = &ClusterReference> {
        let references = self.users.iter().flat_map(|user| &user.clusters);
        references.filter(move |reference| reference.name == *name)
    }

    /// Says that a fixed name stands for all the hosts that may be asked for.
    fn report_fixed_name(&self, cluster: &Cluster, report: &mut Report) {
        if !matches!(cluster.endpoints, Endpoints::Dynamic(_)) {
            return;
        }
        let policy = Policy::new(self.rule.as_deref(), cluster.port, &cluster.subset);
        let Some(TlsBlock { settings, resource, path }) = policy.and_then(|policy| policy.tls) else { return };
        let Some(client) = cluster.tls.as_ref().filter(|_| !settings.sni.is_empty()) else { return };
        let spec = Field::spec(resource);
        let field = spec.name(path.trim_start_matches("spec."));
        let sni = &settings.sni;
        let check = match client.subject_alt_names.as_slice() {
            _ if client.skip_verification => "certificates are not verified",
            [] => "certificates are not checked for any name",
            _ => "certificates are checked for `subjectAltNames`",
        };
        let message = format!("every host of {} is asked for \"{sni}\", and {check}", cluster.service.host);
        let help = "leave `sni` out: the host that a request asks for is sent, and its certificate checked".to_owned();
        report.add(Severity::Warning, Code::SchemaWarning, field.name("sni"), message, Some(help));
    }

    /// Whether its endpoints are left out on purpose.
    fn is_passthrough(&self, cluster: &Cluster) -> bool {
        let policy = Policy::new(self.rule.as_deref(), cluster.port, &cluster.subset);
        policy.and_then(|policy| policy.load_balancer).is_some_and(balancing::is_passthrough)
    }

    /// Whether Istio would speak mutual TLS to some of the endpoints, without any rule that says so.
    fn wants_mutual_tls(&self, context: &Context<'_>) -> bool {
        let Ok(cluster) = &self.outcome else { return false };
        let is_up_to_us = || {
            let policy = Policy::new(self.rule.as_deref(), cluster.port, &cluster.subset);
            policy.is_some_and(|policy| policy.tls.is_none())
        };
        context.mesh.clusters.auto_mtls
            && cluster.tls.is_none()
            && self.service.as_ref().is_some_and(|service| service.speaks_mutual_tls)
            && is_up_to_us()
    }
}

impl Context<'_> {
    fn make(&self, reference: &ClusterReference) -> Made {
        let (service, rule) = self.look_up(&reference.host, reference.port);
        let outcome = self.cluster(reference, service.as_deref(), rule.as_deref()).map(Arc::new);
        Made { service, rule, outcome, users: Vec::new() }
    }

    /// Makes a cluster again if what it is made of is something else.
    fn renew(&self, name: &ClusterName, made: &mut Made) {
        let Some(reference) = made.references(name).next() else { return };
        let (service, rule) = self.look_up(&reference.host, reference.port);
        if is_same(made.service.as_ref(), service.as_ref()) && is_same(made.rule.as_ref(), rule.as_ref()) {
            return;
        }
        let mut outcome = self.cluster(reference, service.as_deref(), rule.as_deref());
        if let (Ok(known), Ok(cluster)) = (&made.outcome, &mut outcome) {
            share(&known.tls, &mut cluster.tls);
            share(&known.outlier_detection, &mut cluster.outlier_detection);
        }
        let is_equal = match (&made.outcome, &outcome) {
            (Ok(known), Ok(cluster)) => **known == *cluster,
            _ => false,
        };
        if !is_equal {
            made.outcome = outcome.map(Arc::new);
        }
        (made.service, made.rule) = (service, rule);
    }

    fn look_up(&self, host: &str, port: u16) -> (Option<Arc<Service>>, Option<Arc<Rule>>) {
        let service = self.registry.lookup_port(host, &self.options.namespace, port);
        (service.map(Arc::clone), self.rule_of(host, service))
    }

    /// The DestinationRule for a destination host.
    pub(super) fn rule(&self, host: &str) -> Option<Arc<Rule>> {
        self.rule_of(host, self.registry.lookup(host, &self.options.namespace))
    }

    fn rule_of(&self, host: &str, service: Option<&Arc<Service>>) -> Option<Arc<Rule>> {
        let namespace = service.map_or("", |service| &service.identity.namespace);
        self.rules.choose(host, namespace).map(Arc::clone)
    }

    fn cluster(
        &self,
        reference: &ClusterReference,
        service: Option<&Service>,
        rule: Option<&Rule>,
    ) -> Result<Cluster, Missing> {
        let ClusterReference { name, host, port, subset, external_name, .. } = reference;
        let policy = Policy::new(rule, *port, subset).ok_or(match service {
            None => Missing::Host,
            Some(_) => Missing::Subset,
        })?;
        let labels = policy.labels.cloned().unwrap_or_default();
        let defaults = &self.mesh.clusters;
        let of_mesh = Some(defaults).filter(|_| !policy.hides_mesh);
        let outlier_detection =
            policy.outlier_detection.or_else(|| of_mesh.and_then(|mesh| mesh.outlier_detection.as_ref()));
        let (identity, port_protocol, (endpoints, groups)) = match service {
            Some(service) => {
                let ServicePort { protocol, .. } = service.port(*port).ok_or(Missing::Port)?;
                let setting = policy.load_balancer.and_then(|settings| settings.locality_lb_setting.as_ref());
                let distribution = service.traffic_distribution;
                let strategy =
                    Strategy::new(setting, distribution, defaults.locality.as_ref(), outlier_detection.is_some());
                let place = |backends: &[&Backend]| strategy.place(backends, self.options);
                let endpoints = service.endpoints(*port, &labels, place).ok_or(Missing::Endpoints)?;
                (Arc::clone(&service.identity), *protocol, endpoints)
            }
            // The name that an ExternalName stands for needs no ServiceEntry to be resolved.
            None if *external_name => {
                let host: Arc<str> = host.as_str().into();
                let identity =
                    ServiceIdentity { host: Arc::clone(&host), name: Arc::clone(&host), namespace: Arc::default() };
                let endpoint = DnsEndpoint { host, port: *port, weight: 1, placement: Placement::default() };
                let endpoints = (Endpoints::StrictDns([endpoint].into()), Arc::default());
                (Arc::new(identity), Protocol::Auto, endpoints)
            }
            None => return Err(Missing::Host),
        };
        if port_protocol == Protocol::Udp {
            return Err(Missing::Port);
        }
        let (endpoints, groups) = match policy.load_balancer {
            Some(settings) if balancing::is_passthrough(settings) => {
                (Endpoints::Static(Arc::default()), Arc::default())
            }
            _ => (endpoints, groups),
        };
        let pool = policy.connection_pool.or_else(|| of_mesh.and_then(|mesh| mesh.connection_pool.as_ref()));
        let protocol = upstream_protocol(port_protocol, pool, defaults);
        let hash_keys = || balancing::hash_keys(rule, *port, subset);
        Ok(Cluster {
            name: name.clone(),
            service: identity,
            port: *port,
            subset: subset.clone(),
            endpoints,
            protocol,
            connect_timeout: connect_timeout(pool, defaults),
            limits: limits(pool, policy.retry_budget, protocol, defaults),
            tls: policy
                .tls
                .and_then(|block| tls::client(block.settings, reference, service, defaults, &self.options.namespace))
                .map(Arc::new),
            balancing: Balancing { groups, ..balancing::balancing(policy.load_balancer, hash_keys) },
            outlier_detection: outlier_detection.map(|settings| Arc::new(outliers::detection(settings))),
            proxy_protocol: policy.proxy_protocol.map(|ProxyProtocol { version }| match version {
                ProxyProtocolVersion::V1 => cluster::ProxyProtocol::V1,
                ProxyProtocolVersion::V2 => cluster::ProxyProtocol::V2,
            }),
        })
    }

    fn report_missing(&self, reference: &ClusterReference, missing: Missing, is_stream: bool, report: &mut Report) {
        let loss = if is_stream { "connections are reset, NC" } else { "requests answer 503, NC" };
        let ClusterReference { host, port, subset, resource, path, .. } = reference;
        let spec = Field::spec(resource);
        let field = spec.name(path);
        let (name, message, help) = match missing {
            Missing::Host => {
                let hosts = self.registry.hosts();
                let nearest = hosts
                    .into_iter()
                    .map(|known| (strsim::normalized_damerau_levenshtein(known, host), known))
                    .filter(|(likeness, _)| *likeness > 0.7)
                    .max_by(|a, b| a.0.total_cmp(&b.0));
                let help = match nearest {
                    Some((_, known)) => format!("did you mean `{known}`? Otherwise add a ServiceEntry for it"),
                    None => "add a Service or a ServiceEntry for this host".to_owned(),
                };
                ("host", format!("host not found: \"{host}\" ({loss})"), help)
            }
            Missing::Port => {
                let ports = self.registry.lookup(host, &self.options.namespace).map(|service| {
                    let numbers: Vec<_> = service.ports.iter().map(|port| port.number.to_string()).collect();
                    format!("it has: {}", numbers.join(", "))
                });
                ("port", format!("{host} has no port {port} ({loss})"), ports.unwrap_or_default())
            }
            Missing::Subset => {
                let namespace = self
                    .registry
                    .lookup(host, &self.options.namespace)
                    .map(|service| Arc::clone(&service.identity.namespace));
                let rule = self.rules.choose(host, &namespace.unwrap_or_default());
                let known: Vec<_> = rule.iter().flat_map(|rule| rule.subsets()).collect();
                let help = match known.as_slice() {
                    [] => "no DestinationRule that applies has subsets for this host".to_owned(),
                    known => format!("the DestinationRule has: {}", known.join(", ")),
                };
                ("subset", format!("subset not found: \"{subset}\" of {host} ({loss})"), help)
            }
            Missing::Endpoints => (
                "host",
                format!("{host} can't have endpoints ({loss})"),
                "a DNS ServiceEntry needs endpoints, or a host that is no wildcard".to_owned(),
            ),
        };
        let help = Some(help).filter(|help| !help.is_empty());
        report.add(Severity::Warning, Code::ReferencedResourceNotFound, field.name(name), message, help);
    }
}

/// Names a subset that no endpoint has the labels of (IST0173).
fn report_empty_subset(
    reference: &ClusterReference,
    cluster: &Cluster,
    is_dynamic: bool,
    is_stream: bool,
    report: &mut Report,
) {
    let ClusterReference { host, subset, resource, path, .. } = reference;
    if subset.is_empty() || !matches!(&cluster.endpoints, Endpoints::Static(endpoints) if endpoints.is_empty()) {
        return;
    }
    let spec = Field::spec(resource);
    let field = spec.name(path);
    let loss = if is_stream { "connections are reset, UH" } else { "requests answer 503, UH" };
    let message = format!("no known endpoint of {host} has the labels of subset \"{subset}\" ({loss})");
    let help = match is_dynamic {
        true => "hosts that are resolved on demand have no labels: leave the subset out",
        false => "labels come from WorkloadEntries, ServiceEntries and EndpointSlices; Pods are not read",
    };
    let code = Code::DestinationRuleSubsetNotSelectPods;
    report.add(Severity::Warning, code, field.name("subset"), message, Some(help.to_owned()));
}

/// Says that the server name of raw TCP can't be taken from a request.
fn report_no_server_name(reference: &ClusterReference, cluster: &Cluster, is_stream: bool, report: &mut Report) {
    let ClusterReference { host, resource, path, .. } = reference;
    let Some(tls) = cluster.tls.as_ref().filter(|_| is_stream) else { return };
    if tls.server_name != ServerNameSource::Request {
        return;
    }
    let spec = Field::spec(resource);
    let field = spec.name(path);
    let message = format!("TLS to {host} is begun without SNI, and its name is not checked: raw TCP names no host");
    let help = "set `sni` and `subjectAltNames` in the DestinationRule".to_owned();
    report.add(Severity::Warning, Code::SchemaWarning, field.name("host"), message, Some(help));
}

/// Says that this gateway does not begin mutual TLS by itself.
fn report_auto_mtls(reference: &ClusterReference, report: &mut Report) {
    let ClusterReference { host, resource, path, .. } = reference;
    let spec = Field::spec(resource);
    let field = spec.name(path);
    let message = format!("endpoints of {host} speak Istio's mutual TLS, which is not begun by itself: plaintext");
    let help = "add a DestinationRule for the host with `tls: {mode: ISTIO_MUTUAL}`".to_owned();
    report.add(Severity::Warning, Code::Unsupported, field.name("host"), message, Some(help));
}

/// Puts what is `known` in the place of its equal.
fn share<T: PartialEq>(known: &Option<Arc<T>>, new: &mut Option<Arc<T>>) {
    if known == new {
        new.clone_from(known);
    }
}

fn is_same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

fn upstream_protocol(
    port: Protocol,
    pool: Option<&ConnectionPoolSettings>,
    defaults: &ClusterDefaults,
) -> UpstreamProtocol {
    let http = pool.and_then(|pool| pool.http.as_ref());
    if http.is_some_and(|http| http.use_client_protocol) {
        return UpstreamProtocol::SameAsClient;
    }
    let upgrade = match http.map(|http| http.h2_upgrade_policy).unwrap_or_default() {
        H2UpgradePolicy::Upgrade => true,
        H2UpgradePolicy::DoNotUpgrade => false,
        H2UpgradePolicy::Default => defaults.upgrade_to_h2 && matches!(port, Protocol::Http | Protocol::Auto),
    };
    if port == Protocol::Http2 || upgrade { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 }
}

fn connect_timeout(pool: Option<&ConnectionPoolSettings>, defaults: &ClusterDefaults) -> Duration {
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    tcp.and_then(|tcp| tcp.connect_timeout).unwrap_or(defaults.connect_timeout)
}

fn limits(
    pool: Option<&ConnectionPoolSettings>,
    budget: Option<&RetryBudget>,
    protocol: UpstreamProtocol,
    defaults: &ClusterDefaults,
) -> Limits {
    let no_pool = ConnectionPoolSettings::default();
    let ConnectionPoolSettings { tcp, http } = pool.unwrap_or(&no_pool);
    let mut limits = Limits::default();
    // Zero means unset in all of them.
    let set = |limit: &mut u32, value: i32| {
        if let Ok(value @ 1..) = u32::try_from(value) {
            *limit = value;
        }
    };
    let mut keepalive = defaults.tcp_keepalive.as_ref();
    if let Some(tcp) = tcp {
        let TcpSettings { max_connections, connect_timeout: _, tcp_keepalive, max_connection_duration, idle_timeout } =
            tcp;
        set(&mut limits.max_connections, *max_connections);
        keepalive = tcp_keepalive.as_ref().or(keepalive);
        limits.max_connection_duration = *max_connection_duration;
        if let Some(idle) = idle_timeout {
            limits.idle_timeout = Some(*idle);
        }
    }
    if let Some(http) = http {
        let HttpSettings {
            http1_max_pending_requests,
            http2_max_requests,
            max_requests_per_connection,
            max_retries,
            idle_timeout,
            h2_upgrade_policy: _,
            use_client_protocol: _,
            max_concurrent_streams,
            http2_keep_alive,
        } = http;
        set(&mut limits.max_pending_requests, *http1_max_pending_requests);
        set(&mut limits.max_requests, *http2_max_requests);
        set(&mut limits.max_requests_per_connection, *max_requests_per_connection);
        set(&mut limits.max_retries, *max_retries);
        set(&mut limits.max_concurrent_streams, *max_concurrent_streams);
        if let Some(idle) = idle_timeout {
            limits.idle_timeout = Some(*idle);
        }
        if let Some(Http2KeepAlive { interval: Some(interval), timeout: Some(timeout) }) = http2_keep_alive
            && protocol == UpstreamProtocol::Http2
        {
            limits.http2_keepalive = Some(cluster::Http2Keepalive { interval: *interval, timeout: *timeout });
        }
    }
    // Zero turns it off.
    limits.idle_timeout = limits.idle_timeout.filter(|idle| !idle.is_zero());
    limits.tcp_keepalive = keepalive.map(|keepalive| {
        let TcpKeepalive { probes, time, interval } = keepalive;
        cluster::TcpKeepalive { probes: Some(*probes).filter(|&probes| probes > 0), time: *time, interval: *interval }
    });
    limits.retry_budget = budget.map(|budget| {
        let RetryBudget { percent, min_retry_concurrency, budget_interval } = budget;
        cluster::RetryBudget {
            percent: match percent {
                None => 20.0,
                Some(Percentage::Number(value)) => *value,
                Some(Percentage::Message(percent)) => percent.value,
            },
            min_concurrency: if *min_retry_concurrency == 0 { 3 } else { *min_retry_concurrency },
            interval: budget_interval.filter(|interval| !interval.is_zero()),
        }
    });
    limits
}
