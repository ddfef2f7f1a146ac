//! networking.md §5.1, §5.2: which DestinationRule applies, and which of its policies.
//!
//! What is in force shows in `maxRequestsPerConnection`: twelve requests take as many connections as it says.

use std::fmt::Write;

use crate::harness::client::Http1;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::Upstream;

/// A rule. In its `host`, `DOMAIN` stands for the domain of the row.
struct Rule {
    namespace: &'static str,
    year: u16,
    host: String,
    spec: String,
}

impl Rule {
    fn new(namespace: &'static str, host: impl Into<String>, spec: impl Into<String>) -> Self {
        Self { namespace, year: 2020, host: host.into(), spec: spec.into() }
    }

    fn of_year(self, year: u16) -> Self {
        Self { year, ..self }
    }
}

/// Allows `count` requests on a connection.
fn http(count: u32) -> String {
    format!("connectionPool: {{http: {{maxRequestsPerConnection: {count}}}}}")
}

fn policy(count: u32) -> String {
    format!("trafficPolicy: {{{}}}", http(count))
}

/// The rows of a table and the configuration that they need.
struct Rows {
    mesh: Mesh,
    upstream: Upstream,
    rows: Vec<(&'static str, String, usize)>,
    documents: usize,
}

impl Rows {
    async fn new() -> Self {
        Self { mesh: Mesh::new(), upstream: Upstream::ok().await, rows: Vec::new(), documents: 0 }
    }

    /// A row on a service of its own, [`OWN`] in namespace `shop`.
    fn row(&mut self, name: &'static str, rules: Vec<Rule>, expected: usize) {
        self.subset_row(name, "", rules, expected);
    }

    /// A row with more in its destination.
    fn subset_row(&mut self, name: &'static str, destination: &str, rules: Vec<Rule>, expected: usize) {
        let number = self.rows.len();
        let domain = format!("d{number}.test");
        let host = format!("a.b.{domain}");
        let mut documents = String::new();
        let (ip, port) = (self.upstream.address().ip(), self.upstream.address().port());
        let entry = format!(
            "hosts: [{host}], location: MESH_EXTERNAL, resolution: STATIC, ports: \
             [{{number: 80, name: main, protocol: HTTP}}, {{number: 81, name: other, protocol: HTTP}}], \
             endpoints: [{{address: {ip}, ports: {{main: {port}, other: {port}}}, labels: {{version: v1}}}}]"
        );
        let _ = write!(
            documents,
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: entry-{number}, namespace: shop}}\nspec: {{{entry}}}\n"
        );
        for Rule { namespace, year, host, spec } in rules {
            self.documents += 1;
            let host = host.replace("DOMAIN", &domain);
            // Younger rules come first by name and in the file.
            let name = format!("rule-{:03}", 999 - self.documents);
            let _ = write!(
                documents,
                "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, \
                 namespace: {namespace}, creationTimestamp: '{year}-01-01T00:00:00Z'}}\n\
                 spec:\n  host: '{host}'\n"
            );
            for line in spec.lines() {
                let _ = writeln!(documents, "  {line}");
            }
        }
        let mesh = std::mem::replace(&mut self.mesh, Mesh::new());
        let route = format!("[{{route: [{{destination: {{host: {host}{destination}}}}}]}}]");
        self.mesh = mesh.document(&documents).routes(&host, &route);
        self.rows.push((name, host, expected));
    }

    /// Starts a gateway in `namespace` and runs all rows.
    async fn run(self, title: &'static str, namespace: &str, mesh_config: &str) {
        let Self { mesh, upstream, rows, .. } = self;
        // Not in a ConfigMap, which would have to be in the namespace of the gateway.
        let mesh = mesh.document(&format!("kind: MeshConfig\n{mesh_config}\n"));
        let gateway = mesh.builder().argument("--namespace").argument(namespace).start().await;
        let gateway: Gateway = gateway.unwrap_or_else(|failure| panic!("{failure}"));
        let mut table = Table::new(title);
        for (name, host, expected) in rows {
            table.row(name);
            table.check("requests by connection", &expected, &in_force(&gateway, &host, &upstream).await);
        }
        table.finish();
    }
}

