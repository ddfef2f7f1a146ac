//! The access log: one line a request on standard output, as text or JSON.
//!
//! Workers append finished lines to a buffer in memory; a thread of its own writes it out, at once after a quiet moment
//! and otherwise every 20 ms or 64 KiB. A reader that is too slow costs lines, never time.
//!
//! Source: `reference/telemetry-and-operations.md` §4.1-4.4.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use config::snapshot::format::{Format, Piece};
use config::snapshot::telemetry::AccessLog;

use super::format::{self, Kind, Moment};
use crate::request::Facts;

/// Longest time that a line waits for others. Envoy's second makes whoever watches the log wait; fifty writes a second
/// from a thread of their own cost nothing that could be measured.
const FLUSH_INTERVAL: Duration = Duration::from_millis(20);

/// How long [`AccessLogger::flush`] waits for the output.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// Bytes that are written without waiting. Source: Envoy's `--file-flush-min-size-kb`.
const FLUSH_SIZE: usize = 64 * 1024;

/// Bytes that wait at most; lines beyond are dropped.
const MAX_PENDING: usize = 16 * 1024 * 1024;

/// Writes lines of finished requests.
#[derive(Debug, Default)]
pub struct AccessLogger {
    /// `None` without output.
    queue: Option<Arc<Queue>>,
}

impl AccessLogger {
    /// Writes to `output` from a thread of its own.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(output: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let reader = Arc::clone(&queue);
        thread::Builder::new().name("access-log".to_owned()).spawn(move || reader.write_out(output))?;
        Ok(Self { queue: Some(queue) })
    }

    /// Logs a finished request as `log` says. Never waits for the output.
    pub fn write(&self, log: &AccessLog, facts: &Facts) {
        let Some(queue) = &self.queue else { return };
        let mut line = Vec::with_capacity(512);
        match log {
            AccessLog::Text(format) => text_line(format, facts, &mut line),
            AccessLog::Json(fields) => json_line(fields, facts, &mut line),
        }
        queue.push(&line);
    }

    /// Waits until everything that was logged is written, but not for longer than a second.
    pub fn flush(&self) {
        if let Some(queue) = &self.queue {
            queue.flush(Instant::now() + FLUSH_PATIENCE);
        }
    }

    /// Lines that were lost because nobody read them in time.
    pub fn dropped(&self) -> u64 {
        self.queue.as_ref().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
    }
}

