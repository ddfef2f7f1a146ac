//! Conditions of routes.
//!
//! Source: `reference/networking.md` §3.6.

use super::super::report::{Field, Report};
use crate::diagnostic::Code;
use crate::resource::virtual_service::{self, HttpMatchRequest};
use crate::snapshot::matcher::{Pattern, StringMatch};
use crate::snapshot::route::{ClaimMatch, HeaderMatch, PathMatch, QueryMatch, RouteMatch};

/// The conditions of one match entry; `None` if one of them is no condition at all, which is reported.
pub(super) fn compile(request: &HttpMatchRequest, field: &Field<'_>, report: &mut Report) -> Option<RouteMatch> {
    let HttpMatchRequest {
        name: _,
        uri,
        scheme,
        method,
        authority,
        headers,
        // Decided before.
        port: _,
        source_labels: _,
        gateways: _,
        query_params,
        ignore_uri_case,
        without_headers,
        source_namespace: _,
        stat_prefix,
    } = request;
    report.unsupported_if(!stat_prefix.is_empty(), field.name("statPrefix"));
    let mut single = |name: &str, value: &Option<virtual_service::StringMatch>| match value {
        Some(value) => string_match(value, field.name(name), report).map(Some),
        None => Some(None),
    };
    let path = match single("uri", uri)? {
        None | Some(StringMatch::Present) => PathMatch::Any,
        Some(StringMatch::Exact(text)) => PathMatch::Exact(text),
        Some(StringMatch::Prefix(text)) => PathMatch::Prefix(text),
        Some(StringMatch::Regex(pattern)) => PathMatch::Regex(pattern),
    };
    let mut matches = RouteMatch {
        path,
        ignore_path_case: *ignore_uri_case,
        scheme: single("scheme", scheme)?.map(Box::new),
        method: single("method", method)?.map(Box::new),
        authority: single("authority", authority)?.map(Box::new),
        ..RouteMatch::default()
    };
    for (list, values, invert) in [("headers", headers, false), ("withoutHeaders", without_headers, true)] {
        let list = field.name(list);
        for (name, value) in values {
            let field = list.name(name);
            let value = string_match(value, field, report)?;
            match claim_path(name) {
                None => matches.headers.push(HeaderMatch { name: name.to_ascii_lowercase(), value, invert }),
                Some(path) => {
                    let message = "claims of a JWT are not verified yet: this match never holds";
                    report.unsupported(field, message);
                    matches.claims.push(ClaimMatch { path, value, invert });
                }
            }
        }
    }
    let list = field.name("queryParams");
    for (name, value) in query_params {
        let value = string_match(value, list.name(name), report)?;
        matches.query.push(QueryMatch { name: name.clone(), value });
    }
    matches.headers.shrink_to_fit();
    matches.query.shrink_to_fit();
    Some(matches)
}

/// A condition on one string. `regex: "*"` is the old spelling of presence.
pub(super) fn string_match(
    value: &virtual_service::StringMatch,
    field: Field<'_>,
    report: &mut Report,
) -> Option<StringMatch> {
    Some(match value {
        virtual_service::StringMatch::Present => StringMatch::Present,
        virtual_service::StringMatch::Exact(text) => StringMatch::Exact(text.clone()),
        virtual_service::StringMatch::Prefix(text) => StringMatch::Prefix(text.clone()),
        virtual_service::StringMatch::Regex(text) if text == "*" => StringMatch::Present,
        virtual_service::StringMatch::Regex(text) => match Pattern::new(text) {
            Ok(pattern) => StringMatch::Regex(pattern),
            Err(error) => {
                let message = format!("not a regular expression, so that this match never holds: {error}");
                report.error(Code::SchemaValidationError, field.name("regex"), message);
                return None;
            }
        },
    })
}

/// The claim that a header name stands for: `@request.auth.claims.a.b` or `@request.auth.claims[a.b][c]`.
fn claim_path(name: &str) -> Option<Vec<String>> {
    const PREFIX: &str = "@request.auth.claims";

    let (prefix, path) = name.split_at_checked(PREFIX.len())?;
    if !prefix.eq_ignore_ascii_case(PREFIX) {
        return None;
    }
    if let Some(path) = path.strip_prefix('.') {
        return Some(path.split('.').map(str::to_owned).collect());
    }
    let inside = path.strip_prefix('[')?.strip_suffix(']')?;
    Some(inside.split("][").map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_names() {
        for (name, expected) in [
            ("@request.auth.claims.sub", Some(&["sub"][..])),
            ("@Request.Auth.Claims.Sub.x", Some(&["Sub", "x"])),
            ("@request.auth.claims[a.b]", Some(&["a.b"])),
            ("@request.auth.claims[a][b.c]", Some(&["a", "b.c"])),
            ("@request.auth.claims", None),
            ("x-claims", None),
        ] {
            let expected = expected.map(|path| path.iter().map(|&part| part.to_owned()).collect());
            assert_eq!(claim_path(name), expected, "{name}");
        }
    }
}
