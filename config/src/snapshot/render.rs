//! A snapshot for people and scripts: listeners, hosts, routes in order, clusters.

mod balancing;
mod tls;

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Snapshot;
use super::balancing::Placement;
use super::cluster::{
    Cluster, DnsEndpoint, DynamicDns, Endpoint, EndpointAddress, Endpoints, Http2Keepalive, Limits, ProxyProtocol,
    RetryBudget, TcpKeepalive, UpstreamProtocol,
};
use super::egress::{Destination, ForwardProxy, PortProtocol};
use super::format::{Command, Format, Piece, tls_text};
use super::header::{HeaderOps, HeaderPut};
use super::host::VirtualHost;
use super::listener::{Bind, FilterChain, Handler, Listener, TcpChain, TcpDestination, Transport, Tunnel};
use super::matcher::StringMatch;
use super::route::{
    Abort, Action, ClaimMatch, Cors, DirectResponse, Fault, Forward, HeaderMatch, Mirror, PathMatch, PathRewrite,
    QueryMatch, Redirect, RedirectPath, RetryOn, RetryPolicy, Route, RouteMatch, WeightedCluster,
};

/// As text, indented. The same snapshot always gives the same text.
pub fn text(snapshot: &Snapshot) -> String {
    let mut out = Lines::default();
    for refusal in &snapshot.refusals {
        out.line(0, format_args!("refuses to serve: {}: {}", refusal.resource, refusal.reason));
    }
    for listener in &snapshot.listeners {
        out.listener(listener);
    }
    for cluster in clusters(snapshot) {
        out.cluster(cluster);
    }
    out.text
}

/// As JSON: `{"listeners": [...], "clusters": [...], "refusals": [...]}`. Conditions and actions have the words of the
/// text form.
pub fn json(snapshot: &Snapshot) -> Value {
    let refusals = snapshot
        .refusals
        .iter()
        .map(|refusal| json!({ "resource": refusal.resource.to_string(), "reason": refusal.reason }));
    json!({
        "listeners": snapshot.listeners.iter().map(|listener| json_listener(listener)).collect::<Vec<_>>(),
        "clusters": clusters(snapshot).into_iter().map(json_cluster).collect::<Vec<_>>(),
        "refusals": refusals.collect::<Vec<_>>(),
    })
}

/// By name.
fn clusters(snapshot: &Snapshot) -> Vec<&Cluster> {
    let mut clusters: Vec<&Cluster> = snapshot.clusters.values().map(|cluster| &**cluster).collect();
    clusters.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    clusters
}

/// By domain, exact ones before wildcards.
fn hosts(chain: &FilterChain) -> Vec<&VirtualHost> {
    let tables = chain.http().into_iter().map(|http| &http.routes);
    let mut hosts: Vec<&VirtualHost> =
        tables.flat_map(|table| table.virtual_hosts()).map(|virtual_host| &**virtual_host).collect();
    hosts.sort_unstable_by_key(|host| (host.domain.starts_with('*'), &host.domain));
    hosts
}

