//! What is in force: the last accepted version of every resource.
//!
//! A [`Store`] lives as long as the process. It takes the changes that a scan found, parses what is new, and decides
//! about each resource that is concerned (`design.md`, Reload, rules 2 to 6 and 8):
//!
//! - A rejected document changes nothing: the version accepted before stays in force, if there is one.
//! - While a file has a part that can't be read, or ends as if it were cut, resources last read from it stay although they
//!   are not seen in it.
//! - Of several documents with the same kind, namespace and name the one accepted first stays; of those that come at
//!   once, the first by path.
//! - A security resource without an accepted version is a [`Refusal`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::diagnostic::{Code, Diagnostic, Severity};
use crate::parse::{Candidate, Key, Outcome, Parsed, Parser};
use crate::resource::Resource;
use crate::snapshot::ResourceName;
use crate::source::{Content, Document, Rescan, Scan, Source};

/// The resources of all files, with what became of them.
#[derive(Debug)]
pub struct Store {
    parser: Parser,
    files: BTreeMap<Arc<Path>, File>,
    slots: BTreeMap<Key, Slot>,
    /// Of the last generation, as long as nothing else is in force.
    resources: Option<Arc<[Arc<Resource>]>>,
    /// Whether a resource with a time stamp has ever been seen: without one the slots are in order.
    has_dates: bool,
}

/// The configuration at one moment.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// What is in force: by kind, and within a kind in Istio's order of precedence: by time stamp (none counts as
    /// oldest), name, namespace. Unchanged resources are the same `Arc` as in the generation before.
    pub resources: Arc<[Arc<Resource>]>,
    /// Everything there is to say, by file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// What is different from the generation before.
    pub changed: Changed,
    /// Security resources that can't be enforced.
    pub refused_security: Vec<Refusal>,
    /// Something is in doubt until the next scan of everything; see [`Scan::pending`].
    pub pending: bool,
}

impl Generation {
    /// Whether any diagnostic is an error.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// In force, and not before.
    pub added: Vec<ResourceName>,
    /// In force with other content.
    pub updated: Vec<ResourceName>,
    /// In force before.
    pub removed: Vec<ResourceName>,
    /// Files that were read, or are gone.
    pub files: usize,
    /// Documents that were parsed.
    pub documents: usize,
}

impl Changed {
    /// Whether the same is in force as before.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.updated.is_empty() && self.removed.is_empty()
    }
}

/// A security resource that is there and can't be enforced: what it selects must be closed.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// Its kind, and namespace and name where they can be told, else `?`.
    pub resource: ResourceName,
    /// What is wrong with it.
    pub reason: String,
    /// The resource as far as it could be read, if that tells what it selects. `None`: it may select anything.
    pub partial: Option<Arc<Resource>>,
}

/// The state of one file, for `/config/status`.
#[derive(Debug, Clone, PartialEq)]
pub struct FileStatus {
    /// As the source found it.
    pub path: Arc<Path>,
    /// It, or a document of it, can't be read; resources last read from it stay.
    pub is_broken: bool,
    /// What it declares, in order, and what stays of what it declared before.
    pub resources: Vec<(ResourceName, ResourceState)>,
}

/// What became of a resource that a file declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceState {
    /// As written.
    Accepted,
    /// Rejected; an earlier version is in force.
    LastGood,
    /// Rejected, and nothing is in force.
    Rejected,
    /// Another document has the same name.
    Duplicate,
}

impl ResourceState {
    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::LastGood => "last-good",
            Self::Rejected => "rejected",
            Self::Duplicate => "duplicate",
        }
    }
}

#[derive(Debug)]
struct File {
    documents: Vec<Read>,
    problem: Option<Diagnostic>,
    /// Keys that stay although no document of this file declares them, because a part can't be read.
    retained: BTreeSet<Key>,
    /// Whether any document has something to say, so that the many that haven't are not asked again.
    has_findings: bool,
}

impl File {
    fn is_broken(&self) -> bool {
        self.problem.is_some() || (self.has_findings && self.documents.iter().any(|read| read.parsed.is_broken))
    }
}

