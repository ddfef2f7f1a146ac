//! networking.md §6: what ServiceEntries and WorkloadEntries are to a gateway, and what traffic does when they go.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::client::{End, Http1, Http2, Response, ended_after, read_h2};
use crate::harness::dns::DnsServer;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::pki::{Authority, Leaf};
use crate::harness::table::Table;
use crate::harness::tls_client::{Refusal, Settings};
use crate::harness::tls_server::TlsServer;
use crate::harness::upstream::{Upstream, ok};
use crate::harness::{PATIENCE, eventually};

/// Long enough for anything that came at once to be seen.
const MOMENT: std::time::Duration = std::time::Duration::from_millis(50);

fn says(name: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len())
}

/// Answers with its name.
async fn named(name: &str) -> Upstream {
    Upstream::answers(says(name)).await
}

/// The same on a unix socket, until this is dropped.
fn named_on(listener: UnixListener, name: &'static str) -> JoinSet<()> {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut received = Vec::new();
                while matches!(stream.read_buf(&mut received).await, Ok(length) if length > 0) {
                    if received.ends_with(b"\r\n\r\n") {
                        received.clear();
                        let _ = stream.write_all(says(name).as_bytes()).await;
                    }
                }
            });
        }
    });
    tasks
}

fn port(upstream: &Upstream) -> u16 {
    upstream.address().port()
}

/// A resource of a namespace of its own; `more` goes with its metadata.
fn document(kind: &str, namespace: &str, name: &str, more: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}{more}}}\n\
         spec: {{{spec}}}"
    )
}

/// The body of a 200, or the status with the access log's flag, as the gateway's own answers tell it.
fn outcome(response: &Response) -> String {
    match (response.status, response.text()) {
        (200, body) => body,
        (503, body) if body == "no healthy upstream" => "503 UH".to_owned(),
        (503, body) if body.is_empty() => "503 NC".to_owned(),
        (status, _) => status.to_string(),
    }
}

/// What `count` requests on one connection got: each outcome with how often it was, unless there was only one.
async fn ask(gateway: &Gateway, host: &str, count: usize) -> (String, SocketAddr) {
    let mut client = Http1::connect(gateway.address(80)).await;
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..count {
        *outcomes.entry(outcome(&client.get(host, "/").await)).or_default() += 1;
    }
    let text: Vec<String> = match outcomes.len() {
        1 => outcomes.into_keys().collect(),
        _ => outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect(),
    };
    (text.join(", "), client.address())
}

async fn check(table: &mut Table, gateway: &Gateway, host: &str, count: usize, expected: &str) -> SocketAddr {
    let (got, client) = ask(gateway, host, count).await;
    table.check(&format!("answers of {host}"), expected, &*got);
    match expected {
        "503 UH" => table.expect_log(Some(client), 503, "UH", "no_healthy_upstream"),
        "503 NC" => table.expect_log(Some(client), 503, "NC", "cluster_not_found"),
        "404" => table.expect_log(Some(client), 404, "NR", "route_not_found"),
        _ => {}
    }
    client
}

/// Turns begin at a random place and are exact from there on.
fn in_turns(host: &str) -> String {
    format!("host: {host}\ntrafficPolicy: {{loadBalancer: {{simple: ROUND_ROBIN}}}}\n")
}

