//! A name server whose records tests change while it answers, over UDP and TCP.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType, rdata};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::eventually;

/// RFC 1035 §4.2.1: a longer answer is cut short over UDP, and asked for again over TCP.
const MAX_UDP: usize = 512;

/// A name server on 127.0.0.1. It stops when this is dropped. Names that were never set don't exist.
pub struct DnsServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    zone: Mutex<Zone>,
    changed: Notify,
}

#[derive(Default)]
struct Zone {
    names: HashMap<String, Entry>,
    queries: Vec<(String, RecordType, Instant)>,
}

#[derive(Clone, Default)]
struct Entry {
    content: Content,
    delay: Duration,
}

#[derive(Clone, Default)]
enum Content {
    /// NXDOMAIN.
    #[default]
    Absent,
    /// SERVFAIL.
    Failing,
    Addresses(Vec<IpAddr>, u32),
    Alias(String, u32),
}

impl DnsServer {
    pub async fn start() -> Self {
        // The kernel gives a free port for one of the protocols; the other one may have it taken.
        let (udp, tcp) = eventually("a port that is free for UDP and TCP", || async {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.ok()?;
            let tcp = TcpListener::bind(udp.local_addr().ok()?).await.ok()?;
            Some((udp, tcp))
        })
        .await;
        let address = udp.local_addr().unwrap();
        let shared: Arc<Shared> = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, shared.clone()));
        tasks.spawn(serve_tcp(tcp, shared.clone()));
        Self { address, shared, _tasks: tasks }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `name` has these addresses, IPv4 and IPv6, for `ttl` seconds. Without any it exists all the same.
    pub fn set(&self, name: &str, addresses: &[IpAddr], ttl: u32) {
        self.change(name, |entry| entry.content = Content::Addresses(addresses.to_vec(), ttl));
    }

    /// `name` is another name of `target`.
    pub fn set_alias(&self, name: &str, target: &str, ttl: u32) {
        self.change(name, |entry| entry.content = Content::Alias(target.to_owned(), ttl));
    }

    /// NXDOMAIN.
    pub fn set_absent(&self, name: &str) {
        self.change(name, |entry| entry.content = Content::Absent);
    }

    /// SERVFAIL.
    pub fn fail(&self, name: &str) {
        self.change(name, |entry| entry.content = Content::Failing);
    }

    /// Answers for `name` take this long, those under way as well. What they say is what holds when the time is over.
    pub fn delay(&self, name: &str, delay: Duration) {
        self.change(name, |entry| entry.delay = delay);
    }

    /// When `name` was asked for, and for which records. Second tries count.
    pub fn queries(&self, name: &str) -> Vec<(RecordType, Instant)> {
        let zone = self.shared.zone.lock().unwrap();
        let queries = zone.queries.iter().filter(|(asked, _, _)| asked == name);
        queries.map(|&(_, record, time)| (record, time)).collect()
    }

    /// Waits until `name` was asked for `count` more times than now.
    pub async fn asked_again(&self, name: &str, count: usize) {
        let goal = self.queries(name).len() + count;
        let what = format!("{name} is asked for {count} more times");
        eventually(&what, || async { (self.queries(name).len() >= goal).then_some(()) }).await;
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Entry)) {
        change(self.shared.zone.lock().unwrap().names.entry(name.to_owned()).or_default());
        self.shared.changed.notify_waiters();
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let socket = Arc::new(socket);
    // Dropping the set with this task ends the answers under way too.
    let mut answers = JoinSet::new();
    let mut packet = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut packet).await {
        let (query, socket, shared) = (packet[..length].to_vec(), socket.clone(), shared.clone());
        answers.spawn(async move {
            let Some(answer) = answer(&query, &shared).await else { return };
            let bytes = answer.to_vec().unwrap();
            let bytes = if bytes.len() > MAX_UDP { answer.truncate().to_vec().unwrap() } else { bytes };
            let _ = socket.send_to(&bytes, client).await;
        });
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve_stream(stream, shared.clone()));
    }
}

/// RFC 1035 §4.2.2: a length of two bytes stands before each message.
async fn serve_stream(mut stream: TcpStream, shared: Arc<Shared>) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; usize::from(length)];
        if stream.read_exact(&mut query).await.is_err() {
            return;
        }
        let Some(answer) = answer(&query, &shared).await else { return };
        let bytes = answer.to_vec().unwrap();
        let length = u16::try_from(bytes.len()).unwrap();
        if stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await.is_err() {
            return;
        }
    }
}

/// The answer to the query in `bytes`, when its time has come; `None` for what isn't a query.
async fn answer(bytes: &[u8], shared: &Shared) -> Option<Message> {
    let mut message = Message::from_vec(bytes).ok()?.into_response();
    let query = message.queries.first()?.clone();
    let (name, record) = (text(query.name()), query.query_type());
    let asked = Instant::now();
    shared.zone.lock().unwrap().queries.push((name.clone(), record, asked));
    loop {
        let changed = shared.changed.notified();
        let delay = shared.zone.lock().unwrap().names.get(&name).map(|entry| entry.delay).unwrap_or_default();
        let Some(rest) = delay.checked_sub(asked.elapsed()).filter(|rest| !rest.is_zero()) else { break };
        let _ = tokio::time::timeout(rest, changed).await;
    }
    message.metadata.recursion_available = true;
    match shared.zone.lock().unwrap().records(&name, record) {
        Ok(records) => message.answers = records,
        Err(code) => message.metadata.response_code = code,
    }
    Some(message)
}

impl Zone {
    /// The records of `name`, those of its targets included, as a resolving server says them.
    fn records(&self, name: &str, record: RecordType) -> Result<Vec<Record>, ResponseCode> {
        let mut records = Vec::new();
        let mut name = name;
        loop {
            let owner: Name = format!("{name}.").parse().unwrap();
            match self.names.get(name).map(|entry| &entry.content) {
                None | Some(Content::Absent) => return Err(ResponseCode::NXDomain),
                Some(Content::Failing) => return Err(ResponseCode::ServFail),
                Some(Content::Addresses(addresses, ttl)) => {
                    let wanted = addresses.iter().filter_map(|address| match (address, record) {
                        (IpAddr::V4(ip), RecordType::A) => Some(RData::A(rdata::A(*ip))),
                        (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(rdata::AAAA(*ip))),
                        _ => None,
                    });
                    records.extend(wanted.map(|data| Record::from_rdata(owner.clone(), *ttl, data)));
                    return Ok(records);
                }
                Some(Content::Alias(target, ttl)) => {
                    let data = RData::CNAME(rdata::CNAME(format!("{target}.").parse().unwrap()));
                    records.push(Record::from_rdata(owner, *ttl, data));
                    name = target;
                }
            }
        }
    }
}

/// Lower case, without the final dot.
fn text(name: &Name) -> String {
    name.to_string().trim_end_matches('.').to_lowercase()
}
