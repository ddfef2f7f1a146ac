//! The tables of `reference/networking.md` that are decided when a configuration is compiled.

use super::*;
use crate::snapshot::cluster::{EndpointAddress, Endpoints, UpstreamProtocol};
use crate::snapshot::route::{Action, PathMatch, Redirect};

const SERVER: &str = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}";

fn server(port: u16, protocol: &str, hosts: &str, rest: &str) -> String {
    format!("{{port: {{number: {port}, name: p, protocol: {protocol}}}, hosts: {hosts}{rest}}}")
}

/// `route` with a direct response, so that no destination is needed; the status tells routes apart.
fn responds(hosts: &str, status: u16) -> String {
    format!("{{hosts: {hosts}, gateways: [gw/web], http: [{{directResponse: {{status: {status}}}}}]}}")
}

fn status(route: Option<&Arc<Route>>) -> Option<u16> {
    match &*route?.action {
        Action::DirectResponse(response) => Some(response.status),
        _ => None,
    }
}

fn cluster(route: Option<&Arc<Route>>) -> Option<String> {
    match &*route?.action {
        Action::Forward(forward) => Some(forward.clusters[0].cluster.to_string()),
        _ => None,
    }
}

/// §3.2: server host, host and namespace of the VirtualService, virtual hosts.
#[test]
fn server_and_virtual_service_hosts_intersect() {
    for (server_hosts, namespace, hosts, expected) in [
        ("['*']", "n", "[foo.com]", &["foo.com"][..]),
        ("['*.foo.com']", "n", "[a.foo.com, b.foo.com]", &["a.foo.com", "b.foo.com"]),
        ("[a.foo.com]", "n", "['*.foo.com']", &["a.foo.com"]),
        ("[a.foo.com]", "n", "['*']", &["a.foo.com"]),
        ("['ns1/*.foo.com']", "ns2", "[a.foo.com]", &[]),
        ("['ns1/*.foo.com']", "ns1", "[a.foo.com]", &["a.foo.com"]),
        ("['*.foo.com']", "n", "[foo.com]", &[]),
        ("[foo.com]", "n", "[Foo.com]", &[]),
        ("[Foo.com]", "n", "[Foo.com]", &["foo.com"]),
        ("['./foo.com']", "gw", "[foo.com]", &["foo.com"]),
        ("['./foo.com']", "n", "[foo.com]", &[]),
        ("['*/foo.com']", "n", "[foo.com]", &["foo.com"]),
        ("['*/*', bar.com]", "n", "[foo.com]", &["foo.com"]),
    ] {
        let yaml = gateway("gw", "web", &server(80, "HTTP", server_hosts, ""))
            + &virtual_service(namespace, "v", &responds(hosts, 200));
        let compiled = compiled(&yaml);
        let table = &listener(&compiled, 80).unwrap().filter_chains[0].http().unwrap().routes;
        let mut domains: Vec<_> = table.virtual_hosts().map(|host| &*host.domain).collect();
        domains.sort_unstable();
        assert_eq!(domains, expected, "{server_hosts} {namespace} {hosts}");
    }
}

/// §2.1: selector and scope.
#[test]
fn gateways_select_by_labels() {
    let with = |selector: &str| document("Gateway", "gw", "web", &format!("spec: {{{selector}servers: [{SERVER}]}}"));
    for (selector, expected) in [
        ("selector: {istio: ingressgateway}, ", 1),
        ("selector: {istio: ingressgateway, app: istio-ingressgateway}, ", 1),
        ("selector: {istio: egressgateway}, ", 0),
        ("selector: {istio: ingressgateway, more: x}, ", 0),
        ("", 1),
    ] {
        assert_eq!(compiled(&with(selector)).snapshot.listeners.len(), expected, "{selector}");
    }
    let mut options = Options::default();
    options.features.scope_gateway_to_namespace = true;
    assert_eq!(compiled_with(&with(""), &options).snapshot.listeners.len(), 0);
    options.namespace = "gw".into();
    assert_eq!(compiled_with(&with(""), &options).snapshot.listeners.len(), 1);
}

/// §2.1: Service port to target port; `--port-map` wins; nothing else sees the number.
#[test]
fn ports_are_mapped_by_the_service_in_front() {
    let service = |port: &str| {
        document(
            "Service",
            "istio-system",
            "ingress",
            &format!("spec: {{selector: {{istio: ingressgateway}}, ports: [{{name: http2, port: 80{port}}}]}}"),
        )
    };
    let target = |yaml: &str, options: &Options| compiled_with(yaml, options).snapshot.listeners[0].target_port;
    let web = gateway("gw", "web", SERVER);
    let plain = Options::default();
    assert_eq!(target(&web, &plain), 80);
    assert_eq!(target(&(web.clone() + &service(", targetPort: 8080")), &plain), 8080);
    assert_eq!(target(&(web.clone() + &service("")), &plain), 80);
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: i, namespace: istio-system, \
                 labels: {kubernetes.io/service-name: ingress}}\naddressType: IPv4\n\
                 endpoints: []\nports: [{name: http2, port: 8081}]\n---\n";
    assert_eq!(target(&(web.clone() + &service(", targetPort: http") + slice), &plain), 8081);
    let mapped = Options { port_map: [(80, 0)].into(), ..Options::default() };
    assert_eq!(target(&(web + &service(", targetPort: 8080")), &mapped), 0);
}

