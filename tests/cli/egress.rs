//! `fairlead egress learn`: from logs to files that can be applied.

use std::fs::File;
use std::path::Path;

use super::write;
use crate::harness::process::{fairlead, run};

/// Access log lines as Envoy wrote them with Istio's settings, names aside, between lines that tell of no refusal.
const TEXT: &str = r#"[2026-11-22T00:45:21.280Z] "GET /status/418 HTTP/1.1" 418 - via_upstream - "-" 0 135 4 3 "10.0.0.9" "curl/8.5" "84961386-6d84-429d-98bd-c5aee93b5c88" "httpbin.example.com" "10.44.1.27:8080" outbound|8000||httpbin.foo.svc.cluster.local 10.44.1.23:37652 10.44.1.23:8443 10.0.0.9:46520 httpbin.example.com -
[2026-11-22T00:45:24.782Z] "GET /x HTTP/1.1" 404 NR route_not_found - "-" 0 0 0 - "10.0.0.9" "curl/8.5" "a756ce42-0ca6-4890-b19d-f3fd4eb2bb2e" "api.example.com" "-" - - 10.44.1.23:8080 10.0.0.9:34286 - -
[2026-11-22T00:45:24.790Z] "CONNECT - HTTP/1.1" 404 NR route_not_found - "-" 0 0 0 - "10.0.0.8" "say \"hi\" - \"x\" - -" "-" "api.example.com:443" "-" - - 10.44.1.23:8080 10.0.0.8:34290 - -
[2026-11-22T00:45:24.800Z] "- - -" 0 NR filter_chain_not_found - "-" 0 0 0 - "-" "-" "-" "-" "-" - - 10.44.1.23:443 10.0.0.9:34287 tls.example.com -
[2026-11-22T00:45:25.100Z] "CONNECT - HTTP/1.1" 403 - egress_denied{no_service_entry} - "-" 0 0 0 - "10.0.0.9" "psql" "-" "db.example.com:5432" "-" - - 10.44.1.23:8080 10.0.0.9:34300 - -
[2026-11-22T00:45:25.200Z] "- - -" 0 UH - - "-" 0 0 0 - "-" "-" "-" "-" "-" BlackHoleCluster - 192.0.2.80:443 10.0.0.7:51000 cdn.example.com -
"#;

const TEXT_LEARNED: &str = "\
# api.example.com: refused 2 times, asked for by 10.0.0.8, 10.0.0.9
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: api-example-com
spec:
  hosts:
  - api.example.com
  ports:
  - number: 80
    name: http
    protocol: HTTP
  - number: 443
    name: tls
    protocol: TLS
  location: MESH_EXTERNAL
  resolution: DNS
---
# cdn.example.com: refused once, asked for by 10.0.0.7
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: cdn-example-com
spec:
  hosts:
  - cdn.example.com
  ports:
  - number: 443
    name: tls
    protocol: TLS
  location: MESH_EXTERNAL
  resolution: DNS
---
# db.example.com: refused once, asked for by 10.0.0.9
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: db-example-com
spec:
  hosts:
  - db.example.com
  ports:
  - number: 5432
    name: tcp-5432
    protocol: TCP
  location: MESH_EXTERNAL
  resolution: DNS
---
# tls.example.com: refused once, asked for by 10.0.0.9
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: tls-example-com
spec:
  hosts:
  - tls.example.com
  ports:
  - number: 443
    name: tls
    protocol: TLS
  location: MESH_EXTERNAL
  resolution: DNS
";

/// Envoy's line of `reference/telemetry-and-operations.md` §4.2, and one that was served.
const JSON: &str = r#"{"authority":"unknown.example.com","bytes_received":0,"bytes_sent":0,"connection_termination_details":null,"downstream_local_address":"127.0.0.1:8080","downstream_remote_address":"127.0.0.1:34286","duration":0,"method":"GET","path":"/x","protocol":"HTTP/1.1","request_id":"a756ce42-0ca6-4890-b19d-f3fd4eb2bb2e","requested_server_name":null,"response_code":404,"response_code_details":"route_not_found","response_flags":"NR","route_name":null,"start_time":"2026-11-22T00:45:24.782Z","upstream_cluster":null,"upstream_host":null,"upstream_local_address":null,"upstream_service_time":null,"upstream_transport_failure_reason":null,"user_agent":"exp/1.0","x_forwarded_for":"192.0.2.2"}
{"authority":"known.example.com","downstream_local_address":"127.0.0.1:8080","downstream_remote_address":"127.0.0.1:34290","method":"GET","response_code":200,"response_code_details":"via_upstream","response_flags":"-","upstream_cluster":"outbound|80||known.example.com"}
"#;

