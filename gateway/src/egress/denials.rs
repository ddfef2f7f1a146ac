//! Refusals of egress: each is counted and logged with what it takes to allow it.

use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use tracing::warn;

use super::host::{Host, Invalid, Target};
use super::suggestion::{self, Protocol, Wanted};
use crate::request::ConnectionFacts;
use crate::telemetry::metrics::Page;

/// Series of the counter. Clients choose hosts, so there must be an end; what comes later is counted by reason and source
/// alone.
const MAX_SERIES: usize = 1_000;
/// Series of that kind; what comes later still is counted by reason alone.
const MAX_SOURCES: usize = 1_000;
/// Lines in a second, so that nobody floods the log. What is left out is counted, and the next line tells.
const MAX_LINES: u32 = 100;

/// Why egress is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No ServiceEntry has the host.
    UnknownHost,
    /// A ServiceEntry has the host, and not the port.
    UnknownPort,
    /// The Gateway's server is not for the host.
    HostNotServed,
    /// No route of the listener is for the host.
    NoRoute,
    /// The host is no name that can be trusted to be one.
    InvalidHost(Invalid),
    /// An address where a name is needed.
    AddressLiteral,
    /// The host is not below the ServiceEntry's wildcard.
    NotCovered,
    /// TLS was begun for another host.
    ServerNameMismatch,
    /// What goes through the tunnel is not the TLS that its port is for.
    NotTls,
    /// A request in clear text for a port that speaks TLS.
    ClearText,
    /// A tunnel would leave out the TLS that the DestinationRule begins.
    PastTls,
    /// A tunnel would go past the routes of a VirtualService.
    PastRoutes,
    /// The name stands for addresses that are not public.
    ForbiddenAddress,
    /// The name leads back to this gateway or its machine.
    Loop,
}

impl Reason {
    /// As logs, metrics and response code details have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownHost => "unknown_host",
            Self::UnknownPort => "unknown_port",
            Self::HostNotServed => "host_not_served",
            Self::NoRoute => "no_route",
            Self::InvalidHost(Invalid::UserInfo) => "userinfo",
            Self::InvalidHost(Invalid::TrailingDot) => "trailing_dot",
            Self::InvalidHost(Invalid::Port) => "invalid_port",
            Self::InvalidHost(Invalid::Name) => "invalid_host",
            Self::AddressLiteral => "address_literal",
            Self::NotCovered => "host_not_covered",
            Self::ServerNameMismatch => "server_name_mismatch",
            Self::NotTls => "not_tls",
            Self::ClearText => "clear_text",
            Self::PastTls => "past_tls",
            Self::PastRoutes => "past_routes",
            Self::ForbiddenAddress => "forbidden_address",
            Self::Loop => "loop",
        }
    }

    /// For people.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::UnknownHost => "no ServiceEntry has this host",
            Self::UnknownPort => "no ServiceEntry has this port of the host",
            Self::HostNotServed => "the Gateway's server is not for this host",
            Self::NoRoute => "no VirtualService of this Gateway has a route for this host",
            Self::InvalidHost(Invalid::UserInfo) => "a host must not come with user information",
            Self::InvalidHost(Invalid::TrailingDot) => "a host must not end with a dot",
            Self::InvalidHost(Invalid::Port) => "the port is not a number from 1 to 65535",
            Self::InvalidHost(Invalid::Name) => "this is no host name",
            Self::AddressLiteral => "a host name is needed, not an address",
            Self::NotCovered => "the host is not below the wildcard of the ServiceEntry",
            Self::ServerNameMismatch => "the connection was made for another host",
            Self::NotTls => "this port is for TLS, for the host that was asked for",
            Self::ClearText => "this port is for TLS: use https",
            Self::PastTls => "the gateway begins TLS for this port: no tunnels",
            Self::PastRoutes => "a VirtualService has routes for this host: no tunnels to HTTP",
            Self::ForbiddenAddress => "the host has no public address",
            Self::Loop => "the host leads back to this gateway or its machine",
        }
    }

    /// Whether a ServiceEntry would help.
    fn is_about_registry(self) -> bool {
        matches!(self, Self::UnknownHost | Self::UnknownPort | Self::NoRoute)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One refused request or connection.
#[derive(Debug, Clone, Copy)]
pub struct Denial<'d> {
    /// Why.
    pub reason: Reason,
    /// The connection that it came on.
    pub connection: &'d ConnectionFacts,
    /// Who asked, as far as trusted proxies say.
    pub client: Option<SocketAddr>,
    /// The authority that was asked for, or the SNI.
    pub authority: &'d [u8],
    /// The port, if the authority names none.
    pub port: u16,
    /// What would be spoken.
    pub protocol: Protocol,
}

