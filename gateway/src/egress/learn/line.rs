//! One line of a log.
//!
//! Text lines escape nothing, so a client can put quotes into some fields and shift others. All that this gains it is a
//! host in the result, which it could have had by asking for it.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::Value;

use crate::egress::suggestion::{Host, Protocol};

/// What our own log says of a refusal.
const DENIED: &str = "egress denied";
/// Upstream of what a sidecar with `REGISTRY_ONLY` doesn't know.
const BLACK_HOLE: &str = "BlackHoleCluster";
/// Route of a sidecar with `REGISTRY_ONLY` for hosts that it doesn't know.
const BLOCK_ALL: &str = "block_all";

/// What a line tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Something was refused.
    Refusal(Refusal),
    /// Something else.
    Other,
    /// Nothing: it has none of the formats.
    Unreadable,
}

/// A refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) origin: Origin,
    /// `None` if no host can be told, or none that a ServiceEntry can have.
    pub(super) destination: Option<Destination>,
    /// The client.
    pub(super) source: Option<IpAddr>,
}

/// Which log has the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    AccessLog,
    OwnLog,
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    /// The client named no port: `port` is that of the listener.
    pub(super) is_listeners_port: bool,
}

/// Reads a line without its end.
pub(super) fn parse(line: &str) -> Line {
    if line.starts_with('{') {
        return serde_json::from_str(line).map_or(Line::Unreadable, |line: Json| line.read());
    }
    if let Some(record) = Record::from_text(line) {
        return record.read();
    }
    match own_message(line) {
        Some(message) => match message.strip_prefix(DENIED) {
            Some(fields) => denial(field(fields, "host"), field(fields, "port"), field(fields, "protocol")),
            None => Line::Other,
        },
        None if line.is_empty() => Line::Other,
        None => Line::Unreadable,
    }
}

/// What matters of an access log line; values that are absent are empty.
#[derive(Debug, Default)]
struct Record<'l> {
    method: &'l str,
    flags: &'l str,
    details: &'l str,
    authority: &'l str,
    cluster: &'l str,
    local: &'l str,
    remote: &'l str,
    server_name: &'l str,
    route: &'l str,
}

impl<'l> Record<'l> {
    /// Reads Istio's default text format. The fields before the client's own text are counted from the left, those
    /// behind it from the right.
    ///
    /// Source: `reference/telemetry-and-operations.md` §4.1.
    fn from_text(line: &'l str) -> Option<Self> {
        let (_, rest) = line.strip_prefix('[')?.split_once("] \"")?;
        let (request, rest) = rest.split_once("\" ")?;
        let mut words = rest.splitn(4, ' ');
        let (code, flags, details, rest) = (words.next()?, words.next()?, words.next()?, words.next()?);
        code.parse::<u16>().ok()?;
        let (rest, end) = rest.rsplit_once("\" ")?;
        let (rest, _upstream_host) = rest.rsplit_once("\" \"")?;
        let (_, authority) = rest.rsplit_once('"')?;
        let mut words = end.splitn(6, ' ');
        let (cluster, _upstream_local, local) = (words.next()?, words.next()?, words.next()?);
        let (remote, server_name, route) = (words.next()?, words.next()?, words.next()?);
        let method = request.split(' ').next()?;
        Some(Self {
            method: present(method),
            flags: present(flags),
            details: present(details),
            authority: present(authority),
            cluster: present(cluster),
            local: present(local),
            remote: present(remote),
            server_name: present(server_name),
            route: present(route),
        })
    }

    fn read(&self) -> Line {
        // The flag alone tells: gRPC clients get 200, others 404, connections nothing.
        let is_refused = self.flags.split(',').any(|flag| flag == "NR")
            || self.details.starts_with("egress_denied")
            || self.cluster == BLACK_HOLE
            || self.route == BLOCK_ALL;
        if !is_refused {
            return Line::Other;
        }
        Line::Refusal(Refusal {
            origin: Origin::AccessLog,
            destination: self.destination(),
            source: ip(self.remote).map(|source| source.to_canonical()),
        })
    }

    fn destination(&self) -> Option<Destination> {
        if self.authority.is_empty() {
            // Raw TLS. Nobody but the listener knows of a port.
            let host = Host::parse(self.server_name)?;
            let local = self.local.parse::<SocketAddr>().ok().map(|local| local.port());
            let (port, is_listeners_port) = (local.unwrap_or(443), local.is_some());
            return (port != 0).then_some(Destination { host, port, protocol: Protocol::Tls, is_listeners_port });
        }
        let (host, port) = split_port(self.authority)?;
        let host = Host::parse(host)?;
        // A connection for another name is one to the proxy itself, and tells nothing about the host.
        let is_for_host = || Host::parse(self.server_name).as_ref() == Some(&host);
        let (protocol, default) = match self.method {
            "CONNECT" if port.is_none_or(|port| port == 443) => (Protocol::Tls, 443),
            "CONNECT" => (Protocol::Tcp, 443),
            _ if is_for_host() => (Protocol::Tls, 443),
            _ => (Protocol::Http, 80),
        };
        Some(Destination { host, port: port.unwrap_or(default), protocol, is_listeners_port: false })
    }
}

