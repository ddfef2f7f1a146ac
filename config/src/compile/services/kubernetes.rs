//! Kubernetes Services with their EndpointSlices or Endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;

use super::super::host::service_host;
use super::super::locality::{self, Locality};
use super::super::options::is_label_subset;
use super::super::protocol::Protocol;
use super::super::report::{Field, Report};
use super::super::visibility::visibility;
use super::super::world::{Object, World};
use super::{
    Address, Backend, Backends, Gathering, Service, ServiceAccount, ServicePort, TrafficDistribution, Workload,
};
use crate::diagnostic::Code;
use crate::resource::kubernetes::{self, EndpointSlice, Endpoints, IntOrString};
use crate::snapshot::cluster::ServiceIdentity;

/// The label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Istio's annotation for the visibility of a Service.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// Service and namespace.
type Key<'a> = (&'a str, &'a str);

pub(super) fn gather<'a>(world: &World<'a>, gathering: &mut Gathering<'a>) {
    let mut slices: AHashMap<Key<'a>, Vec<Object<'a, EndpointSlice>>> = AHashMap::new();
    for &slice in &world.endpoint_slices {
        let meta = &slice.resource.meta;
        if let Some(service) = meta.labels.get(SERVICE_NAME) {
            slices.entry((service, &meta.namespace)).or_default().push(slice);
        }
    }
    let endpoints: AHashMap<Key<'a>, Object<'a, Endpoints>> = (world.endpoints.iter())
        .map(|&object| ((&*object.resource.meta.name, &*object.resource.meta.namespace), object))
        .collect();
    for &service in &world.services {
        let meta = &service.resource.meta;
        let key = (&*meta.name, &*meta.namespace);
        let slices = slices.get(&key).map(Vec::as_slice).unwrap_or_default();
        // Kubernetes mirrors Endpoints into slices, so that both say the same.
        let endpoints = endpoints.get(&key).copied().filter(|_| slices.is_empty());
        let selector = &service.spec.selector;
        let workloads = match selector.is_empty() {
            true => Vec::new(),
            false => gathering.workloads.select(&meta.namespace, selector),
        };
        let mut inputs = vec![service.resource];
        inputs.extend(slices.iter().map(|slice| slice.resource));
        inputs.extend(endpoints.iter().map(|endpoints| endpoints.resource));
        inputs.extend(workloads.iter().map(|workload| workload.entry.resource));
        let host: Arc<str> = service_host(&meta.name, &meta.namespace, &gathering.options.domain).into();
        gathering.add((Arc::clone(&meta.namespace), Arc::clone(&host), true), &inputs, |gathering, inputs| {
            let mut report = Report::default();
            let own = gathering.options.locality();
            let sources = Sources { service, slices, endpoints, workloads, own };
            let export_to: Vec<String> = (meta.annotations.get(EXPORT_TO).into_iter())
                .flat_map(|list| list.split(','))
                .map(|namespace| namespace.trim().to_owned())
                .filter(|namespace| !namespace.is_empty())
                .collect();
            let viewer = &gathering.options.namespace;
            let backends = sources.backends(&host, &mut report);
            Service {
                identity: Arc::new(ServiceIdentity {
                    host: Arc::clone(&host),
                    name: Arc::clone(&meta.name),
                    namespace: Arc::clone(&meta.namespace),
                }),
                ports: sources.ports(),
                alias: sources.alias(),
                visible: visibility(&export_to, &gathering.mesh.service_export_to, &meta.namespace, viewer).is_some(),
                speaks_mutual_tls: backends.speak_mutual_tls(),
                traffic_distribution: TrafficDistribution::new(&service.spec.traffic_distribution, &meta.annotations),
                backends,
                subject_alt_names: Vec::new(),
                inputs,
                diagnostics: report.diagnostics,
            }
        });
    }
}

struct Sources<'a> {
    service: Object<'a, kubernetes::Service>,
    slices: &'a [Object<'a, EndpointSlice>],
    endpoints: Option<Object<'a, Endpoints>>,
    workloads: Vec<Workload<'a>>,
    /// Of this gateway.
    own: Locality<'a>,
}

