//! The filter chains of a listener at run time: which of them takes a connection, and with which TLS.

use std::sync::Arc;

use ahash::AHashMap;
use config::snapshot::listener::{FilterChain, Handler, Listener, Transport};
use config::snapshot::tls::ServerTls;

use crate::drain::Drain;
use crate::tls::credentials::{Credentials, ServerMaterial};

/// The filter chains of one listener.
#[derive(Debug)]
pub struct Chains {
    /// The compiled configuration.
    pub config: Arc<Listener>,
    /// The listener's drain signal, which reaches all of its chains. The same as long as its sockets are.
    pub drain: Drain,
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
}

/// TLS of a filter chain.
#[derive(Debug, Clone)]
pub enum ChainTls {
    /// Plaintext.
    None,
    /// The ClientHello is read for its SNI and forwarded unchanged.
    Passthrough,
    /// Why there is no TLS to speak: no usable credential. Connections are reset before any byte.
    Unavailable(String),
}

impl Chains {
    /// The chains of `config`, which take over from `previous` whatever did not change.
    pub fn build(config: &Arc<Listener>, credentials: &Credentials, previous: Option<&Self>) -> Self {
        // Another port means other sockets: what the old ones have accepted drains.
        let previous = previous.filter(|previous| previous.config.target_port == config.target_port);
        let drain = previous.map_or_else(Drain::default, |previous| previous.drain.clone());
        let by_name = config.filter_chains.iter().map(|chain| {
            let before = previous.and_then(|previous| previous.by_name(&chain.name));
            (Arc::clone(&chain.name), Chain::build(chain, credentials, &drain, before))
        });
        Self { config: Arc::clone(config), by_name: by_name.collect(), drain }
    }

    /// The chain for a connection with this SNI, in lower case. `None`: no chain wants it.
    pub fn choose(&self, server_name: Option<&str>) -> Option<&Arc<Chain>> {
        let wants = |chain: &&Arc<Chain>| match server_name {
            Some(name) => chain.config.server_names.iter().any(|wanted| **wanted == *name),
            None => false,
        };
        let without_name = |chain: &&Arc<Chain>| chain.config.server_names.is_empty();
        self.by_name.values().find(wants).or_else(|| self.by_name.values().find(without_name))
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
        let tls = match (&config.transport, &material) {
            (Transport::Plaintext, _) => ChainTls::None,
            (Transport::Passthrough, _) => ChainTls::Passthrough,
            (Transport::Terminate(_), Some(Err(reason))) => ChainTls::Unavailable(reason.clone()),
            (Transport::Terminate(_), _) => ChainTls::Unavailable("not yet".to_owned()),
        };
        Arc::new(Self { config: Arc::clone(config), tls, drain, material })
    }
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
