//! A request's way to an upstream and its response's way back.
//!
//! One small state machine: both directions are polled in turn by the same task, so that neither waits for the other.
//! Memory holds at most the retry buffer and what the write queues take. For every moment it is known what has been sent,
//! what may be tried again, which deadlines run and which flag an end gets.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use config::snapshot::cluster::UpstreamProtocol;
use config::snapshot::route::{Forward, PathRewrite, RetryOn, RetryPolicy, WeightedCluster};

use super::affinity::{Affinity, affinity};
use super::exchange::{Cut, Exchange};
use super::headers::Headers;
use super::mirror::Mirrors;
use super::timers::Expired;
use super::{ClientStream, Frame, Gone};
use crate::filter::{cors, fault, headers as header_filter};
use crate::request::{PathAndQuery, Protocol};
use crate::response::{Failure, Flag, Reset};
use crate::upstream::balancer::Pick;
use crate::upstream::cluster::{Cluster, Permit};
use crate::upstream::endpoint::{Active, Address};
use crate::upstream::outlier::{Outcome, grpc_http_status};
use crate::upstream::pool::Key;
use crate::upstream::{self, RequestBody, ResponseHead, Stream};

/// Request bytes that are kept for another try: Envoy's buffer limit.
const RETRY_BUFFER: usize = 1_048_576;
/// Pieces of the retry buffer are at least this large, where smaller ones come one after the other.
const REPLAY_PIECE: usize = 2048;
/// Picks of another endpoint before a tried one is accepted.
const RESELECTIONS: u32 = 5;

/// Forwards the request that `exchange` has found a route for.
pub(super) async fn forward<S: ClientStream>(
    exchange: &mut Exchange,
    stream: &mut S,
    action: &Forward,
) -> Result<(), Cut> {
    let destination = choose(exchange, action);
    let cluster = exchange.state.clusters.get(&destination.cluster).cloned();
    exchange.facts.cluster.clone_from(&cluster);
    if let Some(policy) = &action.fault {
        let drawn = fault::draw(policy, &exchange.context.worker);
        if let Some(delay) = drawn.delay {
            exchange.facts.flags.set(Flag::DI);
            if let Some(failure) = hold(exchange, stream, delay).await? {
                return exchange.fail(stream, failure).await;
            }
        }
        if let Some(failure) = drawn.abort {
            return exchange.fail(stream, failure).await;
        }
    }
    if let Some(policy) = &action.cors {
        match cors::decide(policy, exchange.request()) {
            cors::Decision::Pass => {}
            cors::Decision::Allow(origin) => exchange.cors_origin = Some(origin),
            cors::Decision::Preflight(headers) => return exchange.preflight(stream, headers).await,
        }
    }
    let Some(cluster) = cluster else { return exchange.fail(stream, Failure::NoCluster).await };
    if let Err(reason) = exchange.check_server_name(&cluster) {
        return exchange.deny(stream, reason).await;
    }
    let limits = &cluster.config.limits;
    let Some(active) = cluster.usage.acquire(|usage| &usage.requests, limits.max_requests) else {
        return exchange.fail(stream, Failure::Upstream { reset: Reset::Overflow, retried: false }).await;
    };
    if let Some(interval) = limits.retry_budget.and_then(|budget| budget.interval) {
        cluster.usage.note_request(interval);
    }
    exchange.facts.attempts = 1;
    let timeouts = prepare(exchange, action, destination);
    let dynamic = match exchange.dynamic_host(&cluster).and_then(|host| exchange.pass(host)) {
        Ok(dynamic) => dynamic,
        Err(reason) => return exchange.deny(stream, reason).await,
    };
    let body = RequestState::new(stream, action.retry.is_some(), Mirrors::start(exchange, action));
    let affinity = affinity(exchange, action, &cluster);
    let mut forwarding = Forwarding {
        exchange,
        stream,
        action,
        cluster,
        timeouts,
        affinity,
        dynamic,
        body,
        broken: None,
        under_way: None,
        _active: active,
    };
    forwarding.run().await
}

/// The destination of this request: by weight, if there are several.
fn choose<'a>(exchange: &mut Exchange, action: &'a Forward) -> &'a WeightedCluster {
    exchange.destination = 0;
    if action.clusters.len() > 1 {
        let total: u64 = action.clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
        let mut drawn = exchange.context.worker.random_below(total);
        for (index, cluster) in action.clusters.iter().enumerate() {
            let weight = u64::from(cluster.weight);
            if drawn < weight {
                exchange.destination = index;
                break;
            }
            drawn -= weight;
        }
    }
    &action.clusters[exchange.destination]
}

