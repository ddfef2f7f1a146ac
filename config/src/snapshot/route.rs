//! Routes: what matches and what is done.

use std::fmt;
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

    /// Calls `visit` with the lower-case name and the value of every line.
    fn each_line(&self, visit: &mut dyn FnMut(&str, &[u8]));
}

impl RequestView<'_> {
    /// Whether a line of header `name` satisfies `test`. Pseudo headers are lines too, and `host` is another name of
    /// `:authority`, as in Envoy.
    fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        match name {
            ":method" => test(self.method.as_bytes()),
            ":authority" | "host" => test(self.authority.as_bytes()),
            ":scheme" => test(self.scheme.as_bytes()),
            ":path" => match self.query {
                Some(query) => test(format!("{}?{query}", self.path).as_bytes()),
                None => test(self.path.as_bytes()),
            },
            _ => self.headers.any_line(name, test),
        }
    }

    /// The raw value of the first query parameter called `name`; empty without `=`.
    pub(super) fn query_parameter(&self, name: &str) -> Option<&str> {
        query_parameters(self.query?).find_map(|(key, value)| (key == name).then_some(value))
    }
}

/// The raw names and values of a query.
pub fn query_parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
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

impl Route {
    /// A route for everything to one cluster, called `default` as Istio calls the routes of services that no
    /// VirtualService has.
    pub fn to_cluster(cluster: ClusterName, resource: ResourceName, retry: Option<Arc<RetryPolicy>>) -> Self {
        let operations = Arc::<HeaderOps>::default();
        let destination = WeightedCluster {
            cluster,
            weight: 1,
            names_port: true,
            host_rewrite: None,
            request_headers: Arc::clone(&operations),
            response_headers: Arc::clone(&operations),
        };
        let action = Forward {
            clusters: vec![destination],
            path_rewrite: None,
            host_rewrite: None,
            timeout: None,
            retry,
            fault: None,
            mirrors: Vec::new(),
            cors: None,
        };
        Self {
            name: "default".into(),
            resource,
            matches: RouteMatch::default(),
            action: Arc::new(Action::Forward(action)),
            request_headers: Arc::clone(&operations),
            response_headers: operations,
        }
    }

    /// The first cluster that it forwards to.
    pub fn cluster(&self) -> Option<&ClusterName> {
        match &*self.action {
            Action::Forward(forward) => forward.clusters.first().map(|first| &first.cluster),
            Action::Redirect(_) | Action::DirectResponse(_) => None,
        }
    }
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
    pub method: Option<Box<StringMatch>>,
    /// On the scheme.
    pub scheme: Option<Box<StringMatch>>,
    /// On the full authority including port.
    pub authority: Option<Box<StringMatch>>,
    /// On headers, `withoutHeaders` included.
    pub headers: Vec<HeaderMatch>,
    /// On query parameters.
    pub query: Vec<QueryMatch>,
    /// On JWT claims.
    pub claims: Vec<ClaimMatch>,
}

impl RouteMatch {
    /// Whether all conditions hold. The plain definition of a match; [`RouteList`] finds the first one faster.
    ///
    /// Source: `reference/networking.md` §3.6; CONNECT matches nothing (§3.21).
    pub fn is_match(&self, request: &RequestView<'_>) -> bool {
        let Self { path, ignore_path_case, method, scheme, authority, headers, query, claims } = self;
        let holds = |condition: &Option<Box<StringMatch>>, value: &str| {
            condition.as_ref().is_none_or(|condition| condition.is_match(value.as_bytes()))
        };
        request.method != "CONNECT"
            && path.is_match(request.path, *ignore_path_case)
            && holds(method, request.method)
            && holds(scheme, request.scheme)
            && holds(authority, request.authority)
            // No claim is verified, so no condition on one can hold, inverted or not.
            && claims.is_empty()
            && headers.iter().all(|header| header.is_match(request))
            && query.iter().all(|parameter| {
                request.query_parameter(&parameter.name).is_some_and(|value| parameter.value.is_match(value.as_bytes()))
            })
    }
}

impl PathMatch {
    fn is_match(&self, path: &str, ignore_case: bool) -> bool {
        let path = path.as_bytes();
        match self {
            Self::Any => path.starts_with(b"/"),
            Self::Exact(text) if ignore_case => path.eq_ignore_ascii_case(text.as_bytes()),
            Self::Exact(text) => path == text.as_bytes(),
            Self::Prefix(text) if ignore_case => {
                path.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
            }
            Self::Prefix(text) => path.starts_with(text.as_bytes()),
            Self::Regex(pattern) => pattern.is_match(path),
        }
    }
}

