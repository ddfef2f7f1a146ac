//! Certificates, keys and CAs at run time: what the configuration's names stand for at the moment.
//!
//! [`Credentials`] lives as long as the process. It reads what is wanted, keeps what did not change, and keeps the last
//! good one of what became unusable or is gone. Reading happens in [`Credentials::refresh`] alone; everything else looks
//! things up.
//!
//! Source: `reference/security.md` §4.7, §4.9.

mod files;
mod identity;
mod report;
mod slot;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ahash::AHashSet;
use certs::authority::Authority;
use certs::certificate::Certificate;
use certs::credential::Credential;
use config::credential::{CredentialUse, Wanted};
use config::diagnostic::{Code, Diagnostic, Severity};
use config::snapshot::Snapshot;
use config::snapshot::listener::Transport;
use config::snapshot::tls::{CaSource, CertificateSource, ClientAuthentication, ClientTls, ServerTls};
use config::source::Rescan;

pub use identity::IdentityPlaces;
pub use report::CredentialReport;
use report::Origin;
use slot::{Slot, Slots};

/// How often the time is compared with what certificates say of theirs.
const CLOCK: Duration = Duration::from_secs(3600);

/// How long before its end a CA certificate is worth a warning.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Where credentials may come from besides the configuration's documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Directories of mounted secrets: `DIR/credential/key`. The first that has a name counts.
    pub mounts: Vec<PathBuf>,
    /// The workload's identity.
    pub identity: IdentityPlaces,
    /// The gateway's namespace, in which secrets are.
    pub namespace: Arc<str>,
}

impl Default for Places {
    /// Nowhere.
    fn default() -> Self {
        let identity = IdentityPlaces::of_platform(|_| None);
        Self { mounts: Vec::new(), identity, namespace: "istio-system".into() }
    }
}

/// Everything that has been asked for, with what was found.
#[derive(Debug, Default)]
pub struct Credentials {
    places: Places,
    certificates: Slots<Credential>,
    authorities: Slots<Authority>,
    /// What is asked for, as of the last refresh.
    asked: Option<(Arc<Snapshot>, Arc<[CredentialUse]>)>,
    /// When the clock was last compared.
    checked: Option<SystemTime>,
    /// Changes with what is to be watched.
    watched: u64,
}

/// What a filter chain shows to its clients and checks them with. Equal if it is the same material.
#[derive(Debug, Clone)]
pub struct ServerMaterial {
    /// One or two.
    pub certificates: Vec<Arc<Credential>>,
    /// `None` if clients are not checked.
    pub authority: Option<Arc<Authority>>,
}

/// What a cluster shows to its servers and checks them with. Equal if it is the same material.
#[derive(Debug, Clone)]
pub struct ClientMaterial {
    /// Our certificate.
    pub certificate: Option<Arc<Credential>>,
    /// `None` if servers are not checked.
    pub authority: Option<Arc<Authority>>,
}

impl PartialEq for ServerMaterial {
    fn eq(&self, other: &Self) -> bool {
        let Self { certificates, authority } = self;
        certificates.len() == other.certificates.len()
            && certificates.iter().zip(&other.certificates).all(|(a, b)| Arc::ptr_eq(a, b))
            && is_same(authority.as_ref(), other.authority.as_ref())
    }
}

impl PartialEq for ClientMaterial {
    fn eq(&self, other: &Self) -> bool {
        let Self { certificate, authority } = self;
        is_same(certificate.as_ref(), other.certificate.as_ref())
            && is_same(authority.as_ref(), other.authority.as_ref())
    }
}

/// Whether both are one and the same.
pub(crate) fn is_same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// What a refresh has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Credentials that are others than before, new ones included.
    pub changed: Vec<String>,
    /// Credentials whose replacement can't be used or is gone: the last good one stays.
    pub kept: Vec<String>,
    /// Credentials that nothing asks for any more.
    pub dropped: Vec<String>,
    /// Findings may have changed.
    pub news: bool,
}

