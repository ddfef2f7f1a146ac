#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use config::snapshot::balancing::Placement;
use config::snapshot::cluster::{Cluster, Endpoint, EndpointAddress, Endpoints, ServiceIdentity};
use config::snapshot::format::Format;
use config::snapshot::listener::Bind;
use config::snapshot::mesh::Mesh;
use config::snapshot::telemetry::AccessLog;
use config::snapshot::{ResourceName, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::drain::Drain;
use crate::request::Begun;
use crate::state::{ListenerKey, State};
use crate::telemetry::Telemetry;
use crate::telemetry::access_log::AccessLogger;
use crate::telemetry::metrics::Source;
use crate::tls::credentials::Credentials;
use crate::worker::Gateway;

/// Output that hands every write to the test.
struct Channel(mpsc::Sender<String>);

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8(bytes.to_vec()).map_err(io::Error::other)?;
        self.0.send(text).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection through the gateway, up to its log line.
struct Proxied {
    chain: TcpChain,
    cluster: Cluster,
    /// Leave the cluster out of the configuration.
    missing: bool,
    drain: Drain,
}

impl Proxied {
    /// To `endpoint`, or to a cluster without endpoints.
    fn to(endpoint: Option<SocketAddr>) -> Self {
        let name = ClusterName::outbound(9000, "", "tcp.foo.svc.cluster.local");
        let endpoint = endpoint.map(|address| Endpoint {
            address: EndpointAddress::Ip(address.ip(), address.port()),
            weight: 1,
            workload: None,
            placement: Placement::default(),
        });
        let service =
            ServiceIdentity { host: "tcp.foo.svc.cluster.local".into(), name: "tcp".into(), namespace: "foo".into() };
        let endpoints = Endpoints::Static(endpoint.into_iter().collect());
        let cluster = Cluster::new(name.clone(), Arc::new(service), 9000, endpoints);
        let resource = ResourceName { kind: "VirtualService", namespace: "foo".into(), name: "tcp".into() };
        let destinations = vec![TcpDestination { cluster: name, weight: 100 }];
        let chain =
            TcpChain { destinations, idle_timeout: None, max_connection_duration: None, tunnel: None, resource };
        Self { chain, cluster, missing: false, drain: Drain::default() }
    }

    /// Serves what `client` does; its result, the access log line without what differs each time, and the metrics.
    async fn run<T>(self, client: impl AsyncFnOnce(TcpStream) -> T) -> (T, String, String) {
        let (sender, lines) = mpsc::channel();
        let access_log = AccessLogger::new(Channel(sender)).unwrap();
        let gateway = Arc::new(Gateway::new(Telemetry::new(&Source::default(), access_log)));
        let format = Arc::new(Format::default_access_log());
        let clusters = if self.missing { vec![] } else { vec![(self.cluster.name.clone(), Arc::new(self.cluster))] };
        let snapshot = Snapshot {
            clusters: Arc::new(clusters.into_iter().collect()),
            mesh: Arc::new(Mesh { access_log: Some(AccessLog::Text(format)), ..Mesh::default() }),
            ..Snapshot::default()
        };
        let state = State::build(Arc::new(snapshot), &Credentials::default(), &State::default());
        gateway.state.store(Arc::new(state));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        let serving = async {
            let (socket, remote) = listener.accept().await.unwrap();
            let facts = ConnectionFacts {
                id: 1,
                begun: Begun::now(),
                local: Some(local),
                remote: Some(remote),
                direct_remote: Some(remote),
                port: 9000,
                tls: None,
                server_name: Some("tcp.example.com".into()),
            };
            let key = ListenerKey { bind: Bind::Default, port: 9000 };
            let downstream =
                Downstream { transport: socket.into(), listener: key, facts: Rc::new(facts), drain: self.drain };
            serve(Rc::new(Worker::new(Arc::clone(&gateway))), downstream, Arc::new(self.chain)).await;
            remote
        };
        // Connected before it is accepted: a reset must not find it halfway.
        let socket = TcpStream::connect(local).await.unwrap();
        let (result, remote) = tokio::join!(client(socket), serving);
        gateway.telemetry.access_log.flush();
        let line = lines.try_iter().collect::<String>();
        let line = line.replace(&local.to_string(), "<local>").replace(&remote.to_string(), "<remote>");
        (result, line, gateway.metrics_page())
    }
}

/// The line of Istio's default format from the flags up to the bytes, and from the upstream on.
fn parts(line: &str) -> (&str, Vec<&str>) {
    let (_, rest) = line.split_once("] \"- - -\" 0 ").unwrap();
    let (before, after) = rest.split_once(" - \"-\" \"-\" \"-\" \"-\" ").unwrap();
    let (before, _duration) = before.rsplit_once(' ').unwrap();
    (before, after.trim_end().split(' ').collect())
}

const CLUSTER: &str = "outbound|9000||tcp.foo.svc.cluster.local";

/// Answers `hello` with `echo:hello`, then lets `end` go on.
async fn upstream(end: impl AsyncFnOnce(TcpStream)) -> (SocketAddr, impl Future<Output = ()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut hello = [0; 5];
        socket.read_exact(&mut hello).await.unwrap();
        socket.write_all(b"echo:hello").await.unwrap();
        end(socket).await;
    };
    (address, serving)
}

