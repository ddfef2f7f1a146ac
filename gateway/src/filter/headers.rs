//! Header operations of routes and destinations.
//!
//! Source: `reference/networking.md` §3.15.

use bytes::Bytes;
use config::snapshot::format::{Format, Piece};
use config::snapshot::header::HeaderOps;

use crate::http::headers::Headers;
use crate::request::Facts;
use crate::telemetry::format;

/// Changes the request's headers.
pub fn apply_to_request(ops: &HeaderOps, facts: &mut Facts) {
    apply(ops, facts, |facts| facts.request.as_mut().map(|request| &mut request.headers));
}

/// Changes the headers of the response that is about to be sent.
pub fn apply_to_response(ops: &HeaderOps, facts: &mut Facts) {
    apply(ops, facts, |facts| Some(&mut facts.response_headers));
}

fn apply(ops: &HeaderOps, facts: &mut Facts, headers: impl Fn(&mut Facts) -> Option<&mut Headers>) {
    if ops.is_empty() {
        return;
    }
    if let Some(headers) = headers(facts) {
        for name in &ops.remove {
            headers.remove(name);
        }
    }
    for put in &ops.put {
        let value = evaluate(&put.value, facts);
        // An empty value changes nothing, not even what `set` would replace.
        if value.is_empty() {
            continue;
        }
        let name = Bytes::copy_from_slice(put.name.as_bytes());
        if let Some(headers) = headers(facts) {
            if put.replace {
                // Envoy writes a line that is set where it stands in the list of operations: behind all others.
                headers.remove(&put.name);
                headers.append(name, value);
            } else {
                headers.add(name, value);
            }
        }
    }
}

fn evaluate(value: &Format, facts: &Facts) -> Bytes {
    if let [Piece::Literal(text)] = &value.pieces[..] {
        return Bytes::copy_from_slice(text.as_bytes());
    }
    let mut out = Vec::new();
    format::write(value, facts, format::Moment::Headers, &mut out);
    // What comes from a request must not end the line it is written in.
    out.retain(|&byte| byte == b'\t' || (byte >= 0x20 && byte != 0x7f));
    out.into()
}
