//! The rules of each kind that a resource must keep by itself.
//!
//! Source: `reference/networking.md` §10, which is Istio's `pkg/config/validation`. All findings are gathered. What
//! needs other resources to judge is `compile`'s business, and so are format strings (`%REQ(x)%`).

use crate::diagnostic::Severity;
use crate::resource::{Meta, Spec};

/// A rule that a resource breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// `spec.http[0].timeout`.
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

/// What is wrong with a resource.
pub(crate) fn validate(_meta: &Meta, _spec: &Spec) -> Vec<Finding> {
    Vec::new()
}