/// §3.3 and A10, A11: several VirtualServices on one host.
#[test]
fn virtual_services_of_a_host_are_joined() {
    let rule = |path: &str, status: u16| {
        format!("{{match: [{{uri: {{prefix: {path}}}}}], directResponse: {{status: {status}}}}}")
    };
    let service = |name: &str, hosts: &str, rules: &[String]| {
        virtual_service("n", name, &format!("{{hosts: {hosts}, gateways: [gw/web], http: [{}]}}", rules.join(", ")))
    };
    let web = gateway("gw", "web", SERVER);
    // A10: catch-alls go last, whatever their age.
    let yaml = web.clone() + &service("a", "[h.com]", &[rule("/", 201)]) + &service("b", "[h.com]", &[rule("/b", 202)]);
    let both = compiled(&yaml);
    assert_eq!(status(route(&both, "h.com", "/b/x")), Some(202));
    assert_eq!(status(route(&both, "h.com", "/c")), Some(201));
    // A catch-all with a header is none.
    let with_header = "{match: [{uri: {prefix: /}, withoutHeaders: {x: {exact: y}}}], directResponse: {status: 203}}";
    let yaml = web.clone()
        + &service("a", "[h.com]", &[with_header.to_owned()])
        + &service("b", "[h.com]", &[rule("/b", 202)]);
    assert_eq!(status(route(&compiled(&yaml), "h.com", "/b")), Some(203));
    // A11: hosts are merged one by one.
    let yaml = web.clone()
        + &service("a", "[foo.example.com, bar.example.com]", &[rule("/1", 201)])
        + &service("b", "[foo.example.com]", &[rule("/foo", 202)]);
    let hosts = compiled(&yaml);
    assert_eq!(status(route(&hosts, "foo.example.com", "/foo")), Some(202));
    assert_eq!(status(route(&hosts, "foo.example.com", "/1")), Some(201));
    assert_eq!(route(&hosts, "bar.example.com", "/foo"), None);
    // A12: no fall-through to a less specific host.
    let yaml = web.clone()
        + &service("a", "[a.foo.com]", &[rule("/x", 201)])
        + &service("b", "['*.foo.com']", &[rule("/", 202)]);
    let wildcard = compiled(&yaml);
    assert_eq!(route(&wildcard, "a.foo.com", "/y"), None);
    assert_eq!(status(route(&wildcard, "b.foo.com", "/y")), Some(202));
    // Inside of one VirtualService nothing comes after a catch-all.
    let yaml = web + &service("a", "[h.com]", &[rule("/", 201), rule("/b", 202)]);
    let one = compiled(&yaml);
    assert_eq!(host(&one, 80, "h.com").unwrap().routes.routes().len(), 1);
    assert_eq!(findings(&one, Severity::Warning).len(), 1);
}

/// §3.2: private ones first, then those exported to us, then public ones; each group oldest first.
#[test]
fn visibility_decides_the_order() {
    let service = |namespace: &str, name: &str, export_to: &str, status: u16| {
        let spec = format!(
            "{{hosts: [h.com], gateways: [gw/web], exportTo: {export_to}, \
             http: [{{match: [{{uri: {{prefix: /a}}}}], directResponse: {{status: {status}}}}}]}}"
        );
        virtual_service(namespace, name, &spec)
    };
    let web = gateway("gw", "web", SERVER);
    let public = service("n", "a", "['*']", 201);
    let named = service("n", "b", "[istio-system]", 202);
    let private = service("istio-system", "c", "['.']", 203);
    let hidden = service("n", "d", "['.']", 204);
    let first = |yaml: String| status(route(&compiled(&yaml), "h.com", "/a"));
    assert_eq!(first(format!("{web}{public}{named}{private}{hidden}")), Some(203));
    assert_eq!(first(format!("{web}{public}{named}{hidden}")), Some(202));
    assert_eq!(first(format!("{web}{public}{hidden}")), Some(201));
    assert_eq!(first(format!("{web}{hidden}")), None);
}

/// §3.5: entries that can't apply at this server are not there at all.
#[test]
fn match_entries_are_filtered_by_place() {
    for (entry, expected) in [
        ("port: 80", true),
        ("port: 81", false),
        ("gateways: [gw/web]", true),
        ("gateways: [gw/other]", false),
        ("gateways: [mesh]", false),
        ("gateways: [gw/web], sourceLabels: {app: x}", true),
        ("sourceLabels: {app: x}", false),
        ("sourceLabels: {istio: ingressgateway}", true),
        ("sourceNamespace: istio-system", true),
        ("sourceNamespace: other", false),
    ] {
        let spec = format!(
            "{{hosts: [h.com], gateways: [gw/web, mesh], http: [{{match: [{{{entry}}}], directResponse: {{status: 200}}}}]}}"
        );
        let compiled = compiled(&(gateway("gw", "web", SERVER) + &virtual_service("n", "v", &spec)));
        assert_eq!(host(&compiled, 80, "h.com").is_some(), expected, "{entry}");
    }
}

