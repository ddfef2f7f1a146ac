//! §10.4 to §10.8, without the reachability of rules.

use std::collections::BTreeMap;

use super::primitive::{
    duration, duration_or_zero, export_to, is_dns_label, is_fqdn, is_header_name, is_header_value, is_ip,
    is_ip_or_cidr, is_wildcard_domain, labels, percentage, port, regex,
};
use super::{Findings, keyed};
use crate::resource::virtual_service::{
    CorsPolicy, Destination, HeaderOperations, Headers, HttpBody, HttpDirectResponse, HttpFaultInjection,
    HttpMatchRequest, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, L4MatchAttributes, RouteDestination,
    StringMatch, TcpRoute, TlsMatchAttributes, TlsRoute, VirtualService,
};

const MAX_BODY: usize = 1 << 20;
const LARGE_BODY: usize = 100 << 10;

pub(super) fn validate(spec: &VirtualService, findings: &mut Findings) {
    let VirtualService { hosts, gateways, http, tls, tcp, export_to: exported } = spec;
    let is_delegate = hosts.is_empty();
    let for_mesh = gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh");
    if is_delegate {
        for (field, is_set) in [("gateways", !gateways.is_empty()), ("tls", !tls.is_empty()), ("tcp", !tcp.is_empty())]
        {
            if is_set {
                let message = format!("a VirtualService without hosts is a delegate, and can't have `{field}`");
                findings.error(format!("spec.{field}"), message).help("give it `hosts`");
            }
        }
    }
    if http.is_empty() && tls.is_empty() && tcp.is_empty() {
        findings.error("spec", "a VirtualService needs routes: `http`, `tls` or `tcp`");
    }
    for (index, host) in hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        if host == "*" {
            if for_mesh {
                let help = "name the gateways in `gateways`, without `mesh`";
                findings.error(&path, "host `*` is only for gateways").help(help);
            }
        } else if !is_wildcard_domain(host) && !is_ip(host) && !is_sni_dnat(host) {
            findings.error(&path, format!("`{host}` is no host name"));
        }
        if let Some(other) = hosts[..index].iter().find(|other| overlap(other, host)) {
            findings.error(&path, format!("`{host}` overlaps `{other}` of the same VirtualService"));
        }
    }
    gateway_names("spec.gateways", gateways, findings);
    export_to(exported, false, findings);
    for (index, route) in http.iter().enumerate() {
        http_route(&format!("spec.http[{index}]"), route, is_delegate, for_mesh, findings);
    }
    for (index, route) in tls.iter().enumerate() {
        tls_route(&format!("spec.tls[{index}]"), route, hosts, findings);
    }
    for (index, route) in tcp.iter().enumerate() {
        tcp_route(&format!("spec.tcp[{index}]"), route, findings);
    }
}

/// `outbound_.<port>_.<subset>_.<host>`, the SNI of AUTO_PASSTHROUGH.
fn is_sni_dnat(host: &str) -> bool {
    host.strip_prefix("outbound_.").and_then(|rest| rest.split("_.").nth(2)).is_some_and(is_fqdn)
}

/// Whether some name is covered by both.
fn overlap(a: &str, b: &str) -> bool {
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (None, None) => a == b,
        (Some(suffix), None) => b.ends_with(suffix),
        (None, Some(suffix)) => a.ends_with(suffix),
        (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
    }
}

/// Whether every name that `name` covers is covered by `by`.
fn is_subset(name: &str, by: &str) -> bool {
    match (name.strip_prefix('*'), by.strip_prefix('*')) {
        (_, None) => name == by,
        (None, Some(suffix)) => name.ends_with(suffix),
        (Some(name), Some(suffix)) => name.ends_with(suffix),
    }
}

