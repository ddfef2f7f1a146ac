//! networking.md §3.15: header operations and format strings.

use crate::harness::client::Http1;
use crate::harness::exchange::{EDGE, check_received, expected, steady};
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::Upstream;

/// Name; operations of the route; of the destination; whether there are two destinations; what the upstream gets
/// behind Host (`HOST` = the row's host); the response's header lines, empty: not looked at.
struct Row {
    name: &'static str,
    route: &'static str,
    destination: &'static str,
    weighted: bool,
    request: &'static [&'static str],
    response: &'static [&'static str],
}

const fn on_request(name: &'static str, route: &'static str, request: &'static [&'static str]) -> Row {
    Row { name, route, destination: "", weighted: false, request, response: &[] }
}

const fn on_response(name: &'static str, route: &'static str, response: &'static [&'static str]) -> Row {
    Row { name, route, destination: "", weighted: false, request: &[], response }
}

/// What the client sends behind Host.
const SENT: &str = "x-a: old\r\nuser-agent: ua\r\naccept: a\r\ncookie: c=1\r\n";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    on_request("set", "request: {set: {x-a: new}}", &["user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-a: new"]),
    on_request("add", "request: {add: {x-a: new}}", &["x-a: old", "user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-a: new"]),
    on_request("remove", "request: {remove: [x-a]}", &["user-agent: ua", "accept: a", "cookie: c=1", EDGE]),
    on_request("remove and add", "request: {remove: [x-a], add: {x-a: new}}", &["user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-a: new"]),
    on_request("set and add", "request: {set: {x-a: s}, add: {x-a: a}}", &["user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-a: s", "x-a: a"]),
    on_request("sets and adds by name", "request: {set: {x-d: '1', x-b: '2'}, add: {x-c: '3', x-aa: '4'}}", &["x-a: old", "user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-b: 2", "x-d: 1", "x-aa: 4", "x-c: 3"]),
    on_request("remove the gateway's own", "request: {remove: [user-agent, x-forwarded-for, x-request-id, x-forwarded-proto, x-envoy-external-address, x-envoy-attempt-count]}", &["x-a: old", "accept: a", "cookie: c=1"]),
    on_request("set the gateway's own", "request: {set: {x-forwarded-for: 7.7.7.7, x-request-id: fixed, x-envoy-attempt-count: '9', user-agent: me}}", &["x-a: old", "accept: a", "cookie: c=1", "x-forwarded-proto: http", "x-envoy-external-address: 127.0.0.2", "user-agent: me", "x-envoy-attempt-count: 9", "x-forwarded-for: 7.7.7.7", "x-request-id: fixed"]),
    on_request("add to single-line headers", "request: {add: {x-forwarded-for: 7.7.7.7, user-agent: me, accept: b, cookie: c=2}}", &["x-a: old", "user-agent: ua,me", "accept: a,b", "cookie: c=1", "x-forwarded-for: 127.0.0.2,7.7.7.7", "x-forwarded-proto: http", "x-envoy-external-address: 127.0.0.2", "x-request-id: *", "x-envoy-attempt-count: 1", "cookie: c=2"]),
    on_request("set to nothing", "request: {set: {x-a: '', x-new: ''}}", &["x-a: old", "user-agent: ua", "accept: a", "cookie: c=1", EDGE]),
    on_request("set to an empty value", "request: {set: {x-a: '%REQ(X-MISSING)%', x-new: '%REQ(X-MISSING)%', x-b: 'pre-%REQ(X-MISSING)%-post'}}", &["x-a: old", "user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-b: pre--post"]),
    on_request("percent", "request: {set: {x-p: '100%%', x-q: '%%REQ(:PATH)%%'}}", &["x-a: old", "user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-p: 100%", "x-q: %REQ(:PATH)%"]),
    on_request("upper-case name", "request: {set: {X-UPPER: '1'}}", &["x-a: old", "user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-upper: 1"]),

    on_response("no operation", "request: {}", &["x-up: orig", "content-type: t/t", "content-length: 2", "x-envoy-upstream-service-time: *", "date: *", "server: istio-envoy"]),
    on_response("response set", "response: {set: {x-up: new}}", &["content-type: t/t", "content-length: 2", "x-envoy-upstream-service-time: *", "x-up: new", "date: *", "server: istio-envoy"]),
    on_response("response add", "response: {add: {x-up: new, set-cookie: a=1}}", &["x-up: orig", "content-type: t/t", "content-length: 2", "x-envoy-upstream-service-time: *", "set-cookie: a=1", "x-up: new", "date: *", "server: istio-envoy"]),
    on_response("response upper-case name", "response: {set: {X-UPPER: '1'}}", &["x-up: orig", "content-type: t/t", "content-length: 2", "x-envoy-upstream-service-time: *", "x-upper: 1", "date: *", "server: istio-envoy"]),
    on_response("response remove", "response: {remove: [x-up, x-envoy-upstream-service-time, server, date, content-length, content-type]}", &["date: *", "server: istio-envoy", "transfer-encoding: chunked"]),
    on_response("response variables", "response: {set: {x-vars: '%RESPONSE_CODE%|%RESPONSE_FLAGS%|%RESPONSE_CODE_DETAILS%|%PROTOCOL%|%ROUTE_NAME%|%RESP(X-UP)%|%REQ(:PATH)%'}}", &["x-up: orig", "content-type: t/t", "content-length: 2", "x-envoy-upstream-service-time: *", "x-vars: 200|-|via_upstream|HTTP/1.1|rn|orig|/p?q=1", "date: *", "server: istio-envoy"]),

    Row { name: "one destination, both set", route: "request: {set: {x-a: route}}, response: {set: {x-up: route}}", destination: "request: {set: {x-a: dest}}, response: {set: {x-up: dest}}", weighted: false, request: &["user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-a: dest"], response: &["content-type: t/t", "content-length: 2", "x-envoy-upstream-service-time: *", "x-up: dest", "date: *", "server: istio-envoy"] },
    Row { name: "one destination removes what the route sets", route: "request: {set: {x-d: route}}", destination: "request: {remove: [x-d]}", weighted: false, request: &["x-a: old", "user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-d: route"], response: &[] },
    Row { name: "weighted, both set", route: "request: {set: {x-a: route}}, response: {set: {x-up: route}}", destination: "request: {set: {x-a: dest}}, response: {set: {x-up: dest}}", weighted: true, request: &["user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-a: route"], response: &["content-type: t/t", "content-length: 2", "x-envoy-upstream-service-time: *", "x-up: route", "date: *", "server: istio-envoy"] },
    Row { name: "weighted, both add", route: "request: {add: {x-a: route}}, response: {add: {x-up: route}}", destination: "request: {add: {x-a: dest}}, response: {add: {x-up: dest}}", weighted: true, request: &["x-a: old", "user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-a: dest", "x-a: route"], response: &["x-up: orig", "content-type: t/t", "content-length: 2", "x-envoy-upstream-service-time: *", "x-up: dest", "x-up: route", "date: *", "server: istio-envoy"] },
    Row { name: "weighted, the route removes what the destination adds", route: "request: {remove: [x-d]}", destination: "request: {set: {x-d: dest}}", weighted: true, request: &["x-a: old", "user-agent: ua", "accept: a", "cookie: c=1", EDGE], response: &[] },
    Row { name: "weighted, the destination removes what the route sets", route: "request: {set: {x-d: route}}", destination: "request: {remove: [x-d]}", weighted: true, request: &["x-a: old", "user-agent: ua", "accept: a", "cookie: c=1", EDGE, "x-d: route"], response: &[] },
];

