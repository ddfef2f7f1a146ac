//! `fairlead demo`: a gateway on an example directory, with backends in the same process.

use std::fs;
use std::io;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use config::compile::{AccessLogChoice, Options as Identity};
use tokio::net::TcpListener;

use crate::admin::Addresses;
use crate::echo::{self, EchoOptions};
use crate::listener::DefaultAddresses;
use crate::tls::credentials::Places;
use crate::tls::handshakes::HandshakeLimits;
use crate::{Options, Running, Shutdown, StartFailure, start};

/// Options of `fairlead demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoOptions {
    /// Where the example files are put, and kept. Files that are there already stay as they are [default: a temporary
    /// directory, removed at the end]
    #[arg(long, value_name = "DIR", env = "FAIRLEAD_DEMO_DIR")]
    pub dir: Option<PathBuf>,

    /// Port of the gateway [default: 8080, or another if that is taken]
    #[arg(long, value_name = "PORT", env = "FAIRLEAD_DEMO_PORT")]
    pub port: Option<u16>,
}

const GATEWAY: &str = include_str!("demo/gateway.yaml");
const ROUTES: &str = include_str!("demo/routes.yaml");
const BACKENDS: &str = include_str!("demo/backends.yaml");

/// The port that the examples are written for.
const USUAL_PORT: u16 = 8080;

/// Runs the demo until Ctrl-C.
///
/// # Errors
/// When a port or a file can't be had.
pub async fn run(options: DemoOptions) -> anyhow::Result<()> {
    let directory = Directory::prepare(options.dir)?;
    let ports = [backend("v1").await?, backend("v2").await?];
    directory.write_files(ports)?;
    let port = match options.port {
        Some(port) => port,
        None => free_port(),
    };
    let running = match start(gateway(&directory.path, port)).await {
        Ok(running) => running,
        Err(StartFailure::Invalid(diagnostics)) => {
            let text: String = diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect();
            anyhow::bail!("the files in {} are invalid:\n{text}", directory.path.display());
        }
        Err(failure) => return Err(failure.into()),
    };
    io::stdout().write_all(instructions(&running, &directory.path)?.as_bytes())?;
    running.serve().await?;
    Ok(())
}

/// Starts a backend on a free port; which one.
async fn backend(version: &str) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("can't open a port for a backend")?;
    let port = listener.local_addr()?.port();
    let options = EchoOptions {
        bind: Vec::new(),
        name: "reviews".to_owned(),
        version: version.to_owned(),
        tcp: Vec::new(),
        tls: None,
    };
    tokio::spawn(echo::serve(listener, options));
    Ok(port)
}

/// [`USUAL_PORT`] if it is free, else 0: the kernel chooses.
fn free_port() -> u16 {
    match std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, USUAL_PORT)) {
        Ok(_) => USUAL_PORT,
        Err(_) => 0,
    }
}

fn gateway(directory: &Path, port: u16) -> Options {
    Options {
        credentials: Places::default(),
        roots: vec![directory.to_owned()],
        identity: Identity {
            port_map: [(80, port)].into(),
            access_log: Some(AccessLogChoice::Text),
            ..Identity::default()
        },
        accept_invalid: false,
        bind: DefaultAddresses::Given(vec![Ipv4Addr::LOCALHOST.into()]),
        ports: Addresses { admin: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))), status: None, metrics: None },
        workers: NonZeroUsize::MIN,
        max_connections: None,
        own_address: None,
        http2_websocket: false,
        strict_sni: false,
        egress_allow: Vec::new(),
        handshakes: HandshakeLimits::default(),
        name_servers: Vec::new(),
        dual_stack: false,
        ready_file: None,
        shutdown: Shutdown { drain: Some(Duration::ZERO), until_no_connections: false, minimum: Duration::ZERO },
    }
}