/// A VirtualService without gateways is for sidecars.
#[test]
fn virtual_services_of_the_mesh_do_nothing() {
    let spec = "{hosts: [h.com], http: [{directResponse: {status: 200}}]}";
    let compiled = compiled(&(gateway("gw", "web", SERVER) + &virtual_service("n", "v", spec)));
    assert!(host(&compiled, 80, "h.com").is_none());
    assert!(compiled.diagnostics.is_empty());
}

/// §2.8 and A4, A5.
#[test]
fn https_redirect_belongs_to_the_host() {
    let redirect = ", tls: {httpsRedirect: true}";
    let redirects = |yaml: &str, authority: &str| {
        host(&compiled(yaml), 80, authority).map(|host| (host.https_redirect, host.routes.routes().len()))
    };
    let example = gateway("gw", "web", &server(80, "HTTP", "[example.com]", redirect));
    // A4: without a VirtualService.
    assert_eq!(redirects(&example, "example.com"), Some((true, 0)));
    assert_eq!(redirects(&example, "other.com"), None);
    // A5: another Gateway that doesn't redirect shares the host.
    let shared = example.clone()
        + &gateway("gw", "xeb", &server(80, "HTTP", "[example.com]", ""))
        + &virtual_service(
            "n",
            "v",
            "{hosts: [example.com], gateways: [gw/xeb], http: [{directResponse: {status: 200}}]}",
        );
    assert_eq!(redirects(&shared, "example.com"), Some((true, 1)));
    // A host with a namespace is no host of a redirect.
    let namespaced = gateway("gw", "web", &server(80, "HTTP", "[n/example.com]", redirect));
    assert_eq!(redirects(&namespaced, "example.com"), None);
    // A redirecting server that repeats a host is left out as a whole.
    let repeated = example + &gateway("gw", "xeb", &server(80, "HTTP", "[example.com, b.com]", redirect));
    assert_eq!(redirects(&repeated, "b.com"), None);
}

fn service(namespace: &str, name: &str, ports: &str) -> String {
    document("Service", namespace, name, &format!("spec: {{ports: [{ports}]}}"))
}

/// §3.16: ports that a destination doesn't name.
#[test]
fn destinations_find_their_port() {
    let one = service("n", "one", "{name: http, port: 8000}");
    let two = service("n", "two", "{name: http, port: 8000}, {name: grpc, port: 9000}");
    for (destination, expected) in [
        ("{host: one}", "outbound|8000||one.n.svc.cluster.local"),
        ("{host: one.n.svc.cluster.local}", "outbound|8000||one.n.svc.cluster.local"),
        ("{host: two}", "outbound|80||two.n.svc.cluster.local"),
        ("{host: two, port: {number: 9000}}", "outbound|9000||two.n.svc.cluster.local"),
        ("{host: none}", "outbound|80||none.n.svc.cluster.local"),
        ("{host: one, subset: v1}", "outbound|8000|v1|one.n.svc.cluster.local"),
        ("{host: example.com, port: {number: 443}}", "outbound|443||example.com"),
    ] {
        let spec =
            format!("{{hosts: [h.com], gateways: [gw/web], http: [{{route: [{{destination: {destination}}}]}}]}}");
        let yaml = gateway("gw", "web", SERVER) + &virtual_service("n", "v", &spec) + &one + &two;
        assert_eq!(cluster(route(&compiled(&yaml), "h.com", "/")).as_deref(), Some(expected), "{destination}");
    }
}

/// §3.16: what doesn't exist is no cluster, and is reported.
#[test]
fn dangling_destinations_have_no_cluster() {
    let one = service("n", "one", "{name: http, port: 8000}");
    for (destination, field, message) in [
        ("{host: none}", "host", "host not found: \"none.n.svc.cluster.local\" (requests answer 503, NC)"),
        ("{host: one, port: {number: 81}}", "port", "one.n.svc.cluster.local has no port 81 (requests answer 503, NC)"),
        (
            "{host: one, subset: v1}",
            "subset",
            "subset not found: \"v1\" of one.n.svc.cluster.local (requests answer 503, NC)",
        ),
    ] {
        let spec =
            format!("{{hosts: [h.com], gateways: [gw/web], http: [{{route: [{{destination: {destination}}}]}}]}}");
        let compiled = compiled(&(gateway("gw", "web", SERVER) + &virtual_service("n", "v", &spec) + &one));
        assert!(compiled.snapshot.clusters.is_empty(), "{destination}");
        let expected = format!("IST0101 spec.http[0].route[0].destination.{field}: {message}");
        assert_eq!(findings(&compiled, Severity::Warning), [expected]);
    }
}

