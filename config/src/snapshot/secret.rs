//! Secrets and ConfigMaps that certificates and keys are read from.

use std::fmt;
use std::sync::Arc;

use ahash::AHashMap;

use super::ResourceName;
use crate::resource::{Resource, Spec};

/// What credentials may be taken from: the Secrets and ConfigMaps of the gateway's namespace, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Secrets {
    /// `v1` Secrets.
    pub secrets: AHashMap<Arc<str>, SecretData>,
    /// `v1` ConfigMaps; of use for CAs only.
    pub config_maps: AHashMap<Arc<str>, SecretData>,
}

/// The entries of one Secret or ConfigMap. `Debug` prints no values.
#[derive(Clone)]
pub struct SecretData(Arc<Resource>);

impl SecretData {
    /// The entries of `resource`; none if it is neither a Secret nor a ConfigMap.
    pub fn new(resource: Arc<Resource>) -> Self {
        Self(resource)
    }

    /// Kind, namespace and name.
    pub fn name(&self) -> ResourceName {
        self.0.name()
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        match &self.0.spec {
            Spec::Secret(secret) => secret.value(key),
            Spec::ConfigMap(map) => map.data.get(key).map(String::as_bytes),
            _ => None,
        }
    }

    /// The keys, in order.
    pub fn keys(&self) -> Vec<&str> {
        match &self.0.spec {
            Spec::Secret(secret) => {
                let mut keys: Vec<&str> =
                    secret.data.keys().chain(secret.string_data.keys()).map(String::as_str).collect();
                keys.sort_unstable();
                keys.dedup();
                keys
            }
            Spec::ConfigMap(map) => map.data.keys().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether both are the same, unchanged object. Two objects that say the same may still be different ones.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl PartialEq for SecretData {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.0 == other.0
    }
}

impl fmt::Debug for SecretData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretData({})", self.0.name())
    }
}
