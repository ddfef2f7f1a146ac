//! Which servers are in force, and the filter chains that they become.

use super::*;
use crate::snapshot::listener::{FilterChain, Handler, Transport};
use crate::snapshot::tls::{
    CaSource, CertificateSource, CipherSuite, ClientAuthentication, Group, PeerTrust, ServerMode, ServerTls,
    TlsParameters, TlsVersion,
};

const SIMPLE: &str = ", tls: {mode: SIMPLE, credentialName: c}";
const PASSTHROUGH: &str = ", tls: {mode: PASSTHROUGH}";

fn server(port: u16, protocol: &str, hosts: &str, rest: &str) -> String {
    named_server(port, "p", protocol, hosts, rest)
}

fn named_server(port: u16, name: &str, protocol: &str, hosts: &str, rest: &str) -> String {
    format!("{{port: {{number: {port}, name: {name}, protocol: {protocol}}}, hosts: {hosts}{rest}}}")
}

/// `route` with a direct response, which needs no destination.
fn http(hosts: &str) -> String {
    format!("{{hosts: {hosts}, gateways: [gw/web], http: [{{directResponse: {{status: 200}}}}]}}")
}

fn tcp(gateways: &str, match_: &str, host: &str) -> String {
    format!("{{hosts: ['*'], gateways: {gateways}, tcp: [{{{match_}route: [{{destination: {{host: {host}}}}}]}}]}}")
}

fn sni(gateways: &str, hosts: &str, sni_hosts: &str, host: &str) -> String {
    format!(
        "{{hosts: {hosts}, gateways: {gateways}, \
         tls: [{{match: [{{sniHosts: {sni_hosts}}}], route: [{{destination: {{host: {host}}}}}]}}]}}"
    )
}

fn chains(compiled: &Compiled, port: u16) -> Vec<&Arc<FilterChain>> {
    listener(compiled, port).map(|listener| listener.filter_chains.iter().collect()).unwrap_or_default()
}

/// Server names of each chain; `*` for one without.
fn names(compiled: &Compiled, port: u16) -> Vec<String> {
    let names = |chain: &&Arc<FilterChain>| match chain.server_names.as_slice() {
        [] => "*".to_owned(),
        names => names.join(" "),
    };
    chains(compiled, port).iter().map(names).collect()
}

/// Destinations of a chain of raw TCP, with their weights.
fn targets(chain: &FilterChain) -> Vec<(String, u32)> {
    match &chain.handler {
        Handler::Tcp(stream) => stream.destinations.iter().map(|to| (to.cluster.to_string(), to.weight)).collect(),
        Handler::Http(_) => panic!("{} is for HTTP", chain.name),
    }
}

fn tls(compiled: &Compiled, port: u16) -> Arc<ServerTls> {
    match &chains(compiled, port)[0].transport {
        Transport::Terminate(tls) => Arc::clone(tls),
        other => panic!("{other:?}"),
    }
}

/// TLS of an HTTPS server with these settings.
fn settings(fields: &str) -> Arc<ServerTls> {
    tls(&compiled(&gateway("gw", "web", &server(443, "HTTPS", "['*']", &format!(", tls: {{{fields}}}")))), 443)
}

/// §2.3: what becomes of a second server on a port, and of the port. TCP and passthrough have routes.
#[test]
fn servers_share_or_lose_a_port() {
    let tls = ", tls: {mode: SIMPLE, credentialName: c}";
    for (first, second, bind, listeners, chains, conflicts) in [
        (("HTTP", ""), ("HTTP", ""), "", 1, 1, 0),
        (("HTTP", ""), ("GRPC", ""), "", 1, 1, 0),
        (("HTTP", ""), ("HTTP2", ""), "", 1, 1, 0),
        (("HTTP", ""), ("TCP", ""), "", 1, 1, 1),
        (("HTTP", ""), ("HTTPS", tls), "", 1, 1, 1),
        (("HTTP", ""), ("TLS", PASSTHROUGH), "", 1, 1, 1),
        (("TCP", ""), ("TCP", ""), "", 1, 1, 1),
        (("TCP", ""), ("MONGO", ""), "", 1, 1, 1),
        (("REDIS", ""), ("HTTP", ""), "", 1, 1, 1),
        (("TCP", ""), ("HTTPS", tls), "", 1, 1, 1),
        (("HTTPS", tls), ("HTTPS", tls), "", 1, 2, 0),
        (("HTTPS", tls), ("TLS", tls), "", 1, 2, 0),
        (("HTTPS", tls), ("TLS", PASSTHROUGH), "", 1, 2, 0),
        // Istio appends a chain in clear text; nobody should rely on it.
        (("HTTPS", tls), ("HTTP", ""), "", 1, 1, 1),
        (("TLS", PASSTHROUGH), ("TCP", ""), "", 1, 1, 1),
        (("HTTP", ""), ("HTTP", ""), ", bind: 127.0.0.1", 2, 2, 0),
        (("TCP", ""), ("HTTP", ""), ", bind: 127.0.0.1", 2, 2, 0),
        (("HTTPS", tls), ("TCP", ""), ", bind: 127.0.0.1", 2, 2, 0),
    ] {
        let both = "[gw/a, gw/b]";
        let yaml = gateway("gw", "a", &server(80, first.0, "[a.com]", first.1))
            + &gateway("gw", "b", &server(80, second.0, "[b.com]", &format!("{}{bind}", second.1)))
            + &virtual_service("n", "tcp", &tcp(both, "", "s.com"))
            + &virtual_service("n", "a", &sni("[gw/a]", "[a.com]", "[a.com]", "s.com"))
            + &virtual_service("n", "b", &sni("[gw/b]", "[b.com]", "[b.com]", "s.com"));
        let compiled = compiled(&yaml);
        let case = format!("{first:?} {second:?} {bind}");
        assert_eq!(compiled.snapshot.listeners.len(), listeners, "{case}");
        let made: usize = compiled.snapshot.listeners.iter().map(|listener| listener.filter_chains.len()).sum();
        assert_eq!(made, chains, "{case}");
        let found = findings(&compiled, Severity::Warning);
        let found: Vec<_> = found.iter().filter(|found| found.starts_with("GW0104")).collect();
        assert_eq!(found.len(), conflicts, "{case}: {found:?}");
        assert!(found.iter().all(|found| found.contains("spec.servers[0] of Gateway gw/a")), "{case}: {found:?}");
    }
}

