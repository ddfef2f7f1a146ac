use std::fs;
use std::os::unix::fs::symlink;

use config::compile::Options;
use config::load::{Loaded, load};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::*;

/// A directory with `config` (a Gateway, which the tests add Secrets to) and `certs`, and what has been found in them.
struct Fixture {
    directory: TempDir,
    credentials: Credentials,
    loaded: Loaded,
}

const SHOP: &str = "shop-cert";

impl Fixture {
    /// Servers that ask for these credentials, in the mode that is given with each.
    fn new(servers: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for part in ["config", "certs", "identity"] {
            fs::create_dir(directory.path().join(part)).unwrap();
        }
        let servers: String = servers
            .iter()
            .enumerate()
            .map(|(index, (mode, credential))| {
                format!(
                    "  - port: {{number: 443, name: https-{index}, protocol: HTTPS}}\n    hosts: [h{index}.example.com]\n    \
                     tls: {{mode: {mode}, credentialName: {credential}}}\n"
                )
            })
            .collect();
        let gateway = format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: shop, namespace: istio-system}}\n\
             spec:\n  selector: {{istio: ingressgateway}}\n  servers:\n{servers}"
        );
        fs::write(directory.path().join("config/gateway.yaml"), gateway).unwrap();
        let places = Places {
            mounts: vec![directory.path().join("certs")],
            identity: IdentityPlaces::below(&directory.path().join("identity")),
            namespace: "istio-system".into(),
        };
        let mut fixture =
            Self { credentials: Credentials::new(places), loaded: load([], Options::default()), directory };
        fixture.load();
        fixture
    }

    /// Reads the configuration once more, and everything that it asks for.
    fn load(&mut self) -> Refreshed {
        self.loaded = load([self.directory.path().join("config")], Options::default());
        assert!(!self.loaded.has_errors(), "{:?}", self.loaded.diagnostics);
        self.refresh(Rescan::All)
    }

    fn refresh(&mut self, rescan: Rescan<'_>) -> Refreshed {
        self.credentials.refresh(&self.loaded.snapshot, &self.loaded.credentials, rescan)
    }

    /// As after an event for `name` in the mounted secret [`SHOP`].
    fn event(&mut self, name: &str) -> Refreshed {
        let path = self.mount(SHOP).join(name);
        self.refresh(Rescan::Changed(&[path]))
    }

    fn mount(&self, name: &str) -> PathBuf {
        self.directory.path().join("certs").join(name)
    }

    /// Mounts `values` as the secret `name`, as plain files.
    fn put(&self, name: &str, values: &[(&str, &str)]) {
        fs::create_dir_all(self.mount(name)).unwrap();
        for (key, value) in values {
            fs::write(self.mount(name).join(key), value).unwrap();
        }
    }

    fn certificate(&self, name: &str) -> Result<Arc<Credential>, String> {
        self.credentials.certificate(&CertificateSource::Secret(name.into()))
    }

    fn authority(&self, name: &str) -> Result<Arc<Authority>, String> {
        self.credentials.authority(&CaSource::Credential(name.into()))
    }

    /// What is found wrong, with code and help.
    fn findings(&self) -> Vec<String> {
        let findings = self.credentials.findings(&self.loaded.credentials);
        findings.iter().map(|finding| format!("{} {}", finding.code.id(), finding)).collect()
    }
}

/// Certificate and key, PEM.
fn pair(host: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn ca() -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn host(credential: &Credential) -> &str {
    credential.leaf().dns().next().unwrap()
}

/// A Secret as a document of the configuration.
fn document(name: &str, chain: &str, key: &str) -> String {
    let indent = |pem: &str| pem.trim_end().replace('\n', "\n    ");
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: istio-system}}\nstringData:\n  tls.crt: |\n    \
         {}\n  tls.key: |\n    {}\n",
        indent(chain),
        indent(key)
    )
}

