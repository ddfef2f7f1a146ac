//! §10.9.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Findings;
use super::primitive::{
    duration, duration_or_zero, export_to, is_dns_label, is_fqdn, is_ip, is_wildcard_domain, labels, not_negative, port,
};
use crate::resource::Meta;
use crate::resource::destination_rule::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, ConsistentHash, DestinationRule, Distribute, Failover,
    H2UpgradePolicy, LoadBalancerSettings, LocalityLoadBalancerSetting, OutlierDetection, Percentage,
    PortTrafficPolicy, RetryBudget, Subset, TcpKeepalive, TrafficPolicy, TunnelSettings, ZoneAwareLoadBalancerSetting,
};

pub(super) fn validate(meta: &Meta, spec: &DestinationRule, findings: &mut Findings) {
    let DestinationRule { host, traffic_policy, subsets, export_to: exported, workload_selector } = spec;
    if host.is_empty() {
        findings.error("spec.host", "a DestinationRule needs a host");
    } else if !is_wildcard_domain(host) {
        findings.error("spec.host", format!("`{host}` is no host name"));
    }
    if let Some(policy) = traffic_policy {
        self::traffic_policy("spec.trafficPolicy", policy, false, &meta.namespace, findings);
    }
    let has_outlier = traffic_policy.as_ref().is_some_and(|policy| policy.outlier_detection.is_some());
    let mut names = BTreeSet::new();
    for (index, subset) in subsets.iter().enumerate() {
        let path = format!("spec.subsets[{index}]");
        let Subset { name, labels: selected, traffic_policy } = subset;
        if !is_dns_label(name) {
            findings.error(format!("{path}.name"), format!("`{name}` is no name of a subset"));
        } else if !names.insert(name) {
            findings.error(format!("{path}.name"), format!("subset `{name}` stands twice"));
        }
        labels(&format!("{path}.labels"), selected, findings);
        if let Some(policy) = traffic_policy {
            let path = format!("{path}.trafficPolicy");
            self::traffic_policy(&path, policy, has_outlier, &meta.namespace, findings);
        }
    }
    export_to(exported, false, findings);
    if let Some(selector) = workload_selector {
        labels("spec.workloadSelector.matchLabels", &selector.match_labels, findings);
        if exported.iter().any(|namespace| namespace != "." && **namespace != *meta.namespace) {
            findings.error("spec.exportTo", "a rule with a workloadSelector stays in its namespace").help("use `.`");
        }
    }
}

/// `inherits_outlier` says that there is outlier detection where the policy has none of its own.
fn traffic_policy(
    path: &str,
    policy: &TrafficPolicy,
    inherits_outlier: bool,
    namespace: &str,
    findings: &mut Findings,
) {
    let TrafficPolicy {
        load_balancer,
        connection_pool,
        outlier_detection,
        tls,
        port_level_settings,
        tunnel,
        proxy_protocol,
        retry_budget,
    } = policy;
    if *policy == TrafficPolicy::default() {
        findings.error(path, "the policy says nothing").help("leave it out");
    }
    if tunnel.is_some() && proxy_protocol.is_some() {
        findings.error(format!("{path}.proxyProtocol"), "`tunnel` and `proxyProtocol` exclude each other");
    }
    let blocks = Blocks { load_balancer, connection_pool, outlier_detection };
    blocks.validate(path, inherits_outlier, findings);
    if let Some(tls) = tls {
        self::tls(&format!("{path}.tls"), tls, namespace, findings);
    }
    if let Some(tunnel) = tunnel {
        let path = format!("{path}.tunnel");
        let TunnelSettings { protocol, target_host, target_port } = tunnel;
        if !matches!(protocol.as_str(), "" | "CONNECT" | "POST") {
            findings.error(format!("{path}.protocol"), format!("`{protocol}` must be `CONNECT` or `POST`"));
        }
        if !is_fqdn(target_host) && !is_ip(target_host) {
            findings.error(format!("{path}.targetHost"), format!("`{target_host}` is no host name or IP address"));
        }
        port(&format!("{path}.targetPort"), *target_port, findings);
    }
    if let Some(RetryBudget { percent, min_retry_concurrency: _, budget_interval }) = retry_budget {
        if let Some(percent) = percent {
            self::percent(&format!("{path}.retryBudget.percent"), *percent, findings);
        }
        duration_or_zero(&format!("{path}.retryBudget.budgetInterval"), *budget_interval, findings);
    }
    for (index, level) in port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{index}]");
        let PortTrafficPolicy { port: of, load_balancer, connection_pool, outlier_detection, tls } = level;
        match of {
            Some(of) => port(&format!("{path}.port.number"), of.number, findings),
            None => {
                findings.error(format!("{path}.port"), "settings of a port need the port");
            }
        }
        if load_balancer.is_none() && connection_pool.is_none() && outlier_detection.is_none() && tls.is_none() {
            findings.error(&path, "the policy of this port says nothing");
        }
        // Nothing is inherited here.
        Blocks { load_balancer, connection_pool, outlier_detection }.validate(&path, false, findings);
        if let Some(tls) = tls {
            self::tls(&format!("{path}.tls"), tls, namespace, findings);
        }
    }
}

