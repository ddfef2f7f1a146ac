//! nginx as upstream: buffering, keep-alive limits, early answers, as a server that many have behind their gateways.

use std::net::SocketAddr;
use std::process::Command;

use crate::harness::client::{Http1, Http2, connect_from};
use crate::harness::eventually;
use crate::harness::mesh::Mesh;
use crate::harness::peer;
use crate::harness::process::Process;

struct Nginx {
    _process: Process,
    _place: tempfile::TempDir,
    address: SocketAddr,
}

impl Nginx {
    /// `None` where there is no nginx.
    async fn start() -> Option<Self> {
        // It knows no `--version`, but exits all the same.
        if !peer::available("nginx") {
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let root = place.path().display();
        std::fs::write(place.path().join("page.txt"), "0123456789".repeat(100_000)).unwrap();
        let config = format!(
            "daemon off; master_process off; pid {root}/pid; error_log stderr; worker_processes 1;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n \
             uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; keepalive_requests 7; client_max_body_size 1m;\n \
             server {{ listen {address}; root {root};\n  location /hello {{ return 200 hello; }}\n  \
             location /moved {{ return 302 /hello; }}\n  location /refuses {{ return 403; }}\n }}\n}}\n"
        );
        let file = place.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&file).arg("-p").arg(place.path()).arg("-e").arg("stderr");
        let process = Process::start(command);
        eventually("nginx listens", || async {
            connect_from([127, 0, 0, 1].into(), address).await.is_ok().then_some(())
        })
        .await;
        Some(Self { _process: process, _place: place, address })
    }
}

#[tokio::test]
async fn nginx_behind_the_gateway() {
    let Some(nginx) = Nginx::start().await else { return };
    let gateway = Mesh::new().http("a.test", &[nginx.address]).route("a.test", "a.test").start().await;
    let mut client = Http1::connect(gateway.address(80)).await;
    // It closes each connection after seven requests, which nobody may notice.
    for number in 0..50 {
        let response = client.get("a.test", "/hello").await;
        assert_eq!((response.status, response.text().as_str()), (200, "hello"), "request {number}");
        assert!(!response.has("connection") && response.header("server") == "istio-envoy", "{response:?}");
    }
    let response = client.get("a.test", "/page.txt").await;
    assert_eq!((response.status, response.body.len()), (200, 1_000_000));
    assert!(response.has("etag") && response.has("last-modified"), "{:?}", response.names());
    let conditional =
        format!("GET /page.txt HTTP/1.1\r\nhost: a.test\r\nif-none-match: {}\r\n\r\n", response.header("etag"));
    assert_eq!(client.exchange(conditional).await.status, 304);
    let range = client.exchange("GET /page.txt HTTP/1.1\r\nhost: a.test\r\nrange: bytes=5-9\r\n\r\n").await;
    assert_eq!((range.status, range.text().as_str()), (206, "56789"));
    let head = client.exchange("HEAD /page.txt HTTP/1.1\r\nhost: a.test\r\n\r\n").await;
    assert_eq!((head.status, head.header("content-length")), (200, "1000000"));
    assert_eq!(client.get("a.test", "/nothing").await.status, 404);

    let mut streams = Http2::connect(gateway.address(80)).await;
    for _ in 0..50 {
        let response = streams.get("a.test", "/hello").await;
        assert_eq!((response.status, response.text().as_str(), response.failure), (200, "hello", None));
    }
    assert_eq!(streams.get("a.test", "/page.txt").await.body.len(), 1_000_000);
}

#[tokio::test]
async fn nginx_answers_before_it_has_read_the_body() {
    let Some(nginx) = Nginx::start().await else { return };
    let gateway = Mesh::new().http("a.test", &[nginx.address]).route("a.test", "a.test").start().await;
    // More than it takes: 413 at once, and the connection to it is closed.
    let mut client = Http1::connect(gateway.address(80)).await;
    client.send("POST /hello HTTP/1.1\r\nhost: a.test\r\ncontent-length: 9000000\r\n\r\nbegin").await;
    let response = client.response().await;
    assert_eq!(response.status, 413);
    // Nobody else is touched by what it did to that connection.
    for _ in 0..20 {
        let mut client = Http1::connect(gateway.address(80)).await;
        assert_eq!(client.get("a.test", "/hello").await.text(), "hello");
        let refused = client.exchange("POST /refuses HTTP/1.1\r\nhost: a.test\r\ncontent-length: 3\r\n\r\nabc").await;
        assert_eq!(refused.status, 403);
    }
}
