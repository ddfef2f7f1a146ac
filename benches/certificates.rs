//! What 10,000 credentials cost: reading and parsing them, the state that serves them, and the change of one; then the
//! same on the running gateway, from its start to the handshake that shows a certificate written a moment ago.
//!
//! Prints times and the memory that stays; budget: 10,000 certificates in a second and 64 MB, a rotation in 10 ms.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failed unwrap is a failed bench, and it may wait"
)]

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use certs::verify::{self, ServerRules};
use config::snapshot::Snapshot;
use config::snapshot::listener::{Bind, FilterChain, Handler, HttpChain, Listener, Transport};
use config::snapshot::tls::{CertificateSource, ClientAuthentication, ServerMode, ServerTls, TlsParameters};
use config::source::Rescan;
use gateway::state::State;
use gateway::tls::credentials::{Credentials, IdentityPlaces, Places};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

const COUNT: usize = 10_000;
/// Servers of one Gateway.
const SERVERS: usize = 100;
const ROTATIONS: usize = 40;
/// After which something must have gone wrong.
const PATIENCE: Duration = Duration::from_secs(60);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let mounts = directory.path().join("certs");
    for index in 0..COUNT {
        mount(&mounts, index);
    }
    within_this_process(directory.path(), &mounts);
    on_the_running_gateway(directory.path(), &mounts, SERVERS);
    on_the_running_gateway(directory.path(), &mounts, COUNT);
}

fn within_this_process(directory: &Path, mounts: &Path) {
    let snapshot = snapshot();
    let identity = IdentityPlaces::below(directory);
    let mut credentials =
        Credentials::new(Places { mounts: vec![mounts.to_owned()], identity, namespace: "istio-system".into() });

    let uses = Arc::default();

    let before = resident("/proc/self/status");
    let begin = Instant::now();
    let refreshed = credentials.refresh(&snapshot, &uses, Rescan::All);
    let load = begin.elapsed();
    assert_eq!(refreshed.changed.len(), COUNT);
    println!("certificates/memory/{COUNT}: {} KiB", resident("/proc/self/status").saturating_sub(before));
    let begin = Instant::now();
    let state = State::build(Arc::clone(&snapshot), &credentials, &State::default());
    println!("certificates/load/{COUNT}: {load:?}, state {:?}", begin.elapsed());
    println!("certificates/memory_with_state/{COUNT}: {} KiB", resident("/proc/self/status").saturating_sub(before));

    let path = mounts.join("host-5000");
    mount(mounts, 5000);
    let begin = Instant::now();
    let refreshed = credentials.refresh(&snapshot, &uses, Rescan::Changed(&[path.join("tls.crt")]));
    let read = begin.elapsed();
    assert_eq!(refreshed.changed, ["secret host-5000"]);
    let begin = Instant::now();
    let state = State::build(Arc::clone(&snapshot), &credentials, &state);
    println!("certificates/rotation/1_of_{COUNT}: {read:?}, state {:?}", begin.elapsed());

    // As every five seconds.
    credentials.refresh(&snapshot, &uses, Rescan::All);
    let begin = Instant::now();
    assert!(credentials.refresh(&snapshot, &uses, Rescan::All).changed.is_empty());
    println!("certificates/poll/{COUNT}: {:?}", begin.elapsed());
    drop(state);
}

/// An HTTPS server for each of `count` certificates, first without the certificates, then with them.
fn on_the_running_gateway(directory: &Path, mounts: &Path, count: usize) {
    let config = directory.join("config");
    fs::create_dir_all(&config).unwrap();
    for first in (0..count).step_by(SERVERS) {
        fs::write(config.join(format!("gateway-{first}.yaml")), gateway(first)).unwrap();
    }
    let nothing = directory.join("nothing");
    fs::create_dir_all(&nothing).unwrap();
    let bare = Running::start(directory, &config, &nothing);
    let without = bare.resident();
    println!("gateway/start_without_certificates/{count}: {:?}, {without} KiB", bare.started);
    drop(bare);

    let gateway = Running::start(directory, &config, mounts);
    let with = gateway.resident();
    println!("gateway/start/{count}: {:?}, {with} KiB: {} KiB more", gateway.started, with.saturating_sub(without));

    let client = client();
    let mut times: Vec<Duration> = Vec::with_capacity(ROTATIONS);
    // The first is not timed: directories are watched from a moment after the start on.
    for turn in 0..=ROTATIONS {
        let index = turn * (count / ROTATIONS) % count;
        let before = gateway.shown(&client, index);
        mount(mounts, index);
        let begin = Instant::now();
        while gateway.shown(&client, index) == before {
            assert!(begin.elapsed() < PATIENCE, "the gateway goes on with the old certificate of host-{index}");
        }
        if turn > 0 {
            times.push(begin.elapsed());
        }
    }
    times.sort_unstable();
    println!(
        "gateway/rotation/1_of_{count}: from file to handshake, median {:?}, slowest {:?} of {ROTATIONS}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
}

/// A Gateway with the servers of `SERVERS` hosts from `first` on.
fn gateway(first: usize) -> String {
    let mut yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: gateway-{first}, namespace: shop}}\nspec:\n  \
         selector: {{istio: ingressgateway}}\n  servers:\n"
    );
    for index in first..first + SERVERS {
        writeln!(
            yaml,
            "  - port: {{number: 443, name: https-{index}, protocol: HTTPS}}\n    hosts: [host-{index}.example.com]\n    \
             tls: {{mode: SIMPLE, credentialName: host-{index}}}"
        )
        .unwrap();
    }
    yaml
}