/// §2.3 (b): a TCP server keeps its port, though nothing listens there.
#[test]
fn servers_without_a_route_open_nothing() {
    for (protocol, rest, loss) in [
        ("TCP", "", "nothing listens on port 80, and no other server can have it"),
        ("TLS", SIMPLE, "its connections are reset"),
        ("TLS", PASSTHROUGH, "its connections are reset"),
        ("HTTPS", PASSTHROUGH, "its connections are reset"),
    ] {
        let compiled = compiled(&gateway("gw", "web", &server(80, protocol, "[a.com]", rest)));
        assert!(compiled.snapshot.listeners.is_empty(), "{protocol} {rest}");
        let found = findings(&compiled, Severity::Warning);
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert!(one.starts_with("IST0133 spec.servers[0].hosts: ") && one.ends_with(loss), "{one}");
    }
    let taken =
        gateway("gw", "a", &server(80, "TCP", "[a.com]", "")) + &gateway("gw", "web", &server(80, "HTTP", "['*']", ""));
    assert!(compiled(&taken).snapshot.listeners.is_empty());
    // An HTTPS server answers 404.
    let https = compiled(&gateway("gw", "web", &server(443, "HTTPS", "[a.com]", SIMPLE)));
    assert_eq!(names(&https, 443), ["a.com"]);
}

/// §2.4: hosts that an older server has, as text and as server names.
#[test]
fn the_oldest_server_has_a_server_name() {
    for (first, second, expected) in [
        ("[a.com]", "[b.com]", &["a.com", "b.com"][..]),
        ("[a.com]", "[a.com, b.com]", &["a.com"]),
        ("[a.com, b.com]", "[b.com]", &["a.com b.com"]),
        ("[n/a.com]", "[m/a.com]", &["a.com"]),
        ("[a.com]", "[A.com]", &["a.com"]),
        ("[a.com]", "['*.a.com']", &["a.com", "*.a.com"]),
        ("['*']", "['*']", &["*"]),
        ("['*']", "[a.com]", &["*", "a.com"]),
        ("['*', x.com]", "['n/*']", &["*"]),
        ("['*/*', x.com]", "[x.com]", &["*", "x.com"]),
        ("[A.com, a.com, n/a.com]", "[b.com]", &["a.com", "b.com"]),
    ] {
        let yaml = gateway("gw", "a", &server(443, "HTTPS", first, SIMPLE))
            + &gateway("gw", "b", &server(443, "HTTPS", second, SIMPLE));
        let compiled = compiled(&yaml);
        assert_eq!(names(&compiled, 443), expected, "{first} {second}");
        let lost = findings(&compiled, Severity::Warning);
        assert_eq!(lost.len(), 2 - expected.len(), "{first} {second}: {lost:?}");
        assert!(lost.iter().all(|found| found.contains("GW0104") && found.contains("Gateway gw/a")), "{lost:?}");
    }
    // Age counts, and not the order of documents.
    let old = gateway("gw", "z", &server(443, "HTTPS", "[a.com]", SIMPLE))
        .replace("{name: z,", "{creationTimestamp: '2020-01-01T00:00:00Z', name: z,");
    let new = gateway("gw", "a", &server(443, "HTTPS", "[a.com, b.com]", SIMPLE))
        .replace("{name: a,", "{creationTimestamp: '2021-01-01T00:00:00Z', name: a,");
    assert_eq!(names(&compiled(&(new + &old)), 443), ["a.com"]);
}

