//! When endpoints are ejected.
//!
//! Source: `reference/networking.md` §5.6.

use std::time::Duration;

use crate::resource::destination_rule;
use crate::snapshot::balancing::OutlierDetection;

/// Istio's detector where it says nothing, which is Envoy's.
const ERRORS: u32 = 5;
/// The longest ejection, unless the first one is longer already.
const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

/// The detectors that `settings` turn on.
pub(super) fn detection(settings: &destination_rule::OutlierDetection) -> OutlierDetection {
    let destination_rule::OutlierDetection {
        // Deprecated, and without effect in Istio.
        consecutive_errors: _,
        split_external_local_origin_errors,
        consecutive_local_origin_failures,
        consecutive_gateway_errors,
        consecutive_5xx_errors,
        interval,
        base_ejection_time,
        max_ejection_percent,
        min_health_percent,
        outlier_detection_http_error_codes,
    } = settings;
    let base_ejection_time = base_ejection_time.unwrap_or(Duration::from_secs(30));
    let percent = |value: &i32| u32::try_from(*value).unwrap_or(0).min(100);
    let mut error_codes: Vec<u16> =
        outlier_detection_http_error_codes.iter().filter_map(|&code| u16::try_from(code).ok()).collect();
    error_codes.sort_unstable();
    error_codes.dedup();
    OutlierDetection {
        consecutive_5xx: consecutive_5xx_errors.unwrap_or(ERRORS),
        consecutive_gateway_errors: consecutive_gateway_errors.unwrap_or(0),
        split_local_origin: *split_external_local_origin_errors,
        consecutive_local_origin_failures: consecutive_local_origin_failures.unwrap_or(ERRORS),
        interval: interval.unwrap_or(Duration::from_secs(10)),
        base_ejection_time,
        max_ejection_time: MAX_EJECTION_TIME.max(base_ejection_time),
        max_ejection_percent: match percent(max_ejection_percent) {
            0 => 10,
            percent => percent,
        },
        panic_percent: percent(min_health_percent),
        error_codes,
    }
}