#[tokio::test]
async fn endpoints() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("app.sock");
    // The directory's name is nobody else's.
    let hidden = format!("fairlead{}", path.display());
    let _by_path = named_on(UnixListener::bind(&path).unwrap(), "unix");
    let abstract_name = UnixAddr::from_abstract_name(&hidden).unwrap();
    let _abstract = named_on(UnixListener::bind_addr(&abstract_name).unwrap(), "abstract");
    let (a, b, c) = (named("a").await, named("b").await, named("c").await);
    let path = path.to_str().unwrap();
    let main = |target: &Upstream| {
        format!("ports: [{{number: 80, name: main, protocol: HTTP, targetPort: {}}}]\n", port(target))
    };
    let at =
        |upstream: &Upstream, more: &str| format!("{{address: 127.0.0.1, ports: {{main: {}}}{more}}}", port(upstream));
    let endpoints = |list: &[String]| format!("endpoints: [{}]\n", list.join(", "));
    let static_ = "resolution: STATIC\n";
    let rows: Vec<(&str, String, usize, &str)> = vec![
        (
            "the number of the port",
            format!(
                "{static_}ports: [{{number: {}, name: main, protocol: HTTP}}]\nendpoints: [{{address: 127.0.0.1}}]\n",
                port(&a)
            ),
            1,
            "a",
        ),
        ("targetPort goes before it", static_.to_owned() + &main(&b) + "endpoints: [{address: 127.0.0.1}]\n", 1, "b"),
        ("the endpoint's own goes before both", static_.to_owned() + &main(&b) + &endpoints(&[at(&c, "")]), 1, "c"),
        (
            "a unix socket has none",
            static_.to_owned() + &main(&b) + &format!("endpoints: [{{address: 'unix://{path}'}}]\n"),
            2,
            "unix",
        ),
        (
            "nor has an abstract one",
            static_.to_owned() + &main(&b) + &format!("endpoints: [{{address: 'unix://@{hidden}'}}]\n"),
            2,
            "abstract",
        ),
        (
            "weights; 0 is 1",
            static_.to_owned() + &main(&a) + &endpoints(&[at(&a, ", weight: 2"), at(&b, ", weight: 0"), at(&c, "")]),
            40,
            "a 20, b 10, c 10",
        ),
        (
            "weights of 0 alone",
            static_.to_owned() + &main(&a) + &endpoints(&[at(&a, ", weight: 0"), at(&b, ", weight: 0")]),
            20,
            "a 10, b 10",
        ),
        (
            "addresses of the service are not for a gateway",
            static_.to_owned() + "addresses: [10.1.0.0/16, 192.0.2.7]\n" + &main(&a) + &endpoints(&[at(&a, "")]),
            1,
            "a",
        ),
        (
            "in the mesh",
            static_.to_owned() + "location: MESH_INTERNAL\n" + &main(&a) + &endpoints(&[at(&a, "")]),
            1,
            "a",
        ),
        ("outside", static_.to_owned() + "location: MESH_EXTERNAL\n" + &main(&a) + &endpoints(&[at(&a, "")]), 1, "a"),
        (
            "of another network, with an address",
            static_.to_owned() + &main(&a) + &endpoints(&[at(&a, ", network: far"), at(&b, "")]),
            20,
            "a 10, b 10",
        ),
        (
            "of another network, without",
            static_.to_owned() + &main(&a) + &endpoints(&["{network: far}".to_owned(), at(&b, "")]),
            20,
            "b",
        ),
        ("nothing else", static_.to_owned() + &main(&a) + &endpoints(&["{network: far}".to_owned()]), 1, "503 UH"),
    ];
    let mut mesh = Mesh::new();
    for (number, (_, spec, ..)) in rows.iter().enumerate() {
        let host = format!("s{number}.test");
        mesh = mesh
            .resource("ServiceEntry", &format!("hosts: [{host}]\n{spec}"))
            .resource("DestinationRule", &in_turns(&host))
            .route(&host, &host);
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §6, endpoints");
    for (number, (name, _, count, expected)) in rows.into_iter().enumerate() {
        table.row(name);
        let client = check(&mut table, &gateway, &format!("s{number}.test"), count, expected).await;
        let upstream = match expected {
            "unix" => path.to_owned(),
            "abstract" => format!("@{hidden}"),
            _ => continue,
        };
        match gateway.log_line_of(client).await {
            Some(line) => drop(table.check("upstream host", &*upstream, line.upstream_host())),
            None => table.fail("no line in the access log"),
        }
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn workloads() {
    let (a, b, c, other) = (named("a").await, named("b").await, named("c").await, named("other").await);
    let named_vm = named("vm").await;
    let server = DnsServer::start().await;
    server.set("vm.test", &[Ipv4Addr::LOCALHOST.into()], 3600);
    let service = |host: &str, resolution: &str| {
        format!(
            "hosts: [{host}]\nlocation: MESH_INTERNAL\nresolution: {resolution}\n\
             ports: [{{number: 80, name: main, protocol: HTTP}}]\nworkloadSelector: {{labels: {{app: web}}}}\n"
        )
    };
    let mesh = Mesh::new()
        .resource("ServiceEntry", &service("web.test", "STATIC"))
        .resource("ServiceEntry", &service("names.test", "DNS"))
        .resource("DestinationRule", &in_turns("names.test"))
        .route("names.test", "names.test")
        .resource("DestinationRule", &in_turns("web.test"))
        .route("web.test", "web.test")
        // There is a WorkloadEntry of this name, which makes no service of it.
        .route("alone.test", "alone");
    let entry = |namespace: &str, name: &str, labels: &str, upstream: &Upstream, of_spec: &str, status: &str| {
        let spec = format!("address: 127.0.0.1, ports: {{main: {}}}{of_spec}", port(upstream));
        document("WorkloadEntry", namespace, name, labels, &spec) + status + "\n---\n"
    };
    let web = ", labels: {app: web}";
    let of_spec = entry("default", "by-spec", "", &a, web, "");
    let of_metadata = entry("default", "by-metadata", web, &b, ", labels: {app: api}", "");
    let not_of_metadata = entry("default", "not-by-metadata", ", labels: {app: api}", &other, web, "");
    let elsewhere = entry("elsewhere", "elsewhere", web, &other, "", "");
    let third = |healthy: &str| {
        let status = format!("\nstatus: {{conditions: [{{type: Healthy, status: '{healthy}'}}]}}");
        entry("default", "probed", web, &c, "", &status)
    };
    let socket = document("WorkloadEntry", "default", "socket", web, "address: 'unix:///nowhere.sock'") + "\n---\n";
    let by_name = entry("default", "by-name", web, &named_vm, "", "").replace("127.0.0.1", "vm.test");
    let group = document(
        "WorkloadGroup",
        "default",
        "group",
        "",
        "metadata: {labels: {app: web}}, template: {ports: {main: 1}, labels: {app: web}}",
    );
    let alone = entry("default", "alone", "", &other, "", "");
    let others = not_of_metadata + &elsewhere + &socket + &by_name + &alone + &group;
    let all = |workloads: &[&str]| workloads.concat() + &others;
    let gateway = mesh
        .builder()
        .argument("--name-server")
        .argument(&server.address().to_string())
        .environment("INSTANCE_IP", "127.0.0.1")
        .file("workloads.yaml", all(&[&of_spec, &of_metadata, &third("False")]))
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let mut table = Table::new("networking.md §6.4, workloads");
    table.row("an entry that stands alone is nothing");
    check(&mut table, &gateway, "alone.test", 1, "503 NC").await;
    table.row("labels of the metadata win; neither other namespaces nor the sick, nor sockets and names");
    check(&mut table, &gateway, "web.test", 12, "a 6, b 6").await;
    table.row("names if they are resolved");
    eventually("vm.test is resolved", || async {
        (ask(&gateway, "names.test", 3).await.0.contains("vm")).then_some(())
    })
    .await;
    check(&mut table, &gateway, "names.test", 12, "a 4, b 4, vm 4").await;
    for (name, workloads, expected) in [
        ("one has become healthy", vec![&*of_spec, &of_metadata, &third("True")], "a 4, b 4, c 4"),
        ("one has left", vec![&of_spec, &third("True")], "a 6, c 6"),
        ("one has come", vec![&of_spec, &of_metadata, &third("True")], "a 4, b 4, c 4"),
        ("nobody is left, but for a WorkloadGroup", vec![], "503 UH"),
        ("one has come back", vec![&of_metadata], "b"),
    ] {
        table.row(name);
        gateway.write("workloads.yaml", &all(&workloads)).await;
        check(&mut table, &gateway, "web.test", 12, expected).await;
    }
    table.check_logs(&gateway).await;
    table.check("requests to others", &0, &other.take().len());
    table.finish();
}

#[tokio::test]
async fn visibility() {
    let a = named("a").await;
    // Namespace of the ServiceEntry, `exportTo`, what is seen; and what when the mesh's default is `.`.
    let rows = [
        ("edge", "", "a", "a"),
        ("app", "", "a", "503 NC"),
        ("app", "'*'", "a", "a"),
        ("edge", "'.'", "a", "a"),
        ("app", "'.'", "503 NC", "503 NC"),
        ("app", "edge", "a", "a"),
        ("app", "other, edge", "a", "a"),
        ("app", "other", "503 NC", "503 NC"),
        ("edge", "other", "503 NC", "503 NC"),
        ("edge", "'~'", "503 NC", "503 NC"),
        ("app", "'~'", "503 NC", "503 NC"),
        // Beside the VirtualService, which doesn't matter.
        ("default", "'.'", "503 NC", "503 NC"),
        ("default", "edge", "a", "a"),
    ];
    let mut mesh = Mesh::new();
    for (number, (namespace, export_to, ..)) in rows.iter().enumerate() {
        let host = format!("s{number}.test");
        let spec = format!(
            "hosts: [{host}], exportTo: [{export_to}], resolution: STATIC, \
             ports: [{{number: 80, name: main, protocol: HTTP}}], \
             endpoints: [{{address: 127.0.0.1, ports: {{main: {}}}}}]",
            port(&a)
        );
        let entry = document("ServiceEntry", namespace, &format!("s{number}"), "", &spec);
        mesh = mesh.document(&entry).route(&host, &host);
    }
    let gateway = mesh.builder().argument("--namespace").argument("edge").start().await;
    let gateway = gateway.unwrap_or_else(|failure| panic!("{failure}"));
    let mut table = Table::new("networking.md §1.5, ServiceEntries");
    for by_mesh in [false, true] {
        if by_mesh {
            let default = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: edge}\n\
                           data: {mesh: \"defaultServiceExportTo: ['.']\"}\n";
            gateway.write("mesh.yaml", default).await;
        }
        for (number, (namespace, export_to, usually, otherwise)) in rows.into_iter().enumerate() {
            table.row(format!("{namespace}, [{export_to}], default {}", if by_mesh { "." } else { "*" }));
            let expected = if by_mesh { otherwise } else { usually };
            check(&mut table, &gateway, &format!("s{number}.test"), 1, expected).await;
        }
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn one_host_of_several() {
    let (a, b, c) = (named("a").await, named("b").await, named("c").await);
    let number = |number: u16, name: &str, protocol: &str, target: &Upstream| {
        format!("{{number: {number}, name: {name}, protocol: {protocol}, targetPort: {}}}", port(target))
    };
    let entry = |namespace: &str, name: &str, year: u16, host: &str, ports: &str, endpoint: &str| {
        let spec =
            format!("hosts: [{host}], resolution: STATIC, ports: [{ports}], endpoints: [{{address: {endpoint}}}]");
        let created = format!(", creationTimestamp: '{year}-01-01T00:00:00Z'");
        document("ServiceEntry", namespace, name, &created, &spec)
    };
    let route = |namespace: &str, name: &str, host: &str, destination: &str| {
        let spec = format!(
            "hosts: [{host}], gateways: [default/gateway], http: [{{route: [{{destination: {{{destination}}}}}]}}]"
        );
        document("VirtualService", namespace, name, "", &spec)
    };
    let local = "127.0.0.1";
    // The younger one says that port 80 is HTTP/2, which its backends don't speak.
    let second = number(80, "main", "HTTP2", &b) + ", " + &number(81, "more", "HTTP", &c);
    let service = format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: svc, namespace: shop, creationTimestamp: '2024-01-01T00:00:00Z'}}\n\
         spec: {{clusterIP: 10.0.0.1, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: svc-1, namespace: shop, labels: {{kubernetes.io/service-name: svc}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: {}}}]\nendpoints: [{{addresses: [127.0.0.1]}}]\n",
        port(&b)
    );
    let svc = "svc.shop.svc.cluster.local";
    let gateway = Mesh::new()
        .document(&entry("one", "first", 2021, "merged.test", &number(80, "main", "HTTP", &a), local))
        .document(&entry("one", "second", 2022, "merged.test", &second, local))
        .document(&document("DestinationRule", "one", "turns", "", &in_turns("merged.test").trim().replace('\n', ", ")))
        .document(&route("one", "v1", "merged-80.test", "host: merged.test, port: {number: 80}"))
        .document(&route("one", "v2", "merged-81.test", "host: merged.test, port: {number: 81}"))
        .document(&entry("old", "apart", 2021, "apart.test", &number(8080, "main", "HTTP", &a), local))
        .document(&entry("young", "apart", 2022, "apart.test", &number(9090, "main", "HTTP", &b), local))
        .document(&route("old", "v", "apart-old.test", "host: apart.test"))
        .document(&route("young", "v", "apart-young.test", "host: apart.test"))
        .document(&route("third", "v", "apart-third.test", "host: apart.test"))
        .document(&route("third", "v2", "apart-9090.test", "host: apart.test, port: {number: 9090}"))
        .document(&entry("old", "common", 2021, "common.test", &number(80, "main", "HTTP", &a), local))
        .document(&entry("young", "common", 2022, "common.test", &number(80, "main", "HTTP", &b), local))
        .document(&route("young", "v2", "common.test", "host: common.test"))
        .document(&entry("shop", "squatter", 2021, svc, &number(80, "main", "HTTP", &a), local))
        .document(&route("shop", "v", "svc.test", "host: svc"))
        .builder()
        .file("service.yaml", service)
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let mut table = Table::new("networking.md §6.4, one host of several resources");
    for (name, host, count, expected) in [
        ("endpoints are merged, each with its own entry's target", "merged-80.test", 20, "a 10, b 10"),
        ("an endpoint has the ports of its own entry", "merged-81.test", 20, "c"),
        ("of several namespaces, one's own", "apart-old.test", 1, "a"),
        ("of several namespaces, one's own", "apart-young.test", 1, "b"),
        ("the oldest for the others", "apart-third.test", 1, "a"),
        ("who has the port", "apart-9090.test", 1, "b"),
        // As in Istio, there is one cluster of that name.
        ("a port in common is the oldest's", "common.test", 1, "a"),
        ("a Kubernetes Service comes first, however young", "svc.test", 1, "b"),
    ] {
        table.row(name);
        check(&mut table, &gateway, host, count, expected).await;
    }
    table.row("the Kubernetes Service is gone");
    let before = gateway.generation().await;
    std::fs::remove_file(gateway.config().join("service.yaml")).unwrap();
    gateway.reloaded_since(before).await;
    check(&mut table, &gateway, "svc.test", 1, "a").await;
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn subject_alt_names() {
    let authority = Authority::new("upstreams");
    let place = tempfile::tempdir().unwrap();
    let ca = place.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let server = TlsServer::new(&authority.issue(&Leaf::server("up.test").dns("alt.up.test")));
    let upstream = Upstream::h1_tls(&server, |_| ok()).await;
    // Names of the ServiceEntry, more of the DestinationRule's `tls`, Host, whether the certificate will do.
    let rows = [
        ("up.test", "sni: up.test", "any.test", true),
        ("nobody.test, alt.up.test", "sni: up.test", "any.test", true),
        ("nobody.test", "sni: up.test", "any.test", false),
        // Beside the name that was asked for, which the rule leaves to be checked.
        ("alt.up.test", "", "up.test", true),
        ("nobody.test", "", "up.test", false),
        ("up.test", "", "any.test", false),
        // The rule's own count alone.
        ("nobody.test", "subjectAltNames: [up.test]", "any.test", true),
        ("up.test", "subjectAltNames: [nobody.test]", "any.test", false),
        ("nobody.test", "insecureSkipVerify: true", "any.test", true),
    ];
    let mut mesh = Mesh::new();
    let mut routes = String::new();
    for (number, (names, tls, ..)) in rows.iter().enumerate() {
        let host = format!("s{number}.test");
        let trust =
            if tls.contains("insecure") { String::new() } else { format!("caCertificates: {}, ", ca.display()) };
        mesh = mesh
            .resource(
                "ServiceEntry",
                &format!(
                    "hosts: [{host}]\nresolution: STATIC\nports: [{{number: 443, name: main, protocol: HTTPS}}]\n\
                     endpoints: [{{address: 127.0.0.1, ports: {{main: {}}}}}]\nsubjectAltNames: [{names}]\n",
                    port(&upstream)
                ),
            )
            .resource(
                "DestinationRule",
                &format!("host: {host}\ntrafficPolicy: {{tls: {{mode: SIMPLE, {trust}{tls}}}}}\n"),
            );
        let _ = writeln!(
            routes,
            "- match: [{{uri: {{prefix: /{number}}}}}]\n  route: [{{destination: {{host: {host}}}}}]\n  \
             retries: {{attempts: 0}}"
        );
    }
    let gateway = mesh.routes("*", &routes).start().await;
    let mut table = Table::new("networking.md §6.1, subjectAltNames");
    for (number, (names, tls, host, fits)) in rows.into_iter().enumerate() {
        table.row(format!("[{names}], {tls}, {host}"));
        let response = Http1::connect(gateway.address(80)).await.get(host, &format!("/{number}")).await;
        table.check("status", if fits { &200 } else { &503 }, &response.status);
        table.check("requests", &usize::from(fits), &upstream.take().len());
        if !fits {
            table.expect_log(response.client, 503, "UF", "*");
            let line = gateway.log_line_of(response.client.unwrap()).await;
            let reason = line.map(|line| line.transport_failure().to_owned()).unwrap_or_default();
            table.check("the reason names what the certificate has", &true, &reason.contains("[up.test,_alt.up.test]"));
        }
    }
    table.check_logs(&gateway).await;
    table.finish();
}

/// §7.1: what a sidecar lets through under `ALLOW_ANY`, a gateway doesn't.
#[tokio::test]
async fn unknown_hosts() {
    let upstream = named("known").await;
    let servers = "- port: {number: 80, name: http, protocol: HTTP}\n  hosts: ['*']\n\
                   - port: {number: 443, name: tls, protocol: TLS}\n  hosts: ['*']\n  tls: {mode: PASSTHROUGH}\n";
    let mesh = Mesh::new()
        .servers(servers, &[80, 443])
        .resource(
            "ServiceEntry",
            &format!(
                "hosts: [known.test]\naddresses: [10.1.0.0/16]\nresolution: STATIC\n\
                 ports: [{{number: 80, name: main, protocol: HTTP}}, {{number: 443, name: tls, protocol: TLS}}]\n\
                 endpoints: [{{address: 127.0.0.1, ports: {{main: {0}, tls: {0}}}}}]\n",
                port(&upstream)
            ),
        )
        .route("routed.test", "known.test")
        .resource(
            "VirtualService",
            "hosts: [routed.test]\ngateways: [gateway]\ntls:\n\
             - match: [{sniHosts: [routed.test]}]\n  route: [{destination: {host: known.test, port: {number: 443}}}]\n",
        );
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §7.1, unknown hosts");
    let client = Settings::new(&[]).client();
    for mode in ["", "ALLOW_ANY", "REGISTRY_ONLY"] {
        if !mode.is_empty() {
            gateway.write("config.yaml", &mesh_with(&mesh, &format!("outboundTrafficPolicy: {{mode: {mode}}}"))).await;
        }
        // A ServiceEntry without a route is not known; its addresses aren't either.
        for host in ["known.test", "10.1.0.7", "unknown.test", "127.0.0.1"] {
            table.row(format!("{mode} {host}"));
            check(&mut table, &gateway, host, 1, "404").await;
        }
        for name in ["known.test", "unknown.test"] {
            table.row(format!("{mode} SNI {name}"));
            let mark = gateway.log_mark();
            table.check("end", &Err(Refusal::Reset), &client.refusal(gateway.address(443), name).await);
            let line = gateway.log_line_since(mark, |line| line.code() == "0").await;
            let line = line.map(|line| (line.flags().to_owned(), line.details().to_owned()));
            let expected = Some(("NR".to_owned(), "filter_chain_not_found".to_owned()));
            table.check("access log", &expected, &line);
        }
        table.row(format!("{mode} what is routed"));
        check(&mut table, &gateway, "routed.test", 1, "known").await;
        table.check("requests", &1, &upstream.take().len());
    }
    table.check_logs(&gateway).await;
    table.finish();
}

fn mesh_with(mesh: &Mesh, config: &str) -> String {
    format!(
        "{}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data: {{mesh: \"{config}\"}}\n",
        mesh.yaml()
    )
}

/// §4.8, §6.4: `endpoint-removed-http`, `endpoint-removed-tcp`, `endpoint-none`, `cluster-removed`.
#[tokio::test]
async fn removals() {
    let (slow, go) = Upstream::in_two_pieces().await;
    let (echo, next) = (Upstream::echo().await, named("next").await);
    let (going, gone) = watch::channel(false);
    let held = Upstream::raw(move |stream, _| hold_h2(stream, gone.clone())).await;
    let servers = "- port: {number: 80, name: http, protocol: HTTP}\n  hosts: ['*']\n\
                   - port: {number: 9000, name: tcp, protocol: TCP}\n  hosts: ['*']\n";
    // The endpoints of each service; whether there is a subset.
    let yaml = |http: &[SocketAddr], tcp: &[SocketAddr], http2: &[SocketAddr], has_subset: bool| {
        let subsets = if has_subset { "subsets: [{name: all}]\n" } else { "" };
        Mesh::new()
            .servers(servers, &[80, 9000])
            .http("http.test", http)
            .route("http.test", "http.test")
            .service("tcp.test", "TCP", tcp)
            .resource(
                "VirtualService",
                "hosts: ['*']\ngateways: [gateway]\ntcp:\n\
                 - match: [{port: 9000}]\n  route: [{destination: {host: tcp.test}}]\n",
            )
            .http2("subset.test", http2)
            .resource("DestinationRule", &format!("host: subset.test\n{subsets}"))
            .routes("subset.test", "[{route: [{destination: {host: subset.test, subset: all}}]}]")
            .yaml()
    };
    let (slow_at, echo_at, held_at, next_at) = (slow.address(), echo.address(), held.address(), next.address());
    let gateway = Gateway::builder()
        .ports(&[80, 9000])
        .file("config.yaml", yaml(&[slow_at], &[echo_at], &[held_at], true))
        .start()
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let mut table = Table::new("networking.md §4.8, what is removed");

    table.row("before");
    let mut long = Http1::connect(gateway.address(80)).await;
    long.send("GET /long HTTP/1.1\r\nhost: http.test\r\n\r\n").await;
    table.check("status", &200, &long.head().await.status);
    table.check("first half", &Ok(b"first".to_vec()), &long.read_exactly(5).await);
    let mut session = Http1::connect(gateway.address(9000)).await;
    session.send("one").await;
    table.check("echo", &Ok(b"one".to_vec()), &session.read_exactly(3).await);
    let mut streams = Http2::connect(gateway.address(80)).await;
    let request = http::Request::get("http://subset.test/").body(()).unwrap();
    let (stream, _) = streams.open(request, true).await.unwrap();
    eventually("the stream is at the upstream", || async { (held.open() == 1).then_some(()) }).await;

    table.row("endpoints are replaced");
    gateway.write("config.yaml", &yaml(&[next_at], &[], &[held_at], false)).await;
    check(&mut table, &gateway, "http.test", 3, "next").await;
    table.check("requests to the new one", &3, &next.take().len());
    check(&mut table, &gateway, "subset.test", 1, "503 NC").await;
    let (client, end) = ended_after(gateway.address(9000), "two").await;
    table.check("a new session", &End::Reset, &end);
    table.expect_log(Some(client), 0, "UH", "-");

    table.row("no endpoint is left");
    gateway.write("config.yaml", &yaml(&[], &[], &[], false)).await;
    check(&mut table, &gateway, "http.test", 1, "503 UH").await;
    check(&mut table, &gateway, "subset.test", 1, "503 NC").await;

    table.row("what is under way goes on");
    table.check("session", &End::Open, &session.ended(MOMENT).await);
    session.send("two").await;
    table.check("echo", &Ok(b"two".to_vec()), &session.read_exactly(3).await);
    table.check("request", &End::Open, &long.ended(MOMENT).await);
    go.send(true).unwrap();
    table.check("second half", &Ok(b"after".to_vec()), &long.read_exactly(5).await);
    going.send(true).unwrap();
    let response = read_h2(stream).await;
    table.check("stream", &(200, &None), &(response.status, &response.failure));

    table.row("and then its connections are of no use");
    table.check("connections", &(1, 1, 1), &(slow.connections(), echo.connections(), held.connections()));
    eventually("idle connections to endpoints that are gone are closed", || async {
        (slow.open() == 0 && held.open() == 0).then_some(())
    })
    .await;
    check(&mut table, &gateway, "http.test", 1, "503 UH").await;
    session.half_close().await;
    table.check("session", &End::Closed, &session.ended(PATIENCE).await);
    table.check_logs(&gateway).await;
    table.finish();
}

/// An HTTP/2 server that answers each request when it is told to.
async fn hold_h2(stream: tokio::net::TcpStream, gone: watch::Receiver<bool>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut streams = JoinSet::new();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let mut gone = gone.clone();
        streams.spawn(async move {
            let _ = gone.wait_for(|gone| *gone).await;
            let _ = respond.send_response(http::Response::new(()), true);
        });
    }
}