impl HeaderMatch {
    fn is_match(&self, request: &RequestView<'_>) -> bool {
        let mut present = false;
        let matched = request.any_line(&self.name, &mut |value| {
            present = true;
            self.value.is_match(value)
        });
        match self {
            Self { invert: false, .. } => matched,
            Self { value: StringMatch::Present, .. } => !present,
            Self { value, .. } if !present => !value.is_match(b""),
            _ => !matched,
        }
    }
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
#[allow(clippy::large_enum_variant, reason = "nearly all actions forward")]
pub enum Action {
    /// Send the request to a cluster.
    Forward(Forward),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer with a fixed response.
    DirectResponse(DirectResponse),
}

/// Forwarding to clusters. There may be one for each of 100,000 routes, so what few routes have is behind a pointer.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Destinations with a weight above 0; never empty. A single one takes everything.
    pub clusters: Vec<WeightedCluster>,
    /// Path rewrite.
    pub path_rewrite: Option<Box<PathRewrite>>,
    /// New authority, from `rewrite.authority` or a route-level header operation on it.
    pub host_rewrite: Option<String>,
    /// Route timeout; `None` = none.
    pub timeout: Option<Duration>,
    /// Retries; `None` = disabled. Shared by all routes that have the mesh's.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Faults.
    pub fault: Option<Box<Fault>>,
    /// Mirrors.
    pub mirrors: Vec<Mirror>,
    /// CORS.
    pub cors: Option<Box<Cors>>,
}

/// One destination of a forward.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedCluster {
    /// Its cluster; may be absent from the snapshot (503 `NC`).
    pub cluster: ClusterName,
    /// Relative weight, at least 1 when there are several.
    pub weight: u32,
    /// The route names the port, so that settings for the port count for its hash key.
    pub names_port: bool,
    /// Authority set by this destination's header operations (several destinations only). Without
    /// `x-envoy-original-host`.
    pub host_rewrite: Option<String>,
    /// Operations that run before the route's (several destinations only).
    pub request_headers: Arc<HeaderOps>,
    /// Operations that run before the route's (several destinations only).
    pub response_headers: Arc<HeaderOps>,
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
#[derive(Clone)]
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