#[derive(Debug, Clone)]
struct Read {
    document: Arc<Document>,
    parsed: Arc<Parsed>,
}

#[derive(Debug, Default)]
struct Slot {
    /// In no order.
    declarations: Vec<Declaration>,
    accepted: Option<Accepted>,
    /// Declarations that lost, with the place of the winner.
    duplicates: Vec<Diagnostic>,
}

/// A document that declares a key.
#[derive(Debug, Clone)]
struct Declaration {
    file: Arc<Path>,
    document: Arc<Document>,
    parsed: Arc<Parsed>,
    /// Index of the candidate in `parsed`.
    index: usize,
}

impl Declaration {
    fn candidate(&self) -> &Candidate {
        &self.parsed.candidates[self.index]
    }

    fn valid(&self) -> Option<&Arc<Resource>> {
        match &self.candidate().outcome {
            Outcome::Valid(resource) => Some(resource),
            Outcome::Rejected { .. } => None,
        }
    }

    fn is_in(&self, file: &Path) -> bool {
        *self.file == *file
    }
}

#[derive(Debug)]
struct Accepted {
    resource: Arc<Resource>,
    file: Arc<Path>,
}

impl Store {
    /// An empty store. `root_namespace` is where the ConfigMap with the MeshConfig is.
    pub fn new(root_namespace: &str) -> Self {
        Self {
            parser: Parser::new(root_namespace),
            files: BTreeMap::new(),
            slots: BTreeMap::new(),
            resources: None,
            has_dates: false,
        }
    }

    /// Takes over what a scan found. Cost: parsing of the documents that are new, plus a walk over the pointers of all
    /// resources and documents.
    pub fn apply(&mut self, scan: Scan) -> Generation {
        let Scan { changes, diagnostics, pending } = scan;
        let mut changed = Changed { files: changes.len(), ..Changed::default() };
        let mut concerned = BTreeSet::new();
        for (path, content) in changes {
            match content {
                Some(content) => self.read(&path, &content, &mut concerned, &mut changed),
                None => self.forget(&path, &mut concerned),
            }
        }
        for key in concerned {
            self.decide(key, &mut changed);
        }
        Generation {
            resources: self.resources(),
            diagnostics: self.diagnostics(diagnostics),
            changed,
            refused_security: self.refusals(),
            pending,
        }
    }

    /// Files and what became of their resources, by path.
    pub fn status(&self) -> Vec<FileStatus> {
        self.files
            .iter()
            .map(|(path, file)| {
                let declared = file.documents.iter().flat_map(|read| &read.parsed.candidates);
                let mut resources: Vec<_> =
                    declared.map(|candidate| (candidate.key.name(), self.state(candidate))).collect();
                resources.extend(file.retained.iter().map(|key| (key.name(), ResourceState::LastGood)));
                FileStatus { path: Arc::clone(path), is_broken: file.is_broken(), resources }
            })
            .collect()
    }

    fn state(&self, candidate: &Candidate) -> ResourceState {
        let accepted = self.slots.get(&candidate.key).and_then(|slot| slot.accepted.as_ref());
        match (&candidate.outcome, accepted) {
            (Outcome::Valid(resource), Some(accepted)) if Arc::ptr_eq(resource, &accepted.resource) => {
                ResourceState::Accepted
            }
            (Outcome::Valid(_), _) => ResourceState::Duplicate,
            (Outcome::Rejected { .. }, Some(_)) => ResourceState::LastGood,
            (Outcome::Rejected { .. }, None) => ResourceState::Rejected,
        }
    }

