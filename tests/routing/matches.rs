//! networking.md §3.6: what a match asks of a request.

use http::Request;

use crate::harness::client::{Http1, Http2};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;

/// Method, target, host (empty: that of the match), header lines, status: 200 if the match holds.
type Probe = (&'static str, &'static str, &'static str, &'static str, u16);

/// Name (which is the host), match, requests.
#[rustfmt::skip]
const MATCHES: &[(&str, &str, &[Probe])] = &[
    ("uri exact", "uri: {exact: '/foo'}", &[
        ("GET", "/foo", "", "", 200),
        ("GET", "/foo?x", "", "", 200),
        ("GET", "/foo/", "", "", 404),
        ("GET", "/FOO", "", "", 404),
        ("GET", "/foo#f", "", "", 200),
        ("GET", "/%66oo", "", "", 200),
        ("GET", "//foo", "", "", 404),
        ("GET", "/./foo", "", "", 200),
    ]),
    ("uri exact ci", "uri: {exact: '/Foo'}, ignoreUriCase: true", &[
        ("GET", "/fOO", "", "", 200),
        ("GET", "/FOO?x", "", "", 200),
    ]),
    ("uri prefix", "uri: {prefix: '/foo'}", &[
        ("GET", "/foo", "", "", 200),
        ("GET", "/foobar", "", "", 200),
        ("GET", "/foo/bar", "", "", 200),
        ("GET", "/foo?x", "", "", 200),
        ("GET", "/fo", "", "", 404),
        ("GET", "/FOO", "", "", 404),
    ]),
    ("uri prefix slash", "uri: {prefix: '/foo/'}", &[
        ("GET", "/foo", "", "", 404),
        ("GET", "/foo/", "", "", 200),
        ("GET", "/foo/?", "", "", 200),
    ]),
    ("uri prefix ci", "uri: {prefix: '/Foo'}, ignoreUriCase: true", &[
        ("GET", "/FOOBAR", "", "", 200),
        ("GET", "/foo", "", "", 200),
    ]),
    ("uri prefix empty", "uri: {prefix: ''}", &[
        ("GET", "/", "", "", 200),
        ("GET", "/x", "", "", 200),
        ("GET", "*", "", "", 400),
    ]),
    ("uri prefix query", "uri: {prefix: '/foo?x'}", &[
        ("GET", "/foo?x=1", "", "", 404),
    ]),
    ("uri regex", "uri: {regex: '/v[0-9]+/.*'}", &[
        ("GET", "/v1/x", "", "", 200),
        ("GET", "/v1/x?y=/v", "", "", 200),
        ("GET", "/a/v1/x", "", "", 404),
        ("GET", "/v1/", "", "", 200),
        ("GET", "/v1", "", "", 404),
        ("GET", "/V1/x", "", "", 404),
    ]),
    ("uri regex noanchor", "uri: {regex: '/a'}", &[
        ("GET", "/a", "", "", 200),
        ("GET", "/ab", "", "", 404),
        ("GET", "/xa", "", "", 404),
    ]),
    ("uri regex ci", "uri: {regex: '(?i)/abc'}", &[
        ("GET", "/ABC", "", "", 200),
    ]),
    ("uri regex anchors", "uri: {regex: '^/abc$'}", &[
        ("GET", "/abc", "", "", 200),
        ("GET", "/abc?x", "", "", 200),
    ]),
    ("uri regex alt", "uri: {regex: '/a|/ab'}", &[
        ("GET", "/ab", "", "", 200),
    ]),
    ("uri regex ignorecase flag", "uri: {regex: '/abc'}, ignoreUriCase: true", &[
        ("GET", "/ABC", "", "", 404),
        ("GET", "/abc", "", "", 200),
    ]),
    ("method", "method: {exact: 'GET'}", &[
        ("GET", "/", "", "", 200),
        ("get", "/", "", "", 400),
        ("POST", "/", "", "", 404),
        ("FOO", "/", "", "", 400),
    ]),
    ("authority exact", "authority: {exact: 'authority-exact.com'}", &[
        ("GET", "/", "", "", 200),
        ("GET", "/", "authority-exact.com:80", "", 404),
        ("GET", "/", "Authority-Exact.com", "", 404),
    ]),
    ("authority prefix", "authority: {prefix: 'authority-prefix.com'}", &[
        ("GET", "/", "authority-prefix.com:80", "", 200),
    ]),
    ("scheme http", "scheme: {exact: 'http'}", &[
        ("GET", "/", "", "", 200),
        ("GET", "/", "", "x-forwarded-proto: https\r\n", 200),
    ]),
    ("scheme https", "scheme: {exact: 'https'}", &[
        ("GET", "/", "", "", 404),
        ("GET", "/", "", "x-forwarded-proto: https\r\n", 404),
    ]),
    ("h exact", "headers: {x-a: {exact: 'v'}}", &[
        ("GET", "/", "", "X-A: v\r\n", 200),
        ("GET", "/", "", "x-a: V\r\n", 404),
        ("GET", "/", "", "x-a:  v \r\n", 200),
        ("GET", "/", "", "x-a: v\r\nx-a: w\r\n", 200),
        ("GET", "/", "", "x-a: v,w\r\n", 404),
        ("GET", "/", "", "", 404),
    ]),
    ("h exact joined", "headers: {x-a: {exact: 'v,w'}}", &[
        ("GET", "/", "", "x-a: v\r\nx-a: w\r\n", 404),
        ("GET", "/", "", "x-a: v, w\r\n", 404),
        ("GET", "/", "", "x-a: v,w\r\n", 200),
    ]),
    ("h prefix", "headers: {x-a: {prefix: 'v'}}", &[
        ("GET", "/", "", "x-a: vw\r\n", 200),
        ("GET", "/", "", "x-a: wv\r\n", 404),
    ]),
    ("h regex", "headers: {x-a: {regex: 'a+'}}", &[
        ("GET", "/", "", "x-a: aaa\r\n", 200),
        ("GET", "/", "", "x-a: aab\r\n", 404),
        ("GET", "/", "", "x-a: a\r\nx-a: a\r\n", 200),
    ]),
    ("h regex comma", "headers: {x-a: {regex: 'a+(,a+)*'}}", &[
        ("GET", "/", "", "x-a: a\r\nx-a: a\r\n", 200),
    ]),
    ("h regex empty", "headers: {x-a: {regex: '.*'}}", &[
        ("GET", "/", "", "", 404),
        ("GET", "/", "", "x-a: \r\n", 200),
    ]),
    ("h present", "headers: {x-a: {}}", &[
        ("GET", "/", "", "x-a: \r\n", 200),
        ("GET", "/", "", "", 404),
        ("GET", "/", "", "x-a: 1\r\n", 200),
    ]),
    ("wh exact", "withoutHeaders: {x-a: {exact: '1'}}", &[
        ("GET", "/", "", "", 200),
        ("GET", "/", "", "x-a: 2\r\n", 200),
        ("GET", "/", "", "x-a: 1\r\n", 404),
        ("GET", "/", "", "x-a: 1\r\nx-a: 2\r\n", 404),
    ]),
    ("wh regex dotstar", "withoutHeaders: {x-a: {regex: '.*'}}", &[
        ("GET", "/", "", "", 404),
        ("GET", "/", "", "x-a: 2\r\n", 404),
    ]),
    ("wh exact empty", "withoutHeaders: {x-a: {exact: ''}}", &[
        ("GET", "/", "", "", 404),
        ("GET", "/", "", "x-a: z\r\n", 200),
        ("GET", "/", "", "x-a: \r\n", 404),
    ]),
    ("wh present", "withoutHeaders: {x-a: {}}", &[
        ("GET", "/", "", "", 200),
        ("GET", "/", "", "x-a: \r\n", 404),
        ("GET", "/", "", "x-a: 1\r\n", 404),
    ]),
    ("h cookie", "headers: {cookie: {regex: '^(.*?;)?(user=jason)(;.*)?$'}}", &[
        ("GET", "/", "", "cookie: a=b;user=jason\r\n", 200),
        ("GET", "/", "", "cookie: a=b; user=jason\r\n", 404),
        ("GET", "/", "", "cookie: a=b\r\ncookie: user=jason\r\n", 200),
    ]),
    ("h ua", "headers: {user-agent: {prefix: 'curl'}}", &[
        ("GET", "/", "", "User-Agent: curl/8\r\n", 200),
    ]),
    ("h host key", "headers: {host: {exact: 'h-host-key.com'}}", &[
        ("GET", "/", "", "", 200),
    ]),
    ("h uri key", "headers: {uri: {exact: 'x'}}", &[
        ("GET", "/x", "", "", 404),
        ("GET", "/", "", "uri: x\r\n", 200),
    ]),
    ("h path pseudo", "headers: {':path': {exact: '/p?q=1'}}", &[
        ("GET", "/p?q=1", "", "", 200),
        ("GET", "/p", "", "", 404),
    ]),
    ("q exact", "queryParams: {q: {exact: 'a b'}}", &[
        ("GET", "/?q=a%20b", "", "", 404),
        ("GET", "/?q=a+b", "", "", 404),
        ("GET", "/?q=a b", "", "", 400),
    ]),
    ("q raw", "queryParams: {q: {exact: 'a%20b'}}", &[
        ("GET", "/?q=a%20b", "", "", 200),
        ("GET", "/?x&q=a%20b&y", "", "", 200),
        ("GET", "/?%71=a%20b", "", "", 404),
    ]),
    ("q first", "queryParams: {q: {exact: '1'}}", &[
        ("GET", "/?q=1&q=2", "", "", 200),
        ("GET", "/?q=2&q=1", "", "", 404),
        ("GET", "/?Q=1", "", "", 404),
        ("GET", "/?q=1#f", "", "", 200),
        ("GET", "/?a=1;q=1", "", "", 404),
    ]),
    ("q empty", "queryParams: {q: {exact: ''}}", &[
        ("GET", "/?q=", "", "", 200),
        ("GET", "/?q", "", "", 200),
        ("GET", "/", "", "", 404),
        ("GET", "/?", "", "", 404),
    ]),
    ("q present", "queryParams: {q: {}}", &[
        ("GET", "/?q", "", "", 200),
        ("GET", "/?q=1", "", "", 200),
        ("GET", "/?a=q", "", "", 404),
        ("GET", "/?&&q", "", "", 200),
    ]),
    ("q regex", "queryParams: {q: {regex: '[0-9]+'}}", &[
        ("GET", "/?q=12", "", "", 200),
        ("GET", "/?q=12x", "", "", 404),
        ("GET", "/?q=1=2", "", "", 404),
    ]),
    ("q prefix", "queryParams: {q: {prefix: 'ab'}}", &[
        ("GET", "/?q=abc", "", "", 200),
        ("GET", "/?q=a", "", "", 404),
    ]),
    ("regex dot newline", "headers: {x-a: {regex: 'a.b'}}", &[
        ("GET", "/", "", "x-a: a b\r\n", 200),
        ("GET", "/", "", "x-a: a\tb\r\n", 200),
        ("GET", "/", "", "x-a: aéb\r\n", 200),
    ]),
    ("uri utf8", "uri: {prefix: '/\u{fc}'}", &[
        ("GET", "/%C3%BC", "", "", 404),
        ("GET", "/\u{c3}\u{bc}", "", "", 400),
    ]),
    ("h bin", "headers: {x-data-bin: {exact: 'AAE='}}", &[
        ("GET", "/", "", "x-data-bin: AAE=\r\n", 200),
    ]),
    ("lines exact", "headers: {x-a: {exact: '1'}}", &[
        ("GET", "/", "", "x-a: 1\r\nx-a: 2\r\n", 200),
        ("GET", "/", "", "x-a: 2\r\nx-a: 1\r\n", 200),
        ("GET", "/", "", "x-a: 2\r\nx-a: 3\r\n", 404),
        ("GET", "/", "", "x-a: 1\r\n", 200),
        ("GET", "/", "", "x-a: 1,2\r\n", 404),
    ]),
    ("lines not exact", "withoutHeaders: {x-a: {exact: '1'}}", &[
        ("GET", "/", "", "x-a: 1\r\nx-a: 2\r\n", 404),
        ("GET", "/", "", "x-a: 2\r\nx-a: 1\r\n", 404),
        ("GET", "/", "", "x-a: 2\r\nx-a: 3\r\n", 200),
        ("GET", "/", "", "x-a: \r\n", 200),
        ("GET", "/", "", "x-a: 1,2\r\n", 200),
    ]),
    ("lines not regex", "withoutHeaders: {x-a: {regex: 'a.*'}}", &[
        ("GET", "/", "", "x-a: b\r\nx-a: a\r\n", 404),
        ("GET", "/", "", "x-a: b\r\nx-a: c\r\n", 200),
    ]),
    ("lines prefix", "headers: {x-a: {prefix: 'b'}}", &[
        ("GET", "/", "", "x-a: a\r\nx-a: bc\r\n", 200),
    ]),
    ("lines regex joined", "headers: {x-a: {regex: 'a,b'}}", &[
        ("GET", "/", "", "x-a: a\r\nx-a: b\r\n", 404),
    ]),
    ("lines regex any", "headers: {x-a: {regex: '.*,.*'}}", &[
        ("GET", "/", "", "x-a: a\r\nx-a: b\r\n", 404),
        ("GET", "/", "", "x-a: a,b\r\n", 200),
    ]),
];

