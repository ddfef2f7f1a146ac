//! Listeners that come, go and stay: ports, addresses, unix sockets. Whoever isn't concerned notices nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::time::Duration;

use super::answer;
use crate::harness::client::{CLIENT, End, Failure, Http1, connect_from};
use crate::harness::eventually;
use crate::harness::gateway::{Gateway, write_into};
use crate::harness::mesh::Mesh;
use crate::harness::process::{Process, fairlead};
use crate::harness::raw_h2::{self, RawH2};
use crate::harness::upstream::Upstream;

/// Gateway with an HTTP server on each of these ports.
fn gateway_yaml(ports: &[u16]) -> String {
    let servers: Vec<_> = ports
        .iter()
        .map(|port| format!("{{port: {{number: {port}, name: http-{port}, protocol: HTTP}}, hosts: ['*']}}"))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: gateway}}\nspec:\n  \
         selector: {{istio: ingressgateway}}\n  servers: [{}]\n",
        servers.join(", ")
    )
}

async fn body(address: SocketAddr, host: &str) -> String {
    Http1::connect(address).await.get(host, "/").await.text()
}

/// Waits until server port `port` is bound; where.
async fn bound(gateway: &Gateway, port: u16) -> SocketAddr {
    eventually(&format!("port {port} is bound"), || async { gateway.bound(port).await.first()?.parse().ok() }).await
}

/// A port that is free at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn ports_come_and_go_beside_a_long_request() {
    let (slow, go) = Upstream::in_two_pieces().await;
    let routes = Mesh::new().http("slow.test", &[slow.address()]).route("slow.test", "slow.test");
    // Everything but the Gateway, which is a file of its own here.
    let yaml = routes.yaml();
    let (_, others) = yaml.split_once("---\n").unwrap();
    let gateway = Gateway::builder()
        .ports(&[80, 81])
        .file("gateway.yaml", gateway_yaml(&[80]))
        .file("others.yaml", others)
        .file("answer.yaml", answer("answer", "a.test", "v1"))
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let mut long = Http1::connect(gateway.address(80)).await;
    long.send("GET /long HTTP/1.1\r\nhost: slow.test\r\n\r\n").await;
    let head = long.head().await;
    assert_eq!(head.status, 200);
    assert_eq!(long.read_exactly(5).await, Ok(b"first".to_vec()));

    // A port is added.
    write_into(&gateway.config(), "gateway.yaml", &gateway_yaml(&[80, 81]));
    let added = bound(&gateway, 81).await;
    assert_eq!(body(added, "a.test").await, "v1");
    assert_eq!(body(gateway.address(80), "a.test").await, "v1");

    // Clients of the new port: one in the middle of a request, one idle, one with HTTP/2.
    let mut busy = Http1::connect(added).await;
    busy.send("GET /long HTTP/1.1\r\nhost: slow.test\r\n\r\n").await;
    assert_eq!(busy.head().await.status, 200);
    let mut idle = Http1::connect(added).await;
    assert!(!idle.get("a.test", "/").await.has("connection"));
    let mut streams = RawH2::connect(added).await;

    // It is removed again, while the routes change as well.
    write_into(&gateway.config(), "gateway.yaml", &gateway_yaml(&[80]));
    eventually("port 81 is gone", || async { gateway.bound(81).await.is_empty().then_some(()) }).await;
    let refused = connect_from(CLIENT, added).await.err().map(|error| error.kind());
    assert_eq!(refused, Some(std::io::ErrorKind::ConnectionRefused));
    gateway.write("answer.yaml", &answer("answer", "a.test", "v2")).await;

    // The connections that it had are asked to end; until then they have the routes of their port's last day.
    let response = idle.get("a.test", "/").await;
    assert_eq!((response.status, response.text().as_str(), response.header("connection")), (200, "v1", "close"));
    let fields: [(&str, &[u8]); 4] =
        [(":method", b"GET"), (":scheme", b"http"), (":authority", b"a.test"), (":path", b"/")];
    streams.headers(1, &fields, true).await;
    let (frames, _) = streams.rest(Duration::from_millis(500)).await;
    assert!(frames.iter().any(|frame| frame.kind == raw_h2::GOAWAY && frame.code() == 0), "{frames:?}");

    // Port 80 and its long request know nothing of all this.
    assert_eq!(body(gateway.address(80), "a.test").await, "v2");
    go.send(true).unwrap();
    assert_eq!(long.read_exactly(5).await, Ok(b"after".to_vec()));
    assert!(!head.has("connection"));
    assert_eq!(long.get("a.test", "/").await.text(), "v2", "the connection is kept");
    assert_eq!(busy.read_exactly(10).await, Ok(b"firstafter".to_vec()), "what was in flight runs to its end");
}

