//! Upstreams that follow a script and remember what they saw, byte by byte.

use std::collections::VecDeque;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::client::{Fields, fields};
use super::stream::Stream;
use super::tls_server::TlsServer;
use super::{eventually, eventually_within};

/// A server on a port of its own. It stops when this is dropped.
pub struct Upstream {
    address: SocketAddr,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
    /// Connections that keep a full listener full.
    held: Vec<TcpStream>,
}

/// One request as it arrived.
#[derive(Debug, Clone, Default)]
pub struct Received {
    /// Number of the connection at this upstream, from 1.
    pub connection: usize,
    pub method: String,
    pub target: String,
    /// Header lines in wire order (HTTP/1.1). HTTP/2: pseudo headers first, then lines of one name together.
    pub headers: Fields,
    /// HTTP/1.1: the head, exactly.
    pub head: Vec<u8>,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// Whether the body came to its end.
    pub complete: bool,
}

/// What an HTTP/1.1 upstream does with a request, after it has read the head.
#[derive(Debug, Clone)]
pub enum Step {
    /// Read the request's body to its end.
    ReadBody,
    Send(Vec<u8>),
    Pause(Duration),
    /// Close in order.
    Close,
    /// Close with a reset.
    Reset,
    /// Do nothing more, keep the connection.
    Hang,
    /// Send back every byte that comes, as after an upgrade.
    Echo,
}

