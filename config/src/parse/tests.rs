#![allow(clippy::unwrap_used, reason = "a test that can't read its own input should stop")]

use proptest::strategy::Strategy;

use super::*;
use crate::diagnostic::{Style, render};
use crate::resource::Spec;

fn one(text: &str) -> Parsed {
    let mut parsed = parse_text("test.yaml", text);
    assert_eq!(parsed.len(), 1);
    parsed.remove(0)
}

fn lines(parsed: &Parsed) -> Vec<String> {
    parsed.diagnostics.iter().map(ToString::to_string).collect()
}

fn names(parsed: &Parsed) -> Vec<String> {
    let mark = |candidate: &Candidate| match candidate.outcome {
        Outcome::Valid(_) => "",
        Outcome::Rejected { partial: Some(_), .. } => "~",
        Outcome::Rejected { partial: None, .. } => "!",
    };
    parsed.candidates.iter().map(|candidate| format!("{}{}", mark(candidate), candidate.key.name())).collect()
}

const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop, uid: x}, spec: {ports: [{port: 80, nodePort: 1}], ipFamilies: [IPv4]}, status: {}}";

#[test]
fn a_list_is_its_items() {
    let parsed =
        one(&format!("apiVersion: v1\nkind: List\nitems:\n- {SERVICE}\n- apiVersion: apps/v1\n  kind: Deployment\n"));
    assert_eq!(lines(&parsed), [""; 0]);
    assert_eq!(names(&parsed), ["Service shop/web"]);
    assert_eq!(parsed.skipped, ["Deployment.apps"]);
    let Outcome::Valid(resource) = &parsed.candidates[0].outcome else { panic!("{parsed:?}") };
    let location = resource.locate("spec.ports[0].port");
    assert_eq!((location.line, location.column), (4, 105));
}

#[test]
fn items_of_a_typed_list_inherit_its_kind() {
    let parsed = one("apiVersion: v1\nkind: ServiceList\nitems: [{metadata: {name: a}}, {metadata: {name: b}}]\n");
    assert_eq!(names(&parsed), ["Service default/a", "Service default/b"]);
}

#[test]
fn fields_at_the_top_are_checked_for_istio_and_not_for_kubernetes() {
    let parsed = one(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: a, namspace: b}\nspecs: {}\nstatus: {x: 1}\n",
    );
    assert_eq!(
        lines(&parsed),
        [
            "Error [GW0004] (Sidecar default/a test.yaml:3) metadata.namspace: unknown field `namspace` (help: did you mean `namespace`?)",
            "Error [GW0004] (Sidecar default/a test.yaml:4) specs: unknown field `specs` (help: did you mean `spec`?)",
        ]
    );
    assert_eq!(
        names(&one("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\nextra: 1\n")),
        ["Namespace default/a"]
    );
}

#[test]
fn a_document_that_is_no_object_breaks_its_file() {
    for (text, message) in [
        ("- a\n", "a document must be a mapping with apiVersion, kind and metadata"),
        ("kind: Gateway\n", "`apiVersion` is missing"),
        ("apiVersion: v1\n", "`kind` is missing"),
        ("hosts: [a]\n", "`apiVersion` and `kind` are missing"),
        ("apiVersion: v1\nkind: Secret\nmetadata: {}\n", "Secret without a name"),
        ("a: [\n", "not YAML: while parsing a node, did not find expected node content"),
    ] {
        let parsed = one(text);
        assert!(parsed.is_broken, "{text}");
        assert_eq!(parsed.diagnostics[0].message, message);
    }
}

#[test]
fn text_after_the_end_of_a_document_is_not_passed_over() {
    let parsed = one(&format!("{SERVICE}\n...\n{SERVICE}\n"));
    assert!(parsed.is_broken, "{parsed:?}");
}

#[test]
fn wrong_versions_and_kinds_say_what_is_right() {
    let parsed = one("apiVersion: security.istio.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n");
    assert_eq!(names(&parsed), ["!AuthorizationPolicy default/a"]);
    assert_eq!(
        lines(&parsed),
        [
            "Error [GW0007] (AuthorizationPolicy default/a test.yaml:1) apiVersion: apiVersion `security.istio.io/v1alpha1` doesn't exist for kind AuthorizationPolicy (help: use one of: security.istio.io/v1, security.istio.io/v1beta1)"
        ]
    );
    let parsed = one("apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\nmetadata: {name: a}\n");
    let suspect = Suspect { kind: Kind::AuthorizationPolicy, namespace: None, name: Some("a".into()) };
    assert_eq!(parsed.suspects, [suspect]);
}

#[test]
fn what_a_rejected_policy_selects_is_kept_where_it_can_be_told() {
    let policy = |spec: &str| {
        names(&one(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\nspec:\n  {spec}\n"
        )))
    };
    assert_eq!(policy("{action: DENY, selector: {matchLabels: {app: x}}}"), ["AuthorizationPolicy default/a"]);
    assert_eq!(policy("{action: DENI, selector: {matchLabels: {app: x}}}"), ["~AuthorizationPolicy default/a"]);
    assert_eq!(policy("{action: DENY, selector: {matchLabel: {app: x}}}"), ["!AuthorizationPolicy default/a"]);
    assert_eq!(policy("{action: DENY, selector: 1}"), ["!AuthorizationPolicy default/a"]);
    assert_eq!(policy("[]"), ["!AuthorizationPolicy default/a"]);
    assert_eq!(policy("{action: DENY, action: ALLOW}"), ["!AuthorizationPolicy default/a"]);
}

