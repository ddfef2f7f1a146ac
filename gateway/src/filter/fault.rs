//! Injected faults.
//!
//! Source: `reference/networking.md` §3.12.

use std::time::Duration;

use config::snapshot::route::{Abort, Fault, Fraction};

use crate::response::Failure;
use crate::worker::Worker;

/// What the dice say for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Hold the request this long.
    pub delay: Option<Duration>,
    /// Then answer with this.
    pub abort: Option<Failure>,
}

/// Draws the faults of a request.
pub fn draw(fault: &Fault, worker: &Worker) -> Drawn {
    Drawn {
        delay: fault.delay.filter(|(_, share)| hits(*share, worker)).map(|(delay, _)| delay),
        abort: fault.abort.filter(|(_, share)| hits(*share, worker)).map(|(abort, _)| match abort {
            Abort::Http(status) => Failure::Fault { status, grpc_status: None },
            Abort::Grpc(code) => Failure::Fault { status: 200, grpc_status: Some(code) },
        }),
    }
}

/// Whether a request belongs to a share of all.
pub fn hits(share: Fraction, worker: &Worker) -> bool {
    share.0 >= 1_000_000 || (share.0 > 0 && worker.random_below(1_000_000) < u64::from(share.0))
}
