//! Clients that see what a real one would not tell: header lines in wire order, how a connection ended, stream resets.
//!
//! They connect from 127.0.0.2, since Envoy treats 127.0.0.1 as itself: see `x-forwarded-for`.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::PATIENCE;
use super::stream::Stream;
use super::tls_client::alert;

/// Address that clients come from unless a test says otherwise.
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Header lines in the order of the wire; names as they were written.
pub type Fields = Vec<(String, String)>;

/// How a connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Open,
    /// Closed in order (FIN).
    Closed,
    /// Reset (RST).
    Reset,
    /// Bytes came that nobody had asked for.
    Bytes(Vec<u8>),
}

/// An answer. Status 0: none came, see `end`.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// `HTTP/1.1` or `HTTP/1.0`; empty for HTTP/2.
    pub version: String,
    pub status: u16,
    pub reason: String,
    pub headers: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// Interim answers before this one.
    pub interim: Vec<(u16, Fields)>,
    /// Whether the whole body came.
    pub complete: bool,
    /// What stood in the way of a complete answer.
    pub failure: Option<Failure>,
    /// The client's address, which names the connection in the access log.
    pub client: Option<SocketAddr>,
}

/// Why an answer isn't complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The connection was closed in order.
    Closed,
    /// The connection was reset.
    ConnectionReset,
    /// TLS: this alert came.
    Alert(u8),
    /// TLS: the connection was closed, which the protocol says otherwise (no `close_notify`).
    Truncated,
    /// HTTP/2: this stream was reset, with the code.
    StreamReset(u32),
    /// HTTP/2: GOAWAY, with the code.
    GoAway(u32),
    /// Nothing came in [`PATIENCE`].
    TimedOut,
    /// What came is no HTTP.
    Malformed(String),
}