async fn say_hello(socket: &mut TcpStream) {
    socket.write_all(b"hello").await.unwrap();
    let mut answer = [0; 10];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"echo:hello");
}

/// How the connection ends: with these bytes and a FIN, or with a reset.
async fn rest(socket: &mut TcpStream) -> Result<Vec<u8>, io::ErrorKind> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.map_err(|error| error.kind())?;
    Ok(bytes)
}

#[tokio::test]
async fn a_half_close_reaches_the_upstream_which_may_still_answer() {
    let (address, serving) = upstream(async |mut socket| {
        assert_eq!(rest(&mut socket).await.unwrap(), b"");
        socket.write_all(b"bye").await.unwrap();
    })
    .await;
    let proxied = Proxied::to(Some(address)).run(async |mut socket| {
        say_hello(&mut socket).await;
        socket.shutdown().await.unwrap();
        rest(&mut socket).await
    });
    let ((), (end, line, metrics)) = tokio::join!(serving, proxied);
    assert_eq!(end.unwrap(), b"bye");
    let (before, after) = parts(&line);
    assert_eq!(before, "- - - \"-\" 5 13");
    let [host, cluster, upstream_local, local, remote, server_name, route] = after[..] else { panic!("{line}") };
    assert_eq!((host, cluster), (&*format!("\"{address}\""), CLUSTER));
    assert!(upstream_local.starts_with("127.0.0.1:"), "{line}");
    assert_eq!([local, remote, server_name, route], ["<local>", "<remote>", "tcp.example.com", "-"]);
    let labels = "destination_service=\"tcp.foo.svc.cluster.local\",destination_canonical_service=\"unknown\",\
        destination_canonical_revision=\"latest\",destination_service_name=\"tcp\",\
        destination_service_namespace=\"foo\",destination_cluster=\"unknown\",request_protocol=\"tcp\",\
        response_flags=\"-\",connection_security_policy=\"unknown\"}";
    for (name, value) in [
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_sent_bytes_total", 13),
        ("istio_tcp_received_bytes_total", 5),
    ] {
        let is_there = |sample: &str| sample.starts_with(name) && sample.ends_with(&format!("{labels} {value}"));
        assert!(metrics.lines().any(is_there), "{name}: {metrics}");
    }
}

