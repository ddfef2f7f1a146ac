//! One object of a document: its head, its body, its verdict.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::decode::{Problem, ProblemKind, UnknownFields, decode, nearest};
use super::kinds::{Dispatch, dispatch};
use super::tree::{self, Node, Span, TreeError};
use super::{Candidate, Key, Outcome, Parsed, Suspect, sniff};
use crate::diagnostic::{Code, Diagnostic, Severity};
use crate::resource::{Kind, Meta, Origin, Resource, Spec};
use crate::source::Document;
use crate::validate;

/// Reads the objects of one document.
pub(super) struct Objects<'d> {
    document: &'d Arc<Document>,
    root_namespace: &'d Arc<str>,
    parsed: Parsed,
}

/// What a `List` says of its items.
#[derive(Clone, Copy)]
pub(super) struct Inherited<'n> {
    api_version: &'n str,
    kind: &'n str,
}

/// `metadata` of Kubernetes. Fields without meaning here are named, so that others can be told from misspellings.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ObjectMeta {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    creation_timestamp: Option<String>,
    #[serde(rename = "generateName")]
    _generate_name: IgnoredAny,
    #[serde(rename = "selfLink")]
    _self_link: IgnoredAny,
    #[serde(rename = "uid")]
    _uid: IgnoredAny,
    #[serde(rename = "resourceVersion")]
    _resource_version: IgnoredAny,
    #[serde(rename = "generation")]
    _generation: IgnoredAny,
    #[serde(rename = "deletionTimestamp")]
    _deletion_timestamp: IgnoredAny,
    #[serde(rename = "deletionGracePeriodSeconds")]
    _deletion_grace_period_seconds: IgnoredAny,
    #[serde(rename = "ownerReferences")]
    _owner_references: IgnoredAny,
    #[serde(rename = "finalizers")]
    _finalizers: IgnoredAny,
    #[serde(rename = "managedFields")]
    _managed_fields: IgnoredAny,
    #[serde(rename = "clusterName")]
    _cluster_name: IgnoredAny,
}

impl<'d> Objects<'d> {
    pub(super) fn new(document: &'d Arc<Document>, root_namespace: &'d Arc<str>) -> Self {
        Self { document, root_namespace, parsed: Parsed::default() }
    }

    pub(super) fn finish(self) -> Parsed {
        self.parsed
    }

    /// A key that stands twice says two things, and nobody knows which is meant: everything here is rejected.
    pub(super) fn duplicates(&mut self, duplicates: &[TreeError]) {
        for duplicate in duplicates {
            let place = self.document.place_of(duplicate.span);
            let diagnostic = Diagnostic::new(Severity::Error, Code::DuplicateKey, place, duplicate.kind.to_string());
            self.parsed.diagnostics.push(diagnostic.help("keep one of them"));
        }
    }

