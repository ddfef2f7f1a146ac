//! CORS policies.
//!
//! Source: `reference/networking.md` §3.14.

use super::super::report::{Field, Report};
use super::matches::string_match;
use crate::resource::virtual_service::{CorsPolicy, UnmatchedPreflights};
use crate::snapshot::matcher::StringMatch;
use crate::snapshot::route::Cors;

pub(super) fn compile(policy: &CorsPolicy, field: &Field<'_>, report: &mut Report) -> Cors {
    let CorsPolicy {
        allow_origin,
        allow_origins,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        unmatched_preflights,
    } = policy;
    let list = field.name("allowOrigins");
    let allow_origins = match allow_origins.as_slice() {
        [] => allow_origin.iter().map(|origin| StringMatch::Exact(origin.clone())).collect(),
        origins => {
            let origins = origins.iter().enumerate();
            origins.filter_map(|(i, origin)| string_match(origin, list.index(i), report)).collect()
        }
    };
    let join = |values: &[String]| (!values.is_empty()).then(|| values.join(","));
    Cors {
        allow_origins,
        allow_methods: join(allow_methods),
        allow_headers: join(allow_headers),
        expose_headers: join(expose_headers),
        max_age: max_age.map(|age| age.as_secs()),
        allow_credentials: allow_credentials.unwrap_or(false),
        forward_unmatched_preflights: *unmatched_preflights != UnmatchedPreflights::Ignore,
    }
}
