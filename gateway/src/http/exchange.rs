//! The life of one request, from its head to its access log line.

use std::borrow::Cow;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use config::snapshot::egress::{BLACK_HOLE, Destination, ForwardProxy, Found, PortProtocol};
use config::snapshot::listener::{HttpChain, HttpSettings};
use config::snapshot::route::{Action, DirectResponse, RequestView, Route};

use super::edge::{self, Upgrade};
use super::headers::Headers;
use super::normalize::{Normalized, normalize};
use super::timers::{Expired, Timers};
use super::{ClientStream, Gone, Serving, connect, forward, head, redirect};
use crate::egress;
use crate::egress::denials::{Denial, Reason};
use crate::egress::host::{Host, Invalid, Target};
use crate::egress::suggestion::Protocol as PortName;
use crate::filter::cors;
use crate::filter::headers as header_filter;
use crate::request::{Begun, Facts, PathAndQuery, Protocol, RequestHead};
use crate::response::{Failure, Flag, LocalReply, Reset, grpc_message, is_grpc};
use crate::state::State;
use crate::upstream::cluster::Cluster;
use crate::upstream::endpoint::Address;
use crate::upstream::on_demand::Unresolved;

/// How long a client may take to read a reply of our own where nothing else is configured.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3600);

/// One request under way.
pub(super) struct Exchange {
    pub context: Rc<Serving>,
    /// The configuration that the request began with; a reload doesn't change it.
    pub state: Arc<State>,
    chain: Arc<HttpChain>,
    pub facts: Facts,
    pub timers: Timers,
    /// The origin that CORS headers of the response answer to.
    pub cors_origin: Option<Bytes>,
    /// Index of the chosen destination of a weighted route.
    pub destination: usize,
    /// The client asks for WebSocket.
    pub upgrade: bool,
    /// The response head has been sent.
    pub head_sent: bool,
    /// Metrics and log have been told.
    recorded: bool,
}

/// Why an exchange ends without a complete response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The client's side is over.
    Client(Gone),
    /// The response broke off; flags and details tell why.
    Response,
}

impl From<Gone> for Cut {
    fn from(gone: Gone) -> Self {
        Self::Client(gone)
    }
}

/// Serves an HTTP/1 request.
pub(super) async fn run_h1<S: ClientStream>(
    context: &Rc<Serving>,
    stream: &mut S,
    head: head::RequestHead,
    begun: Begun,
) {
    let mut exchange = Exchange::new(context, stream.protocol(), begun);
    let is_proxy = exchange.chain.forward_proxy.is_some();
    let checked = request_head(head, context.facts.tls.is_some(), is_proxy);
    let outcome = match checked {
        Ok((request, has_host)) => {
            exchange.facts.request = Some(request);
            if has_host { exchange.serve(stream).await } else { exchange.fail(stream, Failure::MissingHost).await }
        }
        Err(failure) => exchange.fail(stream, failure).await,
    };
    exchange.finish(stream, outcome).await;
}

/// Serves an HTTP/2 request.
pub(super) async fn run_h2<S: ClientStream>(context: &Rc<Serving>, stream: &mut S, request: RequestHead, begun: Begun) {
    let mut exchange = Exchange::new(context, Protocol::Http2, begun);
    exchange.facts.request = Some(request);
    let outcome = exchange.serve(stream).await;
    exchange.finish(stream, outcome).await;
}

/// Answers something that never became a request.
pub(super) async fn refuse<S: ClientStream>(context: &Rc<Serving>, stream: &mut S, failure: &Failure, begun: Begun) {
    let mut exchange = Exchange::new(context, Protocol::Http11, begun);
    let outcome = exchange.reply(stream, failure.reply()).await;
    exchange.finish(stream, outcome).await;
}

/// Notes a connection that ended within a request head.
pub(super) fn aborted(context: &Rc<Serving>, begun: Begun) {
    let mut exchange = Exchange::new(context, Protocol::Http11, begun);
    exchange.note_gone(Gone::Disconnected);
    exchange.record();
}

