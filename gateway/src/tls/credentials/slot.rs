//! One place for each credential that is asked for, and what is in it.

use std::fmt;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use ahash::{AHashMap, AHashSet};
use aws_lc_rs::digest::{self, SHA256, SHA256_OUTPUT_LEN};
use certs::Entries;
use certs::authority::Authority;
use certs::credential::Credential;
use config::snapshot::secret::{SecretData, Secrets};
use config::snapshot::tls::{CaSource, CertificateSource};

use super::files::{self, Content, Mount, Seal, Unreadable};
use super::{Places, Refreshed, Watched};

/// Credentials that are read before they are parsed together, on all processors.
const BATCH: usize = 256;
/// Fewer are parsed here and now.
const WORTH_A_THREAD: usize = 16;

/// What a slot holds: a credential or an authority.
pub(super) trait Material: Sized + Send + Sync {
    /// How the configuration names it.
    type Source: Clone + Eq + Hash + Ord + Sync + fmt::Debug;
    /// What belongs to it in a Secret.
    const KEYS: &'static [&'static str];
    /// In words.
    const NEEDED: &'static str;

    /// For people: `secret shop-cert`.
    fn name(source: &Self::Source) -> String;

    /// Whether it is files that the source names.
    fn is_made_of_files(source: &Self::Source) -> bool;

    /// Where the source is to be found.
    fn lookup(source: &Self::Source, places: &Places) -> Lookup;

    /// The sources that the Secret `name` is a part of.
    fn sources_of(name: &str) -> Vec<Self::Source>;

    fn from_secret(secret: &dyn Entries) -> Result<Self, certs::Error>;

    /// From files, under the keys that [`Material::lookup`] gave them.
    fn from_files(files: &Content, system: bool) -> Result<Self, certs::Error>;
}

/// Where to look.
pub(super) enum Lookup {
    /// The first of these Secrets (or ConfigMaps) that exists, as a document or mounted.
    Named { names: Vec<Arc<str>>, config_map: bool },
    /// All of these files.
    Files { files: Vec<(&'static str, PathBuf)>, system: bool },
}

/// What is known of a credential.
#[derive(Debug)]
pub(super) struct Slot<T> {
    /// The last one that could be used.
    pub(super) good: Option<Arc<T>>,
    /// Why what is there is not in use.
    pub(super) problem: Option<Problem>,
    /// A mounted secret of the same name that is not looked at.
    pub(super) shadowed: Option<PathBuf>,
    /// SHA-256 of what `good` was made of.
    content: Option<Digest>,
    /// The first document that has one of the names.
    document: Option<SecretData>,
    /// What the last look saw.
    seen: Seen,
    stale: Stale,
    /// Files of the mounted secret that links lead out of its directory to.
    outside: Vec<PathBuf>,
}

type Digest = [u8; SHA256_OUTPUT_LEN];

/// Why a credential can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// There is none; else it is broken.
    pub(super) missing: bool,
    pub(super) message: String,
    pub(super) help: String,
}

#[derive(Debug)]
enum Seen {
    Nothing,
    Document(SecretData),
    Mount(PathBuf, Seal),
    Files(Seal),
}

/// How much a slot is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stale {
    No,
    /// Files may have changed: look at their stamps.
    Check,
    /// Files have changed: read them.
    Read,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            good: None,
            problem: None,
            shadowed: None,
            content: None,
            document: None,
            seen: Seen::Nothing,
            stale: Stale::Read,
            outside: Vec::new(),
        }
    }
}

/// What a look has found that is not what it was.
struct Look {
    found: Result<Input, Problem>,
    seen: Seen,
    shadowed: Option<PathBuf>,
    outside: Vec<PathBuf>,
}

/// What a credential is made of.
enum Input {
    Document(SecretData),
    Mount(Content),
    Files { content: Content, system: bool },
}

/// A Secret or ConfigMap of the configuration.
struct Document<'s>(&'s SecretData);

impl Entries for Document<'_> {
    fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys()
    }
}

/// All credentials of a kind.
#[derive(Debug)]
pub(super) struct Slots<T: Material>(AHashMap<T::Source, Slot<T>>);

impl<T: Material> Default for Slots<T> {
    fn default() -> Self {
        Self(AHashMap::new())
    }
}