/// Istio's default JSON format, other formats with the same keys, and our own log in JSON.
///
/// Source: `reference/telemetry-and-operations.md` §4.2.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Json {
    method: Option<String>,
    response_flags: Option<String>,
    response_code_details: Option<String>,
    authority: Option<String>,
    upstream_cluster: Option<String>,
    downstream_local_address: Option<String>,
    downstream_remote_address: Option<String>,
    requested_server_name: Option<String>,
    route_name: Option<String>,
    /// Of our own log only.
    fields: Option<OwnFields>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OwnFields {
    message: Value,
    host: Value,
    port: Value,
    protocol: Value,
}

impl Json {
    fn read(&self) -> Line {
        if let Some(OwnFields { message, host, port, protocol }) = &self.fields {
            if message.as_str().is_none_or(|message| !message.starts_with(DENIED)) {
                return Line::Other;
            }
            let number = port.as_u64().map(|port| port.to_string());
            return denial(host.as_str(), number.as_deref().or(port.as_str()), protocol.as_str());
        }
        // Flags are never null.
        if self.response_flags.is_none() {
            return Line::Unreadable;
        }
        let record = Record {
            method: self.method.as_deref().map_or("", present),
            flags: self.response_flags.as_deref().map_or("", present),
            details: self.response_code_details.as_deref().map_or("", present),
            authority: self.authority.as_deref().map_or("", present),
            cluster: self.upstream_cluster.as_deref().map_or("", present),
            local: self.downstream_local_address.as_deref().map_or("", present),
            remote: self.downstream_remote_address.as_deref().map_or("", present),
            server_name: self.requested_server_name.as_deref().map_or("", present),
            route: self.route_name.as_deref().map_or("", present),
        };
        record.read()
    }
}

/// A denial in our own log. It doesn't say who asked.
fn denial(host: Option<&str>, port: Option<&str>, protocol: Option<&str>) -> Line {
    let protocol = match protocol {
        Some("HTTP") => Protocol::Http,
        Some("TLS") => Protocol::Tls,
        Some("TCP") => Protocol::Tcp,
        _ => return Line::Unreadable,
    };
    let port: Option<u16> = port.and_then(|port| port.parse().ok());
    let (Some(host), Some(port)) = (host, port) else { return Line::Unreadable };
    let destination = Host::parse(host).filter(|_| port != 0).map(|host| Destination {
        host,
        port,
        protocol,
        is_listeners_port: false,
    });
    Line::Refusal(Refusal { origin: Origin::OwnLog, destination, source: None })
}

/// Message and fields of a line of our own log, as `tracing` writes it: time, level, module, message.
fn own_message(line: &str) -> Option<&str> {
    let (time, rest) = line.split_once(' ')?;
    let is_time = time.starts_with(|first: char| first.is_ascii_digit()) && time.ends_with('Z') && time.contains('T');
    let (level, rest) = rest.trim_start().split_once(' ')?;
    if !is_time || !["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level) {
        return None;
    }
    let (_module, message) = rest.split_once(": ")?;
    Some(message)
}

/// The value of the first `key=value`, without quotes. Nothing counts from `allow=` on, which quotes everything else.
fn field<'l>(fields: &'l str, key: &str) -> Option<&'l str> {
    let mut rest = fields;
    loop {
        let (before, after) = rest.split_once('=')?;
        let name = before.rsplit(' ').next()?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        if name == key {
            return Some(value);
        }
        if name == "allow" {
            return None;
        }
        rest = after;
    }
}

/// Host, with brackets, and port of an authority. `None` for a port that is none.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let colon = match authority.rfind(']') {
        Some(bracket) => authority[bracket..].find(':').map(|at| bracket + at),
        None => authority.rfind(':'),
    };
    let Some(colon) = colon else { return Some((authority, None)) };
    let port = authority[colon + 1..].parse().ok().filter(|port| *port != 0)?;
    Some((&authority[..colon], Some(port)))
}

/// The value of a field; empty if it is absent.
fn present(value: &str) -> &str {
    if value == "-" { "" } else { value }
}

/// The address in `192.0.2.1:80`, `[2001:db8::1]:80` or without a port.
fn ip(text: &str) -> Option<IpAddr> {
    let with_port = text.parse::<SocketAddr>().ok().map(|address| address.ip());
    with_port.or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests;