/// §2.5: each kind of server reads and routes in its own way.
#[test]
fn kinds_of_servers() {
    let yaml = gateway(
        "gw",
        "web",
        &[
            named_server(80, "http", "GRPC-WEB", "['*']", ", tls: {httpsRedirect: true}"),
            named_server(443, "https", "HTTPS", "[a.com]", SIMPLE),
            named_server(443, "pass", "HTTPS", "[b.com]", PASSTHROUGH),
            named_server(443, "bytes", "TLS", "[c.com]", SIMPLE),
            named_server(3306, "mysql", "MYSQL", "['*']", ""),
        ]
        .join(", "),
    ) + &virtual_service("n", "a", &http("[a.com]"))
        + &virtual_service("n", "b", &sni("[gw/web]", "[b.com]", "[b.com]", "s.com"))
        + &virtual_service("n", "c", &tcp("[gw/web]", "", "s.com"));
    let compiled = compiled(&yaml);
    let shapes = |port| {
        let shape = |chain: &&Arc<FilterChain>| {
            let on_wire = match &chain.transport {
                Transport::Plaintext => "plaintext",
                Transport::Terminate(_) => "terminate",
                Transport::Passthrough => "passthrough",
            };
            let handler = if chain.http().is_some() { "http" } else { "tcp" };
            format!("{} {on_wire} {handler}", chain.name)
        };
        chains(&compiled, port).iter().map(shape).collect::<Vec<_>>()
    };
    assert_eq!(shapes(80), ["http.80 plaintext http"]);
    assert_eq!(
        shapes(443),
        [
            "https.443.https.web.gw terminate http",
            "tls.443.pass.web.gw/n/b/b.com passthrough tcp",
            "tcp.443.bytes.web.gw terminate tcp",
        ]
    );
    assert_eq!(shapes(3306), ["tcp.3306.mysql.web.gw plaintext tcp"]);
    assert!(compiled.snapshot.clusters.is_empty());
    let missing = findings(&compiled, Severity::Warning);
    assert!(
        missing.iter().any(|found| found.contains("host not found: \"s.com\" (connections are reset, NC)")),
        "{missing:?}"
    );
}

/// §2.5: each HTTPS server has the virtual hosts of its own, and no others.
#[test]
fn https_servers_are_isolated() {
    let yaml = gateway(
        "gw",
        "web",
        &[named_server(443, "a", "HTTPS", "[a.com]", SIMPLE), named_server(443, "b", "HTTPS", "['*.b.com']", SIMPLE)]
            .join(", "),
    ) + &virtual_service("n", "v", &http("[a.com, x.b.com]"));
    let compiled = compiled(&yaml);
    let domains: Vec<Vec<&str>> = chains(&compiled, 443)
        .iter()
        .map(|chain| chain.http().unwrap().routes.virtual_hosts().map(|host| &*host.domain).collect())
        .collect();
    assert_eq!(domains, [["a.com"], ["x.b.com"]]);
    let table = &chains(&compiled, 443)[0].http().unwrap().routes;
    assert_eq!(table.name, "https.443.a.web.gw");
    assert_eq!(table.virtual_hosts().next().unwrap().name, "a.com:443");
}

#[test]
fn automatic_passthrough_is_refused() {
    let yaml = gateway("gw", "web", &server(443, "TLS", "['*.local']", ", tls: {mode: AUTO_PASSTHROUGH}"));
    let compiled = compiled(&yaml);
    assert!(compiled.snapshot.listeners.is_empty());
    let errors = findings(&compiled, Severity::Error);
    assert!(matches!(errors.as_slice(), [one] if one.starts_with("GW0101 spec.servers[0].tls.mode: ")), "{errors:?}");
}

