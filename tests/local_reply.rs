//! What the client sees when something fails: networking.md §9.
//!
//! Every situation is met by an HTTP/1.1 client, an HTTP/2 client and a gRPC client, since each is answered in its way.

use std::time::Duration;

use http::Request;

use crate::harness::client::{Fields, Http1, Http2, Response};
use crate::harness::eventually;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::raw_h2::GOAWAY;
use crate::harness::table::Table;
use crate::harness::upstream::{H2Step, Received, Step, Upstream, answer};

const UCE: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";
const URE: &str = "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: ";

/// One line of the reference.
struct Situation {
    host: &'static str,
    status: u16,
    body: String,
    flags: &'static str,
    /// What the access log says; `x` in braces stands for `upstream_reset_before_response_started{x}`.
    details: &'static str,
    /// `grpc-status` of the answer to a gRPC client; `None`: the upstream's own answer passes.
    grpc: Option<u16>,
    /// Header lines before all others.
    first: &'static [(&'static str, &'static str)],
    /// Requests that the upstream of this situation gets, if it is one that counts.
    tries: Option<usize>,
}

impl Situation {
    fn new(
        host: &'static str,
        status: u16,
        body: impl Into<String>,
        flags: &'static str,
        details: &'static str,
    ) -> Self {
        let grpc = match status {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502 | 503 | 504 => 14,
            _ => 2,
        };
        Self { host, status, body: body.into(), flags, details, grpc: Some(grpc), first: &[], tries: None }
    }

    fn tries(mut self, tries: usize) -> Self {
        self.tries = Some(tries);
        self
    }

    fn first(mut self, first: &'static [(&'static str, &'static str)]) -> Self {
        self.first = first;
        self
    }

    fn details(&self) -> String {
        match self.details.strip_prefix('{') {
            Some(reason) => format!("upstream_reset_before_response_started{{{reason}"),
            None => self.details.to_owned(),
        }
    }

    /// The head of a local reply over HTTP/1.1, in wire order.
    fn h1_headers(&self) -> Fields {
        let length = self.body.len().to_string();
        let mut lines = self.first.to_vec();
        if self.body.is_empty() {
            lines.extend([("date", "*"), ("server", "istio-envoy"), ("content-length", "0")]);
        } else {
            lines.extend([
                ("content-length", &*length),
                ("content-type", "text/plain"),
                ("date", "*"),
                ("server", "istio-envoy"),
            ]);
        }
        owned(&lines)
    }

    /// The same over HTTP/2, where an empty answer needs no length.
    fn h2_headers(&self) -> Fields {
        let mut lines = self.h1_headers();
        if self.body.is_empty() {
            lines.retain(|(name, _)| name != "content-length");
        }
        lines
    }

    fn grpc_headers(&self, grpc: u16) -> Fields {
        let grpc = grpc.to_string();
        let mut lines = self.first.to_vec();
        lines.extend([("content-type", "application/grpc"), ("grpc-status", &*grpc)]);
        if !self.body.is_empty() {
            lines.push(("grpc-message", &self.body));
        }
        lines.extend([("date", "*"), ("server", "istio-envoy")]);
        owned(&lines)
    }
}

