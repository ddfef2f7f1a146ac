//! Files become documents: the only part of this crate that reads files.
//!
//! A [`Source`] remembers what it has read. A scan reads what changed, cuts it into documents without parsing, and
//! keeps every document whose bytes are the same, so that whoever parses can tell by the `Arc`.

mod document;
mod split;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ahash::AHashMap;

use crate::diagnostic::{Code, Diagnostic, Severity};

pub use document::Document;

/// A larger file is more likely a mistake than a configuration.
const MAX_FILE_SIZE: u64 = 64 << 20;
/// A write this shortly before a read may be followed by another one with the same time stamp, since kernels count in
/// ticks of up to 10 ms.
const TICK: Duration = Duration::from_millis(50);

/// Watched directories and files.
#[derive(Debug)]
pub struct Source {
    roots: Vec<Root>,
    files: AHashMap<Arc<Path>, File>,
    /// Directories of the last walk.
    directories: BTreeSet<PathBuf>,
    /// Whether the last walk followed a link: then a change elsewhere may be a change here.
    has_links: bool,
    /// Of the last walk.
    problems: Vec<Diagnostic>,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    /// Device and inode, once it has been there with files in it.
    identity: Option<(u64, u64)>,
}

#[derive(Debug, Clone)]
struct File {
    content: Content,
    stamp: Option<Stamp>,
    /// Seen with no bytes in it although it had documents.
    emptied: bool,
}

/// Equal stamps mean equal content: while `racy` holds they may lie, but once it doesn't they differ from the racy one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Written so shortly before it was read that a later write may carry the same time.
    racy: bool,
}

/// What to look at.
#[derive(Debug, Clone, Copy)]
pub enum Rescan<'p> {
    /// Everything; also settles what was in doubt. For the start, and for the slow poll.
    All,
    /// These paths, as the operating system named them below the roots. Files among them are read even if they look
    /// unchanged. Widened to everything where a path may mean more than itself (directories, links).
    Changed(&'p [PathBuf]),
}

/// What a scan found different from the one before.
#[derive(Debug, Default)]
pub struct Scan {
    /// By path. `None`: the file is gone.
    pub changes: BTreeMap<Arc<Path>, Option<Content>>,
    /// Trouble with directories, as of this scan. Trouble with a file is in its [`Content`].
    pub diagnostics: Vec<Diagnostic>,
    /// Something is in doubt (a file that became empty), and will be settled by a later [`Rescan::All`].
    pub pending: bool,
}

/// What a file holds.
#[derive(Debug, Clone)]
pub struct Content {
    /// In their order; as last read, if there is a problem.
    pub documents: Arc<[Arc<Document>]>,
    /// Why it could not be read this time.
    pub problem: Option<Diagnostic>,
}

