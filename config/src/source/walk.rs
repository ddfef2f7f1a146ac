//! Which files there are below a root.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ahash::AHashMap;

use crate::diagnostic::{Code, Diagnostic, Severity};

/// Links may lead in circles that no comparison of inodes sees (bind mounts).
const MAX_DEPTH: usize = 40;
const MAX_FILES: usize = 200_000;

/// What a walk through the roots finds.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) files: AHashMap<PathBuf, Metadata>,
    pub(super) directories: BTreeSet<PathBuf>,
    /// What lies below these paths is unknown, not gone.
    pub(super) unreadable: Vec<PathBuf>,
    pub(super) problems: Vec<Diagnostic>,
    pub(super) has_links: bool,
    full: bool,
}

impl Walk {
    /// Adds what is below `root`, or `root` itself if it is a file. Answers with its device and inode if it is there.
    pub(super) fn root(&mut self, root: &Path) -> Option<(u64, u64)> {
        let metadata = match fs::metadata(root) {
            Ok(metadata) => metadata,
            Err(error) => {
                self.failed(root, format!("can't read it: {error}; its resources stay in force"));
                return None;
            }
        };
        self.has_links |= fs::symlink_metadata(root).is_ok_and(|metadata| metadata.is_symlink());
        let identity = (metadata.dev(), metadata.ino());
        if metadata.is_dir() {
            self.directory(root, &mut vec![identity]);
        } else {
            self.files.insert(root.to_owned(), metadata);
        }
        Some(identity)
    }

    /// Reports trouble with a directory, and keeps what is known of its files.
    pub(super) fn failed(&mut self, path: &Path, message: String) {
        self.problems.push(Diagnostic::new(Severity::Error, Code::Unreadable, Arc::<Path>::from(path), message));
        self.unreadable.push(path.to_owned());
    }

    /// `above` are the directories on the way here, to find circles.
    fn directory(&mut self, path: &Path, above: &mut Vec<(u64, u64)>) {
        let entries = match fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => entries,
            Err(error) => {
                return self.failed(path, format!("can't read the directory: {error}; its resources stay in force"));
            }
        };
        self.directories.insert(path.to_owned());
        for entry in entries {
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            let metadata = if is_link { fs::metadata(&path) } else { entry.metadata() };
            // Gone since the directory was read, or a link to nothing: not a file, and not an error of the reader.
            let Ok(metadata) = metadata else {
                self.has_links |= is_link;
                continue;
            };
            if metadata.is_dir() {
                let identity = (metadata.dev(), metadata.ino());
                if above.contains(&identity) || above.len() >= MAX_DEPTH {
                    continue;
                }
                self.has_links |= is_link;
                above.push(identity);
                self.directory(&path, above);
                above.pop();
            } else if metadata.is_file() && is_configuration(&path) {
                self.has_links |= is_link;
                if self.files.len() < MAX_FILES {
                    self.files.insert(path, metadata);
                } else if !std::mem::replace(&mut self.full, true) {
                    let message = format!("more than {MAX_FILES} files; the rest is not read");
                    let file: Arc<Path> = Arc::from(path);
                    self.problems.push(Diagnostic::new(Severity::Error, Code::TooLarge, file, message));
                }
            }
        }
    }
}

/// Whether a file with this name is read.
pub(super) fn is_configuration(path: &Path) -> bool {
    let visible = path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."));
    visible && path.extension().is_some_and(|extension| matches!(extension.to_str(), Some("yaml" | "yml" | "json")))
}
