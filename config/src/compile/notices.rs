//! Findings about resources that no other pass looks at.

use super::MeshSettings;
use super::destination_rules::Rules;
use super::options::Options;
use super::report::{Field, Report};
use super::security::Scope;
use super::services::Registry;
use super::world::World;
use crate::diagnostic::Code;
use crate::resource::telemetry::Telemetry;

pub(super) fn compile(
    world: &World<'_>,
    options: &Options,
    mesh: &MeshSettings,
    registry: &Registry,
    rules: &Rules,
    report: &mut Report,
) {
    let scope = Scope { options, mesh };
    for &telemetry in &world.telemetries {
        let Telemetry { selector, target_ref, target_refs, tracing, metrics, access_logging } = telemetry.spec;
        if !scope.selects(telemetry, selector.as_ref(), target_ref.as_ref(), target_refs) {
            continue;
        }
        let spec = Field::spec(telemetry.resource);
        report.unsupported_if(!tracing.is_empty(), spec.name("tracing"));
        report.unsupported_if(!metrics.is_empty(), spec.name("metrics"));
        report.unsupported_if(!access_logging.is_empty(), spec.name("accessLogging"));
    }
    for sidecar in &world.sidecars {
        report.warning(Code::Ignored, Field::spec(sidecar.resource), "a Sidecar has no effect on a gateway");
    }
    for filter in &world.envoy_filters {
        let namespace = filter.namespace();
        if *namespace == options.namespace || *namespace == mesh.root_namespace {
            report.unsupported(Field::spec(filter.resource), "there is no Envoy here to be patched: it has no effect");
        }
    }
    report.diagnostics.extend_from_slice(&rules.diagnostics);
    for (host, resource) in rules.exact_hosts() {
        if !registry.contains(host) {
            let spec = Field::spec(resource);
            let message = format!("\"{host}\" is no known service: the rule has no effect");
            report.warning(Code::UnknownDestinationRuleHost, spec.name("host"), message);
        }
    }
}
