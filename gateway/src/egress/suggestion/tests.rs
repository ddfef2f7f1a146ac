#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use config::compile::Options;
use config::load;
use config::parse::{Candidate, Outcome, parse_text};
use config::resource;

use super::*;

fn wanted(host: &str, ports: &[(u16, Protocol)]) -> Vec<Wanted> {
    ports.iter().map(|&(port, protocol)| Wanted { host: host.to_owned(), port, protocol }).collect()
}

fn entry(host: &str, ports: &[(u16, Protocol)]) -> ServiceEntry {
    service_entry(&wanted(host, ports)).unwrap_or_else(|| panic!("none for {host}"))
}

#[test]
fn a_name_is_resolved() {
    let entry = entry("api.example.com", &[(443, Protocol::Tls)]);
    assert_eq!(
        entry.one_line(),
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: api-example-com}, \
         spec: {hosts: [api.example.com], ports: [{number: 443, name: tls, protocol: TLS}], \
         location: MESH_EXTERNAL, resolution: DNS}}"
    );
    assert_eq!(
        entry.in_namespace("shop".parse().unwrap()).document(),
        "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: api-example-com
  namespace: shop
spec:
  hosts:
  - api.example.com
  ports:
  - number: 443
    name: tls
    protocol: TLS
  location: MESH_EXTERNAL
  resolution: DNS
"
    );
}

#[test]
fn an_address_has_an_invented_name() {
    let entry = entry("[2001:db8::1]", &[(5432, Protocol::Tcp)]).in_namespace("no".parse().unwrap());
    assert_eq!(
        entry.one_line(),
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, \
         metadata: {name: '2001--db8--0--0--0--0--0--1-ip', namespace: 'no'}, \
         spec: {hosts: ['2001-db8-0-0-0-0-0-1.ip'], ports: [{number: 5432, name: tcp-5432, protocol: TCP}], \
         location: MESH_EXTERNAL, addresses: ['2001:db8::1'], resolution: STATIC, \
         endpoints: [{address: '2001:db8::1'}]}}"
    );
    assert_eq!(
        entry.document(),
        "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: '2001--db8--0--0--0--0--0--1-ip'
  namespace: 'no'
spec:
  hosts:
  - '2001-db8-0-0-0-0-0-1.ip'
  ports:
  - number: 5432
    name: tcp-5432
    protocol: TCP
  location: MESH_EXTERNAL
  addresses:
  - '2001:db8::1'
  resolution: STATIC
  endpoints:
  - address: '2001:db8::1'
"
    );
}

#[test]
fn ports_are_sorted_and_named_and_the_first_protocol_counts() {
    let ports = [
        (8080, Protocol::Http),
        (443, Protocol::Tls),
        (443, Protocol::Http),
        (80, Protocol::Http),
        (5432, Protocol::Tcp),
        (80, Protocol::Http),
        (8443, Protocol::Tls),
    ];
    let line = entry("a.example", &ports).one_line();
    let expected = "ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}, \
                    {number: 5432, name: tcp-5432, protocol: TCP}, {number: 8080, name: http-8080, protocol: HTTP}, \
                    {number: 8443, name: tls-8443, protocol: TLS}]";
    assert!(line.contains(expected), "{line}");
}

#[test]
fn hosts_are_names_or_addresses_and_nothing_else() {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    for (text, expected) in [
        ("api.example.com", Some("api.example.com")),
        ("API.Example.COM.", Some("api.example.com")),
        ("localhost", Some("localhost")),
        ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
        ("3scale.net", Some("3scale.net")),
        (&longest, Some(&longest)),
        ("192.0.2.1", Some("192.0.2.1")),
        ("2001:DB8:0::1", Some("2001:db8::1")),
        ("[::1]", Some("::1")),
        ("::ffff:192.0.2.1", Some("192.0.2.1")),
        ("1-2-3.ip", Some("1-2-3.ip")),
    ] {
        assert_eq!(Host::parse(text).map(|host| host.to_string()).as_deref(), expected, "{text}");
    }
    for text in [
        "",
        ".",
        "a..b",
        ".a",
        "a.b..",
        "-a.b",
        "a-.b",
        "a_b.example",
        "*.example.com",
        "a b.example",
        "a.example\n",
        "a\r\n---\nkind: Secret",
        "a.example: {}",
        "{a: b}",
        "\"a.example\"",
        "'a.example'",
        "#a",
        "a,b.example",
        "user@a.example",
        "a.example:443",
        "a/b",
        "bücher.example",
        "\u{1b}[31m.example",
        "127.1",
        "0x7f.1",
        "1.2.3.4.5",
        "fe80::1%eth0",
        "[a.example]",
        "192-0-2-1.ip",
        "2001-db8-0-0-0-0-0-1.IP",
        &format!("{label}a.example"),
        &format!("{longest}a"),
    ] {
        assert_eq!(Host::parse(text), None, "{text:?}");
        assert_eq!(service_entry(&wanted(text, &[(443, Protocol::Tls)])), None, "{text:?}");
    }
}

