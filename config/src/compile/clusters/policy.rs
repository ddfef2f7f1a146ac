//! The traffic policy that applies to a port and subset.
//!
//! Source: `reference/networking.md` §5.2.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::destination_rules::Rule;
use super::super::options::Options;
use super::super::report::{Field, Report};
use super::{balancing, tls};
use crate::resource::Resource;
use crate::resource::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, DestinationRule, LoadBalancerSettings, OutlierDetection,
    PortTrafficPolicy, ProxyProtocol, RetryBudget, Subset, TrafficPolicy,
};

/// The blocks in force. Blocks are taken whole; their fields never mix.
#[derive(Debug, Clone, Default)]
pub(super) struct Policy<'a> {
    pub(super) load_balancer: Option<&'a LoadBalancerSettings>,
    pub(super) outlier_detection: Option<&'a OutlierDetection>,
    pub(super) connection_pool: Option<&'a ConnectionPoolSettings>,
    pub(super) tls: Option<TlsBlock<'a>>,
    pub(super) retry_budget: Option<&'a RetryBudget>,
    pub(super) proxy_protocol: Option<&'a ProxyProtocol>,
    /// Of the subset.
    pub(super) labels: Option<&'a BTreeMap<String, String>>,
    /// Whether the mesh's blocks don't stand in for missing ones.
    pub(super) hides_mesh: bool,
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
                load_balancer: settings.load_balancer.as_ref(),
                outlier_detection: settings.outlier_detection.as_ref(),
                connection_pool: settings.connection_pool.as_ref(),
                tls: TlsBlock::new(settings.tls.as_ref(), resource, path, Some(index)),
                retry_budget: None,
                proxy_protocol: None,
                labels: None,
                hides_mesh: false,
            },
            None => Self {
                load_balancer: policy.load_balancer.as_ref(),
                outlier_detection: policy.outlier_detection.as_ref(),
                connection_pool: policy.connection_pool.as_ref(),
                tls: TlsBlock::new(policy.tls.as_ref(), resource, path, None),
                retry_budget: policy.retry_budget.as_ref(),
                proxy_protocol: policy.proxy_protocol.as_ref(),
                labels: None,
                hides_mesh: false,
            },
        }
    }

    fn of_subset(rule: Option<&'a Rule>, port: u16, subset: &str) -> Option<Self> {
        let (resource, index, Subset { name: _, labels, traffic_policy }) = rule?.subset_part(subset)?;
        let base = Self { labels: Some(labels), ..Self::of_service(rule, port) };
        let Some(policy) = traffic_policy else { return Some(base) };
        let path = format!("spec.subsets[{index}].trafficPolicy");
        Some(match of_port(policy, port) {
            // The mesh's blocks belong to what these settings replace.
            Some((index, settings)) => Self {
                load_balancer: settings.load_balancer.as_ref(),
                outlier_detection: settings.outlier_detection.as_ref(),
                connection_pool: settings.connection_pool.as_ref(),
                tls: TlsBlock::new(settings.tls.as_ref(), resource, &path, Some(index)),
                retry_budget: policy.retry_budget.as_ref().or(base.retry_budget),
                proxy_protocol: policy.proxy_protocol.as_ref().or(base.proxy_protocol),
                labels: base.labels,
                hides_mesh: true,
            },
            None => Self {
                load_balancer: policy.load_balancer.as_ref().or(base.load_balancer),
                outlier_detection: policy.outlier_detection.as_ref().or(base.outlier_detection),
                connection_pool: policy.connection_pool.as_ref().or(base.connection_pool),
                tls: TlsBlock::new(policy.tls.as_ref(), resource, &path, None).or(base.tls),
                retry_budget: policy.retry_budget.as_ref().or(base.retry_budget),
                proxy_protocol: policy.proxy_protocol.as_ref().or(base.proxy_protocol),
                labels: base.labels,
                hides_mesh: false,
            },
        })
    }
}

/// The first settings for `port`, with their number.
pub(super) fn of_port(policy: &TrafficPolicy, port: u16) -> Option<(usize, &PortTrafficPolicy)> {
    let mut settings = policy.port_level_settings.iter().enumerate();
    settings.find(|(_, settings)| settings.port.is_some_and(|selector| selector.number == u32::from(port)))
}

/// Names what this gateway doesn't honour of a rule that is in use.
pub(super) fn report(rule: &Rule, options: &Options, report: &mut Report) {
    for (resource, spec) in rule.parts() {
        let DestinationRule { host: _, traffic_policy, subsets, export_to: _, workload_selector: _ } = spec;
        let field = Field::spec(resource);
        if let Some(policy) = traffic_policy {
            report_policy(policy, &field.name("trafficPolicy"), options, report);
        }
        let list = field.name("subsets");
        for (i, Subset { name: _, labels: _, traffic_policy }) in subsets.iter().enumerate() {
            if let Some(policy) = traffic_policy {
                let subset = list.index(i);
                report_policy(policy, &subset.name("trafficPolicy"), options, report);
            }
        }
    }
}

fn report_policy(policy: &TrafficPolicy, field: &Field<'_>, options: &Options, report: &mut Report) {
    let TrafficPolicy {
        load_balancer,
        connection_pool: _,
        outlier_detection: _,
        tls,
        port_level_settings,
        // HTTP ignores it in silence, as in Istio.
        tunnel: _,
        proxy_protocol: _,
        retry_budget: _,
    } = policy;
    report_blocks(load_balancer.as_ref(), tls.as_ref(), field, options, report);
    let list = field.name("portLevelSettings");
    for (i, settings) in port_level_settings.iter().enumerate() {
        let PortTrafficPolicy { port: _, load_balancer, connection_pool: _, outlier_detection: _, tls } = settings;
        report_blocks(load_balancer.as_ref(), tls.as_ref(), &list.index(i), options, report);
    }
}

fn report_blocks(
    load_balancer: Option<&LoadBalancerSettings>,
    tls: Option<&ClientTlsSettings>,
    field: &Field<'_>,
    options: &Options,
    report: &mut Report,
) {
    if let Some(settings) = load_balancer {
        balancing::report(settings, options, &field.name("loadBalancer"), report);
    }
    if let Some(settings) = tls {
        tls::report(settings, &field.name("tls"), &options.namespace, report);
    }
}
