//! Hot reload: a change of files becomes a new state, swapped in one step; or the old one stays, and operators hear why.
//!
//! ```text
//! watch ▶ debounce ▶ load (off the request path) ▶ State::build ▶ swap ▶ listeners follow ▶ names follow
//! ```

mod ready_file;
mod watch;

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
use crate::tls::credentials::Credentials;
use crate::worker::Gateway;
pub use ready_file::ReadyFile;
use watch::{Changes, Watch};

/// How often everything is looked at although no event came. Source: design, Reload rule 1.
const POLL: Duration = Duration::from_secs(5);

/// How often an address that can't be bound is tried again.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// Follows the files, and makes the gateway follow them.
#[derive(Debug)]
pub struct Reloader {
    gateway: Arc<Gateway>,
    admin: Arc<Admin>,
    /// Locked while a load is under way.
    loader: Arc<Mutex<Loader>>,
    roots: Vec<PathBuf>,
    /// The sockets, which are also drained and closed when the process ends.
    pub listeners: Listeners,
    credentials: Credentials,
    states: channel::Sender<Arc<State>>,
    ready_file: Option<ReadyFile>,
    /// What has been logged already.
    diagnostics: Arc<[Diagnostic]>,
}

impl Reloader {
    /// A reloader of `loader`, which has loaded nothing yet from `roots`. Each new state is sent to `states`.
    pub fn new(
        gateway: Arc<Gateway>,
        admin: Arc<Admin>,
        loader: Arc<Mutex<Loader>>,
        roots: Vec<PathBuf>,
        listeners: Listeners,
        states: channel::Sender<Arc<State>>,
        ready_file: Option<ReadyFile>,
    ) -> Self {
        let (credentials, diagnostics) = (Credentials::default(), Arc::default());
        Self { gateway, admin, loader, roots, listeners, credentials, states, ready_file, diagnostics }
    }

    /// Loads everything for the first time, without serving it; what is wrong with it.
    pub async fn load(&mut self) -> Loaded {
        self.load_changes(Changes { unknown: true, ..Changes::default() }).await
    }

    /// Serves `loaded` from here on; whether listeners came or went. `begin` is when the change was noticed.
    pub async fn apply(&mut self, loaded: &Loaded, begin: Instant) -> bool {
        let loading = begin.elapsed();
        let previous = self.gateway.state.load_full();
        let state = Arc::new(State::build(Arc::clone(&loaded.snapshot), &self.credentials, &previous));
        let building = begin.elapsed() - loading;
        self.gateway.state.store(Arc::clone(&state));
        // Nobody resolves names any more when the process ends.
        let _ = self.states.send(Arc::clone(&state));
        let moved = self.listeners.follow(&state).await;
        let duration = begin.elapsed();

        let outcome = ReloadOutcome {
            generation: state.generation,
            errors: count(&loaded.diagnostics, Severity::Error),
            warnings: count(&loaded.diagnostics, Severity::Warning),
            refusals: state.snapshot.refusals.len(),
            duration,
        };
        self.gateway.telemetry.metrics.reloads.record(&outcome);
        self.admin.diagnostics.store(Arc::new(Arc::clone(&loaded.diagnostics)));
        self.log_news(&loaded.diagnostics);
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

    /// Follows changes until the future is dropped.
    ///
    /// # Errors
    /// When the operating system refuses signals. Without events for files, the poll goes on.
    pub async fn follow(&mut self) -> io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut watch = match Watch::new(&self.roots) {
            Ok(watch) => Some(watch),
            Err(error) => {
                warn!(%error, "no events for files; looking every 5 s instead");
                None
            }
        };
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = interval(BIND_RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of the poll comes at once: it finds what changed between the first load and the first watch.
        loop {
            let changes = tokio::select! {
                changes = next_changes(&mut watch) => changes,
                _ = poll.tick() => Changes { unknown: true, structure: true, ..Changes::default() },
                () = hung_up(&mut hangup) => {
                    info!("hangup: looking at all files");
                    Changes { unknown: true, structure: true, ..Changes::default() }
                }
                _ = retry.tick(), if self.listeners.is_failing() => {
                    if self.listeners.retry() {
                        self.write_ready_file();
                    }
                    continue;
                }
            };
            let structure = changes.structure || changes.unknown;
            self.reload(changes).await;
            if structure && self.watch_directories(&mut watch) {
                // Files may have come into a directory before it was watched.
                self.reload(Changes { unknown: true, ..Changes::default() }).await;
            }
        }
    }

    async fn reload(&mut self, changes: Changes) {
        let begin = Instant::now();
        debug!(paths = ?changes.paths, all = changes.unknown, "looking for changes");
        let loaded = self.load_changes(changes).await;
        if (loaded.changed || loaded.summary.files > 0) && self.apply(&loaded, begin).await {
            self.write_ready_file();
        }
    }

    async fn load_changes(&mut self, changes: Changes) -> Loaded {
        let (loader, changes) = (Arc::clone(&self.loader), Arc::new(changes));
        let (sender, loaded) = oneshot::channel();
        let seen = Arc::clone(&changes);
        // Nobody waits any more when the process ends.
        let work = move || _ = sender.send(load(&loader, &seen));
        // A thread of its own, not one of the pool: the allocator gives back what parsing needed when the thread ends,
        // and an idle thread would keep it.
        match thread::Builder::new().name("load".to_owned()).spawn(work) {
            Ok(_) => loaded.await.expect("loading panics neither on files nor on what is in them"),
            Err(error) => {
                warn!(%error, "no thread for loading: doing it here");
                load(&self.loader, &changes)
            }
        }
    }

    fn watch_directories(&self, watch: &mut Option<Watch>) -> bool {
        watch.as_mut().is_some_and(|watch| watch.follow(lock(&self.loader).directories()))
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

fn load(loader: &Mutex<Loader>, changes: &Changes) -> Loaded {
    lock(loader).load(if changes.unknown { Rescan::All } else { Rescan::Changed(&changes.paths) })
}

fn count(diagnostics: &[Diagnostic], severity: Severity) -> usize {
    diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count()
}

fn lock(loader: &Mutex<Loader>) -> MutexGuard<'_, Loader> {
    loader.lock().unwrap_or_else(PoisonError::into_inner)
}
