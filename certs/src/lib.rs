//! Credentials for TLS: bytes in, rustls objects out.
//!
//! - [`credential`]: a certificate chain with its key, as the gateway shows it to peers.
//! - [`authority`]: trust anchors and CRLs, which [`verify`] checks peers with.
//! - [`certificate`]: what a certificate says, also as an element of `X-Forwarded-Client-Cert`.
//! - [`choice`]: which of a server's certificates a client gets.
//! - [`sni`]: which server a client asks for.
//!
//! This crate knows neither Istio's resources nor the runtime, and holds nothing global but the operating system's
//! roots. Private keys leave it in no form: no error, no `Debug`, no getter shows them.
//!
//! Source: `reference/security.md` §4, `reference/networking.md` §2.6, §2.7, §5.7.

pub mod authority;
pub mod certificate;
pub mod choice;
pub mod credential;
mod error;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod mutations;
mod ocsp;
mod pem;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod pki;
mod signature;
pub mod sni;
pub mod verify;

pub use error::Error;

/// The entries of a Secret, a ConfigMap or a directory that one is mounted as.
pub trait Entries {
    /// The value of `key`.
    fn get(&self, key: &str) -> Option<&[u8]>;
    /// The keys, in any order.
    fn keys(&self) -> Vec<&str>;
}
