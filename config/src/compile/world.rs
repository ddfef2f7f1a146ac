//! The resources by kind, each kind in Istio's order of precedence.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::resource::destination_rule::DestinationRule;
use crate::resource::gateway::Gateway;
use crate::resource::kubernetes::{EndpointSlice, Endpoints, Service};
use crate::resource::mesh_config::MeshConfig;
use crate::resource::proxy_config::ProxyConfigResource;
use crate::resource::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::resource::service_entry::ServiceEntry;
use crate::resource::telemetry::Telemetry;
use crate::resource::virtual_service::VirtualService;
use crate::resource::workload_entry::WorkloadEntry;
use crate::resource::{Resource, Spec};

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

    /// Oldest first, then by name, then by namespace. Source: `reference/networking.md` §1.2.
    fn precedence(&self, other: &Self) -> Ordering {
        let (a, b) = (&self.resource.meta, &other.resource.meta);
        (a.creation_timestamp.cmp(&b.creation_timestamp))
            .then_with(|| a.name.cmp(&b.name))
            .then_with(|| a.namespace.cmp(&b.namespace))
    }
}

/// All resources of a compile that can have an effect.
#[derive(Default)]
pub(super) struct World<'a> {
    pub(super) mesh_configs: Vec<Object<'a, MeshConfig>>,
    pub(super) proxy_configs: Vec<Object<'a, ProxyConfigResource>>,
    pub(super) gateways: Vec<Object<'a, Gateway>>,
    pub(super) virtual_services: Vec<Object<'a, VirtualService>>,
    pub(super) destination_rules: Vec<Object<'a, DestinationRule>>,
    pub(super) service_entries: Vec<Object<'a, ServiceEntry>>,
    pub(super) workload_entries: Vec<Object<'a, WorkloadEntry>>,
    pub(super) services: Vec<Object<'a, Service>>,
    pub(super) endpoints: Vec<Object<'a, Endpoints>>,
    pub(super) endpoint_slices: Vec<Object<'a, EndpointSlice>>,
    pub(super) request_authentications: Vec<Object<'a, RequestAuthentication>>,
    pub(super) authorization_policies: Vec<Object<'a, AuthorizationPolicy>>,
    pub(super) peer_authentications: Vec<Object<'a, PeerAuthentication>>,
    pub(super) telemetries: Vec<Object<'a, Telemetry>>,
    pub(super) sidecars: Vec<&'a Arc<Resource>>,
    pub(super) envoy_filters: Vec<&'a Arc<Resource>>,
}

impl<'a> World<'a> {
    pub(super) fn new(resources: &'a [Arc<Resource>]) -> Self {
        let mut world = Self::default();
        for resource in resources {
            match &resource.spec {
                Spec::MeshConfig(spec) => world.mesh_configs.push(Object { resource, spec }),
                Spec::ProxyConfig(spec) => world.proxy_configs.push(Object { resource, spec }),
                Spec::Gateway(spec) => world.gateways.push(Object { resource, spec }),
                Spec::VirtualService(spec) => world.virtual_services.push(Object { resource, spec }),
                Spec::DestinationRule(spec) => world.destination_rules.push(Object { resource, spec }),
                Spec::ServiceEntry(spec) => world.service_entries.push(Object { resource, spec }),
                Spec::WorkloadEntry(spec) => world.workload_entries.push(Object { resource, spec }),
                Spec::Service(spec) => world.services.push(Object { resource, spec }),
                Spec::Endpoints(spec) => world.endpoints.push(Object { resource, spec }),
                Spec::EndpointSlice(spec) => world.endpoint_slices.push(Object { resource, spec }),
                Spec::RequestAuthentication(spec) => world.request_authentications.push(Object { resource, spec }),
                Spec::AuthorizationPolicy(spec) => world.authorization_policies.push(Object { resource, spec }),
                Spec::PeerAuthentication(spec) => world.peer_authentications.push(Object { resource, spec }),
                Spec::Telemetry(spec) => world.telemetries.push(Object { resource, spec }),
                Spec::Sidecar(_) => world.sidecars.push(resource),
                Spec::EnvoyFilter(_) => world.envoy_filters.push(resource),
                // Templates, credentials (which the data plane takes from their own place) and names.
                Spec::WorkloadGroup(_) | Spec::Secret(_) | Spec::ConfigMap(_) | Spec::Namespace(_) => {}
            }
        }
        world.sort();
        world
    }

    fn sort(&mut self) {
        let Self {
            mesh_configs,
            proxy_configs,
            gateways,
            virtual_services,
            destination_rules,
            service_entries,
            workload_entries,
            services,
            endpoints,
            endpoint_slices,
            request_authentications,
            authorization_policies,
            peer_authentications,
            telemetries,
            sidecars,
            envoy_filters,
        } = self;
        sort(mesh_configs);
        sort(proxy_configs);
        sort(gateways);
        sort(virtual_services);
        sort(destination_rules);
        sort(service_entries);
        sort(workload_entries);
        sort(services);
        sort(endpoints);
        sort(endpoint_slices);
        sort(request_authentications);
        sort(authorization_policies);
        sort(peer_authentications);
        sort(telemetries);
        for raw in [sidecars, envoy_filters] {
            raw.sort_by(|a, b| (&a.meta.name, &a.meta.namespace).cmp(&(&b.meta.name, &b.meta.namespace)));
        }
    }
}

/// A stable sort: its cost for a list that is in order already, as after an edit, is one comparison an item.
fn sort<T>(objects: &mut [Object<'_, T>]) {
    objects.sort_by(|a, b| a.precedence(b));
}
