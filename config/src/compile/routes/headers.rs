//! Header operations.
//!
//! Source: `reference/networking.md` §3.9, §3.15.

use std::sync::Arc;

use super::super::report::{Field, Report};
use super::Shared;
use crate::diagnostic::Code;
use crate::resource::virtual_service::{HeaderOperations, Headers, HttpRoute, HttpRouteDestination};
use crate::snapshot::format::Format;
use crate::snapshot::header::{HeaderOps, HeaderPut};

/// The operations of a rule or of a destination.
#[derive(Debug, Default)]
pub(super) struct Operations {
    pub(super) request: HeaderOps,
    pub(super) response: HeaderOps,
    /// What `set`, else `add`, makes of the request's authority.
    pub(super) authority: Option<String>,
}

impl Operations {
    /// Those of a rule. A single destination's are part of them: all removals come first, the destination's additions
    /// last, so that the destination wins.
    pub(super) fn of_rule(http: &HttpRoute, field: &Field<'_>, report: &mut Report) -> Self {
        let mut operations = Self::new(http.headers.as_deref(), &field.name("headers"), report);
        if let [HttpRouteDestination { destination: _, weight: _, headers }] = http.route.as_slice() {
            let list = field.name("route");
            let destination = list.index(0);
            let Self { request, response, authority } =
                Self::new(headers.as_deref(), &destination.name("headers"), report);
            append(&mut operations.request, request);
            append(&mut operations.response, response);
            operations.authority = operations.authority.or(authority);
        }
        operations
    }

    pub(super) fn new(headers: Option<&Headers>, field: &Field<'_>, report: &mut Report) -> Self {
        let Some(Headers { request, response }) = headers else { return Self::default() };
        let mut operations = Self::default();
        if let Some(request) = request {
            let field = field.name("request");
            operations.request = compile(request, Direction::Request, &field, report);
            operations.authority = authority(request);
        }
        if let Some(response) = response {
            operations.response = compile(response, Direction::Response, &field.name("response"), report);
        }
        operations
    }

    /// Request and response operations, to be shared by routes.
    pub(super) fn shared(&self, shared: &Shared) -> (Arc<HeaderOps>, Arc<HeaderOps>) {
        let share = |operations: &HeaderOps| match operations.is_empty() {
            true => Arc::clone(&shared.no_headers),
            false => Arc::new(operations.clone()),
        };
        (share(&self.request), share(&self.response))
    }
}

fn append(operations: &mut HeaderOps, HeaderOps { remove, put }: HeaderOps) {
    operations.remove.extend(remove);
    operations.put.extend(put);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
}

/// All sets in order of their names, then all additions.
fn compile(operations: &HeaderOperations, direction: Direction, field: &Field<'_>, report: &mut Report) -> HeaderOps {
    let HeaderOperations { set, add, remove } = operations;
    let mut compiled = HeaderOps::default();
    let list = field.name("remove");
    for (i, name) in remove.iter().enumerate() {
        match check_name(name, direction, true) {
            Ok(()) => compiled.remove.push(name.to_ascii_lowercase()),
            Err(problem) => report.error(Code::SchemaValidationError, list.index(i), problem),
        }
    }
    for (list, values, replace) in [("set", set, true), ("add", add, false)] {
        let list = field.name(list);
        for (name, value) in values {
            if direction == Direction::Request && is_authority(name) {
                continue;
            }
            let field = list.name(name);
            if let Err(problem) = check_name(name, direction, false) {
                report.error(Code::SchemaValidationError, field, problem);
                continue;
            }
            match Format::parse(value) {
                Ok(value) => {
                    for command in value.unsupported() {
                        report.unsupported(field, format!("`{command}` is not supported yet: it is empty"));
                    }
                    compiled.put.push(HeaderPut { name: name.to_ascii_lowercase(), value, replace });
                }
                Err(error) => report.error(Code::SchemaValidationError, field, error.to_string()),
            }
        }
    }
    compiled
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// The authority of a request rewritten by its header operations; `set` counts before `add`.
fn authority(operations: &HeaderOperations) -> Option<String> {
    let mut values = operations.set.iter().chain(&operations.add);
    values.find(|(name, _)| is_authority(name)).map(|(_, value)| value.clone())
}

fn check_name(name: &str, direction: Direction, remove: bool) -> Result<(), &'static str> {
    let lower = name.to_ascii_lowercase();
    if lower.starts_with(':') || lower == "host" {
        return Err("pseudo headers and host can't be changed here");
    }
    if lower.is_empty() || !lower.bytes().all(is_token) {
        return Err("not a header name");
    }
    let frames = match lower.as_str() {
        "connection" | "te" | "upgrade" | "transfer-encoding" => true,
        // A response without it is sent in chunks.
        "content-length" => !(remove && direction == Direction::Response),
        _ => false,
    };
    if frames { Err("this header frames the message, and is the gateway's own business") } else { Ok(()) }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
