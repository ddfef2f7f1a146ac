//! networking.md §3.17: VirtualServices that delegate.

use crate::harness::client::Http1;
use crate::harness::exchange::{EDGE, check_received};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::Upstream;

fn service(metadata: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{{metadata}}}\nspec: {{{spec}}}")
}

/// A VirtualService without hosts.
fn delegate(metadata: &str, http: &str) -> String {
    service(metadata, &format!("http: [{http}]"))
}

/// A VirtualService whose only rules are these.
fn root(name: &str, host: &str, http: &str) -> String {
    service(&format!("name: {name}"), &format!("hosts: [{host}], gateways: [gateway], http: [{http}]"))
}

fn says(matched: &str, body: &str) -> String {
    format!("{{match: [{{{matched}}}], directResponse: {{status: 200, body: {{string: {body}}}}}}}")
}

#[tokio::test]
async fn delegation() {
    let upstream = Upstream::ok().await;
    let to_be = "route: [{destination: {host: be.test}}]";
    let documents = [
        // A38: only what fits under the root's prefix survives.
        root(
            "r1",
            "fit.com",
            "{name: root, match: [{uri: {prefix: /a}}], delegate: {name: d1}}, {directResponse: {status: 201}}",
        ),
        delegate("name: d1", &[says("uri: {prefix: /a/b}", "fits"), says("uri: {prefix: /c}", "astray")].join(", ")),
        // Neither side says a match: the other's list.
        root("r2", "empty.com", "{delegate: {name: d2}}"),
        delegate("name: d2", &says("uri: {exact: /x}", "x")),
        root("r3", "all.com", "{match: [{uri: {prefix: /p}}], delegate: {name: d3}}"),
        delegate("name: d3", "{directResponse: {status: 200, body: {string: any}}}"),
        // Headers of both.
        root("r4", "headers.com", "{match: [{headers: {x-root: {exact: '1'}}}], delegate: {name: d4}}"),
        delegate("name: d4", &says("headers: {x-leaf: {exact: '2'}}", "both")),
        // Regex on either side is a conflict.
        root("r5", "regex.com", "{match: [{uri: {regex: '/a.*'}}], delegate: {name: d5}}"),
        delegate("name: d5", &says("uri: {prefix: /ab}", "conflict")),
        // An exact root takes only the same exact.
        root("r6", "exact.com", "{match: [{uri: {exact: /e}}], delegate: {name: d6}}"),
        delegate("name: d6", &[says("uri: {exact: /e}", "same"), says("uri: {prefix: /e}", "other")].join(", ")),
        // A delegate of another namespace; one that isn't exported; one that isn't there.
        root("r7", "far.com", "{match: [{uri: {prefix: /far}}], delegate: {name: d7, namespace: shop}}"),
        delegate("name: d7, namespace: shop", "{directResponse: {status: 200, body: {string: far}}}"),
        root(
            "r8",
            "hidden.com",
            "{match: [{uri: {prefix: /hidden}}], delegate: {name: d8, namespace: shop}}, {directResponse: {status: 201}}",
        ),
        service("name: d8, namespace: shop", "exportTo: ['.'], http: [{directResponse: {status: 200}}]"),
        root(
            "r9",
            "missing.com",
            "{match: [{uri: {prefix: /missing}}], delegate: {name: nobody}}, {directResponse: {status: 201}}",
        ),
        // Policies: the delegate's, else the root's as a whole.
        root(
            "r10",
            "policy.com",
            "{match: [{uri: {prefix: /}}], rewrite: {uri: /root}, headers: {request: {set: {x-root: '1'}}}, delegate: {name: d10}}",
        ),
        delegate(
            "name: d10",
            &format!(
                "{{match: [{{uri: {{prefix: /own}}}}], {to_be}, headers: {{request: {{set: {{x-leaf: '2'}}}}}}}}, \
                 {{match: [{{uri: {{prefix: /inherit}}}}], {to_be}}}"
            ),
        ),
    ];
    let mesh = documents.iter().fold(Mesh::new(), |mesh, document| mesh.document(document));
    let gateway = mesh.http("be.test", &[upstream.address()]).start().await;
    let mut table = Table::new("networking.md §3.17, delegate");
    for (name, host, target, lines, expected) in [
        ("A38, what fits", "fit.com", "/a/b", "", "fits"),
        ("A38, what doesn't fit", "fit.com", "/c", "", "201"),
        ("A38, the root's prefix alone", "fit.com", "/a", "", "201"),
        ("root without match", "empty.com", "/x", "", "x"),
        ("root without match, no other path", "empty.com", "/y", "", "404"),
        ("delegate without match", "all.com", "/p/q", "", "any"),
        ("delegate without match, no other path", "all.com", "/q", "", "404"),
        ("headers of both", "headers.com", "/", "x-root: 1\r\nx-leaf: 2\r\n", "both"),
        ("headers of the root only", "headers.com", "/", "x-root: 1\r\n", "404"),
        ("headers of the delegate only", "headers.com", "/", "x-leaf: 2\r\n", "404"),
        ("a regex conflicts", "regex.com", "/ab", "", "404"),
        ("exact and the same exact", "exact.com", "/e", "", "same"),
        ("exact and a prefix conflict", "exact.com", "/ee", "", "404"),
        ("another namespace", "far.com", "/far", "", "far"),
        ("not exported: only this rule vanishes", "hidden.com", "/hidden", "", "201"),
        ("not there: only this rule vanishes", "missing.com", "/missing", "", "201"),
    ] {
        table.row(name);
        let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n{lines}\r\n");
        let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
        let got = if response.status == 200 { response.text() } else { response.status.to_string() };
        table.check("answer", expected, got.as_str());
    }
    for (name, target, line, headers) in [
        (
            "the delegate's headers replace the root's",
            "/own/1",
            "GET /root/1 HTTP/1.1",
            ["host: policy.com", EDGE, "x-leaf: 2", "x-envoy-original-path: /own/1"],
        ),
        (
            "the root's headers are inherited",
            "/inherit/1",
            "GET /root/1 HTTP/1.1",
            ["host: policy.com", EDGE, "x-root: 1", "x-envoy-original-path: /inherit/1"],
        ),
    ] {
        table.row(name);
        Http1::connect(gateway.address(80)).await.get("policy.com", target).await;
        check_received(&mut table, upstream.take(), line, &headers, "");
    }
    table.finish();
}
