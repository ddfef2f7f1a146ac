//! Notices changes of the configuration by the operating system's events.
//!
//! Directories are watched one by one, as the source has found them; and, for every link on the way to a file, the
//! directory in which the link could be replaced. Whatever is missed (network file systems, lost events) is found by the
//! slow poll.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::mem;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Error, ErrorKind, Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

/// As long as changes follow each other at least this fast, they are joined.
const QUIET: Duration = Duration::from_millis(2);

/// A change waits for others at most this long.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// Links that are followed to find one file, as in the kernel.
const MAX_LINKS: usize = 40;

/// Watches directories.
#[derive(Debug)]
pub(super) struct Watch {
    watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<notify::Result<Event>>,
    roots: Vec<PathBuf>,
    /// Everything in here is of interest.
    directories: BTreeSet<PathBuf>,
    /// So are these, wherever they are: roots, and links on the way to files.
    entries: BTreeSet<PathBuf>,
    /// What the operating system watches.
    watched: BTreeSet<PathBuf>,
    /// Something that was watched may be another directory by now, or a link may lead elsewhere.
    outdated: bool,
    /// How many of what is wanted could not be watched.
    unwatched: usize,
    pending: Pending,
}

/// Changes that wait for those that come with them.
#[derive(Debug, Default)]
struct Pending {
    changes: Changes,
    /// Files that are being written: their content is not to be trusted before they are closed.
    open: BTreeSet<PathBuf>,
    /// The end of the wait, as soon as there is a change.
    deadline: Option<Instant>,
}

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// As the operating system named them.
    pub(super) paths: Vec<PathBuf>,
    /// Events were lost: anything may have changed.
    pub(super) unknown: bool,
    /// Names came or went, so there may be other directories and links to watch.
    pub(super) structure: bool,
}

