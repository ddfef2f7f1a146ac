//! Secrets and ConfigMaps that credentials are taken from.
//!
//! Source: `reference/networking.md` §2.7.

use std::sync::Arc;

use ahash::AHashMap;

use super::common_ends;
use super::world::{Object, World};
use crate::resource::Resource;
use crate::snapshot::secret::{SecretData, Secrets};

/// The secrets of the compile before.
#[derive(Debug, Default)]
pub(super) struct Memo {
    secrets: Vec<Arc<Resource>>,
    config_maps: Vec<Arc<Resource>>,
    made: Arc<Secrets>,
}

/// Those of `namespace`; the same as before if they are.
pub(super) fn gather(world: &World<'_>, namespace: &str, memo: &mut Memo) -> Arc<Secrets> {
    let Memo { secrets, config_maps, made } = memo;
    let changed_secrets = Change::new(secrets, own(&world.secrets, namespace));
    let changed_config_maps = Change::new(config_maps, own(&world.config_maps, namespace));
    if !changed_secrets.is_empty() || !changed_config_maps.is_empty() {
        let made = Arc::make_mut(made);
        changed_secrets.apply(&mut made.secrets);
        changed_config_maps.apply(&mut made.config_maps);
    }
    Arc::clone(made)
}

fn own<'a, T>(objects: &[Object<'a, T>], namespace: &str) -> Vec<&'a Arc<Resource>> {
    let own = objects.iter().filter(|object| &**object.namespace() == namespace);
    own.map(|object| object.resource).collect()
}

/// Resources that came and went.
struct Change {
    gone: Vec<Arc<Resource>>,
    come: Vec<Arc<Resource>>,
}

impl Change {
    /// What turns `known` into `wanted`, and does so.
    fn new(known: &mut Vec<Arc<Resource>>, wanted: Vec<&Arc<Resource>>) -> Self {
        let (first, last) = common_ends(known, &wanted, |known, wanted| Arc::ptr_eq(known, wanted));
        let gone = first..known.len() - last;
        let come: Vec<Arc<Resource>> =
            wanted[first..wanted.len() - last].iter().map(|&resource| Arc::clone(resource)).collect();
        Self { gone: known.splice(gone, come.iter().cloned()).collect(), come }
    }

    fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.come.is_empty()
    }

    fn apply(self, secrets: &mut AHashMap<Arc<str>, SecretData>) {
        for resource in self.gone {
            secrets.remove(&resource.meta.name);
        }
        for resource in self.come {
            secrets.insert(Arc::clone(&resource.meta.name), SecretData::new(resource));
        }
    }
}
