//! Looks at what the HTTP/2 codec writes, to notice the requests that it refuses on its own.
//!
//! The `h2` crate answers a malformed request with RST_STREAM or GOAWAY and tells nobody. Envoy closes the whole
//! connection without a frame and logs the request; with this the connection loop can do the same. Can go when the
//! crate reports such requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Frame types and the error code of RFC 9113 §6.4, §6.8 and §7.
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const PROTOCOL_ERROR: u32 = 1;
const HEADER: usize = 9;

/// What the watch and the connection loop tell each other.
#[derive(Debug, Default)]
pub struct Violations {
    found: AtomicBool,
    /// The highest stream that the loop got a request of. The codec may reset those for other reasons.
    accepted: AtomicU32,
}

impl Violations {
    /// Whether a request was refused by the codec.
    pub fn found(&self) -> bool {
        self.found.load(Ordering::Relaxed)
    }

    /// Notes a request that came through.
    pub fn accept(&self, stream: u32) {
        self.accepted.fetch_max(stream, Ordering::Relaxed);
    }
}

/// Follows what a client sends: a stream with DATA has had a good head, whatever becomes of its body.
#[derive(Debug, Clone)]
pub struct BodyWatch {
    violations: Arc<Violations>,
    /// Bytes to pass over: the preface, then each frame's payload.
    skip: usize,
    head: [u8; HEADER],
    filled: usize,
}

impl BodyWatch {
    /// A watch at the beginning of a connection, whose preface has `preface` bytes.
    pub fn new(violations: Arc<Violations>, preface: usize) -> Self {
        Self { violations, skip: preface, head: [0; HEADER], filled: 0 }
    }

    /// Follows bytes that have been read.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        const DATA: u8 = 0;
        while !bytes.is_empty() {
            let skipped = bytes.len().min(self.skip);
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let count = bytes.len().min(HEADER - self.filled);
            self.head[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
            self.filled += count;
            bytes = &bytes[count..];
            if self.filled == HEADER {
                let [a, b, c, kind, _, stream @ ..] = self.head;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.filled = 0;
                if kind == DATA {
                    self.violations.accept(u32::from_be_bytes(stream) & 0x7fff_ffff);
                }
            }
        }
    }
}

/// Follows the frames that are written to a client.
#[derive(Debug, Clone)]
pub struct FrameWatch {
    violations: Arc<Violations>,
    /// Bytes of the present frame's payload that are still to come.
    payload: usize,
    /// Header of the frame, and the first bytes of its payload.
    head: [u8; HEADER + 8],
    filled: usize,
}

impl FrameWatch {
    /// A watch at the beginning of a connection.
    pub fn new(violations: Arc<Violations>) -> Self {
        Self { violations, payload: 0, head: [0; HEADER + 8], filled: 0 }
    }

    /// Whether `parts`, which are about to be written, end a request or the connection over a protocol error.
    pub fn refuses<'b>(&self, parts: impl IntoIterator<Item = &'b [u8]>) -> bool {
        let mut ahead = self.clone();
        let refuses = parts.into_iter().any(|part| ahead.follow(part));
        if refuses {
            self.violations.found.store(true, Ordering::Relaxed);
        }
        refuses
    }

    /// Follows bytes that have been written; whether one of their frames is a refusal.
    pub fn follow(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let wanted =
                if self.filled < HEADER { HEADER } else { self.head.len().min(HEADER + self.wanted_payload()) };
            if self.filled < wanted {
                let count = bytes.len().min(wanted - self.filled);
                self.head[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
                self.filled += count;
                bytes = &bytes[count..];
                if self.filled == HEADER {
                    let length = [0, self.head[0], self.head[1], self.head[2]];
                    self.payload = u32::from_be_bytes(length) as usize;
                } else if self.filled > HEADER {
                    self.payload = self.payload.saturating_sub(count);
                }
                if self.filled == HEADER + self.wanted_payload() && self.is_refusal() {
                    return true;
                }
            }
            if self.filled >= HEADER + self.wanted_payload() {
                let count = bytes.len().min(self.payload);
                self.payload = self.payload.saturating_sub(count);
                bytes = &bytes[count..];
                if self.payload == 0 {
                    self.filled = 0;
                }
            }
        }
        false
    }

    /// Payload bytes that tell the error code.
    fn wanted_payload(&self) -> usize {
        match self.head[3] {
            RST_STREAM if self.filled >= HEADER => 4,
            GOAWAY if self.filled >= HEADER => 8,
            _ => 0,
        }
    }

    fn is_refusal(&self) -> bool {
        let word =
            |at: usize| u32::from_be_bytes([self.head[at], self.head[at + 1], self.head[at + 2], self.head[at + 3]]);
        match self.head[3] {
            RST_STREAM if self.filled == HEADER + 4 => {
                let stream = word(5) & 0x7fff_ffff;
                word(HEADER) == PROTOCOL_ERROR && stream > self.violations.accepted.load(Ordering::Relaxed)
            }
            GOAWAY if self.filled == HEADER + 8 => word(HEADER + 4) == PROTOCOL_ERROR,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, 0], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn refusals_are_seen_however_they_are_cut() {
        let settings = frame(4, 0, &[0; 12]);
        let data = frame(0, 1, &[7; 40]);
        let reset = |stream: u32, code: u32| frame(RST_STREAM, stream, &code.to_be_bytes());
        let goaway = |code: u32| frame(GOAWAY, 0, &[&0_u32.to_be_bytes()[..], &code.to_be_bytes(), b"debug"].concat());
        for (frames, expected) in [
            ([settings.clone(), reset(3, 1)].concat(), true),
            ([settings.clone(), data.clone(), goaway(1), data.clone()].concat(), true),
            // The stream was accepted: its content-length was wrong, perhaps.
            ([settings.clone(), reset(1, 1), data.clone()].concat(), false),
            ([settings.clone(), reset(3, 2), goaway(0), data.clone()].concat(), false),
            ([settings, frame(4, 0, &[]), data].concat(), false),
        ] {
            for size in 1..=frames.len() {
                let violations = Arc::new(Violations::default());
                violations.accept(1);
                let mut watch = FrameWatch::new(Arc::clone(&violations));
                let seen = frames.chunks(size).any(|part| {
                    let refuses = watch.refuses([part]);
                    watch.follow(part);
                    refuses
                });
                assert_eq!((seen, violations.found()), (expected, expected), "in pieces of {size}");
            }
        }
    }
}