/// Notes a request that was reset without an answer (HTTP/2 limits).
pub(super) fn reset(context: &Rc<Serving>, begun: Begun, flag: Flag, details: &'static str) {
    let mut exchange = Exchange::new(context, Protocol::Http2, begun);
    exchange.facts.flags.set(flag);
    exchange.facts.details = Cow::Borrowed(details);
    exchange.record();
}

/// The request of an HTTP/1 head, target and Host become path and authority; and whether the client named a host at all.
///
/// A forward proxy (`is_proxy`) gets to see user information in front of a host, which it refuses.
fn request_head(head: head::RequestHead, tls: bool, is_proxy: bool) -> Result<(RequestHead, bool), Failure> {
    let head::RequestHead { method, target, mut headers, .. } = head;
    // Envoy joins two Host lines; which of them another proxy believes is anybody's guess.
    if headers.get_all("host").nth(1).is_some() {
        return Err(Failure::InvalidAuthority);
    }
    let host = headers.get("host").cloned();
    headers.remove("host");
    let (path, authority) = match &target[..] {
        _ if method == "CONNECT" => (Bytes::new(), Some(target)),
        [b'/', ..] => (target, host),
        b"*" if method == "OPTIONS" => return Err(Failure::AbsolutePathRejected),
        b"*" => return Err(Failure::InvalidUrl),
        _ => absolute_form(&target, tls, is_proxy)?,
    };
    if authority.as_ref().is_some_and(|authority| !authority.iter().all(|&byte| is_authority_byte(byte))) {
        return Err(Failure::InvalidAuthority);
    }
    let has_host = authority.is_some();
    let request = RequestHead {
        method,
        path: PathAndQuery::new(path),
        authority: authority.unwrap_or_default(),
        scheme: if tls { "https" } else { "http" },
        headers,
    };
    Ok((request, has_host))
}

/// Path and authority of an absolute target (RFC 9112 §3.2.2).
fn absolute_form(target: &Bytes, tls: bool, keep_user: bool) -> Result<(Bytes, Option<Bytes>), Failure> {
    let scheme_end = target.windows(3).position(|window| window == b"://").ok_or(Failure::CodecError)?;
    match target[..scheme_end].to_ascii_lowercase().as_slice() {
        b"http" => {}
        b"https" if tls => {}
        b"https" => return Err(Failure::HttpsOnPlaintext),
        scheme if scheme.iter().all(u8::is_ascii_alphanumeric) && !scheme.is_empty() => {
            return Err(Failure::InvalidScheme);
        }
        _ => return Err(Failure::CodecError),
    }
    let rest = target.slice(scheme_end + 3..);
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    if end == 0 {
        return Err(Failure::InvalidUrl);
    }
    let user_end = rest[..end].iter().rposition(|&byte| byte == b'@').filter(|_| !keep_user).map_or(0, |at| at + 1);
    let authority = rest.slice(user_end..end);
    match rest.get(end) {
        None => Ok((Bytes::from_static(b"/"), Some(authority))),
        Some(b'/') => Ok((rest.slice(end..), Some(authority))),
        Some(_) => Err(Failure::AbsolutePathRejected),
    }
}

/// Whether a byte can stand in an authority (RFC 3986 §3.2), as Envoy checks it.
pub(super) fn is_authority_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%[]".contains(&byte)
}

impl Exchange {
    fn new(context: &Rc<Serving>, protocol: Protocol, begun: Begun) -> Self {
        let (state, chain) = context.pin();
        let mut facts = Facts::new(Rc::clone(&context.facts), protocol);
        facts.started_at = begun.clock;
        facts.started = begun.instant;
        Self {
            context: Rc::clone(context),
            state,
            chain,
            facts,
            timers: Timers::default(),
            cors_origin: None,
            destination: 0,
            upgrade: false,
            head_sent: false,
            recorded: false,
        }
    }

    pub fn settings(&self) -> &HttpSettings {
        &self.chain.settings
    }

    /// The request. Filled by whoever made the exchange; an empty one stands in for a request that never was.
    pub fn request(&mut self) -> &mut RequestHead {
        self.facts.request.get_or_insert_default()
    }

