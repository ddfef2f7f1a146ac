//! What stays the same when something else changes.

use super::*;
use crate::load::Loader;
use crate::resource::Kind;
use crate::source::Rescan;

struct Directory {
    directory: tempfile::TempDir,
    loader: Loader,
}

impl Directory {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let loader = Loader::new([directory.path().to_owned()], Options::default());
        let this = Self { directory, loader };
        files.iter().for_each(|(name, text)| this.write(name, text));
        this
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }

    fn load(&mut self) -> Arc<Snapshot> {
        let loaded = self.loader.load(Rescan::All);
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        loaded.snapshot
    }
}

const WEB: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web, namespace: gw}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}
  - {port: {number: 81, name: http2, protocol: HTTP}, hosts: [only.com]}
";

fn rule(name: &str, timeout: &str) -> String {
    let spec = format!(
        "{{hosts: [{name}.com], gateways: [gw/web], http: [{{timeout: {timeout}, route: [{{destination: {{host: {name}}}}}]}}]}}"
    );
    virtual_service("n", name, &spec) + &document("Service", "n", name, "spec: {ports: [{name: http, port: 8000}]}")
}

fn table(snapshot: &Snapshot, port: u16) -> &Arc<crate::snapshot::host::RouteTable> {
    let listener = snapshot.listeners.iter().find(|listener| listener.port == port).unwrap();
    &listener.filter_chains[0].http().unwrap().routes
}

#[test]
fn nothing_changes_when_nothing_changes() {
    let mut directory = Directory::new(&[("web.yaml", WEB), ("a.yaml", &rule("a", "1s"))]);
    let before = directory.load();
    assert!(Arc::ptr_eq(&before, &directory.load()));
    // A comment is no change of any resource.
    directory.write("a.yaml", &format!("# more\n{}", rule("a", "1s")));
    assert!(Arc::ptr_eq(&before, &directory.load()));
}

#[test]
fn an_edit_leaves_the_rest_alone() {
    let mut directory =
        Directory::new(&[("web.yaml", WEB), ("a.yaml", &rule("a", "1s")), ("b.yaml", &rule("b", "1s"))]);
    let before = directory.load();
    directory.write("b.yaml", &rule("b", "2s"));
    let after = directory.load();
    let hosts = |snapshot: &Snapshot, host: &str| Arc::clone(table(snapshot, 80).virtual_host(host).unwrap());
    assert!(Arc::ptr_eq(&hosts(&before, "a.com"), &hosts(&after, "a.com")));
    assert!(!Arc::ptr_eq(&hosts(&before, "b.com"), &hosts(&after, "b.com")));
    assert!(Arc::ptr_eq(table(&before, 81), table(&after, 81)));
    let listener = |snapshot: &Snapshot, port| {
        Arc::clone(snapshot.listeners.iter().find(|listener| listener.port == port).unwrap())
    };
    assert!(Arc::ptr_eq(&listener(&before, 81), &listener(&after, 81)));
    for (name, cluster) in before.clusters.iter() {
        assert!(Arc::ptr_eq(cluster, &after.clusters[name]), "{name}");
    }
    assert!(Arc::ptr_eq(&before.mesh, &after.mesh));
}

#[test]
fn a_new_service_changes_who_names_it() {
    let missing = virtual_service(
        "n",
        "late",
        "{hosts: [late.com], gateways: [gw/web], http: [{route: [{destination: {host: late}}]}]}",
    );
    let mut directory = Directory::new(&[("web.yaml", WEB), ("a.yaml", &rule("a", "1s")), ("late.yaml", &missing)]);
    let before = directory.load();
    assert_eq!(before.clusters.len(), 1);
    directory.write("service.yaml", &document("Service", "n", "late", "spec: {ports: [{name: http, port: 7}]}"));
    let after = directory.load();
    assert!(after.clusters.contains_key("outbound|7||late.n.svc.cluster.local"));
    let host = |snapshot: &Snapshot| Arc::clone(table(snapshot, 80).virtual_host("a.com").unwrap());
    assert!(Arc::ptr_eq(&host(&before), &host(&after)));
    fs::remove_file(directory.directory.path().join("service.yaml")).unwrap();
    assert_eq!(*directory.load(), *before);
}

