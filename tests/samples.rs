//! The samples of TLS and TCP, over the network: they load without a finding and do what they say.

use crate::harness::client::{End, Http1};
use crate::harness::gateway::Gateway;
use crate::harness::process::{fairlead, run};
use crate::harness::sample::{Pki, directory, label};
use crate::harness::tls_client::{Refusal, Settings, Version};
use crate::harness::tls_server::TlsServer;
use crate::harness::upstream::{Upstream, ok};
use crate::harness::{PATIENCE, stream};

const SHOP: &str = "shop.example.com";

#[tokio::test]
async fn servers_of_every_mode() {
    let pki = Pki::new();
    let upstream = Upstream::ok().await;
    let backend = [("http: 8080", &upstream)];
    let xfcc = async |settings: &Settings, gateway: &Gateway| {
        upstream.take();
        let answer = settings.get(gateway.address(443), SHOP, "/").await;
        assert_eq!(answer.map(|answer| answer.status), Ok(200));
        upstream.take()[0].header("x-forwarded-client-cert").map(str::to_owned)
    };

    let gateway = pki.start("tls-simple", &[443], &backend).await;
    assert_eq!(xfcc(&pki.trusting(), &gateway).await, None);

    let gateway = pki.start("tls-mutual", &[443], &backend).await;
    let element = xfcc(&pki.trusting().identity(&pki.client), &gateway).await.unwrap();
    assert!(element.ends_with(";URI=spiffe://cluster.local/ns/default/sa/client"), "{element}");
    assert_eq!(pki.trusting().refusal(gateway.address(443), SHOP).await, Err(Refusal::Alert(116)));
    let unnamed = pki.ca.client("somebody else");
    let refused = pki.trusting().identity(&unnamed).refusal(gateway.address(443), SHOP).await;
    assert_eq!(refused, Err(Refusal::Alert(46)));

    let gateway = pki.start("tls-optional-mutual", &[443], &backend).await;
    assert_eq!(xfcc(&pki.trusting(), &gateway).await, None);
    assert!(xfcc(&pki.trusting().identity(&pki.client), &gateway).await.is_some());

    let gateway = pki.start("tls-istio-mutual", &[443], &backend).await;
    let connected = Settings::new(&[]).identity(&pki.client).connect(gateway.address(443), SHOP).await.unwrap();
    assert_eq!(&connected.certificate(), pki.identity.der());
    assert_eq!(connected.http1().get(SHOP, "/").await.status, 200);
    let element = xfcc(&Settings::new(&[]).identity(&pki.client), &gateway).await.unwrap();
    assert!(element.starts_with("By=spiffe://cluster.local/ns/istio-system/sa/fairlead;Hash="), "{element}");

    let gateway = pki.start("tls-rsa-and-ecdsa", &[443], &backend).await;
    let address = gateway.address(443);
    assert_eq!(&pki.trusting().connect(address, SHOP).await.unwrap().certificate(), pki.server.der());
    let suites = [rustls::CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];
    let rsa = pki.trusting().version(Version::Tls12).suites(&suites);
    assert_eq!(&rsa.connect(address, SHOP).await.unwrap().certificate(), pki.rsa.der());
    assert_eq!(rsa.get(address, SHOP, "/").await.unwrap().status, 200);
}

async fn echoes(stream: impl stream::Stream) {
    let mut client = Http1::over(stream);
    client.send("hello").await;
    assert_eq!(client.read_exactly(5).await, Ok(b"hello".to_vec()));
    client.half_close().await;
    assert_eq!(client.ended(PATIENCE).await, End::Closed);
}

#[tokio::test]
async fn passthrough_and_tcp() {
    let pki = Pki::new();
    let (shop, others) = (TlsServer::new(&pki.server), TlsServer::new(&pki.rsa));
    let (shop_upstream, others_upstream) =
        (Upstream::h1_tls(&shop, |_| ok()).await, Upstream::h1_tls(&others, |_| ok()).await);
    let gateway =
        pki.start("tls-passthrough", &[443], &[("tls: 9443", &shop_upstream), ("tls: 9444", &others_upstream)]).await;
    for (name, server) in [(SHOP, &shop), ("else.example.com", &others)] {
        assert_eq!(pki.trusting().get(gateway.address(443), name, "/").await.unwrap().status, 200);
        assert_eq!(server.handshake_seen().await.unwrap().server_name.as_deref(), Some(name));
    }
    let refused = pki.trusting().connect(gateway.address(443), "example.org").await.map(|_| ());
    assert_eq!(refused, Err(Refusal::Reset));

    let (echo, next) = (Upstream::echo().await, Upstream::echo().await);
    let gateway = pki.start("tls-tcp", &[5432], &[("tcp: 9000", &echo)]).await;
    let settings = pki.trusting().identity(&pki.client);
    echoes(settings.connect(gateway.address(5432), "db.example.com").await.unwrap().stream).await;

    let gateway = pki.start("tcp", &[5672], &[("tcp: 9000", &echo), ("tcp: 9001", &next)]).await;
    let before = echo.connections();
    for _ in 0..100 {
        let stream = crate::harness::client::connect_from(crate::harness::client::CLIENT, gateway.address(5672)).await;
        echoes(stream.unwrap()).await;
    }
    let first = echo.connections() - before;
    assert_eq!(first + next.connections(), 100);
    // 90 on average; the standard deviation is 3.
    assert!((70..100).contains(&first), "{first} of 100");
}

#[tokio::test]
async fn upstreams_over_tls() {
    let pki = Pki::new();
    let simple = TlsServer::new(&pki.server);
    let mutual = TlsServer::mutual(&pki.server, &pki.ca, &[]);
    for (name, server) in [("upstream-tls-simple", &simple), ("upstream-tls-mutual", &mutual)] {
        let upstream = Upstream::h1_tls(server, |_| ok()).await;
        let gateway = pki.start(name, &[80], &[("https: 9443", &upstream)]).await;
        let answer = Http1::connect(gateway.address(80)).await.get(SHOP, "/").await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        let seen = server.handshake_seen().await.unwrap();
        assert_eq!(seen.server_name.as_deref(), Some("api.example.com"), "{name}");
        let expected = (name == "upstream-tls-mutual").then(|| pki.client.der().to_vec());
        assert_eq!(seen.client, expected, "{name}");
    }
}

#[tokio::test]
async fn every_sample_is_valid() {
    let pki = Pki::new();
    let place = pki.place.path().to_str().unwrap();
    let identity = format!("{place}/identity");
    let entries = std::fs::read_dir(directory("")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 28, "{names:?}");
    for name in names {
        let directory = directory(&name);
        let arguments = ["validate", "--strict", "--certs", place, "--identity", &identity];
        let output = run(fairlead(&[&arguments[..], label(&name), &[directory.to_str().unwrap()]].concat())).await;
        assert!(output.status.success(), "{name:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
