//! What is logged about requests.

use std::sync::Arc;

use super::format::Format;

/// An access log: where it goes is the gateway's business (stdout), how a line looks is told here.
#[derive(Debug, Clone, PartialEq)]
pub enum AccessLog {
    /// One line of text for each request, its newline included. Missing values print as `-`.
    Text(Arc<Format>),
    /// One JSON object for each request: key and value format, in byte order of the keys, as Envoy writes them.
    Json(Arc<Vec<(String, Format)>>),
}