impl<T: Material> Slots<T> {
    pub(super) fn get(&self, source: &T::Source) -> Option<&Slot<T>> {
        self.0.get(source)
    }

    /// Those that are in use.
    pub(super) fn good(&self) -> impl Iterator<Item = (&T::Source, &Arc<T>)> {
        self.0.iter().filter_map(|(source, slot)| Some((source, slot.good.as_ref()?)))
    }

    /// Makes room for `sources` and forgets all others; whether something else is to be watched.
    pub(super) fn want(&mut self, sources: AHashSet<T::Source>, refreshed: &mut Refreshed) -> bool {
        let before = self.0.len();
        let dropped = self.0.extract_if(|source, _| !sources.contains(source));
        let known = refreshed.dropped.len();
        refreshed.dropped.extend(dropped.filter(|(_, slot)| slot.good.is_some()).map(|(source, _)| T::name(&source)));
        refreshed.news |= refreshed.dropped.len() > known;
        let kept = self.0.len();
        for source in sources {
            self.0.entry(source).or_default();
        }
        kept != before || self.0.len() != kept
    }

    /// Files may have changed.
    pub(super) fn doubt_all(&mut self) {
        for slot in self.0.values_mut() {
            slot.stale = slot.stale.max(Stale::Check);
        }
    }

    /// There are other documents.
    pub(super) fn doubt_documents(&mut self, places: &Places, secrets: &Secrets) {
        for (source, slot) in &mut self.0 {
            if slot.has_other_document(source, places, secrets) {
                slot.stale = slot.stale.max(Stale::Check);
            }
        }
    }

    /// Something about the mounted secret `name` has changed.
    pub(super) fn doubt_named(&mut self, name: &str) {
        for source in T::sources_of(name) {
            if let Some(slot) = self.0.get_mut(&source) {
                slot.stale = Stale::Read;
            }
        }
    }

    /// Something has changed at `path`; whether it is known to be part of a credential.
    pub(super) fn doubt_file(&mut self, path: &Path, places: &Places) -> bool {
        let mut known = false;
        for (source, slot) in &mut self.0 {
            let concerned = slot.outside.iter().any(|file| file == path)
                || (T::is_made_of_files(source)
                    && matches!(T::lookup(source, places),
                        Lookup::Files { files, .. } if files.iter().any(|(_, file)| file == path)));
            if concerned {
                slot.stale = Stale::Read;
                known = true;
            }
        }
        known
    }

    /// Looks at what is in doubt; whether something else is to be watched.
    pub(super) fn refresh(&mut self, places: &Places, secrets: &Secrets, refreshed: &mut Refreshed) -> bool {
        let doubtful = self.0.iter().filter(|(_, slot)| slot.stale != Stale::No);
        let mut doubtful: Vec<T::Source> = doubtful.map(|(source, _)| source.clone()).collect();
        doubtful.sort_unstable();
        let mut moved = false;
        for batch in doubtful.chunks(BATCH) {
            let mut inputs = Vec::new();
            for source in batch {
                let Some(slot) = self.0.get_mut(source) else { continue };
                let look = slot.look(source, places, secrets);
                slot.stale = Stale::No;
                let Some(Look { found, seen, shadowed, outside }) = look else { continue };
                moved |= slot.outside != outside || slot.seen.directory() != seen.directory();
                refreshed.news |= slot.shadowed != shadowed;
                (slot.seen, slot.shadowed, slot.outside) = (seen, shadowed, outside);
                match found {
                    Ok(input) => inputs.push((source.clone(), input)),
                    Err(problem) => slot.fail(problem, source, refreshed),
                }
            }
            self.parse(inputs, refreshed);
        }
        moved
    }