    /// The whole decision for one request, and its answer.
    async fn serve<S: ClientStream>(&mut self, stream: &mut S) -> Result<(), Cut> {
        self.start_timers(stream);
        let upgrade = match self.admit() {
            Ok(upgrade) => upgrade,
            Err(Refusal::Failure(failure)) => return self.fail(stream, failure).await,
            Err(Refusal::Redirect(location)) => {
                let reply =
                    LocalReply { location: Some(location), ..LocalReply::new(307, "path_normalization_failed") };
                return self.reply(stream, reply).await;
            }
        };
        self.upgrade = upgrade == Upgrade::WebSocket;
        if !self.state.snapshot.refusals.is_empty() {
            return self.fail(stream, Failure::Refused).await;
        }
        if let Some(proxy) = self.chain.forward_proxy.clone() {
            return self.serve_as_proxy(stream, &proxy, upgrade).await;
        }
        self.find_virtual_host();
        if upgrade == Upgrade::Other {
            self.find_route();
            return self.fail(stream, Failure::UpgradeRefused).await;
        }
        if let Some(location) = self.https_redirect() {
            let reply = LocalReply { location: Some(location), ..LocalReply::new(301, "direct_response") };
            return self.reply(stream, reply).await;
        }
        self.find_route();
        let Some(route) = self.facts.route.clone() else {
            let failure = if self.is_misdirected() { Failure::Misdirected } else { Failure::NoRoute };
            if self.context.worker.gateway.egress.is_egress_gateway {
                self.note_denial(Reason::NoRoute);
            }
            return self.fail(stream, failure).await;
        };
        self.act(stream, &route).await
    }

    /// Does what a route says.
    async fn act<S: ClientStream>(&mut self, stream: &mut S, route: &Route) -> Result<(), Cut> {
        match &*route.action {
            Action::Forward(action) => forward::forward(self, stream, action).await,
            Action::Redirect(action) => {
                let location = redirect::location(action, self.request());
                let reply = LocalReply { location: Some(location), ..LocalReply::new(action.code, "direct_response") };
                self.reply(stream, reply).await
            }
            Action::DirectResponse(action) => self.direct_response(stream, action).await,
        }
    }

    /// The decision of a forward proxy: a route of a VirtualService first, then the hosts and ports of ServiceEntries.
    async fn serve_as_proxy<S: ClientStream>(
        &mut self,
        stream: &mut S,
        proxy: &ForwardProxy,
        upgrade: Upgrade,
    ) -> Result<(), Cut> {
        let is_connect = self.request().method == "CONNECT";
        self.request().headers.remove("proxy-authorization");
        let target = match Target::parse(&self.request().authority) {
            Ok(target) if is_connect && target.port.is_none() => Err(Invalid::Port),
            target => target,
        };
        let target = match target {
            Ok(target) => target,
            Err(invalid) => return self.deny(stream, Reason::InvalidHost(invalid)).await,
        };
        self.find_virtual_host();
        self.find_route();
        if upgrade == Upgrade::Other {
            return self.fail(stream, Failure::UpgradeRefused).await;
        }
        if let Some(route) = self.facts.route.clone() {
            return self.act(stream, &route).await;
        }
        // Who has routes for a host has said all that may be asked of it. CONNECT is none of them in any case.
        if self.facts.virtual_host.is_some() && !is_connect {
            return self.fail(stream, Failure::NoRoute).await;
        }
        // Names are what policies are about; an address will do only where anything does.
        if matches!(target.host, Host::Ip(_)) && proxy.passthrough.is_none() {
            return self.deny(stream, Reason::AddressLiteral).await;
        }
        let Target { host, port } = target;
        let (host, port) = (host.into_text(), port.unwrap_or(80));
        if !proxy.covers(&host) {
            return self.deny(stream, Reason::HostNotServed).await;
        }
        let (route, protocol) = match proxy.destinations.find(&host, port) {
            Found::Destination(Destination { route, protocol, .. }) => (route, *protocol),
            found => match &proxy.passthrough {
                Some(route) => (route, PortProtocol::Tcp),
                None if found == Found::NoPort => return self.deny(stream, Reason::UnknownPort).await,
                None => return self.deny(stream, Reason::UnknownHost).await,
            },
        };
        self.facts.route = Some(Arc::clone(route));
        let Action::Forward(action) = &*route.action else { return self.fail(stream, Failure::NoRoute).await };
        let cluster = action.clusters.first().and_then(|first| self.state.clusters.get(&first.cluster)).cloned();
        let Some(cluster) = cluster else { return self.fail(stream, Failure::NoCluster).await };
        if is_connect {
            let wanted = connect::Wanted { cluster, action, host, port, protocol };
            return match wanted.refusal(self.facts.virtual_host.is_some()) {
                Some(reason) => self.deny(stream, reason).await,
                None => connect::connect(self, stream, wanted).await,
            };
        }
        if protocol == PortProtocol::Tls && cluster.config.tls.is_none() {
            return self.deny(stream, Reason::ClearText).await;
        }
        forward::forward(self, stream, action).await
    }

