//! The index against the plain ordered scan.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::snapshot::ResourceName;
use crate::snapshot::matcher::{Pattern, StringMatch};
use crate::snapshot::route::{
    Action, ClaimMatch, DirectResponse, HeaderLines, HeaderMatch, PathMatch, QueryMatch, RouteMatch,
};

/// A request that owns its parts.
#[derive(Debug, Clone)]
struct Request {
    method: &'static str,
    path: &'static str,
    query: Option<String>,
    authority: &'static str,
    scheme: &'static str,
    headers: Lines,
}

#[derive(Debug, Clone, Default)]
struct Lines(Vec<(String, String)>);

impl HeaderLines for Lines {
    fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.iter().any(|(key, value)| key == name && test(value.as_bytes()))
    }

    fn each_line(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.0.iter().for_each(|(key, value)| visit(key, value.as_bytes()));
    }
}

impl Request {
    fn view(&self) -> RequestView<'_> {
        RequestView {
            method: self.method,
            path: self.path,
            query: self.query.as_deref(),
            authority: self.authority,
            scheme: self.scheme,
            headers: &self.headers,
        }
    }
}

fn list(matches: impl IntoIterator<Item = RouteMatch>) -> RouteList {
    let action = Arc::new(Action::DirectResponse(DirectResponse { status: 200, body: Arc::default() }));
    let resource = ResourceName { kind: "VirtualService", namespace: "n".into(), name: "v".into() };
    let route = |matches| {
        Arc::new(Route {
            name: "".into(),
            resource: resource.clone(),
            matches,
            action: Arc::clone(&action),
            request_headers: Arc::default(),
            response_headers: Arc::default(),
        })
    };
    RouteList::new(matches.into_iter().map(route).collect())
}

/// Positions that the index and the scan find.
fn both(list: &RouteList, request: &RequestView<'_>) -> (Option<usize>, Option<usize>) {
    let position = |found: &Arc<Route>| list.routes().iter().position(|route| Arc::ptr_eq(route, found));
    let scan = list.routes().iter().position(|route| route.matches.is_match(request));
    (list.find(request).and_then(position), scan)
}

// Few values, so that conditions collide with each other and with requests.
const PATHS: [&str; 14] =
    ["/", "", "/a", "/a/", "/a/b", "/a/b/c", "/A", "/ab", "/abc/d", "/b", "/b/item-1", "/a/item-1", "*", "/b/item-2"];
const TEXTS: [&str; 6] = ["", "1", "2", "12", "1,2", "x"];
const NAMES: [&str; 7] = ["x", "y", "z", "p", "q", "r", "host"];
const METHODS: [&str; 4] = ["GET", "POST", "get", "CONNECT"];
const AUTHORITIES: [&str; 3] = ["a.com", "a.com:80", "A.com"];

fn string_match() -> impl Strategy<Value = StringMatch> {
    let regexes = ["1.*", "[12]", ".*2", "", "(?:1|2)?x", r"\d+", ".*"].map(|text| Pattern::new(text).unwrap());
    prop_oneof![
        6 => select(&TEXTS[..]).prop_map(|text| StringMatch::Exact(text.to_owned())),
        2 => select(&TEXTS[..]).prop_map(|text| StringMatch::Prefix(text.to_owned())),
        2 => select(regexes.to_vec()).prop_map(StringMatch::Regex),
        1 => Just(StringMatch::Present),
    ]
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    let regexes = [
        "/a.*",
        "/[ab]/.*",
        ".*",
        "/a/(b|c)",
        ".*/item-1",
        "/[^/]+/item-[0-9]",
        "(?i)/A/?",
        "/(a|b)/item-2",
        "",
        "/a(/b)?",
        r"/\pL",
    ]
    .map(|text| Pattern::new(text).unwrap());
    prop_oneof![
        2 => Just(PathMatch::Any),
        4 => select(&PATHS[..]).prop_map(|text| PathMatch::Exact(text.to_owned())),
        4 => select(&PATHS[..]).prop_map(|text| PathMatch::Prefix(text.to_owned())),
        2 => select(regexes.to_vec()).prop_map(PathMatch::Regex),
    ]
}

fn route_match() -> impl Strategy<Value = RouteMatch> {
    let single = |values: &'static [&'static str]| {
        let exact = select(values).prop_map(|text| StringMatch::Exact(text.to_owned()));
        let prefix = select(values).prop_map(|text| StringMatch::Prefix(text[..1].to_owned()));
        option::weighted(0.2, prop_oneof![4 => exact, 1 => prefix].prop_map(Box::new))
    };
    let headers = vec(
        (select(&NAMES[..]), string_match(), prop::bool::weighted(0.15))
            .prop_map(|(name, value, invert)| HeaderMatch { name: name.to_owned(), value, invert }),
        0..3,
    );
    let query = vec(
        (select(&NAMES[..]), string_match()).prop_map(|(name, value)| QueryMatch { name: name.to_owned(), value }),
        0..2,
    );
    let claims = prop::bool::weighted(0.03).prop_map(|claim| {
        let claim = claim.then(|| ClaimMatch { path: Vec::new(), value: StringMatch::Present, invert: true });
        claim.into_iter().collect()
    });
    let texts = (single(&METHODS), single(&["http", "https"]), single(&AUTHORITIES));
    let path = (path_match(), prop::bool::weighted(0.2));
    (path, texts, headers, query, claims).prop_map(
        |((path, ignore_path_case), (method, scheme, authority), headers, query, claims)| RouteMatch {
            path,
            ignore_path_case,
            method,
            scheme,
            authority,
            headers,
            query,
            claims,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let pairs = || vec((select(&NAMES[..6]), select(&TEXTS[..])), 0..4);
    let query = pairs().prop_map(|pairs| {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| if value.is_empty() { (*name).to_owned() } else { format!("{name}={value}") })
            .collect();
        pairs.join("&")
    });
    let headers =
        pairs().prop_map(|pairs| Lines(pairs.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect()));
    let texts = (select(&METHODS[..]), select(&PATHS[..]), select(&AUTHORITIES[..]), select(&["http", "https"][..]));
    (texts, option::weighted(0.7, query), headers).prop_map(|((method, path, authority, scheme), query, headers)| {
        Request { method, path, query, authority, scheme, headers }
    })
}