/// Waits out an injected delay, unless the client goes away; the failure if a deadline passes.
async fn hold<S: ClientStream>(
    exchange: &mut Exchange,
    stream: &mut S,
    delay: Duration,
) -> Result<Option<Failure>, Cut> {
    let mut sleep = pin!(tokio::time::sleep(delay));
    let timers = &mut exchange.timers;
    let expired = poll_fn(|cx| {
        if sleep.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(None));
        }
        if stream.is_request_complete()
            && let Poll::Ready(gone) = stream.poll_gone(cx)
        {
            return Poll::Ready(Err(gone));
        }
        timers.poll(cx).map(|expired| Ok(Some(expired)))
    })
    .await?;
    Ok(expired.map(|expired| timeout_failure(expired, stream.is_request_complete())))
}

/// Effective timeouts of a request.
#[derive(Debug, Clone, Copy, Default)]
struct Timeouts {
    route: Option<Duration>,
    per_try: Option<Duration>,
}

/// Makes the request what the upstream gets: our headers, header operations, rewrites.
fn prepare(exchange: &mut Exchange, action: &Forward, destination: &WeightedCluster) -> Timeouts {
    let grpc = exchange.facts.grpc;
    let (debug, attempts) = (exchange.settings().debug_headers, exchange.settings().attempt_count);
    let forwarded_host = exchange.settings().forwarded_host;
    let mut timeouts =
        Timeouts { route: action.timeout, per_try: action.retry.as_ref().and_then(|retry| retry.per_try_timeout) };
    let request = exchange.request();
    if grpc {
        let wanted = request.headers.get("grpc-timeout").and_then(|value| grpc_timeout(value));
        timeouts.route = match (wanted, action.timeout) {
            (Some(wanted), Some(limit)) => Some(wanted.min(limit)),
            (wanted, limit) => wanted.or(limit),
        };
        if let Some(timeout) = timeouts.route {
            request.headers.set("grpc-timeout", grpc_timeout_text(timeout));
        }
    }
    let announced = match (timeouts.per_try, timeouts.route) {
        (Some(per_try), Some(route)) => Some(per_try.min(route)),
        (per_try, route) => per_try.or(route),
    };
    if let Some(timeout) = announced
        && debug
    {
        request.headers.set("x-envoy-expected-rq-timeout-ms", timeout.as_millis().to_string());
    }
    if attempts {
        request.headers.set("x-envoy-attempt-count", Bytes::from_static(b"1"));
    }
    header_filter::apply_to_request(&destination.request_headers, &mut exchange.facts);
    if let Some(route) = exchange.facts.route.clone() {
        header_filter::apply_to_request(&route.request_headers, &mut exchange.facts);
    }
    let request = exchange.request();
    if let Some(host) = &destination.host_rewrite {
        request.authority = Bytes::copy_from_slice(host.as_bytes());
    }
    if let Some(host) = &action.host_rewrite {
        let old = std::mem::replace(&mut request.authority, Bytes::copy_from_slice(host.as_bytes()));
        if forwarded_host {
            match request.headers.get_mut("x-forwarded-host") {
                Some(line) => *line = [&line[..], b",", &old[..]].concat().into(),
                None => request.headers.push("x-forwarded-host", old.clone()),
            }
        }
        if debug {
            request.headers.set("x-envoy-original-host", old);
        }
    }
    if let Some(rewrite) = &action.path_rewrite {
        let path = rewritten(rewrite, &request.path);
        let old = std::mem::replace(&mut request.path, path);
        if debug {
            request.headers.set("x-envoy-original-path", old.as_bytes().clone());
        }
        exchange.facts.original_path = Some(old);
    }
    timeouts
}

/// A `grpc-timeout` as a duration; `None` if it is none or zero.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let timeout = match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        // Envoy counts in milliseconds and rounds up.
        b'u' => Duration::from_millis(amount.div_ceil(1000)),
        b'n' => Duration::from_millis(amount.div_ceil(1_000_000)),
        _ => return None,
    };
    (!timeout.is_zero()).then_some(timeout)
}

/// A duration as `grpc-timeout`, which has at most eight digits.
fn grpc_timeout_text(timeout: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let millis = timeout.as_millis();
    match [(millis, 'm'), (millis / 1000, 'S'), (millis / 60_000, 'M')].into_iter().find(|(amount, _)| *amount <= MOST)
    {
        Some((amount, unit)) => format!("{amount}{unit}"),
        None => format!("{}H", (millis / 3_600_000).min(MOST)),
    }
}

fn rewritten(rewrite: &PathRewrite, path: &PathAndQuery) -> PathAndQuery {
    let old = path.path();
    let mut new = match rewrite {
        PathRewrite::Prefix { length, with } => format!("{with}{}", old.get(*length..).unwrap_or_default()),
        PathRewrite::Full(with) => with.clone(),
        PathRewrite::Regex { substitution } => substitution.apply(old),
    };
    if let Some(query) = path.query() {
        new.push('?');
        new.push_str(query);
    }
    PathAndQuery::new(new.into())
}

