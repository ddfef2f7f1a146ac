//! Much data, in both directions, with little memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::watch;

use crate::harness::client::{CLIENT, connect_from};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::upstream::Upstream;

const MIB: u64 = 1 << 20;

/// How much memory of the gateway a body may cost, whatever its size.
const FLAT: u64 = 32 * 1024;

/// Longest piece that is compared at once.
const PIECE: usize = 64 * 1024;

/// Bytes whose place can be told by their value: a period that is no multiple of any buffer's size.
struct Pattern(Vec<u8>);

const PERIOD: usize = 65_521;

impl Pattern {
    fn new() -> Self {
        let period: Vec<u8> = (0..PERIOD).map(|index| ((index * 7) ^ (index >> 8)) as u8).collect();
        Self(period.iter().copied().cycle().take(PERIOD + PIECE).collect())
    }

    /// The `length` bytes that stand at `offset`.
    fn at(&self, offset: u64, length: usize) -> &[u8] {
        let start = (offset % PERIOD as u64) as usize;
        &self.0[start..start + length]
    }
}

/// Reads a chunked body as it comes, and checks each byte of it.
struct ChunkedReader<R> {
    stream: R,
    buffer: Vec<u8>,
    start: usize,
}

impl<R: AsyncReadExt + Unpin> ChunkedReader<R> {
    fn new(stream: R) -> Self {
        Self { stream, buffer: Vec::with_capacity(4 * PIECE), start: 0 }
    }

    async fn fill(&mut self) {
        self.buffer.drain(..self.start);
        self.start = 0;
        assert_ne!(self.stream.read_buf(&mut self.buffer).await.expect("more of a body"), 0, "the body was cut");
    }

    async fn line(&mut self) -> String {
        loop {
            let rest = &self.buffer[self.start..];
            if let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                self.start += end + 2;
                return line;
            }
            self.fill().await;
        }
    }

    async fn head(&mut self) -> String {
        let mut head = String::new();
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return head;
            }
            head.push_str(&line);
            head.push('\n');
        }
    }

    /// Reads to the end of the body; `progress` is told how far it is.
    async fn check(&mut self, pattern: &Pattern, progress: &AtomicU64) {
        let mut offset = 0_u64;
        loop {
            let size = self.line().await;
            let mut left = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("chunk size {size:?}"));
            if left == 0 {
                assert_eq!(self.line().await, "", "trailers");
                return;
            }
            while left > 0 {
                if self.start == self.buffer.len() {
                    self.fill().await;
                }
                let available = left.min(self.buffer.len() - self.start).min(PIECE);
                let piece = &self.buffer[self.start..self.start + available];
                assert!(piece == pattern.at(offset, available), "bytes after {offset} are wrong");
                self.start += available;
                left -= available;
                offset += available as u64;
                progress.store(offset, Ordering::Relaxed);
            }
            assert_eq!(self.line().await, "", "end of a chunk");
        }
    }
}

/// Writes a chunked body of `length` bytes.
async fn write_pattern(
    stream: &mut (impl AsyncWriteExt + Unpin),
    pattern: &Pattern,
    length: u64,
    progress: &AtomicU64,
) {
    let mut offset = 0;
    while offset < length {
        let size = (length - offset).min(PIECE as u64) as usize;
        let mut chunk = format!("{size:x}\r\n").into_bytes();
        chunk.extend_from_slice(pattern.at(offset, size));
        chunk.extend_from_slice(b"\r\n");
        stream.write_all(&chunk).await.expect("the gateway takes the body");
        offset += size as u64;
        progress.store(offset, Ordering::Relaxed);
    }
    stream.write_all(b"0\r\n\r\n").await.expect("the gateway takes the end of the body");
}

/// Reads to the end of a request's head, byte by byte so that nothing of its body is taken. False: no request came.
async fn skip_head(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    true
}

/// An upstream that sends back each byte of a chunked body as soon as it has it.
async fn echo() -> Upstream {
    Upstream::raw(|mut stream, _| async move {
        let mut buffer = vec![0; 2 * PIECE];
        while skip_head(&mut stream).await {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            let mut last = Vec::new();
            while !last.ends_with(b"\r\n0\r\n\r\n") {
                let Ok(length @ 1..) = stream.read(&mut buffer).await else { return };
                if stream.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
                last.extend_from_slice(&buffer[length.saturating_sub(7)..length]);
                last.drain(..last.len().saturating_sub(7));
            }
        }
    })
    .await
}

async fn start(upstream: &Upstream) -> Gateway {
    Mesh::new().http("big.test", &[upstream.address()]).route("big.test", "big.test").start().await
}

