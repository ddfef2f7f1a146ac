//! The directories in `config/samples`, with certificates of a test and backends that are moved to its ports.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::gateway::Gateway;
use super::pki::{Authority, Identity, Key, Leaf, workload_files};
use super::tls_client::Settings;
use super::upstream::Upstream;

/// A directory of samples; all of them for an empty name.
pub fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/samples").join(name)
}

/// Options that say which gateway a sample is for.
pub fn label(name: &str) -> &'static [&'static str] {
    if name.starts_with("egress-") { &["--label", "istio=egressgateway"] } else { &[] }
}

/// What `dev-ca` makes, for tests.
pub struct Pki {
    pub place: tempfile::TempDir,
    pub ca: Authority,
    pub server: Identity,
    pub rsa: Identity,
    pub client: Identity,
    pub identity: Identity,
}

impl Pki {
    pub fn new() -> Self {
        let ca = Authority::new("throw-away CA");
        let place = tempfile::tempdir().unwrap();
        let leaf = Leaf::server("*.example.com");
        let server = ca.issue(&leaf);
        let rsa = ca.issue(&leaf.key(Key::Rsa));
        let client = ca.issue(&Leaf::client("client").uri("spiffe://cluster.local/ns/default/sa/client"));
        let identity = ca.issue(&Leaf::workload("spiffe://cluster.local/ns/istio-system/sa/fairlead"));
        for (name, identity) in [("server", &server), ("server-rsa", &rsa), ("client", &client)] {
            let directory = place.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("tls.crt"), &identity.chain).unwrap();
            std::fs::write(directory.join("tls.key"), &identity.key).unwrap();
            std::fs::write(directory.join("ca.crt"), ca.pem()).unwrap();
        }
        workload_files(&place.path().join("identity"), &identity, &ca.pem());
        Self { place, ca, server, rsa, client, identity }
    }

    /// The sample with these server ports, its backends moved to where they are, without a word of complaint. Each
    /// backend is found by the text that ends with its port, such as `http: 8080`.
    pub async fn start(&self, name: &str, ports: &[u16], backends: &[(&str, &Upstream)]) -> Gateway {
        let mut text = std::fs::read_to_string(directory(name).join("gateway.yaml")).unwrap();
        for (backend, upstream) in backends {
            assert!(text.contains(backend), "{name}: no backend {backend}");
            let before = backend.trim_end_matches(|char: char| char.is_ascii_digit());
            text = text.replace(backend, &format!("{before}{}", upstream.address().port()));
        }
        let identity = self.place.path().join("identity");
        let builder = Gateway::builder()
            .file("gateway.yaml", text)
            .ports(ports)
            .argument("--certs")
            .argument(self.place.path().to_str().unwrap())
            .argument("--identity")
            .argument(identity.to_str().unwrap());
        let gateway = label(name)
            .iter()
            .fold(builder, |builder, argument| builder.argument(argument))
            .start()
            .await
            .unwrap_or_else(|failure| panic!("{name}: {failure}"));
        let findings = gateway.config_status().await["diagnostics"].clone();
        assert_eq!(findings, Value::Array(Vec::new()), "{name}");
        let log = gateway.stderr();
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{name}: {log}");
        gateway
    }

    pub fn trusting(&self) -> Settings {
        Settings::new(&[&self.ca])
    }
}
