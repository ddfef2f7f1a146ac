//! Rows of the form: these bytes go in, this comes out at the upstream, or this answer comes back.

use std::time::Duration;

use super::client::{End, Fields, Http1, Response};
use super::gateway::Gateway;
use super::table::Table;
use super::upstream::{Received, Upstream};

/// Stands in a list of expected header lines for those that every forwarded request of [`super::client::CLIENT`] gets.
pub const EDGE: &str = "<edge>";

/// One HTTP/1.1 request on a connection of its own, and what has to become of it.
pub struct Exchange {
    pub name: &'static str,
    pub request: Vec<u8>,
    pub outcome: Outcome,
}

pub enum Outcome {
    /// The upstream gets this request line, these header lines in this order, and this body.
    Forwarded { line: &'static str, headers: Vec<&'static str>, body: &'static str },
    /// The gateway answers by itself.
    Refused { status: u16, body: &'static str, flags: &'static str, details: &'static str, close: bool },
}

/// A request that is forwarded.
pub fn forwarded(
    name: &'static str,
    request: &[u8],
    line: &'static str,
    headers: &[&'static str],
    body: &'static str,
) -> Exchange {
    Exchange { name, request: request.to_vec(), outcome: Outcome::Forwarded { line, headers: headers.to_vec(), body } }
}

/// A request that is answered by the gateway, which then closes.
pub fn refused(
    name: &'static str,
    request: &[u8],
    status: u16,
    body: &'static str,
    flags: &'static str,
    details: &'static str,
) -> Exchange {
    Exchange {
        name,
        request: request.to_vec(),
        outcome: Outcome::Refused { status, body, flags, details, close: true },
    }
}

/// A request that is answered by the gateway, which keeps the connection.
pub fn answered(
    name: &'static str,
    request: &[u8],
    status: u16,
    body: &'static str,
    flags: &'static str,
    details: &'static str,
) -> Exchange {
    Exchange {
        name,
        request: request.to_vec(),
        outcome: Outcome::Refused { status, body, flags, details, close: false },
    }
}

/// Runs the rows one after the other. `upstream` is where forwarded requests arrive. The caller looks for the access log.
pub async fn run(table: &mut Table, gateway: &Gateway, port: u16, upstream: &Upstream, exchanges: &[Exchange]) {
    for Exchange { name, request, outcome } in exchanges {
        table.row(*name);
        upstream.take();
        let mut client = Http1::connect(gateway.address(port)).await;
        let response = client.exchange(request).await;
        table.check("failure", &None, &response.failure);
        match outcome {
            Outcome::Forwarded { line, headers, body } => {
                table.check("status", &200, &response.status);
                check_received(table, upstream.take(), line, headers, body);
            }
            Outcome::Refused { status, body, flags, details, close } => {
                check_local_reply(table, &response, *status, body, *close);
                table.check(
                    "requests at the upstream",
                    &0,
                    &upstream.take().iter().filter(|seen| seen.complete).count(),
                );
                table.expect_log(response.client, *status, flags, details);
                // Ours is closed first, so that the gateway's delayed close doesn't delay the test.
                if *close {
                    client.half_close().await;
                    table.check("connection", &End::Closed, &client.ended(Duration::from_secs(3)).await);
                } else {
                    table.check("connection", &End::Open, &client.ended(Duration::from_millis(20)).await);
                }
            }
        }
    }
}

/// Compares what arrived with one expected request.
pub fn check_received(table: &mut Table, received: Vec<Received>, line: &str, headers: &[&str], body: &str) {
    let [received] = &received[..] else {
        return table.fail(format!("{} requests at the upstream instead of one", received.len()));
    };
    table.check("request line", line, request_line(received).as_str());
    table.check("header lines", &expected(headers), &steady(&received.headers));
    table.check("body", body.as_bytes(), received.body.as_slice());
}

fn request_line(received: &Received) -> String {
    let protocol = if received.head.is_empty() { "HTTP/2" } else { "HTTP/1.1" };
    format!("{} {} {protocol}", received.method, received.target)
}

/// Expected header lines, written out.
pub fn expected(headers: &[&str]) -> Vec<String> {
    let edge = [
        "x-forwarded-for: 127.0.0.2",
        "x-forwarded-proto: http",
        "x-envoy-external-address: 127.0.0.2",
        "x-request-id: *",
        "x-envoy-attempt-count: 1",
    ];
    let lines = headers.iter().flat_map(|line| if *line == EDGE { edge.to_vec() } else { vec![*line] });
    lines.map(str::to_owned).collect()
}

/// Header lines with what differs from run to run replaced by `*`.
pub fn steady(headers: &Fields) -> Vec<String> {
    let steady = |(name, value): &(String, String)| match name.as_str() {
        "date" => "date: *".to_owned(),
        "x-request-id" if is_uuid4(value) => "x-request-id: *".to_owned(),
        "x-envoy-upstream-service-time" if value.parse::<u32>().is_ok() => format!("{name}: *"),
        _ => format!("{name}: {value}"),
    };
    headers.iter().map(steady).collect()
}

/// Compares an answer with the form that the gateway's own HTTP/1.1 answers have.
pub fn check_local_reply(table: &mut Table, response: &Response, status: u16, body: &str, close: bool) {
    let length = format!("content-length: {}", body.len());
    let mut headers = Vec::new();
    if !body.is_empty() {
        headers.extend([&*length, "content-type: text/plain"]);
    }
    headers.extend(["date: *", "server: istio-envoy"]);
    if close {
        headers.push("connection: close");
    }
    if body.is_empty() {
        headers.push("content-length: 0");
    }
    table.check("status", &status, &response.status);
    table.check("header lines", &expected(&headers), &steady(&response.headers));
    table.check("body", body, response.text().as_str());
}

fn is_uuid4(text: &str) -> bool {
    let groups: Vec<_> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        && groups[2].starts_with('4')
}
