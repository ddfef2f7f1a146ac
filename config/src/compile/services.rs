//! The services that routes may name: Kubernetes Services and hosts of ServiceEntries, with their endpoints.
//!
//! Source: `reference/networking.md` §6.1-6.5, §3.16.

mod entries;
mod kubernetes;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ahash::AHashMap;

use super::locality::{HOSTNAME, Locality, NETWORK, REGION, SUBZONE, ZONE};
use super::options::{Options, is_label_subset};
use super::protocol::Protocol;
use super::world::{Object, World};
use super::{MeshSettings, same};
use crate::diagnostic::Diagnostic;
use crate::resource::Resource;
use crate::resource::workload_entry::WorkloadEntry;
use crate::snapshot::balancing::Placement;
use crate::snapshot::cluster::{DnsEndpoint, DynamicDns, Endpoint, EndpointAddress, Endpoints, ServiceIdentity};

/// All services, by host.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Those of a host: Kubernetes before ServiceEntries, then oldest first.
    by_host: AHashMap<Arc<str>, Vec<Arc<Service>>>,
    /// Target ports of the Services that select this gateway, by port; the first of a port counts.
    own_ports: Vec<(u16, u16)>,
}

/// One service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) identity: Arc<ServiceIdentity>,
    pub(super) ports: Vec<ServicePort>,
    /// The name that an `ExternalName` stands for.
    pub(super) alias: Option<Arc<str>>,
    /// Whether this gateway sees it.
    visible: bool,
    backends: Backends,
    /// `ServiceEntry.subjectAltNames`.
    pub(super) subject_alt_names: Vec<Arc<str>>,
    /// A member of the mesh with endpoints that speak its mutual TLS.
    pub(super) speaks_mutual_tls: bool,
    pub(super) traffic_distribution: TrafficDistribution,
    /// What it is made of; it is made anew if one of them changes.
    inputs: Vec<Arc<Resource>>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServicePort {
    pub(super) number: u16,
    pub(super) name: String,
    pub(super) protocol: Protocol,
}

/// Which endpoints a service wants to be used first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum TrafficDistribution {
    #[default]
    Any,
    PreferClose,
    PreferSameNode,
}

impl TrafficDistribution {
    /// `spec.trafficDistribution`, or else Istio's annotation, whose case doesn't matter. Other words mean nothing.
    fn new(field: &str, annotations: &BTreeMap<String, String>) -> Self {
        let annotation = annotations.get("networking.istio.io/traffic-distribution");
        match field {
            "PreferClose" | "PreferSameZone" => return Self::PreferClose,
            "PreferSameNode" => return Self::PreferSameNode,
            _ => {}
        }
        match annotation.map(|word| word.to_ascii_lowercase()).as_deref() {
            Some("preferclose" | "prefersamezone") => Self::PreferClose,
            Some("prefersamenode") => Self::PreferSameNode,
            _ => Self::Any,
        }
    }
}

/// Where the endpoints of a service come from.
#[derive(Debug)]
enum Backends {
    Known(Vec<Backend>),
    StrictDns(Vec<Backend>),
    LogicalDns(Vec<Backend>),
    /// Resolved by the name of the service alone; what its endpoints' labels are can't be known.
    ServiceName(Vec<Backend>),
    /// Resolved by the name that a request asks for, which ends in the suffix; with the target port by service port.
    Dynamic {
        suffix: Arc<str>,
        ports: Vec<(u16, u16)>,
    },
}

/// One endpoint of a service, for all its ports.
#[derive(Debug)]
pub(super) struct Backend {
    address: Address,
    /// Endpoint port by service port.
    ports: Vec<(u16, u16)>,
    labels: BTreeMap<String, String>,
    pub(super) weight: u32,
    workload: Option<Arc<str>>,
    service_account: Option<Box<ServiceAccount>>,
    /// `region/zone/subzone`; empty if unknown.
    pub(super) locality: Arc<str>,
    /// Kubernetes's node.
    node: Option<Arc<str>>,
    network: Option<Arc<str>>,
}

impl Backend {
    /// The value of a label; those of the topology follow from the place, as in Istio.
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        let locality = Locality::parse(&self.locality);
        let derived = match key {
            REGION => locality.region,
            ZONE => locality.zone,
            SUBZONE => locality.subzone,
            HOSTNAME => self.node.as_deref().unwrap_or_default(),
            _ => "",
        };
        match derived {
            "" => {
                let network = self.network.as_deref().filter(|_| key == NETWORK);
                self.labels.get(key).map(String::as_str).or(network)
            }
            derived => Some(derived),
        }
    }

    fn has_labels(&self, selector: &BTreeMap<String, String>) -> bool {
        selector.iter().all(|(key, value)| self.label(key) == Some(value))
    }
}