#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn line(&mut self, indent: usize, arguments: std::fmt::Arguments<'_>) {
        // Writing to a `String` can't fail.
        _ = writeln!(self.text, "{:indent$}{arguments}", "", indent = indent * 2);
    }

    fn listener(&mut self, listener: &Listener) {
        let target = match listener.target_port == listener.port {
            true => String::new(),
            false => format!(", opens {}", listener.target_port),
        };
        self.line(0, format_args!("listener {}{target}", bind(listener)));
        if listener.proxy_protocol {
            self.line(1, format_args!("connections begin with a PROXY protocol header"));
        }
        for chain in &listener.filter_chains {
            self.chain(chain);
        }
    }

    fn chain(&mut self, chain: &FilterChain) {
        let FilterChain { name, gateways, server_names, transport: on_wire, handler } = chain;
        let gateways: Vec<_> = gateways.iter().map(ToString::to_string).collect();
        let what = match handler {
            Handler::Http(_) => "table",
            Handler::Tcp(_) => "stream",
        };
        let wire = match (on_wire, server_names.as_slice()) {
            (Transport::Plaintext, []) => String::new(),
            (on_wire, []) => format!(", {} for any name", transport(on_wire)),
            (on_wire, names) => format!(", {} for {}", transport(on_wire), names.join(", ")),
        };
        self.line(1, format_args!("{what} {name} ({}){wire}", gateways.join(", ")));
        if let Transport::Terminate(settings) = on_wire {
            for line in tls::server(settings) {
                self.line(2, format_args!("{line}"));
            }
        }
        match handler {
            Handler::Tcp(stream) => self.stream(stream),
            Handler::Http(http) => {
                self.hosts(chain);
                http.forward_proxy.iter().for_each(|proxy| self.forward_proxy(proxy));
            }
        }
    }

    fn stream(&mut self, stream: &TcpChain) {
        let TcpChain { destinations, idle_timeout: _, max_connection_duration: _, tunnel: _, resource } = stream;
        let target = |TcpDestination { cluster, weight }: &TcpDestination| match destinations.len() {
            1 => cluster.to_string(),
            _ => format!("{cluster} x{weight}"),
        };
        let targets: Vec<_> = destinations.iter().map(target).collect();
        self.line(2, format_args!("{} ({resource})", targets.join(", ")));
        for limit in stream_limits(stream) {
            self.line(2, format_args!("{limit}"));
        }
    }

    fn hosts(&mut self, chain: &FilterChain) {
        for host in hosts(chain) {
            let resources: Vec<_> = host.resources.iter().map(ToString::to_string).collect();
            let resources = if resources.is_empty() { String::new() } else { format!(" ({})", resources.join(", ")) };
            let redirect = if host.https_redirect { ", redirects to https" } else { "" };
            self.line(1, format_args!("host {}{resources}{redirect}", host.name));
            for (position, route) in host.routes.routes().iter().enumerate() {
                self.route(position, route);
            }
        }
    }

    fn route(&mut self, position: usize, route: &Route) {
        let name = if route.name.is_empty() { String::new() } else { format!(" \"{}\"", route.name) };
        let conditions = conditions(&route.matches).join(", ");
        self.line(2, format_args!("{}.{name} {conditions} -> {}", position + 1, summary(&route.action)));
        for detail in action_details(&route.action) {
            self.line(4, format_args!("{detail}"));
        }
        for (direction, operations) in [("request", &route.request_headers), ("response", &route.response_headers)] {
            for operation in header_details(operations) {
                self.line(4, format_args!("{direction} {operation}"));
            }
        }
    }

    fn cluster(&mut self, cluster: &Cluster) {
        let protocol = protocol(cluster.protocol);
        let timeout = cluster.connect_timeout;
        self.line(0, format_args!("cluster {} ({protocol}, connect timeout {timeout:?})", cluster.name));
        for endpoint in endpoints(&cluster.endpoints) {
            self.line(1, format_args!("{endpoint}"));
        }
        for (position, line) in cluster.tls.iter().flat_map(|settings| tls::client(settings)).enumerate() {
            self.line(if position == 0 { 1 } else { 2 }, format_args!("{line}"));
        }
        for line in behaviour(cluster) {
            self.line(1, format_args!("{line}"));
        }
    }

    fn forward_proxy(&mut self, proxy: &ForwardProxy) {
        let ForwardProxy { hosts, destinations, passthrough } = proxy;
        let unknown = if passthrough.is_some() { "let through" } else { "refused" };
        self.line(1, format_args!("forward proxy for {}, unknown hosts are {unknown}", hosts.join(", ")));
        for (host, ports) in destinations.list() {
            for destination in ports {
                let Destination { port, protocol, route: _ } = destination;
                let (protocol, cluster) = (port_protocol(*protocol), cluster_of(destination));
                self.line(2, format_args!("{host}:{port} ({protocol}) -> {cluster}"));
            }
        }
    }
}

fn cluster_of(destination: &Destination) -> &str {
    destination.cluster().map_or("", |cluster| cluster.as_str())
}

fn port_protocol(protocol: PortProtocol) -> &'static str {
    match protocol {
        PortProtocol::Http => "HTTP",
        PortProtocol::Tls => "TLS",
        PortProtocol::Tcp => "TCP",
    }
}