#[test]
fn index_equals_the_ordered_scan() {
    const RULE_SETS: u32 = 2_500;
    const REQUESTS: usize = 48;

    let cases = AtomicUsize::new(0);
    let matched = AtomicUsize::new(0);
    // Small sets are told apart by path alone; one path and many rules make the deeper levels work.
    let one_path = (path_match(), vec(route_match(), 20..80)).prop_map(|(path, mut rules)| {
        rules.iter_mut().skip(1).for_each(|rule| rule.path = path.clone());
        rules
    });
    let rules = prop_oneof![vec(route_match(), 0..12), vec(route_match(), 12..60), one_path];
    let config = Config { cases: RULE_SETS, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&(rules, vec(request(), REQUESTS)), |(rules, requests)| {
            let list = list(rules);
            for request in &requests {
                let (index, scan) = both(&list, &request.view());
                prop_assert_eq!(index, scan, "{:?}", request);
                cases.fetch_add(1, Ordering::Relaxed);
                matched.fetch_add(usize::from(scan.is_some()), Ordering::Relaxed);
            }
            Ok(())
        })
        .unwrap();
    let (cases, matched) = (cases.into_inner(), matched.into_inner());
    println!("route index equals the ordered scan in {cases} generated cases, {matched} of them with a match");
    assert!(cases >= 100_000);
    assert!(matched > cases / 4 && matched < cases, "the rules must neither miss nor match all: {matched}");
}

const GET: RequestView<'static> = RequestView {
    method: "GET",
    path: "/",
    query: None,
    authority: "a.com",
    scheme: "http",
    headers: &Lines(Vec::new()),
};

fn header(name: &str, value: &str) -> HeaderMatch {
    HeaderMatch { name: name.to_owned(), value: StringMatch::Exact(value.to_owned()), invert: false }
}

#[test]
fn one_path_with_a_thousand_names_and_values() {
    let by_value =
        (0..1000).map(|i| RouteMatch { headers: vec![header("x", &i.to_string())], ..RouteMatch::default() });
    let by_name =
        (0..1000).map(|i| RouteMatch { headers: vec![header(&format!("x-{i}"), "1")], ..RouteMatch::default() });
    let by_parameter = (0..1000).map(|i| RouteMatch {
        query: vec![QueryMatch { name: format!("q{i}"), value: StringMatch::Exact("1".to_owned()) }],
        ..RouteMatch::default()
    });
    let list = list(by_value.chain(by_name).chain(by_parameter).chain([RouteMatch::default()]));
    let line = |name: &str, value: &str| Lines(vec![(name.to_owned(), value.to_owned())]);
    for (headers, query, expected) in [
        (line("x", "999"), None, 999),
        (line("x-999", "1"), None, 1999),
        (line("x-999", "2"), None, 3000),
        (line("x", "7"), Some("q3=1"), 7),
        (line("y", "7"), Some("q5=2&q5=1&q999=1&q998=1"), 2998),
        (line("y", "7"), Some("q5=2&q5=1"), 3000),
    ] {
        let request = RequestView { query, headers: &headers, ..GET };
        assert_eq!(both(&list, &request), (Some(expected), Some(expected)), "{headers:?} {query:?}");
    }
}

#[test]
fn many_patterns_without_a_common_literal() {
    let list = list((0..200).map(|i| RouteMatch {
        path: PathMatch::Regex(Pattern::new(&format!("/[a-z]+/{i}/[a-z]+")).unwrap()),
        ..RouteMatch::default()
    }));
    for (path, expected) in [("/a/199/b", Some(199)), ("/a/0/b", Some(0)), ("/a/200/b", None), ("/a/63/b", Some(63))] {
        assert_eq!(both(&list, &RequestView { path, ..GET }), (expected, expected), "{path}");
    }
}

#[test]
fn lists_are_equal_if_their_routes_are() {
    let exact = |path: &str| RouteMatch { path: PathMatch::Exact(path.to_owned()), ..RouteMatch::default() };
    assert_eq!(list([exact("/a"), exact("/b")]), list([exact("/a"), exact("/b")]));
    assert_ne!(list([exact("/a"), exact("/b")]), list([exact("/b"), exact("/a")]));
    assert_eq!(list([]).find(&GET), None);
}
