//! `fairlead echo`: the demo backend. It answers every request with JSON that says what arrived, and misbehaves on demand.
//!
//! It speaks HTTP/1.1, HTTP/2 with prior knowledge, WebSocket (also over HTTP/2) and gRPC on one port, and sends raw bytes
//! back on another, with TLS if asked, so that an example directory needs no other program to be tried out. It is no part of the data plane and shares no code with it: what it
//! reports is what a stock HTTP library saw of the gateway's bytes.
//!
//! ```text
//! accept ▶ [tls] ▶ connection ▶ answer ┬ Upgrade: websocket        ▶ websocket::upgrade
//!                                      ├ content-type grpc         ▶ grpc::answer
//!                                      └ else: controls ▶ report ▶ reply
//! ```

mod controls;
mod grpc;
mod report;
mod tls;
mod websocket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, TRAILER};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;

use self::controls::{Controls, Cut, Moment};
use self::report::Received;

/// Options of `fairlead echo`.
#[derive(Debug, Clone, clap::Args)]
pub struct EchoOptions {
    /// Address to listen on; may be repeated. Port 0 lets the kernel choose.
    #[arg(long, value_name = "ADDR:PORT", env = "FAIRLEAD_ECHO_BIND", default_value = "127.0.0.1:8080")]
    pub bind: Vec<SocketAddr>,

    /// Name of this instance, in every answer.
    #[arg(long, env = "FAIRLEAD_ECHO_NAME", default_value = "echo")]
    pub name: String,

    /// Version tag of this instance, in every answer; tells the destinations of a weighted route apart.
    #[arg(long, env = "FAIRLEAD_ECHO_VERSION", default_value = "v1")]
    pub version: String,

    /// Address on which every byte is sent back as it comes; may be repeated.
    #[arg(long, value_name = "ADDR:PORT", env = "FAIRLEAD_ECHO_TCP")]
    pub tcp: Vec<SocketAddr>,

    /// Directory with `tls.crt` and `tls.key` (PEM): all addresses speak TLS.
    #[arg(long, value_name = "DIR", env = "FAIRLEAD_ECHO_TLS")]
    pub tls: Option<PathBuf>,
}

/// Listens on every address of `options`, prints where, and serves until Ctrl-C.
///
/// # Errors
/// An address that can't be bound, or a certificate that can't be used.
pub async fn run(options: EchoOptions) -> anyhow::Result<()> {
    // Before anybody is told that it listens, and so may end it.
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for Ctrl-C")?;
    let tls = options.tls.as_deref().map(tls::acceptor).transpose()?;
    let mut servers = tokio::task::JoinSet::new();
    for address in &options.bind {
        let (listener, bound) = listen(address).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        writeln!(io::stdout(), "{} {} listens on {scheme}://{bound}", options.name, options.version)?;
        servers.spawn(serve_with(listener, options.clone(), tls.clone()));
    }
    for address in &options.tcp {
        let (listener, bound) = listen(address).await?;
        let scheme = if tls.is_some() { "tls" } else { "tcp" };
        writeln!(io::stdout(), "{} {} listens on {scheme}://{bound}", options.name, options.version)?;
        servers.spawn(serve_tcp(listener, tls.clone()));
    }
    interrupt.recv().await;
    Ok(())
}

async fn listen(address: &SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("can't listen on {address}"))?;
    let bound = listener.local_addr().with_context(|| format!("no local address for {address}"))?;
    Ok((listener, bound))
}

/// Serves plaintext connections of `listener` until the future is dropped; of `options` only the names are read.
///
/// Connections are tasks of their own on the current runtime and outlive the future until their peer closes.
pub async fn serve(listener: TcpListener, options: EchoOptions) {
    serve_with(listener, options, None).await;
}

async fn serve_with(listener: TcpListener, options: EchoOptions, tls: Option<TlsAcceptor>) {
    let instance = Arc::new(Instance { options, connections: AtomicU64::new(0), failures: Mutex::default() });
    accept(listener, |stream, remote| serve_connection(stream, remote, Arc::clone(&instance), tls.clone())).await;
}

/// Sends back what comes on connections of `listener`, until their peer ends its side.
async fn serve_tcp(listener: TcpListener, tls: Option<TlsAcceptor>) {
    accept(listener, |stream, _| {
        let tls = tls.clone();
        async move {
            match tls {
                Some(tls) => send_back(tls.accept(stream).await?).await,
                None => send_back(stream).await,
            }
        }
    })
    .await;
}