/// What differs from the default of how a cluster is used.
fn behaviour(cluster: &Cluster) -> Vec<String> {
    let mut lines = balancing::balancing(&cluster.balancing);
    lines.extend(cluster.outlier_detection.iter().flat_map(|detection| balancing::outlier_detection(detection)));
    lines.extend(cluster.proxy_protocol.map(|version| match version {
        ProxyProtocol::V1 => "PROXY protocol 1".to_owned(),
        ProxyProtocol::V2 => "PROXY protocol 2".to_owned(),
    }));
    lines.extend(limits(&cluster.limits));
    lines
}

fn json_listener(listener: &Listener) -> Value {
    let chains = &listener.filter_chains;
    let tables = chains.iter().filter(|chain| chain.http().is_some()).map(|chain| &*chain.name);
    let mut gateways: Vec<String> = chains.iter().flat_map(|chain| &chain.gateways).map(ToString::to_string).collect();
    gateways.dedup();
    let hosts = chains.iter().flat_map(|chain| hosts(chain).into_iter().map(|host| json_host(host, &chain.name)));
    json!({
        "bind": bind(listener),
        "port": listener.port,
        "targetPort": listener.target_port,
        "proxyProtocol": listener.proxy_protocol,
        "chains": chains.iter().map(|chain| json_chain(chain)).collect::<Vec<_>>(),
        "tables": tables.collect::<Vec<_>>(),
        "gateways": gateways,
        "hosts": hosts.collect::<Vec<_>>(),
    })
}

fn json_chain(chain: &FilterChain) -> Value {
    let FilterChain { name, gateways, server_names, transport: on_wire, handler } = chain;
    let mut object = Map::new();
    object.insert("name".to_owned(), json!(&**name));
    object.insert("gateways".to_owned(), gateways.iter().map(ToString::to_string).collect());
    object.insert("serverNames".to_owned(), server_names.iter().map(|name| &**name).collect());
    object.insert("transport".to_owned(), json!(transport(on_wire)));
    if let Transport::Terminate(settings) = on_wire {
        object.insert("tls".to_owned(), json!(tls::server(settings)));
    }
    if let Handler::Tcp(stream) = handler {
        let destinations = stream
            .destinations
            .iter()
            .map(|TcpDestination { cluster, weight }| json!({ "cluster": cluster.as_str(), "weight": weight }));
        object.insert("destinations".to_owned(), destinations.collect());
        object.insert("limits".to_owned(), json!(stream_limits(stream)));
        object.insert("resource".to_owned(), json!(stream.resource.to_string()));
    }
    if let Some(proxy) = chain.http().and_then(|http| http.forward_proxy.as_deref()) {
        object.insert("forwardProxy".to_owned(), json_forward_proxy(proxy));
    }
    Value::Object(object)
}

fn json_forward_proxy(proxy: &ForwardProxy) -> Value {
    let ForwardProxy { hosts, destinations, passthrough } = proxy;
    let list = destinations.list();
    let ports = list.iter().flat_map(|(host, ports)| ports.iter().map(move |destination| (host, destination)));
    let destinations = ports.map(|(host, destination)| {
        let Destination { port, protocol, route: _ } = destination;
        let (protocol, cluster) = (port_protocol(*protocol), cluster_of(destination));
        json!({ "host": host, "port": port, "protocol": protocol, "cluster": cluster })
    });
    json!({
        "hosts": hosts.iter().map(|host| &**host).collect::<Vec<_>>(),
        "outboundTrafficPolicy": if passthrough.is_some() { "ALLOW_ANY" } else { "REGISTRY_ONLY" },
        "destinations": destinations.collect::<Vec<_>>(),
    })
}

fn json_host(host: &VirtualHost, table: &str) -> Value {
    json!({
        "name": host.name,
        "table": table,
        "domain": &*host.domain,
        "httpsRedirect": host.https_redirect,
        "resources": host.resources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "routes": host.routes.routes().iter().map(|route| json_route(route)).collect::<Vec<_>>(),
    })
}

