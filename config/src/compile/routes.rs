//! Rules of VirtualServices become routes.
//!
//! Source: `reference/networking.md` §3.5-3.16, §3.18, §3.19.

mod action;
mod cors;
mod headers;
mod matches;
pub(super) mod retry;
mod streams;

use std::sync::Arc;

use super::delegates::Rule;
use super::host::{resolve, resolve_gateway};
use super::options::{Options, is_label_subset};
use super::report::{Field, Report};
use super::services::Registry;
use super::virtual_services::{ClusterReference, VirtualServiceRoutes};
use super::world::Object;
use crate::diagnostic::Code;
use crate::resource::Resource;
use crate::resource::virtual_service::{Destination, HttpMatchRequest, PortSelector, VirtualService};
use crate::snapshot::cluster::ClusterName;
use crate::snapshot::header::HeaderOps;
use crate::snapshot::route::{PathMatch, RetryPolicy, Route, RouteMatch};

pub(super) use streams::{StreamRoute, streams};

/// Where routes are made for, and with what.
pub(super) struct Place<'a> {
    pub(super) options: &'a Options,
    pub(super) registry: &'a Registry,
    /// Of routes that say nothing.
    pub(super) retry: Option<&'a Arc<RetryPolicy>>,
    /// `namespace/name`.
    pub(super) gateway: &'a str,
    /// As the Gateway says.
    pub(super) port: u16,
    pub(super) shared: &'a Shared,
}

/// Values that most routes have in common.
#[derive(Debug)]
pub(super) struct Shared {
    no_name: Arc<str>,
    no_headers: Arc<HeaderOps>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { no_name: "".into(), no_headers: Arc::default() }
    }
}

/// A question to the registry with its answer, on which a route depends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lookup {
    host: String,
    namespace: Arc<str>,
    found: Found,
}

/// What a route must know of a destination's service.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Nothing,
    /// With its only port, if there is only one.
    Service(Option<u16>),
    /// Another name; whether it is a service of its own.
    Alias(Arc<str>, bool),
}

impl Lookup {
    fn new(registry: &Registry, host: &str, namespace: &Arc<str>) -> Self {
        let found = match registry.lookup(host, namespace) {
            None => Found::Nothing,
            Some(service) => match (&service.alias, service.ports.as_slice()) {
                (Some(alias), _) => Found::Alias(Arc::clone(alias), registry.contains(alias)),
                (None, [port]) => Found::Service(Some(port.number)),
                (None, _) => Found::Service(None),
            },
        };
        Self { host: host.to_owned(), namespace: Arc::clone(namespace), found }
    }

    /// Whether `registry` gives the same answer.
    pub(super) fn is_same_in(&self, registry: &Registry) -> bool {
        Self::new(registry, &self.host, &self.namespace) == *self
    }
}

/// The routes of `virtual_service` (whose rules are `rules`) at a place, and what they depend on. There are no routes if
/// no rule is for that place.
pub(super) fn translate(
    virtual_service: Object<'_, VirtualService>,
    rules: &[Rule<'_>],
    place: &Place<'_>,
    report: Report,
) -> (Option<VirtualServiceRoutes>, Vec<Lookup>) {
    let mut translation = Translation::new(place, report);
    translation.rules(rules);
    translation.finish(virtual_service)
}

struct Translation<'a> {
    place: &'a Place<'a>,
    report: Report,
    routes: Vec<Arc<Route>>,
    catch_all: Option<Arc<Route>>,
    streams: Vec<Arc<StreamRoute>>,
    clusters: Vec<ClusterReference>,
    lookups: Vec<Lookup>,
}

impl<'a> Translation<'a> {
    fn new(place: &'a Place<'a>, report: Report) -> Self {
        Self {
            place,
            report,
            routes: Vec::new(),
            catch_all: None,
            streams: Vec::new(),
            clusters: Vec::new(),
            lookups: Vec::new(),
        }
    }

    fn finish(self, virtual_service: Object<'_, VirtualService>) -> (Option<VirtualServiceRoutes>, Vec<Lookup>) {
        let Self { place: _, report, routes, catch_all, streams, clusters, lookups } = self;
        let is_empty = routes.is_empty() && catch_all.is_none() && streams.is_empty() && report.diagnostics.is_empty();
        let made = VirtualServiceRoutes {
            resource: virtual_service.resource.name(),
            routes,
            catch_all,
            streams,
            clusters,
            diagnostics: report.diagnostics,
        };
        ((!is_empty).then_some(made), lookups)
    }