#[tokio::test]
async fn connections_of_a_removed_port_are_cut_when_the_drain_ends() {
    let slow = Upstream::hangs().await;
    let mesh = Mesh::new()
        .mesh_config("defaultConfig: {drainDuration: 1s}")
        .http("slow.test", &[slow.address()])
        .route("slow.test", "slow.test");
    let yaml = mesh.yaml();
    let (_, others) = yaml.split_once("---\n").unwrap();
    let gateway = Gateway::builder()
        .ports(&[80, 81])
        .file("gateway.yaml", gateway_yaml(&[80, 81]))
        .file("others.yaml", others)
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let mut busy = Http1::connect(gateway.address(81)).await;
    busy.send("GET / HTTP/1.1\r\nhost: slow.test\r\nuser-agent: cut\r\n\r\n").await;
    slow.received().await.expect("the request is under way");
    let mark = gateway.log_mark();
    let mut other = Http1::connect(gateway.address(80)).await;
    other.get("nobody.test", "/").await;
    gateway.write("gateway.yaml", &gateway_yaml(&[80])).await;
    assert_eq!(busy.ended(Duration::from_millis(700)).await, End::Open);
    assert_ne!(busy.ended(Duration::from_millis(1500)).await, End::Open);
    let line = gateway.log_line_since(mark, |line| line.user_agent() == "cut").await.expect("its access log line");
    assert_eq!((line.code(), line.flags()), ("0", "DC"), "{}", line.text);
    assert_eq!(other.ended(Duration::ZERO).await, End::Open);
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported_and_bound_later() {
    let occupier = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = occupier.local_addr().unwrap().port();
    let gateway = Mesh::new()
        .servers(
            "- {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}\n\
             - {port: {number: 81, name: taken, protocol: HTTP}, hosts: ['*']}\n",
            &[80],
        )
        .builder()
        .argument("--port-map")
        .argument(&format!("81:{port}"))
        .file("answer.yaml", answer("answer", "a.test", "v1"))
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    // The rest serves.
    assert_eq!(body(gateway.address(80), "a.test").await, "v1");
    let status = gateway.config_status().await;
    let listeners = status["listeners"].as_array().unwrap();
    let taken = listeners.iter().find(|listener| listener["port"] == 81).unwrap();
    assert_eq!(taken["addresses"].as_array().map(Vec::len), Some(0), "{taken}");
    assert_eq!(taken["failures"][0]["address"], format!("127.0.0.1:{port}"), "{taken}");
    assert!(taken["failures"][0]["error"].as_str().is_some_and(|error| error.contains("in use")), "{taken}");
    gateway.says(&format!("127.0.0.1:{port}")).await;

    drop(occupier);
    let address = bound(&gateway, 81).await;
    assert_eq!(address.port(), port);
    assert_eq!(body(address, "a.test").await, "v1");
}

#[tokio::test]
async fn a_port_of_another_gateway_is_taken_as_well() {
    // Both listen with SO_REUSEPORT, so the kernel alone would let them share it.
    let first = Mesh::new().start().await;
    let address = first.address(80);
    let second = Mesh::new()
        .servers("- {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}\n", &[])
        .builder()
        .argument("--port-map")
        .argument(&format!("80:{}", address.port()))
        .file("answer.yaml", answer("answer", "a.test", "second"))
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    assert!(second.bound(80).await.is_empty());
    for _ in 0..20 {
        assert_eq!(Http1::connect(address).await.get("a.test", "/").await.status, 404, "the first answers");
    }
    drop(first);
    assert_eq!(bound(&second, 80).await, address);
    assert_eq!(body(address, "a.test").await, "second");
}

#[tokio::test]
async fn a_server_moves_to_another_address() {
    let servers = |bind: &str| {
        let servers = format!(
            "- {{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['*']}}\n\
             - {{port: {{number: 81, name: moves, protocol: HTTP}}, bind: {bind}, hosts: ['*']}}\n"
        );
        Mesh::new().servers(&servers, &[80, 81])
    };
    let mesh = servers("127.0.0.1");
    let builder = mesh.builder().file("answer.yaml", answer("answer", "a.test", "v1"));
    let gateway = builder.start().await.unwrap_or_else(|failure| panic!("{failure}"));
    let old = gateway.address(81);
    let mut client = Http1::connect(old).await;
    assert_eq!(client.get("a.test", "/").await.text(), "v1");
    let mut other = Http1::connect(gateway.address(80)).await;
    gateway.write("config.yaml", &servers("127.0.0.3").yaml()).await;
    // Listeners follow a moment after the configuration is in force.
    let new = eventually("port 81 moves", || async {
        let address = bound(&gateway, 81).await;
        (address.ip().to_string() == "127.0.0.3").then_some(address)
    })
    .await;
    assert_eq!(body(new, "a.test").await, "v1");
    assert!(connect_from(CLIENT, old).await.is_err());
    assert_eq!(client.get("a.test", "/").await.header("connection"), "close");
    assert!(!other.get("a.test", "/").await.has("connection"), "port 80 isn't concerned");
}

#[tokio::test]
async fn without_bind_it_listens_on_both_families() {
    let place = tempfile::tempdir().unwrap();
    let (config, ready) = (place.path().join("config.yaml"), place.path().join("ready.json"));
    std::fs::write(&config, format!("{}---\n{}", Mesh::new().yaml(), answer("answer", "a.test", "any"))).unwrap();
    let mut command = fairlead(&["run", "--port-map", "80:0", "--admin", "off", "--status", "off", "--metrics", "off"]);
    command.arg("--config").arg(&config).arg("--ready-file").arg(&ready);
    let _gateway = Process::start(command);
    let text = eventually("it is ready", || async { std::fs::read_to_string(&ready).ok() }).await;
    let said: serde_json::Value = serde_json::from_str(&text).unwrap();
    let addresses: Vec<SocketAddr> = said["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .map(|listener| listener["address"].as_str().unwrap().parse().unwrap())
        .collect();
    let port = addresses[0].port();
    assert_eq!(addresses[0], SocketAddr::from(([0, 0, 0, 0], port)));
    assert_eq!(body(SocketAddr::from(([127, 0, 0, 1], port)), "a.test").await, "any");
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    assert_eq!(addresses[1..], [SocketAddr::from(([0_u16; 8], port))], "the same port");
    let text =
        tokio::task::spawn_blocking(move || over(&mut std::net::TcpStream::connect(("::1", port)).expect("over IPv6")));
    assert!(text.await.unwrap().ends_with("\r\n\r\nany"));
}

#[tokio::test]
async fn ipv6() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let gateway = Mesh::new()
        .servers("- {port: {number: 80, name: http, protocol: HTTP}, bind: '::1', hosts: ['*']}\n", &[80])
        .builder()
        .file("answer.yaml", answer("answer", "a.test", "v6"))
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let address = gateway.address(80);
    assert!(address.is_ipv6(), "{address}");
    let text = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        over(&mut stream)
    });
    assert!(text.await.unwrap().ends_with("\r\n\r\nv6"));
}

