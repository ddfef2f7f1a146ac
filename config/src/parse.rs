//! Documents become resources, or reasons why not.
//!
//! What a document says is looked at in three steps, and each adds its findings: the tree (is it YAML?), the kind and
//! its fields (is it this kind?), and the rules of the kind (`validate`). A resource with an error is rejected; what of
//! it could be read is kept only to see what it would select.

mod decode;
mod duration;
mod kinds;
mod object;
mod sniff;
pub(crate) mod tree;

use std::path::Path;
use std::sync::Arc;

use crate::diagnostic::{Code, Diagnostic, Severity};
use crate::resource::{Kind, Resource};
use crate::snapshot::ResourceName;
use crate::source::Document;

pub(crate) use decode::nearest;
use object::Objects;
use tree::{Tree, TreeErrorKind};

/// What a resource is known by. The order is Istio's order of precedence among resources without a time stamp.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The kind.
    pub kind: Kind,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Never empty.
    pub namespace: Arc<str>,
}

impl Key {
    /// The same for messages and for the snapshot.
    pub fn name(&self) -> ResourceName {
        ResourceName { kind: self.kind.as_str(), namespace: Arc::clone(&self.namespace), name: Arc::clone(&self.name) }
    }
}

/// All that a document holds.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Resources that declare themselves here, good and bad, in their order.
    pub candidates: Vec<Candidate>,
    /// Findings in the order of the text.
    pub diagnostics: Vec<Diagnostic>,
    /// Kinds that a gateway doesn't read, `Deployment.apps`, once for each object.
    pub skipped: Vec<String>,
    /// Something here could not be read so far that its name is known: it may be a resource that was here before.
    pub is_broken: bool,
    /// Security resources that the unreadable part seems to hold.
    pub suspects: Vec<Suspect>,
}

impl Parsed {
    /// Whether there is anything here but good resources.
    pub fn has_findings(&self) -> bool {
        self.is_broken || !(self.diagnostics.is_empty() && self.skipped.is_empty() && self.suspects.is_empty())
    }
}

/// A resource as one document declares it.
#[derive(Debug)]
pub struct Candidate {
    /// What it is known by.
    pub key: Key,
    /// Whether it may be in force.
    pub outcome: Outcome,
}

/// The verdict on a resource.
#[derive(Debug)]
pub enum Outcome {
    /// No error.
    Valid(Arc<Resource>),
    /// An error.
    Rejected {
        /// What could be read, if that tells what the resource selects.
        partial: Option<Arc<Resource>>,
        /// The first error.
        reason: String,
    },
}

/// A security resource in a text that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// RequestAuthentication, AuthorizationPolicy or PeerAuthentication.
    pub kind: Kind,
    /// `metadata.namespace` as far as can be told.
    pub namespace: Option<Arc<str>>,
    /// `metadata.name` as far as can be told.
    pub name: Option<Arc<str>>,
}

/// Reads documents.
#[derive(Debug, Clone)]
pub struct Parser {
    root_namespace: Arc<str>,
}

impl Parser {
    /// `root_namespace` is where the ConfigMap `istio` with the MeshConfig is looked for.
    pub fn new(root_namespace: &str) -> Self {
        Self { root_namespace: Arc::from(root_namespace) }
    }

    /// Reads one document. The result depends on nothing else.
    pub fn parse(&self, document: &Arc<Document>) -> Parsed {
        let mut objects = Objects::new(document, &self.root_namespace);
        let tree = match Tree::read(document.text()) {
            Ok(tree) => tree,
            Err(error) => {
                let code = match error.kind {
                    TreeErrorKind::Depth | TreeErrorKind::Aliases => Code::TooLarge,
                    _ => Code::Syntax,
                };
                let place = document.place_of(error.span);
                let diagnostic = Diagnostic::new(Severity::Error, code, place, error.kind.to_string())
                    .help("until this is repaired, the resources last read from this file stay in force");
                return Parsed {
                    diagnostics: vec![diagnostic],
                    is_broken: true,
                    suspects: sniff::suspects(document.text()),
                    ..Parsed::default()
                };
            }
        };
        if let Some(root) = &tree.root {
            objects.duplicates(&tree.duplicates);
            objects.read(root, "", None);
        }
        objects.finish()
    }
}

/// Reads `text` as if it were the file `file`: for tests and tools that have no directory.
pub fn parse_text(file: &str, text: &str) -> Vec<Parsed> {
    let parser = Parser::new("istio-system");
    let file: Arc<Path> = Arc::from(Path::new(file));
    crate::source::documents(&file, text, &[]).iter().map(|document| parser.parse(document)).collect()
}

#[cfg(test)]
mod tests;
