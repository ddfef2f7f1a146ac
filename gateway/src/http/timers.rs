//! The deadlines of one request. A timer that isn't configured costs nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

/// A deadline that may not be set.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Sets the deadline to `after` from now on, unless it is set already.
    pub fn start(&mut self, after: Duration) {
        if self.0.is_none() {
            self.0 = Some(Box::pin(tokio::time::sleep(after)));
        }
    }

    /// Takes the deadline away.
    pub fn stop(&mut self) {
        self.0 = None;
    }

    /// Ready once the deadline has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Some(sleep) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// What ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    Head,
    MaxDuration,
    Route,
    PerTry,
    Idle,
    Request,
}

/// The deadlines of a request.
#[derive(Debug, Default)]
pub(super) struct Timers {
    pub head: Timer,
    pub max_duration: Timer,
    pub route: Timer,
    pub per_try: Timer,
    pub request: Timer,
    idle: Option<Idle>,
}

/// An idle time that starts anew with every movement; the timer itself is only touched when it fires.
#[derive(Debug)]
pub(crate) struct Idle {
    limit: Duration,
    last: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    /// Begins at this moment.
    pub fn new(limit: Duration) -> Self {
        Self { limit, last: Instant::now(), timer: Box::pin(tokio::time::sleep(limit)) }
    }

    /// Something moved.
    pub fn moved(&mut self) {
        self.last = Instant::now();
    }

    /// Ready once nothing has moved for the whole time.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let left = self.limit.saturating_sub(self.last.elapsed());
            if left.is_zero() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(tokio::time::Instant::now() + left);
        }
        Poll::Pending
    }
}

impl Timers {
    /// Watches for `limit` without movement.
    pub fn watch_idle(&mut self, limit: Duration) {
        self.idle = Some(Idle::new(limit));
    }

    /// Something moved.
    pub fn moved(&mut self) {
        if let Some(idle) = &mut self.idle {
            idle.moved();
        }
    }

    /// Nothing is timed any more: the exchange has become a tunnel.
    pub fn stop_all(&mut self) {
        *self = Self::default();
    }

    /// The first deadline that has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        let timers = [
            (&mut self.head, Expired::Head),
            (&mut self.max_duration, Expired::MaxDuration),
            (&mut self.route, Expired::Route),
            (&mut self.per_try, Expired::PerTry),
            (&mut self.request, Expired::Request),
        ];
        for (timer, expired) in timers {
            if timer.poll(cx).is_ready() {
                return Poll::Ready(expired);
            }
        }
        match &mut self.idle {
            Some(idle) => idle.poll(cx).map(|()| Expired::Idle),
            None => Poll::Pending,
        }
    }
}
