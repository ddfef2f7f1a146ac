//! Listeners: after a reload the sockets follow the snapshot, and only what changed is touched.

pub mod accept;
pub mod chains;
mod connection;
pub mod proxy_protocol;
pub mod socket;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use config::snapshot::listener::Bind;
use futures::future::join_all;
use serde::Serialize;
use tracing::{info, warn};

use crate::drain::Drain;
use crate::server::{SocketsId, Workers};
use crate::state::{ListenerKey, State};
use crate::worker::Gateway;
use accept::Acceptor;
use chains::Chains;
use socket::Address;

/// How often the kernel is asked for another port when the one that it chose is taken at a second address.
const PORT_CHOICES: usize = 16;

/// Every listener that is open or should be.
#[derive(Debug)]
pub struct Listeners {
    gateway: Arc<Gateway>,
    workers: Workers,
    default_addresses: DefaultAddresses,
    active: BTreeMap<ListenerKey, Active>,
    /// Drains of removed listeners whose connections may still be there.
    retired: Vec<Drain>,
    report: Arc<ArcSwap<Vec<ListenerReport>>>,
}

/// The addresses of listeners without `bind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultAddresses {
    /// `0.0.0.0` and `::`, the latter only where there is IPv6.
    Any,
    /// As `--bind` says.
    Given(Vec<IpAddr>),
}

/// What operators see of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerReport {
    /// The port as the Gateway says; 0 for unix sockets.
    pub port: u16,
    /// The addresses on which it accepts.
    pub addresses: Vec<String>,
    /// The addresses that could not be bound; tried again every second.
    pub failures: Vec<BindFailure>,
}

/// An address that could not be bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BindFailure {
    /// The address.
    pub address: String,
    /// What the operating system says, and what helps.
    pub error: String,
}

#[derive(Debug)]
struct Active {
    /// As of the last reload.
    chains: Arc<Chains>,
    acceptor: Arc<Acceptor>,
    places: Vec<Place>,
}

/// The sockets at an address, or why there are none.
type Opened = Result<(Address, Vec<socket::Socket>), (Address, io::Error)>;

/// One address of a listener.
#[derive(Debug)]
enum Place {
    Bound { sockets: SocketsId, address: Address },
    Failed { address: Address, error: String },
}

impl Listeners {
    /// None yet.
    pub fn new(gateway: Arc<Gateway>, workers: Workers, default_addresses: DefaultAddresses) -> Self {
        Self {
            gateway,
            workers,
            default_addresses,
            active: BTreeMap::new(),
            retired: Vec::new(),
            report: Arc::default(),
        }
    }

    /// What is open at the moment; follows every change.
    pub fn report(&self) -> Arc<ArcSwap<Vec<ListenerReport>>> {
        Arc::clone(&self.report)
    }

    /// Numbers of the ports on which they accept.
    pub fn ports(&self) -> Vec<u16> {
        let report = self.report.load();
        let addresses = report.iter().flat_map(|listener| &listener.addresses);
        addresses
            .filter_map(|address| address.parse::<std::net::SocketAddr>().ok())
            .map(|address| address.port())
            .collect()
    }

    /// Opens the listeners that `state` has and closes those that it hasn't; whether there were any. The connections of
    /// a removed listener or filter chain are asked to end at once and cut when the drain time is over.
    pub async fn follow(&mut self, state: &State) -> bool {
        let removed = self.active.extract_if(.., |key, active| {
            state.listeners.get(key).is_none_or(|chains| !chains.drain.is_same(&active.acceptor.drain))
        });
        let removed: Vec<Active> = removed.map(|(_, active)| active).collect();
        // The old sockets are closed before their ports are opened again.
        join_all(removed.iter().map(|active| self.close(active))).await;
        let mut changed = !removed.is_empty();
        for active in removed {
            info!(listener = %Name(&active.acceptor.key), "listener removed");
            self.retire(active.acceptor.drain.clone(), state.snapshot.mesh.drain);
        }
        let mut given_up = Vec::new();
        for (key, active) in &mut self.active {
            if let Some(chains) = state.listeners.get(key)
                && !Arc::ptr_eq(chains, &active.chains)
            {
                given_up.extend(active.chains.given_up(chains).cloned());
                active.chains = Arc::clone(chains);
            }
        }
        for drain in given_up {
            drain.start();
            self.retire(drain, state.snapshot.mesh.drain);
        }
        let mut added: Vec<(&ListenerKey, &Arc<Chains>)> =
            state.listeners.iter().filter(|(key, _)| !self.active.contains_key(key)).collect();
        added.sort_unstable_by_key(|(key, _)| *key);
        for (key, chains) in added {
            changed = true;
            let active = self.open(key.clone(), chains);
            self.active.insert(key.clone(), active);
        }
        if changed {
            self.publish();
        }
        changed
    }

