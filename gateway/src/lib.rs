//! Fairlead's data plane: listeners, HTTP, forwarding, telemetry, reload and the command line.

pub mod admin;
pub mod demo;
pub mod drain;
pub mod echo;
pub mod egress;
pub mod filter;
pub mod http;
pub mod listener;
mod relay;
pub mod reload;
pub mod request;
pub mod response;
pub mod server;
pub mod state;
pub mod stream;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod worker;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use config::compile::Options as Identity;
use config::diagnostic::Diagnostic;
use config::load::Loader;
use ipnet::IpNet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

use admin::{Admin, Unavailable};
use egress::Egress;
use egress::addresses::AddressPolicy;
use listener::{DefaultAddresses, ListenerReport, Listeners};
use reload::{ReadyFile, Reloader, Sources};
use server::Workers;
use state::State;
use telemetry::Telemetry;
use telemetry::access_log::AccessLogger;
use telemetry::metrics::Source;
use tls::credentials::{Credentials, Places};
use tls::handshakes::HandshakeLimits;
use upstream::dns::{Families, SystemLookup, resolve};
use upstream::{on_demand, outlier};
use worker::Gateway;

/// How a gateway is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Watched directories and files. Relative ones are taken from the working directory of the start.
    pub roots: Vec<PathBuf>,
    /// Who we are, for the compiler of the configuration.
    pub identity: Identity,
    /// Where certificates and keys are, besides the configuration.
    pub credentials: Places,
    /// Start although some documents are invalid.
    pub accept_invalid: bool,
    /// Addresses of servers without `bind`.
    pub bind: DefaultAddresses,
    /// The ports beside the listeners.
    pub ports: admin::Addresses,
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// Downstream connections at once; `None`: as many as Istio allows.
    pub max_connections: Option<u64>,
    /// The gateway's own address, told to upstreams in place of a client on 127.0.0.1 (`INSTANCE_IP`).
    pub own_address: Option<IpAddr>,
    /// Offer WebSocket over HTTP/2 to clients.
    pub http2_websocket: bool,
    /// Answer 421 to requests that belong to another filter chain of their listener.
    pub strict_sni: bool,
    /// Bounds of TLS handshakes with clients.
    pub handshakes: HandshakeLimits,
    /// Ranges beyond public addresses that hosts which clients choose may stand for.
    pub egress_allow: Vec<IpNet>,
    /// Name servers that are asked instead of those of `/etc/resolv.conf`; none: the latter.
    pub name_servers: Vec<SocketAddr>,
    /// Ask for IPv6 addresses of names beside the IPv4 ones (`ISTIO_DUAL_STACK`).
    pub dual_stack: bool,
    /// Where to say that the gateway is ready.
    pub ready_file: Option<PathBuf>,
    /// How it ends.
    pub shutdown: Shutdown,
}