/// Lines on their way to the output.
#[derive(Debug, Default)]
struct Queue {
    pending: Mutex<Pending>,
    /// There is something to write, or enough, or somebody waits for it.
    wanted: Condvar,
    /// Something was written.
    written: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Pending {
    lines: Vec<u8>,
    writing: bool,
    flush: bool,
}

impl Queue {
    fn push(&self, line: &[u8]) {
        let mut pending = self.lock();
        let before = pending.lines.len();
        let after = before + line.len();
        if after > MAX_PENDING {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        pending.lines.extend_from_slice(line);
        drop(pending);
        if before == 0 || (before < FLUSH_SIZE && after >= FLUSH_SIZE) {
            self.wanted.notify_one();
        }
    }

    fn flush(&self, deadline: Instant) {
        let mut pending = self.lock();
        pending.flush = true;
        self.wanted.notify_one();
        while !pending.lines.is_empty() || pending.writing {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            pending = self.written.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The writing thread.
    fn write_out(&self, mut output: impl Write) {
        let mut batch = Vec::new();
        let mut last: Option<Instant> = None;
        let mut pending = self.lock();
        loop {
            let due = last.map_or(Duration::ZERO, |last| FLUSH_INTERVAL.saturating_sub(last.elapsed()));
            if pending.lines.is_empty() {
                pending.flush = false;
                self.written.notify_all();
                pending = self.wanted.wait(pending).unwrap_or_else(PoisonError::into_inner);
            } else if !due.is_zero() && pending.lines.len() < FLUSH_SIZE && !pending.flush {
                pending = self.wanted.wait_timeout(pending, due).unwrap_or_else(PoisonError::into_inner).0;
            } else {
                std::mem::swap(&mut pending.lines, &mut batch);
                pending.writing = true;
                drop(pending);
                if output.write_all(&batch).and_then(|()| output.flush()).is_err() {
                    // Standard output is closed. There is nobody to tell but the metric.
                    let lines = batch.iter().filter(|&&byte| byte == b'\n').count();
                    self.dropped.fetch_add(lines as u64, Ordering::Relaxed);
                }
                batch.clear();
                batch.shrink_to(MAX_PENDING / 16);
                last = Some(Instant::now());
                pending = self.lock();
                pending.writing = false;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text_line(format: &Format, facts: &Facts, out: &mut Vec<u8>) {
    format::write(format, facts, Moment::End, out);
    if out.last() != Some(&b'\n') {
        out.push(b'\n');
    }
}

/// One JSON object, its keys in byte order whatever the configuration's order is.
fn json_line(fields: &[(String, Format)], facts: &Facts, out: &mut Vec<u8>) {
    let mut scratch = Vec::new();
    let mut field = |index: usize, (key, format): &(String, Format)| {
        out.push(if index == 0 { b'{' } else { b',' });
        quote(key.as_bytes(), out);
        out.push(b':');
        json_value(format, facts, &mut scratch, out);
    };
    if fields.is_sorted_by(|(a, _), (b, _)| a <= b) {
        fields.iter().enumerate().for_each(|(index, pair)| field(index, pair));
    } else {
        let mut sorted: Vec<&(String, Format)> = fields.iter().collect();
        sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
        sorted.into_iter().enumerate().for_each(|(index, pair)| field(index, pair));
    }
    out.extend_from_slice(if fields.is_empty() { b"{}\n" } else { b"}\n" });
}

/// A value that is exactly one command has that command's type; everything else is a string.
fn json_value(format: &Format, facts: &Facts, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    scratch.clear();
    let kind = match &*format.pieces {
        [Piece::Command { command, max_length }] => format::value(command, *max_length, facts, Moment::End, scratch),
        _ => {
            format::write(format, facts, Moment::End, scratch);
            Kind::Text
        }
    };
    match kind {
        Kind::Absent => out.extend_from_slice(b"null"),
        Kind::Number => out.extend_from_slice(scratch),
        Kind::Text => quote(scratch, out),
    }
}

/// A JSON string. Bytes that are not UTF-8 as a whole are escaped one by one.
fn quote(bytes: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let valid = std::str::from_utf8(bytes).is_ok();
    out.push(b'"');
    for &byte in bytes {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\t' if valid => out.extend_from_slice(b"\\t"),
            b'\n' if valid => out.extend_from_slice(b"\\n"),
            b'\r' if valid => out.extend_from_slice(b"\\r"),
            0..0x20 => escape(byte, HEX, out),
            0x80.. if !valid => escape(byte, HEX, out),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

fn escape(byte: u8, hex: &[u8; 16], out: &mut Vec<u8>) {
    out.extend_from_slice(b"\\u00");
    out.push(hex[usize::from(byte >> 4)]);
    out.push(hex[usize::from(byte & 0xf)]);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::rc::Rc;
    use std::sync::mpsc;

    use config::snapshot::format::Command;

    use super::*;
    use crate::request::{ConnectionFacts, Protocol};

    fn facts() -> Facts {
        let connection = ConnectionFacts::unknown();
        let mut facts = Facts::new(Rc::new(connection), Protocol::Http11);
        facts.status = 200;
        facts
    }

    fn command(command: Command) -> Piece {
        Piece::Command { command, max_length: None }
    }

    fn format(pieces: Vec<Piece>) -> Format {
        Format { pieces }
    }

    fn code(prefix: &str) -> AccessLog {
        let pieces = vec![Piece::Literal(prefix.to_owned()), command(Command::ResponseCode)];
        AccessLog::Text(Arc::new(format(pieces)))
    }

    /// Output that hands every write to the test.
    struct Channel(mpsc::Sender<String>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(bytes.to_vec()).map_err(io::Error::other)?;
            self.0.send(text).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_text_or_json_as_configured() {
        let json = AccessLog::Json(Arc::new(vec![("code".to_owned(), format(vec![command(Command::ResponseCode)]))]));
        let (sender, receiver) = mpsc::channel();
        let logger = AccessLogger::new(Channel(sender)).unwrap();
        logger.write(&code("code "), &facts());
        logger.write(&json, &facts());
        logger.flush();
        assert_eq!(receiver.try_iter().collect::<String>(), "code 200\n{\"code\":200}\n");
    }

    #[test]
    fn json_values_have_the_type_of_their_command() {
        let fields = [
            ("status", vec![command(Command::ResponseCode)]),
            ("flags", vec![command(Command::ResponseFlags)]),
            ("route", vec![command(Command::RouteName)]),
            ("both", vec![command(Command::ResponseCode), command(Command::ResponseCode)]),
            ("mixed", vec![Piece::Literal("code=".into()), command(Command::RouteName)]),
            ("empty", vec![]),
        ]
        .map(|(key, pieces)| (key.to_owned(), format(pieces)));
        let mut line = Vec::new();
        json_line(&fields, &facts(), &mut line);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"both\":\"200200\",\"empty\":\"\",\"flags\":\"-\",\"mixed\":\"code=-\",\"route\":null,\"status\":200}\n"
        );
    }

    #[test]
    fn strings_are_escaped_as_envoy_escapes_them() {
        for (bytes, expected) in [
            (&b"a\"b\\c\td/<>&"[..], r#""a\"b\\c\td/<>&""#),
            ("é".as_bytes(), "\"é\""),
            (b"caf\xe9", r#""caf\u00e9""#),
            (b"\xc3\xa9\xff", r#""\u00c3\u00a9\u00ff""#),
            (b"\t\xff", r#""\u0009\u00ff""#),
            (b"\x01", r#""\u0001""#),
        ] {
            let mut out = Vec::new();
            quote(bytes, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted() {
        let queue = Queue::default();
        let line = vec![b'x'; MAX_PENDING / 2];
        for _ in 0..3 {
            queue.push(&line);
        }
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn many_lines_arrive_in_order_and_complete() {
        let (sender, receiver) = mpsc::channel();
        let logger = AccessLogger::new(Channel(sender)).unwrap();
        let log = code("");
        for status in 0..1000 {
            let mut facts = facts();
            facts.status = status;
            logger.write(&log, &facts);
        }
        logger.flush();
        let expected: String = (0..1000).map(|status| format!("{status}\n")).collect();
        assert_eq!(receiver.try_iter().collect::<String>(), expected);
    }
}
