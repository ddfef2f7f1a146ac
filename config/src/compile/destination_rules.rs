//! Which DestinationRule applies to a service.
//!
//! Source: `reference/networking.md` §5.1.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;

use super::host::{by_specificity, is_subset, resolve};
use super::options::Options;
use super::report::{Field, Report};
use super::visibility::{Visibility, visibility};
use super::world::{Object, World};
use super::{MeshSettings, same};
use crate::diagnostic::{Code, Diagnostic};
use crate::resource::destination_rule::{DestinationRule, Subset, TrafficPolicy};
use crate::resource::{Resource, Spec};

/// All rules, by namespace and host.
#[derive(Debug, Default)]
pub(super) struct Rules {
    by_namespace: AHashMap<Arc<str>, Namespace>,
    own: Arc<str>,
    root: Arc<str>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

#[derive(Debug, Default)]
struct Namespace {
    exact: AHashMap<String, Vec<Arc<Rule>>>,
    /// Most specific first.
    wildcards: Vec<(String, Vec<Arc<Rule>>)>,
}

/// DestinationRules of one host that count as one.
#[derive(Debug, PartialEq)]
pub(super) struct Rule {
    /// Oldest first.
    pub(super) resources: Vec<Arc<Resource>>,
    export_to: Vec<String>,
    /// Of the workload that it is for; empty for all.
    selector: BTreeMap<String, String>,
    visibility: Option<Visibility>,
}

impl Rule {
    fn specs(&self) -> impl Iterator<Item = (&Arc<Resource>, &DestinationRule)> {
        self.resources.iter().filter_map(|resource| match &resource.spec {
            Spec::DestinationRule(spec) => Some((resource, &**spec)),
            _ => None,
        })
    }

    /// The oldest policy that is set; policies are not mixed.
    pub(super) fn traffic_policy(&self) -> Option<&TrafficPolicy> {
        self.traffic_policy_part().map(|(_, policy)| policy)
    }

    /// The same, with the resource that sets it.
    pub(super) fn traffic_policy_part(&self) -> Option<(&Arc<Resource>, &TrafficPolicy)> {
        self.specs().find_map(|(resource, spec)| Some((resource, spec.traffic_policy.as_ref()?)))
    }

    /// The subset of that name, from the oldest rule that has it.
    fn subset(&self, name: &str) -> Option<&Subset> {
        self.subset_part(name).map(|(_, _, subset)| subset)
    }

    /// The same, with the resource that has it and its number there.
    pub(super) fn subset_part(&self, name: &str) -> Option<(&Arc<Resource>, usize, &Subset)> {
        self.specs().find_map(|(resource, spec)| {
            let index = spec.subsets.iter().position(|subset| subset.name == name)?;
            Some((resource, index, &spec.subsets[index]))
        })
    }

    /// Names of all subsets, in order.
    pub(super) fn subsets(&self) -> impl Iterator<Item = &str> {
        self.specs().flat_map(|(_, spec)| &spec.subsets).map(|subset| subset.name.as_str())
    }

    /// Each rule with its resource.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&Arc<Resource>, &DestinationRule)> {
        self.specs()
    }
}

impl Rules {
    /// The rule for a service called `host` in `namespace`: the first namespace that has one wins, and nothing is
    /// merged across namespaces.
    pub(super) fn choose(&self, host: &str, namespace: &str) -> Option<&Arc<Rule>> {
        let is_root = self.own == self.root;
        let own = self.find(&self.own, host, |rule| !is_root || rule.visibility == Some(Visibility::Private));
        own.or_else(|| self.find(namespace, host, |rule| rule.visibility.is_some()))
            .or_else(|| self.find(&self.root, host, |rule| rule.visibility.is_some()))
    }

    /// The first rule that `sees` of the most specific host. There is no second try with a less specific one.
    fn find(&self, namespace: &str, host: &str, sees: impl Fn(&Rule) -> bool) -> Option<&Arc<Rule>> {
        let namespace_rules = self.by_namespace.get(namespace)?;
        let rules = namespace_rules.exact.get(host).or_else(|| {
            let mut wildcards = namespace_rules.wildcards.iter();
            wildcards.find(|(wildcard, _)| is_subset(host, wildcard)).map(|(_, rules)| rules)
        })?;
        // Rules for this workload come before those for all.
        let mut of_workload = rules.iter().filter(|rule| !rule.selector.is_empty());
        of_workload
            .find(|_| *namespace == *self.own)
            .or_else(|| rules.iter().find(|rule| rule.selector.is_empty() && sees(rule)))
    }

    /// Hosts of all rules without a wildcard, with the resources that name them.
    pub(super) fn exact_hosts(&self) -> impl Iterator<Item = (&str, &Arc<Resource>)> {
        let hosts = self.by_namespace.values().flat_map(|namespace| &namespace.exact);
        hosts.flat_map(|(host, rules)| {
            rules.iter().flat_map(move |rule| rule.resources.iter().map(move |resource| (host.as_str(), resource)))
        })
    }
}

/// The rules of the compile before.
#[derive(Debug, Default)]
pub(super) struct Memo {
    inputs: Vec<Arc<Resource>>,
    export_to: Vec<String>,
    rules: Arc<Rules>,
}