    /// Makes credentials of what was found, unless it is what they are made of already.
    fn parse(&mut self, inputs: Vec<(T::Source, Input)>, refreshed: &mut Refreshed) {
        let mut changed = Vec::new();
        for (source, input) in inputs {
            let Some(slot) = self.0.get_mut(&source) else { continue };
            let digest = input.digest(T::KEYS);
            if slot.good.is_none() || slot.content != Some(digest) {
                changed.push((source, input, digest));
            } else if slot.problem.take().is_some() {
                refreshed.news = true;
            }
        }
        let parsed = parse_all::<T>(&changed);
        for ((source, _, digest), parsed) in changed.into_iter().zip(parsed) {
            let Some(slot) = self.0.get_mut(&source) else { continue };
            match parsed {
                Ok(material) => {
                    slot.good = Some(Arc::new(material));
                    slot.content = Some(digest);
                    slot.problem = None;
                    refreshed.changed.push(T::name(&source));
                    refreshed.news = true;
                }
                Err(error) => {
                    let message = format!("{} can't be used: {error}", T::name(&source));
                    let help = format!("it must hold {}", T::NEEDED);
                    slot.fail(Problem { missing: false, message, help }, &source, refreshed);
                }
            }
        }
    }

    /// Adds what is to be watched for these.
    pub(super) fn watched(&self, places: &Places, watched: &mut Watched) {
        for (source, slot) in &self.0 {
            if let Seen::Mount(directory, _) = &slot.seen {
                watched.directories.insert(directory.clone());
                watched.paths.extend(slot.outside.iter().cloned());
            }
            if let Lookup::Files { files, .. } = T::lookup(source, places) {
                watched.paths.extend(files.into_iter().map(|(_, path)| path));
            }
        }
    }
}

impl<T: Material> Slot<T> {
    /// Whether the documents have something else than at the last look.
    fn has_other_document(&self, source: &T::Source, places: &Places, secrets: &Secrets) -> bool {
        let Lookup::Named { names, config_map } = T::lookup(source, places) else { return false };
        let documents = if config_map { &secrets.config_maps } else { &secrets.secrets };
        let first = names.iter().find_map(|name| documents.get(name));
        match (&self.document, first) {
            (None, None) => false,
            (Some(before), Some(now)) => !before.is_same(now),
            _ => true,
        }
    }

    /// `None`: nothing has changed.
    fn look(&mut self, source: &T::Source, places: &Places, secrets: &Secrets) -> Option<Look> {
        match T::lookup(source, places) {
            Lookup::Named { names, config_map } => self.look_at_names(&names, config_map, places, secrets),
            Lookup::Files { files, system } => self.look_at_files(&files, system),
        }
    }

    fn look_at_names(
        &mut self,
        names: &[Arc<str>],
        config_map: bool,
        places: &Places,
        secrets: &Secrets,
    ) -> Option<Look> {
        let documents = if config_map { &secrets.config_maps } else { &secrets.secrets };
        self.document = names.iter().find_map(|name| documents.get(name)).cloned();
        for name in names {
            let mounted = places.mounted(name);
            if let Some(document) = documents.get(name) {
                let same = matches!(&self.seen, Seen::Document(before) if before.is_same(document));
                return (!same || mounted != self.shadowed).then(|| Look {
                    found: Ok(Input::Document(document.clone())),
                    seen: Seen::Document(document.clone()),
                    shadowed: mounted,
                    outside: Vec::new(),
                });
            }
            if let Some(directory) = mounted {
                return self.look_at_mount(directory);
            }
        }
        let name = names.last().map_or("", |name| name);
        let kind = if config_map { "config map" } else { "secret" };
        let message = format!("{kind} {}/{name} not found", places.namespace);
        let help = match &places.mounts[..] {
            [] => format!("add it, with {}, or mount it below a directory of --certs", T::NEEDED),
            [first, ..] => format!("add it, with {}, or mount it at {}", T::NEEDED, first.join(name).display()),
        };
        Some(Look {
            found: Err(Problem { missing: true, message, help }),
            seen: Seen::Nothing,
            shadowed: None,
            outside: Vec::new(),
        })
    }

    fn look_at_mount(&self, directory: PathBuf) -> Option<Look> {
        if let Seen::Mount(before, seal) = &self.seen
            && *before == directory
            && self.stale != Stale::Read
            && seal.still_holds(&Mount::at(&directory).seal(T::KEYS))
        {
            return None;
        }
        let mount = Mount::at(&directory);
        let (outside, before) = (mount.outside(T::KEYS), mount.seal(T::KEYS));
        let (found, seal) = match Mount::read(&directory, T::KEYS) {
            Ok((content, seal)) => (Ok(Input::Mount(content)), seal),
            Err(unreadable) => (Err(Problem::from(unreadable)), before),
        };
        Some(Look { found, seen: Seen::Mount(directory, seal), shadowed: None, outside })
    }

