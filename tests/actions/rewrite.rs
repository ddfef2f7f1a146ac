//! networking.md §3.9.

use crate::harness::client::Http1;
use crate::harness::exchange::{EDGE, check_received};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::Upstream;

/// Name; match; rewrite; target; header lines of the client; what the upstream gets: target, Host, more lines before
/// and behind those of the edge. `HOST` stands for the row's host.
struct Row {
    name: &'static str,
    matched: &'static str,
    rewrite: &'static str,
    target: &'static str,
    upstream: &'static str,
    host: &'static str,
    original: &'static [&'static str],
}

const fn path(
    name: &'static str,
    matched: &'static str,
    rewrite: &'static str,
    target: &'static str,
    upstream: &'static str,
    original: &'static [&'static str],
) -> Row {
    Row { name, matched, rewrite, target, upstream, host: "HOST:81", original }
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    path("prefix", "uri: {prefix: /ratings}", "uri: /v1/bookRatings", "/ratings/7?x=1", "/v1/bookRatings/7?x=1", &["x-envoy-original-path: /ratings/7?x=1"]),
    path("prefix with slash", "uri: {prefix: /foo/}", "uri: /", "/foo/bar", "/bar", &["x-envoy-original-path: /foo/bar"]),
    path("prefix without slash", "uri: {prefix: /foo}", "uri: /", "/foo/bar", "//bar", &["x-envoy-original-path: /foo/bar"]),
    path("prefix is the path", "uri: {prefix: /foo}", "uri: /", "/foo", "/", &["x-envoy-original-path: /foo"]),
    path("prefix and query", "uri: {prefix: /foo}", "uri: /", "/foo?a=b", "/?a=b", &["x-envoy-original-path: /foo?a=b"]),
    path("prefix inside a segment", "uri: {prefix: /foo}", "uri: /x", "/foobar", "/xbar", &["x-envoy-original-path: /foobar"]),
    path("exact", "uri: {exact: /a}", "uri: /b", "/a?q=1", "/b?q=1", &["x-envoy-original-path: /a?q=1"]),
    path("exact, any case", "uri: {exact: /A}, ignoreUriCase: true", "uri: /b", "/a?q", "/b?q", &["x-envoy-original-path: /a?q"]),
    path("regex", "uri: {regex: '/v\\d+/.*'}", "uri: /b", "/v1/x?z", "/b?z", &["x-envoy-original-path: /v1/x?z"]),
    path("no match", "", "uri: /b", "/x/y", "/bx/y", &["x-envoy-original-path: /x/y"]),
    path("no match, slash at the end", "", "uri: /b/", "/x/y", "/b/x/y", &["x-envoy-original-path: /x/y"]),
    path("prefix, any case", "uri: {prefix: /foo}, ignoreUriCase: true", "uri: /x", "/FOO/Bar", "/x/Bar", &["x-envoy-original-path: /FOO/Bar"]),
    path("query in the rewrite", "uri: {prefix: /foo}", "uri: '/x?z=1'", "/foo/bar?a=b", "/x?z=1/bar?a=b", &["x-envoy-original-path: /foo/bar?a=b"]),
    path("no slash in the rewrite", "uri: {prefix: /foo}", "uri: x", "/foo/bar", "x/bar", &["x-envoy-original-path: /foo/bar"]),
    Row { name: "authority", matched: "", rewrite: "authority: up.com", target: "/x", upstream: "/x", host: "up.com", original: &["x-envoy-original-host: HOST:81"] },
    Row { name: "the same authority", matched: "", rewrite: "authority: HOST", target: "/x", upstream: "/x", host: "HOST", original: &["x-envoy-original-host: HOST:81"] },
    Row { name: "path and authority", matched: "uri: {prefix: /foo}", rewrite: "uri: /z, authority: up.com", target: "/foo/bar", upstream: "/z/bar", host: "up.com", original: &["x-envoy-original-host: HOST:81", "x-envoy-original-path: /foo/bar"] },
    path("regex rewrite", "uri: {prefix: /}", "uriRegexRewrite: {match: '/service/([^/]+)(/.*)', rewrite: '\\2/instance/\\1'}", "/service/foo/v1/api?x=1", "/v1/api/instance/foo?x=1", &["x-envoy-original-path: /service/foo/v1/api?x=1"]),
    path("regex rewrite of each match", "uri: {prefix: /}", "uriRegexRewrite: {match: o, rewrite: '0'}", "/foo/boo?o=o", "/f00/b00?o=o", &["x-envoy-original-path: /foo/boo?o=o"]),
    path("regex rewrite without a match", "uri: {prefix: /}", "uriRegexRewrite: {match: zzz, rewrite: '0'}", "/foo/boo", "/foo/boo", &["x-envoy-original-path: /foo/boo"]),
    path("regex rewrite with the whole match and an empty group", "uri: {prefix: /}", "uriRegexRewrite: {match: '/a(b)?', rewrite: '/[\\0][\\1]'}", "/ab/a", "/[/ab][b]/[/a][]", &["x-envoy-original-path: /ab/a"]),
    path("the same path", "uri: {prefix: /foo}", "uri: /foo", "/foo/bar", "/foo/bar", &["x-envoy-original-path: /foo/bar"]),
];

