//! What arrived, as JSON.

use std::io;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Request, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{Connection, EchoOptions};

/// Longest body that is shown as text; of longer ones the beginning.
const SHOWN: usize = 64 * 1024;

/// One request, read to its end. Of its body only the beginning is kept.
pub(super) struct Received {
    head: Parts,
    beginning: Vec<u8>,
    size: u64,
    trailers: Option<HeaderMap>,
}

impl Received {
    /// Reads the body to its end, at most `rate` bytes a second.
    pub(super) async fn read(request: Request<Incoming>, rate: Option<u64>) -> io::Result<Self> {
        let (head, mut body) = request.into_parts();
        let mut received = Self { head, beginning: Vec::new(), size: 0, trailers: None };
        while let Some(frame) = body.frame().await {
            match frame.map_err(io::Error::other)?.into_data() {
                Ok(data) => {
                    received.size += data.len() as u64;
                    let room = SHOWN - received.beginning.len();
                    received.beginning.extend_from_slice(&data[..data.len().min(room)]);
                    if let Some(rate) = rate {
                        let pause = data.len() as f64 / rate.max(1) as f64;
                        tokio::time::sleep(Duration::try_from_secs_f64(pause).unwrap_or(Duration::MAX)).await;
                    }
                }
                Err(frame) => received.trailers = frame.into_trailers().ok(),
            }
        }
        Ok(received)
    }

    pub(super) fn report(&self, options: &EchoOptions, connection: &Connection, number: u64) -> Value {
        let body = str::from_utf8(&self.beginning).ok();
        let mut report = head_report(&self.head, options, connection, number);
        report["body"] = json!({ "size": self.size, "text": body });
        if let Some(trailers) = &self.trailers {
            report["trailers"] = fields(trailers);
        }
        report
    }
}

/// Everything that is known before the body.
///
/// `headers` are `[name, value]` pairs in the order in which names first appeared; lines of one name stand together,
/// since the HTTP library keeps no more of the order.
pub(super) fn head_report(head: &Parts, options: &EchoOptions, connection: &Connection, number: u64) -> Value {
    let protocol = match head.version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    let host = head.headers.get(http::header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    json!({
        "name": options.name,
        "version": options.version,
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map_or("/", |target| target.as_str()),
        "host": head.uri.authority().map(ToString::to_string).or(host),
        "protocol": protocol,
        "headers": fields(&head.headers),
        "remote": connection.remote.to_string(),
        "connection": connection.id,
        "request": number,
    })
}

fn fields(headers: &HeaderMap) -> Value {
    let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])
    };
    headers.iter().map(pair).collect()
}
