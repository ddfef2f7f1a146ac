//! The filter chains of a listener at run time: which of them takes a connection, and with which TLS.

use std::sync::Arc;

use ahash::AHashMap;
use certs::sni::SniIndex;
use config::snapshot::listener::{FilterChain, Handler, Listener, Transport};
use config::snapshot::tls::ServerTls;
use rustls::server::ProducesTickets;

use crate::drain::Drain;
use crate::tls::credentials::{Credentials, ServerMaterial, is_same};
use crate::tls::server::Server;
use crate::tls::tickets::Tickets;

/// The filter chains of one listener.
#[derive(Debug)]
pub struct Chains {
    /// The compiled configuration.
    pub config: Arc<Listener>,
    /// The listener's drain signal, which reaches all of its chains. The same as long as its sockets are.
    pub drain: Drain,
    /// In the order of the configuration.
    chains: Vec<Arc<Chain>>,
    index: Arc<Index>,
}

/// Positions of chains. The same as long as the configuration is.
#[derive(Debug)]
struct Index {
    by_server_name: SniIndex<usize>,
    by_name: AHashMap<Arc<str>, usize>,
}

impl Index {
    fn new(chains: &[Arc<FilterChain>]) -> Self {
        Self {
            by_server_name: SniIndex::new(
                chains.iter().enumerate().map(|(position, chain)| (&chain.server_names, position)),
            ),
            by_name: chains.iter().enumerate().map(|(position, chain)| (Arc::clone(&chain.name), position)).collect(),
        }
    }
}

/// One filter chain.
#[derive(Debug)]
pub struct Chain {
    /// The compiled configuration.
    pub config: Arc<FilterChain>,
    /// What happens before the handler gets to see bytes.
    pub tls: ChainTls,
    /// Starts when the listener's does, when the chain goes, and when its TLS settings (not its certificates) change.
    pub drain: Drain,
    material: Option<Result<ServerMaterial, String>>,
    /// Seals sessions. The same as long as whoever may resume one would have to prove the same in a full handshake.
    tickets: Option<Arc<dyn ProducesTickets>>,
}

/// TLS of a filter chain.
#[derive(Debug, Clone)]
pub enum ChainTls {
    /// Plaintext.
    None,
    /// The ClientHello is read for its SNI and forwarded unchanged.
    Passthrough,
    /// TLS ends here.
    Terminate(Arc<Server>),
    /// Why there is no TLS to speak: no usable credential. Connections are reset before any byte.
    Unavailable(String),
}

impl Chains {
    /// The chains of `config`, which take over from `previous` whatever did not change; `previous` itself if nothing
    /// did.
    pub fn build(config: &Arc<Listener>, credentials: &Credentials, previous: Option<&Arc<Self>>) -> Arc<Self> {
        // Another port means other sockets: what the old ones have accepted drains.
        let previous = previous.filter(|previous| previous.config.target_port == config.target_port);
        let drain = previous.map_or_else(Drain::default, |previous| previous.drain.clone());
        let same = previous.filter(|previous| Arc::ptr_eq(config, &previous.config));
        let chains = config.filter_chains.iter().enumerate().map(|(position, chain)| {
            let before = match same {
                Some(same) => same.chains.get(position),
                None => previous.and_then(|previous| previous.by_name(&chain.name)),
            };
            Chain::build(chain, credentials, &drain, before)
        });
        let chains: Vec<Arc<Chain>> = chains.collect();
        let index = match same {
            Some(same) if chains.iter().zip(&same.chains).all(|(a, b)| Arc::ptr_eq(a, b)) => return Arc::clone(same),
            Some(same) => Arc::clone(&same.index),
            None => Arc::new(Index::new(&config.filter_chains)),
        };
        Arc::new(Self { config: Arc::clone(config), drain, chains, index })
    }

    /// The chain for a connection with this SNI, in lower case. `None`: no chain wants it.
    pub fn choose(&self, server_name: Option<&str>) -> Option<&Arc<Chain>> {
        self.chains.get(*self.index.by_server_name.choose(server_name)?)
    }

    /// The chain that is called `name`.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Chain>> {
        self.chains.get(*self.index.by_name.get(name)?)
    }

    /// The one chain of a plaintext listener.
    pub fn plaintext(&self) -> Option<&Arc<Chain>> {
        self.chains.iter().find(|chain| chain.config.transport == Transport::Plaintext)
    }

    /// The drain signals of chains that `next`, the same listener after a reload, doesn't carry on.
    pub(super) fn given_up(&self, next: &Self) -> impl Iterator<Item = &Drain> {
        self.chains
            .iter()
            .filter(|chain| next.by_name(&chain.config.name).is_none_or(|next| !next.drain.is_same(&chain.drain)))
            .map(|chain| &chain.drain)
    }
}

