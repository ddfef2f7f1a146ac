//! The signal that a listener's connections should come to an end.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;

use tokio::sync::Notify;

const DRAINING: u8 = 1;
const CLOSING: u8 = 2;

/// The drain state of a listener or a filter chain, shared by accept loops and connections. Clones are handles of the
/// same signal.
#[derive(Debug, Clone, Default)]
pub struct Drain(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    phase: AtomicU8,
    changed: Notify,
    /// Whoever drains when this does.
    children: Mutex<Vec<Weak<Inner>>>,
}

impl Drain {
    /// A signal of its own that also follows this one.
    pub fn child(&self) -> Self {
        let child = Self::default();
        // Whoever advances does so before it looks for children.
        let mut children = self.0.children.lock().unwrap_or_else(PoisonError::into_inner);
        if children.len() == children.capacity() {
            children.retain(|child| child.strong_count() > 0);
        }
        children.push(Arc::downgrade(&child.0));
        child.0.phase.store(self.0.phase.load(Ordering::Acquire), Ordering::Release);
        drop(children);
        child
    }

    /// Whether both are handles of one signal.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

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

    /// Runs `future` until it is done or connections must close; `None` in the latter case, with the future dropped.
    ///
    /// The signal is looked at once and then only while a drain is under way, so that serving takes no lock.
    pub async fn until_closing<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut closing = pin!(self.reached(CLOSING));
        let mut registered = false;
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            if !registered || self.is_draining() {
                registered = true;
                return closing.as_mut().poll(cx).map(|()| None);
            }
            Poll::Pending
        })
        .await
    }

    fn advance(&self, phase: u8) {
        self.0.phase.fetch_max(phase, Ordering::Release);
        self.0.changed.notify_waiters();
        let children: Vec<Arc<Inner>> = {
            let children = self.0.children.lock().unwrap_or_else(PoisonError::into_inner);
            children.iter().filter_map(Weak::upgrade).collect()
        };
        for child in children {
            Self(child).advance(phase);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_lets_work_go_on_and_a_close_ends_it() {
        let drain = Drain::default();
        assert_eq!(drain.until_closing(async { 1 }).await, Some(1));
        let other = drain.clone();
        let work = tokio::spawn(async move { other.until_closing(std::future::pending::<()>()).await });
        tokio::task::yield_now().await;
        drain.start();
        tokio::task::yield_now().await;
        assert!(drain.is_draining() && !work.is_finished());
        drain.close();
        assert_eq!(work.await.ok(), Some(None));
    }

    #[test]
    fn a_child_follows_and_drains_alone() {
        let listener = Drain::default();
        let (first, second) = (listener.child(), listener.child());
        first.start();
        assert!(first.is_draining() && !second.is_draining() && !listener.is_draining());
        listener.start();
        assert!(second.is_draining() && listener.child().is_draining());
        listener.close();
        assert!(first.is_closing() && second.is_closing());
    }
}
