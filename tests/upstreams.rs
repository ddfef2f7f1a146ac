//! How upstreams are chosen and spoken to. `reference/networking.md` §5.

mod balancing;
mod hashing;
mod locality;
mod outliers;
mod pools;
mod proxying;
mod rules;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::client::{Http1, Response, connect_from};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::upstream::{Upstream, answer};

/// Upstreams that answer with their number.
async fn numbered(count: usize) -> Vec<Upstream> {
    let answer = |number: usize| {
        let body = number.to_string();
        Upstream::answers(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    };
    futures::future::join_all((0..count).map(answer)).await
}

/// An upstream that answers with its number, and with a status that can be changed.
struct Switched {
    upstream: Upstream,
    status: Arc<AtomicU16>,
}

impl Switched {
    async fn start(number: usize) -> Self {
        let status = Arc::new(AtomicU16::new(200));
        let current = status.clone();
        let upstream = Upstream::h1(move |_| {
            let status = current.load(Ordering::SeqCst);
            answer(format!("HTTP/1.1 {status} Whatever\r\ncontent-length: 1\r\n\r\n{number}"))
        });
        Self { upstream: upstream.await, status }
    }

    async fn several(count: usize) -> Vec<Self> {
        futures::future::join_all((0..count).map(Self::start)).await
    }

    /// What it answers from now on.
    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }
}

/// Upstreams that send their number to whoever has sent a byte, and close.
async fn numbered_tcp(count: usize) -> Vec<Upstream> {
    let server = |number: usize| {
        Upstream::raw(move |mut stream, _| async move {
            let _ = stream.read_u8().await;
            let _ = stream.write_all(number.to_string().as_bytes()).await;
            let _ = stream.shutdown().await;
        })
    };
    futures::future::join_all((0..count).map(server)).await
}

/// A service of `protocol` with these upstreams, and fields for each of them in YAML.
fn service<'u>(
    mesh: Mesh,
    host: &str,
    protocol: &str,
    upstreams: impl IntoIterator<Item = (&'u Upstream, &'u str)>,
) -> Mesh {
    let endpoint = |(upstream, fields): (&Upstream, &str)| {
        let address = upstream.address();
        format!("{{address: {}, ports: {{main: {}}}, {fields}}}", address.ip(), address.port())
    };
    let endpoints: Vec<_> = upstreams.into_iter().map(endpoint).collect();
    mesh.resource(
        "ServiceEntry",
        &format!(
            "hosts: [{host}]\nlocation: MESH_EXTERNAL\nresolution: STATIC\n\
             ports: [{{number: 80, name: main, protocol: {protocol}}}]\nendpoints: [{}]\n",
            endpoints.join(", ")
        ),
    )
}

/// An HTTP service with these upstreams and this traffic policy, to which its own host is routed.
fn routed(mesh: Mesh, host: &str, upstreams: &[Upstream], policy: &str) -> Mesh {
    let upstreams = upstreams.iter().map(|upstream| (upstream, ""));
    service(mesh, host, "HTTP", upstreams).resource("DestinationRule", &rule(host, policy)).route(host, host)
}

/// A DestinationRule with this traffic policy.
fn rule(host: &str, policy: &str) -> String {
    format!("host: {host}\ntrafficPolicy: {{{policy}}}\n")
}

/// A request with these further header lines.
fn request(host: &str, target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n{lines}\r\n")
}

/// The number of the upstream that has answered.
fn number(response: &Response) -> usize {
    assert_eq!(response.status, 200, "{response:?}");
    response.text().parse().unwrap_or_else(|_| panic!("no number: {response:?}"))
}

/// Who answers these requests, one after the other on one connection.
async fn who(gateway: &Gateway, requests: impl IntoIterator<Item = String>) -> Vec<usize> {
    let mut client = Http1::connect(gateway.address(80)).await;
    let mut numbers = Vec::new();
    for request in requests {
        numbers.push(number(&client.exchange(request).await));
    }
    numbers
}

/// Who answers `count` equal requests for `host`.
async fn who_answers(gateway: &Gateway, host: &str, count: usize) -> Vec<usize> {
    who(gateway, std::iter::repeat_n(request(host, "/", ""), count)).await
}

/// Who serves a raw TCP connection from `source` to this port.
async fn who_serves(gateway: &Gateway, source: IpAddr, port: u16) -> usize {
    let mut client = Http1::over(connect_from(source, gateway.address(port)).await.unwrap());
    client.send("?").await;
    let digit = client.read_exactly(1).await.unwrap();
    usize::from(digit[0] - b'0')
}

/// How often each of `count` upstreams was the one.
fn tally(numbers: &[usize], count: usize) -> Vec<usize> {
    let mut tally = vec![0; count];
    numbers.iter().for_each(|&number| tally[number] += 1);
    tally
}

/// What became of `count` requests for `host`, one after the other on one connection: the status, `UH` without an
/// endpoint, `UF` without a connection to one, `UC` if that was lost.
async fn outcomes(gateway: &Gateway, host: &str, count: usize) -> Vec<String> {
    let mut client = Http1::connect(gateway.address(80)).await;
    let mut outcomes = Vec::new();
    for _ in 0..count {
        let response = client.get(host, "/").await;
        let text = response.text();
        outcomes.push(match text.split_once("reset reason: ") {
            _ if text == "no healthy upstream" => "UH".to_owned(),
            Some((_, "remote connection failure")) => "UF".to_owned(),
            Some((_, "connection termination")) => "UC".to_owned(),
            _ => response.status.to_string(),
        });
    }
    outcomes
}

/// Endpoints of a cluster that are ejected at the moment, and ejections so far.
async fn ejections(gateway: &Gateway, host: &str) -> (u64, u64) {
    let page = gateway.metrics_page().await;
    let value = |name: &str| {
        let series = format!("fairlead_outlier_ejections_{name}{{cluster_name=\"outbound|80||{host}\"}} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&*series));
        value.unwrap_or_else(|| panic!("no {series}in {page}")).parse().unwrap()
    };
    (value("active"), value("total"))
}
