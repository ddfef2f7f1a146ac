//! What is wrong with the configuration, where, and what to do about it.
//!
//! Everything that this crate has to say to an operator is a [`Diagnostic`]; nothing is logged and nothing is dropped.

mod code;
mod json;
mod render;

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::snapshot::ResourceName;
use crate::source::Document;

pub use code::Code;
pub use json::sarif;
pub use render::{Style, render};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The resource is refused.
    Error,
    /// The resource is in force, and may not do what its author means.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "Error",
            Self::Warning => "Warning",
            Self::Note => "Note",
        })
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of finding, for machines.
    pub code: Code,
    /// Where to look.
    pub place: Place,
    /// The resource in question, where it could be read that far.
    pub resource: Option<ResourceName>,
    /// `spec.http[0].timeout`; empty where no field is meant.
    pub path: String,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A finding about a place, not yet about a resource or a field.
    pub fn new(severity: Severity, code: Code, place: impl Into<Place>, message: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            place: place.into(),
            resource: None,
            path: String::new(),
            message: message.into(),
            help: None,
        }
    }

    /// Names the resource.
    pub fn resource(mut self, resource: ResourceName) -> Self {
        self.resource = Some(resource);
        self
    }

    /// Names the field.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Says what to do.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Where it stands in the file as of the last scan.
    pub fn location(&self) -> Location {
        self.place.location()
    }

    /// By file, line and column, then by what it says: the order in which people read.
    pub fn order(&self, other: &Self) -> Ordering {
        let key = |diagnostic: &Self| {
            let location = diagnostic.location();
            (location, diagnostic.severity, diagnostic.code.id())
        };
        key(self)
            .cmp(&key(other))
            .then_with(|| self.resource.cmp(&other.resource))
            .then_with(|| self.path.cmp(&other.path))
            .then_with(|| self.message.cmp(&other.message))
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] (", self.severity, self.code.id())?;
        if let Some(resource) = &self.resource {
            write!(f, "{resource} ")?;
        }
        write!(f, "{})", self.location())?;
        if !self.path.is_empty() {
            write!(f, " {}", self.path)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.help {
            Some(help) => write!(f, " (help: {help})"),
            None => Ok(()),
        }
    }
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// As the source found it.
    pub file: Arc<Path>,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A place in a document. It stays right when the document moves within its file.
#[derive(Debug, Clone)]
pub enum Place {
    /// A file or directory as a whole.
    File(Arc<Path>),
    /// Part of a document.
    Span {
        /// The document.
        document: Arc<Document>,
        /// Line within the document, from 0.
        line: u32,
        /// From 0, in characters.
        column: u32,
        /// Bytes of the document to underline.
        range: Range<usize>,
    },
}

impl Place {
    /// Where it stands in the file as of the last scan.
    pub fn location(&self) -> Location {
        match self {
            Self::File(file) => Location { file: Arc::clone(file), line: 1, column: 1 },
            Self::Span { document, line, column, .. } => Location {
                file: Arc::clone(document.file()),
                line: document.first_line() + line,
                column: document.indent() + column + 1,
            },
        }
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.location() == other.location()
    }
}

impl From<Arc<Path>> for Place {
    fn from(file: Arc<Path>) -> Self {
        Self::File(file)
    }
}