impl Sources<'_> {
    fn ports(&self) -> Vec<ServicePort> {
        let ports = self.service.spec.ports.iter();
        ports
            .filter_map(|port| {
                let number = u16::try_from(port.port).ok()?;
                let protocol = Protocol::of_service_port(&port.protocol, &port.app_protocol, &port.name, number);
                Some(ServicePort { number, name: port.name.clone(), protocol })
            })
            .collect()
    }

    fn alias(&self) -> Option<Arc<str>> {
        let spec = self.service.spec;
        (spec.type_ == "ExternalName" && !spec.external_name.is_empty()).then(|| spec.external_name.as_str().into())
    }

    fn backends(&self, host: &Arc<str>, report: &mut Report) -> Backends {
        if self.slices.is_empty() && self.endpoints.is_none() && self.workloads.is_empty() {
            return Backends::ServiceName(vec![self.by_name(host)]);
        }
        let mut backends = Vec::new();
        self.slices.iter().for_each(|&slice| self.add_slice(slice, &mut backends, report));
        if let Some(endpoints) = self.endpoints {
            self.add_endpoints(endpoints, &mut backends);
        }
        self.workloads.iter().for_each(|workload| self.add_workload(workload, &mut backends));
        // Slices may repeat an address; their order means nothing.
        backends.sort_by(|a, b| (&a.address, &a.ports).cmp(&(&b.address, &b.ports)));
        backends.dedup_by(|a, b| a.address == b.address && a.ports == b.ports);
        Backends::Known(backends)
    }

    /// The service as the cluster's DNS knows it. Behind the address of a headless one no port is translated.
    fn by_name(&self, host: &Arc<str>) -> Backend {
        let headless = self.service.spec.cluster_ip == "None";
        let ports = self.service.spec.ports.iter().filter_map(|port| {
            let number = u16::try_from(port.port).ok()?;
            let target = match &port.target_port {
                Some(IntOrString::Number(target)) if headless && *target != 0 => u16::try_from(*target).ok()?,
                _ => number,
            };
            Some((number, target))
        });
        Backend {
            address: Address::Name(Arc::clone(host)),
            ports: ports.collect(),
            labels: BTreeMap::new(),
            weight: 1,
            workload: None,
            service_account: None,
            locality: Arc::default(),
            node: None,
            network: None,
        }
    }

    /// Endpoints of a slice. Without Pods their labels can't be known: the slice's own stand for them, together with
    /// those that `v1beta1` slices carry for each endpoint.
    fn add_slice(&self, slice: Object<'_, EndpointSlice>, backends: &mut Vec<Backend>, report: &mut Report) {
        let EndpointSlice { address_type, endpoints, ports } = slice.spec;
        if address_type == "FQDN" {
            let spec = Field::spec(slice.resource);
            report.warning(Code::Ignored, spec.name("addressType"), "slices of names are not used, as in Istio");
            return;
        }
        let ports = self.match_ports(|port| {
            let found = ports.iter().find(|candidate| candidate.name == port.name)?;
            Some(found.port.and_then(|number| u16::try_from(number).ok()))
        });
        for endpoint in endpoints {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            if !ready && !self.service.spec.publish_not_ready_addresses {
                continue;
            }
            let mut labels = slice.resource.meta.labels.clone();
            labels.extend(endpoint.topology.clone());
            let locality = locality::of_endpoint(&endpoint.zone, &labels, self.own);
            let node = node(&endpoint.node_name);
            for address in &endpoint.addresses {
                let Ok(ip) = address.parse() else { continue };
                backends.push(Backend {
                    address: Address::Ip(ip),
                    ports: ports.clone(),
                    labels: labels.clone(),
                    weight: 1,
                    workload: None,
                    service_account: None,
                    locality: Arc::clone(&locality),
                    node: node.clone(),
                    network: None,
                });
            }
        }
    }

    fn add_endpoints(&self, endpoints: Object<'_, Endpoints>, backends: &mut Vec<Backend>) {
        for subset in &endpoints.spec.subsets {
            let ports = self.match_ports(|port| {
                let found = subset.ports.iter().find(|candidate| candidate.name == port.name)?;
                Some(found.port.and_then(|number| u16::try_from(number).ok()))
            });
            let unready = subset.not_ready_addresses.iter().filter(|_| self.service.spec.publish_not_ready_addresses);
            for address in subset.addresses.iter().chain(unready) {
                let Ok(ip) = address.ip.parse() else { continue };
                backends.push(Backend {
                    address: Address::Ip(ip),
                    ports: ports.clone(),
                    labels: endpoints.resource.meta.labels.clone(),
                    weight: 1,
                    workload: None,
                    service_account: None,
                    locality: locality::of_endpoint("", &endpoints.resource.meta.labels, self.own),
                    node: node(&address.node_name),
                    network: None,
                });
            }
        }
    }

    fn add_workload(&self, Workload { entry, labels }: &Workload<'_>, backends: &mut Vec<Backend>) {
        let address @ Address::Ip(_) = Address::parse(&entry.spec.address) else { return };
        let ports = self.match_ports(|port| {
            let named = entry.spec.ports.get(&port.name).and_then(|&number| u16::try_from(number).ok());
            Some(named)
        });
        backends.push(Backend {
            address,
            ports,
            labels: labels.clone(),
            weight: entry.spec.weight.max(1),
            workload: Some(Arc::clone(&entry.resource.meta.name)),
            service_account: ServiceAccount::new(&entry.spec.service_account, entry.namespace()),
            locality: locality::of_workload(&entry.spec.locality, labels, self.own),
            node: None,
            network: (!entry.spec.network.is_empty()).then(|| entry.spec.network.as_str().into()),
        });
    }

    /// Endpoint port by service port. `find` says whether an endpoint has the port, and which number it has there;
    /// without a number it is the numeric target port, or the service's.
    fn match_ports(&self, find: impl Fn(&kubernetes::ServicePort) -> Option<Option<u16>>) -> Vec<(u16, u16)> {
        let ports = self.service.spec.ports.iter();
        ports
            .filter_map(|port| {
                let number = u16::try_from(port.port).ok()?;
                let target = find(port)?.or_else(|| match port.target_port {
                    Some(IntOrString::Number(target)) if target != 0 => u16::try_from(target).ok(),
                    _ => None,
                });
                Some((number, target.unwrap_or(number)))
            })
            .collect()
    }
}