/// How many requests for `host` a connection to the upstream takes; 0 for any number.
async fn in_force(gateway: &Gateway, host: &str, upstream: &Upstream) -> usize {
    let before = upstream.connections();
    let mut client = Http1::connect(gateway.address(80)).await;
    for _ in 0..12 {
        let response = client.get(host, "/").await;
        assert_eq!(response.status, 200, "{host}: {response:?}");
    }
    match upstream.connections() - before {
        1 => 0,
        connections => 12 / connections,
    }
}

const OWN: &str = "a.b.DOMAIN";

/// The namespace of the gateway is another one than the root namespace.
#[tokio::test]
async fn namespaces() {
    let mut rows = Rows::new().await;
    let rule = Rule::new;
    rows.row("no rule", vec![], 0);
    rows.row("the service's namespace", vec![rule("shop", OWN, policy(2))], 2);
    rows.row("the root namespace", vec![rule("istio-system", OWN, policy(2))], 2);
    rows.row("our own namespace", vec![rule("edge", OWN, policy(2))], 2);
    rows.row("a namespace that has nothing to say", vec![rule("other", OWN, policy(2))], 0);
    let all = || vec![rule("istio-system", OWN, policy(2)), rule("shop", OWN, policy(3)), rule("edge", OWN, policy(4))];
    rows.row("our own comes first", all(), 4);
    rows.row("the root's comes last", all().drain(..2).collect(), 3);
    let private = |namespace, count| rule(namespace, OWN, format!("{}\nexportTo: ['.']", policy(count)));
    let exported = |to: &str, count| rule("shop", OWN, format!("{}\nexportTo: [{to}]", policy(count)));
    rows.row("private to our own namespace", vec![private("edge", 4), rule("shop", OWN, policy(3))], 4);
    rows.row("private to the service's namespace", vec![private("shop", 3)], 0);
    rows.row("private to the root namespace", vec![private("istio-system", 3)], 0);
    rows.row("exported to us", vec![exported("edge", 3)], 3);
    rows.row("exported to us among others", vec![exported("other, edge", 3)], 3);
    rows.row("exported to others", vec![exported("other", 3), rule("istio-system", OWN, policy(2))], 2);
    rows.row(
        "our own, exported to others",
        vec![rule("edge", OWN, format!("{}\nexportTo: [other]", policy(4))), rule("shop", OWN, policy(3))],
        4,
    );
    let other_policy = || "trafficPolicy: {loadBalancer: {simple: RANDOM}}".to_owned();
    rows.row(
        "namespaces are not merged",
        vec![rule("shop", OWN, other_policy()), rule("istio-system", OWN, policy(2))],
        0,
    );

    rows.row("a wildcard", vec![rule("shop", "*.DOMAIN", policy(2))], 2);
    rows.row("exact before wildcard", vec![rule("shop", "*.DOMAIN", policy(2)), rule("shop", OWN, policy(3))], 3);
    rows.row(
        "the longest wildcard",
        vec![rule("shop", "*.DOMAIN", policy(2)), rule("shop", "*.b.DOMAIN", policy(3))],
        3,
    );
    rows.row("another's wildcard", vec![rule("shop", "*.c.DOMAIN", policy(2))], 0);
    rows.row("hosts are not merged", vec![rule("shop", "*.DOMAIN", policy(2)), rule("shop", OWN, other_policy())], 0);
    rows.row("a wildcard of ours before", vec![rule("edge", "*.DOMAIN", policy(2)), rule("shop", OWN, policy(3))], 2);
    rows.row(
        "who isn't exported to us hides the wildcard of its namespace",
        vec![exported("other", 3), rule("shop", "*.DOMAIN", policy(4)), rule("istio-system", OWN, policy(2))],
        2,
    );

    let selecting = |namespace, labels: &str, count| {
        rule(namespace, OWN, format!("{}\nworkloadSelector: {{matchLabels: {{{labels}}}}}", policy(count)))
    };
    let ours = "istio: ingressgateway";
    rows.row("selected", vec![rule("edge", OWN, policy(2)), selecting("edge", ours, 3).of_year(2021)], 3);
    rows.row(
        "selected, whatever is older",
        vec![rule("edge", OWN, policy(2)).of_year(2019), selecting("edge", ours, 3)],
        3,
    );
    rows.row("not selected", vec![rule("edge", OWN, policy(2)), selecting("edge", "app: other", 3)], 2);
    rows.row("not selected and alone", vec![selecting("edge", "app: other", 3)], 0);
    rows.row("a selector in another namespace", vec![selecting("shop", ours, 3)], 0);
    rows.run("networking.md §5.1, namespaces", "edge", "rootNamespace: istio-system").await;
}

