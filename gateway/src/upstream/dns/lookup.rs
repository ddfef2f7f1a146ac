//! What `/etc/hosts` and name servers say about a name.

use std::fs;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::{Either, select};
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Hosts, TokioResolver};
use tracing::{debug, warn};

use super::{Answer, Lookup};

/// With addresses of one family at hand, time that the other one still gets. Some servers never answer AAAA.
const SECOND_FAMILY: Duration = Duration::from_secs(2);

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 (A).
    V4,
    /// IPv6 (AAAA).
    V6,
    /// Both at once.
    Both,
}

impl Families {
    /// Those that this machine should connect to: IPv4, or IPv6 if it has nothing else; both if `dual_stack`, Istio's
    /// `ISTIO_DUAL_STACK`, says so.
    ///
    /// Source: `reference/networking.md` §6.2.
    pub fn of_machine(dual_stack: bool) -> Self {
        if dual_stack {
            Self::Both
        } else if is_ipv6_only() {
            Self::V6
        } else {
            Self::V4
        }
    }

    fn records(self) -> &'static [RecordType] {
        match self {
            Self::V4 => &[RecordType::A],
            Self::V6 => &[RecordType::AAAA],
            Self::Both => &[RecordType::AAAA, RecordType::A],
        }
    }
}

/// Resolves as `/etc/hosts` and `/etc/resolv.conf` say, and follows their changes.
#[derive(Debug)]
pub struct SystemLookup {
    /// Asked instead of those of `/etc/resolv.conf`, if there are any.
    name_servers: Vec<SocketAddr>,
    current: Mutex<Option<Arc<Sources>>>,
}

#[derive(Debug)]
struct Sources {
    /// When the files were changed last.
    modified: [Option<SystemTime>; 2],
    hosts: Hosts,
    servers: Servers,
}

const FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

impl SystemLookup {
    /// Asks `name_servers`, or those of `/etc/resolv.conf` if there are none; its search domains and options hold for
    /// either.
    pub fn new(name_servers: Vec<SocketAddr>) -> Self {
        Self { name_servers, current: Mutex::default() }
    }

    fn sources(&self) -> Result<Arc<Sources>, NetError> {
        let modified = FILES.map(|file| fs::metadata(file).and_then(|metadata| metadata.modified()).ok());
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(sources) if sources.modified == modified => Ok(Arc::clone(sources)),
            _ => {
                let hosts = Hosts::from_system().unwrap_or_default();
                let servers = Servers::of_system(&self.name_servers)?;
                let sources = Arc::new(Sources { modified, hosts, servers });
                *current = Some(Arc::clone(&sources));
                Ok(sources)
            }
        }
    }
}

impl Lookup for SystemLookup {
    async fn lookup(&self, name: &str, families: Families) -> Answer {
        let sources = match self.sources() {
            Ok(sources) => sources,
            Err(error) => {
                warn!(%error, "can't resolve names");
                return Answer::Failed;
            }
        };
        if let Some(addresses) = in_hosts(&sources.hosts, name, families) {
            // Files have no time to live.
            return Answer::Addresses(addresses, Duration::ZERO);
        }
        sources.servers.lookup(name, families).await
    }
}

/// The addresses that the file has of `name`. One family there speaks for both, as in the C library.
fn in_hosts(hosts: &Hosts, name: &str, families: Families) -> Option<Vec<IpAddr>> {
    let name: Name = name.parse().ok()?;
    let listed = families.records().iter().map(|&record| {
        let lookup = hosts.lookup_static_host(&Query::query(name.clone(), record))?;
        let addresses: Vec<IpAddr> = lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
        (!addresses.is_empty()).then_some(addresses)
    });
    listed.flatten().reduce(interleaved)
}

/// Name servers, and where names without a final dot are looked for.
#[derive(Debug)]
struct Servers {
    resolver: TokioResolver,
    /// Domains that are tried in this order.
    search: Vec<Name>,
    /// A name with as many dots is tried as it stands before them.
    dots: usize,
}

