//! The path as the upstream gets it: networking.md §4.2, and request targets of §4.3.

use std::time::Duration;

use crate::harness::client::{End, Http1};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::raw_h2::RawH2;
use crate::harness::table::Table;
use crate::harness::upstream::Upstream;

/// Request target; what the upstream gets in the modes BASE, NONE, MERGE_SLASHES and DECODE_AND_MERGE_SLASHES, or else
/// status, flags and details of the refusal.
#[rustfmt::skip]
const MODES: &[(&str, &str, &str, &str, &str)] = &[
    ("/", "/", "/", "/", "/"),
    ("/a/b", "/a/b", "/a/b", "/a/b", "/a/b"),
    ("/a/../b", "/b", "/a/../b", "/b", "/b"),
    ("/a/./b", "/a/b", "/a/./b", "/a/b", "/a/b"),
    ("/a//b", "/a//b", "/a//b", "/a/b", "/a/b"),
    ("//a", "//a", "//a", "/a", "/a"),
    ("/a/..", "/", "/a/..", "/", "/"),
    ("/..", "/", "/..", "/", "/"),
    ("/../a", "/a", "/../a", "/a", "/a"),
    ("/a/../../b", "/b", "/a/../../b", "/b", "/b"),
    ("/.", "/", "/.", "/", "/"),
    ("/a/.", "/a/", "/a/.", "/a/", "/a/"),
    ("/./", "/", "/./", "/", "/"),
    ("/a\\b", "/a/b", "/a\\b", "/a/b", "/a/b"),
    ("\\a", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error"),
    ("/a%5Cb", "/a%5Cb", "/a%5Cb", "/a%5Cb", "/a/b"),
    ("/a%5cb", "/a%5cb", "/a%5cb", "/a%5cb", "/a/b"),
    ("/a%2Fb", "/a%2Fb", "/a%2Fb", "/a%2Fb", "/a/b"),
    ("/a%2fb", "/a%2fb", "/a%2fb", "/a%2fb", "/a/b"),
    ("/%2e%2e/a", "/a", "/%2e%2e/a", "/a", "/a"),
    ("/a/%2E%2E/b", "/b", "/a/%2E%2E/b", "/b", "/b"),
    ("/a/%2e/b", "/a/b", "/a/%2e/b", "/a/b", "/a/b"),
    ("/a/.%2e/b", "/b", "/a/.%2e/b", "/b", "/b"),
    ("/%41", "/A", "/%41", "/A", "/A"),
    ("/%7e", "/~", "/%7e", "/~", "/~"),
    ("/%7E", "/~", "/%7E", "/~", "/~"),
    ("/%2D%5F", "/-_", "/%2D%5F", "/-_", "/-_"),
    ("/%20", "/%20", "/%20", "/%20", "/%20"),
    ("/%25", "/%25", "/%25", "/%25", "/%25"),
    ("/%2525", "/%2525", "/%2525", "/%2525", "/%2525"),
    ("/%zz", "/%zz", "/%zz", "/%zz", "/%zz"),
    ("/%", "/%", "/%", "/%", "/%"),
    ("/%4", "/%4", "/%4", "/%4", "/%4"),
    ("/%00", "400 - path_normalization_failed", "/%00", "400 - path_normalization_failed", "400 - path_normalization_failed"),
    ("/a%00b", "400 - path_normalization_failed", "/a%00b", "400 - path_normalization_failed", "400 - path_normalization_failed"),
    ("/%0d%0a", "/%0d%0a", "/%0d%0a", "/%0d%0a", "/%0d%0a"),
    ("/a?b=../c//%41", "/a?b=../c//%41", "/a?b=../c//%41", "/a?b=../c//%41", "/a?b=../c//%41"),
    ("/a?x#f", "/a?x", "/a?x", "/a?x", "/a?x"),
    ("/a#f", "/a", "/a", "/a", "/a"),
    ("/a#f?x", "/a", "/a", "/a", "/a"),
    ("/#", "/", "/", "/", "/"),
    ("/a;p=1/../b", "/b", "/a;p=1/../b", "/b", "/b"),
    ("/a;..;/b", "/a;..;/b", "/a;..;/b", "/a;..;/b", "/a;..;/b"),
    ("/a/..;/b", "/b", "/a/..;/b", "/b", "/b"),
    ("/a/..;x=1/b", "/b", "/a/..;x=1/b", "/b", "/b"),
    ("/a;/../b", "/b", "/a;/../b", "/b", "/b"),
    ("/...", "/...", "/...", "/...", "/..."),
    ("/a/.../b", "/a/.../b", "/a/.../b", "/a/.../b", "/a/.../b"),
    ("/a b", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error"),
    ("/a\tb", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error"),
    ("/\u{e9}", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error"),
    ("/a|b", "/a%7Cb", "/a|b", "/a%7Cb", "/a%7Cb"),
    ("/{x}", "/%7Bx%7D", "/{x}", "/%7Bx%7D", "/%7Bx%7D"),
    ("/a\"b", "/a%22b", "/a\"b", "/a%22b", "/a%22b"),
    ("/<a>", "/%3Ca%3E", "/<a>", "/%3Ca%3E", "/%3Ca%3E"),
    ("/a^b", "/a%5Eb", "/a^b", "/a%5Eb", "/a%5Eb"),
    ("/`", "/%60", "/`", "/%60", "/%60"),
    ("/a%c3%a9", "/a%c3%a9", "/a%c3%a9", "/a%c3%a9", "/a%c3%a9"),
    ("/%u002e", "/%u002e", "/%u002e", "/%u002e", "/%u002e"),
    ("/%c0%ae%c0%ae/a", "/%c0%ae%c0%ae/a", "/%c0%ae%c0%ae/a", "/%c0%ae%c0%ae/a", "/%c0%ae%c0%ae/a"),
    ("/.%00./a", "400 - path_normalization_failed", "/.%00./a", "400 - path_normalization_failed", "400 - path_normalization_failed"),
    ("/a/b/", "/a/b/", "/a/b/", "/a/b/", "/a/b/"),
    ("/a/b//", "/a/b//", "/a/b//", "/a/b/", "/a/b/"),
    ("/a/%2e%2e%2fb", "/a/..%2fb", "/a/%2e%2e%2fb", "/a/..%2fb", "/b"),
    ("/a/..%2fb", "/a/..%2fb", "/a/..%2fb", "/a/..%2fb", "/b"),
    ("/a%2f..%2fb", "/a%2f..%2fb", "/a%2f..%2fb", "/a%2f..%2fb", "/b"),
    ("/a%2f%2e%2e/b", "/a%2f../b", "/a%2f%2e%2e/b", "/a%2f../b", "/b"),
    ("///", "///", "///", "//", "//"),
    ("/a///b", "/a///b", "/a///b", "/a/b", "/a/b"),
    ("/%2f%2fa", "/%2f%2fa", "/%2f%2fa", "/%2f%2fa", "/a"),
    ("/a%2f%2fb", "/a%2f%2fb", "/a%2f%2fb", "/a%2f%2fb", "/a/b"),
    ("?x=1", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error"),
    ("a", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error", "400 DPE http1.codec_error"),
    ("*", "400 DPE http1.invalid_url", "400 DPE http1.invalid_url", "400 DPE http1.invalid_url", "400 DPE http1.invalid_url"),
    ("/./..//%2F", "//%2F", "/./..//%2F", "/%2F", "//"),
    ("/x%3Fy", "/x%3Fy", "/x%3Fy", "/x%3Fy", "/x%3Fy"),
    ("/x%23y", "/x%23y", "/x%23y", "/x%23y", "/x%23y"),
    ("/a%09b", "/a%09b", "/a%09b", "/a%09b", "/a%09b"),
    ("/%7f", "/%7f", "/%7f", "/%7f", "/%7f"),
    ("/a+b", "/a+b", "/a+b", "/a+b", "/a+b"),
    ("/a:b@c", "/a:b@c", "/a:b@c", "/a:b@c", "/a:b@c"),
    ("http://a.com/x/../y", "/y", "/x/../y", "/y", "/y"),
    ("http://a.com", "/", "/", "/", "/"),
    ("http://a.com?x=1", "404 - absolute_path_rejected", "404 - absolute_path_rejected", "404 - absolute_path_rejected", "404 - absolute_path_rejected"),
    ("HTTP://A.com/x", "/x", "/x", "/x", "/x"),
    ("https://a.com/x", "403 DPE http1.https_url_on_plaintext_connection", "403 DPE http1.https_url_on_plaintext_connection", "403 DPE http1.https_url_on_plaintext_connection", "403 DPE http1.https_url_on_plaintext_connection"),
    ("http://user:pw@a.com/x", "/x", "/x", "/x", "/x"),
    ("ftp://a.com/x", "400 DPE http1.invalid_scheme", "400 DPE http1.invalid_scheme", "400 DPE http1.invalid_scheme", "400 DPE http1.invalid_scheme"),
    ("http://a.com:99/x", "/x", "/x", "/x", "/x"),
    ("//a.com/x", "//a.com/x", "//a.com/x", "/a.com/x", "/a.com/x"),
    ("http:///x", "400 DPE http1.invalid_url", "400 DPE http1.invalid_url", "400 DPE http1.invalid_url", "400 DPE http1.invalid_url"),
    ("/http://a.com", "/http://a.com", "/http://a.com", "/http:/a.com", "/http:/a.com"),
];

/// The same with `connectionSettings` that merge slashes and unescape and redirect, and with such that reject.
#[rustfmt::skip]
const ESCAPED_SLASHES: &[(&str, &str, &str)] = &[
    ("/a/../b", "/b", "/b"),
    ("/a//b", "/a/b", "/a//b"),
    ("/a\\b", "/a/b", "/a/b"),
    ("/a%5Cb", "307 - path_normalization_failed /a/b", "400 - path_normalization_failed"),
    ("/a%5cb", "307 - path_normalization_failed /a/b", "400 - path_normalization_failed"),
    ("/a%2Fb", "307 - path_normalization_failed /a/b", "400 - path_normalization_failed"),
    ("/a%2fb", "307 - path_normalization_failed /a/b", "400 - path_normalization_failed"),
    ("/a/%2e%2e%2fb", "307 - path_normalization_failed /b", "400 - path_normalization_failed"),
    ("/a/..%2fb", "307 - path_normalization_failed /b", "400 - path_normalization_failed"),
    ("/a%2f..%2fb", "307 - path_normalization_failed /b", "400 - path_normalization_failed"),
    ("/a%2f%2e%2e/b", "307 - path_normalization_failed /b", "400 - path_normalization_failed"),
    ("/%2f%2fa", "307 - path_normalization_failed /a", "400 - path_normalization_failed"),
    ("/a%2f%2fb", "307 - path_normalization_failed /a/b", "400 - path_normalization_failed"),
    ("/./..//%2F", "307 - path_normalization_failed //", "400 - path_normalization_failed"),
];

/// The same for `:path` of HTTP/2 in mode BASE. `closed` stands for a connection that ends without an answer, `refused` for
/// what the codec finds malformed (RFC 9113 §8.3.1); there Envoy closes too, and takes bytes above 127 in its stride.
#[rustfmt::skip]
const HTTP2: &[(&str, &str)] = &[
    ("/a/../b", "/b"),
    ("/a//b", "/a//b"),
    ("/a\\b", "/a/b"),
    ("/a%2Fb", "/a%2Fb"),
    ("/%", "/%"),
    ("/%00", "400 - path_normalization_failed"),
    ("/a#f", "/a"),
    ("/a b", "refused"),
    ("/\u{e9}", "refused"),
    ("a", "refused"),
    ("*", "closed DPE http2.violation.of.messaging.rule"),
    ("", "refused"),
    ("http://a.com/x", "refused"),
];

async fn start(mesh_config: &str, upstream: &Upstream) -> Gateway {
    let mesh = Mesh::new().mesh_config(mesh_config).http("be.test", &[upstream.address()]);
    mesh.route("*", "be.test").start().await
}

/// One byte a char, so that tables can hold bytes that aren't UTF-8.
fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|char| u8::try_from(char).unwrap()).collect()
}

/// Checks what becomes of `GET target`: a request to the upstream, or an answer in the words of [`MODES`].
async fn check(table: &mut Table, gateway: &Gateway, upstream: &Upstream, target: &str, expected: &str) {
    upstream.take();
    let request = [b"GET ", &*bytes(target), b" HTTP/1.1\r\nhost: a.com\r\n\r\n"].concat();
    let response = Http1::connect(gateway.address(80)).await.exchange(request).await;
    let received = upstream.take();
    let received = received.first().map(|seen| seen.target.as_str());
    let Some((status, rest)) = refusal(expected) else {
        table.check("the upstream's target", &Some(expected), &received);
        return;
    };
    table.check("the upstream's target", &None, &received);
    table.check("status", status, response.status.to_string().as_str());
    let mut rest = rest.split(' ');
    let (flags, details) = (rest.next().unwrap_or_default(), rest.next().unwrap_or_default());
    table.expect_log(response.client, response.status, flags, details);
    table.check("location", rest.next().unwrap_or_default(), response.header("location"));
}

/// Status and the rest, if the row tells of an answer by the gateway.
fn refusal(expected: &str) -> Option<(&str, &str)> {
    let (status, rest) = expected.split_once(' ')?;
    (status.len() == 3 || status == "closed").then_some((status, rest))
}

async fn check_mode(
    mode: &str,
    title: &'static str,
    expected: impl Fn(&(&'static str, &'static str, &'static str, &'static str, &'static str)) -> &'static str,
) {
    let upstream = Upstream::ok().await;
    let gateway = start(&format!("pathNormalization: {{normalization: {mode}}}"), &upstream).await;
    let mut table = Table::new(title);
    for row in MODES {
        table.row(format!("{mode} {:?}", row.0));
        check(&mut table, &gateway, &upstream, row.0, expected(row)).await;
    }
    table.check_logs(&gateway).await;
    table.finish();
}

#[tokio::test]
async fn base() {
    check_mode("BASE", "networking.md §4.2, BASE", |row| row.1).await;
}

#[tokio::test]
async fn none() {
    check_mode("NONE", "networking.md §4.2, NONE", |row| row.2).await;
}

#[tokio::test]
async fn merge_slashes() {
    check_mode("MERGE_SLASHES", "networking.md §4.2, MERGE_SLASHES", |row| row.3).await;
}

#[tokio::test]
async fn decode_and_merge_slashes() {
    check_mode("DECODE_AND_MERGE_SLASHES", "networking.md §4.2, DECODE_AND_MERGE_SLASHES", |row| row.4).await;
}

#[tokio::test]
async fn escaped_slashes_by_connection_settings() {
    let upstream = Upstream::ok().await;
    let settings = |action: &str, merge: bool| {
        format!(
            "defaultConfig:\n  connectionSettings:\n    profile: EDGE\n    httpMergeSlashes: {merge}\n    \
             httpPathWithEscapedSlashesAction: {action}\n"
        )
    };
    let redirect = start(&settings("UNESCAPE_AND_REDIRECT", true), &upstream).await;
    let reject = start(&settings("REJECT", false), &upstream).await;
    let mut table = Table::new("networking.md §4.2, escaped slashes");
    for (target, redirected, _) in ESCAPED_SLASHES {
        table.row(format!("redirect {target:?}"));
        check(&mut table, &redirect, &upstream, target, redirected).await;
    }
    table.check_logs(&redirect).await;
    for (target, _, rejected) in ESCAPED_SLASHES {
        table.row(format!("reject {target:?}"));
        check(&mut table, &reject, &upstream, target, rejected).await;
    }
    table.check_logs(&reject).await;
    table.finish();
}

#[tokio::test]
async fn over_http2() {
    let upstream = Upstream::ok().await;
    let gateway = start("", &upstream).await;
    let mut table = Table::new("networking.md §4.2, HTTP/2");
    for (path, expected) in HTTP2 {
        table.row(format!("{path:?}"));
        upstream.take();
        let mut client = RawH2::connect(gateway.address(80)).await;
        let path = bytes(path);
        let fields: [(&str, &[u8]); 4] =
            [(":method", b"GET"), (":scheme", b"http"), (":authority", b"a.com"), (":path", &path)];
        client.headers(1, &fields, true).await;
        if *expected == "refused" {
            table.check("refused", &Ok(()), &client.refuses_stream(1).await);
            table.check("requests at the upstream", &0, &upstream.take().len());
            continue;
        }
        let closed = matches!(client.next(Duration::from_secs(5)).await, Err(End::Closed | End::Reset));
        let received = upstream.take();
        let received = received.first().map(|seen| seen.target.as_str());
        let Some((status, rest)) = refusal(expected) else {
            table.check("the upstream's target", &Some(*expected), &received);
            continue;
        };
        table.check("the upstream's target", &None, &received);
        table.check("closed", &(status == "closed"), &closed);
        let (flags, details) = rest.split_once(' ').unwrap();
        table.expect_log(Some(client.address()), status.parse().unwrap_or(0), flags, details);
    }
    table.check_logs(&gateway).await;
    table.finish();
}