/// §3.17 and A38.
#[test]
fn delegates_narrow_their_root() {
    let root = "{hosts: [h.com], gateways: [gw/web], http: [{name: root, match: [{uri: {prefix: /a}}], \
                delegate: {name: leaf, namespace: leaves}}, {directResponse: {status: 204}}]}";
    let leaf = "{http: [{name: leaf, match: [{uri: {prefix: /a/b}}], route: [{destination: {host: one}}]}, \
                {match: [{uri: {prefix: /c}}], directResponse: {status: 202}}]}";
    let yaml = gateway("gw", "web", SERVER)
        + &virtual_service("n", "root", root)
        + &virtual_service("leaves", "leaf", leaf)
        + &service("leaves", "one", "{name: http, port: 8000}");
    let delegated = compiled(&yaml);
    let found = route(&delegated, "h.com", "/a/b/c").unwrap();
    assert_eq!(&*found.name, "root-leaf");
    // Short names belong to the delegate's namespace.
    assert_eq!(cluster(Some(found)).as_deref(), Some("outbound|8000||one.leaves.svc.cluster.local"));
    assert_eq!(status(route(&delegated, "h.com", "/a/x")), Some(204));
    assert_eq!(status(route(&delegated, "h.com", "/c")), Some(204));
    // A missing delegate takes only its own rule away.
    let missing = compiled(&(gateway("gw", "web", SERVER) + &virtual_service("n", "root", root)));
    assert_eq!(status(route(&missing, "h.com", "/a/b")), Some(204));
    assert_eq!(findings(&missing, Severity::Warning).len(), 1);
}

/// §3.9: what a rewrite replaces depends on how the path was matched.
#[test]
fn rewrites_follow_the_match() {
    for (uri, expected) in [
        ("uri: {prefix: /ratings}", "rewrite first 8 bytes of path to /v1"),
        ("uri: {exact: /a}", "rewrite path to /v1"),
        ("uri: {regex: /a.*}", "rewrite path to /v1"),
        ("method: {exact: GET}", "rewrite first 1 bytes of path to /v1"),
    ] {
        let spec = format!(
            "{{hosts: [h.com], gateways: [gw/web], http: [{{match: [{{{uri}}}], rewrite: {{uri: /v1}}, \
             route: [{{destination: {{host: one}}}}]}}]}}"
        );
        let yaml = gateway("gw", "web", SERVER)
            + &virtual_service("n", "v", &spec)
            + &service("n", "one", "{name: http, port: 8000}");
        let text = render::text(&compiled(&yaml).snapshot);
        assert!(text.contains(expected), "{uri}: {text}");
    }
}

/// §3.7: ports of redirects.
#[test]
fn redirects_leave_out_default_ports() {
    let redirect = |fields: &str, port: u16| -> Redirect {
        let spec = format!("{{hosts: [h.com], gateways: [gw/web], http: [{{redirect: {{{fields}}}}}]}}");
        let yaml = gateway("gw", "web", &server(port, "HTTP", "['*']", "")) + &virtual_service("n", "v", &spec);
        let compiled = compiled(&yaml);
        match &*host(&compiled, port, "h.com").unwrap().routes.routes()[0].action {
            Action::Redirect(redirect) => redirect.clone(),
            other => panic!("{other:?}"),
        }
    };
    for (fields, server_port, port) in [
        ("port: 8443, scheme: https", 80, Some(8443)),
        ("port: 443, scheme: https", 80, None),
        ("port: 80", 80, None),
        ("port: 443", 80, Some(443)),
        ("port: 9090", 80, Some(9090)),
        ("derivePort: FROM_REQUEST_PORT, authority: b.com", 80, None),
        ("derivePort: FROM_REQUEST_PORT, authority: b.com", 8080, Some(8080)),
        ("derivePort: FROM_PROTOCOL_DEFAULT, authority: b.com", 8080, None),
    ] {
        assert_eq!(redirect(fields, server_port).port, port, "{fields} on {server_port}");
    }
    assert_eq!(redirect("uri: v2", 80).path, redirect("uri: /v2", 80).path);
    assert_eq!(redirect("uri: /v2", 80).code, 301);
    assert_eq!(redirect("uri: /v2, redirectCode: 308", 80).code, 308);
}

