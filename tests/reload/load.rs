//! A thousand changes under load: no request is lost, no connection ends, nobody sees half of a change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::client::{End, Failure, Http1, Http2, Response};
use crate::harness::gateway::{Gateway, write_into};
use crate::harness::mesh::Mesh;
use crate::harness::upstream::{Step, Upstream, answer};

const CHANGES: usize = 1000;

/// Least time from one change to the next, so that the upload beside them takes a minute.
const CHANGE_PACE: Duration = Duration::from_millis(60);

/// Time between two requests of one client: the load is there to be disturbed, not to keep the machine busy.
const PACE: Duration = Duration::from_millis(2);

const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";

/// What all clients share.
struct Load {
    gateway: Gateway,
    stop: AtomicBool,
    /// Number of the newest change that is in force for sure.
    applied: AtomicUsize,
    /// What each client got done.
    served: [AtomicUsize; 4],
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn count(&self, client: usize) {
        self.served[client].fetch_add(1, Ordering::Relaxed);
    }

    /// An answer must be complete, of one configuration, and not of one that was replaced before the request began.
    fn check(&self, response: &Response, newest: usize) {
        assert_eq!((response.status, &response.failure), (200, &None), "{response:?}");
        assert!(!response.has("connection"), "the connection is to stay: {response:?}");
        let change: usize = response.header("x-change").parse().unwrap();
        let destination = if change.is_multiple_of(2) { "even" } else { "odd" };
        assert_eq!(response.text(), destination, "the header is of one configuration, the destination of another");
        assert!(change >= newest, "change {change} answers a request that began after change {newest}");
    }
}

