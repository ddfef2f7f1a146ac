//! The resources by kind, each kind in Istio's order of precedence.

use std::cmp::Ordering;
use std::sync::Arc;

use super::common_ends;
use crate::resource::destination_rule::DestinationRule;
use crate::resource::gateway::Gateway;
use crate::resource::kubernetes::{ConfigMap, EndpointSlice, Endpoints, Secret, Service};
use crate::resource::mesh_config::MeshConfig;
use crate::resource::proxy_config::ProxyConfigResource;
use crate::resource::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::resource::service_entry::ServiceEntry;
use crate::resource::telemetry::Telemetry;
use crate::resource::virtual_service::VirtualService;
use crate::resource::workload_entry::WorkloadEntry;
use crate::resource::{Meta, Resource, Spec};

/// A resource and its spec.
pub(super) struct Object<'a, T> {
    pub(super) resource: &'a Arc<Resource>,
    pub(super) spec: &'a T,
}

impl<T> Clone for Object<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Object<'_, T> {}

impl<'a, T> Object<'a, T> {
    pub(super) fn namespace(&self) -> &'a Arc<str> {
        &self.resource.meta.namespace
    }
}

/// Oldest first, then by name, then by namespace. Source: `reference/networking.md` §1.2.
fn precedence(a: &Meta, b: &Meta) -> Ordering {
    (a.creation_timestamp.cmp(&b.creation_timestamp))
        .then_with(|| a.name.cmp(&b.name))
        .then_with(|| a.namespace.cmp(&b.namespace))
}

macro_rules! world {
    ($($list:ident: $kind:ident($spec:ty),)*) => {
        /// All resources of a compile that can have an effect.
        #[derive(Default)]
        pub(super) struct World<'a> {
            $(pub(super) $list: Vec<Object<'a, $spec>>,)*
        }

        /// The sorted resources of the compile before.
        #[derive(Debug, Default)]
        pub(super) struct Memo {
            inputs: Vec<Arc<Resource>>,
            $($list: Vec<Sorted<$spec>>,)*
        }

        impl Memo {
            fn clear(&mut self) {
                $(self.$list.clear();)*
            }

            /// Puts a resource in its list, at its end.
            fn push(&mut self, resource: &Arc<Resource>) {
                match &resource.spec {
                    $(Spec::$kind(spec) => self.$list.push(Sorted::new(resource, spec)),)*
                    // Templates and names.
                    Spec::WorkloadGroup(_) | Spec::Namespace(_) => {}
                }
            }

            fn sort(&mut self) {
                // Its cost for a list that is in order already is one comparison an item.
                $(self.$list.sort_by(|a, b| precedence(&a.resource.meta, &b.resource.meta));)*
            }

            fn insert(&mut self, resource: &Arc<Resource>) {
                match &resource.spec {
                    $(Spec::$kind(spec) => insert(&mut self.$list, Sorted::new(resource, spec)),)*
                    Spec::WorkloadGroup(_) | Spec::Namespace(_) => {}
                }
            }

            fn remove(&mut self, resource: &Arc<Resource>) {
                match &resource.spec {
                    $(Spec::$kind(_) => remove(&mut self.$list, resource),)*
                    Spec::WorkloadGroup(_) | Spec::Namespace(_) => {}
                }
            }

            fn world(&self) -> World<'_> {
                World { $($list: self.$list.iter().map(Sorted::object).collect(),)* }
            }
        }
    };
}

world! {
    mesh_configs: MeshConfig(MeshConfig),
    proxy_configs: ProxyConfig(ProxyConfigResource),
    gateways: Gateway(Gateway),
    virtual_services: VirtualService(VirtualService),
    destination_rules: DestinationRule(DestinationRule),
    service_entries: ServiceEntry(ServiceEntry),
    workload_entries: WorkloadEntry(WorkloadEntry),
    services: Service(Service),
    endpoints: Endpoints(Endpoints),
    endpoint_slices: EndpointSlice(EndpointSlice),
    secrets: Secret(Secret),
    config_maps: ConfigMap(ConfigMap),
    request_authentications: RequestAuthentication(RequestAuthentication),
    authorization_policies: AuthorizationPolicy(AuthorizationPolicy),
    peer_authentications: PeerAuthentication(PeerAuthentication),
    telemetries: Telemetry(Telemetry),
    sidecars: Sidecar(serde_json::Value),
    envoy_filters: EnvoyFilter(serde_json::Value),
}

#[derive(Debug)]
struct Sorted<T> {
    resource: Arc<Resource>,
    spec: Arc<T>,
}

impl<T> Sorted<T> {
    fn new(resource: &Arc<Resource>, spec: &Arc<T>) -> Self {
        Self { resource: Arc::clone(resource), spec: Arc::clone(spec) }
    }

    fn object(&self) -> Object<'_, T> {
        Object { resource: &self.resource, spec: &self.spec }
    }
}

fn insert<T>(list: &mut Vec<Sorted<T>>, item: Sorted<T>) {
    let position = list.partition_point(|known| precedence(&known.resource.meta, &item.resource.meta).is_lt());
    list.insert(position, item);
}

fn remove<T>(list: &mut Vec<Sorted<T>>, resource: &Arc<Resource>) {
    let position = list.partition_point(|known| precedence(&known.resource.meta, &resource.meta).is_lt());
    if list.get(position).is_some_and(|known| Arc::ptr_eq(&known.resource, resource)) {
        list.remove(position);
    }
}

impl Memo {
    /// Sorts `resources`. Where they are those of the compile before but for a few, only these are looked at.
    pub(super) fn sorted(&mut self, resources: &[Arc<Resource>]) -> World<'_> {
        /// Beyond, sorting is cheaper than looking for places.
        const FEW: usize = if cfg!(test) { 2 } else { 256 };

        let (first, last) = common_ends(&self.inputs, resources, Arc::ptr_eq);
        let removed = first..self.inputs.len() - last;
        let added = first..resources.len() - last;
        if removed.len() + added.len() <= FEW {
            let gone: Vec<Arc<Resource>> =
                self.inputs.splice(removed, resources[added.clone()].iter().cloned()).collect();
            gone.iter().for_each(|resource| self.remove(resource));
            resources[added].iter().for_each(|resource| self.insert(resource));
        } else {
            self.clear();
            resources.iter().for_each(|resource| self.push(resource));
            self.sort();
            self.inputs = resources.to_vec();
        }
        self.world()
    }
}
