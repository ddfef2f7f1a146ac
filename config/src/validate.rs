//! The rules of each kind that a resource must keep by itself.
//!
//! Source: `reference/networking.md` §10, which is Istio's `pkg/config/validation`. All findings are gathered. What
//! needs other resources to judge is `compile`'s business, and so are format strings (`%REQ(x)%`).

mod destination_rule;
mod gateway;
mod mesh_config;
mod primitive;
mod security;
mod service_entry;
mod virtual_service;

use crate::diagnostic::Severity;
use crate::resource::{Kind, Meta, Spec};

/// A rule that a resource breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// `spec.http[0].timeout`.
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

/// What is wrong with a resource.
pub(crate) fn validate(meta: &Meta, spec: &Spec) -> Vec<Finding> {
    let mut findings = Findings::default();
    if meta.annotations.contains_key("istio.io/dry-run") && meta.kind != Kind::AuthorizationPolicy {
        findings.error(
            "metadata.annotations[\"istio.io/dry-run\"]",
            "only an AuthorizationPolicy can be tried without effect",
        );
    }
    match spec {
        Spec::MeshConfig(spec) => mesh_config::validate(spec, &mut findings),
        Spec::Gateway(spec) => gateway::validate(meta, spec, &mut findings),
        Spec::VirtualService(spec) => virtual_service::validate(spec, &mut findings),
        Spec::DestinationRule(spec) => destination_rule::validate(meta, spec, &mut findings),
        Spec::ServiceEntry(spec) => service_entry::validate(meta, spec, &mut findings),
        Spec::WorkloadEntry(spec) => service_entry::workload_entry("spec", spec, &mut findings),
        Spec::WorkloadGroup(spec) => {
            if spec.template.is_none() {
                findings.error("spec.template", "a WorkloadGroup needs a template");
            }
        }
        Spec::RequestAuthentication(spec) => security::request_authentication(spec, &mut findings),
        Spec::AuthorizationPolicy(spec) => security::authorization_policy(spec, &mut findings),
        Spec::PeerAuthentication(spec) => security::peer_authentication(spec, &mut findings),
        Spec::ProxyConfig(_)
        | Spec::Sidecar(_)
        | Spec::EnvoyFilter(_)
        | Spec::Telemetry(_)
        | Spec::Service(_)
        | Spec::Endpoints(_)
        | Spec::EndpointSlice(_)
        | Spec::Secret(_)
        | Spec::ConfigMap(_)
        | Spec::Namespace(_) => {}
    }
    findings.list
}

/// The findings of one resource.
#[derive(Debug, Default)]
struct Findings {
    list: Vec<Finding>,
}

impl Findings {
    /// Something for which the resource is refused.
    fn error(&mut self, path: impl Into<String>, message: impl Into<String>) -> &mut Finding {
        self.add(Severity::Error, path, message)
    }

    /// Something that is probably not meant so.
    fn warning(&mut self, path: impl Into<String>, message: impl Into<String>) -> &mut Finding {
        self.add(Severity::Warning, path, message)
    }

    fn add(&mut self, severity: Severity, path: impl Into<String>, message: impl Into<String>) -> &mut Finding {
        self.list.push(Finding { severity, path: path.into(), message: message.into(), help: None });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }
}

impl Finding {
    fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }
}

/// `a.b` where `key` is a name that people choose.
fn keyed(path: &str, key: &str) -> String {
    if key.contains(['.', '[', ' ']) { format!("{path}[\"{key}\"]") } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests;
