//! PINGs on HTTP/2 connections with upstreams: kept alive where that is configured, and asked for a sign of life when a
//! request on them was in vain. A peer that has gone without a word is found out this way; nothing else would, as long
//! as there is no traffic but ours.
//!
//! Source: DestinationRule `connectionPool.http.http2KeepAlive`; RFC 9113 §6.7.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use config::snapshot::cluster::Http2Keepalive;
use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

use super::cluster::Usage;

/// How long a peer whose request was in vain may take to answer a PING, unless the configuration says otherwise.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// PINGs that doubt may send without a response after them, and how far apart they must be beyond that.
///
/// Servers count PINGs and close connections that send too many. grpc-go, the strictest of the common ones, forgives two
/// that come within 5 minutes of the one before, and starts afresh whenever it sends a header or data. So a connection
/// that has worked and hangs is found out at the first request in vain, and one whose peer answers PINGs and nothing else
/// is asked again every 5 minutes.
///
/// Source: grpc-go `keepalive.EnforcementPolicy.MinTime`, and `handlePing` of its server transport.
const MAX_IN_A_ROW: u32 = 2;
const MIN_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Whether a connection is in doubt. Shared by the requests on it and by whoever drives it.
#[derive(Debug)]
pub(super) struct Doubt {
    asked: Cell<bool>,
    driver: RefCell<Option<Waker>>,
    /// Doubts since the last response.
    in_a_row: Cell<u32>,
    last: Cell<Option<Instant>>,
    /// The cluster, some of whose requests may wait for the doubt to end.
    usage: Arc<Usage>,
}

impl Doubt {
    pub fn new(usage: Arc<Usage>) -> Self {
        Self {
            asked: Cell::new(false),
            driver: RefCell::default(),
            in_a_row: Cell::new(0),
            last: Cell::new(None),
            usage,
        }
    }

    /// Asks the peer for a sign of life, unless it was asked too often. Until it comes, no new request should begin on the
    /// connection.
    pub fn raise(&self) {
        let now = Instant::now();
        let is_due = self.last.get().is_none_or(|last| now.duration_since(last) >= MIN_INTERVAL);
        if self.asked.get() || (self.in_a_row.get() >= MAX_IN_A_ROW && !is_due) {
            return;
        }
        self.in_a_row.set(self.in_a_row.get().saturating_add(1));
        self.last.set(Some(now));
        self.asked.set(true);
        if let Some(driver) = &*self.driver.borrow() {
            driver.wake_by_ref();
        }
    }

    /// Takes note of a response.
    pub fn answered(&self) {
        self.in_a_row.set(0);
    }

    /// Whether a sign of life is awaited.
    pub fn is_raised(&self) -> bool {
        self.asked.get()
    }

    /// Ends the doubt; those who wait for the connection may use it again.
    fn clear(&self) {
        if self.asked.replace(false) {
            self.usage.wake_waiting();
        }
    }
}

/// The PINGs of one connection, in the hand of whoever drives it.
pub(super) struct Pings {
    pings: Option<PingPong>,
    keepalive: Option<Http2Keepalive>,
    /// When the next one is sent, or the answer to the last one must be there.
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl Pings {
    pub fn new(pings: Option<PingPong>, keepalive: Option<Http2Keepalive>) -> Self {
        let timer = keepalive.map(|keepalive| Box::pin(sleep_until(Instant::now() + keepalive.interval)));
        Self { pings, keepalive, timer, is_waiting: false }
    }

    /// Ready when the peer has not answered in time.
    pub fn poll(&mut self, cx: &mut Context<'_>, doubt: &Doubt) -> Poll<()> {
        let known = doubt.driver.borrow().as_ref().is_some_and(|driver| driver.will_wake(cx.waker()));
        if !known {
            *doubt.driver.borrow_mut() = Some(cx.waker().clone());
        }
        let Some(pings) = &mut self.pings else {
            doubt.clear();
            return Poll::Pending;
        };
        loop {
            if self.is_waiting && pings.poll_pong(cx).is_ready() {
                self.is_waiting = false;
                doubt.clear();
                let next = self.keepalive.map(|keepalive| Instant::now() + keepalive.interval);
                self.timer = next.map(|next| Box::pin(sleep_until(next)));
            }
            let is_over = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
            if self.is_waiting {
                return if is_over { Poll::Ready(()) } else { Poll::Pending };
            }
            if !is_over && !doubt.is_raised() {
                return Poll::Pending;
            }
            // Nothing is sent on a connection that has ended; its driver sees that by itself.
            if pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Pending;
            }
            self.is_waiting = true;
            let timeout = self.keepalive.map_or(SIGN_OF_LIFE, |keepalive| keepalive.timeout);
            self.timer = Some(Box::pin(sleep_until(Instant::now() + timeout)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::Ordering;

    use futures::FutureExt;

    use super::*;

    /// Whether one more request in vain makes a PING.
    fn asks(doubt: &Doubt) -> bool {
        doubt.raise();
        let asks = doubt.is_raised();
        doubt.clear();
        asks
    }

    #[tokio::test(start_paused = true)]
    async fn pings_are_few_without_a_response() {
        let doubt = Doubt::new(Arc::default());
        assert_eq!([0; 4].map(|_| asks(&doubt)), [true, true, false, false]);
        tokio::time::advance(MIN_INTERVAL).await;
        assert_eq!([0; 2].map(|_| asks(&doubt)), [true, false]);
        doubt.answered();
        assert_eq!([0; 3].map(|_| asks(&doubt)), [true, true, false]);
    }

    #[tokio::test]
    async fn the_end_of_a_doubt_wakes_those_who_wait() {
        let usage = Arc::<Usage>::default();
        let doubt = Doubt::new(Arc::clone(&usage));
        usage.pending.store(1, Ordering::SeqCst);
        let mut freed = pin!(usage.freed.notified());
        doubt.clear();
        assert_eq!(freed.as_mut().now_or_never(), None, "there was none");
        doubt.raise();
        assert_eq!(freed.as_mut().now_or_never(), None);
        doubt.clear();
        assert_eq!(freed.now_or_never(), Some(()));
    }
}
