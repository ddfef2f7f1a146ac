//! From routes to the nodes of the index.

use std::borrow::Cow;
use std::hash::Hash;
use std::sync::Arc;

use ahash::AHashMap;
use regex::bytes::{RegexSet, RegexSetBuilder};

use super::super::matcher::{Literals, Pattern, StringMatch};
use super::super::route::{HeaderMatch, PathMatch, Route, RouteMatch};
use super::trie::Trie;
use super::{Node, NodeKind, PatternGroup, Split, Target, Values};

/// Up to this many routes are tested one after the other.
const SCAN: usize = 4;
/// More levels than any list needs whose routes can be told apart; bounds the cost of one where they can't.
const MAX_DEPTH: usize = 8;
/// Regular expressions tested at once.
const PATTERN_GROUP: usize = 32;

/// The nodes over `routes`, and where to begin.
pub(super) fn build(routes: &[Arc<Route>]) -> (Vec<Node>, Option<Target>) {
    let items = routes.iter().enumerate().map(|(position, route)| {
        let position = u32::try_from(position).ok().filter(|&position| position <= Target::MAX);
        Item { position: position.expect("fewer than 2^30 routes"), open: Open::new(&route.matches) }
    });
    let mut builder = Builder { routes, nodes: Vec::new() };
    let root = builder.node(items.collect(), 0);
    builder.nodes.shrink_to_fit();
    (builder.nodes, root)
}

/// A route with its conditions that don't hold for certain where it stands.
#[derive(Clone, Copy)]
struct Item {
    position: u32,
    open: Open,
}

/// A set of conditions of a route: bits for the path, the method, the authority, 30 headers, 30 query parameters, and
/// one for everything that can't be indexed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Open(u64);

impl Open {
    const PATH: Self = Self(1);
    const METHOD: Self = Self(1 << 1);
    const AUTHORITY: Self = Self(1 << 2);
    const OTHER: Self = Self(1 << 3);
    const NOTHING: Self = Self(0);
    const MAX_NAMED: usize = 30;

    fn new(matches: &RouteMatch) -> Self {
        let RouteMatch { path: _, ignore_path_case: _, method, scheme, authority, headers, query, claims } = matches;
        let mut open = Self::PATH;
        let mut add = |condition: Self, present: bool| {
            if present {
                open.0 |= condition.0;
            }
        };
        add(Self::METHOD, method.is_some());
        add(Self::AUTHORITY, authority.is_some());
        add(Self::OTHER, scheme.is_some() || !claims.is_empty());
        headers.iter().enumerate().for_each(|(i, header)| {
            add(if is_indexable(header) { Self::header(i) } else { Self::OTHER }, true);
        });
        (0..query.len()).for_each(|i| add(Self::query(i), true));
        open
    }

    fn header(i: usize) -> Self {
        if i < Self::MAX_NAMED { Self(1 << (4 + i)) } else { Self::OTHER }
    }

    fn query(i: usize) -> Self {
        if i < Self::MAX_NAMED { Self(1 << (4 + Self::MAX_NAMED + i)) } else { Self::OTHER }
    }

    fn contains(self, condition: Self) -> bool {
        condition != Self::OTHER && self.0 & condition.0 != 0
    }

    fn without(self, condition: Self) -> Self {
        Self(self.0 & !condition.0)
    }
}

/// Whether a header condition needs a line that can be looked up.
fn is_indexable(header: &HeaderMatch) -> bool {
    !header.invert && !header.name.starts_with(':') && header.name != "host"
}

/// A text by which a condition is found, and how.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key<'a> {
    place: Place,
    text: Cow<'a, [u8]>,
}

/// The parts of [`Values`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Exact,
    Prefix,
    Folded,
    Suffix,
}

/// Calls `each` with the keys of a condition; says whether being found under one of them means that it holds.
fn keys<'a>(value: &'a StringMatch, each: impl FnMut(Key<'a>)) -> bool {
    match value {
        StringMatch::Exact(text) => key(Place::Exact, text.as_bytes(), each),
        StringMatch::Prefix(text) => key(Place::Prefix, text.as_bytes(), each),
        StringMatch::Present => key(Place::Prefix, b"", each),
        StringMatch::Regex(pattern) => pattern_keys(pattern, each),
    }
}

fn path_keys<'a>(matches: &'a RouteMatch, mut each: impl FnMut(Key<'a>)) -> bool {
    let folded = |text: &str| Key { place: Place::Folded, text: text.to_ascii_lowercase().into_bytes().into() };
    match &matches.path {
        PathMatch::Any => key(Place::Prefix, b"/", each),
        PathMatch::Exact(text) if matches.ignore_path_case => {
            // As a prefix, it takes in more than it says.
            each(folded(text));
            false
        }
        PathMatch::Prefix(text) if matches.ignore_path_case => {
            each(folded(text));
            true
        }
        PathMatch::Exact(text) => key(Place::Exact, text.as_bytes(), each),
        PathMatch::Prefix(text) => key(Place::Prefix, text.as_bytes(), each),
        PathMatch::Regex(pattern) => pattern_keys(pattern, each),
    }
}

