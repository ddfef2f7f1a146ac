//! Worker threads: one single-threaded runtime each, which accepts and serves its own connections.

use std::io;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ahash::AHashMap;
use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::listener::accept::{Acceptor, accept};
use crate::listener::socket::Socket;
use crate::worker::{Gateway, Worker};

/// The worker threads. They end when this is dropped, and their connections with them.
#[derive(Debug)]
pub struct Workers {
    commands: Vec<mpsc::UnboundedSender<Command>>,
    opened: AtomicU64,
}

/// Names a set of sockets, one for each worker, that were opened together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketsId(u64);

#[derive(Debug)]
enum Command {
    Open { id: SocketsId, socket: Socket, acceptor: Arc<Acceptor> },
    Close { id: SocketsId, closed: oneshot::Sender<()> },
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When the operating system refuses a thread or a runtime.
    pub fn start(gateway: &Arc<Gateway>, count: NonZeroUsize) -> io::Result<Self> {
        let mut commands = Vec::with_capacity(count.get());
        for index in 0..count.get() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (sender, receiver) = mpsc::unbounded_channel();
            let gateway = Arc::clone(gateway);
            thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || LocalSet::new().block_on(&runtime, work(gateway, receiver)))?;
            commands.push(sender);
        }
        Ok(Self { commands, opened: AtomicU64::new(0) })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.commands.len()
    }

    /// Accepts on `sockets`, of which every worker takes one.
    pub fn open(&self, sockets: Vec<Socket>, acceptor: &Arc<Acceptor>) -> SocketsId {
        let id = SocketsId(self.opened.fetch_add(1, Ordering::Relaxed));
        for (worker, socket) in self.commands.iter().zip(sockets) {
            // A worker that is gone has taken the process down with it.
            let _ = worker.send(Command::Open { id, socket, acceptor: Arc::clone(acceptor) });
        }
        id
    }

    /// Closes sockets after everything that waits in their queues has been accepted. Returns when they are closed.
    pub async fn close(&self, id: SocketsId) {
        let closed = self.commands.iter().map(|worker| {
            let (sender, receiver) = oneshot::channel();
            let _ = worker.send(Command::Close { id, closed: sender });
            receiver
        });
        join_all(closed.collect::<Vec<_>>()).await;
    }
}

/// The life of one worker.
async fn work(gateway: Arc<Gateway>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let worker = Rc::new(Worker::new(gateway));
    let sweeper = Rc::clone(&worker);
    let sweep = spawn_local(async move { sweeper.sweep().await });
    let mut accepting: AHashMap<SocketsId, Accepting> = AHashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Open { id, socket, acceptor } => {
                let (close, closing) = oneshot::channel();
                let task = spawn_local(accept(Rc::clone(&worker), socket, acceptor, closing));
                accepting.insert(id, Accepting { close, task });
            }
            Command::Close { id, closed } => {
                if let Some(Accepting { close, task }) = accepting.remove(&id) {
                    spawn_local(async move {
                        let _ = close.send(());
                        // The socket is closed whether the task has ended or panicked.
                        let _ = task.await;
                        let _ = closed.send(());
                    });
                }
            }
        }
    }
    sweep.abort();
}

struct Accepting {
    close: oneshot::Sender<()>,
    task: JoinHandle<()>,
}