/// What a policy and the settings of a port have in common.
struct Blocks<'a> {
    load_balancer: &'a Option<LoadBalancerSettings>,
    connection_pool: &'a Option<ConnectionPoolSettings>,
    outlier_detection: &'a Option<OutlierDetection>,
}

impl Blocks<'_> {
    fn validate(&self, path: &str, inherits_outlier: bool, findings: &mut Findings) {
        let Self { load_balancer, connection_pool, outlier_detection } = self;
        if let Some(balancer) = load_balancer {
            let has_outlier = inherits_outlier || outlier_detection.is_some();
            self::load_balancer(&format!("{path}.loadBalancer"), balancer, has_outlier, findings);
        }
        if let Some(pool) = connection_pool {
            self::connection_pool(&format!("{path}.connectionPool"), pool, findings);
        }
        if let Some(outlier) = outlier_detection {
            self::outlier_detection(&format!("{path}.outlierDetection"), outlier, findings);
        }
    }
}

fn load_balancer(path: &str, balancer: &LoadBalancerSettings, has_outlier: bool, findings: &mut Findings) {
    let LoadBalancerSettings {
        simple,
        consistent_hash,
        locality_lb_setting,
        zone_aware_lb_setting,
        warmup_duration_secs,
        warmup,
    } = balancer;
    if simple.is_some() && consistent_hash.is_some() {
        findings.error(format!("{path}.consistentHash"), "`simple` and `consistentHash` exclude each other");
    }
    if let Some(hash) = consistent_hash {
        self::consistent_hash(&format!("{path}.consistentHash"), hash, findings);
    }
    if locality_lb_setting.is_some() && zone_aware_lb_setting.is_some() {
        let message = "`localityLbSetting` and `zoneAwareLbSetting` exclude each other";
        findings.error(format!("{path}.zoneAwareLbSetting"), message);
    }
    if let Some(locality) = locality_lb_setting {
        self::locality(&format!("{path}.localityLbSetting"), locality, has_outlier, findings);
    }
    if let Some(zones) = zone_aware_lb_setting {
        self::zone_aware(&format!("{path}.zoneAwareLbSetting"), zones, has_outlier, findings);
    }
    duration(&format!("{path}.warmupDurationSecs"), *warmup_duration_secs, findings);
    if let Some(warmup) = warmup {
        if warmup_duration_secs.is_some() {
            findings
                .error(format!("{path}.warmupDurationSecs"), "`warmup` and `warmupDurationSecs` exclude each other");
        }
        if warmup.duration.is_none() {
            findings.error(format!("{path}.warmup.duration"), "a warm-up needs a duration");
        }
        duration(&format!("{path}.warmup.duration"), warmup.duration, findings);
        if warmup.minimum_percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            findings.error(format!("{path}.warmup.minimumPercent"), "must be from 0 to 100");
        }
        if warmup.aggression.is_some_and(|aggression| aggression <= 0.0) {
            findings.error(format!("{path}.warmup.aggression"), "must be above 0");
        }
    }
}

