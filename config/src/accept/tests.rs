#![allow(clippy::unwrap_used, reason = "a test that can't read its own input should stop")]

use proptest::strategy::{Just, Strategy};

use super::*;
use crate::resource::{Kind, Spec};

/// A directory in memory, and the store that follows it.
struct Directory {
    store: Store,
    files: BTreeMap<Arc<Path>, Content>,
}

impl Directory {
    fn new() -> Self {
        Self { store: Store::new("istio-system"), files: BTreeMap::new() }
    }

    fn change(&mut self, files: &[(&str, &str)]) -> Generation {
        let mut changes = BTreeMap::new();
        for (name, text) in files {
            let path: Arc<Path> = Arc::from(Path::new(name));
            let previous = self.files.get(&path).map(|content| Arc::clone(&content.documents)).unwrap_or_default();
            let documents = crate::source::documents(&path, text, &previous).into();
            let content = Content { documents, problem: None };
            self.files.insert(Arc::clone(&path), content.clone());
            changes.insert(path, Some(content));
        }
        self.store.apply(Scan { changes, ..Scan::default() })
    }

    fn unreadable(&mut self, name: &str) -> Generation {
        let path: Arc<Path> = Arc::from(Path::new(name));
        let mut content = self.files[&path].clone();
        content.problem = Some(Diagnostic::new(Severity::Error, Code::Unreadable, Arc::clone(&path), "can't read"));
        self.store.apply(Scan { changes: [(path, Some(content))].into(), ..Scan::default() })
    }

    fn remove(&mut self, name: &str) -> Generation {
        let path: Arc<Path> = Arc::from(Path::new(name));
        self.files.remove(&path);
        self.store.apply(Scan { changes: [(path, None)].into(), ..Scan::default() })
    }
}

/// A Gateway whose selector tells versions apart.
fn gateway(name: &str, version: &str) -> String {
    let server = "{hosts: ['*'], port: {number: 80, name: http, protocol: HTTP}}";
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}}}\nspec: {{selector: {{v: '{version}'}}, servers: [{server}]}}\n"
    )
}

fn policy(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\nspec: {rest}\n"
    )
}

/// `name=version` of each gateway in force.
fn gateways(generation: &Generation) -> Vec<String> {
    let gateways = generation.resources.iter().filter_map(|resource| match &resource.spec {
        Spec::Gateway(gateway) => Some(format!("{}={}", resource.meta.name, gateway.selector["v"])),
        _ => None,
    });
    gateways.collect()
}

fn codes(generation: &Generation) -> Vec<String> {
    let code = |diagnostic: &Diagnostic| format!("{} {}", diagnostic.code.id(), diagnostic.location());
    generation.diagnostics.iter().map(code).collect()
}

const BROKEN: &str = "---\nkind: [\n";

#[test]
fn resources_are_in_order_whatever_the_files() {
    let mut directory = Directory::new();
    let generation =
        directory.change(&[("a.yaml", &(gateway("z", "1") + &gateway("b", "1"))), ("b.yaml", &gateway("m", "1"))]);
    assert_eq!(gateways(&generation), ["b=1", "m=1", "z=1"]);
    assert_eq!(generation.changed.added.len(), 3);
}

#[test]
fn an_older_resource_comes_first() {
    let mut directory = Directory::new();
    let dated = gateway("b", "1").replace("{name: b}", "{name: b, creationTimestamp: 2026-01-02T00:00:00Z}");
    let older = gateway("c", "1").replace("{name: c}", "{name: c, creationTimestamp: 2026-01-01T00:00:00Z}");
    let generation = directory.change(&[("a.yaml", &(dated + &older + &gateway("z", "1")))]);
    assert_eq!(gateways(&generation), ["z=1", "c=1", "b=1"]);
}

#[test]
fn an_edit_parses_one_document_and_shares_the_rest() {
    let mut directory = Directory::new();
    let first = directory.change(&[("a.yaml", &(gateway("a", "1") + &gateway("b", "1")))]);
    let second = directory.change(&[("a.yaml", &(gateway("a", "2") + "# more\n" + &gateway("b", "1")))]);
    assert_eq!(second.changed.documents, 1);
    assert_eq!(second.changed.updated.len(), 1);
    assert_eq!(gateways(&second), ["a=2", "b=1"]);
    assert!(Arc::ptr_eq(&first.resources[1], &second.resources[1]));
    assert_eq!(second.resources[1].locate("spec.selector").line, 11);
}

#[test]
fn a_rejected_document_leaves_the_last_accepted_version() {
    let mut directory = Directory::new();
    directory.change(&[("a.yaml", &gateway("a", "1"))]);
    let bad = gateway("a", "2").replace("servers", "server");
    let generation = directory.change(&[("a.yaml", &bad), ("b.yaml", &gateway("b", "1"))]);
    assert_eq!(gateways(&generation), ["a=1", "b=1"]);
    assert!(generation.has_errors());
    let status = directory.store.status();
    assert_eq!(status[0].resources[0].1, ResourceState::LastGood);
    assert_eq!(status[1].resources[0].1, ResourceState::Accepted);
    // Even when it moves.
    directory.remove("a.yaml");
    let mut directory = Directory::new();
    directory.change(&[("a.yaml", &gateway("a", "1"))]);
    let generation = directory.change(&[("a.yaml", ""), ("c.yaml", &bad)]);
    assert_eq!(gateways(&generation), ["a=1"]);
}

