//! The traffic policy that applies to a port and subset.
//!
//! Source: `reference/networking.md` §5.2.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::destination_rules::Rule;
use super::super::report::{Field, Report};
use super::tls;
use crate::resource::Resource;
use crate::resource::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, DestinationRule, HttpSettings, LoadBalancerSettings, OutlierDetection,
    PortTrafficPolicy, RetryBudget, SimpleLoadBalancer, Subset, TrafficPolicy,
};

/// The blocks in force. Blocks are taken whole; their fields never mix.
#[derive(Debug, Clone, Default)]
pub(super) struct Policy<'a> {
    pub(super) connection_pool: Option<&'a ConnectionPoolSettings>,
    pub(super) tls: Option<TlsBlock<'a>>,
    pub(super) retry_budget: Option<&'a RetryBudget>,
    /// Of the subset.
    pub(super) labels: Option<&'a BTreeMap<String, String>>,
}

/// A `tls` block, and where it stands.
#[derive(Debug, Clone)]
pub(super) struct TlsBlock<'a> {
    pub(super) settings: &'a ClientTlsSettings,
    pub(super) resource: &'a Arc<Resource>,
    /// `spec.trafficPolicy.tls`.
    pub(super) path: String,
}

impl<'a> TlsBlock<'a> {
    /// The block of a policy that stands at `path`, or of the settings of a port in it.
    fn new(
        settings: Option<&'a ClientTlsSettings>,
        resource: &'a Arc<Resource>,
        path: &str,
        port: Option<usize>,
    ) -> Option<Self> {
        let path = match port {
            Some(index) => format!("{path}.portLevelSettings[{index}].tls"),
            None => format!("{path}.tls"),
        };
        settings.map(|settings| Self { settings, resource, path })
    }
}

impl<'a> Policy<'a> {
    /// For a subset, or for the whole service if that is empty; `None` if there is no such subset.
    pub(super) fn new(rule: Option<&'a Rule>, port: u16, subset: &str) -> Option<Self> {
        if subset.is_empty() { Some(Self::of_service(rule, port)) } else { Self::of_subset(rule, port, subset) }
    }

    fn of_service(rule: Option<&'a Rule>, port: u16) -> Self {
        let Some((resource, policy)) = rule.and_then(Rule::traffic_policy_part) else { return Self::default() };
        let path = "spec.trafficPolicy";
        match of_port(policy, port) {
            // A port's settings replace everything: what they don't say goes back to the default.
            Some((index, settings)) => Self {
                connection_pool: settings.connection_pool.as_ref(),
                tls: TlsBlock::new(settings.tls.as_ref(), resource, path, Some(index)),
                retry_budget: None,
                labels: None,
            },
            None => Self {
                connection_pool: policy.connection_pool.as_ref(),
                tls: TlsBlock::new(policy.tls.as_ref(), resource, path, None),
                retry_budget: policy.retry_budget.as_ref(),
                labels: None,
            },
        }
    }

    fn of_subset(rule: Option<&'a Rule>, port: u16, subset: &str) -> Option<Self> {
        let (resource, index, Subset { name: _, labels, traffic_policy }) = rule?.subset_part(subset)?;
        let base = Self { labels: Some(labels), ..Self::of_service(rule, port) };
        let Some(policy) = traffic_policy else { return Some(base) };
        let path = format!("spec.subsets[{index}].trafficPolicy");
        Some(match of_port(policy, port) {
            Some((index, settings)) => Self {
                connection_pool: settings.connection_pool.as_ref(),
                tls: TlsBlock::new(settings.tls.as_ref(), resource, &path, Some(index)),
                ..base
            },
            None => Self {
                connection_pool: policy.connection_pool.as_ref().or(base.connection_pool),
                tls: TlsBlock::new(policy.tls.as_ref(), resource, &path, None).or(base.tls),
                retry_budget: policy.retry_budget.as_ref().or(base.retry_budget),
                labels: base.labels,
            },
        })
    }
}

/// The first settings for `port`, with their number.
fn of_port(policy: &TrafficPolicy, port: u16) -> Option<(usize, &PortTrafficPolicy)> {
    let mut settings = policy.port_level_settings.iter().enumerate();
    settings.find(|(_, settings)| settings.port.is_some_and(|selector| selector.number == u32::from(port)))
}

