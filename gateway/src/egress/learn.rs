//! Logs become ServiceEntries: whatever was refused since nothing knew it, one entry for each host.
//!
//! Reads access logs in Istio's default text and JSON formats, of a gateway or of a sidecar, and the denials in our own
//! log. Streams: memory is bounded, whatever a log holds. A person decides what to allow, so the entries say who asked,
//! how often, and what is doubtful about them.

mod line;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read, Write};
use std::net::IpAddr;

use super::suggestion::{Host, Namespace, Protocol, ServiceEntry, Wanted, service_entry};
use line::{Line, Origin, Refusal};

/// Bytes of a line that are read; longer ones are skipped.
pub const MAX_LINE: usize = 64 * 1024;
/// Hosts that are kept.
pub const MAX_HOSTS: usize = 10_000;
/// Ports of a host that are kept, each with its protocols. Source: Istio's CRD, which allows as many in a ServiceEntry.
pub const MAX_PORTS: usize = 256;
/// Clients of a host that are told apart.
const MAX_SOURCES: usize = 64;
/// Clients of a host that are named.
const NAMED_SOURCES: usize = 5;

/// Gathers what was refused.
#[derive(Debug, Default)]
pub struct Learner {
    hosts: BTreeMap<Host, Asked>,
    /// What is not in the entries.
    pub omitted: Omitted,
}

/// How much was read and is in no entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Omitted {
    /// Lines of no known format.
    pub unreadable: u64,
    /// Lines longer than [`MAX_LINE`].
    pub long: u64,
    /// Refusals that name no host or none that a ServiceEntry can have.
    pub nameless: u64,
    /// Refusals of hosts beyond [`MAX_HOSTS`], or of ports of a host beyond [`MAX_PORTS`].
    pub beyond: u64,
}

/// How a host was asked for.
#[derive(Debug, Default)]
struct Asked {
    ports: BTreeMap<(u16, Protocol), Port>,
    /// Lines of access logs.
    requests: u64,
    /// Lines of our own log.
    denials: u64,
    /// At most [`MAX_SOURCES`].
    sources: BTreeSet<IpAddr>,
    /// There are further sources.
    more_sources: bool,
}

#[derive(Debug, Default)]
struct Port {
    count: u64,
    /// Nobody named the port: it is the listener's.
    is_listeners: bool,
}

/// A host that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// What allows it.
    pub entry: ServiceEntry,
    /// What there is to know about it, a sentence each, in printable ASCII.
    pub notes: Vec<String>,
}

