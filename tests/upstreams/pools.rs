//! networking.md §5.5: connections to upstreams, and how many of everything there may be. What overflows by
//! `maxConnections` with `http1MaxPendingRequests`, and by `http2MaxRequests` of HTTP/1.1, is in `local_reply`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{rule, service};
use crate::harness::client::{Http1, Http2, Response};
use crate::harness::eventually;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::raw_h2::{ACK, END_STREAM, Frame, HEADERS, PING, SETTINGS, WINDOW_UPDATE};
use crate::harness::table::Table;
use crate::harness::upstream::{H2Step, Step, Upstream, ok};

/// A service with this `connectionPool`, to which its own host is routed without retries; none if that is empty.
fn pooled(mesh: Mesh, host: &str, protocol: &str, upstream: &Upstream, pool: &str) -> Mesh {
    let mesh = service(mesh, host, protocol, [(upstream, "")]);
    let mesh = match pool {
        "" => mesh,
        pool => mesh.resource("DestinationRule", &rule(host, &format!("connectionPool: {{{pool}}}"))),
    };
    mesh.routes(host, &format!("[{{route: [{{destination: {{host: {host}}}}}], retries: {{attempts: 0}}}}]"))
}

/// One request on a connection of its own.
async fn get(gateway: &Gateway, host: &str) -> Response {
    Http1::connect(gateway.address(80)).await.get(host, "/").await
}

/// As many at once.
async fn get_at_once(gateway: &Gateway, host: &str, count: usize) -> Vec<Response> {
    futures::future::join_all((0..count).map(|_| get(gateway, host))).await
}

fn statuses(responses: &[Response]) -> Vec<u16> {
    responses.iter().map(|response| response.status).collect()
}

/// Waits until the upstream has `count` open connections.
async fn open(upstream: &Upstream, count: usize) {
    eventually(&format!("{count} open connections"), || async { (upstream.open() == count).then_some(()) }).await;
}

/// An HTTP/1.1 upstream that takes its time.
async fn slow(time: Duration) -> Upstream {
    Upstream::h1(move |_| [vec![Step::ReadBody, Step::Pause(time)], ok()].concat()).await
}

#[tokio::test]
async fn requests_by_connection() {
    let upstream = Upstream::ok().await;
    let rows = [
        ("reuse", "", 1),
        ("one", "http: {maxRequestsPerConnection: 1}", 4),
        ("two", "http: {maxRequestsPerConnection: 2}", 2),
        ("unset", "http: {maxRequestsPerConnection: 0}", 1),
    ];
    let mesh = rows
        .iter()
        .fold(Mesh::new(), |mesh, (name, pool, _)| pooled(mesh, &format!("{name}.test"), "HTTP", &upstream, pool));
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §5.5, requests by connection");
    for (number, (name, _, connections)) in rows.iter().enumerate() {
        table.row(*name);
        let before = upstream.connections();
        let mut client = Http1::connect(gateway.address(80)).await;
        for _ in 0..4 {
            table.check("status", &200, &client.get(&format!("{name}.test"), "/").await.status);
        }
        table.check("connections", connections, &(upstream.connections() - before));
        for request in upstream.take() {
            table.check("connection header", &None, &request.header("connection"));
        }
        // Of "reuse" and "unset" one each stays.
        open(&upstream, if number < 3 { 1 } else { 2 }).await;
    }
    table.row("from another client");
    let before = upstream.connections();
    for _ in 0..5 {
        table.check("status", &200, &get(&gateway, "reuse.test").await.status);
    }
    table.check("connections", &0, &(upstream.connections() - before));
    table.finish();
}

