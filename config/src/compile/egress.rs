//! What forward proxies let out: every host and port of the ServiceEntries that this gateway sees.
//!
//! Beyond Istio, whose gateways have no forward proxies. Source: `reference/networking.md` §7.1 for what sidecars do.

use std::sync::Arc;
use std::time::Duration;

use super::MeshSettings;
use super::protocol::Protocol;
use super::servers::Servers;
use super::services::{Registry, ServicePort};
use super::virtual_services::{ClusterReference, VirtualServiceRoutes};
use crate::resource::Spec;
use crate::snapshot::ResourceName;
use crate::snapshot::cluster::{Cluster, ClusterName, DynamicDns, Endpoints, ServiceIdentity};
use crate::snapshot::egress::{BLACK_HOLE, Destination, Destinations, PASSTHROUGH, PortProtocol};
use crate::snapshot::route::{RetryPolicy, Route};

/// What the forward proxies of a gateway have in common.
#[derive(Debug)]
pub(super) struct Egress {
    pub(super) destinations: Arc<Destinations>,
    /// For hosts that no ServiceEntry has; `None` if they are refused.
    pub(super) passthrough: Option<Arc<Route>>,
    /// The destinations as clusters know their users.
    pub(super) user: Arc<VirtualServiceRoutes>,
    /// Clusters that belong to no service.
    pub(super) clusters: Vec<Arc<Cluster>>,
    /// What it was made of.
    registry: Arc<Registry>,
    retry: Option<Arc<RetryPolicy>>,
    connect_timeout: Duration,
}

/// What forward proxies let out; `None` if there are no forward proxies. The same as in the compile before if nothing
/// about it has changed.
pub(super) fn gather(
    servers: &Servers,
    registry: &Arc<Registry>,
    mesh: &MeshSettings,
    namespace: &str,
    memo: &mut Option<Arc<Egress>>,
) -> Option<Arc<Egress>> {
    if !servers.list.iter().any(|server| server.is_forward_proxy()) {
        *memo = None;
    } else if !memo.as_ref().is_some_and(|known| {
        Arc::ptr_eq(&known.registry, registry)
            && known.retry == mesh.retry
            && known.connect_timeout == mesh.clusters.connect_timeout
            && known.passthrough.is_some() == mesh.allows_unknown_hosts
    }) {
        *memo = Some(Arc::new(make(registry, mesh, namespace)));
    }
    memo.clone()
}

fn make(registry: &Arc<Registry>, mesh: &MeshSettings, namespace: &str) -> Egress {
    let mut destinations = Destinations::default();
    let mut clusters = Vec::new();
    for host in registry.hosts() {
        for (service, ServicePort { number, name: _, protocol }) in registry.ports(host, namespace) {
            // Services of the cluster are not what a forward proxy is for.
            let Some(resource) = service.resource().filter(|it| matches!(it.spec, Spec::ServiceEntry(_))) else {
                continue;
            };
            let protocol = match protocol {
                Protocol::Http | Protocol::Http2 => PortProtocol::Http,
                Protocol::Tls => PortProtocol::Tls,
                Protocol::Tcp | Protocol::Auto => PortProtocol::Tcp,
                Protocol::Udp => continue,
            };
            let name = ClusterName::outbound(*number, "", host);
            let route = Route::to_cluster(name.clone(), resource.name(), mesh.retry.clone());
            let lower = host.to_ascii_lowercase();
            destinations.insert(&lower, Destination { port: *number, protocol, route: Arc::new(route) });
            clusters.push(ClusterReference {
                name,
                host: host.to_string(),
                port: *number,
                subset: String::new(),
                external_name: false,
                resource: Arc::clone(resource),
                path: String::new(),
            });
        }
    }
    let user = VirtualServiceRoutes {
        resource: own("forward-proxy"),
        routes: Vec::new(),
        catch_all: None,
        streams: Vec::new(),
        clusters,
        diagnostics: Vec::new(),
    };
    let any = Endpoints::Dynamic(DynamicDns { suffix: "".into(), port: 0 });
    let passthrough = mesh.allows_unknown_hosts.then(|| {
        let name = ClusterName::special(PASSTHROUGH);
        Arc::new(Route::to_cluster(name, own(PASSTHROUGH), mesh.retry.clone()))
    });
    let mut special = vec![cluster(BLACK_HOLE, Endpoints::Static(Arc::default()), mesh)];
    if passthrough.is_some() {
        special.push(cluster(PASSTHROUGH, any, mesh));
    }
    Egress {
        destinations: Arc::new(destinations),
        passthrough,
        user: Arc::new(user),
        clusters: special,
        registry: Arc::clone(registry),
        retry: mesh.retry.clone(),
        connect_timeout: mesh.clusters.connect_timeout,
    }
}

/// Stands where a resource is named and there is none.
fn own(name: &str) -> ResourceName {
    ResourceName { kind: "MeshConfig", namespace: "-".into(), name: name.into() }
}

fn cluster(name: &str, endpoints: Endpoints, mesh: &MeshSettings) -> Arc<Cluster> {
    let identity = ServiceIdentity { host: name.into(), name: name.into(), namespace: "unknown".into() };
    let cluster = Cluster::new(ClusterName::special(name), Arc::new(identity), 0, endpoints);
    Arc::new(Cluster { connect_timeout: mesh.clusters.connect_timeout, ..cluster })
}