    /// Whether an address waits to be bound.
    pub fn is_failing(&self) -> bool {
        self.active.values().flat_map(|active| &active.places).any(|place| matches!(place, Place::Failed { .. }))
    }

    /// Tries again to bind what could not be bound; whether something could.
    pub fn retry(&mut self) -> bool {
        let keys: Vec<ListenerKey> = self.active.keys().cloned().collect();
        let mut changed = false;
        for key in keys {
            let Some(mut active) = self.active.remove(&key) else { continue };
            for place in &mut active.places {
                if let Place::Failed { address, .. } = place
                    && let Ok((address, sockets)) = self.open_one(address, self.is_ours(address))
                {
                    info!(listener = %Name(&key), %address, "listening");
                    *place = Place::Bound { sockets: self.workers.open(sockets, &active.acceptor), address };
                    changed = true;
                }
            }
            self.active.insert(key, active);
        }
        if changed {
            self.publish();
        }
        changed
    }

    /// Asks all connections to end. New ones are still accepted, and asked as well.
    pub fn drain(&self) {
        for active in self.active.values() {
            active.acceptor.drain.start();
        }
    }

    /// Cuts all connections and removes the files of unix sockets.
    pub fn shut_down(&mut self) {
        for active in self.active.values() {
            active.acceptor.drain.close();
            for place in &active.places {
                if let Place::Bound { address, .. } = place {
                    socket::remove_file(address);
                }
            }
        }
        for drain in self.retired.drain(..) {
            drain.close();
        }
    }

    fn open(&self, key: ListenerKey, chains: &Arc<Chains>) -> Active {
        let target_port = chains.config.target_port;
        let acceptor =
            Arc::new(Acceptor { gateway: Arc::clone(&self.gateway), key: key.clone(), drain: chains.drain.clone() });
        let addresses = match key.bind {
            Bind::Ip(ip) => vec![Address::Ip(ip, target_port)],
            Bind::UnixPath(path) => vec![Address::UnixPath(path)],
            Bind::UnixAbstract(name) => vec![Address::UnixAbstract(name)],
            Bind::Default => self.default_addresses.at(target_port),
        };
        let mut opened = self.open_all(&addresses);
        if self.default_addresses == DefaultAddresses::Any && acceptor.key.bind == Bind::Default {
            opened.retain(|opened| !matches!(opened, Err((_, error)) if is_without_ipv6(error)));
        }
        let places = opened
            .into_iter()
            .map(|opened| match opened {
                Ok((address, sockets)) => {
                    info!(listener = %Name(&acceptor.key), %address, "listening");
                    Place::Bound { sockets: self.workers.open(sockets, &acceptor), address }
                }
                Err((address, error)) => {
                    let error = explain(&address, &error);
                    warn!(listener = %Name(&acceptor.key), %address, error, "can't listen, retrying every second");
                    Place::Failed { address, error }
                }
            })
            .collect();
        Active { chains: Arc::clone(chains), acceptor, places }
    }

    /// Opens sockets at all addresses, at one port if the kernel chooses it.
    fn open_all(&self, addresses: &[Address]) -> Vec<Opened> {
        let [first @ Address::Ip(_, 0), others @ ..] = addresses else {
            return addresses.iter().map(|address| self.open_one(address, self.is_ours(address))).collect();
        };
        for _ in 1..PORT_CHOICES {
            let opened = self.open_at_one_port(first, others);
            if !opened.iter().any(is_taken) {
                return opened;
            }
        }
        self.open_at_one_port(first, others)
    }