#[test]
fn a_missing_secret_is_told_with_its_cure_and_found_when_it_comes() {
    let mut fixture = Fixture::new(&[("SIMPLE", SHOP)]);
    assert_eq!(fixture.certificate(SHOP).unwrap_err(), "secret istio-system/shop-cert not found");
    let findings = fixture.findings();
    assert_eq!(findings.len(), 1);
    assert!(findings[0].starts_with("IST0101 Warning"), "{findings:?}");
    assert!(findings[0].contains("spec.servers[0].tls.credentialName"), "{findings:?}");
    assert!(findings[0].contains(fixture.mount(SHOP).to_str().unwrap()), "{findings:?}");
    let (chain, key) = pair("one.example.com");
    fixture.put(SHOP, &[("tls.crt", &chain), ("tls.key", &key)]);
    assert_eq!(fixture.event("").changed, ["secret shop-cert"]);
    assert_eq!(host(&fixture.certificate(SHOP).unwrap()), "one.example.com");
    assert!(fixture.findings().is_empty());
}

#[test]
fn a_swap_of_kubernetes_is_followed() {
    let mut fixture = Fixture::new(&[("SIMPLE", SHOP)]);
    let mount = fixture.mount(SHOP);
    fs::create_dir(&mount).unwrap();
    for (version, name) in [("..1", "one.example.com"), ("..2", "two.example.com")] {
        let (chain, key) = pair(name);
        fs::create_dir(mount.join(version)).unwrap();
        fs::write(mount.join(version).join("tls.crt"), chain).unwrap();
        fs::write(mount.join(version).join("tls.key"), key).unwrap();
    }
    symlink("..1", mount.join("..data")).unwrap();
    for key in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{key}"), mount.join(key)).unwrap();
    }
    fixture.refresh(Rescan::All);
    assert_eq!(host(&fixture.certificate(SHOP).unwrap()), "one.example.com");
    assert!(fixture.credentials.watched().directories.contains(&mount));
    let version = fixture.credentials.watched_version();
    symlink("..2", mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    assert_eq!(fixture.event("..data").changed, ["secret shop-cert"]);
    assert_eq!(host(&fixture.certificate(SHOP).unwrap()), "two.example.com");
    assert_eq!(fixture.credentials.watched_version(), version, "the same directories");
}

#[test]
fn what_can_not_be_used_leaves_the_last_good_one() {
    let mut fixture = Fixture::new(&[("SIMPLE", SHOP)]);
    let (chain, key) = pair("one.example.com");
    fixture.put(SHOP, &[("tls.crt", &chain), ("tls.key", &key)]);
    fixture.refresh(Rescan::All);
    let first = fixture.certificate(SHOP).unwrap();
    let (next_chain, next_key) = pair("two.example.com");
    // Half of a pair, written first.
    fixture.put(SHOP, &[("tls.crt", &next_chain)]);
    assert_eq!(fixture.event("tls.crt").kept, ["secret shop-cert"]);
    assert!(Arc::ptr_eq(&first, &fixture.certificate(SHOP).unwrap()));
    assert!(fixture.findings()[0].starts_with("IST0161 Warning"), "{:?}", fixture.findings());
    assert!(fixture.findings()[0].contains("the last good one stays in use"), "{:?}", fixture.findings());
    fixture.put(SHOP, &[("tls.key", &next_key)]);
    assert_eq!(fixture.event("tls.key").changed, ["secret shop-cert"]);
    let second = fixture.certificate(SHOP).unwrap();
    assert_eq!(host(&second), "two.example.com");
    for broken in [&[("tls.crt", "garbage")][..], &[("tls.crt", "")], &[("tls.key", "")]] {
        fixture.put(SHOP, broken);
        fixture.event(broken[0].0);
        assert!(Arc::ptr_eq(&second, &fixture.certificate(SHOP).unwrap()), "{broken:?}");
        assert_eq!(fixture.findings().len(), 1, "{broken:?}");
    }
    fs::remove_dir_all(fixture.mount(SHOP)).unwrap();
    fixture.event("");
    assert!(Arc::ptr_eq(&second, &fixture.certificate(SHOP).unwrap()), "deleted");
    assert!(fixture.findings()[0].starts_with("IST0101"), "{:?}", fixture.findings());
    // The same content is the same credential.
    fixture.put(SHOP, &[("tls.crt", &next_chain), ("tls.key", &next_key)]);
    assert!(fixture.event("").changed.is_empty());
    assert!(Arc::ptr_eq(&second, &fixture.certificate(SHOP).unwrap()), "back");
    assert!(fixture.findings().is_empty());
}

