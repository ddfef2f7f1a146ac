//! The labels that Istio's metrics have in common: who reports, and who was talked to.
//!
//! Source: `reference/telemetry-and-operations.md` §1.2, §1.3.

use std::sync::Arc;

use certs::certificate::Certificate;
use config::snapshot::cluster::ServiceIdentity;

use super::Source;
use super::page::render;
use crate::request::Facts;
use crate::response::Flags;

/// Series that a family of metrics has at most: an upstream that makes up statuses must not take the memory.
pub(super) const MAX_SERIES: usize = 100_000;

/// The part of the labels that is the same for all traffic of this gateway.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    /// Rendered labels up to `source_workload_namespace`, and those from `source_app` to `source_cluster`.
    before_principal: String,
    after_principal: String,
}

/// Whom the traffic went to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Destination {
    /// Host, name and namespace of the service.
    pub service: Option<[Arc<str>; 3]>,
    pub principals: Principals,
}

/// Identities on an upstream connection with mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Principals {
    /// The gateway's own.
    pub source: Option<Arc<str>>,
    /// The upstream's.
    pub destination: Option<Arc<str>>,
}

impl Reporter {
    pub fn new(source: &Source) -> Self {
        let Source { workload, namespace, cluster, labels } = source;
        let label = |names: &[&str]| names.iter().find_map(|name| labels.get(*name)).map(String::as_str);
        let canonical_service = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        let canonical_revision =
            label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
        let before_principal = render(&[
            ("reporter", "source"),
            ("source_workload", workload),
            ("source_canonical_service", canonical_service.unwrap_or(workload)),
            ("source_canonical_revision", canonical_revision.unwrap_or("latest")),
            ("source_workload_namespace", namespace),
        ]);
        let after_principal = render(&[
            ("source_app", label(&["app"]).unwrap_or_default()),
            ("source_version", label(&["version"]).unwrap_or_default()),
            ("source_cluster", cluster),
        ]);
        Self { before_principal, after_principal }
    }

    /// All labels of a series; `protocol` are those from `request_protocol` up to the flags.
    pub fn render(&self, destination: &Destination, protocol: &[(&str, &str)], flags: &Flags) -> String {
        let Destination { service, principals } = destination;
        let [host, name, namespace] = match service {
            Some(service) => service.each_ref().map(|text| &**text),
            None => ["unknown"; 3],
        };
        let source = render(&[("source_principal", principals.source.as_deref().unwrap_or("unknown"))]);
        let principal = principals.destination.as_deref();
        let destination = render(&[
            ("destination_workload", "unknown"),
            ("destination_workload_namespace", principal.and_then(spiffe_namespace).unwrap_or("unknown")),
            ("destination_principal", principal.unwrap_or("unknown")),
            ("destination_app", "unknown"),
            ("destination_version", "unknown"),
            ("destination_service", host),
            ("destination_canonical_service", "unknown"),
            ("destination_canonical_revision", "latest"),
            ("destination_service_name", name),
            ("destination_service_namespace", namespace),
            ("destination_cluster", "unknown"),
        ]);
        let protocol = render(protocol);
        let rest = render(&[
            ("response_flags", &flags.to_string()),
            // Only a server knows how a request came; a gateway reports as a client.
            ("connection_security_policy", "unknown"),
        ]);
        let Self { before_principal, after_principal } = self;
        format!("{before_principal},{source},{after_principal},{destination},{protocol},{rest}")
    }
}

impl Destination {
    pub fn new(service: Option<&Arc<ServiceIdentity>>, principals: Principals) -> Self {
        let service = service.map(|service| {
            let ServiceIdentity { host, name, namespace } = &**service;
            [Arc::clone(host), Arc::clone(name), Arc::clone(namespace)]
        });
        Self { service, principals }
    }
}

impl Principals {
    /// The identities on the upstream connection of `facts`.
    pub fn of(facts: &Facts) -> Self {
        let Some(tls) = &facts.upstream_tls else { return Self::default() };
        let first_uri = |certificate: &Certificate| certificate.uris().next().map(Arc::from);
        Self { source: tls.local_certificate().and_then(first_uri), destination: tls.peer.as_ref().and_then(first_uri) }
    }
}

/// `foo` of `spiffe://cluster.local/ns/foo/sa/httpbin`.
fn spiffe_namespace(principal: &str) -> Option<&str> {
    let (_, path) = principal.strip_prefix("spiffe://")?.split_once('/')?;
    path.strip_prefix("ns/")?.split('/').next()
}

/// Flags as a number: a byte each, the first one highest.
pub(super) fn pack(flags: &Flags) -> u32 {
    flags.iter().fold(0, |packed, flag| packed << 8 | (flag as u32 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_come_from_identities_of_workloads() {
        for (principal, expected) in [
            ("spiffe://cluster.local/ns/foo/sa/httpbin", Some("foo")),
            ("spiffe://cluster.local/foo", None),
            ("https://cluster.local/ns/foo/sa/httpbin", None),
        ] {
            assert_eq!(spiffe_namespace(principal), expected);
        }
    }
}