/// How some endpoints stand to each other.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Priority and group of each; `None` leaves it out.
    pub(super) places: Vec<Option<(u32, u32)>>,
    /// Shares of the groups.
    pub(super) groups: Arc<[u32]>,
}

/// Who a workload is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ServiceAccount {
    namespace: Arc<str>,
    name: String,
}

impl ServiceAccount {
    fn new(name: &str, namespace: &Arc<str>) -> Option<Box<Self>> {
        (!name.is_empty()).then(|| Box::new(Self { namespace: Arc::clone(namespace), name: name.to_owned() }))
    }
}

/// Istio's label for workloads that speak the mutual TLS of the mesh.
const TLS_MODE: &str = "security.istio.io/tlsMode";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Address {
    Ip(IpAddr),
    Name(Arc<str>),
    UnixPath(PathBuf),
    UnixAbstract(String),
}

impl Address {
    /// An IP address, a unix socket, or a name to resolve.
    fn parse(text: &str) -> Self {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.strip_prefix('@') {
                Some(name) => Self::UnixAbstract(name.to_owned()),
                None => Self::UnixPath(path.into()),
            };
        }
        match text.parse() {
            Ok(ip) => Self::Ip(ip),
            Err(_) => Self::Name(text.to_ascii_lowercase().into()),
        }
    }
}

impl Service {
    /// The first of the resources that it is made of.
    pub(super) fn resource(&self) -> Option<&Arc<Resource>> {
        self.inputs.first()
    }

    pub(super) fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Whether its endpoints are what requests ask for, which have no labels.
    pub(super) fn is_dynamic(&self) -> bool {
        matches!(self.backends, Backends::Dynamic { .. })
    }

    /// The endpoints of `port` whose labels hold `subset`, as `place` puts them; with the shares of their groups. `None`
    /// if there can't be any, so that there is no cluster.
    pub(super) fn endpoints(
        &self,
        port: u16,
        subset: &BTreeMap<String, String>,
        place: impl FnOnce(&[&Backend]) -> Places,
    ) -> Option<(Endpoints, Arc<[u32]>)> {
        let target = |backend: &Backend| backend.ports.iter().find(|(number, _)| *number == port).map(|port| port.1);
        let chosen = self.backends.list().iter().filter(|backend| backend.has_labels(subset));
        let chosen = chosen.filter(|backend| self.backends.can_reach(&backend.address));
        let most = if matches!(self.backends, Backends::LogicalDns(_)) { 1 } else { usize::MAX };
        let (chosen, ports): (Vec<&Backend>, Vec<u16>) =
            chosen.filter_map(|backend| Some((backend, target(backend)?))).take(most).unzip();
        let has_any = !chosen.is_empty();
        let Places { places, groups } = match &self.backends {
            // Nothing is known of where it is, so that it would count as far away from everywhere.
            Backends::ServiceName(_) => Places { places: vec![Some((0, 0)); chosen.len()], groups: Arc::default() },
            _ => place(&chosen),
        };
        let placed = chosen.into_iter().zip(ports).zip(places).filter_map(|((backend, port), place)| {
            let (priority, group) = place?;
            Some((backend, port, Placement { locality: Arc::clone(&backend.locality), priority, group }))
        });
        let endpoints = match &self.backends {
            Backends::Known(_) => Endpoints::Static(placed.filter_map(static_endpoint).collect()),
            Backends::StrictDns(_) | Backends::LogicalDns(_) if !has_any => return None,
            Backends::StrictDns(_) => match placed.filter_map(dns_endpoint).collect::<Vec<_>>() {
                endpoints if endpoints.is_empty() => Endpoints::Static(Arc::default()),
                endpoints => Endpoints::StrictDns(endpoints.into()),
            },
            Backends::LogicalDns(_) => match placed.filter_map(dns_endpoint).next() {
                Some(endpoint) => Endpoints::LogicalDns(endpoint),
                None => Endpoints::Static(Arc::default()),
            },
            // A subset that can't be told apart is empty rather than wrong.
            Backends::ServiceName(_) | Backends::Dynamic { .. } if !subset.is_empty() => {
                Endpoints::Static(Arc::default())
            }
            Backends::ServiceName(_) => Endpoints::StrictDns(placed.filter_map(dns_endpoint).collect()),
            Backends::Dynamic { suffix, ports } => {
                let (_, port) = ports.iter().find(|(number, _)| *number == port)?;
                Endpoints::Dynamic(DynamicDns { suffix: Arc::clone(suffix), port: *port })
            }
        };
        Some((endpoints, groups))
    }
}