    /// Parses what is new in a file. Documents that stayed cost a comparison of pointers.
    fn read(&mut self, path: &Arc<Path>, content: &Content, concerned: &mut BTreeSet<Key>, changed: &mut Changed) {
        let before = self.files.remove(path);
        let (old, retained) = before.map(|file| (file.documents, file.retained)).unwrap_or_default();
        // One edit is the rule: what stands before it and behind it is the same.
        let same = |read: &Read, document: &Arc<Document>| Arc::ptr_eq(&read.document, document);
        let head = old.iter().zip(content.documents.iter()).take_while(|(read, document)| same(read, document)).count();
        let mut documents = old;
        let rest = documents.split_off(head);
        let unread = &content.documents[head..];
        let tail =
            rest.iter().rev().zip(unread.iter().rev()).take_while(|(read, document)| same(read, document)).count();
        let replaced = rest.len() - tail;
        let mut rest = rest.into_iter();
        let mut known: HashMap<*const Document, Read> =
            rest.by_ref().take(replaced).map(|read| (Arc::as_ptr(&read.document), read)).collect();
        let mut fresh = Vec::new();
        for document in &unread[..unread.len() - tail] {
            let read = known.remove(&Arc::as_ptr(document)).unwrap_or_else(|| {
                changed.documents += 1;
                let read = Read { document: Arc::clone(document), parsed: Arc::new(self.parser.parse(document)) };
                fresh.push(read.clone());
                read
            });
            documents.push(read);
        }
        documents.extend(rest);
        for read in known.into_values() {
            self.withdraw(path, &read, concerned);
        }
        for read in &fresh {
            self.declare(path, read, concerned);
        }
        let has_findings = documents.iter().any(|read| read.parsed.has_findings());
        let file = File { documents, problem: content.problem.clone(), retained: BTreeSet::new(), has_findings };
        // Whether they stay depends on what their file looks like now.
        concerned.extend(retained);
        self.files.insert(Arc::clone(path), file);
    }

    fn forget(&mut self, path: &Arc<Path>, concerned: &mut BTreeSet<Key>) {
        let Some(file) = self.files.remove(path) else { return };
        for read in &file.documents {
            self.withdraw(path, read, concerned);
        }
        concerned.extend(file.retained);
    }

    fn declare(&mut self, path: &Arc<Path>, read: &Read, concerned: &mut BTreeSet<Key>) {
        for (index, candidate) in read.parsed.candidates.iter().enumerate() {
            self.slots.entry(candidate.key.clone()).or_default().declarations.push(Declaration {
                file: Arc::clone(path),
                document: Arc::clone(&read.document),
                parsed: Arc::clone(&read.parsed),
                index,
            });
            concerned.insert(candidate.key.clone());
        }
    }

    fn withdraw(&mut self, path: &Arc<Path>, read: &Read, concerned: &mut BTreeSet<Key>) {
        for candidate in &read.parsed.candidates {
            if let Some(slot) = self.slots.get_mut(&candidate.key) {
                let gone = |declaration: &Declaration| {
                    declaration.is_in(path) && Arc::ptr_eq(&declaration.document, &read.document)
                };
                slot.declarations.retain(|declaration| !gone(declaration));
            }
            concerned.insert(candidate.key.clone());
        }
    }