/// What must be watched to notice changes of credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watched {
    /// Everything in these directories.
    pub directories: BTreeSet<PathBuf>,
    /// These files, wherever links lead, and these directories coming and going.
    pub paths: BTreeSet<PathBuf>,
}

impl Credentials {
    /// Nothing has been asked for yet.
    pub fn new(places: Places) -> Self {
        Self { places, ..Self::default() }
    }

    /// What `tls` asks for, or why it is not there.
    ///
    /// # Errors
    /// What is missing or can't be used. Nothing less than all of it will do.
    pub fn server(&self, tls: &ServerTls) -> Result<ServerMaterial, String> {
        if tls.certificates.is_empty() {
            return Err("the server names no certificate".to_owned());
        }
        let certificates = tls.certificates.iter().map(|source| self.certificate(source)).collect::<Result<_, _>>()?;
        let authority = match &tls.client {
            ClientAuthentication::None => None,
            ClientAuthentication::Optional(trust) | ClientAuthentication::Required(trust) => {
                match self.authority(&trust.ca) {
                    Ok(authority) => Some(authority),
                    Err(_) if trust.skip_verification => None,
                    Err(reason) => return Err(reason),
                }
            }
        };
        Ok(ServerMaterial { certificates, authority })
    }

    /// What `tls` asks for, or why it is not there.
    ///
    /// # Errors
    /// What is missing or can't be used. Nothing less than all of it will do.
    pub fn client(&self, tls: &ClientTls) -> Result<ClientMaterial, String> {
        let certificate = tls.certificate.as_ref().map(|source| self.certificate(source)).transpose()?;
        let authority = match tls.ca.as_ref().map(|source| self.authority(source)) {
            Some(Err(_)) if tls.skip_verification => None,
            authority => authority.transpose()?,
        };
        if authority.is_none() && !tls.skip_verification {
            return Err("there is no CA to check the server with".to_owned());
        }
        Ok(ClientMaterial { certificate, authority })
    }

    fn certificate(&self, source: &CertificateSource) -> Result<Arc<Credential>, String> {
        match source {
            CertificateSource::Unusable(reason) => Err(reason.to_string()),
            _ => found(self.certificates.get(source)),
        }
    }

    fn authority(&self, source: &CaSource) -> Result<Arc<Authority>, String> {
        match source {
            CaSource::Unusable(reason) => Err(reason.to_string()),
            _ => found(self.authorities.get(source)),
        }
    }

    /// Looks at what `snapshot` and `uses` want. `rescan` says what may have changed among files.
    ///
    /// Cost: for [`Rescan::All`] a few `stat`s for each credential that comes from files; for [`Rescan::Changed`] what
    /// the paths concern. Only what has changed is parsed.
    pub fn refresh(&mut self, snapshot: &Arc<Snapshot>, uses: &Arc<[CredentialUse]>, rescan: Rescan<'_>) -> Refreshed {
        let (same_wishes, same_secrets) = match &self.asked {
            Some((before, used)) => (
                Arc::ptr_eq(before, snapshot) && Arc::ptr_eq(used, uses),
                Arc::ptr_eq(&before.secrets, &snapshot.secrets),
            ),
            None => (false, false),
        };
        let (mut moved, mut refreshed) = (false, Refreshed::default());
        if !same_wishes {
            let (certificates, authorities) = wanted(snapshot, uses);
            moved = self.certificates.want(certificates, &mut refreshed);
            moved |= self.authorities.want(authorities, &mut refreshed);
            self.asked = Some((Arc::clone(snapshot), Arc::clone(uses)));
        }
        if !same_secrets {
            self.certificates.doubt_documents(&self.places, &snapshot.secrets);
            self.authorities.doubt_documents(&self.places, &snapshot.secrets);
        }
        match rescan {
            Rescan::All => {
                self.certificates.doubt_all();
                self.authorities.doubt_all();
            }
            Rescan::Changed(paths) => paths.iter().for_each(|path| self.doubt(path)),
        }
        moved |= self.certificates.refresh(&self.places, &snapshot.secrets, &mut refreshed);
        moved |= self.authorities.refresh(&self.places, &snapshot.secrets, &mut refreshed);
        if moved {
            self.watched += 1;
        }
        let now = SystemTime::now();
        if self.checked.is_none_or(|checked| now.duration_since(checked).is_ok_and(|passed| passed >= CLOCK)) {
            self.checked = Some(now);
            refreshed.news = true;
        }
        refreshed
    }