fn json_route(route: &Route) -> Value {
    let mut object = Map::new();
    if !route.name.is_empty() {
        object.insert("name".to_owned(), json!(&*route.name));
    }
    object.insert("resource".to_owned(), json!(route.resource.to_string()));
    object.insert("match".to_owned(), json!(conditions(&route.matches)));
    object.insert("action".to_owned(), json!(summary(&route.action)));
    if let Action::Forward(forward) = &*route.action {
        let clusters = forward
            .clusters
            .iter()
            .map(|target| json!({ "cluster": target.cluster.as_str(), "weight": target.weight }));
        object.insert("clusters".to_owned(), clusters.collect());
    }
    let lists = [
        ("details", action_details(&route.action)),
        ("requestHeaders", header_details(&route.request_headers)),
        ("responseHeaders", header_details(&route.response_headers)),
    ];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        object.insert(key.to_owned(), json!(list));
    }
    Value::Object(object)
}

fn json_cluster(cluster: &Cluster) -> Value {
    json!({
        "name": cluster.name.as_str(),
        "host": &*cluster.service.host,
        "namespace": &*cluster.service.namespace,
        "port": cluster.port,
        "subset": cluster.subset,
        "protocol": protocol(cluster.protocol),
        "connectTimeout": format!("{:?}", cluster.connect_timeout),
        "endpoints": endpoints(&cluster.endpoints),
        "tls": cluster.tls.as_deref().map(tls::client).unwrap_or_default(),
        "limits": behaviour(cluster),
    })
}

/// `TLS SIMPLE`.
fn transport(transport: &Transport) -> String {
    match transport {
        Transport::Plaintext => "plaintext".to_owned(),
        Transport::Passthrough => "TLS PASSTHROUGH".to_owned(),
        Transport::Terminate(settings) => format!("TLS {}", tls::server_mode(settings.mode)),
    }
}

/// What differs from the default.
fn stream_limits(stream: &TcpChain) -> Vec<String> {
    let TcpChain { destinations: _, idle_timeout, max_connection_duration, tunnel, resource: _ } = stream;
    let mut limits = Vec::new();
    match idle_timeout {
        Some(timeout) if *timeout == Duration::from_secs(3600) => {}
        Some(timeout) => limits.push(format!("idle timeout {timeout:?}")),
        None => limits.push("no idle timeout".to_owned()),
    }
    limits.extend(max_connection_duration.map(|duration| format!("max connection duration {duration:?}")));
    if let Some(Tunnel { post, target }) = tunnel.as_deref() {
        limits.push(format!("tunnel {} {target}", if *post { "POST" } else { "CONNECT" }));
    }
    limits
}

fn bind(listener: &Listener) -> String {
    match &listener.bind {
        Bind::Default => format!("*:{}", listener.port),
        Bind::Ip(ip) => std::net::SocketAddr::new(*ip, listener.port).to_string(),
        Bind::UnixPath(path) => format!("unix://{}", path.display()),
        Bind::UnixAbstract(name) => format!("unix://@{name}"),
    }
}

/// What a route asks for, one text for each condition.
pub fn conditions(matches: &RouteMatch) -> Vec<String> {
    let RouteMatch { path, ignore_path_case, method, scheme, authority, headers, query, claims } = matches;
    let fold = if *ignore_path_case { " (any case)" } else { "" };
    let mut conditions = vec![match path {
        PathMatch::Any => "any path".to_owned(),
        PathMatch::Exact(text) => format!("path {text}{fold}"),
        PathMatch::Prefix(text) => format!("path {text}*{fold}"),
        PathMatch::Regex(pattern) => format!("path ~ {}", pattern.as_str()),
    }];
    for (name, value) in [("method", method), ("scheme", scheme), ("authority", authority)] {
        conditions.extend(value.as_ref().map(|value| format!("{name} {}", string_match(value))));
    }
    for HeaderMatch { name, value, invert } in headers {
        let not = if *invert { "not " } else { "" };
        conditions.push(format!("{not}header {name} {}", string_match(value)));
    }
    for QueryMatch { name, value } in query {
        conditions.push(format!("query {name} {}", string_match(value)));
    }
    for ClaimMatch { path, value, invert } in claims {
        let not = if *invert { "not " } else { "" };
        conditions.push(format!("{not}claim {} {}", path.join("."), string_match(value)));
    }
    conditions
}

fn string_match(value: &StringMatch) -> String {
    match value {
        StringMatch::Exact(text) => format!("= {text:?}"),
        StringMatch::Prefix(text) => format!("= {text:?}*"),
        StringMatch::Regex(pattern) => format!("~ {}", pattern.as_str()),
        StringMatch::Present => "present".to_owned(),
    }
}