/// §3.15: one destination's operations are the route's, and come last.
#[test]
fn header_operations_of_a_single_destination_win() {
    let route_headers = "headers: {request: {set: {x: route}, add: {a: route}, remove: [r]}}";
    let destination =
        "{destination: {host: one}, headers: {request: {set: {x: destination, host: d.com}, remove: [s]}}}";
    let spec = format!("{{hosts: [h.com], gateways: [gw/web], http: [{{{route_headers}, route: [{destination}]}}]}}");
    let yaml = gateway("gw", "web", SERVER)
        + &virtual_service("n", "v", &spec)
        + &service("n", "one", "{name: http, port: 8000}");
    let compiled = compiled(&yaml);
    let found = route(&compiled, "h.com", "/").unwrap();
    assert_eq!(found.request_headers.remove, ["r", "s"]);
    let put: Vec<_> = found
        .request_headers
        .put
        .iter()
        .map(|put| (put.name.as_str(), put.value.as_literal().unwrap(), put.replace))
        .collect();
    assert_eq!(put, [("x", "route", true), ("a", "route", false), ("x", "destination", true)]);
    let Action::Forward(forward) = &*found.action else { panic!("{found:?}") };
    assert_eq!(forward.host_rewrite.as_deref(), Some("d.com"));
    assert!(forward.clusters[0].request_headers.is_empty());
}

/// §3.16, A18: weights.
#[test]
fn weights() {
    let targets = |destinations: &str| {
        let spec = format!("{{hosts: [h.com], gateways: [gw/web], http: [{{route: [{destinations}]}}]}}");
        let yaml = gateway("gw", "web", SERVER)
            + &virtual_service("n", "v", &spec)
            + &service("n", "one", "{name: http, port: 1}")
            + &service("n", "two", "{name: http, port: 2}");
        let compiled = compiled(&yaml);
        let Action::Forward(forward) = &*route(&compiled, "h.com", "/").unwrap().action else { panic!("no forward") };
        forward.clusters.iter().map(|target| (target.cluster.to_string(), target.weight)).collect::<Vec<_>>()
    };
    let one = "outbound|1||one.n.svc.cluster.local".to_owned();
    let two = "outbound|2||two.n.svc.cluster.local".to_owned();
    let both = "{destination: {host: one}, weight: 0}, {destination: {host: two}, weight: 100}";
    assert_eq!(targets(both), [(two.clone(), 100)]);
    assert_eq!(targets("{destination: {host: one}, weight: 0}"), [(one.clone(), 1)]);
    let both = "{destination: {host: one}, weight: 1}, {destination: {host: two}, weight: 2}";
    assert_eq!(targets(both), [(one, 1), (two, 2)]);
}

/// §6.2, A35: resolutions of a ServiceEntry.
#[test]
fn resolutions() {
    let endpoints = |fields: &str| {
        let entry = document(
            "ServiceEntry",
            "n",
            "e",
            &format!(
                "spec: {{hosts: [ext.com], ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}]{fields}}}"
            ),
        );
        let spec = "{hosts: [h.com], gateways: [gw/web], http: [{route: [{destination: {host: ext.com}}]}]}";
        let yaml = gateway("gw", "web", SERVER) + &virtual_service("n", "v", spec) + &entry;
        compiled(&yaml).snapshot.clusters.values().next().map(|cluster| cluster.endpoints.clone())
    };
    assert_eq!(endpoints(", resolution: NONE"), Some(Endpoints::Static(Arc::default())));
    let text = |fields: &str| match endpoints(fields)? {
        Endpoints::Static(endpoints) => Some(format!("{:?}", endpoints.iter().map(|e| &e.address).collect::<Vec<_>>())),
        Endpoints::StrictDns(endpoints) => {
            Some(format!("{:?}", endpoints.iter().map(|e| (&*e.host, e.port, e.weight)).collect::<Vec<_>>()))
        }
        Endpoints::LogicalDns(e) => Some(format!("{:?}", (&*e.host, e.port, e.weight))),
        Endpoints::Dynamic(dns) => Some(format!("{:?}", (&*dns.suffix, dns.port))),
    };
    assert_eq!(text(", resolution: DNS").as_deref(), Some("[(\"ext.com\", 8080, 1)]"));
    let two = ", resolution: DNS, endpoints: [{address: a.com, weight: 3}, {address: b.com, ports: {http: 9}}]";
    assert_eq!(text(two).as_deref(), Some("[(\"a.com\", 8080, 3), (\"b.com\", 9, 1)]"));
    assert_eq!(text(", resolution: DNS_ROUND_ROBIN").as_deref(), Some("(\"ext.com\", 8080, 1)"));
    let ips = ", resolution: STATIC, endpoints: [{address: 10.0.0.1}, {address: '::1', ports: {http: 9}}]";
    assert_eq!(text(ips).as_deref(), Some("[Ip(10.0.0.1, 8080), Ip(::1, 9)]"));
}

