//! Routes: what matches and what is done.

use std::sync::Arc;
use std::time::Duration;

use super::ResourceName;
use super::cluster::ClusterName;
use super::header::HeaderOps;
use super::matcher::{Pattern, StringMatch};
pub use super::route_index::RouteList;

/// What a route can look at. Borrowed from the request; building one costs nothing.
#[derive(Clone, Copy)]
pub struct RequestView<'a> {
    /// As received, case-sensitive.
    pub method: &'a str,
    /// Normalised path without query or fragment.
    pub path: &'a str,
    /// Raw text after `?`, without it; `None` without `?`.
    pub query: Option<&'a str>,
    /// Host header or `:authority` as received, with its port.
    pub authority: &'a str,
    /// `http` or `https`: the scheme of the connection.
    pub scheme: &'a str,
    /// The header lines.
    pub headers: &'a dyn HeaderLines,
}

/// Access to header lines by name.
pub trait HeaderLines {
    /// Calls `test` with the value of each line named `name` (lower case) in order, until it says `true`; whether it did.
    fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

/// One match entry of an `HTTPRoute` with its action: what Envoy calls a route.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// `<route.name>.<match.name>`, `<route.name>`, or empty.
    pub name: Arc<str>,
    /// Where it comes from.
    pub resource: ResourceName,
    /// When it applies.
    pub matches: RouteMatch,
    /// What is done. Shared by all match entries of one `HTTPRoute` that lead to the same result.
    pub action: Arc<Action>,
    /// Request header changes; see [`HeaderOps`] for the order of levels.
    pub request_headers: Arc<HeaderOps>,
    /// Response header changes, applied to local replies too.
    pub response_headers: Arc<HeaderOps>,
}

/// Conditions of one match entry, all of which must hold.
///
/// Source: Istio `HTTPMatchRequest`; `reference/networking.md` §3.6.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RouteMatch {
    /// On the normalised path without query.
    pub path: PathMatch,
    /// `ignoreUriCase`: ASCII case of exact and prefix paths doesn't matter.
    pub ignore_path_case: bool,
    /// On the method.
    pub method: Option<StringMatch>,
    /// On the scheme.
    pub scheme: Option<StringMatch>,
    /// On the full authority including port.
    pub authority: Option<StringMatch>,
    /// On headers, `withoutHeaders` included.
    pub headers: Vec<HeaderMatch>,
    /// On query parameters.
    pub query: Vec<QueryMatch>,
    /// On JWT claims.
    pub claims: Vec<ClaimMatch>,
}

/// Condition on the path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PathMatch {
    /// Every path that begins with `/`.
    #[default]
    Any,
    /// The whole path.
    Exact(String),
    /// The beginning of the path, as plain text.
    Prefix(String),
    /// Full match.
    Regex(Pattern),
}

/// Condition on a header. Each line is tested alone; one match suffices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Lower-case name; pseudo headers (`:method`, `:path`, `:authority`, `:scheme`) with their colon.
    pub name: String,
    /// On the value.
    pub value: StringMatch,
    /// `withoutHeaders`: fails if a line matches. A missing header counts as the empty string, except for
    /// [`StringMatch::Present`], which then means "must be absent".
    pub invert: bool,
}

/// Condition on the first occurrence of a query parameter; names and values are compared raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryMatch {
    /// Parameter name.
    pub name: String,
    /// On the value; an absent parameter never matches.
    pub value: StringMatch,
}

/// Condition on a claim of a verified JWT: never true (and never inverted to true) before JWT verification exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimMatch {
    /// Path of the claim.
    pub path: Vec<String>,
    /// On the claim's value or one item of it.
    pub value: StringMatch,
    /// `withoutHeaders`.
    pub invert: bool,
}

/// What a route does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send the request to a cluster.
    Forward(Forward),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer with a fixed response.
    DirectResponse(DirectResponse),
}

