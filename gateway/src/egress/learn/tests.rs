#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

/// A refused request in Istio's default JSON format, as far as it matters.
fn json(method: &str, authority: &str, client: &str) -> String {
    let authority = serde_json::to_string(authority).unwrap();
    format!(
        "{{\"method\":\"{method}\",\"authority\":{authority},\"response_flags\":\"NR\",\
         \"downstream_remote_address\":\"{client}:1000\"}}\n"
    )
}

fn denial(host: &str, port: u16, protocol: &str) -> String {
    format!("2026-11-22T00:45:21Z  WARN gateway::egress: egress denied host={host} port={port} protocol={protocol}\n")
}

fn learn(log: &str) -> Learner {
    let mut learner = Learner::default();
    learner.read(log.as_bytes()).unwrap();
    learner
}

/// The notes of all hosts.
fn notes(log: &str) -> Vec<String> {
    learn(log).learned(1).flat_map(|learned| learned.notes).collect()
}

#[test]
fn a_host_has_one_entry_with_all_its_ports() {
    let log = [
        json("CONNECT", "b.example:443", "10.0.0.1"),
        json("GET", "B.EXAMPLE.", "10.0.0.2"),
        json("CONNECT", "a.example:5432", "10.0.0.1"),
        json("CONNECT", "192.0.2.7:443", "10.0.0.1"),
        json("CONNECT", "b.example:443", "10.0.0.1"),
    ];
    let mut out = Vec::new();
    learn(&log.concat()).write(1, Some(&"shop".parse().unwrap()), &mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "\
# a.example: refused once, asked for by 10.0.0.1
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: a-example
  namespace: shop
spec:
  hosts:
  - a.example
  ports:
  - number: 5432
    name: tcp-5432
    protocol: TCP
  location: MESH_EXTERNAL
  resolution: DNS
---
# b.example: refused 3 times, asked for by 10.0.0.1, 10.0.0.2
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: b-example
  namespace: shop
spec:
  hosts:
  - b.example
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
# 192.0.2.7: refused once, asked for by 10.0.0.1
# An address, not a name: check whose it is.
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: '192--0--2--7-ip'
  namespace: shop
spec:
  hosts:
  - '192-0-2-7.ip'
  ports:
  - number: 443
    name: tls
    protocol: TLS
  location: MESH_EXTERNAL
  addresses:
  - '192.0.2.7'
  resolution: STATIC
  endpoints:
  - address: '192.0.2.7'
"
    );
}

#[test]
fn what_is_doubtful_is_noted() {
    for (line, expected) in [
        (json("GET", "db", "10.0.0.1"), "A name without a dot: check what the gateway's resolver makes of it."),
        (json("GET", "203.0.113.1", "10.0.0.1"), "An address, not a name: check whose it is."),
        (
            json("GET", "169.254.169.254", "10.0.0.1"),
            "An address of the gateway's own machine or link, as metadata services have: check it.",
        ),
        (
            "{\"response_flags\":\"NR\",\"requested_server_name\":\"a.example\",\
             \"downstream_local_address\":\"10.0.0.1:8443\"}"
                .to_owned(),
            "Port 8443 is the gateway's own: check which one the host has.",
        ),
        (
            denial("a.example", 443, "HTTP") + &denial("a.example", 443, "TLS") + &denial("a.example", 443, "TLS"),
            "Port 443 was asked for as HTTP, too; a port has one protocol.",
        ),
    ] {
        assert_eq!(notes(&line).get(1).map(String::as_str), Some(expected), "{line}");
    }
    assert_eq!(notes(&denial("a.example", 443, "TLS")), ["a.example: refused once"]);
}

#[test]
fn the_most_frequent_protocol_of_a_port_counts() {
    let log = denial("a.example", 443, "HTTP") + &denial("a.example", 443, "TLS") + &denial("a.example", 443, "TLS");
    let learned: Vec<_> = learn(&log).learned(1).collect();
    let line = learned[0].entry.one_line();
    assert!(line.contains("ports: [{number: 443, name: tls, protocol: TLS}]"), "{line}");
}

