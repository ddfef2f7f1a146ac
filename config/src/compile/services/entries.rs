//! Hosts of ServiceEntries.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;

use super::super::locality::{self, Locality};
use super::super::protocol::Protocol;
use super::super::report::{Field, Report};
use super::super::visibility::visibility;
use super::super::world::{Object, World};
use super::{
    Address, Backend, Backends, Gathering, Service, ServiceAccount, ServicePort, TrafficDistribution, Workload,
};
use crate::diagnostic::Code;
use crate::resource::Resource;
use crate::resource::service_entry::{self, Location, Resolution, ServiceEntry};
use crate::resource::workload_entry::WorkloadEntry;
use crate::snapshot::cluster::ServiceIdentity;

pub(super) fn gather<'a>(world: &World<'a>, gathering: &mut Gathering<'a>) {
    // Entries of one namespace that name the same host are one service.
    let mut groups: Vec<(&'a str, Vec<Object<'a, ServiceEntry>>)> = Vec::new();
    let mut known: AHashMap<(&'a str, &'a str), usize> = AHashMap::new();
    let viewer = &gathering.options.namespace;
    for &entry in &world.service_entries {
        let mesh_default = &gathering.mesh.service_export_to;
        if visibility(&entry.spec.export_to, mesh_default, entry.namespace(), viewer).is_none() {
            continue;
        }
        for host in &entry.spec.hosts {
            let group = *known.entry((entry.namespace(), host)).or_insert_with(|| {
                groups.push((host, Vec::new()));
                groups.len() - 1
            });
            groups[group].1.push(entry);
        }
    }
    for (host, entries) in groups {
        let namespace = entries[0].namespace();
        let mut inputs: Vec<&Arc<Resource>> = entries.iter().map(|entry| entry.resource).collect();
        let select = |entry: &Object<'a, ServiceEntry>| match &entry.spec.workload_selector {
            Some(selector) => gathering.workloads.select(namespace, &selector.labels),
            None => Vec::new(),
        };
        let selected: Vec<Vec<Workload<'a>>> = entries.iter().map(select).collect();
        inputs.extend(selected.iter().flatten().map(|workload| workload.entry.resource));
        let host: Arc<str> = host.into();
        gathering.add((Arc::clone(namespace), Arc::clone(&host), false), &inputs, |gathering, inputs| {
            let mut report = Report::default();
            let ports = ports(&entries, &mut report);
            let own = gathering.options.locality();
            let backends = backends(&host, &entries, &selected, own, &mut report);
            let is_internal = entries[0].spec.location == Location::MeshInternal;
            let mut subject_alt_names: Vec<Arc<str>> = Vec::new();
            for name in entries.iter().flat_map(|entry| &entry.spec.subject_alt_names) {
                if !subject_alt_names.iter().any(|known| **known == **name) {
                    subject_alt_names.push(name.as_str().into());
                }
            }
            Service {
                identity: Arc::new(ServiceIdentity {
                    host: Arc::clone(&host),
                    name: Arc::clone(&host),
                    namespace: Arc::clone(namespace),
                }),
                ports,
                alias: None,
                visible: true,
                speaks_mutual_tls: is_internal && backends.speak_mutual_tls(),
                traffic_distribution: TrafficDistribution::new("", &entries[0].resource.meta.annotations),
                backends,
                subject_alt_names,
                inputs,
                diagnostics: report.diagnostics,
            }
        });
    }
}

/// The ports of all entries; the first definition of a number wins.
fn ports(entries: &[Object<'_, ServiceEntry>], report: &mut Report) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for entry in entries {
        let ServiceEntry {
            hosts: _,
            // Only sidecars look at them.
            addresses: _,
            ports: entry_ports,
            location: Location::MeshExternal | Location::MeshInternal,
            resolution: _,
            endpoints: _,
            workload_selector: _,
            export_to: _,
            // Of the service as a whole.
            subject_alt_names: _,
        } = entry.spec;
        let spec = Field::spec(entry.resource);
        let list = spec.name("ports");
        for (i, port) in entry_ports.iter().enumerate() {
            let service_entry::ServicePort { number, protocol, name, target_port: _ } = port;
            let Ok(number) = u16::try_from(*number) else { continue };
            let protocol = if protocol.is_empty() { Protocol::Auto } else { Protocol::parse(protocol) };
            let port = ServicePort { number, name: name.clone(), protocol };
            match ports.iter().find(|known| known.number == number) {
                None => ports.push(port),
                Some(known) if known.protocol != port.protocol => report.warning(
                    Code::ConflictingServiceEntryProtocols,
                    list.index(i),
                    format!("an older ServiceEntry gives port {number} of this host another protocol"),
                ),
                Some(_) => {}
            }
        }
    }
    ports
}

