//! Security resources that select this gateway, none of which can be enforced yet: it refuses to serve.
//!
//! Source: `reference/security.md` §1 (which policies apply), `design.md`, Reload, rule 4.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::MeshSettings;
use super::options::Options;
use super::report::{Field, Report};
use super::world::{Object, World};
use crate::accept;
use crate::diagnostic::Code;
use crate::resource::security::{
    Action, AuthorizationPolicy, MutualTls, MutualTlsMode, PeerAuthentication, RequestAuthentication,
};
use crate::resource::selector::{PolicyTargetReference, WorkloadSelector};
use crate::resource::{Resource, Spec};
use crate::snapshot::Refusal;

/// Why requests must be refused. `refused` are resources that were rejected.
pub(super) fn compile(
    world: &World<'_>,
    options: &Options,
    mesh: &MeshSettings,
    refused: &[accept::Refusal],
    report: &mut Report,
) -> Vec<Refusal> {
    let scope = Scope { options, mesh };
    let mut refusals: Vec<Refusal> = (refused.iter())
        .filter(|refused| refused.partial.as_ref().is_none_or(|partial| scope.may_select(partial)))
        .map(|refused| Refusal { resource: refused.resource.clone(), reason: refused.reason.clone() })
        .collect();
    for &policy in &world.request_authentications {
        let RequestAuthentication { selector, target_ref, target_refs, jwt_rules } = policy.spec;
        if !jwt_rules.is_empty() && scope.selects(policy, selector.as_ref(), target_ref.as_ref(), target_refs) {
            refuse(policy, "RequestAuthentication can't be enforced yet", report, &mut refusals);
        }
    }
    for &policy in &world.authorization_policies {
        let AuthorizationPolicy { selector, target_ref, target_refs, rules: _, action, provider: _ } = policy.spec;
        if !scope.selects(policy, selector.as_ref(), target_ref.as_ref(), target_refs) {
            continue;
        }
        match action {
            Action::Audit => {
                let spec = Field::spec(policy.resource);
                report.unsupported(spec.name("action"), "AUDIT is not supported yet: nothing is recorded");
            }
            Action::Allow | Action::Deny | Action::Custom => {
                refuse(policy, "AuthorizationPolicy can't be enforced yet", report, &mut refusals);
            }
        }
    }
    for &policy in &world.peer_authentications {
        warn_about_peers(policy, &scope, report);
    }
    refusals.sort_by(|a, b| a.resource.cmp(&b.resource));
    refusals
}

fn refuse<T>(policy: Object<'_, T>, reason: &str, report: &mut Report, refusals: &mut Vec<Refusal>) {
    let message = format!("{reason}: this gateway answers 503 to every request");
    report.error(Code::SecurityRefused, Field::spec(policy.resource), message);
    refusals.push(Refusal { resource: policy.resource.name(), reason: reason.to_owned() });
}

/// Mutual TLS of the mesh concerns servers with ISTIO_MUTUAL only.
fn warn_about_peers(policy: Object<'_, PeerAuthentication>, scope: &Scope<'_>, report: &mut Report) {
    let PeerAuthentication { selector, mtls, port_level_mtls } = policy.spec;
    let is_strict = |mtls: &MutualTls| mtls.mode == MutualTlsMode::Strict;
    let asks = mtls.as_ref().is_some_and(is_strict) || port_level_mtls.values().any(is_strict);
    // One for a whole namespace is about its workloads in general.
    if asks && selector.is_some() && scope.selects(policy, selector.as_ref(), None, &[]) {
        let message = "has no effect on a gateway's own servers";
        report.warning(Code::Ignored, Field::spec(policy.resource), message);
    }
}

/// What it takes for a policy to be about this gateway.
pub(super) struct Scope<'a> {
    pub(super) options: &'a Options,
    pub(super) mesh: &'a MeshSettings,
}

impl Scope<'_> {
    /// Whether a resource that was rejected would select this gateway, as far as it could be read.
    fn may_select(&self, resource: &Arc<Resource>) -> bool {
        match &resource.spec {
            Spec::RequestAuthentication(spec) => {
                let RequestAuthentication { selector, target_ref, target_refs, jwt_rules: _ } = &**spec;
                let policy = Object { resource, spec: &**spec };
                self.selects(policy, selector.as_ref(), target_ref.as_ref(), target_refs)
            }
            Spec::AuthorizationPolicy(spec) => {
                let AuthorizationPolicy { selector, target_ref, target_refs, rules: _, action: _, provider: _ } =
                    &**spec;
                let policy = Object { resource, spec: &**spec };
                self.selects(policy, selector.as_ref(), target_ref.as_ref(), target_refs)
            }
            Spec::PeerAuthentication(spec) => {
                let PeerAuthentication { selector, mtls: _, port_level_mtls: _ } = &**spec;
                self.selects(Object { resource, spec: &**spec }, selector.as_ref(), None, &[])
            }
            _ => true,
        }
    }

    /// A policy selects this gateway from its own or the root namespace, by labels, by the name of a Gateway API
    /// gateway, or as a whole.
    pub(super) fn selects<T>(
        &self,
        policy: Object<'_, T>,
        selector: Option<&WorkloadSelector>,
        target_ref: Option<&PolicyTargetReference>,
        target_refs: &[PolicyTargetReference],
    ) -> bool {
        /// Istio puts it on the workloads of a Gateway API gateway.
        const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

        let namespace = policy.namespace();
        if *namespace != self.options.namespace && *namespace != self.mesh.root_namespace {
            return false;
        }
        let mut targets = target_refs.iter().chain(target_ref).peekable();
        if targets.peek().is_some() {
            let own = self.options.labels.get(GATEWAY_NAME);
            return *namespace == self.options.namespace
                && targets.any(|target| target.kind == "Gateway" && own == Some(&target.name));
        }
        let no_labels = BTreeMap::new();
        self.options.is_selected_by(selector.map_or(&no_labels, |selector| &selector.match_labels))
    }
}
