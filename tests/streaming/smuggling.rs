//! Requests in the bytes of other requests. None may ever reach an upstream, or be answered.
//!
//! Regressions of the class of Pingora's CVE-2025-4366 (the unread body of a request that was answered early became the
//! next request), CVE-2026-2833 (bytes behind an upgrade went through before the upstream had agreed), CVE-2026-2835
//! (HTTP/1.0 and several `transfer-encoding`s) and CVE-2026-2836.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::client::{End, Http1};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::upstream::{Received, Step, Upstream, ok};

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: a.test\r\n\r\n";

async fn start(upstream: &Upstream) -> Gateway {
    Mesh::new()
        .http("a.test", &[upstream.address()])
        .route("a.test", "a.test")
        .routes("direct.test", "[{directResponse: {status: 200, body: {string: direct}}}]")
        .routes("redirect.test", "[{redirect: {uri: /elsewhere}}]")
        .routes(
            "fault.test",
            "[{fault: {abort: {httpStatus: 418, percentage: {value: 100}}}, route: [{destination: {host: a.test}}]}]",
        )
        .start()
        .await
}

/// Reads answers until the connection ends or says nothing more.
async fn answers(client: &mut Http1) -> Vec<u16> {
    let mut statuses = Vec::new();
    loop {
        match client.ended(Duration::from_millis(1500)).await {
            End::Bytes(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let heads = text.split("HTTP/1.1 ").skip(1);
                statuses.extend(heads.filter_map(|head| head.get(..3)?.parse::<u16>().ok()));
            }
            _ => return statuses,
        }
    }
}

fn hidden(received: &[Received]) -> bool {
    received.iter().any(|request| request.target == "/hidden")
}

#[tokio::test]
async fn the_body_of_an_early_answered_request_is_no_request() {
    let upstream = Upstream::ok().await;
    let gateway = start(&upstream).await;
    for (host, status) in [("nobody.test", 404), ("direct.test", 200), ("redirect.test", 301), ("fault.test", 418)] {
        let length = format!("POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n", HIDDEN.len());
        let chunked = format!("POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len());
        for (head, body) in [(&length, HIDDEN), (&chunked, &chunk)] {
            // In one piece, and with the body behind the answer.
            let mut client = Http1::connect(gateway.address(80)).await;
            client.send(format!("{head}{body}")).await;
            assert_eq!(answers(&mut client).await, [status], "{host}: {head:?} in one piece");

            let mut client = Http1::connect(gateway.address(80)).await;
            let response = client.exchange(head).await;
            assert_eq!(response.status, status, "{host}");
            client.send(body).await;
            assert_eq!(answers(&mut client).await, [0_u16; 0], "{host}: {head:?}, then the body");
        }
    }
    assert!(upstream.take().is_empty());
}

#[tokio::test]
async fn an_upstream_that_answers_early_gets_no_request_from_a_body() {
    // It answers, and takes whatever comes then for the next request, as a careless server does.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let upstream = {
        let seen = seen.clone();
        Upstream::raw(move |mut stream, number| {
            let seen = seen.clone();
            async move {
                let mut buffer = vec![0; 64 * 1024];
                let mut bytes = Vec::new();
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    bytes.extend_from_slice(&buffer[..length]);
                    while let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                        let head: Vec<u8> = bytes.drain(..end + 4).collect();
                        let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
                        seen.lock().unwrap().push((number, line));
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                    }
                }
            }
        })
        .await
    };
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let head = format!("POST /early HTTP/1.1\r\nhost: a.test\r\ncontent-length: {}\r\n\r\n", HIDDEN.len());
    let response = client.exchange(head).await;
    assert_eq!(response.status, 200);
    // The rest of the request comes after its answer.
    client.send(HIDDEN).await;
    // Somebody else's requests must not meet what is left of it.
    for _ in 0..3 {
        let mut other = Http1::connect(gateway.address(80)).await;
        let response = other.get("a.test", "/other").await;
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
        assert_eq!(other.ended(Duration::from_millis(100)).await, End::Open);
    }
    let seen = seen.lock().unwrap();
    // On the connection of /early the upstream may get the body; then nobody else may be on it.
    let careless: Vec<_> =
        seen.iter().filter(|(_, line)| line.contains("/hidden")).map(|(number, _)| *number).collect();
    let others: Vec<_> = seen.iter().filter(|(_, line)| line.contains("/other")).map(|(number, _)| *number).collect();
    assert_eq!(others.len(), 3, "{seen:?}");
    assert!(others.iter().all(|number| !careless.contains(number)), "{seen:?}");
}

