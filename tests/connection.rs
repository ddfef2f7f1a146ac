//! How the gateway behaves on a connection: networking.md §4.

mod codec;
mod edge;
mod path;
mod proxy_protocol;
mod timers;