fn static_endpoint((backend, port, placement): (&Backend, u16, Placement)) -> Option<Endpoint> {
    let address = match &backend.address {
        Address::Ip(ip) => EndpointAddress::Ip(*ip, port),
        Address::UnixPath(path) => EndpointAddress::UnixPath(path.clone()),
        Address::UnixAbstract(name) => EndpointAddress::UnixAbstract(name.clone()),
        Address::Name(_) => return None,
    };
    Some(Endpoint { address, weight: backend.weight, workload: backend.workload.clone(), placement })
}

fn dns_endpoint((backend, port, placement): (&Backend, u16, Placement)) -> Option<DnsEndpoint> {
    let host = match &backend.address {
        Address::Ip(ip) => ip.to_string().into(),
        Address::Name(host) => Arc::clone(host),
        Address::UnixPath(_) | Address::UnixAbstract(_) => return None,
    };
    Some(DnsEndpoint { host, port, weight: backend.weight, placement })
}

impl Backends {
    fn list(&self) -> &[Backend] {
        match self {
            Self::Known(list) | Self::StrictDns(list) | Self::LogicalDns(list) | Self::ServiceName(list) => list,
            Self::Dynamic { .. } => &[],
        }
    }

    /// Whether an endpoint with this address may be one of them.
    fn can_reach(&self, address: &Address) -> bool {
        match self {
            Self::Known(_) => !matches!(address, Address::Name(_)),
            _ => matches!(address, Address::Ip(_) | Address::Name(_)),
        }
    }

    /// Whether any endpoint is labelled for the mutual TLS of the mesh.
    fn speak_mutual_tls(&self) -> bool {
        self.list().iter().any(|backend| match backend.labels.get(TLS_MODE) {
            Some(mode) => mode == "istio",
            None => backend.service_account.is_some(),
        })
    }
}

impl Service {
    /// The SPIFFE identities of its workloads, as far as they are known, in each of `trust_domains`.
    pub(super) fn identities(&self, trust_domains: &[String]) -> Vec<Arc<str>> {
        let mut accounts: Vec<&ServiceAccount> =
            self.backends.list().iter().filter_map(|backend| backend.service_account.as_deref()).collect();
        accounts.sort_unstable();
        accounts.dedup();
        let identity = |domain: &String, ServiceAccount { namespace, name }: &ServiceAccount| {
            format!("spiffe://{}/ns/{namespace}/sa/{name}", domain.replace('@', ".")).into()
        };
        let identities = accounts.into_iter().flat_map(|account| {
            trust_domains.iter().map(move |domain| identity(domain, account)).collect::<Vec<Arc<str>>>()
        });
        identities.collect()
    }
}

impl Registry {
    /// The service that `host` names for a resource of `namespace`: one next to it first, then any visible one.
    pub(super) fn lookup(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        let services = self.by_host.get(host)?;
        let visible = || services.iter().filter(|service| service.visible);
        visible().find(|service| &*service.identity.namespace == namespace).or_else(|| visible().next())
    }

    /// As [`Registry::lookup`], of the services that have `port`, as far as there are any: of several services of one host
    /// each may have ports of its own.
    pub(super) fn lookup_port(&self, host: &str, namespace: &str, port: u16) -> Option<&Arc<Service>> {
        let services = self.by_host.get(host)?;
        let having = || services.iter().filter(|service| service.visible && service.port(port).is_some());
        let nearest = having().find(|service| &*service.identity.namespace == namespace);
        nearest.or_else(|| having().next()).or_else(|| self.lookup(host, namespace))
    }

    /// The ports of all visible services that are called `host`, each number once and with its service: that which
    /// [`Registry::lookup_port`] finds.
    pub(super) fn ports(&self, host: &str, namespace: &str) -> Vec<(&Arc<Service>, &ServicePort)> {
        let visible = self.by_host.get(host).into_iter().flatten().filter(|service| service.visible);
        let (near, far): (Vec<_>, Vec<_>) = visible.partition(|service| &*service.identity.namespace == namespace);
        let mut ports: Vec<(&Arc<Service>, &ServicePort)> = Vec::new();
        for (service, port) in
            near.iter().chain(&far).flat_map(|service| service.ports.iter().map(move |port| (service, port)))
        {
            if ports.iter().all(|(_, known)| known.number != port.number) {
                ports.push((service, port));
            }
        }
        ports
    }

    /// The port that the Service in front of this gateway sends the traffic of `port` to; `None` if no Service selects
    /// this gateway, or none has the port.
    pub(super) fn target_port(&self, port: u16) -> Option<u16> {
        self.own_ports.iter().find(|(own, _)| *own == port).map(|(_, target)| *target)
    }

    /// Whether any service is called `host`, visible or not.
    pub(super) fn contains(&self, host: &str) -> bool {
        self.by_host.contains_key(host)
    }

