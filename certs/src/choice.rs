//! Which of a server's certificates a client gets.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::credential::Credential;

/// The certificates of one side of a connection. A client that can do ECDSA gets an ECDSA certificate if there is one,
/// others get another one; of one kind the first is used, in whatever order the kinds stand.
#[derive(Debug)]
pub struct Choice {
    /// Every ECDSA credential before every other.
    credentials: Vec<Arc<Credential>>,
}

impl Choice {
    /// Chooses among these.
    pub fn new(mut credentials: Vec<Arc<Credential>>) -> Self {
        credentials.sort_by_key(|credential| !credential.is_ecdsa());
        Self { credentials }
    }

    fn first(&self, suits: impl Fn(&Credential) -> bool) -> Option<Arc<CertifiedKey>> {
        let credential = self.credentials.iter().find(|credential| suits(credential))?;
        Some(credential.certified_key(SystemTime::now()))
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls has taken out what no common suite of the chosen version can be used with.
        let schemes = hello.signature_schemes();
        // With a certificate that does not suit, rustls finds nothing in common and says so to the client.
        self.first(|credential| credential.can_sign(schemes)).or_else(|| self.first(|_| true))
    }
}

impl ResolvesClientCert for Choice {
    fn resolve(&self, _root_hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.first(|credential| credential.can_sign(schemes))
    }

    fn has_certs(&self) -> bool {
        !self.credentials.is_empty()
    }
}