/// More of the reference's text, in the same form.
#[rustfmt::skip]
const TEXT: &[(&str, &str, &[Probe])] = &[
    ("fields are and ed", "uri: {prefix: /a}, method: {exact: GET}, headers: {x-a: {exact: '1'}}, queryParams: {q: {exact: '1'}}", &[
        ("GET", "/a?q=1", "", "x-a: 1\r\n", 200),
        ("GET", "/a?q=1", "", "", 404),
        ("GET", "/a", "", "x-a: 1\r\n", 404),
        ("POST", "/a?q=1", "", "x-a: 1\r\n", 404),
        ("GET", "/b?q=1", "", "x-a: 1\r\n", 404),
    ]),
    ("header names any case", "headers: {X-A: {exact: v}}", &[
        ("GET", "/", "", "x-a: v\r\n", 200),
        ("GET", "/", "", "X-a:  v \r\n", 200),
        ("GET", "/", "", "x-a: V\r\n", 404),
    ]),
    ("accept lines are joined", "headers: {accept: {exact: 'a,b'}}", &[
        ("GET", "/", "", "accept: a\r\naccept: b\r\n", 200),
        ("GET", "/", "", "accept: a\r\n", 404),
    ]),
    ("without regex star", "withoutHeaders: {x-a: {regex: '*'}}", &[
        ("GET", "/", "", "", 200),
        ("GET", "/", "", "x-a: 1\r\n", 404),
        ("GET", "/", "", "x-a:\r\n", 404),
    ]),
    ("claims match nothing without a token", "headers: {'@request.auth.claims.sub': {exact: me}}", &[
        ("GET", "/", "", "", 404),
        ("GET", "/", "", "@request.auth.claims.sub: me\r\n", 400),
    ]),
    ("port of another server", "port: 8080", &[("GET", "/", "", "", 404)]),
    ("port of this server", "port: 80", &[("GET", "/", "", "", 200)]),
    ("source labels of others", "sourceLabels: {app: shop}", &[("GET", "/", "", "", 404)]),
    ("source labels of the gateway", "sourceLabels: {istio: ingressgateway}", &[("GET", "/", "", "", 200)]),
    ("source namespace of others", "sourceNamespace: shop", &[("GET", "/", "", "", 404)]),
    ("source namespace of the gateway", "sourceNamespace: istio-system", &[("GET", "/", "", "", 200)]),
    ("another gateway", "gateways: [other]", &[("GET", "/", "", "", 404)]),
    ("this gateway", "gateways: [gateway]", &[("GET", "/", "", "", 200)]),
    ("this gateway and source labels", "gateways: [gateway], sourceLabels: {app: shop}", &[("GET", "/", "", "", 200)]),
];

