//! networking.md §3.7 (redirect) and §2.8 (httpsRedirect).

use crate::harness::client::{Http1, Http2};
use crate::harness::exchange::{expected, steady};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::Upstream;

/// Name; match; redirect; what the client sends (`HOST` stands for the row's host), behind `GET `; status; Location.
type Row = (&'static str, &'static str, &'static str, &'static str, u16, &'static str);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("uri keeps the query", "", "uri: /v2", "HOST/x?y=1", 301, "http://HOST/v2?y=1"),
    ("uri with a query of its own", "", "uri: '/v2?z=2'", "HOST/x?y=1", 301, "http://HOST/v2?z=2"),
    ("uri keeps the port", "", "uri: /v2", "HOST:8080/x", 301, "http://HOST:8080/v2"),
    ("uri keeps port 80", "", "uri: /v2", "HOST:80/x", 301, "http://HOST:80/v2"),
    ("uri keeps port 443", "", "uri: /v2", "HOST:443/x", 301, "http://HOST:443/v2"),
    ("authority drops the port", "", "authority: b.com", "HOST:8080/x", 301, "http://b.com/x"),
    ("authority with port", "", "authority: 'b.com:9'", "HOST:8080/x?q", 301, "http://b.com:9/x?q"),
    ("scheme https", "", "scheme: https", "HOST/x", 301, "https://HOST/x"),
    ("scheme https, port 80", "", "scheme: https", "HOST:80/x", 301, "https://HOST/x"),
    ("scheme https, port 8080", "", "scheme: https", "HOST:8080/x", 301, "https://HOST:8080/x"),
    ("scheme https, port 443", "", "scheme: https", "HOST:443/x", 301, "https://HOST:443/x"),
    ("scheme http, port 443", "", "scheme: http", "HOST:443/x", 301, "http://HOST:443/x"),
    ("scheme http unchanged, port 80", "", "scheme: http", "HOST:80/x", 301, "http://HOST:80/x"),
    ("port 8443 https", "", "port: 8443, scheme: https", "HOST/x", 301, "https://HOST:8443/x"),
    ("port 8443 https, other port typed", "", "port: 8443, scheme: https", "HOST:8080/x", 301, "https://HOST:8443/x"),
    ("port 443 https", "", "port: 443, scheme: https", "HOST/x", 301, "https://HOST/x"),
    ("port 443 https is omitted, the typed one stays", "", "port: 443, scheme: https", "HOST:8080/x", 301, "https://HOST:8080/x"),
    ("port only", "", "port: 9090", "HOST:8080/x", 301, "http://HOST:9090/x"),
    ("FROM_REQUEST_PORT 80 is omitted", "", "derivePort: FROM_REQUEST_PORT, authority: b.com", "HOST:8080/x", 301, "http://b.com/x"),
    ("FROM_PROTOCOL_DEFAULT", "", "derivePort: FROM_PROTOCOL_DEFAULT, authority: b.com", "HOST:8080/x", 301, "http://b.com/x"),
    ("port behind an authority with port", "", "authority: 'b.com:1', port: 8080", "HOST/x", 301, "http://b.com:1:8080/x"),
    ("normalised path, raw query, no fragment", "", "authority: b.com", "HOST/a%20b/../c?x=%41#f", 301, "http://b.com/c?x=%41"),
    ("prefixRewrite", "prefix: /foo", "prefixRewrite: /new", "HOST/foo/bar?x=1", 301, "http://HOST/new/bar?x=1"),
    ("prefixRewrite to /", "prefix: /foo", "prefixRewrite: /", "HOST/foo/bar", 301, "http://HOST//bar"),
    ("prefixRewrite to / of the prefix itself", "prefix: /foo", "prefixRewrite: /", "HOST/foo", 301, "http://HOST/"),
    ("prefixRewrite inside a segment", "prefix: /foo", "prefixRewrite: /x", "HOST/foobar", 301, "http://HOST/xbar"),
    ("code 0", "", "uri: /v2, redirectCode: 0", "HOST/x", 301, "http://HOST/v2"),
    ("code 301", "", "uri: /v2, redirectCode: 301", "HOST/x", 301, "http://HOST/v2"),
    ("code 302", "", "uri: /v2, redirectCode: 302", "HOST/x", 302, "http://HOST/v2"),
    ("code 303", "", "uri: /v2, redirectCode: 303", "HOST/x", 303, "http://HOST/v2"),
    ("code 307", "", "uri: /v2, redirectCode: 307", "HOST/x", 307, "http://HOST/v2"),
    ("code 308", "", "uri: /v2, redirectCode: 308", "HOST/x", 308, "http://HOST/v2"),
    ("uri without slash", "", "uri: v2", "HOST/x", 301, "http://HOST/v2"),
    ("uri that is a URL", "", "uri: 'https://evil.com/x'", "HOST/x", 301, "http://HOST/https://evil.com/x"),
    ("escaped line end stays escaped", "", "authority: b.com", "HOST/x%0d%0aSet-Cookie:%20a=b", 301, "http://b.com/x%0d%0aSet-Cookie:%20a=b"),
    ("templates are literal", "", "uri: '/%PREFIX()%/y'", "HOST/foo", 301, "http://HOST/%PREFIX()%/y"),
];

