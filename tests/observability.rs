//! What operators see: access log, metrics, readiness, the state of the configuration.

mod access_log;
mod metrics;
mod status;
