//! MeshConfig and ProxyConfig: settings of the whole gateway.
//!
//! Source: `reference/networking.md` §1.7, §4.2, §4.4, §4.6; `reference/telemetry-and-operations.md` §4.3, §10, §11.

mod access_log;
mod connection;

use std::sync::Arc;
use std::time::Duration;

use super::locality;
use super::options::Options;
use super::report::{Field, Report};
use super::routes::retry;
use super::tls::TlsDefaults;
use super::world::{Object, World};
use crate::diagnostic::Code;
use crate::resource::destination_rule::{
    ConnectionPoolSettings, LocalityLoadBalancerSetting, OutlierDetection, TcpKeepalive,
};
use crate::resource::mesh_config::{DefaultTrafficPolicy, MeshConfig, MeshH2UpgradePolicy, OutboundMode};
use crate::resource::proxy_config::{ProxyConfig, ProxyConfigResource};
use crate::snapshot::listener::HttpSettings;
use crate::snapshot::mesh::Mesh;
use crate::snapshot::route::RetryPolicy;

/// What the other passes need of MeshConfig.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MeshSettings {
    pub(super) root_namespace: Arc<str>,
    pub(super) service_export_to: Vec<String>,
    pub(super) virtual_service_export_to: Vec<String>,
    pub(super) destination_rule_export_to: Vec<String>,
    pub(super) clusters: ClusterDefaults,
    /// Of routes that say nothing about retries.
    pub(super) retry: Option<Arc<RetryPolicy>>,
    /// Forward proxies let requests for hosts through that no ServiceEntry has (`outboundTrafficPolicy`); nothing else
    /// of a gateway does.
    pub(super) allows_unknown_hosts: bool,
    pub(super) http: HttpSettings,
    /// Connections begin with a PROXY protocol header.
    pub(super) proxy_protocol: bool,
    pub(super) mesh: Mesh,
}

/// What every cluster begins with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ClusterDefaults {
    pub(super) connect_timeout: Duration,
    pub(super) tcp_keepalive: Option<TcpKeepalive>,
    pub(super) connection_pool: Option<ConnectionPoolSettings>,
    pub(super) outlier_detection: Option<OutlierDetection>,
    /// `None` turns all of it off.
    pub(super) locality: Option<LocalityLoadBalancerSetting>,
    pub(super) upgrade_to_h2: bool,
    /// Of servers, too.
    pub(super) tls: TlsDefaults,
    /// SPIFFE trust domain of the mesh, then its aliases.
    pub(super) trust_domains: Vec<String>,
    pub(super) auto_mtls: bool,
}

/// Reads the MeshConfig in force and the ProxyConfigs that select this gateway.
pub(super) fn compile(world: &World<'_>, options: &Options, report: &mut Report) -> MeshSettings {
    for config in &world.proxy_configs {
        warn_about_proxy_config(*config, options, report);
    }
    let Some((config, others)) = world.mesh_configs.split_first() else {
        return settings(&MeshConfig::default(), None, options, report);
    };
    for other in others {
        let message = format!("only one MeshConfig counts: {} is in force", config.resource.name());
        report.warning(Code::Conflict, Field::metadata(other.resource).name("name"), message);
    }
    settings(config.spec, Some(*config), options, report)
}