    /// Reads the object at `node`; `path` is its place in a `List`, else empty.
    pub(super) fn read(&mut self, node: &Node<'_>, path: &str, inherited: Option<Inherited<'_>>) {
        let entries = match &node.value {
            tree::Value::Mapping(entries) => entries,
            tree::Value::Scalar { .. } if node.is_null() => return,
            _ => return self.bad_object(node, "a document must be a mapping with apiVersion, kind and metadata"),
        };
        let api_version = node.get("apiVersion").and_then(Node::text);
        let kind = node.get("kind").and_then(Node::text);
        let (api_version, kind) = match (api_version, kind, inherited) {
            (Some(api_version), Some(kind), _) => (api_version, kind),
            (None, Some("MeshConfig"), _) => ("", "MeshConfig"),
            (None, None, Some(list)) => (list.api_version, list.kind),
            (None, Some(_), _) => return self.bad_object(node, "`apiVersion` is missing"),
            (Some(_), None, _) => return self.bad_object(node, "`kind` is missing"),
            (None, None, None) => return self.bad_object(node, "`apiVersion` and `kind` are missing"),
        };
        if let Some(item_kind) = kind.strip_suffix("List")
            && let Some(Node { value: tree::Value::Sequence(items), .. }) = node.get("items")
        {
            let inherited = (!item_kind.is_empty()).then_some(Inherited { api_version, kind: item_kind });
            for (index, item) in items.iter().enumerate() {
                let path = if path.is_empty() { format!("items[{index}]") } else { format!("{path}.items[{index}]") };
                self.read(item, &path, inherited);
            }
            return;
        }
        match dispatch(api_version, kind) {
            Dispatch::Known(kind) => self.resource(kind, node, entries, path),
            Dispatch::Other { name } => self.parsed.skipped.push(name),
            Dispatch::WrongKind { nearest } => {
                let diagnostic = Diagnostic::new(
                    Severity::Error,
                    Code::BadObject,
                    self.place_of_key(node, "kind"),
                    format!("there is no kind `{kind}` in {api_version}"),
                )
                .path("kind");
                self.parsed.is_broken = true;
                self.parsed.diagnostics.push(match nearest {
                    Some(nearest) => diagnostic.help(format!("did you mean `{nearest}`?")),
                    None => diagnostic,
                });
                // What was meant may be a policy.
                if let Some(kind) = nearest.and_then(security_kind) {
                    self.suspect(kind, node);
                }
            }
            Dispatch::WrongVersion { kind, versions } => {
                let head = self.head(kind, node, UnknownFields::Ignore);
                let mut diagnostic = Diagnostic::new(
                    Severity::Error,
                    Code::UnsupportedVersion,
                    self.place_of_key(node, "apiVersion"),
                    format!("apiVersion `{api_version}` doesn't exist for kind {kind}"),
                )
                .path("apiVersion")
                .help(format!("use one of: {versions}"));
                match head.key {
                    Some(key) => {
                        diagnostic = diagnostic.resource(key.name());
                        let reason = diagnostic.message.clone();
                        self.parsed
                            .candidates
                            .push(Candidate { key, outcome: Outcome::Rejected { partial: None, reason } });
                    }
                    None => self.unnamed(kind, node),
                }
                self.parsed.diagnostics.push(diagnostic);
            }
        }
    }

