//! Route tables: the virtual hosts of all servers of a port, with the routes of all VirtualServices merged.
//!
//! Source: `reference/networking.md` §2.8, §3.2, §3.3.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet, RandomState};

use super::super::common_ends;
use super::super::servers::Server;
use super::super::virtual_services::{ServerRoutes, VirtualServiceRoutes};
use crate::snapshot::ResourceName;
use crate::snapshot::host::{RouteTable, VirtualHost};
use crate::snapshot::route::RouteList;

/// The tables of the compile before, with all they are made of.
#[derive(Debug, Default)]
pub(super) struct Tables {
    tables: AHashMap<Arc<str>, Table>,
    /// Route lists by the addresses of the parts that they join.
    lists: AHashMap<Vec<usize>, List>,
    compiles: u64,
}

#[derive(Debug, Default)]
struct Table {
    used: u64,
    /// What servers ask for, in their order.
    mentions: Vec<Mention>,
    hosts: AHashMap<Arc<str>, Arc<VirtualHost>>,
    table: Arc<RouteTable>,
    hasher: RandomState,
}

/// A virtual host that a server asks for, with a part of its routes.
#[derive(Debug, Clone)]
struct Mention {
    domain: Arc<str>,
    /// Of the domain.
    hash: u64,
    /// `None` for a host that only redirects.
    part: Option<Arc<VirtualServiceRoutes>>,
    https_redirect: bool,
}

/// The same, not yet taken over.
#[derive(Clone, Copy)]
struct NewMention<'m> {
    domain: &'m Arc<str>,
    part: Option<&'m Arc<VirtualServiceRoutes>>,
    https_redirect: bool,
}

#[derive(Debug)]
struct List {
    used: u64,
    /// Kept so that no address is reused.
    _parts: Vec<Arc<VirtualServiceRoutes>>,
    routes: Arc<RouteList>,
}

/// A virtual host in the making.
struct Draft {
    domain: Arc<str>,
    parts: Vec<Arc<VirtualServiceRoutes>>,
    https_redirect: bool,
}