/// Forwarding to clusters.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Destinations with a weight above 0; never empty. A single one takes everything.
    pub clusters: Vec<WeightedCluster>,
    /// Path rewrite.
    pub path_rewrite: Option<PathRewrite>,
    /// New authority, from `rewrite.authority` or a route-level header operation on it.
    pub host_rewrite: Option<String>,
    /// Route timeout; `None` = none.
    pub timeout: Option<Duration>,
    /// Retries; `None` = disabled.
    pub retry: Option<RetryPolicy>,
    /// Faults.
    pub fault: Option<Fault>,
    /// Mirrors.
    pub mirrors: Vec<Mirror>,
    /// CORS.
    pub cors: Option<Cors>,
}

/// One destination of a forward.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedCluster {
    /// Its cluster; may be absent from the snapshot (503 `NC`).
    pub cluster: ClusterName,
    /// Relative weight, at least 1 when there are several.
    pub weight: u32,
    /// Authority set by this destination's header operations (several destinations only). Without
    /// `x-envoy-original-host`.
    pub host_rewrite: Option<String>,
    /// Operations that run before the route's (several destinations only).
    pub request_headers: HeaderOps,
    /// Operations that run before the route's (several destinations only).
    pub response_headers: HeaderOps,
}

/// How the path changes before it goes upstream; the query stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// The first `length` bytes of the path, which the route matched, are replaced.
    Prefix {
        /// Bytes to replace.
        length: usize,
        /// The replacement.
        with: String,
    },
    /// The whole path is replaced.
    Full(String),
    /// All non-overlapping matches are replaced.
    Regex {
        /// Unanchored expression, as text; compiled in [`Substitution`].
        substitution: Substitution,
    },
}

/// `uriRegexRewrite`: RE2 substitution.
#[derive(Debug, Clone)]
pub struct Substitution {
    pattern: String,
    regex: regex::bytes::Regex,
    /// Literal text and capture references (`\0` to `\9`) in turn.
    replacement: Vec<Replacement>,
}

/// A piece of a substitution's replacement text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Replacement {
    Literal(Vec<u8>),
    Capture(usize),
}

/// Why a `uriRegexRewrite` is wrong.
#[derive(Debug, thiserror::Error)]
pub enum SubstitutionError {
    /// `match` is no expression.
    #[error("{0}")]
    Pattern(#[from] regex::Error),
    /// `\` followed by something else than a digit or `\`.
    #[error("`\\` must be followed by a digit or another `\\`")]
    Escape,
    /// `\n` with more groups than `match` has.
    #[error("`\\{0}` refers to a group that the expression doesn't have")]
    Group(usize),
}

impl Substitution {
    /// Compiles the expression and its replacement.
    ///
    /// # Errors
    /// See [`SubstitutionError`].
    pub fn new(pattern: &str, replacement: &str) -> Result<Self, SubstitutionError> {
        let regex = regex::bytes::Regex::new(pattern)?;
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut bytes = replacement.bytes();
        while let Some(byte) = bytes.next() {
            if byte != b'\\' {
                literal.push(byte);
                continue;
            }
            match bytes.next() {
                Some(b'\\') => literal.push(b'\\'),
                Some(digit @ b'0'..=b'9') => {
                    let group = usize::from(digit - b'0');
                    if group >= regex.captures_len() {
                        return Err(SubstitutionError::Group(group));
                    }
                    if !literal.is_empty() {
                        pieces.push(Replacement::Literal(std::mem::take(&mut literal)));
                    }
                    pieces.push(Replacement::Capture(group));
                }
                _ => return Err(SubstitutionError::Escape),
            }
        }
        if !literal.is_empty() {
            pieces.push(Replacement::Literal(literal));
        }
        Ok(Self { pattern: pattern.to_owned(), regex, replacement: pieces })
    }