    /// An object of a known kind and version.
    fn resource(&mut self, kind: Kind, node: &Node<'_>, entries: &[tree::Entry<'_>], path: &str) {
        let unknown_fields = if is_istio(kind) { UnknownFields::Report } else { UnknownFields::Ignore };
        let head = self.head(kind, node, unknown_fields);
        let Some(key) = head.key else {
            let mut diagnostics: Vec<Diagnostic> =
                head.problems.iter().map(|problem| self.problem(problem, Severity::Error)).collect();
            if !head.problems.iter().any(|problem| problem.path.starts_with("metadata.name")) {
                let place = self.place_of_key(node, "metadata");
                let message = format!("{kind} without a name");
                let diagnostic = Diagnostic::new(Severity::Error, Code::BadObject, place, message);
                diagnostics.push(diagnostic.path("metadata.name").help("give it a `metadata.name`"));
            }
            self.parsed.diagnostics.extend(diagnostics);
            return self.unnamed(kind, node);
        };
        let meta = head.meta;
        let mut problems = head.problems;
        let is_bare_mesh_config = kind == Kind::MeshConfig && node.get("spec").is_none();
        if is_istio(kind) && !is_bare_mesh_config {
            problems.extend(entries.iter().filter_map(unknown_at_top));
        }
        let body = match kind {
            // MeshConfig may stand at the top, beside `kind`.
            Kind::MeshConfig if is_bare_mesh_config => Body { node: Some(Cow::Owned(without_head(node))), path: "" },
            Kind::Endpoints | Kind::EndpointSlice | Kind::Secret | Kind::ConfigMap | Kind::Namespace => {
                Body { node: Some(Cow::Borrowed(node)), path: "" }
            }
            _ => Body { node: node.get("spec").filter(|spec| !spec.is_null()).map(Cow::Borrowed), path: "spec" },
        };
        let (mut spec, found) = body.decode(kind, unknown_fields);
        problems.extend(found);
        if let Some(Spec::WorkloadEntry(entry)) = &mut spec {
            Arc::make_mut(entry).unhealthy = is_unhealthy(node);
        }
        let origin = Origin { document: Arc::clone(self.document), path: path.into() };
        self.judge(key, meta, origin, spec, &problems, node);
        if kind == Kind::ConfigMap {
            self.mesh_config(node);
        }
    }

    /// Adds what the rules of the kind say, and the verdict.
    fn judge(
        &mut self,
        key: Key,
        meta: Meta,
        origin: Origin,
        spec: Option<Spec>,
        problems: &[Problem],
        node: &Node<'_>,
    ) {
        let mut diagnostics: Vec<Diagnostic> = problems
            .iter()
            .map(|problem| {
                // Istio itself passes over fields of MeshConfig that it doesn't know, and installations carry them.
                let is_foreign = key.kind == Kind::MeshConfig && problem.kind == ProblemKind::UnknownField;
                self.problem(problem, if is_foreign { Severity::Warning } else { Severity::Error })
            })
            .collect();
        if let Some(spec) = &spec {
            for finding in validate::validate(&meta, spec) {
                // What could not be read looks absent to the rules; one message about it is enough.
                let explains = |problem: &Problem| {
                    let meant = problem.meant.as_deref().unwrap_or(&problem.path);
                    overlaps(&problem.path, &finding.path) || overlaps(meant, &finding.path)
                };
                if problems.iter().any(explains) {
                    continue;
                }
                let span = node.find(&finding.path).span();
                let code = match finding.severity {
                    Severity::Error => Code::SchemaValidationError,
                    Severity::Warning | Severity::Note => Code::SchemaWarning,
                };
                let place = self.document.place_of(span);
                let mut diagnostic = Diagnostic::new(finding.severity, code, place, finding.message).path(finding.path);
                diagnostic.help = finding.help;
                diagnostics.push(diagnostic);
            }
        }
        let duplicate = self.parsed.diagnostics.iter().find(|diagnostic| diagnostic.code == Code::DuplicateKey);
        let error = diagnostics.iter().find(|diagnostic| diagnostic.severity == Severity::Error).or(duplicate);
        let outcome = match (spec, error) {
            (Some(spec), None) => Outcome::Valid(Arc::new(Resource { meta, spec, origin })),
            (spec, error) => {
                let selects = !diagnostics.iter().any(|diagnostic| {
                    diagnostic.severity == Severity::Error
                        && ["metadata", "spec.selector", "spec.targetRef"]
                            .iter()
                            .any(|path| diagnostic.path.starts_with(path) || diagnostic.path == "spec")
                });
                let partial = spec
                    .filter(|_| selects && duplicate.is_none())
                    .map(|spec| Arc::new(Resource { meta, spec, origin }));
                let reason = error.map_or_else(
                    || "it can't be read".to_owned(),
                    |error| match error.path.as_str() {
                        "" => error.message.clone(),
                        path => format!("{path}: {}", error.message),
                    },
                );
                Outcome::Rejected { partial, reason }
            }
        };
        let name = key.name();
        self.parsed.diagnostics.extend(diagnostics.into_iter().map(|diagnostic| diagnostic.resource(name.clone())));
        self.parsed.candidates.push(Candidate { key, outcome });
    }

    /// The MeshConfig in the ConfigMap `istio` of the root namespace.
    fn mesh_config(&mut self, node: &Node<'_>) {
        let Some(Candidate { key, .. }) = self.parsed.candidates.last() else { return };
        if &*key.name != "istio" || key.namespace != *self.root_namespace {
            return;
        }
        let Some(mesh) = node.get("data").and_then(|data| data.get("mesh")) else { return };
        let Some(text) = mesh.text() else { return };
        let inner = Arc::new(self.inner_document(mesh, text));
        let key = Key { kind: Kind::MeshConfig, name: "istio".into(), namespace: Arc::clone(self.root_namespace) };
        let mut objects = Objects::new(&inner, self.root_namespace);
        match tree::Tree::read(text) {
            Ok(tree) => {
                let meta = Meta {
                    kind: Kind::MeshConfig,
                    namespace: Arc::clone(&key.namespace),
                    name: Arc::clone(&key.name),
                    labels: BTreeMap::new(),
                    annotations: BTreeMap::new(),
                    creation_timestamp: None,
                };
                objects.duplicates(&tree.duplicates);
                let body =
                    Body { node: tree.root.as_ref().filter(|root| !root.is_null()).map(Cow::Borrowed), path: "" };
                let (spec, problems) = body.decode(Kind::MeshConfig, UnknownFields::Report);
                let origin = Origin { document: Arc::clone(&inner), path: "".into() };
                let empty = Node { id: 0, span: Span::default(), value: tree::Value::Mapping(Vec::new()) };
                objects.judge(key, meta, origin, spec, &problems, tree.root.as_ref().unwrap_or(&empty));
            }
            Err(error) => {
                let reason = error.kind.to_string();
                let place = inner.place_of(error.span);
                let diagnostic = Diagnostic::new(Severity::Error, Code::Syntax, place, reason.clone());
                objects.parsed.diagnostics.push(diagnostic.resource(key.name()));
                objects.parsed.candidates.push(Candidate { key, outcome: Outcome::Rejected { partial: None, reason } });
            }
        }
        let inner = objects.finish();
        self.parsed.candidates.extend(inner.candidates);
        self.parsed.diagnostics.extend(inner.diagnostics);
    }

    /// Block text keeps its lines, so that places in it are places in the file. Other text is placed at its start.
    fn inner_document(&self, node: &Node<'_>, text: &str) -> Document {
        let outer = self.document.text();
        let first = text.lines().next().unwrap_or_default();
        let from = outer[..node.span.start as usize].rfind('\n').map_or(0, |newline| newline + 1);
        let found = outer[from..].lines().enumerate().find_map(|(index, line)| {
            let indent = line.strip_suffix(first)?;
            indent.bytes().all(|byte| byte == b' ').then_some((index as u32, indent.len() as u32))
        });
        let from_line = memchr::memchr_iter(b'\n', &outer.as_bytes()[..from]).count() as u32;
        let (line, indent) = found.filter(|_| text.contains('\n')).unwrap_or((0, 0));
        Document::within(self.document, text, from_line + line, indent)
    }

    fn head(&self, kind: Kind, node: &Node<'_>, unknown_fields: UnknownFields) -> Head {
        let (meta, mut problems) = match node.get("metadata").filter(|metadata| !metadata.is_null()) {
            Some(metadata) => decode::<ObjectMeta>(metadata, "metadata", unknown_fields),
            None => (None, Vec::new()),
        };
        let meta = meta.unwrap_or_default();
        let mut creation_timestamp = None;
        if let Some(text) = &meta.creation_timestamp {
            match text.parse() {
                Ok(timestamp) => creation_timestamp = Some(timestamp),
                Err(_) => {
                    let place = node.get("metadata").and_then(|metadata| metadata.get("creationTimestamp"));
                    problems.push(Problem {
                        kind: ProblemKind::BadValue,
                        path: "metadata.creationTimestamp".to_owned(),
                        span: place.map_or(node.span, |place| place.span),
                        message: format!("`{text}` is no time"),
                        help: Some("write it like `2026-01-31T12:00:00Z`, or leave it out".to_owned()),
                        meant: None,
                    });
                }
            }
        }
        // There is one MeshConfig, whatever it calls itself.
        let (namespace, name): (Arc<str>, Arc<str>) = match kind {
            Kind::MeshConfig => (Arc::clone(self.root_namespace), Arc::from("istio")),
            _ if meta.namespace.is_empty() => (Arc::from("default"), Arc::from(meta.name)),
            _ => (Arc::from(meta.namespace), Arc::from(meta.name)),
        };
        let has_name = !name.is_empty() && !problems.iter().any(|problem| problem.path == "metadata.namespace");
        let key = has_name.then(|| Key { kind, name: Arc::clone(&name), namespace: Arc::clone(&namespace) });
        let meta =
            Meta { kind, namespace, name, labels: meta.labels, annotations: meta.annotations, creation_timestamp };
        Head { key, meta, problems }
    }

    fn problem(&self, problem: &Problem, severity: Severity) -> Diagnostic {
        let code = match problem.kind {
            ProblemKind::UnknownField => Code::UnknownField,
            ProblemKind::BadValue => Code::BadValue,
        };
        let place = self.document.place_of(problem.span);
        let mut diagnostic = Diagnostic::new(severity, code, place, problem.message.clone()).path(problem.path.clone());
        diagnostic.help.clone_from(&problem.help);
        diagnostic
    }

    fn bad_object(&mut self, node: &Node<'_>, message: &str) {
        let place = self.document.place_of(Span { end: node.span.start, ..node.span });
        let diagnostic = Diagnostic::new(Severity::Error, Code::BadObject, place, message);
        self.parsed
            .diagnostics
            .push(diagnostic.help("until this is repaired, the resources last read from this file stay"));
        self.parsed.is_broken = true;
        let suspects = sniff::suspects(&self.document.text()[node.span.range()]);
        self.parsed.suspects.extend(suspects);
    }

    /// A resource that can't be told from others.
    fn unnamed(&mut self, kind: Kind, node: &Node<'_>) {
        self.parsed.is_broken = true;
        if kind.is_security() {
            self.suspect(kind, node);
        }
    }

    fn suspect(&mut self, kind: Kind, node: &Node<'_>) {
        let metadata = node.get("metadata");
        let find = |key: &str| metadata.and_then(|metadata| metadata.get(key)).and_then(Node::text).map(Arc::from);
        self.parsed.suspects.push(Suspect { kind, namespace: find("namespace"), name: find("name") });
    }

    fn place_of_key(&self, node: &Node<'_>, key: &str) -> crate::diagnostic::Place {
        let tree::Value::Mapping(entries) = &node.value else { return self.document.place_of(node.span) };
        let entry = entries.iter().find(|entry| entry.key == key);
        self.document.place_of(match entry.map(|entry| (&entry.value.value, entry)) {
            Some((tree::Value::Scalar { .. }, entry)) => entry.value.span,
            Some((_, entry)) => entry.key_span,
            None => entries.first().map_or(node.span, |entry| entry.key_span),
        })
    }
}

