//! Opening a connection to an endpoint.

use std::borrow::Cow;
use std::io;

use config::snapshot::cluster as snapshot;
use config::snapshot::cluster::TcpKeepalive;
use tokio::net::{TcpStream, UnixStream};

use super::cluster::{Address, Cluster, ClusterTls};
use crate::response::Reset;
use crate::stream::{Socket, Transport};
use crate::tls::client::Application;

/// Connects to `address` and shakes hands, if the cluster has TLS, within the cluster's connect timeout. `server_name`
/// is what [`Client::server_name`](crate::tls::client::Client::server_name) has made of the request.
///
/// # Errors
/// [`Reset::ConnectionTimeout`], or [`Reset::ConnectionFailure`] with the transport's reason.
pub async fn connect(
    cluster: &Cluster,
    address: &Address,
    application: Application,
    server_name: Option<&str>,
) -> Result<Transport, Reset> {
    let opened = async {
        let client = match &cluster.tls {
            ClusterTls::None => None,
            ClusterTls::Available(client) => Some(client),
            // As Envoy answers while it waits for a secret.
            ClusterTls::Unavailable(_) => return Err(Cow::Borrowed("TLS_error:_Secret_is_not_supplied_by_SDS")),
        };
        let socket = open(&cluster.config, address).await.map_err(|error| transport_reason(&error))?;
        let Some(client) = client else { return Ok(Transport::from(socket)) };
        let peer = match address {
            Address::Ip(address) => Some(address.ip()),
            Address::UnixPath(_) | Address::UnixAbstract(_) => None,
        };
        client.connect(socket, application, server_name, peer).await.map(Transport::from)
    };
    match tokio::time::timeout(cluster.config.connect_timeout, opened).await {
        Ok(opened) => opened.map_err(Reset::ConnectionFailure),
        Err(_) => Err(Reset::ConnectionTimeout),
    }
}

async fn open(cluster: &snapshot::Cluster, address: &Address) -> io::Result<Socket> {
    match address {
        Address::Ip(address) => {
            let socket = TcpStream::connect(address).await?;
            // A socket that refuses these options still carries the request.
            let _ = socket.set_nodelay(true);
            if let Some(keepalive) = &cluster.limits.tcp_keepalive {
                let _ = socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive_options(keepalive));
            }
            Ok(Socket::from(socket))
        }
        Address::UnixPath(path) => UnixStream::connect(path).await.map(Socket::from),
        Address::UnixAbstract(name) => UnixStream::connect(format!("\0{name}")).await.map(Socket::from),
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
