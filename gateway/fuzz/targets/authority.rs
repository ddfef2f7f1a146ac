//! Authorities: what is taken for a host is one that everybody reads alike, and reads the same again.
#![no_main]

use std::net::IpAddr;

use gateway::egress::host::{Host, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|authority: &[u8]| {
    let Ok(Target { host, port }) = Target::parse(authority) else { return };
    assert_ne!(port, Some(0));
    if let Host::Name(name) = &host {
        assert!(name.parse::<IpAddr>().is_err(), "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)));
        assert!(name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len())), "{name}");
    }
    let text = match (&host, port) {
        (Host::Ip(IpAddr::V6(ip)), Some(port)) => format!("[{ip}]:{port}"),
        (Host::Ip(IpAddr::V6(ip)), None) => format!("[{ip}]"),
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_string(),
    };
    assert_eq!(Target::parse(text.as_bytes()), Ok(Target { host, port }), "{text}");
});
