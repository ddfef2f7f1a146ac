//! networking.md §3.4: the virtual host of a request.

use crate::harness::client::{Http1, Http2};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;

/// A route with this answer for each host.
fn mesh(hosts: &[(&str, &str, &str)]) -> Mesh {
    hosts.iter().fold(Mesh::new(), |mesh, (host, matched, body)| {
        let matched =
            if matched.is_empty() { String::new() } else { format!("match: [{{uri: {{exact: {matched}}}}}], ") };
        mesh.routes(host, &format!("[{{{matched}directResponse: {{status: 200, body: {{string: '{body}'}}}}}}]"))
    })
}

async fn raw(gateway: &Gateway, request: &str) -> (u16, String) {
    // One byte a char, so that rows can hold bytes that aren't UTF-8.
    let bytes: Vec<u8> = request.chars().map(|char| u8::try_from(char).unwrap()).collect();
    let response = Http1::connect(gateway.address(80)).await.exchange(bytes).await;
    (response.status, response.text())
}

#[tokio::test]
async fn selection() {
    let gateway = mesh(&[
        ("foo.com", "/only", "foo"),
        ("*.foo.com", "", "*.foo"),
        ("*.bar.foo.com", "", "*.bar.foo"),
        ("a.foo.com", "/x", "a.foo"),
        ("10.0.0.1", "", "v4"),
        ("*oo.net", "", "*oo.net"),
    ])
    .start()
    .await;
    let mut table = Table::new("networking.md §3.4, virtual host");
    let bad = (400, "Bad Request");
    for (host, target, (status, body)) in [
        ("foo.com", "/only", (200, "foo")),
        ("foo.com:8080", "/only", (200, "foo")),
        ("FOO.com", "/only", (200, "foo")),
        ("foo.com.", "/only", (404, "")),
        ("foo.com", "/other", (404, "")),
        ("a.foo.com", "/x", (200, "a.foo")),
        ("a.foo.com", "/y", (404, "")),
        ("b.foo.com", "/", (200, "*.foo")),
        ("B.Foo.COM:99", "/", (200, "*.foo")),
        ("x.bar.foo.com", "/", (200, "*.bar.foo")),
        ("x.y.bar.foo.com", "/", (200, "*.bar.foo")),
        ("bar.foo.com", "/", (200, "*.foo")),
        (".foo.com", "/", (404, "")),
        ("x.foo.com.", "/", (404, "")),
        ("::1", "/", (404, "")),
        ("10.0.0.1:80", "/", (200, "v4")),
        ("nope.com", "/", (404, "")),
        ("foo.com:", "/only", (200, "foo")),
        ("foo.com:abc", "/only", (200, "foo")),
        ("foo.com:99999", "/only", (200, "foo")),
        ("foo.com:80:80", "/only", (404, "")),
        ("foo.net", "/", (200, "*oo.net")),
        ("oo.net", "/", (404, "")),
        ("b\u{c3}\u{bc}cher.com", "/", bad),
        ("foo.com ", "/only", (200, "foo")),
        ("user@foo.com", "/only", (404, "")),
        ("foo.com/path", "/only", bad),
        ("foo com", "/only", bad),
        ("foo.com,bar.com", "/only", (404, "")),
        ("a_b.foo.com", "/", (200, "*.foo")),
        ("", "/only", (404, "")),
        ("foo.com\t", "/only", (200, "foo")),
        ("[::1", "/", (404, "")),
        ("[0:0:0:0:0:0:0:1]", "/", (404, "")),
        ("foo.com%2e", "/only", (404, "")),
    ] {
        table.row(format!("Host {host:?}, {target}"));
        let got = raw(&gateway, &format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        table.check("answer", &(status, body.to_owned()), &got);
    }
    for (authority, target, (status, body)) in [
        ("foo.com:81", "/only", (200, "foo")),
        ("FOO.com", "/only", (200, "foo")),
        ("foo.com.", "/only", (404, "")),
        ("x.bar.foo.com", "/", (200, "*.bar.foo")),
    ] {
        table.row(format!(":authority {authority:?}, {target}"));
        let response = Http2::connect(gateway.address(80)).await.get(authority, target).await;
        table.check("answer", &(status, body.to_owned()), &(response.status, response.text()));
    }
    table.row("HTTP/2 with host instead of :authority");
    let request =
        http::Request::get("/only").version(http::Version::HTTP_11).header("host", "foo.com").body(()).unwrap();
    let response = Http2::connect(gateway.address(80)).await.exchange(request, &[]).await;
    table.check("answer", &(200, "foo".to_owned()), &(response.status, response.text()));
    table.finish();
}

#[tokio::test]
async fn catch_all_host() {
    let gateway = mesh(&[("*", "", "star"), ("foo.com", "", "foo")]).start().await;
    let mut table = Table::new("networking.md §3.4, the virtual host *");
    for (name, request, answer) in [
        ("no Host", "GET / HTTP/1.1\r\n\r\n", (400, "")),
        ("empty Host", "GET / HTTP/1.1\r\nhost:\r\n\r\n", (200, "star")),
        ("any Host", "GET / HTTP/1.1\r\nhost: zzz\r\n\r\n", (200, "star")),
        ("trailing dot", "GET / HTTP/1.1\r\nhost: foo.com.\r\n\r\n", (200, "star")),
        ("absolute form wins", "GET http://foo.com/ HTTP/1.1\r\nhost: zzz\r\n\r\n", (200, "foo")),
    ] {
        table.row(name);
        let got = raw(&gateway, request).await;
        table.check("answer", &(answer.0, answer.1.to_owned()), &got);
    }
    table.finish();
}

#[tokio::test]
async fn without_a_virtual_service_everything_is_404() {
    let gateway = Mesh::new().start().await;
    assert_eq!(Http1::connect(gateway.address(80)).await.get("foo.bar", "/").await.status, 404);
}