/// §3.18: a chain for each match entry; entries with a taken name are left out as a whole.
#[test]
fn tls_routes_claim_server_names() {
    let pass = gateway("gw", "web", &server(443, "TLS", "[a.com, '*.b.com']", PASSTHROUGH));
    let rules = |hosts: &str, entries: &str| {
        format!(
            "{{hosts: {hosts}, gateways: [gw/web], \
             tls: [{{match: [{entries}], route: [{{destination: {{host: s.com}}}}]}}]}}"
        )
    };
    for (hosts, entries, expected) in [
        ("[a.com]", "{sniHosts: [a.com]}", &["a.com"][..]),
        // The server's hosts don't restrict server names, as long as some host is shared.
        ("['*.com']", "{sniHosts: [c.com]}", &["c.com"]),
        ("[c.com]", "{sniHosts: [c.com]}", &[]),
        ("['*.com']", "{sniHosts: [A.com, a.com]}", &["a.com"]),
        (
            "['*.com']",
            "{sniHosts: [x.com, y.com]}, {sniHosts: [y.com, z.com]}, {sniHosts: [z.com]}",
            &["x.com y.com", "z.com"],
        ),
        ("['*']", "{sniHosts: ['*']}, {sniHosts: ['*.com']}", &["*", "*.com"]),
        ("['*']", "{sniHosts: ['*']}, {sniHosts: ['*', a.com]}", &["*"]),
        ("['*']", "{sniHosts: [x.com, '*y.com']}, {sniHosts: [z.com]}", &["z.com"]),
        ("[a.com]", "{port: 443, sniHosts: [a.com]}", &["a.com"]),
        ("[a.com]", "{port: 444, sniHosts: [a.com]}", &[]),
        ("[a.com]", "{gateways: [gw/web], sniHosts: [a.com]}", &["a.com"]),
        ("[a.com]", "{gateways: [gw/other], sniHosts: [a.com]}", &[]),
        ("[a.com]", "{gateways: [mesh], sniHosts: [a.com]}", &[]),
        // Not evaluated on gateways.
        ("[a.com]", "{sourceLabels: {app: x}, destinationSubnets: [10.0.0.0/8], sniHosts: [a.com]}", &["a.com"]),
    ] {
        let yaml = pass.clone() + &virtual_service("n", "v", &rules(hosts, entries));
        assert_eq!(names(&compiled(&yaml), 443), expected, "{hosts} {entries}");
    }
    // Across VirtualServices, and against a server that terminates.
    let yaml = pass.clone()
        + &gateway("gw", "a", &server(443, "HTTPS", "[d.com]", SIMPLE))
        + &gateway("gw", "z", &server(443, "HTTPS", "[e.com]", SIMPLE))
        + &virtual_service("n", "v", &rules("['*.com']", "{sniHosts: [a.com, e.com]}"))
        + &virtual_service("n", "w", &rules("['*.com']", "{sniHosts: [a.com, f.com]}, {sniHosts: [d.com]}"));
    let compiled = compiled(&yaml);
    assert_eq!(names(&compiled, 443), ["d.com", "a.com e.com"]);
    let lost = findings(&compiled, Severity::Warning);
    let lost: Vec<_> = lost.iter().filter(|found| found.starts_with("GW0104")).collect();
    assert_eq!(lost.len(), 3, "{lost:?}");
    let expected = "spec.tls[0].match[1].sniHosts: spec.servers[0] of Gateway gw/a has the server name \"d.com\"";
    assert!(lost.iter().any(|found| found.contains(expected)), "{lost:?}");
    let expected = "spec.tls[0].match[0].sniHosts: VirtualService n/v has the server name \"a.com\" on port 443";
    assert!(lost.iter().any(|found| found.contains(expected)), "{lost:?}");
    let expected = "spec.servers[0].hosts: VirtualService n/v has the server name \"e.com\" on port 443";
    assert!(lost.iter().any(|found| found.contains(expected)), "{lost:?}");
}

/// §3.19: the first VirtualService with a rule that matches, and its first such rule alone.
#[test]
fn tcp_routes() {
    let server = gateway("gw", "web", &server(9000, "TCP", "['*.com']", ""));
    let to = |host: &str| format!("route: [{{destination: {{host: {host}, port: {{number: 1}}}}}}]");
    let service = |name: &str, fields: &str| virtual_service("n", name, &format!("{{gateways: [gw/web], {fields}}}"));
    for (services, expected) in [
        (service("a", &format!("hosts: ['*'], tcp: [{{{}}}]", to("a.com"))), Some("a.com")),
        (service("a", &format!("hosts: [x.com], tcp: [{{{}}}]", to("a.com"))), Some("a.com")),
        (service("a", &format!("hosts: [x.org], tcp: [{{{}}}]", to("a.com"))), None),
        (service("a", &format!("hosts: ['*'], tcp: [{{match: [{{port: 9001}}], {}}}]", to("a.com"))), None),
        (
            service(
                "a",
                &format!(
                    "hosts: ['*'], tcp: [{{match: [{{port: 1}}], {}}}, {{{}}}, {{{}}}]",
                    to("a.com"),
                    to("b.com"),
                    to("c.com")
                ),
            ),
            Some("b.com"),
        ),
        (
            service(
                "a",
                &format!("hosts: ['*'], tcp: [{{match: [{{port: 1}}, {{gateways: [gw/web]}}], {}}}]", to("a.com")),
            ),
            Some("a.com"),
        ),
        // `tls` rules count for nothing here.
        (virtual_service("n", "a", &sni("[gw/web]", "[x.com]", "[x.com]", "a.com")), None),
        (
            service("a", &format!("hosts: ['*'], tcp: [{{match: [{{port: 1}}], {}}}]", to("a.com")))
                + &service("b", &format!("hosts: ['*'], tcp: [{{{}}}]", to("b.com")))
                + &service("c", &format!("hosts: ['*'], tcp: [{{{}}}]", to("c.com"))),
            Some("b.com"),
        ),
    ] {
        let compiled = compiled(&(server.clone() + &services));
        let found: Vec<_> = chains(&compiled, 9000).into_iter().map(|chain| targets(chain)).collect();
        let expected: Vec<_> = expected.iter().map(|host| vec![(format!("outbound|1||{host}"), 1)]).collect();
        assert_eq!(found, expected, "{services}");
    }
}

