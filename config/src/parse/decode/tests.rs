#![allow(clippy::unwrap_used, reason = "a test that can't read its own input should stop")]

use std::time::Duration;

use super::*;
use crate::parse::tree::Tree;
use crate::resource::gateway::{Gateway, ServerTlsMode, TlsProtocol};
use crate::resource::security::{MutualTlsMode, PeerAuthentication};
use crate::resource::virtual_service::{StringMatch, VirtualService};

fn read<T: for<'de> Deserialize<'de>>(text: &str) -> (Option<T>, Vec<(String, String)>) {
    let tree = Tree::read(text).unwrap();
    let (value, problems) = decode(tree.root.as_ref().unwrap(), "spec", UnknownFields::Report);
    (value, problems.into_iter().map(|problem| (problem.path, problem.message)).collect())
}

fn good<T: for<'de> Deserialize<'de>>(text: &str) -> T {
    let (value, problems) = read(text);
    assert_eq!(problems, []);
    value.unwrap()
}

fn problems<T: for<'de> Deserialize<'de>>(text: &str) -> Vec<(String, String)> {
    read::<T>(text).1
}

#[test]
fn both_spellings_of_a_field_are_taken() {
    let camel: VirtualService = good("hosts: [a.b]\nexportTo: ['.']\nhttp:\n- directResponse: {status: 200}\n");
    let snake: VirtualService = good("hosts: [a.b]\nexport_to: ['.']\nhttp:\n- direct_response: {status: 200}\n");
    assert_eq!(camel, snake);
    assert_eq!(camel.export_to, ["."]);
}

#[test]
fn both_spellings_at_once_are_refused() {
    let (path, message) = problems::<VirtualService>("exportTo: ['.']\nexport_to: ['*']\n").remove(0);
    assert_eq!((path.as_str(), message.as_str()), ("spec.exportTo", "field `exportTo` is given in both spellings"));
}

#[test]
fn enums_are_names_or_numbers() {
    let by_name: Gateway = good("servers: [{tls: {mode: ISTIO_MUTUAL, minProtocolVersion: TLSV1_3}}]");
    let by_number: Gateway = good("servers: [{tls: {mode: 4, minProtocolVersion: 4}}]");
    assert_eq!(by_name, by_number);
    let tls = by_name.servers[0].tls.as_ref().unwrap();
    assert_eq!((tls.mode, tls.min_protocol_version), (ServerTlsMode::IstioMutual, TlsProtocol::V1_3));
}

#[test]
fn an_unknown_enum_value_names_the_nearest() {
    let tree = Tree::read("servers: [{tls: {mode: simple}}]").unwrap();
    let (_, problems) = decode::<Gateway>(tree.root.as_ref().unwrap(), "spec", UnknownFields::Report);
    assert_eq!(problems[0].path, "spec.servers[0].tls.mode");
    assert_eq!(problems[0].message, "unknown value `simple`");
    assert_eq!(problems[0].help.as_deref(), Some("did you mean `SIMPLE`?"));
}

#[test]
fn numbers_may_be_quoted_or_written_as_floats() {
    for number in ["443", "'443'", "443.0", "0x1bb", "4.43e2"] {
        let gateway: Gateway = good(&format!("servers: [{{port: {{number: {number}}}}}]"));
        assert_eq!(gateway.servers[0].port.as_ref().unwrap().number, 443, "{number}");
    }
}

#[test]
fn numbers_out_of_range_say_the_range() {
    assert_eq!(
        problems::<Gateway>("servers: [{port: {number: -1}}]"),
        [("spec.servers[0].port.number".into(), "-1 is out of range: it must be from 0 to 4294967295".into())]
    );
    for number in ["1.5", "080", "http", "[1]"] {
        let problems = problems::<Gateway>(&format!("servers: [{{port: {{number: {number}}}}}]"));
        assert!(problems[0].1.starts_with("expected an integer, found "), "{problems:?}");
    }
}

#[test]
fn text_that_looks_like_a_number_must_be_quoted() {
    let (path, message) = problems::<VirtualService>("http: [{match: [{headers: {v: {exact: 1.10}}}]}]").remove(0);
    assert_eq!(path, "spec.http[0].match[0].headers.v.exact");
    assert_eq!(message, "expected a text, found a number");
    let quoted: VirtualService = good("http: [{match: [{headers: {v: {exact: '1.10'}}}]}]");
    assert_eq!(quoted.http[0].match_[0].headers.get("v"), Some(&StringMatch::Exact("1.10".into())));
}

