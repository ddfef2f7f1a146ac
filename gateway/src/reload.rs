//! Hot reload: a change of files becomes a new state, swapped in one step; or the old one stays, and operators hear why.
//!
//! ```text
//! watch ▶ debounce ▶ load, refresh credentials (off the request path) ▶ State::build ▶ swap ▶ listeners follow ▶ names follow
//! ```

mod ready_file;
mod watch;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use config::diagnostic::{Diagnostic, Severity};
use config::load::{Loaded, Loader, Timing};
use config::source::Rescan;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch as channel};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error, info, warn};

use crate::admin::Admin;
use crate::listener::Listeners;
use crate::state::State;
use crate::telemetry::metrics::ReloadOutcome;
use crate::tls::credentials::{Credentials, Refreshed, Watched};
use crate::worker::Gateway;
pub use ready_file::ReadyFile;
use watch::{Changes, Watch};

/// How often everything is looked at although no event came. Source: design, Reload rule 1.
const POLL: Duration = Duration::from_secs(5);

/// Looks after one change, as long as each makes out other directories to watch.
const MAX_ROUNDS: usize = 4;

/// Certificates whose end the metrics tell, the soonest first.
const MAX_CERTIFICATES: usize = 100;

/// How often an address that can't be bound is tried again.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// Follows the files, and makes the gateway follow them.
#[derive(Debug)]
pub struct Reloader {
    gateway: Arc<Gateway>,
    admin: Arc<Admin>,
    sources: Sources,
    roots: Vec<PathBuf>,
    /// The sockets, which are also drained and closed when the process ends.
    pub listeners: Listeners,
    states: channel::Sender<Arc<State>>,
    ready_file: Option<ReadyFile>,
    /// As of the last load.
    last: Option<Update>,
    /// What has been logged already.
    diagnostics: Arc<[Diagnostic]>,
}

/// Where everything is read from. Locked while a load is under way.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The configuration.
    pub loader: Arc<Mutex<Loader>>,
    /// Certificates, keys and CAs.
    pub credentials: Arc<Mutex<Credentials>>,
}

/// What a load has come to.
#[derive(Debug, Clone)]
pub struct Update {
    /// The configuration.
    pub loaded: Loaded,
    /// What became of credentials.
    pub refreshed: Refreshed,
    /// Everything there is to say, by file and line.
    pub diagnostics: Arc<[Diagnostic]>,
}

impl Update {
    /// Whether there is something else to serve, or to say about files.
    fn is_news(&self) -> bool {
        self.loaded.changed || self.loaded.summary.files > 0 || !self.refreshed.changed.is_empty()
    }
}

/// What may have changed.
#[derive(Debug, Default)]
struct Change {
    config: Changes,
    credentials: Changes,
}

impl Change {
    fn anything() -> Self {
        let all = || Changes { unknown: true, structure: true, ..Changes::default() };
        Self { config: all(), credentials: all() }
    }
}

impl Reloader {
    /// A reloader of `sources`, which have loaded nothing yet; the configuration's are `roots`. Each new state is sent to
    /// `states`.
    pub fn new(
        gateway: Arc<Gateway>,
        admin: Arc<Admin>,
        sources: Sources,
        roots: Vec<PathBuf>,
        listeners: Listeners,
        states: channel::Sender<Arc<State>>,
        ready_file: Option<ReadyFile>,
    ) -> Self {
        let (last, diagnostics) = (None, Arc::default());
        Self { gateway, admin, sources, roots, listeners, states, ready_file, last, diagnostics }
    }

    /// Loads everything for the first time, without serving it; what is wrong with it.
    pub async fn load(&mut self) -> Update {
        self.load_changes(Change::anything()).await
    }