/// The failure that a passed deadline makes of a request without a response.
fn timeout_failure(expired: Expired, complete: bool) -> Failure {
    match expired {
        Expired::Head => Failure::RequestHeaderTimeout,
        Expired::MaxDuration => Failure::MaxStreamDuration(complete),
        Expired::Route => Failure::RouteTimeout,
        Expired::PerTry => Failure::PerTryTimeout,
        Expired::Idle => Failure::StreamIdle(complete),
        Expired::Request => Failure::RequestTimeout,
    }
}

/// How far the request body has come.
struct RequestState {
    /// What was read so far, kept for another try.
    replay: Vec<Bytes>,
    replay_bytes: usize,
    /// The whole request can be sent again.
    replayable: bool,
    /// Pieces of `replay` that this try has sent.
    replayed: usize,
    /// The client has sent everything.
    complete: bool,
    trailers: Option<Headers>,
    /// This try has sent everything.
    sent: bool,
    mirrors: Mirrors,
}

impl RequestState {
    fn new<S: ClientStream>(stream: &S, may_retry: bool, mirrors: Mirrors) -> Self {
        let complete = stream.is_request_complete();
        Self {
            replay: Vec::new(),
            replay_bytes: 0,
            replayable: may_retry,
            replayed: 0,
            complete,
            trailers: None,
            sent: complete,
            mirrors,
        }
    }

    fn begin_try(&mut self) {
        self.replayed = 0;
        self.sent = self.complete && self.replay.is_empty() && self.trailers.is_none();
    }

    fn keep(&mut self, data: &Bytes) {
        if !self.replayable {
            return;
        }
        self.replay_bytes += data.len();
        if self.replay_bytes > RETRY_BUFFER {
            self.replayable = false;
            self.replay = Vec::new();
            self.replayed = 0;
            return;
        }
        // Small pieces are copied together: each on its own would hold the whole buffer that it was read into.
        match self.replay.last_mut() {
            Some(last) if last.len() + data.len() <= REPLAY_PIECE => {
                *last = [&last[..], &data[..]].concat().into();
            }
            _ if data.len() <= REPLAY_PIECE => self.replay.push(Bytes::copy_from_slice(data)),
            _ => self.replay.push(data.clone()),
        }
        self.replayed = self.replay.len();
    }
}

/// What a try came to.
enum Tried {
    /// A response head; the stream holds its body.
    Response(ResponseHead, Stream),
    Failed(Reset),
    Expired(Expired),
}

/// A request between client and upstreams.
struct Forwarding<'f, S> {
    exchange: &'f mut Exchange,
    stream: &'f mut S,
    action: &'f Forward,
    cluster: Arc<Cluster>,
    timeouts: Timeouts,
    affinity: Affinity,
    /// The host, where it is resolved on demand.
    dynamic: Option<Address>,
    body: RequestState,
    /// How the response broke off, until what came before has been written.
    broken: Option<Reset>,
    /// Counts this request among those of the endpoint that has it.
    under_way: Option<Active>,
    /// Counts this request among the cluster's.
    _active: Permit,
}

