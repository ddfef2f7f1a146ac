//! The PROXY protocol header that tells an upstream whose connection it is.
//!
//! Source: <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt> §2; `reference/networking.md` §5.8.

use std::net::{IpAddr, SocketAddr};

use config::snapshot::cluster::ProxyProtocol;

/// A client's connection to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientConnection {
    /// The client; `None` on unix sockets.
    pub remote: Option<SocketAddr>,
    /// What it is connected to.
    pub local: Option<SocketAddr>,
}

/// Begins a header of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and whether the header tells of a client or only of ourselves.
const PROXY: u8 = 0x21;
const LOCAL: u8 = 0x20;
/// TCP over IPv4 and IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

impl ClientConnection {
    /// The header for it. Without two addresses of one family it says that nothing is known.
    pub fn header(&self, version: ProxyProtocol) -> Vec<u8> {
        let ends = self.remote.zip(self.local).filter(|(remote, local)| remote.is_ipv4() == local.is_ipv4());
        match version {
            ProxyProtocol::V1 => match ends {
                None => b"PROXY UNKNOWN\r\n".to_vec(),
                Some((remote, local)) => {
                    let family = if remote.is_ipv4() { "TCP4" } else { "TCP6" };
                    let (from, to) = (remote.ip(), local.ip());
                    format!("PROXY {family} {from} {to} {} {}\r\n", remote.port(), local.port()).into_bytes()
                }
            },
            ProxyProtocol::V2 => {
                let mut header = SIGNATURE.to_vec();
                let Some((remote, local)) = ends else {
                    header.extend([LOCAL, 0, 0, 0]);
                    return header;
                };
                header.extend(if remote.is_ipv4() { [PROXY, TCP4, 0, 12] } else { [PROXY, TCP6, 0, 36] });
                for address in [remote.ip(), local.ip()] {
                    match address {
                        IpAddr::V4(ip) => header.extend(ip.octets()),
                        IpAddr::V6(ip) => header.extend(ip.octets()),
                    }
                }
                header.extend(remote.port().to_be_bytes());
                header.extend(local.port().to_be_bytes());
                header
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn connection(remote: &str, local: &str) -> ClientConnection {
        ClientConnection { remote: remote.parse().ok(), local: local.parse().ok() }
    }

    /// `upstream/proxy-protocol-*` of the observed data.
    #[test]
    fn ipv4_is_written_as_envoy_writes_it() {
        let four = connection("127.0.0.1:59914", "127.0.0.1:21500");
        assert_eq!(four.header(ProxyProtocol::V1), b"PROXY TCP4 127.0.0.1 127.0.0.1 59914 21500\r\n");
        assert_eq!(
            four.header(ProxyProtocol::V2),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\xea\x0a\x53\xfc"
        );
    }

    #[test]
    fn ipv6_and_unknown_have_their_forms() {
        let six = connection("[2001:db8::1]:1", "[::1]:2");
        assert_eq!(six.header(ProxyProtocol::V1), b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n");
        let header = six.header(ProxyProtocol::V2);
        assert_eq!((header.len(), &header[12..16]), (16 + 36, &[0x21, 0x21, 0, 36][..]));
        assert_eq!(header[48..], [0, 1, 0, 2]);
        for unknown in [connection("", ""), connection("127.0.0.1:1", "[::1]:2")] {
            assert_eq!(unknown.header(ProxyProtocol::V1), b"PROXY UNKNOWN\r\n");
            assert_eq!(unknown.header(ProxyProtocol::V2)[12..], [0x20, 0, 0, 0]);
        }
    }
}