/// What happens between SIGTERM and the exit.
///
/// Source: `reference/telemetry-and-operations.md` §9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// Time to drain; `None`: as MeshConfig says (`terminationDrainDuration`).
    pub drain: Option<Duration>,
    /// `EXIT_ON_ZERO_ACTIVE_CONNECTIONS`: after `minimum`, wait until no connection is left, for however long.
    pub until_no_connections: bool,
    /// `MINIMUM_DRAIN_DURATION`.
    pub minimum: Duration,
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFailure {
    /// There are errors in the configuration, among these findings.
    #[error("the configuration is invalid")]
    Invalid(Arc<[Diagnostic]>),
    /// A port that isn't a listener's is taken.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The operating system refuses something.
    #[error("can't start: {0}")]
    System(#[from] io::Error),
}

/// A gateway that serves.
#[derive(Debug)]
pub struct Running {
    gateway: Arc<Gateway>,
    admin: Arc<Admin>,
    reloader: Reloader,
    shutdown: Shutdown,
    signals: Signals,
    /// The ports beside the listeners, as they are.
    pub ports: admin::Addresses,
}

/// Starts a gateway on the current runtime, which becomes its control runtime: it serves when this returns.
///
/// # Errors
/// See [`StartFailure`].
pub async fn start(options: Options) -> Result<Running, StartFailure> {
    let Options {
        roots,
        identity,
        credentials,
        accept_invalid,
        bind,
        ports,
        workers,
        max_connections,
        own_address,
        http2_websocket,
        strict_sni,
        egress_allow,
        handshakes,
        name_servers,
        dual_stack,
        ready_file,
        shutdown,
    } = options;
    // Whoever is told that the gateway is ready may end it at once, and in order.
    let signals = Signals::new()?;
    // The operating system names changed files as it was told the directories.
    let roots: Vec<PathBuf> = roots.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
    let source = Source {
        workload: identity.name.clone(),
        namespace: identity.namespace.to_string(),
        cluster: identity.cluster_id.clone(),
        labels: identity.labels.clone(),
    };
    let egress = Egress::new(AddressPolicy::new(egress_allow), &identity.labels);
    let mut gateway = Gateway::new(Telemetry::new(&source, AccessLogger::new(io::stdout())?));
    gateway.own_address = own_address;
    gateway.http2_websocket = http2_websocket;
    gateway.strict_sni = strict_sni;
    gateway.handshakes = handshakes;
    gateway.egress = Arc::new(egress);
    let gateway = Arc::new(gateway);
    if let Some(limit) = max_connections {
        gateway.telemetry.metrics.connections.limit(limit);
    }
    let workers = Workers::start(&gateway, workers)?;
    let listeners = Listeners::new(Arc::clone(&gateway), workers, bind);
    let sources = Sources {
        loader: Arc::new(Mutex::new(Loader::new(roots.clone(), identity))),
        credentials: Arc::new(Mutex::new(Credentials::new(credentials))),
    };
    let admin = Admin::new(Arc::clone(&gateway), sources.clone(), listeners.report());
    let ports = admin.serve(&ports).await?;
    gateway.egress.set_process_ports(ports.ports());

    let (states, receiver) = watch::channel(Arc::<State>::default());
    let ready_file = ready_file.map(|path| ReadyFile::new(path, ports));
    let mut reloader =
        Reloader::new(Arc::clone(&gateway), Arc::clone(&admin), sources, roots, listeners, states, ready_file);
    let begin = Instant::now();
    let update = reloader.load().await;
    if !accept_invalid && update.loaded.has_errors() {
        return Err(StartFailure::Invalid(update.diagnostics));
    }
    tokio::spawn(outlier::watch_over(receiver.clone()));
    let lookup = Arc::new(SystemLookup::new(name_servers));
    let families = Families::of_machine(dual_stack);
    if let Some(questions) = gateway.take_questions() {
        let egress = Arc::clone(&gateway.egress);
        tokio::spawn(on_demand::answer(questions, Arc::clone(&lookup), families, egress));
    }
    tokio::spawn(resolve(Arc::clone(&gateway), receiver, lookup, families));
    reloader.apply(&update, begin).await;
    admin.readiness.serving();
    reloader.write_ready_file();
    Ok(Running { gateway, admin, reloader, shutdown, signals, ports })
}

impl Running {
    /// Serves and reloads until SIGTERM or SIGINT, then drains. A second signal ends the drain.
    ///
    /// # Errors
    /// When the operating system refuses signals.
    pub async fn serve(mut self) -> io::Result<()> {
        tokio::select! {
            failed = self.reloader.follow() => failed?,
            () = self.signals.next() => {}
        }
        let drain = self.drain_time();
        info!(?drain, until_no_connections = self.shutdown.until_no_connections, "draining");
        self.admin.readiness.draining();
        self.reloader.listeners.drain();
        let drained = drained(&self.gateway, self.shutdown, drain);
        tokio::select! {
            () = drained => {}
            () = self.signals.next() => info!("second signal: not waiting any longer"),
        }
        self.end().await;
        Ok(())
    }

    /// The listeners as they are.
    pub fn listeners(&self) -> Arc<Vec<ListenerReport>> {
        self.reloader.listeners.report().load_full()
    }

    fn drain_time(&self) -> Duration {
        self.shutdown.drain.unwrap_or_else(|| self.gateway.state.load().snapshot.mesh.termination_drain)
    }

    /// Cuts what is left, and lets it write its access log.
    async fn end(mut self) {
        self.reloader.listeners.shut_down();
        let _ = tokio::time::timeout(Duration::from_millis(500), no_connections(&self.gateway)).await;
        self.gateway.telemetry.access_log.flush();
        info!("bye");
    }
}

async fn drained(gateway: &Gateway, shutdown: Shutdown, drain: Duration) {
    if !shutdown.until_no_connections {
        return tokio::time::sleep(drain).await;
    }
    tokio::time::sleep(shutdown.minimum).await;
    no_connections(gateway).await;
}

async fn no_connections(gateway: &Gateway) {
    while gateway.telemetry.metrics.connections.active() > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