fn key<'a>(place: Place, text: &'a [u8], mut each: impl FnMut(Key<'a>)) -> bool {
    each(Key { place, text: text.into() });
    true
}

fn pattern_keys<'a>(pattern: &'a Pattern, mut each: impl FnMut(Key<'a>)) -> bool {
    match pattern.literals() {
        Literals::Prefixes(texts) => texts.iter().for_each(|text| _ = key(Place::Prefix, text, &mut each)),
        Literals::Suffixes(texts) => texts.iter().for_each(|text| _ = key(Place::Suffix, text, &mut each)),
    }
    false
}

/// Items by what they are found under, in order of position.
type Buckets<K> = AHashMap<K, Vec<Item>>;

/// A way to tell routes apart, other than by path.
#[derive(Clone, Copy)]
enum Dimension {
    Method,
    Authority,
    Headers,
    Query,
}

/// What the routes of a node look like when split by a dimension.
struct Grouping<'a> {
    dimension: Dimension,
    /// By name (empty for method and authority) and key.
    buckets: Buckets<(&'a str, Key<'a>)>,
    rest: Vec<Item>,
}

impl Grouping<'_> {
    /// How many routes a request may still have to be compared with.
    fn worst(&self) -> usize {
        self.rest.len() + self.buckets.values().map(Vec::len).max().unwrap_or(0)
    }
}

struct Builder<'a> {
    routes: &'a [Arc<Route>],
    nodes: Vec<Node>,
}