impl Learner {
    /// Reads a log to its end. What was read before an error counts.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn read(&mut self, mut log: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            // One byte more than a line may have: its end.
            let length = log.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
            if length == 0 {
                return Ok(());
            }
            if length > MAX_LINE && line.last() != Some(&b'\n') {
                log.skip_until(b'\n')?;
                self.omitted.long += 1;
                continue;
            }
            // Bytes that aren't UTF-8 are in fields that don't matter, or make a host that is none.
            self.line(String::from_utf8_lossy(&line).trim_ascii_end());
        }
    }

    fn line(&mut self, line: &str) {
        match line::parse(line) {
            Line::Refusal(refusal) => self.add(refusal),
            Line::Other => {}
            Line::Unreadable => self.omitted.unreadable += 1,
        }
    }

    fn add(&mut self, refusal: Refusal) {
        let Refusal { origin, destination, source } = refusal;
        let Some(destination) = destination else {
            self.omitted.nameless += 1;
            return;
        };
        let is_full = self.hosts.len() == MAX_HOSTS;
        if is_full && !self.hosts.contains_key(&destination.host) {
            self.omitted.beyond += 1;
            return;
        }
        let asked = self.hosts.entry(destination.host).or_default();
        let key = (destination.port, destination.protocol);
        if asked.ports.len() == MAX_PORTS && !asked.ports.contains_key(&key) {
            self.omitted.beyond += 1;
            return;
        }
        let port = asked.ports.entry(key).or_default();
        port.is_listeners = destination.is_listeners_port && (port.count == 0 || port.is_listeners);
        port.count += 1;
        match origin {
            Origin::AccessLog => asked.requests += 1,
            Origin::OwnLog => asked.denials += 1,
        }
        if let Some(source) = source {
            if asked.sources.len() < MAX_SOURCES {
                asked.sources.insert(source);
            } else if !asked.sources.contains(&source) {
                asked.more_sources = true;
            }
        }
    }

    /// Whether any line told of a refusal.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.omitted.nameless == 0
    }

    /// Number of hosts that were refused less than `minimum` times.
    pub fn below(&self, minimum: u64) -> usize {
        self.hosts.values().filter(|asked| asked.count() < minimum).count()
    }

    /// The hosts that were refused at least `minimum` times: names in order, then addresses.
    pub fn learned(&self, minimum: u64) -> impl Iterator<Item = Learned> {
        self.hosts.iter().filter(move |(_, asked)| asked.count() >= minimum).filter_map(|(host, asked)| {
            let entry = service_entry(&asked.wanted(host))?;
            Some(Learned { entry, notes: asked.notes(host) })
        })
    }

    /// Writes a document for each of [`Learner::learned`], its notes as comments.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, minimum: u64, namespace: Option<&Namespace>, out: &mut impl Write) -> io::Result<()> {
        let mut is_first = true;
        for Learned { mut entry, notes } in self.learned(minimum) {
            if !std::mem::take(&mut is_first) {
                out.write_all(b"---\n")?;
            }
            for note in notes {
                writeln!(out, "# {note}")?;
            }
            if let Some(namespace) = namespace {
                entry = entry.in_namespace(namespace.clone());
            }
            out.write_all(entry.document().as_bytes())?;
        }
        if is_first {
            let reason = if self.is_empty() { "Nothing was refused." } else { "Nothing that was refused is left." };
            writeln!(out, "# {reason}")?;
        }
        Ok(())
    }
}

impl Asked {
    /// How often. A refusal that stands in both logs is one.
    fn count(&self) -> u64 {
        self.requests.max(self.denials)
    }

    /// Each port, its most frequent protocol first.
    fn wanted(&self, host: &Host) -> Vec<Wanted> {
        let mut ports: Vec<_> = self.ports.iter().collect();
        ports.sort_by_key(|((number, _), port)| (*number, Reverse(port.count)));
        let wanted = ports.into_iter().map(|((port, protocol), _)| Wanted {
            host: host.to_string(),
            port: *port,
            protocol: *protocol,
        });
        wanted.collect()
    }

    fn notes(&self, host: &Host) -> Vec<String> {
        let times = match self.count() {
            1 => "once".to_owned(),
            count => format!("{count} times"),
        };
        let mut notes = vec![format!("{host}: refused {times}{}", self.sources())];
        match host {
            Host::Name(name) if !name.contains('.') => {
                notes.push("A name without a dot: check what the gateway's resolver makes of it.".to_owned());
            }
            Host::Name(_) => {}
            Host::Address(address) if is_near(*address) => {
                notes.push(
                    "An address of the gateway's own machine or link, as metadata services have: check it.".into(),
                );
            }
            Host::Address(_) => notes.push("An address, not a name: check whose it is.".to_owned()),
        }
        let wanted = self.wanted(host);
        for pair in wanted.windows(2) {
            if let [first, second] = pair
                && first.port == second.port
            {
                let Wanted { port, protocol, .. } = second;
                notes.push(format!("Port {port} was asked for as {protocol}, too; a port has one protocol."));
            }
        }
        for ((number, _), _) in self.ports.iter().filter(|((number, _), port)| port.is_listeners && *number != 443) {
            notes.push(format!("Port {number} is the gateway's own: check which one the host has."));
        }
        notes
    }

    fn sources(&self) -> String {
        if self.sources.is_empty() {
            return String::new();
        }
        let named: Vec<String> = self.sources.iter().take(NAMED_SOURCES).map(ToString::to_string).collect();
        let at_least = if self.more_sources { "at least " } else { "" };
        let more = match self.sources.len().saturating_sub(NAMED_SOURCES) {
            0 => String::new(),
            more => format!(" and {at_least}{more} more"),
        };
        format!(", asked for by {}{more}", named.join(", "))
    }
}

/// Whether an address means the machine that asks, or its link.
fn is_near(address: IpAddr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
}

#[cfg(test)]
mod tests;