    fn open_at_one_port(&self, first: &Address, others: &[Address]) -> Vec<Opened> {
        let first = self.open_one(first, false);
        let Ok((Address::Ip(_, port), _)) = &first else { return vec![first] };
        let others = others.iter().map(|address| match address {
            Address::Ip(ip, _) => self.open_one(&Address::Ip(*ip, *port), true),
            other => self.open_one(other, false),
        });
        let others: Vec<Opened> = others.collect();
        std::iter::once(first).chain(others).collect()
    }

    fn open_one(&self, address: &Address, shared: bool) -> Opened {
        socket::open(address, self.workers.count(), shared).map_err(|error| (address.clone(), error))
    }

    /// Whether this process listens on that port already, at another address.
    fn is_ours(&self, address: &Address) -> bool {
        let Address::Ip(_, port) = address else { return false };
        self.active
            .values()
            .flat_map(|active| &active.places)
            .any(|place| matches!(place, Place::Bound { address: Address::Ip(_, bound), .. } if bound == port))
    }

    async fn close(&self, active: &Active) {
        active.acceptor.drain.start();
        for place in &active.places {
            if let Place::Bound { sockets, address } = place {
                // The file first: whoever finds it must be able to connect.
                socket::remove_file(address);
                self.workers.close(*sockets).await;
            }
        }
    }

    /// Cuts what is left of a removed listener after `time`.
    fn retire(&mut self, drain: Drain, time: Duration) {
        self.retired.retain(|drain| !drain.is_closing());
        self.retired.push(drain.clone());
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            drain.close();
        });
    }

    fn publish(&self) {
        let report: Vec<ListenerReport> = self.active.iter().map(|(key, active)| active.report(key)).collect();
        let count = |part: fn(&ListenerReport) -> usize| report.iter().map(part).sum();
        self.gateway
            .telemetry
            .metrics
            .listeners
            .set(count(|listener| listener.addresses.len()), count(|listener| listener.failures.len()));
        self.report.store(Arc::new(report));
    }
}

impl Active {
    fn report(&self, key: &ListenerKey) -> ListenerReport {
        let mut report = ListenerReport { port: key.port, addresses: Vec::new(), failures: Vec::new() };
        for place in &self.places {
            match place {
                Place::Bound { address, .. } => report.addresses.push(address.to_string()),
                Place::Failed { address, error } => {
                    report.failures.push(BindFailure { address: address.to_string(), error: error.clone() });
                }
            }
        }
        report
    }
}

impl DefaultAddresses {
    fn at(&self, port: u16) -> Vec<Address> {
        match self {
            Self::Any => {
                vec![Address::Ip(Ipv4Addr::UNSPECIFIED.into(), port), Address::Ip(Ipv6Addr::UNSPECIFIED.into(), port)]
            }
            Self::Given(addresses) => addresses.iter().map(|ip| Address::Ip(*ip, port)).collect(),
        }
    }
}

/// A listener in a log line: `0.0.0.0:80` for what has no `bind`.
struct Name<'a>(&'a ListenerKey);

impl std::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let port = self.0.port;
        match &self.0.bind {
            Bind::Default => write!(f, "*:{port}"),
            Bind::Ip(ip) => Address::Ip(*ip, port).fmt(f),
            Bind::UnixPath(path) => write!(f, "unix://{}", path.display()),
            Bind::UnixAbstract(name) => write!(f, "unix://@{name}"),
        }
    }
}

fn is_taken(opened: &Opened) -> bool {
    matches!(opened, Err((_, error)) if error.kind() == io::ErrorKind::AddrInUse)
}

/// A machine without IPv6 has no `::`.
fn is_without_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT and EADDRNOTAVAIL of Linux.
    matches!(error.raw_os_error(), Some(97 | 99))
}

