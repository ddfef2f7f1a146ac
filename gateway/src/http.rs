//! HTTP connections: codecs, connection loops and the life of a request.

pub mod headers;

use std::rc::Rc;

use crate::drain::Drain;
use crate::request::ConnectionFacts;
use crate::state::ListenerKey;
use crate::stream::Transport;
use crate::worker::Worker;

/// One accepted connection of an HTTP listener.
#[derive(Debug)]
pub struct Downstream {
    /// The socket.
    pub transport: Transport,
    /// The listener that accepted it.
    pub listener: ListenerKey,
    /// Addresses and so on.
    pub facts: Rc<ConnectionFacts>,
    /// The listener's drain signal.
    pub drain: Drain,
}

/// Serves a plaintext connection, HTTP/1.1 or HTTP/2 by its first bytes, until it ends.
pub async fn serve(worker: Rc<Worker>, downstream: Downstream) {
    let _ = (worker, downstream);
}