    fn rules(&mut self, rules: &[Rule<'_>]) {
        for rule in rules {
            let spec = Field::spec(rule.resource);
            let list = spec.name("http");
            let field = list.index(rule.index);
            if self.catch_all.is_some() {
                let message = "an earlier rule matches everything: this one and those after it are never reached";
                self.report.warning(Code::VirtualServiceUnreachableRule, field, message);
                return;
            }
            self.rule(rule, &field);
        }
    }

    fn rule(&mut self, rule: &Rule<'_>, field: &Field<'_>) {
        let http = &*rule.http;
        let always = [HttpMatchRequest::default()];
        let requests = if http.match_.is_empty() { &always[..] } else { &http.match_ };
        let matches_field = field.name("match");
        let applicable = requests.iter().enumerate().filter(|(_, request)| self.is_here(request, rule));
        let applicable: Vec<_> = applicable.collect();
        if applicable.is_empty() {
            return;
        }
        let mut actions = action::Actions::new(rule, field);
        let operations = headers::Operations::of_rule(http, field, &mut self.report);
        let (request_headers, response_headers) = operations.shared(self.place.shared);
        for (i, request) in applicable {
            let match_field = if http.match_.is_empty() { *field } else { matches_field.index(i) };
            let Some(matches) = matches::compile(request, &match_field, &mut self.report) else { continue };
            let Some(action) = actions.compile(&matches.path, &operations, self) else { return };
            let is_catch_all = is_catch_all(&matches);
            let route = Arc::new(Route {
                name: self.route_name(&http.name, &request.name),
                resource: rule.resource.name(),
                matches,
                action,
                request_headers: Arc::clone(&request_headers),
                response_headers: Arc::clone(&response_headers),
            });
            if is_catch_all {
                self.catch_all = Some(route);
                if i + 1 < requests.len() {
                    let message = "an earlier match of this rule is met by everything: this one is never reached";
                    self.report.warning(Code::VirtualServiceIneffectiveMatch, matches_field.index(i + 1), message);
                }
                return;
            }
            self.routes.push(route);
        }
    }

    fn route_name(&self, rule: &str, request: &str) -> Arc<str> {
        match (rule, request) {
            ("", "") => Arc::clone(&self.place.shared.no_name),
            (rule, "") => rule.into(),
            (rule, request) => format!("{rule}.{request}").into(),
        }
    }

    /// Whether a match entry can apply at this place at all.
    fn is_here(&self, request: &HttpMatchRequest, rule: &Rule<'_>) -> bool {
        let Place { options, gateway, port, .. } = self.place;
        if request.port != 0 && request.port != u32::from(*port) {
            return false;
        }
        let namespace = &rule.resource.meta.namespace;
        if !request.gateways.is_empty() {
            return request.gateways.iter().any(|name| resolve_gateway(name, namespace) == *gateway);
        }
        is_label_subset(&request.source_labels, &options.labels)
            && (request.source_namespace.is_empty() || *request.source_namespace == *options.namespace)
    }

    /// The cluster of a destination, noted down with all that this depends on.
    fn cluster(&mut self, destination: &Destination, resource: &Arc<Resource>, path: String) -> ClusterName {
        let Destination { host, subset, port } = destination;
        let namespace = &resource.meta.namespace;
        let mut host = resolve(host, namespace, &self.place.options.domain).into_owned();
        let lookup = Lookup::new(self.place.registry, &host, namespace);
        let mut external_name = false;
        let only_port = match &lookup.found {
            Found::Nothing => None,
            Found::Service(only_port) => *only_port,
            Found::Alias(alias, is_service) => {
                host = alias.to_string();
                external_name = !is_service;
                None
            }
        };
        let named = port.and_then(|PortSelector { number }| u16::try_from(number).ok()).filter(|&number| number != 0);
        let port = named.or(only_port).unwrap_or(self.place.port);
        let name = ClusterName::outbound(port, subset, &host);
        if !self.lookups.contains(&lookup) {
            self.lookups.push(lookup);
        }
        // One copy of the name does for all rules.
        if let Some(known) = self.clusters.iter().find(|known| known.name == name) {
            return known.name.clone();
        }
        self.clusters.push(ClusterReference {
            name: name.clone(),
            host,
            port,
            subset: subset.clone(),
            external_name,
            resource: Arc::clone(resource),
            path,
        });
        name
    }
}

/// Whether a route matches everything: then nothing after it in its VirtualService counts, and it goes behind the
/// routes of the others. The empty prefix is no such route, although it matches everything too.
///
/// Source: `reference/networking.md` §3.3.
fn is_catch_all(matches: &RouteMatch) -> bool {
    let RouteMatch { path, ignore_path_case: _, method, scheme, authority, headers, query, claims } = matches;
    let any_path = match path {
        PathMatch::Any => true,
        PathMatch::Prefix(prefix) => prefix == "/",
        PathMatch::Regex(pattern) => pattern.as_str() == ".*",
        PathMatch::Exact(_) => false,
    };
    any_path
        && [method, scheme, authority].iter().all(|condition| condition.is_none())
        && headers.is_empty()
        && query.is_empty()
        && claims.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::matcher::{Pattern, StringMatch};
    use crate::snapshot::route::QueryMatch;

    #[test]
    fn catch_alls() {
        let path = |path| RouteMatch { path, ..RouteMatch::default() };
        let regex = |text| PathMatch::Regex(Pattern::new(text).expect("an expression"));
        for (matches, expected) in [
            (RouteMatch::default(), true),
            (path(PathMatch::Prefix("/".to_owned())), true),
            (path(PathMatch::Prefix(String::new())), false),
            (path(PathMatch::Exact("/".to_owned())), false),
            (path(regex(".*")), true),
            (path(regex("/.*")), false),
            (
                RouteMatch { method: Some(Box::new(StringMatch::Exact("GET".to_owned()))), ..RouteMatch::default() },
                false,
            ),
            (RouteMatch { authority: Some(Box::new(StringMatch::Present)), ..RouteMatch::default() }, false),
            (
                RouteMatch {
                    query: vec![QueryMatch { name: "q".to_owned(), value: StringMatch::Present }],
                    ..RouteMatch::default()
                },
                false,
            ),
        ] {
            assert_eq!(is_catch_all(&matches), expected, "{matches:?}");
        }
    }
}