/// What a route does, in a line.
pub fn summary(action: &Action) -> String {
    match action {
        Action::Forward(Forward { clusters, .. }) => {
            let target = |target: &WeightedCluster| match clusters.len() {
                1 => target.cluster.to_string(),
                _ => format!("{} x{}", target.cluster, target.weight),
            };
            clusters.iter().map(target).collect::<Vec<_>>().join(", ")
        }
        Action::Redirect(Redirect { path, authority, port, scheme, code }) => {
            let mut text = format!("redirect {code}");
            let parts = [
                scheme.as_ref().map(|scheme| format!("scheme {scheme}")),
                authority.as_ref().map(|authority| format!("authority {authority}")),
                port.map(|port| format!("port {port}")),
                path.as_ref().map(|path| match path {
                    RedirectPath::Full(path) => format!("path {path}"),
                    RedirectPath::Prefix { length, with } => format!("first {length} bytes of path {with}"),
                }),
            ];
            parts.into_iter().flatten().for_each(|part| {
                text.push_str(", ");
                text.push_str(&part);
            });
            text
        }
        Action::DirectResponse(DirectResponse { status, body }) => format!("respond {status}, {} bytes", body.len()),
    }
}

fn action_details(action: &Action) -> Vec<String> {
    let Action::Forward(forward) = action else { return Vec::new() };
    let Forward { clusters, path_rewrite, host_rewrite, timeout, retry, fault, mirrors, cors } = forward;
    let mut details = Vec::new();
    for WeightedCluster { cluster, weight: _, names_port: _, host_rewrite, request_headers, response_headers } in
        clusters
    {
        details.extend(host_rewrite.as_ref().map(|host| format!("{cluster}: authority {host}")));
        for (direction, operations) in [("request", request_headers), ("response", response_headers)] {
            let operations = header_details(operations).into_iter();
            details.extend(operations.map(|operation| format!("{cluster}: {direction} {operation}")));
        }
    }
    details.extend(path_rewrite.as_deref().map(|rewrite| match rewrite {
        PathRewrite::Prefix { length, with } => format!("rewrite first {length} bytes of path to {with}"),
        PathRewrite::Full(path) => format!("rewrite path to {path}"),
        PathRewrite::Regex { substitution } => format!("rewrite path by {substitution:?}"),
    }));
    details.extend(host_rewrite.as_ref().map(|host| format!("rewrite authority to {host}")));
    details.extend(timeout.map(|timeout| format!("timeout {timeout:?}")));
    details.push(match retry.as_deref() {
        None => "no retries".to_owned(),
        Some(RetryPolicy { attempts, per_try_timeout, on, backoff, avoid_previous_hosts }) => {
            let per_try = per_try_timeout.map(|timeout| format!(", each {timeout:?}")).unwrap_or_default();
            let same_host = if *avoid_previous_hosts { "" } else { ", any host" };
            format!("retries {attempts}{per_try} on {}, back-off {backoff:?}{same_host}", retry_on(on))
        }
    });
    if let Some(Fault { delay, abort }) = fault.as_deref() {
        details.extend(delay.map(|(delay, share)| format!("delay {delay:?} ({})", percent(share.0))));
        details.extend(abort.map(|(abort, share)| match abort {
            Abort::Http(status) => format!("abort {status} ({})", percent(share.0)),
            Abort::Grpc(status) => format!("abort gRPC {status} ({})", percent(share.0)),
        }));
    }
    for Mirror { cluster, share } in mirrors {
        details.push(format!("mirror to {cluster} ({})", percent(share.0)));
    }
    details.extend(cors.as_deref().map(cors_policy));
    details
}