    /// Whether the client asks for the host that it has begun TLS for, where any host may be asked for.
    pub fn check_server_name(&self, cluster: &Cluster) -> Result<(), Reason> {
        let (Some(dns), Some(request)) = (cluster.dynamic(), &self.facts.request) else { return Ok(()) };
        egress::check_server_name(dns, &request.authority, &self.facts.connection)
    }

    /// The host to connect to, if it is resolved on demand.
    pub fn dynamic_host(&self, cluster: &Cluster) -> Result<Option<Address>, Reason> {
        let (Some(dns), Some(request)) = (cluster.dynamic(), &self.facts.request) else { return Ok(None) };
        let Target { host, port } = egress::admit(dns, &request.authority)?;
        let host = host.into_text();
        let default = if cluster.config.tls.is_some() { 443 } else { 80 };
        Ok(Some(Address::Host(host, port.unwrap_or(default))))
    }

    /// Writes down that the request passes here, if it goes to a host that the client has chosen; `host` again.
    pub fn pass(&mut self, host: Option<Address>) -> Result<Option<Address>, Reason> {
        if let (Some(_), Some(request)) = (&host, &mut self.facts.request) {
            self.context.worker.gateway.egress.pass(&mut request.headers, self.facts.protocol)?;
        }
        Ok(host)
    }

    /// Refuses egress.
    pub async fn deny<S: ClientStream>(&mut self, stream: &mut S, reason: Reason) -> Result<(), Cut> {
        self.note_denial(reason);
        self.fail(stream, Failure::EgressDenied(reason)).await
    }

    /// Counts and logs refused egress.
    pub fn note_denial(&mut self, reason: Reason) {
        self.facts.details = Failure::EgressDenied(reason).reply().details;
        if matches!(reason, Reason::UnknownHost | Reason::UnknownPort) {
            self.facts.cluster = self.state.clusters.get(BLACK_HOLE).cloned();
        }
        let Some(request) = &self.facts.request else { return };
        let is_connect = request.method == "CONNECT";
        let protocol = match Target::parse(&request.authority) {
            _ if !is_connect => PortName::Http,
            Ok(target) if target.port == Some(443) => PortName::Tls,
            _ => PortName::Tcp,
        };
        let denial = Denial {
            reason,
            connection: &self.facts.connection,
            client: self.facts.client,
            authority: &request.authority,
            port: if self.chain.forward_proxy.is_some() { 80 } else { self.facts.connection.port },
            protocol,
        };
        self.context.worker.gateway.egress.denials.deny(&denial);
    }

    /// Answers that there is no answer of an upstream.
    pub async fn fail_upstream<S: ClientStream>(
        &mut self,
        stream: &mut S,
        reset: Reset,
        retried: bool,
    ) -> Result<(), Cut> {
        match &reset {
            Reset::ConnectionFailure(reason) if !reason.is_empty() => {
                self.facts.transport_failure = Some(reason.clone());
            }
            Reset::Unresolved(Unresolved::Forbidden) => self.note_denial(Reason::ForbiddenAddress),
            Reset::Unresolved(Unresolved::Loop) => self.note_denial(Reason::Loop),
            _ => {}
        }
        self.fail(stream, Failure::Upstream { reset, retried }).await
    }