/// The expression and the replacement as configured.
impl fmt::Debug for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s/{}/", self.pattern)?;
        for piece in &self.replacement {
            match piece {
                Replacement::Literal(text) => f.write_str(&String::from_utf8_lossy(text).replace('\\', "\\\\"))?,
                Replacement::Capture(group) => write!(f, "\\{group}")?,
            }
        }
        f.write_str("/g")
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

    use super::*;

    struct Lines(&'static [(&'static str, &'static str)]);

    impl HeaderLines for Lines {
        fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
            self.0.iter().any(|(key, value)| *key == name && test(value.as_bytes()))
        }

        fn each_line(&self, visit: &mut dyn FnMut(&str, &[u8])) {
            self.0.iter().for_each(|(key, value)| visit(key, value.as_bytes()));
        }
    }

    const GET: RequestView<'static> = RequestView {
        method: "GET",
        path: "/foo/bar",
        query: None,
        authority: "Foo.com:80",
        scheme: "http",
        headers: &Lines(&[]),
    };

    fn exact(text: &str) -> StringMatch {
        StringMatch::Exact(text.to_owned())
    }

    fn regex(text: &str) -> StringMatch {
        StringMatch::Regex(Pattern::new(text).unwrap())
    }

    #[test]
    fn paths() {
        let exact = |text: &str| PathMatch::Exact(text.to_owned());
        let prefix = |text: &str| PathMatch::Prefix(text.to_owned());
        let regex = |text: &str| PathMatch::Regex(Pattern::new(text).unwrap());
        for (condition, ignore_path_case, path, expected) in [
            (PathMatch::Any, false, "/x", true),
            (PathMatch::Any, false, "*", false),
            (prefix(""), false, "*", true),
            (prefix("/foo"), false, "/foobar", true),
            (prefix("/foo"), false, "/foo", true),
            (prefix("/foo/"), false, "/foo", false),
            (prefix("/foo"), false, "/FOO", false),
            (prefix("/foo"), true, "/FOO/Bar", true),
            (prefix("/foo"), true, "/fo", false),
            (exact("/foo"), false, "/foo/", false),
            (exact("/foo"), true, "/Foo", true),
            (exact("/foo"), true, "/Foo/", false),
            (regex("/f.."), true, "/FOO", false),
            (regex("(?i)/f.."), false, "/FOO", true),
            (regex("/foo"), false, "/foobar", false),
        ] {
            let matches = RouteMatch { path: condition, ignore_path_case, ..RouteMatch::default() };
            assert_eq!(matches.is_match(&RequestView { path, ..GET }), expected, "{matches:?} on {path}");
        }
    }

    #[test]
    fn header_lines_are_tested_one_by_one() {
        let two: &'static Lines = &Lines(&[("x", "v"), ("x", "w")]);
        let one: &'static Lines = &Lines(&[("x", "1")]);
        let empty: &'static Lines = &Lines(&[("x", "")]);
        let none: &'static Lines = &Lines(&[]);
        for (headers, value, invert, expected) in [
            (two, exact("v"), false, true),
            (two, exact("w"), false, true),
            (two, exact("v,w"), false, false),
            (two, exact("v"), true, false),
            (two, exact("z"), true, true),
            (one, exact("1"), true, false),
            (one, exact("2"), true, true),
            (none, exact("1"), true, true),
            (none, exact("1"), false, false),
            (none, exact(""), true, false),
            (none, regex(".*"), true, false),
            (none, regex(".*"), false, false),
            (none, StringMatch::Present, false, false),
            (none, StringMatch::Present, true, true),
            (empty, StringMatch::Present, false, true),
            (empty, StringMatch::Present, true, false),
            (empty, exact(""), false, true),
        ] {
            let header = HeaderMatch { name: "x".to_owned(), value, invert };
            let request = RequestView { headers, ..GET };
            assert_eq!(header.is_match(&request), expected, "{header:?} on {:?}", headers.0);
        }
    }

    #[test]
    fn pseudo_headers_are_headers() {
        let request = RequestView { query: Some("a=1"), ..GET };
        for (name, value, expected) in [
            (":method", "GET", true),
            (":path", "/foo/bar?a=1", true),
            (":path", "/foo/bar", false),
            (":authority", "Foo.com:80", true),
            (":authority", "foo.com", false),
            ("host", "Foo.com:80", true),
            (":scheme", "http", true),
        ] {
            let header = HeaderMatch { name: name.to_owned(), value: exact(value), invert: false };
            assert_eq!(header.is_match(&request), expected, "{name} {value}");
        }
    }

    #[test]
    fn query_parameters_are_raw_and_the_first_counts() {
        for (query, name, value, expected) in [
            (Some("q=a%20b"), "q", exact("a b"), false),
            (Some("q=a%20b"), "q", exact("a%20b"), true),
            (Some("%71=1"), "q", exact("1"), false),
            (Some("q=1&q=2"), "q", exact("1"), true),
            (Some("q=1&q=2"), "q", exact("2"), false),
            (Some("q"), "q", exact(""), true),
            (Some("q="), "q", exact(""), true),
            (Some("p;q=1"), "q", exact("1"), false),
            (Some("q=a=b"), "q", exact("a=b"), true),
            (Some("Q=1"), "q", exact("1"), false),
            (Some("x=1"), "q", exact(""), false),
            (None, "q", exact(""), false),
            (None, "q", StringMatch::Present, false),
            (Some("q"), "q", StringMatch::Present, true),
        ] {
            let matches = RouteMatch {
                query: vec![QueryMatch { name: name.to_owned(), value: value.clone() }],
                ..RouteMatch::default()
            };
            assert_eq!(matches.is_match(&RequestView { query, ..GET }), expected, "{query:?} {value:?}");
        }
    }

    #[test]
    fn connect_and_claims_match_nothing() {
        let any = RouteMatch::default();
        assert!(any.is_match(&GET));
        assert!(!any.is_match(&RequestView { method: "CONNECT", ..GET }));
        for invert in [false, true] {
            let claim = ClaimMatch { path: vec!["sub".to_owned()], value: exact("me"), invert };
            assert!(!RouteMatch { claims: vec![claim], ..RouteMatch::default() }.is_match(&GET));
        }
    }

    #[test]
    fn authority_is_compared_whole() {
        for (authority, expected) in [("Foo.com:80", true), ("foo.com", false), ("Foo.com", false)] {
            let matches = RouteMatch { authority: Some(Box::new(exact(authority))), ..RouteMatch::default() };
            assert_eq!(matches.is_match(&GET), expected, "{authority}");
        }
    }
}
