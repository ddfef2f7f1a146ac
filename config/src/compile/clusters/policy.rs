//! The traffic policy that applies to a port and subset.
//!
//! Source: `reference/networking.md` §5.2.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::destination_rules::Rule;
use super::super::report::{Field, Report};
use crate::diagnostic::Code;
use crate::resource::destination_rule::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, DestinationRule, HttpSettings, LoadBalancerSettings,
    OutlierDetection, PortTrafficPolicy, RetryBudget, SimpleLoadBalancer, Subset, TrafficPolicy,
};
use crate::snapshot::tls::{CaSource, ClientMode, ClientTls, ServerNameSource, TlsParameters};

/// The blocks in force. Blocks are taken whole; their fields never mix.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Policy<'a> {
    pub(super) connection_pool: Option<&'a ConnectionPoolSettings>,
    pub(super) tls: Option<&'a ClientTlsSettings>,
    pub(super) retry_budget: Option<&'a RetryBudget>,
    /// Of the subset.
    pub(super) labels: Option<&'a BTreeMap<String, String>>,
}

impl<'a> Policy<'a> {
    /// For the whole service.
    pub(super) fn of_service(rule: Option<&'a Rule>, port: u16) -> Self {
        let Some(policy) = rule.and_then(Rule::traffic_policy) else { return Self::default() };
        match of_port(policy, port) {
            // A port's settings replace everything: what they don't say goes back to the default.
            Some(settings) => Self {
                connection_pool: settings.connection_pool.as_ref(),
                tls: settings.tls.as_ref(),
                retry_budget: None,
                labels: None,
            },
            None => Self {
                connection_pool: policy.connection_pool.as_ref(),
                tls: policy.tls.as_ref(),
                retry_budget: policy.retry_budget.as_ref(),
                labels: None,
            },
        }
    }

    /// For a subset; `None` if there is no such subset.
    pub(super) fn of_subset(rule: Option<&'a Rule>, port: u16, subset: &str) -> Option<Self> {
        let Subset { name: _, labels, traffic_policy } = rule?.subset(subset)?;
        let base = Self { labels: Some(labels), ..Self::of_service(rule, port) };
        let Some(policy) = traffic_policy else { return Some(base) };
        Some(match of_port(policy, port) {
            Some(settings) => {
                Self { connection_pool: settings.connection_pool.as_ref(), tls: settings.tls.as_ref(), ..base }
            }
            None => Self {
                connection_pool: policy.connection_pool.as_ref().or(base.connection_pool),
                tls: policy.tls.as_ref().or(base.tls),
                retry_budget: policy.retry_budget.as_ref().or(base.retry_budget),
                ..base
            },
        })
    }

    /// TLS towards the endpoints; `None` = plaintext.
    pub(super) fn tls(&self) -> Option<Arc<ClientTls>> {
        let mode = match self.tls?.mode {
            ClientTlsMode::Disable => return None,
            ClientTlsMode::Simple => ClientMode::Simple,
            ClientTlsMode::Mutual => ClientMode::Mutual,
            ClientTlsMode::IstioMutual => ClientMode::IstioMutual,
        };
        Some(Arc::new(ClientTls {
            mode,
            server_name: ServerNameSource::Request,
            ca: Some(CaSource::System { crl: None }),
            subject_alt_names: Vec::new(),
            verify_server_name: true,
            skip_verification: false,
            certificate: None,
            parameters: TlsParameters::default(),
        }))
    }
}

/// The first settings for `port`.
fn of_port(policy: &TrafficPolicy, port: u16) -> Option<&PortTrafficPolicy> {
    let mut settings = policy.port_level_settings.iter();
    settings.find(|settings| settings.port.is_some_and(|selector| selector.number == u32::from(port)))
}

/// Names what this gateway doesn't honour of a rule that is in use.
pub(super) fn report(rule: &Rule, report: &mut Report) {
    for (resource, spec) in rule.parts() {
        let DestinationRule { host: _, traffic_policy, subsets, export_to: _, workload_selector: _ } = spec;
        let field = Field::spec(resource);
        if let Some(policy) = traffic_policy {
            report_policy(policy, &field.name("trafficPolicy"), report);
        }
        let list = field.name("subsets");
        for (i, Subset { name: _, labels: _, traffic_policy }) in subsets.iter().enumerate() {
            if let Some(policy) = traffic_policy {
                let subset = list.index(i);
                report_policy(policy, &subset.name("trafficPolicy"), report);
            }
        }
    }
}

fn report_policy(policy: &TrafficPolicy, field: &Field<'_>, report: &mut Report) {
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
    report_blocks(&Blocks { load_balancer, connection_pool, outlier_detection, tls }, field, report);
    let list = field.name("portLevelSettings");
    for (i, settings) in port_level_settings.iter().enumerate() {
        let PortTrafficPolicy { port: _, load_balancer, connection_pool, outlier_detection, tls } = settings;
        let blocks = Blocks { load_balancer, connection_pool, outlier_detection, tls };
        report_blocks(&blocks, &list.index(i), report);
    }
    if tunnel.is_some() {
        report.warning(Code::Ignored, field.name("tunnel"), "only TCP and TLS routes are tunnelled");
    }
    report.unsupported_if(proxy_protocol.is_some(), field.name("proxyProtocol"));
}

struct Blocks<'a> {
    load_balancer: &'a Option<LoadBalancerSettings>,
    connection_pool: &'a Option<ConnectionPoolSettings>,
    outlier_detection: &'a Option<OutlierDetection>,
    tls: &'a Option<ClientTlsSettings>,
}

fn report_blocks(blocks: &Blocks<'_>, field: &Field<'_>, report: &mut Report) {
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
    if tls.as_ref().is_some_and(|tls| tls.mode != ClientTlsMode::Disable) {
        let message = "TLS to a destination is not supported yet: requests to it answer 503 (UF)";
        report.error(Code::Unsupported, field.name("tls"), message);
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