impl<'a> Builder<'a> {
    fn matches(&self, item: Item) -> &'a RouteMatch {
        &self.routes[item.position as usize].matches
    }

    /// The part of the index for `items`, which stand in order of position.
    fn node(&mut self, mut items: Vec<Item>, depth: usize) -> Option<Target> {
        // Nothing comes after a route that matches whoever gets here.
        if let Some(certain) = items.iter().position(|item| item.open == Open::NOTHING) {
            items.truncate(certain + 1);
        }
        let first = *items.first()?;
        if items.len() == 1 {
            return Some(target(first));
        }
        let kind = if items.len() <= SCAN || depth >= MAX_DEPTH {
            self.scan(&items)
        } else if depth == 0 {
            self.split_by_path(items)
        } else {
            self.split(items, depth)
        };
        self.nodes.push(Node { first: first.position, kind });
        Some(Target::node(self.nodes.len() - 1))
    }

    fn split_by_path(&mut self, items: Vec<Item>) -> NodeKind {
        let mut buckets: Buckets<Key<'a>> = AHashMap::with_capacity(items.len());
        for item in items {
            let mut found = Vec::new();
            let certain = path_keys(self.matches(item), |key| found.push(key));
            insert(&mut buckets, found, item, if certain { Open::PATH } else { Open::NOTHING });
        }
        NodeKind::Split { by: Split::Path(Box::new(self.values(buckets, 1))), rest: None }
    }

    /// By the dimension that leaves the fewest routes to compare with.
    fn split(&mut self, items: Vec<Item>, depth: usize) -> NodeKind {
        let dimensions = [Dimension::Method, Dimension::Authority, Dimension::Headers, Dimension::Query];
        let groupings = dimensions.map(|dimension| self.group(&items, dimension));
        let best = groupings.into_iter().min_by_key(Grouping::worst).filter(|best| best.worst() * 4 <= items.len() * 3);
        let Some(Grouping { dimension, buckets, rest }) = best else { return self.scan(&items) };
        let rest = self.node(rest, depth + 1);
        let mut names: AHashMap<&'a str, Buckets<Key<'a>>> = AHashMap::new();
        for ((name, key), items) in buckets {
            names.entry(name).or_default().insert(key, items);
        }
        let mut names: AHashMap<Box<str>, Values> =
            names.into_iter().map(|(name, buckets)| (name.into(), self.values(buckets, depth + 1))).collect();
        let by = match dimension {
            Dimension::Method => Split::Method(Box::new(names.remove("").unwrap_or_default())),
            Dimension::Authority => Split::Authority(Box::new(names.remove("").unwrap_or_default())),
            Dimension::Headers => Split::Headers(names),
            Dimension::Query => Split::Query(names),
        };
        NodeKind::Split { by, rest }
    }

    /// Puts each item under the rarest of its conditions in `dimension`.
    fn group(&self, items: &[Item], dimension: Dimension) -> Grouping<'a> {
        let mut counts: AHashMap<(&'a str, Key<'a>), usize> = AHashMap::new();
        for &item in items {
            self.conditions(item, dimension, |_, name, value| {
                keys(value, |key| *counts.entry((name, key)).or_default() += 1);
            });
        }
        let mut grouping = Grouping { dimension, buckets: AHashMap::new(), rest: Vec::new() };
        for &item in items {
            let mut rarest: Option<(usize, Open, &'a str, &'a StringMatch)> = None;
            self.conditions(item, dimension, |condition, name, value| {
                let mut count = 0;
                keys(value, |key| count += counts.get(&(name, key)).copied().unwrap_or(0));
                if rarest.is_none_or(|(least, ..)| count < least) {
                    rarest = Some((count, condition, name, value));
                }
            });
            let Some((_, condition, name, value)) = rarest else {
                grouping.rest.push(item);
                continue;
            };
            let mut found = Vec::new();
            let certain = keys(value, |key| found.push((name, key)));
            insert(&mut grouping.buckets, found, item, if certain { condition } else { Open::NOTHING });
        }
        grouping
    }

    /// The conditions of a route in `dimension` that are still open.
    fn conditions(&self, item: Item, dimension: Dimension, mut each: impl FnMut(Open, &'a str, &'a StringMatch)) {
        let matches = self.matches(item);
        let mut single = |condition: Open, value: &'a Option<Box<StringMatch>>| {
            if let Some(value) = value
                && item.open.contains(condition)
            {
                each(condition, "", value);
            }
        };
        match dimension {
            Dimension::Method => single(Open::METHOD, &matches.method),
            Dimension::Authority => single(Open::AUTHORITY, &matches.authority),
            Dimension::Headers => {
                for (i, header) in matches.headers.iter().enumerate() {
                    if is_indexable(header) && item.open.contains(Open::header(i)) {
                        each(Open::header(i), &header.name, &header.value);
                    }
                }
            }
            Dimension::Query => {
                for (i, parameter) in matches.query.iter().enumerate() {
                    if item.open.contains(Open::query(i)) {
                        each(Open::query(i), &parameter.name, &parameter.value);
                    }
                }
            }
        }
    }

    fn values(&mut self, buckets: Buckets<Key<'a>>, depth: usize) -> Values {
        let mut exact = AHashMap::new();
        let mut tries: [Vec<(Vec<u8>, Target)>; 3] = Default::default();
        let [prefixes, folded, suffixes] = &mut tries;
        for (Key { place, text }, items) in buckets {
            let Some(target) = self.node(items, depth) else { continue };
            match place {
                Place::Exact => _ = exact.insert(text.into(), target),
                Place::Prefix => prefixes.push((text.into_owned(), target)),
                Place::Folded => folded.push((text.into_owned(), target)),
                Place::Suffix => suffixes.push((text.iter().rev().copied().collect(), target)),
            }
        }
        exact.shrink_to_fit();
        let [prefixes, folded, suffixes] = tries.map(|mut keys| {
            keys.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            let keys: Vec<(&[u8], Target)> = keys.iter().map(|(key, target)| (key.as_slice(), *target)).collect();
            Trie::new(&keys)
        });
        Values { exact, prefixes, folded, suffixes }
    }

    fn scan(&self, items: &[Item]) -> NodeKind {
        let pattern = |item: &Item| match &self.matches(*item).path {
            PathMatch::Regex(pattern) if item.open.contains(Open::PATH) => Some(pattern),
            _ => None,
        };
        if items.iter().filter(|item| pattern(item).is_some()).count() <= PATTERN_GROUP / 2 {
            return NodeKind::Scan(items.iter().copied().map(target).collect());
        }
        let (patterns, others): (Vec<Item>, Vec<Item>) = items.iter().partition(|item| pattern(item).is_some());
        let group = |items: &[Item], any| PatternGroup {
            first: items[0].position,
            any,
            routes: items.iter().copied().map(target).collect(),
        };
        let mut groups: Vec<_> = others.chunks(PATTERN_GROUP).map(|items| group(items, None)).collect();
        groups.extend(patterns.chunks(PATTERN_GROUP).map(|items| {
            let texts = items.iter().filter_map(pattern).map(Pattern::standalone);
            group(items, any_of(texts))
        }));
        groups.sort_by_key(|group| group.first);
        NodeKind::Patterns(groups.into())
    }
}

fn target(item: Item) -> Target {
    Target::route(item.position, item.open == Open::NOTHING)
}

/// Puts `item` under each of its keys, where `settled` needs no further test. A key may come up twice.
fn insert<K: Eq + Hash>(buckets: &mut Buckets<K>, keys: Vec<K>, item: Item, settled: Open) {
    let item = Item { open: item.open.without(settled), ..item };
    for key in keys {
        let bucket = buckets.entry(key).or_default();
        if bucket.last().is_none_or(|last| last.position != item.position) {
            bucket.push(item);
        }
    }
}

/// An expression for "one of these", within bounds of size and of the memory that matching may take.
fn any_of(texts: impl Iterator<Item = String>) -> Option<RegexSet> {
    const SIZE_LIMIT: usize = 4 << 20;
    const CACHE_LIMIT: usize = 512 << 10;
    RegexSetBuilder::new(texts).size_limit(SIZE_LIMIT).dfa_size_limit(CACHE_LIMIT).build().ok()
}