#[tokio::test]
async fn connections_end() {
    let half = Duration::from_millis(500);
    let (http1, http2) = (Upstream::ok().await, Upstream::h2(|_| vec![H2Step::Head(200, &[], true)]).await);
    let (kept, long) = (Upstream::ok().await, slow(Duration::from_millis(900)).await);
    let rows = [
        ("http-idle", "HTTP", "http: {idleTimeout: 500ms}", &http1),
        ("tcp-idle", "HTTP", "tcp: {idleTimeout: 500ms}", &http1),
        ("http-before-tcp", "HTTP", "http: {idleTimeout: 500ms}, tcp: {idleTimeout: 1h}", &http1),
        ("duration", "HTTP", "tcp: {maxConnectionDuration: 500ms}", &http1),
        ("h2-idle", "HTTP2", "http: {idleTimeout: 500ms}", &http2),
        ("h2-duration", "HTTP2", "tcp: {maxConnectionDuration: 500ms}", &http2),
    ];
    let mut mesh = rows.iter().fold(Mesh::new(), |mesh, (name, protocol, pool, upstream)| {
        pooled(mesh, &format!("{name}.test"), protocol, upstream, pool)
    });
    mesh = pooled(mesh, "kept.test", "HTTP", &kept, "http: {idleTimeout: 1h}, tcp: {idleTimeout: 500ms}");
    mesh = pooled(mesh, "long.test", "HTTP", &long, "http: {idleTimeout: 500ms}, tcp: {maxConnectionDuration: 500ms}");
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §5.5, connections end");
    get(&gateway, "kept.test").await;
    for (name, _, _, upstream) in rows {
        table.row(name);
        let begin = Instant::now();
        table.check("status", &200, &get(&gateway, &format!("{name}.test")).await.status);
        table.check("open", &1, &upstream.open());
        open(upstream, 0).await;
        table.check("not too early", &true, &(begin.elapsed() >= half));
    }
    table.row("the HTTP timeout counts alone");
    table.check("open", &1, &kept.open());
    table.row("a request under way is left alone");
    let response = get(&gateway, "long.test").await;
    table.check("answer", &(200, "ok".to_owned()), &(response.status, response.text()));
    open(&long, 0).await;
    table.finish();
}

/// `upstream/pool-stale-connection`: who closes without a word has not had the next request.
#[tokio::test]
async fn a_closed_connection_is_not_used() {
    let closing = Upstream::h1(|_| [ok(), vec![Step::Close]].concat()).await;
    let gateway = pooled(Mesh::new(), "a.test", "HTTP", &closing, "").start().await;
    for count in 1..=20 {
        let response = get(&gateway, "a.test").await;
        assert_eq!((response.status, &*response.text()), (200, "ok"));
        assert_eq!(closing.connections(), count);
        open(&closing, 0).await;
    }
}

#[tokio::test]
async fn connect_timeouts() {
    let (full, silent) = (Upstream::never_connects().await, Upstream::raw(hang).await);
    let mesh = pooled(Mesh::new(), "full.test", "HTTP", &full, "tcp: {connectTimeout: 300ms}");
    let mesh = pooled(mesh, "full-h2.test", "HTTP2", &full, "tcp: {connectTimeout: 300ms}");
    let mesh = service(mesh, "tls.test", "HTTP", [(&silent, "")])
        .resource(
            "DestinationRule",
            &rule(
                "tls.test",
                "connectionPool: {tcp: {connectTimeout: 300ms}}, tls: {mode: SIMPLE, insecureSkipVerify: true}",
            ),
        )
        .routes("tls.test", "[{route: [{destination: {host: tls.test}}], retries: {attempts: 0}}]");
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §5.5, connectTimeout");
    for host in ["full.test", "full-h2.test", "tls.test"] {
        table.row(host);
        let begin = Instant::now();
        let response = get(&gateway, host).await;
        let body = "upstream connect error or disconnect/reset before headers. reset reason: connection timeout";
        table.check("answer", &(503, body.to_owned()), &(response.status, response.text()));
        let passed = begin.elapsed();
        // The mesh's own is 10 s.
        let in_time = passed >= Duration::from_millis(300) && passed < Duration::from_secs(8);
        table.check("in time", &true, &in_time);
        table.expect_log(response.client, 503, "UF", "upstream_reset_before_response_started{connection_timeout}");
    }
    table.check_logs(&gateway).await;
    table.finish();
}