/// §3.16, §3.20: weights, the port of a destination, clusters.
#[test]
fn destinations_of_raw_tcp() {
    let service = |name: &str, ports: &str| document("Service", "n", name, &format!("spec: {{ports: [{ports}]}}"));
    let yaml = |route: &str| {
        gateway("gw", "web", &server(9000, "TCP", "['*']", ""))
            + &virtual_service("n", "v", &format!("{{hosts: ['*'], gateways: [gw/web], tcp: [{{route: [{route}]}}]}}"))
            + &service("one", "{name: tcp, port: 1}")
            + &service("two", "{name: tcp-a, port: 9000}, {name: tcp-b, port: 2}")
    };
    let one = "outbound|1||one.n.svc.cluster.local".to_owned();
    let two = "outbound|9000||two.n.svc.cluster.local".to_owned();
    for (route, expected) in [
        ("{destination: {host: one}}", vec![(one.clone(), 1)]),
        ("{destination: {host: one}, weight: 0}", vec![(one.clone(), 1)]),
        ("{destination: {host: two}}", vec![(two.clone(), 1)]),
        (
            "{destination: {host: one}, weight: 3}, {destination: {host: two}, weight: 1}",
            vec![(one.clone(), 3), (two.clone(), 1)],
        ),
        ("{destination: {host: one}, weight: 0}, {destination: {host: two}, weight: 1}", vec![(two.clone(), 1)]),
    ] {
        let compiled = compiled(&yaml(route));
        assert_eq!(targets(chains(&compiled, 9000)[0]), expected, "{route}");
        let mut clusters: Vec<_> = compiled.snapshot.clusters.keys().map(ToString::to_string).collect();
        clusters.sort_unstable();
        let mut expected: Vec<_> = expected.into_iter().map(|(name, _)| name).collect();
        expected.sort_unstable();
        assert_eq!(clusters, expected, "{route}");
    }
}

/// §3.20, §5.8: the tunnel of the first destination's service, or of the subset that is the only destination.
#[test]
fn tunnels_of_raw_tcp() {
    let entry = |host: &str| {
        let spec = format!(
            "spec: {{hosts: [{host}], ports: [{{number: 9000, name: tcp, protocol: TCP}}], resolution: STATIC, \
             endpoints: [{{address: 192.0.2.1, labels: {{v: '1'}}}}]}}"
        );
        document("ServiceEntry", "n", host.trim_end_matches(".com"), &spec)
    };
    let tunnel = |fields: &str, port: u16| format!("trafficPolicy: {{tunnel: {{{fields}targetPort: {port}}}}}");
    let target = |rule: &str, route: &str| {
        let spec = format!("{{hosts: ['*'], gateways: [gw/web], tcp: [{{route: [{route}]}}]}}");
        let yaml = gateway("gw", "web", &server(9000, "TCP", "['*']", ""))
            + &virtual_service("n", "v", &spec)
            + &entry("s.com")
            + &entry("o.com")
            + &document("DestinationRule", "n", "r", &format!("spec: {{host: s.com, {rule}}}"));
        let compiled = compiled(&yaml);
        assert_eq!(findings(&compiled, Severity::Warning), [""; 0], "{rule} {route}");
        match &chains(&compiled, 9000)[0].handler {
            Handler::Tcp(stream) => stream.tunnel.as_ref().map(|tunnel| (tunnel.post, tunnel.target.clone())),
            Handler::Http(_) => panic!("HTTP"),
        }
    };
    let some = |post, target: &str| Some((post, target.to_owned()));
    let whole = "{destination: {host: s.com}}";
    let subset = "{destination: {host: s.com, subset: v1}}";
    let subsets = |more: &str| format!("subsets: [{{name: v1, labels: {{v: '1'}}{more}}}]");
    let top = tunnel("targetHost: t.com, ", 1);
    let own = subsets(&format!(", {}", tunnel("protocol: POST, targetHost: u.com, ", 2)));
    let pool = subsets(", trafficPolicy: {connectionPool: {tcp: {}}}");
    for (rule, route, expected) in [
        (subsets(""), whole, None),
        (top.clone(), whole, some(false, "t.com:1")),
        (tunnel("protocol: CONNECT, targetHost: 192.0.2.9, ", 1), whole, some(false, "192.0.2.9:1")),
        (tunnel("protocol: POST, targetHost: '2001:db8::9', ", 1), whole, some(true, "[2001:db8::9]:1")),
        (format!("{top}, {own}"), whole, some(false, "t.com:1")),
        (format!("{top}, {own}"), subset, some(true, "u.com:2")),
        (own.clone(), subset, some(true, "u.com:2")),
        (format!("{top}, {pool}"), subset, some(false, "t.com:1")),
        // Among several destinations a subset has no say, and the first one decides.
        (
            format!("{top}, {own}"),
            "{destination: {host: s.com, subset: v1}, weight: 1}, {destination: {host: o.com}, weight: 1}",
            some(false, "t.com:1"),
        ),
        (top.clone(), "{destination: {host: o.com}, weight: 1}, {destination: {host: s.com}, weight: 1}", None),
    ] {
        assert_eq!(target(&rule, route), expected, "{rule} {route}");
    }
}

/// §5.8: HTTP never takes a tunnel.
#[test]
fn http_ignores_tunnels() {
    let yaml = gateway("gw", "web", &server(80, "HTTP", "['*']", ""))
        + &virtual_service("n", "h", &tcp("[gw/web]", "", "s.com").replace("'*'", "h.com").replace("tcp:", "http:"))
        + &document(
            "ServiceEntry",
            "n",
            "s",
            "spec: {hosts: [s.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
        )
        + &document(
            "DestinationRule",
            "n",
            "r",
            "spec: {host: s.com, trafficPolicy: {tunnel: {targetHost: t.com, targetPort: 1}}}",
        );
    let compiled = compiled(&yaml);
    assert_eq!((compiled.snapshot.clusters.len(), compiled.diagnostics.len()), (1, 0));
}

