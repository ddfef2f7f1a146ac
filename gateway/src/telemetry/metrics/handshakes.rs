//! What becomes of TLS handshakes with clients.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Page;

/// TLS handshakes with clients.
#[derive(Debug, Default)]
pub struct Handshakes {
    completed: AtomicU64,
    resumed: AtomicU64,
    failed: [AtomicU64; HandshakeFailure::ALL.len()],
}

/// Why a client got no TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// It sent no TLS.
    NotTls,
    /// No filter chain has its SNI.
    NoFilterChain,
    /// The chain has no usable certificate or CA.
    NoCredential,
    /// No version of TLS in common.
    Version,
    /// It had to show a certificate, and has none.
    NoClientCertificate,
    /// Its certificate was refused.
    ClientCertificate,
    /// It didn't like what we sent.
    RefusedByClient,
    /// It went away.
    Closed,
    /// It took too long.
    Timeout,
    /// Too many handshakes were under way, and it was the oldest.
    Cut,
    /// Nothing else in common, or a protocol error.
    Protocol,
}

impl HandshakeFailure {
    const ALL: [Self; 11] = [
        Self::NotTls,
        Self::NoFilterChain,
        Self::NoCredential,
        Self::Version,
        Self::NoClientCertificate,
        Self::ClientCertificate,
        Self::RefusedByClient,
        Self::Closed,
        Self::Timeout,
        Self::Cut,
        Self::Protocol,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::NoFilterChain => "no_filter_chain",
            Self::NoCredential => "no_credential",
            Self::Version => "version",
            Self::NoClientCertificate => "no_client_certificate",
            Self::ClientCertificate => "client_certificate",
            Self::RefusedByClient => "refused_by_client",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Cut => "cut",
            Self::Protocol => "protocol",
        }
    }
}

impl Handshakes {
    /// Counts a complete handshake.
    pub fn completed(&self, resumed: bool) {
        self.completed.fetch_add(1, Ordering::Relaxed);
        if resumed {
            self.resumed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts one that came to nothing.
    pub fn failed(&self, failure: HandshakeFailure) {
        self.failed[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn expose(&self, page: &mut Page) {
        page.counter("fairlead_tls_handshakes_total", &[], self.completed.load(Ordering::Relaxed));
        page.counter("fairlead_tls_handshakes_resumed_total", &[], self.resumed.load(Ordering::Relaxed));
        for failure in HandshakeFailure::ALL {
            let count = self.failed[failure as usize].load(Ordering::Relaxed);
            page.counter("fairlead_tls_handshake_failures_total", &[("reason", failure.label())], count);
        }
    }
}
