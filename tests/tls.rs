//! TLS at the edge and towards upstreams: modes, selection, credentials, rotation.

mod credentials;
mod drain;
mod facts;
mod keys;

mod modes;
mod parameters;
mod resumption;
mod rotation;
mod scan;
mod selection;
mod upstream;
mod xfcc;

use std::net::SocketAddr;

use crate::harness::mesh::Mesh;

/// Alerts of RFC 8446 §6 and RFC 6066 §9.
mod alert {
    pub const HANDSHAKE_FAILURE: u8 = 40;
    pub const UNSUPPORTED_CERTIFICATE: u8 = 43;
    pub const CERTIFICATE_REVOKED: u8 = 44;
    pub const CERTIFICATE_EXPIRED: u8 = 45;
    pub const CERTIFICATE_UNKNOWN: u8 = 46;
    pub const UNKNOWN_CA: u8 = 48;
    pub const PROTOCOL_VERSION: u8 = 70;
    pub const BAD_CERTIFICATE_HASH_VALUE: u8 = 114;
    pub const CERTIFICATE_REQUIRED: u8 = 116;
}

/// An HTTPS server on port 443 for this host, with this YAML as its `tls`.
fn https(host: &str, tls: &str) -> String {
    server(443, "HTTPS", host, tls)
}

/// A server with `tls`. Its port is named after the host.
fn server(port: u16, protocol: &str, host: &str, tls: &str) -> String {
    let name = host.replace('*', "any").replace(['.', '/'], "-").to_lowercase();
    let class = protocol.to_lowercase();
    format!(
        "- port: {{number: {port}, name: {class}-{port}-{name}, protocol: {protocol}}}\n  hosts: [{host:?}]\n  \
         tls: {tls}\n"
    )
}

/// A mesh with these servers, whose every request goes to `upstream`.
fn edge(servers: &str, ports: &[u16], upstream: SocketAddr) -> Mesh {
    Mesh::new().servers(servers, ports).http("up.test", &[upstream]).route("*", "up.test")
}