    /// Which of the documents that declare `key` is in force, if any.
    fn decide(&mut self, key: Key, changed: &mut Changed) {
        let home = self.slots.get(&key).and_then(|slot| slot.accepted.as_ref()).map(|accepted| &accepted.file);
        let home_is_doubtful = home.is_some_and(|file| self.is_doubtful(file));
        let Some(slot) = self.slots.get_mut(&key) else { return };
        slot.duplicates.clear();
        slot.declarations.sort_by(|a, b| {
            (&a.file, a.document.first_line(), a.index).cmp(&(&b.file, b.document.first_line(), b.index))
        });
        let before = slot.accepted.take();
        let owner = slot.owner(before.as_ref());
        // Not seen in its file any more, but that file doesn't tell everything.
        let is_retained = home_is_doubtful
            && before
                .as_ref()
                .is_some_and(|before| !slot.declarations.iter().any(|declaration| declaration.is_in(&before.file)));
        if is_retained && let Some(before) = before {
            if let Some(file) = self.files.get_mut(&before.file) {
                file.retained.insert(key.clone());
            }
            slot.duplicates = slot.declarations.iter().map(|loser| duplicate(loser, &before.resource)).collect();
            slot.accepted = Some(before);
            return;
        }
        let is_same = |resource: Option<&Arc<Resource>>| match (&before, resource) {
            (Some(before), Some(resource)) => Arc::ptr_eq(&before.resource, resource),
            (None, None) => true,
            _ => false,
        };
        if !is_same(owner.and_then(|owner| slot.declarations[owner].valid())) {
            self.resources = None;
        }
        slot.accepted = match owner {
            Some(owner) => {
                let owner = slot.declarations[owner].clone();
                let losers =
                    slot.declarations.iter().filter(|other| !std::ptr::eq(other.candidate(), owner.candidate()));
                slot.duplicates = losers.map(|loser| duplicate_of(loser, &owner)).collect();
                match (owner.valid(), before) {
                    (Some(resource), before) => {
                        self.has_dates |= resource.meta.creation_timestamp.is_some();
                        match &before {
                            None => changed.added.push(key.name()),
                            Some(before) if *before.resource != **resource => changed.updated.push(key.name()),
                            Some(_) => {}
                        }
                        Some(Accepted { resource: Arc::clone(resource), file: Arc::clone(&owner.file) })
                    }
                    // The last accepted version stays; from here on it belongs to whoever declares it.
                    (None, Some(before)) => Some(Accepted { file: Arc::clone(&owner.file), ..before }),
                    (None, None) => None,
                }
            }
            None => {
                if before.is_some() {
                    changed.removed.push(key.name());
                }
                None
            }
        };
        if slot.declarations.is_empty() && slot.accepted.is_none() {
            self.slots.remove(&key);
        }
    }

    /// Whether a file may hold resources that can't be seen in it: a part can't be read, or it is half of a save. Cut
    /// within the name of its last resource it ends with one that is wrong and that nobody has ever heard of.
    fn is_doubtful(&self, path: &Arc<Path>) -> bool {
        let Some(file) = self.files.get(path) else { return false };
        let last = file.documents.last().and_then(|read| read.parsed.candidates.last());
        let is_cut = last.is_some_and(|last| {
            matches!(last.outcome, Outcome::Rejected { .. })
                && self.slots.get(&last.key).is_none_or(|slot| slot.accepted.is_none())
        });
        is_cut || file.is_broken()
    }

    fn resources(&mut self) -> Arc<[Arc<Resource>]> {
        if let Some(resources) = &self.resources {
            return Arc::clone(resources);
        }
        let accepted = self.slots.values().filter_map(|slot| slot.accepted.as_ref());
        let mut resources: Vec<_> = accepted.map(|accepted| Arc::clone(&accepted.resource)).collect();
        if self.has_dates {
            resources.sort_by_key(|resource| (resource.meta.kind, resource.meta.creation_timestamp));
        }
        let resources: Arc<[Arc<Resource>]> = resources.into();
        self.resources = Some(Arc::clone(&resources));
        resources
    }

    fn diagnostics(&self, directories: Vec<Diagnostic>) -> Vec<Diagnostic> {
        let mut diagnostics = directories;
        let mut skipped: BTreeMap<(&Path, &str), (usize, Arc<Document>)> = BTreeMap::new();
        for (path, file) in &self.files {
            diagnostics.extend(file.problem.clone());
            for read in file.documents.iter().filter(|_| file.has_findings) {
                diagnostics.extend(read.parsed.diagnostics.iter().cloned());
                for kind in &read.parsed.skipped {
                    let directory = path.parent().unwrap_or(path);
                    skipped.entry((directory, kind)).or_insert_with(|| (0, Arc::clone(&read.document))).0 += 1;
                }
            }
        }
        for ((directory, kind), (count, first)) in skipped {
            let objects = if count == 1 { "1 object".to_owned() } else { format!("{count} objects") };
            let message =
                format!("{objects} of kind {kind} in {} skipped: a gateway doesn't read it", directory.display());
            diagnostics.push(Diagnostic::new(Severity::Note, Code::UnknownKind, first.place("kind"), message));
        }
        diagnostics.extend(self.slots.values().flat_map(|slot| slot.duplicates.iter().cloned()));
        diagnostics.sort_by(Diagnostic::order);
        diagnostics
    }

