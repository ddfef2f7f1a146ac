//! The clusters that routes name.
//!
//! Source: `reference/networking.md` §3.16, §5.2, §5.5, §1.6.

mod policy;

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use super::MeshSettings;
use super::destination_rules::{Rule, Rules};
use super::mesh::ClusterDefaults;
use super::protocol::Protocol;
use super::report::{Field, Report};
use super::services::{Registry, Service, ServicePort};
use super::virtual_services::{ClusterReference, ServerRoutes};
use crate::diagnostic::{Code, Severity};
use crate::resource::destination_rule::{
    ConnectionPoolSettings, H2UpgradePolicy, HttpSettings, Percentage, RetryBudget, TcpKeepalive, TcpSettings,
};
use crate::snapshot::cluster::{
    self, Cluster, ClusterName, DnsEndpoint, Endpoints, Limits, ServiceIdentity, UpstreamProtocol,
};

use policy::Policy;

/// What destinations are looked up in.
pub(super) struct Context<'a> {
    /// Of this gateway.
    pub(super) namespace: &'a str,
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
    clusters: AHashMap<ClusterName, Made>,
}

/// A cluster, and what it was made of.
#[derive(Debug)]
struct Made {
    service: Option<Arc<Service>>,
    rule: Option<Arc<Rule>>,
    outcome: Result<Arc<Cluster>, Missing>,
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
    servers: &[ServerRoutes],
    memo: &mut Memo,
    report: &mut Report,
) -> AHashMap<ClusterName, Arc<Cluster>> {
    let defaults = &context.mesh.clusters;
    if memo.defaults.as_ref() != Some(defaults) {
        *memo = Memo { defaults: Some(defaults.clone()), ..Memo::default() };
    }
    let unmoved = Arc::ptr_eq(&memo.registry, context.registry) && Arc::ptr_eq(&memo.rules, context.rules);
    let mut previous = std::mem::take(&mut memo.clusters);
    let references = servers.iter().flat_map(|server| &server.hosts).flat_map(|host| &host.routes.clusters);
    for reference in references {
        if memo.clusters.contains_key(&reference.name) {
            continue;
        }
        let made = match previous.remove(&reference.name) {
            Some(made) if unmoved => made,
            before => context.make(reference, before),
        };
        match &made.outcome {
            Err(missing) => context.report_missing(reference, *missing, report),
            Ok(cluster) => report_empty_subset(reference, cluster, report),
        }
        memo.clusters.insert(reference.name.clone(), made);
    }
    let mut used_rules: Vec<&Arc<Rule>> = Vec::new();
    let mut used_services: Vec<&Arc<Service>> = Vec::new();
    let mut clusters = AHashMap::with_capacity(memo.clusters.len());
    for (name, made) in &memo.clusters {
        used_rules.extend(&made.rule);
        used_services.extend(&made.service);
        if let Ok(cluster) = &made.outcome {
            clusters.insert(name.clone(), Arc::clone(cluster));
        }
    }
    used_rules.sort_unstable_by_key(|rule| Arc::as_ptr(rule));
    used_rules.dedup_by_key(|rule| Arc::as_ptr(rule));
    used_rules.into_iter().for_each(|rule| policy::report(rule, report));
    used_services.sort_unstable_by_key(|service| Arc::as_ptr(service));
    used_services.dedup_by_key(|service| Arc::as_ptr(service));
    report.diagnostics.extend(used_services.into_iter().flat_map(|service| service.diagnostics.clone()));
    memo.registry = Arc::clone(context.registry);
    memo.rules = Arc::clone(context.rules);
    clusters
}

