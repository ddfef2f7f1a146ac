//! `tls` and `tcp` rules: where connections go whose bytes nobody reads.
//!
//! Source: `reference/networking.md` §3.16, §3.18, §3.19.

use std::sync::Arc;

use ahash::AHashSet;

use super::super::host::resolve_gateway;
use super::super::report::{Field, Report};
use super::super::servers::Rules;
use super::super::virtual_services::VirtualServiceRoutes;
use super::super::world::Object;
use super::action::below_spec;
use super::{Lookup, Place, Translation};
use crate::diagnostic::Code;
use crate::resource::Resource;
use crate::resource::virtual_service::{
    L4MatchAttributes, RouteDestination, TcpRoute, TlsMatchAttributes, TlsRoute, VirtualService,
};
use crate::snapshot::listener::TcpDestination;

/// One `tcp` rule, or one match entry of a `tls` rule.
#[derive(Debug)]
pub(in super::super) struct StreamRoute {
    pub(in super::super) resource: Arc<Resource>,
    /// Where it stands, below `spec`.
    pub(in super::super) path: String,
    /// In lower case; none for all connections.
    pub(in super::super) server_names: Vec<Arc<str>>,
    pub(in super::super) destinations: Vec<TcpDestination>,
    /// Host of the first destination, whose DestinationRule has the time limits and the tunnel.
    pub(in super::super) first_host: String,
    /// Its subset, if it is the only destination and names one.
    pub(in super::super) only_subset: String,
}

/// The `tls` rules of `virtual_service` for a place, one route for each match entry; or the first `tcp` rule.
pub(in super::super) fn streams(
    virtual_service: Object<'_, VirtualService>,
    rules: Rules,
    place: &Place<'_>,
) -> (Option<VirtualServiceRoutes>, Vec<Lookup>) {
    let VirtualService { hosts: _, gateways: _, http: _, tls, tcp, export_to: _ } = virtual_service.spec;
    let mut translation = Translation::new(place, Report::default());
    let resource = virtual_service.resource;
    match rules {
        Rules::Http => {}
        Rules::Tls => translation.tls_rules(resource, tls),
        Rules::Tcp => translation.tcp_rules(resource, tcp),
    }
    translation.finish(virtual_service)
}

impl Translation<'_> {
    fn tls_rules(&mut self, resource: &Arc<Resource>, rules: &[TlsRoute]) {
        let spec = Field::spec(resource);
        let list = spec.name("tls");
        for (i, TlsRoute { match_, route }) in rules.iter().enumerate() {
            let rule = list.index(i);
            let matches = rule.name("match");
            for (i, entry) in match_.iter().enumerate() {
                let TlsMatchAttributes {
                    sni_hosts,
                    destination_subnets,
                    port,
                    source_labels,
                    gateways,
                    source_namespace,
                } = entry;
                if !self.is_stream_here(resource, *port, gateways) || sni_hosts.is_empty() {
                    continue;
                }
                let field = matches.index(i);
                let unused = [
                    ("destinationSubnets", !destination_subnets.is_empty()),
                    ("sourceLabels", !source_labels.is_empty()),
                    ("sourceNamespace", !source_namespace.is_empty()),
                ];
                self.report_unused(&field, unused);
                let is_partial = |host: &String| host.len() > 1 && host.starts_with('*') && !host.starts_with("*.");
                if let Some(index) = sni_hosts.iter().position(is_partial) {
                    let list = field.name("sniHosts");
                    let message = format!(
                        "`{}`: a `*` must be a whole label; this match entry is left out as a whole",
                        sni_hosts[index]
                    );
                    self.report.error(Code::SchemaValidationError, list.index(index), message);
                    continue;
                }
                let mut server_names: Vec<Arc<str>> = Vec::with_capacity(sni_hosts.len());
                let mut known = AHashSet::with_capacity(sni_hosts.len());
                for host in sni_hosts {
                    let name: Arc<str> = host.to_ascii_lowercase().into();
                    if known.insert(Arc::clone(&name)) {
                        server_names.push(name);
                    }
                }
                if server_names.iter().any(|name| &**name == "*") {
                    server_names.clear();
                }
                self.stream(resource, &rule, below_spec(field.path()), server_names, route);
            }
        }
    }

    /// The first rule with a match counts, and its destinations alone.
    fn tcp_rules(&mut self, resource: &Arc<Resource>, rules: &[TcpRoute]) {
        let spec = Field::spec(resource);
        let list = spec.name("tcp");
        for (i, TcpRoute { match_, route }) in rules.iter().enumerate() {
            let is_here = |entry: &L4MatchAttributes| self.is_stream_here(resource, entry.port, &entry.gateways);
            let found = match_.iter().position(is_here);
            if found.is_none() && !match_.is_empty() {
                continue;
            }
            let rule = list.index(i);
            if let Some(entry) = found {
                let L4MatchAttributes {
                    destination_subnets,
                    port: _,
                    source_subnet,
                    source_labels,
                    gateways: _,
                    source_namespace,
                } = &match_[entry];
                let unused = [
                    ("destinationSubnets", !destination_subnets.is_empty()),
                    ("sourceSubnet", !source_subnet.is_empty()),
                    ("sourceLabels", !source_labels.is_empty()),
                    ("sourceNamespace", !source_namespace.is_empty()),
                ];
                let matches = rule.name("match");
                self.report_unused(&matches.index(entry), unused);
            }
            self.stream(resource, &rule, below_spec(rule.path()), Vec::new(), route);
            return;
        }
    }

    /// Only port and Gateway decide where a rule applies.
    fn is_stream_here(&self, resource: &Resource, port: u32, gateways: &[String]) -> bool {
        let namespace = &resource.meta.namespace;
        (port == 0 || port == u32::from(self.place.port))
            && (gateways.is_empty()
                || gateways.iter().any(|name| resolve_gateway(name, namespace) == self.place.gateway))
    }

    fn report_unused<const N: usize>(&mut self, field: &Field<'_>, unused: [(&str, bool); N]) {
        for (name, _) in unused.into_iter().filter(|(_, is_set)| *is_set) {
            let message = "has no effect on a gateway, in Istio neither: the rule takes connections from everywhere";
            self.report.warning(Code::Ignored, field.name(name), message);
        }
    }

    fn stream(
        &mut self,
        resource: &Arc<Resource>,
        rule: &Field<'_>,
        path: String,
        server_names: Vec<Arc<str>>,
        route: &[RouteDestination],
    ) {
        let list = rule.name("route");
        let is_single = route.len() == 1;
        let mut destinations = Vec::with_capacity(route.len());
        for (i, RouteDestination { destination, weight }) in route.iter().enumerate() {
            let weight = if is_single { 1 } else { u32::try_from(*weight).unwrap_or(0) };
            let Some(destination) = destination.as_ref().filter(|_| weight > 0) else { continue };
            let path = below_spec(list.index(i).name("destination").path());
            destinations.push(TcpDestination { cluster: self.cluster(destination, resource, path), weight });
        }
        let Some(first) = destinations.first() else {
            let message = "no destination has a weight: the rule is left out";
            self.report.error(Code::SchemaValidationError, list, message);
            return;
        };
        let first = self.clusters.iter().find(|known| known.name == first.cluster);
        let first_host = first.map(|known| known.host.clone()).unwrap_or_default();
        let only_subset = first.filter(|_| is_single).map(|known| known.subset.clone()).unwrap_or_default();
        let resource = Arc::clone(resource);
        let route = StreamRoute { resource, path, server_names, destinations, first_host, only_subset };
        self.streams.push(Arc::new(route));
    }
}
