//! Names of certificates against configured ones.

use crate::certificate::SubjectAltName;

/// Whether one of `names` is `wanted`, as Envoy compares them: DNS names in any case, and `*.x` also stands for one label
/// before `.x`; everything else exactly. The common name does not count.
pub(super) fn matches(names: &[SubjectAltName], wanted: &str) -> bool {
    names.iter().any(|name| match name {
        SubjectAltName::Dns(name) => name.eq_ignore_ascii_case(wanted) || covers(name, wanted),
        SubjectAltName::Uri(name) | SubjectAltName::Email(name) => **name == *wanted,
        SubjectAltName::Ip(address) => address.to_string() == wanted,
    })
}

fn covers(pattern: &str, wanted: &str) -> bool {
    let Some(suffix) = pattern.strip_prefix("*.") else { return false };
    wanted.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(suffix))
}