/// Sorts the rules. The result is the same as in the compile before if all rules are, and so is each single rule.
pub(super) fn gather(world: &World<'_>, options: &Options, mesh: &MeshSettings, memo: &mut Memo) -> Arc<Rules> {
    let inputs: Vec<&Arc<Resource>> = world.destination_rules.iter().map(|object| object.resource).collect();
    let is_same = same(&inputs, &memo.inputs)
        && mesh.destination_rule_export_to == memo.export_to
        && mesh.root_namespace == memo.rules.root;
    if is_same {
        return Arc::clone(&memo.rules);
    }
    let mut report = Report::default();
    let mut by_namespace: AHashMap<Arc<str>, AHashMap<String, Vec<Rule>>> = AHashMap::new();
    for &object in &world.destination_rules {
        let selector = object.spec.workload_selector.as_ref().map(|selector| selector.match_labels.clone());
        let selector = selector.unwrap_or_default();
        if !options.is_selected_by(&selector) {
            continue;
        }
        let host = resolve(&object.spec.host, object.namespace(), &options.domain).into_owned();
        let hosts = by_namespace.entry(Arc::clone(object.namespace())).or_default();
        add(hosts.entry(host).or_default(), object, selector, options, mesh, &mut report);
    }
    let previous = &memo.rules;
    let by_namespace = by_namespace.into_iter().map(|(name, hosts)| {
        let before = previous.by_namespace.get(&name);
        let namespace = finish(hosts, before);
        (name, namespace)
    });
    let rules = Rules {
        by_namespace: by_namespace.collect(),
        own: Arc::clone(&options.namespace),
        root: Arc::clone(&mesh.root_namespace),
        diagnostics: report.diagnostics,
    };
    memo.inputs = inputs.into_iter().cloned().collect();
    memo.export_to.clone_from(&mesh.destination_rule_export_to);
    memo.rules = Arc::new(rules);
    Arc::clone(&memo.rules)
}

/// Merges a rule with the older one of the same host and visibility, or puts it after the others.
fn add(
    rules: &mut Vec<Rule>,
    object: Object<'_, DestinationRule>,
    selector: BTreeMap<String, String>,
    options: &Options,
    mesh: &MeshSettings,
    report: &mut Report,
) {
    let mut export_to = object.spec.export_to.clone();
    if export_to.is_empty() {
        export_to.clone_from(&mesh.destination_rule_export_to);
    }
    if export_to.is_empty() {
        export_to.push("*".to_owned());
    }
    export_to.sort_unstable();
    export_to.dedup();
    // Istio puts a rule for all workloads that is exported further into the older one, and forgets about the rest.
    let is_narrower =
        |rule: &Rule| selector.is_empty() && rule.export_to.iter().all(|namespace| export_to.contains(namespace));
    let is_merged = |rule: &&mut Rule| rule.selector == selector && (rule.export_to == export_to || is_narrower(rule));
    let Some(older) = rules.iter_mut().find(is_merged) else {
        let visibility = visibility(&export_to, &[], object.namespace(), &options.namespace);
        rules.push(Rule { resources: vec![Arc::clone(object.resource)], export_to, selector, visibility });
        return;
    };
    let spec = Field::spec(object.resource);
    if older.export_to != export_to {
        let message =
            "an older DestinationRule for this host is exported to some of these namespaces only, which counts";
        report.warning(Code::Conflict, spec.name("exportTo"), message);
    }
    let subsets = spec.name("subsets");
    for (i, subset) in object.spec.subsets.iter().enumerate() {
        if older.subset(&subset.name).is_some() {
            let message =
                format!("an older DestinationRule for this host has a subset `{}`, which counts", subset.name);
            report.warning(Code::Conflict, subsets.index(i).name("name"), message);
        }
    }
    if object.spec.traffic_policy.is_some() && older.traffic_policy().is_some() {
        let message = "an older DestinationRule for this host has a traffic policy, which counts alone";
        report.warning(Code::Conflict, spec.name("trafficPolicy"), message);
    }
    older.resources.push(Arc::clone(object.resource));
}

/// Shares rules with `before`.
fn finish(hosts: AHashMap<String, Vec<Rule>>, before: Option<&Namespace>) -> Namespace {
    let mut namespace = Namespace::default();
    for (host, rules) in hosts {
        let known = before.and_then(|before| {
            let mut wildcards = before.wildcards.iter();
            before.exact.get(&host).or_else(|| wildcards.find(|(known, _)| *known == host).map(|(_, rules)| rules))
        });
        let rules: Vec<Arc<Rule>> = rules
            .into_iter()
            .map(|rule| {
                let is_same = |known: &&Arc<Rule>| {
                    same(&rule.resources.iter().collect::<Vec<_>>(), &known.resources)
                        && known.visibility == rule.visibility
                };
                let known = known.into_iter().flatten().find(is_same);
                known.map_or_else(|| Arc::new(rule), Arc::clone)
            })
            .collect();
        if host.starts_with('*') {
            namespace.wildcards.push((host, rules));
        } else {
            namespace.exact.insert(host, rules);
        }
    }
    namespace.wildcards.sort_by(|(a, _), (b, _)| by_specificity(a, b));
    namespace
}