impl Chain {
    fn build(
        config: &Arc<FilterChain>,
        credentials: &Credentials,
        listener: &Drain,
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let material = match &config.transport {
            Transport::Terminate(tls) => Some(credentials.server(tls)),
            Transport::Plaintext | Transport::Passthrough => None,
        };
        if let Some(previous) = previous
            && Arc::ptr_eq(config, &previous.config)
            && material == previous.material
        {
            return Arc::clone(previous);
        }
        let drain = match previous {
            Some(previous) if carries_on(&previous.config, config) => previous.drain.clone(),
            _ => listener.child(),
        };
        let (tls, tickets) = match (&config.transport, &material) {
            (Transport::Plaintext, _) => (ChainTls::None, None),
            (Transport::Passthrough, _) => (ChainTls::Passthrough, None),
            (Transport::Terminate(tls), Some(Ok(material))) => {
                match terminate(config, tls, material, previous.map(|previous| &**previous)) {
                    Ok((server, tickets)) => (ChainTls::Terminate(server), Some(tickets)),
                    Err(reason) => (ChainTls::Unavailable(reason), None),
                }
            }
            (Transport::Terminate(_), Some(Err(reason))) => (ChainTls::Unavailable(reason.clone()), None),
            (Transport::Terminate(_), None) => (ChainTls::Unavailable(String::new()), None),
        };
        Arc::new(Self { config: Arc::clone(config), tls, drain, material, tickets })
    }
}

/// TLS with `material`, and what seals its sessions; as in `previous`, as far as they may stay.
fn terminate(
    config: &FilterChain,
    tls: &ServerTls,
    material: &ServerMaterial,
    previous: Option<&Chain>,
) -> Result<(Arc<Server>, Arc<dyn ProducesTickets>), String> {
    let previous = previous.and_then(|chain| {
        let Transport::Terminate(tls) = &chain.config.transport else { return None };
        let Some(Ok(material)) = &chain.material else { return None };
        Some((chain, tls, material))
    });
    if let Some((chain, tls_before, material_before)) = previous
        && let (ChainTls::Terminate(server), Some(tickets)) = (&chain.tls, &chain.tickets)
        && config.server_names == chain.config.server_names
        && tls.client == tls_before.client
        && is_same(material.authority.as_ref(), material_before.authority.as_ref())
    {
        if *tls == **tls_before && material == material_before {
            return Ok((Arc::clone(server), Arc::clone(tickets)));
        }
        return Ok((server_with(tls, material, tickets)?, Arc::clone(tickets)));
    }
    let tickets: Arc<dyn ProducesTickets> = Arc::new(Tickets::default());
    Ok((server_with(tls, material, &tickets)?, tickets))
}

