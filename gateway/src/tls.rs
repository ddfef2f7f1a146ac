//! TLS with clients and upstreams: credentials, handshakes, settings.

pub mod client;
pub mod credentials;
pub mod handshakes;
pub mod hello;
pub mod parameters;
pub mod server;
pub mod tickets;