    fn refusals(&self) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for (key, slot) in self.slots.iter().filter(|(key, slot)| key.kind.is_security() && slot.accepted.is_none()) {
            for declaration in &slot.declarations {
                if let Outcome::Rejected { partial, reason } = &declaration.candidate().outcome {
                    let refusal = Refusal { resource: key.name(), reason: reason.clone(), partial: partial.clone() };
                    refusals.push(refusal);
                }
            }
        }
        for (path, file) in self.files.iter().filter(|(_, file)| file.has_findings) {
            for read in &file.documents {
                for suspect in &read.parsed.suspects {
                    let stays = |key: &Key, slot: &Slot| {
                        let Some(accepted) = &slot.accepted else { return false };
                        match &suspect.name {
                            _ if key.kind != suspect.kind => false,
                            Some(name) => {
                                *name == key.name
                                    && suspect.namespace.as_deref().unwrap_or("default") == &*key.namespace
                            }
                            // It is taken for the one that this file no longer shows.
                            None => accepted.file == *path && file.retained.contains(key),
                        }
                    };
                    if self.slots.iter().any(|(key, slot)| stays(key, slot)) {
                        continue;
                    }
                    let unknown = || Arc::from("?");
                    refusals.push(Refusal {
                        resource: ResourceName {
                            kind: suspect.kind.as_str(),
                            namespace: suspect.namespace.clone().unwrap_or_else(unknown),
                            name: suspect.name.clone().unwrap_or_else(unknown),
                        },
                        reason: format!("{}:{} can't be read", path.display(), read.document.first_line()),
                        partial: None,
                    });
                }
            }
        }
        refusals
    }
}

impl Slot {
    /// Index of the declaration that decides.
    fn owner(&self, before: Option<&Accepted>) -> Option<usize> {
        if let Some(before) = before {
            let same = |declaration: &Declaration| {
                declaration.valid().is_some_and(|resource| Arc::ptr_eq(resource, &before.resource))
            };
            if let Some(owner) = self.declarations.iter().position(same) {
                return Some(owner);
            }
            if let Some(owner) = self.declarations.iter().position(|declaration| declaration.is_in(&before.file)) {
                return Some(owner);
            }
        }
        let valid = self.declarations.iter().position(|declaration| declaration.valid().is_some());
        valid.or(if self.declarations.is_empty() { None } else { Some(0) })
    }
}

fn duplicate_of(loser: &Declaration, winner: &Declaration) -> Diagnostic {
    let path = match winner.valid() {
        Some(resource) => join(&resource.origin.path, "metadata.name"),
        None => "metadata.name".to_owned(),
    };
    duplicate_at(loser, winner.document.locate(&path))
}

fn duplicate(loser: &Declaration, winner: &Resource) -> Diagnostic {
    duplicate_at(loser, winner.locate("metadata.name"))
}

fn duplicate_at(loser: &Declaration, winner: crate::diagnostic::Location) -> Diagnostic {
    let path = match loser.valid() {
        Some(resource) => join(&resource.origin.path, "metadata.name"),
        None => "metadata.name".to_owned(),
    };
    let name = loser.candidate().key.name();
    let message = format!("{name} stands at {winner} as well, and that one is in force");
    Diagnostic::new(Severity::Error, Code::DuplicateResource, loser.document.place(&path), message)
        .resource(name)
        .path("metadata.name")
        .help("remove or rename one of them")
}

fn join(prefix: &str, path: &str) -> String {
    if prefix.is_empty() { path.to_owned() } else { format!("{prefix}.{path}") }
}

/// Reads directories and files once, as at start.
pub fn load(roots: impl IntoIterator<Item = PathBuf>, root_namespace: &str) -> Generation {
    Store::new(root_namespace).apply(Source::new(roots).scan(Rescan::All))
}

#[cfg(test)]
mod tests;