    fn look_at_files(&self, files: &[(&'static str, PathBuf)], system: bool) -> Option<Look> {
        let paths = || files.iter().map(|(_, path)| path.as_path());
        let seal = Seal::of(paths());
        if let Seen::Files(before) = &self.seen
            && self.stale != Stale::Read
            && before.still_holds(&seal)
        {
            return None;
        }
        let found = match files::read_all(files) {
            Ok(content) => Ok(Input::Files { content, system }),
            Err(unreadable) => Err(unreadable.into()),
        };
        Some(Look { found, seen: Seen::Files(seal), shadowed: None, outside: Vec::new() })
    }

    fn fail(&mut self, problem: Problem, source: &T::Source, refreshed: &mut Refreshed) {
        if self.problem.as_ref() == Some(&problem) {
            return;
        }
        if self.good.is_some() {
            refreshed.kept.push(T::name(source));
        }
        refreshed.news = true;
        self.problem = Some(problem);
    }
}

impl Seen {
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Mount(directory, _) => Some(directory),
            _ => None,
        }
    }
}

impl From<Unreadable> for Problem {
    fn from(unreadable: Unreadable) -> Self {
        let help = "put it there, in a form that this process may read".to_owned();
        Self { missing: unreadable.missing, message: unreadable.to_string(), help }
    }
}

impl Input {
    fn get(&self, key: &str) -> Option<&[u8]> {
        match self {
            Self::Document(document) => document.get(key),
            Self::Mount(content) | Self::Files { content, .. } => content.get(key),
        }
    }

    /// Of everything that is looked at.
    fn digest(&self, keys: &[&str]) -> Digest {
        let mut context = digest::Context::new(&SHA256);
        for key in keys {
            let value = self.get(key);
            // Lengths keep one value from running into the next.
            let length = value.map_or(u64::MAX, |value| value.len() as u64);
            context.update(&length.to_be_bytes());
            context.update(value.unwrap_or_default());
        }
        let mut digest = [0; SHA256_OUTPUT_LEN];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }

    fn parse<T: Material>(&self) -> Result<T, certs::Error> {
        match self {
            Self::Document(document) => T::from_secret(&Document(document)),
            Self::Mount(content) => T::from_secret(content),
            Self::Files { content, system } => T::from_files(content, *system),
        }
    }
}

/// In the order of `inputs`.
fn parse_all<T: Material>(inputs: &[(T::Source, Input, Digest)]) -> Vec<Result<T, certs::Error>> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    if threads == 1 || inputs.len() < WORTH_A_THREAD {
        return inputs.iter().map(|(_, input, _)| input.parse()).collect();
    }
    thread::scope(|scope| {
        let parse = |inputs: &[(T::Source, Input, Digest)]| inputs.iter().map(|(_, input, _)| input.parse()).collect();
        let running: Vec<_> = inputs
            .chunks(inputs.len().div_ceil(threads))
            .map(|chunk| scope.spawn(move || -> Vec<Result<T, certs::Error>> { parse(chunk) }))
            .collect();
        let join = |running: thread::ScopedJoinHandle<'_, _>| running.join().expect("parsing never panics");
        running.into_iter().flat_map(join).collect()
    })
}