fn consistent_hash(path: &str, hash: &ConsistentHash, findings: &mut Findings) {
    let ConsistentHash {
        http_header_name,
        http_cookie,
        use_source_ip,
        http_query_parameter_name,
        ring_hash,
        maglev,
        minimum_ring_size,
    } = hash;
    let keys = [
        http_header_name.is_some(),
        http_cookie.is_some(),
        use_source_ip.is_some(),
        http_query_parameter_name.is_some(),
    ];
    if keys.iter().filter(|key| **key).count() > 1 {
        findings
            .error(path, "there is more than one hash key")
            .help("use one of: httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName");
    }
    if let Some(cookie) = http_cookie {
        if cookie.name.is_empty() {
            findings.error(format!("{path}.httpCookie.name"), "a cookie needs a name");
        }
        let mut names = BTreeSet::new();
        for (index, attribute) in cookie.attributes.iter().enumerate() {
            let path = format!("{path}.httpCookie.attributes[{index}].name");
            if attribute.name.is_empty() {
                findings.error(path, "an attribute needs a name");
            } else if !names.insert(&attribute.name) {
                findings.error(path, format!("attribute `{}` stands twice", attribute.name));
            }
        }
    }
    if ring_hash.is_some() && maglev.is_some() {
        findings.error(format!("{path}.maglev"), "`ringHash` and `maglev` exclude each other");
    }
    if *minimum_ring_size != 0 {
        let path = format!("{path}.minimumRingSize");
        if ring_hash.is_some() || maglev.is_some() {
            findings.error(path, "stands beside `ringHash` or `maglev`, which replace it");
        } else {
            findings.warning(path, "is deprecated").help("use `ringHash.minimumRingSize`");
        }
    }
    if let Some(maglev) = maglev
        && (maglev.table_size >= 5_000_011 || !is_prime(maglev.table_size))
    {
        findings
            .error(format!("{path}.maglev.tableSize"), "must be a prime number below 5000011")
            .help("65537 is usual");
    }
}

