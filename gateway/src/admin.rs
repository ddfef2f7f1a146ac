//! The three ports beside the listeners: admin (what the gateway does and why), status (readiness), metrics.

mod clusters;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use certs::certificate::SubjectAltName;
use config::accept::FileStatus;
use config::diagnostic::Diagnostic;
use config::snapshot::{ResourceName, render};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::listener::ListenerReport;
use crate::reload::Sources;
use crate::tls::credentials::CredentialReport;
use crate::worker::Gateway;

/// Whether this gateway should get traffic.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

const STARTING: u8 = 0;
const SERVING: u8 = 1;
const DRAINING: u8 = 2;

impl Readiness {
    /// The first configuration is served.
    pub fn serving(&self) {
        // Never back from draining.
        let _ = self.0.compare_exchange(STARTING, SERVING, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The process is about to end.
    pub fn draining(&self) {
        self.0.store(DRAINING, Ordering::Relaxed);
    }

    /// `Ok` with the word for it, or why not.
    fn check(&self) -> Result<&'static str, &'static str> {
        match self.0.load(Ordering::Relaxed) {
            STARTING => Err("PRE_INITIALIZING"),
            SERVING => Ok("LIVE"),
            _ => Err("DRAINING"),
        }
    }
}

/// What the pages show.
#[derive(Debug)]
pub struct Admin {
    gateway: Arc<Gateway>,
    /// For `/ready` and `/healthz/ready`.
    pub readiness: Readiness,
    /// Findings of the last reload.
    pub diagnostics: ArcSwap<Arc<[Diagnostic]>>,
    sources: Sources,
    listeners: Arc<ArcSwap<Vec<ListenerReport>>>,
}

/// Where the ports are to be; `None` for those that are off. Port 0 lets the kernel choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Admin.
    pub admin: Option<SocketAddr>,
    /// Readiness.
    pub status: Option<SocketAddr>,
    /// Prometheus.
    pub metrics: Option<SocketAddr>,
}

impl Addresses {
    /// Their port numbers.
    pub fn ports(&self) -> Vec<u16> {
        [self.admin, self.status, self.metrics].into_iter().flatten().map(|address| address.port()).collect()
    }
}

/// A port that can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("can't open the {name} port {address}: {source}")]
pub struct Unavailable {
    name: &'static str,
    address: SocketAddr,
    source: io::Error,
}

impl Admin {
    /// Nothing loaded yet.
    pub fn new(gateway: Arc<Gateway>, sources: Sources, listeners: Arc<ArcSwap<Vec<ListenerReport>>>) -> Arc<Self> {
        let (readiness, diagnostics) = (Readiness::default(), ArcSwap::default());
        Arc::new(Self { gateway, readiness, diagnostics, sources, listeners })
    }

    /// Opens the ports and serves them until the runtime ends; where they are.
    ///
    /// # Errors
    /// When one can't be opened.
    pub async fn serve(self: &Arc<Self>, addresses: &Addresses) -> Result<Addresses, Unavailable> {
        let admin = Router::new()
            .route("/", get(help))
            .route("/help", get(help))
            .route("/ready", get(ready))
            .route("/config/status", get(config_status))
            .route("/config/routes", get(config_routes))
            .route("/certs", get(certs))
            .route("/clusters", get(clusters))
            .route("/stats/prometheus", get(metrics))
            .fallback(unknown_path);
        let status = Router::new().route("/healthz/ready", get(healthz));
        let prometheus = Router::new().route("/stats/prometheus", get(metrics));
        Ok(Addresses {
            admin: self.open("admin", addresses.admin, admin).await?,
            status: self.open("status", addresses.status, status).await?,
            metrics: self.open("metrics", addresses.metrics, prometheus).await?,
        })
    }

    async fn open(
        self: &Arc<Self>,
        name: &'static str,
        address: Option<SocketAddr>,
        router: Router<Arc<Self>>,
    ) -> Result<Option<SocketAddr>, Unavailable> {
        let Some(address) = address else { return Ok(None) };
        let unavailable = |source| Unavailable { name, address, source };
        let listener = TcpListener::bind(address).await.map_err(unavailable)?;
        let bound = listener.local_addr().map_err(unavailable)?;
        let router = router.with_state(Arc::clone(self));
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                warn!(%error, port = name, "a port has ended");
            }
        });
        Ok(Some(bound))
    }
}

