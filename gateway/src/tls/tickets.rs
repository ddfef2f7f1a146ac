//! What seals the sessions that clients may resume.

use std::sync::{Arc, OnceLock};

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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_opened_by_whoever_sealed_them() {
        let (one, other) = (Tickets::default(), Tickets::default());
        let sealed = one.encrypt(b"session").unwrap();
        assert_eq!(one.decrypt(&sealed).as_deref(), Some(&b"session"[..]));
        assert_eq!(other.decrypt(&sealed), None);
        assert!(one.lifetime() > 0);
    }
}