fn explain(address: &Address, error: &io::Error) -> String {
    match (address, error.kind()) {
        (Address::Ip(_, port @ 1..1024), io::ErrorKind::PermissionDenied) => format!(
            "{error}: ports below 1024 need the capability CAP_NET_BIND_SERVICE; or listen elsewhere, as with \
             `--port-map {port}:{}`",
            port + 8000
        ),
        (_, io::ErrorKind::AddrInUse) => format!("{error}: another process listens there"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::net::TcpStream;
    use std::num::NonZeroUsize;

    use config::snapshot::Snapshot;
    use config::snapshot::listener::Listener;

    use super::*;
    use crate::telemetry::Telemetry;
    use crate::tls::credentials::Credentials;

    fn listeners() -> Listeners {
        let gateway = Arc::new(Gateway::new(Telemetry::default()));
        let workers = Workers::start(&gateway, NonZeroUsize::new(2).unwrap()).unwrap();
        let loopback = DefaultAddresses::Given(vec![Ipv4Addr::LOCALHOST.into()]);
        Listeners::new(gateway, workers, loopback)
    }

    fn state(listeners: &[(u16, u16)], previous: &State) -> State {
        let listeners = listeners
            .iter()
            .map(|&(port, target_port)| {
                Arc::new(Listener {
                    bind: Bind::Default,
                    port,
                    target_port,
                    proxy_protocol: false,
                    filter_chains: Vec::new(),
                })
            })
            .collect();
        let snapshot = Snapshot { listeners, ..Snapshot::default() };
        State::build(Arc::new(snapshot), &Credentials::default(), previous)
    }

    fn address(listeners: &Listeners, port: u16) -> String {
        let report = listeners.report.load();
        report.iter().find(|listener| listener.port == port).unwrap().addresses[0].clone()
    }

    #[tokio::test]
    async fn sockets_follow_the_state_and_leave_the_others_alone() {
        let mut listeners = listeners();
        let both = state(&[(80, 0), (81, 0)], &State::default());
        assert!(listeners.follow(&both).await);
        let (first, second) = (address(&listeners, 80), address(&listeners, 81));
        assert!(TcpStream::connect(&first).is_ok());
        assert!(!listeners.follow(&state(&[(80, 0), (81, 0)], &both)).await, "nothing changed");
        assert!(listeners.follow(&state(&[(80, 0)], &both)).await);
        assert_eq!(address(&listeners, 80), first);
        assert!(TcpStream::connect(&first).is_ok());
        assert_eq!(TcpStream::connect(&second).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_taken_port_is_reported_and_bound_when_it_is_free() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut listeners = listeners();
        listeners.follow(&state(&[(80, port), (81, 0)], &State::default())).await;
        assert!(listeners.is_failing());
        let report = listeners.report.load_full();
        assert_eq!(report[0].failures[0].address, format!("127.0.0.1:{port}"));
        assert!(TcpStream::connect(address(&listeners, 81)).is_ok(), "the rest serves");
        assert!(!listeners.retry());
        drop(taken);
        assert!(listeners.retry());
        assert!(!listeners.is_failing());
        assert_eq!(address(&listeners, 80), format!("127.0.0.1:{port}"));
    }

    #[tokio::test]
    async fn another_target_port_moves_a_listener() {
        let mut listeners = listeners();
        let before = state(&[(80, 0)], &State::default());
        listeners.follow(&before).await;
        let first = address(&listeners, 80);
        let target: u16 = first.rsplit(':').next().unwrap().parse().unwrap();
        // The same address again: the old sockets are closed by then.
        listeners.follow(&state(&[(80, target)], &before)).await;
        assert!(!listeners.is_failing());
        assert_eq!(address(&listeners, 80), first);
    }

    #[tokio::test]
    async fn removed_listeners_drain_and_then_close() {
        let mut listeners = listeners();
        let before = state(&[(80, 0)], &State::default());
        listeners.follow(&before).await;
        let drain = listeners.active.values().next().unwrap().acceptor.drain.clone();
        assert!(!drain.is_draining());
        let mut without = state(&[], &before);
        let mesh = config::snapshot::mesh::Mesh { drain: Duration::from_millis(1), ..Default::default() };
        without.snapshot = Arc::new(Snapshot { mesh: Arc::new(mesh), ..Snapshot::default() });
        listeners.follow(&without).await;
        assert!(drain.is_draining());
        drain.closing().await;
    }
}