#[test]
fn a_changed_delegate_changes_its_root() {
    let root = virtual_service(
        "n",
        "root",
        "{hosts: [r.com], gateways: [gw/web], http: [{match: [{uri: {prefix: /}}], delegate: {name: leaf}}]}",
    );
    let leaf =
        |status: u16| virtual_service("n", "leaf", &format!("{{http: [{{directResponse: {{status: {status}}}}}]}}"));
    let mut directory = Directory::new(&[("web.yaml", WEB), ("root.yaml", &root), ("leaf.yaml", &leaf(201))]);
    let before = render::text(&directory.load());
    assert!(before.contains("respond 201"), "{before}");
    directory.write("leaf.yaml", &leaf(202));
    let after = render::text(&directory.load());
    assert!(after.contains("respond 202") && !after.contains("respond 201"), "{after}");
}

#[test]
fn a_changed_mesh_changes_what_depends_on_it() {
    let mesh = |attempts: u32| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
             defaultHttpRetryPolicy: {{attempts: {attempts}, retryOn: 5xx}}\n    connectTimeout: {attempts}s\n"
        )
    };
    let mut directory = Directory::new(&[("web.yaml", WEB), ("a.yaml", &rule("a", "1s")), ("mesh.yaml", &mesh(3))]);
    let text = render::text(&directory.load());
    assert!(text.contains("retries 3 on 5xx") && text.contains("connect timeout 3s"), "{text}");
    directory.write("mesh.yaml", &mesh(4));
    let text = render::text(&directory.load());
    assert!(text.contains("retries 4 on 5xx") && text.contains("connect timeout 4s"), "{text}");
}

#[test]
fn the_order_of_files_means_nothing() {
    let many: Vec<String> = (0..20).map(|i| rule(&format!("s{i}"), "1s")).collect();
    let shared: Vec<String> = (0..20)
        .map(|i| {
            let spec = format!(
                "{{hosts: [shared.com], gateways: [gw/web], http: [{{match: [{{uri: {{prefix: /{}}}}}], \
                 directResponse: {{status: 2{:02}}}}}]}}",
                i % 3,
                i
            );
            virtual_service("n", &format!("shared{i}"), &spec)
        })
        .collect();
    let documents: Vec<&String> = many.iter().chain(&shared).collect();
    let generation = |documents: &[&String]| {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("web.yaml"), WEB).unwrap();
        for (i, document) in documents.iter().enumerate() {
            fs::write(directory.path().join(format!("{i:03}.yaml")), document).unwrap();
        }
        accept::load([directory.path().to_owned()], "istio-system").resources
    };
    let compile_all = |resources: &[Arc<Resource>]| {
        compile(Input { resources, refused: &[] }, &Options::default(), &mut Memo::default()).snapshot
    };
    let forward = generation(&documents);
    let backward: Vec<&String> = documents.iter().rev().copied().collect();
    let expected = compile_all(&forward);
    assert_eq!(compile_all(&generation(&backward)), expected);
    let shuffled: Vec<Arc<Resource>> = forward.iter().rev().cloned().collect();
    assert_eq!(render::text(&compile_all(&shuffled)), render::text(&expected));
}

#[test]
fn a_memo_gives_what_a_fresh_compile_gives() {
    let steps: [&[(&str, String)]; 5] = [
        &[("web.yaml", WEB.to_owned()), ("a.yaml", rule("a", "1s")), ("b.yaml", rule("b", "1s"))],
        &[("a.yaml", rule("a", "9s"))],
        &[("web.yaml", WEB.replace("only.com", "a.com"))],
        &[("b.yaml", rule("c", "1s"))],
        &[("a.yaml", rule("a", "1s")), ("web.yaml", WEB.to_owned())],
    ];
    let mut directory = Directory::new(&[]);
    for step in steps {
        step.iter().for_each(|(name, text)| directory.write(name, text));
        let memoised = directory.load();
        let fresh = crate::load::load([directory.directory.path().to_owned()], Options::default()).snapshot;
        assert_eq!(*memoised, *fresh);
    }
}

/// A TLS server on port 443 and a TCP server on port 9000.
fn tls_gateway(name: &str, tls: &str, hosts: &str) -> String {
    let servers = format!(
        "{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: {hosts}, tls: {tls}}}, \
         {{port: {{number: 9000, name: tcp, protocol: TCP}}, hosts: ['*']}}"
    );
    gateway("gw", name, &servers)
}

fn named_secret(name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: istio-system}}\nstringData: {{key: '{value}'}}\n---\n"
    )
}

fn secret(value: &str) -> String {
    named_secret("a", value)
}