impl Servers {
    /// `given`, or those of `/etc/resolv.conf` if there are none.
    fn of_system(given: &[SocketAddr]) -> Result<Self, NetError> {
        let (mut config, options) = read_system_conf().unwrap_or_else(|error| {
            if given.is_empty() {
                debug!(%error, "no name server configured, asking 127.0.0.1");
            }
            // As the C library does without a name server in the file, or without the file.
            let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
            (ResolverConfig::from_name_servers(vec![local]), ResolverOpts::default())
        });
        if !given.is_empty() {
            let (domain, search, _) = config.into_parts();
            config = ResolverConfig::from_parts(domain, search, given.iter().copied().map(name_server).collect());
        }
        Self::new(config, options)
    }

    /// They keep no answers; [`Names`](super::Names) does.
    fn new(config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, NetError> {
        let (domain, mut search, servers) = config.into_parts();
        // `search` says it all; the domain of the machine's own name stands in for it.
        if search.is_empty() {
            search.extend(domain);
        }
        let dots = options.ndots;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        // The time to live of every alias on the way counts.
        options.preserve_intermediates = true;
        let servers = ResolverConfig::from_name_servers(servers);
        let mut builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Ok(Self { resolver: builder.build()?, search, dots })
    }

    /// Tries `name` and its search domains until there are addresses. It is absent only if all of them are: a server
    /// that fails says nothing, even if the next domain doesn't have the name.
    async fn lookup(&self, name: &str, families: Families) -> Answer {
        let candidates = match self.candidates(name) {
            Ok(candidates) => candidates,
            Err(error) => {
                warn!(name, %error, "no name to resolve");
                return Answer::Failed;
            }
        };
        let mut failed = false;
        for candidate in candidates {
            match self.ask(&candidate, families).await {
                Answer::Absent => {}
                Answer::Failed => failed = true,
                answer @ Answer::Addresses(..) => return answer,
            }
        }
        if failed { Answer::Failed } else { Answer::Absent }
    }

    /// Complete names to ask for, in this order. Source: `resolv.conf(5)`, `search` and `ndots`.
    fn candidates(&self, name: &str) -> Result<Vec<Name>, ProtoError> {
        let mut name = Name::from_utf8(name)?;
        if name.is_fqdn() {
            return Ok(vec![name]);
        }
        // A name that gets too long with its domain isn't one.
        let mut candidates: Vec<Name> =
            self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        let first = usize::from(name.num_labels()) > self.dots || name.is_localhost();
        let position = if first { 0 } else { candidates.len() };
        name.set_fqdn(true);
        candidates.insert(position, name);
        Ok(candidates)
    }

    async fn ask(&self, name: &Name, families: Families) -> Answer {
        match families {
            Families::V4 => self.query(name, RecordType::A).await,
            Families::V6 => self.query(name, RecordType::AAAA).await,
            Families::Both => both(self.query(name, RecordType::AAAA), self.query(name, RecordType::A)).await,
        }
    }

    async fn query(&self, name: &Name, record: RecordType) -> Answer {
        match self.resolver.lookup(name.clone(), record).await {
            Ok(lookup) => {
                let records = lookup.answers();
                let addresses: Vec<IpAddr> = records.iter().filter_map(|record| record.data.ip_addr()).collect();
                if addresses.is_empty() {
                    return Answer::Absent;
                }
                let ttl = records.iter().map(|record| record.ttl).min().unwrap_or_default();
                Answer::Addresses(addresses, Duration::from_secs(ttl.into()))
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none)))
                if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
            {
                Answer::Absent
            }
            Err(NetError::Dns(DnsError::ResponseCode(ResponseCode::NXDomain))) => Answer::Absent,
            Err(error) => {
                warn!(%name, %error, "can't resolve a name");
                Answer::Failed
            }
        }
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

/// The answers for both families as one. What one of them has is used even if the other one fails.
async fn both(v6: impl Future<Output = Answer>, v4: impl Future<Output = Answer>) -> Answer {
    let (v6, v4) = match select(pin!(v6), pin!(v4)).await {
        Either::Left((v6, v4)) => {
            let v4 = second(&v6, v4).await;
            (v6, v4)
        }
        Either::Right((v4, v6)) => (second(&v4, v6).await, v4),
    };
    match (v6, v4) {
        (Answer::Addresses(v6, of_v6), Answer::Addresses(v4, of_v4)) => {
            Answer::Addresses(interleaved(v6, v4), of_v6.min(of_v4))
        }
        (answer @ Answer::Addresses(..), _) | (_, answer @ Answer::Addresses(..)) => answer,
        (Answer::Absent, Answer::Absent) => Answer::Absent,
        _ => Answer::Failed,
    }
}

async fn second(first: &Answer, rest: impl Future<Output = Answer>) -> Answer {
    if matches!(first, Answer::Addresses(..)) {
        tokio::time::timeout(SECOND_FAMILY, rest).await.unwrap_or(Answer::Failed)
    } else {
        rest.await
    }
}

/// In turns, so that neither family is last. Source: RFC 8305 §4, with a First Address Family Count of 1.
fn interleaved(first: Vec<IpAddr>, second: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut merged = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    while first.len() + second.len() > 0 {
        merged.extend(first.next());
        merged.extend(second.next());
    }
    merged
}

/// Whether this machine reaches others by IPv6 alone; the pod's own address decides where there is one.
fn is_ipv6_only() -> bool {
    if let Some(own) = std::env::var("INSTANCE_IP").ok().and_then(|ip| ip.parse::<IpAddr>().ok()) {
        return own.is_ipv6();
    }
    // Connecting a datagram socket sends nothing; it only asks for a route.
    let has_route = |from: IpAddr, to: IpAddr| -> io::Result<()> { UdpSocket::bind((from, 0))?.connect((to, 53)) };
    let v4 = has_route(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = has_route(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    v4.is_err() && v6.is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::future::{pending, ready};

    use hickory_resolver::proto::op::Message;
    use hickory_resolver::proto::rr::{RData, Record, rdata};

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    const SIX: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
    const SEVEN: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));

    type Zone = fn(&str, RecordType) -> Result<Vec<Record>, ResponseCode>;

    /// A name server that answers from `zone`, and a resolver that asks it.
    async fn servers(zone: Zone, search: &[&str]) -> Servers {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = name_server(socket.local_addr().unwrap());
        tokio::spawn(async move {
            let mut packet = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut packet).await {
                let mut message = Message::from_vec(&packet[..length]).unwrap().into_response();
                let query = &message.queries[0];
                match zone(&query.name().to_string(), query.query_type()) {
                    Ok(records) => message.answers = records,
                    Err(code) => message.metadata.response_code = code,
                }
                socket.send_to(&message.to_vec().unwrap(), client).await.unwrap();
            }
        });
        let search = search.iter().map(|domain| domain.parse().unwrap()).collect();
        Servers::new(ResolverConfig::from_parts(None, search, vec![server]), ResolverOpts::default()).unwrap()
    }