struct Head {
    /// Without it the object can't be told from others.
    key: Option<Key>,
    meta: Meta,
    problems: Vec<Problem>,
}

struct Body<'n, 'a> {
    /// Absent means empty. Borrowed wherever it can be: the tree of a large document is many times its text.
    node: Option<Cow<'n, Node<'a>>>,
    path: &'static str,
}

impl Body<'_, '_> {
    fn decode(&self, kind: Kind, unknown_fields: UnknownFields) -> (Option<Spec>, Vec<Problem>) {
        match kind {
            Kind::MeshConfig => self.spec(unknown_fields, Spec::MeshConfig),
            Kind::ProxyConfig => self.spec(unknown_fields, Spec::ProxyConfig),
            Kind::Gateway => self.spec(unknown_fields, Spec::Gateway),
            Kind::VirtualService => self.spec(unknown_fields, Spec::VirtualService),
            Kind::DestinationRule => self.spec(unknown_fields, Spec::DestinationRule),
            Kind::ServiceEntry => self.spec(unknown_fields, Spec::ServiceEntry),
            Kind::WorkloadEntry => self.spec(unknown_fields, Spec::WorkloadEntry),
            Kind::WorkloadGroup => self.spec(unknown_fields, Spec::WorkloadGroup),
            Kind::Sidecar => self.spec::<Value>(unknown_fields, Spec::Sidecar),
            Kind::EnvoyFilter => self.spec::<Value>(unknown_fields, Spec::EnvoyFilter),
            Kind::RequestAuthentication => self.spec(unknown_fields, Spec::RequestAuthentication),
            Kind::AuthorizationPolicy => self.spec(unknown_fields, Spec::AuthorizationPolicy),
            Kind::PeerAuthentication => self.spec(unknown_fields, Spec::PeerAuthentication),
            Kind::Telemetry => self.spec(unknown_fields, Spec::Telemetry),
            Kind::Service => self.spec(unknown_fields, Spec::Service),
            Kind::Endpoints => self.spec(unknown_fields, Spec::Endpoints),
            Kind::EndpointSlice => self.spec(unknown_fields, Spec::EndpointSlice),
            Kind::Secret => self.spec(unknown_fields, Spec::Secret),
            Kind::ConfigMap => self.spec(unknown_fields, Spec::ConfigMap),
            Kind::Namespace => self.spec(unknown_fields, Spec::Namespace),
        }
    }