    /// `path` with all matches replaced; an unmatched group is empty.
    pub fn apply(&self, path: &str) -> String {
        let replaced = self.regex.replace_all(path.as_bytes(), |captures: &regex::bytes::Captures<'_>| {
            let mut out = Vec::new();
            for piece in &self.replacement {
                match piece {
                    Replacement::Literal(text) => out.extend_from_slice(text),
                    Replacement::Capture(group) => {
                        if let Some(found) = captures.get(*group) {
                            out.extend_from_slice(found.as_bytes());
                        }
                    }
                }
            }
            out
        });
        String::from_utf8_lossy(&replaced).into_owned()
    }
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern && self.replacement == other.replacement
    }
}

impl Eq for Substitution {}

/// A redirect.
///
/// Source: Istio `HTTPRedirect`; `reference/networking.md` §3.7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Change of the path.
    pub path: Option<RedirectPath>,
    /// New host and port.
    pub authority: Option<String>,
    /// Port to append.
    pub port: Option<u16>,
    /// New scheme.
    pub scheme: Option<String>,
    /// 301, 302, 303, 307 or 308.
    pub code: u16,
}

/// The path of a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    /// Replaces the whole path, and the query if it contains `?`. Begins with `/`.
    Full(String),
    /// Replaces the first `length` bytes.
    Prefix {
        /// Bytes to replace.
        length: usize,
        /// The replacement.
        with: String,
    },
}

/// A fixed response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// At most 1 MiB; may be empty.
    pub body: Arc<[u8]>,
}

/// When and how a request is tried again.
///
/// Source: Istio `HTTPRetry`; `reference/networking.md` §3.11.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Retries, not counting the first try; at least 1.
    pub attempts: u32,
    /// Deadline of one try.
    pub per_try_timeout: Option<Duration>,
    /// Conditions.
    pub on: RetryOn,
    /// Base of the back-off; the n-th delay is uniform in `[0, min(base * 2^(n-1), 10 * base))`.
    pub backoff: Duration,
    /// Prefer endpoints that were not tried yet.
    pub avoid_previous_hosts: bool,
}

/// `retryOn` tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "each field is the token of the same name")]
pub struct RetryOn {
    pub server_error: bool,
    pub gateway_error: bool,
    pub reset: bool,
    pub reset_before_request: bool,
    pub connect_failure: bool,
    pub refused_stream: bool,
    pub retriable_4xx: bool,
    pub envoy_ratelimited: bool,
    /// `retriable-status-codes` and the numbers named.
    pub status_codes: Vec<u16>,
    /// `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable` as gRPC codes.
    pub grpc_codes: Vec<u8>,
}

/// A share of requests in millionths: 0 never, 1 000 000 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction(pub u32);

/// Injected faults: the delay comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// How long, and how often.
    pub delay: Option<(Duration, Fraction)>,
    /// With what, and how often.
    pub abort: Option<(Abort, Fraction)>,
}

/// How a fault aborts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// With a status.
    Http(u16),
    /// With a gRPC status; HTTP 200 for other requests.
    Grpc(u8),
}

/// A mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where copies go; skipped if the cluster is absent.
    pub cluster: ClusterName,
    /// How often.
    pub share: Fraction,
}

/// `corsPolicy`.
///
/// Source: `reference/networking.md` §3.14. Header values are ready to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins that are let in; exact `*` is any.
    pub allow_origins: Vec<StringMatch>,
    /// `access-control-allow-methods`; `*` echoes the requested method.
    pub allow_methods: Option<String>,
    /// `access-control-allow-headers`; `*` echoes the requested headers.
    pub allow_headers: Option<String>,
    /// `access-control-expose-headers`.
    pub expose_headers: Option<String>,
    /// Seconds.
    pub max_age: Option<u64>,
    /// `access-control-allow-credentials: true`.
    pub allow_credentials: bool,
    /// Preflights from other origins go upstream (`FORWARD`), or are answered here (`IGNORE`).
    pub forward_unmatched_preflights: bool,
}
