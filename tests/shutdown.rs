//! How the process ends: telemetry-and-operations.md §9.

use std::time::{Duration, Instant};

use http::Request;

use crate::harness::client::{End, Failure, Http1, Http2, read_h2};
use crate::harness::gateway::{Gateway, signal};
use crate::harness::mesh::Mesh;
use crate::harness::raw_h2::{self, RawH2};
use crate::harness::upstream::{Step, Upstream};
use crate::harness::{eventually, upstream};

/// A gateway that drains for this many seconds.
async fn draining_for(seconds: u64, mesh: &Mesh) -> Gateway {
    let builder = mesh.builder().environment("TERMINATION_DRAIN_DURATION_SECONDS", &seconds.to_string());
    builder.start().await.unwrap_or_else(|failure| panic!("{failure}"))
}

/// Waits until the gateway has noticed the signal.
async fn draining(gateway: &Gateway) {
    eventually("readiness is 503", || async { (ready(gateway).await == 503).then_some(()) }).await;
}

async fn ready(gateway: &Gateway) -> u16 {
    Http1::connect(gateway.status()).await.get("localhost", "/healthz/ready").await.status
}

/// An upstream that answers `/slow` after a second, everything else at once.
async fn slow() -> Upstream {
    Upstream::h1(|request| {
        let mut steps = upstream::ok();
        if request.target == "/slow" {
            steps.insert(1, Step::Pause(Duration::from_secs(1)));
        }
        steps
    })
    .await
}

#[tokio::test]
async fn a_drain_ends_every_connection_in_order() {
    let upstream = slow().await;
    let mut gateway =
        draining_for(3, &Mesh::new().http("a.test", &[upstream.address()]).route("a.test", "a.test")).await;
    assert_eq!(ready(&gateway).await, 200);
    let address = gateway.address(80);

    let mut busy = Http1::connect(address).await;
    busy.send("GET /slow HTTP/1.1\r\nhost: a.test\r\n\r\n").await;
    let mut idle = Http1::connect(address).await;
    assert!(!idle.get("a.test", "/").await.has("connection"));
    let mut streams = Http2::connect(address).await;
    let slow_stream = Request::get("http://a.test/slow").body(()).unwrap();
    let (stream, _) = streams.open(slow_stream, true).await.expect("a stream");
    for _ in 0..2 {
        eventually("both slow requests are under way", || async { (upstream.open() >= 2).then_some(()) }).await;
    }
    let mut frames = RawH2::connect(address).await;

    let begin = Instant::now();
    gateway.terminate();
    draining(&gateway).await;

    // New connections are served, and asked to go.
    let mut new = Http1::connect(address).await;
    let response = new.get("a.test", "/").await;
    assert_eq!((response.status, response.text().as_str(), response.header("connection")), (200, "ok", "close"));
    // Idle ones hear it with their next response, or were closed.
    match idle.ended(Duration::ZERO).await {
        End::Open => {
            let response = idle.get("a.test", "/").await;
            assert_eq!((response.status, response.header("connection")), (200, "close"));
        }
        end => assert_eq!(end, End::Closed),
    }
    // What was in flight comes to its end.
    let response = busy.response().await;
    assert_eq!((response.status, response.text().as_str(), response.header("connection")), (200, "ok", "close"));
    let response = read_h2(stream).await;
    assert_eq!((response.status, response.failure), (200, None));

    // HTTP/2: GOAWAY at the next response at the latest; it refuses nothing that is under way (NO_ERROR).
    let fields: [(&str, &[u8]); 4] =
        [(":method", b"GET"), (":scheme", b"http"), (":authority", b"a.test"), (":path", b"/")];
    frames.headers(1, &fields, true).await;
    let mut told = false;
    let mut answered = false;
    while let Ok(frame) = frames.next(Duration::from_secs(1)).await {
        if frame.kind == raw_h2::GOAWAY {
            assert_eq!(frame.code(), 0, "{frame:?}");
            told = true;
        }
        answered |= frame.kind == raw_h2::HEADERS && frame.stream == 1;
    }
    assert!(told && answered, "GOAWAY {told}, answered {answered}");

    let status = gateway.exit(Duration::from_secs(10)).await.expect("it ends by itself");
    assert_eq!(status.code(), Some(0));
    let took = begin.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(5)).contains(&took), "{took:?} for a drain of 3 s");
    assert!(crate::harness::client::connect_from(crate::harness::client::CLIENT, address).await.is_err());
}

#[tokio::test]
async fn what_outlives_the_drain_is_cut_and_logged() {
    let upstream = Upstream::hangs().await;
    let mesh = Mesh::new().http("a.test", &[upstream.address()]).route("a.test", "a.test");
    let mut gateway = draining_for(1, &mesh).await;
    let mark = gateway.log_mark();
    let mut client = Http1::connect(gateway.address(80)).await;
    client.send("GET / HTTP/1.1\r\nhost: a.test\r\nuser-agent: outlives\r\n\r\n").await;
    upstream.received().await.expect("the request is under way");
    gateway.terminate();
    assert_eq!(gateway.exit(Duration::from_secs(5)).await.and_then(|status| status.code()), Some(0));
    assert_ne!(client.ended(Duration::from_secs(1)).await, End::Open);
    let line = gateway.log_line_since(mark, |line| line.user_agent() == "outlives").await.expect("its access log line");
    assert_eq!((line.code(), line.flags()), ("0", "DC"), "{}", line.text);
}

#[tokio::test]
async fn a_second_signal_ends_the_wait() {
    let mut gateway = draining_for(60, &Mesh::new()).await;
    gateway.terminate();
    draining(&gateway).await;
    assert!(gateway.exit(Duration::from_millis(300)).await.is_none(), "it drains");
    let begin = Instant::now();
    gateway.terminate();
    assert_eq!(gateway.exit(Duration::from_secs(5)).await.and_then(|status| status.code()), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn interrupt_is_like_terminate() {
    let mut gateway = draining_for(0, &Mesh::new()).await;
    signal(gateway.pid(), "INT");
    assert_eq!(gateway.exit(Duration::from_secs(5)).await.and_then(|status| status.code()), Some(0));
}

#[tokio::test]
async fn the_drain_time_is_that_of_the_mesh_config() {
    let mut gateway = Mesh::new().mesh_config("defaultConfig: {terminationDrainDuration: 1s}").start().await;
    let begin = Instant::now();
    gateway.terminate();
    assert_eq!(gateway.exit(Duration::from_secs(10)).await.and_then(|status| status.code()), Some(0));
    let took = begin.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn without_connections_it_may_end_early() {
    let upstream = slow().await;
    let mut gateway = Mesh::new()
        .http("a.test", &[upstream.address()])
        .route("a.test", "a.test")
        .builder()
        .environment("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true")
        .environment("MINIMUM_DRAIN_DURATION", "100ms")
        .environment("TERMINATION_DRAIN_DURATION_SECONDS", "60")
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let mut busy = Http1::connect(gateway.address(80)).await;
    busy.send("GET /slow HTTP/1.1\r\nhost: a.test\r\n\r\n").await;
    eventually("the request is under way", || async { (upstream.open() >= 1).then_some(()) }).await;
    gateway.terminate();
    let response = busy.response().await;
    assert_eq!((response.status, response.failure), (200, None::<Failure>));
    drop(busy);
    assert_eq!(gateway.exit(Duration::from_secs(5)).await.and_then(|status| status.code()), Some(0));
}
