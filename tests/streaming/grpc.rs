//! gRPC: HTTP/2 on both sides, streams in both directions, trailers at their ends.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};

use crate::harness::PATIENCE;
use crate::harness::client::Http2;
use crate::harness::mesh::Mesh;
use crate::harness::upstream::Upstream;

/// A server that sends each message back when it comes, and ends with the status 0 and what the client's trailers said.
async fn echo(trailers: Arc<Mutex<Vec<Option<HeaderMap>>>>) -> Upstream {
    Upstream::raw(move |stream, _| {
        let trailers = trailers.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let trailers = trailers.clone();
                tokio::spawn(async move {
                    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut sender = respond.send_response(head, false)?;
                    let mut body = request.into_body();
                    while let Some(data) = body.data().await {
                        let data = data?;
                        body.flow_control().release_capacity(data.len())?;
                        sender.send_data(data, false)?;
                    }
                    let received = body.trailers().await?;
                    trailers.lock().unwrap().push(received);
                    let mut end = HeaderMap::new();
                    end.insert("grpc-status", HeaderValue::from_static("0"));
                    end.insert("grpc-message", HeaderValue::from_static("fine"));
                    sender.send_trailers(end)
                });
            }
        }
    })
    .await
}

/// A message as gRPC frames it: no compression, length, bytes.
fn message(text: &str) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes.into()
}

fn call() -> Request<()> {
    Request::post("http://a.test/echo.Echo/Talk")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

#[tokio::test]
async fn messages_go_both_ways_one_by_one() {
    let trailers = Arc::new(Mutex::new(Vec::new()));
    let upstream = echo(trailers.clone()).await;
    let gateway = Mesh::new().service("a.test", "GRPC", &[upstream.address()]).route("a.test", "a.test").start().await;
    let mut client = Http2::connect(gateway.address(80)).await;

    // Two calls at once on one connection.
    let mut calls = Vec::new();
    for _ in 0..2 {
        let (response, sender) = client.open(call(), false).await.unwrap();
        calls.push((Some(response), sender, None::<h2::RecvStream>));
    }
    for number in 0..20 {
        for (index, (response, sender, body)) in calls.iter_mut().enumerate() {
            // The answer to a message comes before the next is sent: nothing may wait for the end of a body.
            let sent = message(&format!("call {index}, message {number}"));
            sender.send_data(sent.clone(), false).unwrap();
            if let Some(response) = response.take() {
                let response = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
                assert_eq!(response.status(), 200);
                assert_eq!(response.headers()["content-type"], "application/grpc");
                *body = Some(response.into_body());
            }
            let body = body.as_mut().unwrap();
            let received = tokio::time::timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap();
            body.flow_control().release_capacity(received.len()).unwrap();
            assert_eq!(received, sent);
        }
    }
    for (index, (_, mut sender, body)) in calls.into_iter().enumerate() {
        let mut own = HeaderMap::new();
        own.insert(HeaderName::from_static("x-call"), HeaderValue::from(index));
        sender.send_trailers(own).unwrap();
        let mut body = body.unwrap();
        assert!(tokio::time::timeout(PATIENCE, body.data()).await.unwrap().is_none());
        let end = body.trailers().await.unwrap().expect("trailers");
        assert_eq!(end["grpc-status"], "0");
        assert_eq!(end["grpc-message"], "fine");
        let received = trailers.lock().unwrap().pop().expect("the upstream got the end").expect("and trailers with it");
        assert_eq!(received["x-call"], HeaderValue::from(index));
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn large_messages_pass_the_windows() {
    let upstream = echo(Arc::default()).await;
    let gateway = Mesh::new().service("a.test", "GRPC", &[upstream.address()]).route("a.test", "a.test").start().await;
    let mut client = Http2::connect(gateway.address(80)).await;
    let text = "0123456789abcdef".repeat(256 * 1024);
    let response = tokio::time::timeout(PATIENCE, client.exchange(call(), &message(&text))).await.unwrap();
    assert_eq!((response.status, &response.failure), (200, &None));
    assert!(response.body == message(&text), "4 MiB there and back: {} bytes came", response.body.len());
    assert!(response.trailers.contains(&("grpc-status".to_owned(), "0".to_owned())), "{:?}", response.trailers);
}