const JSON_LEARNED: &str = "\
# unknown.example.com: refused once, asked for by 127.0.0.1
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: unknown-example-com
  namespace: team-1
spec:
  hosts:
  - unknown.example.com
  ports:
  - number: 80
    name: http
    protocol: HTTP
  location: MESH_EXTERNAL
  resolution: DNS
";

/// Our own log beside a JSON access log, and what is in neither.
const MIXED: &str = r#"2026-11-22T00:45:20.000000Z  INFO gateway::reload: loaded changed=3
2026-11-22T00:45:21.280123Z  WARN gateway::egress: egress denied host=api.example.com port=443 protocol=TLS allow={apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: api-example-com}, spec: {hosts: [api.example.com], ports: [{number: 443, name: tls, protocol: TLS}], location: MESH_EXTERNAL, resolution: DNS}}
{"timestamp":"2026-11-22T00:45:21.300Z","level":"WARN","fields":{"message":"egress denied","host":"192.0.2.7","port":5432,"protocol":"TCP"},"target":"gateway::egress"}
{"authority":"api.example.com:443","downstream_local_address":"10.44.1.23:8080","downstream_remote_address":"10.0.0.9:1","method":"CONNECT","response_code":403,"response_code_details":"egress_denied{no_service_entry}","response_flags":"-"}
{"authority":"localhost:8080","downstream_local_address":"10.44.1.23:8080","downstream_remote_address":"10.0.0.9:2","method":"GET","response_code":404,"response_code_details":"route_not_found","response_flags":"NR"}
somebody else's line
"#;

const MIXED_LEARNED: &str = "\
# api.example.com: refused once, asked for by 10.0.0.9
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: api-example-com
spec:
  hosts:
  - api.example.com
  ports:
  - number: 443
    name: tls
    protocol: TLS
  location: MESH_EXTERNAL
  resolution: DNS
---
# localhost: refused once, asked for by 10.0.0.9
# A name without a dot: check what the gateway's resolver makes of it.
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: localhost
spec:
  hosts:
  - localhost
  ports:
  - number: 8080
    name: http-8080
    protocol: HTTP
  location: MESH_EXTERNAL
  resolution: DNS
---
# 192.0.2.7: refused once
# An address, not a name: check whose it is.
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: '192--0--2--7-ip'
spec:
  hosts:
  - '192-0-2-7.ip'
  ports:
  - number: 5432
    name: tcp-5432
    protocol: TCP
  location: MESH_EXTERNAL
  addresses:
  - '192.0.2.7'
  resolution: STATIC
  endpoints:
  - address: '192.0.2.7'
";

struct Said {
    code: Option<i32>,
    out: String,
    errors: String,
}

/// Runs `fairlead egress learn` in `place`, perhaps with a file as its standard input.
async fn learn(place: &Path, arguments: &[&str], stdin: Option<&str>) -> Said {
    let mut command = fairlead(&["egress", "learn"]);
    command.args(arguments).current_dir(place);
    if let Some(file) = stdin {
        command.stdin(File::open(place.join(file)).unwrap());
    }
    let output = run(command).await;
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A directory with these logs.
fn logs(files: &[(&str, &str)]) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(&place.path().join(name), text);
    }
    place
}

/// Nobody has to repair what was learned.
async fn is_valid(place: &Path, yaml: &str) {
    write(&place.join("learned.yaml"), yaml);
    let mut command = fairlead(&["validate", "--strict", "learned.yaml"]);
    command.current_dir(place);
    let output = run(command).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "0 errors, 0 warnings\n", "{yaml}");
    assert!(output.status.success());
}