/// One line for each page.
const PAGES: [(&str, &str); 8] = [
    ("/", "this list"),
    ("/help", "this list"),
    ("/certs", "certificates in use, the soonest to expire first, as JSON"),
    ("/clusters", "endpoints of every cluster: requests under way, health, weight, locality, priority"),
    ("/config/status", "every file, resource, diagnostic and listener, as JSON"),
    ("/config/routes", "what the configuration compiles to: listeners, hosts, routes in order, clusters, as JSON"),
    ("/ready", "200 if this gateway should get traffic"),
    ("/stats/prometheus", "metrics"),
];

fn pages() -> String {
    let lines = PAGES.map(|(path, purpose)| format!("  {path}: {purpose}\n"));
    format!("admin commands are:\n{}", lines.concat())
}

async fn help() -> Response {
    text(StatusCode::OK, pages())
}

async fn unknown_path() -> Response {
    text(StatusCode::NOT_FOUND, format!("invalid path. {}", pages()))
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    readiness(&admin, true)
}

async fn healthz(State(admin): State<Arc<Admin>>) -> Response {
    readiness(&admin, false)
}

/// Envoy's `/ready` names the state; Kubernetes only wants the status of `/healthz/ready`.
fn readiness(admin: &Admin, name_it: bool) -> Response {
    match admin.readiness.check() {
        Ok(state) if name_it => text(StatusCode::OK, format!("{state}\n")),
        Ok(_) => text(StatusCode::OK, String::new()),
        Err(state) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{state}\n")),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    text(StatusCode::OK, admin.gateway.metrics_page())
}

async fn clusters(State(admin): State<Arc<Admin>>) -> Response {
    text(StatusCode::OK, clusters::page(&admin.gateway.state.load()))
}

async fn config_status(State(admin): State<Arc<Admin>>) -> Response {
    // The loader may be at work.
    rendered(move || as_json(&ConfigStatus::new(&admin))).await
}

/// `/config/status`.
#[derive(Serialize)]
struct ConfigStatus {
    generation: u64,
    files: Vec<FileState>,
    diagnostics: Arc<[Diagnostic]>,
    refusals: Vec<RefusalState>,
    listeners: Arc<Vec<ListenerReport>>,
}

#[derive(Serialize)]
struct FileState {
    path: String,
    /// A part of it can't be read; what was last read from that part stays.
    broken: bool,
    resources: Vec<ResourceState>,
}

#[derive(Serialize)]
struct ResourceState {
    kind: &'static str,
    namespace: Arc<str>,
    name: Arc<str>,
    /// `accepted`, `last-good`, `rejected`, `duplicate`.
    state: &'static str,
}

#[derive(Serialize)]
struct RefusalState {
    resource: String,
    reason: String,
}

impl ConfigStatus {
    fn new(admin: &Admin) -> Self {
        let files = admin.sources.loader.lock().unwrap_or_else(PoisonError::into_inner).status();
        let state = admin.gateway.state.load_full();
        let refusals = state
            .snapshot
            .refusals
            .iter()
            .map(|refusal| RefusalState { resource: refusal.resource.to_string(), reason: refusal.reason.clone() });
        Self {
            generation: state.generation,
            files: files.into_iter().map(FileState::from).collect(),
            diagnostics: Arc::clone(&admin.diagnostics.load()),
            refusals: refusals.collect(),
            listeners: admin.listeners.load_full(),
        }
    }
}

impl From<FileStatus> for FileState {
    fn from(file: FileStatus) -> Self {
        let FileStatus { path, is_broken, resources } = file;
        let resources = resources.into_iter().map(|(ResourceName { kind, namespace, name }, state)| ResourceState {
            kind,
            namespace,
            name,
            state: state.as_str(),
        });
        Self { path: path.to_string_lossy().into_owned(), broken: is_broken, resources: resources.collect() }
    }
}

async fn config_routes(State(admin): State<Arc<Admin>>) -> Response {
    let state = admin.gateway.state.load_full();
    rendered(move || as_json(&render::json(&state.snapshot))).await
}

async fn certs(State(admin): State<Arc<Admin>>) -> Response {
    // A refresh may be at work.
    rendered(move || {
        let reports = admin.sources.credentials.lock().unwrap_or_else(PoisonError::into_inner).report(usize::MAX);
        let now = SystemTime::now();
        as_json(&Certs { certificates: reports.iter().map(|report| CertState::new(report, now)).collect() })
    })
    .await
}

/// `/certs`, as Envoy's.
#[derive(Serialize)]
struct Certs {
    certificates: Vec<CertState>,
}

#[derive(Serialize)]
struct CertState {
    ca_cert: Vec<CertDetails>,
    cert_chain: Vec<CertDetails>,
}

#[derive(Serialize)]
struct CertDetails {
    path: String,
    serial_number: String,
    subject_alt_names: Vec<Value>,
    days_until_expiration: String,
    valid_from: String,
    expiration_time: String,
}

impl CertState {
    fn new(report: &CredentialReport, now: SystemTime) -> Self {
        let subject_alt_names = report.subject_alt_names.iter().filter_map(|name| match name {
            SubjectAltName::Dns(name) => Some(json!({ "dns": name })),
            SubjectAltName::Uri(uri) => Some(json!({ "uri": uri })),
            SubjectAltName::Ip(address) => Some(json!({ "ip_address": address })),
            // Envoy leaves them out.
            SubjectAltName::Email(_) => None,
        });
        let days = report.not_after.duration_since(now).map_or(0, |left| left.as_secs() / 86_400);
        let details = vec![CertDetails {
            path: report.name.clone(),
            serial_number: report.serial.clone(),
            subject_alt_names: subject_alt_names.collect(),
            days_until_expiration: days.to_string(),
            valid_from: timestamp(report.not_before),
            expiration_time: timestamp(report.not_after),
        }];
        if report.is_authority {
            Self { ca_cert: details, cert_chain: Vec::new() }
        } else {
            Self { ca_cert: Vec::new(), cert_chain: details }
        }
    }
}

/// RFC 3339; empty for a time that can't be said in it.
fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}

