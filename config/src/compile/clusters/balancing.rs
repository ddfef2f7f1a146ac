//! How the endpoints of a cluster share requests.
//!
//! Source: `reference/networking.md` §5.3.

use std::sync::Arc;

use super::super::destination_rules::Rule;
use super::super::locality;
use super::super::options::Options;
use super::super::report::{Field, Report};
use super::policy::of_port;
use crate::diagnostic::{Code, Severity};
use crate::resource::destination_rule::{
    ConsistentHash, CookieAttribute, HttpCookie, LoadBalancerSettings, Maglev, RingHash, SimpleLoadBalancer,
    TrafficPolicy, WarmupConfiguration,
};
use crate::snapshot::balancing::{Balancing, BalancingPolicy, HashCookie, HashKey, HashKeys, Warmup};

/// Envoy's ring, and the table it makes where none is given.
const RING_SIZE: u64 = 1024;
const TABLE_SIZE: u64 = 65_537;

/// What `settings` say; groups of endpoints are the locality's business. `hash_keys` is asked for consistent policies.
pub(super) fn balancing(settings: Option<&LoadBalancerSettings>, hash_keys: impl FnOnce() -> HashKeys) -> Balancing {
    let Some(settings) = settings else { return Balancing::default() };
    let policy = policy(settings);
    Balancing {
        policy,
        hash_keys: if policy.is_consistent() { hash_keys() } else { HashKeys::default() },
        warmup: warmup(settings).filter(|_| takes_warmup(policy)),
        groups: Arc::default(),
    }
}

/// The address that the client meant is the gateway's own: there is no other to go to.
pub(super) fn is_passthrough(settings: &LoadBalancerSettings) -> bool {
    settings.simple == Some(SimpleLoadBalancer::Passthrough)
}

fn policy(settings: &LoadBalancerSettings) -> BalancingPolicy {
    if let Some(ConsistentHash { ring_hash, maglev, minimum_ring_size, .. }) = &settings.consistent_hash {
        let given = |size: u64, default: u64| if size == 0 { default } else { size };
        return match (maglev, ring_hash) {
            (Some(Maglev { table_size }), _) => BalancingPolicy::Maglev { table_size: given(*table_size, TABLE_SIZE) },
            (None, Some(RingHash { minimum_ring_size })) => {
                BalancingPolicy::RingHash { minimum_size: given(*minimum_ring_size, RING_SIZE) }
            }
            (None, None) => BalancingPolicy::RingHash { minimum_size: given(*minimum_ring_size, RING_SIZE) },
        };
    }
    match settings.simple.unwrap_or_default() {
        SimpleLoadBalancer::Unspecified
        | SimpleLoadBalancer::LeastConn
        | SimpleLoadBalancer::LeastRequest
        // Without endpoints there is nothing to choose.
        | SimpleLoadBalancer::Passthrough => BalancingPolicy::LeastRequest,
        SimpleLoadBalancer::RoundRobin => BalancingPolicy::RoundRobin,
        SimpleLoadBalancer::Random => BalancingPolicy::Random,
    }
}

fn takes_warmup(policy: BalancingPolicy) -> bool {
    matches!(policy, BalancingPolicy::LeastRequest | BalancingPolicy::RoundRobin)
}

fn warmup(settings: &LoadBalancerSettings) -> Option<Warmup> {
    let since = WarmupConfiguration { duration: settings.warmup_duration_secs, ..WarmupConfiguration::default() };
    let WarmupConfiguration { duration, minimum_percent, aggression } = settings.warmup.as_ref().unwrap_or(&since);
    Some(Warmup {
        duration: (*duration)?,
        minimum_percent: minimum_percent.unwrap_or(10.0),
        aggression: aggression.unwrap_or(1.0),
    })
}

