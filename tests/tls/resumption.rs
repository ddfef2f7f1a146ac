//! Handshakes that tickets shorten. `reference/security.md` §4.4.

use std::net::SocketAddr;

use super::{edge, https};
use crate::harness::gateway::Gateway;
use crate::harness::peer;
use crate::harness::pki::{Authority, mutual_secret, tls_secret};
use crate::harness::tls_client::{Client, OpenSsl, Settings, VERSIONS, Version};
use crate::harness::upstream::Upstream;

/// One request on a connection of its own: whether the handshake was a short one.
async fn resumed(client: &Client, address: SocketAddr, host: &str) -> bool {
    let connected = client.connect(address, host).await.unwrap();
    let resumed = connected.resumed();
    // The answer comes after the tickets.
    assert_eq!(connected.http1().get(host, "/").await.status, 200);
    resumed
}

async fn share(client: &Client, address: SocketAddr, host: &str, of: usize) -> usize {
    let mut count = 0;
    for _ in 0..of {
        count += usize::from(resumed(client, address, host).await);
    }
    count
}

#[tokio::test]
async fn tickets_are_honoured_by_every_worker_and_after_reloads() {
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let identity = authority.server("a.test");
    let yaml =
        https("a.test", "{mode: SIMPLE, credentialName: c}") + &https("b.test", "{mode: SIMPLE, credentialName: c}");
    let mesh = edge(&yaml, &[443], upstream.address());
    let builder = mesh.builder().workers(4).file("secret.yaml", tls_secret("c", &identity));
    let gateway = builder.start().await.unwrap();
    let address = gateway.address(443);
    for version in VERSIONS {
        let client = Settings::new(&[]).version(version).tickets().client();
        assert!(!resumed(&client, address, "a.test").await, "{version:?}");
        let count = share(&client, address, "a.test", 40).await;
        eprintln!("{version:?}: {count} of 40 handshakes resumed, over four workers");
        assert_eq!(count, 40, "{version:?}");

        // A reload that has nothing to do with it, and a certificate of the same name.
        gateway.write("more.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: b}\n").await;
        gateway.write("secret.yaml", &tls_secret("c", &authority.server("a.test"))).await;
        let count = share(&client, address, "a.test", 10).await;
        eprintln!("{version:?}: {count} of 10 handshakes resumed after a change of the certificate");
        assert_eq!(count, 10, "{version:?}");

        // A ticket is for the server that gave it.
        assert!(!resumed(&client, address, "b.test").await, "{version:?}");
        std::fs::remove_file(gateway.config().join("more.yaml")).unwrap();
    }
    assert!(!resumed(&Settings::new(&[]).client(), address, "a.test").await);
}

#[tokio::test]
async fn a_resumed_client_is_who_it_was() {
    let (authority, ca, other) = (Authority::new("servers"), Authority::new("clients"), Authority::new("more clients"));
    let upstream = Upstream::ok().await;
    let identity = authority.server("a.test");
    let yaml = https("a.test", "{mode: MUTUAL, credentialName: c}");
    let mesh = edge(&yaml, &[443], upstream.address());
    let builder = mesh.builder().workers(2).file("secret.yaml", mutual_secret("c", &identity, &ca.pem()));
    let gateway: Gateway = builder.start().await.unwrap();
    let address = gateway.address(443);
    for version in VERSIONS {
        let client = Settings::new(&[]).version(version).identity(&ca.client("somebody")).tickets().client();
        upstream.take();
        assert!(!resumed(&client, address, "a.test").await, "{version:?}");
        assert_eq!(share(&client, address, "a.test", 5).await, 5, "{version:?}");
        let seen: Vec<String> = upstream
            .take()
            .iter()
            .map(|request| request.header("x-forwarded-client-cert").unwrap().to_owned())
            .collect();
        assert_eq!(seen.len(), 6);
        assert!(seen.iter().all(|element| *element == seen[0]) && seen[0].contains("CN=somebody"), "{seen:#?}");

        // Who was trusted then may not be trusted any more.
        gateway.write("secret.yaml", &mutual_secret("c", &identity, &format!("{}{}", ca.pem(), other.pem()))).await;
        assert!(!resumed(&client, address, "a.test").await, "{version:?}");
        assert_eq!(share(&client, address, "a.test", 3).await, 3, "{version:?}");
        gateway.write("secret.yaml", &mutual_secret("c", &identity, &other.pem())).await;
        let refused = client.refusal(address, "a.test").await;
        assert!(refused.is_err(), "{version:?}: {refused:?}");
        gateway.write("secret.yaml", &mutual_secret("c", &identity, &ca.pem())).await;
    }
}

#[tokio::test]
async fn openssl_resumes() {
    if !peer::available("openssl") {
        return;
    }
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let place = tempfile::tempdir().unwrap();
    let yaml = https("a.test", "{mode: SIMPLE, credentialName: c}");
    let mesh = edge(&yaml, &[443], upstream.address()).document(&tls_secret("c", &authority.server("a.test")));
    let gateway = mesh.builder().workers(2).start().await.unwrap();
    let address = gateway.address(443);
    for (version, option) in [(Version::Tls12, "-tls1_2"), (Version::Tls13, "-tls1_3")] {
        let session = place.path().join(option);
        let session = session.to_str().unwrap();
        let first = OpenSsl::get(address, "a.test", &[option, "-sess_out", session]).await;
        assert_eq!((first.status(), first.resumed()), (Some(200), false), "{version:?}\n{}", first.text);
        let again = OpenSsl::get(address, "a.test", &[option, "-sess_in", session]).await;
        assert_eq!((again.status(), again.resumed()), (Some(200), true), "{version:?}\n{}", again.text);
        // Envoy's are two hours with TLS 1.2 and two days with 1.3; rustls has one for both.
        let stated = first.text.split_once("lifetime hint: ").and_then(|(_, rest)| rest.split_whitespace().next());
        let stated: u32 = stated.and_then(|text| text.parse().ok()).unwrap_or_default();
        assert!((7_200..=172_800).contains(&stated), "{version:?}: {stated}\n{}", first.text);
    }
}
