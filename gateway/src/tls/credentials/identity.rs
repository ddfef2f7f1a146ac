//! Where the certificate of this workload is: its SPIFFE identity, with the roots of the mesh.
//!
//! Source: `reference/security.md` §4.9.

use std::path::{Path, PathBuf};

/// File names below a directory, in the order in which they are looked for: certificate chain, key, roots.
const NAMES: [[&str; 3]; 2] = [
    ["cert-chain.pem", "key.pem", "root-cert.pem"],
    // As Google's clusters have it.
    ["certificates.pem", "private_key.pem", "ca_certificates.pem"],
];
/// Where platforms put them.
const DIRECTORIES: [&str; 2] = ["/etc/certs", "/var/run/secrets/workload-spiffe-credentials"];
/// CRLs that come with the mesh.
const CRL: &str = "/var/run/secrets/istio/crl/ca-crl.pem";

/// The places in which the workload's identity is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityPlaces {
    places: Vec<IdentityFiles>,
    crl: Option<PathBuf>,
}

/// The files of an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdentityFiles {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    pub(super) roots: PathBuf,
}

impl IdentityPlaces {
    /// Only `directory`.
    pub fn below(directory: &Path) -> Self {
        Self { places: files_below(directory).collect(), crl: None }
    }

    /// What the environment names (`ISTIO_META_TLS_*` with `FILE_MOUNTED_CERTS`), else where platforms put it.
    /// `variable` reads the environment.
    pub fn of_platform(variable: impl Fn(&str) -> Option<String>) -> Self {
        let crl = Some(PathBuf::from(CRL));
        let named = |side: &str, what: &str| variable(&format!("ISTIO_META_TLS_{side}_{what}")).map(PathBuf::from);
        let mounted = variable("FILE_MOUNTED_CERTS").is_some_and(|value| value == "true");
        let places = if mounted {
            let [chain, key, roots] =
                ["CERT_CHAIN", "KEY", "ROOT_CERT"].map(|what| named("CLIENT", what).or_else(|| named("SERVER", what)));
            let [etc, ..] = DIRECTORIES.map(Path::new);
            let defaults = NAMES[0].map(|name| etc.join(name));
            let [default_chain, default_key, default_roots] = defaults;
            vec![IdentityFiles {
                chain: chain.unwrap_or(default_chain),
                key: key.unwrap_or(default_key),
                roots: roots.unwrap_or(default_roots),
            }]
        } else {
            DIRECTORIES.iter().flat_map(|directory| files_below(Path::new(directory))).collect()
        };
        Self { places, crl }
    }

    /// The first place where there is something; else the first place.
    pub(super) fn files(&self) -> Option<&IdentityFiles> {
        let is_there = |files: &&IdentityFiles| files.chain.exists() || files.roots.exists();
        self.places.iter().find(is_there).or_else(|| self.places.first())
    }

    /// The CRL of the mesh, if there is one.
    pub(super) fn crl(&self) -> Option<&Path> {
        self.crl.as_deref().filter(|crl| crl.exists())
    }

    /// Everything that may come to be there.
    pub(super) fn all(&self) -> impl Iterator<Item = &Path> {
        let files = self.places.iter().flat_map(|files| [&files.chain, &files.key, &files.roots]);
        files.chain(&self.crl).map(PathBuf::as_path)
    }
}

fn files_below(directory: &Path) -> impl Iterator<Item = IdentityFiles> {
    NAMES.into_iter().map(|names| {
        let [chain, key, roots] = names.map(|name| directory.join(name));
        IdentityFiles { chain, key, roots }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn platforms_name_the_files_in_two_ways() {
        let directory = tempfile::tempdir().unwrap();
        let places = IdentityPlaces::below(directory.path());
        assert_eq!(places.files().unwrap().key, directory.path().join("key.pem"));
        std::fs::write(directory.path().join("certificates.pem"), "").unwrap();
        assert_eq!(places.files().unwrap().key, directory.path().join("private_key.pem"));
    }

    #[test]
    fn variables_name_the_files_of_mounted_certificates() {
        let variable = |name: &str| match name {
            "FILE_MOUNTED_CERTS" => Some("true".to_owned()),
            "ISTIO_META_TLS_CLIENT_KEY" => Some("/run/key".to_owned()),
            "ISTIO_META_TLS_SERVER_KEY" => Some("/run/server-key".to_owned()),
            "ISTIO_META_TLS_SERVER_ROOT_CERT" => Some("/run/roots".to_owned()),
            _ => None,
        };
        let places = IdentityPlaces::of_platform(variable);
        let files = places.files().unwrap();
        assert_eq!(files.chain, Path::new("/etc/certs/cert-chain.pem"));
        assert_eq!(files.key, Path::new("/run/key"));
        assert_eq!(files.roots, Path::new("/run/roots"));
    }
}