/// A gateway in a process of its own; killed when dropped.
struct Running {
    process: Child,
    address: SocketAddr,
    /// From its start to its word that it serves.
    started: Duration,
}

impl Running {
    fn start(directory: &Path, config: &Path, certs: &Path) -> Self {
        let ready = directory.join("ready.json");
        let _ = fs::remove_file(&ready);
        let begin = Instant::now();
        let process = Command::new(env!("CARGO_BIN_EXE_fairlead"))
            .args(["run", "--bind", "127.0.0.1", "--port-map", "443:0", "--workers", "1", "--log", "error"])
            .args(["--admin", "off", "--status", "off", "--metrics", "off"])
            .args(["--config".as_ref(), config, "--certs".as_ref(), certs, "--ready-file".as_ref(), &ready])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut running = Self { process, address: SocketAddr::from(([127, 0, 0, 1], 0)), started: Duration::ZERO };
        while !ready.exists() {
            assert!(begin.elapsed() < PATIENCE, "the gateway does not start");
            sleep(Duration::from_millis(1));
        }
        running.started = begin.elapsed();
        let ready: serde_json::Value = serde_json::from_slice(&fs::read(&ready).unwrap()).unwrap();
        running.address = ready["listeners"][0]["address"].as_str().unwrap().parse().unwrap();
        running
    }

    fn resident(&self) -> u64 {
        resident(&format!("/proc/{}/status", self.process.id()))
    }

    /// The certificate that a new connection for a host gets.
    fn shown(&self, client: &Arc<ClientConfig>, index: usize) -> Vec<u8> {
        let name = ServerName::try_from(format!("host-{index}.example.com")).unwrap();
        let mut connection = ClientConnection::new(Arc::clone(client), name).unwrap();
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).unwrap();
        }
        connection.peer_certificates().unwrap()[0].to_vec()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Takes whatever certificate it gets, and resumes nothing.
fn client() -> Arc<ClientConfig> {
    let rules = ServerRules { skip_verification: true, ..ServerRules::default() };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verify::server(None, rules))
        .with_no_client_auth();
    client.resumption = rustls::client::Resumption::disabled();
    Arc::new(client)
}

fn mount(mounts: &Path, index: usize) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = CertificateParams::new([format!("host-{index}.example.com")]).unwrap().self_signed(&key).unwrap();
    let directory = mounts.join(format!("host-{index}"));
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("tls.crt"), certificate.pem()).unwrap();
    fs::write(directory.join("tls.key"), key.serialize_pem()).unwrap();
}

fn snapshot() -> Arc<Snapshot> {
    let chains = (0..COUNT).map(|index| {
        let tls = ServerTls {
            mode: ServerMode::Simple,
            certificates: vec![CertificateSource::Secret(format!("host-{index}").into())],
            client: ClientAuthentication::None,
            parameters: TlsParameters::default(),
            alpn: &["h2", "http/1.1"],
        };
        Arc::new(FilterChain {
            name: format!("https.443.https-{index}.shop.istio-system").into(),
            gateways: Vec::new(),
            server_names: vec![format!("host-{index}.example.com").into()],
            transport: Transport::Terminate(Arc::new(tls)),
            handler: Handler::Http(Arc::new(HttpChain::default())),
        })
    });
    let listener = Listener {
        bind: Bind::Default,
        port: 443,
        target_port: 443,
        proxy_protocol: false,
        filter_chains: chains.collect(),
    };
    Arc::new(Snapshot { listeners: vec![Arc::new(listener)], ..Snapshot::default() })
}

/// Resident memory of the process with this `status` file, in KiB.
fn resident(status: &str) -> u64 {
    let status = fs::read_to_string(status).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
