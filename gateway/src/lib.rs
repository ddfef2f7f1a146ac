//! Fairlead's data plane: listeners, HTTP, forwarding, telemetry, reload and the command line.

pub mod drain;
pub mod echo;
pub mod filter;
pub mod http;
pub mod listener;
pub mod request;
pub mod response;
pub mod server;
pub mod state;
pub mod stream;
pub mod telemetry;
pub mod upstream;
pub mod worker;