impl Watch {
    /// Watches nothing yet. `roots` are absolute.
    ///
    /// # Errors
    /// When the operating system has no watches left.
    pub(super) fn new(roots: &[PathBuf]) -> notify::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let watcher = RecommendedWatcher::new(
            move |event: notify::Result<Event>| {
                // Opening and reading, our own included, is no change.
                let is_reading = |event: &Event| matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
                if !event.as_ref().is_ok_and(is_reading) {
                    // Nobody listens any more when the process ends.
                    let _ = sender.send(event);
                }
            },
            notify::Config::default(),
        )?;
        Ok(Self {
            watcher,
            events,
            roots: roots.to_owned(),
            directories: BTreeSet::new(),
            entries: BTreeSet::new(),
            watched: BTreeSet::new(),
            outdated: false,
            unwatched: 0,
            pending: Pending::default(),
        })
    }

    /// Watches the directories of the last scan and the links in them; whether one of them wasn't watched before. Then
    /// something may have changed in it unseen.
    pub(super) fn follow<'p>(&mut self, directories: impl Iterator<Item = &'p Path>) -> bool {
        let directories: BTreeSet<PathBuf> = directories.map(Path::to_owned).collect();
        let links = directories.iter().flat_map(|directory| links_in(directory));
        let paths: Vec<PathBuf> = self.roots.iter().cloned().chain(links).collect();
        self.follow_all(directories, paths).iter().any(|added| self.directories.contains(added))
    }

    /// Watches everything in `directories`, and `paths` wherever links lead; what wasn't watched before. Something may
    /// have changed there unseen.
    pub(super) fn follow_all(
        &mut self,
        directories: BTreeSet<PathBuf>,
        paths: impl IntoIterator<Item = PathBuf>,
    ) -> Vec<PathBuf> {
        self.outdated = false;
        self.directories = directories;
        self.entries = paths.into_iter().flat_map(|path| hops(&path)).collect();
        let parents = self.entries.iter().filter_map(|entry| entry.parent()).map(Path::to_owned);
        let wanted: BTreeSet<PathBuf> = self.directories.iter().cloned().chain(parents).collect();
        for gone in self.watched.difference(&wanted) {
            // A directory that is gone has taken its watch along.
            let _ = self.watcher.unwatch(gone);
        }
        self.watched.retain(|path| wanted.contains(path));
        let mut added = Vec::new();
        let (mut unwatched, mut first) = (0, None);
        for path in wanted {
            if self.watched.contains(&path) {
                continue;
            }
            match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    added.push(path.clone());
                    self.watched.insert(path);
                }
                // Gone since: the poll goes on.
                Err(Error { kind: ErrorKind::PathNotFound, .. }) => {}
                Err(error) => {
                    unwatched += 1;
                    first.get_or_insert(error);
                }
            }
        }
        if let Some(error) = first
            && self.unwatched == 0
        {
            warn!(
                %error,
                directories = unwatched,
                "can't watch all directories: changes in them are found up to 5 s later; raise the sysctl \
                 fs.inotify.max_user_watches if it is used up"
            );
        }
        self.unwatched = unwatched;
        added
    }

    /// Whether it is time to follow once more, although nobody asks for other things.
    pub(super) fn is_outdated(&self) -> bool {
        self.outdated
    }

    /// Whether something could not be watched and is worth another try.
    pub(super) fn is_incomplete(&self) -> bool {
        self.unwatched > 0
    }

    /// Waits for a change, and then for those that come with it. If it is dropped meanwhile, the next call goes on with
    /// what was collected.
    pub(super) async fn changed(&mut self) -> Changes {
        let deadline = loop {
            if let Some(deadline) = self.pending.deadline {
                break deadline;
            }
            let Some(event) = self.events.recv().await else { return std::future::pending().await };
            self.note(event);
        };
        loop {
            let quiet = if self.pending.open.is_empty() { deadline.min(Instant::now() + QUIET) } else { deadline };
            match timeout_at(quiet, self.events.recv()).await {
                Ok(Some(event)) => self.note(event),
                Ok(None) | Err(_) => break,
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        let mut changes = mem::take(&mut self.pending).changes;
        changes.paths.sort_unstable();
        changes.paths.dedup();
        changes
    }

    fn note(&mut self, event: notify::Result<Event>) {
        self.collect(event);
        let Pending { changes, open: _, deadline } = &mut self.pending;
        if deadline.is_none() && *changes != Changes::default() {
            *deadline = Some(Instant::now() + LONGEST_WAIT);
        }
    }

    fn collect(&mut self, event: notify::Result<Event>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                debug!(%error, "lost events");
                self.pending.changes.unknown = true;
                return;
            }
        };
        self.pending.changes.unknown |= event.need_rescan();
        for path in event.paths {
            let is_ours = self.entries.contains(&path)
                || self.directories.contains(&path)
                || path.parent().is_some_and(|parent| self.directories.contains(parent));
            if !is_ours {
                continue;
            }
            if let EventKind::Modify(ModifyKind::Data(_)) = event.kind {
                self.pending.open.insert(path.clone());
            } else {
                self.pending.open.remove(&path);
            }
            if matches!(
                event.kind,
                EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
            ) {
                self.pending.changes.structure = true;
                self.outdated |= self.entries.contains(&path);
                // The watch belongs to the directory that was there before.
                self.forget(&path);
            }
            self.pending.changes.paths.push(path);
        }
    }

    fn forget(&mut self, path: &Path) {
        let below: Vec<PathBuf> = self
            .watched
            .range::<Path, _>((std::ops::Bound::Included(path), std::ops::Bound::Unbounded))
            .take_while(|watched| watched.starts_with(path))
            .cloned()
            .collect();
        for path in below {
            let _ = self.watcher.unwatch(&path);
            self.watched.remove(&path);
            self.outdated = true;
        }
    }
}

fn links_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
        .map(|entry| entry.path())
        .collect()
}

