//! `ProxyConfig`: the mesh-wide one inside of MeshConfig, and the resource that overrides three fields of it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::destination_rule::{ClientTlsSettings, TcpKeepalive};
use super::selector::WorkloadSelector;
use super::telemetry::CustomTag;

/// The resource `networking.istio.io/v1beta1` ProxyConfig.
///
/// Source: `networking/v1beta1/proxy_config.proto`,
/// <https://istio.io/latest/docs/reference/config/networking/proxy-config/>
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyConfigResource {
    pub selector: Option<WorkloadSelector>,
    pub concurrency: Option<i32>,
    pub environment_variables: BTreeMap<String, String>,
    pub image: Option<Value>,
}

/// `MeshConfig.defaultConfig`.
///
/// Source: `mesh/v1alpha1/proxy.proto`,
/// <https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#ProxyConfig>
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyConfig {
    pub config_path: String,
    pub binary_path: String,
    pub service_cluster: String,
    pub tracing_service_name: TracingServiceName,
    pub drain_duration: Option<Duration>,
    pub parent_shutdown_duration: Option<Duration>,
    pub discovery_address: String,
    pub discovery_refresh_delay: Option<Duration>,
    pub zipkin_address: String,
    pub statsd_udp_address: String,
    pub envoy_metrics_service_address: String,
    pub proxy_admin_port: i32,
    pub availability_zone: String,
    pub control_plane_auth_policy: Value,
    pub custom_config_file: String,
    pub stat_name_length: i32,
    pub concurrency: Option<i32>,
    pub proxy_bootstrap_template_path: String,
    pub interception_mode: Value,
    pub tracing: Option<Tracing>,
    pub sds: Option<Value>,
    pub envoy_access_log_service: Option<RemoteService>,
    pub envoy_metrics_service: Option<RemoteService>,
    pub proxy_metadata: BTreeMap<String, String>,
    pub runtime_values: BTreeMap<String, String>,
    pub status_port: i32,
    pub extra_stat_tags: Vec<String>,
    pub gateway_topology: Option<Topology>,
    pub termination_drain_duration: Option<Duration>,
    pub mesh_id: String,
    pub readiness_probe: Option<Value>,
    pub proxy_stats_matcher: Option<ProxyStatsMatcher>,
    pub hold_application_until_proxy_starts: Option<bool>,
    pub ca_certificates_pem: Vec<String>,
    pub image: Option<Value>,
    pub private_key_provider: Option<Value>,
    pub proxy_headers: Option<ProxyHeaders>,
    pub file_flush_interval: Option<Duration>,
    pub file_flush_min_size_kb: Option<u32>,
    pub stats_compression: Option<bool>,
    pub connection_settings: Option<ConnectionSettings>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TracingServiceName {
    #[default]
    AppLabelAndNamespace,
    CanonicalNameOnly,
    CanonicalNameAndNamespace,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Tracing {
    pub zipkin: Option<Value>,
    pub lightstep: Option<Value>,
    pub datadog: Option<Value>,
    pub stackdriver: Option<Value>,
    pub open_census_agent: Option<Value>,
    pub custom_tags: BTreeMap<String, CustomTag>,
    pub max_path_tag_length: u32,
    pub sampling: f64,
    pub tls_settings: Option<ClientTlsSettings>,
    pub enable_istio_tags: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RemoteService {
    pub address: String,
    pub tls_settings: Option<ClientTlsSettings>,
    pub tcp_keepalive: Option<TcpKeepalive>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Topology {
    pub num_trusted_proxies: u32,
    pub forward_client_cert_details: ForwardClientCertDetails,
    /// Present: every listener expects a PROXY protocol header.
    pub proxy_protocol: Option<Empty>,
}

/// A message without fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Empty {}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ForwardClientCertDetails {
    #[default]
    Undefined,
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyStatsMatcher {
    pub inclusion_prefixes: Vec<String>,
    pub inclusion_suffixes: Vec<String>,
    pub inclusion_regexps: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyHeaders {
    pub forwarded_client_cert: ForwardClientCertDetails,
    pub set_current_client_cert_details: Option<SetCurrentClientCertDetails>,
    pub request_id: Option<Disableable>,
    pub server: Option<ServerHeader>,
    pub attempt_count: Option<Disableable>,
    pub envoy_debug_headers: Option<Disableable>,
    pub metadata_exchange_headers: Option<MetadataExchangeHeaders>,
    #[serde(rename = "preserveHttp1HeaderCase")]
    pub preserve_http1_header_case: Option<bool>,
    pub x_forwarded_host: Option<Enableable>,
    pub x_forwarded_port: Option<Enableable>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SetCurrentClientCertDetails {
    pub subject: Option<bool>,
    pub cert: Option<bool>,
    pub chain: Option<bool>,
    pub dns: Option<bool>,
    pub uri: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Disableable {
    pub disabled: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Enableable {
    pub enabled: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServerHeader {
    pub disabled: Option<bool>,
    pub value: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MetadataExchangeHeaders {
    pub mode: MetadataExchangeMode,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MetadataExchangeMode {
    #[default]
    Undefined,
    InMesh,
}

/// Connection limits and deadlines; `reference/networking.md` §4.6.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConnectionSettings {
    pub profile: ConnectionProfile,
    pub listener_per_connection_buffer_limit_bytes: Option<i64>,
    pub cluster_per_connection_buffer_limit_bytes: Option<i64>,
    pub listener_connection_limit: Option<i64>,
    pub global_downstream_connection_limit: Option<i64>,
    pub http_idle_timeout: Option<Duration>,
    pub http_stream_idle_timeout: Option<Duration>,
    pub http_request_timeout: Option<Duration>,
    pub http_request_headers_timeout: Option<Duration>,
    pub http_max_connection_duration: Option<Duration>,
    pub http_max_stream_duration: Option<Duration>,
    pub http_drain_timeout: Option<Duration>,
    pub http_max_concurrent_streams: Option<i64>,
    #[serde(rename = "http2InitialStreamWindowSize")]
    pub http2_initial_stream_window_size: Option<i64>,
    #[serde(rename = "http2InitialConnectionWindowSize")]
    pub http2_initial_connection_window_size: Option<i64>,
    pub http_headers_with_underscores_action: UnderscoresAction,
    pub http_merge_slashes: Option<bool>,
    pub http_path_with_escaped_slashes_action: EscapedSlashesAction,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConnectionProfile {
    #[default]
    Sidecar,
    Edge,
}

/// `Unspecified` leaves the choice to the profile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UnderscoresAction {
    #[default]
    Unspecified,
    Allow,
    Reject,
    DropHeader,
}

/// `Unspecified` leaves the choice to the profile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EscapedSlashesAction {
    #[default]
    Unspecified,
    KeepUnchanged,
    Reject,
    UnescapeAndRedirect,
    UnescapeAndForward,
}