/// What an HTTP/2 upstream does with a stream.
#[derive(Debug, Clone)]
pub enum H2Step {
    ReadBody,
    /// Status, headers, whether the stream ends here.
    Head(u16, &'static [(&'static str, &'static str)], bool),
    /// Bytes, whether the stream ends here.
    Data(&'static [u8], bool),
    Trailers(&'static [(&'static str, &'static str)]),
    Pause(Duration),
    /// RST_STREAM with this code.
    Reset(h2::Reason),
    /// Close the TCP connection.
    Close,
    Hang,
}

#[derive(Default)]
struct Seen {
    requests: Mutex<VecDeque<Arc<Mutex<Received>>>>,
    connections: AtomicUsize,
    /// Connections that are open at the moment.
    open: AtomicUsize,
}

/// `200`, body `ok`.
pub fn ok() -> Vec<Step> {
    answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
}

/// Reads the body, then sends `bytes`.
pub fn answer(bytes: impl Into<Vec<u8>>) -> Vec<Step> {
    vec![Step::ReadBody, Step::Send(bytes.into())]
}

/// An empty answer with this status.
pub fn status(code: u16) -> Vec<Step> {
    answer(format!("HTTP/1.1 {code} Whatever\r\ncontent-length: 0\r\n\r\n"))
}

impl Upstream {
    /// An HTTP/1.1 server that does for each request what `script` says.
    pub async fn h1(script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let script = Arc::new(script);
        Self::serve(move |stream, number, seen| {
            let script = script.clone();
            async move { serve_h1(stream, number, &seen, &*script).await }
        })
        .await
    }

    /// An HTTP/2 (prior knowledge) server that does for each stream what `script` says.
    pub async fn h2(script: impl Fn(&Received) -> Vec<H2Step> + Send + Sync + 'static) -> Self {
        let script: H2Script = Arc::new(script);
        Self::serve(move |stream, number, seen| serve_h2(stream, number, seen, script.clone())).await
    }

    /// As [`Upstream::h1`], over TLS.
    pub async fn h1_tls(server: &TlsServer, script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let (server, script) = (server.clone(), Arc::new(script));
        Self::serve(move |stream, number, seen| {
            let (server, script) = (server.clone(), script.clone());
            async move {
                if let Some(stream) = server.accept(stream).await {
                    serve_h1(stream, number, &seen, &*script).await;
                }
            }
        })
        .await
    }

    /// As [`Upstream::h2`], over TLS.
    pub async fn h2_tls(server: &TlsServer, script: impl Fn(&Received) -> Vec<H2Step> + Send + Sync + 'static) -> Self {
        let script: H2Script = Arc::new(script);
        let server = server.clone();
        Self::serve(move |stream, number, seen| {
            let (server, script) = (server.clone(), script.clone());
            async move {
                if let Some(stream) = server.accept(stream).await {
                    serve_h2(stream, number, seen, script).await;
                }
            }
        })
        .await
    }

    /// Sends back every byte; closes its side when the client has closed its own.
    pub async fn echo() -> Self {
        Self::raw(|mut stream, _| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await
    }

    /// As [`Upstream::echo`], over TLS.
    pub async fn echo_tls(server: &TlsServer) -> Self {
        let server = server.clone();
        Self::raw(move |stream, _| {
            let server = server.clone();
            async move {
                let Some(stream) = server.accept(stream).await else { return };
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            }
        })
        .await
    }

    /// A server whose connections are handled by `handler`, which gets the stream and its number.
    pub async fn raw<F>(handler: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::serve(move |stream, number, _| handler(stream, number)).await
    }

    /// `200 ok` to everything.
    pub async fn ok() -> Self {
        Self::h1(|_| ok()).await
    }

    /// `200 ok` to everything, on each of these addresses with one port in common, as the addresses of one name have.
    pub async fn ok_on(addresses: &[IpAddr]) -> Vec<Self> {
        let listeners = eventually("a port that is free on all addresses", || common_port(addresses)).await;
        let serve = |listener| Self::serve_on(listener, serve_ok);
        listeners.into_iter().map(serve).collect()
    }

    /// Answers `firstafter` in two pieces, the second one when it is told to.
    pub async fn in_two_pieces() -> (Self, watch::Sender<bool>) {
        let (go, gone) = watch::channel(false);
        let upstream = Self::raw(move |mut stream, _| {
            let mut gone = gone.clone();
            async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst").await;
                let _ = gone.wait_for(|gone| *gone).await;
                let _ = stream.write_all(b"after").await;
                let _ = stream.read(&mut head).await;
            }
        })
        .await;
        (upstream, go)
    }

    /// Always the same bytes.
    pub async fn answers(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::h1(move |_| answer(bytes.clone())).await
    }

    /// Accepts, reads requests and never answers.
    pub async fn hangs() -> Self {
        Self::h1(|_| vec![Step::ReadBody, Step::Hang]).await
    }

    /// An address that refuses connections: its socket is bound, so that nobody else gets the port, and never listens.
    pub async fn refuses() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let task = tokio::spawn(async move {
            let _socket = socket;
            std::future::pending::<()>().await;
        });
        Self { address, seen: Arc::default(), task, held: Vec::new() }
    }

    /// An address where connecting neither succeeds nor fails: its queue of connections is full.
    pub async fn never_connects() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(0).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            held.push(stream);
        }
        let task = tokio::spawn(async move {
            let _listener = listener;
            std::future::pending::<()>().await;
        });
        Self { address, seen: Arc::default(), task, held }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Connections open at the moment.
    pub fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    /// Everything received since the last call, oldest first.
    pub fn take(&self) -> Vec<Received> {
        let requests: Vec<_> = self.seen.requests.lock().unwrap().drain(..).collect();
        requests.iter().map(|request| request.lock().unwrap().clone()).collect()
    }

    /// Waits for the oldest request whose body is complete and that wasn't taken yet.
    pub async fn received(&self) -> Option<Received> {
        eventually_within(Duration::from_secs(5), || async {
            let mut requests = self.seen.requests.lock().unwrap();
            let complete = requests.iter().position(|request| request.lock().unwrap().complete)?;
            requests.remove(complete).map(|request| request.lock().unwrap().clone())
        })
        .await
    }

    async fn serve<F>(handler: impl Fn(TcpStream, usize, Arc<Seen>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::serve_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), handler)
    }

    fn serve_on<F>(
        listener: TcpListener,
        handler: impl Fn(TcpStream, usize, Arc<Seen>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let shared = seen.clone();
        let task = tokio::spawn(async move {
            // Dropping the set with this task ends the connections too.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
                let _ = stream.set_nodelay(true);
                let open = OpenConnection::count(shared.clone());
                let handled = handler(stream, number, shared.clone());
                connections.spawn(async move {
                    handled.await;
                    drop(open);
                });
            }
        });
        Self { address, seen, task, held: Vec::new() }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
        self.held.clear();
    }
}