/// Renders a page that is as large as the configuration, where it holds up nothing else.
async fn rendered(render: impl FnOnce() -> Response + Send + 'static) -> Response {
    let page = spawn_blocking(render).await;
    page.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))
}

fn as_json(page: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(page) {
        Ok(body) => respond(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Response {
    respond(status, "text/plain; charset=UTF-8", body)
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let headers =
        [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-cache, max-age=0"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, body).into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use config::load::Loader;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::telemetry::Telemetry;

    async fn admin() -> (Arc<Admin>, Addresses) {
        let gateway = Arc::new(Gateway::new(Telemetry::default()));
        let loader = Loader::new([], config::compile::Options::default());
        let sources = Sources { loader: Arc::new(Mutex::new(loader)), credentials: Arc::default() };
        let admin = Admin::new(gateway, sources, Arc::default());
        let any = Some("127.0.0.1:0".parse().unwrap());
        let bound = admin.serve(&Addresses { admin: any, status: any, metrics: any }).await.unwrap();
        (admin, bound)
    }

    /// Status and body.
    async fn fetch(address: Option<SocketAddr>, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address.unwrap()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn readiness_follows_the_life_of_the_process() {
        let (admin, bound) = admin().await;
        assert_eq!(fetch(bound.status, "/healthz/ready").await.0, 503);
        assert_eq!(fetch(bound.admin, "/ready").await, (503, "PRE_INITIALIZING\n".to_owned()));
        admin.readiness.serving();
        assert_eq!(fetch(bound.status, "/healthz/ready").await.0, 200);
        assert_eq!(fetch(bound.admin, "/ready").await, (200, "LIVE\n".to_owned()));
        admin.readiness.draining();
        admin.readiness.serving();
        assert_eq!(fetch(bound.status, "/healthz/ready").await.0, 503);
    }

    #[tokio::test]
    async fn pages_are_where_they_belong() {
        let (_admin, bound) = admin().await;
        for (address, path, status) in [
            (bound.admin, "/", 200),
            (bound.admin, "/help", 200),
            (bound.admin, "/config/status", 200),
            (bound.admin, "/config/routes", 200),
            (bound.admin, "/certs", 200),
            (bound.admin, "/stats/prometheus", 200),
            (bound.admin, "/nope", 404),
            (bound.metrics, "/stats/prometheus", 200),
            (bound.metrics, "/config/status", 404),
            (bound.status, "/stats/prometheus", 404),
        ] {
            assert_eq!(fetch(address, path).await.0, status, "{path}");
        }
        assert!(fetch(bound.admin, "/nope").await.1.starts_with("invalid path. admin commands are:\n"));
    }

    #[tokio::test]
    async fn status_holds_generation_and_listeners() {
        let (_admin, bound) = admin().await;
        let page: Value = serde_json::from_str(&fetch(bound.admin, "/config/status").await.1).unwrap();
        assert_eq!(page["generation"], 0);
        assert_eq!(page["listeners"], Value::Array(Vec::new()));
    }
}