fn gateway_names(path: &str, gateways: &[String], findings: &mut Findings) {
    for (index, gateway) in gateways.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match gateway.split_once('/') {
            Some((namespace, name)) if is_dns_label(namespace) && is_dns_label(name) => {}
            Some(_) => {
                findings.error(path, format!("`{gateway}` is no `<namespace>/<name>` of a Gateway"));
            }
            None if !is_fqdn(gateway) => {
                findings.error(path, format!("`{gateway}` is no name of a Gateway"));
            }
            None if gateway.contains('.') => {
                let (name, namespace) = gateway.split_once('.').unwrap_or((gateway, ""));
                let namespace = namespace.split('.').next().unwrap_or_default();
                findings
                    .warning(path, "the form `<name>.<namespace>` is deprecated")
                    .help(format!("write `{namespace}/{name}`"));
            }
            None => {}
        }
    }
}

fn http_route(path: &str, route: &HttpRoute, is_delegate: bool, for_mesh: bool, findings: &mut Findings) {
    let HttpRoute {
        name: _,
        match_,
        route: destinations,
        redirect,
        direct_response,
        delegate,
        rewrite,
        timeout,
        retries,
        fault,
        mirror,
        mirrors,
        mirror_percent,
        mirror_percentage,
        cors_policy,
        headers,
    } = route;
    for (index, request) in match_.iter().enumerate() {
        http_match(&format!("{path}.match[{index}]"), request, for_mesh, findings);
    }
    actions(path, route, is_delegate, findings);
    if let Some(delegate) = delegate
        && delegate.name.is_empty()
    {
        findings.error(format!("{path}.delegate.name"), "a delegate needs a name");
    }
    if let Some(redirect) = redirect {
        self::redirect(&format!("{path}.redirect"), redirect, match_, findings);
    }
    if let Some(response) = direct_response {
        self::direct_response(&format!("{path}.directResponse"), response, findings);
    }
    if let Some(rewrite) = rewrite {
        self::rewrite(&format!("{path}.rewrite"), rewrite, findings);
    }
    if let Some(fault) = fault {
        self::fault(&format!("{path}.fault"), fault, findings);
    }
    if let Some(retries) = retries {
        self::retries(&format!("{path}.retries"), retries, findings);
    }
    if let Some(cors) = cors_policy {
        self::cors(&format!("{path}.corsPolicy"), cors, findings);
    }
    duration(&format!("{path}.timeout"), *timeout, findings);
    if mirror.is_some() && !mirrors.is_empty() {
        findings.error(format!("{path}.mirrors"), "`mirror` and `mirrors` exclude each other");
    }
    if let Some(mirror) = mirror {
        destination(&format!("{path}.mirror"), mirror, findings);
    }
    if mirror_percent.is_some_and(|percent| percent > 100) {
        findings.error(format!("{path}.mirrorPercent"), "must be from 0 to 100");
    }
    if let Some(percent) = mirror_percentage
        && !(0.0..=100.0).contains(&percent.value)
    {
        findings.error(format!("{path}.mirrorPercentage.value"), "must be from 0 to 100");
    }
    for (index, mirror) in mirrors.iter().enumerate() {
        let path = format!("{path}.mirrors[{index}]");
        match &mirror.destination {
            Some(mirror) => destination(&format!("{path}.destination"), mirror, findings),
            None => {
                findings.error(&path, "a mirror needs a destination");
            }
        }
        if mirror.percentage.is_some_and(|percent| !(0.0..=100.0).contains(&percent.value)) {
            findings.error(format!("{path}.percentage.value"), "must be from 0 to 100");
        }
    }
    if let Some(headers) = headers {
        self::headers(&format!("{path}.headers"), headers, findings);
    }
    let weights = destinations.iter().enumerate().map(|(index, entry)| {
        let path = format!("{path}.route[{index}]");
        match &entry.destination {
            Some(target) => destination(&format!("{path}.destination"), target, findings),
            None => {
                findings.error(format!("{path}.destination"), "a route needs a destination");
            }
        }
        if let Some(headers) = &entry.headers {
            self::headers(&format!("{path}.headers"), headers, findings);
        }
        entry.weight
    });
    let weights: Vec<i32> = weights.collect();
    self::weights(path, &weights, findings);
    authorities(path, route, findings);
}