#[tokio::test]
async fn a_connection_without_upstream_is_reset_or_closed_and_the_flags_tell_why() {
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut missing = Proxied::to(None);
    missing.missing = true;
    let mut full = Proxied::to(Some(refused));
    full.cluster.limits.max_connections = 0;
    let reset = Err(io::ErrorKind::ConnectionReset);
    let host = format!("\"{refused}\"");
    for (proxied, end, before, host, cluster) in [
        (
            Proxied::to(Some(refused)),
            reset.clone(),
            "UF,URX - - \"delayed_connect_error:_Connection_refused\" 0 0",
            &*host,
            CLUSTER,
        ),
        (Proxied::to(None), reset.clone(), "UH - - \"-\" 0 0", "\"-\"", CLUSTER),
        (missing, reset, "NC - - \"-\" 0 0", "\"-\"", "-"),
        (full, Ok(Vec::new()), "UO - - \"-\" 0 0", "\"-\"", CLUSTER),
    ] {
        let (ended, line, metrics) = proxied.run(async |mut socket| rest(&mut socket).await).await;
        assert_eq!(ended, end, "{line}");
        let (logged, after) = parts(&line);
        assert_eq!(logged, before);
        assert_eq!(after[..3], [host, cluster, "-"], "{line}");
        let flags = before.split(' ').next().unwrap();
        let closed = format!("response_flags=\"{flags}\",connection_security_policy=\"unknown\"}} 1");
        let is_closed =
            |sample: &str| sample.starts_with("istio_tcp_connections_closed_total") && sample.ends_with(&closed);
        assert!(metrics.lines().any(is_closed), "{metrics}");
    }
}

#[tokio::test]
async fn a_reset_of_the_upstream_becomes_one_of_ours() {
    let (address, serving) = upstream(async |socket| {
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let proxied = Proxied::to(Some(address)).run(async |mut socket| {
        socket.write_all(b"hello").await.unwrap();
        rest(&mut socket).await
    });
    let ((), (end, line, _)) = tokio::join!(serving, proxied);
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    assert!(parts(&line).0.starts_with("UR - - \"-\" 5 "), "{line}");
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_upstream() {
    let (address, serving) = upstream(async |mut socket| {
        assert_eq!(rest(&mut socket).await, Err(io::ErrorKind::ConnectionReset));
    })
    .await;
    let proxied = Proxied::to(Some(address)).run(async |mut socket| {
        say_hello(&mut socket).await;
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let ((), ((), line, _)) = tokio::join!(serving, proxied);
    assert_eq!(parts(&line).0, "- - - \"-\" 5 10");
}

#[tokio::test]
async fn idle_time_and_lifetime_end_both_sides_in_order() {
    let limit = Some(Duration::from_millis(50));
    for (idle, lifetime, expected) in [(limit, None, "- - - \"-\" 5 10"), (None, limit, "DT - - \"-\" 5 10")] {
        let (address, serving) = upstream(async |mut socket| assert_eq!(rest(&mut socket).await.unwrap(), b"")).await;
        let mut proxied = Proxied::to(Some(address));
        proxied.chain.idle_timeout = idle;
        proxied.chain.max_connection_duration = lifetime;
        let proxied = proxied.run(async |mut socket| {
            say_hello(&mut socket).await;
            rest(&mut socket).await
        });
        let ((), (end, line, _)) = tokio::join!(serving, proxied);
        assert_eq!(end.unwrap(), b"");
        assert_eq!(parts(&line).0, expected);
    }
}

#[tokio::test]
async fn a_drain_leaves_connections_alone_until_its_time_is_over() {
    let (address, serving) = upstream(async |mut socket| assert_eq!(rest(&mut socket).await.unwrap(), b"")).await;
    let proxied = Proxied::to(Some(address));
    let drain = proxied.drain.clone();
    drain.start();
    let proxied = proxied.run(async |mut socket| {
        say_hello(&mut socket).await;
        drain.close();
        rest(&mut socket).await
    });
    let ((), (end, line, _)) = tokio::join!(serving, proxied);
    assert_eq!(end.unwrap(), b"");
    assert_eq!(parts(&line).0, "- - - \"-\" 5 10");
}

#[test]
fn a_destination_gets_connections_by_its_weight() {
    let destination = |port, weight| TcpDestination { cluster: ClusterName::outbound(port, "", "h"), weight };
    let destinations = [destination(1, 20), destination(2, 80)];
    for (drawn, expected) in [(0, 1), (19, 1), (20, 2), (99, 2)] {
        let chosen = choose(&destinations, |total| {
            assert_eq!(total, 100);
            drawn
        });
        assert_eq!(chosen, Some(&ClusterName::outbound(expected, "", "h")));
    }
    assert_eq!(choose(&destinations[1..], |_| 0), Some(&ClusterName::outbound(2, "", "h")));
    assert_eq!(choose(&[], |_| 0), None);
}