    /// Hosts of visible services, in order.
    pub(super) fn hosts(&self) -> Vec<&Arc<str>> {
        let visible = self.by_host.iter().filter(|(_, services)| services.iter().any(|service| service.visible));
        let mut hosts: Vec<_> = visible.map(|(host, _)| host).collect();
        hosts.sort_unstable();
        hosts
    }
}

/// The registry of the compile before.
#[derive(Debug, Default)]
pub(super) struct Memo {
    inputs: Vec<Arc<Resource>>,
    export_to: Vec<String>,
    services: AHashMap<(Arc<str>, Arc<str>, bool), Arc<Service>>,
    registry: Arc<Registry>,
}

/// Gathers the services. Those whose resources are the same as in the compile before are the same, and so is the whole
/// registry if all are.
pub(super) fn gather(world: &World<'_>, options: &Options, mesh: &MeshSettings, memo: &mut Memo) -> Arc<Registry> {
    let inputs: Vec<&Arc<Resource>> = (world.services.iter().map(|object| object.resource))
        .chain(world.endpoint_slices.iter().map(|object| object.resource))
        .chain(world.endpoints.iter().map(|object| object.resource))
        .chain(world.service_entries.iter().map(|object| object.resource))
        .chain(world.workload_entries.iter().map(|object| object.resource))
        .collect();
    if same(&inputs, &memo.inputs) && mesh.service_export_to == memo.export_to {
        return Arc::clone(&memo.registry);
    }
    let mut gathering = Gathering {
        options,
        mesh,
        workloads: Workloads::new(&world.workload_entries),
        previous: if mesh.service_export_to == memo.export_to {
            std::mem::take(&mut memo.services)
        } else {
            AHashMap::new()
        },
        services: Vec::new(),
    };
    kubernetes::gather(world, &mut gathering);
    entries::gather(world, &mut gathering);

    let own_ports = kubernetes::own_ports(world, &options.labels, &options.namespace);
    let mut registry = Registry { own_ports, ..Registry::default() };
    memo.services = AHashMap::with_capacity(gathering.services.len());
    for (kubernetes, service) in gathering.services {
        let identity = &service.identity;
        let key = (Arc::clone(&identity.namespace), Arc::clone(&identity.host), kubernetes);
        memo.services.insert(key, Arc::clone(&service));
        registry.by_host.entry(Arc::clone(&identity.host)).or_default().push(service);
    }
    memo.inputs = inputs.into_iter().cloned().collect();
    memo.export_to.clone_from(&mesh.service_export_to);
    memo.registry = Arc::new(registry);
    Arc::clone(&memo.registry)
}

/// Services in the making.
struct Gathering<'a> {
    options: &'a Options,
    mesh: &'a MeshSettings,
    workloads: Workloads<'a>,
    previous: AHashMap<(Arc<str>, Arc<str>, bool), Arc<Service>>,
    /// In order of precedence; whether it is Kubernetes's.
    services: Vec<(bool, Arc<Service>)>,
}

impl Gathering<'_> {
    /// Adds the service that was made of the same inputs before, or makes it.
    fn add(
        &mut self,
        key: (Arc<str>, Arc<str>, bool),
        inputs: &[&Arc<Resource>],
        make: impl FnOnce(&Self, Vec<Arc<Resource>>) -> Service,
    ) {
        let kubernetes = key.2;
        let service = match self.previous.get(&key) {
            Some(previous) if same(inputs, &previous.inputs) => Arc::clone(previous),
            _ => Arc::new(make(self, inputs.iter().map(|&input| Arc::clone(input)).collect())),
        };
        self.services.push((kubernetes, service));
    }
}

/// A WorkloadEntry with its effective labels.
#[derive(Clone)]
struct Workload<'a> {
    entry: Object<'a, WorkloadEntry>,
    labels: BTreeMap<String, String>,
}

/// WorkloadEntries by namespace.
struct Workloads<'a> {
    by_namespace: AHashMap<&'a str, Vec<Workload<'a>>>,
}

impl<'a> Workloads<'a> {
    fn new(entries: &[Object<'a, WorkloadEntry>]) -> Self {
        let mut by_namespace: AHashMap<&str, Vec<_>> = AHashMap::new();
        // Those whose probe fails serve nobody.
        for &entry in entries.iter().filter(|entry| !entry.spec.unhealthy) {
            // Labels of the metadata win over those of the spec.
            let mut labels = entry.spec.labels.clone();
            labels.extend(entry.resource.meta.labels.clone());
            by_namespace.entry(entry.namespace()).or_default().push(Workload { entry, labels });
        }
        Self { by_namespace }
    }

    /// The entries of `namespace` whose labels hold `selector`.
    fn select(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<Workload<'a>> {
        let entries = self.by_namespace.get(namespace).into_iter().flatten();
        entries.filter(|workload| is_label_subset(selector, &workload.labels)).cloned().collect()
    }
}