impl Received {
    /// Values of header `name`, lines in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        lines.map(|(_, value)| value.as_str()).collect()
    }

    /// First value of header `name`, or `None`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// Header names in wire order.
    pub fn names(&self) -> Vec<&str> {
        self.headers.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn of_head(connection: usize, head: Vec<u8>) -> Self {
        // One char a byte, so that bytes above 127 survive.
        let text: String = head.iter().map(|byte| char::from(*byte)).collect();
        let mut lines = text.split("\r\n");
        let mut request_line = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned);
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        Self {
            connection,
            method: request_line.next().unwrap_or_default(),
            target: request_line.next().unwrap_or_default(),
            headers: headers.collect(),
            head,
            ..Self::default()
        }
    }
}

struct OpenConnection(Arc<Seen>);

impl OpenConnection {
    fn count(seen: Arc<Seen>) -> Self {
        seen.open.fetch_add(1, Ordering::SeqCst);
        Self(seen)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Seen {
    fn note(&self, received: Received) -> Arc<Mutex<Received>> {
        let noted = Arc::new(Mutex::new(received));
        self.requests.lock().unwrap().push_back(noted.clone());
        noted
    }
}

/// The gateway has closed or reset the connection.
struct Gone;

struct Reader {
    stream: Box<dyn Stream>,
    bytes: Vec<u8>,
}

/// Listeners on all of `addresses`; `None` if the port that the first one got is taken on another one.
async fn common_port(addresses: &[IpAddr]) -> Option<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let mut port = 0;
    for &address in addresses {
        let listener = TcpListener::bind((address, port)).await.ok()?;
        port = listener.local_addr().ok()?.port();
        listeners.push(listener);
    }
    Some(listeners)
}

async fn serve_ok(stream: TcpStream, number: usize, seen: Arc<Seen>) {
    serve_h1(stream, number, &seen, &|_| ok()).await;
}

async fn serve_h1(
    stream: impl Stream,
    number: usize,
    seen: &Seen,
    script: &(dyn Fn(&Received) -> Vec<Step> + Send + Sync),
) {
    let mut reader = Reader { stream: Box::new(stream), bytes: Vec::new() };
    while let Ok(head) = reader.head().await {
        let received = Received::of_head(number, head);
        let steps = script(&received);
        let noted = seen.note(received);
        let mut unread = true;
        for step in steps.into_iter().chain([Step::ReadBody]) {
            match step {
                Step::ReadBody if unread => {
                    unread = false;
                    if reader.body(&noted).await.is_err() {
                        return;
                    }
                }
                Step::ReadBody => {}
                Step::Send(bytes) => {
                    if reader.stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Step::Pause(time) => tokio::time::sleep(time).await,
                Step::Close => {
                    let _ = reader.stream.shutdown().await;
                    return;
                }
                Step::Reset => {
                    let _ = socket2::SockRef::from(reader.stream.socket()).set_linger(Some(Duration::ZERO));
                    return;
                }
                Step::Hang => {
                    // Reading notices when the gateway gives up.
                    while reader.fill().await.is_ok() {}
                    return;
                }
                Step::Echo => {
                    let pending = std::mem::take(&mut reader.bytes);
                    let _ = reader.stream.write_all(&pending).await;
                    let (mut read, mut write) = tokio::io::split(&mut reader.stream);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    return;
                }
            }
        }
    }
}

impl Reader {
    async fn fill(&mut self) -> Result<(), Gone> {
        match self.stream.read_buf(&mut self.bytes).await {
            Ok(0) | Err(_) => Err(Gone),
            Ok(_) => Ok(()),
        }
    }

    async fn head(&mut self) -> Result<Vec<u8>, Gone> {
        loop {
            if let Some(end) = self.bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                return Ok(self.bytes.drain(..end + 4).collect());
            }
            self.fill().await?;
        }
    }

    async fn line(&mut self) -> Result<String, Gone> {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|bytes| bytes == b"\r\n") {
                let line: Vec<u8> = self.bytes.drain(..end + 2).take(end).collect();
                return Ok(line.iter().map(|byte| char::from(*byte)).collect());
            }
            self.fill().await?;
        }
    }

    async fn body(&mut self, noted: &Mutex<Received>) -> Result<(), Gone> {
        let (length, chunked) = {
            let received = noted.lock().unwrap();
            let length = received.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
            (length, received.header("transfer-encoding").is_some())
        };
        if chunked {
            loop {
                let line = self.line().await?;
                let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16).map_err(|_| Gone)?;
                if size == 0 {
                    break;
                }
                self.piece(noted, size).await?;
                self.line().await?;
            }
            loop {
                let line = self.line().await?;
                let Some((name, value)) = line.split_once(": ") else { break };
                noted.lock().unwrap().trailers.push((name.to_owned(), value.to_owned()));
            }
        } else {
            self.piece(noted, length).await?;
        }
        noted.lock().unwrap().complete = true;
        Ok(())
    }

    async fn piece(&mut self, noted: &Mutex<Received>, length: usize) -> Result<(), Gone> {
        let mut left = length;
        loop {
            let available = left.min(self.bytes.len());
            noted.lock().unwrap().body.extend(self.bytes.drain(..available));
            left -= available;
            if left == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }
}

