//! What operators see of requests and connections: metrics and the access log.

pub mod access_log;
pub mod format;
pub mod metrics;

use crate::request::Facts;
use crate::state::State;
use access_log::AccessLogger;
use metrics::{Metrics, Page, Source};

/// The instruments of the gateway.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// Counters and histograms.
    pub metrics: Metrics,
    /// Where lines go.
    pub access_log: AccessLogger,
}

impl Telemetry {
    /// Instruments that name this gateway `source`.
    pub fn new(source: &Source, access_log: AccessLogger) -> Self {
        Self { metrics: Metrics::new(source), access_log }
    }

    /// Counts a finished request and writes its access log line. `state` is the one that the request was served with.
    pub fn record(&self, state: &State, facts: &Facts) {
        self.metrics.requests.record(facts);
        self.log(state, facts);
    }

    /// Writes the access log line of a request or of a raw TCP connection.
    pub fn log(&self, state: &State, facts: &Facts) {
        if let Some(log) = &state.snapshot.mesh.access_log {
            self.access_log.write(log, facts);
        }
    }

    /// Writes everything that is counted here to `page`.
    pub fn expose(&self, page: &mut Page) {
        self.metrics.expose(page);
        page.counter("fairlead_access_log_lines_dropped_total", &[], self.access_log.dropped());
    }
}
