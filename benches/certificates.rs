//! What 10,000 credentials cost: reading and parsing them, the state that serves them, and the change of one.
//!
//! Prints times and the memory that stays; budget: 10,000 certificates in a second and 64 MB.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed bench")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use config::snapshot::Snapshot;
use config::snapshot::listener::{Bind, FilterChain, Handler, HttpChain, Listener, Transport};
use config::snapshot::tls::{CertificateSource, ClientAuthentication, ServerMode, ServerTls, TlsParameters};
use config::source::Rescan;
use gateway::state::State;
use gateway::tls::credentials::{Credentials, IdentityPlaces, Places};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

const COUNT: usize = 10_000;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let mounts = directory.path().join("certs");
    for index in 0..COUNT {
        mount(&mounts, index);
    }
    let snapshot = snapshot();
    let identity = IdentityPlaces::below(directory.path());
    let mut credentials =
        Credentials::new(Places { mounts: vec![mounts.clone()], identity, namespace: "istio-system".into() });

    let uses = Arc::default();

    let before = resident();
    let begin = Instant::now();
    let refreshed = credentials.refresh(&snapshot, &uses, Rescan::All);
    let load = begin.elapsed();
    assert_eq!(refreshed.changed.len(), COUNT);
    println!("certificates/memory/{COUNT}: {} KiB", resident().saturating_sub(before));
    let begin = Instant::now();
    let state = State::build(Arc::clone(&snapshot), &credentials, &State::default());
    println!("certificates/load/{COUNT}: {load:?}, state {:?}", begin.elapsed());
    println!("certificates/memory_with_state/{COUNT}: {} KiB", resident().saturating_sub(before));

    let path = mounts.join("host-5000");
    mount(&mounts, 5000);
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

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
