//! networking.md §3.2, §3.3 and §3.5: from servers and VirtualServices to virtual hosts with routes in order.

use crate::harness::client::Http1;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;

/// A Gateway with one HTTP server.
fn server(name: &str, namespace: &str, port: u16, hosts: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{selector: {{istio: ingressgateway}}, servers: [{{port: {{number: {port}, name: http, protocol: HTTP}}, hosts: [{hosts}]}}]}}"
    )
}

/// A VirtualService; `spec` begins with its hosts and gateways.
fn service(metadata: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{{metadata}}}\nspec: {{{spec}}}")
}

/// A route that answers with `body`.
fn says(matched: &str, body: &str) -> String {
    let matched = if matched.is_empty() { String::new() } else { format!("match: [{{{matched}}}], ") };
    format!("{{{matched}directResponse: {{status: 200, body: {{string: {body}}}}}}}")
}

async fn answer(gateway: &Gateway, port: u16, host: &str, target: &str) -> String {
    let response = Http1::connect(gateway.address(port)).await.get(host, target).await;
    if response.status == 200 { response.text() } else { response.status.to_string() }
}

/// Server hosts; namespace and hosts of the VirtualService; hosts asked, whether they are there.
type HostsRow = (&'static str, &'static str, &'static str, &'static [(&'static str, bool)]);

#[tokio::test]
async fn server_and_service_hosts() {
    let rows: &[HostsRow] = &[
        ("'*'", "default", "foo.com", &[("foo.com", true), ("bar.com", false)]),
        (
            "'*.foo.com'",
            "default",
            "a.foo.com, b.foo.com",
            &[("a.foo.com", true), ("b.foo.com", true), ("c.foo.com", false)],
        ),
        ("a.foo.com", "default", "'*.foo.com'", &[("a.foo.com", true), ("b.foo.com", false)]),
        ("a.foo.com", "default", "'*'", &[("a.foo.com", true), ("b.foo.com", false)]),
        ("'ns1/*.foo.com'", "ns2", "a.foo.com", &[("a.foo.com", false)]),
        ("'ns1/*.foo.com'", "ns1", "a.foo.com", &[("a.foo.com", true)]),
        ("'./*.foo.com'", "default", "a.foo.com", &[("a.foo.com", true)]),
        ("'./*.foo.com'", "ns2", "a.foo.com", &[("a.foo.com", false)]),
        ("'*/a.foo.com'", "ns2", "a.foo.com", &[("a.foo.com", true)]),
        ("'*.foo.com'", "default", "foo.com", &[("foo.com", false)]),
        ("foo.com", "default", "Foo.com", &[("foo.com", false), ("Foo.com", false)]),
        ("'*.com'", "default", "Foo.com", &[("foo.com", true), ("FOO.com", true)]),
        ("a.com, '*/*'", "default", "b.com", &[("b.com", true)]),
    ];
    let ports: Vec<u16> = (0..rows.len()).map(|number| 9000 + number as u16).collect();
    let mut yaml = String::new();
    for ((hosts, namespace, service_hosts, _), port) in rows.iter().zip(&ports) {
        yaml += &format!("---\n{}\n", server(&format!("g{port}"), "default", *port, hosts));
        let spec = format!("hosts: [{service_hosts}], gateways: [default/g{port}], http: [{}]", says("", "here"));
        yaml += &format!("---\n{}\n", service(&format!("name: v{port}, namespace: {namespace}"), &spec));
    }
    let gateway = Gateway::builder()
        .ports(&ports)
        .file("config.yaml", yaml)
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let mut table = Table::new("networking.md §3.2, server hosts and VirtualService hosts");
    for ((hosts, namespace, service_hosts, probes), port) in rows.iter().zip(&ports) {
        for (host, there) in *probes {
            table.row(format!("server {hosts}, service {namespace} {service_hosts}, host {host}"));
            let expected = if *there { "here" } else { "404" };
            table.check("answer", expected, answer(&gateway, *port, host, "/").await.as_str());
        }
    }
    table.finish();
}

/// Host; VirtualServices as metadata, exportTo and answer; whose route is first.
type OrderRow = (&'static str, &'static [(&'static str, &'static str, &'static str)], &'static str);

#[tokio::test]
async fn order_of_virtual_services() {
    let rows: &[OrderRow] = &[
        (
            "visibility.com",
            &[
                ("name: a, namespace: shop", "'*'", "public"),
                ("name: b, namespace: shop", "istio-system", "exported"),
                ("name: c, namespace: istio-system", "'.'", "private"),
            ],
            "private",
        ),
        (
            "exported.com",
            &[("name: d, namespace: shop", "'*'", "public"), ("name: e, namespace: shop", "istio-system", "exported")],
            "exported",
        ),
        ("names.com", &[("name: g, namespace: aa", "'*'", "g"), ("name: f, namespace: zz", "'*'", "f")], "f"),
        ("namespaces.com", &[("name: h, namespace: zz", "'*'", "zz"), ("name: h, namespace: aa", "'*'", "aa")], "aa"),
        (
            "age.com",
            &[
                ("name: i, namespace: shop, creationTimestamp: '2024-02-02T00:00:00Z'", "'*'", "younger"),
                ("name: j, namespace: shop, creationTimestamp: '2024-01-01T00:00:00Z'", "'*'", "older"),
            ],
            "older",
        ),
        ("hidden.com", &[("name: k, namespace: shop", "'.'", "hidden")], "404"),
        ("elsewhere.com", &[("name: l, namespace: shop", "other", "elsewhere")], "404"),
    ];
    let mut mesh = Mesh::new();
    for (host, services, _) in rows {
        for (metadata, export, body) in *services {
            let http = says("uri: {exact: /x}", body);
            let spec = format!("hosts: [{host}], gateways: [default/gateway], exportTo: [{export}], http: [{http}]");
            mesh = mesh.document(&service(metadata, &spec));
        }
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §3.2, order of VirtualServices");
    for (host, _, first) in rows {
        table.row(*host);
        table.check("answer", *first, answer(&gateway, 80, host, "/x").await.as_str());
    }
    table.finish();
}

#[tokio::test]
async fn several_virtual_services_on_one_host() {
    // An object without a timestamp is the oldest, as Go's zero time is.
    let old = "creationTimestamp: '2024-01-01T00:00:00Z'";
    let new = "creationTimestamp: '2025-01-01T00:00:00Z'";
    let documents = [
        // A later rule beats an earlier catch-all, but not an earlier `/` with a header.
        (format!("name: m1, {old}"), "catch.com", vec![says("", "all"), says("uri: {prefix: /never}", "dropped")]),
        (format!("name: m2, {new}"), "catch.com", vec![says("uri: {prefix: /b}", "b")]),
        (
            format!("name: m3, {old}"),
            "header.com",
            vec![says("uri: {prefix: /}, headers: {x-a: {exact: '1'}}", "header")],
        ),
        (format!("name: m4, {new}"), "header.com", vec![says("uri: {prefix: /b}", "b")]),
        (format!("name: m5, {old}"), "regex.com", vec![says("uri: {regex: '.*'}", "regex")]),
        (format!("name: m6, {new}"), "regex.com", vec![says("uri: {prefix: /b}", "b"), says("", "all")]),
        (format!("name: m7, {old}"), "foo.example.com, bar.example.com", vec![says("uri: {exact: /1}", "old")]),
        (format!("name: m8, {new}"), "foo.example.com", vec![says("uri: {exact: /foo}", "new")]),
        (format!("name: m9, {new}"), "a.wild.com", vec![says("uri: {exact: /x}", "a")]),
        (format!("name: m10, {new}"), "'*.wild.com'", vec![says("", "wild")]),
    ];
    let mesh = documents.iter().fold(Mesh::new(), |mesh, (metadata, hosts, http)| {
        let spec = format!("hosts: [{hosts}], gateways: [gateway], http: [{}]", http.join(", "));
        mesh.document(&service(metadata, &spec))
    });
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §3.3, several VirtualServices on one host");
    for (name, host, target, expected) in [
        ("a later rule beats an earlier catch-all (A10)", "catch.com", "/b/x", "b"),
        ("the catch-all is last (A10)", "catch.com", "/c", "all"),
        ("rules behind a catch-all of one VirtualService are dropped", "catch.com", "/never", "all"),
        ("a `/` with a header isn't a catch-all and isn't met", "header.com", "/b", "b"),
        ("regex .* is a catch-all", "regex.com", "/b", "b"),
        ("catch-alls keep their order", "regex.com", "/c", "regex"),
        ("A11, the newer", "foo.example.com", "/foo", "new"),
        ("A11, the older", "foo.example.com", "/1", "old"),
        ("A11, the other host", "bar.example.com", "/foo", "404"),
        ("A12, the specific host has it", "a.wild.com", "/x", "a"),
        ("A12, no fall-through", "a.wild.com", "/y", "404"),
        ("A12, the wildcard", "b.wild.com", "/y", "wild"),
    ] {
        table.row(name);
        table.check("answer", expected, answer(&gateway, 80, host, target).await.as_str());
    }
    table.row("the earlier `/` with a header stays before a later rule");
    let request = "GET /b HTTP/1.1\r\nhost: header.com\r\nx-a: 1\r\n\r\n";
    let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
    table.check("answer", "header", response.text().as_str());
    table.finish();
}

#[tokio::test]
async fn evaluation() {
    let gateways = [
        server("one", "default", 80, "'*'"),
        server("two", "default", 8080, "'*'"),
        server("alpha", "default", 8081, "'ns-1/*.example.com'"),
        server("beta", "default", 8081, "'ns-2/*.example.com'"),
    ];
    let http = |rules: &[String]| format!("http: [{}]", rules.join(", "));
    let services = [
        service(
            "name: both",
            &format!(
                "hosts: [both.com], gateways: [one, two], {}",
                http(&[
                    says("port: 8080, uri: {prefix: /p}", "port"),
                    says("gateways: [two], uri: {prefix: /g}", "gateway"),
                    says("uri: {exact: /a}}, {uri: {exact: /b}", "either"),
                    says("uri: {prefix: /p}", "first-of-two"),
                    says("uri: {prefix: /}", "rest"),
                ])
            ),
        ),
        service("name: no-gateways", &format!("hosts: [mesh.com], {}", http(&[says("", "mesh")]))),
        service(
            "name: mesh-and-one",
            &format!("hosts: [mixed.com], gateways: [mesh, one], {}", http(&[says("", "mixed")])),
        ),
        service(
            "name: elsewhere, namespace: shop",
            &format!("hosts: [far.com], gateways: [default/one], {}", http(&[says("", "far")])),
        ),
        service(
            "name: own, namespace: shop",
            &format!("hosts: [own.com], gateways: [one], {}", http(&[says("", "own")])),
        ),
        service(
            "name: v1, namespace: ns-1",
            &format!("hosts: [ns-1.example.com], gateways: [default/alpha], {}", http(&[says("", "ns-1")])),
        ),
        service(
            "name: v2, namespace: ns-2",
            &format!("hosts: [ns-2.example.com], gateways: [default/beta], {}", http(&[says("", "ns-2")])),
        ),
        service(
            "name: product",
            &format!("hosts: ['*'], gateways: [one], {}", http(&[says("uri: {exact: /productpage}", "product")])),
        ),
    ];
    let yaml: String = gateways.iter().chain(&services).map(|document| format!("---\n{document}\n")).collect();
    let gateway = Gateway::builder()
        .ports(&[80, 8080, 8081])
        .file("config.yaml", yaml)
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let mut table = Table::new("networking.md §3.5, evaluation");
    for (name, port, host, target, expected) in [
        ("a rule for the other port is dropped", 80, "both.com", "/p", "first-of-two"),
        ("a rule for this port is kept", 8080, "both.com", "/p", "port"),
        ("a rule for the other gateway is dropped", 80, "both.com", "/g", "rest"),
        ("a rule for this gateway is kept", 8080, "both.com", "/g", "gateway"),
        ("entries are alternatives, first", 80, "both.com", "/a", "either"),
        ("entries are alternatives, second", 80, "both.com", "/b", "either"),
        ("the first match wins", 80, "both.com", "/pp", "first-of-two"),
        ("no gateways means mesh", 80, "mesh.com", "/", "404"),
        ("mesh among others", 80, "mixed.com", "/", "mixed"),
        ("a gateway of another namespace", 80, "far.com", "/", "far"),
        ("a short name means the own namespace", 80, "own.com", "/", "404"),
        ("A9, first", 8081, "ns-1.example.com", "/", "ns-1"),
        ("A9, second", 8081, "ns-2.example.com", "/", "ns-2"),
        ("A2, another path", 80, "foo.bar", "/", "404"),
        ("A2, the path", 80, "foo.bar", "/productpage", "product"),
    ] {
        table.row(name);
        table.check("answer", expected, answer(&gateway, port, host, target).await.as_str());
    }
    table.finish();
}