fn retry_on(on: &RetryOn) -> String {
    let RetryOn {
        server_error,
        gateway_error,
        reset,
        reset_before_request,
        connect_failure,
        refused_stream,
        retriable_4xx,
        envoy_ratelimited,
        status_codes,
        grpc_codes,
    } = on;
    let tokens = [
        (*server_error, "5xx"),
        (*gateway_error, "gateway-error"),
        (*reset, "reset"),
        (*reset_before_request, "reset-before-request"),
        (*connect_failure, "connect-failure"),
        (*refused_stream, "refused-stream"),
        (*retriable_4xx, "retriable-4xx"),
        (*envoy_ratelimited, "envoy-ratelimited"),
    ];
    let tokens = tokens.into_iter().filter(|(is_on, _)| *is_on).map(|(_, token)| token.to_owned());
    let statuses = status_codes.iter().map(ToString::to_string);
    let codes = grpc_codes.iter().map(|code| format!("grpc:{code}"));
    tokens.chain(statuses).chain(codes).collect::<Vec<_>>().join(",")
}

fn cors_policy(cors: &Cors) -> String {
    let Cors {
        allow_origins,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        forward_unmatched_preflights,
    } = cors;
    let origins: Vec<_> = allow_origins.iter().map(string_match).collect();
    let mut text = format!("cors origins [{}]", origins.join(", "));
    let lists = [("methods", allow_methods), ("headers", allow_headers), ("expose", expose_headers)];
    for (name, list) in lists {
        if let Some(list) = list {
            _ = write!(text, ", {name} {list}");
        }
    }
    if let Some(seconds) = max_age {
        _ = write!(text, ", max age {seconds}s");
    }
    if *allow_credentials {
        text.push_str(", credentials");
    }
    if !forward_unmatched_preflights {
        text.push_str(", answers all preflights");
    }
    text
}

fn header_details(operations: &HeaderOps) -> Vec<String> {
    let HeaderOps { remove, put } = operations;
    let removals = remove.iter().map(|name| format!("remove {name}"));
    let additions = put.iter().map(|HeaderPut { name, value, replace }| {
        let verb = if *replace { "set" } else { "add" };
        format!("{verb} {name}: {}", format_text(value))
    });
    removals.chain(additions).collect()
}

/// Literal text as it is, commands by what they are.
fn format_text(format: &Format) -> String {
    let mut text = String::new();
    for piece in &format.pieces {
        match piece {
            Piece::Literal(literal) => text.push_str(&literal.replace('%', "%%")),
            Piece::Command { command, max_length } => {
                text.push('%');
                text.push_str(&command_text(command));
                if let Some(length) = max_length {
                    _ = write!(text, ":{length}");
                }
                text.push('%');
            }
        }
    }
    text
}

/// As it is written in a format string.
fn command_text(command: &Command) -> String {
    let header = |verb: &str, name: &str, alternative: &Option<String>| match alternative {
        Some(alternative) => format!("{verb}({name}?{alternative})"),
        None => format!("{verb}({name})"),
    };
    match command {
        Command::RequestHeader { name, alternative } => header("REQ", name, alternative),
        Command::ResponseHeader { name, alternative } => header("RESP", name, alternative),
        Command::ResponseTrailer { name, alternative } => header("TRAILER", name, alternative),
        Command::QueryParam(name) => format!("QUERY_PARAM({name})"),
        Command::Environment(name) => format!("ENVIRONMENT({name})"),
        Command::Path { query } => format!("PATH({})", if *query { "WQ" } else { "NQ" }),
        Command::StartTime(Some(format)) => format!("START_TIME({format})"),
        Command::EmitTime(Some(format)) => format!("EMIT_TIME({format})"),
        Command::StartTime(None) => "START_TIME".to_owned(),
        Command::EmitTime(None) => "EMIT_TIME".to_owned(),
        Command::Empty(text) => text.clone(),
        Command::Tls(end, fact) => tls_text(*end, fact),
        // The rest are called like their variants.
        command => {
            let mut text = String::new();
            for character in format!("{command:?}").chars() {
                if character.is_ascii_uppercase() && !text.is_empty() {
                    text.push('_');
                }
                text.push(character.to_ascii_uppercase());
            }
            text
        }
    }
}

fn percent(millionths: u32) -> String {
    format!("{}%", f64::from(millionths) / 10_000.0)
}

fn protocol(protocol: UpstreamProtocol) -> &'static str {
    match protocol {
        UpstreamProtocol::Http1 => "HTTP/1.1",
        UpstreamProtocol::Http2 => "HTTP/2",
        UpstreamProtocol::SameAsClient => "client's protocol",
    }
}

