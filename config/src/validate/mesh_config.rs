//! §10.13 and §10.14. Paths are relative to the MeshConfig, which may stand at the top of its document.

use std::time::Duration;

use super::Findings;
use super::destination_rule::{connect_timeout, connection_pool, locality, outlier_detection, zone_aware};
use super::primitive::tls_list;
use crate::resource::mesh_config::{MeshConfig, TlsConfig};
use crate::resource::proxy_config::{ConnectionSettings, ProxyConfig};
use crate::tls_lists;

pub(super) fn validate(spec: &MeshConfig, findings: &mut Findings) {
    connect_timeout("connectTimeout", spec.connect_timeout, findings);
    if let Some(setting) = &spec.locality_lb_setting {
        // Whether outliers are detected is up to each DestinationRule.
        locality("localityLbSetting", setting, true, findings);
    }
    if let Some(setting) = &spec.zone_aware_lb_setting {
        zone_aware("zoneAwareLbSetting", setting, true, findings);
    }
    if let Some(policy) = &spec.default_traffic_policy {
        if let Some(pool) = &policy.connection_pool {
            connection_pool("defaultTrafficPolicy.connectionPool", pool, findings);
        }
        if let Some(outlier) = &policy.outlier_detection {
            outlier_detection("defaultTrafficPolicy.outlierDetection", outlier, findings);
        }
    }
    if let Some(TlsConfig { min_protocol_version: _, ecdh_curves, cipher_suites }) = &spec.tls_defaults {
        let usable = tls_lists::cipher_suites(cipher_suites);
        tls_list("tlsDefaults.cipherSuites", cipher_suites, &usable, findings);
        tls_list("tlsDefaults.ecdhCurves", ecdh_curves, &tls_lists::groups(ecdh_curves), findings);
    }
    if let Some(config) = &spec.default_config {
        proxy_config("defaultConfig", config, findings);
    }
}

fn proxy_config(path: &str, config: &ProxyConfig, findings: &mut Findings) {
    if config.drain_duration.is_some_and(|drain| drain < Duration::from_millis(1) || drain.subsec_nanos() != 0) {
        findings.error(format!("{path}.drainDuration"), "must be a whole number of seconds, and not 0");
    }
    if let Some(settings) = &config.connection_settings {
        connection_settings(&format!("{path}.connectionSettings"), settings, findings);
    }
}

fn connection_settings(path: &str, settings: &ConnectionSettings, findings: &mut Findings) {
    for (field, value, least) in [
        ("listenerPerConnectionBufferLimitBytes", settings.listener_per_connection_buffer_limit_bytes, 0),
        ("clusterPerConnectionBufferLimitBytes", settings.cluster_per_connection_buffer_limit_bytes, 0),
        ("listenerConnectionLimit", settings.listener_connection_limit, 1),
        ("globalDownstreamConnectionLimit", settings.global_downstream_connection_limit, 1),
        ("httpMaxConcurrentStreams", settings.http_max_concurrent_streams, 1),
        ("http2InitialStreamWindowSize", settings.http2_initial_stream_window_size, 65_535),
        ("http2InitialConnectionWindowSize", settings.http2_initial_connection_window_size, 65_535),
    ] {
        if value.is_some_and(|value| value < least) {
            findings.error(format!("{path}.{field}"), format!("must be at least {least}"));
        }
    }
}