/// Every link that is followed on the way to `path`, and where the way ends.
fn hops(path: &Path) -> Vec<PathBuf> {
    let mut hops = vec![path.to_owned()];
    let mut links = 0;
    let mut resolved = PathBuf::new();
    // What is still to be walked, last component first.
    let mut rest: Vec<OsString> = names(path);
    while let Some(name) = rest.pop() {
        if name == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&name);
        match fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                if target.is_absolute() {
                    resolved = PathBuf::new();
                }
                rest.extend(names(&target));
                hops.push(next);
            }
            _ => resolved = next,
        }
    }
    hops.push(resolved);
    hops
}

/// The components of a path, last first; `.` is left out.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().filter(|component| !matches!(component, Component::CurDir));
    let mut names: Vec<OsString> = names.map(|component| component.as_os_str().to_owned()).collect();
    names.reverse();
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::os::unix::fs::symlink;

    use notify::event::DataChange;

    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
        watch: Watch,
    }

    /// A watched directory `config` in a temporary one.
    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap().join("config");
        fs::create_dir(&root).unwrap();
        let mut watch = Watch::new(std::slice::from_ref(&root)).unwrap();
        watch.follow([&*root].into_iter());
        Fixture { directory, watch }
    }

    impl Fixture {
        fn root(&self) -> PathBuf {
            self.directory.path().canonicalize().unwrap().join("config")
        }

        /// Waits until all of `paths` have been named; everything that was named until then.
        async fn sees(&mut self, paths: &[&Path]) -> BTreeSet<PathBuf> {
            let mut seen = BTreeSet::new();
            while !paths.iter().all(|path| seen.contains(*path)) {
                let changes = tokio::time::timeout(Duration::from_secs(30), self.watch.changed()).await;
                seen.extend(changes.unwrap().paths);
            }
            seen
        }
    }

    #[tokio::test]
    async fn writes_and_renames_are_changes() {
        let mut fixture = fixture();
        let (a, b) = (fixture.root().join("a.yaml"), fixture.root().join("b.yaml"));
        fs::write(&a, "kind: Gateway").unwrap();
        fixture.sees(&[&a]).await;
        fs::rename(&a, &b).unwrap();
        fixture.sees(&[&a, &b]).await;
        fs::remove_file(&b).unwrap();
        fixture.sees(&[&b]).await;
    }

    #[tokio::test]
    async fn reading_is_no_change() {
        let mut fixture = fixture();
        let (a, b) = (fixture.root().join("a.yaml"), fixture.root().join("b.yaml"));
        fixture.watch.follow(std::iter::empty());
        fs::write(&a, "kind: Gateway").unwrap();
        let root = fixture.root();
        fixture.watch.follow([&*root].into_iter());
        fs::read(&a).unwrap();
        fs::read_dir(&root).unwrap().count();
        fs::write(&b, "").unwrap();
        assert_eq!(fixture.sees(&[&b]).await, BTreeSet::from([b]));
    }

    /// Runs `script` beside a wait for changes on a clock that is turned by hand; how long the wait took, and what it
    /// found.
    async fn joined(script: impl AsyncFnOnce(&dyn Fn(EventKind, &str))) -> (Duration, Vec<PathBuf>) {
        let mut fixture = fixture();
        let root = fixture.root();
        let (sender, events) = mpsc::unbounded_channel();
        fixture.watch.events = events;
        let send = |kind, name: &str| sender.send(Ok(Event::new(kind).add_path(root.join(name)))).unwrap();
        let begin = Instant::now();
        let waiting = async {
            let changes = fixture.watch.changed().await;
            (begin.elapsed(), changes.paths)
        };
        tokio::join!(waiting, script(&send)).0
    }

    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));

    #[tokio::test(start_paused = true)]
    async fn changes_in_quick_succession_are_joined() {
        let (time, paths) = joined(async |send| {
            send(CLOSED, "a.yaml");
            tokio::time::sleep(QUIET / 2).await;
            send(CLOSED, "b.yaml");
            tokio::time::sleep(QUIET * 2).await;
            send(CLOSED, "c.yaml");
        })
        .await;
        assert_eq!(paths.len(), 2);
        assert!(time <= QUIET * 2, "{time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_still_being_written_is_waited_for() {
        let (time, _) = joined(async |send| {
            send(WRITTEN, "a.yaml");
            tokio::time::sleep(LONGEST_WAIT / 2).await;
            send(CLOSED, "a.yaml");
        })
        .await;
        assert!(time > LONGEST_WAIT / 2 && time < LONGEST_WAIT, "{time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn endless_changes_wait_no_longer_than_the_limit() {
        let (time, _) = joined(async |send| {
            for _ in 0..1000 {
                send(CLOSED, "a.yaml");
                tokio::time::sleep(QUIET / 2).await;
            }
        })
        .await;
        assert!(time >= LONGEST_WAIT && time <= LONGEST_WAIT + QUIET, "{time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_loses_nothing() {
        let mut fixture = fixture();
        let a = fixture.root().join("a.yaml");
        let (sender, events) = mpsc::unbounded_channel();
        fixture.watch.events = events;
        let send = |kind| sender.send(Ok(Event::new(kind).add_path(a.clone()))).unwrap();
        let begin = Instant::now();
        send(WRITTEN);
        let given_up = tokio::time::timeout(LONGEST_WAIT / 2, fixture.watch.changed()).await;
        assert!(given_up.is_err(), "a file that is being written is waited for");
        assert_eq!(fixture.watch.changed().await.paths, std::slice::from_ref(&a));
        assert!(begin.elapsed() >= LONGEST_WAIT && begin.elapsed() <= LONGEST_WAIT + QUIET, "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn what_can_not_be_watched_is_tried_again() {
        let mut fixture = fixture();
        let (file, root) = (fixture.root().join("file"), fixture.root());
        fs::write(&file, "").unwrap();
        let below = file.join("below");
        fixture.watch.follow([&*root, &*below].into_iter());
        assert!(fixture.watch.is_incomplete());
        fs::remove_file(&file).unwrap();
        fs::create_dir_all(&below).unwrap();
        assert!(fixture.watch.follow([&*root, &*below].into_iter()), "watched now");
        assert!(!fixture.watch.is_incomplete());
        fixture.watch.follow([&*root, &*root.join("missing")].into_iter());
        assert!(!fixture.watch.is_incomplete(), "nothing is there to be watched");
    }

    #[tokio::test]
    async fn a_root_that_comes_back_is_noticed() {
        let mut fixture = fixture();
        let root = fixture.root();
        fs::remove_dir(&root).unwrap();
        fixture.sees(&[&root]).await;
        fixture.watch.follow(std::iter::empty());
        fs::create_dir(&root).unwrap();
        fixture.sees(&[&root]).await;
        assert!(fixture.watch.follow([&*root].into_iter()), "watched anew");
        fs::write(root.join("a.yaml"), "").unwrap();
        fixture.sees(&[&root.join("a.yaml")]).await;
    }

    #[tokio::test]
    async fn targets_of_links_are_watched_at_every_hop() {
        let mut fixture = fixture();
        let elsewhere = fixture.directory.path().canonicalize().unwrap().join("releases");
        for version in ["41", "42"] {
            fs::create_dir_all(elsewhere.join(version)).unwrap();
            fs::write(elsewhere.join(version).join("a.yaml"), version).unwrap();
        }
        symlink("41", elsewhere.join("current")).unwrap();
        symlink("../releases/current/a.yaml", fixture.root().join("a.yaml")).unwrap();
        let root = fixture.root();
        fixture.sees(&[&root.join("a.yaml")]).await;
        fixture.watch.follow([&*root].into_iter());
        // The file behind the links is edited.
        fs::write(elsewhere.join("41/a.yaml"), "edited").unwrap();
        fixture.sees(&[&elsewhere.join("41/a.yaml")]).await;
        // A link in the middle is replaced.
        symlink("42", elsewhere.join("next")).unwrap();
        fs::rename(elsewhere.join("next"), elsewhere.join("current")).unwrap();
        fixture.sees(&[&elsewhere.join("current")]).await;
    }
}
