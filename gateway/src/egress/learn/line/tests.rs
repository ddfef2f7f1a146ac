#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

/// A line in Istio's default text format.
fn text(request: &str, outcome: &str, authority: &str, end: &str) -> String {
    format!(
        "[2026-11-22T00:45:24.782Z] \"{request}\" {outcome} - \"-\" 0 0 0 - \"10.0.0.9\" \"curl/8.5\" \
         \"a756ce42-0ca6-4890-b19d-f3fd4eb2bb2e\" \"{authority}\" \"-\" {end}"
    )
}

/// Upstream cluster, addresses, no server name, no route.
const PLAIN: &str = "- - 10.44.1.23:8080 10.0.0.9:34286 - -";

/// `host:port protocol`, with `?` after a port that nobody named; `-` for a refusal without a host.
fn read(line: &str) -> Option<String> {
    match parse(line) {
        Line::Refusal(Refusal { destination: Some(destination), .. }) => {
            let Destination { host, port, protocol, is_listeners_port } = destination;
            Some(format!("{host}:{port}{} {protocol}", if is_listeners_port { "?" } else { "" }))
        }
        Line::Refusal(_) => Some("-".to_owned()),
        Line::Other => None,
        Line::Unreadable => panic!("unreadable: {line}"),
    }
}

#[test]
fn refusals_are_told_from_other_lines() {
    let get = |outcome: &str, end: &str| read(&text("GET /x HTTP/1.1", outcome, "a.example", end));
    let refused = Some("a.example:80 HTTP".to_owned());
    for outcome in [
        "404 NR route_not_found",
        "0 NR filter_chain_not_found",
        "200 NR route_not_found",
        "404 DI,NR route_not_found",
        "403 - egress_denied{no_service_entry}",
        "502 - egress_denied",
    ] {
        assert_eq!(get(outcome, PLAIN), refused, "{outcome}");
    }
    for end in ["BlackHoleCluster - 10.1.1.1:80 10.0.0.9:1 - -", "- - 10.1.1.1:80 10.0.0.9:1 - block_all"] {
        assert_eq!(get("502 - direct_response", end), refused, "{end}");
    }
    for outcome in [
        "200 - via_upstream",
        "404 - via_upstream",
        "503 NC cluster_not_found",
        "503 UH no_healthy_upstream",
        "403 UAEX ext_authz_denied",
        "403 - not_egress_denied",
    ] {
        assert_eq!(get(outcome, PLAIN), None, "{outcome}");
    }
    assert_eq!(get("404 - via_upstream", "outbound|80||a.example - 10.1.1.1:80 10.0.0.9:1 - my route"), None);
}

#[test]
fn port_and_protocol_follow_method_authority_and_server_name() {
    for (request, authority, server_name, expected) in [
        ("GET /x HTTP/1.1", "a.example", "-", "a.example:80 HTTP"),
        ("GET /x HTTP/2", "A.example:8080", "-", "a.example:8080 HTTP"),
        ("GET /x HTTP/1.1", "192.0.2.1:81", "-", "192.0.2.1:81 HTTP"),
        ("GET /x HTTP/1.1", "[2001:db8::1]", "-", "2001:db8::1:80 HTTP"),
        ("GET /x HTTP/1.1", "[2001:db8::1]:81", "-", "2001:db8::1:81 HTTP"),
        ("CONNECT - HTTP/1.1", "a.example:443", "-", "a.example:443 TLS"),
        ("CONNECT - HTTP/1.1", "a.example", "-", "a.example:443 TLS"),
        ("CONNECT - HTTP/1.1", "db.example:5432", "-", "db.example:5432 TCP"),
        // TLS to the host, and TLS to the proxy.
        ("GET /x HTTP/1.1", "a.example", "a.example", "a.example:443 TLS"),
        ("GET /x HTTP/1.1", "a.example:8443", "a.example", "a.example:8443 TLS"),
        ("GET /x HTTP/1.1", "a.example", "proxy.example", "a.example:80 HTTP"),
        ("CONNECT - HTTP/1.1", "db.example:5432", "proxy.example", "db.example:5432 TCP"),
        // No request.
        ("- - -", "-", "a.example", "a.example:8080? TLS"),
        ("- - -", "-", "-", "-"),
        // No host that could be allowed.
        ("GET /x HTTP/1.1", "a_b.example", "-", "-"),
        ("GET /x HTTP/1.1", "a.example:0", "-", "-"),
        ("GET /x HTTP/1.1", "a.example:99999", "-", "-"),
        ("GET /x HTTP/1.1", "a.example:", "-", "-"),
        ("GET /x HTTP/1.1", ":80", "-", "-"),
        ("GET /x HTTP/1.1", "2001:db8::1", "-", "-"),
        ("- - -", "-", "{}", "-"),
    ] {
        let line = text(
            request,
            "404 NR route_not_found",
            authority,
            &format!("- - 10.44.1.23:8080 10.0.0.9:34286 {server_name} -"),
        );
        assert_eq!(read(&line).as_deref(), Some(expected), "{line}");
    }
}

#[test]
fn quotes_in_a_header_change_nothing() {
    let line = text("GET /x HTTP/1.1", "404 NR route_not_found", "a.example", PLAIN);
    for agent in
        ["a\"b", "\" \"", "x\" \"y\" \"evil.example\" \"-\" - - 1.1.1.1:1 2.2.2.2:2 - -", "] \"", "egress denied"]
    {
        let line = line.replace("curl/8.5", agent);
        assert_eq!(read(&line).as_deref(), Some("a.example:80 HTTP"), "{line}");
        let Line::Refusal(refusal) = parse(&line) else { panic!("{line}") };
        assert_eq!(refusal.source, Some(IpAddr::from([10, 0, 0, 9])), "{line}");
    }
}