impl Source {
    /// A source of these directories and files. Nothing is read yet.
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            roots: roots.into_iter().map(|path| Root { path, identity: None }).collect(),
            files: AHashMap::new(),
            directories: BTreeSet::new(),
            has_links: false,
            problems: Vec::new(),
        }
    }

    /// The directories that hold the files of the last scan, roots included: what to watch.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.directories.iter().map(PathBuf::as_path)
    }

    /// Looks for changes since the last scan.
    ///
    /// Cost: for [`Rescan::All`] one `stat` for each file, and a read of each changed one; for [`Rescan::Changed`]
    /// the same for the named files only.
    pub fn scan(&mut self, rescan: Rescan<'_>) -> Scan {
        let mut scan = Scan::default();
        match rescan {
            Rescan::Changed(paths) if paths.iter().all(|path| self.is_plain(path)) => {
                for path in paths {
                    self.look_at_named(path, &mut scan);
                }
            }
            Rescan::Changed(paths) => self.walk(paths, false, &mut scan),
            Rescan::All => self.walk(&[], true, &mut scan),
        }
        scan.diagnostics.clone_from(&self.problems);
        scan.pending = self.files.values().any(|file| file.emptied);
        scan
    }

    /// Whether a change at `path` concerns at most the file `path`.
    fn is_plain(&self, path: &Path) -> bool {
        if self.has_links || self.directories.contains(path) || !self.problems.is_empty() {
            return false;
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) => metadata.is_file(),
            // Roots have an interest in themselves; anything else that is gone was a file or nothing.
            Err(_) => !self.roots.iter().any(|root| root.path == path),
        }
    }

    fn look_at_named(&mut self, path: &Path, scan: &mut Scan) {
        let known = self.files.contains_key(path);
        let parent_is_known = path.parent().is_some_and(|parent| self.directories.contains(parent));
        let is_new = parent_is_known && walk::is_configuration(path);
        if !known && !is_new {
            return;
        }
        let path: Arc<Path> = Arc::from(path);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => self.look_at(&path, &metadata, true, false, scan),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.remove(&path, scan),
            Err(error) => self.fail(&path, unreadable(&path, &error), scan),
        }
    }

    /// Goes through everything. Files in `named` are read even if they look unchanged; `settle` believes in files that
    /// are empty for the second time.
    fn walk(&mut self, named: &[PathBuf], settle: bool, scan: &mut Scan) {
        let mut walk = walk::Walk::default();
        for root in &mut self.roots {
            let before = walk.files.len();
            let identity = walk.root(&root.path);
            let Some(identity) = identity else { continue };
            let is_empty = walk.files.len() == before;
            match root.identity {
                // An unmounted directory shows the empty one below the mount point.
                Some(known) if is_empty && known != identity => walk.failed(
                    &root.path,
                    "the directory is empty, and not the one that was here; its resources stay in force".to_owned(),
                ),
                _ if is_empty => {}
                _ => root.identity = Some(identity),
            }
        }
        let gone: Vec<Arc<Path>> = self
            .files
            .keys()
            .filter(|path| {
                !walk.files.contains_key(&***path) && !walk.unreadable.iter().any(|dir| path.starts_with(dir))
            })
            .cloned()
            .collect();
        for path in gone {
            self.remove(&path, scan);
        }
        for (path, metadata) in &walk.files {
            let path =
                self.files.get_key_value(&**path).map_or_else(|| Arc::from(&**path), |(path, _)| Arc::clone(path));
            let is_named = named.iter().any(|named| **named == *path);
            self.look_at(&path, metadata, is_named, settle, scan);
        }
        self.directories = walk.directories;
        self.has_links = walk.has_links;
        self.problems = walk.problems;
    }

    /// Reads a file if it changed, or must be read anyway.
    fn look_at(&mut self, path: &Arc<Path>, metadata: &fs::Metadata, must: bool, settle: bool, scan: &mut Scan) {
        let stamp = Stamp::of(metadata);
        let known = self.files.get(path);
        if let Some(file) = known
            && !must
            && file.stamp == Some(stamp)
            && !(file.emptied && settle)
        {
            return;
        }
        if metadata.len() > MAX_FILE_SIZE {
            let message = format!("the file has {} bytes, the limit is {MAX_FILE_SIZE}", metadata.len());
            let diagnostic = Diagnostic::new(Severity::Error, Code::TooLarge, Arc::clone(path), message)
                .help("split it into several files");
            return self.fail(path, diagnostic, scan);
        }
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.remove(path, scan),
            Err(error) => return self.fail(path, unreadable(path, &error), scan),
        };
        // A save often begins by emptying the file. Its resources go when a later poll finds it still empty.
        if bytes.is_empty()
            && let Some(file) = self.files.get_mut(path)
            && !file.content.documents.is_empty()
            && !(file.emptied && settle)
        {
            file.stamp = Some(stamp);
            if !file.emptied {
                file.emptied = true;
                let message = "the file is empty; its resources stay until the next poll finds it still empty";
                let diagnostic = Diagnostic::new(Severity::Warning, Code::EmptyFile, Arc::clone(path), message);
                file.content.problem = Some(diagnostic);
                scan.changes.insert(Arc::clone(path), Some(file.content.clone()));
            }
            return;
        }
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n');
                let message = format!("the file is not UTF-8: see line {}", line.count() + 1);
                let diagnostic = Diagnostic::new(Severity::Error, Code::Syntax, Arc::clone(path), message);
                self.fail(path, diagnostic, scan);
                return;
            }
        };
        let previous = self.files.get(path).map(|file| &*file.content.documents).unwrap_or_default();
        let documents = split::split(path, &text, previous);
        let had_problem = self.files.get(path).is_some_and(|file| file.content.problem.is_some());
        let is_same = self.files.contains_key(path)
            && !had_problem
            && documents.len() == previous.len()
            && documents.iter().zip(previous).all(|(new, old)| Arc::ptr_eq(new, old));
        if is_same {
            if let Some(file) = self.files.get_mut(path) {
                file.stamp = Some(stamp);
            }
            return;
        }
        let content = Content { documents: documents.into(), problem: None };
        scan.changes.insert(Arc::clone(path), Some(content.clone()));
        self.files.insert(Arc::clone(path), File { content, stamp: Some(stamp), emptied: false });
    }

    fn remove(&mut self, path: &Arc<Path>, scan: &mut Scan) {
        if self.files.remove(path).is_some() {
            scan.changes.insert(Arc::clone(path), None);
        }
    }

    /// The file can't be read: what it held stays.
    fn fail(&mut self, path: &Arc<Path>, diagnostic: Diagnostic, scan: &mut Scan) {
        let file = self.files.entry(Arc::clone(path)).or_insert_with(|| File {
            content: Content { documents: Arc::default(), problem: None },
            stamp: None,
            emptied: false,
        });
        file.stamp = None;
        if file.content.problem.as_ref() != Some(&diagnostic) {
            file.content.problem = Some(diagnostic);
            scan.changes.insert(Arc::clone(path), Some(file.content.clone()));
        }
    }
}

/// The documents of a text that is no file; those that are among `previous` are the same.
pub(crate) fn documents(file: &Arc<Path>, text: &str, previous: &[Arc<Document>]) -> Vec<Arc<Document>> {
    split::split(file, text, previous)
}

fn unreadable(path: &Arc<Path>, error: &io::Error) -> Diagnostic {
    Diagnostic::new(Severity::Error, Code::Unreadable, Arc::clone(path), format!("can't read the file: {error}"))
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        // A time in the future (another clock) counts as racy, too.
        let racy = metadata
            .modified()
            .is_ok_and(|modified| SystemTime::now().duration_since(modified).map_or(true, |age| age < TICK));
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            racy,
        }
    }
}

#[cfg(test)]
mod tests;
