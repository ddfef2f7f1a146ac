//! HTTP/2 connections whose peer falls silent, and what becomes of those who wait for it.

use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::harness::client::{Http1, Http2};
use crate::harness::mesh::Mesh;
use crate::harness::upstream::{H2Step, Upstream};
use crate::harness::{PATIENCE, eventually};

/// Between the gateway and `upstream`: what the upstream sends is held back while `held` says so.
async fn path_to(upstream: SocketAddr, held: watch::Receiver<bool>) -> Upstream {
    Upstream::raw(move |stream, _| {
        let mut held = held.clone();
        async move {
            let Ok(to) = TcpStream::connect(upstream).await else { return };
            let (mut from_gateway, mut to_gateway) = stream.into_split();
            let (mut from_upstream, mut to_upstream) = to.into_split();
            let back = async {
                let mut bytes = [0; 16_384];
                while let Ok(length @ 1..) = from_upstream.read(&mut bytes).await {
                    if held.wait_for(|held| !held).await.is_err()
                        || to_gateway.write_all(&bytes[..length]).await.is_err()
                    {
                        return;
                    }
                }
            };
            tokio::select! {
                _ = tokio::io::copy(&mut from_gateway, &mut to_upstream) => {}
                () = back => {}
            }
        }
    })
    .await
}

/// A request in vain asks the peer for a sign of life. When it comes, those who have waited for it go on, though no stream
/// has ended and no other connection may be opened.
#[tokio::test]
async fn a_sign_of_life_lets_requests_go_on() {
    let upstream = Upstream::h2(|request| match &*request.target {
        "/long" => vec![H2Step::Head(200, &[], false), H2Step::Pause(10 * PATIENCE)],
        "/slow" => vec![H2Step::Hang],
        _ => vec![H2Step::Head(200, &[], true)],
    })
    .await;
    let (hold, held) = watch::channel(false);
    let path = path_to(upstream.address(), held).await;
    let slow = "match: [{uri: {exact: /slow}}], timeout: 300ms";
    let to = "route: [{destination: {host: a.test}}]";
    let gateway = Mesh::new()
        .http2("a.test", &[path.address()])
        .resource("DestinationRule", "host: a.test\ntrafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}\n")
        .routes("a.test", &format!("[{{{slow}, {to}, retries: {{attempts: 0}}}}, {{{to}, retries: {{attempts: 0}}}}]"))
        .builder()
        .workers(1)
        .start()
        .await
        .unwrap();
    let address = gateway.address(80);
    let mut client = Http2::connect(address).await;
    let (response, _body) = client.open(Request::get("http://a.test/long").body(()).unwrap(), true).await.unwrap();
    let long = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
    assert_eq!(long.status(), 200);

    hold.send(true).unwrap();
    assert_eq!(Http1::connect(address).await.get("a.test", "/slow").await.status, 504);
    let waiting = tokio::spawn(async move { Http1::connect(address).await.get("a.test", "/").await });
    eventually("it waits", || async {
        let page = Http1::connect(gateway.admin()).await.get("localhost", "/clusters").await.text();
        page.lines().any(|line| line.ends_with("::rq_active::2")).then_some(())
    })
    .await;
    assert!(!waiting.is_finished());
    hold.send(false).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(4), waiting).await.expect("an answer").unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!((path.connections(), path.open()), (1, 1));
}
