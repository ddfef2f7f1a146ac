//! Choice of a route among few and among many, by what tells the routes apart.
//!
//! `route/<kind>/<routes>` is the time for one request; requests go round over routes at the beginning, in the middle
//! and at the end of the list, and one that matches none.

use std::hint::black_box;
use std::sync::Arc;

use config::snapshot::ResourceName;
use config::snapshot::matcher::{Pattern, StringMatch};
use config::snapshot::route::{
    Action, DirectResponse, HeaderLines, HeaderMatch, PathMatch, QueryMatch, RequestView, Route, RouteList, RouteMatch,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// What the n-th route asks for, and a request for it.
type Kind = (&'static str, fn(usize) -> RouteMatch, fn(usize) -> Request);

#[derive(Default)]
struct Request {
    path: String,
    query: Option<String>,
    headers: Lines,
}

#[derive(Default)]
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
    fn path(path: String) -> Self {
        Self { path, query: None, headers: Lines(browser_headers()) }
    }

    fn header(name: String, value: String) -> Self {
        let mut request = Self::path("/".to_owned());
        request.headers.0.push((name, value));
        request
    }

    fn view(&self) -> RequestView<'_> {
        RequestView {
            method: "GET",
            path: &self.path,
            query: self.query.as_deref(),
            authority: "shop.example.com",
            scheme: "http",
            headers: &self.headers,
        }
    }
}

fn browser_headers() -> Vec<(String, String)> {
    [
        "accept",
        "accept-encoding",
        "accept-language",
        "cookie",
        "referer",
        "user-agent",
        "x-forwarded-for",
        "x-request-id",
    ]
    .map(|name| (name.to_owned(), "something of ordinary length".to_owned()))
    .into()
}

fn exact(text: String) -> StringMatch {
    StringMatch::Exact(text)
}

fn path(path: PathMatch) -> RouteMatch {
    RouteMatch { path, ..RouteMatch::default() }
}

fn header(name: String, value: String) -> RouteMatch {
    RouteMatch { headers: vec![HeaderMatch { name, value: exact(value), invert: false }], ..RouteMatch::default() }
}

const KINDS: [Kind; 7] = [
    (
        "exact_path",
        |n| path(PathMatch::Exact(format!("/api/v1/tenants/{n}/orders"))),
        |n| Request::path(format!("/api/v1/tenants/{n}/orders")),
    ),
    (
        "prefix",
        |n| path(PathMatch::Prefix(format!("/api/v1/tenants/{n}/"))),
        |n| Request::path(format!("/api/v1/tenants/{n}/orders/12")),
    ),
    (
        "header_value",
        |n| header("x-tenant".to_owned(), format!("tenant-{n}")),
        |n| Request::header("x-tenant".to_owned(), format!("tenant-{n}")),
    ),
    (
        "header_name",
        |n| header(format!("x-tenant-{n}"), "1".to_owned()),
        |n| Request::header(format!("x-tenant-{n}"), "1".to_owned()),
    ),
    (
        "query",
        |n| RouteMatch {
            query: vec![QueryMatch { name: "tenant".to_owned(), value: exact(n.to_string()) }],
            ..RouteMatch::default()
        },
        |n| Request { query: Some(format!("a=1&tenant={n}")), ..Request::path("/".to_owned()) },
    ),
    (
        "method_and_header",
        |n| RouteMatch {
            method: Some(Box::new(exact(["POST", "GET"][n % 2].to_owned()))),
            ..header("x-tenant".to_owned(), format!("tenant-{n}"))
        },
        |n| Request::header("x-tenant".to_owned(), format!("tenant-{n}")),
    ),
    (
        "regex",
        |n| {
            let pattern = format!("/api/v1/tenants/{n}/[^/]+/items");
            path(PathMatch::Regex(Pattern::new(&pattern).expect("a valid expression")))
        },
        |n| Request::path(format!("/api/v1/tenants/{n}/orders/items")),
    ),
];

fn list(count: usize, matches: fn(usize) -> RouteMatch) -> RouteList {
    let action = Arc::new(Action::DirectResponse(DirectResponse { status: 200, body: Arc::default() }));
    let resource = ResourceName { kind: "VirtualService", namespace: "shop".into(), name: "shop".into() };
    let route = |n| {
        Arc::new(Route {
            name: "".into(),
            resource: resource.clone(),
            matches: matches(n),
            action: Arc::clone(&action),
            request_headers: Arc::default(),
            response_headers: Arc::default(),
        })
    };
    RouteList::new((0..count).map(route).collect())
}

fn choice(criterion: &mut Criterion) {
    for (name, matches, request) in KINDS {
        let mut group = criterion.benchmark_group(format!("route/{name}"));
        // An expression takes tens of kilobytes, whatever the index does.
        let sizes: &[usize] = if name == "regex" { &[10, 1_000, 10_000] } else { &[10, 1_000, 100_000] };
        for &count in sizes {
            let list = list(count, matches);
            let requests = [0, count / 2, count - 1, count].map(request);
            let mut next = 0;
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                bencher.iter(|| {
                    next = (next + 1) % requests.len();
                    black_box(list.find(&requests[next].view()).is_some())
                });
            });
        }
        group.finish();
    }
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("index");
    group.sample_size(10);
    for (name, matches, _) in KINDS.into_iter().filter(|(name, ..)| *name != "regex") {
        let routes = list(10_000, matches).routes().to_vec();
        group.bench_function(BenchmarkId::new(name, 10_000), |bencher| {
            bencher.iter(|| RouteList::new(black_box(routes.clone())));
        });
    }
    group.finish();
}

criterion_group!(benches, choice, build);
criterion_main!(benches);