/// Exactly one of route, redirect, directResponse and delegate, and nothing that contradicts it.
fn actions(path: &str, route: &HttpRoute, is_delegate: bool, findings: &mut Findings) {
    let has_route = !route.route.is_empty();
    let set = [
        ("route", has_route),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    let mut used = set.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| *name);
    match (used.next(), used.next()) {
        (None, _) => {
            let help = "use one of: route, redirect, directResponse, delegate";
            findings.error(path, "the rule does nothing").help(help);
        }
        (Some(first), Some(second)) => {
            findings.error(format!("{path}.{second}"), format!("`{second}` and `{first}` exclude each other"));
        }
        (Some("delegate"), None) if is_delegate => {
            findings.error(format!("{path}.delegate"), "a delegate can't delegate");
        }
        _ => {}
    }
    for (name, is_set) in [("redirect", route.redirect.is_some()), ("directResponse", route.direct_response.is_some())]
    {
        if !is_set {
            continue;
        }
        for (field, is_set) in [("fault", route.fault.is_some()), ("rewrite", route.rewrite.is_some())] {
            if is_set {
                findings.error(format!("{path}.{field}"), format!("`{field}` and `{name}` exclude each other"));
            }
        }
    }
}

fn http_match(path: &str, request: &HttpMatchRequest, for_mesh: bool, findings: &mut Findings) {
    let HttpMatchRequest {
        name: _,
        uri,
        scheme,
        method,
        authority,
        headers,
        port: server_port,
        source_labels,
        gateways,
        query_params,
        ignore_uri_case: _,
        without_headers,
        source_namespace,
        stat_prefix: _,
    } = request;
    for (field, value, empty_prefix) in
        [("uri", uri, true), ("scheme", scheme, false), ("method", method, false), ("authority", authority, false)]
    {
        if let Some(value) = value {
            string_match(&format!("{path}.{field}"), value, empty_prefix, findings);
        }
    }
    for (field, map) in [("headers", headers), ("withoutHeaders", without_headers)] {
        for (name, value) in map {
            let path = keyed(&format!("{path}.{field}"), name);
            if is_claim(name) {
                if for_mesh {
                    findings.error(&path, "claims can be matched by a VirtualService that is only for gateways");
                }
            } else if !is_header_name(name)
                && !matches!(name.as_str(), ":method" | ":path" | ":authority" | ":scheme" | ":status")
            {
                findings.error(&path, format!("`{name}` is no header name"));
            }
            // The historical spelling of "present".
            if field == "withoutHeaders" && matches!(value, StringMatch::Regex(text) if text == "*") {
                continue;
            }
            string_match(&path, value, false, findings);
        }
    }
    for (name, value) in query_params {
        string_match(&keyed(&format!("{path}.queryParams"), name), value, false, findings);
    }
    if *server_port != 0 {
        port(&format!("{path}.port"), *server_port, findings);
    }
    source(path, source_labels, source_namespace, gateways, findings);
}

fn source(
    path: &str,
    source_labels: &BTreeMap<String, String>,
    source_namespace: &str,
    gateways: &[String],
    findings: &mut Findings,
) {
    labels(&format!("{path}.sourceLabels"), source_labels, findings);
    gateway_names(&format!("{path}.gateways"), gateways, findings);
    if !source_namespace.is_empty() && !is_dns_label(source_namespace) {
        findings.error(format!("{path}.sourceNamespace"), format!("`{source_namespace}` is no namespace"));
    }
}

fn is_claim(name: &str) -> bool {
    const PREFIX: &str = "@request.auth.claims";
    name.get(..PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX))
}

fn string_match(path: &str, value: &StringMatch, empty_prefix: bool, findings: &mut Findings) {
    match value {
        StringMatch::Prefix(prefix) if prefix.is_empty() && !empty_prefix => {
            findings.error(format!("{path}.prefix"), "a prefix must not be empty").help("`{}` asks for presence");
        }
        StringMatch::Regex(text) => regex(&format!("{path}.regex"), text, findings),
        StringMatch::Present | StringMatch::Exact(_) | StringMatch::Prefix(_) => {}
    }
}