impl Material for Credential {
    type Source = CertificateSource;
    const KEYS: &'static [&'static str] = &["cert", "key", "tls.crt", "tls.key", "tls.ocsp-staple"];
    const NEEDED: &'static str = "a certificate chain and its key (tls.crt and tls.key, or cert and key; PEM)";

    fn name(source: &CertificateSource) -> String {
        match source {
            CertificateSource::Secret(name) => format!("secret {name}"),
            CertificateSource::Files { certificate, .. } => format!("certificate {}", certificate.display()),
            CertificateSource::Workload => "the workload's certificate".to_owned(),
            CertificateSource::Unusable(reason) => reason.to_string(),
        }
    }

    fn is_made_of_files(source: &CertificateSource) -> bool {
        matches!(source, CertificateSource::Files { .. } | CertificateSource::Workload)
    }

    fn lookup(source: &CertificateSource, places: &Places) -> Lookup {
        let pair = |chain: &Path, key: &Path| Lookup::Files {
            files: vec![("tls.crt", chain.to_owned()), ("tls.key", key.to_owned())],
            system: false,
        };
        match source {
            CertificateSource::Secret(name) => Lookup::Named { names: vec![Arc::clone(name)], config_map: false },
            CertificateSource::Files { certificate, key } => pair(certificate, key),
            CertificateSource::Workload => {
                places.identity.files().map_or_else(Lookup::nowhere, |files| pair(&files.chain, &files.key))
            }
            CertificateSource::Unusable(_) => Lookup::nowhere(),
        }
    }

    fn sources_of(name: &str) -> Vec<CertificateSource> {
        vec![CertificateSource::Secret(name.into())]
    }

    fn from_secret(secret: &dyn Entries) -> Result<Self, certs::Error> {
        Self::from_secret(secret)
    }

    fn from_files(files: &Content, _system: bool) -> Result<Self, certs::Error> {
        let file = |key| files.get(key).unwrap_or_default();
        Self::from_pem(file("tls.crt"), file("tls.key"), None)
    }
}

impl Material for Authority {
    type Source = CaSource;
    const KEYS: &'static [&'static str] = &["cacert", "crl", "ca.crt", "ca.crl"];
    const NEEDED: &'static str = "CA certificates (ca.crt or cacert; PEM)";

    fn name(source: &CaSource) -> String {
        match source {
            CaSource::Credential(name) => format!("the CA of secret {name}"),
            CaSource::Secret(name) => format!("the CA in secret {name}"),
            CaSource::ConfigMap(name) => format!("the CA in config map {name}"),
            CaSource::Files { ca, .. } => format!("the CA {}", ca.display()),
            CaSource::Workload { .. } => "the mesh's CA".to_owned(),
            CaSource::System { .. } => "the operating system's CAs".to_owned(),
            CaSource::Unusable(reason) => reason.to_string(),
        }
    }

    fn is_made_of_files(source: &CaSource) -> bool {
        matches!(source, CaSource::Files { .. } | CaSource::Workload { .. } | CaSource::System { .. })
    }

    fn lookup(source: &CaSource, places: &Places) -> Lookup {
        let named = |names, config_map| Lookup::Named { names, config_map };
        let files = |ca: Option<&Path>, crl: Option<&Path>| Lookup::Files {
            files: [("ca.crt", ca), ("ca.crl", crl)]
                .into_iter()
                .filter_map(|(key, path)| Some((key, path?.to_owned())))
                .collect(),
            system: ca.is_none(),
        };
        match source {
            CaSource::Credential(name) => named(vec![format!("{name}{CA_SUFFIX}").into(), Arc::clone(name)], false),
            CaSource::Secret(name) => named(vec![Arc::clone(name)], false),
            CaSource::ConfigMap(name) => named(vec![Arc::clone(name)], true),
            CaSource::Files { ca, crl } => files(Some(ca), crl.as_deref()),
            CaSource::Workload { crl } => match places.identity.files() {
                Some(identity) => files(Some(&identity.roots), crl.as_deref().or(places.identity.crl())),
                None => Lookup::nowhere(),
            },
            CaSource::System { crl } => files(None, crl.as_deref()),
            CaSource::Unusable(_) => Lookup::nowhere(),
        }
    }

    fn sources_of(name: &str) -> Vec<CaSource> {
        let mut sources =
            vec![CaSource::Credential(name.into()), CaSource::Secret(name.into()), CaSource::ConfigMap(name.into())];
        sources.extend(name.strip_suffix(CA_SUFFIX).map(|name| CaSource::Credential(name.into())));
        sources
    }

    fn from_secret(secret: &dyn Entries) -> Result<Self, certs::Error> {
        Self::from_secret(secret)
    }

    fn from_files(files: &Content, system: bool) -> Result<Self, certs::Error> {
        let crl = files.get("ca.crl");
        if system { Self::system(crl) } else { Self::from_pem(files.get("ca.crt").unwrap_or_default(), crl) }
    }
}

/// The Secret with this behind its name holds the CA of a credential.
const CA_SUFFIX: &str = "-cacert";

impl Lookup {
    fn nowhere() -> Self {
        Self::Named { names: Vec::new(), config_map: false }
    }
}