#[test]
fn a_change_concerns_its_credential_alone() {
    let mut fixture = Fixture::new(&[("SIMPLE", SHOP), ("SIMPLE", "other")]);
    let (chain, key) = pair("one.example.com");
    fixture.put(SHOP, &[("tls.crt", &chain), ("tls.key", &key)]);
    fixture.put("other", &[("cert", &chain), ("key", &key)]);
    assert_eq!(fixture.refresh(Rescan::All).changed.len(), 2);
    let other = fixture.certificate("other").unwrap();
    let (chain, key) = pair("two.example.com");
    fixture.put(SHOP, &[("tls.crt", &chain), ("tls.key", &key)]);
    // Not looked at before somebody says so: the event names another one.
    assert_eq!(fixture.refresh(Rescan::Changed(&[fixture.mount("other").join("cert")])), Refreshed::default());
    assert_eq!(fixture.event("tls.key").changed, ["secret shop-cert"]);
    assert!(Arc::ptr_eq(&other, &fixture.certificate("other").unwrap()));
    // Whoever lost an event finds out by looking at everything.
    let (chain, key) = pair("three.example.com");
    fixture.put("other", &[("cert", &chain), ("key", &key)]);
    assert_eq!(fixture.refresh(Rescan::All).changed, ["secret other"]);
}

#[test]
fn a_document_goes_before_a_mounted_secret() {
    let mut fixture = Fixture::new(&[("SIMPLE", SHOP)]);
    let (chain, key) = pair("mounted.example.com");
    fixture.put(SHOP, &[("tls.crt", &chain), ("tls.key", &key)]);
    fixture.refresh(Rescan::All);
    assert_eq!(host(&fixture.certificate(SHOP).unwrap()), "mounted.example.com");
    let (chain, key) = pair("document.example.com");
    let file = fixture.directory.path().join("config/secret.yaml");
    fs::write(&file, document(SHOP, &chain, &key)).unwrap();
    assert_eq!(fixture.load().changed, ["secret shop-cert"]);
    assert_eq!(host(&fixture.certificate(SHOP).unwrap()), "document.example.com");
    assert!(fixture.findings()[0].contains("hides the one mounted at"), "{:?}", fixture.findings());
    fs::remove_file(file).unwrap();
    fixture.load();
    assert_eq!(host(&fixture.certificate(SHOP).unwrap()), "mounted.example.com");
    assert!(fixture.findings().is_empty());
}

#[test]
fn the_ca_comes_from_a_secret_of_its_own_if_there_is_one() {
    let mut fixture = Fixture::new(&[("MUTUAL", SHOP)]);
    let (chain, key) = pair("one.example.com");
    let (compound, own) = (ca(), ca());
    fixture.put(SHOP, &[("tls.crt", &chain), ("tls.key", &key), ("ca.crt", &compound)]);
    fixture.refresh(Rescan::All);
    let first = fixture.authority(SHOP).unwrap();
    fixture.put("shop-cert-cacert", &[("cacert", &own)]);
    let path = fixture.mount("shop-cert-cacert").join("cacert");
    assert_eq!(fixture.refresh(Rescan::Changed(std::slice::from_ref(&path))).changed, ["the CA of secret shop-cert"]);
    let second = fixture.authority(SHOP).unwrap();
    assert_ne!(first.certificates()[0].sha256(), second.certificates()[0].sha256());
    // Even if it has no CA: then there is none.
    fs::remove_file(&path).unwrap();
    fs::write(path.with_file_name("tls.crt"), &chain).unwrap();
    fixture.refresh(Rescan::Changed(&[path]));
    assert!(fixture.findings()[0].contains("found: tls.crt"), "{:?}", fixture.findings());
    let mut again = Credentials::new(fixture.credentials.places.clone());
    again.refresh(&fixture.loaded.snapshot, &fixture.loaded.credentials, Rescan::All);
    assert!(again.authority(&CaSource::Credential(SHOP.into())).is_err());
}

