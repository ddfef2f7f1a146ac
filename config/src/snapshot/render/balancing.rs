//! Load balancing in words: what differs from the default.

use crate::snapshot::balancing::{Balancing, BalancingPolicy, HashCookie, HashKey, HashKeys, OutlierDetection, Warmup};

/// Of a cluster.
pub(super) fn balancing(balancing: &Balancing) -> Vec<String> {
    let Balancing { policy, hash_keys: HashKeys { with_port, without_port }, warmup, groups } = balancing;
    let mut texts = Vec::new();
    match policy {
        BalancingPolicy::LeastRequest => {}
        BalancingPolicy::RoundRobin => texts.push("round robin".to_owned()),
        BalancingPolicy::Random => texts.push("random".to_owned()),
        BalancingPolicy::RingHash { minimum_size } => texts.push(format!("ring hash, at least {minimum_size} places")),
        BalancingPolicy::Maglev { table_size } => texts.push(format!("maglev, {table_size} places")),
    }
    if with_port == without_port {
        texts.extend(with_port.as_deref().map(|key| format!("by {}", hash_key(key))));
    } else {
        texts.extend(with_port.as_deref().map(|key| format!("by {}, of routes that name the port", hash_key(key))));
        texts.extend(without_port.as_deref().map(|key| format!("by {}, of routes without a port", hash_key(key))));
    }
    if let Some(Warmup { duration, minimum_percent, aggression }) = warmup {
        texts.push(format!("warm-up {duration:?}, from {minimum_percent}%, aggression {aggression}"));
    }
    if !groups.is_empty() {
        let shares: Vec<_> = groups.iter().map(u32::to_string).collect();
        texts.push(format!("shares of groups {}", shares.join(", ")));
    }
    texts
}

fn hash_key(key: &HashKey) -> String {
    match key {
        HashKey::Header(name) => format!("header {name}"),
        HashKey::Cookie(HashCookie { name, path, ttl, attributes }) => {
            let mut text = format!("cookie {name}");
            if !path.is_empty() {
                text.push_str(&format!(", path {path}"));
            }
            if let Some(ttl) = ttl {
                text.push_str(&format!(", ttl {ttl:?}"));
            }
            for (name, value) in attributes {
                text.push_str(&format!(", {name}={value}"));
            }
            text
        }
        HashKey::SourceIp => "source address".to_owned(),
        HashKey::QueryParameter(name) => format!("query parameter {name}"),
    }
}

/// Of a cluster with outlier detection, all of it.
pub(super) fn outlier_detection(detection: &OutlierDetection) -> Vec<String> {
    let OutlierDetection {
        consecutive_5xx,
        consecutive_gateway_errors,
        split_local_origin,
        consecutive_local_origin_failures,
        interval,
        base_ejection_time,
        max_ejection_time,
        max_ejection_percent,
        panic_percent,
        error_codes,
    } = detection;
    let mut errors = Vec::new();
    let kind = match error_codes.as_slice() {
        [] => "5xx".to_owned(),
        codes => codes.iter().map(u16::to_string).collect::<Vec<_>>().join("/"),
    };
    for (count, kind) in [
        (*consecutive_5xx, kind.as_str()),
        (*consecutive_gateway_errors, "gateway errors"),
        (if *split_local_origin { *consecutive_local_origin_failures } else { 0 }, "failures without an answer"),
    ] {
        if count > 0 {
            errors.push(format!("{count} {kind}"));
        }
    }
    let split = if *split_local_origin { ", answers apart from failures" } else { "" };
    let mut text =
        format!("ejects after {}{split}", if errors.is_empty() { "nothing".to_owned() } else { errors.join(" or ") });
    text.push_str(&format!(
        ", for {base_ejection_time:?} to {max_ejection_time:?}, at most {max_ejection_percent}%, looks every {interval:?}"
    ));
    if *panic_percent > 0 {
        text.push_str(&format!(", ignored below {panic_percent}%"));
    }
    vec![text]
}
