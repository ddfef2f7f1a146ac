//! Where compile passes write down what they find.

use std::fmt::Write;

use crate::diagnostic::{Code, Diagnostic, Severity};
use crate::resource::Resource;

/// The findings of a pass.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// What stands there is refused.
    pub(super) fn error(&mut self, code: Code, field: Field<'_>, message: impl Into<String>) {
        self.add(Severity::Error, code, field, message, None);
    }

    /// What stands there is in force, and may not do what its author means.
    pub(super) fn warning(&mut self, code: Code, field: Field<'_>, message: impl Into<String>) {
        self.add(Severity::Warning, code, field, message, None);
    }

    /// A field that Istio honours and this gateway doesn't.
    pub(super) fn unsupported(&mut self, field: Field<'_>, message: impl Into<String>) {
        self.warning(Code::Unsupported, field, message);
    }

    /// [`Self::unsupported`] if `is_set`.
    pub(super) fn unsupported_if(&mut self, is_set: bool, field: Field<'_>) {
        if is_set {
            self.unsupported(field, "not supported yet: it has no effect");
        }
    }

    /// With advice.
    pub(super) fn add(
        &mut self,
        severity: Severity,
        code: Code,
        field: Field<'_>,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        let path = field.path();
        let place = field.resource.place(&path);
        let mut diagnostic = Diagnostic::new(severity, code, place, message).resource(field.resource.name()).path(path);
        diagnostic.help = help;
        self.diagnostics.push(diagnostic);
    }
}

/// A field of a resource; costs nothing until it is reported.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) resource: &'a Resource,
    parent: Option<&'a Field<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
}

impl<'a> Field<'a> {
    /// `spec`.
    pub(super) fn spec(resource: &'a Resource) -> Self {
        Self { resource, parent: None, step: Step::Name("spec") }
    }

    /// `metadata`.
    pub(super) fn metadata(resource: &'a Resource) -> Self {
        Self { resource, parent: None, step: Step::Name("metadata") }
    }

    /// The field `name` of this message or map.
    pub(super) fn name(&'a self, name: &'a str) -> Self {
        Self { resource: self.resource, parent: Some(self), step: Step::Name(name) }
    }

    /// An item of this list.
    pub(super) fn index(&'a self, index: usize) -> Self {
        Self { resource: self.resource, parent: Some(self), step: Step::Index(index) }
    }

    /// `spec.http[0].timeout`.
    pub(super) fn path(&self) -> String {
        let mut path = self.parent.map(Field::path).unwrap_or_default();
        match self.step {
            Step::Name(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            // Writing to a `String` can't fail.
            Step::Index(index) => _ = write!(path, "[{index}]"),
        }
        path
    }
}