async fn hang(mut stream: TcpStream, _: usize) {
    while stream.read_u8().await.is_ok() {}
}

#[tokio::test]
async fn keepalive() {
    let upstream = Upstream::ok().await;
    let rows = [
        ("off", "", false),
        ("empty", "tcp: {tcpKeepalive: {}}", true),
        ("set", "tcp: {tcpKeepalive: {probes: 3, time: 10s, interval: 5s}}", true),
    ];
    let mesh = || {
        rows.iter()
            .fold(Mesh::new(), |mesh, (name, pool, _)| pooled(mesh, &format!("{name}.test"), "HTTP", &upstream, pool))
    };
    let plain = mesh().start().await;
    let meshwide = mesh().mesh_config("tcpKeepalive: {time: 20s}").start().await;
    let mut table = Table::new("networking.md §5.5, tcpKeepalive");
    for (gateway, kind) in [(&plain, ""), (&meshwide, ", of the mesh")] {
        for (name, _, alive) in rows {
            table.row(format!("{name}{kind}"));
            let response = get(gateway, &format!("{name}.test")).await;
            let line = gateway.log_line_of(response.client.unwrap()).await.expect("a line in the access log");
            let local: SocketAddr = line.fields()[17].parse().unwrap();
            let timer = keepalive_timer(local, upstream.address()).await;
            let most = match (name, kind) {
                ("off", "") => None,
                ("off", _) => Some(20),
                ("set", _) => Some(10),
                _ => Some(7200),
            };
            table.check("keepalive is on", &(alive || !kind.is_empty()), &timer.is_some());
            if timer > most {
                table.fail(format!("the next probe is in {timer:?} s, at most {most:?} is right"));
            }
        }
    }
    table.finish();
}

/// Seconds until the keepalive timer of a connection fires, as the kernel tells; `None` without one.
async fn keepalive_timer(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let ends = [local, remote].map(|end| format!("0100007F:{:04X}", end.port()));
    eventually("the connection has nothing to send", || async {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let line = table
            .lines()
            .find(|line| ends.iter().all(|end| line.contains(end)) && line.contains(&*format!(": {} ", ends[0])))?;
        let (kind, rest) = line.split_whitespace().nth(5)?.split_once(':')?;
        match kind {
            "00" => Some(None),
            // Hundredths of a second.
            "02" => Some(Some(u64::from_str_radix(rest, 16).ok()? / 100)),
            _ => None,
        }
    })
    .await
}

#[tokio::test]
async fn limits() {
    let (queued, hangs) = (slow(Duration::from_millis(100)).await, Upstream::h2(|_| vec![H2Step::Hang]).await);
    let full = Upstream::never_connects().await;
    let queued_h2 =
        Upstream::h2(|_| vec![H2Step::Pause(Duration::from_millis(100)), H2Step::Head(200, &[], true)]).await;
    let pending = "http: {http1MaxPendingRequests: 1}, tcp: {connectTimeout: 1s}";
    let one = "tcp: {maxConnections: 1}, http: {maxConcurrentStreams: 1}";
    let mesh = pooled(Mesh::new(), "queued.test", "HTTP", &queued, "tcp: {maxConnections: 1}");
    let mesh = pooled(mesh, "queued-h2.test", "HTTP2", &queued_h2, one);
    let mesh = pooled(mesh, "pending.test", "HTTP", &full, pending);
    let mesh = pooled(mesh, "pending-h2.test", "HTTP2", &full, pending);
    let mesh = pooled(mesh, "requests-h2.test", "HTTP2", &hangs, "http: {http2MaxRequests: 2}");
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §5.5, limits");

    for (host, upstream) in [("queued.test", &queued), ("queued-h2.test", &queued_h2)] {
        table.row(format!("{host}: requests wait for the only connection"));
        table.check("statuses", &vec![200; 4], &statuses(&get_at_once(&gateway, host, 4).await));
        table.check("connections", &1, &upstream.connections());
    }
    for host in ["pending.test", "pending-h2.test"] {
        table.row(format!("{host}: who waits for a connection is pending"));
        let begin = Instant::now();
        let mut responses = get_at_once(&gateway, host, 3).await;
        responses.sort_by_key(|response| response.has("x-envoy-overloaded"));
        let overflown = responses.split_off(1);
        table.check("the first one's end", &true, &responses[0].text().ends_with("connection timeout"));
        table.check("its time", &true, &(begin.elapsed() >= Duration::from_secs(1)));
        for response in overflown {
            overflows(&mut table, &response);
        }
    }
    table.row("requests-h2.test");
    let mut active = Vec::new();
    for _ in 0..2 {
        let mut client = Http1::connect(gateway.address(80)).await;
        client.send("GET / HTTP/1.1\r\nhost: requests-h2.test\r\n\r\n").await;
        active.push(client);
    }
    let mut arrived = 0;
    eventually("two requests", || {
        arrived += hangs.take().len();
        std::future::ready((arrived == 2).then_some(()))
    })
    .await;
    overflows(&mut table, &get(&gateway, "requests-h2.test").await);
    drop(active);
    eventually("a place for another", || async {
        let mut client = Http1::connect(gateway.address(80)).await;
        client.send("GET / HTTP/1.1\r\nhost: requests-h2.test\r\n\r\n").await;
        tokio::select! {
            _ = client.response() => None,
            () = eventually("the request", || std::future::ready((!hangs.take().is_empty()).then_some(()))) => Some(()),
        }
    })
    .await;
    table.check_logs(&gateway).await;
    table.finish();
}