#[tokio::test]
async fn redirects() {
    let mut mesh = Mesh::new().servers(
        "- port: {number: 80, name: http, protocol: HTTP}\n  hosts: ['*']\n\
         - port: {number: 8080, name: alt, protocol: HTTP}\n  hosts: ['*']\n",
        &[80, 8080],
    );
    for (number, (_, matched, redirect, ..)) in ROWS.iter().enumerate() {
        let matched = if matched.is_empty() { String::new() } else { format!("match: [{{uri: {{{matched}}}}}], ") };
        mesh = mesh.routes(&format!("r{number}.com"), &format!("[{{{matched}redirect: {{{redirect}}}}}]"));
    }
    let gateway = mesh
        .routes("alt.com", "[{redirect: {derivePort: FROM_REQUEST_PORT, authority: b.com}}]")
        .routes("case.com", "[{redirect: {uri: /v2}}]")
        .start()
        .await;
    let mut table = Table::new("networking.md §3.7, redirect");
    for (number, (name, _, _, request, status, location)) in ROWS.iter().enumerate() {
        table.row(*name);
        let host = format!("r{number}.com");
        let (authority, target) = request.split_once('/').unwrap();
        let authority = authority.replace("HOST", &host);
        let response = Http1::connect(gateway.address(80)).await.get(&authority, &format!("/{target}")).await;
        check(&mut table, &response, *status, &location.replace("HOST", &host));
    }
    table.row("FROM_REQUEST_PORT on server port 8080");
    let response = Http1::connect(gateway.address(8080)).await.get("alt.com", "/x").await;
    check(&mut table, &response, 301, "http://b.com:8080/x");
    table.row("letter case of Host is kept");
    let response = Http1::connect(gateway.address(80)).await.get("CASE.COM", "/X").await;
    check(&mut table, &response, 301, "http://CASE.COM/v2");
    table.row("x-forwarded-proto of the client is ignored");
    let request = "GET /x HTTP/1.1\r\nhost: case.com\r\nx-forwarded-proto: https\r\n\r\n";
    let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
    check(&mut table, &response, 301, "http://case.com/v2");
    table.row("over HTTP/2");
    let response = Http2::connect(gateway.address(80)).await.get("case.com", "/x?y=1").await;
    table.check("status", &301, &response.status);
    let lines = ["location: http://case.com/v2?y=1", "date: *", "server: istio-envoy"];
    table.check("headers", &expected(&lines), &steady(&response.headers));
    table.finish();
}

fn check(table: &mut Table, response: &crate::harness::client::Response, status: u16, location: &str) {
    table.check("status", &status, &response.status);
    let location = format!("location: {location}");
    let lines = [&*location, "date: *", "server: istio-envoy", "content-length: 0"];
    table.check("headers", &expected(&lines), &steady(&response.headers));
}

/// Name; trusted proxies; authority; path; x-forwarded-proto; Location, or the status without one.
type HttpsRow = (&'static str, u32, &'static str, &'static str, &'static str, Result<&'static str, u16>);

#[tokio::test]
async fn https_redirects() {
    let upstream = Upstream::ok().await;
    let servers = "- port: {number: 80, name: tls, protocol: HTTP}\n  hosts: [tls.com, only.com, ns1/slash.com]\n  \
                   tls: {httpsRedirect: true}\n- port: {number: 80, name: plain, protocol: HTTP}\n  hosts: [plain.com]\n";
    let mesh = |proxies: u32| {
        Mesh::new()
            .servers(servers, &[80])
            .mesh_config(&format!("defaultConfig: {{gatewayTopology: {{numTrustedProxies: {proxies}}}}}"))
            .http("be.test", &[upstream.address()])
            .route("tls.com", "be.test")
            .route("plain.com", "be.test")
    };
    let (edge, behind) = (mesh(0).start().await, mesh(1).start().await);
    let mut table = Table::new("networking.md §2.8, httpsRedirect");
    let redirected: &[HttpsRow] = &[
        ("query", 0, "tls.com", "/x?y=1", "", Ok("https://tls.com/x?y=1")),
        ("port 8080", 0, "tls.com:8080", "/x", "", Ok("https://tls.com:8080/x")),
        ("port 80", 0, "tls.com:80", "/x", "", Ok("https://tls.com:80/x")),
        ("port 443", 0, "tls.com:443", "/x", "", Ok("https://tls.com:443/x")),
        ("letter case", 0, "TLS.com", "/X", "", Ok("https://TLS.com/X")),
        ("host without routes", 0, "only.com", "/anything", "", Ok("https://only.com/anything")),
        ("forged x-forwarded-proto", 0, "tls.com", "/x", "https", Ok("https://tls.com/x")),
        ("other host", 0, "other.com", "/", "", Err(404)),
        ("host with namespace", 0, "slash.com", "/", "", Err(404)),
        ("server without redirect", 0, "plain.com", "/", "", Err(200)),
        ("behind a proxy, nothing said", 1, "tls.com", "/x", "", Ok("https://tls.com/x")),
        ("behind a proxy, https", 1, "tls.com", "/x", "https", Err(200)),
        ("behind a proxy, http", 1, "tls.com", "/x", "http", Ok("https://tls.com/x")),
        ("behind a proxy, junk", 1, "tls.com", "/x", "junk", Ok("https://tls.com/x")),
    ];
    for (name, proxies, authority, path, proto, outcome) in redirected {
        table.row(*name);
        let gateway = if *proxies == 0 { &edge } else { &behind };
        let proto = if proto.is_empty() { String::new() } else { format!("x-forwarded-proto: {proto}\r\n") };
        let request = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\n{proto}\r\n");
        let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
        match outcome {
            Ok(location) => check(&mut table, &response, 301, location),
            Err(status) => {
                table.check("status", status, &response.status);
                table.check("location", "", response.header("location"));
            }
        }
    }
    table.finish();
}
