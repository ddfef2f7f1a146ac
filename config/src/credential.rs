//! Who asks for a certificate or a CA, so that whoever looks for it can say where it is wanted.

use std::sync::Arc;

use crate::diagnostic::{Code, Diagnostic, Severity};
use crate::resource::Resource;
use crate::snapshot::tls::{CaSource, CertificateSource};

/// A field of a resource that names a credential.
#[derive(Debug, Clone, PartialEq)]
pub struct CredentialUse {
    /// What is asked for.
    pub wanted: Wanted,
    /// The Gateway or DestinationRule.
    pub resource: Arc<Resource>,
    /// `spec.servers[0].tls.credentialName`.
    pub path: String,
}

/// A certificate with its key, or trust anchors.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// To show to peers.
    Certificate(CertificateSource),
    /// To check peers with.
    Ca(CaSource),
}

impl CredentialUse {
    /// A finding about the field.
    pub fn finding(&self, severity: Severity, code: Code, message: impl Into<String>) -> Diagnostic {
        let place = self.resource.place(&self.path);
        Diagnostic::new(severity, code, place, message).resource(self.resource.name()).path(self.path.clone())
    }
}