/// One request over a blocking stream; the whole answer.
fn over(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn unix_sockets() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("gateway.sock");
    let name = format!("fairlead-test-{}", std::process::id());
    let servers = format!(
        "- {{port: {{number: 0, name: path, protocol: HTTP}}, bind: 'unix://{}', hosts: ['*']}}\n\
         - {{port: {{number: 0, name: abstract, protocol: HTTP}}, bind: 'unix://@{name}', hosts: ['*']}}\n",
        path.display()
    );
    let mesh = Mesh::new().servers(&servers, &[]);
    // The file of a gateway that crashed is in the way.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let gateway = mesh
        .builder()
        .file("answer.yaml", answer("answer", "a.test", "unix"))
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let by_path = path.clone();
    let texts = tokio::task::spawn_blocking(move || {
        let address = UnixAddress::from_abstract_name(&name).unwrap();
        [
            over(&mut UnixStream::connect(by_path).expect("by path")),
            over(&mut UnixStream::connect_addr(&address).expect("by abstract name")),
        ]
    });
    for text in texts.await.unwrap() {
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nunix"), "{text}");
    }
    // Removed with its server.
    gateway.write("config.yaml", &Mesh::new().yaml()).await;
    eventually("the socket file is gone", || async { (!path.exists()).then_some(()) }).await;
}

#[tokio::test]
async fn service_ports_map_to_target_ports() {
    let [first, second] = [free_port(), free_port()];
    let service = |target: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: ingress, namespace: istio-system}}\nspec:\n  \
             selector: {{istio: ingressgateway}}\n  ports:\n  - {{name: http, port: 80, targetPort: {target}}}\n"
        )
    };
    let gateway = Gateway::builder()
        .ports(&[])
        .file("gateway.yaml", Mesh::new().yaml())
        .file("service.yaml", service(first))
        .file(
            "answer.yaml",
            // What users see is the Service's port.
            answer("answer", "a.test", "v1")
                .replace("  - directResponse", "  - match: [{port: 80}]\n    directResponse"),
        )
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let address = gateway.address(80);
    assert_eq!(address.port(), first);
    assert_eq!(body(address, "a.test").await, "v1");

    // The Service changes: the gateway moves.
    write_into(&gateway.config(), "service.yaml", &service(second));
    let moved = format!("127.0.0.1:{second}");
    eventually("the listener moves", || async { (gateway.bound(80).await == [moved.clone()]).then_some(()) }).await;
    assert_eq!(body(moved.parse().unwrap(), "a.test").await, "v1");
    assert!(connect_from(CLIENT, address).await.is_err());
}

#[tokio::test]
async fn port_map_goes_before_the_service() {
    let port = free_port();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: ingress, namespace: istio-system}\nspec:\n  \
                   selector: {istio: ingressgateway}\n  ports:\n  - {name: http, port: 80, targetPort: 1}\n";
    let gateway = Gateway::builder()
        .ports(&[])
        .argument("--port-map")
        .argument(&format!("80:{port}"))
        .file("gateway.yaml", Mesh::new().yaml())
        .file("service.yaml", service)
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(gateway.address(80).port(), port);
    let response = Http1::connect(gateway.address(80)).await.get("a.test", "/").await;
    assert_eq!((response.status, response.failure), (404, None::<Failure>));
}