fn mesh(tls_defaults: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         tlsDefaults: {tls_defaults}\n"
    )
}

#[test]
fn chains_stay_what_they_are() {
    let service = |status: u16| {
        let spec = format!("{{hosts: [a.com], gateways: [gw/a], http: [{{directResponse: {{status: {status}}}}}]}}");
        virtual_service("n", "a", &spec)
    };
    let server = |name: &str, hosts: &str| {
        format!(
            "{{port: {{number: 443, name: {name}, protocol: HTTPS}}, hosts: {hosts}, tls: {{mode: SIMPLE, credentialName: c}}}}"
        )
    };
    let servers =
        |more: &str| gateway("gw", "a", &format!("{}, {}{more}", server("a", "[a.com]"), server("b", "[b.com]")));
    let other = gateway("gw", "z", &server("z", "[z.com]").replace("443", "444"));
    let mut directory = Directory::new(&[
        ("gateway.yaml", &servers("")),
        ("other.yaml", &other),
        ("a.yaml", &service(200)),
        ("secret.yaml", &(secret("1") + &named_secret("b", "1"))),
    ]);
    let listener = |snapshot: &Snapshot, port| {
        Arc::clone(snapshot.listeners.iter().find(|listener| listener.port == port).unwrap())
    };
    let tls = |snapshot: &Snapshot, chain: usize| match &listener(snapshot, 443).filter_chains[chain].transport {
        crate::snapshot::listener::Transport::Terminate(tls) => Arc::clone(tls),
        other => panic!("{other:?}"),
    };
    let first = directory.load();

    // A route changes: one chain does, with the TLS that it had.
    directory.write("a.yaml", &service(201));
    let routed = directory.load();
    let (before, after) = (listener(&first, 443), listener(&routed, 443));
    assert!(!Arc::ptr_eq(&before.filter_chains[0], &after.filter_chains[0]));
    assert!(Arc::ptr_eq(&before.filter_chains[1], &after.filter_chains[1]));
    assert!(Arc::ptr_eq(&tls(&first, 0), &tls(&routed, 0)));
    assert!(Arc::ptr_eq(&listener(&first, 444), &listener(&routed, 444)));
    assert!(Arc::ptr_eq(&first.secrets, &routed.secrets));

    // The Gateway gets another server: those that it had stay, wherever they stand in it.
    directory.write("gateway.yaml", &servers(&format!(", {}", server("c", "[c.com]"))));
    let longer = directory.load();
    let chains = listener(&longer, 443).filter_chains.clone();
    assert_eq!(chains.len(), 3);
    assert!(Arc::ptr_eq(&chains[0], &after.filter_chains[0]));
    assert!(Arc::ptr_eq(&chains[1], &after.filter_chains[1]));
    let swapped = gateway("gw", "a", &format!("{}, {}", server("b", "[b.com]"), server("a", "[a.com]")));
    directory.write("gateway.yaml", &swapped);
    let chains = listener(&directory.load(), 443).filter_chains.clone();
    assert!(Arc::ptr_eq(&chains[0], &after.filter_chains[1]));
    assert!(Arc::ptr_eq(&chains[1], &after.filter_chains[0]));

    // A Secret changes: that one, and nothing else.
    let before = directory.load();
    directory.write("secret.yaml", &(secret("2") + &named_secret("b", "1")));
    let after = directory.load();
    assert!(!Arc::ptr_eq(&before.secrets, &after.secrets));
    assert!(!before.secrets.secrets["a"].is_same(&after.secrets.secrets["a"]));
    assert!(before.secrets.secrets["b"].is_same(&after.secrets.secrets["b"]));
    assert!(before.listeners.iter().zip(&after.listeners).all(|(before, after)| Arc::ptr_eq(before, after)));
    assert_eq!(after.secrets.secrets["a"].get("key"), Some(&b"2"[..]));
}

/// Secrets of other namespaces are none of ours.
#[test]
fn only_secrets_of_this_namespace_are_there() {
    let other = secret("1").replace("istio-system", "other");
    let snapshot = compiled(&(other + &named_secret("own", "1"))).snapshot;
    assert_eq!(snapshot.secrets.secrets.keys().map(|name| &**name).collect::<Vec<_>>(), ["own"]);
}