/// §3.20: limits of the first destination's service, from the top of its policy alone.
#[test]
fn time_limits_of_raw_tcp() {
    use std::time::Duration;

    let limits = |policy: &str, options: &Options| {
        let rule =
            document("DestinationRule", "n", "r", &format!("spec: {{host: s.com, trafficPolicy: {{{policy}}}}}"));
        let yaml = gateway("gw", "web", &server(9000, "TCP", "['*']", ""))
            + &virtual_service("n", "v", &tcp("[gw/web]", "", "s.com"))
            + &document(
                "ServiceEntry",
                "n",
                "s",
                "spec: {hosts: [s.com], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: DNS}",
            )
            + &rule;
        let compiled = compiled_with(&yaml, options);
        match &chains(&compiled, 9000)[0].handler {
            Handler::Tcp(stream) => (stream.idle_timeout, stream.max_connection_duration),
            Handler::Http(_) => panic!("HTTP"),
        }
    };
    let hour = Duration::from_secs(3600);
    let plain = Options::default();
    let mut idle = Options::default();
    idle.features.idle_timeout = Some(Duration::from_secs(7));
    let mut never = Options::default();
    never.features.idle_timeout = Some(Duration::ZERO);
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let other = "connectionPool: {tcp: {maxConnections: 5}}";
    for (policy, options, expected) in [
        (other, &plain, (Some(hour), None)),
        (other, &idle, (seconds(7), None)),
        (other, &never, (None, None)),
        ("connectionPool: {tcp: {idleTimeout: 3s, maxConnectionDuration: 9s}}", &idle, (seconds(3), seconds(9))),
        ("connectionPool: {tcp: {idleTimeout: 0s}}", &idle, (None, None)),
        (
            "portLevelSettings: [{port: {number: 9000}, connectionPool: {tcp: {idleTimeout: 3s}}}]",
            &plain,
            (Some(hour), None),
        ),
    ] {
        assert_eq!(limits(policy, options), expected, "{policy}");
    }
}

/// `security.md` §4.1, §4.7: certificates.
#[test]
fn certificates_of_servers() {
    let secret = |name: &str| CertificateSource::Secret(name.into());
    let files =
        |certificate: &str, key: &str| CertificateSource::Files { certificate: certificate.into(), key: key.into() };
    for (fields, expected) in [
        ("mode: SIMPLE, credentialName: web", vec![secret("web")]),
        ("mode: SIMPLE, credentialName: 'kubernetes://web'", vec![secret("web")]),
        ("mode: SIMPLE, credentialName: istio-system/web", vec![secret("web")]),
        ("mode: SIMPLE, credentialNames: [rsa, ecdsa]", vec![secret("rsa"), secret("ecdsa")]),
        ("mode: SIMPLE, credentialName: 'builtin://'", vec![CertificateSource::Workload]),
        ("mode: SIMPLE, serverCertificate: /c, privateKey: /k", vec![files("/c", "/k")]),
        (
            "mode: SIMPLE, tlsCertificates: [{serverCertificate: /a, privateKey: /b}, {serverCertificate: /c, privateKey: /d}]",
            vec![files("/a", "/b"), files("/c", "/d")],
        ),
        ("mode: ISTIO_MUTUAL", vec![CertificateSource::Workload]),
    ] {
        assert_eq!(settings(fields).certificates, expected, "{fields}");
    }
    for name in ["other/web", "'invalid://'", "'sds://web'", "'configmap://istio-system/web'"] {
        let yaml = gateway(
            "gw",
            "web",
            &server(443, "HTTPS", "['*']", &format!(", tls: {{mode: SIMPLE, credentialName: {name}}}")),
        );
        let compiled = compiled(&yaml);
        let tls = tls(&compiled, 443);
        assert!(matches!(tls.certificates.as_slice(), [CertificateSource::Unusable(_)]), "{tls:?}");
        let errors = findings(&compiled, Severity::Error);
        let path = "IST0161 spec.servers[0].tls.credentialName: ";
        assert!(matches!(errors.as_slice(), [one] if one.starts_with(path)), "{errors:?}");
        assert!(compiled.credentials.is_empty());
    }
}

