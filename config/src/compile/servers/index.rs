//! The servers of a Gateway by host, so that a VirtualService finds its own among thousands.

use std::sync::Arc;

use ahash::AHashMap;

use super::Server;
use crate::resource::Resource;

/// A Gateway, and those of its servers that are in force.
#[derive(Debug)]
pub(in super::super) struct Bound {
    pub(in super::super) gateway: Arc<Resource>,
    /// Of its servers in the list of all.
    servers: std::ops::Range<usize>,
    /// Servers by the names of their hosts; empty if there are few.
    by_name: AHashMap<String, Vec<usize>>,
}

impl Bound {
    /// Up to so many servers are looked at one by one.
    const FEW: usize = if cfg!(test) { 1 } else { 8 };

    /// `servers` are those of `gateway`, of which the first is the one at `first` in the list of all.
    pub(super) fn new(gateway: &Arc<Resource>, first: usize, servers: &[Arc<Server>]) -> Self {
        let mut by_name: AHashMap<String, Vec<usize>> = AHashMap::new();
        if servers.len() > Self::FEW {
            for (i, server) in servers.iter().enumerate() {
                for host in &server.hosts {
                    by_name.entry(host.name().to_owned()).or_default().push(first + i);
                }
            }
        }
        Self { gateway: Arc::clone(gateway), servers: first..first + servers.len(), by_name }
    }

    /// Whether none of its servers is in force.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Puts servers in `found` among which are all that share a host with `hosts`.
    pub(in super::super) fn find(&self, hosts: &[String], found: &mut Vec<usize>) {
        if self.by_name.is_empty() || hosts.iter().any(|host| host.starts_with('*')) {
            found.extend(self.servers.clone());
            return;
        }
        let mut add = |name: &str| found.extend(self.by_name.get(name).into_iter().flatten());
        for host in hosts {
            add(host);
            add("*");
            // A wildcard of a server stands for whole labels.
            let mut wildcard = String::with_capacity(host.len() + 1);
            for (dot, _) in host.match_indices('.') {
                wildcard.clear();
                wildcard.push('*');
                wildcard.push_str(&host[dot..]);
                add(&wildcard);
            }
        }
    }
}