#[tokio::test]
async fn logs_become_valid_entries() {
    let place = logs(&[("text.log", TEXT), ("json.log", JSON), ("mixed.log", MIXED)]);
    let odd = "fairlead: lines not read, as their format isn't known: 1\n";
    for (arguments, stdin, expected, errors) in [
        (&["text.log"][..], None, TEXT_LEARNED, ""),
        (&["--namespace", "team-1"], Some("json.log"), JSON_LEARNED, ""),
        (&["-"], Some("mixed.log"), MIXED_LEARNED, odd),
        // A host in two files has one entry.
        (&["mixed.log", "mixed.log", "--min-count", "3"], None, "# Nothing that was refused is left.\n", ""),
    ] {
        let said = learn(place.path(), arguments, stdin).await;
        assert_eq!((said.code, said.out.as_str()), (Some(0), expected), "{arguments:?}: {}", said.errors);
        assert!(said.errors.starts_with(errors), "{arguments:?}: {}", said.errors);
        is_valid(place.path(), &said.out).await;
    }
}

#[tokio::test]
async fn what_is_left_out_is_said() {
    let place = logs(&[("text.log", TEXT), ("mixed.log", MIXED)]);
    let said = learn(place.path(), &["text.log", "mixed.log", "--min-count", "2"], None).await;
    let hosts: Vec<&str> = said.out.lines().filter(|line| line.starts_with("# ")).collect();
    // Twice in the first log, once in the second.
    assert_eq!(hosts, ["# api.example.com: refused 3 times, asked for by 10.0.0.8, 10.0.0.9"]);
    assert_eq!(
        said.errors,
        "fairlead: lines not read, as their format isn't known: 1\n\
         fairlead: hosts left out, as they were refused less than 2 times: 5\n"
    );
}

/// Hosts that try to break out of the YAML, of a comment or of the log.
#[tokio::test]
async fn hostile_hosts_are_left_out() {
    let long = "a".repeat(300);
    let refused = |authority: &str| {
        let authority = serde_json::to_string(authority).unwrap();
        format!("{{\"authority\":{authority},\"method\":\"GET\",\"response_flags\":\"NR\"}}\n")
    };
    let hostile = [
        "\"quoted\".example",
        "'quoted'.example",
        "a.example\n---\napiVersion: v1\nkind: Secret",
        "a.example\r\nb",
        "a.example\u{85}b",
        "a.example\u{2028}b",
        "{}",
        "{a: b}",
        "[a, b]",
        "a.example # c",
        "a.example: b",
        "*",
        "*.example.com",
        "&a",
        "!!binary a",
        "bücher.example",
        "a\u{0}b.example",
        "\u{1b}[31mred.example",
        "a b",
        "",
        long.as_str(),
    ];
    let lines: String = hostile.iter().map(|host| refused(host)).collect();
    // As text, where nothing is escaped; the line of 70,000 bytes isn't read at all.
    let text: Vec<String> = ["\"quoted\"", "{}", "bücher.example", "a' b", "- -", &"b".repeat(70_000)]
        .iter()
        .map(|host| TEXT.lines().nth(1).unwrap().replace("api.example.com", host) + "\n")
        .collect();
    let log = lines + &text.concat() + &refused("good.example");
    let place = logs(&[("access.log", log.as_str())]);
    let said = learn(place.path(), &["access.log"], None).await;
    assert_eq!(said.code, Some(0));
    assert_eq!(
        said.out,
        "\
# good.example: refused once
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: good-example
spec:
  hosts:
  - good.example
  ports:
  - number: 80
    name: http
    protocol: HTTP
  location: MESH_EXTERNAL
  resolution: DNS
"
    );
    assert_eq!(
        said.errors,
        "fairlead: lines not read, as they are longer than 65536 bytes: 1\n\
         fairlead: refusals left out, as they name no host that a ServiceEntry can have: 26\n"
    );
    is_valid(place.path(), &said.out).await;
}

#[tokio::test]
async fn exit_codes() {
    let place = logs(&[("empty.log", ""), ("json.log", JSON)]);
    for (arguments, code) in [
        (&["empty.log"][..], 0),
        (&[], 0),
        (&["json.log", "missing.log"], 1),
        (&["."], 1),
        (&["--min-count", "0"], 2),
        (&["--namespace", "No Name"], 2),
        (&["--nonsense"], 2),
    ] {
        let said = learn(place.path(), arguments, None).await;
        assert_eq!(said.code, Some(code), "{arguments:?}: {}", said.errors);
        let out = if code == 0 { "# Nothing was refused.\n" } else { "" };
        assert_eq!((said.out.as_str(), said.errors.is_empty()), (out, code == 0), "{arguments:?}: {}", said.errors);
    }
}