/// A gateway in the root namespace.
#[tokio::test]
async fn our_own_namespace_is_the_root() {
    let mut rows = Rows::new().await;
    let rule = Rule::new;
    let private = rule("istio-system", OWN, format!("{}\nexportTo: ['.']", policy(4)));
    let by_name = rule("istio-system", OWN, format!("{}\nexportTo: [istio-system]", policy(4)));
    rows.row("private to it, first", vec![private, rule("shop", OWN, policy(3))], 4);
    rows.row("private to it by name, first", vec![by_name, rule("shop", OWN, policy(3))], 4);
    rows.row("for all, last", vec![rule("istio-system", OWN, policy(4)), rule("shop", OWN, policy(3))], 3);
    rows.row("for all, alone", vec![rule("istio-system", OWN, policy(4))], 4);
    rows.run("networking.md §5.1, in the root namespace", "istio-system", "rootNamespace: istio-system").await;
}

/// Rules of one namespace for one host.
#[tokio::test]
async fn rules_for_one_host() {
    let mut rows = Rows::new().await;
    let rule = |year: u16, spec: String| Rule::new("shop", OWN, spec).of_year(year);
    let subset =
        |name: &str, count: u32| format!("subsets: [{{name: {name}, labels: {{version: v1}}, {}}}]", policy(count));
    let other_policy = || "trafficPolicy: {loadBalancer: {simple: RANDOM}}".to_owned();
    let (v1, v2) = (", subset: v1", ", subset: v2");
    rows.row("the oldest policy", vec![rule(2022, policy(2)), rule(2021, policy(3)), rule(2023, policy(4))], 3);
    rows.row("the oldest that has one", vec![rule(2022, policy(2)), rule(2021, subset("v1", 4))], 2);
    rows.row("policies are not mixed", vec![rule(2022, policy(2)), rule(2021, other_policy())], 0);
    let both = || vec![rule(2022, subset("v2", 2)), rule(2021, format!("{}\n{}", subset("v1", 4), policy(3)))];
    rows.subset_row("subsets of the older", v1, both(), 4);
    rows.subset_row("subsets of the younger", v2, both(), 2);
    rows.row("no subset", both(), 3);
    rows.subset_row("two of one name", v1, vec![rule(2022, subset("v1", 2)), rule(2021, subset("v1", 4))], 4);
    let without = || vec![rule(2022, "subsets: [{name: v2, labels: {version: v1}}]".to_owned()), rule(2021, policy(3))];
    rows.subset_row("a subset with the policy of another rule", v2, without(), 3);
    let exported = |year, to: &str, count| rule(year, format!("{}\nexportTo: [{to}]", policy(count)));
    rows.row(
        "exported otherwise: the first that we see",
        vec![exported(2021, "other", 2), exported(2022, "'*'", 3)],
        3,
    );
    rows.row("exported alike", vec![exported(2021, "edge, other", 2), exported(2022, "other, edge", 3)], 2);
    rows.row(
        "exported further: it is part of the older one, which we don't see",
        vec![exported(2021, "other", 2), exported(2022, "other, edge", 3)],
        0,
    );
    rows.row(
        "exported further: it is part of the older one, which counts",
        vec![rule(2021, "exportTo: [edge]".to_owned()), exported(2022, "other, edge", 3)],
        3,
    );
    rows.subset_row(
        "exported otherwise: subsets stay apart",
        v1,
        vec![
            rule(2021, policy(3)),
            rule(2022, format!("{}\nexportTo: [edge]", subset("v1", 4))),
            rule(2023, subset("v1", 2)),
        ],
        2,
    );
    rows.subset_row(
        "no labels: all endpoints",
        v1,
        vec![rule(2021, "subsets: [{name: v1}]\n".to_owned() + &policy(2))],
        2,
    );
    rows.run("networking.md §5.1, one host", "edge", "rootNamespace: istio-system").await;
}

