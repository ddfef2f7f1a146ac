//! §10.10 and §10.11.

use std::collections::BTreeSet;

use super::primitive::{
    export_to, is_dns_label, is_fqdn, is_ip, is_ip_or_cidr, is_unix_address, is_wildcard_domain, labels, port,
};
use super::{Findings, keyed};
use crate::resource::Meta;
use crate::resource::service_entry::{Location, Resolution, ServiceEntry, ServicePort};
use crate::resource::workload_entry::WorkloadEntry;

const PROTOCOLS: [&str; 12] =
    ["", "HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY", "HTTPS", "TLS", "TCP", "MONGO", "REDIS", "MYSQL"];

pub(super) fn validate(meta: &Meta, spec: &ServiceEntry, findings: &mut Findings) {
    let ServiceEntry {
        hosts,
        addresses,
        ports,
        location,
        resolution,
        endpoints,
        workload_selector,
        export_to: exported,
        subject_alt_names: _,
    } = spec;
    if workload_selector.is_some() && !endpoints.is_empty() {
        findings.error("spec.endpoints", "`workloadSelector` and `endpoints` exclude each other");
    }
    if let Some(selector) = workload_selector {
        for (key, value) in &selector.labels {
            if key.is_empty() || key.contains('*') || value.contains('*') {
                findings.error(keyed("spec.workloadSelector.labels", key), "a selector has no empty names and no `*`");
            }
        }
        if selector.labels.is_empty() {
            findings.warning("spec.workloadSelector", "a selector without labels takes everything in the namespace");
        }
        if *resolution == Resolution::None {
            findings.warning("spec.workloadSelector", "resolution NONE has no endpoints: nothing is selected");
        }
    }
    if hosts.is_empty() {
        findings.error("spec.hosts", "a ServiceEntry needs a host");
    }
    for (index, host) in hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        if host == "*" {
            findings.error(path, "host `*` is not allowed");
        } else if !is_wildcard_domain(host) {
            findings.error(path, format!("`{host}` is no host name"));
        } else if *resolution == Resolution::DynamicDns && !host.starts_with('*') {
            findings.error(path, "DYNAMIC_DNS is for hosts with `*`");
        } else if host.starts_with('*') && !host.starts_with("*.") && *resolution != Resolution::DynamicDns {
            findings.warning(path, format!("`{host}`: a `*` should be a whole label"));
        }
    }
    for (index, address) in addresses.iter().enumerate() {
        let path = format!("spec.addresses[{index}]");
        if address.len() > 64 {
            findings.error(path, "must have at most 64 characters");
        } else if !is_ip_or_cidr(address) {
            findings.error(path, format!("`{address}` is no IP address or CIDR"));
        } else if address.contains('/') && !matches!(resolution, Resolution::None | Resolution::Static) {
            findings.error(path, "a CIDR is only for resolution NONE and STATIC");
        }
    }
    service_ports(ports, findings);
    if hosts.len() > 1
        && *resolution != Resolution::None
        && let Some(index) = ports.iter().position(|port| !is_http_or_tls(&port.protocol))
    {
        let message = "a port that is neither HTTP nor TLS can't tell several hosts apart";
        findings.error(format!("spec.ports[{index}].protocol"), message).help("write a ServiceEntry for each host");
    }
    self::resolution(spec, findings);
    // The label that sends traffic through a waypoint, which would have to resolve names that it never sees.
    if *resolution == Resolution::DynamicDns
        && *location == Location::MeshInternal
        && meta.labels.contains_key("istio.io/use-waypoint")
    {
        findings.error("spec.location", "MESH_INTERNAL, DYNAMIC_DNS and a waypoint don't go together");
    }
    for (field, number, limit) in [
        ("hosts", hosts.len(), 256),
        ("addresses", addresses.len(), 256),
        ("ports", ports.len(), 256),
        ("endpoints", endpoints.len(), 4096),
    ] {
        if number > limit {
            findings.error(format!("spec.{field}"), format!("there are {number}, and at most {limit} are allowed"));
        }
    }
    export_to(exported, true, findings);
}

fn service_ports(ports: &[ServicePort], findings: &mut Findings) {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (index, service_port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let ServicePort { number, protocol, name, target_port } = service_port;
        port(&format!("{path}.number"), *number, findings);
        if !is_dns_label(name) {
            findings.error(format!("{path}.name"), format!("`{name}` is no name of a port"));
        } else if !names.insert(name) {
            findings.error(format!("{path}.name"), format!("port name `{name}` stands twice"));
        }
        if !numbers.insert(number) {
            findings.error(format!("{path}.number"), format!("port {number} stands twice"));
        }
        if *target_port != 0 {
            port(&format!("{path}.targetPort"), *target_port, findings);
        }
        let upper = protocol.to_ascii_uppercase();
        if !PROTOCOLS.contains(&upper.as_str()) && upper != "UDP" {
            let finding = findings.error(format!("{path}.protocol"), format!("unknown protocol `{protocol}`"));
            finding.help(format!("use one of: {}", PROTOCOLS[1..].join(", ")));
        }
    }
}

fn is_http_or_tls(protocol: &str) -> bool {
    !matches!(protocol.to_ascii_uppercase().as_str(), "" | "TCP" | "UDP" | "MONGO" | "REDIS" | "MYSQL")
}