fn percent(path: &str, percent: Percentage, findings: &mut Findings) {
    let value = match percent {
        Percentage::Number(value) => value,
        Percentage::Message(percent) => percent.value,
    };
    if !(0.0..=100.0).contains(&value) {
        findings.error(path, "must be from 0 to 100");
    }
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

/// Also for the setting of the mesh.
pub(super) fn locality(path: &str, setting: &LocalityLoadBalancerSetting, has_outlier: bool, findings: &mut Findings) {
    let LocalityLoadBalancerSetting { distribute, failover, failover_priority, enabled: _ } = setting;
    if !distribute.is_empty() && !failover.is_empty() {
        findings.error(format!("{path}.failover"), "`distribute` and `failover` exclude each other");
    }
    let sources: Vec<&str> = distribute.iter().map(|entry| entry.from.as_str()).collect();
    for (index, Distribute { from, to }) in distribute.iter().enumerate() {
        let path = format!("{path}.distribute[{index}]");
        for name in std::iter::once(from).chain(to.keys()) {
            if !is_locality(name) {
                findings
                    .error(&path, format!("`{name}` is no locality"))
                    .help("`region/zone/subzone`, `*` only at the end");
            }
        }
        if let Some(other) = sources[..index].iter().find(|other| overlap(other, from)) {
            findings.error(format!("{path}.from"), format!("`{from}` overlaps with `{other}`"));
        }
        let names: Vec<&str> = to.keys().map(String::as_str).collect();
        for (place, name) in names.iter().enumerate() {
            if let Some(other) = names[..place].iter().find(|other| overlap(other, name)) {
                findings.error(format!("{path}.to"), format!("`{name}` overlaps with `{other}`"));
            }
        }
        weights(&path, to, findings);
    }
    self::failover(path, failover, failover_priority, has_outlier, findings);
    if !failover.is_empty() {
        for (index, label) in failover_priority.iter().enumerate().filter(|(_, label)| is_topology(label)) {
            let message = format!("`{label}` says what `failover` says");
            findings.error(format!("{path}.failoverPriority[{index}]"), message);
        }
    }
}

/// Also for the setting of the mesh.
pub(super) fn zone_aware(
    path: &str,
    setting: &ZoneAwareLoadBalancerSetting,
    has_outlier: bool,
    findings: &mut Findings,
) {
    let ZoneAwareLoadBalancerSetting {
        enabled: _,
        min_cluster_size,
        routing_enabled,
        fail_traffic_on_panic: _,
        failover_priority,
        failover,
        force_locality_direct_routing: _,
    } = setting;
    if *min_cluster_size == Some(0) {
        findings.error(format!("{path}.minClusterSize"), "must be at least 1");
    }
    if let Some(percent) = routing_enabled {
        self::percent(&format!("{path}.routingEnabled"), *percent, findings);
    }
    self::failover(path, failover, failover_priority, has_outlier, findings);
    for (index, label) in failover_priority.iter().enumerate().filter(|(_, label)| is_topology(label)) {
        findings.error(format!("{path}.failoverPriority[{index}]"), format!("`{label}` is what zones say already"));
    }
}

fn failover(path: &str, failover: &[Failover], priority: &[String], has_outlier: bool, findings: &mut Findings) {
    for (index, Failover { from, to }) in failover.iter().enumerate() {
        let path = format!("{path}.failover[{index}]");
        if from == to {
            findings.error(&path, format!("region `{from}` can't fail over to itself"));
        }
        if [from, to].iter().any(|region| region.contains(['/', '*'])) {
            findings.error(&path, "a failover names regions, without zones and `*`");
        }
    }
    if !has_outlier && (!failover.is_empty() || !priority.is_empty()) {
        findings.warning(path, "failover has no effect without `outlierDetection`");
    }
}

/// Whether a label of `failoverPriority` is one of region, zone and subzone.
fn is_topology(label: &str) -> bool {
    let key = label.split('=').next().unwrap_or_default();
    matches!(key, "topology.kubernetes.io/region" | "topology.kubernetes.io/zone" | "topology.istio.io/subzone")
}

/// Whether some place lies in both patterns.
fn overlap(a: &str, b: &str) -> bool {
    for (a, b) in a.split('/').zip(b.split('/')) {
        if a == "*" || b == "*" {
            return true;
        }
        if a != b {
            return false;
        }
    }
    true
}

fn weights(path: &str, to: &BTreeMap<String, u32>, findings: &mut Findings) {
    if to.values().any(|weight| !(1..=100).contains(weight)) {
        findings.error(format!("{path}.to"), "each weight must be from 1 to 100");
    } else if to.values().sum::<u32>() != 100 {
        findings.error(format!("{path}.to"), "the weights must add up to 100");
    }
}

fn is_locality(locality: &str) -> bool {
    let parts: Vec<&str> = locality.split('/').collect();
    parts.len() <= 3
        && parts.iter().enumerate().all(|(index, part)| {
            !part.is_empty() && (!part.contains('*') || (*part == "*" && index + 1 == parts.len()))
        })
}

/// Also for the default of the mesh.
pub(super) fn connection_pool(path: &str, pool: &ConnectionPoolSettings, findings: &mut Findings) {
    let ConnectionPoolSettings { tcp, http } = pool;
    if tcp.is_none() && http.is_none() {
        findings.error(path, "a connection pool needs `tcp` or `http`");
    }
    if let Some(tcp) = tcp {
        let path = format!("{path}.tcp");
        not_negative(&format!("{path}.maxConnections"), tcp.max_connections, findings);
        duration(&format!("{path}.connectTimeout"), tcp.connect_timeout, findings);
        duration(&format!("{path}.maxConnectionDuration"), tcp.max_connection_duration, findings);
        duration_or_zero(&format!("{path}.idleTimeout"), tcp.idle_timeout, findings);
        if let Some(TcpKeepalive { probes: _, time, interval }) = &tcp.tcp_keepalive {
            duration(&format!("{path}.tcpKeepalive.time"), *time, findings);
            duration(&format!("{path}.tcpKeepalive.interval"), *interval, findings);
        }
    }
    if let Some(http) = http {
        let path = format!("{path}.http");
        for (field, value) in [
            ("http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http2MaxRequests", http.http2_max_requests),
            ("maxRequestsPerConnection", http.max_requests_per_connection),
            ("maxRetries", http.max_retries),
            ("maxConcurrentStreams", http.max_concurrent_streams),
        ] {
            not_negative(&format!("{path}.{field}"), value, findings);
        }
        duration(&format!("{path}.idleTimeout"), http.idle_timeout, findings);
        if http.h2_upgrade_policy == H2UpgradePolicy::Upgrade && http.use_client_protocol {
            findings.error(format!("{path}.useClientProtocol"), "contradicts `h2UpgradePolicy: UPGRADE`");
        }
        if let Some(keep_alive) = &http.http2_keep_alive {
            for (field, value) in [("interval", keep_alive.interval), ("timeout", keep_alive.timeout)] {
                if value.is_none() {
                    findings.error(format!("{path}.http2KeepAlive.{field}"), format!("needs `{field}`"));
                }
                duration(&format!("{path}.http2KeepAlive.{field}"), value, findings);
            }
        }
    }
}

/// Also for the default of the mesh.
pub(super) fn outlier_detection(path: &str, outlier: &OutlierDetection, findings: &mut Findings) {
    duration(&format!("{path}.interval"), outlier.interval, findings);
    duration(&format!("{path}.baseEjectionTime"), outlier.base_ejection_time, findings);
    for (field, value) in
        [("maxEjectionPercent", outlier.max_ejection_percent), ("minHealthPercent", outlier.min_health_percent)]
    {
        if !(0..=100).contains(&value) {
            findings.error(format!("{path}.{field}"), "must be from 0 to 100");
        }
    }
    if outlier.consecutive_local_origin_failures.is_some_and(|failures| failures > 0)
        && !outlier.split_external_local_origin_errors
    {
        let path = format!("{path}.consecutiveLocalOriginFailures");
        findings.error(path, "needs `splitExternalLocalOriginErrors: true`");
    }
    if outlier.consecutive_errors != 0 {
        findings.warning(format!("{path}.consecutiveErrors"), "is ignored").help("use `consecutive5xxErrors`");
    }
    for (index, code) in outlier.outlier_detection_http_error_codes.iter().enumerate() {
        if !(100..=599).contains(code) {
            findings.error(format!("{path}.outlierDetectionHttpErrorCodes[{index}]"), "must be from 100 to 599");
        }
    }
}

fn tls(path: &str, tls: &ClientTlsSettings, namespace: &str, findings: &mut Findings) {
    let ClientTlsSettings {
        mode,
        client_certificate,
        private_key,
        ca_certificates,
        credential_name,
        subject_alt_names,
        sni: _,
        insecure_skip_verify,
        ca_crl: _,
    } = tls;
    if *insecure_skip_verify == Some(true) && *mode != ClientTlsMode::IstioMutual {
        let by_name = *mode == ClientTlsMode::Simple && !credential_name.is_empty();
        if !ca_certificates.is_empty() || !subject_alt_names.is_empty() || by_name {
            findings.error(format!("{path}.insecureSkipVerify"), "contradicts what else says how to verify");
        }
    }
    if !matches!(mode, ClientTlsMode::Simple | ClientTlsMode::Mutual) {
        return;
    }
    if let Some(name) = credential_name.strip_prefix("configmap://")
        && name.split_once('/').is_none_or(|(of, _)| of != namespace)
    {
        let message = format!("`{credential_name}` is no ConfigMap in {namespace}, the namespace of this rule");
        findings.error(format!("{path}.credentialName"), message);
    }
    if !credential_name.is_empty() {
        for (field, value) in [
            ("clientCertificate", client_certificate),
            ("privateKey", private_key),
            ("caCertificates", ca_certificates),
        ] {
            if !value.is_empty() {
                findings.error(format!("{path}.{field}"), format!("`credentialName` and `{field}` exclude each other"));
            }
        }
    } else if *mode == ClientTlsMode::Mutual {
        for (field, value) in [("clientCertificate", client_certificate), ("privateKey", private_key)] {
            if value.is_empty() {
                findings.error(format!("{path}.{field}"), format!("MUTUAL needs `{field}`"));
            }
        }
    }
}

/// From 1ms to 1h.
pub(super) fn connect_timeout(path: &str, timeout: Option<Duration>, findings: &mut Findings) {
    duration(path, timeout, findings);
    if timeout.is_some_and(|timeout| timeout > Duration::from_secs(3_600)) {
        findings.error(path, "must be at most 1h");
    }
}