fn owned(lines: &[(&str, &str)]) -> Fields {
    lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Header lines with what differs from run to run replaced.
fn steady(headers: &Fields) -> Fields {
    let steady = |(name, value): &(String, String)| {
        let value = match name.as_str() {
            "date" => "*",
            "x-envoy-upstream-service-time" if value.parse::<u32>().is_ok() => "*",
            _ => value,
        };
        (name.clone(), value.to_owned())
    };
    headers.iter().map(steady).collect()
}

fn post_grpc(host: &str, agent: &str) -> Request<()> {
    let request = Request::post(format!("http://{host}/x")).header("content-type", "application/grpc");
    request.header("te", "trailers").header("user-agent", agent).body(()).unwrap()
}

async fn h1(gateway: &Gateway, host: &str, agent: &str) -> Response {
    let request = format!("GET /x HTTP/1.1\r\nhost: {host}\r\nuser-agent: {agent}\r\n\r\n");
    Http1::connect(gateway.address(80)).await.exchange(request).await
}

async fn h2(gateway: &Gateway, host: &str, agent: &str) -> Response {
    let request = Request::get(format!("http://{host}/x")).header("user-agent", agent).body(()).unwrap();
    Http2::connect(gateway.address(80)).await.exchange(request, &[]).await
}

async fn grpc(gateway: &Gateway, host: &str, agent: &str) -> Response {
    Http2::connect(gateway.address(80)).await.exchange(post_grpc(host, agent), b"\0\0\0\0\x01x").await
}

/// Runs every situation with the three kinds of clients. `counting` are the upstreams that count tries, by host.
async fn run(title: &'static str, gateway: &Gateway, situations: &[Situation], counting: &[(&str, &Upstream)]) {
    let mut table = Table::new(title);
    for situation in situations {
        let host = situation.host;
        let upstream = counting.iter().find(|(name, _)| *name == host).map(|(_, upstream)| *upstream);
        for kind in ["h1", "h2", "grpc"] {
            let agent = format!("{host} {kind}");
            table.row(&agent);
            let (response, headers, status) = match (kind, situation.grpc) {
                ("h1", _) => (h1(gateway, host, &agent).await, situation.h1_headers(), situation.status),
                ("h2", _) => (h2(gateway, host, &agent).await, situation.h2_headers(), situation.status),
                (_, Some(code)) => (grpc(gateway, host, &agent).await, situation.grpc_headers(code), 200),
                (_, None) => (grpc(gateway, host, &agent).await, situation.h2_headers(), situation.status),
            };
            table.check("failure", &None, &response.failure);
            table.check("status", &status, &response.status);
            table.check("headers", &headers, &steady(&response.headers));
            let body = if kind == "grpc" && situation.grpc.is_some() { "" } else { &situation.body };
            table.check("body", body, response.text().as_str());
            table.expect_log(response.client, status, situation.flags, &situation.details());
            if let (Some(tries), Some(upstream)) = (situation.tries, upstream) {
                table.check("tries", &tries, &upstream.take().len());
            }
        }
    }
    table.check_logs(gateway).await;
    table.finish();
}

/// A route to `service` with these other fields.
fn to(service: &str, fields: &str) -> String {
    format!("[{{route: [{{destination: {{host: {service}}}}}]{}{fields}}}]", if fields.is_empty() { "" } else { ", " })
}

const NO_RETRY: &str = "retries: {attempts: 0}";

#[tokio::test]
async fn replies_without_an_upstream() {
    let mesh = Mesh::new()
        .servers(
            "- port: {number: 80, name: http, protocol: HTTP}\n  hosts: ['*']\n\
             - port: {number: 80, name: tls, protocol: HTTP}\n  hosts: [tls.com]\n  tls: {httpsRedirect: true}\n",
            &[80],
        )
        .routes("noroute.com", "[{match: [{uri: {exact: /only}}], directResponse: {status: 200}}]")
        .routes("nc.com", &to("missing.test", ""))
        .resource(
            "ServiceEntry",
            "hosts: [empty.test]\nlocation: MESH_EXTERNAL\nresolution: STATIC\n\
             ports: [{number: 80, name: main, protocol: HTTP}]\nworkloadSelector: {labels: {app: nobody}}\n",
        )
        .routes("uh.com", &to("empty.test", ""))
        .routes("subset.com", "[{route: [{destination: {host: empty.test, subset: unknown}}]}]")
        .routes("port.com", "[{route: [{destination: {host: empty.test, port: {number: 81}}}]}]")
        .routes("fault.com", &to("empty.test", "fault: {abort: {httpStatus: 418, percentage: {value: 100}}}"))
        .routes("dr.com", "[{directResponse: {status: 451, body: {string: gone fishing}}}]")
        .routes("redir.com", "[{redirect: {uri: /v2}}]");
    let gateway = mesh.start().await;
    let situations = [
        Situation::new("unknown.com", 404, "", "NR", "route_not_found"),
        Situation::new("noroute.com", 404, "", "NR", "route_not_found"),
        Situation::new("nc.com", 503, "", "NC", "cluster_not_found"),
        Situation::new("subset.com", 503, "", "NC", "cluster_not_found"),
        Situation::new("port.com", 503, "", "NC", "cluster_not_found"),
        Situation::new("uh.com", 503, "no healthy upstream", "UH", "no_healthy_upstream"),
        Situation::new("fault.com", 418, "fault filter abort", "FI", "fault_filter_abort"),
        Situation::new("dr.com", 451, "gone fishing", "-", "direct_response"),
        Situation::new("redir.com", 301, "", "-", "direct_response").first(&[("location", "http://redir.com/v2")]),
        Situation::new("tls.com", 301, "", "-", "direct_response").first(&[("location", "https://tls.com/x")]),
    ];
    run("networking.md §9, replies without an upstream", &gateway, &situations, &[]).await;
}

#[tokio::test]
async fn replies_when_the_upstream_fails() {
    let read = |end: Step| move |_: &Received| vec![Step::ReadBody, end.clone()];
    let reset = |reason: h2::Reason| move |_: &Received| vec![H2Step::ReadBody, H2Step::Reset(reason)];
    let refuses = Upstream::refuses().await;
    let closes = Upstream::h1(read(Step::Close)).await;
    let resets = Upstream::h1(read(Step::Reset)).await;
    let hangs = Upstream::hangs().await;
    let garbage = Upstream::answers("nonsense\r\nmore nonsense\r\n\r\n").await;
    let internal = Upstream::h2(reset(h2::Reason::INTERNAL_ERROR)).await;
    let cancel = Upstream::h2(reset(h2::Reason::CANCEL)).await;
    let no_error = Upstream::h2(reset(h2::Reason::NO_ERROR)).await;
    let refused_stream = Upstream::h2(reset(h2::Reason::REFUSED_STREAM)).await;
    let h2_close = Upstream::h2(|_| vec![H2Step::ReadBody, H2Step::Close]).await;
    let goaway = Upstream::raw(go_away_at_once).await;
    let h2_garbage =
        Upstream::raw(|stream, _| speak(stream, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")).await;

    let retry = |on: &str, attempts: u32| format!("retries: {{attempts: {attempts}, retryOn: {on:?}}}");
    let per_try =
        |on: &str, attempts: u32| format!("retries: {{attempts: {attempts}, perTryTimeout: 200ms, retryOn: {on}}}");
    let mesh = Mesh::new()
        .http("refuses.test", &[refuses.address()])
        .routes("refused.com", &to("refuses.test", ""))
        .routes("refused-noretry.com", &to("refuses.test", NO_RETRY))
        .http("closes.test", &[closes.address()])
        .routes("close.com", &to("closes.test", NO_RETRY))
        .routes("close-default.com", &to("closes.test", ""))
        .routes("close-5xx.com", &to("closes.test", &retry("5xx", 2)))
        .http("resets.test", &[resets.address()])
        .routes("rst.com", &to("resets.test", NO_RETRY))
        .routes("rst-retry.com", &to("resets.test", &retry("reset", 2)))
        .http("hangs.test", &[hangs.address()])
        .routes("timeout.com", &to("hangs.test", "timeout: 300ms"))
        .routes("pertry.com", &to("hangs.test", &per_try("connect-failure", 2)))
        .routes("pertry-5xx.com", &to("hangs.test", &per_try("5xx", 2)))
        .routes("pertry-gw.com", &to("hangs.test", &per_try("gateway-error", 1)))
        .routes("pertry-reset.com", &to("hangs.test", &per_try("reset", 1)))
        .http("garbage.test", &[garbage.address()])
        .routes("garbage.com", &to("garbage.test", NO_RETRY))
        .http2("internal.test", &[internal.address()])
        .routes("h2-internal.com", &to("internal.test", NO_RETRY))
        .http2("cancel.test", &[cancel.address()])
        .routes("h2-cancel.com", &to("cancel.test", NO_RETRY))
        .http2("no-error.test", &[no_error.address()])
        .routes("h2-no-error.com", &to("no-error.test", NO_RETRY))
        .http2("refused-stream.test", &[refused_stream.address()])
        .routes("h2-refused.com", &to("refused-stream.test", NO_RETRY))
        .routes("h2-refused-retry.com", &to("refused-stream.test", ""))
        .http2("h2-close.test", &[h2_close.address()])
        .routes("h2-close.com", &to("h2-close.test", NO_RETRY))
        .http2("goaway.test", &[goaway.address()])
        .routes("h2-goaway.com", &to("goaway.test", NO_RETRY))
        .http2("h2-garbage.test", &[h2_garbage.address()])
        .routes("h2-garbage.com", &to("h2-garbage.test", NO_RETRY));
    let gateway = mesh.start().await;

    const REFUSED: &str = "{remote_connection_failure|delayed_connect_error:_Connection_refused}";
    const TERMINATED: &str = "{connection_termination}";
    let situations = [
        Situation::new("refused.com", 503, format!("{URE}remote connection failure"), "URX,UF", REFUSED),
        Situation::new("refused-noretry.com", 503, format!("{UCE}remote connection failure"), "UF", REFUSED),
        Situation::new("close.com", 503, format!("{UCE}connection termination"), "UC", TERMINATED).tries(1),
        Situation::new("close-default.com", 503, format!("{UCE}connection termination"), "UC", TERMINATED).tries(1),
        Situation::new("close-5xx.com", 503, format!("{URE}connection termination"), "URX,UC", TERMINATED).tries(3),
        Situation::new("rst.com", 503, format!("{UCE}connection termination"), "UC", TERMINATED).tries(1),
        Situation::new("rst-retry.com", 503, format!("{URE}connection termination"), "URX,UC", TERMINATED).tries(3),
        Situation::new("timeout.com", 504, "upstream request timeout", "UT", "response_timeout").tries(1),
        Situation::new("pertry.com", 504, "upstream request timeout", "UT", "upstream_per_try_timeout").tries(1),
        Situation::new("pertry-5xx.com", 504, "upstream request timeout", "URX,UT", "upstream_per_try_timeout")
            .tries(3),
        Situation::new("pertry-gw.com", 504, "upstream request timeout", "URX,UT", "upstream_per_try_timeout").tries(2),
        Situation::new("pertry-reset.com", 504, "upstream request timeout", "URX,UT", "upstream_per_try_timeout")
            .tries(2),
        Situation::new("garbage.com", 502, format!("{UCE}protocol error"), "UPE", "{protocol_error}"),
        Situation::new("h2-internal.com", 503, format!("{UCE}remote reset"), "UR", "{remote_reset}").tries(1),
        Situation::new("h2-cancel.com", 503, format!("{UCE}remote reset"), "UR", "{remote_reset}").tries(1),
        Situation::new("h2-no-error.com", 503, format!("{UCE}remote reset"), "UR", "{remote_reset}").tries(1),
        Situation::new(
            "h2-refused.com",
            503,
            format!("{UCE}remote refused stream reset"),
            "UR",
            "{remote_refused_stream_reset}",
        )
        .tries(1),
        Situation::new(
            "h2-refused-retry.com",
            503,
            format!("{URE}remote refused stream reset"),
            "URX,UR",
            "{remote_refused_stream_reset}",
        )
        .tries(3),
        Situation::new(
            "h2-goaway.com",
            503,
            format!("{UCE}remote refused stream reset"),
            "UR",
            "{remote_refused_stream_reset}",
        ),
        Situation::new("h2-close.com", 503, format!("{UCE}connection termination"), "UC", TERMINATED).tries(1),
        Situation::new("h2-garbage.com", 502, format!("{UCE}protocol error"), "UPE", "{protocol_error}"),
    ];
    let counting = [
        ("close.com", &closes),
        ("close-default.com", &closes),
        ("close-5xx.com", &closes),
        ("rst.com", &resets),
        ("rst-retry.com", &resets),
        ("timeout.com", &hangs),
        ("pertry.com", &hangs),
        ("pertry-5xx.com", &hangs),
        ("pertry-gw.com", &hangs),
        ("pertry-reset.com", &hangs),
        ("h2-internal.com", &internal),
        ("h2-cancel.com", &cancel),
        ("h2-no-error.com", &no_error),
        ("h2-refused.com", &refused_stream),
        ("h2-refused-retry.com", &refused_stream),
        ("h2-close.com", &h2_close),
    ];
    run("networking.md §9, failing upstreams", &gateway, &situations, &counting).await;
}

/// Sends `bytes` and waits for the gateway to close.
async fn speak(mut stream: tokio::net::TcpStream, bytes: &'static [u8]) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let _ = stream.write_all(bytes).await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

/// An HTTP/2 peer that answers the first stream with GOAWAY(NO_ERROR), last stream 0.
async fn go_away_at_once(mut stream: tokio::net::TcpStream, _: usize) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let _ = stream.write_all(&settings).await;
    let mut received = vec![0; 24];
    let _ = stream.read_exact(&mut received).await;
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        let _ = stream.read_exact(&mut payload).await;
        if head[3] == crate::harness::raw_h2::HEADERS {
            let mut frame = vec![0, 0, 8, GOAWAY, 0, 0, 0, 0, 0];
            frame.extend([0; 8]);
            let _ = stream.write_all(&frame).await;
        }
    }
}

#[tokio::test]
async fn upstream_answers_pass_with_their_status() {
    let unavailable =
        Upstream::answers("HTTP/1.1 503 No\r\nx-up: 1\r\ncontent-length: 16\r\n\r\nupstream says no").await;
    let bad = Upstream::answers("HTTP/1.1 502 Bad\r\ncontent-length: 3\r\n\r\nbad").await;
    let until_close = Upstream::h1(|_| {
        let mut steps = answer("HTTP/1.1 200 OK\r\n\r\nno length until close");
        steps.push(Step::Close);
        steps
    })
    .await;
    let mesh = Mesh::new()
        .http("unavailable.test", &[unavailable.address()])
        .routes("retry503.com", &to("unavailable.test", "retries: {attempts: 2, retryOn: '503'}"))
        .http("bad.test", &[bad.address()])
        .routes("ok.com", &to("bad.test", ""))
        .http("until-close.test", &[until_close.address()])
        .routes("until-close.com", &to("until-close.test", ""));
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §9, answers of the upstream");
    for (host, status, body, flags, tries, upstream) in [
        ("retry503.com", 503, "upstream says no", "URX", 3, &unavailable),
        ("ok.com", 502, "bad", "-", 1, &bad),
        ("until-close.com", 200, "no length until close", "-", 1, &until_close),
    ] {
        for kind in ["h1", "h2", "grpc"] {
            let agent = format!("{host} {kind}");
            table.row(&agent);
            let response = match kind {
                "h1" => h1(&gateway, host, &agent).await,
                "h2" => h2(&gateway, host, &agent).await,
                _ => grpc(&gateway, host, &agent).await,
            };
            table.check("status", &status, &response.status);
            table.check("body", body, response.text().as_str());
            table.check("tries", &tries, &upstream.take().len());
            table.expect_log(response.client, status, flags, "via_upstream");
            let length = body.len().to_string();
            let mut expected = match host {
                "retry503.com" => vec![("x-up", "1"), ("content-length", &*length)],
                "ok.com" => vec![("content-length", &*length)],
                _ => Vec::new(),
            };
            expected.extend([("x-envoy-upstream-service-time", "*"), ("date", "*"), ("server", "istio-envoy")]);
            if host == "until-close.com" && kind == "h1" {
                expected.push(("transfer-encoding", "chunked"));
            }
            table.check("headers", &owned(&expected), &steady(&response.headers));
        }
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn connect_timeouts() {
    let full = Upstream::never_connects().await;
    let mesh = Mesh::new()
        .mesh_config("connectTimeout: 400ms")
        .http("full.test", &[full.address()])
        .routes("ctimeout.com", &to("full.test", NO_RETRY))
        .routes("ctimeout-retry.com", &to("full.test", ""));
    let gateway = mesh.start().await;
    let situations = [
        Situation::new("ctimeout.com", 503, format!("{UCE}connection timeout"), "UF", "{connection_timeout}"),
        Situation::new("ctimeout-retry.com", 503, format!("{URE}connection timeout"), "URX,UF", "{connection_timeout}"),
    ];
    run("networking.md §9, connect timeout", &gateway, &situations, &[]).await;
}

#[tokio::test]
async fn response_cut_after_its_head() {
    const LENGTH: &str = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let cut = |bytes: &'static str, end: Step| {
        move |_: &Received| {
            let pause = Step::Pause(Duration::from_millis(50));
            vec![Step::ReadBody, Step::Send(bytes.into()), pause, end.clone()]
        }
    };
    let length_close = Upstream::h1(cut(LENGTH, Step::Close)).await;
    let length_reset = Upstream::h1(cut(LENGTH, Step::Reset)).await;
    let chunked_close = Upstream::h1(cut(CHUNKED, Step::Close)).await;
    let chunked_reset = Upstream::h1(cut(CHUNKED, Step::Reset)).await;
    let stalls = Upstream::h1(cut(LENGTH, Step::Hang)).await;
    let mut mesh = Mesh::new();
    let rows = [
        ("length-close.com", &length_close, "UPE", "upstream_reset_after_response_started{protocol_error}"),
        ("length-reset.com", &length_reset, "UPE", "upstream_reset_after_response_started{protocol_error}"),
        ("chunked-close.com", &chunked_close, "UPE", "upstream_reset_after_response_started{protocol_error}"),
        ("chunked-reset.com", &chunked_reset, "UPE", "upstream_reset_after_response_started{protocol_error}"),
        ("timeout.com", &stalls, "UT", "response_timeout"),
    ];
    for (host, upstream, _, _) in &rows {
        let service = format!("{host}.test");
        let fields = "retries: {attempts: 2, retryOn: 5xx}".to_owned();
        let fields = if *host == "timeout.com" { format!("{fields}, timeout: 300ms") } else { fields };
        mesh = mesh.http(&service, &[upstream.address()]).routes(host, &to(&service, &fields));
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §9, cut after the head");
    for (host, upstream, flags, details) in rows {
        for kind in ["h1", "h2"] {
            let agent = format!("{host} {kind}");
            table.row(&agent);
            let (response, failure) = match kind {
                "h1" => (h1(&gateway, host, &agent).await, crate::harness::client::Failure::Closed),
                _ => {
                    let internal_error = u32::from(h2::Reason::INTERNAL_ERROR);
                    (h2(&gateway, host, &agent).await, crate::harness::client::Failure::StreamReset(internal_error))
                }
            };
            table.check("status", &200, &response.status);
            table.check("body", "half", response.text().as_str());
            table.check("end", &Some(failure), &response.failure);
            table.check("tries", &1, &upstream.take().len());
            table.expect_log(response.client, 200, flags, details);
        }
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn overflow_is_refused_at_once() {
    let slow = Upstream::h1(|_| {
        let mut steps = vec![Step::ReadBody, Step::Pause(Duration::from_millis(600))];
        steps.extend(crate::harness::upstream::ok());
        steps
    })
    .await;
    let rule = |host: &str, pool: &str| format!("host: {host}\ntrafficPolicy:\n  connectionPool: {{{pool}}}\n");
    let mesh = Mesh::new()
        .http("pending.test", &[slow.address()])
        .resource(
            "DestinationRule",
            &rule("pending.test", "tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}"),
        )
        .routes("pending.com", &to("pending.test", "retries: {attempts: 2, retryOn: 5xx}"))
        .http("requests.test", &[slow.address()])
        .resource("DestinationRule", &rule("requests.test", "http: {http2MaxRequests: 1}"))
        .routes("requests.com", &to("requests.test", "retries: {attempts: 2, retryOn: 5xx}"));
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §9, overflow");
    for (host, parallel, served) in [("pending.com", 4, 2), ("requests.com", 3, 1)] {
        table.row(host);
        let request = |number: usize| {
            let gateway = &gateway;
            async move { h1(gateway, host, &format!("{host} {number}")).await }
        };
        // The others come when the first one's connection stands: one that is being opened counts as pending.
        let others = async {
            slow.received().await;
            futures::future::join_all((1..parallel).map(request)).await
        };
        let (first, mut responses) = futures::future::join(request(0), others).await;
        responses.insert(0, first);
        slow.take();
        table.check("served", &served, &responses.iter().filter(|response| response.status == 200).count());
        let refused = Situation::new(host, 503, format!("{UCE}overflow"), "UO", "{overflow}")
            .first(&[("x-envoy-overloaded", "true")]);
        for response in responses.iter().filter(|response| response.status != 200) {
            table.check("status", &503, &response.status);
            table.check("headers", &refused.h1_headers(), &steady(&response.headers));
            table.check("body", refused.body.as_str(), response.text().as_str());
            table.expect_log(response.client, 503, "UO", &refused.details());
        }
    }
    for kind in ["h2", "grpc"] {
        table.row(format!("requests.com {kind}"));
        let agent = format!("requests.com {kind}");
        let active = h1(&gateway, "requests.com", "requests.com active");
        let refused = async {
            slow.received().await;
            match kind {
                "h2" => h2(&gateway, "requests.com", &agent).await,
                _ => grpc(&gateway, "requests.com", &agent).await,
            }
        };
        let (_, response) = futures::future::join(active, refused).await;
        slow.take();
        let expected = Situation::new("", 503, format!("{UCE}overflow"), "UO", "{overflow}")
            .first(&[("x-envoy-overloaded", "true")]);
        let (headers, status) = match kind {
            "h2" => (expected.h2_headers(), 503),
            _ => (expected.grpc_headers(14), 200),
        };
        table.check("status", &status, &response.status);
        table.check("headers", &headers, &steady(&response.headers));
        table.expect_log(response.client, status, "UO", &expected.details());
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn clients_that_go_away() {
    let hangs = Upstream::hangs().await;
    let gateway = Mesh::new().http("hangs.test", &[hangs.address()]).route("a.com", "hangs.test").start().await;
    let mut table = Table::new("networking.md §9, the client went away");
    let request = |agent: &str| format!("GET / HTTP/1.1\r\nhost: a.com\r\nuser-agent: {agent}\r\n\r\n");
    for (agent, flags, details) in [
        ("closes", "DC", "downstream_remote_disconnect"),
        ("resets", "DC", "downstream_remote_disconnect"),
        ("half-closes", "DC", "downstream_remote_disconnect"),
        ("cancels a stream", "DR", "http2.remote_reset"),
    ] {
        table.row(agent);
        if agent == "cancels a stream" {
            let mut client = Http2::connect(gateway.address(80)).await;
            let request = Request::get("http://a.com/").header("user-agent", agent).body(()).unwrap();
            let (pending, mut sender) = client.open(request, true).await.unwrap();
            if hangs.received().await.is_none() {
                table.fail("the upstream didn't get the request");
            }
            sender.send_reset(h2::Reason::CANCEL);
            table.expect_log(Some(client.address()), 0, flags, details);
            // The gateway lets go of the upstream once it knows; the client must stay until then.
            eventually("the upstream is let go", || async { (hangs.open() == 0).then_some(()) }).await;
            drop(pending);
            continue;
        }
        let mut client = Http1::connect(gateway.address(80)).await;
        client.send(request(agent)).await;
        if hangs.received().await.is_none() {
            table.fail("the upstream didn't get the request");
        }
        table.expect_log(Some(client.address()), 0, flags, details);
        match agent {
            "closes" => drop(client),
            "resets" => client.reset(),
            _ => {
                client.half_close().await;
                let end = client.ended(Duration::from_secs(5)).await;
                table.check("connection", &crate::harness::client::End::Closed, &end);
            }
        }
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn grpc_status_follows_the_http_status() {
    // Status of a local reply, grpc-status.
    let codes = [
        (200, 2),
        (302, 2),
        (400, 13),
        (401, 16),
        (403, 7),
        (404, 12),
        (408, 2),
        (409, 2),
        (413, 2),
        (422, 2),
        (426, 2),
        (429, 14),
        (431, 2),
        (500, 2),
        (501, 2),
        (502, 14),
        (503, 14),
        (504, 14),
        (599, 2),
    ];
    let mut mesh = Mesh::new();
    for (code, _) in codes {
        let direct = format!("[{{directResponse: {{status: {code}, body: {{string: \"a, b%c\\u00e9\\n\"}}}}}}]");
        mesh = mesh.routes(&format!("g{code}.com"), &direct);
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §9, gRPC status");
    for (code, expected) in codes {
        table.row(format!("status {code}"));
        let host = format!("g{code}.com");
        let response = grpc(&gateway, &host, "").await;
        table.check("status", &200, &response.status);
        let mut headers = Vec::new();
        let location = format!("http://{host}/x");
        if code == 302 {
            headers.push(("location", &*location));
        }
        let grpc_status = expected.to_string();
        headers.extend([("content-type", "application/grpc"), ("grpc-status", &*grpc_status)]);
        headers.extend([("grpc-message", "a, b%25c%C3%A9%0A"), ("date", "*"), ("server", "istio-envoy")]);
        table.check("headers", &owned(&headers), &steady(&response.headers));
    }
    // What counts as a gRPC request.
    for (kind, is_grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc-web", false),
        ("application/grpc; x", false),
        ("application/grpcx", false),
        ("Application/grpc", false),
    ] {
        table.row(format!("content-type {kind}"));
        let request = Request::post("http://g503.com/x").header("content-type", kind).body(()).unwrap();
        let response = Http2::connect(gateway.address(80)).await.exchange(request, &[]).await;
        table.check("status", &(if is_grpc { 200 } else { 503 }), &response.status);
        table.check("grpc-status", if is_grpc { "14" } else { "" }, response.header("grpc-status"));
        let body = if is_grpc { "" } else { "a, b%c\u{e9}\n" };
        table.check("body", body, response.text().as_str());
    }
    table.row("over HTTP/1.1");
    let request = "POST /x HTTP/1.1\r\nhost: g503.com\r\ncontent-type: application/grpc\r\ncontent-length: 6\r\n\r\n";
    let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
    let headers = [
        ("content-type", "application/grpc"),
        ("grpc-status", "14"),
        ("grpc-message", "a, b%25c%C3%A9%0A"),
        ("date", "*"),
        ("server", "istio-envoy"),
        ("connection", "close"),
        ("content-length", "0"),
    ];
    table.check("headers", &owned(&headers), &steady(&response.headers));
    table.check_logs(&gateway).await;
    table.finish();
}
