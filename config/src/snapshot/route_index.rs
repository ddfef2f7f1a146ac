//! The index over the routes of a virtual host: first match in constant time.
//!
//! A tree of hash maps and tries over the conditions that routes share out among themselves: first the path, then
//! whatever tells most of what is left apart (method, authority, a header, a query parameter). Every route stands under
//! one of its own conditions at each level, so a request only meets routes whose indexed conditions hold. What isn't
//! indexed is left to [`RouteMatch::is_match`], the plain definition; the lowest position that it accepts wins.
//!
//! [`RouteMatch::is_match`]: super::route::RouteMatch::is_match

mod build;
mod trie;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use ahash::AHashMap;
use regex::bytes::RegexSet;

use self::trie::Trie;
use super::route::{RequestView, Route, query_parameters};

/// Routes of a virtual host in their order of precedence, with an index that finds the first match.
#[derive(Debug, Clone, Default)]
pub struct RouteList {
    routes: Vec<Arc<Route>>,
    nodes: Vec<Node>,
    root: Option<Target>,
}

impl RouteList {
    /// Indexes `routes`, which stand in Istio's order: the first match wins.
    ///
    /// # Panics
    /// With more than 2^30 routes.
    pub fn new(routes: Vec<Arc<Route>>) -> Self {
        let (nodes, root) = build::build(&routes);
        Self { routes, nodes, root }
    }

    /// The first route that matches, or `None` (404, flag `NR`).
    ///
    /// Cost: independent of the number of routes as far as exact, prefix and literal parts of their conditions tell
    /// them apart; no allocation.
    pub fn find(&self, request: &RequestView<'_>) -> Option<&Arc<Route>> {
        if request.method == "CONNECT" {
            return None;
        }
        let mut search = Search { list: self, request, best: NONE };
        search.visit(self.root?);
        self.routes.get(search.best as usize)
    }

    /// All routes in order.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }
}

/// The index follows from the routes.
impl PartialEq for RouteList {
    fn eq(&self, other: &Self) -> bool {
        self.routes == other.routes
    }
}

/// No route's position.
const NONE: u32 = u32::MAX;

/// Where a part of the index leads: to a single route or to a further node, packed because there are as many as routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target(u32);

impl Target {
    const MAX: u32 = (1 << 30) - 1;
    const ROUTE: u32 = 1 << 31;
    const CERTAIN: u32 = 1 << 30;

    /// Route `position`; `certain` if all its conditions hold for whoever gets here.
    fn route(position: u32, certain: bool) -> Self {
        Self(position | Self::ROUTE | if certain { Self::CERTAIN } else { 0 })
    }

    fn node(index: usize) -> Self {
        let index = u32::try_from(index).ok().filter(|&index| index <= Self::MAX);
        Self(index.expect("there are fewer nodes than routes, and those were counted"))
    }

    fn unpack(self) -> Unpacked {
        let number = self.0 & Self::MAX;
        match self.0 & Self::ROUTE {
            0 => Unpacked::Node(number as usize),
            _ => Unpacked::Route { position: number, certain: self.0 & Self::CERTAIN != 0 },
        }
    }
}

enum Unpacked {
    Route { position: u32, certain: bool },
    Node(usize),
}

/// Some routes that share all conditions on the way here.
#[derive(Debug, Clone)]
struct Node {
    /// The lowest position below.
    first: u32,
    kind: NodeKind,
}

#[derive(Debug, Clone)]
enum NodeKind {
    /// Too few routes, or too alike, to tell them apart any better: one after the other.
    Scan(Box<[Target]>),
    /// Many regular expressions on the path with nothing in common, tested in groups.
    Patterns(Box<[PatternGroup]>),
    /// By a condition of each route; those without one are in `rest`.
    Split { by: Split, rest: Option<Target> },
}

#[derive(Debug, Clone)]
struct PatternGroup {
    first: u32,
    /// Matches if one of the routes' expressions does; `None` if together they exceed the size limit.
    any: Option<RegexSet>,
    routes: Box<[Target]>,
}

#[derive(Debug, Clone)]
enum Split {
    Path(Box<Values>),
    Method(Box<Values>),
    Authority(Box<Values>),
    Headers(AHashMap<Box<str>, Values>),
    Query(AHashMap<Box<str>, Values>),
}