/// A port of one entry, for the endpoints of that entry.
struct OwnPort<'a> {
    number: u16,
    name: &'a str,
    target: u16,
}

fn own_ports<'a>(entry: &Object<'a, ServiceEntry>) -> Vec<OwnPort<'a>> {
    let ports = entry.spec.ports.iter().filter_map(|port| {
        let number = u16::try_from(port.number).ok()?;
        let target = u16::try_from(port.target_port).ok().filter(|&target| target != 0).unwrap_or(number);
        Some(OwnPort { number, name: &port.name, target })
    });
    ports.collect()
}

/// The endpoints of all entries, each for the ports of its own entry: it may have no others. `selected` are the
/// workloads of each entry.
fn backends(
    host: &Arc<str>,
    entries: &[Object<'_, ServiceEntry>],
    selected: &[Vec<Workload<'_>>],
    own: Locality<'_>,
    report: &mut Report,
) -> Backends {
    let resolution = entries[0].spec.resolution;
    let is_static = resolution == Resolution::Static;
    let is_dns = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let mut backends = Vec::new();
    for (entry, selected) in entries.iter().zip(selected) {
        let ports = own_ports(entry);
        let spec = Field::spec(entry.resource);
        match entry.spec.resolution {
            Resolution::None => report.warning(
                Code::Ignored,
                spec.name("resolution"),
                "a gateway knows no original destination: requests to this host answer 503 (UH)",
            ),
            Resolution::Static | Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns => {}
        }
        let list = spec.name("endpoints");
        for (i, endpoint) in entry.spec.endpoints.iter().enumerate() {
            let field = list.index(i);
            match backend(endpoint, endpoint.labels.clone(), None, entry.namespace(), &ports, own) {
                Some(backend) if is_static && matches!(backend.address, Address::Name(_)) => report.warning(
                    Code::SchemaWarning,
                    field.name("address"),
                    "resolution STATIC takes IP addresses and unix sockets; this endpoint is left out",
                ),
                Some(backend) => backends.push(backend),
                None => report.unsupported(field.name("network"), "endpoints of other networks are left out"),
            }
        }
        for Workload { entry, labels } in selected {
            let name = Some(Arc::clone(&entry.resource.meta.name));
            match backend(entry.spec, labels.clone(), name, entry.namespace(), &ports, own) {
                Some(backend) if is_static && !matches!(backend.address, Address::Ip(_)) => {}
                Some(backend) => backends.push(backend),
                None => {}
            }
        }
        let without_endpoints = entry.spec.endpoints.is_empty() && entry.spec.workload_selector.is_none();
        if is_dns && without_endpoints && !host.starts_with('*') {
            backends.push(of_host(host, &ports));
        }
    }
    match resolution {
        Resolution::None => Backends::Known(Vec::new()),
        Resolution::DynamicDns => Backends::Dynamic {
            suffix: host.strip_prefix('*').unwrap_or(host).to_ascii_lowercase().into(),
            ports: entries.iter().flat_map(own_ports).map(|port| (port.number, port.target)).collect(),
        },
        Resolution::Static => Backends::Known(backends),
        Resolution::Dns => Backends::StrictDns(backends),
        Resolution::DnsRoundRobin => Backends::LogicalDns(backends),
    }
}

/// The host itself, whose name is resolved.
fn of_host(host: &Arc<str>, ports: &[OwnPort<'_>]) -> Backend {
    Backend {
        address: Address::parse(host),
        ports: ports.iter().map(|port| (port.number, port.target)).collect(),
        labels: BTreeMap::new(),
        weight: 1,
        workload: None,
        service_account: None,
        locality: Arc::default(),
        node: None,
        network: None,
    }
}

/// An endpoint; `None` without an address, which means another network's gateway.
fn backend(
    endpoint: &WorkloadEntry,
    labels: BTreeMap<String, String>,
    workload: Option<Arc<str>>,
    namespace: &Arc<str>,
    ports: &[OwnPort<'_>],
    own: Locality<'_>,
) -> Option<Backend> {
    let WorkloadEntry {
        address,
        ports: named,
        labels: _,
        network,
        locality,
        weight,
        service_account,
        // Of entries that stand alone, which are sorted out before.
        unhealthy: _,
    } = endpoint;
    if address.is_empty() {
        return None;
    }
    let ports = ports.iter().map(|port| {
        let named = named.get(port.name).and_then(|&number| u16::try_from(number).ok());
        (port.number, named.unwrap_or(port.target))
    });
    Some(Backend {
        address: Address::parse(address),
        ports: ports.collect(),
        locality: locality::of_workload(locality, &labels, own),
        node: None,
        network: (!network.is_empty()).then(|| network.as_str().into()),
        labels,
        weight: (*weight).max(1),
        workload,
        service_account: ServiceAccount::new(service_account, namespace),
    })
}
