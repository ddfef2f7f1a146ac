//! How connections and requests are treated before routing.
//!
//! Source: `reference/networking.md` §4.2, §4.4, §4.6.

use std::time::Duration;

use super::super::options::Options;
use super::super::report::{Field, Report};
use crate::resource::mesh_config::NormalizationType;
use crate::resource::proxy_config::{
    ConnectionProfile, ConnectionSettings, Disableable, Enableable, EscapedSlashesAction, ForwardClientCertDetails,
    ProxyConfig, ProxyHeaders, UnderscoresAction,
};
use crate::snapshot::listener::{EscapedSlashes, ForwardClientCert, HttpSettings, PathNormalization, Underscores};

/// The settings of every HTTP listener.
pub(super) fn settings(proxy: &ProxyConfig, normalization: NormalizationType, options: &Options) -> HttpSettings {
    let mut settings = HttpSettings {
        path_normalization: match normalization {
            NormalizationType::Default | NormalizationType::Base => PathNormalization::Base,
            NormalizationType::None => PathNormalization::None,
            NormalizationType::MergeSlashes => PathNormalization::MergeSlashes,
            NormalizationType::DecodeAndMergeSlashes => PathNormalization::DecodeAndMergeSlashes,
        },
        http10: options.features.http10,
        ..HttpSettings::default()
    };
    if let Some(idle) = options.features.idle_timeout {
        settings.idle_timeout = unless_zero(idle);
    }
    if let Some(topology) = &proxy.gateway_topology {
        settings.trusted_proxies = topology.num_trusted_proxies;
        settings.forward_client_cert = match topology.forward_client_cert_details {
            ForwardClientCertDetails::Undefined | ForwardClientCertDetails::SanitizeSet => {
                ForwardClientCert::SanitizeSet
            }
            ForwardClientCertDetails::Sanitize => ForwardClientCert::Sanitize,
            ForwardClientCertDetails::ForwardOnly => ForwardClientCert::ForwardOnly,
            ForwardClientCertDetails::AppendForward => ForwardClientCert::AppendForward,
            ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
        };
    }
    if let Some(headers) = &proxy.proxy_headers {
        apply_headers(headers, &mut settings);
    }
    match &proxy.connection_settings {
        Some(connection) if connection.profile == ConnectionProfile::Edge => apply_edge(connection, &mut settings),
        // The profile SIDECAR changes nothing, whatever else is set.
        _ => {}
    }
    settings
}

fn apply_headers(headers: &ProxyHeaders, settings: &mut HttpSettings) {
    let ProxyHeaders {
        // Gateways take these from their topology.
        forwarded_client_cert: _,
        set_current_client_cert_details: _,
        request_id,
        server,
        attempt_count,
        envoy_debug_headers,
        // There is no mesh metadata to send.
        metadata_exchange_headers: _,
        preserve_http1_header_case,
        x_forwarded_host,
        x_forwarded_port,
    } = headers;
    let is_disabled =
        |header: &Option<Disableable>| header.as_ref().and_then(|header| header.disabled).unwrap_or(false);
    let is_enabled = |header: &Option<Enableable>| header.as_ref().and_then(|header| header.enabled).unwrap_or(false);
    settings.request_id = !is_disabled(request_id);
    settings.attempt_count = !is_disabled(attempt_count);
    settings.debug_headers = !is_disabled(envoy_debug_headers);
    settings.forwarded_host = is_enabled(x_forwarded_host);
    settings.forwarded_port = is_enabled(x_forwarded_port);
    settings.preserve_header_case = preserve_http1_header_case.unwrap_or(false);
    if let Some(server) = server {
        if server.disabled == Some(true) {
            settings.server = None;
        } else if !server.value.is_empty() {
            settings.server = Some(server.value.clone());
        }
    }
}

