//! Files become documents.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::diagnostic::Location;

/// One YAML document of a file: its text, and where it stands.
#[derive(Debug)]
pub struct Document {
    file: Arc<Path>,
    text: Box<str>,
    /// Line of the file on which the text begins. An edit above moves a document without touching it.
    first_line: AtomicU32,
}

impl Document {
    /// A document that begins on line `first_line` (from 1) of `file`.
    pub fn new(file: Arc<Path>, text: impl Into<Box<str>>, first_line: u32) -> Self {
        Self { file, text: text.into(), first_line: AtomicU32::new(first_line) }
    }

    /// The file it is part of.
    pub fn file(&self) -> &Arc<Path> {
        &self.file
    }

    /// The text between the separators.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line of the file on which the text begins, from 1.
    pub fn first_line(&self) -> u32 {
        self.first_line.load(Ordering::Relaxed)
    }

    /// Where the node at `path` stands; see [`crate::resource::Resource::locate`].
    pub fn locate(&self, _path: &str) -> Location {
        Location { file: Arc::clone(&self.file), line: self.first_line(), column: 1 }
    }
}