fn endpoints(endpoints: &Endpoints) -> Vec<String> {
    let weighted = |text: String, weight: u32| if weight == 1 { text } else { format!("{text} weight {weight}") };
    let dns = |kind: &str, DnsEndpoint { host, port, weight, placement }: &DnsEndpoint| {
        placed(weighted(format!("{kind} {host}:{port}"), *weight), placement)
    };
    match endpoints {
        Endpoints::Static(endpoints) if endpoints.is_empty() => vec!["no endpoints".to_owned()],
        Endpoints::Static(endpoints) => {
            let text = |Endpoint { address, weight, workload, placement }: &Endpoint| {
                let address = match address {
                    EndpointAddress::Ip(ip, port) => std::net::SocketAddr::new(*ip, *port).to_string(),
                    EndpointAddress::UnixPath(path) => format!("unix://{}", path.display()),
                    EndpointAddress::UnixAbstract(name) => format!("unix://@{name}"),
                };
                let workload = workload.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
                placed(format!("{}{workload}", weighted(format!("endpoint {address}"), *weight)), placement)
            };
            endpoints.iter().map(text).collect()
        }
        Endpoints::StrictDns(endpoints) => endpoints.iter().map(|endpoint| dns("dns", endpoint)).collect(),
        Endpoints::LogicalDns(endpoint) => vec![dns("dns (first address)", endpoint)],
        Endpoints::Dynamic(DynamicDns { suffix, port: 0 }) => vec![format!("dns on demand *{suffix}, any port")],
        Endpoints::Dynamic(DynamicDns { suffix, port }) => vec![format!("dns on demand *{suffix}:{port}")],
    }
}

/// With what is known of its place.
fn placed(text: String, placement: &Placement) -> String {
    let Placement { locality, priority, group } = placement;
    let mut text = text;
    if !locality.is_empty() {
        _ = write!(text, " in {locality}");
    }
    if *priority > 0 {
        _ = write!(text, " priority {priority}");
    }
    if *group > 0 {
        _ = write!(text, " group {group}");
    }
    text
}

/// What differs from the default.
fn limits(limits: &Limits) -> Vec<String> {
    let Limits {
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        max_requests_per_connection,
        max_concurrent_streams,
        idle_timeout,
        max_connection_duration,
        tcp_keepalive,
        http2_keepalive,
    } = limits;
    let default = Limits::default();
    let numbers = [
        ("max connections", *max_connections, default.max_connections),
        ("max pending requests", *max_pending_requests, default.max_pending_requests),
        ("max requests", *max_requests, default.max_requests),
        ("max retries", *max_retries, default.max_retries),
        ("max requests per connection", *max_requests_per_connection, default.max_requests_per_connection),
        ("max concurrent streams", *max_concurrent_streams, default.max_concurrent_streams),
    ];
    let set = numbers.into_iter().filter(|(_, value, default)| value != default);
    let mut texts: Vec<String> = set.map(|(name, value, _)| format!("{name} {value}")).collect();
    if let Some(RetryBudget { percent, min_concurrency, interval }) = retry_budget {
        let interval = interval.map(|interval| format!(", of requests in {interval:?}")).unwrap_or_default();
        texts.push(format!("retry budget {percent}%, at least {min_concurrency}{interval}"));
    }
    if *idle_timeout != default.idle_timeout {
        texts.push(match idle_timeout {
            Some(timeout) => format!("idle timeout {timeout:?}"),
            None => "no idle timeout".to_owned(),
        });
    }
    texts.extend(max_connection_duration.map(|duration| format!("max connection duration {duration:?}")));
    if let Some(TcpKeepalive { probes, time, interval }) = tcp_keepalive {
        let mut text = "tcp keep-alive".to_owned();
        if let Some(probes) = probes {
            _ = write!(text, ", {probes} probes");
        }
        if let Some(time) = time {
            _ = write!(text, ", after {time:?}");
        }
        if let Some(interval) = interval {
            _ = write!(text, ", every {interval:?}");
        }
        texts.push(text);
    }
    if let Some(Http2Keepalive { interval, timeout }) = http2_keepalive {
        texts.push(format!("HTTP/2 PING every {interval:?}, answered in {timeout:?}"));
    }
    texts
}
