//! What a route does with a request: networking.md §3.7-3.9, §3.15 and §3.16.

mod destinations;
mod direct_response;
mod headers;
mod redirect;
mod rewrite;