/// Change `number`: it decides about the destination and about a header, which must agree.
fn routes(number: usize) -> String {
    let destination = if number.is_multiple_of(2) { "even" } else { "odd" };
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: flips}}\nspec:\n  \
         hosts: [flips.test]\n  gateways: [gateway]\n  http:\n  - route:\n    - destination: {{host: {destination}.test}}\n    \
         headers: {{response: {{set: {{x-change: \"{number}\"}}}}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_changes_disturb_nobody() {
    let even = Upstream::answers("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\neven").await;
    let odd = Upstream::answers("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nodd").await;
    let uploads = Upstream::h1(|_| answer("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")).await;
    let echo = Upstream::h1(|_| vec![Step::ReadBody, Step::Send(SWITCH.to_vec()), Step::Echo]).await;
    let gateway = Mesh::new()
        .http("even.test", &[even.address()])
        .http("odd.test", &[odd.address()])
        .http("uploads.test", &[uploads.address()])
        .route("uploads.test", "uploads.test")
        .http("echo.test", &[echo.address()])
        .route("echo.test", "echo.test")
        .builder()
        .file("flips.yaml", routes(0))
        .access_log("off")
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let load = Arc::new(Load {
        gateway,
        stop: AtomicBool::new(false),
        applied: AtomicUsize::new(0),
        served: Default::default(),
    });

    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..2 {
        clients.spawn(keep_alive(load.clone()));
    }
    for _ in 0..2 {
        clients.spawn(streams(load.clone()));
    }
    clients.spawn(web_socket(load.clone()));
    clients.spawn(upload(load.clone()));

    let begin = Instant::now();
    let mut admin = Http1::connect(load.gateway.admin()).await;
    let mut generation = load.gateway.generation().await;
    let mut pace = tokio::time::interval(CHANGE_PACE);
    for number in 1..=CHANGES {
        pace.tick().await;
        write_into(&load.gateway.config(), "flips.yaml", &routes(number));
        generation = newer(&mut admin, generation).await;
        load.applied.store(number, Ordering::SeqCst);
        // What the upstreams remember of each request would fill the memory.
        drop((even.take(), odd.take()));
        if let Some(ended) = clients.try_join_next() {
            ended.unwrap();
            panic!("a client ended before change {number}");
        }
    }
    let time = begin.elapsed();
    load.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }

    let received = uploads.received().await.expect("the upload arrived");
    let sent = load.served[3].load(Ordering::SeqCst);
    assert_eq!(received.body.len(), sent * PIECE.len());
    assert!(received.body.chunks(PIECE.len()).all(|piece| piece == PIECE), "the upload isn't what was sent");
    let served: Vec<usize> = load.served.iter().map(|served| served.load(Ordering::SeqCst)).collect();
    eprintln!(
        "{CHANGES} changes in {time:.1?}; HTTP/1.1 requests {}, HTTP/2 requests {}, WebSocket messages {}, pieces of one upload {}",
        served[0], served[1], served[2], served[3]
    );
    assert!(served.iter().all(|served| *served >= CHANGES / 2), "too little load to say anything: {served:?}");
}

#[tokio::test]
async fn a_request_keeps_the_configuration_it_began_with() {
    let slow = Upstream::h1(|_| {
        let mut steps = answer("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow");
        steps.insert(1, Step::Pause(Duration::from_millis(700)));
        steps
    })
    .await;
    let quick = Upstream::answers("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nquick").await;
    let route = |service: &str, upstream: &Upstream, version: &str| {
        let routes = format!(
            "[{{route: [{{destination: {{host: {service}}}}}], headers: {{response: {{set: {{x-version: {version}}}}}}}}}]"
        );
        Mesh::new().http(service, &[upstream.address()]).routes("a.test", &routes)
    };
    let gateway = route("slow.test", &slow, "one").start().await;
    let mut first = Http1::connect(gateway.address(80)).await;
    first.send("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n").await;
    let mut streams = Http2::connect(gateway.address(80)).await;
    let (stream, _) = streams.open(http::Request::get("http://a.test/").body(()).unwrap(), true).await.unwrap();
    crate::harness::eventually("both are under way", || async { (slow.open() >= 2).then_some(()) }).await;

    // Its route, its service and its cluster go; what has begun comes to its end as it began.
    gateway.write("config.yaml", &route("quick.test", &quick, "two").yaml()).await;
    let response = Http1::connect(gateway.address(80)).await.get("a.test", "/").await;
    assert_eq!((response.text().as_str(), response.header("x-version")), ("quick", "two"));
    let response = first.response().await;
    assert_eq!((response.text().as_str(), response.header("x-version")), ("slow", "one"));
    let response = crate::harness::client::read_h2(stream).await;
    assert_eq!((response.text().as_str(), response.header("x-version")), ("slow", "one"));
    // On the same connections, the next requests follow the new one.
    assert_eq!(first.get("a.test", "/").await.text(), "quick");
    assert_eq!(streams.get("a.test", "/").await.text(), "quick");
    // What the old cluster had is let go.
    crate::harness::eventually("its connections end", || async { (slow.open() == 0).then_some(()) }).await;
}

/// Waits until a configuration newer than `generation` is in force; which one.
async fn newer(admin: &mut Http1, generation: u64) -> u64 {
    let begin = Instant::now();
    loop {
        let page = admin.get("localhost", "/stats/prometheus").await.text();
        let line = page.lines().find_map(|line| line.strip_prefix("fairlead_config_generation{} "));
        let now: u64 = line.unwrap_or_else(|| panic!("no generation in\n{page}")).parse().unwrap();
        if now > generation {
            return now;
        }
        assert!(begin.elapsed() < crate::harness::PATIENCE, "generation {generation} stays");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// One HTTP/1.1 connection for all requests.
async fn keep_alive(load: Arc<Load>) {
    let mut client = Http1::connect(load.gateway.address(80)).await;
    while load.goes_on() {
        let newest = load.applied.load(Ordering::SeqCst);
        let response = client.get("flips.test", "/").await;
        load.check(&response, newest);
        load.count(0);
        tokio::time::sleep(PACE).await;
    }
    assert_eq!(client.ended(Duration::ZERO).await, End::Open);
}

/// One HTTP/2 connection with several requests at once.
async fn streams(load: Arc<Load>) {
    let mut client = Http2::connect(load.gateway.address(80)).await;
    while load.goes_on() {
        let newest = load.applied.load(Ordering::SeqCst);
        let mut pending = Vec::new();
        for _ in 0..4 {
            let request = http::Request::get("http://flips.test/").body(()).unwrap();
            pending.push(client.open(request, true).await.expect("a stream").0);
        }
        for response in pending {
            load.check(&crate::harness::client::read_h2(response).await, newest);
            load.count(1);
        }
        tokio::time::sleep(PACE).await;
    }
    assert_eq!(client.ended(Duration::ZERO).await, None);
}

/// One tunnel, with a message under way all the time.
async fn web_socket(load: Arc<Load>) {
    let mut client = Http1::connect(load.gateway.address(80)).await;
    let handshake = "GET / HTTP/1.1\r\nhost: echo.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    assert_eq!(client.exchange(handshake).await.status, 101);
    let mut number = 0_u64;
    while load.goes_on() {
        let message = number.to_be_bytes();
        client.send(message).await;
        assert_eq!(client.read_exactly(message.len()).await, Ok(message.to_vec()));
        number += 1;
        load.count(2);
        tokio::time::sleep(PACE).await;
    }
    assert_eq!(client.ended(Duration::ZERO).await, End::Open);
}

const PIECE: &[u8] = b"a piece of a body that takes its time, numbered by nobody, sent again and again....";

/// One request whose body takes as long as all changes together.
async fn upload(load: Arc<Load>) {
    let mut client = Http1::connect(load.gateway.address(80)).await;
    client.send("POST /slow HTTP/1.1\r\nhost: uploads.test\r\ntransfer-encoding: chunked\r\n\r\n").await;
    while load.goes_on() {
        client.send(format!("{:x}\r\n", PIECE.len())).await;
        client.send(PIECE).await;
        client.send("\r\n").await;
        load.count(3);
        assert_eq!(client.ended(Duration::from_millis(5)).await, End::Open);
    }
    let response: Response = client.exchange("0\r\n\r\n").await;
    assert_eq!((response.status, response.failure), (200, None::<Failure>));
}
