//! Istio's metrics: telemetry-and-operations.md §1.

use http::Request;

use crate::harness::client::{Http1, Http2};
use crate::harness::eventually;
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::table::Table;
use crate::harness::upstream::{H2Step, Upstream};

/// Labels in the order of §1.2.
const LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// What differs from one request to another; the rest is the same for all in these tests.
struct Series {
    service: &'static str,
    namespace: &'static str,
    protocol: &'static str,
    code: &'static str,
    grpc: &'static str,
    flags: &'static str,
}

impl Series {
    fn http(service: &'static str, code: &'static str, flags: &'static str) -> Self {
        let namespace = if service == "unknown" { "unknown" } else { "default" };
        Self { service, namespace, protocol: "http", code, grpc: "", flags }
    }

    /// The labels as they are printed.
    fn labels(&self) -> String {
        let value = |label: &str| match label {
            "reporter" => "source",
            "source_workload" | "source_canonical_service" | "source_app" => "istio-ingressgateway",
            "source_canonical_revision" | "destination_canonical_revision" => "latest",
            "source_workload_namespace" => "istio-system",
            "source_version" => "",
            "source_cluster" => "Kubernetes",
            "destination_service" | "destination_service_name" => self.service,
            "destination_service_namespace" => self.namespace,
            "request_protocol" => self.protocol,
            "response_code" => self.code,
            "grpc_response_status" => self.grpc,
            "response_flags" => self.flags,
            _ => "unknown",
        };
        let labels: Vec<_> = LABELS.iter().map(|label| format!("{label}=\"{}\"", value(label))).collect();
        labels.join(",")
    }
}