fn server_with(
    tls: &ServerTls,
    material: &ServerMaterial,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<Arc<Server>, String> {
    let ServerMaterial { certificates, authority } = material.clone();
    Server::new(tls, certificates, authority, Arc::clone(tickets)).map(Arc::new)
}

/// Whether connections that were accepted under `before` may stay under `after`.
fn carries_on(before: &FilterChain, after: &FilterChain) -> bool {
    let same_tls = match (&before.transport, &after.transport) {
        (Transport::Terminate(before), Transport::Terminate(after)) => same_settings(before, after),
        (before, after) => before == after,
    };
    let same_handler = matches!(
        (&before.handler, &after.handler),
        (Handler::Http(_), Handler::Http(_)) | (Handler::Tcp(_), Handler::Tcp(_))
    );
    same_tls && same_handler
}

/// Whether both ask the same of a handshake, whatever certificates they show.
fn same_settings(before: &ServerTls, after: &ServerTls) -> bool {
    let ServerTls { mode, certificates: _, client, parameters, alpn } = before;
    *mode == after.mode && *client == after.client && *parameters == after.parameters && *alpn == after.alpn
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::path::{Path, PathBuf};

    use config::snapshot::Snapshot;
    use config::snapshot::listener::{Bind, HttpChain};
    use config::snapshot::tls::{
        CaSource, CertificateSource, ClientAuthentication, PeerTrust, ServerMode, TlsParameters,
    };
    use config::source::Rescan;

    use super::*;
    use crate::state::{ListenerKey, State};

    /// A chain for `name`, with the certificate `name.crt` of `directory`.
    fn chain(directory: &Path, name: &str, client: ClientAuthentication) -> Arc<FilterChain> {
        let file = |end: &str| directory.join(format!("{name}.{end}"));
        let tls = ServerTls {
            mode: ServerMode::Simple,
            certificates: vec![CertificateSource::Files { certificate: file("crt"), key: file("key") }],
            client,
            parameters: TlsParameters::default(),
            alpn: &["h2", "http/1.1"],
        };
        Arc::new(FilterChain {
            name: name.into(),
            gateways: Vec::new(),
            server_names: vec![name.into()],
            transport: Transport::Terminate(Arc::new(tls)),
            handler: Handler::Http(Arc::new(HttpChain::default())),
        })
    }

    fn snapshot(chains: &[Arc<FilterChain>]) -> Arc<Snapshot> {
        let listener = Listener {
            bind: Bind::Default,
            port: 443,
            target_port: 0,
            proxy_protocol: false,
            filter_chains: chains.to_vec(),
        };
        Arc::new(Snapshot { listeners: vec![Arc::new(listener)], ..Snapshot::default() })
    }

    fn chains(state: &State) -> &Arc<Chains> {
        &state.listeners[&ListenerKey { bind: Bind::Default, port: 443 }]
    }

    fn write(directory: &Path, name: &str) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        std::fs::write(directory.join(format!("{name}.crt")), made.cert.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    }

    fn tickets(chain: &Chain) -> *const dyn ProducesTickets {
        Arc::as_ptr(chain.tickets.as_ref().unwrap())
    }

    #[test]
    fn a_new_certificate_changes_its_chain_alone() {
        let directory = tempfile::tempdir().unwrap();
        let chain_for = |name| chain(directory.path(), name, ClientAuthentication::None);
        write(directory.path(), "a.com");
        write(directory.path(), "b.com");
        let snapshot = snapshot(&[chain_for("a.com"), chain_for("b.com"), chain_for("c.com")]);
        let mut credentials = Credentials::default();
        credentials.refresh(&snapshot, &Arc::default(), Rescan::All);
        let first = State::build(Arc::clone(&snapshot), &credentials, &State::default());
        write(directory.path(), "a.com");
        credentials.refresh(&snapshot, &Arc::default(), Rescan::All);
        let second = State::build(snapshot, &credentials, &first);
        let (before, after) = (chains(&first), chains(&second));
        assert!(Arc::ptr_eq(before.by_name("b.com").unwrap(), after.by_name("b.com").unwrap()));
        let (old, new) = (before.by_name("a.com").unwrap(), after.by_name("a.com").unwrap());
        assert!(!Arc::ptr_eq(old, new));
        assert!(old.drain.is_same(&new.drain), "connections stay");
        assert!(std::ptr::addr_eq(tickets(old), tickets(new)), "sessions stay");
        assert_eq!(before.given_up(after).count(), 0);
        // What is not there is told, and its neighbours serve.
        assert!(matches!(after.by_name("c.com").unwrap().tls, ChainTls::Unavailable(_)));
        assert!(matches!(after.choose(Some("b.com")).unwrap().tls, ChainTls::Terminate(_)));
        assert!(after.choose(Some("d.com")).is_none() && after.choose(None).is_none());
    }

    #[test]
    fn another_client_verification_ends_sessions_and_connections() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "a.com");
        let trust = PeerTrust {
            ca: CaSource::Files { ca: directory.path().join("a.com.crt"), crl: None },
            subject_alt_names: Vec::new(),
            spki_pins: Vec::new(),
            certificate_hashes: Vec::new(),
            skip_verification: false,
        };
        let mut credentials = Credentials::default();
        let mut state = State::default();
        let mut build = |client: ClientAuthentication| {
            let snapshot = snapshot(&[chain(directory.path(), "a.com", client)]);
            credentials.refresh(&snapshot, &Arc::default(), Rescan::All);
            state = State::build(snapshot, &credentials, &state);
            Arc::clone(chains(&state))
        };
        let open = build(ClientAuthentication::None);
        let closed = build(ClientAuthentication::Required(trust.clone()));
        let (before, after) = (open.by_name("a.com").unwrap(), closed.by_name("a.com").unwrap());
        assert!(!std::ptr::addr_eq(tickets(before), tickets(after)));
        assert_eq!(open.given_up(&closed).count(), 1);
        // The CA's content counts, too; then connections may stay.
        write(directory.path(), "a.com");
        let rotated = build(ClientAuthentication::Required(trust));
        let next = rotated.by_name("a.com").unwrap();
        assert!(!std::ptr::addr_eq(tickets(after), tickets(next)));
        assert_eq!(closed.given_up(&rotated).count(), 0);
    }

    #[test]
    fn a_listener_that_moves_leaves_its_chains_behind() {
        let directory = PathBuf::from("/nonexistent");
        let chain = chain(&directory, "a.com", ClientAuthentication::None);
        let first = State::build(snapshot(&[Arc::clone(&chain)]), &Credentials::default(), &State::default());
        let mut moved = Snapshot::clone(&snapshot(&[chain]));
        let listener = Listener { target_port: 1, ..Listener::clone(&moved.listeners[0]) };
        moved.listeners = vec![Arc::new(listener)];
        let second = State::build(Arc::new(moved), &Credentials::default(), &first);
        assert!(!chains(&first).drain.is_same(&chains(&second).drain));
        assert_eq!(chains(&first).given_up(chains(&second)).count(), 1);
    }
}
