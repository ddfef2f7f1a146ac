//! How a cluster chooses the endpoint of a request, and when an endpoint is left out.
//!
//! Source: DestinationRule `trafficPolicy.loadBalancer` and `.outlierDetection`; `reference/networking.md` §5.3-5.6.

use std::sync::Arc;
use std::time::Duration;

/// How endpoints share the requests of a cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Balancing {
    /// Who is next.
    pub policy: BalancingPolicy,
    /// What requests are told apart by, for the policies that keep like requests together.
    pub hash_keys: HashKeys,
    /// How endpoints that have just come are spared.
    pub warmup: Option<Warmup>,
    /// Shares of the groups that endpoints belong to ([`Placement::group`]), relative to each other (`distribute`).
    /// Empty: there are no groups.
    pub groups: Arc<[u32]>,
}

/// The algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BalancingPolicy {
    /// Of two random endpoints the one with fewer requests under way; by weight, where weights differ.
    #[default]
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// Any, whatever its weight.
    Random,
    /// Consistent hashing on a ring with at least this many places.
    RingHash {
        /// Places on the ring.
        minimum_size: u64,
    },
    /// Consistent hashing with a table of this size, which is prime.
    Maglev {
        /// Places in the table.
        table_size: u64,
    },
}

impl BalancingPolicy {
    /// Whether like requests go to the same endpoint.
    pub fn is_consistent(self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }
}

/// The hash keys of a cluster. Settings for a port count only where the route names the port of its destination.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HashKeys {
    /// Of routes that name the port.
    pub with_port: Option<Arc<HashKey>>,
    /// Of routes that don't.
    pub without_port: Option<Arc<HashKey>>,
}

impl HashKeys {
    /// The key of a route that names the port of its destination, or doesn't.
    pub fn of_route(&self, names_port: bool) -> Option<&HashKey> {
        if names_port { self.with_port.as_deref() } else { self.without_port.as_deref() }
    }
}

/// What of a request is hashed. A request without it goes to any endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// The values of the header with this lower-case name.
    Header(String),
    /// A cookie.
    Cookie(HashCookie),
    /// The client's address without its port.
    SourceIp,
    /// The first query parameter with this name.
    QueryParameter(String),
}

/// A cookie that keeps a client at its endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// Its `Path`; empty: none.
    pub path: String,
    /// Its `Max-Age`, zero for none; `None`: the gateway never sets the cookie.
    pub ttl: Option<Duration>,
    /// Further attributes in order: a name, and a value that may be empty.
    pub attributes: Vec<(String, String)>,
}

/// The weight of an endpoint of age `t` is multiplied by `max(minimum_percent, (t / duration) ^ (1 / aggression))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmup {
    /// Age at which an endpoint has its full weight.
    pub duration: Duration,
    /// From 0 to 100.
    pub minimum_percent: f64,
    /// Above 0; 1 is linear.
    pub aggression: f64,
}

/// Where an endpoint stands among the others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Placement {
    /// `region/zone/subzone`; empty if unknown.
    pub locality: Arc<str>,
    /// Endpoints of a higher number are used only as those of lower ones fail. Numbers begin at 0 and have no gaps,
    /// names to be resolved included.
    pub priority: u32,
    /// Index into [`Balancing::groups`]; 0 where there are none.
    pub group: u32,
}

/// When endpoints are ejected. Zero turns a detector off.
///
/// Source: DestinationRule `outlierDetection`; `reference/networking.md` §5.6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Errors in a row.
    pub consecutive_5xx: u32,
    /// Answers of 502, 503 and 504 in a row.
    pub consecutive_gateway_errors: u32,
    /// Failures without an answer are counted apart from answers, by `consecutive_local_origin_failures`; otherwise they
    /// count as 503, or 504 where the time was over.
    pub split_local_origin: bool,
    /// Failures without an answer in a row.
    pub consecutive_local_origin_failures: u32,
    /// Time between two looks at who may return.
    pub interval: Duration,
    /// Ejected for the first time an endpoint is out for this long, for the second time twice as long, and so on.
    pub base_ejection_time: Duration,
    /// The longest time; never below `base_ejection_time`.
    pub max_ejection_time: Duration,
    /// No ejection may leave more than this share of the endpoints out, from 0 to 100.
    pub max_ejection_percent: u32,
    /// While fewer than this share of the endpoints is left, ejections are ignored; 0: never.
    pub panic_percent: u32,
    /// Status codes that are errors, ascending, in place of all from 500 on; empty: those.
    pub error_codes: Vec<u16>,
}

impl OutlierDetection {
    /// Whether an answer with this status is an error of its endpoint.
    pub fn is_error(&self, status: u16) -> bool {
        match self.error_codes.as_slice() {
            [] => (500..600).contains(&status),
            codes => codes.binary_search(&status).is_ok(),
        }
    }
}