/// Value of a series; `None` if there is none.
fn value(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until `series` counts at least `least`: a request is counted after its answer has been written.
async fn counted(gateway: &Gateway, series: &str, least: f64) -> Option<f64> {
    crate::harness::eventually_within(std::time::Duration::from_secs(2), || async {
        value(&gateway.metrics_page().await, series).filter(|count| *count >= least)
    })
    .await
}

#[tokio::test]
async fn requests_total() {
    let ok = Upstream::ok().await;
    let hangs = Upstream::hangs().await;
    let refuses = Upstream::refuses().await;
    let grpc = Upstream::h2(|_| {
        vec![
            H2Step::ReadBody,
            H2Step::Head(200, &[("content-type", "application/grpc")], false),
            H2Step::Trailers(&[("grpc-status", "5")]),
        ]
    })
    .await;
    let gateway = Mesh::new()
        .http("ok.test", &[ok.address()])
        .route("ok.test", "ok.test")
        .http("hangs.test", &[hangs.address()])
        .routes("hangs.test", "[{route: [{destination: {host: hangs.test}}], timeout: 100ms}]")
        .http("refuses.test", &[refuses.address()])
        .route("refuses.test", "refuses.test")
        .http("empty.test", &[])
        .route("empty.test", "empty.test")
        .route("missing.test", "nowhere.test")
        .routes("direct.test", "[{directResponse: {status: 200}}]")
        .service("grpc.test", "GRPC", &[grpc.address()])
        .route("grpc.test", "grpc.test")
        .start()
        .await;
    let mut table = Table::new("telemetry-and-operations.md §1.2-1.4, istio_requests_total");
    for (name, host, times, series) in [
        ("200", "ok.test", 3, Series::http("ok.test", "200", "-")),
        ("404", "nobody.test", 2, Series::http("unknown", "404", "NR")),
        ("503, refused", "refuses.test", 1, Series::http("refuses.test", "503", "URX,UF")),
        ("503, no endpoint", "empty.test", 1, Series::http("empty.test", "503", "UH")),
        ("503, no cluster", "missing.test", 1, Series::http("unknown", "503", "NC")),
        ("504", "hangs.test", 1, Series::http("hangs.test", "504", "UT")),
        ("direct response", "direct.test", 1, Series::http("unknown", "200", "-")),
    ] {
        table.row(name);
        let mut client = Http1::connect(gateway.address(80)).await;
        for _ in 0..times {
            client.get(host, "/").await;
        }
        let series = format!("istio_requests_total{{{}}}", series.labels());
        table.check(&series, &Some(f64::from(times)), &counted(&gateway, &series, f64::from(times)).await);
    }

    table.row("malformed");
    Http1::connect(gateway.address(80)).await.exchange("GET\r\n\r\n").await;
    let series = format!("istio_requests_total{{{}}}", Series::http("unknown", "400", "DPE").labels());
    table.check(&series, &Some(1.0), &counted(&gateway, &series, 1.0).await);

    table.row("gRPC");
    let mut client = Http2::connect(gateway.address(80)).await;
    let call =
        Request::post("http://grpc.test/a.B/C").header("content-type", "application/grpc+proto").body(()).unwrap();
    client.exchange(call, b"\0\0\0\0\0").await;
    let series = Series { protocol: "grpc", grpc: "5", ..Series::http("grpc.test", "200", "-") };
    let series = format!("istio_requests_total{{{}}}", series.labels());
    table.check(&series, &Some(1.0), &counted(&gateway, &series, 1.0).await);
    table.finish();
}

#[tokio::test]
async fn histograms() {
    let upstream = Upstream::answers(format!("HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n{:2000}", "x")).await;
    let gateway = Mesh::new().http("a.test", &[upstream.address()]).route("a.test", "a.test").start().await;
    let mut client = Http1::connect(gateway.address(80)).await;
    let body = "y".repeat(600);
    client.exchange(format!("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 600\r\n\r\n{body}")).await;
    let labels = Series::http("a.test", "200", "-").labels();
    let page = eventually("the request is counted", || async {
        let page = gateway.metrics_page().await;
        value(&page, &format!("istio_request_bytes_count{{{labels}}}")).map(|_| page)
    })
    .await;
    let mut table = Table::new("telemetry-and-operations.md §1.5, histograms");
    for (name, least, most) in [
        ("istio_request_duration_milliseconds", 0.0, 2000.0),
        // Head and body; how long a head was is known about.
        ("istio_request_bytes", 600.0, 900.0),
        ("istio_response_bytes", 2000.0, 2300.0),
    ] {
        table.row(name);
        let types = page.lines().filter(|line| *line == format!("# TYPE {name} histogram")).count();
        table.check("TYPE lines", &1, &types);
        table.check("count", &Some(1.0), &value(&page, &format!("{name}_count{{{labels}}}")));
        let sum = value(&page, &format!("{name}_sum{{{labels}}}"));
        table.check("sum in range", &true, &sum.is_some_and(|sum| (least..=most).contains(&sum)));
        let bounds: Vec<String> = page
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("{name}_bucket{{{labels},le=\"")))
            .filter_map(|rest| rest.split('"').next().map(str::to_owned))
            .collect();
        let expected =
            "0.5 1 5 10 25 50 100 250 500 1000 2500 5000 10000 30000 60000 300000 600000 1800000 3600000 +Inf";
        table.check("bounds", expected, bounds.join(" ").as_str());
        table.check("+Inf", &Some(1.0), &value(&page, &format!("{name}_bucket{{{labels},le=\"+Inf\"}}")));
        let at = |bound: &str| value(&page, &format!("{name}_bucket{{{labels},le=\"{bound}\"}}"));
        if least > 0.0 {
            table.check("below", &Some(0.0), &at("500"));
            table.check("above", &Some(1.0), &at("2500"));
        }
    }
    assert!(!page.contains("# HELP istio_"), "never # HELP");
    table.finish();
}

#[tokio::test]
async fn the_page() {
    let gateway = Mesh::new().start().await;
    Http1::connect(gateway.address(80)).await.get("nobody.test", "/").await;
    for address in [gateway.metrics(), gateway.admin()] {
        let page = Http1::connect(address).await.get("localhost", "/stats/prometheus").await;
        assert_eq!((page.status, page.header("content-type")), (200, "text/plain; charset=UTF-8"));
        // Each family has one TYPE line, before its series.
        let text = page.text();
        let families: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let mut once = families.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), families.len(), "{families:?}");
        assert!(text.contains("istio_build{component=\"proxy\",tag=\""), "{text}");
        assert!(text.ends_with('\n'));
    }
}