impl<S: ClientStream> Forwarding<'_, S> {
    /// Tries endpoints until one answers or nothing more may be tried.
    async fn run(&mut self) -> Result<(), Cut> {
        let mut tried: Vec<Address> = Vec::new();
        let mut retrying: Option<Permit> = None;
        loop {
            let attempt = self.exchange.facts.attempts;
            if !self.cluster.is_ready() {
                return self.exchange.fail(self.stream, Failure::NoCluster).await;
            }
            let avoid = match &self.action.retry {
                Some(policy) if policy.avoid_previous_hosts => &tried[..],
                _ => &[],
            };
            let reselections = if avoid.is_empty() { 0 } else { RESELECTIONS };
            let pick = Pick { hash: self.affinity.hash, tried: avoid, reselections };
            let worker = &self.exchange.context.worker;
            let address = match &self.dynamic {
                Some(address) => address.clone(),
                None => match self.cluster.pick(pick, |bound| worker.random_below(bound)) {
                    Some(endpoint) => {
                        self.under_way = Some(endpoint.begin());
                        endpoint.address.clone()
                    }
                    None => return self.exchange.fail(self.stream, Failure::NoHealthyUpstream).await,
                },
            };
            self.exchange.facts.upstream_host = Some(address.clone());
            if attempt > 1
                && let Some(count) = self.exchange.request().headers.get_mut("x-envoy-attempt-count")
            {
                *count = attempt.to_string().into();
            }
            let connection = std::rc::Rc::clone(&self.exchange.facts.connection);
            let key = Key::new(&self.cluster, &address, &self.exchange.request().authority, &connection);
            let outcome = self.attempt(&key).await?;
            self.report(&outcome);
            drop(retrying.take());
            let event = match &outcome {
                Tried::Response(head, _) => Event::Response(head),
                Tried::Failed(reset) => Event::Reset(reset),
                Tried::Expired(Expired::PerTry) => Event::PerTryTimeout,
                Tried::Expired(_) => Event::Final,
            };
            match self.may_retry(&event) {
                Retry::Go(permit) => {
                    retrying = Some(permit);
                    tried.push(address);
                    if let Tried::Response(_, stream) = outcome {
                        self.discard(key, stream).await;
                    }
                    if let Some(expired) = self.back_off(attempt).await? {
                        return self.expire(expired).await;
                    }
                    self.exchange.facts.attempts += 1;
                    continue;
                }
                Retry::Exhausted => self.exchange.facts.flags.set(Flag::URX),
                Retry::Vetoed => self.exchange.facts.flags.set(Flag::UO),
                Retry::No => {}
            }
            return match outcome {
                Tried::Response(head, stream) => self.relay(key, head, stream).await,
                Tried::Failed(reset) => self.exchange.fail_upstream(self.stream, reset, attempt > 1).await,
                Tried::Expired(expired) => self.expire(expired).await,
            };
        }
    }

    /// Tells outlier detection what has come of a try.
    fn report(&self, tried: &Tried) {
        let outcome = match tried {
            // Whether a gRPC call has failed may stand in its trailers, which `relay` reports.
            Tried::Response(head, _) if self.exchange.facts.grpc => match grpc_status(&head.headers) {
                Some(code) => Outcome::Answer(grpc_http_status(code)),
                None if head.end || head.status != 200 => Outcome::Answer(head.status),
                None => return,
            },
            Tried::Response(head, _) => Outcome::Answer(head.status),
            // A limit of the whole cluster says nothing of the endpoint, nor does what it was never asked.
            Tried::Failed(Reset::Overflow | Reset::Unresolved(_) | Reset::Inexpressible) => return,
            Tried::Failed(_) => Outcome::Failed,
            Tried::Expired(Expired::Route | Expired::PerTry) => Outcome::TimedOut,
            Tried::Expired(_) => return,
        };
        self.report_outcome(outcome);
    }

    fn report_outcome(&self, outcome: Outcome) {
        if let Some(under_way) = &self.under_way {
            self.cluster.report(under_way.endpoint(), outcome);
        }
    }

    async fn expire(&mut self, expired: Expired) -> Result<(), Cut> {
        self.exchange.fail(self.stream, timeout_failure(expired, self.body.complete)).await
    }

    /// One try: connection, request, response head.
    async fn attempt(&mut self, key: &Key) -> Result<Tried, Cut> {
        self.exchange.facts.upstream_local = None;
        self.exchange.facts.upstream_tls = None;
        self.exchange.facts.transport_failure = None;
        self.body.begin_try();
        self.exchange.timers.per_try.stop();
        let mut upstream = match self.connect(key).await? {
            Ok(upstream) => upstream,
            Err(outcome) => return Ok(outcome),
        };
        self.report_outcome(Outcome::Connected);
        if self.dynamic.is_some()
            && let Some(remote) = upstream.remote()
        {
            self.exchange.facts.upstream_host = Some(Address::Ip(remote));
        }
        self.exchange.facts.upstream_local = upstream.local();
        self.exchange.facts.upstream_tls = upstream.tls().cloned();
        let kind = match (self.exchange.upgrade, self.body.sent) {
            (true, _) => RequestBody::Upgrade,
            (false, true) => RequestBody::Empty,
            (false, false) => RequestBody::Streamed,
        };
        upstream.send_head(self.exchange.request(), kind);
        if self.exchange.upgrade {
            self.body.sent = true;
        }
        loop {
            let outcome = poll_fn(|cx| self.poll_attempt(cx, &mut upstream)).await?;
            match outcome {
                Polled::Head(mut head) if (100..200).contains(&head.status) && head.status != 101 => {
                    clean_response(&mut head.headers, false);
                    head.headers.remove("content-length");
                    self.stream.send_informational(head.status, &head.headers);
                    if let Some(expired) = self.exchange.flush(self.stream).await? {
                        return Ok(Tried::Expired(expired));
                    }
                }
                Polled::Head(head) => {
                    self.exchange.facts.response_started = Some(Instant::now());
                    return Ok(Tried::Response(head, upstream));
                }
                Polled::Failed(reset) => return Ok(Tried::Failed(reset)),
                Polled::Expired(expired) => {
                    upstream.doubt();
                    return Ok(Tried::Expired(expired));
                }
            }
        }
    }

    /// A stream to the endpoint, while the client and the deadlines are watched.
    async fn connect(&mut self, key: &Key) -> Result<Result<Stream, Tried>, Cut> {
        let http2 = match self.cluster.config.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::SameAsClient => self.exchange.facts.protocol == Some(Protocol::Http2),
        };
        let worker = std::rc::Rc::clone(&self.exchange.context.worker);
        let cluster = Arc::clone(&self.cluster);
        let under_way = self.under_way.as_ref().map(|under_way| Arc::clone(under_way.endpoint()));
        let alternatives = under_way.as_ref().map(|endpoint| endpoint.alternatives());
        let alternatives = alternatives.as_ref().map_or(&[][..], |alternatives| alternatives);
        let mut acquiring = pin!(worker.pools.acquire(&cluster, key, alternatives, http2));
        let acquired = poll_fn(|cx| {
            if let Poll::Ready(acquired) = acquiring.as_mut().poll(cx) {
                return Poll::Ready(Ok(acquired.map_err(Tried::Failed)));
            }
            if self.is_waiting_for_answer()
                && let Poll::Ready(gone) = self.stream.poll_gone(cx)
            {
                return Poll::Ready(Err(Cut::Client(gone)));
            }
            self.start_timers();
            self.exchange.timers.poll(cx).map(|expired| Ok(Err(Tried::Expired(expired))))
        })
        .await?;
        Ok(acquired)
    }

    /// Whether nothing more is read from the client before the upstream answers: the request is complete, or it is a
    /// handshake, whose body comes after the answer.
    fn is_waiting_for_answer(&self) -> bool {
        self.body.complete || self.exchange.upgrade
    }

    /// Route and per-try timeouts run from the moment the whole request has arrived.
    fn start_timers(&mut self) {
        if !self.is_waiting_for_answer() {
            return;
        }
        if let Some(timeout) = self.timeouts.route {
            self.exchange.timers.route.start(timeout);
        }
        if let Some(timeout) = self.timeouts.per_try {
            self.exchange.timers.per_try.start(timeout);
        }
    }

    fn poll_attempt(&mut self, cx: &mut Context<'_>, upstream: &mut Stream) -> Poll<Result<Polled, Cut>> {
        if let Poll::Ready(Err(gone)) = self.poll_request(cx, upstream) {
            return Poll::Ready(Err(gone.into()));
        }
        if let Poll::Ready(head) = upstream.poll_head(cx) {
            return Poll::Ready(Ok(match head {
                Ok(head) => Polled::Head(head),
                Err(reset) => Polled::Failed(reset),
            }));
        }
        if self.is_waiting_for_answer()
            && let Poll::Ready(gone) = self.stream.poll_gone(cx)
        {
            return Poll::Ready(Err(gone.into()));
        }
        self.start_timers();
        self.exchange.timers.poll(cx).map(|expired| Ok(Polled::Expired(expired)))
    }

    /// Moves the request body on; ready when all of it has been written.
    fn poll_request(&mut self, cx: &mut Context<'_>, upstream: &mut Stream) -> Poll<Result<(), Gone>> {
        while !self.body.sent {
            if upstream.poll_ready(cx).is_pending() {
                // Nothing is read from the client now, so its end must be looked for. What comes through a tunnel before
                // its end still belongs to the upstream.
                return if self.exchange.upgrade { Poll::Pending } else { self.stream.poll_gone(cx).map(Err) };
            }
            if let Some(piece) = self.body.replay.get(self.body.replayed) {
                upstream.send_data(piece.clone());
                self.body.replayed += 1;
                continue;
            }
            if self.body.complete {
                upstream.send_end(self.body.trailers.as_ref());
                self.body.sent = true;
                break;
            }
            match self.stream.poll_body(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    self.exchange.timers.moved();
                    self.exchange.facts.bytes_received += data.len() as u64;
                    self.body.mirrors.send(&data);
                    self.body.keep(&data);
                    upstream.send_data(data);
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    self.body.trailers = Some(trailers);
                    self.complete_request();
                }
                Poll::Ready(None) => self.complete_request(),
                Poll::Ready(Some(Err(gone))) => return Poll::Ready(Err(gone)),
                Poll::Pending => {
                    let _ = upstream.poll_flush(cx);
                    return Poll::Pending;
                }
            }
        }
        upstream.poll_flush(cx).map(Ok)
    }

    fn complete_request(&mut self) {
        self.body.complete = true;
        self.body.mirrors.end();
        self.exchange.facts.request_complete = Some(Instant::now());
        self.exchange.timers.request.stop();
        self.start_timers();
    }

    /// Whether what happened is to be tried again, and may be.
    fn may_retry(&self, event: &Event<'_>) -> Retry {
        let Some(policy) = &self.action.retry else { return Retry::No };
        if !event.is_retriable(&policy.on) || self.exchange.upgrade {
            return Retry::No;
        }
        // A body that can't be sent again as a whole rules another try out.
        let bodiless = self.body.complete && self.body.replay_bytes == 0;
        if !(self.body.replayable || bodiless) {
            return Retry::No;
        }
        if self.exchange.facts.attempts > policy.attempts {
            return Retry::Exhausted;
        }
        let limits = &self.cluster.config.limits;
        let usage = &self.cluster.usage;
        let allowed = match limits.retry_budget {
            Some(budget) => {
                let of = match budget.interval {
                    Some(interval) => usage.recent(interval),
                    None => {
                        let (active, pending) = (&usage.requests, &usage.pending);
                        f64::from(active.load(Ordering::Relaxed) + pending.load(Ordering::Relaxed))
                    }
                };
                ((of * budget.percent / 100.0) as u32).max(budget.min_concurrency)
            }
            None => limits.max_retries,
        };
        usage.acquire(|usage| &usage.retries, allowed).map_or(Retry::Vetoed, Retry::Go)
    }

    /// Reads what is left of a response that is not passed on, as far as it is there, to keep its connection.
    async fn discard(&mut self, key: Key, mut stream: Stream) {
        let complete = poll_fn(|cx| {
            loop {
                match stream.poll_frame(cx) {
                    Poll::Ready(None) => return Poll::Ready(true),
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(_))) | Poll::Pending => return Poll::Ready(false),
                }
            }
        })
        .await;
        if complete {
            self.exchange.context.worker.pools.give_back(&self.cluster, key, stream);
        }
    }

    /// Waits before retry number `retry`: uniform below `base * 2^(retry-1)`, at most ten times the base.
    async fn back_off(&mut self, retry: u32) -> Result<Option<Expired>, Cut> {
        let Some(RetryPolicy { backoff, .. }) = self.action.retry.as_deref() else { return Ok(None) };
        let doubled = backoff.saturating_mul(1_u32.checked_shl(retry - 1).unwrap_or(u32::MAX));
        let bound = doubled.min(*backoff * 10);
        let bound = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        let delay = Duration::from_micros(self.exchange.context.worker.random_below(bound));
        self.exchange.timers.per_try.stop();
        let mut sleep = pin!(tokio::time::sleep(delay));
        poll_fn(|cx| {
            if sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            if self.body.complete
                && let Poll::Ready(gone) = self.stream.poll_gone(cx)
            {
                return Poll::Ready(Err(gone.into()));
            }
            self.exchange.timers.poll(cx).map(|expired| Ok(Some(expired)))
        })
        .await
    }

    /// Passes the response on.
    async fn relay(&mut self, key: Key, head: ResponseHead, mut upstream: Stream) -> Result<(), Cut> {
        let ResponseHead { status, mut headers, end } = head;
        let mut end = end;
        self.exchange.facts.status = status;
        self.exchange.facts.details = Cow::Borrowed("via_upstream");
        let tunnel = status == 101 && self.exchange.upgrade;
        if self.exchange.upgrade && !tunnel {
            self.stream.close_after();
            if (200..300).contains(&status) {
                self.exchange.facts.details = Cow::Borrowed("websocket_handshake_unsuccessful");
                headers.remove("content-length");
                end = true;
            }
        }
        clean_response(&mut headers, tunnel);
        // Envoy's upgrade filter answers without it.
        if self.exchange.settings().debug_headers && !self.exchange.upgrade {
            let elapsed = self.exchange.facts.request_complete.unwrap_or(self.exchange.facts.started).elapsed();
            let mut text = Vec::new();
            super::h1::write_decimal(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), &mut text);
            headers.set("x-envoy-upstream-service-time", text);
        }
        for cookie in self.affinity.cookies.drain(..) {
            headers.push("set-cookie", cookie);
        }
        self.exchange.facts.response_headers = headers;
        self.exchange.apply_response_ops();
        if let (Some(origin), Some(policy)) = (&self.exchange.cors_origin, &self.action.cors) {
            cors::decorate(policy, origin, &mut self.exchange.facts.response_headers);
        }
        if tunnel {
            upgrade_headers(self.exchange);
            self.exchange.timers.stop_all();
            self.stream.start_tunnel();
            self.body.complete = false;
            self.body.sent = false;
            self.body.replayable = false;
        }
        self.exchange.send_head(self.stream, end);
        let mut responded = end;
        let outcome = poll_fn(|cx| self.poll_relay(cx, &mut upstream, &mut responded, tunnel)).await?;
        match outcome {
            Relayed::Complete => {
                if self.body.sent || self.body.complete {
                    self.exchange.context.worker.pools.give_back(&self.cluster, key, upstream);
                }
                Ok(())
            }
            Relayed::ClosedTunnel(flag) => {
                self.exchange.facts.flags.set(flag);
                self.exchange.facts.details = match flag {
                    Flag::DC => Cow::Borrowed("downstream_remote_disconnect"),
                    _ => Reset::ConnectionTermination.details(false).into(),
                };
                Ok(())
            }
            Relayed::Broken(reset) => {
                // An HTTP/2 connection writes in its own task; a reset before that would take the head back.
                tokio::task::yield_now().await;
                let flag = if reset == Reset::ConnectionTermination { Flag::UC } else { reset.flag() };
                self.exchange.facts.flags.set(flag);
                self.exchange.facts.details = Cow::Owned(reset.details(false));
                Err(Cut::Response)
            }
            Relayed::Expired(expired) => {
                match expired {
                    Expired::Route => {
                        self.exchange.facts.flags.set(Flag::UT);
                        self.exchange.facts.details = Cow::Borrowed("response_timeout");
                    }
                    Expired::PerTry | Expired::Head => {}
                    Expired::Idle => {
                        self.exchange.facts.flags.set(Flag::SI);
                        self.exchange.facts.details = Cow::Borrowed("stream_idle_timeout");
                    }
                    Expired::MaxDuration => self.exchange.facts.details = Cow::Borrowed("max_duration_timeout"),
                    Expired::Request => self.exchange.facts.details = Cow::Borrowed("request_overall_timeout"),
                }
                Err(Cut::Response)
            }
        }
    }

    /// Moves both directions on until the response is complete and written.
    fn poll_relay(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut Stream,
        responded: &mut bool,
        tunnel: bool,
    ) -> Poll<Result<Relayed, Cut>> {
        if !tunnel {
            self.exchange.timers.per_try.stop();
        }
        while !*responded && self.broken.is_none() {
            let Poll::Ready(ready) = self.stream.poll_ready(cx) else { break };
            ready?;
            match upstream.poll_frame(cx) {
                Poll::Ready(Some(Ok(upstream::Frame::Data(data)))) => {
                    self.exchange.timers.moved();
                    self.exchange.facts.bytes_sent += data.len() as u64;
                    self.stream.send_data(data);
                }
                Poll::Ready(Some(Ok(upstream::Frame::Trailers(trailers)))) => {
                    if self.exchange.facts.grpc
                        && let Some(code) = grpc_status(&trailers)
                    {
                        self.report_outcome(Outcome::Answer(grpc_http_status(code)));
                    }
                    self.exchange.facts.response_trailers.clone_from(&trailers);
                    self.stream.send_end(Some(trailers));
                    *responded = true;
                }
                Poll::Ready(None) => {
                    self.stream.send_end(None);
                    *responded = true;
                }
                Poll::Ready(Some(Err(reset))) => {
                    // Nothing may be read from a broken message; what came before is still the client's.
                    self.broken = Some(reset);
                    break;
                }
                Poll::Pending => break,
            }
        }
        let flushed = self.stream.poll_flush(cx)?;
        if flushed.is_ready()
            && let Some(reset) = self.broken.take()
        {
            return Poll::Ready(Ok(Relayed::Broken(reset)));
        }
        if *responded && flushed.is_ready() {
            return Poll::Ready(Ok(if tunnel { Relayed::ClosedTunnel(Flag::UC) } else { Relayed::Complete }));
        }
        match self.poll_request(cx, upstream) {
            Poll::Ready(Ok(())) if tunnel => return Poll::Ready(Ok(Relayed::ClosedTunnel(Flag::DC))),
            Poll::Ready(Err(_)) if tunnel => return Poll::Ready(Ok(Relayed::ClosedTunnel(Flag::DC))),
            Poll::Ready(Err(gone)) => return Poll::Ready(Err(gone.into())),
            _ => {}
        }
        if self.body.complete
            && !tunnel
            && let Poll::Ready(gone) = self.stream.poll_gone(cx)
        {
            return Poll::Ready(Err(gone.into()));
        }
        self.exchange.timers.poll(cx).map(|expired| Ok(Relayed::Expired(expired)))
    }
}

