//! Compiling a configuration: from nothing, after one edit, and after none.
//!
//! `compile/<what>/<VirtualServices>` is the time of one compile; resources are parsed before. Each VirtualService has a
//! host, a Service and three rules of its own; with `one_host` all share a host and have one path each.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;

use config::accept;
use config::compile::{Input, Memo, Options, compile};
use config::resource::{Kind, Resource, Spec};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

const GATEWAY: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}
";

fn own_host(n: usize) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: v{n}, namespace: shop}}
spec:
  hosts: [host-{n}.example.com]
  gateways: [web]
  http:
  - match: [{{uri: {{prefix: /api/}}, headers: {{x-version: {{exact: v2}}}}}}]
    route: [{{destination: {{host: s{n}}}}}]
  - match: [{{uri: {{prefix: /static}}}}]
    rewrite: {{uri: /}}
    route: [{{destination: {{host: s{n}}}}}]
  - timeout: 5s
    route: [{{destination: {{host: s{n}}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: s{n}, namespace: shop}}
spec: {{ports: [{{name: http, port: 8080}}]}}
"
    )
}

fn one_host(n: usize) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: v{n}, namespace: shop}}
spec:
  hosts: [www.example.com]
  gateways: [web]
  http:
  - match: [{{uri: {{prefix: /app-{n}/}}}}]
    route: [{{destination: {{host: s}}}}]
"
    )
}

/// Parsed and accepted.
fn resources(count: usize, document: fn(usize) -> String) -> Vec<Arc<Resource>> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file: PathBuf = directory.path().join("all.yaml");
    let service =
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let text: String = (0..count).map(document).collect();
    std::fs::write(&file, format!("{GATEWAY}{service}{text}")).expect("a writable directory");
    accept::load([file], "istio-system").resources.to_vec()
}

/// The same resources with another VirtualService in the middle, as after an edit of its file.
fn edited(resources: &[Arc<Resource>]) -> Vec<Arc<Resource>> {
    let mut edited = resources.to_vec();
    let of_kind: Vec<usize> = (0..edited.len()).filter(|&i| edited[i].meta.kind == Kind::VirtualService).collect();
    let middle = of_kind[of_kind.len() / 2];
    let mut resource = (*edited[middle]).clone();
    if let Spec::VirtualService(spec) = &mut resource.spec {
        Arc::make_mut(spec).http[0].name = "edited".to_owned();
    }
    edited[middle] = Arc::new(resource);
    edited
}

fn run(resources: &[Arc<Resource>], memo: &mut Memo) -> usize {
    compile(Input { resources, refused: &[] }, &Options::default(), memo).snapshot.listeners.len()
}

fn compiles(criterion: &mut Criterion) {
    type Document = fn(usize) -> String;
    let kinds: [(&str, Document); 2] = [("own_host", own_host), ("one_host", one_host)];
    for (name, document) in kinds {
        let mut group = criterion.benchmark_group(format!("compile/{name}"));
        group.sample_size(20);
        for count in [1_000, 10_000] {
            let before = resources(count, document);
            let after = edited(&before);
            group.bench_function(BenchmarkId::new("fresh", count), |bencher| {
                bencher.iter_batched_ref(Memo::default, |memo| run(&before, memo), BatchSize::PerIteration);
            });
            let mut memo = Memo::default();
            run(&before, &mut memo);
            let mut is_edited = false;
            group.bench_function(BenchmarkId::new("edit", count), |bencher| {
                bencher.iter(|| {
                    is_edited = !is_edited;
                    black_box(run(if is_edited { &after } else { &before }, &mut memo))
                });
            });
            run(&before, &mut memo);
            group.bench_function(BenchmarkId::new("unchanged", count), |bencher| {
                bencher.iter(|| black_box(run(&before, &mut memo)));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, compiles);
criterion_main!(benches);
