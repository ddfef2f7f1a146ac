//! Which addresses a name that a client chose may stand for.
//!
//! Whoever owns a name decides where it points to: at this machine, at the cloud's metadata service, into the cluster.
//! So only public addresses are connected to, but for ranges that the operator names (`--egress-allow`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Ranges that are not public. Source: IANA's special-purpose address registries (RFC 6890 and its updates).
const NOT_PUBLIC_V4: [(Ipv4Addr, u8); 15] = [
    // This network, private, carrier-grade NAT, loopback, link-local.
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    // Protocol assignments, documentation, 6to4 relays, private, benchmarks, documentation.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, reserved with broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Global unicast, and what is set aside in it: protocol assignments with Teredo, documentation, 6to4.
const PUBLIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const NOT_PUBLIC_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Addresses that may be connected to.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    allowed: Vec<IpNet>,
}

impl AddressPolicy {
    /// Public addresses and those in `allowed`.
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// Whether `ip` may be connected to. IPv4 in IPv6 counts as what it stands for.
    pub fn allows(&self, ip: IpAddr) -> bool {
        let ip = plain(ip);
        self.allowed.iter().any(|range| range.contains(&ip)) || is_public(ip)
    }
}

/// The IPv4 address that is written as one of IPv6: mapped, or behind the well-known prefix of NAT64.
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = ip else { return ip };
    if let Some(four) = six.to_ipv4_mapped() {
        return IpAddr::V4(four);
    }
    match six.octets() {
        [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        _ => ip,
    }
}

fn is_public(ip: IpAddr) -> bool {
    let within = |range: &IpNet| range.contains(&ip);
    match ip {
        IpAddr::V4(_) => !NOT_PUBLIC_V4.iter().any(|&(start, length)| is_range(start.into(), length, within)),
        IpAddr::V6(_) => {
            is_range(PUBLIC_V6.0.into(), PUBLIC_V6.1, within)
                && !NOT_PUBLIC_V6.iter().any(|&(start, length)| is_range(start.into(), length, within))
        }
    }
}

fn is_range(start: IpAddr, length: u8, within: impl Fn(&IpNet) -> bool) -> bool {
    IpNet::new(start, length).is_ok_and(|range| within(&range))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_connected_to() {
        let policy = AddressPolicy::default();
        for public in ["1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "223.255.255.255"] {
            assert!(policy.allows(public.parse().unwrap()), "{public}");
        }
        for public in ["2606:4700::1111", "2a00::1", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"] {
            assert!(policy.allows(public.parse().unwrap()), "{public}");
        }
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "100::1",
        ] {
            assert!(!policy.allows(private.parse().unwrap()), "{private}");
        }
    }

    #[test]
    fn operators_may_name_more() {
        let policy = AddressPolicy::new(vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/32".parse().unwrap()]);
        for (ip, expected) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("fd00:1::9", true),
            ("fd00:2::9", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(policy.allows(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
