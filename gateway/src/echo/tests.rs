#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::time::Instant;

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::*;

async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options =
        EchoOptions { bind: Vec::new(), name: "shop".to_owned(), version: "v2".to_owned(), tcp: Vec::new(), tls: None };
    tokio::spawn(serve(listener, options));
    address
}

/// Sends `request` on a connection of its own and reads to the end.
async fn exchange(address: SocketAddr, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

async fn get(address: SocketAddr, target: &str) -> io::Result<String> {
    exchange(address, &format!("GET {target} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn answer_says_what_arrived() {
    let address = start().await;
    let request =
        "POST /x?q=1 HTTP/1.1\r\nhost: a.test\r\nb: 1\r\na: 2\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
    let answer = exchange(address, request).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let report: Value = serde_json::from_str(body).unwrap();
    assert_eq!(report["name"], "shop");
    assert_eq!(report["version"], "v2");
    assert_eq!(report["method"], "POST");
    assert_eq!(report["path"], "/x?q=1");
    assert_eq!(report["host"], "a.test");
    assert_eq!(report["protocol"], "HTTP/1.1");
    assert_eq!(report["headers"][1], serde_json::json!(["b", "1"]));
    assert_eq!(report["headers"][2], serde_json::json!(["a", "2"]));
    assert_eq!(report["body"], serde_json::json!({"size": 5, "text": "hello"}));
    assert_eq!(report["request"], 1);
}

#[tokio::test]
async fn controls_shape_the_answer() {
    let address = start().await;
    let rows = [
        ("/?status=418", "HTTP/1.1 418 I'm a teapot\r\n"),
        ("/?header=x-a:b%20c", "\r\nx-a: b c\r\n"),
        ("/?size=40k", "\r\ncontent-length: 40960\r\n"),
        ("/?chunks=2&interval=1ms", "8\r\nchunk 1\n\r\n8\r\nchunk 2\n\r\n0\r\n\r\n"),
        (
            "/?informational=103",
            "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n",
        ),
        ("/?delay=soon", "delay: can't use \"soon\", expected a duration, such as 250ms or 2s\n"),
    ];
    for (target, expected) in rows {
        let answer = get(address, target).await.unwrap();
        assert!(answer.contains(expected), "{target}: {answer}");
    }
}

#[tokio::test]
async fn first_requests_fail_on_demand() {
    let address = start().await;
    for expected in ["500", "500", "200"] {
        let answer = get(address, "/flaky?fail=2&fail-status=500").await.unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(expected));
    }
}

#[tokio::test]
async fn delay_holds_the_head_back() {
    let address = start().await;
    let begin = Instant::now();
    get(address, "/?delay=60ms").await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(60));
}

#[tokio::test]
async fn connection_ends_where_asked() {
    let address = start().await;
    assert_eq!(get(address, "/?close=head").await.unwrap(), "");
    assert_eq!(get(address, "/?reset=head").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let cut = get(address, "/?close=body&chunks=3").await.unwrap();
    assert!(cut.ends_with("8\r\nchunk 1\n\r\n"), "{cut}");
    assert_eq!(get(address, "/?reset=body&chunks=3").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn websocket_messages_come_back() {
    let address = start().await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://a.test/chat", stream).await.unwrap();
    for message in [Message::text("hello"), Message::binary(vec![0, 255])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();
}

#[tokio::test]
async fn grpc_messages_come_back_with_status_in_trailers() {
    let address = start().await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = Request::post("http://a.test/demo.Echo/Say").header("content-type", "application/grpc").body(());
    let (response, mut send) = client.send_request(request.unwrap(), false).unwrap();
    let message = Bytes::from_static(b"\0\0\0\0\x03abc");
    send.send_data(message.clone(), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), message);
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

/// Writes a certificate for `localhost` and trusts it.
fn certificate(directory: &std::path::Path) -> tokio_rustls::TlsConnector {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(directory.join("tls.crt"), cert.pem()).unwrap();
    std::fs::write(directory.join("tls.key"), signing_key.serialize_pem()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config).into()
}

#[tokio::test]
async fn raw_bytes_come_back_until_the_client_ends_its_side() {
    let directory = tempfile::tempdir().unwrap();
    let connector = certificate(directory.path());
    for tls in [None, Some(tls::acceptor(directory.path()).unwrap())] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let speaks_tls = tls.is_some();
        tokio::spawn(serve_tcp(listener, tls));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = String::new();
        if speaks_tls {
            let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream.shutdown().await.unwrap();
            stream.read_to_string(&mut answer).await.unwrap();
        } else {
            stream.write_all(b"hello").await.unwrap();
            stream.shutdown().await.unwrap();
            stream.read_to_string(&mut answer).await.unwrap();
        }
        assert_eq!(answer, "hello");
    }
}

#[tokio::test]
async fn requests_are_answered_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let connector = certificate(directory.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options =
        EchoOptions { bind: Vec::new(), name: "shop".to_owned(), version: "v2".to_owned(), tcp: Vec::new(), tls: None };
    tokio::spawn(serve_with(listener, options, Some(tls::acceptor(directory.path()).unwrap())));
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\"name\":\"shop\""), "{answer}");
}
