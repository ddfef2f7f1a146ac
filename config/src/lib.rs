//! Istio YAML becomes diagnostics and an immutable [`snapshot::Snapshot`].
//!
//! ```text
//! files ──source──▶ documents ──parse──▶ resources ──accept──▶ generation ──compile──▶ Snapshot
//! ```
//!
//! This crate does no network I/O and, outside `source`, no file I/O. It knows neither Pingora nor tokio nor TLS.

pub mod accept;
pub mod compile;
pub mod credential;
pub mod diagnostic;
pub mod load;
pub mod parse;
pub mod resource;
pub mod snapshot;
pub mod source;
mod tls_lists;
mod validate;