/// The profile EDGE, whose values hold where a field is unset.
fn apply_edge(connection: &ConnectionSettings, settings: &mut HttpSettings) {
    let ConnectionSettings {
        profile: _,
        // Not wired in Istio either, or named in `warn`.
        listener_per_connection_buffer_limit_bytes: _,
        cluster_per_connection_buffer_limit_bytes: _,
        listener_connection_limit: _,
        global_downstream_connection_limit: _,
        http_idle_timeout,
        http_stream_idle_timeout,
        http_request_timeout,
        http_request_headers_timeout,
        http_max_connection_duration,
        http_max_stream_duration,
        http_drain_timeout,
        http_max_concurrent_streams,
        http2_initial_stream_window_size,
        http2_initial_connection_window_size,
        http_headers_with_underscores_action,
        http_merge_slashes,
        http_path_with_escaped_slashes_action,
    } = connection;
    let timeout = |field: &Option<Duration>, seconds| unless_zero(field.unwrap_or(Duration::from_secs(seconds)));
    settings.idle_timeout = timeout(http_idle_timeout, 3600);
    settings.stream_idle_timeout = timeout(http_stream_idle_timeout, 300);
    settings.request_timeout = timeout(http_request_timeout, 300);
    settings.request_headers_timeout = timeout(http_request_headers_timeout, 60);
    settings.max_connection_duration = http_max_connection_duration.and_then(unless_zero);
    settings.max_stream_duration = http_max_stream_duration.and_then(unless_zero);
    if let Some(drain) = http_drain_timeout {
        settings.drain_timeout = *drain;
    }
    let number = |field: &Option<i64>, default| match field {
        Some(number) => u32::try_from((*number).clamp(0, i64::from(i32::MAX))).unwrap_or(default),
        None => default,
    };
    settings.max_concurrent_streams = number(http_max_concurrent_streams, 100);
    settings.initial_stream_window = number(http2_initial_stream_window_size, 65_536);
    settings.initial_connection_window = number(http2_initial_connection_window_size, 1_048_576);
    settings.underscores = match http_headers_with_underscores_action {
        UnderscoresAction::Allow => Underscores::Allow,
        UnderscoresAction::Unspecified | UnderscoresAction::Reject => Underscores::Reject,
        UnderscoresAction::DropHeader => Underscores::Drop,
    };
    settings.escaped_slashes = match http_path_with_escaped_slashes_action {
        EscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
        EscapedSlashesAction::Reject => EscapedSlashes::Reject,
        EscapedSlashesAction::Unspecified | EscapedSlashesAction::UnescapeAndRedirect => {
            EscapedSlashes::UnescapeAndRedirect
        }
        EscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
    };
    settings.path_normalization = match (settings.path_normalization, http_merge_slashes.unwrap_or(true)) {
        (PathNormalization::None | PathNormalization::MergeOnly, true) => PathNormalization::MergeOnly,
        (PathNormalization::None | PathNormalization::MergeOnly, false) => PathNormalization::None,
        (PathNormalization::Base | PathNormalization::MergeSlashes, true) => PathNormalization::MergeSlashes,
        (PathNormalization::Base | PathNormalization::MergeSlashes, false) => PathNormalization::Base,
        (PathNormalization::DecodeAndMergeSlashes, _) => PathNormalization::DecodeAndMergeSlashes,
    };
}

/// Names what this gateway doesn't honour.
pub(super) fn warn(settings: &ConnectionSettings, field: &Field<'_>, report: &mut Report) {
    if settings.profile != ConnectionProfile::Edge {
        return;
    }
    let buffer = settings.listener_per_connection_buffer_limit_bytes;
    report.unsupported_if(buffer.is_some(), field.name("listenerPerConnectionBufferLimitBytes"));
    let limit = settings.global_downstream_connection_limit;
    report.unsupported_if(limit.is_some(), field.name("globalDownstreamConnectionLimit"));
}

/// A zero duration turns a timer off.
fn unless_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(connection: ConnectionSettings, normalization: NormalizationType) -> HttpSettings {
        let proxy = ProxyConfig { connection_settings: Some(connection), ..ProxyConfig::default() };
        settings(&proxy, normalization, &Options::default())
    }

    #[test]
    fn edge_fills_unset_fields() {
        // Source: `reference/networking.md` §4.6.
        let edge = ConnectionSettings {
            profile: ConnectionProfile::Edge,
            http_request_timeout: Some(Duration::from_secs(7)),
            http_stream_idle_timeout: Some(Duration::ZERO),
            ..ConnectionSettings::default()
        };
        let settings = with(edge, NormalizationType::Default);
        assert_eq!(
            settings,
            HttpSettings {
                path_normalization: PathNormalization::MergeSlashes,
                escaped_slashes: EscapedSlashes::UnescapeAndRedirect,
                underscores: Underscores::Reject,
                request_headers_timeout: Some(Duration::from_secs(60)),
                request_timeout: Some(Duration::from_secs(7)),
                stream_idle_timeout: None,
                max_concurrent_streams: 100,
                initial_stream_window: 65_536,
                initial_connection_window: 1_048_576,
                ..HttpSettings::default()
            }
        );
    }

    #[test]
    fn the_sidecar_profile_changes_nothing() {
        let sidecar =
            ConnectionSettings { http_request_timeout: Some(Duration::from_secs(7)), ..ConnectionSettings::default() };
        assert_eq!(with(sidecar, NormalizationType::Default), HttpSettings::default());
    }

    #[test]
    fn merged_slashes_combine_with_normalization() {
        for (normalization, merge, expected) in [
            (NormalizationType::None, Some(true), PathNormalization::MergeOnly),
            (NormalizationType::None, Some(false), PathNormalization::None),
            (NormalizationType::Base, None, PathNormalization::MergeSlashes),
            (NormalizationType::MergeSlashes, Some(false), PathNormalization::Base),
            (NormalizationType::DecodeAndMergeSlashes, None, PathNormalization::DecodeAndMergeSlashes),
        ] {
            let edge = ConnectionSettings {
                profile: ConnectionProfile::Edge,
                http_merge_slashes: merge,
                ..ConnectionSettings::default()
            };
            assert_eq!(with(edge, normalization).path_normalization, expected, "{normalization:?} {merge:?}");
        }
    }
}