#[test]
fn json_is_read_like_text() {
    // As in `reference/telemetry-and-operations.md` §4.2.
    let line = r#"{"authority":"unknown.example.com","bytes_received":0,"bytes_sent":0,"connection_termination_details":null,"downstream_local_address":"127.0.0.1:8080","downstream_remote_address":"127.0.0.1:34286","duration":0,"method":"GET","path":"/x","protocol":"HTTP/1.1","request_id":"a756ce42-0ca6-4890-b19d-f3fd4eb2bb2e","requested_server_name":null,"response_code":404,"response_code_details":"route_not_found","response_flags":"NR","route_name":null,"start_time":"2026-11-22T00:45:24.782Z","upstream_cluster":null,"upstream_host":null,"upstream_local_address":null,"upstream_service_time":null,"upstream_transport_failure_reason":null,"user_agent":"exp/1.0","x_forwarded_for":"192.0.2.2"}"#;
    assert_eq!(read(line).as_deref(), Some("unknown.example.com:80 HTTP"));
    let Line::Refusal(refusal) = parse(line) else { panic!() };
    assert_eq!((refusal.origin, refusal.source), (Origin::AccessLog, Some(IpAddr::from([127, 0, 0, 1]))));
    assert_eq!(read(&line.replace("\"NR\"", "\"-\"")), None);
    // `omitEmptyValues`: keys without a value are missing.
    let short = r#"{"downstream_local_address":"[::1]:443","response_flags":"NR","requested_server_name":"b.example"}"#;
    assert_eq!(read(short).as_deref(), Some("b.example:443? TLS"));
    let escaped = line.replace("unknown.example.com", r"a.example\nkind: Secret\u0022");
    assert_eq!(read(&escaped).as_deref(), Some("-"));
}

#[test]
fn denials_in_our_own_log_are_read() {
    for line in [
        "2026-11-22T00:45:21.280123Z  WARN gateway::egress: egress denied host=a.example port=443 protocol=TLS \
         allow={apiVersion: networking.istio.io/v1, kind: ServiceEntry}",
        "2026-11-22T00:45:21.280123Z  WARN gateway::egress: egress denied client=10.0.0.9:1 reason=no such host \
         host=\"a.example\" port=443 protocol=\"TLS\"",
        "2026-11-22T00:45:21.280123Z ERROR gateway::egress: egress denied port=443 protocol=TLS host=a.example \
         host=b.example",
        r#"{"timestamp":"2026-11-22T00:45:21.280123Z","level":"WARN","fields":{"message":"egress denied","host":"a.example","port":443,"protocol":"TLS","allow":"{}"},"target":"gateway::egress"}"#,
        r#"{"timestamp":"2026-11-22T00:45:21.280123Z","level":"WARN","fields":{"message":"egress denied","host":"a.example","port":"443","protocol":"TLS"},"target":"gateway::egress"}"#,
    ] {
        assert_eq!(read(line).as_deref(), Some("a.example:443 TLS"), "{line}");
        let Line::Refusal(refusal) = parse(line) else { panic!("{line}") };
        assert_eq!((refusal.origin, refusal.source), (Origin::OwnLog, None));
    }
    let nameless = "2026-11-22T00:45:21Z  WARN gateway::egress: egress denied host={} port=443 protocol=TLS";
    assert_eq!(read(nameless).as_deref(), Some("-"));
}

#[test]
fn the_rest_of_our_own_log_is_passed_over() {
    for line in [
        "",
        "2026-11-22T00:45:21.280123Z  INFO gateway::reload: loaded changed=3",
        "2026-11-22T00:45:21.280123Z DEBUG gateway::http: bad request agent=egress denied host=evil.example port=1 \
         protocol=TLS",
        r#"{"timestamp":"2026-11-22T00:45:21Z","level":"INFO","fields":{"message":"loaded"},"target":"gateway"}"#,
    ] {
        assert_eq!(read(line), None, "{line}");
    }
}

#[test]
fn other_lines_are_unreadable() {
    let whole = text("GET /x HTTP/1.1", "404 NR route_not_found", "a.example", PLAIN);
    let mut lines: Vec<String> = [
        "hello",
        "{",
        "{}",
        "[]",
        "{\"response_flags\":7}",
        "[2026-11-22 00:45:21.280][1][info][main] starting",
        "egress denied host=a.example port=443 protocol=TLS",
        "2026-11-22T00:45:21Z  WARN gateway::egress: egress denied host=a.example",
        "2026-11-22T00:45:21Z  WARN gateway::egress: egress denied host=a.example port=443 protocol=UDP",
        "2026-11-22T00:45:21Z  WARN gateway::egress: egress denied host=a.example port=66000 protocol=TLS",
        "2026-11-22T00:45:21Z  WARN gateway::egress: egress denied host=\"a.example",
        "2026-11-22T00:45:21Z  WARN gateway::egress: egress denied allow={host=a.example port=443 protocol=TLS",
    ]
    .map(str::to_owned)
    .into();
    // Cut anywhere, up to the last field.
    let end = whole.len() - 1;
    lines.extend((1..end).step_by(7).map(|at| whole[..at].to_owned()));
    for line in lines {
        assert_eq!(parse(&line), Line::Unreadable, "{line}");
    }
}
