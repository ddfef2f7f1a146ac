//! The filter chains of a listener at run time: which of them takes a connection, and with which TLS.

use std::sync::Arc;

use ahash::AHashMap;
use certs::sni::SniIndex;
use config::snapshot::listener::{FilterChain, Handler, Listener, Transport};
use config::snapshot::tls::ServerTls;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;

use crate::drain::Drain;
use crate::tls::credentials::{Credentials, ServerMaterial, is_same};
use crate::tls::server::Server;

/// The filter chains of one listener.
#[derive(Debug)]
pub struct Chains {
    /// The compiled configuration.
    pub config: Arc<Listener>,
    /// The listener's drain signal, which reaches all of its chains. The same as long as its sockets are.
    pub drain: Drain,
    by_server_name: SniIndex<Arc<Chain>>,
    by_name: AHashMap<Arc<str>, Arc<Chain>>,
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
    /// The chains of `config`, which take over from `previous` whatever did not change.
    pub fn build(config: &Arc<Listener>, credentials: &Credentials, previous: Option<&Self>) -> Self {
        // Another port means other sockets: what the old ones have accepted drains.
        let previous = previous.filter(|previous| previous.config.target_port == config.target_port);
        let drain = previous.map_or_else(Drain::default, |previous| previous.drain.clone());
        let chains = config.filter_chains.iter().map(|chain| {
            let before = previous.and_then(|previous| previous.by_name(&chain.name));
            Chain::build(chain, credentials, &drain, before)
        });
        let chains: Vec<Arc<Chain>> = chains.collect();
        Self {
            config: Arc::clone(config),
            by_server_name: SniIndex::new(chains.iter().map(|chain| (&chain.config.server_names, Arc::clone(chain)))),
            by_name: chains.into_iter().map(|chain| (Arc::clone(&chain.config.name), chain)).collect(),
            drain,
        }
    }

    /// The chain for a connection with this SNI, in lower case. `None`: no chain wants it.
    pub fn choose(&self, server_name: Option<&str>) -> Option<&Arc<Chain>> {
        self.by_server_name.choose(server_name)
    }

    /// The chain that is called `name`.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Chain>> {
        self.by_name.get(name)
    }

    /// The one chain of a plaintext listener.
    pub fn plaintext(&self) -> Option<&Arc<Chain>> {
        let chain = self.config.filter_chains.iter().find(|chain| chain.transport == Transport::Plaintext)?;
        self.by_name(&chain.name)
    }

    /// The drain signals of chains that `next`, the same listener after a reload, doesn't carry on.
    pub(super) fn given_up(&self, next: &Self) -> impl Iterator<Item = &Drain> {
        self.by_name
            .values()
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
    let tickets = Ticketer::new().map_err(|error| format!("can't make a key for session tickets: {error}"))?;
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