    /// Serves `update` from here on; whether listeners came or went. `begin` is when the change was noticed.
    pub async fn apply(&mut self, update: &Update, begin: Instant) -> bool {
        let Update { loaded, refreshed, diagnostics } = update;
        let loading = begin.elapsed();
        let previous = self.gateway.state.load_full();
        let state = State::build(Arc::clone(&loaded.snapshot), &lock(&self.sources.credentials), &previous);
        let state = Arc::new(state);
        let building = begin.elapsed() - loading;
        self.gateway.state.store(Arc::clone(&state));
        // Nobody resolves names any more when the process ends.
        let _ = self.states.send(Arc::clone(&state));
        let moved = self.listeners.follow(&state).await;
        self.gateway.egress.set_listener_ports(self.listeners.ports());
        let duration = begin.elapsed();

        let outcome = ReloadOutcome {
            generation: state.generation,
            errors: count(diagnostics, Severity::Error),
            warnings: count(diagnostics, Severity::Warning),
            refusals: state.snapshot.refusals.len(),
            duration,
        };
        self.gateway.telemetry.metrics.reloads.record(&outcome);
        self.publish(update);
        for refusal in &state.snapshot.refusals {
            error!(resource = %refusal.resource, reason = refusal.reason, "refusing all requests: a policy can't be enforced");
        }
        let Timing { scan, accept, compile } = loaded.timing;
        info!(
            generation = state.generation,
            added = loaded.summary.added.len(),
            updated = loaded.summary.updated.len(),
            removed = loaded.summary.removed.len(),
            files = loaded.summary.files,
            credentials = refreshed.changed.len(),
            errors = outcome.errors,
            warnings = outcome.warnings,
            listeners = state.listeners.len(),
            clusters = state.clusters.len(),
            ?scan,
            ?accept,
            ?compile,
            build = ?building,
            listen = ?(duration - loading - building),
            "configuration in force"
        );
        moved
    }

    /// Tells operators what is to be said about `update`.
    fn publish(&mut self, update: &Update) {
        let Update { loaded: _, refreshed: Refreshed { changed, kept, dropped, news: _ }, diagnostics } = update;
        self.admin.diagnostics.store(Arc::new(Arc::clone(diagnostics)));
        self.log_news(diagnostics);
        if !changed.is_empty() || !kept.is_empty() || !dropped.is_empty() {
            info!(changed = %Names(changed), kept = %Names(kept), dropped = %Names(dropped), "credentials");
            let soonest = lock(&self.sources.credentials).report(MAX_CERTIFICATES);
            self.gateway.telemetry.metrics.certificates.set(soonest.into_iter().map(Into::into).collect());
        }
    }

    /// Follows changes until the future is dropped.
    ///
    /// # Errors
    /// When the operating system refuses signals. Without events for files, the poll goes on.
    pub async fn follow(&mut self) -> io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut watches = Watches { config: watch(&self.roots), credentials: watch(&[]), following: None };
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = interval(BIND_RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of the poll comes at once: it finds what changed between the first load and the first watch.
        loop {
            let mut change = tokio::select! {
                config = next_changes(&mut watches.config) => Change { config, ..Change::default() },
                credentials = next_changes(&mut watches.credentials) => Change { credentials, ..Change::default() },
                _ = poll.tick() => Change::anything(),
                () = hung_up(&mut hangup) => {
                    info!("hangup: looking at all files");
                    Change::anything()
                }
                _ = retry.tick(), if self.listeners.is_failing() => {
                    if self.listeners.retry() {
                        self.write_ready_file();
                    }
                    continue;
                }
            };
            for _ in 0..MAX_ROUNDS {
                let structure = change.config.structure || change.config.unknown;
                let everything = change.credentials.unknown;
                self.reload(change).await;
                // Files may have come into a directory before it was watched.
                change = self.watch_files(&mut watches, structure, everything);
                if !change.config.unknown && !change.credentials.unknown {
                    break;
                }
            }
        }
    }

    async fn reload(&mut self, change: Change) {
        let begin = Instant::now();
        debug!(config = ?change.config, credentials = ?change.credentials, "looking for changes");
        let update = self.load_changes(change).await;
        if update.is_news() {
            if self.apply(&update, begin).await {
                self.write_ready_file();
            }
        } else if update.refreshed.news {
            self.publish(&update);
        }
    }

    async fn load_changes(&mut self, change: Change) -> Update {
        let (sender, update) = oneshot::channel();
        let work = Work { sources: self.sources.clone(), change, last: self.last.take() };
        let work = Arc::new(Mutex::new(Some(work)));
        let taken = Arc::clone(&work);
        // Nobody waits any more when the process ends.
        let run = move || {
            if let Some(work) = lock(&taken).take() {
                let _ = sender.send(work.load());
            }
        };
        // A thread of its own, not one of the pool: the allocator gives back what parsing needed when the thread ends,
        // and an idle thread would keep it.
        let update = match thread::Builder::new().name("load".to_owned()).spawn(run) {
            Ok(_) => update.await.expect("loading panics neither on files nor on what is in them"),
            Err(error) => {
                warn!(%error, "no thread for loading: doing it here");
                let work = lock(&work).take().expect("no thread has taken it");
                work.load()
            }
        };
        self.last = Some(update.clone());
        update
    }

