//! Cross-origin resource sharing.
//!
//! Source: `reference/networking.md` §3.14, measured on Envoy.

use bytes::Bytes;
use config::snapshot::matcher::StringMatch;
use config::snapshot::route::Cors;

use crate::http::headers::Headers;
use crate::request::RequestHead;

/// What the policy makes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not a cross-origin request that is let in: it passes, nothing is added.
    Pass,
    /// An actual request from an allowed origin: [`decorate`] the response.
    Allow(Bytes),
    /// A preflight: answer 200 with these headers.
    Preflight(Headers),
}

/// Decides on a request.
pub fn decide(cors: &Cors, request: &RequestHead) -> Decision {
    let Some(origin) = request.headers.get("origin").filter(|origin| !origin.is_empty()) else {
        return Decision::Pass;
    };
    let allowed = cors.allow_origins.iter().any(|matcher| match matcher {
        StringMatch::Exact(text) if text == "*" => true,
        matcher => matcher.is_match(origin),
    });
    let method = request.headers.get("access-control-request-method").filter(|method| !method.is_empty());
    match method {
        Some(method) if request.method == "OPTIONS" => {
            if allowed || !cors.forward_unmatched_preflights {
                Decision::Preflight(preflight(cors, request, allowed.then_some(origin), method))
            } else {
                Decision::Pass
            }
        }
        _ if allowed => Decision::Allow(origin.clone()),
        _ => Decision::Pass,
    }
}

fn preflight(cors: &Cors, request: &RequestHead, origin: Option<&Bytes>, method: &Bytes) -> Headers {
    let mut headers = Headers::default();
    if let Some(origin) = origin {
        headers.push("access-control-allow-origin", origin.clone());
    }
    if cors.allow_credentials {
        headers.push("access-control-allow-credentials", Bytes::from_static(b"true"));
    }
    match cors.allow_methods.as_deref() {
        Some("*") => headers.push("access-control-allow-methods", method.clone()),
        Some(methods) => headers.push("access-control-allow-methods", methods.to_owned()),
        None => {}
    }
    match cors.allow_headers.as_deref() {
        Some("*") => {
            let requested = request.headers.get("access-control-request-headers").cloned().unwrap_or_default();
            headers.push("access-control-allow-headers", requested);
        }
        Some(allowed) => headers.push("access-control-allow-headers", allowed.to_owned()),
        None => {}
    }
    if let Some(seconds) = cors.max_age {
        headers.push("access-control-max-age", seconds.to_string());
    }
    if origin.is_some()
        && let Some(exposed) = &cors.expose_headers
    {
        headers.push("access-control-expose-headers", exposed.clone());
    }
    headers
}

/// Adds the policy's headers to the response of an actual request from `origin`.
pub fn decorate(cors: &Cors, origin: &Bytes, headers: &mut Headers) {
    headers.set("access-control-allow-origin", origin.clone());
    if cors.allow_credentials {
        headers.set("access-control-allow-credentials", Bytes::from_static(b"true"));
    }
    if let Some(exposed) = &cors.expose_headers {
        headers.set("access-control-expose-headers", exposed.clone());
    }
}
