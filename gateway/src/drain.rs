//! The signal that a listener's connections should come to an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

const DRAINING: u8 = 1;
const CLOSING: u8 = 2;

/// One listener's drain state, shared by its accept loops and connections. Clones are handles of the same signal.
#[derive(Debug, Clone, Default)]
pub struct Drain(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    phase: AtomicU8,
    changed: Notify,
}

impl Drain {
    /// Connections are asked to end: `connection: close` or GOAWAY with the next response.
    pub fn start(&self) {
        self.advance(DRAINING);
    }

    /// The drain time is over: connections close at once.
    pub fn close(&self) {
        self.advance(CLOSING);
    }

    /// Whether connections should end with their next response. One atomic load.
    pub fn is_draining(&self) -> bool {
        self.0.phase.load(Ordering::Relaxed) >= DRAINING
    }

    /// Whether connections must close at once.
    pub fn is_closing(&self) -> bool {
        self.0.phase.load(Ordering::Relaxed) >= CLOSING
    }

    /// Completes when the drain starts; at once if it has.
    pub async fn draining(&self) {
        self.reached(DRAINING).await;
    }

    /// Completes when connections must close; at once if they must.
    pub async fn closing(&self) {
        self.reached(CLOSING).await;
    }

    fn advance(&self, phase: u8) {
        self.0.phase.fetch_max(phase, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    async fn reached(&self, phase: u8) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Registered before the check, so that no change in between is missed.
            changed.as_mut().enable();
            if self.0.phase.load(Ordering::Acquire) >= phase {
                return;
            }
            changed.await;
        }
    }
}
