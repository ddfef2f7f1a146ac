//! Names of certificates against configured ones.

use std::net::IpAddr;

use rustls_pki_types::ServerName;

use crate::certificate::SubjectAltName;

/// Whether one of `names`, of any type, is `wanted`, as Envoy compares them: DNS names in any case, and `*.x` also stands
/// for one label before `.x`, though not of an IP address; URIs and e-mail addresses exactly. The common name does not
/// count.
pub(super) fn matches(names: &[SubjectAltName], wanted: &str) -> bool {
    let wanted_address: Option<IpAddr> = wanted.parse().ok();
    names.iter().any(|name| match name {
        SubjectAltName::Dns(name) => {
            name.eq_ignore_ascii_case(wanted) || wanted_address.is_none() && covers(name, wanted)
        }
        SubjectAltName::Uri(name) | SubjectAltName::Email(name) => **name == *wanted,
        SubjectAltName::Ip(address) => wanted_address == Some(*address),
    })
}

/// Whether `names` are those of a server: its host name among the DNS names, its address among the addresses.
pub(super) fn are_of(names: &[SubjectAltName], server: &ServerName<'_>) -> bool {
    names.iter().any(|name| match (name, server) {
        (SubjectAltName::Dns(name), ServerName::DnsName(host)) => {
            name.eq_ignore_ascii_case(host.as_ref()) || covers(name, host.as_ref())
        }
        (SubjectAltName::Ip(name), ServerName::IpAddress(address)) => *name == IpAddr::from(*address),
        _ => false,
    })
}

fn covers(pattern: &str, wanted: &str) -> bool {
    let Some(suffix) = pattern.strip_prefix("*.") else { return false };
    wanted.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(suffix))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn names() -> Vec<SubjectAltName> {
        vec![
            SubjectAltName::Dns("up.com".into()),
            SubjectAltName::Dns("*.2.3.4".into()),
            SubjectAltName::Dns("10.0.0.9".into()),
            SubjectAltName::Uri("uri.com".into()),
            SubjectAltName::Email("mail.com".into()),
            SubjectAltName::Ip("2001:db8::1".parse().unwrap()),
        ]
    }

    #[test]
    fn addresses_in_lists() {
        for wanted in ["2001:db8::1", "2001:DB8::1", "2001:db8:0:0:0:0:0:1", "uri.com", "mail.com", "10.0.0.9"] {
            assert!(matches(&names(), wanted), "{wanted}");
        }
        for wanted in ["1.2.3.4", "2001:db8::2"] {
            assert!(!matches(&names(), wanted), "{wanted}");
        }
    }

    #[test]
    fn servers_have_names_of_their_own_type() {
        let check = |server: &str| are_of(&names(), &ServerName::try_from(server).unwrap());
        for server in ["UP.com", "2001:db8:0::1"] {
            assert!(check(server), "{server}");
        }
        for server in ["uri.com", "mail.com", "1.2.3.4", "10.0.0.9"] {
            assert!(!check(server), "{server}");
        }
    }
}