/// §6.4: each service of a host has its own ports; of those in common, the oldest's endpoints count.
#[test]
fn a_port_is_found_in_every_namespace() {
    let entry = |namespace: &str, ports: &str, address: &str| {
        let ports: Vec<_> = ports.split(' ').map(|port| format!("{{number: {port}, name: p{port}}}")).collect();
        let spec = format!(
            "spec: {{hosts: [ext.com], ports: [{}], resolution: STATIC, endpoints: [{{address: {address}}}]}}",
            ports.join(", ")
        );
        document("ServiceEntry", namespace, "e", &spec)
    };
    let routes = [80, 81, 82, 83].map(|port| {
        let destination = format!("{{host: ext.com, port: {{number: {port}}}}}");
        format!("{{match: [{{uri: {{prefix: /{port}}}}}], route: [{{destination: {destination}}}]}}")
    });
    let spec = format!("{{hosts: [h.com], gateways: [gw/web], http: [{}]}}", routes.join(", "));
    let compiled = compiled(
        &(gateway("gw", "web", SERVER)
            + &virtual_service("n", "v", &spec)
            + &entry("a", "80 81", "192.0.2.1")
            + &entry("b", "81 82", "192.0.2.2")),
    );
    let mut clusters: Vec<_> = compiled.snapshot.clusters.values().collect();
    clusters.sort_by_key(|cluster| cluster.port);
    let endpoints = clusters.iter().map(|cluster| match &cluster.endpoints {
        Endpoints::Static(list) => (cluster.port, list.iter().map(|e| e.address.clone()).collect::<Vec<_>>()),
        other => panic!("{other:?}"),
    });
    let expected = [(80, 1), (81, 1), (82, 2)]
        .map(|(port, last)| (port, vec![EndpointAddress::Ip(std::net::Ipv4Addr::new(192, 0, 2, last).into(), port)]));
    assert_eq!(endpoints.collect::<Vec<_>>(), expected);
}

/// §6.2: hosts that are resolved on demand; their endpoints have no labels that a subset could choose by.
#[test]
fn dynamic_resolution() {
    let yaml = |host: &str, destination: &str, rule: &str| {
        let ports =
            "[{number: 443, name: https, protocol: HTTPS, targetPort: 8443}, {number: 80, name: http, protocol: HTTP}]";
        let spec = format!("spec: {{hosts: ['{host}'], ports: {ports}, resolution: DYNAMIC_DNS}}");
        let http = format!("http: [{{route: [{{destination: {{host: '{host}', {destination}}}}}]}}]");
        gateway("gw", "web", SERVER)
            + &virtual_service("n", "v", &format!("{{hosts: [h.com], gateways: [gw/web], {http}}}"))
            + &document("ServiceEntry", "n", "e", &spec.replace("protocol: HTTPS", "protocol: TLS"))
            + &document("DestinationRule", "n", "r", &format!("spec: {{host: '{host}', {rule}}}"))
    };
    let endpoints = |yaml: &str| {
        let compiled = compiled(yaml);
        match &compiled.snapshot.clusters.values().next().unwrap().endpoints {
            Endpoints::Dynamic(dns) => format!("*{}:{}", dns.suffix, dns.port),
            other => format!("{other:?}"),
        }
    };
    let rule = "trafficPolicy: {tls: {mode: SIMPLE}}, subsets: [{name: v1, labels: {v: '1'}}]";
    for (host, destination, expected) in [
        ("*.example.com", "port: {number: 443}", "*.example.com:8443"),
        ("*.Example.com", "port: {number: 80}", "*.example.com:80"),
        ("*-a.example.com", "port: {number: 80}", "*-a.example.com:80"),
        ("*.example.com", "port: {number: 443}, subset: v1", "Static([])"),
    ] {
        assert_eq!(endpoints(&yaml(host, destination, rule)), expected, "{host} {destination}");
    }
    // A fixed name stands for all of them.
    for (tls, ending) in [
        ("mode: SIMPLE", None),
        ("mode: DISABLE, sni: o.com", None),
        ("mode: ISTIO_MUTUAL", None),
        ("mode: SIMPLE, sni: o.com", Some("certificates are not checked for any name")),
        ("mode: SIMPLE, sni: o.com, insecureSkipVerify: true", Some("certificates are not verified")),
        ("mode: SIMPLE, sni: o.com, subjectAltNames: [o.com]", Some("certificates are checked for `subjectAltNames`")),
    ] {
        let rule = format!("trafficPolicy: {{portLevelSettings: [{{port: {{number: 443}}, tls: {{{tls}}}}}]}}");
        let compiled = compiled(&yaml("*.example.com", "port: {number: 443}", &rule));
        let expected: Vec<String> = ending
            .map(|ending| {
                format!(
                    "IST0133 spec.trafficPolicy.portLevelSettings[0].tls.sni: every host of *.example.com is asked for \
                     \"o.com\", and {ending}"
                )
            })
            .into_iter()
            .collect();
        assert_eq!(findings(&compiled, Severity::Warning), expected, "{tls}");
    }
}

