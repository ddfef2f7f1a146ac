//! PINGs on HTTP/2 connections with upstreams: kept alive where that is configured, and asked for a sign of life when a
//! request on them was in vain. A peer that has gone without a word is found out this way; nothing else would, as long
//! as there is no traffic but ours.
//!
//! Source: DestinationRule `connectionPool.http.http2KeepAlive`; RFC 9113 §6.7.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use config::snapshot::cluster::Http2Keepalive;
use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a peer whose request was in vain may take to answer a PING, unless the configuration says otherwise.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Whether a connection is in doubt. Shared by the requests on it and by whoever drives it.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    asked: Cell<bool>,
    driver: RefCell<Option<Waker>>,
}

impl Doubt {
    /// Asks the peer for a sign of life. Until it comes, no new request should begin on the connection.
    pub fn raise(&self) {
        if !self.asked.replace(true)
            && let Some(driver) = &*self.driver.borrow()
        {
            driver.wake_by_ref();
        }
    }

    /// Whether a sign of life is awaited.
    pub fn is_raised(&self) -> bool {
        self.asked.get()
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
            doubt.asked.set(false);
            return Poll::Pending;
        };
        loop {
            if self.is_waiting && pings.poll_pong(cx).is_ready() {
                self.is_waiting = false;
                doubt.asked.set(false);
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
