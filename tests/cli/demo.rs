//! `fairlead demo`: what it prints works, and an edit of its files is followed while requests go on.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::client::Http1;
use crate::harness::peer;
use crate::harness::process::{Process, fairlead, stdout};

struct Demo {
    process: Process,
    place: tempfile::TempDir,
}

impl Demo {
    async fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("demo");
        let process = Process::start(fairlead(&["demo", "--port", "0", "--dir", directory.to_str().unwrap()]));
        process.prints("Ctrl-C").await;
        Self { process, place }
    }

    fn instructions(&self) -> String {
        self.process.output().join("\n")
    }

    fn address(&self) -> std::net::SocketAddr {
        let text = self.instructions();
        let (_, rest) = text.split_once("listens on http://").expect("an address");
        rest.split([',', ' ', '\n']).next().unwrap().parse().expect("an address")
    }
}

/// Version of the backend that answers.
async fn version(client: &mut Http1, header: &str) -> String {
    let request = format!("GET /reviews HTTP/1.1\r\nhost: shop.example.com\r\n{header}\r\n");
    let answer = client.exchange(request).await;
    assert_eq!((answer.status, &answer.failure), (200, &None), "{answer:?}");
    let report: Value = serde_json::from_slice(&answer.body).unwrap();
    report["version"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn it_routes_by_header_and_weight_and_follows_edits() {
    let mut demo = Demo::start().await;
    let mut client = Http1::connect(demo.address()).await;
    for _ in 0..20 {
        assert_eq!(version(&mut client, "end-user: jason\r\n").await, "v2");
    }
    let mut first = 0;
    for _ in 0..500 {
        first += usize::from(version(&mut client, "").await == "v1");
    }
    // 80 in 100: the standard deviation is 9, so ten of them is out of the question.
    assert!((310..=490).contains(&first), "{first} of 500 went to v1");

    // Edited while requests go on: all to v2. The connection stays, and no request fails.
    let file = demo.place.path().join("demo/routes.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("weight: 80") && text.contains("weight: 20"), "{text}");
    let edited = text.replace("weight: 80", "weight: 0").replace("weight: 20", "weight: 100");
    let begin = Instant::now();
    std::fs::write(&file, edited).unwrap();
    let mut in_a_row = 0;
    while in_a_row < 100 {
        in_a_row = if version(&mut client, "").await == "v2" { in_a_row + 1 } else { 0 };
        assert!(begin.elapsed() < Duration::from_secs(10), "the edit isn't followed");
    }
    assert_eq!(version(&mut client, "end-user: jason\r\n").await, "v2");

    demo.process.prints("GET /reviews HTTP/1.1\" 200").await;
    demo.process.signal("INT");
    assert_eq!(demo.process.exit().await.code(), Some(0));
    assert!(file.exists(), "a directory that was asked for is kept");
}

#[tokio::test]
async fn the_lines_that_it_prints_work() {
    if !peer::available("curl") {
        return;
    }
    let mut demo = Demo::start().await;
    let text = demo.instructions();
    let lines: Vec<&str> =
        text.lines().filter(|line| line.starts_with("  curl ") || line.starts_with("  for ")).map(str::trim).collect();
    assert!(lines.len() >= 4, "{text}");
    for line in lines {
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", line]);
        let printed = stdout(shell).await;
        if line.contains("end-user") {
            let report: Value = serde_json::from_str(&printed).expect("JSON");
            assert_eq!(report["version"], "v2");
        } else if line.starts_with("for ") {
            // uniq -c: two lines of count and version, 100 in all.
            let counts: Vec<u32> =
                printed.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
            assert_eq!((counts.len(), counts.iter().sum()), (2, 100), "{printed}");
        } else if line.contains("/config/status") {
            assert!(serde_json::from_str::<Value>(&printed).expect("JSON")["generation"].as_u64() >= Some(1));
        } else {
            assert!(printed.contains("istio_requests_total"), "{line}\n{printed}");
        }
    }
    demo.process.signal("INT");
    assert_eq!(demo.process.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_temporary_directory_is_removed_at_the_end() {
    let mut process = Process::start(fairlead(&["demo", "--port", "0"]));
    process.prints("Ctrl-C").await;
    let line = process.prints("routes.yaml").await;
    let file = std::path::PathBuf::from(line.trim());
    assert!(file.exists(), "{line}");
    process.signal("INT");
    assert_eq!(process.exit().await.code(), Some(0));
    assert!(!file.parent().unwrap().exists());
}