fn redirect(path: &str, redirect: &HttpRedirect, matches: &[HttpMatchRequest], findings: &mut Findings) {
    let HttpRedirect { uri, prefix_rewrite, authority, port: to_port, derive_port, scheme, redirect_code } = redirect;
    no_control_characters(path, &[("uri", uri), ("prefixRewrite", prefix_rewrite), ("authority", authority)], findings);
    if !uri.is_empty() && !prefix_rewrite.is_empty() {
        findings.error(format!("{path}.prefixRewrite"), "`uri` and `prefixRewrite` exclude each other");
    }
    let is_prefix = |request: &HttpMatchRequest| matches!(request.uri, None | Some(StringMatch::Prefix(_)));
    if !prefix_rewrite.is_empty() && !matches.iter().all(is_prefix) {
        findings.error(format!("{path}.prefixRewrite"), "needs matches by `prefix`");
    }
    let says_something = !uri.is_empty()
        || !prefix_rewrite.is_empty()
        || !authority.is_empty()
        || !scheme.is_empty()
        || to_port.is_some()
        || derive_port.is_some();
    if !says_something {
        findings
            .error(path, "the redirect leads nowhere else")
            .help("set uri, prefixRewrite, authority, port or scheme");
    }
    if to_port.is_some() && derive_port.is_some() {
        findings.error(format!("{path}.derivePort"), "`port` and `derivePort` exclude each other");
    }
    if let Some(to_port) = to_port {
        port(&format!("{path}.port"), *to_port, findings);
    }
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        findings.error(format!("{path}.scheme"), format!("`{scheme}` must be `http` or `https`"));
    }
    // Istio lets other 3xx pass, for which Envoy refuses the whole table.
    if !matches!(redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
        findings
            .error(format!("{path}.redirectCode"), format!("{redirect_code} is no code of a redirect"))
            .help("use one of: 301, 302, 303, 307, 308");
    }
}

/// A line end in one of these would end the line of HTTP/1.1 that it is written in.
fn no_control_characters(path: &str, fields: &[(&str, &str)], findings: &mut Findings) {
    for (field, text) in fields {
        if !is_header_value(text) {
            findings.error(format!("{path}.{field}"), "must not have control characters");
        }
    }
}

fn direct_response(path: &str, response: &HttpDirectResponse, findings: &mut Findings) {
    let HttpDirectResponse { status, body } = response;
    // Istio takes 600 as well, for which Envoy refuses the whole table.
    if !(200..=599).contains(status) {
        findings.error(format!("{path}.status"), format!("{status} must be from 200 to 599"));
    }
    let length = match body {
        None | Some(HttpBody::Empty) => 0,
        Some(HttpBody::String(text)) => text.len(),
        Some(HttpBody::Bytes(bytes)) => bytes.0.len(),
    };
    if length > MAX_BODY {
        findings.error(format!("{path}.body"), format!("the body has {length} bytes, the limit is {MAX_BODY}"));
    } else if length > LARGE_BODY {
        findings.warning(format!("{path}.body"), format!("the body has {length} bytes, which stay in memory"));
    }
}

fn rewrite(path: &str, rewrite: &HttpRewrite, findings: &mut Findings) {
    let HttpRewrite { uri, authority, uri_regex_rewrite } = rewrite;
    let replacement = uri_regex_rewrite.as_ref().map_or("", |substitution| &substitution.rewrite);
    no_control_characters(
        path,
        &[("uri", uri), ("authority", authority), ("uriRegexRewrite.rewrite", replacement)],
        findings,
    );
    match uri_regex_rewrite {
        Some(_) if !uri.is_empty() => {
            findings.error(format!("{path}.uriRegexRewrite"), "`uri` and `uriRegexRewrite` exclude each other");
        }
        Some(substitution) => {
            regex(&format!("{path}.uriRegexRewrite.match"), &substitution.match_, findings);
            if substitution.rewrite.is_empty() {
                findings.error(format!("{path}.uriRegexRewrite.rewrite"), "must not be empty");
            }
        }
        None if uri.is_empty() && authority.is_empty() => {
            findings.error(path, "the rewrite changes nothing").help("set uri, authority or uriRegexRewrite");
        }
        None => {}
    }
}

