//! One document of a file.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::diagnostic::{Location, Place};
use crate::parse::tree::{Span, Tree};

/// One YAML document of a file: its text, and where it stands.
pub struct Document {
    file: Arc<Path>,
    text: Box<str>,
    start: Start,
    /// Read again only when somebody asks for a place.
    tree: OnceLock<Option<Tree<'static>>>,
}

enum Start {
    /// Line of the file. An edit above moves a document without touching it.
    Line(AtomicU32),
    /// Text inside of another document: lines below its start, and columns cut off at the left.
    Within { parent: Arc<Document>, line: u32, indent: u32 },
}

impl Document {
    /// A document that begins on line `first_line` (from 1) of `file`.
    pub fn new(file: Arc<Path>, text: impl Into<Box<str>>, first_line: u32) -> Self {
        Self { file, text: text.into(), start: Start::Line(AtomicU32::new(first_line)), tree: OnceLock::new() }
    }

    /// The text of a block scalar that begins `line` lines below the start of `parent`, indented by `indent`.
    pub(crate) fn within(parent: &Arc<Self>, text: impl Into<Box<str>>, line: u32, indent: u32) -> Self {
        Self {
            file: Arc::clone(&parent.file),
            text: text.into(),
            start: Start::Within { parent: Arc::clone(parent), line, indent },
            tree: OnceLock::new(),
        }
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
        match &self.start {
            Start::Line(line) => line.load(Ordering::Relaxed),
            Start::Within { parent, line, .. } => parent.first_line() + line,
        }
    }

    /// Characters at the left of each line that are not part of the text.
    pub(crate) fn indent(&self) -> u32 {
        match &self.start {
            Start::Line(_) => 0,
            Start::Within { parent, indent, .. } => parent.indent() + indent,
        }
    }

    pub(crate) fn move_to(&self, first_line: u32) {
        if let Start::Line(line) = &self.start {
            line.store(first_line, Ordering::Relaxed);
        }
    }

    /// Whether its text must not be shown, because it has a Secret in it. Works for text that is no YAML, too.
    pub(crate) fn is_secret(&self) -> bool {
        self.text.match_indices("kind").any(|(offset, word)| {
            let rest = self.text[offset + word.len()..].trim_start_matches(['"', '\'', ':', ' ', '\t']);
            rest.strip_prefix("Secret").is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric()))
        })
    }

    /// Where the node at `path` stands; see [`crate::resource::Resource::locate`].
    pub fn locate(self: &Arc<Self>, path: &str) -> Location {
        self.place(path).location()
    }

    /// The node at `path`, or its nearest ancestor, as a place that can be shown.
    pub(crate) fn place(self: &Arc<Self>, path: &str) -> Place {
        let tree = self.tree.get_or_init(|| Tree::read(&self.text).ok().map(Tree::into_owned));
        let span = tree.as_ref().and_then(|tree| tree.find(path)).map_or(Span::default(), |found| found.span());
        self.place_of(span)
    }

    pub(crate) fn place_of(self: &Arc<Self>, span: Span) -> Place {
        Place::Span { document: Arc::clone(self), line: span.line, column: span.column, range: span.range() }
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without its text, which may be a Secret.
        write!(f, "Document({}:{}, {} bytes)", self.file.display(), self.first_line(), self.text.len())
    }
}