#[test]
fn the_identity_comes_from_files() {
    let mut fixture = Fixture::new(&[("SIMPLE", SHOP)]);
    fs::write(
        fixture.directory.path().join("config/gateway.yaml"),
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: mesh, namespace: istio-system}\nspec:\n  \
         selector: {istio: ingressgateway}\n  servers:\n  - port: {number: 443, name: https, protocol: HTTPS}\n    \
         hosts: ['*']\n    tls: {mode: ISTIO_MUTUAL}\n",
    )
    .unwrap();
    fixture.load();
    let identity = fixture.directory.path().join("identity");
    let of = |fixture: &Fixture| fixture.credentials.certificate(&CertificateSource::Workload);
    assert!(of(&fixture).unwrap_err().contains("cert-chain.pem"));
    assert!(fixture.credentials.watched().paths.contains(&identity.join("cert-chain.pem")));
    let (chain, key) = pair("mesh.example.com");
    fs::write(identity.join("cert-chain.pem"), &chain).unwrap();
    fixture.refresh(Rescan::Changed(&[identity.join("cert-chain.pem")]));
    assert!(of(&fixture).unwrap_err().contains("key.pem"), "half of it");
    fs::write(identity.join("key.pem"), &key).unwrap();
    fs::write(identity.join("root-cert.pem"), ca()).unwrap();
    fixture.refresh(Rescan::Changed(&[identity.join("key.pem"), identity.join("root-cert.pem")]));
    assert_eq!(host(&of(&fixture).unwrap()), "mesh.example.com");
    // It ends later than the CA, and is reported all the same.
    let mut early = CertificateParams::default();
    early.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    early.not_after = date_time_ymd(2030, 1, 1);
    let early = early.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    fs::write(identity.join("root-cert.pem"), early).unwrap();
    fixture.refresh(Rescan::Changed(&[identity.join("root-cert.pem")]));
    let report = |limit| fixture.credentials.report(limit).iter().map(|it| it.is_identity).collect::<Vec<_>>();
    assert_eq!((report(1), report(2)), (vec![true], vec![false, true]));
    assert!(fixture.credentials.authority(&CaSource::Workload { crl: None }).is_ok());
}

#[test]
fn an_expired_certificate_is_served_and_told() {
    let mut fixture = Fixture::new(&[("SIMPLE", SHOP)]);
    let mut params = CertificateParams::new(["old.example.com".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2001, 1, 1);
    params.not_after = date_time_ymd(2002, 1, 1);
    let key = KeyPair::generate().unwrap();
    let chain = params.self_signed(&key).unwrap().pem();
    fixture.put(SHOP, &[("tls.crt", &chain), ("tls.key", &key.serialize_pem())]);
    fixture.refresh(Rescan::All);
    assert!(fixture.certificate(SHOP).is_ok());
    assert!(fixture.findings()[0].contains("has expired on 2002-01-01"), "{:?}", fixture.findings());
    let report = fixture.credentials.report(1);
    assert_eq!(report[0].name, "secret shop-cert");
    assert!(!format!("{report:?}").contains("PRIVATE KEY"));
}

#[test]
fn what_nothing_asks_for_any_more_is_dropped() {
    let mut fixture = Fixture::new(&[("SIMPLE", SHOP)]);
    let (chain, key) = pair("one.example.com");
    fixture.put(SHOP, &[("tls.crt", &chain), ("tls.key", &key)]);
    fixture.refresh(Rescan::All);
    assert_eq!(fixture.credentials.report(10).len(), 1);
    fs::remove_file(fixture.directory.path().join("config/gateway.yaml")).unwrap();
    let refreshed = fixture.load();
    assert_eq!((&*refreshed.dropped, refreshed.news), (&["secret shop-cert".to_owned()][..], true));
    assert!(fixture.credentials.report(10).is_empty());
}

#[test]
fn names_that_are_paths_lead_nowhere() {
    let fixture = Fixture::new(&[("SIMPLE", SHOP)]);
    for name in ["../certs", "..", ".", "", "a/b", "/etc"] {
        assert_eq!(fixture.credentials.places.mounted(name), None, "{name}");
    }
}

#[test]
fn too_large_files_are_not_read() {
    let mut fixture = Fixture::new(&[("SIMPLE", SHOP)]);
    let (_, key) = pair("one.example.com");
    fixture.put(SHOP, &[("tls.crt", &"x".repeat((1 << 20) + 1)), ("tls.key", &key)]);
    fixture.refresh(Rescan::All);
    assert!(fixture.certificate(SHOP).unwrap_err().contains("larger than 1 MiB"));
}