/// All refusals.
#[derive(Debug, Default)]
pub struct Denials {
    counts: Mutex<Counts>,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Counts {
    series: AHashMap<Labels, u64>,
    by_source: AHashMap<(Reason, Option<IpAddr>), u64>,
    /// There are as many as there are reasons.
    by_reason: AHashMap<Reason, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels {
    reason: Reason,
    source: Option<IpAddr>,
    /// `None`: what was asked for is no host.
    host: Option<String>,
    port: u16,
    server_name: Option<String>,
}

#[derive(Debug, Default)]
struct Lines {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Denials {
    /// Counts and logs a refusal.
    pub fn deny(&self, denial: &Denial<'_>) {
        let Denial { reason, connection, client, authority, port, protocol } = *denial;
        let target = Target::parse(authority).ok();
        let host = target.as_ref().map(|target| target.host.to_string());
        let port = target.as_ref().and_then(|target| target.port).unwrap_or(port);
        let server_name = connection.server_name.as_deref();
        let source = client.map(|client| client.ip());
        self.count(Labels { reason, source, host: host.clone(), port, server_name: server_name.map(str::to_owned) });
        let Some(left_out) = self.lines.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now()) else {
            return;
        };
        let wanted = match &target {
            Some(Target { host: Host::Name(name), .. }) if reason.is_about_registry() => {
                let wanted = [Wanted { host: name.to_string(), port, protocol }];
                suggestion::service_entry(&wanted).map(|entry| entry.one_line())
            }
            _ => None,
        };
        let source = client.map_or_else(|| "-".to_owned(), |client| client.to_string());
        let host = host.unwrap_or_else(|| String::from_utf8_lossy(authority).escape_debug().take(MAX_SHOWN).collect());
        let (sni, why) = (server_name.unwrap_or("-"), reason.explanation());
        let allow = wanted.as_deref().unwrap_or("-");
        warn!(%source, host, port, sni, %protocol, %reason, why, allow, left_out, "egress denied");
    }

    fn count(&self, labels: Labels) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { series, by_source, by_reason } = &mut *counts;
        let Labels { reason, source, .. } = labels;
        let counted = count(series, labels, MAX_SERIES) || count(by_source, (reason, source), MAX_SOURCES);
        if !counted {
            count(by_reason, reason, usize::MAX);
        }
    }

    /// Writes the counters to `page`.
    pub fn expose(&self, page: &mut Page) {
        const NAME: &str = "fairlead_egress_denied_total";
        const OTHER: &str = "other";
        let source_label =
            |source: &Option<IpAddr>| source.map_or_else(|| "unknown".to_owned(), |source| source.to_string());
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (labels, count) in &counts.series {
            let Labels { reason, source, host, port, server_name } = labels;
            let labels = [
                ("reason", reason.as_str()),
                ("source", &source_label(source)),
                ("host", host.as_deref().unwrap_or("invalid")),
                ("port", &port.to_string()),
                ("sni", server_name.as_deref().unwrap_or("")),
            ];
            page.counter(NAME, &labels, *count);
        }
        let by_source = counts.by_source.iter().map(|((reason, source), count)| (reason, source_label(source), count));
        let by_reason = counts.by_reason.iter().map(|(reason, count)| (reason, OTHER.to_owned(), count));
        for (reason, source, count) in by_source.chain(by_reason) {
            let labels =
                [("reason", reason.as_str()), ("source", &source), ("host", OTHER), ("port", OTHER), ("sni", OTHER)];
            page.counter(NAME, &labels, *count);
        }
    }
}

/// Counts one more of `labels`; whether there was room for it.
fn count<L: Eq + Hash>(counts: &mut AHashMap<L, u64>, labels: L, max: usize) -> bool {
    if let Some(count) = counts.get_mut(&labels) {
        *count += 1;
    } else if counts.len() < max {
        counts.insert(labels, 1);
    } else {
        return false;
    }
    true
}

/// Characters of what is no host that are logged.
const MAX_SHOWN: usize = 256;

impl Lines {
    /// Whether there may be a line; how many were left out before it.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            self.since = Some(now);
            self.written = 0;
        }
        if self.written >= MAX_LINES {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deny(denials: &Denials, reason: Reason, authority: &str) {
        deny_to(denials, [192, 0, 2, 1].into(), reason, authority);
    }

    fn deny_to(denials: &Denials, source: IpAddr, reason: Reason, authority: &str) {
        let connection = ConnectionFacts::unknown();
        let client = Some((source, 4242).into());
        let authority = authority.as_bytes();
        let protocol = Protocol::Http;
        denials.deny(&Denial { reason, connection: &connection, client, authority, port: 80, protocol });
    }

    #[test]
    fn refusals_are_counted_by_who_wanted_what() {
        let denials = Denials::default();
        deny(&denials, Reason::UnknownHost, "A.com");
        deny(&denials, Reason::UnknownHost, "a.com:80");
        deny(&denials, Reason::InvalidHost(Invalid::UserInfo), "x@a.com");
        let mut page = Page::default();
        denials.expose(&mut page);
        let text = page.finish();
        for line in [
            "{reason=\"unknown_host\",source=\"192.0.2.1\",host=\"a.com\",port=\"80\",sni=\"\"} 2",
            "{reason=\"userinfo\",source=\"192.0.2.1\",host=\"invalid\",port=\"80\",sni=\"\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn series_have_an_end() {
        let denials = Denials::default();
        for number in 0..MAX_SERIES + 5 {
            deny(&denials, Reason::UnknownHost, &format!("h{number}.com"));
        }
        deny_to(&denials, [192, 0, 2, 9].into(), Reason::Loop, "b.com");
        for number in 0..u32::try_from(MAX_SOURCES).unwrap_or(u32::MAX) {
            deny_to(&denials, std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), Reason::NotTls, "c.com");
        }
        let mut page = Page::default();
        denials.expose(&mut page);
        let text = page.finish();
        let series = text.lines().filter(|line| line.starts_with("fairlead_egress_denied_total{")).count();
        assert_eq!(series, MAX_SERIES + MAX_SOURCES + 1, "with one for the rest");
        let rest = "host=\"other\",port=\"other\",sni=\"other\"}";
        for line in [
            format!("{{reason=\"unknown_host\",source=\"192.0.2.1\",{rest} 5"),
            format!("{{reason=\"loop\",source=\"192.0.2.9\",{rest} 1"),
            format!("{{reason=\"not_tls\",source=\"other\",{rest} 2"),
        ] {
            assert!(text.contains(&line), "{line}");
        }
    }

    #[test]
    fn lines_have_a_rate() {
        let mut lines = Lines::default();
        let now = Instant::now();
        let written = (0..MAX_LINES + 7).filter(|_| lines.next(now).is_some()).count();
        assert_eq!(written, MAX_LINES as usize);
        assert_eq!(lines.next(now + Duration::from_secs(1)), Some(7));
    }
}
