//! The header of the PROXY protocol, versions 1 and 2: what a load balancer in front says of the client's connection.
//!
//! Source: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, with Envoy's choices where that leaves any.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::stream::Socket;

/// What version 1 begins with.
const V1_SIGNATURE: &[u8] = b"PROXY ";
/// Longest line of version 1, its line end included.
const V1_MAX_LENGTH: usize = 107;
/// What version 2 begins with.
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family and length.
const V2_FIXED_LENGTH: usize = 16;

/// The ends of the client's connection with the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
}

/// Why a connection can't be served: it has to begin with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It begins with something else.
    #[error("no PROXY protocol header")]
    Missing,
    /// It begins as a header does and goes on as none.
    #[error("malformed PROXY protocol header")]
    Malformed,
    /// It ended within the header, or before.
    #[error("connection ended before its PROXY protocol header did")]
    Ended,
}

/// Reads the header that a connection begins with; what comes behind it stays for the next reader. Without addresses in it
/// (`LOCAL`, `UNKNOWN` and families other than IP) those of the connection itself hold.
///
/// How long it may take is the caller's to say; how much, is bounded.
///
/// # Errors
/// There is no such header. The connection is of no use then.
pub async fn read(socket: &mut Socket) -> Result<Option<ProxyHeader>, Invalid> {
    let Parsed { header, length } = loop {
        if let Some(parsed) = parse(socket.ahead())? {
            break parsed;
        }
        fill(socket).await?;
    };
    // What stands behind the addresses says nothing that is needed here.
    let mut left = length;
    loop {
        let skipped = left.min(socket.ahead().len());
        socket.consume(skipped);
        left -= skipped;
        if left == 0 {
            return Ok(header);
        }
        fill(socket).await?;
    }
}

async fn fill(socket: &mut Socket) -> Result<(), Invalid> {
    match socket.fill().await {
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(Invalid::Ended),
    }
}

/// A header that was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    /// `None`: the connection's own addresses hold.
    pub header: Option<ProxyHeader>,
    /// Bytes of the whole header, which may be more than were there.
    pub length: usize,
}

