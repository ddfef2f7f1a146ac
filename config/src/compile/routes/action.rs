//! What routes do.
//!
//! Source: `reference/networking.md` §3.7-3.14, §3.16.

use std::sync::Arc;

use super::super::delegates::Rule;
use super::super::report::Field;
use super::headers::Operations;
use super::{Translation, cors, retry};
use crate::diagnostic::Code;
use crate::resource::virtual_service::{
    self as model, HttpBody, HttpDirectResponse, HttpFaultInjection, HttpMirrorPolicy, HttpRedirect, HttpRewrite,
    HttpRoute, HttpRouteDestination, Percent, RedirectPortSelection, RegexRewrite,
};
use crate::snapshot::route::{
    Abort, Action, DirectResponse, Fault, Forward, Fraction, Mirror, PathMatch, PathRewrite, Redirect, RedirectPath,
    Substitution, WeightedCluster,
};

/// A response body may not be larger. Source: `reference/networking.md` §3.8.
const MAX_BODY: usize = 1 << 20;

/// The actions of a rule: one for each way in which its match entries look at the path.
pub(super) struct Actions<'a> {
    rule: &'a Rule<'a>,
    field: &'a Field<'a>,
    made: Vec<(PathUse, Arc<Action>)>,
}

/// What a rewrite replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathUse {
    /// That many bytes at the beginning.
    Prefix(usize),
    Whole,
}

impl<'a> Actions<'a> {
    pub(super) fn new(rule: &'a Rule<'a>, field: &'a Field<'a>) -> Self {
        Self { rule, field, made: Vec::new() }
    }

    /// The action for requests that match `path`; `None` if there is none, which is reported.
    pub(super) fn compile(
        &mut self,
        path: &PathMatch,
        operations: &Operations,
        translation: &mut Translation<'_>,
    ) -> Option<Arc<Action>> {
        let path_use = match path {
            PathMatch::Prefix(prefix) => PathUse::Prefix(prefix.len()),
            PathMatch::Any => PathUse::Prefix(1),
            PathMatch::Exact(_) | PathMatch::Regex(_) => PathUse::Whole,
        };
        let http = &*self.rule.http;
        let depends_on_path = http.rewrite.as_ref().is_some_and(|rewrite| !rewrite.uri.is_empty())
            || http.redirect.as_ref().is_some_and(|redirect| !redirect.prefix_rewrite.is_empty());
        if let Some((_, made)) = self.made.iter().find(|(known, _)| !depends_on_path || *known == path_use) {
            return Some(Arc::clone(made));
        }
        // Findings are the same for each of them.
        let findings = translation.report.diagnostics.len();
        let action = Arc::new(self.action(http, path_use, operations, translation)?);
        if !self.made.is_empty() {
            translation.report.diagnostics.truncate(findings);
        }
        self.made.push((path_use, Arc::clone(&action)));
        Some(action)
    }

    fn action(
        &self,
        http: &HttpRoute,
        path_use: PathUse,
        operations: &Operations,
        translation: &mut Translation<'_>,
    ) -> Option<Action> {
        if let Some(redirect) = &http.redirect {
            return self.redirect(redirect, path_use, translation).map(Action::Redirect);
        }
        if let Some(response) = &http.direct_response {
            return self.direct_response(response, translation).map(Action::DirectResponse);
        }
        if http.route.is_empty() {
            let message = "a rule needs one of route, redirect, directResponse and delegate";
            translation.report.error(Code::SchemaValidationError, *self.field, message);
            return None;
        }
        self.forward(http, path_use, operations, translation).map(Action::Forward)
    }

    fn forward(
        &self,
        http: &HttpRoute,
        path_use: PathUse,
        operations: &Operations,
        translation: &mut Translation<'_>,
    ) -> Option<Forward> {
        let HttpRoute {
            name: _,
            match_: _,
            route,
            redirect: _,
            direct_response: _,
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
            // In `operations`.
            headers: _,
        } = http;
        let clusters = self.clusters(route, translation);
        if clusters.is_empty() {
            let message = "no destination has a weight";
            translation.report.error(Code::SchemaValidationError, self.field.name("route"), message);
            return None;
        }
        let (path_rewrite, authority) = match rewrite {
            Some(rewrite) => self.rewrite(rewrite, path_use, translation)?,
            None => (None, None),
        };
        let retry = match retries {
            Some(policy) => retry::compile(policy, &self.field.name("retries"), &mut translation.report).map(Arc::new),
            None => translation.place.retry.cloned(),
        };
        let mut copies = Vec::new();
        if let Some(destination) = mirror {
            let percent = mirror_percentage.map(|percent| percent.value).or(mirror_percent.map(f64::from));
            copies.push((&**destination, percent, self.field.name("mirror").path()));
        }
        let list = self.field.name("mirrors");
        for (i, HttpMirrorPolicy { destination, percentage }) in mirrors.iter().enumerate() {
            if let Some(destination) = destination {
                let path = list.index(i).name("destination").path();
                copies.push((destination, percentage.map(|Percent { value }| value), path));
            }
        }
        let mirrors = copies.into_iter().map(|(destination, percent, path)| Mirror {
            cluster: translation.cluster(destination, self.rule.resource, below_spec(path)),
            // Absent means all of them.
            share: percent.map_or(ALWAYS, fraction),
        });
        let mirrors = mirrors.collect();
        Some(Forward {
            clusters,
            path_rewrite: path_rewrite.map(Box::new),
            host_rewrite: authority.or_else(|| operations.authority.clone()),
            timeout: timeout.filter(|timeout| !timeout.is_zero()),
            retry,
            fault: fault.as_ref().and_then(|fault| self.fault(fault, translation)).map(Box::new),
            mirrors,
            cors: cors_policy
                .as_ref()
                .map(|policy| cors::compile(policy, &self.field.name("corsPolicy"), &mut translation.report))
                .map(Box::new),
        })
    }