impl Response {
    /// Values of header `name` (any case), lines in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        lines.map(|(_, value)| value.as_str()).collect()
    }

    /// First value of header `name`, empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.all(name).first().copied().unwrap_or_default()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Header names in wire order.
    pub fn names(&self) -> Vec<&str> {
        self.headers.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// A raw HTTP/1.1 connection.
pub struct Http1 {
    address: SocketAddr,
    stream: Box<dyn Stream>,
    received: Vec<u8>,
}

impl Http1 {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::connect_from(CLIENT, address).await.unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    pub async fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<Self> {
        Ok(Self::over(connect_from(source, address).await?))
    }

    /// A connection that exists.
    pub fn over(stream: impl Stream) -> Self {
        // A connection that was reset has lost it.
        let address = stream.socket().local_addr().unwrap_or_else(|_| SocketAddr::new(CLIENT, 0));
        Self { address, stream: Box::new(stream), received: Vec::new() }
    }

    /// Sends bytes as they are. A peer that has gone shows in the answer, not here.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await;
    }

    /// Closes our side only.
    pub async fn half_close(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Closes with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(self.stream.socket()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// The client's address; no other connection of this process has it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `GET target` and its answer.
    pub async fn get(&mut self, host: &str, target: &str) -> Response {
        self.send(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        self.response().await
    }

    /// Sends `bytes`, one request or a part of one, and reads one answer.
    pub async fn exchange(&mut self, bytes: impl AsRef<[u8]>) -> Response {
        let head = bytes.as_ref().starts_with(b"HEAD ");
        self.send(bytes).await;
        self.read_response(head).await
    }

    /// Reads one answer, to anything but HEAD.
    pub async fn response(&mut self) -> Response {
        self.read_response(false).await
    }

    /// Reads one answer; `bodiless` for that to HEAD.
    pub async fn read_response(&mut self, bodiless: bool) -> Response {
        let mut response = Response { client: Some(self.address()), ..Response::default() };
        response.failure = match timeout(PATIENCE, self.read_into(&mut response, bodiless)).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some(Failure::TimedOut),
        };
        response.complete = response.failure.is_none();
        response
    }

    /// Reads the head of an answer and leaves its body.
    pub async fn head(&mut self) -> Response {
        let mut response = Response { client: Some(self.address()), ..Response::default() };
        response.failure = match timeout(PATIENCE, self.read_head(&mut response)).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some(Failure::TimedOut),
        };
        response
    }

    /// Reads exactly `length` bytes, for what isn't HTTP.
    pub async fn read_exactly(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        let filled = async {
            while self.received.len() < length {
                self.fill().await?;
            }
            Ok(self.received.drain(..length).collect())
        };
        timeout(PATIENCE, filled).await.unwrap_or(Err(Failure::TimedOut))
    }

    /// How the connection stands, `Open` if nothing happens `within` that time.
    pub async fn ended(&mut self, within: Duration) -> End {
        if self.received.is_empty() {
            match timeout(within, self.fill()).await {
                Err(_) => return End::Open,
                Ok(Err(Failure::Closed | Failure::Truncated)) => return End::Closed,
                Ok(Err(_)) => return End::Reset,
                Ok(Ok(())) => {}
            }
        }
        End::Bytes(std::mem::take(&mut self.received))
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        match self.stream.read_buf(&mut self.received).await {
            Ok(0) => Err(Failure::Closed),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Failure::Truncated),
            Err(error) => Err(alert(&error).map_or(Failure::ConnectionReset, Failure::Alert)),
        }
    }

    async fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..end + 2).take(end).collect();
                // One char a byte, so that bytes above 127 survive.
                return Ok(line.iter().map(|byte| char::from(*byte)).collect());
            }
            self.fill().await?;
        }
    }

    async fn fields(&mut self) -> Result<Fields, Failure> {
        let mut fields = Fields::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| Failure::Malformed(line.clone()))?;
            fields.push((name.to_owned(), value.strip_prefix(' ').unwrap_or(value).to_owned()));
        }
    }

    async fn read_head(&mut self, response: &mut Response) -> Result<(), Failure> {
        loop {
            let line = self.line().await?;
            let malformed = || Failure::Malformed(line.clone());
            let (version, rest) = line.split_once(' ').ok_or_else(malformed)?;
            let (code, reason) = rest.split_once(' ').ok_or_else(malformed)?;
            if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
                return Err(malformed());
            }
            let status = code.parse().map_err(|_| malformed())?;
            let headers = self.fields().await?;
            if (100..200).contains(&status) && status != 101 {
                response.interim.push((status, headers));
                continue;
            }
            response.version = version.to_owned();
            response.status = status;
            response.reason = reason.to_owned();
            response.headers = headers;
            return Ok(());
        }
    }

    async fn read_into(&mut self, response: &mut Response, bodiless: bool) -> Result<(), Failure> {
        self.read_head(response).await?;
        if bodiless || matches!(response.status, 101 | 204 | 304) {
            return Ok(());
        }
        if response.header("transfer-encoding").eq_ignore_ascii_case("chunked") {
            loop {
                let line = self.line().await?;
                let size = usize::from_str_radix(&line, 16).map_err(|_| Failure::Malformed(line))?;
                if size == 0 {
                    response.trailers = self.fields().await?;
                    return Ok(());
                }
                self.body(response, size).await?;
                if !self.line().await?.is_empty() {
                    return Err(Failure::Malformed("no line end after a chunk".to_owned()));
                }
            }
        }
        if response.has("content-length") {
            let length = response.header("content-length").to_owned();
            let length = length.parse().map_err(|_| Failure::Malformed(length))?;
            return self.body(response, length).await;
        }
        loop {
            match self.fill().await {
                Ok(()) => response.body.append(&mut self.received),
                Err(Failure::Closed) => return Ok(()),
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn body(&mut self, response: &mut Response, length: usize) -> Result<(), Failure> {
        let mut left = length;
        loop {
            let available = left.min(self.received.len());
            response.body.extend(self.received.drain(..available));
            left -= available;
            if left == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }
}

/// An HTTP/2 connection with prior knowledge, or over TLS.
pub struct Http2 {
    address: SocketAddr,
    sender: h2::client::SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream =
            connect_from(CLIENT, address).await.unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        Self::over(stream).await
    }

    /// A connection that exists.
    pub async fn over(stream: impl Stream) -> Self {
        let client = stream.socket().local_addr().unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.expect("an HTTP/2 connection");
        Self { address: client, sender, driver: tokio::spawn(connection) }
    }

    pub async fn get(&mut self, host: &str, target: &str) -> Response {
        self.exchange(Request::get(format!("http://{host}{target}")).body(()).unwrap(), &[]).await
    }

    /// Sends a request with `body` and reads its answer.
    pub async fn exchange(&mut self, request: Request<()>, body: &[u8]) -> Response {
        match self.open(request, body.is_empty()).await {
            Ok((response, mut sender)) => {
                if !body.is_empty() {
                    // An answer before the body is read resets this; it is the answer that counts.
                    let _ = sender.send_data(Bytes::copy_from_slice(body), true);
                }
                Response { client: Some(self.address), ..read_h2(response).await }
            }
            Err(failure) => Response { client: Some(self.address), failure: Some(failure), ..Response::default() },
        }
    }

    /// The client's address; no other connection of this process has it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens a stream; the caller sends the body.
    pub async fn open(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), Failure> {
        let opened = async {
            let mut ready = self.sender.clone().ready().await?;
            ready.send_request(request, end)
        };
        match timeout(PATIENCE, opened).await {
            Ok(opened) => opened.map_err(|error| failure(&error)),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// How the connection stands: `None` if it is open after that time, else how it ended.
    pub async fn ended(&mut self, within: Duration) -> Option<Result<(), Failure>> {
        match timeout(within, &mut self.driver).await {
            Err(_) => None,
            Ok(end) => Some(end.unwrap().map_err(|error| failure(&error))),
        }
    }

    /// The most streams that the peer allows at once, as its SETTINGS said.
    pub fn max_streams(&self) -> usize {
        self.sender.current_max_send_streams()
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Reads an answer with its trailers.
pub async fn read_h2(pending: h2::client::ResponseFuture) -> Response {
    let mut response = Response::default();
    response.failure = match timeout(PATIENCE, read_h2_into(pending, &mut response)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(failure(&error)),
        Err(_) => Some(Failure::TimedOut),
    };
    response.complete = response.failure.is_none();
    response
}

async fn read_h2_into(mut pending: h2::client::ResponseFuture, response: &mut Response) -> Result<(), h2::Error> {
    let answer = std::future::poll_fn(|context| {
        while let Poll::Ready(Some(interim)) = pending.poll_informational(context) {
            match interim {
                Ok(interim) => response.interim.push((interim.status().as_u16(), fields(interim.headers()))),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Pin::new(&mut pending).poll(context)
    });
    let (head, mut body) = answer.await?.into_parts();
    response.status = head.status.as_u16();
    response.headers = fields(&head.headers);
    while let Some(data) = body.data().await {
        let data = data?;
        response.body.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    response.trailers = body.trailers().await?.map(|trailers| fields(&trailers)).unwrap_or_default();
    Ok(())
}

fn failure(error: &h2::Error) -> Failure {
    let code = error.reason().map_or(u32::MAX, u32::from);
    if error.is_go_away() {
        Failure::GoAway(code)
    } else if error.is_reset() {
        Failure::StreamReset(code)
    } else if error.get_io().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset) {
        Failure::ConnectionReset
    } else {
        Failure::Closed
    }
}

/// Header lines as the HTTP/2 library keeps them: lines of one name stand together.
pub fn fields(headers: &HeaderMap) -> Fields {
    let text = |value: &http::HeaderValue| value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

/// How a connection ends on which only `bytes` are sent, and the client's address.
pub async fn ended_after(address: SocketAddr, bytes: impl AsRef<[u8]>) -> (SocketAddr, End) {
    let (socket, client) = socket_of(CLIENT).unwrap();
    match timeout(PATIENCE, socket.connect(address)).await.expect("in time") {
        Ok(stream) => {
            let mut connection = Http1::over(stream);
            connection.send(bytes).await;
            (client, connection.ended(PATIENCE).await)
        }
        // So soon that connecting saw it.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (client, End::Reset),
        Err(error) => panic!("connect to {address}: {error}"),
    }
}

/// A TCP connection from `source`, from a port that no other connection of this process has: the access log names
/// connections by it.
pub async fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let (socket, _) = socket_of(source)?;
    let stream = timeout(PATIENCE, socket.connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn socket_of(source: IpAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    // Below the ports that the system chooses from; processes that run at once mostly begin at different ones.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(997));
        let port = 10_000 + u16::try_from(next % 20_000).unwrap_or_default();
        let socket = TcpSocket::new_v4()?;
        match socket.bind(SocketAddr::new(source, port)) {
            Ok(()) => return Ok((socket, SocketAddr::new(source, port))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
}