/// §6.4: entries whose probe fails are selected by nobody.
#[test]
fn unhealthy_workloads_are_left_out() {
    let endpoints = |kind: &str, status: &str| {
        let selecting = match kind {
            "Service" => document("Service", "n", "one", "spec: {selector: {app: a}, ports: [{name: http, port: 80}]}"),
            _ => document(
                "ServiceEntry",
                "n",
                "e",
                "spec: {hosts: [one.n.svc.cluster.local], workloadSelector: {labels: {app: a}}, \
                 ports: [{number: 80, name: http}], resolution: STATIC}",
            ),
        };
        let spec = "{hosts: [h.com], gateways: [gw/web], http: [{route: [{destination: {host: one}}]}]}";
        let entry = |name: &str, address: &str, status: &str| {
            document("WorkloadEntry", "n", name, &format!("spec: {{address: {address}, labels: {{app: a}}}}{status}"))
        };
        let yaml = gateway("gw", "web", SERVER)
            + &virtual_service("n", "v", spec)
            + &selecting
            + &entry("a", "192.0.2.1", "")
            + &entry("b", "192.0.2.2", status);
        match &compiled(&yaml).snapshot.clusters.values().next().unwrap().endpoints {
            Endpoints::Static(endpoints) => endpoints.len(),
            other => panic!("{other:?}"),
        }
    };
    for (status, expected) in [
        ("", 2),
        ("\nstatus: {}", 2),
        ("\nstatus: {conditions: [{type: Healthy, status: 'True'}]}", 2),
        ("\nstatus: {conditions: [{type: Healthy, status: Unknown}]}", 2),
        ("\nstatus: {conditions: [{type: Other, status: 'False'}]}", 2),
        ("\nstatus: {conditions: [{type: Other, status: 'True'}, {type: Healthy, status: 'False', message: m}]}", 1),
        ("\nstatus: {conditions: [{type: Healthy, status: False, lastProbeTime: '2026-01-01T00:00:00Z'}]}", 1),
    ] {
        for kind in ["Service", "ServiceEntry"] {
            assert_eq!(endpoints(kind, status), expected, "{kind} {status}");
        }
    }
}

/// §6.5: EndpointSlices, readiness, named ports; a Service without any is a name.
#[test]
fn endpoints_of_services() {
    let slice = |fields: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, namespace: n, \
             labels: {{kubernetes.io/service-name: one}}}}\naddressType: IPv4\n{fields}\n---\n"
        )
    };
    let endpoints = |rest: &str| {
        let spec = "{hosts: [h.com], gateways: [gw/web], http: [{route: [{destination: {host: one}}]}]}";
        let yaml = gateway("gw", "web", SERVER)
            + &virtual_service("n", "v", spec)
            + &service("n", "one", "{name: http, port: 80, targetPort: web}")
            + rest;
        match &compiled(&yaml).snapshot.clusters.values().next().unwrap().endpoints {
            Endpoints::Static(endpoints) => format!("{:?}", endpoints.iter().map(|e| &e.address).collect::<Vec<_>>()),
            Endpoints::StrictDns(endpoints) => {
                format!("{:?}", endpoints.iter().map(|e| (&*e.host, e.port)).collect::<Vec<_>>())
            }
            Endpoints::LogicalDns(_) | Endpoints::Dynamic(_) => panic!("no Service is resolved like that"),
        }
    };
    assert_eq!(endpoints(""), "[(\"one.n.svc.cluster.local\", 80)]");
    let two = slice(
        "ports: [{name: http, port: 8080}]\n\
         endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.1], conditions: {ready: true}}, \
         {addresses: [10.0.0.3], conditions: {ready: false}}]",
    );
    assert_eq!(endpoints(&two), "[Ip(10.0.0.1, 8080), Ip(10.0.0.2, 8080)]");
    assert_eq!(endpoints(&slice("ports: [{name: other, port: 8080}]\nendpoints: [{addresses: [10.0.0.2]}]")), "[]");
    assert_eq!(endpoints(&slice("ports: [{name: http, port: 8080}]\nendpoints: []")), "[]");
    let old = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: one, namespace: n}\nsubsets: \
               [{addresses: [{ip: 10.0.0.9}], notReadyAddresses: [{ip: 10.0.0.8}], ports: [{name: http, port: 8080}]}]\n---\n";
    assert_eq!(endpoints(old), "[Ip(10.0.0.9, 8080)]");
}