/// Blocks are taken whole, by level.
fn layers(rows: &mut Rows, default: usize) {
    let rule = |spec: String| vec![Rule::new("shop", OWN, spec)];
    let top = |blocks: &str| format!("trafficPolicy: {{{blocks}}}");
    let port = |number: u16, blocks: &str| format!("{{port: {{number: {number}}}, {blocks}}}");
    let ports = |settings: &[String]| format!("portLevelSettings: [{}]", settings.join(", "));
    let subset = |blocks: &str| format!("subsets: [{{name: v1, labels: {{version: v1}}, {}}}]", top(blocks));
    let (balancer, tcp) = ("loadBalancer: {simple: RANDOM}", "connectionPool: {tcp: {maxConnections: 100}}");
    let (port_81, v1, v1_81) = (", port: {number: 81}", ", subset: v1", ", subset: v1, port: {number: 81}");
    let with_port = |count| format!("{}, {}", http(count), ports(&[port(80, &http(3))]));

    rows.row("nothing", vec![], default);
    rows.row("no pool", rule(top(balancer)), default);
    rows.row("a pool without an HTTP part", rule(top(tcp)), 0);
    rows.row("the service", rule(top(&http(2))), 2);
    rows.row("the port", rule(top(&with_port(2))), 3);
    rows.subset_row("another port", port_81, rule(top(&with_port(2))), 2);
    rows.row("the port alone", rule(top(&ports(&[port(80, &http(3))]))), 3);
    rows.row(
        "the port replaces everything",
        rule(top(&format!("{}, {}", http(2), ports(&[port(80, balancer)])))),
        default,
    );
    rows.row("the port's pool has no HTTP part", rule(top(&format!("{}, {}", http(2), ports(&[port(80, tcp)])))), 0);
    rows.row("the first entry for a port", rule(top(&ports(&[port(80, &http(3)), port(80, &http(4))]))), 3);

    let both = |service: &str, of_subset: &str| rule(format!("{}\n{}", top(service), subset(of_subset)));
    rows.row("a subset that nobody names", both(&http(2), &http(4)), 2);
    rows.subset_row("the subset", v1, both(&http(2), &http(4)), 4);
    rows.subset_row("the subset's other block", v1, both(&http(2), balancer), 2);
    rows.subset_row("the subset's pool has no HTTP part", v1, both(&http(2), tcp), 0);
    rows.subset_row("the subset's other block over the port", v1, both(&with_port(2), balancer), 3);
    rows.subset_row("the subset over the port", v1, both(&with_port(2), &http(4)), 4);
    rows.subset_row(
        "the subset's port",
        v1,
        both(&with_port(2), &format!("{}, {}", http(6), ports(&[port(80, &http(4))]))),
        4,
    );
    rows.subset_row(
        "the subset's other port",
        v1_81,
        both(&with_port(2), &format!("{}, {}", http(6), ports(&[port(80, &http(4))]))),
        6,
    );
    rows.subset_row(
        "the subset's port, even with what is unset",
        v1,
        both(&http(2), &format!("{}, {}", http(4), ports(&[port(80, balancer)]))),
        0,
    );
}