    fn spec<T>(&self, unknown_fields: UnknownFields, wrap: fn(Arc<T>) -> Spec) -> (Option<Spec>, Vec<Problem>)
    where
        T: Default + for<'de> Deserialize<'de>,
    {
        let Some(node) = &self.node else { return (Some(wrap(Arc::default())), Vec::new()) };
        let (value, problems) = decode::<T>(node, self.path, unknown_fields);
        (value.map(|value| wrap(Arc::new(value))), problems)
    }
}

/// Whether a condition of a WorkloadEntry says so. A status is written by a controller: what can't be read of it says
/// nothing.
fn is_unhealthy(node: &Node<'_>) -> bool {
    let conditions = node.get("status").and_then(|status| status.get("conditions")).map(|list| &list.value);
    let Some(tree::Value::Sequence(conditions)) = conditions else { return false };
    let says = |condition: &Node<'_>, key: &str, word: &str| {
        condition.get(key).and_then(Node::text).is_some_and(|text| text.eq_ignore_ascii_case(word))
    };
    conditions.iter().any(|condition| says(condition, "type", "Healthy") && says(condition, "status", "False"))
}

/// Kinds whose fields are all known, unlike those of Kubernetes.
fn is_istio(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::Service | Kind::Endpoints | Kind::EndpointSlice | Kind::Secret | Kind::ConfigMap | Kind::Namespace
    )
}

