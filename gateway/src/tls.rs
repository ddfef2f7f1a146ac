//! TLS with clients and upstreams: credentials, handshakes, settings.

pub mod credentials;