impl Tables {
    /// The table of `servers`, which share it. Only hosts that servers ask for in another way than
    /// before are made anew.
    pub(super) fn table(
        &mut self,
        name: &Arc<str>,
        port: u16,
        servers: &[(&Server, &ServerRoutes<'_>)],
    ) -> Arc<RouteTable> {
        /// Beyond, grouping all is cheaper than looking for each.
        const FEW: usize = if cfg!(test) { 2 } else { 32 };

        let mut table = self.tables.remove(name).unwrap_or_default();
        table.used = self.compiles;
        let redirects: Vec<Vec<Arc<str>>> = servers.iter().map(|(server, _)| server.redirect_domains()).collect();
        let mut wanted = Vec::new();
        for ((server, routes), redirects) in servers.iter().zip(&redirects) {
            let https_redirect = server.redirects();
            let hosts = routes.hosts.iter();
            wanted.extend(hosts.map(|host| NewMention {
                domain: host.domain,
                part: Some(host.routes),
                https_redirect,
            }));
            wanted.extend(redirects.iter().map(|domain| NewMention { domain, part: None, https_redirect }));
        }
        let changed = table.follow(&wanted);
        if !changed.is_empty() || table.table.name != **name {
            let drafts = if changed.len() <= FEW { table.drafts_of(&changed) } else { table.all_drafts() };
            let is_whole = changed.len() > FEW;
            let mut hosts: Vec<(Arc<str>, Option<Arc<VirtualHost>>)> = Vec::with_capacity(drafts.len());
            for draft in drafts {
                let host = self.virtual_host(&mut table, &draft, port);
                hosts.push((draft.domain, host));
            }
            table.publish(name.to_string(), hosts, is_whole);
        }
        let made = Arc::clone(&table.table);
        self.tables.insert(Arc::clone(name), table);
        made
    }

    /// Lets go of what the compile that ends here did not need.
    pub(super) fn forget_unused(&mut self) {
        let compiles = self.compiles;
        self.tables.retain(|_, table| table.used == compiles);
        // Lists live on in their virtual hosts; here they wait for another host with the same parts.
        self.lists.retain(|_, list| list.used == compiles);
        self.compiles += 1;
    }

    /// The virtual host; the one of before if it is the same. `None` if nobody asks for it any more.
    fn virtual_host(&mut self, table: &mut Table, draft: &Draft, port: u16) -> Option<Arc<VirtualHost>> {
        let Draft { domain, parts, https_redirect } = draft;
        if parts.is_empty() && !https_redirect {
            table.hosts.remove(domain);
            return None;
        }
        let routes = self.routes(parts);
        if let Some(known) = table.hosts.get(domain)
            && Arc::ptr_eq(&known.routes, &routes)
            && known.https_redirect == *https_redirect
        {
            return Some(Arc::clone(known));
        }
        let mut seen = AHashSet::with_capacity(parts.len());
        // The same resource has the same `Arc`s.
        let identity = |resource: &ResourceName| (resource.namespace.as_ptr().addr(), resource.name.as_ptr().addr());
        let resources = parts.iter().map(|part| &part.resource).filter(|resource| seen.insert(identity(resource)));
        let host = Arc::new(VirtualHost {
            name: format!("{domain}:{port}"),
            domain: Arc::clone(domain),
            routes,
            https_redirect: *https_redirect,
            resources: resources.cloned().collect(),
        });
        table.hosts.insert(Arc::clone(domain), Arc::clone(&host));
        Some(host)
    }

    /// The routes of all parts; those that match everything go to the end, in their order.
    fn routes(&mut self, parts: &[Arc<VirtualServiceRoutes>]) -> Arc<RouteList> {
        let addresses = parts.iter().map(|part| Arc::as_ptr(part).addr()).collect();
        let list = self.lists.entry(addresses).or_insert_with(|| {
            let routes = parts.iter().flat_map(|part| &part.routes);
            let catch_alls = parts.iter().filter_map(|part| part.catch_all.as_ref());
            let routes = routes.chain(catch_alls).cloned().collect();
            List { used: 0, _parts: parts.to_vec(), routes: Arc::new(RouteList::new(routes)) }
        });
        list.used = self.compiles;
        Arc::clone(&list.routes)
    }
}

impl Table {
    /// Takes over what servers ask for; the mentions that came or went.
    fn follow(&mut self, wanted: &[NewMention<'_>]) -> Vec<Mention> {
        let (first, last) = common_ends(&self.mentions, wanted, |known, wanted| {
            let same_part = match (&known.part, wanted.part) {
                (Some(known), Some(wanted)) => Arc::ptr_eq(known, wanted),
                (None, None) => true,
                _ => false,
            };
            // Another Gateway may name the same domain, and domains of redirects are made for each compile.
            let same_domain = Arc::ptr_eq(&known.domain, wanted.domain) || known.domain == *wanted.domain;
            same_part && same_domain && known.https_redirect == wanted.https_redirect
        });
        let gone = first..self.mentions.len() - last;
        let hasher = &self.hasher;
        let come = wanted[first..wanted.len() - last].iter().map(|mention| Mention {
            domain: Arc::clone(mention.domain),
            hash: hasher.hash_one(mention.domain),
            part: mention.part.map(Arc::clone),
            https_redirect: mention.https_redirect,
        });
        let come: Vec<Mention> = come.collect();
        let mut changed: Vec<Mention> = self.mentions.splice(gone, come.iter().cloned()).collect();
        changed.extend(come);
        changed
    }

    /// The virtual hosts of the changed mentions, out of all mentions of their domains.
    fn drafts_of(&self, changed: &[Mention]) -> Vec<Draft> {
        let mut drafts: Vec<(u64, Draft)> = Vec::new();
        for mention in changed {
            if !drafts.iter().any(|(_, draft)| draft.domain == mention.domain) {
                drafts.push((mention.hash, Draft::new(&mention.domain)));
            }
        }
        for mention in &self.mentions {
            let same = |(hash, draft): &&mut (u64, Draft)| *hash == mention.hash && draft.domain == mention.domain;
            if let Some((_, draft)) = drafts.iter_mut().find(same) {
                draft.add(mention);
            }
        }
        let mut drafts: Vec<Draft> = drafts.into_iter().map(|(_, draft)| draft).collect();
        drafts.iter_mut().for_each(Draft::drop_repeats);
        drafts
    }

    /// All virtual hosts, in the order of their first mention.
    fn all_drafts(&self) -> Vec<Draft> {
        let mut drafts: Vec<Draft> = Vec::with_capacity(self.mentions.len());
        let mut by_domain: AHashMap<&str, usize> = AHashMap::with_capacity(self.mentions.len());
        for mention in &self.mentions {
            let index = *by_domain.entry(&mention.domain).or_insert_with(|| {
                drafts.push(Draft::new(&mention.domain));
                drafts.len() - 1
            });
            drafts[index].add(mention);
        }
        drafts.iter_mut().for_each(Draft::drop_repeats);
        drafts
    }

    /// A new route table; `hosts` are all of them if `is_whole`, else those that changed.
    fn publish(&mut self, name: String, hosts: Vec<(Arc<str>, Option<Arc<VirtualHost>>)>, is_whole: bool) {
        if is_whole {
            let present: AHashMap<Arc<str>, Arc<VirtualHost>> =
                hosts.into_iter().filter_map(|(domain, host)| Some((domain, host?))).collect();
            self.table = Arc::new(RouteTable::new(name, present.values().cloned()));
            self.hosts = present;
            return;
        }
        let mut table = self.table.with_changes(hosts);
        table.name = name;
        self.table = Arc::new(table);
    }
}

impl Draft {
    fn new(domain: &Arc<str>) -> Self {
        Self { domain: Arc::clone(domain), parts: Vec::new(), https_redirect: false }
    }

    fn add(&mut self, mention: &Mention) {
        self.https_redirect |= mention.https_redirect;
        self.parts.extend(mention.part.clone());
    }

    /// A VirtualService may get here through several servers; its routes count once.
    fn drop_repeats(&mut self) {
        if self.parts.len() > 1 {
            let mut seen = AHashSet::with_capacity(self.parts.len());
            self.parts.retain(|part| seen.insert(Arc::as_ptr(part).addr()));
        }
    }
}
