//! Opening a connection to an endpoint.

use std::borrow::Cow;
use std::io;

use config::snapshot::cluster::{Cluster, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

use super::cluster::Address;
use crate::response::Reset;
use crate::stream::Transport;

/// Connects to `address` within the cluster's connect timeout.
///
/// # Errors
/// [`Reset::ConnectionTimeout`], or [`Reset::ConnectionFailure`] with the transport's reason.
pub(super) async fn connect(cluster: &Cluster, address: &Address) -> Result<Transport, Reset> {
    let opened = async {
        match address {
            Address::Ip(address) => {
                let socket = TcpStream::connect(address).await?;
                // A socket that refuses these options still carries the request.
                let _ = socket.set_nodelay(true);
                if let Some(keepalive) = &cluster.limits.tcp_keepalive {
                    let _ = socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive_options(keepalive));
                }
                Ok(Transport::from(socket))
            }
            Address::UnixPath(path) => UnixStream::connect(path).await.map(Transport::from),
            Address::UnixAbstract(name) => UnixStream::connect(format!("\0{name}")).await.map(Transport::from),
        }
    };
    match tokio::time::timeout(cluster.connect_timeout, opened).await {
        Ok(Ok(transport)) => Ok(transport),
        Ok(Err(error)) => Err(Reset::ConnectionFailure(transport_reason(&error))),
        Err(_) => Err(Reset::ConnectionTimeout),
    }
}

fn keepalive_options(keepalive: &TcpKeepalive) -> socket2::TcpKeepalive {
    let mut options = socket2::TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        options = options.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        options = options.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        options = options.with_retries(probes);
    }
    options
}

/// `delayed_connect_error:_Connection_refused`, as Envoy writes it.
fn transport_reason(error: &io::Error) -> Cow<'static, str> {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return Cow::Borrowed("delayed_connect_error:_Connection_refused");
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    Cow::Owned(format!("delayed_connect_error:_{}", text.replace(' ', "_")))
}