#[test]
fn time_stamps_are_read() {
    let parsed = one("apiVersion: v1\nkind: Namespace\nmetadata: {name: a, creationTimestamp: 2026-01-31T12:00:00Z}\n");
    let Outcome::Valid(resource) = &parsed.candidates[0].outcome else { panic!("{parsed:?}") };
    assert_eq!(resource.meta.creation_timestamp, Some("2026-01-31T12:00:00Z".parse().unwrap()));
    let parsed = one("apiVersion: v1\nkind: Namespace\nmetadata: {name: a, creationTimestamp: yesterday}\n");
    assert_eq!(parsed.diagnostics[0].path, "metadata.creationTimestamp");
}

#[test]
fn mesh_config_stands_under_spec_or_at_the_top() {
    for text in [
        "kind: MeshConfig\nrootNamespace: infra\n",
        "apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\nmetadata: {name: mine}\nspec:\n  root_namespace: infra\n",
    ] {
        let parsed = one(text);
        assert_eq!(lines(&parsed), [""; 0]);
        assert_eq!(names(&parsed), ["MeshConfig istio-system/istio"]);
        let Outcome::Valid(resource) = &parsed.candidates[0].outcome else { panic!("{parsed:?}") };
        let Spec::MeshConfig(mesh) = &resource.spec else { panic!("{resource:?}") };
        assert_eq!(mesh.root_namespace, "infra");
    }
}

#[test]
fn unknown_fields_of_mesh_config_are_warnings() {
    let parsed = one("kind: MeshConfig\naccesLogFile: /dev/stdout\n");
    assert_eq!(
        lines(&parsed),
        [
            "Warning [GW0004] (MeshConfig istio-system/istio test.yaml:2) accesLogFile: unknown field `accesLogFile` (help: did you mean `accessLogFile`?)"
        ]
    );
    assert_eq!(names(&parsed), ["MeshConfig istio-system/istio"]);
}

const MESH_MAP: &str = "# the mesh
apiVersion: v1
kind: ConfigMap
metadata:
  name: istio
  namespace: istio-system
data:
  mesh: |-
    accessLogFile: /dev/stdout
    connectTimeout: never
    defaultConfig:
      gatewayTopology:
        numTrustedProxies: 2
  meshNetworks: 'networks: {}'
";

#[test]
fn mesh_config_is_read_from_the_config_map_and_places_in_it_are_right() {
    let parsed = one(MESH_MAP);
    assert_eq!(names(&parsed), ["ConfigMap istio-system/istio", "~MeshConfig istio-system/istio"]);
    let location = parsed.diagnostics[0].location();
    assert_eq!((location.line, location.column), (10, 21));
    let parsed = one(&MESH_MAP.replace("never", "5s"));
    let Outcome::Valid(resource) = &parsed.candidates[1].outcome else { panic!("{parsed:?}") };
    let location = resource.locate("defaultConfig.gatewayTopology.numTrustedProxies");
    assert_eq!((location.line, location.column), (13, 28));
}

#[test]
fn a_config_map_elsewhere_is_only_that() {
    let parsed = one(&MESH_MAP.replace("namespace: istio-system", "namespace: shop"));
    assert_eq!(names(&parsed), ["ConfigMap shop/istio"]);
}

#[test]
fn the_source_is_shown() {
    let parsed = one(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\nspec:\n  http:\n  - name: first\n    timeout: soon\n",
    );
    assert_eq!(
        render(&parsed.diagnostics[0], Style::Plain),
        "Error [GW0005] (VirtualService shop/web test.yaml:7) spec.http[0].timeout:
  `soon` is not a duration: a number is missing
 --> test.yaml:7:14
  |
6 |   - name: first
7 |     timeout: soon
  |              ^^^^
  help: write it like `1s`, `250ms` or `1h30m`
"
    );
}

#[test]
fn the_source_of_a_secret_is_never_shown() {
    for text in [
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData:\n  pin: 4711\n",
        "{\"kind\": \"Secret\", \"data\": {\"key\": \"4711\"",
    ] {
        let parsed = one(text);
        assert!(!parsed.diagnostics.is_empty());
        for diagnostic in &parsed.diagnostics {
            let output = format!("{}{diagnostic:?}", render(diagnostic, Style::Coloured));
            assert!(!output.contains("4711"), "{output}");
        }
    }
}

#[test]
fn findings_that_only_follow_from_another_are_left_out() {
    let parsed = one("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a}\nspec: {server: []}\n");
    assert_eq!(parsed.diagnostics.len(), 1, "{:?}", parsed.diagnostics);
}

fn pieces() -> impl Strategy<Value = String> {
    let words = [
        "a",
        "kind",
        ": ",
        ":",
        "\n",
        "  ",
        "- ",
        "\"",
        "'",
        "|",
        ">",
        "&x ",
        "*x",
        "<<",
        "{",
        "}",
        "[",
        "]",
        ",",
        "# ",
        "!!str ",
        "---",
        "...",
        "\t",
        "%YAML 1.2",
        "\u{e4}",
        "\u{feff}",
        "\0",
        "1e9",
        "null",
        "?",
        "spec",
        "metadata",
        "name",
        "\r\n",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  ",
        "kind: ConfigMap\napiVersion: v1\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: ",
        "http: ",
        "match: ",
        "uri: ",
        "regex: ",
        "timeout: ",
        "items: ",
        "kind: List\n",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..40).prop_map(|words| words.concat())
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(3_000))]

    /// Whatever a file holds, it is read or refused; and every finding can be shown.
    #[test]
    fn no_text_is_too_strange(text in pieces()) {
        for parsed in parse_text("test.yaml", &text) {
            for diagnostic in &parsed.diagnostics {
                let _ = render(diagnostic, Style::Coloured);
            }
            for candidate in &parsed.candidates {
                if let Outcome::Valid(resource) = &candidate.outcome {
                    let _ = resource.locate("spec.http[0].match[0].uri");
                }
            }
        }
    }
}