/// The answer to a request for which there is no room.
fn overflows(table: &mut Table, response: &Response) {
    let body = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
    table.check("answer", &(503, body.to_owned()), &(response.status, response.text()));
    table.check(
        "first header",
        &Some(&("x-envoy-overloaded".to_owned(), "true".to_owned())),
        &response.headers.first(),
    );
    table.expect_log(response.client, 503, "UO", "upstream_reset_before_response_started{overflow}");
}

/// `retry_timeout/max-retries-1`, `retry_timeout/retry-budget`.
#[tokio::test]
async fn retries_have_limits() {
    let mut table = Table::new("networking.md §5.5, limits of retries");
    for (name, policy) in [
        ("maxRetries", "connectionPool: {http: {maxRetries: 1}}"),
        ("retryBudget", "retryBudget: {percent: 20, minRetryConcurrency: 1}"),
        (
            "retryBudget before maxRetries",
            "connectionPool: {http: {maxRetries: 100}}, retryBudget: {percent: 20, minRetryConcurrency: 1}",
        ),
    ] {
        table.row(name);
        let failing = Upstream::h1(|_| {
            let answer = "HTTP/1.1 503 Whatever\r\ncontent-length: 2\r\n\r\nok";
            vec![Step::ReadBody, Step::Pause(Duration::from_millis(500)), Step::Send(answer.into())]
        })
        .await;
        let gateway = service(Mesh::new(), "up.test", "HTTP", [(&failing, "")])
            .resource("DestinationRule", &rule("up.test", policy))
            .routes("a.test", "[{route: [{destination: {host: up.test}}], retries: {attempts: 3, retryOn: 5xx}}]")
            .start()
            .await;
        let responses = get_at_once(&gateway, "a.test", 4).await;
        table.check("statuses", &vec![503; 4], &statuses(&responses));
        let mut flags = BTreeMap::new();
        for response in &responses {
            table.check("body", "ok", &*response.text());
            table.check("overloaded", &false, &response.has("x-envoy-overloaded"));
            let line = gateway.log_line_of(response.client.unwrap()).await.expect("a line in the access log");
            table.check("details", "via_upstream", line.details());
            *flags.entry(line.flags().to_owned()).or_insert(0) += 1;
        }
        table.check("flags", &BTreeMap::from([("UO".to_owned(), 3), ("URX".to_owned(), 1)]), &flags);
        table.check("tries", &7, &failing.take().len());
    }
    table.finish();
}

