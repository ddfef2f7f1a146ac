//! What seals the sessions that clients may resume.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;

/// Session tickets of one filter chain, whose keys are made with the first ticket and replaced by the TLS library as time
/// passes. Thousands of chains that nobody connects to cost nothing.
#[derive(Debug, Default)]
pub struct Tickets(OnceLock<Option<Arc<dyn ProducesTickets>>>);

impl Tickets {
    /// `None`: the system has no random numbers, so there are no tickets.
    fn ticketer(&self) -> Option<&Arc<dyn ProducesTickets>> {
        self.0.get_or_init(|| Ticketer::new().ok()).as_ref()
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.ticketer().map_or(0, |ticketer| ticketer.lifetime())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.ticketer()?.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.ticketer()?.decrypt(cipher)
    }
}

/// How long after a client has shown its certificate it may resume that session, in seconds: as long as a ticket's key
/// lives. The TLS library gives new tickets for old ones and looks at no certificate again; without an end to it, a
/// session would outlive the certificate.
const MAX_AGE: u64 = 12 * 60 * 60;

/// The tickets of one connection whose client shows a certificate. They tell when it did.
#[derive(Debug)]
pub struct Authenticated {
    tickets: Arc<dyn ProducesTickets>,
    /// Seconds since the epoch.
    now: u64,
    /// When the client showed its certificate: now, or before the oldest of the tickets that it has brought.
    since: AtomicU64,
}

impl Authenticated {
    /// For a connection that begins at `now`, sealed by `tickets`.
    pub fn new(tickets: Arc<dyn ProducesTickets>, now: SystemTime) -> Self {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { tickets, now, since: AtomicU64::new(now) }
    }
}

impl ProducesTickets for Authenticated {
    fn enabled(&self) -> bool {
        self.tickets.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.tickets.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let since = self.since.load(Ordering::Relaxed);
        self.tickets.encrypt(&[&since.to_be_bytes(), plain].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let opened = self.tickets.decrypt(cipher)?;
        let (since, session) = opened.split_first_chunk()?;
        let since = u64::from_be_bytes(*since);
        if self.now.saturating_sub(since) > MAX_AGE {
            return None;
        }
        self.since.fetch_min(since, Ordering::Relaxed);
        Some(session.to_vec())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn tickets_are_opened_by_whoever_sealed_them() {
        let (one, other) = (Tickets::default(), Tickets::default());
        let sealed = one.encrypt(b"session").unwrap();
        assert_eq!(one.decrypt(&sealed).as_deref(), Some(&b"session"[..]));
        assert_eq!(other.decrypt(&sealed), None);
        assert!(one.lifetime() > 0);
    }

    #[test]
    fn a_session_does_not_live_on_by_being_resumed() {
        let tickets: Arc<dyn ProducesTickets> = Arc::new(Tickets::default());
        let at = |seconds| Authenticated::new(Arc::clone(&tickets), UNIX_EPOCH + Duration::from_secs(seconds));
        let start = 1_000_000;
        let first = at(start).encrypt(b"session").unwrap();
        let half = at(start + MAX_AGE / 2);
        assert_eq!(half.decrypt(&first).as_deref(), Some(&b"session"[..]));
        let second = half.encrypt(b"session").unwrap();
        assert!(at(start + MAX_AGE).decrypt(&second).is_some());
        assert!(at(start + MAX_AGE + 1).decrypt(&second).is_none());
        // Who has shown its certificate in between begins anew.
        let anew = at(start + MAX_AGE / 2).encrypt(b"session").unwrap();
        assert!(at(start + MAX_AGE + 1).decrypt(&anew).is_some());
    }
}