async fn post(address: SocketAddr, head: &str) -> TcpStream {
    let mut stream = connect_from(CLIENT, address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

const POST: &str = "POST / HTTP/1.1\r\nhost: big.test\r\ntransfer-encoding: chunked\r\n\r\n";

/// The most memory that the gateway needed while `work` ran.
async fn most_memory<T>(gateway: &Gateway, work: impl Future<Output = T>) -> (T, u64) {
    let mut most = gateway.resident();
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(Duration::from_millis(50), &mut work).await {
            Ok(done) => return (done, most.max(gateway.resident())),
            Err(_) => most = most.max(gateway.resident()),
        }
    }
}

/// Sends `length` bytes to the echo and reads them back meanwhile.
async fn round_trip(address: SocketAddr, pattern: &Arc<Pattern>, length: u64) {
    let (read, mut write) = post(address, POST).await.into_split();
    let writer = {
        let pattern = pattern.clone();
        tokio::spawn(async move {
            write_pattern(&mut write, &pattern, length, &AtomicU64::new(0)).await;
            // Dropped here it would end the connection's one side, and with it the request.
            write
        })
    };
    let mut reader: ChunkedReader<OwnedReadHalf> = ChunkedReader::new(read);
    let head = reader.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\n"), "{head}");
    let read = AtomicU64::new(0);
    reader.check(pattern, &read).await;
    assert_eq!(read.load(Ordering::Relaxed), length);
    drop(writer.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarter_of_a_gibibyte_in_both_directions_at_once() {
    let upstream = echo().await;
    let gateway = start(&upstream).await;
    let pattern = Arc::new(Pattern::new());
    // What a first body needs isn't the growth that is meant.
    round_trip(gateway.address(80), &pattern, 8 * MIB).await;
    let before = gateway.resident();
    let ((), most) = most_memory(&gateway, round_trip(gateway.address(80), &pattern, 256 * MIB)).await;
    assert!(most < before + FLAT, "memory grew from {before} to {most} KiB");
}

/// Waits until `progress` stands still; where.
async fn stalled(progress: &AtomicU64) -> u64 {
    loop {
        let before = progress.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(400)).await;
        if before > 0 && progress.load(Ordering::Relaxed) == before {
            return before;
        }
    }
}

/// More than the sockets between two ends can hold, by far.
const TOO_MUCH: u64 = 128 * MIB;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_pauses_holds_the_client_back() {
    let (go, gone) = watch::channel(false);
    let pattern = Arc::new(Pattern::new());
    let upstream = {
        let pattern = pattern.clone();
        Upstream::raw(move |mut stream, _| {
            let (pattern, mut gone) = (pattern.clone(), gone.clone());
            async move {
                assert!(skip_head(&mut stream).await);
                gone.wait_for(|gone| *gone).await.unwrap();
                let (read, mut write) = stream.into_split();
                let received = AtomicU64::new(0);
                let mut reader = ChunkedReader::new(read);
                reader.check(&pattern, &received).await;
                let text = received.load(Ordering::Relaxed).to_string();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                write.write_all(answer.as_bytes()).await.unwrap();
                let _ = reader.stream.read_u8().await;
            }
        })
        .await
    };
    let gateway = start(&upstream).await;
    let before = gateway.resident();
    let (read, mut write) = post(gateway.address(80), POST).await.into_split();
    let progress = Arc::new(AtomicU64::new(0));
    let writer = {
        let (pattern, progress) = (pattern.clone(), progress.clone());
        tokio::spawn(async move {
            write_pattern(&mut write, &pattern, TOO_MUCH, &progress).await;
            write
        })
    };
    let sent = stalled(&progress).await;
    assert!(sent < TOO_MUCH / 2, "{sent} bytes were taken although nobody reads them");
    let held = gateway.resident();
    assert!(held < before + FLAT, "memory grew from {before} to {held} KiB");

    go.send(true).unwrap();
    let mut reader = ChunkedReader::new(read);
    let head = reader.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\n"), "{head}");
    while reader.buffer.len() - reader.start < TOO_MUCH.to_string().len() {
        reader.fill().await;
    }
    assert_eq!(String::from_utf8_lossy(&reader.buffer[reader.start..]), TOO_MUCH.to_string());
    drop(writer.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pauses_holds_the_upstream_back() {
    let progress = Arc::new(AtomicU64::new(0));
    let pattern = Arc::new(Pattern::new());
    let upstream = {
        let (pattern, progress) = (pattern.clone(), progress.clone());
        Upstream::raw(move |mut stream, _| {
            let (pattern, progress) = (pattern.clone(), progress.clone());
            async move {
                assert!(skip_head(&mut stream).await);
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
                write_pattern(&mut stream, &pattern, TOO_MUCH, &progress).await;
                let _ = stream.read_u8().await;
            }
        })
        .await
    };
    let gateway = start(&upstream).await;
    let before = gateway.resident();
    let stream = post(gateway.address(80), "GET / HTTP/1.1\r\nhost: big.test\r\n\r\n").await;
    let sent = stalled(&progress).await;
    assert!(sent < TOO_MUCH / 2, "{sent} bytes were taken although nobody reads them");
    let held = gateway.resident();
    assert!(held < before + FLAT, "memory grew from {before} to {held} KiB");

    let mut reader = ChunkedReader::new(stream);
    reader.head().await;
    let read = AtomicU64::new(0);
    reader.check(&pattern, &read).await;
    assert_eq!(read.load(Ordering::Relaxed), TOO_MUCH);
}