/// What one try's polling came to.
enum Polled {
    Head(ResponseHead),
    Failed(Reset),
    Expired(Expired),
}

/// What the relaying of a response came to.
enum Relayed {
    Complete,
    ClosedTunnel(Flag),
    Broken(Reset),
    Expired(Expired),
}

/// Whether there is another try.
enum Retry {
    /// Yes; the permit counts it among the cluster's retries.
    Go(Permit),
    /// The policy's number of retries is used up.
    Exhausted,
    /// The cluster has no room for another retry.
    Vetoed,
    /// The policy doesn't ask for one.
    No,
}

/// What a try came to, as retry policies see it.
enum Event<'e> {
    Response(&'e ResponseHead),
    Reset(&'e Reset),
    PerTryTimeout,
    /// Nothing that another try could help.
    Final,
}

impl Event<'_> {
    /// `reference/networking.md` §3.11, each token as measured.
    fn is_retriable(&self, on: &RetryOn) -> bool {
        match self {
            Self::Final | Self::Reset(Reset::Overflow | Reset::Unresolved(_)) => false,
            Self::PerTryTimeout => on.server_error || on.gateway_error || on.reset,
            Self::Reset(reset) => {
                let no_response = on.server_error || on.gateway_error || on.reset;
                no_response
                    || match reset {
                        Reset::ConnectionFailure(_) | Reset::ConnectionTimeout => {
                            on.connect_failure || on.reset_before_request
                        }
                        Reset::RemoteRefused => on.refused_stream,
                        _ => false,
                    }
            }
            Self::Response(head) => {
                let limited = head.headers.contains("x-envoy-ratelimited");
                if limited && on.envoy_ratelimited {
                    return true;
                }
                let grpc = grpc_status(&head.headers);
                (on.server_error && (500..600).contains(&head.status) && !limited)
                    || (on.gateway_error && (502..=504).contains(&head.status) && !limited)
                    || (on.retriable_4xx && head.status == 409)
                    || on.status_codes.contains(&head.status)
                    || grpc.is_some_and(|code| on.grpc_codes.contains(&code))
            }
        }
    }
}