/// The header at the start of `bytes`; `None` if more bytes are needed.
///
/// # Errors
/// No bytes that follow could make it a header.
pub fn parse(bytes: &[u8]) -> Result<Option<Parsed>, Invalid> {
    let begins = |signature: &[u8]| bytes.iter().zip(signature).all(|(byte, expected)| byte == expected);
    if begins(V2_SIGNATURE) {
        parse_v2(bytes)
    } else if begins(V1_SIGNATURE) {
        parse_v1(bytes)
    } else {
        Err(Invalid::Missing)
    }
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n`
fn parse_v1(bytes: &[u8]) -> Result<Option<Parsed>, Invalid> {
    let within = &bytes[..bytes.len().min(V1_MAX_LENGTH)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_MAX_LENGTH { Ok(None) } else { Err(Invalid::Malformed) };
    };
    let line = std::str::from_utf8(&within[V1_SIGNATURE.len()..end]).map_err(|_| Invalid::Malformed)?;
    let mut words = line.split(' ');
    let header = match words.next() {
        Some("UNKNOWN") => None,
        Some(family @ ("TCP4" | "TCP6")) => {
            let mut address = || {
                let word = words.next()?;
                let ip: IpAddr = word.parse().ok()?;
                (ip.is_ipv4() == (family == "TCP4")).then_some(ip)
            };
            let (source, destination) = (address(), address());
            let mut port = || words.next().and_then(port);
            let (source_port, destination_port) = (port(), port());
            let source = source.zip(source_port).ok_or(Invalid::Malformed)?;
            let destination = destination.zip(destination_port).ok_or(Invalid::Malformed)?;
            if words.next().is_some() {
                return Err(Invalid::Malformed);
            }
            Some(ProxyHeader::new(source, destination)?)
        }
        _ => return Err(Invalid::Malformed),
    };
    Ok(Some(Parsed { header, length: end + 2 }))
}

/// Decimal digits and nothing else.
fn port(word: &str) -> Option<u16> {
    word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok())?
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Parsed>, Invalid> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED_LENGTH>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let parsed = |header| Ok(Some(Parsed { header, length: V2_FIXED_LENGTH + length }));
    match (command, family) {
        // LOCAL: the balancer speaks for itself.
        (0x20, _) => parsed(None),
        // PROXY over TCP or UDP, with IPv4.
        (0x21, 0x11 | 0x12) => match rest.first_chunk::<12>() {
            _ if length < 12 => Err(Invalid::Malformed),
            None => Ok(None),
            Some(&[a, b, c, d, e, f, g, h, ports @ ..]) => parsed(Some(ProxyHeader::v2(
                Ipv4Addr::new(a, b, c, d).into(),
                Ipv4Addr::new(e, f, g, h).into(),
                ports,
            )?)),
        },
        // With IPv6.
        (0x21, 0x21 | 0x22) => match rest.first_chunk::<36>() {
            _ if length < 36 => Err(Invalid::Malformed),
            None => Ok(None),
            Some(addresses) => {
                let address = |at: usize| {
                    let mut octets = [0; 16];
                    octets.copy_from_slice(&addresses[at..at + 16]);
                    Ipv6Addr::from(octets).into()
                };
                let [.., a, b, c, d] = *addresses;
                parsed(Some(ProxyHeader::v2(address(0), address(16), [a, b, c, d])?))
            }
        },
        // Unspecified, or unix sockets.
        (0x21, 0x00 | 0x31 | 0x32) => parsed(None),
        _ => Err(Invalid::Malformed),
    }
}

impl ProxyHeader {
    fn v2(source: IpAddr, destination: IpAddr, [a, b, c, d]: [u8; 4]) -> Result<Self, Invalid> {
        Self::new((source, u16::from_be_bytes([a, b])), (destination, u16::from_be_bytes([c, d])))
    }

    /// Only what can be an end of a TCP connection, as Envoy has it.
    fn new(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Result<Self, Invalid> {
        if !is_unicast(source.0) || !is_unicast(destination.0) {
            return Err(Invalid::Malformed);
        }
        Ok(Self { source: source.into(), destination: destination.into() })
    }
}

fn is_unicast(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    fn header(source: &str, destination: &str) -> Option<ProxyHeader> {
        Some(ProxyHeader { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, payload].concat()
    }

    /// 9.8.7.6:1234 to 10.0.0.1:443.
    const IPV4: [u8; 12] = [9, 8, 7, 6, 10, 0, 0, 1, 4, 210, 1, 187];

    #[test]
    fn both_versions_tell_the_ends() {
        let mut ipv6 = [0; 36];
        ipv6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        ipv6[15] = 1;
        ipv6[16..20].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        ipv6[31] = 2;
        ipv6[32..].copy_from_slice(&[4, 210, 1, 187]);
        let with_tlv = [&IPV4[..], &[0x04, 0, 3, 0, 0, 0]].concat();
        let v4 = header("9.8.7.6:1234", "10.0.0.1:443");
        let v6 = header("[2001:db8::1]:1234", "[2001:db8::2]:443");
        for (bytes, expected) in [
            (b"PROXY TCP4 9.8.7.6 10.0.0.1 1234 443\r\n".to_vec(), v4),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 1234 443\r\n".to_vec(), v6),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 whatever\r\n".to_vec(), None),
            (v2(0x21, 0x11, &IPV4), v4),
            (v2(0x21, 0x21, &ipv6), v6),
            (v2(0x21, 0x11, &with_tlv), v4),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &IPV4), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x31, &[1; 216]), None),
        ] {
            let length = bytes.len();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert_eq!(parse(&bytes), Ok(Some(Parsed { header: expected, length })), "{text:?}");
            let followed = [&bytes[..], b"GET"].concat();
            assert_eq!(parse(&followed), Ok(Some(Parsed { header: expected, length })), "{text:?}");
            let known = (0..length).find(|&end| parse(&bytes[..end]) != Ok(None));
            assert!(known.is_none_or(|end| end >= V2_FIXED_LENGTH), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_refused_as_soon_as_it_shows() {
        let long = [b"PROXY UNKNOWN ", &[b'x'; 107][..]].concat();
        for (bytes, expected) in [
            (b"G".to_vec(), Invalid::Missing),
            (b"\x16\x03\x01".to_vec(), Invalid::Missing),
            (b"PROXY\tTCP4".to_vec(), Invalid::Missing),
            (b"\r\n\r\nX".to_vec(), Invalid::Missing),
            (b"PROXY TCP4 9.8.7.6 10.0.0.1 1234\r\n".to_vec(), Invalid::Malformed),
            (b"PROXY TCP4 9.8.7.6 10.0.0.1 1234 443 x\r\n".to_vec(), Invalid::Malformed),
            (b"PROXY TCP4  9.8.7.6 10.0.0.1 1234 443\r\n".to_vec(), Invalid::Malformed),
            (b"PROXY TCP4 9.8.7.6 10.0.0.1 +1 443\r\n".to_vec(), Invalid::Malformed),
            (b"PROXY TCP4 9.8.7.6 10.0.0.1 70000 443\r\n".to_vec(), Invalid::Malformed),
            (b"PROXY TCP4 ::1 ::1 1234 443\r\n".to_vec(), Invalid::Malformed),
            (b"PROXY TCP4 0.0.0.0 10.0.0.1 1234 443\r\n".to_vec(), Invalid::Malformed),
            (b"PROXY TCP4 9.8.7.6 224.0.0.1 1234 443\r\n".to_vec(), Invalid::Malformed),
            (b"PROXY UDP4 9.8.7.6 10.0.0.1 1234 443\r\n".to_vec(), Invalid::Malformed),
            (b"PROXY \r\n".to_vec(), Invalid::Malformed),
            (long, Invalid::Malformed),
            (v2(0x11, 0x11, &IPV4), Invalid::Malformed),
            (v2(0x22, 0x11, &IPV4), Invalid::Malformed),
            (v2(0x21, 0x41, &IPV4), Invalid::Malformed),
            (v2(0x21, 0x11, &IPV4[..11]), Invalid::Malformed),
            (v2(0x21, 0x21, &IPV4), Invalid::Malformed),
        ] {
            assert_eq!(parse(&bytes), Err(expected), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }

    #[tokio::test]
    async fn what_follows_the_header_is_left_for_the_next_reader() {
        let tlvs = [&IPV4[..], &[0xe0; 3000]].concat();
        for bytes in [b"PROXY TCP4 9.8.7.6 10.0.0.1 1234 443\r\n".to_vec(), v2(0x21, 0x11, &tlvs)] {
            for size in [1, 7, 1000, 10_000] {
                let whole = [&bytes[..], b"GET / HTTP/1.1"].concat();
                let (mut client, server) = UnixStream::pair().unwrap();
                let send = async move {
                    for piece in whole.chunks(size) {
                        client.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                };
                let receive = async {
                    let mut server = Socket::from(server);
                    let header = read(&mut server).await.unwrap();
                    let mut rest = Vec::new();
                    server.read_to_end(&mut rest).await.unwrap();
                    (header, rest)
                };
                let ((), (header, rest)) = tokio::join!(send, receive);
                assert_eq!(header.unwrap().source, "9.8.7.6:1234".parse().unwrap());
                assert_eq!(rest, b"GET / HTTP/1.1");
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_too_early_has_no_header() {
        for bytes in [&b""[..], b"PROXY TCP4 9.8.7.6", &v2(0x21, 0x11, &IPV4)[..20]] {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(bytes).await.unwrap();
            drop(client);
            assert_eq!(read(&mut server.into()).await, Err(Invalid::Ended));
        }
    }
}