#[test]
fn without_an_accepted_version_a_rejected_resource_is_absent() {
    let mut directory = Directory::new();
    let generation = directory.change(&[("a.yaml", &gateway("a", "1").replace("servers", "server"))]);
    assert_eq!(gateways(&generation), [""; 0]);
    assert_eq!(directory.store.status()[0].resources[0].1, ResourceState::Rejected);
}

#[test]
fn what_was_last_read_from_a_broken_document_stays_and_the_others_apply() {
    let mut directory = Directory::new();
    directory.change(&[("a.yaml", &(gateway("a", "1") + &gateway("b", "1") + &gateway("c", "1")))]);
    let generation = directory.change(&[("a.yaml", &(gateway("a", "2") + BROKEN + &gateway("d", "1")))]);
    assert_eq!(gateways(&generation), ["a=2", "b=1", "c=1", "d=1"]);
    assert_eq!(codes(&generation).len(), 1);
    assert!(directory.store.status()[0].is_broken);
    // Another edit beside it changes nothing about that.
    let generation = directory.change(&[("a.yaml", &(gateway("a", "3") + BROKEN))]);
    assert_eq!(gateways(&generation), ["a=3", "b=1", "c=1", "d=1"]);
    // Repaired: what isn't there is gone.
    let generation = directory.change(&[("a.yaml", &(gateway("a", "3") + &gateway("c", "2")))]);
    assert_eq!(gateways(&generation), ["a=3", "c=2"]);
    assert_eq!(generation.changed.removed.len(), 2);
    assert!(generation.diagnostics.is_empty());
}

#[test]
fn what_was_last_read_from_a_file_that_ends_as_if_cut_stays() {
    let mut directory = Directory::new();
    let whole = gateway("first", "1") + &gateway("second", "1");
    directory.change(&[("a.yaml", &whole)]);
    // Half of a save, which ends in the middle of a name, and so looks like another resource.
    let half = gateway("first", "2") + "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata:\n  name: sec";
    let generation = directory.change(&[("a.yaml", &half)]);
    assert_eq!(gateways(&generation), ["first=2", "second=1"]);
    assert_eq!(directory.store.status()[0].resources[2].1, ResourceState::LastGood);
    // The other half, and a file from which it was really removed.
    let generation = directory.change(&[("a.yaml", &whole)]);
    assert_eq!(gateways(&generation), ["first=1", "second=1"]);
    directory.change(&[("a.yaml", &half)]);
    let generation = directory.change(&[("a.yaml", &gateway("first", "3"))]);
    assert_eq!(gateways(&generation), ["first=3"]);
    assert!(generation.diagnostics.is_empty());
}

#[test]
fn a_file_that_cant_be_read_removes_nothing() {
    let mut directory = Directory::new();
    directory.change(&[("a.yaml", &gateway("a", "1"))]);
    let generation = directory.unreadable("a.yaml");
    assert_eq!(gateways(&generation), ["a=1"]);
    assert_eq!(codes(&generation), ["GW0001 a.yaml:1"]);
    assert!(generation.changed.is_empty());
}

#[test]
fn removing_a_broken_file_removes_its_resources() {
    let mut directory = Directory::new();
    directory.change(&[("a.yaml", &gateway("a", "1"))]);
    directory.change(&[("a.yaml", BROKEN)]);
    assert_eq!(gateways(&directory.remove("a.yaml")), [""; 0]);
}

#[test]
fn of_two_that_come_at_once_the_first_by_path_stays() {
    let mut directory = Directory::new();
    let generation = directory.change(&[("b.yaml", &gateway("x", "b")), ("a.yaml", &gateway("x", "a"))]);
    assert_eq!(gateways(&generation), ["x=a"]);
    assert_eq!(codes(&generation), ["GW0009 b.yaml:4"]);
    assert_eq!(
        generation.diagnostics[0].message,
        "Gateway default/x stands at a.yaml:4 as well, and that one is in force"
    );
}

#[test]
fn the_one_accepted_first_stays_until_it_goes() {
    let mut directory = Directory::new();
    directory.change(&[("b.yaml", &gateway("x", "b"))]);
    let generation = directory.change(&[("a.yaml", &gateway("x", "a"))]);
    assert_eq!(gateways(&generation), ["x=b"]);
    assert_eq!(codes(&generation), ["GW0009 a.yaml:4"]);
    // Its own edits apply, good and bad.
    assert_eq!(gateways(&directory.change(&[("b.yaml", &gateway("x", "b2"))])), ["x=b2"]);
    assert_eq!(gateways(&directory.change(&[("b.yaml", &gateway("x", "b3").replace("servers", "server"))])), ["x=b2"]);
    let generation = directory.remove("b.yaml");
    assert_eq!(gateways(&generation), ["x=a"]);
    assert!(generation.diagnostics.is_empty());
    assert_eq!(generation.changed.updated.len(), 1);
}

