//! New certificates for old, while handshakes and requests go on. `reference/security.md` §4.7, S2, S6.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Request;

use super::{alert, edge, https};
use crate::harness::client::{CLIENT, connect_from};
use crate::harness::eventually;
use crate::harness::gateway::{Gateway, write_into};
use crate::harness::pki::{
    Authority, Identity, Leaf, Mount, Validity, mutual_secret, secret, tls_secret, workload_files,
};
use crate::harness::tls_client::{Client, Refusal, Settings, Version};
use crate::harness::upstream::Upstream;

async fn shown(address: SocketAddr, host: &str) -> Option<Vec<u8>> {
    let connected = Settings::new(&[]).connect(address, host).await.ok()?;
    Some(connected.certificate().to_vec())
}

/// Waits until this certificate is shown.
async fn shows(address: SocketAddr, host: &str, identity: &Identity) {
    eventually("the new certificate", || async {
        (shown(address, host).await.as_deref() == Some(identity.der())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_secret_changes_and_open_connections_live_on() {
    let (authority, second) = (Authority::new("first"), Authority::new("second"));
    let upstream = Upstream::ok().await;
    let (old, new) = (authority.server("a.test"), second.server("a.test"));
    let yaml = https("a.test", "{mode: SIMPLE, credentialName: c}")
        + &https("other.test", "{mode: SIMPLE, credentialName: other}");
    let mesh = edge(&yaml, &[443], upstream.address()).document(&tls_secret("other", &authority.server("other.test")));
    let gateway = mesh.builder().file("secret.yaml", tls_secret("c", &old)).start().await.unwrap();
    let address = gateway.address(443);
    let trusts_old = Settings::new(&[&authority]);
    let trusts_new = Settings::new(&[&second]);
    let mut http1 = trusts_old.connect(address, "a.test").await.unwrap().http1();
    assert_eq!(http1.get("a.test", "/").await.status, 200);
    let mut http2 = trusts_old.clone().alpn(&["h2"]).connect(address, "a.test").await.unwrap().http2().await;
    let request = || Request::get("https://a.test/").body(()).unwrap();
    assert_eq!(http2.exchange(request(), &[]).await.status, 200);

    // S2, S6: there and back.
    gateway.write("secret.yaml", &tls_secret("c", &new)).await;
    assert!(matches!(trusts_old.connect(address, "a.test").await, Err(Refusal::Ours(_))));
    assert_eq!(trusts_new.get(address, "a.test", "/").await.unwrap().status, 200);
    gateway.write("secret.yaml", &tls_secret("c", &old)).await;
    assert_eq!(trusts_old.get(address, "a.test", "/").await.unwrap().status, 200);
    assert!(matches!(trusts_new.connect(address, "a.test").await, Err(Refusal::Ours(_))));

    // What can't be served keeps the last that could.
    let broken = [
        ("bad PEM", secret("c", &[("tls.crt", b"junk"), ("tls.key", old.key.as_bytes())])),
        ("another's key", secret("c", &[("tls.crt", old.chain.as_bytes()), ("tls.key", new.key.as_bytes())])),
        ("other keys", secret("c", &[("certificate", b"x")])),
    ];
    for (what, text) in broken {
        let before = gateway.generation().await;
        write_into(&gateway.config(), "secret.yaml", &text);
        gateway.reloaded_since(before).await;
        assert_eq!(trusts_old.get(address, "a.test", "/").await.unwrap().status, 200, "{what}");
    }
    // One that has expired is served all the same.
    let expired = authority.issue(&Leaf::server("a.test").valid(Validity::Past));
    gateway.write("secret.yaml", &tls_secret("c", &expired)).await;
    assert_eq!(shown(address, "a.test").await.as_deref(), Some(&expired.der()[..]));
    // And one that goes stays in force.
    let before = gateway.generation().await;
    std::fs::remove_file(gateway.config().join("secret.yaml")).unwrap();
    gateway.reloaded_since(before).await;
    assert_eq!(shown(address, "a.test").await.as_deref(), Some(&expired.der()[..]));
    gateway.write("secret.yaml", &tls_secret("c", &new)).await;
    assert_eq!(trusts_new.get(address, "a.test", "/").await.unwrap().status, 200);

    // All the while, the first two connections were nobody's business.
    let answer = http1.get("a.test", "/").await;
    assert_eq!((answer.status, answer.has("connection")), (200, false));
    assert_eq!(http2.exchange(request(), &[]).await.status, 200);
    assert!(http2.ended(Duration::from_millis(20)).await.is_none());
}

#[tokio::test]
async fn what_counts_is_the_moment_of_the_hello() {
    let (authority, first, second) = (Authority::new("servers"), Authority::new("first"), Authority::new("second"));
    let upstream = Upstream::ok().await;
    let (old, new) = (authority.server("a.test"), authority.server("a.test"));
    let mesh = edge(&https("a.test", "{mode: MUTUAL, credentialName: c}"), &[443], upstream.address());
    let builder = mesh.builder().file("secret.yaml", mutual_secret("c", &old, &first.pem()));
    let gateway = builder.start().await.unwrap();
    let address = gateway.address(443);
    // Both are there before the change, and say hello after it.
    let trusted_before = connect_from(CLIENT, address).await.unwrap();
    let trusted_after = connect_from(CLIENT, address).await.unwrap();
    gateway.write("secret.yaml", &mutual_secret("c", &new, &second.pem())).await;
    let client = |ca: &Authority| Settings::new(&[]).version(Version::Tls12).identity(&ca.client("c")).client();
    let refused = client(&first).handshake(trusted_before, "a.test").await.map(|_| ());
    assert_eq!(refused, Err(Refusal::Alert(alert::UNKNOWN_CA)));
    let connected = client(&second).handshake(trusted_after, "a.test").await.unwrap();
    assert_eq!(&connected.certificate(), new.der());
    assert_eq!(connected.http1().get("a.test", "/").await.status, 200);
}

#[tokio::test]
async fn files_are_followed_wherever_they_are() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let place = tempfile::tempdir().unwrap();
    let (certs, identity_directory) = (place.path().join("certs"), place.path().join("identity"));
    let old = authority.server("a.test");
    let (ca, other_ca) = (Authority::new("clients"), Authority::new("other clients"));
    let mut mount =
        Mount::new(certs.join("mounted"), &[("tls.crt", old.chain.as_bytes()), ("tls.key", old.key.as_bytes())]);
    let (chain_file, key_file) = old.write(place.path(), "pair");
    let ca_file = place.path().join("ca.pem");
    std::fs::write(&ca_file, ca.pem()).unwrap();
    let spiffe = Leaf::workload("spiffe://cluster.local/ns/istio-system/sa/gateway");
    let workload = authority.issue(&spiffe);
    workload_files(&identity_directory, &workload, &ca.pem());
    let yaml = https("mounted.test", "{mode: SIMPLE, credentialName: mounted}")
        + &https(
            "pair.test",
            &format!(
                "{{mode: MUTUAL, serverCertificate: {chain_file}, privateKey: {key_file}, caCertificates: {}}}",
                ca_file.display()
            ),
        )
        + &https("late.test", "{mode: SIMPLE, credentialName: late}")
        + &https("mesh.test", "{mode: ISTIO_MUTUAL}");
    let mesh = edge(&yaml, &[443], upstream.address());
    let gateway = mesh
        .builder()
        .argument("--certs")
        .argument(certs.to_str().unwrap())
        .argument("--identity")
        .argument(identity_directory.to_str().unwrap())
        .start()
        .await
        .unwrap();
    let address = gateway.address(443);
    shows(address, "mounted.test", &old).await;

    // As Kubernetes changes a mounted secret: one link.
    for _ in 0..3 {
        let new = authority.server("mounted.test");
        mount.replace(&[("tls.crt", new.chain.as_bytes()), ("tls.key", new.key.as_bytes())]);
        shows(address, "mounted.test", &new).await;
    }
    // A secret that is mounted while the gateway runs.
    assert_eq!(Settings::new(&[]).connect(address, "late.test").await.map(|_| ()), Err(Refusal::Reset));
    let late = authority.server("late.test");
    Mount::new(certs.join("late"), &[("tls.crt", late.chain.as_bytes()), ("tls.key", late.key.as_bytes())]);
    shows(address, "late.test", &late).await;

    // A pair of files is two writes: between them the old pair is served, not half of each.
    let new = authority.server("pair.test");
    write_into(place.path(), "pair.crt", &new.chain);
    gateway.says("pair").await;
    assert_eq!(shown_to(address, "pair.test", &ca).await.as_deref(), Some(&old.der()[..]));
    write_into(place.path(), "pair.key", &new.key);
    let client = ca.client("c");
    eventually("the new pair", || async {
        (shown_to(address, "pair.test", &ca).await.as_deref() == Some(&new.der()[..])).then_some(())
    })
    .await;
    // Another CA for clients.
    write_into(place.path(), "ca.pem", &other_ca.pem());
    eventually("the other CA", || async {
        let settings = Settings::new(&[]).version(Version::Tls12).identity(&client);
        (settings.refusal(address, "pair.test").await == Err(Refusal::Alert(alert::UNKNOWN_CA))).then_some(())
    })
    .await;
    assert!(shown_to(address, "pair.test", &other_ca).await.is_some());

    // The workload's own.
    let new = authority.issue(&spiffe);
    workload_files(&identity_directory, &new, &ca.pem());
    eventually("the new identity", || async {
        (shown_to(address, "mesh.test", &ca).await.as_deref() == Some(&new.der()[..])).then_some(())
    })
    .await;
}

/// The certificate that a client of this CA is shown.
async fn shown_to(address: SocketAddr, host: &str, ca: &Authority) -> Option<Vec<u8>> {
    let settings = Settings::new(&[]).version(Version::Tls12).identity(&ca.client("c"));
    let connected = settings.connect(address, host).await.ok()?;
    Some(connected.certificate().to_vec())
}

#[tokio::test]
async fn what_clients_must_show_changes_too() {
    let (authority, ca, other) = (Authority::new("servers"), Authority::new("old"), Authority::new("new"));
    let upstream = Upstream::ok().await;
    let identity = authority.server("a.test");
    let yaml = https("a.test", "{mode: MUTUAL, credentialName: c}");
    let mesh = edge(&yaml, &[443], upstream.address());
    let gateway = mesh.builder().file("secret.yaml", mutual_secret("c", &identity, &ca.pem())).start().await.unwrap();
    let address = gateway.address(443);
    let (first, second) = (ca.client("c"), other.client("c"));
    let with = |identity: &Identity| Settings::new(&[]).identity(identity);
    let served =
        async |identity: &Identity| with(identity).get(address, "a.test", "/").await.map(|answer| answer.status);
    assert_eq!(served(&first).await, Ok(200));
    let mut open = with(&first).connect(address, "a.test").await.unwrap().http1();
    assert_eq!(open.get("a.test", "/").await.status, 200);
    // A broken CA isn't none: the last one stays.
    gateway.write("secret.yaml", &mutual_secret("c", &identity, "junk")).await;
    assert_eq!(served(&first).await, Ok(200));
    assert_eq!(with(&second).refusal(address, "a.test").await, Err(Refusal::Alert(alert::UNKNOWN_CA)));
    // Both, then the new one alone.
    gateway.write("secret.yaml", &mutual_secret("c", &identity, &format!("{}{}", ca.pem(), other.pem()))).await;
    assert_eq!((served(&first).await, served(&second).await), (Ok(200), Ok(200)));
    gateway.write("secret.yaml", &mutual_secret("c", &identity, &other.pem())).await;
    assert_eq!(with(&first).refusal(address, "a.test").await, Err(Refusal::Alert(alert::UNKNOWN_CA)));
    assert_eq!(served(&second).await, Ok(200));
    // A CRL, and its end.
    let entries = |crl: &str| {
        secret(
            "c",
            &[
                ("tls.crt", identity.chain.as_bytes()),
                ("tls.key", identity.key.as_bytes()),
                ("ca.crt", other.pem().as_bytes()),
                ("ca.crl", crl.as_bytes()),
            ],
        )
    };
    gateway.write("secret.yaml", &entries(&other.crl(&[second.serial()], Validity::Current))).await;
    assert_eq!(with(&second).refusal(address, "a.test").await, Err(Refusal::Alert(alert::CERTIFICATE_REVOKED)));
    gateway.write("secret.yaml", &entries(&other.crl(&[], Validity::Current))).await;
    assert_eq!(served(&second).await, Ok(200));
    assert_eq!(open.get("a.test", "/").await.status, 200);
}

#[tokio::test]
async fn a_thousand_rotations_lose_no_handshake() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let leaf = Leaf::server("a.test");
    let pairs: Vec<Identity> = (0..50).map(|_| authority.issue(&leaf)).collect();
    let place = tempfile::tempdir().unwrap();
    let yaml = https("a.test", "{mode: SIMPLE, credentialName: c}");
    let mesh = edge(&yaml, &[443], upstream.address());
    let directory = place.path().join("c");
    let content = |pair: usize| [("tls.crt", pairs[pair].chain.as_bytes()), ("tls.key", pairs[pair].key.as_bytes())];
    let mut mount = Mount::new(&directory, &content(0));
    let builder = mesh.builder().workers(2).access_log("off");
    let gateway = builder.argument("--certs").argument(place.path().to_str().unwrap()).start().await.unwrap();
    let address = gateway.address(443);

    let load = Load::start(address, Settings::new(&[&authority]).client(), 8);
    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    for round in 0..1_000 {
        let pair = (round + 1) % pairs.len();
        let changed = Instant::now();
        mount.replace(&content(pair));
        // Every hundredth is waited for, so that they aren't all joined to a few.
        if round % 100 == 99 {
            shows(address, "a.test", &pairs[pair]).await;
            slowest = slowest.max(changed.elapsed());
        } else {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    let (done, failed) = load.stop().await;
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!("1,000 rotations in {seconds:.1} s beside {done} handshakes; the slowest that was watched: {slowest:?}");
    assert_eq!(failed, Vec::<String>::new());
    assert!(done > 500, "{done} handshakes");
}

/// Clients that make one full handshake after another.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Option<String>>>,
}

impl Load {
    fn start(address: SocketAddr, client: Client, count: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let one = |_| {
            let (stop, done, client) = (stop.clone(), done.clone(), client.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match client.get(address, "a.test", "/").await {
                        Ok(answer) if answer.status == 200 => {}
                        other => return Some(format!("{other:?}")),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                None
            })
        };
        let clients = (0..count).map(one).collect();
        Self { stop, done, clients }
    }

    /// Handshakes done, and what failed.
    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for client in self.clients {
            failed.extend(client.await.unwrap());
        }
        (self.done.load(Ordering::Relaxed), failed)
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_within_moments() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let yaml = https("a.test", "{mode: SIMPLE, credentialName: c}");
    let mesh = edge(&yaml, &[443], upstream.address());
    let old = authority.server("a.test");
    let gateway: Gateway = mesh.builder().file("secret.yaml", tls_secret("c", &old)).start().await.unwrap();
    let address = gateway.address(443);
    let mut times = Vec::new();
    for _ in 0..21 {
        let new = authority.server("a.test");
        let text = tls_secret("c", &new);
        let changed = Instant::now();
        write_into(Path::new(&gateway.config()), "secret.yaml", &text);
        shows(address, "a.test", &new).await;
        times.push(changed.elapsed());
    }
    times.sort_unstable();
    eprintln!("from an edit to a handshake with the new certificate: median {:?}, slowest {:?}", times[10], times[20]);
    // The aim is 10 ms of a release build on an idle machine; this one is neither.
    assert!(times[10] < Duration::from_millis(250), "{times:?}");
}
