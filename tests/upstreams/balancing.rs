//! networking.md §5.3: how requests are shared out. Consistent hashing has its own tests.

use std::time::{Duration, Instant};

use super::{numbered, numbered_tcp, request, routed, rule, service, tally, who_answers, who_serves};
use crate::harness::client::{CLIENT, Http1};
use crate::harness::eventually;
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::{Step, Upstream};

#[tokio::test]
async fn shares() {
    let upstreams = numbered(4).await;
    let weighted = || upstreams.iter().zip(["weight: 1", "weight: 3"]);
    let mut mesh = Mesh::new();
    for (host, balancer) in [
        ("rr.test", "simple: ROUND_ROBIN"),
        ("lr.test", "simple: LEAST_REQUEST"),
        ("lc.test", "simple: LEAST_CONN"),
        ("unspecified.test", "simple: UNSPECIFIED"),
        ("random.test", "simple: RANDOM"),
        ("passthrough.test", "simple: PASSTHROUGH"),
    ] {
        mesh = routed(mesh, host, &upstreams, &format!("loadBalancer: {{{balancer}}}"));
    }
    for (host, balancer) in [("rr-w.test", "simple: ROUND_ROBIN"), ("lr-w.test", "simple: LEAST_REQUEST")] {
        mesh = service(mesh, host, "HTTP", weighted())
            .resource("DestinationRule", &rule(host, &format!("loadBalancer: {{{balancer}}}")))
            .route(host, host);
    }
    let all = upstreams.iter().map(|upstream| (upstream, ""));
    let gateway = service(mesh, "none.test", "HTTP", all).route("none.test", "none.test").start().await;
    let mut table = Table::new("networking.md §5.3, shares");

    for (host, expected) in
        [("rr.test", [50, 50, 50, 50]), ("rr-w.test", [50, 150, 0, 0]), ("lr-w.test", [50, 150, 0, 0])]
    {
        table.row(host);
        let numbers = who_answers(&gateway, host, 200).await;
        table.check("of 200 requests", &expected[..], &tally(&numbers, 4)[..]);
        if host == "rr.test" {
            let next = |number: usize| (number + 1) % 4;
            table.check("in turns", &true, &numbers.windows(2).all(|pair| pair[1] == next(pair[0])));
        }
    }
    // Six standard deviations around a quarter of 200: 50 ± 37.
    for host in ["lr.test", "lc.test", "unspecified.test", "none.test", "random.test"] {
        table.row(host);
        let numbers = who_answers(&gateway, host, 200).await;
        let shares = tally(&numbers, 4);
        if shares.iter().any(|share| !(13..=87).contains(share)) {
            table.fail(format!("{shares:?} of 200 requests"));
        }
        table.check("in turns", &false, &numbers.windows(5).all(|window| window[0] == window[4]));
    }

    table.row("passthrough.test");
    let response = Http1::connect(gateway.address(80)).await.get("passthrough.test", "/").await;
    table.check("answer", &(503, "no healthy upstream".to_owned()), &(response.status, response.text()));
    table.expect_log(response.client, 503, "UH", "no_healthy_upstream");
    table.check_logs(&gateway).await;
    table.finish();
}

/// `upstream/lb-lr-slow-host` gave the slow one of four endpoints 3 of 60 requests. Here it never answers, so that
/// chance is all that can give it one: a sixteenth of the requests.
#[tokio::test]
async fn a_slow_endpoint_gets_less() {
    const COUNT: usize = 600;
    let slow = Upstream::h1(|_| vec![Step::ReadBody, Step::Hang]).await;
    let [one, two, three] = [Upstream::ok().await, Upstream::ok().await, Upstream::ok().await];
    let upstreams = [slow, one, two, three];
    let gateway = routed(Mesh::new(), "a.test", &upstreams, "loadBalancer: {simple: LEAST_REQUEST}").start().await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let mut waiting = Vec::new();
    for _ in 0..COUNT {
        client.send(request("a.test", "/", "")).await;
        let kept = eventually("the request to arrive", || async { (!upstreams[0].take().is_empty()).then_some(()) });
        let answered = tokio::select! {
            response = client.response() => {
                assert_eq!(response.status, 200, "{response:?}");
                true
            }
            () = kept => false,
        };
        if !answered {
            waiting.push(std::mem::replace(&mut client, Http1::connect(gateway.address(80)).await));
        }
    }
    let slow = waiting.len();
    assert!(slow > 0, "it is no outcast");
    assert!(slow < COUNT / 8, "{slow} of {COUNT}, half of its share would be {}", COUNT / 8);
}

