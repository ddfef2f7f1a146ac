//! Rules of single values. Each adds a finding at `path` if the value breaks it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{Findings, keyed};
use crate::snapshot::matcher::Pattern;
use crate::tls_lists::Usable;

/// At least a millisecond, and whole milliseconds.
pub(super) fn duration(path: &str, duration: Option<Duration>, findings: &mut Findings) {
    let Some(duration) = duration else { return };
    if duration < Duration::from_millis(1) {
        findings.error(path, "must be at least 1ms");
    } else if duration.subsec_nanos() % 1_000_000 != 0 {
        findings.error(path, "must be a whole number of milliseconds");
    }
}

/// Like [`duration`], where zero switches something off.
pub(super) fn duration_or_zero(path: &str, value: Option<Duration>, findings: &mut Findings) {
    if value != Some(Duration::ZERO) {
        duration(path, value, findings);
    }
}

pub(super) fn port(path: &str, port: u32, findings: &mut Findings) {
    if !(1..=65_535).contains(&port) {
        findings.error(path, format!("{port} is no port: it must be from 1 to 65535"));
    }
}

/// From 0 to 100, with a resolution of a millionth.
pub(super) fn percentage(path: &str, value: f64, findings: &mut Findings) {
    if !(value == 0.0 || (0.0001..=100.0).contains(&value)) {
        findings.error(path, format!("{value} is no percentage: it must be 0, or from 0.0001 to 100"));
    }
}

pub(super) fn not_negative(path: &str, value: i32, findings: &mut Findings) {
    if value < 0 {
        findings.error(path, "must not be negative");
    }
}

/// RE2, at most 1024 bytes.
pub(super) fn regex(path: &str, text: &str, findings: &mut Findings) {
    if text.is_empty() {
        findings.error(path, "a regular expression must not be empty");
    } else if text.len() > 1024 {
        findings.error(path, format!("the regular expression has {} bytes, the limit is 1024", text.len()));
    } else if let Err(error) = Pattern::new(text) {
        let message = error.to_string();
        // The last line says what is wrong; those above draw the expression.
        let reason = message.lines().last().unwrap_or_default().trim_start_matches("error: ");
        findings.error(path, format!("not a regular expression: {reason}"));
    }
}

/// `cipherSuites` and `ecdhCurves`, of which `usable` is left.
pub(super) fn tls_list<T>(path: &str, names: &[String], usable: &Usable<T>, findings: &mut Findings) {
    for (index, reason) in &usable.dropped {
        findings.warning(format!("{path}[{index}]"), format!("{reason}: it is left out"));
    }
    if usable.items.is_empty() && names.iter().any(|name| !name.is_empty()) {
        findings.warning(path, "nothing in this list can be offered: the defaults are in its place");
    }
}

/// A name or `*.name` or `*name`, or `*`.
pub(super) fn is_wildcard_domain(domain: &str) -> bool {
    if domain == "*" {
        return true;
    }
    let Some(rest) = domain.strip_prefix('*') else { return is_fqdn(domain) };
    match rest.strip_prefix('.') {
        Some(parent) => is_fqdn(parent),
        // What stands beside the star may begin with `-`.
        None => is_fqdn(rest.strip_prefix('-').unwrap_or(rest)),
    }
}

/// Source: `pkg/config/validation/agent`, `ValidateFQDN`.
pub(super) fn is_fqdn(name: &str) -> bool {
    if name.is_empty() || name.len() > 255 {
        return false;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let all_digits = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').all(is_dns_label) && !name.rsplit('.').next().is_some_and(all_digits)
}

/// 1 to 63 letters, digits and inner `-`.
pub(super) fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

pub(super) fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

pub(super) fn is_ip_or_cidr(text: &str) -> bool {
    is_ip(text) || text.parse::<IpNet>().is_ok()
}

/// A path, or `@` and a name.
pub(super) fn is_unix_address(address: &str) -> bool {
    match address.strip_prefix('@') {
        Some(name) => !name.is_empty(),
        None => address.starts_with('/') && !address.ends_with('/'),
    }
}

/// A token of RFC 9110.
pub(super) fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Text without control characters other than a tab.
pub(super) fn is_header_value(value: &str) -> bool {
    !value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f)
}

/// Labels by the rules of Kubernetes.
pub(super) fn labels<'l>(
    path: &str,
    labels: impl IntoIterator<Item = (&'l String, &'l String)>,
    findings: &mut Findings,
) {
    let word = |word: &str| {
        word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.ends_with(|c: char| c.is_ascii_alphanumeric())
            && word.len() <= 63
    };
    for (key, value) in labels {
        let (prefix, name) = key.rsplit_once('/').map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
        if !word(name) || prefix.is_some_and(|prefix| prefix.len() > 253 || !is_fqdn(prefix)) {
            findings.error(keyed(path, key), format!("`{key}` is no label name"));
        } else if !value.is_empty() && !word(value) {
            findings.error(keyed(path, key), format!("`{value}` is no label value"));
        }
    }
}

/// `*`, `.`, or namespaces; `~` where `none` allows it.
pub(super) fn export_to(list: &[String], none: bool, findings: &mut Findings) {
    for (index, entry) in list.iter().enumerate() {
        let path = format!("spec.exportTo[{index}]");
        if list[..index].contains(entry) {
            findings.error(path, format!("`{entry}` stands twice"));
        } else if matches!(entry.as_str(), "*" | "~") && list.len() > 1 {
            findings.error(path, format!("`{entry}` excludes other entries"));
        } else if entry == "~" && !none {
            findings.error(path, "`~` is only for ServiceEntry");
        } else if !matches!(entry.as_str(), "*" | "." | "~") && !is_dns_label(entry) {
            findings.error(path, format!("`{entry}` is no namespace"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_nonsense() {
        for name in ["a", "a.b", "A-1.example.com", "example.com.", "xn--bcher-kva.example"] {
            assert!(is_fqdn(name), "{name}");
        }
        for name in ["", ".", "a..b", "-a.b", "a-.b", "a_b.c", "10.0.0.1", "a b", "*.a", "a.1"] {
            assert!(!is_fqdn(name), "{name}");
        }
        for name in ["*", "*.a.b", "*a.b", "*-a.b", "a.b"] {
            assert!(is_wildcard_domain(name), "{name}");
        }
        for name in ["a.*.b", "*.", "**", "*.*.a", "a*"] {
            assert!(!is_wildcard_domain(name), "{name}");
        }
    }

    #[test]
    fn header_names_and_values() {
        assert!(is_header_name("x-a_b.c") && !is_header_name("") && !is_header_name("a b") && !is_header_name("a:"));
        assert!(is_header_value("a\tb \u{e9}") && !is_header_value("a\nb") && !is_header_value("\u{7f}"));
    }
}
