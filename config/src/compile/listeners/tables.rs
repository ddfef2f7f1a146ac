//! Route tables: the virtual hosts of all servers of a port, with the routes of all VirtualServices merged.
//!
//! Source: `reference/networking.md` §2.8, §3.2, §3.3.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::super::virtual_services::{ServerRoutes, VirtualServiceRoutes};
use super::Server;
use crate::snapshot::host::{RouteTable, VirtualHost};
use crate::snapshot::route::RouteList;

/// The tables of the compile before, with all they are made of.
#[derive(Debug, Default)]
pub(super) struct Tables {
    tables: AHashMap<String, Table>,
    /// Route lists by the addresses of the parts that they join; the parts are kept, so that none is reused.
    lists: AHashMap<Vec<usize>, List>,
    compiles: u64,
}

#[derive(Debug, Default)]
struct Table {
    used: u64,
    hosts: AHashMap<Arc<str>, Host>,
    /// In the order of their first mention.
    order: Vec<Arc<VirtualHost>>,
    table: Arc<RouteTable>,
}

#[derive(Debug)]
struct Host {
    used: u64,
    parts: Vec<Arc<VirtualServiceRoutes>>,
    virtual_host: Arc<VirtualHost>,
}

#[derive(Debug)]
struct List {
    used: u64,
    parts: Vec<Arc<VirtualServiceRoutes>>,
    routes: Arc<RouteList>,
}

/// A virtual host in the making.
#[derive(Default)]
struct Draft {
    domain: Arc<str>,
    parts: Vec<Arc<VirtualServiceRoutes>>,
    https_redirect: bool,
}

impl Tables {
    /// The table of `servers`, which share a port and bind address.
    pub(super) fn table(
        &mut self,
        name: String,
        port: u16,
        servers: &[(&Server<'_>, &ServerRoutes)],
    ) -> Arc<RouteTable> {
        let compiles = self.compiles;
        let mut table = self.tables.remove(&name).unwrap_or_default();
        table.used = compiles;
        let drafts = drafts(servers);
        let mut order = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let known = table.hosts.get_mut(&draft.domain);
            let virtual_host = match known.filter(|known| known.is_made_of(&draft)) {
                Some(known) => {
                    known.used = compiles;
                    if let Some(list) = self.lists.get_mut(&addresses(&draft.parts)).filter(|_| draft.parts.len() > 1) {
                        list.used = compiles;
                    }
                    Arc::clone(&known.virtual_host)
                }
                None => {
                    let virtual_host = Arc::new(self.virtual_host(&draft, port));
                    let Draft { domain, parts, https_redirect: _ } = draft;
                    let made = Host { used: compiles, parts, virtual_host: Arc::clone(&virtual_host) };
                    table.hosts.insert(domain, made);
                    virtual_host
                }
            };
            order.push(virtual_host);
        }
        if table.hosts.len() > order.len() {
            table.hosts.retain(|_, host| host.used == compiles);
        }
        let is_same = order.len() == table.order.len()
            && table.table.name == name
            && order.iter().zip(&table.order).all(|(a, b)| Arc::ptr_eq(a, b));
        if !is_same {
            table.table = Arc::new(RouteTable::new(name.clone(), order.iter().cloned()));
            table.order = order;
        }
        let made = Arc::clone(&table.table);
        self.tables.insert(name, table);
        made
    }

    /// Lets go of what the compile that ends here did not need.
    pub(super) fn forget_unused(&mut self) {
        let compiles = self.compiles;
        self.tables.retain(|_, table| table.used == compiles);
        // Lists live on in their virtual hosts; here they only wait for another host with the same parts.
        self.lists.retain(|_, list| list.used == compiles);
        self.compiles += 1;
    }

    fn virtual_host(&mut self, draft: &Draft, port: u16) -> VirtualHost {
        let mut resources = Vec::new();
        for part in &draft.parts {
            if !resources.contains(&part.resource) {
                resources.push(part.resource.clone());
            }
        }
        VirtualHost {
            name: format!("{}:{port}", draft.domain),
            domain: Arc::clone(&draft.domain),
            routes: self.routes(&draft.parts),
            https_redirect: draft.https_redirect,
            resources,
        }
    }

    /// The routes of all parts; those that match everything go to the end, in their order.
    fn routes(&mut self, parts: &[Arc<VirtualServiceRoutes>]) -> Arc<RouteList> {
        let compiles = self.compiles;
        let list = self.lists.entry(addresses(parts)).or_insert_with(|| {
            let routes = parts.iter().flat_map(|part| &part.routes);
            let catch_alls = parts.iter().filter_map(|part| part.catch_all.as_ref());
            let routes = routes.chain(catch_alls).cloned().collect();
            List { used: compiles, parts: parts.to_vec(), routes: Arc::new(RouteList::new(routes)) }
        });
        list.used = compiles;
        debug_assert_eq!(list.parts.len(), parts.len());
        Arc::clone(&list.routes)
    }
}

impl Host {
    fn is_made_of(&self, draft: &Draft) -> bool {
        self.virtual_host.https_redirect == draft.https_redirect
            && self.parts.len() == draft.parts.len()
            && self.parts.iter().zip(&draft.parts).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

fn addresses(parts: &[Arc<VirtualServiceRoutes>]) -> Vec<usize> {
    parts.iter().map(|part| Arc::as_ptr(part).addr()).collect()
}

/// The virtual hosts that `servers` ask for, in the order of their first mention.
fn drafts(servers: &[(&Server<'_>, &ServerRoutes)]) -> Vec<Draft> {
    let expected = servers.iter().map(|(_, routes)| routes.hosts.len()).sum();
    let mut drafts: Vec<Draft> = Vec::with_capacity(expected);
    let mut by_domain: AHashMap<Arc<str>, usize> = AHashMap::with_capacity(expected);
    // A VirtualService may get here through several servers; its routes count once.
    let mut seen: AHashSet<(usize, usize)> = AHashSet::new();
    let find = |domain: &Arc<str>, drafts: &mut Vec<Draft>, by_domain: &mut AHashMap<Arc<str>, usize>| {
        *by_domain.entry(Arc::clone(domain)).or_insert_with(|| {
            drafts.push(Draft { domain: Arc::clone(domain), ..Draft::default() });
            drafts.len() - 1
        })
    };
    for (server, routes) in servers {
        for host in &routes.hosts {
            let index = find(&host.domain, &mut drafts, &mut by_domain);
            let draft = &mut drafts[index];
            draft.https_redirect |= server.https_redirect;
            if servers.len() == 1 || seen.insert((index, Arc::as_ptr(&host.routes).addr())) {
                draft.parts.push(Arc::clone(&host.routes));
            }
        }
        if server.https_redirect {
            for domain in server.hosts.iter().filter_map(super::Host::redirect_domain) {
                let index = find(&domain, &mut drafts, &mut by_domain);
                drafts[index].https_redirect = true;
            }
        }
    }
    drafts
}