    /// Destinations with a weight. A single one has all the traffic, whatever its weight, and its header operations are
    /// the route's.
    fn clusters(&self, route: &[HttpRouteDestination], translation: &mut Translation<'_>) -> Vec<WeightedCluster> {
        let list = self.field.name("route");
        let is_single = route.len() == 1;
        let mut clusters = Vec::with_capacity(route.len());
        for (i, HttpRouteDestination { destination, weight, headers }) in route.iter().enumerate() {
            let field = list.index(i);
            let weight = if is_single { 1 } else { u32::try_from(*weight).unwrap_or(0) };
            let Some(destination) = destination.as_ref().filter(|_| weight > 0) else { continue };
            let operations = match is_single {
                true => Operations::default(),
                false => Operations::new(headers.as_deref(), &field.name("headers"), &mut translation.report),
            };
            let path = below_spec(field.name("destination").path());
            let (request_headers, response_headers) = operations.shared(translation.place.shared);
            clusters.push(WeightedCluster {
                cluster: translation.cluster(destination, self.rule.resource, path),
                weight,
                names_port: destination.port.is_some_and(|port| port.number != 0),
                host_rewrite: operations.authority,
                request_headers,
                response_headers,
            });
        }
        clusters
    }

    /// Path and authority.
    fn rewrite(
        &self,
        rewrite: &HttpRewrite,
        path_use: PathUse,
        translation: &mut Translation<'_>,
    ) -> Option<(Option<PathRewrite>, Option<String>)> {
        let HttpRewrite { uri, authority, uri_regex_rewrite } = rewrite;
        let path = match uri_regex_rewrite {
            Some(RegexRewrite { match_, rewrite }) => match Substitution::new(match_, rewrite) {
                Ok(substitution) => Some(PathRewrite::Regex { substitution }),
                Err(error) => {
                    let field = self.field.name("rewrite");
                    let report = &mut translation.report;
                    report.error(Code::SchemaValidationError, field.name("uriRegexRewrite"), error.to_string());
                    return None;
                }
            },
            None if uri.is_empty() => None,
            None => Some(match path_use {
                PathUse::Prefix(length) => PathRewrite::Prefix { length, with: uri.clone() },
                PathUse::Whole => PathRewrite::Full(uri.clone()),
            }),
        };
        Some((path, Some(authority.clone()).filter(|authority| !authority.is_empty())))
    }

    fn redirect(
        &self,
        redirect: &HttpRedirect,
        path_use: PathUse,
        translation: &mut Translation<'_>,
    ) -> Option<Redirect> {
        let HttpRedirect { uri, prefix_rewrite, authority, port, derive_port, scheme, redirect_code } = redirect;
        let field = self.field.name("redirect");
        let path = match (uri.as_str(), prefix_rewrite.as_str()) {
            ("", "") => None,
            ("", prefix) => match path_use {
                PathUse::Prefix(length) => Some(RedirectPath::Prefix { length, with: prefix.to_owned() }),
                PathUse::Whole => {
                    let message = "a prefix can only be replaced where a prefix is matched";
                    translation.report.error(Code::SchemaValidationError, field.name("prefixRewrite"), message);
                    return None;
                }
            },
            (uri, _) if uri.starts_with('/') => Some(RedirectPath::Full(uri.to_owned())),
            (uri, _) => Some(RedirectPath::Full(format!("/{uri}"))),
        };
        let code = match redirect_code {
            0 => 301,
            301 | 302 | 303 | 307 | 308 => u16::try_from(*redirect_code).unwrap_or(301),
            _ => {
                let message = "must be one of 301, 302, 303, 307, 308";
                translation.report.error(Code::SchemaValidationError, field.name("redirectCode"), message);
                return None;
            }
        };
        let port = match derive_port {
            Some(RedirectPortSelection::FromRequestPort) => Some(translation.place.port),
            Some(RedirectPortSelection::FromProtocolDefault) => None,
            None => port.and_then(|port| u16::try_from(port).ok()),
        };
        // Without a scheme it is the server's, which is plain text.
        let default_port = if scheme == "https" { 443 } else { 80 };
        Some(Redirect {
            path,
            authority: Some(authority.clone()).filter(|authority| !authority.is_empty()),
            port: port.filter(|&port| port != default_port && port != 0),
            scheme: Some(scheme.clone()).filter(|scheme| !scheme.is_empty()),
            code,
        })
    }

