//! What the tests speak: a gateway process, upstreams that follow a script, clients that see bytes, and tables.

pub mod client;
pub mod dns;
pub mod exchange;
pub mod gateway;
pub mod mesh;
pub mod peer;
pub mod pki;
pub mod process;
pub mod raw_h2;
pub mod sample;
pub mod status;
pub mod stream;
pub mod table;
pub mod tls_client;
pub mod tls_server;
pub mod upstream;

use std::future::Future;
use std::time::{Duration, Instant};

/// Longest time that anything may take which needs no timer of its own. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Asks `question` until it has an answer, or `None` after `limit`.
pub async fn eventually_within<T, F>(limit: Duration, mut question: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = Option<T>>,
{
    let begin = Instant::now();
    loop {
        if let Some(answer) = question().await {
            return Some(answer);
        }
        if begin.elapsed() >= limit {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Asks `question` until it has an answer; panics, saying `what` was awaited, when [`PATIENCE`] is at its end.
pub async fn eventually<T, F>(what: &str, question: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    match eventually_within(PATIENCE, question).await {
        Some(answer) => answer,
        None => panic!("waited in vain: {what}"),
    }
}
