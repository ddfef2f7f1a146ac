//! Connections that are not HTTP: raw TCP, TLS that ends here, TLS that passes through.

mod proxying;
mod routes;
mod transfer;

use crate::harness::gateway::LogLine;

/// Bytes received from the client and sent to it, as the access log counts them.
fn counted(line: &LogLine) -> (u64, u64) {
    (line.fields()[7].parse().unwrap(), line.fields()[8].parse().unwrap())
}

/// `tcp` servers on these ports, for all hosts.
pub(crate) fn servers(ports: &[u16]) -> String {
    let server = |port| format!("- port: {{number: {port}, name: tcp-{port}, protocol: TCP}}\n  hosts: ['*']\n");
    ports.iter().map(server).collect()
}

/// A route of a VirtualService for connections to this port.
pub(crate) fn to(port: u16, host: &str) -> String {
    format!("- match: [{{port: {port}}}]\n  route: [{{destination: {{host: {host}}}}}]\n")
}
