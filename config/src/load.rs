//! From files to what the data plane serves: source, accept and compile in a row.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::accept::{Changed, FileStatus, Refusal, Store};
use crate::compile::{self, Input, Memo, Options};
use crate::credential::CredentialUse;
use crate::diagnostic::{Diagnostic, Severity};
use crate::snapshot::Snapshot;
use crate::source::{Rescan, Source};

/// Loads directories again and again, each time at the cost of what changed. Lives as long as the process.
#[derive(Debug)]
pub struct Loader {
    options: Options,
    source: Source,
    store: Store,
    memo: Memo,
    /// Of the last compile; `None` before the first.
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    snapshot: Arc<Snapshot>,
    refused: Vec<Refusal>,
    /// Of the compile alone.
    findings: Vec<Diagnostic>,
    /// All of them.
    diagnostics: Arc<[Diagnostic]>,
    credentials: Arc<[CredentialUse]>,
}

/// The result of a load.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What to serve; the same `Arc` as before if nothing about it changed.
    pub snapshot: Arc<Snapshot>,
    /// Everything there is to say, by file and line.
    pub diagnostics: Arc<[Diagnostic]>,
    /// Whether the snapshot, the credentials or the diagnostics differ from the load before. The first load is a change.
    pub changed: bool,
    /// Who asks for which certificates and CAs.
    pub credentials: Arc<[CredentialUse]>,
    /// What became of the resources.
    pub summary: Changed,
    /// Something is in doubt until the next load with [`Rescan::All`].
    pub pending: bool,
    /// How long each step took.
    pub timing: Timing,
}

impl Loaded {
    /// Whether any diagnostic is an error.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// How long the steps of a load took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// Reading files.
    pub scan: Duration,
    /// Parsing and deciding what is in force.
    pub accept: Duration,
    /// Compiling; zero if there was nothing to compile.
    pub compile: Duration,
}

impl Loader {
    /// A loader of directories and files. Nothing is read yet.
    pub fn new(roots: impl IntoIterator<Item = PathBuf>, options: Options) -> Self {
        let store = Store::new(&options.namespace);
        Self { options, source: Source::new(roots), store, memo: Memo::default(), last: None }
    }

    /// Reads what changed and compiles it.
    pub fn load(&mut self, rescan: Rescan<'_>) -> Loaded {
        let begin = Instant::now();
        let scan = self.source.scan(rescan);
        let scanned = Instant::now();
        let generation = self.store.apply(scan);
        let accepted = Instant::now();
        let mut timing = Timing { scan: scanned - begin, accept: accepted - scanned, compile: Duration::ZERO };

        let needs_compile = |last: &Last| !generation.changed.is_empty() || last.refused != generation.refused_security;
        let (snapshot, findings, credentials) = match self.last.take() {
            Some(last) if !needs_compile(&last) => {
                let (snapshot, credentials) = (Arc::clone(&last.snapshot), Arc::clone(&last.credentials));
                (snapshot, self.keep(last), credentials)
            }
            last => {
                let input = Input { resources: &generation.resources, refused: &generation.refused_security };
                let compiled = compile::compile(input, &self.options, &mut self.memo);
                timing.compile = accepted.elapsed();
                // Resources may change without anything that is served being another.
                let snapshot = match &last {
                    Some(last) if is_same(&last.snapshot, &compiled.snapshot) => Arc::clone(&last.snapshot),
                    _ => Arc::new(compiled.snapshot),
                };
                self.last = last;
                (snapshot, compiled.diagnostics, compiled.credentials)
            }
        };
        let mut diagnostics = generation.diagnostics;
        diagnostics.extend_from_slice(&findings);
        diagnostics.sort_by(Diagnostic::order);
        let before = self.last.take();
        let changed = before.as_ref().is_none_or(|before| {
            !Arc::ptr_eq(&before.snapshot, &snapshot)
                || !Arc::ptr_eq(&before.credentials, &credentials)
                || *before.diagnostics != *diagnostics
        });
        let diagnostics = match before {
            Some(before) if !changed => before.diagnostics,
            _ => diagnostics.into(),
        };
        self.last = Some(Last {
            snapshot: Arc::clone(&snapshot),
            refused: generation.refused_security,
            findings,
            diagnostics: Arc::clone(&diagnostics),
            credentials: Arc::clone(&credentials),
        });
        Loaded {
            snapshot,
            diagnostics,
            changed,
            credentials,
            summary: generation.changed,
            pending: generation.pending,
            timing,
        }
    }

    /// Puts `last` back and gives its findings once more.
    fn keep(&mut self, last: Last) -> Vec<Diagnostic> {
        let findings = last.findings.clone();
        self.last = Some(last);
        findings
    }

    /// The directories that hold the files of the last load: what to watch.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.source.directories()
    }

    /// Files and what became of their resources, by path.
    pub fn status(&self) -> Vec<FileStatus> {
        self.store.status()
    }

    /// Who this gateway is.
    pub fn options(&self) -> &Options {
        &self.options
    }
}

/// Whether two snapshots are made of the same parts. Parts that are equal without being the same count as different,
/// which costs a swap and nothing else.
fn is_same(a: &Snapshot, b: &Snapshot) -> bool {
    let Snapshot { listeners, clusters, secrets, mesh, refusals } = a;
    listeners.len() == b.listeners.len()
        && listeners.iter().zip(&b.listeners).all(|(a, b)| Arc::ptr_eq(a, b))
        && Arc::ptr_eq(clusters, &b.clusters)
        && Arc::ptr_eq(secrets, &b.secrets)
        && Arc::ptr_eq(mesh, &b.mesh)
        && *refusals == b.refusals
}

/// Loads directories and files once, as at start.
pub fn load(roots: impl IntoIterator<Item = PathBuf>, options: Options) -> Loaded {
    Loader::new(roots, options).load(Rescan::All)
}
