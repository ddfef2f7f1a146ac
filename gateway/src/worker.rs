//! What one worker thread has for itself, and what all of them share.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

use crate::egress::Egress;
use crate::state::State;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::Page;
use crate::tls::handshakes::{HandshakeLimits, Handshakes};
use crate::upstream::on_demand::{self, Asker, Questions, Resolver};
use crate::upstream::pool::Pools;

/// Time between two looks at pooled connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What all threads share: the state of the moment and the instruments.
#[derive(Debug)]
pub struct Gateway {
    /// Swapped as a whole by a reload.
    pub state: ArcSwap<State>,
    /// Metrics and access log.
    pub telemetry: Telemetry,
    /// The gateway's own address, told to upstreams in place of a peer on 127.0.0.1 as Envoy does.
    pub own_address: Option<IpAddr>,
    /// Offer WebSocket over HTTP/2 (RFC 8441) to clients. Off in Istio.
    pub http2_websocket: bool,
    /// Bounds of handshakes with clients.
    pub handshakes: HandshakeLimits,
    /// Answer 421 to requests that belong to another filter chain of their listener. Istio answers 404.
    pub strict_sni: bool,
    /// What may leave.
    pub egress: Arc<Egress>,
    connections: AtomicU64,
    crowded: Arc<Notify>,
    asker: Asker,
    /// Until somebody answers them.
    questions: Mutex<Option<Questions>>,
}

impl Gateway {
    /// A gateway with nothing to serve yet.
    pub fn new(telemetry: Telemetry) -> Self {
        let (asker, questions) = on_demand::channel();
        Self {
            state: ArcSwap::from_pointee(State::default()),
            telemetry,
            own_address: None,
            http2_websocket: false,
            handshakes: HandshakeLimits::default(),
            strict_sni: false,
            egress: Arc::default(),
            asker,
            questions: Mutex::new(Some(questions)),
            connections: AtomicU64::new(0),
            crowded: Arc::default(),
        }
    }

    /// Everything that is counted, in Prometheus' text format.
    pub fn metrics_page(&self) -> String {
        let mut page = Page::default();
        self.telemetry.expose(&mut page);
        self.egress.denials.expose(&mut page);
        for (name, cluster) in &*self.state.load().clusters {
            cluster.expose(name, &mut page);
        }
        page.finish()
    }

    /// What workers ask about hosts; given out once.
    pub fn take_questions(&self) -> Option<Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A number for a new connection, downstream or upstream.
    pub fn next_connection_id(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }
}

/// One worker thread: its connection pools live and die with it.
#[derive(Debug)]
pub struct Worker {
    /// What all threads share.
    pub gateway: Arc<Gateway>,
    /// Upstream connections.
    pub pools: Pools,
    /// Handshakes with clients that are under way.
    pub handshakes: Handshakes,
    random: RefCell<SmallRng>,
    /// The `date` header of the second it holds.
    date: RefCell<(u64, Bytes)>,
}

impl Worker {
    /// A worker without connections.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        let resolver = Resolver::new(gateway.asker.clone(), Arc::clone(&gateway.egress));
        let pools = Pools::new(Arc::clone(&gateway.crowded), resolver);
        let handshakes = Handshakes::new(gateway.handshakes.concurrent);
        Self { gateway, pools, handshakes, random: RefCell::new(SmallRng::from_os_rng()), date: RefCell::default() }
    }

    /// Closes pooled connections that are dead or idle for too long, once a second and when their places are wanted,
    /// for as long as the worker runs.
    pub async fn sweep(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SWEEP_INTERVAL) => {}
                () = self.gateway.crowded.notified() => {}
            }
            self.pools.sweep(&self.gateway.state.load());
        }
    }

    /// The value of a `date` header; formatted once a second.
    pub fn date(&self) -> Bytes {
        let now = SystemTime::now();
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut date = self.date.borrow_mut();
        if date.0 != second {
            *date = (second, httpdate::fmt_http_date(now).into());
        }
        date.1.clone()
    }

    /// A number below `bound`; for weights, percentages and back-off, not for secrets.
    pub fn random_below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.random.borrow_mut().random_range(0..bound) }
    }

    /// A random UUID (version 4) as text, for request ids.
    pub fn uuid(&self) -> [u8; 36] {
        let mut bytes = self.random.borrow_mut().random::<u128>().to_be_bytes();
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let mut text = [b'-'; 36];
        let mut at = 0;
        for (index, byte) in bytes.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                at += 1;
            }
            text[at] = b"0123456789abcdef"[usize::from(byte >> 4)];
            text[at + 1] = b"0123456789abcdef"[usize::from(byte & 0x0f)];
            at += 2;
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_version_4() {
        let worker = Worker::new(Arc::new(Gateway::new(Telemetry::default())));
        let id = worker.uuid();
        assert_eq!((id[8], id[13], id[18], id[23]), (b'-', b'-', b'-', b'-'));
        assert_eq!(id[14], b'4');
        assert!(b"89ab".contains(&id[19]));
        assert_ne!(id, worker.uuid());
    }
}