    /// Checks and normalises the request, and adds what upstreams are told about the client.
    fn admit(&mut self) -> Result<Upgrade, Refusal> {
        let chain = Arc::clone(&self.chain);
        let settings = &*chain.settings;
        let connection = Rc::clone(&self.context.facts);
        let own_address = self.context.worker.gateway.own_address;
        let request_id = settings.request_id.then(|| self.context.worker.uuid());
        let context = Rc::clone(&self.context);
        let certificate = context.client_certificate();
        let request = self.request();
        if request.method == "QUERY" && !request.headers.contains("content-type") {
            return Err(Failure::QueryWithoutContentType.into());
        }
        let upgrade = edge::sanitize(&mut request.headers, settings, certificate.is_some())?;
        if request.method != "CONNECT" {
            match normalize(request.path.as_bytes(), settings.path_normalization, settings.escaped_slashes) {
                Normalized::Unchanged => {}
                Normalized::Changed(path) => request.path = PathAndQuery::new(path),
                Normalized::Redirect(location) => return Err(Refusal::Redirect(location)),
                Normalized::Refused => return Err(Failure::InvalidPath.into()),
            }
        }
        let client = edge::client_address(&request.headers, &connection, settings.trusted_proxies);
        edge::forwarded(request, &connection, client, settings, own_address);
        if let Some(id) = request_id {
            request.headers.set("x-request-id", Bytes::copy_from_slice(&id));
        }
        if let Some(certificate) = certificate {
            edge::certificate(&mut request.headers, settings.forward_client_cert, certificate);
        }
        self.facts.grpc = is_grpc(self.request().headers.get("content-type"));
        self.facts.client = client;
        Ok(upgrade)
    }

    fn start_timers<S: ClientStream>(&mut self, stream: &S) {
        let chain = Arc::clone(&self.chain);
        if let Some(limit) = chain.settings.max_stream_duration {
            self.timers.max_duration.start(limit);
        }
        if let Some(limit) = chain.settings.stream_idle_timeout {
            self.timers.watch_idle(limit);
        }
        if stream.is_request_complete() {
            self.facts.request_complete = Some(self.facts.started);
        } else if let Some(limit) = chain.settings.request_timeout {
            self.timers.request.start(limit);
        }
    }

    fn find_virtual_host(&mut self) {
        // Legal authorities are ASCII; anything else matches no virtual host.
        let authority = self.facts.request.as_ref().and_then(|request| std::str::from_utf8(&request.authority).ok());
        self.facts.virtual_host = authority.and_then(|authority| self.chain.routes.virtual_host(authority)).cloned();
    }