/// The keys of a destination. Other than blocks in general, `consistentHash` is looked for at each level by itself, and
/// the settings of a port hide nothing from routes that don't name it.
pub(super) fn hash_keys(rule: Option<&Rule>, port: u16, subset: &str) -> HashKeys {
    let top = rule.and_then(Rule::traffic_policy);
    let of_subset = rule.and_then(|rule| rule.subset_part(subset)?.2.traffic_policy.as_ref());
    let own = of_subset.and_then(hash_of_policy);
    let without_port = own.or_else(|| top.and_then(hash_of_policy));
    let with_port = (of_subset.and_then(|policy| hash_of_port(policy, port)))
        .or(own)
        .or_else(|| top.and_then(|policy| hash_of_port(policy, port)))
        .or(without_port);
    let key = |hash: Option<&ConsistentHash>| hash.and_then(hash_key).map(Arc::new);
    HashKeys { with_port: key(with_port), without_port: key(without_port) }
}

fn hash_of_policy(policy: &TrafficPolicy) -> Option<&ConsistentHash> {
    policy.load_balancer.as_ref()?.consistent_hash.as_ref()
}

fn hash_of_port(policy: &TrafficPolicy, port: u16) -> Option<&ConsistentHash> {
    let (_, settings) = of_port(policy, port)?;
    settings.load_balancer.as_ref()?.consistent_hash.as_ref()
}

fn hash_key(hash: &ConsistentHash) -> Option<HashKey> {
    let ConsistentHash {
        http_header_name,
        http_cookie,
        use_source_ip,
        http_query_parameter_name,
        ring_hash: _,
        maglev: _,
        minimum_ring_size: _,
    } = hash;
    let header = http_header_name.as_ref().filter(|name| !name.is_empty());
    let parameter = http_query_parameter_name.as_ref().filter(|name| !name.is_empty());
    (header.map(|name| HashKey::Header(name.to_ascii_lowercase())))
        .or_else(|| http_cookie.as_ref().map(|cookie| HashKey::Cookie(hash_cookie(cookie))))
        .or_else(|| (*use_source_ip == Some(true)).then_some(HashKey::SourceIp))
        .or_else(|| parameter.map(|name| HashKey::QueryParameter(name.clone())))
}

fn hash_cookie(cookie: &HttpCookie) -> HashCookie {
    let HttpCookie { name, path, ttl, attributes } = cookie;
    let attributes = attributes.iter().map(|CookieAttribute { name, value }| (name.clone(), value.clone()));
    HashCookie { name: name.clone(), path: path.clone(), ttl: *ttl, attributes: attributes.collect() }
}

/// Names what can't be honoured of settings.
pub(super) fn report(settings: &LoadBalancerSettings, options: &Options, field: &Field<'_>, report: &mut Report) {
    let LoadBalancerSettings {
        simple: _,
        consistent_hash: _,
        locality_lb_setting,
        zone_aware_lb_setting,
        warmup_duration_secs,
        warmup,
    } = settings;
    if is_passthrough(settings) {
        let message = "a gateway knows no original destination: requests to this host answer 503 (UH)";
        let help = "leave `simple` out; endpoints come from the Service or ServiceEntry of the host".to_owned();
        report.add(Severity::Warning, Code::Ignored, field.name("simple"), message, Some(help));
    }
    if !takes_warmup(policy(settings)) {
        let message = "has no effect with this policy, in Istio neither: only LEAST_REQUEST and ROUND_ROBIN spare \
                       endpoints that have just come";
        for (name, is_set) in [("warmup", warmup.is_some()), ("warmupDurationSecs", warmup_duration_secs.is_some())] {
            if is_set {
                report.warning(Code::Ignored, field.name(name), message);
            }
        }
    }
    if let Some(setting) = locality_lb_setting {
        locality::report(setting, options, &field.name("localityLbSetting"), report);
    }
    if zone_aware_lb_setting.is_some() {
        report.unsupported(
            field.name("zoneAwareLbSetting"),
            "not supported yet: it has no effect; `localityLbSetting` has failover by zone",
        );
    }
}