#[test]
fn five_sources_are_named_and_64_counted() {
    let log = |clients: u8| (1..=clients).map(|client| json("GET", "a.b", &format!("10.0.0.{client}"))).collect();
    for (clients, expected) in [
        (5, "a.b: refused 5 times, asked for by 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5"),
        (7, "a.b: refused 7 times, asked for by 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5 and 2 more"),
        (64, "a.b: refused 64 times, asked for by 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5 and 59 more"),
        (
            65,
            "a.b: refused 65 times, asked for by 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5 and at least 59 more",
        ),
    ] {
        let log: String = log(clients);
        assert_eq!(notes(&log), [expected]);
    }
}

#[test]
fn a_refusal_in_both_logs_counts_once() {
    let log = json("CONNECT", "a.example:443", "10.0.0.1") + &denial("a.example", 443, "TLS");
    assert_eq!(notes(&log), ["a.example: refused once, asked for by 10.0.0.1"]);
}

#[test]
fn rare_hosts_can_be_left_out() {
    let log = denial("a.example", 443, "TLS") + &denial("b.example", 443, "TLS") + &denial("b.example", 80, "HTTP");
    let learner = learn(&log);
    let hosts: Vec<String> = learner.learned(2).map(|learned| learned.entry.host().to_string()).collect();
    assert_eq!((hosts, learner.below(2)), (vec!["b.example".to_owned()], 1));
}

#[test]
fn a_log_without_refusals_gives_a_comment() {
    for (log, minimum, expected) in [
        ("".to_owned(), 1, "# Nothing was refused.\n"),
        (denial("a.example", 443, "TLS"), 2, "# Nothing that was refused is left.\n"),
        (denial("{}", 443, "TLS"), 1, "# Nothing that was refused is left.\n"),
    ] {
        let mut out = Vec::new();
        learn(&log).write(minimum, None, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{log}");
    }
}

#[test]
fn long_lines_are_skipped_and_counted() {
    let line = json("GET", "a.example", "10.0.0.1");
    let padded = |length: usize| {
        let padding = length - (line.len() - 1);
        line.replacen('{', &format!("{{{}", " ".repeat(padding)), 1)
    };
    let last = denial("b.example", 443, "TLS");
    for (length, hosts, long) in [(MAX_LINE, 2, 0), (MAX_LINE + 1, 1, 1), (3 * MAX_LINE, 1, 1)] {
        let learner = learn(&(padded(length) + &last));
        let expected = Omitted { long, ..Omitted::default() };
        assert_eq!((learner.learned(1).count(), learner.omitted), (hosts, expected), "{length}");
    }
    // Without an end.
    let learner = learn(padded(MAX_LINE + 1).trim_end());
    assert_eq!(learner.omitted, Omitted { long: 1, ..Omitted::default() });
    let learner = learn(padded(MAX_LINE).trim_end());
    assert_eq!(learner.omitted, Omitted::default());
}

#[test]
fn what_is_in_no_entry_is_counted() {
    let log = b"nonsense\n\xff\xfe\n\r\n".to_vec();
    let mut learner = Learner::default();
    learner.read([log, json("GET", "b\u{fc}cher.example", "10.0.0.1").into_bytes()].concat().as_slice()).unwrap();
    assert_eq!(learner.omitted, Omitted { unreadable: 2, nameless: 1, ..Omitted::default() });
    assert!(!learner.is_empty());
}

#[test]
fn hosts_and_ports_are_bounded() {
    let mut log: String = (0..=MAX_HOSTS).map(|host| denial(&format!("h{host}.example"), 443, "TLS")).collect();
    log += &denial("h0.example", 443, "TLS");
    let learner = learn(&log);
    assert_eq!(learner.learned(1).count(), MAX_HOSTS);
    assert_eq!(learner.omitted, Omitted { beyond: 1, ..Omitted::default() });

    let log: String = (1..=300).map(|port| denial("a.example", port, "TCP")).collect();
    let learner = learn(&log);
    assert_eq!(learner.omitted, Omitted { beyond: 300 - 256, ..Omitted::default() });
    let entry = learner.learned(1).next().unwrap().entry.document();
    assert_eq!(entry.matches("number:").count(), 256);
}
