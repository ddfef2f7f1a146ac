//! Retry policies.
//!
//! Source: `reference/networking.md` §3.11.

use std::time::Duration;

use super::super::report::{Field, Report};
use crate::diagnostic::Code;
use crate::resource::virtual_service::HttpRetry;
use crate::snapshot::route::{RetryOn, RetryPolicy};

const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

/// The policy of routes without one, in a mesh without one.
pub(in super::super) fn default_policy() -> Option<RetryPolicy> {
    let on = parse(DEFAULT_RETRY_ON).0;
    let backoff = DEFAULT_BACKOFF;
    Some(RetryPolicy { attempts: 2, per_try_timeout: None, on, backoff, avoid_previous_hosts: true })
}

/// A policy; `None` if it turns retries off.
pub(in super::super) fn compile(policy: &HttpRetry, field: &Field<'_>, report: &mut Report) -> Option<RetryPolicy> {
    let HttpRetry {
        attempts,
        per_try_timeout,
        retry_on,
        retry_remote_localities,
        retry_ignore_previous_hosts,
        backoff,
    } = policy;
    report.unsupported_if(*retry_remote_localities == Some(true), field.name("retryRemoteLocalities"));
    let attempts = u32::try_from(*attempts).ok().filter(|&attempts| attempts > 0)?;
    let (on, unknown) = parse(if retry_on.is_empty() { DEFAULT_RETRY_ON } else { retry_on });
    for token in unknown {
        let message = format!("unknown condition \"{token}\" is left out");
        report.warning(Code::SchemaWarning, field.name("retryOn"), message);
    }
    Some(RetryPolicy {
        attempts,
        per_try_timeout: per_try_timeout.filter(|timeout| !timeout.is_zero()),
        on,
        backoff: backoff.filter(|backoff| !backoff.is_zero()).unwrap_or(DEFAULT_BACKOFF),
        avoid_previous_hosts: retry_ignore_previous_hosts.unwrap_or(true),
    })
}

/// A comma list of tokens, and those that mean nothing.
fn parse(text: &str) -> (RetryOn, Vec<&str>) {
    let mut on = RetryOn::default();
    let mut unknown = Vec::new();
    for token in text.split(',').map(str::trim).filter(|token| !token.is_empty()) {
        match token {
            "5xx" => on.server_error = true,
            "gateway-error" => on.gateway_error = true,
            "reset" => on.reset = true,
            "reset-before-request" => on.reset_before_request = true,
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "envoy-ratelimited" => on.envoy_ratelimited = true,
            "cancelled" => on.grpc_codes.push(1),
            "deadline-exceeded" => on.grpc_codes.push(4),
            "resource-exhausted" => on.grpc_codes.push(8),
            "internal" => on.grpc_codes.push(13),
            "unavailable" => on.grpc_codes.push(14),
            // The numbers say it all; Istio can't name headers; there is no HTTP/3 upstream.
            "retriable-status-codes" | "retriable-headers" | "http3-post-connect-failure" => {}
            token => match token.parse() {
                Ok(code @ 100..=599) => on.status_codes.push(code),
                _ => unknown.push(token),
            },
        }
    }
    on.status_codes.sort_unstable();
    on.status_codes.dedup();
    on.grpc_codes.sort_unstable();
    on.grpc_codes.dedup();
    (on, unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let (on, unknown) = parse("5xx,503,502,503,retriable-status-codes,unavailable,cancelled,what,700");
        let expected =
            RetryOn { server_error: true, status_codes: vec![502, 503], grpc_codes: vec![1, 14], ..RetryOn::default() };
        assert_eq!(on, expected);
        assert_eq!(unknown, ["what", "700"]);
    }

    #[test]
    fn istios_default() {
        let policy = default_policy().expect("retries are on by default");
        let on = RetryOn { connect_failure: true, refused_stream: true, grpc_codes: vec![1, 14], ..RetryOn::default() };
        let backoff = Duration::from_millis(25);
        let expected = RetryPolicy { attempts: 2, per_try_timeout: None, on, backoff, avoid_previous_hosts: true };
        assert_eq!(policy, expected);
    }
}