#[tokio::test]
async fn operations() {
    let upstream =
        Upstream::answers("HTTP/1.1 200 OK\r\nx-up: orig\r\ncontent-type: t/t\r\ncontent-length: 2\r\n\r\nok").await;
    let mut mesh = Mesh::new().http("be.test", &[upstream.address()]).http("be2.test", &[upstream.address()]);
    for (number, row) in ROWS.iter().enumerate() {
        let operations = |text: &str| if text.is_empty() { String::new() } else { format!(", headers: {{{text}}}") };
        let destination =
            |host: &str| format!("{{destination: {{host: {host}}}, weight: 1{}}}", operations(row.destination));
        let mut destinations = destination("be.test");
        if row.weighted {
            destinations = format!("{destinations}, {}", destination("be2.test"));
        }
        mesh = mesh.routes(
            &format!("r{number}.com"),
            &format!("[{{name: rn, route: [{destinations}]{}}}]", operations(row.route)),
        );
    }
    let destinations = |operation: &str| {
        format!(
            "route: [{{destination: {{host: be.test}}, weight: 1, {operation}}}, {{destination: {{host: be2.test}}, weight: 1, {operation}}}]"
        )
    };
    let host = |value: &str| format!("headers: {{request: {{set: {{host: {value}}}}}}}");
    let gateway = mesh
        .routes("both.com", &format!("[{{{}, {}}}]", destinations(&host("dest.host")), host("route.host")))
        .routes("dest.com", &format!("[{{{}}}]", destinations(&host("dest.host"))))
        .routes(
            "single.com",
            &format!(
                "[{{route: [{{destination: {{host: be.test}}, {}}}], {}}}]",
                host("dest.host"),
                host("route.host")
            ),
        )
        .routes(
            "date.com",
            "[{route: [{destination: {host: be.test}}], headers: {response: {set: {server: mine, date: never}}}}]",
        )
        .start()
        .await;
    let mut table = Table::new("networking.md §3.15, operations");
    for (number, row) in ROWS.iter().enumerate() {
        table.row(row.name);
        let request = format!("GET /p?q=1 HTTP/1.1\r\nhost: r{number}.com\r\n{SENT}\r\n");
        let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
        table.check("body", "ok", response.text().as_str());
        let received = upstream.take();
        if !row.request.is_empty() {
            let host = format!("host: r{number}.com");
            check_received(&mut table, received, "GET /p?q=1 HTTP/1.1", &[&[&*host], row.request].concat(), "");
        }
        if !row.response.is_empty() {
            table.check("response headers", &expected(row.response), &steady(&response.headers));
        }
    }
    for (name, host, lines) in [
        ("weighted, both set host", "both.com", &["host: route.host", EDGE, "x-envoy-original-host: dest.host"][..]),
        ("weighted, the destination sets host", "dest.com", &["host: dest.host", EDGE]),
        (
            "one destination, both set host",
            "single.com",
            &["host: route.host", EDGE, "x-envoy-original-host: single.com"],
        ),
    ] {
        table.row(name);
        Http1::connect(gateway.address(80)).await.get(host, "/").await;
        check_received(&mut table, upstream.take(), "GET / HTTP/1.1", lines, "");
    }
    table.row("server is overwritten, date stays");
    let response = Http1::connect(gateway.address(80)).await.get("date.com", "/").await;
    table.check("server", &["istio-envoy"][..], &response.all("server")[..]);
    table.check("date", &["never"][..], &response.all("date")[..]);
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn response_operations_on_local_replies() {
    let refuses = Upstream::refuses().await;
    let hangs = Upstream::hangs().await;
    let operation = "headers: {response: {set: {x-r: '1'}}}";
    let route = |path: &str, action: &str| format!("{{match: [{{uri: {{exact: /{path}}}}}], {action}, {operation}}}");
    let to = |service: &str| format!("route: [{{destination: {{host: {service}}}}}]");
    let routes = [
        route("nc", &to("missing.test")),
        route("uh", &to("empty.test")),
        route("uf", &to("refuses.test")),
        route("ut", &format!("{}, timeout: 200ms", to("hangs.test"))),
        route(
            "fault",
            &format!("{}, fault: {{abort: {{httpStatus: 418, percentage: {{value: 100}}}}}}", to("hangs.test")),
        ),
        route("dr", "directResponse: {status: 200, body: {string: x}}"),
        route("redir", "redirect: {uri: /z}"),
        route("upgrade", &to("hangs.test")),
    ];
    let gateway = Mesh::new()
        .http("refuses.test", &[refuses.address()])
        .http("hangs.test", &[hangs.address()])
        .resource(
            "ServiceEntry",
            "hosts: [empty.test]\nlocation: MESH_EXTERNAL\nresolution: STATIC\n\
             ports: [{number: 80, name: main, protocol: HTTP}]\nworkloadSelector: {labels: {app: nobody}}\n",
        )
        .routes("hdr.com", &format!("[{}]", routes.join(", ")))
        .start()
        .await;
    let mut table = Table::new("networking.md §3.15, response operations on local replies");
    for (path, status, first, flags, details) in [
        ("/nc", 503, &["x-r: 1"][..], "NC", "cluster_not_found"),
        ("/uh", 503, &["x-r: 1"], "UH", "no_healthy_upstream"),
        (
            "/uf",
            503,
            &["x-r: 1"],
            "URX,UF",
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
        ),
        ("/ut", 504, &["x-r: 1"], "UT", "response_timeout"),
        ("/fault", 418, &["x-r: 1"], "FI", "fault_filter_abort"),
        ("/dr", 200, &["x-r: 1"], "-", "direct_response"),
        ("/redir", 301, &["location: http://hdr.com/z", "x-r: 1"], "-", "direct_response"),
        ("/none", 404, &[], "NR", "route_not_found"),
    ] {
        table.row(path);
        let response = Http1::connect(gateway.address(80)).await.get("hdr.com", path).await;
        table.check("status", &status, &response.status);
        let length = format!("content-length: {}", response.body.len());
        let mut lines = first.to_vec();
        if response.body.is_empty() {
            lines.extend(["date: *", "server: istio-envoy", "content-length: 0"]);
        } else {
            lines.extend([&*length, "content-type: text/plain", "date: *", "server: istio-envoy"]);
        }
        table.check("headers", &expected(&lines), &steady(&response.headers));
        table.expect_log(response.client, status, flags, details);
    }
    table.row("refused upgrade");
    let request = "GET /upgrade HTTP/1.1\r\nhost: hdr.com\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n";
    let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
    table.check("status", &403, &response.status);
    let lines = ["x-r: 1", "date: *", "server: istio-envoy", "connection: close", "content-length: 0"];
    table.check("headers", &expected(&lines), &steady(&response.headers));
    table.row("path that can't be normalised");
    let response = Http1::connect(gateway.address(80)).await.get("hdr.com", "/%00").await;
    let lines = ["date: *", "server: istio-envoy", "connection: close", "content-length: 0"];
    table.check("headers", &expected(&lines), &steady(&response.headers));
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn format_strings() {
    let upstream = Upstream::answers("HTTP/1.1 200 OK\r\nx: up\r\ncontent-length: 0\r\n\r\n").await;
    // Format; its value in a request operation and in a response operation; `~` stands for "not empty, see below".
    let formats = [
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "~client", "~client"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "127.0.0.2", "127.0.0.2"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "~client", "~client"),
        ("%DOWNSTREAM_LOCAL_ADDRESS%", "~local", "~local"),
        ("%DOWNSTREAM_LOCAL_PORT%", "~port", "~port"),
        ("%DOWNSTREAM_PEER_URI_SAN%", "", ""),
        ("%DOWNSTREAM_TLS_VERSION%", "", ""),
        ("%PROTOCOL%", "HTTP/1.1", "HTTP/1.1"),
        ("%REQ(:METHOD)%", "GET", "GET"),
        ("%REQ(:AUTHORITY)%", "formats.com", "formats.com"),
        ("%REQ(:PATH)%", "/p?q=1", "/p?q=1"),
        ("%REQ(:SCHEME)%", "http", "http"),
        ("%REQ(host)%", "formats.com", "formats.com"),
        ("%REQ(X-A)%", "abcdef", "abcdef"),
        ("%REQ(x-missing?x-a)%", "abcdef", "abcdef"),
        ("%REQ(X-A):3%", "abc", "abc"),
        ("%REQ(x-missing)%", "", ""),
        ("%START_TIME(%s)%", "~seconds", "~seconds"),
        ("%START_TIME(%Y-%m-%d)%", "~date", "~date"),
        ("%START_TIME%", "~time", "~time"),
        ("%EMIT_TIME%", "~time", "~time"),
        ("%ROUTE_NAME%", "rn", "rn"),
        ("%UPSTREAM_CLUSTER%", "~cluster", "~cluster"),
        ("%UPSTREAM_HOST%", "", "~upstream"),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "1", "1"),
        ("%RESPONSE_CODE%", "0", "200"),
        ("%RESPONSE_FLAGS%", "-", "-"),
        ("%BYTES_RECEIVED%", "0", "0"),
        ("%REQUESTED_SERVER_NAME%", "", ""),
        ("%FILTER_STATE(x)%", "", ""),
        ("%DYNAMIC_METADATA(x:y)%", "", ""),
        ("%ENVIRONMENT(HOME_NOT_SET)%", "-", "-"),
        ("%ENVIRONMENT(HOME_SET)%", "here", "here"),
        ("%STREAM_ID%", "~id", "~id"),
        ("%UNIQUE_ID%", "~uuid", "~uuid"),
        ("%QUERY_PARAM(q)%", "1", "1"),
        ("%QUERY_PARAM(none)%", "", ""),
        ("%PATH%", "/p?q=1", "/p?q=1"),
        ("%PATH(NQ)%", "/p", "/p"),
        ("%TRACE_ID%", "", ""),
        ("%GRPC_STATUS%", "", ""),
        ("%RESP(X)%", "", "up"),
        ("100%%", "100%", "100%"),
    ];
    let sets: Vec<_> =
        formats.iter().enumerate().map(|(number, (format, ..))| format!("x-f{number}: '[{format}]'")).collect();
    let sets = sets.join(", ");
    let route = format!(
        "[{{name: rn, route: [{{destination: {{host: be.test}}}}], headers: {{request: {{set: {{{sets}}}}}, response: {{set: {{{sets}}}}}}}}}]"
    );
    let mesh = Mesh::new().http("be.test", &[upstream.address()]).routes("formats.com", &route);
    let gateway =
        mesh.builder().environment("HOME_SET", "here").start().await.unwrap_or_else(|failure| panic!("{failure}"));
    let mut client = Http1::connect(gateway.address(80)).await;
    let response = client.exchange("GET /p?q=1 HTTP/1.1\r\nhost: formats.com\r\nx-a: abcdef\r\n\r\n").await;
    let received = upstream.take();
    let request_id = received.first().and_then(|seen| seen.header("x-request-id")).unwrap_or_default();
    let mut table = Table::new("networking.md §3.15, format strings");
    for (number, (format, in_request, in_response)) in formats.into_iter().enumerate() {
        let name = format!("x-f{number}");
        let request_value = received.first().and_then(|seen| seen.header(&name)).unwrap_or_default();
        for (place, expected, got) in
            [("request", in_request, request_value), ("response", in_response, response.header(&name))]
        {
            table.row(format!("{format} in a {place}"));
            let got = got.trim_start_matches('[').trim_end_matches(']');
            let local = gateway.address(80);
            let shaped =
                |groups: &[usize], separator: char| got.split(separator).map(str::len).eq(groups.iter().copied());
            let equal = match expected {
                "~client" => got == client.address().to_string(),
                "~local" => got == local.to_string(),
                "~port" => got == local.port().to_string(),
                "~seconds" => got.parse::<u64>().is_ok_and(|seconds| seconds > 1_700_000_000),
                "~date" => shaped(&[4, 2, 2], '-'),
                "~time" => got.len() == "2026-11-22T00:57:53.253Z".len() && got.ends_with('Z') && got.contains('T'),
                "~cluster" => got.starts_with("outbound|80||be.test"),
                "~upstream" => got == upstream.address().to_string(),
                "~id" => got == request_id && !got.is_empty(),
                "~uuid" => shaped(&[8, 4, 4, 4, 12], '-'),
                _ => got == expected,
            };
            if !equal {
                table.fail(format!("expected {expected:?}, got {got:?}"));
            }
        }
    }
    table.check_logs(&gateway).await;
    table.finish();
}
