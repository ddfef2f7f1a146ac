//! What `/etc/hosts` and name servers say about a name.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::{Hosts, TokioResolver};
use tracing::{debug, warn};

use super::{Answer, Lookup};

/// Resolves as `/etc/hosts` and `/etc/resolv.conf` say, and follows their changes.
#[derive(Debug)]
pub struct SystemLookup {
    record: RecordType,
    current: Mutex<Option<Arc<Sources>>>,
}

#[derive(Debug)]
struct Sources {
    /// When the files were changed last.
    modified: [Option<SystemTime>; 2],
    hosts: Hosts,
    resolver: TokioResolver,
}

const FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

impl Default for SystemLookup {
    fn default() -> Self {
        Self { record: if is_ipv6_only() { RecordType::AAAA } else { RecordType::A }, current: Mutex::default() }
    }
}

impl SystemLookup {
    fn sources(&self) -> Result<Arc<Sources>, NetError> {
        let modified = FILES.map(|file| fs::metadata(file).and_then(|metadata| metadata.modified()).ok());
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(sources) if sources.modified == modified => Ok(Arc::clone(sources)),
            _ => {
                let hosts = Hosts::from_system().unwrap_or_default();
                let sources = Arc::new(Sources { modified, hosts, resolver: resolver(None)? });
                *current = Some(Arc::clone(&sources));
                Ok(sources)
            }
        }
    }
}

impl Lookup for SystemLookup {
    async fn lookup(&self, name: &str) -> Answer {
        let sources = match self.sources() {
            Ok(sources) => sources,
            Err(error) => {
                warn!(%error, "can't resolve names");
                return Answer::Failed;
            }
        };
        if let Some(addresses) = in_hosts(&sources.hosts, name, self.record) {
            // Files have no time to live.
            return Answer::Addresses(addresses, Duration::ZERO);
        }
        query(&sources.resolver, name, self.record).await
    }
}

fn in_hosts(hosts: &Hosts, name: &str, record: RecordType) -> Option<Vec<IpAddr>> {
    let query = hickory_resolver::proto::op::Query::query(name.parse().ok()?, record);
    let lookup = hosts.lookup_static_host(&query)?;
    Some(lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect())
}

/// A resolver for `servers`, or for those of `/etc/resolv.conf`. It keeps no answers; [`Names`](super::Names) does.
fn resolver(servers: Option<ResolverConfig>) -> Result<TokioResolver, NetError> {
    let provider = TokioRuntimeProvider::default();
    let mut builder = match servers {
        Some(servers) => TokioResolver::builder_with_config(servers, provider),
        None => TokioResolver::builder(provider).unwrap_or_else(|error| {
            // As the C library does without a name server in the file, or without the file.
            debug!(%error, "no name server configured, asking 127.0.0.1");
            let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
            TokioResolver::builder_with_config(
                ResolverConfig::from_parts(None, Vec::new(), vec![local]),
                TokioRuntimeProvider::default(),
            )
        }),
    };
    builder.options_mut().cache_size = 0;
    builder.options_mut().use_hosts_file = ResolveHosts::Never;
    builder.build()
}

async fn query(resolver: &TokioResolver, name: &str, record: RecordType) -> Answer {
    match resolver.lookup(name, record).await {
        Ok(lookup) => {
            let addresses: Vec<IpAddr> = lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
            if addresses.is_empty() {
                return Answer::Absent;
            }
            let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
            Answer::Addresses(addresses, Duration::from_secs(ttl.into()))
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none)))
            if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
        {
            Answer::Absent
        }
        Err(NetError::Dns(DnsError::ResponseCode(ResponseCode::NXDomain))) => Answer::Absent,
        Err(error) => {
            warn!(name, %error, "can't resolve a name");
            Answer::Failed
        }
    }
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
    use hickory_resolver::config::{ConnectionConfig, ProtocolConfig};

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    /// A name server that answers `response code` to everything, or one address if that is 0.
    async fn name_server(response_code: u8) -> TokioResolver {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut packet = [0; 1500];
            while let Ok((_, client)) = socket.recv_from(&mut packet).await {
                // RFC 1035 §4.1: the question ends with the root label, type and class.
                let question = 12 + packet[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
                let mut reply = packet[..question].to_vec();
                reply[2..4].copy_from_slice(&[0x81, 0x80 | response_code]);
                reply[4..12].copy_from_slice(&[0, 1, 0, u8::from(response_code == 0), 0, 0, 0, 0]);
                if response_code == 0 {
                    // The name of the question, A, IN, 30 seconds, 192.0.2.1.
                    reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1]);
                }
                socket.send_to(&reply, client).await.unwrap();
            }
        });
        let mut connection = ConnectionConfig::new(ProtocolConfig::Udp);
        connection.port = port;
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        resolver(Some(ResolverConfig::from_parts(None, Vec::new(), vec![server]))).unwrap()
    }

    #[tokio::test]
    async fn response_codes_are_told_apart() {
        for (code, expected) in [
            (0, Answer::Addresses(vec![ONE], Duration::from_secs(30))),
            (2, Answer::Failed),
            (3, Answer::Absent),
            (5, Answer::Failed),
        ] {
            let resolver = name_server(code).await;
            assert_eq!(query(&resolver, "a.example", RecordType::A).await, expected, "code {code}");
        }
    }

    #[tokio::test]
    async fn etc_hosts_comes_first() {
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(&b"192.0.2.1 a.example a\n2001:db8::1 a.example\n"[..]).unwrap();
        assert_eq!(in_hosts(&hosts, "a.example", RecordType::A).unwrap(), [ONE]);
        assert_eq!(in_hosts(&hosts, "b.example", RecordType::A), None);
    }
}
