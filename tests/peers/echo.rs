//! The same programs before `fairlead echo`, over HTTP/1.1 and HTTP/2 on either side.

use std::process::{Command, Output};

use tokio::net::TcpListener;

use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::peer::available;
use crate::harness::process;

/// A gateway in front of `fairlead echo`, run in this process.
async fn echo() -> Gateway {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = gateway::echo::EchoOptions {
        bind: Vec::new(),
        name: "echo".to_owned(),
        version: "v1".to_owned(),
        tcp: Vec::new(),
        tls: None,
    };
    tokio::spawn(gateway::echo::serve(listener, options));
    let mesh = Mesh::new().http("echo.test", &[address]).http2("echo2.test", &[address]);
    mesh.route("a.com", "echo.test").route("h2.com", "echo2.test").start().await
}

async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments);
    process::run(command).await
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn curl_through_each_pair_of_versions() {
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
async fn h2load_through_each_pair_of_versions() {
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
