//! What small configurations compile to.
//!
//! Golden cases stand in `testdata/<case>/`: `input.yaml` compiles to `snapshot.txt` with the findings in
//! `diagnostics.txt`. `UPDATE_GOLDEN=1` writes them; a changed golden is reviewed like code.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod balancing;
mod client_tls;
mod locality;
mod memo;
mod servers;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::accept;
use crate::diagnostic::Severity;
use crate::snapshot::host::VirtualHost;
use crate::snapshot::listener::Listener;
use crate::snapshot::render;
use crate::snapshot::route::{HeaderLines, RequestView, Route};

/// Accepts and compiles `yaml`, which must be free of errors before compilation.
fn compiled(yaml: &str) -> Compiled {
    compiled_with(yaml, &Options::default())
}

fn compiled_with(yaml: &str, options: &Options) -> Compiled {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("input.yaml"), yaml).unwrap();
    let generation = accept::load([directory.path().to_owned()], &options.namespace);
    let errors: Vec<_> = generation.diagnostics.iter().filter(|found| found.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}\n{yaml}");
    let input = Input { resources: &generation.resources, refused: &[] };
    compile(input, options, &mut Memo::default())
}

fn listener(compiled: &Compiled, port: u16) -> Option<&Arc<Listener>> {
    compiled.snapshot.listeners.iter().find(|listener| listener.port == port)
}

fn host<'c>(compiled: &'c Compiled, port: u16, authority: &str) -> Option<&'c Arc<VirtualHost>> {
    listener(compiled, port)?.filter_chains[0].http().unwrap().routes.virtual_host(authority)
}

struct NoHeaders;

impl HeaderLines for NoHeaders {
    fn any_line(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }

    fn each_line(&self, _: &mut dyn FnMut(&str, &[u8])) {}
}

/// The route for `GET http://<authority><path>` on port 80.
fn route<'c>(compiled: &'c Compiled, authority: &str, path: &str) -> Option<&'c Arc<Route>> {
    let request = RequestView { method: "GET", path, query: None, authority, scheme: "http", headers: &NoHeaders };
    host(compiled, 80, authority)?.routes.find(&request)
}

/// Messages of findings of that severity.
fn findings(compiled: &Compiled, severity: Severity) -> Vec<String> {
    let found = compiled.diagnostics.iter().filter(|found| found.severity == severity);
    found.map(|found| format!("{} {}: {}", found.code.id(), found.path, found.message)).collect()
}

/// A document; `fields` is its spec, indented by two.
fn document(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "Service" => "v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        "AuthorizationPolicy" | "RequestAuthentication" => "security.istio.io/v1",
        _ => "networking.istio.io/v1",
    };
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{spec}\n---\n")
}

fn gateway(namespace: &str, name: &str, servers: &str) -> String {
    document(
        "Gateway",
        namespace,
        name,
        &format!("spec: {{selector: {{istio: ingressgateway}}, servers: [{servers}]}}"),
    )
}

fn virtual_service(namespace: &str, name: &str, spec: &str) -> String {
    document("VirtualService", namespace, name, &format!("spec: {spec}"))
}

/// MeshConfig with these fields, indented by four.
fn mesh_config(fields: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         {fields}\n---\n"
    )
}

fn manifest_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

#[test]
fn golden_cases() {
    let mut failures = Vec::new();
    let mut cases = directories(&manifest_directory().join("testdata"));
    // The others are about what doesn't get as far as this.
    cases.retain(|case| case.join("input.yaml").exists());
    assert!(cases.len() >= 8, "the cases are not where they are looked for");
    for case in cases {
        let generation = accept::load([case.join("input.yaml")], "istio-system");
        let input = Input { resources: &generation.resources, refused: &generation.refused_security };
        let compiled = compile(input, &Options::default(), &mut Memo::default());
        let mut diagnostics = String::new();
        for found in generation.diagnostics.iter().chain(&compiled.diagnostics) {
            let line = found.location().line;
            let help = found.help.as_ref().map(|help| format!("\n  help: {help}")).unwrap_or_default();
            let resource = found.resource.as_ref().map(ToString::to_string).unwrap_or_default();
            let (severity, code) = (found.severity, found.code.id());
            diagnostics +=
                &format!("{severity} [{code}] line {line} ({resource}) {}:\n  {}{help}\n", found.path, found.message);
        }
        for (file, actual) in [("snapshot.txt", render::text(&compiled.snapshot)), ("diagnostics.txt", diagnostics)] {
            let path = case.join(file);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&path, &actual).unwrap();
            }
            let expected = fs::read_to_string(&path).unwrap_or_default();
            if expected != actual {
                failures.push(format!("{}:\n--- expected\n{expected}\n--- actual\n{actual}", path.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn samples_compile_without_a_finding() {
    let topics = directories(&manifest_directory().join("samples"));
    assert!(topics.len() >= 5, "the samples are not where they are looked for");
    let labels = [("istio".to_owned(), "egressgateway".to_owned())].into();
    let (ingress, egress) = (Options::default(), Options { labels, ..Options::default() });
    for topic in topics {
        let generation = accept::load([topic.clone()], "istio-system");
        let input = Input { resources: &generation.resources, refused: &generation.refused_security };
        let is_egress = topic.file_name().unwrap().to_string_lossy().starts_with("egress-");
        let compiled = compile(input, if is_egress { &egress } else { &ingress }, &mut Memo::default());
        let worse = |found: &&Diagnostic| found.severity <= Severity::Warning;
        let found: Vec<_> =
            generation.diagnostics.iter().chain(&compiled.diagnostics).filter(worse).map(ToString::to_string).collect();
        assert!(found.is_empty(), "{}: {}", topic.display(), found.join("\n"));
        assert!(!compiled.snapshot.listeners.is_empty(), "{} opens nothing", topic.display());
    }
}