/// `security.md` §4.1, §4.2: whom servers trust.
#[test]
fn client_certificates() {
    let trust = |ca: CaSource| PeerTrust {
        ca,
        subject_alt_names: Vec::new(),
        spki_pins: Vec::new(),
        certificate_hashes: Vec::new(),
        skip_verification: false,
    };
    let credential = || trust(CaSource::Credential("web".into()));
    let pin = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let hash = "00".repeat(32);
    for (fields, expected) in [
        ("mode: SIMPLE, credentialName: web".to_owned(), ClientAuthentication::None),
        ("mode: MUTUAL, credentialName: web".to_owned(), ClientAuthentication::Required(credential())),
        ("mode: OPTIONAL_MUTUAL, credentialName: web".to_owned(), ClientAuthentication::Optional(credential())),
        ("mode: MUTUAL, credentialNames: [web, ecdsa]".to_owned(), ClientAuthentication::Required(credential())),
        (
            "mode: MUTUAL, credentialName: web, caCertCredentialName: ca".to_owned(),
            ClientAuthentication::Required(trust(CaSource::Secret("ca".into()))),
        ),
        (
            "mode: MUTUAL, credentialName: web, caCertCredentialName: 'configmap://istio-system/ca'".to_owned(),
            ClientAuthentication::Required(trust(CaSource::ConfigMap("ca".into()))),
        ),
        (
            "mode: MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: /ca".to_owned(),
            ClientAuthentication::Required(trust(CaSource::Files { ca: "/ca".into(), crl: None })),
        ),
        (
            "mode: MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: /ca, caCrl: /crl".to_owned(),
            ClientAuthentication::Required(trust(CaSource::Files { ca: "/ca".into(), crl: Some("/crl".into()) })),
        ),
        ("mode: ISTIO_MUTUAL".to_owned(), ClientAuthentication::Required(trust(CaSource::Workload { crl: None }))),
        (
            "mode: ISTIO_MUTUAL, subjectAltNames: [x], caCrl: /crl".to_owned(),
            ClientAuthentication::Required(PeerTrust {
                subject_alt_names: vec!["x".to_owned()],
                ..trust(CaSource::Workload { crl: Some("/crl".into()) })
            }),
        ),
        (
            format!(
                "mode: MUTUAL, credentialName: web, subjectAltNames: [a, b], \
                 verifyCertificateSpki: ['{pin}'], verifyCertificateHash: ['{hash}']"
            ),
            ClientAuthentication::Required(PeerTrust {
                subject_alt_names: vec!["a".to_owned(), "b".to_owned()],
                spki_pins: vec![[0; 32]],
                certificate_hashes: vec![[0; 32]],
                ..credential()
            }),
        ),
        (
            format!(
                "mode: MUTUAL, credentialName: web, insecureSkipVerify: true, subjectAltNames: [a], \
                 verifyCertificateSpki: ['{pin}'], verifyCertificateHash: ['{hash}']"
            ),
            ClientAuthentication::Required(PeerTrust { skip_verification: true, ..credential() }),
        ),
        // Only next to a credential's name do pins count.
        (
            format!(
                "mode: MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: /ca, verifyCertificateSpki: ['{pin}']"
            ),
            ClientAuthentication::Required(trust(CaSource::Files { ca: "/ca".into(), crl: None })),
        ),
    ] {
        assert_eq!(settings(&fields).client, expected, "{fields}");
    }
    // A CA in another namespace is none, and the server doesn't do without.
    let foreign = settings("mode: MUTUAL, credentialName: web, caCertCredentialName: other/ca");
    let ClientAuthentication::Required(PeerTrust { ca: CaSource::Unusable(_), .. }) = &foreign.client else {
        panic!("{foreign:?}")
    };
}

/// What is ignored is said.
#[test]
fn ignored_settings_of_servers() {
    let pin = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (fields, expected) in [
        ("mode: MUTUAL, credentialName: web, caCrl: /crl".to_owned(), "caCrl"),
        ("mode: SIMPLE, credentialName: web, caCrl: /crl".to_owned(), "caCrl"),
        ("mode: SIMPLE, serverCertificate: /c, privateKey: /k, subjectAltNames: [a]".to_owned(), "subjectAltNames"),
        ("mode: SIMPLE, credentialName: web, caCertCredentialName: ca".to_owned(), "caCertCredentialName"),
        (format!("mode: SIMPLE, credentialName: web, verifyCertificateSpki: ['{pin}']"), "verifyCertificateSpki"),
        (format!("mode: ISTIO_MUTUAL, verifyCertificateSpki: ['{pin}']"), "verifyCertificateSpki"),
        (
            "mode: MUTUAL, credentialName: web, insecureSkipVerify: true, subjectAltNames: [a]".to_owned(),
            "subjectAltNames",
        ),
        ("mode: ISTIO_MUTUAL, insecureSkipVerify: true, subjectAltNames: [a]".to_owned(), "subjectAltNames"),
        (
            format!("mode: MUTUAL, credentialName: web, insecureSkipVerify: true, verifyCertificateSpki: ['{pin}']"),
            "verifyCertificateSpki",
        ),
    ] {
        let yaml = gateway("gw", "web", &server(443, "HTTPS", "['*']", &format!(", tls: {{{fields}}}")));
        let found = findings(&compiled(&yaml), Severity::Warning);
        let expected = format!("GW0102 spec.servers[0].tls.{expected}: ");
        assert!(matches!(found.as_slice(), [one] if one.starts_with(&expected)), "{fields}: {found:?}");
    }
}

