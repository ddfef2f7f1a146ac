//! What TLS towards clients and TLS towards upstreams have in common: parameters and the names of credentials.
//!
//! Source: `reference/networking.md` §2.6, §2.7; `reference/security.md` §4.4, §4.7.

use std::sync::Arc;

use crate::resource::mesh_config::{MeshTlsProtocol, TlsConfig};
use crate::snapshot::tls::{CaSource, CertificateSource, CipherSuite, Group, TlsVersion};
use crate::tls_lists;

/// `MeshConfig.tlsDefaults`: what is in force where settings say nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct TlsDefaults {
    /// Of servers; upstream connections begin at TLS 1.2.
    pub(super) min: Option<TlsVersion>,
    pub(super) cipher_suites: Vec<CipherSuite>,
    pub(super) groups: Vec<Group>,
}

impl TlsDefaults {
    pub(super) fn new(config: Option<&TlsConfig>) -> Self {
        let Some(TlsConfig { min_protocol_version, ecdh_curves, cipher_suites }) = config else {
            return Self::default();
        };
        Self {
            min: match min_protocol_version {
                MeshTlsProtocol::Auto => None,
                MeshTlsProtocol::V1_2 => Some(TlsVersion::V1_2),
                MeshTlsProtocol::V1_3 => Some(TlsVersion::V1_3),
            },
            cipher_suites: tls_lists::cipher_suites(cipher_suites).items,
            groups: tls_lists::groups(ecdh_curves).items,
        }
    }
}

/// What the name of a credential stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// A Secret of this gateway's namespace.
    Secret(Arc<str>),
    /// A ConfigMap of this gateway's namespace, which can hold CAs only.
    ConfigMap(Arc<str>),
    /// This workload's identity.
    Workload,
    /// Why it can't be used.
    Unusable(Arc<str>),
}

impl Credential {
    /// Reads `credentialName` and its like. `own` is the namespace of this gateway, which plain names belong to,
    /// whatever the namespace of the resource.
    pub(super) fn parse(name: &str, own: &str) -> Self {
        let (scheme, rest) = name.split_once("://").unwrap_or(("", name));
        let (namespace, object) = match rest.split_once('/') {
            Some((namespace, object)) => (namespace, object),
            None => (own, rest),
        };
        let unusable = |reason: String| Self::Unusable(reason.into());
        match scheme {
            "builtin" => return Self::Workload,
            "invalid" => return unusable(format!("\"{name}\" stands for a credential that can't be used")),
            "sds" => return unusable(format!("\"{name}\": other servers of secrets are not supported, name a Secret")),
            "" | "kubernetes" | "kubernetes-gateway" | "configmap" => {}
            _ => return unusable(format!("\"{name}\" is no name of a credential")),
        }
        let needs_namespace = matches!(scheme, "kubernetes-gateway" | "configmap");
        if object.is_empty() || object.contains('/') || (needs_namespace && !rest.contains('/')) {
            return unusable(format!("\"{name}\" is no name of a credential"));
        }
        if namespace != own {
            return unusable(format!(
                "\"{name}\" is in another namespace: credentials are taken from {own}, the namespace of this gateway"
            ));
        }
        match scheme {
            "configmap" => Self::ConfigMap(object.into()),
            _ => Self::Secret(object.into()),
        }
    }

    /// As a certificate with its key.
    pub(super) fn certificate(&self) -> CertificateSource {
        match self {
            Self::Secret(name) => CertificateSource::Secret(Arc::clone(name)),
            Self::Workload => CertificateSource::Workload,
            Self::ConfigMap(name) => {
                CertificateSource::Unusable(format!("ConfigMap \"{name}\" can't hold a key: name a Secret").into())
            }
            Self::Unusable(reason) => CertificateSource::Unusable(Arc::clone(reason)),
        }
    }

    /// As the CA that belongs to a certificate.
    pub(super) fn companion_ca(&self) -> CaSource {
        match self {
            Self::Secret(name) => CaSource::Credential(Arc::clone(name)),
            _ => self.ca(),
        }
    }

    /// As a CA, of exactly this name.
    pub(super) fn ca(&self) -> CaSource {
        match self {
            Self::Secret(name) => CaSource::Secret(Arc::clone(name)),
            Self::ConfigMap(name) => CaSource::ConfigMap(Arc::clone(name)),
            Self::Workload => CaSource::Workload { crl: None },
            Self::Unusable(reason) => CaSource::Unusable(Arc::clone(reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_credentials() {
        let secret = |name: &str| Some(Credential::Secret(name.into()));
        let config_map = |name: &str| Some(Credential::ConfigMap(name.into()));
        for (name, expected) in [
            ("web", secret("web")),
            ("edge/web", secret("web")),
            ("kubernetes://web", secret("web")),
            ("kubernetes://edge/web", secret("web")),
            ("kubernetes-gateway://edge/web", secret("web")),
            ("configmap://edge/web", config_map("web")),
            ("builtin://", Some(Credential::Workload)),
            ("other/web", None),
            ("kubernetes://other/web", None),
            ("kubernetes-gateway://other/web", None),
            ("kubernetes-gateway://web", None),
            ("configmap://other/web", None),
            ("configmap://web", None),
            ("invalid://", None),
            ("sds://web", None),
            ("file://web", None),
            ("kubernetes://", None),
            ("a/b/c", None),
        ] {
            let found = Credential::parse(name, "edge");
            match expected {
                Some(expected) => assert_eq!(found, expected, "{name}"),
                None => assert!(matches!(found, Credential::Unusable(_)), "{name}: {found:?}"),
            }
        }
    }
}
