//! Rules that a root VirtualService hands to another one.
//!
//! Source: `reference/networking.md` §3.17.

use std::borrow::Cow;
use std::sync::Arc;

use ahash::AHashMap;

use super::host::resolve_gateway;
use super::report::{Field, Report};
use super::virtual_services::Context;
use super::visibility::visibility;
use super::world::Object;
use crate::diagnostic::Code;
use crate::resource::Resource;
use crate::resource::virtual_service::{HttpMatchRequest, HttpRoute, StringMatch, VirtualService};

/// A rule of a VirtualService, delegates put in.
pub(super) struct Rule<'a> {
    pub(super) http: Cow<'a, HttpRoute>,
    /// Where it stands; its namespace is what short names in it are relative to.
    pub(super) resource: &'a Arc<Resource>,
    /// In `spec.http` of the resource.
    pub(super) index: usize,
}

/// VirtualServices without hosts, which others may refer to.
pub(super) struct Delegates<'a> {
    by_name: AHashMap<(&'a str, &'a str), Object<'a, VirtualService>>,
}

impl<'a> Delegates<'a> {
    /// `is_delegate` tells for each VirtualService whether it has no hosts.
    pub(super) fn new(
        virtual_services: &[Object<'a, VirtualService>],
        is_delegate: impl Iterator<Item = bool>,
    ) -> Self {
        let delegates = virtual_services.iter().zip(is_delegate).filter(|(_, is_delegate)| *is_delegate);
        let named = delegates.map(|(object, _)| ((&**object.namespace(), &*object.resource.meta.name), *object));
        Self { by_name: named.collect() }
    }

    /// The delegates that `root` names, in order.
    pub(super) fn of(&self, root: Object<'_, VirtualService>) -> Vec<Option<Object<'a, VirtualService>>> {
        let references = root.spec.http.iter().filter_map(|rule| rule.delegate.as_ref());
        references
            .map(|reference| {
                let namespace = if reference.namespace.is_empty() { root.namespace() } else { &*reference.namespace };
                self.by_name.get(&(namespace, reference.name.as_str())).copied()
            })
            .collect()
    }
}

/// The rules of `root` with those of its delegates (`found`, in order of reference) in their place.
pub(super) fn expand<'a>(
    root: Object<'a, VirtualService>,
    found: &[Option<Object<'a, VirtualService>>],
    context: &Context<'_>,
    report: &mut Report,
) -> Vec<Rule<'a>> {
    let mut found = found.iter();
    let mut rules = Vec::with_capacity(root.spec.http.len());
    let spec = Field::spec(root.resource);
    let list = spec.name("http");
    for (root_index, http) in root.spec.http.iter().enumerate() {
        let Some(reference) = &http.delegate else {
            rules.push(Rule { http: Cow::Borrowed(http), resource: root.resource, index: root_index });
            continue;
        };
        let rule = list.index(root_index);
        let field = rule.name("delegate");
        let default = &context.mesh.virtual_service_export_to;
        let visible = found.next().copied().flatten().filter(|delegate| {
            visibility(&delegate.spec.export_to, default, delegate.namespace(), root.namespace()).is_some()
        });
        let Some(delegate) = visible else {
            let message = format!("delegate not found, or not exported to this namespace: \"{}\"", reference.name);
            report.warning(Code::ReferencedResourceNotFound, field.name("name"), message);
            continue;
        };
        let delegate_spec = Field::spec(delegate.resource);
        let delegate_rules = delegate_spec.name("http");
        for (index, leaf) in delegate.spec.http.iter().enumerate() {
            let field = delegate_rules.index(index);
            if leaf.delegate.is_some() {
                report.warning(Code::SchemaWarning, field.name("delegate"), "a delegate can't delegate further");
                continue;
            }
            match merge(http, root.namespace(), leaf, delegate.namespace()) {
                Some(http) => rules.push(Rule { http: Cow::Owned(http), resource: delegate.resource, index }),
                None => {
                    let message = format!("its match fits none of spec.http[{root_index}] of {}", root.resource.name());
                    report.warning(Code::VirtualServiceUnreachableRule, field.name("match"), message);
                }
            }
        }
    }
    rules
}

/// A delegate's rule in place of the root's; `None` if one of its matches fits none of the root's.
fn merge(root: &HttpRoute, root_namespace: &str, leaf: &HttpRoute, leaf_namespace: &str) -> Option<HttpRoute> {
    let HttpRoute {
        name,
        match_,
        route,
        redirect,
        direct_response,
        delegate: _,
        rewrite,
        timeout,
        retries,
        fault,
        mirror,
        mirrors,
        mirror_percent,
        mirror_percentage,
        cors_policy,
        headers,
    } = leaf;
    Some(HttpRoute {
        name: join(&root.name, name),
        match_: merge_matches(&root.match_, root_namespace, match_, leaf_namespace)?,
        route: route.clone(),
        redirect: redirect.clone(),
        direct_response: direct_response.clone().or_else(|| root.direct_response.clone()),
        delegate: None,
        rewrite: rewrite.clone().or_else(|| root.rewrite.clone()),
        timeout: timeout.or(root.timeout),
        retries: retries.clone().or_else(|| root.retries.clone()),
        fault: fault.clone().or_else(|| root.fault.clone()),
        mirror: mirror.clone().or_else(|| root.mirror.clone()),
        mirrors: if mirrors.is_empty() { root.mirrors.clone() } else { mirrors.clone() },
        mirror_percent: mirror_percent.or(root.mirror_percent),
        mirror_percentage: mirror_percentage.or(root.mirror_percentage),
        cors_policy: cors_policy.clone().or_else(|| root.cors_policy.clone()),
        headers: headers.clone().or_else(|| root.headers.clone()),
    })
}

fn join(root: &str, leaf: &str) -> String {
    match (root, leaf) {
        ("", name) | (name, "") => name.to_owned(),
        (root, leaf) => format!("{root}-{leaf}"),
    }
}

/// Every pair that doesn't conflict; each match of the delegate needs one.
fn merge_matches(
    roots: &[HttpMatchRequest],
    root_namespace: &str,
    leaves: &[HttpMatchRequest],
    leaf_namespace: &str,
) -> Option<Vec<HttpMatchRequest>> {
    let with_gateways = |request: &HttpMatchRequest, namespace: &str| {
        let gateways = request.gateways.iter().map(|gateway| resolve_gateway(gateway, namespace).into_owned());
        HttpMatchRequest { gateways: gateways.collect(), ..request.clone() }
    };
    let roots: Vec<_> = roots.iter().map(|root| with_gateways(root, root_namespace)).collect();
    let leaves: Vec<_> = leaves.iter().map(|leaf| with_gateways(leaf, leaf_namespace)).collect();
    if roots.is_empty() {
        return Some(leaves);
    }
    if leaves.is_empty() {
        return Some(roots);
    }
    let mut merged = Vec::new();
    for leaf in &leaves {
        let before = merged.len();
        let fitting = roots.iter().filter(|root| !conflicts(root, leaf));
        merged.extend(fitting.map(|root| merge_match(root, leaf)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_match(root: &HttpMatchRequest, leaf: &HttpMatchRequest) -> HttpMatchRequest {
    let HttpMatchRequest {
        name,
        uri,
        scheme,
        method,
        authority,
        headers,
        port,
        source_labels,
        gateways,
        query_params,
        ignore_uri_case,
        without_headers,
        source_namespace,
        stat_prefix,
    } = leaf;
    fn unite<'a, M, V>(root: &'a M, leaf: &'a M) -> M
    where
        &'a M: IntoIterator<Item = (&'a String, &'a V)>,
        M: FromIterator<(String, V)>,
        V: Clone + 'a,
    {
        root.into_iter().chain(leaf).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
    let text = |leaf: &String, root: &String| if leaf.is_empty() { root.clone() } else { leaf.clone() };
    HttpMatchRequest {
        name: join(&root.name, name),
        uri: uri.clone().or_else(|| root.uri.clone()),
        scheme: scheme.clone().or_else(|| root.scheme.clone()),
        method: method.clone().or_else(|| root.method.clone()),
        authority: authority.clone().or_else(|| root.authority.clone()),
        headers: unite(&root.headers, headers),
        port: if *port == 0 { root.port } else { *port },
        source_labels: unite(&root.source_labels, source_labels),
        gateways: if gateways.is_empty() { root.gateways.clone() } else { gateways.clone() },
        query_params: unite(&root.query_params, query_params),
        ignore_uri_case: *ignore_uri_case,
        without_headers: unite(&root.without_headers, without_headers),
        source_namespace: text(source_namespace, &root.source_namespace),
        stat_prefix: text(stat_prefix, &root.stat_prefix),
    }
}

/// Whether the delegate's match asks for something that the root's excludes.
fn conflicts(root: &HttpMatchRequest, leaf: &HttpMatchRequest) -> bool {
    let fields = [
        (&root.uri, &leaf.uri),
        (&root.scheme, &leaf.scheme),
        (&root.method, &leaf.method),
        (&root.authority, &leaf.authority),
    ];
    let maps = [
        (&root.headers, &leaf.headers),
        (&root.without_headers, &leaf.without_headers),
        (&root.query_params, &leaf.query_params),
    ];
    let label_conflicts =
        |(key, value): (&String, &String)| leaf.source_labels.get(key).is_some_and(|leaf| leaf != value);
    fields.iter().any(|(root, leaf)| texts_conflict(root.as_ref(), leaf.as_ref()))
        || maps.iter().any(|(root, leaf)| leaf.iter().any(|(key, leaf)| texts_conflict(root.get(key), Some(leaf))))
        || root.ignore_uri_case != leaf.ignore_uri_case
        || (root.port != 0 && leaf.port != 0 && root.port != leaf.port)
        || (!root.source_namespace.is_empty() && root.source_namespace != leaf.source_namespace)
        || root.source_labels.iter().any(label_conflicts)
        || (!root.gateways.is_empty() && leaf.gateways.iter().any(|gateway| !root.gateways.contains(gateway)))
}

fn texts_conflict(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> bool {
    match (root, leaf) {
        (None, _) | (_, None) | (Some(StringMatch::Present), _) => false,
        // Whether one expression covers another can't be told.
        (Some(StringMatch::Regex(_)), _) | (_, Some(StringMatch::Regex(_))) => true,
        (Some(StringMatch::Exact(root)), Some(StringMatch::Exact(leaf))) => root != leaf,
        (Some(StringMatch::Exact(_)), Some(_)) => true,
        (Some(StringMatch::Prefix(root)), Some(StringMatch::Prefix(leaf) | StringMatch::Exact(leaf))) => {
            !leaf.starts_with(root.as_str())
        }
        (Some(StringMatch::Prefix(_)), Some(StringMatch::Present)) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(value: StringMatch) -> HttpMatchRequest {
        HttpMatchRequest { uri: Some(value), ..HttpMatchRequest::default() }
    }

    fn exact(text: &str) -> StringMatch {
        StringMatch::Exact(text.to_owned())
    }

    fn prefix(text: &str) -> StringMatch {
        StringMatch::Prefix(text.to_owned())
    }

    fn regex(text: &str) -> StringMatch {
        StringMatch::Regex(text.to_owned())
    }

    #[test]
    fn texts_fit_or_conflict() {
        for (root, leaf, expected) in [
            (prefix("/a"), prefix("/a/b"), false),
            (prefix("/a"), prefix("/c"), true),
            (prefix("/a"), exact("/a/b"), false),
            (prefix("/a"), exact("/b"), true),
            (exact("/a"), exact("/a"), false),
            (exact("/a"), exact("/a/b"), true),
            (exact("/a"), prefix("/a"), true),
            (regex("/a"), regex("/a"), true),
            (prefix("/a"), regex("/a/.*"), true),
            (regex("/a"), prefix("/a"), true),
        ] {
            assert_eq!(texts_conflict(Some(&root), Some(&leaf)), expected, "{root:?} {leaf:?}");
            assert!(!texts_conflict(None, Some(&leaf)) && !texts_conflict(Some(&root), None));
        }
    }

    #[test]
    fn every_match_of_the_delegate_must_fit() {
        let roots = [uri(prefix("/a"))];
        let merged = merge_matches(&roots, "ns", &[uri(prefix("/a/b"))], "ns").map(|matches| matches.len());
        assert_eq!(merged, Some(1));
        assert_eq!(merge_matches(&roots, "ns", &[uri(prefix("/a/b")), uri(prefix("/c"))], "ns"), None);
        assert_eq!(merge_matches(&[], "ns", &[uri(prefix("/c"))], "ns"), Some(vec![uri(prefix("/c"))]));
        assert_eq!(merge_matches(&roots, "ns", &[], "ns"), Some(roots.to_vec()));
    }

    #[test]
    fn maps_are_united_and_the_delegate_wins() {
        let map =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), prefix(value))).collect();
        let root = HttpMatchRequest {
            name: "r".to_owned(),
            headers: map(&[("a", "1"), ("b", "2")]),
            port: 80,
            ..HttpMatchRequest::default()
        };
        let leaf = HttpMatchRequest {
            name: "d".to_owned(),
            headers: map(&[("b", "22"), ("c", "3")]),
            ..HttpMatchRequest::default()
        };
        let expected = HttpMatchRequest {
            name: "r-d".to_owned(),
            headers: map(&[("a", "1"), ("b", "22"), ("c", "3")]),
            port: 80,
            ..HttpMatchRequest::default()
        };
        assert_eq!(merge_matches(&[root], "ns", &[leaf], "ns"), Some(vec![expected]));
    }

    #[test]
    fn gateways_labels_and_namespaces_conflict() {
        let with = |gateways: &[&str], namespace: &str, port| HttpMatchRequest {
            gateways: gateways.iter().map(|&gateway| gateway.to_owned()).collect(),
            source_namespace: namespace.to_owned(),
            port,
            ..HttpMatchRequest::default()
        };
        for (root, leaf, fits) in [
            (with(&["a", "b"], "", 0), with(&["a"], "", 0), true),
            (with(&["a"], "", 0), with(&["a", "b"], "", 0), false),
            (with(&[], "", 0), with(&["a"], "", 0), true),
            (with(&[], "x", 0), with(&[], "x", 0), true),
            (with(&[], "x", 0), with(&[], "", 0), false),
            (with(&[], "", 80), with(&[], "", 0), true),
            (with(&[], "", 80), with(&[], "", 81), false),
        ] {
            let merged = merge_matches(std::slice::from_ref(&root), "ns", std::slice::from_ref(&leaf), "ns");
            assert_eq!(merged.is_some(), fits, "{root:?} {leaf:?}");
        }
    }
}