/// `security.md` §4.4: the server's parameters, then the mesh's, then Envoy's; none of them with ISTIO_MUTUAL.
#[test]
fn parameters_of_servers() {
    use CipherSuite::{EcdheEcdsaAes128GcmSha256 as Ecdsa, EcdheRsaAes256GcmSha384 as Rsa};

    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
                tlsDefaults: {minProtocolVersion: TLSV1_3, cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384], ecdhCurves: [P-384]}\n---\n";
    let with = |mesh: &str, fields: &str| {
        let yaml = gateway("gw", "web", &server(443, "HTTPS", "['*']", &format!(", tls: {{{fields}}}")));
        tls(&compiled(&(yaml + mesh)), 443).parameters.clone()
    };
    let standard = TlsParameters::default();
    let of_mesh = TlsParameters {
        min: TlsVersion::V1_3,
        max: TlsVersion::V1_3,
        cipher_suites: vec![Rsa],
        groups: vec![Group::P384],
    };
    let simple = "mode: SIMPLE, credentialName: c";
    assert_eq!(with("", simple), standard);
    assert_eq!(with(mesh, simple), of_mesh);
    assert_eq!(with(mesh, "mode: ISTIO_MUTUAL"), standard);
    // A maximum below the mesh's minimum leaves no version.
    for (fields, is_void) in [
        ("maxProtocolVersion: TLSV1_2", true),
        ("maxProtocolVersion: TLSV1_3", false),
        ("minProtocolVersion: TLSV1_2, maxProtocolVersion: TLSV1_2", false),
    ] {
        let tls = format!(", tls: {{{simple}, {fields}}}");
        let yaml = gateway("gw", "web", &server(443, "HTTPS", "['*']", &tls)) + mesh;
        let found = findings(&compiled(&yaml), Severity::Warning);
        assert_eq!(found.len(), usize::from(is_void), "{fields}: {found:?}");
        let path = "IST0133 spec.servers[0].tls.maxProtocolVersion: ";
        assert!(found.iter().all(|found| found.starts_with(path)), "{fields}: {found:?}");
    }
    let own = format!(
        "{simple}, minProtocolVersion: TLSV1_1, maxProtocolVersion: TLSV1_2, \
         cipherSuites: [AES128-SHA, ECDHE-ECDSA-AES128-GCM-SHA256, nonsense], ecdhCurves: [P-224, X25519]"
    );
    assert_eq!(
        with(mesh, &own),
        TlsParameters {
            min: TlsVersion::V1_1,
            max: TlsVersion::V1_2,
            cipher_suites: vec![Ecdsa],
            groups: vec![Group::X25519],
        }
    );
    // Istio filters a list before it asks whether there is one.
    let nothing = format!("{simple}, cipherSuites: [AES128-SHA], ecdhCurves: [P-224]");
    assert_eq!(with(mesh, &nothing), of_mesh);
    assert_eq!(with("", &nothing), standard);
}

/// `security.md` §4.5.
#[test]
fn protocols_offered() {
    let alpn = |protocol: &str, mode: &str| {
        let credential = if mode == "ISTIO_MUTUAL" { "" } else { ", credentialName: c" };
        let yaml =
            gateway("gw", "web", &server(443, protocol, "['*']", &format!(", tls: {{mode: {mode}{credential}}}")))
                + &virtual_service("n", "v", &tcp("[gw/web]", "", "s.com"));
        tls(&compiled(&yaml), 443).alpn
    };
    assert_eq!(alpn("HTTPS", "SIMPLE"), ["h2", "http/1.1"]);
    assert_eq!(alpn("HTTPS", "ISTIO_MUTUAL"), ["h2", "http/1.1"]);
    assert_eq!(alpn("TLS", "MUTUAL"), ["h2", "http/1.1"]);
    assert_eq!(alpn("TLS", "ISTIO_MUTUAL"), ["istio-peer-exchange", "h2", "http/1.1"]);
}

/// Modes of `security.md` §4.1.
#[test]
fn modes_of_servers() {
    for (mode, expected) in [
        ("SIMPLE", ServerMode::Simple),
        ("MUTUAL", ServerMode::Mutual),
        ("OPTIONAL_MUTUAL", ServerMode::OptionalMutual),
    ] {
        assert_eq!(settings(&format!("mode: {mode}, credentialName: c")).mode, expected);
    }
    assert_eq!(settings("mode: ISTIO_MUTUAL").mode, ServerMode::IstioMutual);
}

#[test]
fn listeners_expect_the_proxy_protocol() {
    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
                defaultConfig: {gatewayTopology: {proxyProtocol: {}}}\n---\n";
    let web = gateway("gw", "web", &server(80, "HTTP", "['*']", ""));
    assert!(!listener(&compiled(&web), 80).unwrap().proxy_protocol);
    let with = compiled(&(web + mesh));
    assert!(listener(&with, 80).unwrap().proxy_protocol);
    assert!(with.diagnostics.is_empty(), "{:?}", with.diagnostics);
}

/// Rules that no server takes up are named.
#[test]
fn rules_for_other_servers() {
    let https = gateway("gw", "web", &server(443, "HTTPS", "[a.com]", SIMPLE));
    let found =
        |service: &str| findings(&compiled(&(https.clone() + &virtual_service("n", "v", service))), Severity::Warning);
    let wrong = found(&sni("[gw/web]", "[a.com]", "[a.com]", "s.com"));
    assert!(matches!(wrong.as_slice(), [one] if one.starts_with("GW0102 spec.tls: ")), "{wrong:?}");
    // These are for sidecars.
    let mesh = found(&sni("[mesh, gw/web]", "[a.com]", "[a.com]", "s.com"));
    assert!(mesh.is_empty(), "{mesh:?}");
}