#[test]
fn tls_of_a_cluster_stays_when_its_endpoints_change() {
    let entry = |address: &str| {
        let spec = format!(
            "spec: {{hosts: [s.com], ports: [{{number: 443, name: https}}], resolution: STATIC, endpoints: [{{address: {address}}}]}}"
        );
        document("ServiceEntry", "n", "s", &spec)
    };
    let route = virtual_service(
        "n",
        "v",
        "{hosts: [h.com], gateways: [gw/web], http: [{route: [{destination: {host: s.com}}]}]}",
    );
    let rule = document("DestinationRule", "n", "r", "spec: {host: s.com, trafficPolicy: {tls: {mode: SIMPLE}}}");
    let mut directory =
        Directory::new(&[("web.yaml", WEB), ("route.yaml", &(route + &rule)), ("entry.yaml", &entry("192.0.2.1"))]);
    let tls = |snapshot: &Snapshot| snapshot.clusters.values().next().unwrap().tls.clone().unwrap();
    let before = directory.load();
    directory.write("entry.yaml", &entry("192.0.2.2"));
    let after = directory.load();
    assert!(!Arc::ptr_eq(&before.clusters, &after.clusters));
    assert!(Arc::ptr_eq(&tls(&before), &tls(&after)));
}

#[test]
fn outlier_detection_of_a_cluster_stays_when_its_endpoints_change() {
    let entry = |address: &str, locality: &str| {
        let spec = format!(
            "spec: {{hosts: [s.com], ports: [{{number: 80, name: http}}], resolution: STATIC, \
             endpoints: [{{address: {address}, locality: {locality}}}]}}"
        );
        document("ServiceEntry", "n", "s", &spec)
    };
    let route = virtual_service(
        "n",
        "v",
        "{hosts: [h.com], gateways: [gw/web], http: [{route: [{destination: {host: s.com}}]}]}",
    );
    let mesh = |policy: &str| mesh_config(&format!("defaultTrafficPolicy: {{outlierDetection: {policy}}}"));
    let mut directory = Directory::new(&[
        ("web.yaml", WEB),
        ("route.yaml", &route),
        ("entry.yaml", &entry("192.0.2.1", "a")),
        ("mesh.yaml", &mesh("{}")),
    ]);
    let cluster = |snapshot: &Snapshot| Arc::clone(snapshot.clusters.values().next().unwrap());
    let before = cluster(&directory.load());
    for (address, locality) in [("192.0.2.2", "a"), ("192.0.2.2", "b")] {
        directory.write("entry.yaml", &entry(address, locality));
        let after = cluster(&directory.load());
        assert_ne!(before, after);
        let detection = |cluster: &crate::snapshot::cluster::Cluster| cluster.outlier_detection.clone().unwrap();
        assert!(Arc::ptr_eq(&detection(&before), &detection(&after)));
    }
    // The mesh's defaults are defaults of every cluster.
    directory.write("mesh.yaml", &mesh("{consecutive5xxErrors: 7}"));
    assert_eq!(cluster(&directory.load()).outlier_detection.as_ref().unwrap().consecutive_5xx, 7);
    directory.write("mesh.yaml", &mesh_config("localityLbSetting: {distribute: [{from: '*', to: {b: 100}}]}"));
    assert_eq!(cluster(&directory.load()).balancing.groups.to_vec(), [100]);
    directory.write("mesh.yaml", &mesh_config("localityLbSetting: {enabled: false}"));
    assert!(cluster(&directory.load()).balancing.groups.is_empty());
}

