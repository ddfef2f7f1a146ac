//! How the handshakes of a worker share it: who may be under way, and whose turn it is to compute.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

/// How a gateway treats clients that have not done their handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// Handshakes under way on one worker; one more cuts the oldest.
    pub concurrent: usize,
    /// To the end of the handshake, from the accept or, where there is one, the header of the PROXY protocol; `None`: no
    /// limit.
    pub timeout: Option<Duration>,
}

impl Default for HandshakeLimits {
    /// The time is Istio's (`PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT`).
    fn default() -> Self {
        Self { concurrent: 4096, timeout: Some(Duration::from_secs(15)) }
    }
}

/// The handshakes that are under way on one worker.
#[derive(Debug)]
pub struct Handshakes {
    limit: usize,
    begun: Cell<u64>,
    under_way: RefCell<BTreeMap<u64, oneshot::Sender<()>>>,
    turn: Semaphore,
}

impl Handshakes {
    /// At most `limit` at once, and at least one.
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), begun: Cell::new(0), under_way: RefCell::default(), turn: Semaphore::new(1) }
    }

    /// Counts a connection as under way for as long as its place lives. What comes with it resolves when the place is
    /// taken away for a newer connection; whether that has just happened to another one.
    pub fn begin(&self) -> (Place<'_>, oneshot::Receiver<()>, bool) {
        let mut under_way = self.under_way.borrow_mut();
        let full = under_way.len() >= self.limit;
        if full && let Some((_, oldest)) = under_way.pop_first() {
            // It may have ended just now.
            let _ = oldest.send(());
        }
        let number = self.begun.get();
        self.begun.set(number + 1);
        let (cut, receiver) = oneshot::channel();
        under_way.insert(number, cut);
        (Place { handshakes: self, number }, receiver, full)
    }

    /// Waits for the turn to compute. To be held until other work of the worker has been looked at: signatures take
    /// milliseconds, and a burst of handshakes must not stop the requests of others for longer than one of them.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.turn.acquire().await.ok()
    }
}

/// One handshake under way.
#[derive(Debug)]
pub struct Place<'h> {
    handshakes: &'h Handshakes,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.handshakes.under_way.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_too_many_cuts_the_oldest() {
        let handshakes = Handshakes::new(2);
        let (first, mut first_cut, full) = handshakes.begin();
        assert!(!full);
        let (_second, mut second_cut, full) = handshakes.begin();
        assert!(!full);
        let (_third, mut third_cut, full) = handshakes.begin();
        assert!(full && first_cut.try_recv().is_ok() && second_cut.try_recv().is_err());
        drop(first);
        let (_fourth, _fourth_cut, full) = handshakes.begin();
        assert!(full && second_cut.try_recv().is_ok() && third_cut.try_recv().is_err());
    }

    #[test]
    fn a_place_is_free_when_its_handshake_is_over() {
        let handshakes = Handshakes::new(1);
        let (first, _cut, _) = handshakes.begin();
        drop(first);
        assert!(!handshakes.begin().2);
    }
}
