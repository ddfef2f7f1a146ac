//! Listening sockets: TCP with SO_REUSEPORT, one for each worker, and unix sockets, which workers share.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, SockAddr, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Connections that may wait in the queue of one socket; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A listening socket that no runtime knows yet.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// Unix, by path or in the abstract name space.
    Unix(unix::UnixListener),
}

/// Where a listener wants to listen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// TCP; port 0 lets the kernel choose.
    Ip(IpAddr, u16),
    /// Unix socket file.
    UnixPath(PathBuf),
    /// Linux's abstract name space.
    UnixAbstract(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip, port) => SocketAddr::new(*ip, *port).fmt(f),
            Self::UnixPath(path) => write!(f, "unix://{}", path.display()),
            Self::UnixAbstract(name) => write!(f, "unix://@{name}"),
        }
    }
}

/// Opens `count` sockets at `address`. With port 0 the address that comes back has the port that the kernel chose.
///
/// `shared` says that this process listens on that port already, at another address: then other processes can't be told
/// from ourselves, and no check is made.
///
/// # Errors
/// Whatever the operating system says; `AddrInUse` also for a port on which another process listens with SO_REUSEPORT.
pub(super) fn open(address: &Address, count: usize, shared: bool) -> io::Result<(Address, Vec<Socket>)> {
    match address {
        Address::Ip(ip, port) => {
            if *port != 0 && !shared {
                refuse_strangers(SocketAddr::new(*ip, *port))?;
            }
            let mut bound = SocketAddr::new(*ip, *port);
            let mut sockets = Vec::with_capacity(count);
            for _ in 0..count {
                let socket = tcp(bound)?;
                bound = socket.local_addr()?;
                sockets.push(Socket::Tcp(socket));
            }
            Ok((Address::Ip(bound.ip(), bound.port()), sockets))
        }
        Address::UnixPath(path) => {
            remove_stale(path)?;
            Ok((address.clone(), copies(unix::UnixListener::bind(path)?, count)?))
        }
        Address::UnixAbstract(name) => {
            let listener = unix::UnixListener::bind_addr(&unix::SocketAddr::from_abstract_name(name)?)?;
            Ok((address.clone(), copies(listener, count)?))
        }
    }
}

/// Removes the file of a unix socket that is closed. A file that is gone already is no matter.
pub(super) fn remove_file(address: &Address) {
    if let Address::UnixPath(path) = address {
        let _ = std::fs::remove_file(path);
    }
}

fn tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = unbound(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn unbound(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for old connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// With SO_REUSEPORT a second process of the same user could listen on the same port, and each would get half of the
/// connections. A socket without the option can't be bound then.
fn refuse_strangers(address: SocketAddr) -> io::Result<()> {
    unbound(address)?.bind(&SockAddr::from(address))
}

/// A socket file that nobody listens on is in the way and goes; one that answers stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in the way"));
    }
    match unix::UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

fn copies(listener: unix::UnixListener, count: usize) -> io::Result<Vec<Socket>> {
    listener.set_nonblocking(true)?;
    let mut sockets = Vec::with_capacity(count);
    for _ in 1..count {
        sockets.push(Socket::Unix(listener.try_clone()?));
    }
    sockets.push(Socket::Unix(listener));
    Ok(sockets)
}

/// An accepted connection.
pub(super) enum Accepted {
    /// With the peer's address.
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// A listening socket in the runtime of a worker.
pub(super) enum AsyncSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A listening socket that has left its runtime, to empty its queue.
pub(super) struct Queue(Socket);

impl Socket {
    pub(super) fn into_async(self) -> io::Result<AsyncSocket> {
        Ok(match self {
            Self::Tcp(socket) => AsyncSocket::Tcp(TcpListener::from_std(socket)?),
            Self::Unix(socket) => AsyncSocket::Unix(UnixListener::from_std(socket)?),
        })
    }
}

impl AsyncSocket {
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(socket) => socket.accept().await.map(|(stream, remote)| Accepted::Tcp(stream, remote)),
            Self::Unix(socket) => socket.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }

    pub(super) fn into_blocking_queue(self) -> io::Result<Queue> {
        Ok(Queue(match self {
            Self::Tcp(socket) => Socket::Tcp(socket.into_std()?),
            Self::Unix(socket) => Socket::Unix(socket.into_std()?),
        }))
    }
}

impl Queue {
    /// The next connection in the queue; `None` when it is empty. Never waits.
    pub(super) fn accept_queued(&self) -> io::Result<Option<Accepted>> {
        let accepted = match &self.0 {
            Socket::Tcp(socket) => socket.accept().and_then(|(stream, remote)| {
                stream.set_nonblocking(true)?;
                Ok(Accepted::Tcp(TcpStream::from_std(stream)?, remote))
            }),
            Socket::Unix(socket) => socket.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(Accepted::Unix(UnixStream::from_std(stream)?))
            }),
        };
        match accepted {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn workers_share_the_port_that_the_kernel_chose() {
        let (address, sockets) = open(&Address::Ip(LOOPBACK, 0), 3, false).unwrap();
        assert_eq!(sockets.len(), 3);
        let Address::Ip(_, port) = address else { panic!("{address}") };
        for socket in &sockets {
            let Socket::Tcp(socket) = socket else { panic!("{socket:?}") };
            assert_eq!(socket.local_addr().unwrap().port(), port);
        }
    }

    #[test]
    fn a_port_of_another_gateway_is_in_use_although_it_has_reuse_port() {
        let (address, _sockets) = open(&Address::Ip(LOOPBACK, 0), 1, false).unwrap();
        assert_eq!(open(&address, 1, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(open(&address, 1, true).is_ok());
    }

    #[test]
    fn stale_socket_files_are_replaced_and_others_respected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.sock");
        let address = Address::UnixPath(path.clone());
        let first = open(&address, 2, false).unwrap();
        assert_eq!(open(&address, 1, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists());
        let second = open(&address, 1, false).unwrap();
        drop(second);
        remove_file(&address);
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(open(&address, 1, false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn abstract_names_need_no_file() {
        let address = Address::UnixAbstract(format!("fairlead-test-{}", std::process::id()));
        let (_, sockets) = open(&address, 2, false).unwrap();
        assert_eq!(open(&address, 1, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(sockets);
        assert!(open(&address, 1, false).is_ok());
    }
}