fn retries(path: &str, retries: &HttpRetry, findings: &mut Findings) {
    let HttpRetry {
        attempts,
        per_try_timeout,
        retry_on,
        retry_remote_localities,
        retry_ignore_previous_hosts: _,
        backoff,
    } = retries;
    if *attempts < 0 {
        findings.error(format!("{path}.attempts"), "must not be negative");
    }
    let says_more = per_try_timeout.is_some() || !retry_on.is_empty() || retry_remote_localities.is_some();
    if *attempts == 0 && says_more {
        findings
            .error(format!("{path}.attempts"), "0 attempts switch retries off, and leave nothing to configure")
            .help("set `attempts`, or leave the other fields out");
    }
    duration(&format!("{path}.perTryTimeout"), *per_try_timeout, findings);
    duration(&format!("{path}.backoff"), *backoff, findings);
    if retry_on.is_empty() {
        return;
    }
    for token in retry_on.split(',') {
        if !is_retry_token(token) {
            let finding = findings.error(format!("{path}.retryOn"), format!("unknown condition `{token}`"));
            if is_retry_token(token.trim()) {
                finding.help("write the list without spaces");
            } else if let Some(nearest) = crate::parse::nearest(token, &RETRY_ON) {
                finding.help(format!("did you mean `{nearest}`?"));
            }
        }
    }
}

const RETRY_ON: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

fn is_retry_token(token: &str) -> bool {
    RETRY_ON.contains(&token) || token.parse().is_ok_and(is_known_status)
}

/// Codes that Go's `http.StatusText` has a text for.
fn is_known_status(code: u16) -> bool {
    matches!(code, 100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429 | 431 | 451)
        || matches!(code, 500..=508 | 510 | 511)
}

fn fault(path: &str, fault: &HttpFaultInjection, findings: &mut Findings) {
    let HttpFaultInjection { delay, abort } = fault;
    if delay.is_none() && abort.is_none() {
        findings.error(path, "a fault needs `delay` or `abort`");
    }
    if let Some(delay) = delay {
        let path = format!("{path}.delay");
        if delay.exponential_delay.is_some() {
            findings.error(format!("{path}.exponentialDelay"), "not supported by Istio").help("use `fixedDelay`");
        } else if delay.fixed_delay.is_none() {
            findings.error(format!("{path}.fixedDelay"), "a delay needs `fixedDelay`");
        }
        duration(&format!("{path}.fixedDelay"), delay.fixed_delay, findings);
        if !(0..=100).contains(&delay.percent) {
            findings.error(format!("{path}.percent"), "must be from 0 to 100");
        }
        if let Some(percent) = delay.percentage {
            percentage(&format!("{path}.percentage.value"), percent.value, findings);
        }
    }
    if let Some(abort) = abort {
        let path = format!("{path}.abort");
        if let Some(percent) = abort.percentage {
            percentage(&format!("{path}.percentage.value"), percent.value, findings);
        }
        if abort.http2_error.is_some() {
            findings.error(format!("{path}.http2Error"), "not supported by Istio").help("use `httpStatus`");
        }
        match (&abort.http_status, &abort.grpc_status) {
            (Some(_), Some(_)) => {
                findings.error(format!("{path}.grpcStatus"), "`httpStatus` and `grpcStatus` exclude each other");
            }
            // Istio takes 600 as well.
            (Some(status), None) if !(200..=599).contains(status) => {
                findings.error(format!("{path}.httpStatus"), format!("{status} must be from 200 to 599"));
            }
            (None, Some(status)) if !GRPC_STATUS.contains(&status.as_str()) => {
                let finding = findings.error(format!("{path}.grpcStatus"), format!("unknown status `{status}`"));
                finding.help(format!("use one of: {}", GRPC_STATUS.join(", ")));
            }
            (None, None) if abort.http2_error.is_none() => {
                findings
                    .warning(&path, "an abort without a status does nothing")
                    .help("set `httpStatus` or `grpcStatus`");
            }
            _ => {}
        }
    }
}

