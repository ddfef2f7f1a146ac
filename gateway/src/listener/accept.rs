//! From a listening socket to served connections, on one worker.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tracing::{debug, error, warn};

use super::connection;
use super::socket::{Accepted, AsyncSocket, Socket};
use crate::drain::Drain;
use crate::state::ListenerKey;
use crate::stream;
use crate::telemetry::metrics::ConnectionPermit;
use crate::worker::{Gateway, Worker};

/// Pause after the process or the machine ran out of descriptors or memory: connections that end meanwhile free some.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What the accept loops of one listener share.
#[derive(Debug)]
pub struct Acceptor {
    /// What all threads share.
    pub gateway: Arc<Gateway>,
    /// The listener.
    pub key: ListenerKey,
    /// Tells its connections to end.
    pub drain: Drain,
}

/// Accepts until `closing`, then takes what still waits in the queue, and closes the socket.
pub(crate) async fn accept(
    worker: Rc<Worker>,
    socket: Socket,
    acceptor: Arc<Acceptor>,
    mut closing: oneshot::Receiver<()>,
) {
    let socket = match socket.into_async() {
        Ok(socket) => socket,
        Err(error) => return error!(%error, port = acceptor.key.port, "a worker can't use its listening socket"),
    };
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut closing => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => admit(&worker, &acceptor, accepted),
            Err(error) if is_exhausted(&error) => {
                acceptor.gateway.telemetry.metrics.connections.accept_failed();
                warn!(%error, port = acceptor.key.port, "can't accept connections, retrying");
                tokio::select! {
                    _ = &mut closing => break,
                    () = tokio::time::sleep(EXHAUSTED_PAUSE) => {}
                }
            }
            // The connection died in the queue. The next one need not.
            Err(error) => debug!(%error, port = acceptor.key.port, "accept"),
        }
    }
    drain_queue(&worker, &acceptor, socket);
}

/// Closing a listening socket resets the connections in its queue, so they are accepted first.
fn drain_queue(worker: &Rc<Worker>, acceptor: &Arc<Acceptor>, socket: AsyncSocket) {
    let Ok(socket) = socket.into_blocking_queue() else { return };
    loop {
        match socket.accept_queued() {
            Ok(Some(accepted)) => admit(worker, acceptor, accepted),
            Ok(None) => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => return,
        }
    }
}

fn admit(worker: &Rc<Worker>, acceptor: &Arc<Acceptor>, accepted: Accepted) {
    let Some(permit) = acceptor.gateway.telemetry.metrics.connections.admit() else { return };
    let (socket, remote) = match accepted {
        Accepted::Tcp(stream, remote) => {
            // Responses are written whole; waiting for more would only delay them.
            let _ = stream.set_nodelay(true);
            (stream.into(), Some(remote))
        }
        Accepted::Unix(stream) => (stream.into(), None),
    };
    spawn_local(serve(Rc::clone(worker), Arc::clone(acceptor), socket, remote, permit));
}

/// Serves one connection. A panic ends this connection and nothing else.
async fn serve(
    worker: Rc<Worker>,
    acceptor: Arc<Acceptor>,
    socket: stream::Socket,
    remote: Option<SocketAddr>,
    permit: ConnectionPermit,
) {
    let gateway = Arc::clone(&worker.gateway);
    let served = AssertUnwindSafe(connection::serve(worker, acceptor, socket, remote)).catch_unwind().await;
    if served.is_err() {
        // The panic hook has logged where.
        gateway.telemetry.metrics.connections.panicked();
    }
    drop(permit);
}

/// Out of descriptors, buffers or memory.
fn is_exhausted(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOBUFS, ENOMEM of Linux.
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}
