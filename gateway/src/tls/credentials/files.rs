//! Files and mounted secrets: reading them, and telling cheaply whether they have changed.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ahash::AHasher;

/// No certificate, key, CA bundle or CRL that anybody means to use is larger.
const MAX_SIZE: u64 = 1 << 20;
/// A write this shortly before a read may be followed by another one with the same time stamp, since kernels count in
/// ticks of up to 10 ms.
const TICK: Duration = Duration::from_millis(50);
/// How often a mounted secret is read again because it was replaced meanwhile.
const MAX_SWAPS: usize = 3;
/// Names of a mounted secret that are listed in a finding.
const MAX_NAMES: usize = 32;

/// Contents by key, as in a Secret. `Debug` prints no values.
#[derive(Default)]
pub(super) struct Content {
    values: BTreeMap<&'static str, Vec<u8>>,
    /// Keys that are there and were not read.
    others: Vec<String>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("keys", &self.values.keys()).finish_non_exhaustive()
    }
}

impl certs::Entries for Content {
    fn get(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    fn keys(&self) -> Vec<&str> {
        self.values.keys().copied().chain(self.others.iter().map(String::as_str)).collect()
    }
}

/// What files looked like when they were read: equal seals mean equal content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seal {
    hash: u64,
    /// Something was written so shortly before it was read that a later write may carry the same time.
    racy: bool,
}

impl Seal {
    /// Whether nothing has changed since, if `now` is what is there.
    pub(super) fn still_holds(&self, now: &Self) -> bool {
        !self.racy && self.hash == now.hash
    }

    /// Of files as they are now.
    pub(super) fn of<'p>(paths: impl IntoIterator<Item = &'p Path>) -> Self {
        let begin = SystemTime::now();
        let mut hasher = AHasher::default();
        let mut racy = false;
        for path in paths {
            let metadata = fs::metadata(path).ok();
            let stamp = metadata.as_ref().map(|metadata| {
                (
                    (metadata.dev(), metadata.ino(), metadata.size()),
                    (metadata.mtime(), metadata.mtime_nsec()),
                    (metadata.ctime(), metadata.ctime_nsec()),
                )
            });
            stamp.hash(&mut hasher);
            let changed = metadata.and_then(|metadata| u64::try_from(metadata.ctime()).ok()).map(Duration::from_secs);
            // Seconds will do: at worst a file is read once more. A time in the future tells nothing either.
            racy |= changed.is_some_and(|changed| UNIX_EPOCH + changed + Duration::from_secs(1) + TICK >= begin);
        }
        Self { hash: hasher.finish(), racy }
    }
}

/// A secret that is mounted as a directory with a file for each key.
pub(super) struct Mount<'p> {
    /// Where Kubernetes has the files of the moment: behind the link `..data`, which it replaces in one step.
    base: PathBuf,
    directory: &'p Path,
}

impl<'p> Mount<'p> {
    /// The secret in `directory`, as it is now.
    pub(super) fn at(directory: &'p Path) -> Self {
        let base = match fs::read_link(directory.join("..data")) {
            Ok(target) => directory.join(target),
            Err(_) => directory.to_owned(),
        };
        Self { base, directory }
    }

    /// What it looks like.
    pub(super) fn seal(&self, keys: &[&'static str]) -> Seal {
        let files: Vec<PathBuf> = keys.iter().map(|key| self.base.join(key)).collect();
        Seal::of([self.directory, &self.base].into_iter().chain(files.iter().map(PathBuf::as_path)))
    }

    /// Files that a link leads out of the directory to: their changes are not seen in it.
    pub(super) fn outside(&self, keys: &[&'static str]) -> Vec<PathBuf> {
        let leads_out = |path: &PathBuf| {
            fs::read_link(path).is_ok_and(|target| {
                target.is_absolute() || target.components().any(|part| part == std::path::Component::ParentDir)
            })
        };
        let links = keys.iter().map(|key| self.base.join(key)).chain([self.directory.join("..data")]);
        links.filter(leads_out).collect()
    }

    /// What is there of `keys`, all of one moment.
    pub(super) fn read(directory: &'p Path, keys: &[&'static str]) -> Result<(Content, Seal), Unreadable> {
        let mut mount = Self::at(directory);
        for _ in 0..MAX_SWAPS {
            let seal = mount.seal(keys);
            let mut content = Content::default();
            let mut failure = None;
            for key in keys {
                match read(&mount.base.join(key)) {
                    Ok(Some(value)) => _ = content.values.insert(key, value),
                    Ok(None) => {}
                    Err(error) => failure = Some(error),
                }
            }
            let after = Self::at(directory);
            if after.base != mount.base {
                mount = after;
                continue;
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
            if content.values.len() < 2 {
                content.others = names(&mount.base, keys);
            }
            return Ok((content, seal));
        }
        let reason = "it is being replaced again and again".to_owned();
        Err(Unreadable { path: directory.to_owned(), reason, missing: false })
    }
}

/// The names of files in `directory` that are none of `known`.
fn names(directory: &Path, known: &[&'static str]) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && !known.contains(&name.as_str()))
        .take(MAX_NAMES)
        .collect()
}

/// The contents of files, each under the key that it stands for.
pub(super) fn read_all(files: &[(&'static str, PathBuf)]) -> Result<Content, Unreadable> {
    let mut content = Content::default();
    for (key, path) in files {
        let reason = "there is no such file".to_owned();
        let value = read(path)?.ok_or_else(|| Unreadable { path: path.clone(), reason, missing: true })?;
        content.values.insert(key, value);
    }
    Ok(content)
}

/// A file that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("can't read {}: {reason}", path.display())]
pub(super) struct Unreadable {
    path: PathBuf,
    reason: String,
    /// It does not exist.
    pub(super) missing: bool,
}

/// The content of a file; `None` if it does not exist.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Unreadable> {
    let unreadable = |reason: String| Unreadable { path: path.to_owned(), reason, missing: false };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(error.to_string())),
    };
    // Opening a pipe would wait for whoever writes to it.
    if !metadata.is_file() {
        return Err(unreadable("it is no regular file".to_owned()));
    }
    let mut content = Vec::with_capacity(usize::try_from(metadata.len().min(MAX_SIZE)).unwrap_or_default() + 1);
    let read = fs::File::open(path).and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut content));
    match read {
        Ok(_) if content.len() as u64 > MAX_SIZE => Err(unreadable("it is larger than 1 MiB".to_owned())),
        Ok(_) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error.to_string())),
    }
}