fn settings(
    spec: &MeshConfig,
    config: Option<Object<'_, MeshConfig>>,
    options: &Options,
    report: &mut Report,
) -> MeshSettings {
    let MeshConfig {
        // Ports and addresses of sidecars and of the control plane.
        proxy_listen_port: _,
        proxy_inbound_listen_port: _,
        proxy_http_port: _,
        connect_timeout,
        hbone_idle_timeout: _,
        protocol_detection_timeout: _,
        tcp_keepalive,
        // The Ingress controller.
        ingress_class: _,
        ingress_service: _,
        ingress_controller_mode: _,
        ingress_selector: _,
        // Without a tracing provider nothing is traced.
        enable_tracing: _,
        access_log_file,
        access_log_format,
        access_log_encoding,
        enable_envoy_access_log_service,
        disable_envoy_listener_log: _,
        default_config,
        outbound_traffic_policy,
        // It shapes sidecars only.
        inbound_traffic_policy: _,
        config_sources: _,
        enable_auto_mtls,
        trust_domain,
        trust_domain_aliases,
        ca_certificates,
        default_service_export_to,
        default_virtual_service_export_to,
        default_destination_rule_export_to,
        root_namespace,
        locality_lb_setting,
        zone_aware_lb_setting,
        dns_refresh_rate,
        h2_upgrade_policy,
        inbound_cluster_stat_name: _,
        outbound_cluster_stat_name,
        certificates: _,
        service_settings: _,
        service_scope_configs: _,
        enable_prometheus_merge: _,
        verify_certificate_at_client: _,
        ca: _,
        extension_providers: _,
        default_providers,
        discovery_selectors: _,
        path_normalization,
        default_http_retry_policy,
        default_traffic_policy,
        // For sidecars: gateways take the minimum of `tlsDefaults`.
        mesh_mtls: _,
        tls_defaults,
        compliance_policy: _,
    } = spec;
    let default_proxy = ProxyConfig::default();
    let proxy = default_config.as_ref().unwrap_or(&default_proxy);
    let normalization = path_normalization.as_ref().map(|policy| policy.normalization).unwrap_or_default();
    let http = connection::settings(proxy, normalization, options);
    let DefaultTrafficPolicy { connection_pool, outlier_detection } =
        default_traffic_policy.clone().unwrap_or_default();

    let log = access_log::Settings { file: access_log_file, format: access_log_format, encoding: *access_log_encoding };
    let mut mesh = Mesh { domain: options.domain.clone(), ..Mesh::default() };
    let mut retry_policy = retry::default_policy();
    match config {
        None => mesh.access_log = access_log::compile(&log, options, None, report),
        Some(config) => {
            let spec = Field::spec(config.resource);
            mesh.access_log = access_log::compile(&log, options, Some(&spec), report);
            if let Some(policy) = default_http_retry_policy {
                retry_policy = retry::compile(policy, &spec.name("defaultHttpRetryPolicy"), report);
            }
            report.unsupported_if(*enable_envoy_access_log_service, spec.name("enableEnvoyAccessLogService"));
            report.unsupported_if(!outbound_cluster_stat_name.is_empty(), spec.name("outboundClusterStatName"));
            report.unsupported_if(default_providers.is_some(), spec.name("defaultProviders"));
            report.unsupported_if(!ca_certificates.is_empty(), spec.name("caCertificates"));
            if let Some(setting) = locality_lb_setting {
                locality::report(setting, options, &spec.name("localityLbSetting"), report);
            }
            report.unsupported_if(zone_aware_lb_setting.is_some(), spec.name("zoneAwareLbSetting"));
            warn_about_proxy(proxy, &spec.name("defaultConfig"), report);
        }
    }
    if let Some(refresh) = dns_refresh_rate {
        mesh.dns_refresh = *refresh;
    }
    if let Some(drain) = proxy.drain_duration {
        mesh.drain = drain;
    }
    if let Some(drain) = proxy.termination_drain_duration {
        mesh.termination_drain = drain;
    }
    MeshSettings {
        root_namespace: match root_namespace.as_str() {
            "" => Arc::clone(&options.namespace),
            name => name.into(),
        },
        service_export_to: default_service_export_to.clone(),
        virtual_service_export_to: default_virtual_service_export_to.clone(),
        destination_rule_export_to: default_destination_rule_export_to.clone(),
        clusters: ClusterDefaults {
            // Source: `reference/networking.md` §8.1.
            connect_timeout: connect_timeout.unwrap_or(Duration::from_secs(10)),
            tcp_keepalive: tcp_keepalive.clone(),
            connection_pool,
            outlier_detection,
            locality: Some(locality_lb_setting.clone().unwrap_or_default())
                .filter(|setting| setting.enabled.unwrap_or(true)),
            upgrade_to_h2: *h2_upgrade_policy == MeshH2UpgradePolicy::Upgrade,
            tls: TlsDefaults::new(tls_defaults.as_ref()),
            trust_domains: trust_domains(trust_domain, trust_domain_aliases, options),
            auto_mtls: enable_auto_mtls.unwrap_or(true),
        },
        proxy_protocol: proxy.gateway_topology.as_ref().is_some_and(|topology| topology.proxy_protocol.is_some()),
        retry: retry_policy.map(Arc::new),
        allows_unknown_hosts: outbound_traffic_policy
            .as_ref()
            .is_some_and(|policy| matches!(policy.mode, OutboundMode::AllowAny | OutboundMode::AllowAnyDynamicDns)),
        http,
        mesh,
    }
}