const GRPC_STATUS: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
];

fn cors(path: &str, cors: &CorsPolicy, findings: &mut Findings) {
    let CorsPolicy {
        allow_origin: _,
        allow_origins,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials: _,
        unmatched_preflights: _,
    } = cors;
    for (index, origin) in allow_origins.iter().enumerate() {
        let path = format!("{path}.allowOrigins[{index}]");
        match origin {
            StringMatch::Present => {
                findings.error(path, "an origin needs `exact`, `prefix` or `regex`");
            }
            StringMatch::Exact(text) | StringMatch::Prefix(text) if text.is_empty() => {
                findings.error(path, "an origin must not be empty");
            }
            origin => string_match(&path, origin, false, findings),
        }
    }
    for (index, method) in allow_methods.iter().enumerate() {
        const METHODS: [&str; 10] =
            ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];
        if !METHODS.contains(&method.as_str()) {
            let finding = findings.error(format!("{path}.allowMethods[{index}]"), format!("unknown method `{method}`"));
            finding.help(format!("use one of: {}", METHODS.join(", ")));
        }
    }
    for (field, names) in [("allowHeaders", allow_headers), ("exposeHeaders", expose_headers)] {
        for (index, name) in names.iter().enumerate() {
            if name != "*" && !is_header_name(name) {
                findings.error(format!("{path}.{field}[{index}]"), format!("`{name}` is no header name"));
            }
        }
    }
    duration_or_zero(&format!("{path}.maxAge"), *max_age, findings);
    if max_age.is_some_and(|age| age.subsec_nanos() != 0) {
        findings.error(format!("{path}.maxAge"), "must be a whole number of seconds");
    }
}

fn headers(path: &str, headers: &Headers, findings: &mut Findings) {
    for (direction, operations) in [("request", &headers.request), ("response", &headers.response)] {
        if let Some(operations) = operations {
            header_operations(&format!("{path}.{direction}"), operations, direction == "request", findings);
        }
    }
}

fn header_operations(path: &str, operations: &HeaderOperations, is_request: bool, findings: &mut Findings) {
    let HeaderOperations { set, add, remove } = operations;
    for (field, map) in [("set", set), ("add", add)] {
        for (name, value) in map {
            let path = keyed(&format!("{path}.{field}"), name);
            if !(is_request && is_authority(name)) {
                header_name(&path, name, findings);
            }
            if !is_header_value(value) {
                findings.error(path, "a header value must not have control characters");
            }
        }
    }
    for (index, name) in remove.iter().enumerate() {
        header_name(&format!("{path}.remove[{index}]"), name, findings);
    }
}