#[tokio::test]
async fn rewrites() {
    let upstream = Upstream::ok().await;
    let mut mesh = Mesh::new().http("be.test", &[upstream.address()]);
    for (number, row) in ROWS.iter().enumerate() {
        let host = format!("r{number}.com");
        let rewrite = row.rewrite.replace("HOST", &host);
        let matched = if row.matched.is_empty() { String::new() } else { format!("match: [{{{}}}], ", row.matched) };
        mesh = mesh.routes(
            &host,
            &format!("[{{{matched}route: [{{destination: {{host: be.test}}}}], rewrite: {{{rewrite}}}}}]"),
        );
    }
    let original = "headers: {request: {set: {x-p: '%REQ(:PATH)%', x-a: '%REQ(:AUTHORITY)%'}}}";
    let route = "route: [{destination: {host: be.test}}]";
    let mesh = mesh
        .routes(
            "ops.com",
            &format!(
                "[{{match: [{{uri: {{prefix: /foo}}}}], {route}, rewrite: {{uri: /x, authority: up.com}}, {original}}}]"
            ),
        )
        .routes("op-host.com", &format!("[{{{route}, headers: {{request: {{set: {{host: op.host}}}}}}}}]"))
        .routes("forged.com", &format!("[{{match: [{{uri: {{prefix: /foo}}}}], {route}, rewrite: {{uri: /x}}}}]"))
        .routes("space.com", &format!("[{{match: [{{uri: {{prefix: '/a b'}}}}], {route}, rewrite: {{uri: /x}}}}]"));
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §3.9, rewrite");
    for (number, row) in ROWS.iter().enumerate() {
        table.row(row.name);
        let host = format!("r{number}.com");
        Http1::connect(gateway.address(80)).await.get(&format!("{host}:81"), row.target).await;
        let line = format!("GET {} HTTP/1.1", row.upstream);
        let mut lines = vec![format!("host: {}", row.host), EDGE.to_owned()];
        lines.extend(row.original.iter().map(|line| (*line).to_owned()));
        let lines: Vec<String> = lines.iter().map(|line| line.replace("HOST", &host)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        check_received(&mut table, upstream.take(), &line, &lines, "");
    }

    table.row("header operations see the original");
    Http1::connect(gateway.address(80)).await.get("ops.com:81", "/foo/1").await;
    // Operations are sorted by name.
    let lines = [
        "host: up.com",
        EDGE,
        "x-a: ops.com:81",
        "x-p: /foo/1",
        "x-envoy-original-host: ops.com:81",
        "x-envoy-original-path: /foo/1",
    ];
    check_received(&mut table, upstream.take(), "GET /x/1 HTTP/1.1", &lines, "");

    table.row("a header operation on host is a rewrite");
    Http1::connect(gateway.address(80)).await.get("op-host.com:81", "/").await;
    let lines = ["host: op.host", EDGE, "x-envoy-original-host: op-host.com:81"];
    check_received(&mut table, upstream.take(), "GET / HTTP/1.1", &lines, "");

    table.row("forged x-envoy-original headers are dropped");
    let request = "GET /foo HTTP/1.1\r\nhost: forged.com\r\nx-envoy-original-path: /forged\r\nx-envoy-original-host: forged\r\nx-forwarded-host: client.xfh\r\n\r\n";
    Http1::connect(gateway.address(80)).await.exchange(request).await;
    let lines = ["host: forged.com", "x-forwarded-host: client.xfh", EDGE, "x-envoy-original-path: /foo"];
    check_received(&mut table, upstream.take(), "GET /x HTTP/1.1", &lines, "");

    table.row("a prefix with a blank never matches");
    let response = Http1::connect(gateway.address(80)).await.get("space.com", "/a%20b/c").await;
    table.check("status", &404, &response.status);

    table.row("xForwardedHost tells the old host");
    let forwarded_host = Mesh::new()
        .mesh_config("defaultConfig: {proxyHeaders: {xForwardedHost: {enabled: true}}}")
        .http("be.test", &[upstream.address()])
        .routes("a.com", &format!("[{{{route}, rewrite: {{authority: up.com}}}}]"))
        .start()
        .await;
    let request = "GET /x HTTP/1.1\r\nhost: a.com:81\r\nx-forwarded-host: client.xfh\r\n\r\n";
    Http1::connect(forwarded_host.address(80)).await.exchange(request).await;
    let lines = ["host: up.com", "x-forwarded-host: client.xfh,a.com:81", EDGE, "x-envoy-original-host: a.com:81"];
    check_received(&mut table, upstream.take(), "GET /x HTTP/1.1", &lines, "");
    table.finish();
}