/// The status of a gRPC call, if these headers or trailers have one.
fn grpc_status(headers: &Headers) -> Option<u8> {
    headers.get_str("grpc-status").and_then(|status| status.parse().ok())
}

/// Removes from a response what concerns one connection only.
fn clean_response(headers: &mut Headers, tunnel: bool) {
    headers.retain(|line| match &line.name[..] {
        b"connection" | b"upgrade" => tunnel,
        b"keep-alive" | b"proxy-connection" | b"transfer-encoding" => false,
        _ => true,
    });
}

/// The headers of a 101 response that an HTTP/2 upstream doesn't send.
fn upgrade_headers(exchange: &mut Exchange) {
    let key = exchange.request().headers.get("sec-websocket-key").cloned();
    let headers = &mut exchange.facts.response_headers;
    headers.remove("content-length");
    if headers.contains("upgrade") {
        return;
    }
    headers.push("connection", Bytes::from_static(b"upgrade"));
    headers.push("upgrade", Bytes::from_static(b"websocket"));
    if let Some(key) = key
        && !headers.contains("sec-websocket-accept")
    {
        headers.push("sec-websocket-accept", websocket_accept(&key));
    }
}

/// RFC 6455 §4.2.2.
fn websocket_accept(key: &[u8]) -> String {
    use base64::Engine;
    use sha1::{Digest, Sha1};
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn websocket_keys_are_answered_as_the_rfc_shows() {
        assert_eq!(websocket_accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn grpc_timeouts_have_six_units() {
        for (text, expected) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3000)),
            ("400m", Some(400)),
            ("1u", Some(1)),
            ("1n", Some(1)),
            ("0m", None),
            ("m", None),
            ("5", None),
            ("123456789m", None),
            ("-1m", None),
        ] {
            assert_eq!(grpc_timeout(text.as_bytes()).map(|timeout| timeout.as_millis()), expected, "{text}");
        }
    }

    #[test]
    fn each_token_retries_its_own_failures() {
        let response = |status: u16, header: Option<(&'static str, &'static str)>| {
            let mut headers = Headers::default();
            if let Some((name, value)) = header {
                headers.push(name, value);
            }
            ResponseHead { status, headers, end: true }
        };
        let refused = Reset::ConnectionFailure("x".into());
        let plain_503 = response(503, None);
        let limited = response(503, Some(("x-envoy-ratelimited", "true")));
        let conflict = response(409, None);
        let unavailable = response(200, Some(("grpc-status", "14")));
        let none = RetryOn::default;
        let cases: [(RetryOn, Event<'_>, bool); 15] = [
            (RetryOn { server_error: true, ..none() }, Event::Response(&plain_503), true),
            (RetryOn { server_error: true, ..none() }, Event::Response(&limited), false),
            (RetryOn { server_error: true, ..none() }, Event::PerTryTimeout, true),
            (RetryOn { gateway_error: true, ..none() }, Event::Reset(&Reset::RemoteReset), true),
            (RetryOn { reset: true, ..none() }, Event::Reset(&refused), true),
            (RetryOn { reset: true, ..none() }, Event::Response(&plain_503), false),
            (RetryOn { reset_before_request: true, ..none() }, Event::Reset(&Reset::ConnectionTermination), false),
            (RetryOn { reset_before_request: true, ..none() }, Event::Reset(&refused), true),
            (RetryOn { connect_failure: true, ..none() }, Event::Reset(&Reset::ConnectionTimeout), true),
            (RetryOn { connect_failure: true, ..none() }, Event::PerTryTimeout, false),
            (RetryOn { refused_stream: true, ..none() }, Event::Reset(&Reset::RemoteRefused), true),
            (RetryOn { retriable_4xx: true, ..none() }, Event::Response(&conflict), true),
            (RetryOn { envoy_ratelimited: true, ..none() }, Event::Response(&limited), true),
            (RetryOn { grpc_codes: vec![14], ..none() }, Event::Response(&unavailable), true),
            (RetryOn { server_error: true, ..none() }, Event::Reset(&Reset::Overflow), false),
        ];
        for (index, (on, event, expected)) in cases.iter().enumerate() {
            assert_eq!(event.is_retriable(on), *expected, "case {index}");
        }
    }
}