fn resolution(spec: &ServiceEntry, findings: &mut Findings) {
    let endpoints = &spec.endpoints;
    match spec.resolution {
        Resolution::None => {
            if !endpoints.is_empty() {
                findings.error("spec.endpoints", "resolution NONE has no endpoints").help("use STATIC or DNS");
            }
        }
        Resolution::Static => {
            for (index, endpoint) in endpoints.iter().enumerate() {
                let path = format!("spec.endpoints[{index}]");
                self::endpoint(&path, endpoint, &spec.ports, is_ip, "an IP address", findings);
            }
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            if endpoints.is_empty() && spec.workload_selector.is_none() {
                for (index, host) in spec.hosts.iter().enumerate().filter(|(_, host)| !is_fqdn(host)) {
                    let message = format!("`{host}` can't be resolved, and there are no endpoints");
                    findings.error(format!("spec.hosts[{index}]"), message).help("give `endpoints`");
                }
            }
            for (index, endpoint) in endpoints.iter().enumerate() {
                let path = format!("spec.endpoints[{index}]");
                let fits = |address: &str| is_ip(address) || is_fqdn(address);
                self::endpoint(&path, endpoint, &spec.ports, fits, "an IP address or a name", findings);
            }
            if spec.resolution == Resolution::DnsRoundRobin && endpoints.len() > 1 {
                findings.error("spec.endpoints", "DNS_ROUND_ROBIN takes one endpoint");
            }
        }
        Resolution::DynamicDns => {
            if !spec.addresses.is_empty() {
                findings.error("spec.addresses", "DYNAMIC_DNS has no addresses");
            }
            if !endpoints.is_empty() {
                findings.error("spec.endpoints", "DYNAMIC_DNS has no endpoints");
            }
            for (index, port) in spec.ports.iter().enumerate() {
                let protocol = port.protocol.to_ascii_uppercase();
                if !matches!(protocol.as_str(), "HTTP" | "HTTP2" | "GRPC" | "TLS") {
                    findings
                        .error(
                            format!("spec.ports[{index}].protocol"),
                            "DYNAMIC_DNS needs a request that names its host",
                        )
                        .help("use one of: HTTP, HTTP2, GRPC, TLS");
                }
            }
        }
    }
}

fn endpoint(
    path: &str,
    endpoint: &WorkloadEntry,
    ports: &[ServicePort],
    fits: impl Fn(&str) -> bool,
    expected: &str,
    findings: &mut Findings,
) {
    if is_far_away(path, endpoint, findings) {
        return;
    }
    if let Some(address) = endpoint.address.strip_prefix("unix://") {
        unix(path, address, endpoint, findings);
        if ports.len() != 1 {
            findings.error(format!("{path}.address"), "a unix socket serves exactly one port");
        }
    } else if !fits(&endpoint.address) {
        findings.error(format!("{path}.address"), format!("`{}` is not {expected}", endpoint.address));
    }
    for name in endpoint.ports.keys() {
        if !ports.iter().any(|port| port.name == *name) {
            findings.error(keyed(&format!("{path}.ports"), name), format!("the ServiceEntry has no port `{name}`"));
        }
    }
    common(path, endpoint, findings);
}

/// A WorkloadEntry of its own, whose ports belong to no ServiceEntry yet.
pub(super) fn workload_entry(path: &str, entry: &WorkloadEntry, findings: &mut Findings) {
    if is_far_away(path, entry, findings) {
        return;
    }
    if let Some(address) = entry.address.strip_prefix("unix://") {
        unix(path, address, entry, findings);
    } else if !is_ip(&entry.address) && !is_fqdn(&entry.address) {
        findings.error(format!("{path}.address"), format!("`{}` is not an IP address or a name", entry.address));
    }
    common(path, entry, findings);
}

/// An endpoint without an address is behind the gateway of its network.
fn is_far_away(path: &str, endpoint: &WorkloadEntry, findings: &mut Findings) -> bool {
    if endpoint.address.is_empty() {
        if endpoint.network.is_empty() {
            findings.error(format!("{path}.address"), "an endpoint needs an address");
        } else {
            findings
                .warning(format!("{path}.address"), "an endpoint of another network without an address is not used");
        }
    }
    endpoint.address.is_empty()
}

fn unix(path: &str, address: &str, endpoint: &WorkloadEntry, findings: &mut Findings) {
    if !is_unix_address(address) {
        findings.error(format!("{path}.address"), format!("`{address}` is no unix socket"));
    }
    if !endpoint.ports.is_empty() {
        findings.error(format!("{path}.ports"), "a unix socket has no ports");
    }
}

fn common(path: &str, endpoint: &WorkloadEntry, findings: &mut Findings) {
    // Of the CRD.
    for (field, text, limit) in [
        ("address", &endpoint.address, 256),
        ("network", &endpoint.network, 2048),
        ("locality", &endpoint.locality, 2048),
        ("serviceAccount", &endpoint.service_account, 253),
    ] {
        if text.len() > limit {
            findings.error(format!("{path}.{field}"), format!("must have at most {limit} characters"));
        }
    }
    if endpoint.ports.len() > 128 {
        findings.error(format!("{path}.ports"), "there may be at most 128 ports");
    }
    for (name, number) in &endpoint.ports {
        let path = keyed(&format!("{path}.ports"), name);
        if !is_dns_label(name) {
            findings.error(&path, format!("`{name}` is no name of a port"));
        }
        port(&path, *number, findings);
    }
    labels(&format!("{path}.labels"), &endpoint.labels, findings);
}
