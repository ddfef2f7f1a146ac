//! Programs that others wrote, before and behind the gateway: curl, nghttp2, nginx.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tokio::net::TcpListener;

use crate::harness::client::Http1;
use crate::harness::eventually;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::peer::available;

/// A gateway in front of `fairlead echo`, run in this process.
async fn echo() -> Gateway {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = gateway::echo::EchoOptions { bind: Vec::new(), name: "echo".to_owned(), version: "v1".to_owned() };
    tokio::spawn(gateway::echo::serve(listener, options));
    let mesh = Mesh::new().http("echo.test", &[address]).http2("echo2.test", &[address]);
    mesh.route("a.com", "echo.test").route("h2.com", "echo2.test").start().await
}

/// Runs `program` to its end, without keeping this test's runtime from serving.
async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn curl_speaks_both_versions() {
    if !available("curl") {
        return;
    }
    let gateway = echo().await;
    let address = gateway.address(80).to_string();
    let upload = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(upload.path(), vec![b'x'; 5 << 20]).unwrap();
    let file = upload.path().to_str().unwrap();
    let body = format!("@{file}");
    for host in ["a.com", "h2.com"] {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let connect = format!("{host}:80:{address}");
            let url = |target: &str| format!("http://{host}{target}");
            let common = ["-sS", version, "--connect-to", &*connect, "--max-time", "30"];
            let get = run("curl", &[&common[..], &["-H", "x-a: 1", &*url("/x?y=1")]].concat()).await;
            let report: serde_json::Value =
                serde_json::from_str(&text(&get)).unwrap_or_else(|error| panic!("{error}: {get:?}"));
            assert_eq!((&report["path"], &report["method"]), (&"/x?y=1".into(), &"GET".into()), "{host} {version}");
            assert!(report["headers"].as_array().unwrap().contains(&serde_json::json!(["x-a", "1"])));

            // Five megabytes up, with `expect: 100-continue` over HTTP/1.1.
            let post = run("curl", &[&common[..], &["--data-binary", &*body, &*url("/")]].concat()).await;
            let report: serde_json::Value =
                serde_json::from_str(&text(&post)).unwrap_or_else(|error| panic!("{error}: {post:?}"));
            assert_eq!(report["body"]["size"], 5 << 20, "{host} {version}");

            // Five megabytes down, and a status.
            let format = ["-o", "/dev/null", "-w", "%{http_code} %{size_download}"];
            let down = run("curl", &[&common[..], &format, &[&*url("/?size=5m&status=203")]].concat()).await;
            assert_eq!(text(&down), format!("203 {}", 5 << 20), "{host} {version}");
        }
    }
}

#[tokio::test]
async fn h2load_sees_no_failure() {
    if !available("h2load") {
        return;
    }
    let gateway = echo().await;
    let address = gateway.address(80);
    for host in ["a.com", "h2.com"] {
        let url = format!("http://{address}/?size=2k");
        let authority = format!(":authority: {host}");
        for arguments in [
            vec!["-n", "2000", "-c", "8", "-m", "16", "-H", &*authority, &*url],
            vec!["--h1", "-n", "2000", "-c", "8", "-H", &*authority, &*url],
        ] {
            let output = run("h2load", &arguments).await;
            let report = text(&output);
            assert!(
                report.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"),
                "{host} {arguments:?}\n{report}"
            );
            assert!(report.contains("status codes: 2000 2xx"), "{host} {arguments:?}\n{report}");
        }
    }
}

#[tokio::test]
async fn nginx_as_upstream() {
    if !available("nginx") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(place.path()).await;
    let gateway = Mesh::new().http("nginx.test", &[nginx.address]).route("a.com", "nginx.test").start().await;
    let mut client = Http1::connect(gateway.address(80)).await;
    for round in 0..20 {
        let response = client.get("a.com", "/file").await;
        assert_eq!((response.status, response.body.len()), (200, 100_000), "round {round}");
    }
    let response = client.get("a.com", "/missing").await;
    assert_eq!(response.status, 404);
    let response = client.exchange("HEAD /file HTTP/1.1\r\nhost: a.com\r\n\r\n").await;
    assert_eq!((response.status, response.header("content-length")), (200, "100000"));
    let response = client.exchange("GET /file HTTP/1.1\r\nhost: a.com\r\nrange: bytes=10-19\r\n\r\n").await;
    assert_eq!((response.status, response.body.len()), (206, 10));
}

/// An nginx that serves one file; it ends with this value.
struct Nginx {
    child: Child,
    address: SocketAddr,
}

impl Nginx {
    async fn start(place: &Path) -> Self {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        std::fs::write(place.join("file"), vec![b'x'; 100_000]).unwrap();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {}/{name};\n", place.display()))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid {0}/pid; error_log stderr;\nevents {{}}\n\
             http {{ access_log off; {temporary} server {{ listen {address}; root {0}; }} }}\n",
            place.display()
        );
        let file = place.join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(place).arg("-e").arg("stderr").arg("-c").arg(&file);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let nginx = Self { child, address };
        eventually("nginx listens", || async { tokio::net::TcpStream::connect(address).await.ok() }).await;
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