    /// Follows what the last load has seen; what may have changed unseen. `structure`: there may be other directories and
    /// links in the configuration. `everything`: what could not be watched is tried again.
    fn watch_files(&self, watches: &mut Watches, structure: bool, everything: bool) -> Change {
        let mut missed = Change::default();
        if structure && let Some(watch) = &mut watches.config {
            missed.config.unknown = watch.follow(lock(&self.sources.loader).directories());
        }
        if let Some(watch) = &mut watches.credentials {
            let credentials = lock(&self.sources.credentials);
            let version = Some(credentials.watched_version());
            let is_worth_it = watch.is_outdated() || (everything && watch.is_incomplete());
            if watches.following != version || is_worth_it {
                let Watched { directories, paths } = credentials.watched();
                missed.credentials.unknown = !watch.follow_all(directories, paths).is_empty();
                watches.following = version;
            }
        }
        missed
    }

    /// Logs each finding once, as long as it stays. Both lists are in [`Diagnostic::order`].
    fn log_news(&mut self, diagnostics: &Arc<[Diagnostic]>) {
        let is_known = |new: &&Diagnostic| self.diagnostics.binary_search_by(|known| known.order(new)).is_ok();
        for diagnostic in diagnostics.iter().filter(|new| !is_known(new)) {
            match diagnostic.severity {
                Severity::Error => error!("{diagnostic}"),
                Severity::Warning => warn!("{diagnostic}"),
                Severity::Note => debug!("{diagnostic}"),
            }
        }
        self.diagnostics = Arc::clone(diagnostics);
    }

    /// Tells whoever waits for it where the gateway listens.
    pub fn write_ready_file(&self) {
        if let Some(file) = &self.ready_file
            && let Err(error) = file.write(&self.listeners.report().load())
        {
            error!(%error, "can't write the ready file");
        }
    }
}

/// What is being watched.
struct Watches {
    config: Option<Watch>,
    credentials: Option<Watch>,
    /// The version of what is watched for credentials.
    following: Option<u64>,
}

fn watch(roots: &[PathBuf]) -> Option<Watch> {
    Watch::new(roots).inspect_err(|error| warn!(%error, "no events for files; looking every 5 s instead")).ok()
}

async fn next_changes(watch: &mut Option<Watch>) -> Changes {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

async fn hung_up(hangup: &mut Signal) {
    if hangup.recv().await.is_none() {
        std::future::pending().await
    }
}

/// A load, to be done where waiting for files holds up nothing else.
struct Work {
    sources: Sources,
    change: Change,
    last: Option<Update>,
}

impl Work {
    fn load(self) -> Update {
        let Self { sources, change: Change { config, credentials: files }, last } = self;
        let loaded = match &last {
            Some(last) if config == Changes::default() => unchanged(&last.loaded),
            _ => lock(&sources.loader).load(rescan(&config)),
        };
        let mut credentials = lock(&sources.credentials);
        let refreshed = credentials.refresh(&loaded.snapshot, &loaded.credentials, rescan(&files));
        let diagnostics = match last {
            Some(last) if !loaded.changed && !refreshed.news => last.diagnostics,
            _ => merged(&loaded.diagnostics, credentials.findings(&loaded.credentials)),
        };
        drop(credentials);
        Update { loaded, refreshed, diagnostics }
    }
}

/// What a load of nothing comes to.
fn unchanged(loaded: &Loaded) -> Loaded {
    let Loaded { snapshot, diagnostics, credentials, .. } = loaded.clone();
    let (changed, summary, timing) = (false, Default::default(), Timing::default());
    Loaded { snapshot, diagnostics, changed, credentials, summary, pending: loaded.pending, timing }
}

/// The findings about the configuration with those about credentials, in order.
pub fn merged(diagnostics: &Arc<[Diagnostic]>, findings: Vec<Diagnostic>) -> Arc<[Diagnostic]> {
    if findings.is_empty() {
        return Arc::clone(diagnostics);
    }
    let mut all: Vec<Diagnostic> = diagnostics.iter().cloned().chain(findings).collect();
    all.sort_by(Diagnostic::order);
    all.into()
}

fn rescan(changes: &Changes) -> Rescan<'_> {
    if changes.unknown { Rescan::All } else { Rescan::Changed(&changes.paths) }
}

/// Names in a log line, of which there may be thousands.
struct Names<'n>(&'n [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 10;
        f.write_str(&self.0[..self.0.len().min(MOST)].join(", "))?;
        match self.0.len().checked_sub(MOST) {
            Some(rest @ 1..) => write!(f, " and {rest} more"),
            _ => Ok(()),
        }
    }
}

fn count(diagnostics: &[Diagnostic], severity: Severity) -> usize {
    diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