/// An HTTP/2 peer by frames, which answers every request with an empty 200.
struct Peer {
    upstream: Upstream,
    /// Frames by the number of their connection.
    frames: Arc<Mutex<Vec<(usize, Frame)>>>,
    /// Connections up to this one read and write no more.
    silent: Arc<AtomicUsize>,
    /// Connections up to this one leave requests without an answer.
    slow: Arc<AtomicUsize>,
}

impl Peer {
    /// A peer with these settings.
    async fn start(settings: &'static [u8]) -> Self {
        let frames: Arc<Mutex<Vec<(usize, Frame)>>> = Arc::default();
        let (silent, slow) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let shared = (frames.clone(), silent.clone(), slow.clone());
        let upstream = Upstream::raw(move |stream, number| {
            let (frames, silent, slow) = shared.clone();
            async move {
                let _ = speak(stream, number, settings, &frames, &silent, &slow).await;
            }
        });
        Self { upstream: upstream.await, frames, silent, slow }
    }

    /// Frames of this kind, without acknowledgements.
    fn frames(&self, kind: u8) -> Vec<(usize, Frame)> {
        let frames = self.frames.lock().unwrap();
        frames
            .iter()
            .filter(|(_, frame)| frame.kind == kind && (kind == HEADERS || frame.flags & ACK == 0))
            .cloned()
            .collect()
    }

    /// The connections of all requests so far.
    fn connections_of_requests(&self) -> Vec<usize> {
        self.frames(HEADERS).iter().map(|(connection, _)| *connection).collect()
    }
}