fn node(name: &str) -> Option<Arc<str>> {
    (!name.is_empty()).then(|| name.into())
}

/// Ports of the Services that select this gateway, with the ports that they send traffic to.
///
/// Source: `reference/networking.md` §2.1.
pub(super) fn own_ports(world: &World<'_>, labels: &BTreeMap<String, String>, namespace: &str) -> Vec<(u16, u16)> {
    let services = world.services.iter().filter(|service| {
        let selector = &service.spec.selector;
        !selector.is_empty() && &**service.namespace() == namespace && is_label_subset(selector, labels)
    });
    let ports = services.flat_map(|service| service.spec.ports.iter().map(move |port| (service, port)));
    ports
        .filter_map(|(service, port)| {
            let number = u16::try_from(port.port).ok()?;
            let target = match &port.target_port {
                Some(IntOrString::Number(target)) if *target != 0 => u16::try_from(*target).ok(),
                Some(IntOrString::Name(_)) => named_port(world, *service, &port.name),
                _ => None,
            };
            Some((number, target.unwrap_or(number)))
        })
        .collect()
}

/// The number behind the name of a container's port, which only endpoints know.
fn named_port(world: &World<'_>, service: Object<'_, kubernetes::Service>, port: &str) -> Option<u16> {
    let slices = world.endpoint_slices.iter().filter(|slice| {
        slice.namespace() == service.namespace()
            && slice.resource.meta.labels.get(SERVICE_NAME).is_some_and(|name| **name == *service.resource.meta.name)
    });
    let found = slices.flat_map(|slice| &slice.spec.ports).find(|candidate| candidate.name == port)?;
    found.port.and_then(|number| u16::try_from(number).ok())
}
