//! Resources become a [`Snapshot`]: the order of the passes, and what one compile hands to the next.
//!
//! Passes are memoised by the identity of their inputs: an unchanged resource gives back the same `Arc`, up to the
//! whole route table. A compile can't fail; whatever can't be honoured is a diagnostic, and what would then be unsafe
//! is refused at run time. Two compiles of the same resources give equal snapshots, whatever their order.

mod clusters;
mod delegates;
mod destination_rules;
mod egress;
mod host;
mod listeners;
mod locality;
mod mesh;
mod notices;
mod options;
mod protocol;
mod report;
mod routes;
mod secrets;
mod security;
mod servers;
mod services;
mod tls;
mod virtual_services;
mod visibility;
mod world;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::accept::Refusal;
use crate::credential::CredentialUse;
use crate::diagnostic::Diagnostic;
use crate::resource::Resource;
use crate::snapshot::Snapshot;

use mesh::MeshSettings;
use report::Report;

pub use options::{AccessLogChoice, Features, Options};

/// The accepted resources, with what was refused.
#[derive(Debug, Clone, Copy, Default)]
pub struct Input<'a> {
    /// In any order.
    pub resources: &'a [Arc<Resource>],
    /// Security resources that were rejected and have no accepted version: what they select refuses to serve.
    pub refused: &'a [Refusal],
}

/// The result of a compile.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// What the data plane serves.
    pub snapshot: Snapshot,
    /// Findings, in order of file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// Who asks for which certificates and CAs: Gateways by age, then DestinationRules by name. The same `Arc` as long
    /// as nothing about it changes.
    pub credentials: Arc<[CredentialUse]>,
}

/// What a compile leaves for the next one. Of no use to a compile with other options: it begins anew then.
#[derive(Debug, Default)]
pub struct Memo {
    options: Option<Options>,
    world: world::Memo,
    services: services::Memo,
    destination_rules: destination_rules::Memo,
    servers: servers::Memo,
    virtual_services: virtual_services::Memo,
    egress: Option<Arc<egress::Egress>>,
    clusters: clusters::Memo,
    listeners: listeners::Memo,
    secrets: secrets::Memo,
    credentials: Credentials,
    mesh: Arc<crate::snapshot::mesh::Mesh>,
}

/// Compiles resources.
///
/// Cost: after a change, what depends on the changed resources is made anew; for everything else a few look-ups.
pub fn compile(input: Input<'_>, options: &Options, memo: &mut Memo) -> Compiled {
    if memo.options.as_ref() != Some(options) {
        *memo = Memo { options: Some(options.clone()), ..Memo::default() };
    }
    let mut report = Report::default();
    let world = memo.world.sorted(input.resources);
    let mesh = mesh::compile(&world, options, &mut report);
    let registry = services::gather(&world, options, &mesh, &mut memo.services);
    let rules = destination_rules::gather(&world, options, &mesh, &mut memo.destination_rules);
    let servers = servers::select(&world, options, &mesh.clusters.tls, &mut memo.servers);
    report.diagnostics.extend_from_slice(&servers.diagnostics);
    let virtual_services = virtual_services::Context { world: &world, options, mesh: &mesh, registry: &registry };
    let routes = virtual_services::compile(&virtual_services, &servers, &mut memo.virtual_services, &mut report);
    let destinations = clusters::Context { options, mesh: &mesh, registry: &registry, rules: &rules };
    let egress = egress::gather(&servers, &registry, &mesh, &options.namespace, &mut memo.egress);
    let egress = egress.as_deref();
    let clusters = clusters::compile(&destinations, &routes, egress, &mut memo.clusters, &mut report);
    let listeners = listeners::Context { options, destinations: &destinations, egress };
    let listeners = listeners::compile(&listeners, &servers.list, &routes, &mut memo.listeners, &mut report);
    let secrets = secrets::gather(&world, &options.namespace, &mut memo.secrets);
    let credentials = memo.credentials.join(&servers, &clusters.credentials);
    let refusals = security::compile(&world, options, &mesh, input.refused, &mut report);
    notices::compile(&world, options, &mesh, &registry, &rules, &mut report);
    if *memo.mesh != mesh.mesh {
        memo.mesh = Arc::new(mesh.mesh);
    }
    let mut diagnostics = report.diagnostics;
    diagnostics.sort_by_cached_key(|diagnostic| {
        let location = diagnostic.location();
        (location, diagnostic.severity, diagnostic.path.clone(), diagnostic.message.clone())
    });
    diagnostics.dedup();
    let snapshot = Snapshot { listeners, clusters: clusters.by_name, secrets, mesh: Arc::clone(&memo.mesh), refusals };
    Compiled { snapshot, diagnostics, credentials }
}

/// The credentials of the compile before, and what they were gathered from.
#[derive(Debug, Default)]
struct Credentials {
    servers: Arc<servers::Servers>,
    clusters: Arc<[CredentialUse]>,
    all: Arc<[CredentialUse]>,
}

impl Credentials {
    fn join(&mut self, servers: &Arc<servers::Servers>, clusters: &Arc<[CredentialUse]>) -> Arc<[CredentialUse]> {
        if !Arc::ptr_eq(&self.servers, servers) || !Arc::ptr_eq(&self.clusters, clusters) {
            let all = servers.credentials.iter().chain(&**clusters).cloned().collect();
            *self = Self { servers: Arc::clone(servers), clusters: Arc::clone(clusters), all };
        }
        Arc::clone(&self.all)
    }
}

/// How many items at the beginning, and how many of the rest at the end, two lists have in common.
fn common_ends<A, B>(a: &[A], b: &[B], is_same: impl Fn(&A, &B) -> bool) -> (usize, usize) {
    let first = a.iter().zip(b).take_while(|(a, b)| is_same(a, b)).count();
    let last = a[first..].iter().rev().zip(b[first..].iter().rev()).take_while(|(a, b)| is_same(a, b)).count();
    (first, last)
}

/// Whether both lists hold the same resources, by identity.
fn same(a: &[&Arc<Resource>], b: &[Arc<Resource>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}