#[test]
fn the_words_of_yaml_1_1_are_what_the_field_wants() {
    let spec: VirtualService = good("http: [{match: [{ignoreUriCase: on, headers: {country: {exact: no}}}]}]");
    assert!(spec.http[0].match_[0].ignore_uri_case);
    assert_eq!(spec.http[0].match_[0].headers.get("country"), Some(&StringMatch::Exact("no".into())));
}

#[test]
fn a_quoted_boolean_is_refused() {
    let problems = problems::<VirtualService>("http: [{match: [{ignoreUriCase: 'true'}]}]");
    assert_eq!(problems[0].1, "expected `true` or `false`, found a text");
}

#[test]
fn durations_are_read() {
    let spec: VirtualService = good("http: [{timeout: 1h30m, retries: {perTryTimeout: '0.25s'}}]");
    assert_eq!(spec.http[0].timeout, Some(Duration::from_secs(5_400)));
    assert_eq!(spec.http[0].retries.as_ref().unwrap().per_try_timeout, Some(Duration::from_millis(250)));
}

#[test]
fn null_is_absent_in_a_message_and_wrong_in_a_map() {
    let spec: VirtualService = good("hosts: null\nhttp: [{timeout: ~, route: }]");
    assert!(spec.hosts.is_empty() && spec.http[0].timeout.is_none());
    let problems = problems::<VirtualService>("http: [{match: [{headers: {x: null}}]}]");
    assert_eq!(problems, [("spec.http[0].match[0].headers.x".into(), "expected a mapping, found null".into())]);
}

#[test]
fn an_empty_match_asks_for_presence_and_two_are_refused() {
    let spec: VirtualService = good("http: [{match: [{headers: {x: {}}}]}]");
    assert_eq!(spec.http[0].match_[0].headers.get("x"), Some(&StringMatch::Present));
    let problems = problems::<VirtualService>("http: [{match: [{uri: {exact: /a, prefix: /b}}]}]");
    assert_eq!(problems[0].0, "spec.http[0].match[0].uri");
    assert_eq!(problems[0].1, "only one of `exact`, `prefix` and `regex` may be set");
}

#[test]
fn keys_with_dots_are_quoted_in_the_path() {
    let problems = problems::<Gateway>("selector: {a.b/c: [x]}");
    assert_eq!(problems, [("spec.selector[\"a.b/c\"]".into(), "expected a text, found a list".into())]);
}

#[test]
fn maps_may_have_numbers_as_keys() {
    let policy: PeerAuthentication = good("portLevelMtls: {8080: {mode: DISABLE}, '9090': {mode: STRICT}}");
    assert_eq!(policy.port_level_mtls[&8080].mode, MutualTlsMode::Disable);
    assert_eq!(policy.port_level_mtls[&9090].mode, MutualTlsMode::Strict);
    let problems = problems::<PeerAuthentication>("portLevelMtls: {http: {mode: DISABLE}}");
    assert_eq!(problems, [("spec.portLevelMtls.http".into(), "key `http` must be a number".into())]);
}

#[test]
fn every_problem_is_found_in_one_run_and_the_rest_is_read() {
    let text = "
hosts: [shop.example]
htttp: []
http:
- name: first
  timeout: soon
  rout: []
- name: 2
  redirect: {redirectCode: many}
- name: third
  match: {uri: {}}
";
    let (value, problems) = read::<VirtualService>(text);
    let spec = value.unwrap();
    assert_eq!(
        problems,
        [
            ("spec.htttp".to_owned(), "unknown field `htttp`".to_owned()),
            ("spec.http[0].timeout".into(), "`soon` is not a duration: a number is missing".into()),
            ("spec.http[0].rout".into(), "unknown field `rout`".into()),
            ("spec.http[1].name".into(), "expected a text, found a number".into()),
            ("spec.http[1].redirect.redirectCode".into(), "expected an integer, found a text".into()),
            ("spec.http[2].match".into(), "expected a list, found a mapping".into()),
        ]
    );
    assert_eq!(spec.hosts, ["shop.example"]);
    assert_eq!(spec.http.len(), 3);
    assert_eq!(spec.http[2].name, "third");
}

#[test]
fn a_node_of_the_wrong_type_has_no_value() {
    let (value, problems) = read::<VirtualService>("[1, 2]");
    assert!(value.is_none());
    assert_eq!(problems, [("spec".into(), "expected a mapping, found a list".into())]);
}

#[test]
fn free_values_keep_their_types() {
    let value: serde_json::Value = good("{a: 1, b: [true, 1.5, x], c: null, d: '2'}");
    assert_eq!(value, serde_json::json!({"a": 1, "b": [true, 1.5, "x"], "c": null, "d": "2"}));
}