/// Conditions on one value.
#[derive(Debug, Clone, Default)]
struct Values {
    exact: AHashMap<Box<[u8]>, Target>,
    prefixes: Trie,
    /// Prefixes in lower case, for `ignoreUriCase`.
    folded: Trie,
    /// Suffixes, back to front.
    suffixes: Trie,
}

impl Values {
    fn visit(&self, value: &[u8], search: &mut Search<'_>) {
        if let Some(&target) = self.exact.get(value) {
            search.visit(target);
        }
        self.prefixes.walk(value.len(), |at| value[at], |target| search.visit(target));
        self.folded.walk(value.len(), |at| value[at].to_ascii_lowercase(), |target| search.visit(target));
        self.suffixes.walk(value.len(), |at| value[value.len() - 1 - at], |target| search.visit(target));
    }
}

struct Search<'a> {
    list: &'a RouteList,
    request: &'a RequestView<'a>,
    best: u32,
}

impl Search<'_> {
    fn visit(&mut self, target: Target) {
        match target.unpack() {
            Unpacked::Route { position, certain } => {
                if position < self.best
                    && (certain || self.list.routes[position as usize].matches.is_match(self.request))
                {
                    self.best = position;
                }
            }
            Unpacked::Node(index) => {
                let node = &self.list.nodes[index];
                if node.first < self.best {
                    self.visit_node(&node.kind);
                }
            }
        }
    }

    fn visit_node(&mut self, kind: &NodeKind) {
        match kind {
            NodeKind::Scan(routes) => routes.iter().for_each(|&route| self.visit(route)),
            NodeKind::Patterns(groups) => {
                for group in groups {
                    if group.first >= self.best {
                        break;
                    }
                    if group.any.as_ref().is_none_or(|any| any.is_match(self.request.path.as_bytes())) {
                        group.routes.iter().for_each(|&route| self.visit(route));
                    }
                }
            }
            NodeKind::Split { by, rest } => {
                self.visit_split(by);
                if let Some(rest) = rest {
                    self.visit(*rest);
                }
            }
        }
    }

    fn visit_split(&mut self, by: &Split) {
        /// Up to this many names are looked up in the request; beyond, the request's names are looked up here.
        const FEW: usize = 4;

        let request = self.request;
        match by {
            Split::Path(values) => values.visit(request.path.as_bytes(), self),
            Split::Method(values) => values.visit(request.method.as_bytes(), self),
            Split::Authority(values) => values.visit(request.authority.as_bytes(), self),
            Split::Headers(names) if names.len() <= FEW => {
                for (name, values) in names {
                    request.headers.any_line(name, &mut |value| {
                        values.visit(value, self);
                        false
                    });
                }
            }
            Split::Headers(names) => request.headers.each_line(&mut |name, value| {
                if let Some(values) = names.get(name) {
                    values.visit(value, self);
                }
            }),
            Split::Query(names) if names.len() <= FEW => {
                for (name, values) in names {
                    if let Some(value) = request.query_parameter(name) {
                        values.visit(value.as_bytes(), self);
                    }
                }
            }
            Split::Query(names) => {
                // Only the first parameter of a name counts, and a query of nothing but `a&a&a` must not cost more than
                // its length.
                let mut seen = Seen::default();
                for (name, value) in query_parameters(request.query.unwrap_or_default()) {
                    if let Some(values) = names.get(name)
                        && seen.insert(values)
                    {
                        values.visit(value.as_bytes(), self);
                    }
                }
            }
        }
    }
}

/// The parameters met so far; on the heap only for requests with more than anybody sends in good faith.
#[derive(Default)]
struct Seen {
    few: [Option<*const Values>; 16],
    more: std::collections::HashSet<*const Values, ahash::RandomState>,
}

impl Seen {
    /// Whether `values` is new.
    fn insert(&mut self, values: &Values) -> bool {
        let key = std::ptr::from_ref(values);
        for slot in &mut self.few {
            match slot {
                Some(known) if *known == key => return false,
                Some(_) => {}
                None => {
                    *slot = Some(key);
                    return true;
                }
            }
        }
        self.more.insert(key)
    }
}