fn instructions(running: &Running, directory: &Path) -> anyhow::Result<String> {
    let listeners = running.listeners();
    let address = match listeners.iter().find(|listener| listener.port == 80) {
        Some(listener) => match (listener.addresses.first(), listener.failures.first()) {
            (Some(address), _) => address,
            (None, Some(failure)) => anyhow::bail!("can't listen on {}: {}", failure.address, failure.error),
            (None, None) => anyhow::bail!("the gateway has no address to listen on"),
        },
        None => anyhow::bail!("no Gateway in {} has a server for port 80", directory.display()),
    };
    let directory = directory.display();
    let admin = match running.ports.admin {
        Some(admin) => format!(
            "See what it does:\n\n  curl -s http://{admin}/config/status\n  curl -s http://{admin}/stats/prometheus\n\n"
        ),
        None => String::new(),
    };
    Ok(format!(
        "\nA gateway listens on http://{address}, with two backends behind it: reviews v1 and v2.\n\n\
         By header: testers always get v2.\n\n\
         \x20 curl -s -H 'host: shop.example.com' -H 'end-user: jason' http://{address}/reviews\n\n\
         By weight: of everybody else, 80 in 100 get v1. This counts:\n\n\
         \x20 for i in $(seq 100); do curl -s -H 'host: shop.example.com' http://{address}/reviews | grep -o '\"version\": *\"v[12]\"'; done | sort | uniq -c\n\n\
         Change it while that runs: edit the weights in\n\n\
         \x20 {directory}/routes.yaml\n\n\
         {admin}\
         Access log follows. Ctrl-C ends the demo.\n\n"
    ))
}

/// The directory of the example.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    is_temporary: bool,
}

impl Directory {
    fn prepare(given: Option<PathBuf>) -> anyhow::Result<Self> {
        let is_temporary = given.is_none();
        let path = match given {
            Some(path) => path,
            None => std::env::temp_dir().join(format!("fairlead-demo-{}", std::process::id())),
        };
        let created = if is_temporary { fs::create_dir(&path) } else { fs::create_dir_all(&path) };
        created.with_context(|| format!("can't create {}", path.display()))?;
        Ok(Self { path, is_temporary })
    }

    fn write_files(&self, [v1, v2]: [u16; 2]) -> anyhow::Result<()> {
        for (name, text) in [("gateway.yaml", GATEWAY), ("routes.yaml", ROUTES)] {
            let path = self.path.join(name);
            match fs::File::create_new(&path) {
                Ok(mut file) => file.write_all(text.as_bytes()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            }
            .with_context(|| format!("can't write {}", path.display()))?;
        }
        let backends = BACKENDS.replace("PORT_OF_V1", &v1.to_string()).replace("PORT_OF_V2", &v2.to_string());
        let path = self.path.join("backends.yaml");
        fs::write(&path, backends).with_context(|| format!("can't write {}", path.display()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.is_temporary {
            // What can't be removed is left to whoever cleans the temporary directory.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_examples_have_nothing_wrong() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::prepare(Some(place.path().join("demo"))).unwrap();
        directory.write_files([1001, 1002]).unwrap();
        let loaded = config::load::load([directory.path.clone()], Identity::default());
        assert_eq!(*loaded.diagnostics, []);
        assert_eq!(loaded.snapshot.listeners.len(), 1);
        assert_eq!(loaded.snapshot.clusters.len(), 2);
    }

    #[test]
    fn edited_files_are_kept_and_ports_renewed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("demo");
        Directory::prepare(Some(path.clone())).unwrap().write_files([1001, 1002]).unwrap();
        fs::write(path.join("routes.yaml"), "edited").unwrap();
        Directory::prepare(Some(path.clone())).unwrap().write_files([2001, 2002]).unwrap();
        assert_eq!(fs::read_to_string(path.join("routes.yaml")).unwrap(), "edited");
        let backends = fs::read_to_string(path.join("backends.yaml")).unwrap();
        assert!(backends.contains("http: 2001") && backends.contains("http: 2002"), "{backends}");
        assert!(!backends.contains("PORT_OF"), "{backends}");
    }
}