#[tokio::test]
async fn layering() {
    let mut rows = Rows::new().await;
    layers(&mut rows, 0);
    rows.run("networking.md §5.2, layers", "edge", "rootNamespace: istio-system").await;
}

#[tokio::test]
async fn layering_over_the_mesh() {
    let mut rows = Rows::new().await;
    layers(&mut rows, 1);
    let mesh = format!("rootNamespace: istio-system\ndefaultTrafficPolicy: {{{}}}", http(1));
    rows.run("networking.md §5.2, layers over defaultTrafficPolicy", "edge", &mesh).await;
}

/// Names without dots are those of Services in the namespace of the rule.
#[tokio::test]
async fn short_names() {
    let upstream = Upstream::ok().await;
    let port = upstream.address().port();
    // Where the rule is, what it calls the Service, and what is in force then.
    let rows = [
        ("a", "default", "a", 3),
        ("b", "default", "b.default", 0),
        ("c", "default", "c.default.svc.cluster.local", 3),
        ("d", "default", "'*.default.svc.cluster.local'", 3),
        ("e", "istio-system", "e", 0),
        ("f", "istio-system", "f.default.svc.cluster.local", 3),
        ("g", "default", "g.other.svc.cluster.local", 0),
    ];
    let mut table = Table::new("networking.md §1.3, §5.1, names of hosts");
    for (name, namespace, host, expected) in rows {
        table.row(format!("{host} in {namespace}"));
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{clusterIP: 10.0.0.1, ports: [{{name: http, port: 80, targetPort: {port}}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: default, \
             labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
             ports: [{{name: http, port: {port}}}]\nendpoints: [{{addresses: [127.0.0.1]}}]\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: r, namespace: {namespace}}}\nspec: {{host: {host}, {}}}\n",
            policy(3)
        );
        let gateway = Mesh::new().document(&service).route("a.test", &format!("{name}.default.svc.cluster.local"));
        let gateway = gateway.start().await;
        table.check("requests by connection", &expected, &in_force(&gateway, "a.test", &upstream).await);
    }
    table.finish();
}

/// `proxyProtocol` belongs to the service or the subset: settings of a port have none, and hide that of the service.
#[tokio::test]
async fn settings_of_a_port_replace_what_they_cannot_say() {
    let upstream = Upstream::ok().await;
    let address = upstream.address();
    let rows = [
        ("service", "", "", true),
        ("port", ", portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]", "", false),
        ("other-port", ", portLevelSettings: [{port: {number: 81}, loadBalancer: {simple: RANDOM}}]", "", true),
        ("subset", "", ", subset: v1", true),
    ];
    let mut mesh = Mesh::new();
    for (name, more, destination, _) in rows {
        let host = format!("{name}.test");
        let rule = format!(
            "host: {host}\ntrafficPolicy: {{proxyProtocol: {{version: V1}}{more}}}\n\
             subsets: [{{name: v1, trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}}}]\n"
        );
        mesh = mesh
            .http(&host, &[address])
            .resource("DestinationRule", &rule)
            .routes(&host, &format!("[{{route: [{{destination: {{host: {host}{destination}}}}}]}}]"));
    }
    let gateway = mesh.start().await;
    let mut table = Table::new("networking.md §5.2, proxyProtocol");
    for (name, _, _, expected) in rows {
        table.row(name);
        Http1::connect(gateway.address(80)).await.get(&format!("{name}.test"), "/").await;
        let begins = upstream.take()[0].head.starts_with(b"PROXY TCP4 ");
        table.check("PROXY header", &expected, &begins);
    }
    table.finish();
}
