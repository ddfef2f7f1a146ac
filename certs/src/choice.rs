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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize};
    use rustls::crypto::aws_lc_rs::{cipher_suite as suite, default_provider};
    use rustls::version::{TLS12, TLS13};
    use rustls::{SupportedCipherSuite, SupportedProtocolVersion};

    use super::*;
    use crate::pki::{self, Ca, handshake, parameters};
    use crate::verify::{ServerRules, server};

    /// What a client of `suites` gets from a server of `version`.
    fn given(
        credentials: &[&Arc<Credential>],
        suites: Vec<SupportedCipherSuite>,
        version: &'static SupportedProtocolVersion,
    ) -> Option<Vec<u8>> {
        let mut provider = default_provider();
        provider.cipher_suites = suites;
        let rules = ServerRules { skip_verification: true, ..ServerRules::default() };
        let client = pki::client_with(provider, server(None, rules), None);
        let choice = Choice::new(credentials.iter().map(|credential| Arc::clone(credential)).collect());
        handshake(client, pki::server(Arc::new(choice), version), "a").server_certificate
    }

    #[test]
    fn ecdsa_for_those_who_can() {
        let ca = Ca::new("a");
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let rsa = ca.leaf_of(parameters("rsa", &[]), rsa).credential(&[]);
        let ecdsa = ca.leaf(parameters("ecdsa", &[])).credential(&[]);
        let other = ca.leaf_of(parameters("other", &[]), pki::key(&PKCS_ECDSA_P384_SHA384)).credential(&[]);
        let is = |credential: &Arc<Credential>| Some(credential.leaf().der().to_vec());

        let new = vec![suite::TLS13_AES_128_GCM_SHA256];
        let any = vec![suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];
        let rsa_only = vec![suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384];
        for both in [[&rsa, &ecdsa], [&ecdsa, &rsa]] {
            assert_eq!(given(&both, new.clone(), &TLS13), is(&ecdsa));
            assert_eq!(given(&both, any.clone(), &TLS12), is(&ecdsa));
            assert_eq!(given(&both, rsa_only.clone(), &TLS12), is(&rsa));
        }
        assert_eq!(given(&[&rsa], new.clone(), &TLS13), is(&rsa));
        assert_eq!(given(&[&ecdsa], rsa_only.clone(), &TLS12), None, "nothing in common");
        assert_eq!(given(&[&other, &ecdsa], new.clone(), &TLS13), is(&other), "the first of one kind");
        assert_eq!(given(&[&ecdsa, &other], new, &TLS13), is(&ecdsa), "the first of one kind");
    }
}
