//! Order of events around a body: early answers, interim answers, ends of one side, reuse of connections.

use std::time::Duration;

use bytes::Bytes;
use http::Request;

use crate::harness::client::{End, Failure, Http1, Http2, read_h2};
use crate::harness::eventually;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::upstream::{H2Step, Step, Upstream, answer};

async fn start(upstream: &Upstream) -> Gateway {
    Mesh::new().http("a.test", &[upstream.address()]).route("a.test", "a.test").start().await
}

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn an_answer_comes_while_the_client_still_sends() {
    // The head is sent before anything is read, the body of the answer before the request's is complete.
    let upstream = Upstream::h1(|_| {
        vec![
            Step::Send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nearly\r\n".to_vec()),
            Step::ReadBody,
            Step::Send(b"4\r\nlate\r\n0\r\n\r\n".to_vec()),
        ]
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    client.send("POST / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await;
    let head = client.head().await;
    // networking.md §3.10: relayed at once, and the connection is not kept.
    assert_eq!((head.status, head.header("connection")), (200, "close"));
    assert_eq!(client.read_exactly(10).await, Ok(b"5\r\nearly\r\n".to_vec()));
    client.send("3\r\ntwo\r\n0\r\n\r\n").await;
    assert_eq!(client.read_exactly(14).await, Ok(b"4\r\nlate\r\n0\r\n\r\n".to_vec()));
    assert_eq!(upstream.received().await.expect("the request").body, b"onetwo");
    assert_ne!(client.ended(Duration::from_secs(3)).await, End::Open);

    // HTTP/2.
    let mut client = Http2::connect(gateway.address(80)).await;
    let request = Request::post("http://a.test/").body(()).unwrap();
    let (response, mut body) = client.open(request, false).await.unwrap();
    let mut response = tokio::time::timeout(crate::harness::PATIENCE, response).await.unwrap().unwrap();
    let early = tokio::time::timeout(crate::harness::PATIENCE, response.body_mut().data()).await.unwrap();
    assert_eq!(early.unwrap().unwrap(), "early");
    body.send_data(Bytes::from_static(b"more"), true).unwrap();
    let late = tokio::time::timeout(crate::harness::PATIENCE, response.body_mut().data()).await.unwrap();
    assert_eq!(late.unwrap().unwrap(), "late");
}

#[tokio::test]
async fn a_complete_early_answer_reaches_a_client_that_never_ends() {
    let upstream = Upstream::h1(|_| {
        vec![
            Step::Send(b"HTTP/1.1 413 Too Much\r\ncontent-length: 4\r\nconnection: close\r\n\r\nstop".to_vec()),
            Step::Close,
        ]
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    client.send("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 1000000\r\n\r\nbegin").await;
    let response = client.response().await;
    assert_eq!((response.status, response.text().as_str(), response.failure), (413, "stop", None));
    // What would follow is the rest of a body, not a request: the connection can't be kept.
    assert_ne!(client.ended(Duration::from_secs(3)).await, End::Open);

    let mut client = Http2::connect(gateway.address(80)).await;
    let request = Request::post("http://a.test/").body(()).unwrap();
    let (response, mut body) = client.open(request, false).await.unwrap();
    body.send_data(Bytes::from_static(b"begin"), false).unwrap();
    let response = read_h2(response).await;
    assert_eq!((response.status, response.text().as_str()), (413, "stop"));
    assert_eq!(client.get("nobody.test", "/").await.status, 404, "other streams go on");
}

#[tokio::test]
async fn interim_answers_come_in_order() {
    let upstream = Upstream::h1(|request| {
        let go_on: &[u8] = if request.header("expect").is_some() { b"HTTP/1.1 100 Continue\r\n\r\n" } else { b"" };
        vec![
            Step::Send(go_on.to_vec()),
            Step::Send(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n".to_vec()),
            Step::Pause(Duration::from_millis(50)),
            Step::Send(b"HTTP/1.1 103 Early Hints\r\nlink: </b.css>\r\n\r\n".to_vec()),
            Step::ReadBody,
            Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec()),
        ]
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let head = "POST / HTTP/1.1\r\nhost: a.test\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    client.send(head).await;
    // RFC 9110 §10.1.1: the client may wait for 100 before it sends the body, so it must be relayed without the body.
    assert_eq!(client.read_exactly(25).await, Ok(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()));
    client.send("body").await;
    let response = client.response().await;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    let links: Vec<_> = response.interim.iter().map(|(status, fields)| (*status, fields[0].1.clone())).collect();
    assert_eq!(links, [(103, "</a.css>".to_owned()), (103, "</b.css>".to_owned())]);
    assert_eq!(upstream.received().await.expect("the request").body, b"body");

    let mut client = Http2::connect(gateway.address(80)).await;
    let response = client.get("a.test", "/").await;
    assert_eq!(response.status, 200);
    let statuses: Vec<_> = response.interim.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [103, 103]);
}

#[tokio::test]
async fn no_continue_when_the_answer_is_final() {
    let upstream = Upstream::ok().await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    // No route: the answer is known, so the body must not be asked for.
    let head = "POST / HTTP/1.1\r\nhost: nobody.test\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    let response = client.exchange(head).await;
    assert_eq!(response.status, 404);
    assert!(response.interim.iter().all(|(status, _)| *status == 100), "{response:?}");
}

#[tokio::test]
async fn head_has_a_length_and_no_body() {
    let upstream = Upstream::h1(|request| {
        let body = if request.method == "HEAD" { "" } else { "0123456789" };
        answer(format!("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{body}"))
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    for _ in 0..3 {
        let response = client.exchange("HEAD / HTTP/1.1\r\nhost: a.test\r\n\r\n").await;
        assert_eq!((response.status, response.header("content-length")), (200, "10"));
        assert_eq!(client.get("a.test", "/").await.text(), "0123456789");
    }
    assert_eq!(upstream.connections(), 1);
    let mut client = Http2::connect(gateway.address(80)).await;
    let response = client.exchange(Request::head("http://a.test/").body(()).unwrap(), &[]).await;
    assert_eq!((response.status, response.header("content-length"), response.body.len()), (200, "10", 0));
}

#[tokio::test]
async fn pipelined_requests_with_bodies_keep_their_order() {
    let upstream = Upstream::h1(|request| {
        let text = request.target.clone();
        answer(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()))
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let mut bytes = String::new();
    for number in 0..50 {
        match number % 3 {
            0 => bytes.push_str(&format!("GET /{number} HTTP/1.1\r\nhost: a.test\r\n\r\n")),
            1 => bytes.push_str(&format!(
                "POST /{number} HTTP/1.1\r\nhost: a.test\r\ncontent-length: 40\r\n\r\n{:<40}",
                "GET /wrong HTTP/1.1\r\nhost: a.test\r\n\r\n"
            )),
            _ => bytes.push_str(&format!(
                "POST /{number} HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n6\r\nGET / \r\n0\r\n\r\n"
            )),
        }
    }
    client.send(bytes).await;
    for number in 0..50 {
        let response = client.response().await;
        assert_eq!((response.status, response.text()), (200, format!("/{number}")), "{response:?}");
    }
    assert_eq!(client.ended(SHORT).await, End::Open);
    assert_eq!(upstream.take().len(), 50);
}

#[tokio::test]
async fn upstream_connections_are_reused() {
    let upstream = Upstream::ok().await;
    let gateway = start(&upstream).await;
    for _ in 0..5 {
        let mut client = Http1::connect(gateway.address(80)).await;
        for _ in 0..2 {
            assert_eq!(client.get("a.test", "/").await.status, 200);
        }
    }
    assert_eq!(upstream.connections(), 1, "10 requests of 5 clients, one after the other");

    let upstream = Upstream::h2(|_| vec![H2Step::ReadBody, H2Step::Head(200, &[], true)]).await;
    let gateway = Mesh::new().http2("a.test", &[upstream.address()]).route("a.test", "a.test").start().await;
    let mut client = Http2::connect(gateway.address(80)).await;
    for _ in 0..10 {
        assert_eq!(client.get("a.test", "/").await.status, 200);
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn an_upstream_that_closes_idle_connections_loses_no_request() {
    let upstream = Upstream::h1(|_| {
        let mut steps = crate::harness::upstream::ok();
        steps.push(Step::Close);
        steps
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    for number in 1..=10 {
        assert_eq!(client.get("a.test", "/").await.status, 200);
        eventually("the upstream has closed", || async { (upstream.open() == 0).then_some(()) }).await;
        assert_eq!(upstream.connections(), number);
        // The FIN has to be seen by the gateway; it was sent before this.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_upstream_that_dies_inside_a_body_is_no_complete_answer() {
    let upstream = Upstream::h1(|request| {
        let head = match request.target.as_str() {
            "/length" => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
            "/chunk" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nhalf",
            _ => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        };
        vec![Step::ReadBody, Step::Send(head.into()), Step::Pause(Duration::from_millis(50)), Step::Close]
    })
    .await;
    let gateway = start(&upstream).await;
    for target in ["/length", "/chunk", "/chunks"] {
        let response = Http1::connect(gateway.address(80)).await.get("a.test", target).await;
        assert_eq!((response.status, response.complete), (200, false), "{target}");
        assert!(matches!(response.failure, Some(Failure::Closed | Failure::ConnectionReset)), "{target}: {response:?}");
        let mut client = Http2::connect(gateway.address(80)).await;
        let response = client.get("a.test", target).await;
        assert!(matches!(response.failure, Some(Failure::StreamReset(_))), "{target}: {response:?}");
        assert_eq!(client.get("nobody.test", "/").await.status, 404, "other streams go on");
    }
}

#[tokio::test]
async fn an_upstream_that_dies_while_the_client_sends() {
    let upstream = Upstream::h1(|_| vec![Step::Pause(Duration::from_millis(50)), Step::Reset]).await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    client.send("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 1000\r\n\r\nbegin").await;
    let response = client.response().await;
    assert_eq!(response.status, 503);
    assert_eq!(
        response.text(),
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
    );
    assert_eq!(response.header("connection"), "close");
}

#[tokio::test]
async fn one_side_of_a_tunnel_may_end_first() {
    const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    let upstream = Upstream::h1(|_| {
        let mut bytes = SWITCH.to_vec();
        bytes.extend_from_slice(b"farewell");
        vec![Step::ReadBody, Step::Send(bytes), Step::Close]
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let head = "GET / HTTP/1.1\r\nhost: a.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    assert_eq!(client.exchange(head).await.status, 101);
    // What came with the answer is part of the tunnel, and is delivered before its end.
    assert_eq!(client.read_exactly(8).await, Ok(b"farewell".to_vec()));
    assert_eq!(client.ended(Duration::from_secs(2)).await, End::Closed);
}

#[tokio::test]
async fn a_stream_half_closed_by_its_client_gets_its_answer() {
    let upstream = Upstream::h1(|_| {
        vec![Step::ReadBody, Step::Pause(SHORT), Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())]
    })
    .await;
    let gateway = start(&upstream).await;
    let mut client = Http2::connect(gateway.address(80)).await;
    let response = client.exchange(Request::post("http://a.test/").body(()).unwrap(), b"all of it").await;
    assert_eq!((response.status, response.text().as_str(), response.failure), (200, "ok", None));
    assert_eq!(upstream.received().await.expect("the request").body, b"all of it");
}