async fn speak(
    mut stream: TcpStream,
    number: usize,
    settings: &[u8],
    frames: &Mutex<Vec<(usize, Frame)>>,
    silent: &AtomicUsize,
    slow: &AtomicUsize,
) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, settings)).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, s0, s1, s2, s3] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await?;
        let id = u32::from_be_bytes([s0, s1, s2, s3]);
        frames.lock().unwrap().push((number, Frame { kind, flags, stream: id, payload: payload.clone() }));
        if silent.load(Ordering::SeqCst) >= number {
            std::future::pending::<()>().await;
        }
        match kind {
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await?,
            PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload)).await?,
            // `:status: 200` has the number 8 in HPACK's table; a header block in one frame has flag 4.
            HEADERS if slow.load(Ordering::SeqCst) < number => {
                stream.write_all(&frame(HEADERS, END_STREAM | 4, id, &[0x88])).await?;
            }
            _ => {}
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[length[1], length[2], length[3], kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// `upstream/pool-h2-one-connection`, `upstream/pool-h2-max-streams-1`.
#[tokio::test]
async fn http2_connections() {
    let slow = || Upstream::h2(|_| vec![H2Step::Pause(Duration::from_millis(300)), H2Step::Head(200, &[], true)]);
    let (one, two) = (slow().await, slow().await);
    let (plain, announced) = (Peer::start(&[]).await, Peer::start(&[]).await);
    // MAX_CONCURRENT_STREAMS 1.
    let strict = Peer::start(&[0, 3, 0, 0, 0, 1]).await;
    let max_streams = "http: {maxConcurrentStreams: 1}";
    let mesh = pooled(Mesh::new(), "one.test", "HTTP2", &one, "");
    let mesh = pooled(mesh, "two.test", "HTTP2", &two, max_streams);
    let mesh = pooled(mesh, "plain.test", "HTTP2", &plain.upstream, "");
    let mesh = pooled(mesh, "announced.test", "HTTP2", &announced.upstream, max_streams);
    let mesh = pooled(mesh, "strict.test", "HTTP2", &strict.upstream, "");
    let mesh = pooled(mesh, "two-requests.test", "HTTP2", &plain.upstream, "http: {maxRequestsPerConnection: 2}");
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §5.5, HTTP/2 connections");

    table.row("parallel requests share a connection");
    table.check("statuses", &vec![200; 5], &statuses(&get_at_once(&gateway, "one.test", 5).await));
    table.check("connections", &1, &one.connections());

    table.row("maxConcurrentStreams");
    table.check("statuses", &vec![200; 3], &statuses(&get_at_once(&gateway, "two.test", 3).await));
    table.check("connections", &3, &two.connections());

    for (host, peer, streams) in [("plain.test", &plain, 1024), ("announced.test", &announced, 1)] {
        table.row(format!("{host}: settings"));
        table.check("status", &200, &get(&gateway, host).await.status);
        let mut settings = BTreeMap::from([(1, 4096)]);
        for pair in peer.frames(SETTINGS)[0].1.payload.chunks(6) {
            let value = u32::from_be_bytes(pair[2..].try_into().unwrap());
            settings.insert(u16::from_be_bytes([pair[0], pair[1]]), value);
        }
        // How long a list of headers may be is advice that Envoy doesn't give.
        settings.remove(&6);
        table.check("settings", &BTreeMap::from([(1, 4096), (2, 0), (3, streams), (4, 16 << 20)]), &settings);
        let windows = peer.frames(WINDOW_UPDATE).into_iter().filter(|(_, frame)| frame.stream == 0);
        let window: u32 = windows.map(|(_, frame)| u32::from_be_bytes(frame.payload.try_into().unwrap())).sum();
        table.check("window of the connection", &(24 << 20), &(window + 65_535));
    }

    table.row("two requests by connection");
    let before = plain.upstream.connections();
    for _ in 0..4 {
        table.check("status", &200, &get(&gateway, "two-requests.test").await.status);
    }
    table.check("connections", &2, &(plain.upstream.connections() - before));

    table.row("the peer's limit of streams");
    table.check("status", &200, &get(&gateway, "strict.test").await.status);
    strict.slow.store(9, Ordering::SeqCst);
    let mut waiting = Vec::new();
    for count in 2..=4 {
        let mut client = Http1::connect(gateway.address(80)).await;
        client.send("GET / HTTP/1.1\r\nhost: strict.test\r\n\r\n").await;
        waiting.push(client);
        eventually("the request", || std::future::ready((strict.frames(HEADERS).len() == count).then_some(()))).await;
    }
    table.check("connections", &[1, 1, 2, 3][..], &strict.connections_of_requests()[..]);
    table.finish();
}

/// `upstream/pool-h2-keepalive`, and peers that have gone without a word.
#[tokio::test]
async fn signs_of_life() {
    let (kept, plain, dead) = (Peer::start(&[]).await, Peer::start(&[]).await, Peer::start(&[]).await);
    let (silent, slow) = (Peer::start(&[]).await, Peer::start(&[]).await);
    let keepalive = |timeout: &str| format!("http: {{http2KeepAlive: {{interval: 300ms, timeout: {timeout}}}}}");
    let mesh = pooled(Mesh::new(), "kept.test", "HTTP2", &kept.upstream, &keepalive("10s"));
    let mesh = pooled(mesh, "plain.test", "HTTP2", &plain.upstream, "");
    let mesh = pooled(mesh, "dead.test", "HTTP2", &dead.upstream, &keepalive("300ms"));
    let timeout = |mesh: Mesh, host: &str, peer: &Peer| {
        let route = format!("route: [{{destination: {{host: {host}}}}}]");
        service(mesh, host, "HTTP2", [(&peer.upstream, "")])
            .routes(host, &format!("[{{{route}, retries: {{attempts: 0}}, timeout: 800ms}}]"))
    };
    let gateway = timeout(timeout(mesh, "silent.test", &silent), "slow.test", &slow).start().await;
    let mut table = Table::new("networking.md §5.5, http2KeepAlive");

    table.row("PINGs while nothing happens");
    let begin = Instant::now();
    for host in ["plain.test", "kept.test", "dead.test"] {
        table.check("status", &200, &get(&gateway, host).await.status);
    }
    dead.silent.store(1, Ordering::SeqCst);
    eventually("three PINGs", || std::future::ready((kept.frames(PING).len() >= 3).then_some(()))).await;
    table.check("not too many", &true, &(begin.elapsed() >= Duration::from_millis(900)));
    table.check("the connection lives", &1, &kept.upstream.open());
    table.check("none without the setting", &0, &plain.frames(PING).len());

    table.row("a PING without an answer");
    // Whoever asks meanwhile is on the dead connection, and fails with it.
    eventually("another connection", || async {
        get(&gateway, "dead.test").await;
        (dead.connections_of_requests().last() == Some(&2)).then_some(())
    })
    .await;

    table.row("a silent peer");
    table.check("status", &200, &get(&gateway, "silent.test").await.status);
    silent.silent.store(1, Ordering::SeqCst);
    table.check("in vain", &504, &get(&gateway, "silent.test").await.status);
    table.check("on another connection", &200, &get(&gateway, "silent.test").await.status);
    // Whether it has read the one in vain before it fell silent is chance.
    table.check("the last connection", &Some(&2), &silent.connections_of_requests().last());

    table.row("a slow peer");
    table.check("status", &200, &get(&gateway, "slow.test").await.status);
    slow.slow.store(1, Ordering::SeqCst);
    table.check("in vain", &504, &get(&gateway, "slow.test").await.status);
    slow.slow.store(0, Ordering::SeqCst);
    eventually("a PING", || std::future::ready((!slow.frames(PING).is_empty()).then_some(()))).await;
    eventually("the same connection again", || async {
        let status = get(&gateway, "slow.test").await.status;
        (status == 200 && slow.connections_of_requests().last() == Some(&1)).then_some(())
    })
    .await;
    table.finish();
}

/// `upstream/pool-use-client-protocol-*`, `h2UpgradePolicy`.
#[tokio::test]
async fn protocols() {
    // Notes how a connection begins, and closes it.
    let begins: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = begins.clone();
    let upstream = Upstream::raw(move |mut stream, _| {
        let noted = noted.clone();
        async move {
            let mut begin = [0; 14];
            let _ = stream.read_exact(&mut begin).await;
            noted.lock().unwrap().push(String::from_utf8_lossy(&begin).into_owned());
        }
    })
    .await;
    let (one, two) = ("GET / HTTP/1.1", "PRI * HTTP/2.0");
    let upgrade = "http: {h2UpgradePolicy: UPGRADE}";
    let do_not = "http: {h2UpgradePolicy: DO_NOT_UPGRADE}";
    // For clients of HTTP/1.1 and HTTP/2, and the same with `UPGRADE` for the whole mesh.
    let rows = [
        ("http", "HTTP", "", [one, one, two, two]),
        ("http2", "HTTP2", "", [two, two, two, two]),
        ("grpc", "GRPC", "", [two, two, two, two]),
        ("default", "HTTP", "http: {h2UpgradePolicy: DEFAULT}", [one, one, two, two]),
        ("upgrade", "HTTP", upgrade, [two, two, two, two]),
        ("do-not", "HTTP", do_not, [one, one, one, one]),
        ("http2-do-not", "HTTP2", do_not, [two, two, two, two]),
        ("client", "HTTP", "http: {useClientProtocol: true}", [one, two, one, two]),
        ("client-http2", "HTTP2", "http: {useClientProtocol: true}", [one, two, one, two]),
    ];
    let mesh = || {
        rows.iter().fold(Mesh::new(), |mesh, (name, protocol, pool, _)| {
            pooled(mesh, &format!("{name}.test"), protocol, &upstream, pool)
        })
    };
    let plain = mesh().start().await;
    let upgrading = mesh().mesh_config("h2UpgradePolicy: UPGRADE").start().await;
    let mut table = Table::new("networking.md §5.5, protocols");
    for (name, _, _, expected) in rows {
        table.row(name);
        let host = format!("{name}.test");
        let mut got = Vec::new();
        for gateway in [&plain, &upgrading] {
            get(gateway, &host).await;
            got.append(&mut begins.lock().unwrap());
            Http2::connect(gateway.address(80)).await.get(&host, "/").await;
            got.append(&mut begins.lock().unwrap());
        }
        table.check("upstream", &expected[..], &got[..]);
    }
    table.finish();
}
