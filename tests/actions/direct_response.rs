//! networking.md §3.8.

use crate::harness::client::{End, Http1};
use crate::harness::exchange::{expected, steady};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use std::time::Duration;

/// Name; fields of the route; request line and body length; status; body; header lines (`HOST` = the row's host).
type Row = (&'static str, &'static str, &'static str, u16, &'static str, &'static [&'static str]);

///
/// One thing differs from Envoy: it leaves `content-length` and `content-type` of a dropped body in a 204 and 304, which
/// RFC 9110 §8.6 forbids for the former.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("body", "directResponse: {status: 200, body: {string: hello}}", "GET /", 200, "hello", &["content-length: 5", "content-type: text/plain", "date: *", "server: istio-envoy"]),
    ("204 without body", "directResponse: {status: 204}", "GET /", 204, "", &["date: *", "server: istio-envoy"]),
    ("200 without body", "directResponse: {status: 200}", "GET /", 200, "", &["date: *", "server: istio-envoy", "content-length: 0"]),
    ("bytes", "directResponse: {status: 503, body: {bytes: AP96}}", "GET /", 503, "\0\u{ff}z", &["content-length: 3", "content-type: text/plain", "date: *", "server: istio-envoy"]),
    ("HEAD", "directResponse: {status: 200, body: {string: hello}}", "HEAD /", 200, "", &["content-length: 5", "content-type: text/plain", "date: *", "server: istio-envoy"]),
    ("content-type set", "directResponse: {status: 200, body: {string: '{}'}}, headers: {response: {set: {content-type: application/json}}}", "GET /", 200, "{}", &["content-type: application/json", "content-length: 2", "date: *", "server: istio-envoy"]),
    ("content-type added", "directResponse: {status: 200, body: {string: '{}'}}, headers: {response: {add: {content-type: application/json}}}", "GET /", 200, "{}", &["content-type: application/json", "content-length: 2", "date: *", "server: istio-envoy"]),
    ("content-type removed", "directResponse: {status: 200, body: {string: '{}'}}, headers: {response: {remove: [content-type]}}", "GET /", 200, "{}", &["content-length: 2", "content-type: text/plain", "date: *", "server: istio-envoy"]),
    ("no templates", "directResponse: {status: 200, body: {string: '%REQ(:PATH)% 100%'}}", "GET /", 200, "%REQ(:PATH)% 100%", &["content-length: 17", "content-type: text/plain", "date: *", "server: istio-envoy"]),
    ("599", "directResponse: {status: 599, body: {string: x}}", "GET /", 599, "x", &["content-length: 1", "content-type: text/plain", "date: *", "server: istio-envoy"]),
    ("304 with body", "directResponse: {status: 304, body: {string: x}}", "GET /x", 304, "", &["location: http://HOST/x", "date: *", "server: istio-envoy"]),
    ("204 with body", "directResponse: {status: 204, body: {string: x}}", "GET /", 204, "", &["date: *", "server: istio-envoy"]),
    ("request body unread", "directResponse: {status: 200, body: {string: x}}", "POST / 5", 200, "x", &["content-length: 1", "content-type: text/plain", "date: *", "server: istio-envoy", "connection: close"]),
    ("302 with location", "directResponse: {status: 302}, headers: {response: {set: {location: /y}}}", "GET /p", 302, "", &["location: /y", "date: *", "server: istio-envoy", "content-length: 0"]),
    ("empty body", "directResponse: {status: 200, body: {string: ''}}", "GET /", 200, "", &["date: *", "server: istio-envoy", "content-length: 0"]),
    ("201", "directResponse: {status: 201}", "GET /p?q", 201, "", &["location: http://HOST/p?q", "date: *", "server: istio-envoy", "content-length: 0"]),
    ("300", "directResponse: {status: 300}", "GET /p?q", 300, "", &["location: http://HOST/p?q", "date: *", "server: istio-envoy", "content-length: 0"]),
    ("301", "directResponse: {status: 301}", "GET /p?q", 301, "", &["location: http://HOST/p?q", "date: *", "server: istio-envoy", "content-length: 0"]),
    ("302", "directResponse: {status: 302}", "GET /p?q", 302, "", &["location: http://HOST/p?q", "date: *", "server: istio-envoy", "content-length: 0"]),
    ("303", "directResponse: {status: 303}", "GET /p?q", 303, "", &["location: http://HOST/p?q", "date: *", "server: istio-envoy", "content-length: 0"]),
    ("304", "directResponse: {status: 304}", "GET /p?q", 304, "", &["location: http://HOST/p?q", "date: *", "server: istio-envoy"]),
    ("307", "directResponse: {status: 307}", "GET /p?q", 307, "", &["location: http://HOST/p?q", "date: *", "server: istio-envoy", "content-length: 0"]),
    ("308", "directResponse: {status: 308}", "GET /p?q", 308, "", &["location: http://HOST/p?q", "date: *", "server: istio-envoy", "content-length: 0"]),
    ("400", "directResponse: {status: 400}", "GET /p?q", 400, "", &["date: *", "server: istio-envoy", "connection: close", "content-length: 0"]),
    ("404", "directResponse: {status: 404}", "GET /p?q", 404, "", &["date: *", "server: istio-envoy", "content-length: 0"]),
    ("500", "directResponse: {status: 500}", "GET /p?q", 500, "", &["date: *", "server: istio-envoy", "content-length: 0"]),
];

#[tokio::test]
async fn direct_responses() {
    let mut mesh = Mesh::new();
    for (number, (_, fields, ..)) in ROWS.iter().enumerate() {
        mesh = mesh.routes(&format!("r{number}.com"), &format!("[{{{fields}}}]"));
    }
    let largest = "x".repeat(1 << 20);
    let gateway = mesh
        .routes("largest.com", &format!("[{{directResponse: {{status: 200, body: {{string: {largest}}}}}}}]"))
        .start()
        .await;
    let mut table = Table::new("networking.md §3.8, directResponse");
    for (number, (name, _, request, status, body, headers)) in ROWS.iter().enumerate() {
        table.row(*name);
        let host = format!("r{number}.com");
        let mut words = request.split(' ');
        let (method, target, length) = (words.next().unwrap(), words.next().unwrap(), words.next());
        let length = length.map(|length| format!("content-length: {length}\r\n")).unwrap_or_default();
        let mut client = Http1::connect(gateway.address(80)).await;
        let response = client.exchange(format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{length}\r\n")).await;
        table.check("status", status, &response.status);
        let lines: Vec<String> = headers.iter().map(|line| line.replace("HOST", &host)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        table.check("headers", &expected(&lines), &steady(&response.headers));
        let body: Vec<u8> = body.chars().map(|char| u8::try_from(char).unwrap()).collect();
        table.check("body", &body, &response.body);
        if !headers.contains(&"connection: close") {
            table.check("connection", &End::Open, &client.ended(Duration::from_millis(5)).await);
        }
    }
    table.row("a body of 1 MiB");
    let response = Http1::connect(gateway.address(80)).await.get("largest.com", "/").await;
    table.check("length", &(1 << 20), &response.body.len());
    table.finish();
}
