//! MeshConfig.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, LocalityLoadBalancerSetting, OutlierDetection, TcpKeepalive,
    ZoneAwareLoadBalancerSetting,
};
use super::proxy_config::ProxyConfig;
use super::virtual_service::HttpRetry;

/// Settings of the whole mesh. Defaults are the reader's business: every field is as written.
///
/// Source: `mesh/v1alpha1/config.proto`, <https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/>
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshConfig {
    pub proxy_listen_port: i32,
    pub proxy_inbound_listen_port: i32,
    pub proxy_http_port: i32,
    pub connect_timeout: Option<Duration>,
    pub hbone_idle_timeout: Option<Duration>,
    pub protocol_detection_timeout: Option<Duration>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub ingress_class: String,
    pub ingress_service: String,
    pub ingress_controller_mode: IngressControllerMode,
    pub ingress_selector: String,
    pub enable_tracing: Option<bool>,
    pub access_log_file: String,
    pub access_log_format: String,
    pub access_log_encoding: AccessLogEncoding,
    pub enable_envoy_access_log_service: bool,
    pub disable_envoy_listener_log: bool,
    pub default_config: Option<ProxyConfig>,
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    pub inbound_traffic_policy: Option<InboundTrafficPolicy>,
    pub config_sources: Vec<ConfigSource>,
    pub enable_auto_mtls: Option<bool>,
    pub trust_domain: String,
    pub trust_domain_aliases: Vec<String>,
    pub ca_certificates: Vec<CertificateData>,
    pub default_service_export_to: Vec<String>,
    pub default_virtual_service_export_to: Vec<String>,
    pub default_destination_rule_export_to: Vec<String>,
    pub root_namespace: String,
    pub locality_lb_setting: Option<LocalityLoadBalancerSetting>,
    pub zone_aware_lb_setting: Option<ZoneAwareLoadBalancerSetting>,
    pub dns_refresh_rate: Option<Duration>,
    #[serde(rename = "h2UpgradePolicy")]
    pub h2_upgrade_policy: MeshH2UpgradePolicy,
    pub inbound_cluster_stat_name: String,
    pub outbound_cluster_stat_name: String,
    pub certificates: Vec<Value>,
    pub service_settings: Vec<ServiceSettings>,
    pub service_scope_configs: Vec<Value>,
    pub enable_prometheus_merge: Option<bool>,
    pub verify_certificate_at_client: Option<bool>,
    pub ca: Option<Value>,
    pub extension_providers: Vec<ExtensionProvider>,
    pub default_providers: Option<DefaultProviders>,
    pub discovery_selectors: Vec<Value>,
    pub path_normalization: Option<ProxyPathNormalization>,
    pub default_http_retry_policy: Option<HttpRetry>,
    pub default_traffic_policy: Option<DefaultTrafficPolicy>,
    #[serde(rename = "meshMTLS")]
    pub mesh_mtls: Option<TlsConfig>,
    pub tls_defaults: Option<TlsConfig>,
    pub compliance_policy: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum IngressControllerMode {
    #[default]
    Unspecified,
    Off,
    Default,
    Strict,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessLogEncoding {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OutboundTrafficPolicy {
    pub mode: OutboundMode,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    #[default]
    RegistryOnly,
    AllowAny,
    AllowAnyDynamicDns,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InboundTrafficPolicy {
    pub mode: InboundMode,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InboundMode {
    #[default]
    Passthrough,
    Localhost,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConfigSource {
    pub address: String,
    pub tls_settings: Option<ClientTlsSettings>,
    pub subscribed_resources: Vec<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CertificateData {
    pub pem: String,
    pub spiffe_bundle_url: String,
    pub cert_signers: Vec<String>,
    pub trust_domains: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MeshH2UpgradePolicy {
    #[default]
    DoNotUpgrade,
    Upgrade,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSettings {
    pub settings: Option<Value>,
    pub hosts: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DefaultProviders {
    pub tracing: Vec<String>,
    pub metrics: Vec<String>,
    pub access_logging: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DefaultTrafficPolicy {
    pub connection_pool: Option<ConnectionPoolSettings>,
    pub outlier_detection: Option<OutlierDetection>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyPathNormalization {
    pub normalization: NormalizationType,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NormalizationType {
    #[default]
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TlsConfig {
    pub min_protocol_version: MeshTlsProtocol,
    pub ecdh_curves: Vec<String>,
    pub cipher_suites: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum MeshTlsProtocol {
    #[default]
    #[serde(rename = "TLS_AUTO")]
    Auto,
    #[serde(rename = "TLSV1_2")]
    V1_2,
    #[serde(rename = "TLSV1_3")]
    V1_3,
}

/// A named service of the mesh: authorizer, tracer, log receiver. One of the fields after `name` is set.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtensionProvider {
    pub name: String,
    pub envoy_ext_authz_http: Option<ExtAuthzHttpProvider>,
    pub envoy_ext_authz_grpc: Option<ExtAuthzGrpcProvider>,
    pub zipkin: Option<ZipkinProvider>,
    pub lightstep: Option<Value>,
    pub datadog: Option<TracingService>,
    pub stackdriver: Option<Value>,
    pub opencensus: Option<Value>,
    pub skywalking: Option<SkyWalkingProvider>,
    pub opentelemetry: Option<OpenTelemetryProvider>,
    pub prometheus: Option<Value>,
    pub envoy_file_access_log: Option<FileAccessLogProvider>,
    pub envoy_http_als: Option<GrpcAccessLogProvider>,
    pub envoy_tcp_als: Option<GrpcAccessLogProvider>,
    pub envoy_otel_als: Option<OpenTelemetryLogProvider>,
    pub sds: Option<TracingService>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtAuthzRequestBody {
    pub max_request_bytes: u32,
    pub allow_partial_message: bool,
    pub pack_as_bytes: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtAuthzHttpProvider {
    pub service: String,
    pub port: u32,
    pub timeout: Option<Duration>,
    pub path_prefix: String,
    pub fail_open: bool,
    pub status_on_error: String,
    /// Deprecated name of `include_request_headers_in_check`.
    pub include_headers_in_check: Vec<String>,
    pub include_request_headers_in_check: Vec<String>,
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    pub include_request_body_in_check: Option<ExtAuthzRequestBody>,
    pub headers_to_upstream_on_allow: Vec<String>,
    pub headers_to_downstream_on_deny: Vec<String>,
    pub headers_to_downstream_on_allow: Vec<String>,
    pub clear_route_cache: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtAuthzGrpcProvider {
    pub service: String,
    pub port: u32,
    pub timeout: Option<Duration>,
    pub fail_open: bool,
    pub status_on_error: String,
    pub include_request_body_in_check: Option<ExtAuthzRequestBody>,
    pub clear_route_cache: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ZipkinProvider {
    pub service: String,
    pub port: u32,
    pub max_tag_length: u32,
    #[serde(rename = "enable64bitTraceId")]
    pub enable_64bit_trace_id: bool,
    pub path: String,
    pub trace_context_option: ZipkinTraceContext,
    pub timeout: Option<Duration>,
    pub headers: Vec<HttpHeader>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum ZipkinTraceContext {
    #[default]
    #[serde(rename = "USE_B3")]
    B3,
    #[serde(rename = "USE_B3_WITH_W3C_PROPAGATION")]
    B3WithW3c,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TracingService {
    pub name: String,
    pub service: String,
    pub port: u32,
    pub max_tag_length: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SkyWalkingProvider {
    pub service: String,
    pub port: u32,
    pub access_token: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OpenTelemetryProvider {
    pub service: String,
    pub port: u32,
    pub max_tag_length: u32,
    /// Present: OTLP over HTTP instead of gRPC.
    pub http: Option<HttpService>,
    pub grpc: Option<GrpcService>,
    pub resource_detectors: Option<Value>,
    pub dynatrace_sampler: Option<Value>,
    pub service_attribute_enrichment: ServiceAttributeEnrichment,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServiceAttributeEnrichment {
    #[default]
    IstioCanonical,
    OtelSemanticConventions,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpService {
    pub path: String,
    pub timeout: Option<Duration>,
    pub headers: Vec<HttpHeader>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcService {
    pub timeout: Option<Duration>,
    pub initial_metadata: Vec<HttpHeader>,
}

/// `value` or `env_name`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpHeader {
    pub name: String,
    pub value: String,
    pub env_name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FileAccessLogProvider {
    pub path: String,
    pub log_format: Option<LogFormat>,
    pub omit_empty_values: bool,
}

/// `text` or `labels`; the log provider of OpenTelemetry takes both.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LogFormat {
    pub text: Option<String>,
    pub labels: Option<serde_json::Map<String, Value>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcAccessLogProvider {
    pub service: String,
    pub port: u32,
    pub log_name: String,
    pub filter_state_objects_to_log: Vec<String>,
    pub additional_request_headers_to_log: Vec<String>,
    pub additional_response_headers_to_log: Vec<String>,
    pub additional_response_trailers_to_log: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OpenTelemetryLogProvider {
    pub service: String,
    pub port: u32,
    pub log_name: String,
    pub log_format: Option<LogFormat>,
}