fn header_name(path: &str, name: &str, findings: &mut Findings) {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        findings.error(path, format!("`{name}` can't be changed here")).help("rewrite.authority changes the host");
    } else if !is_header_name(name) {
        findings.error(path, format!("`{name}` is no header name"));
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// Where the host may be rewritten, only one place may do it.
fn authorities(path: &str, route: &HttpRoute, findings: &mut Findings) {
    let rewrite = route.rewrite.as_ref().is_some_and(|rewrite| !rewrite.authority.is_empty());
    let request = route.headers.as_ref().and_then(|headers| headers.request.as_ref());
    let set = request.is_some_and(|request| request.set.iter().any(|(name, _)| is_authority(name)));
    let add = request.is_some_and(|request| request.add.iter().any(|(name, _)| is_authority(name)));
    let places = [
        (rewrite, format!("{path}.rewrite.authority")),
        (set, format!("{path}.headers.request.set")),
        (add, format!("{path}.headers.request.add")),
    ];
    let mut used = places.into_iter().filter(|(used, _)| *used).map(|(_, place)| place);
    if let (Some(first), Some(second)) = (used.next(), used.next()) {
        findings.error(second, format!("the host is rewritten in {first} as well"));
    }
}

fn destination(path: &str, destination: &Destination, findings: &mut Findings) {
    let Destination { host, subset, port: to_port } = destination;
    if host.is_empty() {
        findings.error(format!("{path}.host"), "a destination needs a host");
    } else if host == "*" || !is_wildcard_domain(host) {
        findings.error(format!("{path}.host"), format!("`{host}` is no host name"));
    }
    if !subset.is_empty() && !is_dns_label(subset) {
        findings.error(format!("{path}.subset"), format!("`{subset}` is no name of a subset"));
    }
    if let Some(to_port) = to_port {
        port(&format!("{path}.port.number"), to_port.number, findings);
    }
}

/// Negative weights mean nothing, and all-zero weights leave nobody to send to.
fn weights(path: &str, weights: &[i32], findings: &mut Findings) {
    for (index, weight) in weights.iter().enumerate() {
        if *weight < 0 {
            findings.error(format!("{path}.route[{index}].weight"), "must not be negative");
        }
    }
    if weights.len() > 1 && weights.iter().all(|weight| *weight == 0) {
        findings.error(format!("{path}.route"), "all weights are 0").help("give each destination its `weight`");
    }
}

fn tls_route(path: &str, route: &TlsRoute, hosts: &[String], findings: &mut Findings) {
    let TlsRoute { match_, route: destinations } = route;
    if match_.is_empty() {
        findings.error(format!("{path}.match"), "a tls rule needs a match").help("match by `sniHosts`");
    }
    for (index, attributes) in match_.iter().enumerate() {
        let path = format!("{path}.match[{index}]");
        let TlsMatchAttributes {
            sni_hosts,
            destination_subnets,
            port: server_port,
            source_labels,
            gateways,
            source_namespace,
        } = attributes;
        if sni_hosts.is_empty() {
            findings.error(format!("{path}.sniHosts"), "a match of a tls rule needs `sniHosts`");
        }
        for (index, sni) in sni_hosts.iter().enumerate() {
            let path = format!("{path}.sniHosts[{index}]");
            if is_ip(sni) {
                findings.warning(path, "a client never sends an IP address as its SNI");
            } else if !is_wildcard_domain(sni) && !is_sni_dnat(sni) {
                findings.error(path, format!("`{sni}` is no host name"));
            } else if !hosts.iter().any(|host| is_subset(sni, host)) {
                findings.error(path, format!("`{sni}` is not covered by `hosts`"));
            }
        }
        subnets(&path, destination_subnets, findings);
        if *server_port != 0 {
            port(&format!("{path}.port"), *server_port, findings);
        }
        source(&path, source_labels, source_namespace, gateways, findings);
    }
    route_destinations(path, destinations, findings);
}

fn tcp_route(path: &str, route: &TcpRoute, findings: &mut Findings) {
    let TcpRoute { match_, route: destinations } = route;
    for (index, attributes) in match_.iter().enumerate() {
        let path = format!("{path}.match[{index}]");
        let L4MatchAttributes {
            destination_subnets,
            port: server_port,
            source_subnet: _,
            source_labels,
            gateways,
            source_namespace,
        } = attributes;
        subnets(&path, destination_subnets, findings);
        if *server_port != 0 {
            port(&format!("{path}.port"), *server_port, findings);
        }
        source(&path, source_labels, source_namespace, gateways, findings);
    }
    route_destinations(path, destinations, findings);
}

fn subnets(path: &str, subnets: &[String], findings: &mut Findings) {
    for (index, subnet) in subnets.iter().enumerate() {
        if !is_ip_or_cidr(subnet) {
            findings
                .error(format!("{path}.destinationSubnets[{index}]"), format!("`{subnet}` is no IP address or CIDR"));
        }
    }
}

fn route_destinations(path: &str, routes: &[RouteDestination], findings: &mut Findings) {
    if routes.is_empty() {
        findings.error(format!("{path}.route"), "a rule needs a route");
    }
    for (index, entry) in routes.iter().enumerate() {
        match &entry.destination {
            Some(target) => destination(&format!("{path}.route[{index}].destination"), target, findings),
            None => {
                findings.error(format!("{path}.route[{index}].destination"), "a route needs a destination");
            }
        }
    }
    let all: Vec<i32> = routes.iter().map(|entry| entry.weight).collect();
    weights(path, &all, findings);
}