/// Runs `serve` for each connection in a task of its own.
async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream, SocketAddr) -> F)
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            // How a connection ends is the client's business; there is nobody here to tell.
            Ok((stream, remote)) => drop(tokio::spawn(serve(stream, remote))),
            // Out of descriptors, most likely: wait for some to be freed instead of spinning.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn send_back(stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await?;
    Ok(())
}

/// What all connections of one listener share.
struct Instance {
    options: EchoOptions,
    connections: AtomicU64,
    /// Requests refused so far for each `fail` key.
    failures: Mutex<HashMap<String, u64>>,
}

/// One accepted connection. `socket` is a second handle to it, for what the HTTP library has no words for.
struct Connection {
    id: u64,
    remote: SocketAddr,
    requests: AtomicU64,
    is_tls: bool,
    socket: std::net::TcpStream,
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

async fn serve_connection(
    stream: TcpStream,
    remote: SocketAddr,
    instance: Arc<Instance>,
    tls: Option<TlsAcceptor>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    let connection = Arc::new(Connection {
        id: instance.connections.fetch_add(1, Ordering::Relaxed) + 1,
        remote,
        requests: AtomicU64::new(0),
        is_tls: tls.is_some(),
        socket: stream.try_clone()?,
    });
    let stream = TcpStream::from_std(stream)?;
    match tls {
        Some(tls) => serve_http(tls.accept(stream).await?, instance, connection).await,
        None => serve_http(stream, instance, connection).await,
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    instance: Arc<Instance>,
    connection: Arc<Connection>,
) -> anyhow::Result<()> {
    let service = service_fn(move |request| answer(request, instance.clone(), connection.clone()));
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).half_close(true);
    server.http2().timer(TokioTimer::new()).enable_connect_protocol();
    match server.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        Ok(()) => Ok(()),
        Err(error) => Err(anyhow::anyhow!(error)),
    }
}