/// Documents in several versions; a step of a history picks one version of each, or none.
fn versions() -> Vec<Vec<Arc<Resource>>> {
    let rule = |name: &str, host: &str, more: &str, action: &str| {
        let spec = format!(
            "{{hosts: [{host}], gateways: [gw/web]{more}, http: [{{match: [{{uri: {{prefix: /{name}}}}}], {action}}}]}}"
        );
        virtual_service("n", name, &spec)
    };
    let respond = |status: u16| format!("directResponse: {{status: {status}}}");
    let to = |host: &str| format!("route: [{{destination: {{host: {host}}}}}]");
    let service = |port: u16| {
        document(
            "Service",
            "n",
            "s",
            &format!(
                "spec: {{selector: {{app: s}}, trafficDistribution: {}, ports: [{{name: http, port: {port}}}]}}",
                if port == 1 { "''" } else { "PreferClose" }
            ),
        )
    };
    let slice = |zone: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, namespace: n, \
             labels: {{kubernetes.io/service-name: s}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
             endpoints: [{{addresses: [192.0.2.1], zone: b}}, {{addresses: [192.0.2.2], zone: {zone}}}]\n---\n"
        )
    };
    let destination_rule = |spec: &str| document("DestinationRule", "n", "r", &format!("spec: {spec}"));
    let catch_all =
        "{hosts: [one.com, '*.two.com'], gateways: [gw/web, gw/xeb], http: [{directResponse: {status: 299}}]}";
    let root = "{hosts: [root.com], gateways: [gw/web], http: [{match: [{uri: {prefix: /}}], delegate: {name: leaf}}]}";
    let leaf =
        |status: u16| virtual_service("n", "leaf", &format!("{{http: [{{directResponse: {{status: {status}}}}}]}}"));
    let server =
        |hosts: &str, rest: &str| format!("{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: {hosts}{rest}}}");
    let streams = |name: &str| {
        let route = "route: [{destination: {host: s}}]";
        format!(
            "{{hosts: ['*.com'], gateways: [gw/a, gw/b], tls: [{{match: [{{sniHosts: [{name}]}}], {route}}}], \
             tcp: [{{match: [{{port: 9000}}], {route}}}]}}"
        )
    };
    let texts: Vec<Vec<String>> = vec![
        vec![
            gateway("gw", "web", &server("['*']", "")),
            gateway("gw", "web", &server("[one.com, root.com]", "")),
            gateway("gw", "web", &server("['*.two.com', one.com]", ", tls: {httpsRedirect: true}")),
        ],
        vec![
            gateway("gw", "xeb", &server("[one.com]", "")),
            gateway("gw", "xeb", &server("['*']", ", bind: 127.0.0.1")),
        ],
        vec![
            rule("a", "one.com", "", &respond(201)),
            rule("a", "one.com, a.two.com", "", &respond(202)),
            rule("a", "one.com", ", exportTo: ['.']", &respond(203)),
        ],
        vec![rule("b", "one.com", "", &to("s")), rule("b", "three.com", "", &to("missing"))],
        vec![rule("c", "'*'", "", &to("s")), rule("c", "'*'", "", &to("ext.com"))],
        vec![virtual_service("n", "z", catch_all)],
        vec![virtual_service("n", "root", root)],
        vec![leaf(205), leaf(206)],
        vec![service(1), service(2)],
        vec![
            document(
                "ServiceEntry",
                "n",
                "e",
                "spec: {hosts: [ext.com], ports: [{number: 80, name: http}], resolution: DNS}",
            ),
            document(
                "ServiceEntry",
                "n",
                "e",
                "spec: {hosts: [ext.com], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}",
            ),
        ],
        vec![
            destination_rule("{host: s, trafficPolicy: {connectionPool: {tcp: {maxConnections: 5}}}}"),
            destination_rule("{host: '*', trafficPolicy: {outlierDetection: {}}}"),
            destination_rule("{host: s, trafficPolicy: {tls: {mode: MUTUAL, credentialName: a}}}"),
            destination_rule(
                "{host: s, trafficPolicy: {connectionPool: {tcp: {idleTimeout: 5s}}, tls: {mode: SIMPLE}}}",
            ),
            destination_rule(
                "{host: s, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}, proxyProtocol: {}, \
                 portLevelSettings: [{port: {number: 2}, loadBalancer: {simple: PASSTHROUGH}}]}}",
            ),
            destination_rule(
                "{host: s, trafficPolicy: {tunnel: {targetHost: t.com, targetPort: 1}, outlierDetection: {}, \
                 loadBalancer: {warmup: {duration: 1s}, localityLbSetting: {failoverPriority: [version]}}}}",
            ),
            destination_rule(
                "{host: s, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {a: 100}}]}}}}",
            ),
            destination_rule("{host: '*.dynamic.com', trafficPolicy: {tls: {mode: SIMPLE, sni: fixed.com}}}"),
        ],
        vec![slice("b"), slice("x")],
        vec![
            document(
                "WorkloadEntry",
                "n",
                "w",
                "spec: {address: 192.0.2.8, labels: {app: s, version: v1}, locality: d}",
            ),
            document(
                "WorkloadEntry",
                "n",
                "w",
                "spec: {address: 192.0.2.8, labels: {app: s}}\nstatus: {conditions: [{type: Healthy, status: 'False'}]}",
            ),
        ],
        vec![
            document(
                "ServiceEntry",
                "n",
                "dynamic",
                "spec: {hosts: ['*.dynamic.com'], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DYNAMIC_DNS}",
            ),
            document(
                "ServiceEntry",
                "n",
                "dynamic",
                "spec: {hosts: ['*.dynamic.com'], ports: [{number: 443, name: tls, protocol: TLS}], resolution: STATIC, \
                 workloadSelector: {labels: {app: s}}}",
            ),
        ],
        vec![rule("d", "four.com", "", &to("'*.dynamic.com'"))],
        vec![
            tls_gateway("a", "{mode: SIMPLE, credentialName: a}", "[a.com, '*.b.com']"),
            tls_gateway("a", "{mode: MUTUAL, credentialName: a}", "[a.com, '*.b.com']"),
            tls_gateway("a", "{mode: PASSTHROUGH}", "['*']"),
        ],
        vec![
            tls_gateway("b", "{mode: SIMPLE, credentialName: b}", "[b.com]"),
            tls_gateway("b", "{mode: SIMPLE, credentialName: b}", "[A.com, c.com]"),
            tls_gateway("b", "{mode: PASSTHROUGH}", "[c.com]"),
        ],
        vec![virtual_service("n", "streams", &streams("a.com")), virtual_service("n", "streams", &streams("c.com"))],
        vec![secret("1"), secret("2")],
        vec![
            mesh("{}"),
            mesh("{cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384]}"),
            mesh_config("defaultTrafficPolicy: {outlierDetection: {}}"),
            mesh_config("localityLbSetting: {distribute: [{from: a, to: {a/b: 80, d: 20}}]}"),
            mesh_config("localityLbSetting: {enabled: false}"),
            mesh_config("outboundTrafficPolicy: {mode: ALLOW_ANY}"),
            mesh_config("{outboundTrafficPolicy: {mode: ALLOW_ANY}, connectTimeout: 3s}"),
        ],
        vec![
            gateway("gw", "proxy", "{port: {number: 3128, name: p, protocol: HTTP_PROXY}, hosts: ['*']}"),
            gateway("gw", "proxy", "{port: {number: 3128, name: p, protocol: HTTP_PROXY}, hosts: ['*.com']}"),
            gateway("gw", "proxy", "{port: {number: 3128, name: p, protocol: HTTP}, hosts: ['*']}"),
        ],
    ];
    let resource = |text: &String| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("input.yaml");
        fs::write(&file, text).unwrap();
        let generation = accept::load([file], "istio-system");
        // The mesh's settings are in a ConfigMap, and count by themselves.
        let mut resources = generation.resources.iter().filter(|resource| resource.meta.kind != Kind::ConfigMap);
        let found = resources.next().map(Arc::clone);
        assert!(found.is_some() && resources.next().is_none(), "{:?}\n{text}", generation.diagnostics);
        found.unwrap()
    };
    texts.iter().map(|versions| versions.iter().map(resource).collect()).collect()
}