#[test]
fn there_is_none_for_nothing_for_several_hosts_and_for_port_0() {
    assert_eq!(service_entry(&[]), None);
    let mut two = wanted("a.example", &[(443, Protocol::Tls)]);
    two.extend(wanted("b.example", &[(443, Protocol::Tls)]));
    assert_eq!(service_entry(&two), None);
    assert_eq!(service_entry(&wanted("a.example", &[(0, Protocol::Tls)])), None);
    // The same host, written in another way.
    let mut same = wanted("a.example", &[(443, Protocol::Tls)]);
    same.extend(wanted("A.example.", &[(80, Protocol::Http)]));
    assert!(service_entry(&same).is_some());
}

#[test]
fn names_differ_where_hosts_differ() {
    let name = |host: &str| entry(host, &[(443, Protocol::Tls)]).name();
    assert_eq!(name("api-example.com"), "api--example-com");
    assert_eq!(name("api.example.com"), "api-example-com");
    let long = format!("{}.{}.example", "a".repeat(42), "b".repeat(63));
    let other = format!("{}.{}.example", "a".repeat(42), "c".repeat(63));
    for host in [&long, &other] {
        let name = name(host);
        let (kept, hash) = name.split_once("---").unwrap();
        assert_eq!((kept.get(..42), hash.len()), (Some(&*"a".repeat(42)), 16), "{name}");
        assert!(is_label(&name), "{name}");
    }
    assert_ne!(name(&long), name(&other));
}

#[test]
fn namespaces_are_labels() {
    for text in ["shop", "a", "team-1", "1"] {
        assert!(text.parse::<Namespace>().is_ok(), "{text}");
    }
    for text in ["", "Shop", "a.b", "-a", "a b", "a\n", "{}", &"a".repeat(64)] {
        assert_eq!(text.parse::<Namespace>(), Err(NotANamespace), "{text:?}");
    }
}

/// What YAML 1.1, YAML 1.2 or Kubernetes could take for something else, and the ends of what a name may be.
#[test]
fn every_suggestion_is_accepted_without_a_finding() {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
    let mut hosts = vec![
        "api.example.com",
        "api-example.com",
        "xn--bcher-kva.example",
        "3scale.net",
        "1.e5",
        "1e5",
        "0x1f",
        "0o17",
        "e5",
        "inf",
        "nan",
        "2001-12-14.example",
        "12e03.a",
        &longest,
        "192.0.2.1",
        "127.0.0.1",
        "::",
        "::1",
        "2001:db8::1",
        "fe80::1",
    ];
    hosts.extend(WORDS);
    let ports = [(80, Protocol::Http), (443, Protocol::Tls), (5432, Protocol::Tcp), (65535, Protocol::Tcp)];
    for style in [ServiceEntry::document, |entry: &ServiceEntry| entry.one_line() + "\n"] {
        let documents: Vec<String> = hosts.iter().map(|host| style(&entry(host, &ports))).collect();
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        std::fs::write(file.path(), documents.join("---\n")).unwrap();
        let loaded = load::load([file.path().to_owned()], Options::default());
        assert!(loaded.diagnostics.is_empty(), "{:#?}", loaded.diagnostics);
        // Nothing was taken for anything else, either.
        for (host, document) in hosts.iter().zip(&documents) {
            let spec = read(document);
            let expected = Host::parse(host).unwrap();
            assert_eq!(spec.hosts, [expected.in_hosts()], "{document}");
            assert_eq!(spec.ports.len(), ports.len(), "{document}");
            let addresses: Vec<_> = spec.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect();
            match expected {
                Host::Name(_) => assert!(addresses.is_empty() && spec.addresses.is_empty(), "{document}"),
                Host::Address(address) => {
                    assert_eq!(addresses, [address.to_string()], "{document}");
                    assert_eq!(spec.addresses, addresses, "{document}");
                }
            }
        }
    }
}

/// The one ServiceEntry in a document.
fn read(document: &str) -> resource::service_entry::ServiceEntry {
    let parsed = parse_text("suggestion.yaml", document);
    let candidates: Vec<_> = parsed.into_iter().flat_map(|parsed| parsed.candidates).collect();
    let [Candidate { outcome: Outcome::Valid(resource), .. }] = &candidates[..] else { panic!("{candidates:?}") };
    let resource::Spec::ServiceEntry(spec) = &resource.spec else { panic!("{resource:?}") };
    (**spec).clone()
}
