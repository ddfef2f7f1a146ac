//! HTTP filters: what happens to a request between its route and the router, one file each.

pub mod cors;
pub mod fault;
pub mod headers;