    /// Marks what a change at `path` may concern.
    fn doubt(&mut self, path: &Path) {
        let mut is_mounted = false;
        for mounts in &self.places.mounts {
            let Ok(below) = path.strip_prefix(mounts) else { continue };
            is_mounted = true;
            match below.components().next().and_then(|name| name.as_os_str().to_str()) {
                Some(name) => {
                    self.certificates.doubt_named(name);
                    self.authorities.doubt_named(name);
                }
                None => {
                    self.certificates.doubt_all();
                    self.authorities.doubt_all();
                }
            }
        }
        let places = &self.places;
        let known = self.certificates.doubt_file(path, places) | self.authorities.doubt_file(path, places);
        if !known && !is_mounted {
            // Something behind a link.
            self.certificates.doubt_all();
            self.authorities.doubt_all();
        }
    }

    /// What is wrong with what `uses` ask for.
    pub fn findings(&self, uses: &[CredentialUse]) -> Vec<Diagnostic> {
        let now = SystemTime::now();
        let mut findings = Vec::new();
        for used in uses {
            match &used.wanted {
                Wanted::Certificate(source) => {
                    let warnings = |credential: &Credential| credential.warnings(now);
                    findings.extend(self.finding(used, self.certificates.get(source), warnings));
                }
                Wanted::Ca(source) => {
                    let warnings = |authority: &Authority| expired(authority, now);
                    findings.extend(self.finding(used, self.authorities.get(source), warnings));
                }
            }
        }
        findings
    }

    fn finding<T: slot::Material>(
        &self,
        used: &CredentialUse,
        slot: Option<&Slot<T>>,
        warnings: impl Fn(&T) -> Vec<String>,
    ) -> Vec<Diagnostic> {
        let Some(slot) = slot else { return Vec::new() };
        let mut findings = Vec::new();
        if let Some(problem) = &slot.problem {
            let code = if problem.missing { Code::ReferencedResourceNotFound } else { Code::InvalidGatewayCredential };
            let until = match &slot.good {
                Some(_) => "; the last good one stays in use",
                None if used.resource.name().kind == "Gateway" => "; until then this server resets connections",
                None => "; until then connections to this host fail",
            };
            let help = format!("{}{until}", problem.help);
            findings.push(used.finding(Severity::Warning, code, problem.message.clone()).help(help));
        }
        if let Some(shadowed) = &slot.shadowed {
            let message = format!("the Secret of the configuration hides the one mounted at {}", shadowed.display());
            let help = "remove one of the two";
            findings.push(used.finding(Severity::Warning, Code::Conflict, message).help(help));
        }
        for warning in slot.good.as_deref().map(warnings).unwrap_or_default() {
            let help = "it is served all the same; replace it, which needs no restart";
            findings.push(used.finding(Severity::Warning, Code::InvalidGatewayCredential, warning).help(help));
        }
        findings
    }

    /// Changes with [`Credentials::watched`].
    pub fn watched_version(&self) -> u64 {
        self.watched
    }

    /// What to watch.
    pub fn watched(&self) -> Watched {
        let mut watched = Watched::default();
        watched.directories.extend(self.places.mounts.iter().cloned());
        watched.paths.extend(self.places.mounts.iter().cloned());
        self.certificates.watched(&self.places, &mut watched);
        self.authorities.watched(&self.places, &mut watched);
        if self.certificates.get(&CertificateSource::Workload).is_some() {
            watched.paths.extend(self.places.identity.all().map(Path::to_owned));
        }
        watched
    }