#[tokio::test]
async fn connections_are_shared_out_like_requests() {
    let upstreams = numbered_tcp(4).await;
    let ports = [9000, 9001];
    let mut mesh = Mesh::new().servers(&crate::tcp::servers(&ports), &ports);
    let mut routes = String::new();
    let fields = [["", "", "", ""], ["weight: 1", "weight: 3", "weight: 1", "weight: 3"]];
    for (port, fields) in ports.into_iter().zip(fields) {
        let host = format!("tcp-{port}.test");
        mesh = service(mesh, &host, "TCP", upstreams.iter().zip(fields))
            .resource("DestinationRule", &rule(&host, "loadBalancer: {simple: ROUND_ROBIN}"));
        routes += &crate::tcp::to(port, &host);
    }
    let routes = format!("hosts: ['*']\ngateways: [gateway]\ntcp:\n{routes}");
    let gateway = mesh.resource("VirtualService", &routes).start().await;
    for (port, expected) in [(9000, [10, 10, 10, 10]), (9001, [5, 15, 5, 15])] {
        let mut numbers = Vec::new();
        for _ in 0..40 {
            numbers.push(who_serves(&gateway, CLIENT, port).await);
        }
        assert_eq!(tally(&numbers, 4), expected, "{port}");
    }
}

/// Endpoints that have just come get a share that grows with their age.
#[tokio::test]
async fn endpoints_are_warmed_up() {
    const DURATION: Duration = Duration::from_secs(3);
    let upstreams = numbered(3).await;
    let configuration = |count: usize| {
        let mut mesh = Mesh::new();
        for (host, balancer) in [
            ("rr.test", "simple: ROUND_ROBIN, warmup: {duration: 3s}"),
            ("lr.test", "simple: LEAST_REQUEST, warmup: {duration: 3s}"),
            ("deprecated.test", "simple: ROUND_ROBIN, warmupDurationSecs: 3s"),
            ("cold.test", "simple: ROUND_ROBIN"),
        ] {
            mesh = routed(mesh, host, &upstreams[..count], &format!("loadBalancer: {{{balancer}}}"));
        }
        mesh
    };
    let mut table = Table::new("networking.md §5.3, warm-up");
    let gateway = configuration(2).start().await;
    // The others have to be older than that.
    tokio::time::sleep(DURATION).await;
    let before = Instant::now();
    gateway.write("config.yaml", &configuration(3).yaml()).await;
    let come = Instant::now();
    for host in ["rr.test", "lr.test", "deprecated.test"] {
        table.row(format!("{host}, young"));
        let young = tally(&who_answers(&gateway, host, 100).await, 3)[2];
        // At most as old as that; never less than a tenth.
        let warmth = (before.elapsed().as_secs_f64() / DURATION.as_secs_f64()).clamp(0.1, 1.0);
        let share = 100.0 * warmth / (2.0 + warmth);
        if young == 0 || young as f64 > share + 3.0 {
            table.fail(format!("{young} of 100 requests, {share:.1} are its share at most"));
        }
    }
    table.row("cold.test");
    table.check("of 99 requests", &[33; 3][..], &tally(&who_answers(&gateway, "cold.test", 99).await, 3)[..]);

    tokio::time::sleep(DURATION.saturating_sub(come.elapsed())).await;
    for host in ["rr.test", "deprecated.test"] {
        table.row(format!("{host}, warm"));
        table.check("of 99 requests", &[33; 3][..], &tally(&who_answers(&gateway, host, 99).await, 3)[..]);
    }
    table.row("lr.test, warm");
    let shares = tally(&who_answers(&gateway, "lr.test", 200).await, 3);
    // Six standard deviations around a third.
    if shares.iter().any(|share| !(26..=107).contains(share)) {
        table.fail(format!("{shares:?} of 200 requests"));
    }
    table.finish();
}