fn security_kind(word: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.is_security() && kind.as_str() == word)
}

fn unknown_at_top(entry: &tree::Entry<'_>) -> Option<Problem> {
    const KNOWN: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
    if KNOWN.contains(&&*entry.key) {
        return None;
    }
    let meant = nearest(&entry.key, &KNOWN);
    let help = match meant {
        Some(name) => format!("did you mean `{name}`?"),
        None => "fields of the resource stand under `spec`".to_owned(),
    };
    Some(Problem {
        kind: ProblemKind::UnknownField,
        path: entry.key.clone().into_owned(),
        span: entry.key_span,
        message: format!("unknown field `{}`", entry.key),
        help: Some(help),
        meant: meant.map(str::to_owned),
    })
}

/// A mapping without what every object has.
fn without_head<'a>(node: &Node<'a>) -> Node<'a> {
    let mut node = node.clone();
    if let tree::Value::Mapping(entries) = &mut node.value {
        entries.retain(|entry| !matches!(&*entry.key, "apiVersion" | "kind" | "metadata" | "status"));
    }
    node
}

/// Whether one path is the other, or leads to it.
fn overlaps(a: &str, b: &str) -> bool {
    let leads = |from: &str, to: &str| {
        to.strip_prefix(from).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    leads(a, b) || leads(b, a)
}