#[tokio::test]
async fn nothing_passes_before_an_upgrade_is_agreed() {
    let upstream = Upstream::raw(|mut stream, _| async move {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        // Everything that comes in this time goes back in the answer, so that the test can see it.
        let _ = tokio::time::timeout(Duration::from_millis(400), async {
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                bytes.extend_from_slice(&buffer[..length]);
            }
        })
        .await;
        let heads = bytes.windows(4).filter(|four| *four == b"\r\n\r\n").count();
        let hidden = String::from_utf8_lossy(&bytes).contains("/hidden");
        let text = format!("heads {heads}, hidden {hidden}");
        let answer = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        let _ = stream.write_all(answer.as_bytes()).await;
        // Whatever follows would be read by this server as a request.
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            let _ = stream
                .write_all(format!("HTTP/1.1 299 Smuggled\r\ncontent-length: 0\r\nx: {length}\r\n\r\n").as_bytes())
                .await;
        }
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    client
        .send(format!("GET /ws HTTP/1.1\r\nhost: a.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n{HIDDEN}"))
        .await;
    let response = client.response().await;
    assert_eq!((response.status, response.text().as_str()), (403, "heads 1, hidden false"));
    assert_eq!(response.header("connection"), "close");
    assert_eq!(answers(&mut client).await, [0_u16; 0], "what followed the refused upgrade is nothing");
    // And nobody else gets that connection.
    let other = Http1::connect(gateway.address(80)).await.get("a.test", "/").await;
    assert_eq!(other.text(), "heads 1, hidden false");
}

#[tokio::test]
async fn what_was_sent_early_is_tunnelled_once_agreed() {
    const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    let upstream =
        Upstream::h1(|_| vec![Step::Pause(Duration::from_millis(200)), Step::Send(SWITCH.to_vec()), Step::Echo]).await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let response = client
        .exchange("GET /ws HTTP/1.1\r\nhost: a.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nearly bytes")
        .await;
    assert_eq!(response.status, 101);
    assert_eq!(client.read_exactly(11).await, Ok(b"early bytes".to_vec()));
}

#[tokio::test]
async fn framing_that_two_servers_could_read_differently() {
    let upstream = Upstream::h1(|_| ok()).await;
    let gateway = start(&upstream).await;
    let http10 = Mesh::new()
        .http("a.test", &[upstream.address()])
        .route("a.test", "a.test")
        .builder()
        .environment("PILOT_HTTP10", "1")
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let length = HIDDEN.len();
    let chunk = format!("{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n");
    for (version, fields, body) in [
        ("1.1", format!("content-length: {length}\r\ntransfer-encoding: chunked"), format!("0\r\n\r\n{HIDDEN}")),
        ("1.1", format!("transfer-encoding: chunked\r\ncontent-length: {length}"), format!("0\r\n\r\n{HIDDEN}")),
        ("1.1", "transfer-encoding: chunked\r\ntransfer-encoding: identity".to_owned(), chunk.clone()),
        ("1.1", "transfer-encoding: identity\r\ntransfer-encoding: chunked".to_owned(), chunk.clone()),
        ("1.1", "transfer-encoding: chunked, identity".to_owned(), chunk.clone()),
        ("1.1", "transfer-encoding: xchunked".to_owned(), chunk.clone()),
        ("1.1", "transfer-encoding : chunked".to_owned(), chunk.clone()),
        ("1.1", "transfer-encoding:\u{b}chunked".to_owned(), chunk.clone()),
        ("1.1", format!("content-length: 0\r\ncontent-length: {length}"), HIDDEN.to_owned()),
        ("1.1", format!("content-length: 0, {length}"), HIDDEN.to_owned()),
        ("1.1", format!("content-length: +{length}"), HIDDEN.to_owned()),
        ("1.1", "transfer-encoding: chunked".to_owned(), format!("0;\n\r\n\r\n{HIDDEN}")),
        ("1.1", "transfer-encoding: chunked".to_owned(), format!("1\r\nA0\r\n\r\n{HIDDEN}")),
        ("1.1", "transfer-encoding: chunked".to_owned(), format!("0x0\r\n\r\n{HIDDEN}")),
        ("1.1", "transfer-encoding: chunked".to_owned(), format!("10000000000000000\r\n\r\n{HIDDEN}")),
        ("1.0", "transfer-encoding: chunked".to_owned(), format!("0\r\n\r\n{HIDDEN}")),
        ("1.0", format!("content-length: {length}\r\ntransfer-encoding: chunked"), format!("0\r\n\r\n{HIDDEN}")),
        ("1.0", "connection: keep-alive\r\ntransfer-encoding: chunked".to_owned(), format!("0\r\n\r\n{HIDDEN}")),
    ] {
        for gateway in [&gateway, &http10] {
            let mut client = Http1::connect(gateway.address(80)).await;
            client.send(format!("POST /first HTTP/{version}\r\nhost: a.test\r\n{fields}\r\n\r\n{body}")).await;
            // At most one answer, and whatever it is: the hidden request isn't served.
            let statuses = answers(&mut client).await;
            assert!(statuses.len() <= 1, "HTTP/{version} {fields:?} {body:?}: answers {statuses:?}");
            let received = upstream.take();
            assert!(!hidden(&received), "HTTP/{version} {fields:?} {body:?}: the hidden request arrived");
            assert!(received.iter().all(|request| request.all("transfer-encoding").len() <= 1), "{received:?}");
        }
    }
}