/// §5.1: the namespace of the gateway first, then that of the service, then the root; most specific host; no merge.
#[test]
fn destination_rules_apply_by_namespace() {
    let rule = |namespace: &str, name: &str, host: &str, seconds: u32, more: &str| {
        let spec = format!(
            "spec: {{host: {host}, trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: {seconds}s}}}}}}{more}}}"
        );
        document("DestinationRule", namespace, name, &spec)
    };
    let seconds = |rules: &str| {
        let options = Options { namespace: "edge".into(), ..Options::default() };
        let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: edge}\ndata: {mesh: 'rootNamespace: root'}\n---\n";
        let spec = "{hosts: [h.com], gateways: [gw/web], http: [{route: [{destination: {host: one}}]}]}";
        let yaml = gateway("gw", "web", SERVER)
            + mesh
            + &virtual_service("n", "v", spec)
            + &service("n", "one", "{name: http, port: 80}")
            + rules;
        compiled_with(&yaml, &options).snapshot.clusters.values().next().unwrap().connect_timeout.as_secs()
    };
    let host = "one.n.svc.cluster.local";
    let own = rule("edge", "r", host, 1, "");
    let of_service = rule("n", "r", "one", 2, "");
    let root = rule("root", "r", host, 3, "");
    assert_eq!(seconds(""), 10);
    assert_eq!(seconds(&format!("{own}{of_service}{root}")), 1);
    assert_eq!(seconds(&format!("{of_service}{root}")), 2);
    assert_eq!(seconds(&root), 3);
    // Not exported to us.
    assert_eq!(seconds(&(rule("n", "r", "one", 2, ", exportTo: ['.']") + &root)), 3);
    // An exact host beats a wildcard, and hides it.
    let wildcard = rule("n", "a", "'*.n.svc.cluster.local'", 4, "");
    assert_eq!(seconds(&format!("{wildcard}{of_service}")), 2);
    assert_eq!(seconds(&wildcard), 4);
    // The oldest policy of a host counts alone.
    assert_eq!(seconds(&(rule("n", "q", "one", 5, "") + &of_service)), 5);
    // Port-level settings replace everything.
    let port = ", exportTo: ['*']";
    let spec = format!(
        "spec: {{host: one, trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: 6s}}}}, \
         portLevelSettings: [{{port: {{number: 80}}, connectionPool: {{tcp: {{maxConnections: 7}}}}}}]}}{port}}}"
    );
    assert_eq!(seconds(&document("DestinationRule", "n", "r", &spec)), 10);
}

/// §1.6, §5.5: the protocol spoken upstream.
#[test]
fn upstream_protocols() {
    let protocol = |port: &str, pool: &str| {
        let spec = "{hosts: [h.com], gateways: [gw/web], http: [{route: [{destination: {host: one}}]}]}";
        let rule = document(
            "DestinationRule",
            "n",
            "r",
            &format!("spec: {{host: one, trafficPolicy: {{connectionPool: {{http: {{{pool}}}}}}}}}"),
        );
        let yaml = gateway("gw", "web", SERVER) + &virtual_service("n", "v", spec) + &service("n", "one", port) + &rule;
        compiled(&yaml).snapshot.clusters.values().next().unwrap().protocol
    };
    for (port, pool, expected) in [
        ("{name: http, port: 80}", "", UpstreamProtocol::Http1),
        ("{name: grpc-x, port: 80}", "", UpstreamProtocol::Http2),
        ("{name: web, port: 80}", "", UpstreamProtocol::Http1),
        ("{name: https, port: 80}", "", UpstreamProtocol::Http1),
        ("{name: http, port: 80}", "h2UpgradePolicy: UPGRADE", UpstreamProtocol::Http2),
        ("{name: http2, port: 80}", "h2UpgradePolicy: DO_NOT_UPGRADE", UpstreamProtocol::Http2),
        ("{name: http, port: 80}", "useClientProtocol: true", UpstreamProtocol::SameAsClient),
    ] {
        assert_eq!(protocol(port, pool), expected, "{port} {pool}");
    }
}

/// `design.md`, Reload, rule 4: what can't be enforced closes the gateway.
#[test]
fn security_policies_fail_closed() {
    let policy = |kind: &str, namespace: &str, spec: &str| document(kind, namespace, "p", &format!("spec: {spec}"));
    for (yaml, refusals) in [
        (policy("AuthorizationPolicy", "istio-system", "{}"), 1),
        (policy("AuthorizationPolicy", "istio-system", "{selector: {matchLabels: {istio: ingressgateway}}}"), 1),
        (policy("AuthorizationPolicy", "istio-system", "{selector: {matchLabels: {app: other}}}"), 0),
        (policy("AuthorizationPolicy", "elsewhere", "{}"), 0),
        (policy("AuthorizationPolicy", "istio-system", "{action: AUDIT, rules: [{}]}"), 0),
        (policy("RequestAuthentication", "istio-system", "{}"), 0),
        (policy("RequestAuthentication", "istio-system", "{jwtRules: [{issuer: i, jwksUri: 'https://i.com/k'}]}"), 1),
    ] {
        let compiled = compiled(&yaml);
        assert_eq!(compiled.snapshot.refusals.len(), refusals, "{yaml}");
        assert_eq!(findings(&compiled, Severity::Error).len(), refusals, "{yaml}");
    }
}

/// A prefix of `/` is a path like any other for the index; the route keeps what was written.
#[test]
fn written_paths_stay() {
    let spec =
        "{hosts: [h.com], gateways: [gw/web], http: [{match: [{uri: {prefix: /}}], directResponse: {status: 200}}]}";
    let compiled = compiled(&(gateway("gw", "web", SERVER) + &virtual_service("n", "v", spec)));
    assert_eq!(route(&compiled, "h.com", "/x").unwrap().matches.path, PathMatch::Prefix("/".to_owned()));
}