    fn a(name: &str, ttl: u32) -> Record {
        Record::from_rdata(name.parse().unwrap(), ttl, RData::A(rdata::A::new(192, 0, 2, 1)))
    }

    fn alias(name: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name.parse().unwrap(), ttl, RData::CNAME(rdata::CNAME(target.parse().unwrap())))
    }

    fn addresses(addresses: &[IpAddr], ttl: u64) -> Answer {
        Answer::Addresses(addresses.to_vec(), Duration::from_secs(ttl))
    }

    #[tokio::test]
    async fn response_codes_are_told_apart() {
        let zone: Zone = |name, record| match (name, record) {
            ("a.example.", RecordType::A) => Ok(vec![a(name, 30)]),
            ("a.example.", _) => Ok(Vec::new()),
            ("servfail.example.", _) => Err(ResponseCode::ServFail),
            ("refused.example.", _) => Err(ResponseCode::Refused),
            _ => Err(ResponseCode::NXDomain),
        };
        let servers = servers(zone, &[]).await;
        for (name, families, expected) in [
            ("a.example", Families::V4, addresses(&[ONE], 30)),
            ("a.example.", Families::V4, addresses(&[ONE], 30)),
            ("a.example", Families::V6, Answer::Absent),
            ("a.example", Families::Both, addresses(&[ONE], 30)),
            ("b.example", Families::V4, Answer::Absent),
            ("b.example", Families::Both, Answer::Absent),
            ("servfail.example", Families::V4, Answer::Failed),
            ("refused.example", Families::Both, Answer::Failed),
            ("no..name", Families::V4, Answer::Failed),
        ] {
            assert_eq!(servers.lookup(name, families).await, expected, "{name} {families:?}");
        }
    }

    #[tokio::test]
    async fn the_shortest_time_on_the_way_counts() {
        let zone: Zone = |name, _| {
            Ok(match name {
                "whole.example." => vec![alias(name, 5, "a.example."), a("a.example.", 30)],
                "short.example." => vec![alias(name, 300, "b.example."), a("b.example.", 20)],
                "first.example." => vec![alias(name, 7, "second.example.")],
                "second.example." => vec![alias(name, 9, "a.example."), a("a.example.", 30)],
                "a.example." => vec![a(name, 30)],
                _ => Vec::new(),
            })
        };
        let servers = servers(zone, &[]).await;
        for (name, ttl) in [("whole.example", 5), ("short.example", 20), ("second.example", 9), ("first.example", 7)] {
            assert_eq!(servers.lookup(name, Families::V4).await, addresses(&[ONE], ttl), "{name}");
        }
    }

    #[tokio::test]
    async fn a_failing_search_domain_is_no_absence() {
        let zone: Zone = |name, _| match name {
            "b.found." | "d.e.found." => Ok(vec![a(name, 30)]),
            "a.broken." | "c.d." => Err(ResponseCode::ServFail),
            _ => Err(ResponseCode::NXDomain),
        };
        let servers = servers(zone, &["broken", "found"]).await;
        for (name, expected) in [
            ("a", Answer::Failed),
            ("b", addresses(&[ONE], 30)),
            ("c.d", Answer::Failed),
            ("d.e", addresses(&[ONE], 30)),
            ("f", Answer::Absent),
        ] {
            assert_eq!(servers.lookup(name, Families::V4).await, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn search_domains_follow_names_with_dots() {
        let servers = servers(|_, _| Err(ResponseCode::NXDomain), &["one.example", "two.example"]).await;
        for (name, expected) in [
            ("a", &["a.one.example.", "a.two.example.", "a."][..]),
            ("a.b", &["a.b.", "a.b.one.example.", "a.b.two.example."]),
            ("a.b.", &["a.b."]),
        ] {
            let candidates: Vec<String> =
                servers.candidates(name).unwrap().iter().map(|candidate| candidate.to_string()).collect();
            assert_eq!(candidates, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn families_make_one_answer() {
        let failed = Answer::Failed;
        let absent = Answer::Absent;
        for (v6, v4, expected) in [
            (addresses(&[SIX, SEVEN], 5), addresses(&[ONE], 9), addresses(&[SIX, ONE, SEVEN], 5)),
            (addresses(&[SIX], 9), addresses(&[ONE, TWO], 5), addresses(&[SIX, ONE, TWO], 5)),
            (failed.clone(), addresses(&[ONE], 9), addresses(&[ONE], 9)),
            (absent.clone(), addresses(&[ONE], 9), addresses(&[ONE], 9)),
            (addresses(&[SIX], 9), failed.clone(), addresses(&[SIX], 9)),
            (absent.clone(), absent.clone(), absent.clone()),
            (absent.clone(), failed.clone(), failed.clone()),
            (failed.clone(), absent.clone(), failed.clone()),
        ] {
            assert_eq!(both(ready(v6.clone()), ready(v4.clone())).await, expected, "{v6:?} {v4:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_family_holds_up_the_other_one_briefly() {
        let begin = tokio::time::Instant::now();
        assert_eq!(both(pending(), ready(addresses(&[ONE], 9))).await, addresses(&[ONE], 9));
        assert!(begin.elapsed() >= SECOND_FAMILY && begin.elapsed() < SECOND_FAMILY * 2, "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn etc_hosts_comes_first() {
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(&b"192.0.2.1 a.example a\n2001:db8::1 a.example\n192.0.2.2 b.example\n"[..]).unwrap();
        for (name, families, expected) in [
            ("a.example", Families::V4, Some(&[ONE][..])),
            ("a.example", Families::V6, Some(&[SIX])),
            ("a.example", Families::Both, Some(&[SIX, ONE])),
            ("b.example", Families::Both, Some(&[TWO])),
            ("b.example", Families::V6, None),
            ("c.example", Families::Both, None),
        ] {
            assert_eq!(in_hosts(&hosts, name, families).as_deref(), expected, "{name} {families:?}");
        }
    }
}