type H2Script = Arc<dyn Fn(&Received) -> Vec<H2Step> + Send + Sync>;

async fn serve_h2(stream: impl Stream, number: usize, seen: Arc<Seen>, script: H2Script) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let close = Arc::new(Notify::new());
    let mut streams = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = close.notified() => return,
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let (head, body) = request.into_parts();
        let pseudo = [
            (":method", head.method.to_string()),
            (":scheme", head.uri.scheme_str().unwrap_or_default().to_owned()),
            (":authority", head.uri.authority().map(ToString::to_string).unwrap_or_default()),
            (":path", head.uri.path_and_query().map(ToString::to_string).unwrap_or_default()),
        ];
        let received = Received {
            connection: number,
            method: head.method.to_string(),
            target: pseudo[3].1.clone(),
            headers: pseudo
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .chain(fields(&head.headers))
                .collect(),
            complete: body.is_end_stream(),
            ..Received::default()
        };
        let steps = script(&received);
        let noted = seen.note(received);
        let close = close.clone();
        streams.spawn(async move {
            // An error here means that the gateway has reset the stream, which is its right.
            let _ = follow_h2(steps, body, respond, &noted, &close).await;
        });
    }
}

async fn follow_h2(
    steps: Vec<H2Step>,
    mut body: h2::RecvStream,
    mut respond: h2::server::SendResponse<Bytes>,
    noted: &Mutex<Received>,
    close: &Notify,
) -> Result<(), h2::Error> {
    let mut sender: Option<h2::SendStream<Bytes>> = None;
    for step in steps {
        match step {
            H2Step::ReadBody => {
                while let Some(data) = body.data().await {
                    let data = data?;
                    body.flow_control().release_capacity(data.len())?;
                    noted.lock().unwrap().body.extend_from_slice(&data);
                }
                let trailers = body.trailers().await?;
                let mut received = noted.lock().unwrap();
                received.trailers = trailers.as_ref().map(fields).unwrap_or_default();
                received.complete = true;
            }
            H2Step::Head(status, headers, end) => {
                let mut response = Response::new(());
                *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
                *response.headers_mut() = header_map(headers);
                sender = Some(respond.send_response(response, end)?);
            }
            H2Step::Data(bytes, end) => {
                if let Some(sender) = &mut sender {
                    sender.send_data(Bytes::from_static(bytes), end)?;
                }
            }
            H2Step::Trailers(trailers) => {
                if let Some(sender) = &mut sender {
                    sender.send_trailers(header_map(trailers))?;
                }
            }
            H2Step::Pause(time) => tokio::time::sleep(time).await,
            H2Step::Reset(reason) => {
                match &mut sender {
                    Some(sender) => sender.send_reset(reason),
                    None => respond.send_reset(reason),
                }
                return Ok(());
            }
            H2Step::Close => {
                close.notify_one();
                return std::future::pending().await;
            }
            H2Step::Hang => {
                // The stream stays until the gateway resets it or goes.
                let _ = std::future::poll_fn(|context| respond.poll_reset(context)).await;
                return Ok(());
            }
        }
    }
    Ok(())
}

fn header_map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair =
        |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter().map(pair) {
        map.append(name, value);
    }
    map
}