fn host_of(name: &str) -> String {
    format!("{}.com", name.replace(' ', "-"))
}

#[tokio::test]
async fn matches() {
    let mut mesh = Mesh::new().document(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: other}\n\
         spec: {selector: {app: other}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}",
    );
    for (name, matched, _) in MATCHES.iter().chain(TEXT) {
        mesh = mesh.routes(&host_of(name), &format!("[{{match: [{{{matched}}}], directResponse: {{status: 200}}}}]"));
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §3.6, matches");
    for (name, matched, probes) in MATCHES.iter().chain(TEXT) {
        for (method, target, host, lines, status) in *probes {
            table.row(format!("{{{matched}}} {method} {target} {host} {lines:?}"));
            let host = if host.is_empty() { host_of(name) } else { (*host).to_owned() };
            let request = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{lines}\r\n");
            // One byte a char, so that rows can hold bytes that aren't UTF-8.
            let request: Vec<u8> = request.chars().map(|char| u8::try_from(char).unwrap()).collect();
            let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
            table.check("status", status, &response.status);
        }
    }
    for (name, lines) in
        [("h cookie", [("cookie", "a=b"), ("cookie", "user=jason")]), ("h exact", [("x-a", "v,w"), ("x-a", "w")])]
    {
        table.row(format!("{name} over HTTP/2, {lines:?}"));
        let mut request = Request::get(format!("http://{}/", host_of(name)));
        for (key, value) in lines {
            request = request.header(key, value);
        }
        let response = Http2::connect(gateway.address(80)).await.exchange(request.body(()).unwrap(), &[]).await;
        table.check("status", &404, &response.status);
    }
    table.finish();
}
