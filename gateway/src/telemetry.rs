//! What operators see of requests: metrics and the access log.

pub mod format;

use crate::request::Facts;
use crate::state::State;

/// The instruments of the gateway.
#[derive(Debug, Default)]
pub struct Telemetry {}

impl Telemetry {
    /// Counts a finished request and writes its access log line. `state` is the one that the request was served with.
    pub fn record(&self, state: &State, facts: &Facts) {
        let _ = (state, facts);
    }
}
