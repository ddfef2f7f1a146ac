//! curl, nghttp and h2load as clients.

use std::process::Command;

use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::peer;
use crate::harness::process::{run, stdout};
use crate::harness::upstream::{Received, Step, Upstream, answer};

/// Answers `ok`, to `/large` with much, to `/continue` in the way that `expect: 100-continue` asks for.
fn pages(request: &Received) -> Vec<Step> {
    match request.target.as_str() {
        "/large" => answer(format!("HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n{}", "abc".repeat(1_000_000))),
        "/continue" => {
            let mut steps = vec![Step::Send(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec())];
            steps.extend(answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"));
            steps
        }
        _ => answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    }
}

async fn start(upstream: &Upstream) -> (Gateway, String) {
    let gateway = Mesh::new().http("a.test", &[upstream.address()]).route("a.test", "a.test").start().await;
    let url = format!("http://{}", gateway.address(80));
    (gateway, url)
}

/// curl that fails on errors of transport, and prints the body, then the version of HTTP and the status.
fn curl(arguments: &[&str], url: &str) -> Command {
    let mut command = Command::new("curl");
    command
        .args(["-q", "--silent", "--show-error", "--max-time", "20", "-H", "host: a.test"])
        .args(["--write-out", "|%{http_version} %{http_code} %{size_download} %{num_connects}"])
        .args(arguments)
        .arg(url);
    command
}

#[tokio::test]
async fn curl_speaks_both_versions() {
    if !peer::available("curl") {
        return;
    }
    let upstream = Upstream::h1(pages).await;
    let (_gateway, url) = start(&upstream).await;
    assert_eq!(stdout(curl(&[], &url)).await, "ok|1.1 200 2 1");
    assert_eq!(stdout(curl(&["--http2-prior-knowledge"], &url)).await, "ok|2 200 2 1");
    // curl asks for an upgrade to h2c; the gateway answers in HTTP/1.1, as Envoy does.
    assert_eq!(stdout(curl(&["--http2"], &url)).await, "ok|1.1 200 2 1");
    assert_eq!(stdout(curl(&["--head"], &format!("{url}/large"))).await.rsplit('|').next(), Some("1.1 200 0 1"));
    let printed = stdout(curl(&["--output", "/dev/null"], &format!("{url}/large"))).await;
    assert_eq!(printed, "|1.1 200 3000000 1");
    let printed = stdout(curl(&["--http2-prior-knowledge", "--output", "/dev/null"], &format!("{url}/large"))).await;
    assert_eq!(printed, "|2 200 3000000 1");
    let refused = run(curl(&["--http1.0"], &url)).await;
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "Upgrade Required|1.1 426 16 1");
}

#[tokio::test]
async fn curl_keeps_its_connection() {
    if !peer::available("curl") {
        return;
    }
    let upstream = Upstream::h1(pages).await;
    let (_gateway, url) = start(&upstream).await;
    // Not with HTTP/2: curl 7.88 can't use a connection with prior knowledge twice, whatever the server.
    let mut command = Command::new("curl");
    command
        .args(["-q", "--silent", "--show-error", "--max-time", "20", "-H", "host: a.test"])
        .args(["--output", "/dev/null", "--write-out", "%{num_connects}"])
        .arg(format!("{url}/[1-20]"));
    // One connection for the first request, none for the others.
    assert_eq!(stdout(command).await, format!("1{}", "0".repeat(19)));
}

#[tokio::test]
async fn curl_uploads() {
    if !peer::available("curl") {
        return;
    }
    let upstream = Upstream::h1(pages).await;
    let (_gateway, url) = start(&upstream).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 253) as u8).collect();
    std::fs::write(file.path(), &content).unwrap();
    let path = file.path().to_str().unwrap();
    for arguments in [
        vec!["--upload-file", path],
        vec!["--upload-file", path, "-H", "transfer-encoding: chunked"],
        vec!["--upload-file", path, "--http2-prior-knowledge"],
        vec!["--upload-file", path, "-H", "expect: 100-continue", "--expect100-timeout", "20"],
    ] {
        let target = if arguments.contains(&"--expect100-timeout") { format!("{url}/continue") } else { url.clone() };
        let printed = stdout(curl(&arguments, &target)).await;
        assert!(printed.starts_with("ok|") && printed.contains(" 200 "), "{arguments:?}: {printed}");
        let received = upstream.received().await.expect("the upload");
        assert!(received.body == content, "{arguments:?}: {} bytes arrived", received.body.len());
        upstream.take();
    }
    // A form, and trailing bytes that must not be lost.
    let printed = stdout(curl(&["--form", "a=b", "--form", &format!("file=@{path}")], &url)).await;
    assert!(printed.contains(" 200 "), "{printed}");
    let received = upstream.received().await.expect("the form");
    assert!(received.body.len() > content.len() && received.body.ends_with(b"--\r\n"), "{}", received.body.len());
}