    fn direct_response(
        &self,
        response: &HttpDirectResponse,
        translation: &mut Translation<'_>,
    ) -> Option<DirectResponse> {
        let HttpDirectResponse { status, body } = response;
        let field = self.field.name("directResponse");
        let status = u16::try_from(*status).ok().filter(|status| (200..600).contains(status));
        let Some(status) = status else {
            translation.report.error(Code::SchemaValidationError, field.name("status"), "must be from 200 to 599");
            return None;
        };
        let body: &[u8] = match body {
            None | Some(HttpBody::Empty) => &[],
            Some(HttpBody::String(text)) => text.as_bytes(),
            Some(HttpBody::Bytes(bytes)) => &bytes.0,
        };
        if body.len() > MAX_BODY {
            translation.report.error(Code::SchemaValidationError, field.name("body"), "must not be larger than 1 MiB");
            return None;
        }
        Some(DirectResponse { status, body: body.into() })
    }

    fn fault(&self, fault: &HttpFaultInjection, translation: &mut Translation<'_>) -> Option<Fault> {
        let HttpFaultInjection { delay, abort } = fault;
        let field = self.field.name("fault");
        let delay = delay.as_ref().and_then(|delay| {
            let model::Delay { percent, fixed_delay, exponential_delay, percentage } = delay;
            let delay_field = field.name("delay");
            translation.report.unsupported_if(exponential_delay.is_some(), delay_field.name("exponentialDelay"));
            // Absent means never.
            let share = percentage.map_or(f64::from(*percent), |Percent { value }| value);
            Some(((*fixed_delay)?, fraction(share)))
        });
        let abort = abort.as_ref().and_then(|abort| {
            let model::Abort { http_status, grpc_status, http2_error, percentage } = abort;
            let abort_field = field.name("abort");
            translation.report.unsupported_if(http2_error.is_some(), abort_field.name("http2Error"));
            let share = percentage.map_or(NEVER, |Percent { value }| fraction(value));
            let kind = match (http_status, grpc_status) {
                (Some(status), _) => match u16::try_from(*status).ok().filter(|status| (200..600).contains(status)) {
                    Some(status) => Abort::Http(status),
                    None => {
                        let message = "must be from 200 to 599: nothing is aborted";
                        let field = abort_field.name("httpStatus");
                        translation.report.error(Code::SchemaValidationError, field, message);
                        return None;
                    }
                },
                (None, Some(name)) => match grpc_code(name) {
                    Some(code) => Abort::Grpc(code),
                    None => {
                        let message = format!("\"{name}\" is no gRPC status: nothing is aborted");
                        let field = abort_field.name("grpcStatus");
                        translation.report.error(Code::SchemaValidationError, field, message);
                        return None;
                    }
                },
                (None, None) => {
                    let message = "neither httpStatus nor grpcStatus: nothing is aborted";
                    translation.report.warning(Code::SchemaWarning, abort_field, message);
                    return None;
                }
            };
            Some((kind, share))
        });
        (delay.is_some() || abort.is_some()).then_some(Fault { delay, abort })
    }
}

const ALWAYS: Fraction = Fraction(1_000_000);
const NEVER: Fraction = Fraction(0);

/// A share of requests in percent.
fn fraction(percent: f64) -> Fraction {
    // Clamped before, and a fraction of a millionth doesn't matter.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
    Fraction((percent.clamp(0.0, 100.0) * 10_000.0).round() as u32)
}

/// `spec.http[0]` without `spec.`.
pub(super) fn below_spec(path: String) -> String {
    path.strip_prefix("spec.").map(str::to_owned).unwrap_or(path)
}

/// Names of gRPC status codes, by code.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn grpc_code(name: &str) -> Option<u8> {
    let position = GRPC_CODES.iter().position(|known| *known == name)?;
    u8::try_from(position).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_millionths() {
        for (percent, expected) in
            [(0.0, 0), (100.0, 1_000_000), (0.0001, 1), (12.5, 125_000), (-1.0, 0), (200.0, 1_000_000)]
        {
            assert_eq!(fraction(percent), Fraction(expected), "{percent}");
        }
        assert_eq!(fraction(f64::NAN), NEVER);
    }
}