    /// The certificates in use, the soonest to end first: our own, and of all others as many as `limit` leaves room for.
    pub fn report(&self, limit: usize) -> Vec<CredentialReport> {
        let leaves =
            self.certificates.good().map(|(source, credential)| (Origin::Certificate(source), credential.leaf()));
        let authorities = self.authorities.good().flat_map(|(source, authority)| {
            authority.certificates().iter().map(move |certificate| (Origin::Ca(source), certificate))
        });
        let mut certificates: Vec<(Origin<'_>, &Certificate)> = leaves.chain(authorities).collect();
        // Our own comes first, and so is always among them.
        certificates.sort_by_key(|(origin, certificate)| (!origin.is_identity(), certificate.not_after(), *origin));
        certificates.truncate(limit);
        certificates.sort_by_key(|(origin, certificate)| (certificate.not_after(), *origin));
        certificates.into_iter().map(|(origin, certificate)| CredentialReport::new(origin, certificate)).collect()
    }
}

fn found<T: slot::Material>(slot: Option<&Slot<T>>) -> Result<Arc<T>, String> {
    match slot {
        Some(Slot { good: Some(good), .. }) => Ok(Arc::clone(good)),
        Some(Slot { problem: Some(problem), .. }) => Err(problem.message.clone()),
        _ => Err("it has not been looked for".to_owned()),
    }
}

impl Places {
    /// The directory of the mounted secret `name`, if there is one.
    fn mounted(&self, name: &str) -> Option<PathBuf> {
        // A name that is a path could lead anywhere.
        let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
        let mut candidates = self.mounts.iter().map(|mounts| mounts.join(name));
        if is_name { candidates.find(|directory| directory.is_dir()) } else { None }
    }
}

/// What an operator should know of the validity of CA certificates.
fn expired(authority: &Authority, now: SystemTime) -> Vec<String> {
    let mut warnings = Vec::new();
    for certificate in authority.certificates() {
        if certificate.not_after() < now {
            warnings.push(format!("CA certificate \"{}\" has expired", certificate.subject()));
        } else if certificate.not_after() < now + EXPIRES_SOON {
            warnings.push(format!("CA certificate \"{}\" expires soon", certificate.subject()));
        }
    }
    warnings
}

/// Everything that is asked for.
fn wanted(snapshot: &Snapshot, uses: &[CredentialUse]) -> (AHashSet<CertificateSource>, AHashSet<CaSource>) {
    let (mut certificates, mut authorities) = (AHashSet::new(), AHashSet::new());
    for used in uses {
        match &used.wanted {
            Wanted::Certificate(source) => _ = certificates.insert(source.clone()),
            Wanted::Ca(source) => _ = authorities.insert(source.clone()),
        }
    }
    for chain in snapshot.listeners.iter().flat_map(|listener| &listener.filter_chains) {
        let Transport::Terminate(tls) = &chain.transport else { continue };
        for source in &tls.certificates {
            if !certificates.contains(source) {
                certificates.insert(source.clone());
            }
        }
        if let ClientAuthentication::Optional(trust) | ClientAuthentication::Required(trust) = &tls.client
            && !authorities.contains(&trust.ca)
        {
            authorities.insert(trust.ca.clone());
        }
    }
    for tls in snapshot.clusters.values().filter_map(|cluster| cluster.tls.as_ref()) {
        certificates.extend(tls.certificate.clone());
        if let Some(source) = &tls.ca
            && !authorities.contains(source)
        {
            authorities.insert(source.clone());
        }
    }
    certificates.retain(|source| !matches!(source, CertificateSource::Unusable(_)));
    authorities.retain(|source| !matches!(source, CaSource::Unusable(_)));
    (certificates, authorities)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests;