#[tokio::test]
async fn curl_opens_a_web_socket() {
    if !peer::available("curl") {
        return;
    }
    const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    let upstream = Upstream::h1(|_| {
        vec![Step::ReadBody, Step::Send(SWITCH.to_vec()), Step::Send(b"hello from behind".to_vec()), Step::Close]
    })
    .await;
    let (_gateway, url) = start(&upstream).await;
    // Older versions don't know ws://, so the handshake is done by hand: what follows the 101 is printed as it comes.
    let arguments = [
        "--no-buffer",
        "--http1.1",
        "-H",
        "connection: Upgrade",
        "-H",
        "upgrade: websocket",
        "-H",
        "sec-websocket-version: 13",
        "-H",
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
    ];
    let output = run(curl(&arguments, &url)).await;
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.starts_with("hello from behind|1.1 101"), "{printed}");
}

#[tokio::test]
async fn nghttp_gets_a_page() {
    if !peer::available("nghttp") {
        return;
    }
    let upstream = Upstream::h1(pages).await;
    let (_gateway, url) = start(&upstream).await;
    let mut nghttp = Command::new("nghttp");
    // Ten times the same page: ten streams on one connection.
    nghttp.args(["-v", "-n", "-m", "10", "-H", ":authority: a.test", &format!("{url}/")]);
    let printed = stdout(nghttp).await;
    assert_eq!(printed.matches(":status: 200").count(), 10, "{printed}");
    assert!(!printed.contains("RST_STREAM"), "{printed}");
}

#[tokio::test]
async fn nghttp_sends_trailers() {
    if !peer::available("nghttp") {
        return;
    }
    let upstream = Upstream::h2(|_| {
        vec![
            crate::harness::upstream::H2Step::ReadBody,
            crate::harness::upstream::H2Step::Head(200, &[], false),
            crate::harness::upstream::H2Step::Data(b"ok", false),
            crate::harness::upstream::H2Step::Trailers(&[("x-end", "yes")]),
        ]
    })
    .await;
    let gateway = Mesh::new().http2("a.test", &[upstream.address()]).route("a.test", "a.test").start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a body").unwrap();
    let mut nghttp = Command::new("nghttp");
    nghttp.args(["-v", "-d", file.path().to_str().unwrap(), "--trailer", "x-begin: no", "-H", ":authority: a.test"]);
    nghttp.arg(format!("http://{}/", gateway.address(80)));
    let printed = stdout(nghttp).await;
    assert!(printed.contains("x-end: yes"), "{printed}");
    let received = upstream.received().await.expect("the request");
    assert_eq!(received.body, b"a body");
    assert_eq!(received.trailers, [("x-begin".to_owned(), "no".to_owned())]);
}

#[tokio::test]
async fn h2load_loses_nothing() {
    if !peer::available("h2load") {
        return;
    }
    let upstream = Upstream::h1(pages).await;
    // Whatever host it names.
    let gateway = Mesh::new().http("a.test", &[upstream.address()]).route("*", "a.test").start().await;
    for version in [&["-m", "16"][..], &["--h1"]] {
        let mut h2load = Command::new("h2load");
        h2load.args(version).args(["-c", "4", "-n", "2000", &format!("http://{}/", gateway.address(80))]);
        let printed = stdout(h2load).await;
        assert!(
            printed.contains(
                "requests: 2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout"
            ),
            "{version:?}\n{printed}"
        );
        upstream.take();
    }
    assert!(gateway.metrics_page().await.contains("istio_requests_total"));
}