/// MeshConfig names the trust domain before the command line does.
fn trust_domains(domain: &str, aliases: &[String], options: &Options) -> Vec<String> {
    let domain = match (domain, &options.trust_domain) {
        ("", Some(domain)) => domain,
        ("", None) => "cluster.local",
        (domain, _) => domain,
    };
    let mut domains = vec![domain.to_owned()];
    domains.extend(aliases.iter().filter(|alias| **alias != domain).cloned());
    domains
}

/// Names what this gateway doesn't honour of a ProxyConfig.
fn warn_about_proxy(proxy: &ProxyConfig, field: &Field<'_>, report: &mut Report) {
    let ProxyConfig {
        // How Istio starts Envoy, and where it finds its control plane.
        config_path: _,
        binary_path: _,
        service_cluster: _,
        discovery_address: _,
        discovery_refresh_delay: _,
        availability_zone: _,
        control_plane_auth_policy: _,
        custom_config_file: _,
        stat_name_length: _,
        proxy_bootstrap_template_path: _,
        interception_mode: _,
        sds: _,
        mesh_id: _,
        readiness_probe: _,
        hold_application_until_proxy_starts: _,
        image: _,
        private_key_provider: _,
        proxy_admin_port: _,
        status_port: _,
        runtime_values: _,
        parent_shutdown_duration: _,
        file_flush_interval: _,
        file_flush_min_size_kb: _,
        stats_compression: _,
        // `--workers`.
        concurrency,
        // Read above, and by the connection settings.
        drain_duration: _,
        termination_drain_duration: _,
        proxy_headers: _,
        gateway_topology: _,
        proxy_metadata,
        connection_settings,
        tracing_service_name: _,
        zipkin_address,
        statsd_udp_address,
        envoy_metrics_service_address,
        tracing,
        envoy_access_log_service,
        envoy_metrics_service,
        extra_stat_tags,
        proxy_stats_matcher,
        ca_certificates_pem,
    } = proxy;
    if concurrency.is_some_and(|threads| threads > 0) {
        report.warning(Code::Ignored, field.name("concurrency"), "worker threads are an option of the command line");
    }
    // Istio's own installation profiles set this; it is read from the environment.
    let metadata = field.name("proxyMetadata");
    for name in proxy_metadata.keys().filter(|name| name.starts_with("ISTIO_META_IDLE_TIMEOUT")) {
        report.warning(Code::Ignored, metadata.name(name), "set it in the environment of this gateway instead");
    }
    report.unsupported_if(!zipkin_address.is_empty(), field.name("zipkinAddress"));
    report.unsupported_if(!statsd_udp_address.is_empty(), field.name("statsdUdpAddress"));
    report.unsupported_if(!envoy_metrics_service_address.is_empty(), field.name("envoyMetricsServiceAddress"));
    report.unsupported_if(tracing.is_some(), field.name("tracing"));
    report.unsupported_if(envoy_access_log_service.is_some(), field.name("envoyAccessLogService"));
    report.unsupported_if(envoy_metrics_service.is_some(), field.name("envoyMetricsService"));
    report.unsupported_if(!extra_stat_tags.is_empty(), field.name("extraStatTags"));
    report.unsupported_if(proxy_stats_matcher.is_some(), field.name("proxyStatsMatcher"));
    report.unsupported_if(!ca_certificates_pem.is_empty(), field.name("caCertificatesPem"));
    if let Some(settings) = connection_settings {
        connection::warn(settings, &field.name("connectionSettings"), report);
    }
}

fn warn_about_proxy_config(config: Object<'_, ProxyConfigResource>, options: &Options, report: &mut Report) {
    let ProxyConfigResource { selector, concurrency, environment_variables, image: _ } = config.spec;
    let in_force = selector.as_ref().is_none_or(|selector| options.is_selected_by(&selector.match_labels));
    if !in_force {
        return;
    }
    let spec = Field::spec(config.resource);
    if concurrency.is_some() {
        report.warning(Code::Ignored, spec.name("concurrency"), "worker threads are an option of the command line");
    }
    if !environment_variables.is_empty() {
        let message = "set them in the environment of this gateway instead";
        report.warning(Code::Ignored, spec.name("environmentVariables"), message);
    }
}