impl Context<'_> {
    fn make(&self, reference: &ClusterReference, before: Option<Made>) -> Made {
        let service = self.registry.lookup(&reference.host, self.namespace).map(Arc::clone);
        let namespace = service.as_ref().map_or("", |service| &service.identity.namespace);
        let rule = self.rules.choose(&reference.host, namespace).map(Arc::clone);
        if let Some(before) = before
            && is_same(before.service.as_ref(), service.as_ref())
            && is_same(before.rule.as_ref(), rule.as_ref())
        {
            return before;
        }
        let outcome = self.cluster(reference, service.as_deref(), rule.as_deref()).map(Arc::new);
        Made { service, rule, outcome }
    }

    fn cluster(
        &self,
        reference: &ClusterReference,
        service: Option<&Service>,
        rule: Option<&Rule>,
    ) -> Result<Cluster, Missing> {
        let ClusterReference { name, host, port, subset, external_name, .. } = reference;
        let policy = match subset.as_str() {
            "" => Policy::of_service(rule, *port),
            subset => Policy::of_subset(rule, *port, subset).ok_or(match service {
                None => Missing::Host,
                Some(_) => Missing::Subset,
            })?,
        };
        let labels = policy.labels.cloned().unwrap_or_default();
        let (identity, port_protocol, endpoints) = match service {
            Some(service) => {
                let ServicePort { protocol, .. } = service.port(*port).ok_or(Missing::Port)?;
                let endpoints = service.endpoints(*port, &labels).ok_or(Missing::Endpoints)?;
                (Arc::clone(&service.identity), *protocol, endpoints)
            }
            // The name that an ExternalName stands for needs no ServiceEntry to be resolved.
            None if *external_name => {
                let host: Arc<str> = host.as_str().into();
                let identity =
                    ServiceIdentity { host: Arc::clone(&host), name: Arc::clone(&host), namespace: Arc::default() };
                let endpoint = DnsEndpoint { host, port: *port, weight: 1 };
                (Arc::new(identity), Protocol::Auto, Endpoints::StrictDns([endpoint].into()))
            }
            None => return Err(Missing::Host),
        };
        if port_protocol == Protocol::Udp {
            return Err(Missing::Port);
        }
        let defaults = &self.mesh.clusters;
        let pool = policy.connection_pool.or(defaults.connection_pool.as_ref());
        let protocol = upstream_protocol(port_protocol, pool, defaults);
        Ok(Cluster {
            name: name.clone(),
            service: identity,
            port: *port,
            subset: subset.clone(),
            endpoints,
            protocol,
            connect_timeout: connect_timeout(pool, defaults),
            limits: limits(pool, policy.retry_budget, defaults),
            refused: policy.refused(),
        })
    }

    fn report_missing(&self, reference: &ClusterReference, missing: Missing, report: &mut Report) {
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
                ("host", format!("host not found: \"{host}\" (requests answer 503, NC)"), help)
            }
            Missing::Port => {
                let ports = self.registry.lookup(host, self.namespace).map(|service| {
                    let numbers: Vec<_> = service.ports.iter().map(|port| port.number.to_string()).collect();
                    format!("it has: {}", numbers.join(", "))
                });
                ("port", format!("{host} has no port {port} (requests answer 503, NC)"), ports.unwrap_or_default())
            }
            Missing::Subset => {
                let namespace =
                    self.registry.lookup(host, self.namespace).map(|service| Arc::clone(&service.identity.namespace));
                let rule = self.rules.choose(host, &namespace.unwrap_or_default());
                let known: Vec<_> = rule.iter().flat_map(|rule| rule.subsets()).collect();
                let help = match known.as_slice() {
                    [] => "no DestinationRule that applies has subsets for this host".to_owned(),
                    known => format!("the DestinationRule has: {}", known.join(", ")),
                };
                ("subset", format!("subset not found: \"{subset}\" of {host} (requests answer 503, NC)"), help)
            }
            Missing::Endpoints => (
                "host",
                format!("{host} can't have endpoints (requests answer 503, NC)"),
                "a DNS ServiceEntry needs endpoints, or a host that is no wildcard".to_owned(),
            ),
        };
        let help = Some(help).filter(|help| !help.is_empty());
        report.add(Severity::Warning, Code::ReferencedResourceNotFound, field.name(name), message, help);
    }
}

/// Names a subset that no endpoint has the labels of (IST0173).
fn report_empty_subset(reference: &ClusterReference, cluster: &Cluster, report: &mut Report) {
    let ClusterReference { host, subset, resource, path, .. } = reference;
    if subset.is_empty() || !matches!(&cluster.endpoints, Endpoints::Static(endpoints) if endpoints.is_empty()) {
        return;
    }
    let spec = Field::spec(resource);
    let field = spec.name(path);
    let message =
        format!("no known endpoint of {host} has the labels of subset \"{subset}\" (requests answer 503, UH)");
    let help = "labels come from WorkloadEntries, ServiceEntries and EndpointSlices; Pods are not read".to_owned();
    let code = Code::DestinationRuleSubsetNotSelectPods;
    report.add(Severity::Warning, code, field.name("subset"), message, Some(help));
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

fn limits(pool: Option<&ConnectionPoolSettings>, budget: Option<&RetryBudget>, defaults: &ClusterDefaults) -> Limits {
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
            http2_keep_alive: _,
        } = http;
        set(&mut limits.max_pending_requests, *http1_max_pending_requests);
        set(&mut limits.max_requests, *http2_max_requests);
        set(&mut limits.max_requests_per_connection, *max_requests_per_connection);
        set(&mut limits.max_retries, *max_retries);
        set(&mut limits.max_concurrent_streams, *max_concurrent_streams);
        if let Some(idle) = idle_timeout {
            limits.idle_timeout = Some(*idle);
        }
    }
    // Zero turns it off.
    limits.idle_timeout = limits.idle_timeout.filter(|idle| !idle.is_zero());
    limits.tcp_keepalive = keepalive.map(|keepalive| {
        let TcpKeepalive { probes, time, interval } = keepalive;
        cluster::TcpKeepalive { probes: Some(*probes).filter(|&probes| probes > 0), time: *time, interval: *interval }
    });
    limits.retry_budget = budget.map(|budget| {
        let RetryBudget { percent, min_retry_concurrency, budget_interval: _ } = budget;
        cluster::RetryBudget {
            percent: match percent {
                None => 20.0,
                Some(Percentage::Number(value)) => *value,
                Some(Percentage::Message(percent)) => percent.value,
            },
            min_concurrency: if *min_retry_concurrency == 0 { 3 } else { *min_retry_concurrency },
        }
    });
    limits
}