/// Names what this gateway doesn't honour of a rule that is in use, with `has_streams` by raw TCP.
pub(super) fn report(rule: &Rule, has_streams: bool, namespace: &str, report: &mut Report) {
    for (resource, spec) in rule.parts() {
        let DestinationRule { host: _, traffic_policy, subsets, export_to: _, workload_selector: _ } = spec;
        let field = Field::spec(resource);
        if let Some(policy) = traffic_policy {
            report_policy(policy, &field.name("trafficPolicy"), has_streams, namespace, report);
        }
        let list = field.name("subsets");
        for (i, Subset { name: _, labels: _, traffic_policy }) in subsets.iter().enumerate() {
            if let Some(policy) = traffic_policy {
                let subset = list.index(i);
                report_policy(policy, &subset.name("trafficPolicy"), has_streams, namespace, report);
            }
        }
    }
}

fn report_policy(policy: &TrafficPolicy, field: &Field<'_>, has_streams: bool, namespace: &str, report: &mut Report) {
    let TrafficPolicy {
        load_balancer,
        connection_pool,
        outlier_detection,
        tls,
        port_level_settings,
        tunnel,
        proxy_protocol,
        retry_budget: _,
    } = policy;
    report_blocks(&Blocks { load_balancer, connection_pool, outlier_detection, tls }, field, namespace, report);
    let list = field.name("portLevelSettings");
    for (i, settings) in port_level_settings.iter().enumerate() {
        let PortTrafficPolicy { port: _, load_balancer, connection_pool, outlier_detection, tls } = settings;
        let blocks = Blocks { load_balancer, connection_pool, outlier_detection, tls };
        report_blocks(&blocks, &list.index(i), namespace, report);
    }
    if tunnel.is_some() && has_streams {
        let message = "not supported yet: raw TCP goes to the destination without a tunnel (HTTP always does)";
        report.unsupported(field.name("tunnel"), message);
    }
    if proxy_protocol.is_some() {
        let message = "not supported yet: connections begin without the header that the destination may expect";
        report.unsupported(field.name("proxyProtocol"), message);
    }
}

struct Blocks<'a> {
    load_balancer: &'a Option<LoadBalancerSettings>,
    connection_pool: &'a Option<ConnectionPoolSettings>,
    outlier_detection: &'a Option<OutlierDetection>,
    tls: &'a Option<ClientTlsSettings>,
}

fn report_blocks(blocks: &Blocks<'_>, field: &Field<'_>, namespace: &str, report: &mut Report) {
    let Blocks { load_balancer, connection_pool, outlier_detection, tls } = blocks;
    if let Some(load_balancer) = load_balancer {
        report_load_balancer(load_balancer, &field.name("loadBalancer"), report);
    }
    if let Some(ConnectionPoolSettings { tcp: _, http: Some(HttpSettings { http2_keep_alive, .. }) }) = connection_pool
    {
        let pool = field.name("connectionPool");
        let http = pool.name("http");
        report.unsupported_if(http2_keep_alive.is_some(), http.name("http2KeepAlive"));
    }
    report.unsupported_if(outlier_detection.is_some(), field.name("outlierDetection"));
    if let Some(settings) = tls {
        tls::report(settings, &field.name("tls"), namespace, report);
    }
}

fn report_load_balancer(settings: &LoadBalancerSettings, field: &Field<'_>, report: &mut Report) {
    let LoadBalancerSettings {
        simple,
        consistent_hash,
        locality_lb_setting,
        zone_aware_lb_setting,
        warmup_duration_secs,
        warmup,
    } = settings;
    if !matches!(simple, None | Some(SimpleLoadBalancer::RoundRobin | SimpleLoadBalancer::Unspecified)) {
        report.unsupported(field.name("simple"), "not supported yet: endpoints take turns (ROUND_ROBIN)");
    }
    report.unsupported_if(consistent_hash.is_some(), field.name("consistentHash"));
    report.unsupported_if(locality_lb_setting.is_some(), field.name("localityLbSetting"));
    report.unsupported_if(zone_aware_lb_setting.is_some(), field.name("zoneAwareLbSetting"));
    report.unsupported_if(warmup_duration_secs.is_some(), field.name("warmupDurationSecs"));
    report.unsupported_if(warmup.is_some(), field.name("warmup"));
}