#[test]
fn any_history_leads_to_what_a_fresh_compile_gives() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    const STEPS: usize = 12;

    let versions = versions();
    // Which document changes, and to which version; 0 removes it.
    let most = versions.iter().map(Vec::len).max().unwrap();
    let step = prop::collection::vec((0..versions.len(), 0..=most), 1..4);
    let options = Options { locality: Some("a/b/c".to_owned()), ..Options::default() };
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(step, STEPS), |history| {
            let mut memo = Memo::default();
            let mut chosen: Vec<Option<&Arc<Resource>>> = versions.iter().map(|versions| versions.first()).collect();
            for step in history {
                for (document, version) in step {
                    let number = version.checked_sub(1).map(|version| version % versions[document].len());
                    chosen[document] = number.map(|number| &versions[document][number]);
                }
                let resources: Vec<Arc<Resource>> =
                    chosen.iter().flatten().map(|resource| Arc::clone(resource)).collect();
                let input = Input { resources: &resources, refused: &[] };
                let memoised = compile(input, &options, &mut memo);
                let fresh = compile(input, &options, &mut Memo::default());
                prop_assert_eq!(render::text(&memoised.snapshot), render::text(&fresh.snapshot));
                prop_assert_eq!(memoised.snapshot, fresh.snapshot);
                prop_assert_eq!(memoised.diagnostics, fresh.diagnostics);
                prop_assert_eq!(memoised.credentials, fresh.credentials);
            }
            Ok(())
        })
        .unwrap();
}
