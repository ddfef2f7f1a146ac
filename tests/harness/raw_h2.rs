//! HTTP/2 by frames, for what a correct library refuses to send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;
use super::client::{CLIENT, End, connect_from};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;

/// Error code of RST_STREAM and GOAWAY.
pub const PROTOCOL_ERROR: u32 = 1;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame as it came. Header blocks stay encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A connection on which anything can be said. SETTINGS are exchanged at its begin; PING is answered.
pub struct RawH2 {
    stream: TcpStream,
    received: Vec<u8>,
}

impl RawH2 {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream =
            connect_from(CLIENT, address).await.unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        let mut connection = Self { stream, received: Vec::new() };
        connection.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        connection.frame(SETTINGS, 0, 0, &[]).await;
        connection.frame(SETTINGS, ACK, 0, &[]).await;
        connection
    }

    /// The client's address; no other connection of this process has it.
    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    pub async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.write(&frame).await;
    }

    /// HEADERS in one frame.
    pub async fn headers(&mut self, stream: u32, fields: &[(&str, &[u8])], end: bool) {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.frame(HEADERS, flags, stream, &encode(fields)).await;
    }

    pub async fn data(&mut self, stream: u32, bytes: &[u8], end: bool) {
        self.frame(DATA, if end { END_STREAM } else { 0 }, stream, bytes).await;
    }

    /// RST_STREAM.
    pub async fn reset(&mut self, stream: u32, code: u32) {
        self.frame(RST_STREAM, 0, stream, &code.to_be_bytes()).await;
    }

    /// The next frame but SETTINGS, WINDOW_UPDATE and PING, or how the connection stands without one `within` that time.
    pub async fn next(&mut self, within: Duration) -> Result<Frame, End> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let frame = self.any(left).await?;
            match frame.kind {
                SETTINGS | WINDOW_UPDATE => {}
                PING if frame.flags & ACK == 0 => self.frame(PING, ACK, 0, &frame.payload).await,
                _ => return Ok(frame),
            }
        }
    }

    /// The next frame of any kind.
    pub async fn any(&mut self, within: Duration) -> Result<Frame, End> {
        timeout(within, self.read()).await.unwrap_or(Err(End::Open))
    }

    /// All frames (see [`RawH2::next`]) until the connection ends or nothing happens `within` that time.
    pub async fn rest(&mut self, within: Duration) -> (Vec<Frame>, End) {
        let mut frames = Vec::new();
        loop {
            match self.next(within).await {
                Ok(frame) => frames.push(frame),
                Err(end) => return (frames, end),
            }
        }
    }

    /// Whether the peer refuses a malformed request on this stream: a reset with PROTOCOL_ERROR, or the connection's end.
    pub async fn refuses_stream(&mut self, stream: u32) -> Result<(), String> {
        match self.next(PATIENCE).await {
            Err(End::Closed | End::Reset) => Ok(()),
            Ok(frame) if frame.kind == GOAWAY && frame.code() != 0 => Ok(()),
            Ok(frame) if frame.kind == RST_STREAM && frame.stream == stream && frame.code() == PROTOCOL_ERROR => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    async fn read(&mut self) -> Result<Frame, End> {
        loop {
            if let [a, b, c, kind, flags, s0, s1, s2, s3, ..] = self.received[..] {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                if self.received.len() >= 9 + length {
                    let payload = self.received[9..9 + length].to_vec();
                    self.received.drain(..9 + length);
                    return Ok(Frame { kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]), payload });
                }
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) => return Err(End::Closed),
                Ok(_) => {}
                Err(_) => return Err(End::Reset),
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        // A peer that has gone shows when reading.
        let _ = self.stream.write_all(bytes).await;
    }
}

impl Frame {
    /// Error code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        self.payload.get(at..at + 4).map_or(u32::MAX, |code| u32::from_be_bytes(code.try_into().unwrap()))
    }
}

/// A header block of plain literals: no index, no Huffman code.
pub fn encode(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_bytes(), value] {
            encode_length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// An HPACK integer with a prefix of seven bits (RFC 7541 §5.1).
fn encode_length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        block.push(length as u8);
        return;
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}