/// One request. An error ends the connection (HTTP/1.1) or resets the stream (HTTP/2) without an answer.
async fn answer(
    request: Request<Incoming>,
    instance: Arc<Instance>,
    connection: Arc<Connection>,
) -> Result<Response<Body>, io::Error> {
    let number = connection.requests.fetch_add(1, Ordering::Relaxed) + 1;
    if websocket::is_handshake(&request) {
        return Ok(websocket::upgrade(request));
    }
    if grpc::is_grpc(request.headers()) {
        return Ok(grpc::answer(request, &instance.options, &connection, number).await);
    }
    let controls = match Controls::of(&request) {
        Ok(controls) => controls,
        Err(error) => return Ok(plain(StatusCode::BAD_REQUEST, format!("{error}\n"))),
    };
    if let Some(code) = controls.informational {
        inform(&connection, request.version(), code)?;
    }
    let received = Received::read(request, controls.read_rate).await?;
    tokio::time::sleep(controls.delay).await;
    if controls.cut == Some((Moment::Head, Cut::Reset)) {
        abort(&connection)?;
    }
    if controls.cut.is_some_and(|(moment, _)| moment == Moment::Head) {
        return Err(cut_short());
    }
    let status = match controls.fail {
        Some(ref fail) if instance.fails(fail) => fail.status,
        _ => controls.status,
    };
    let report = received.report(&instance.options, &connection, number);
    Ok(reply(controls, status, report, connection))
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(never).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn reply(
    controls: Controls,
    status: StatusCode,
    report: serde_json::Value,
    connection: Arc<Connection>,
) -> Response<Body> {
    let Controls { interval, chunks, size, headers, trailers, cut, .. } = controls;
    let (kind, pieces): (_, Box<dyn Iterator<Item = Bytes> + Send>) = match (chunks, size) {
        (None, None) => ("application/json", Box::new(std::iter::once(Bytes::from(format!("{report}\n"))))),
        (None, Some(size)) => ("application/octet-stream", Box::new(filler(size))),
        (Some(count), None) => {
            ("text/plain", Box::new((1..=count).map(|number| Bytes::from(format!("chunk {number}\n")))))
        }
        (Some(count), Some(size)) => ("application/octet-stream", Box::new((0..count).flat_map(move |_| filler(size)))),
    };

    let trailer_names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
    let mut response = Response::builder().status(status).header(CONTENT_TYPE, kind);
    if !trailer_names.is_empty() {
        response = response.header(TRAILER, trailer_names.join(", "));
    } else if let (None, Some(size)) = (chunks, size) {
        response = response.header(CONTENT_LENGTH, size);
    }
    let single = chunks.is_none() && size.is_none() && trailers.is_empty() && cut.is_none();
    let body = if single {
        // One piece of known length gets `content-length`, as an ordinary backend's answer has.
        Full::new(pieces.flatten().collect()).map_err(never).boxed_unsync()
    } else {
        stream_body(pieces, interval, trailers, cut, connection)
    };
    let mut response = response.body(body).unwrap_or_else(|error| plain(StatusCode::BAD_REQUEST, error.to_string()));
    for (name, value) in &headers {
        response.headers_mut().append(name.clone(), value.clone());
    }
    response
}

/// The pieces one by one, `interval` apart, then trailers; or the end that `cut` asks for after the first piece.
fn stream_body(
    pieces: impl Iterator<Item = Bytes> + Send + 'static,
    interval: Duration,
    trailers: HeaderMap,
    cut: Option<(Moment, Cut)>,
    connection: Arc<Connection>,
) -> Body {
    struct Progress<I> {
        pieces: I,
        sent: u64,
        trailers: Option<HeaderMap>,
        connection: Arc<Connection>,
    }
    let trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
    let progress = Progress { pieces, sent: 0, trailers, connection };
    let frames = stream::unfold(Some(progress), move |progress| async move {
        let mut progress = progress?;
        if let (1, Some((_, cut))) = (progress.sent, cut) {
            // What was sent has to leave the buffers first, or the client sees no head at all.
            tokio::time::sleep(Duration::from_millis(20)).await;
            if cut == Cut::Reset
                && let Err(error) = abort(&progress.connection)
            {
                return Some((Err(error), None));
            }
            return Some((Err(cut_short()), None));
        }
        match progress.pieces.next() {
            Some(piece) => {
                if progress.sent > 0 {
                    tokio::time::sleep(interval).await;
                }
                progress.sent += 1;
                Some((Ok(Frame::data(piece)), Some(progress)))
            }
            None => progress.trailers.take().map(|trailers| (Ok(Frame::trailers(trailers)), None)),
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// `size` bytes in pieces of at most 16 KiB that share their memory.
fn filler(size: u64) -> impl Iterator<Item = Bytes> + Send {
    static PIECE: [u8; 16 * 1024] = [b'.'; 16 * 1024];
    let mut left = size;
    std::iter::from_fn(move || {
        let length = left.min(PIECE.len() as u64);
        left -= length;
        // `length` is at most the size of the array, so it fits.
        (length > 0).then(|| Bytes::from_static(&PIECE[..length as usize]))
    })
}

impl Instance {
    /// Whether this request is among the first ones of its key, which fail.
    fn fails(&self, fail: &controls::Fail) -> bool {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = failures.entry(fail.key.clone()).or_default();
        *seen += 1;
        *seen <= fail.times
    }
}

/// Writes an interim response past the HTTP library, which can't send one. Between two requests of a connection it has
/// nothing of its own to write, so the bytes stand where they belong. Over HTTP/2 and TLS there is no such gap: refused.
fn inform(connection: &Connection, version: http::Version, code: StatusCode) -> io::Result<()> {
    if version == http::Version::HTTP_2 || connection.is_tls {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "interim responses are for plaintext HTTP/1.1 here"));
    }
    let reason = code.canonical_reason().unwrap_or("Unknown");
    let head = format!("HTTP/1.1 {} {reason}\r\nlink: </style.css>; rel=preload\r\n\r\n", code.as_u16());
    (&connection.socket).write_all(head.as_bytes())
}

/// Makes the close of the connection that follows a reset instead of an orderly end.
fn abort(connection: &Connection) -> io::Result<()> {
    socket2::SockRef::from(&connection.socket).set_linger(Some(Duration::ZERO))
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "cut short on demand")
}

fn never(error: Infallible) -> io::Error {
    match error {}
}

#[cfg(test)]
mod tests;