    /// Whether the host is none of this filter chain's, and a connection for it would have found another one: a client that
    /// reuses a connection because of its certificate. Istio answers 404.
    fn is_misdirected(&self) -> bool {
        let context = &self.context;
        if !context.worker.gateway.strict_sni || context.facts.tls.is_none() || self.facts.virtual_host.is_some() {
            return false;
        }
        let Some(request) = &self.facts.request else { return false };
        let Ok(authority) = std::str::from_utf8(&request.authority) else { return false };
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).to_ascii_lowercase();
        let chains = self.state.listeners.get(&context.listener);
        chains.and_then(|chains| chains.choose(Some(&host))).is_some_and(|chain| chain.config.name != context.chain)
    }

    /// Where a plaintext request to an https-only virtual host is sent.
    fn https_redirect(&self) -> Option<Bytes> {
        let redirects = self.facts.virtual_host.as_ref()?.https_redirect;
        let request = self.facts.request.as_ref()?;
        let secure = request.headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
        (redirects && !secure && request.method != "CONNECT").then(|| redirect::https(request))
    }

    fn find_route(&mut self) {
        let Some(request) = &self.facts.request else { return };
        let authority = std::str::from_utf8(&request.authority).unwrap_or_default();
        let virtual_host = self.facts.virtual_host.as_ref();
        let view = RequestView {
            method: std::str::from_utf8(&request.method).unwrap_or_default(),
            path: request.path.path(),
            query: request.path.query(),
            authority,
            scheme: request.scheme,
            headers: &request.headers,
        };
        let route = virtual_host.and_then(|virtual_host| virtual_host.routes.find(&view));
        self.facts.route = route.map(Arc::clone);
    }

    async fn direct_response<S: ClientStream>(&mut self, stream: &mut S, action: &DirectResponse) -> Result<(), Cut> {
        let status = action.status;
        let location = (status == 201 || (300..400).contains(&status)).then(|| {
            let request = self.request();
            redirect::own_address(request, request.scheme)
        });
        let bodiless = matches!(status, 204 | 304);
        let body = if bodiless { Bytes::new() } else { Bytes::copy_from_slice(&action.body) };
        let reply = LocalReply { body, location, close: status == 400, ..LocalReply::new(status, "direct_response") };
        self.reply(stream, reply).await
    }

    /// Answers a failure.
    pub async fn fail<S: ClientStream>(&mut self, stream: &mut S, failure: Failure) -> Result<(), Cut> {
        if let Failure::CodecError | Failure::InvalidAuthority = failure {
            // What could not be understood is not logged as a request.
            if !self.head_sent && self.facts.route.is_none() {
                self.facts.request = None;
            }
        }
        self.reply(stream, failure.reply()).await
    }

    /// Sends an answer of the gateway's own.
    pub async fn reply<S: ClientStream>(&mut self, stream: &mut S, reply: LocalReply) -> Result<(), Cut> {
        if let Some(flag) = reply.flag {
            self.facts.flags.set(flag);
        }
        self.facts.details = reply.details.clone();
        let mut headers = Headers::with_capacity(8);
        if reply.overloaded && self.settings().debug_headers {
            headers.push("x-envoy-overloaded", Bytes::from_static(b"true"));
        }
        if let Some(location) = &reply.location {
            headers.push("location", location.clone());
        }
        self.facts.response_headers = headers;
        self.apply_response_ops();
        let headers = &mut self.facts.response_headers;
        let body = if self.facts.grpc {
            self.facts.status = 200;
            headers.set("content-type", Bytes::from_static(b"application/grpc"));
            headers.set("grpc-status", reply.grpc_code().to_string());
            if !reply.body.is_empty() {
                headers.set("grpc-message", grpc_message(&reply.body));
            }
            Bytes::new()
        } else {
            self.facts.status = reply.status;
            // A 204 must have no length (RFC 9110 §8.6), although Envoy sends one.
            if !reply.body.is_empty() && reply.status != 204 {
                headers.set("content-length", reply.body.len().to_string());
                if !headers.contains("content-type") {
                    headers.push("content-type", Bytes::from_static(b"text/plain"));
                }
            }
            // Where there must be no body, its length still tells what it would have been.
            let head_request = self.facts.request.as_ref().is_some_and(|request| request.method == "HEAD");
            if head_request || matches!(reply.status, 204 | 304) { Bytes::new() } else { reply.body }
        };
        if let (Some(origin), Some(Action::Forward(action))) =
            (&self.cors_origin, self.facts.route.as_ref().map(|route| &*route.action))
            && let Some(policy) = &action.cors
        {
            cors::decorate(policy, origin, headers);
        }
        // What follows a CONNECT was meant for a tunnel.
        let connect = self.facts.request.as_ref().is_some_and(|request| request.method == "CONNECT");
        if reply.close || self.upgrade || connect || !stream.is_request_complete() {
            stream.close_after();
        }
        self.send_head(stream, body.is_empty());
        if !body.is_empty() {
            self.facts.bytes_sent += body.len() as u64;
            stream.send_data(body);
            stream.send_end(None);
        }
        self.flush_reply(stream).await
    }

    /// Writes what is queued for the client; what ran out, if a deadline passes first.
    pub async fn flush<S: ClientStream>(&mut self, stream: &mut S) -> Result<Option<Expired>, Cut> {
        poll_fn(|cx| match stream.poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed.map(|()| None).map_err(Cut::Client)),
            Poll::Pending => self.timers.poll(cx).map(|expired| Ok(Some(expired))),
        })
        .await
    }

    /// Writes a reply of our own, or the end of a tunnel. A client that doesn't read it gets as long as the stream may be idle.
    pub async fn flush_reply<S: ClientStream>(&mut self, stream: &mut S) -> Result<(), Cut> {
        self.timers.stop_all();
        let settings = self.settings();
        self.timers.watch_idle(settings.stream_idle_timeout.or(settings.idle_timeout).unwrap_or(REPLY_TIMEOUT));
        match self.flush(stream).await? {
            None => Ok(()),
            Some(_) => Err(Cut::Response),
        }
    }

    /// Answers a CORS preflight. Route operations don't apply to it.
    pub async fn preflight<S: ClientStream>(&mut self, stream: &mut S, headers: Headers) -> Result<(), Cut> {
        self.facts.details = Cow::Borrowed("cors_response");
        self.facts.status = 200;
        self.facts.response_headers = headers;
        self.send_head(stream, true);
        self.flush_reply(stream).await
    }

    /// Runs the response operations of the destination and the route that were chosen.
    pub fn apply_response_ops(&mut self) {
        let Some(route) = self.facts.route.clone() else { return };
        if let Action::Forward(action) = &*route.action
            && let Some(destination) = action.clusters.get(self.destination)
        {
            header_filter::apply_to_response(&destination.response_headers, &mut self.facts);
        }
        header_filter::apply_to_response(&route.response_headers, &mut self.facts);
    }

    /// Completes the response's headers with `date` and `server` and sends them.
    pub fn send_head<S: ClientStream>(&mut self, stream: &mut S, end: bool) {
        if !self.facts.response_headers.contains("date") {
            self.facts.response_headers.push("date", self.context.worker.date());
        }
        if let Some(server) = &self.chain.settings.server {
            self.facts.response_headers.set("server", Bytes::copy_from_slice(server.as_bytes()));
        }
        if self.context.drain.is_draining() {
            stream.close_after();
        }
        self.head_sent = true;
        stream.send_head(self.facts.status, &self.facts.response_headers, end);
    }

    fn note_gone(&mut self, gone: Gone) {
        let (flag, details) = match gone {
            Gone::Disconnected => (Flag::DC, "downstream_remote_disconnect"),
            Gone::Reset => (Flag::DR, "http2.remote_reset"),
            Gone::BadBody if self.facts.protocol == Some(Protocol::Http2) => (Flag::DPE, "http2.remote_reset"),
            Gone::BadBody => (Flag::DPE, "http1.codec_error"),
        };
        self.facts.flags.set(flag);
        self.facts.details = Cow::Borrowed(details);
    }

    /// The end of the request: what is left to say to the client, then metrics and the access log.
    async fn finish<S: ClientStream>(mut self, stream: &mut S, mut outcome: Result<(), Cut>) {
        if outcome == Err(Cut::Client(Gone::BadBody)) && !self.head_sent && self.facts.protocol != Some(Protocol::Http2)
        {
            outcome = self.reply(stream, Failure::CodecError.reply()).await;
        }
        match outcome {
            Ok(()) => {}
            Err(Cut::Client(gone)) => {
                self.note_gone(gone);
                stream.abort();
            }
            Err(Cut::Response) => stream.abort(),
        }
        self.record();
    }

    fn record(&mut self) {
        self.recorded = true;
        self.context.worker.gateway.telemetry.record(&self.state, &self.facts);
    }
}

impl Drop for Exchange {
    /// A request that is cut off by the end of a drain, or by a panic, is logged as one whose client went away.
    fn drop(&mut self) {
        if !self.recorded {
            self.note_gone(Gone::Disconnected);
            self.record();
        }
    }
}

/// Why a request isn't admitted.
enum Refusal {
    Failure(Failure),
    /// To the path without escaped slashes.
    Redirect(Bytes),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}
