//! CORS: networking.md §3.14.

use http::Request;

use crate::harness::client::{Http1, Http2};
use crate::harness::exchange::{expected, steady};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::Upstream;

/// The upstream's own answer.
const UPSTREAM: &[&str] = &[
    "access-control-allow-origin: upstream",
    "access-control-allow-credentials: upstream",
    "access-control-expose-headers: upstream",
    "access-control-max-age: 7",
    "vary: accept",
    "content-length: 2",
    "x-envoy-upstream-service-time: *",
    "date: *",
    "server: istio-envoy",
];

/// The answer to a preflight whose origin matches, with a policy that says everything.
const PREFLIGHT: &[&str] = &[
    "access-control-allow-origin: http://a",
    "access-control-allow-credentials: true",
    "access-control-allow-methods: GET,POST",
    "access-control-allow-headers: x-one,x-two",
    "access-control-max-age: 86400",
    "access-control-expose-headers: x-e1,x-e2",
    "date: *",
    "server: istio-envoy",
    "content-length: 0",
];

/// Name; method; host, which tells the policy; header lines; status; header lines of the answer; flags; details.
type Row =
    (&'static str, &'static str, &'static str, &'static str, u16, &'static [&'static str], &'static str, &'static str);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("preflight match", "OPTIONS", "full.com", "origin: http://a\r\naccess-control-request-method: POST\r\naccess-control-request-headers: x-req\r\n", 200, PREFLIGHT, "-", "cors_response"),
    ("preflight other origin", "OPTIONS", "full.com", "origin: http://b\r\naccess-control-request-method: POST\r\n", 200, UPSTREAM, "-", "via_upstream"),
    ("preflight no acrm", "OPTIONS", "full.com", "origin: http://a\r\n", 200, &["access-control-allow-origin: http://a", "access-control-allow-credentials: true", "access-control-expose-headers: x-e1,x-e2", "access-control-max-age: 7", "vary: accept", "content-length: 2", "x-envoy-upstream-service-time: *", "date: *", "server: istio-envoy"], "-", "via_upstream"),
    ("preflight empty acrm", "OPTIONS", "full.com", "origin: http://a\r\naccess-control-request-method:\r\n", 200, &["access-control-allow-origin: http://a", "access-control-allow-credentials: true", "access-control-expose-headers: x-e1,x-e2", "access-control-max-age: 7", "vary: accept", "content-length: 2", "x-envoy-upstream-service-time: *", "date: *", "server: istio-envoy"], "-", "via_upstream"),
    ("preflight no origin", "OPTIONS", "full.com", "access-control-request-method: GET\r\n", 200, UPSTREAM, "-", "via_upstream"),
    ("preflight empty origin", "OPTIONS", "full.com", "origin: \r\naccess-control-request-method: POST\r\n", 200, UPSTREAM, "-", "via_upstream"),
    ("preflight method not allowed", "OPTIONS", "full.com", "origin: http://a\r\naccess-control-request-method: DELETE\r\n", 200, PREFLIGHT, "-", "cors_response"),
    ("preflight origin case", "OPTIONS", "full.com", "origin: HTTP://A\r\naccess-control-request-method: POST\r\n", 200, UPSTREAM, "-", "via_upstream"),
    ("preflight origin port", "OPTIONS", "full.com", "origin: http://a:80\r\naccess-control-request-method: POST\r\n", 200, UPSTREAM, "-", "via_upstream"),
    ("preflight origin null", "OPTIONS", "star.com", "origin: null\r\naccess-control-request-method: POST\r\n", 200, &["access-control-allow-origin: null", "access-control-allow-credentials: true", "access-control-allow-methods: POST", "access-control-allow-headers: ", "access-control-expose-headers: *", "date: *", "server: istio-envoy", "content-length: 0"], "-", "cors_response"),
    ("preflight minimal", "OPTIONS", "min.com", "origin: http://a\r\naccess-control-request-method: POST\r\naccess-control-request-headers: x-req\r\n", 200, &["access-control-allow-origin: http://a", "date: *", "server: istio-envoy", "content-length: 0"], "-", "cors_response"),
    ("preflight star", "OPTIONS", "star.com", "origin: http://zz\r\naccess-control-request-method: DELETE\r\naccess-control-request-headers: x-req,x-q\r\n", 200, &["access-control-allow-origin: http://zz", "access-control-allow-credentials: true", "access-control-allow-methods: DELETE", "access-control-allow-headers: x-req,x-q", "access-control-expose-headers: *", "date: *", "server: istio-envoy", "content-length: 0"], "-", "cors_response"),
    ("preflight star nocred", "OPTIONS", "star-nocred.com", "origin: http://zz\r\naccess-control-request-method: DELETE\r\naccess-control-request-headers: x-req\r\n", 200, &["access-control-allow-origin: http://zz", "access-control-allow-methods: DELETE", "access-control-allow-headers: x-req", "access-control-expose-headers: *", "date: *", "server: istio-envoy", "content-length: 0"], "-", "cors_response"),
    ("preflight star no acrh", "OPTIONS", "star.com", "origin: http://zz\r\naccess-control-request-method: DELETE\r\n", 200, &["access-control-allow-origin: http://zz", "access-control-allow-credentials: true", "access-control-allow-methods: DELETE", "access-control-allow-headers: ", "access-control-expose-headers: *", "date: *", "server: istio-envoy", "content-length: 0"], "-", "cors_response"),
    ("preflight cred false", "OPTIONS", "cred-false.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 200, &["access-control-allow-origin: http://a", "date: *", "server: istio-envoy", "content-length: 0"], "-", "cors_response"),
    ("preflight regex", "OPTIONS", "regex.com", "origin: http://x.a\r\naccess-control-request-method: POST\r\n", 200, &["access-control-allow-origin: http://x.a", "date: *", "server: istio-envoy", "content-length: 0"], "-", "cors_response"),
    ("preflight regex partial", "OPTIONS", "regex.com", "origin: http://x.ab\r\naccess-control-request-method: POST\r\n", 200, UPSTREAM, "-", "via_upstream"),
    ("preflight prefix", "OPTIONS", "regex.com", "origin: https://prefix\r\naccess-control-request-method: POST\r\n", 200, &["access-control-allow-origin: https://prefix", "date: *", "server: istio-envoy", "content-length: 0"], "-", "cors_response"),
    ("preflight no origins configured", "OPTIONS", "none.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 200, UPSTREAM, "-", "via_upstream"),
    ("preflight ignore match", "OPTIONS", "ignore.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 200, PREFLIGHT, "-", "cors_response"),
    ("preflight ignore nomatch", "OPTIONS", "ignore.com", "origin: http://b\r\naccess-control-request-method: POST\r\n", 200, &["access-control-allow-credentials: true", "access-control-allow-methods: GET,POST", "access-control-allow-headers: x-one,x-two", "access-control-max-age: 86400", "date: *", "server: istio-envoy", "content-length: 0"], "-", "cors_response"),
    ("preflight redirect route", "OPTIONS", "redir.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 301, &["location: http://redir.com/y", "date: *", "server: istio-envoy", "content-length: 0"], "-", "direct_response"),
    ("preflight dr route", "OPTIONS", "dr.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 200, &["content-length: 1", "content-type: text/plain", "date: *", "server: istio-envoy"], "-", "direct_response"),
    ("preflight missing cluster", "OPTIONS", "nc.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 200, PREFLIGHT, "-", "cors_response"),
    ("preflight no endpoints", "OPTIONS", "uh.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 200, PREFLIGHT, "-", "cors_response"),
    ("preflight get only route", "OPTIONS", "get-only.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 404, &["date: *", "server: istio-envoy", "content-length: 0"], "NR", "route_not_found"),
    ("preflight route headers", "OPTIONS", "hdr.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 200, PREFLIGHT, "-", "cors_response"),
    ("preflight fault", "OPTIONS", "fault.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 503, &["content-length: 18", "content-type: text/plain", "date: *", "server: istio-envoy"], "FI", "fault_filter_abort"),
    ("preflight tls required", "OPTIONS", "tls.com", "origin: http://a\r\naccess-control-request-method: POST\r\n", 301, &["location: https://tls.com/", "date: *", "server: istio-envoy", "content-length: 0"], "-", "direct_response"),
    ("preflight private network", "OPTIONS", "full.com", "origin: http://a\r\naccess-control-request-method: POST\r\naccess-control-request-private-network: true\r\n", 200, PREFLIGHT, "-", "cors_response"),
    ("actual match", "GET", "full.com", "origin: http://a\r\n", 200, &["access-control-allow-origin: http://a", "access-control-allow-credentials: true", "access-control-expose-headers: x-e1,x-e2", "access-control-max-age: 7", "vary: accept", "content-length: 2", "x-envoy-upstream-service-time: *", "date: *", "server: istio-envoy"], "-", "via_upstream"),
    ("actual other", "GET", "full.com", "origin: http://b\r\n", 200, UPSTREAM, "-", "via_upstream"),
    ("actual none", "GET", "full.com", "", 200, UPSTREAM, "-", "via_upstream"),
    ("actual star", "GET", "star.com", "origin: http://q\r\n", 200, &["access-control-allow-origin: http://q", "access-control-allow-credentials: true", "access-control-expose-headers: *", "access-control-max-age: 7", "vary: accept", "content-length: 2", "x-envoy-upstream-service-time: *", "date: *", "server: istio-envoy"], "-", "via_upstream"),
    ("actual min", "POST", "min.com", "origin: http://a\r\n", 200, &["access-control-allow-origin: http://a", "access-control-allow-credentials: upstream", "access-control-expose-headers: upstream", "access-control-max-age: 7", "vary: accept", "content-length: 2", "x-envoy-upstream-service-time: *", "date: *", "server: istio-envoy"], "-", "via_upstream"),
    ("actual cred false", "GET", "cred-false.com", "origin: http://a\r\n", 200, &["access-control-allow-origin: http://a", "access-control-allow-credentials: upstream", "access-control-expose-headers: upstream", "access-control-max-age: 7", "vary: accept", "content-length: 2", "x-envoy-upstream-service-time: *", "date: *", "server: istio-envoy"], "-", "via_upstream"),
    ("actual dr", "GET", "dr.com", "origin: http://a\r\n", 200, &["content-length: 1", "content-type: text/plain", "date: *", "server: istio-envoy"], "-", "direct_response"),
    ("actual redirect", "GET", "redir.com", "origin: http://a\r\n", 301, &["location: http://redir.com/y", "date: *", "server: istio-envoy", "content-length: 0"], "-", "direct_response"),
    ("actual missing cluster", "GET", "nc.com", "origin: http://a\r\n", 503, &["access-control-allow-origin: http://a", "access-control-allow-credentials: true", "access-control-expose-headers: x-e1,x-e2", "date: *", "server: istio-envoy", "content-length: 0"], "NC", "cluster_not_found"),
    ("actual no endpoints", "GET", "uh.com", "origin: http://a\r\n", 503, &["content-length: 19", "content-type: text/plain", "access-control-allow-origin: http://a", "access-control-allow-credentials: true", "access-control-expose-headers: x-e1,x-e2", "date: *", "server: istio-envoy"], "UH", "no_healthy_upstream"),
    ("actual fault", "GET", "fault.com", "origin: http://a\r\n", 503, &["content-length: 18", "content-type: text/plain", "date: *", "server: istio-envoy"], "FI", "fault_filter_abort"),
    ("actual route headers", "GET", "hdr.com", "origin: http://a\r\n", 200, &["access-control-allow-credentials: true", "access-control-expose-headers: x-e1,x-e2", "access-control-max-age: 7", "vary: accept", "content-length: 2", "x-envoy-upstream-service-time: *", "access-control-allow-origin: http://a", "x-r: 1", "date: *", "server: istio-envoy"], "-", "via_upstream"),
    ("actual options no acrm", "OPTIONS", "full.com", "origin: http://a\r\n", 200, &["access-control-allow-origin: http://a", "access-control-allow-credentials: true", "access-control-expose-headers: x-e1,x-e2", "access-control-max-age: 7", "vary: accept", "content-length: 2", "x-envoy-upstream-service-time: *", "date: *", "server: istio-envoy"], "-", "via_upstream"),
    ("actual ignore other", "GET", "ignore.com", "origin: http://b\r\n", 200, UPSTREAM, "-", "via_upstream"),
];

#[tokio::test]
async fn cors() {
    let upstream = Upstream::answers(
        "HTTP/1.1 200 OK\r\naccess-control-allow-origin: upstream\r\naccess-control-allow-credentials: upstream\r\n\
         access-control-expose-headers: upstream\r\naccess-control-max-age: 7\r\nvary: accept\r\ncontent-length: 2\r\n\r\nok",
    )
    .await;
    let everything = "allowOrigins: [{exact: 'http://a'}], allowMethods: [GET, POST], allowHeaders: [x-one, x-two], \
                      exposeHeaders: [x-e1, x-e2], maxAge: 24h, allowCredentials: true";
    let full = format!("corsPolicy: {{{everything}}}");
    let be = "route: [{destination: {host: be.test}}]";
    let star = "allowOrigins: [{exact: '*'}], allowMethods: ['*'], allowHeaders: ['*'], exposeHeaders: ['*']";
    let policies = [
        ("full.com", format!("{be}, {full}")),
        ("min.com", format!("{be}, corsPolicy: {{allowOrigins: [{{exact: 'http://a'}}]}}")),
        ("star.com", format!("{be}, corsPolicy: {{{star}, allowCredentials: true}}")),
        ("star-nocred.com", format!("{be}, corsPolicy: {{{star}}}")),
        (
            "cred-false.com",
            format!("{be}, corsPolicy: {{allowOrigins: [{{exact: 'http://a'}}], allowCredentials: false}}"),
        ),
        (
            "regex.com",
            format!("{be}, corsPolicy: {{allowOrigins: [{{regex: 'http://.*[.]a'}}, {{prefix: 'https://pre'}}]}}"),
        ),
        ("none.com", format!("{be}, corsPolicy: {{allowMethods: [GET]}}")),
        ("ignore.com", format!("{be}, corsPolicy: {{{everything}, unmatchedPreflights: IGNORE}}")),
        ("redir.com", format!("redirect: {{uri: /y}}, {full}")),
        ("dr.com", format!("directResponse: {{status: 200, body: {{string: d}}}}, {full}")),
        ("nc.com", format!("route: [{{destination: {{host: missing.test}}}}], {full}")),
        ("uh.com", format!("route: [{{destination: {{host: empty.test}}}}], {full}")),
        ("get-only.com", format!("match: [{{method: {{exact: GET}}}}], {be}, {full}")),
        (
            "hdr.com",
            format!("{be}, {full}, headers: {{response: {{set: {{access-control-allow-origin: route, x-r: '1'}}}}}}"),
        ),
        ("fault.com", format!("{be}, {full}, fault: {{abort: {{httpStatus: 503, percentage: {{value: 100}}}}}}")),
        ("tls.com", format!("{be}, {full}")),
        ("deprecated.com", format!("{be}, corsPolicy: {{allowOrigin: ['http://a']}}")),
    ];
    let mesh = Mesh::new()
        .servers(
            "- port: {number: 80, name: http, protocol: HTTP}\n  hosts: ['*']\n\
             - port: {number: 80, name: tls, protocol: HTTP}\n  hosts: [tls.com]\n  tls: {httpsRedirect: true}\n",
            &[80],
        )
        .http("be.test", &[upstream.address()])
        .resource(
            "ServiceEntry",
            "hosts: [empty.test]\nlocation: MESH_EXTERNAL\nresolution: STATIC\n\
             ports: [{number: 80, name: main, protocol: HTTP}]\nworkloadSelector: {labels: {app: nobody}}\n",
        );
    let mesh = policies.iter().fold(mesh, |mesh, (host, route)| mesh.routes(host, &format!("[{{{route}}}]")));
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §3.14, CORS");
    let minimal: Row = (
        "allowOrigin, deprecated",
        "OPTIONS",
        "deprecated.com",
        "origin: http://a\r\naccess-control-request-method: GET\r\n",
        200,
        &["access-control-allow-origin: http://a", "date: *", "server: istio-envoy", "content-length: 0"],
        "-",
        "cors_response",
    );
    for (name, method, host, lines, status, headers, flags, details) in ROWS.iter().chain([&minimal]) {
        table.row(format!("{name}, {host}"));
        upstream.take();
        let request = format!("{method} / HTTP/1.1\r\nhost: {host}\r\n{lines}\r\n");
        let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
        table.check("status", status, &response.status);
        table.check("headers", &expected(headers), &steady(&response.headers));
        table.check("forwarded", &(*details == "via_upstream"), &!upstream.take().is_empty());
        table.expect_log(response.client, *status, flags, details);
    }
    table.row("preflight over HTTP/2");
    let request = Request::options("http://full.com/")
        .header("origin", "http://a")
        .header("access-control-request-method", "POST")
        .body(())
        .unwrap();
    let response = Http2::connect(gateway.address(80)).await.exchange(request, &[]).await;
    table.check("status", &200, &response.status);
    table.check("headers", &expected(&PREFLIGHT[..PREFLIGHT.len() - 1]), &steady(&response.headers));
    table.check_logs(&gateway).await;
    table.finish();
}