#[test]
fn a_valid_duplicate_wins_over_an_invalid_one_where_nothing_was_accepted() {
    let mut directory = Directory::new();
    let bad = gateway("x", "a").replace("servers", "server");
    let generation = directory.change(&[("a.yaml", &bad), ("b.yaml", &gateway("x", "b"))]);
    assert_eq!(gateways(&generation), ["x=b"]);
    assert_eq!(
        codes(&generation),
        ["GW0004 a.yaml:5", "GW0009 a.yaml:4"].map(String::from).into_iter().rev().collect::<Vec<_>>()
    );
}

#[test]
fn one_that_stays_from_a_broken_file_is_not_replaced_by_a_copy() {
    let mut directory = Directory::new();
    directory.change(&[("a.yaml", &gateway("x", "a"))]);
    let generation = directory.change(&[("a.yaml", BROKEN), ("b.yaml", &gateway("x", "b"))]);
    assert_eq!(gateways(&generation), ["x=a"]);
    let generation = directory.change(&[("a.yaml", "")]);
    assert_eq!(gateways(&generation), ["x=b"]);
    assert!(generation.diagnostics.is_empty());
}

#[test]
fn a_security_resource_that_cant_be_enforced_is_refused() {
    let mut directory = Directory::new();
    let generation = directory.change(&[("a.yaml", &policy("p", "{action: DENI, selector: {matchLabels: {app: x}}}"))]);
    let refusal = &generation.refused_security[0];
    assert_eq!(refusal.resource.to_string(), "AuthorizationPolicy default/p");
    assert_eq!(refusal.reason, "spec.action: unknown value `DENI`");
    let Spec::AuthorizationPolicy(partial) = &refusal.partial.as_ref().unwrap().spec else { panic!("{refusal:?}") };
    assert_eq!(partial.selector.as_ref().unwrap().match_labels["app"], "x");
    // Repaired, then broken again: the accepted version goes on.
    let generation = directory.change(&[("a.yaml", &policy("p", "{action: DENY}"))]);
    assert!(generation.refused_security.is_empty());
    let generation = directory.change(&[("a.yaml", &policy("p", "{action: DENI}"))]);
    assert!(generation.refused_security.is_empty());
    assert_eq!(generation.resources[0].meta.kind, Kind::AuthorizationPolicy);
}

#[test]
fn a_security_resource_in_broken_yaml_is_refused_unless_it_stays() {
    let mut directory = Directory::new();
    let broken = policy("p", "{action: [}");
    let generation = directory.change(&[("a.yaml", &broken)]);
    assert_eq!(generation.refused_security.len(), 1);
    assert_eq!(generation.refused_security[0].resource.to_string(), "AuthorizationPolicy ?/p");
    assert!(generation.refused_security[0].partial.is_none());
    directory.change(&[("a.yaml", &policy("p", "{}"))]);
    let generation = directory.change(&[("a.yaml", &broken)]);
    assert!(generation.refused_security.is_empty());
    assert_eq!(generation.resources.len(), 1);
}

#[test]
fn kinds_of_others_are_counted_for_each_directory() {
    let mut directory = Directory::new();
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
    let generation = directory.change(&[("x/a.yaml", &pod.repeat(3)), ("y/b.yaml", pod)]);
    let messages: Vec<_> = generation.diagnostics.iter().map(|diagnostic| diagnostic.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "3 objects of kind Pod in x skipped: a gateway doesn't read it",
            "1 object of kind Pod in y skipped: a gateway doesn't read it",
        ]
    );
    assert!(!generation.has_errors());
}

proptest::proptest! {
    /// Files are one set: neither their names nor the order in which changes arrive decides what is in force.
    #[test]
    fn the_order_of_files_never_matters(
        order in Just((0..8usize).collect::<Vec<_>>()).prop_shuffle(),
        rotate in 0..8usize,
    ) {
        let texts: Vec<String> = order.iter().map(|index| gateway(&format!("g{index}"), "1") + &policy(&format!("p{index}"), "{}")).collect();
        let mut straight = Directory::new();
        let mut rotated = Directory::new();
        let mut one_by_one = Directory::new();
        let mut last = Generation::default();
        let names: Vec<String> = (0..8).map(|index| format!("{index}.yaml")).collect();
        let pairs: Vec<_> = names.iter().zip(&texts).map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let shifted: Vec<_> = names.iter().zip(texts.iter().cycle().skip(rotate)).map(|(name, text)| (name.as_str(), text.as_str())).collect();
        for pair in shifted.iter().rev() {
            last = one_by_one.change(&[*pair]);
        }
        let straight = straight.change(&pairs);
        proptest::prop_assert_eq!(&straight.resources, &rotated.change(&shifted).resources);
        proptest::prop_assert_eq!(&straight.resources, &last.resources);
    }
}
