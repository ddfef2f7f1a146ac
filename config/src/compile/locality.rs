//! Where endpoints and this gateway are.
//!
//! Source: `reference/networking.md` §5.4, §6.3.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::options::Options;
use super::report::{Field, Report};
use crate::diagnostic::{Code, Severity};
use crate::resource::destination_rule::LocalityLoadBalancerSetting;

/// Labels that follow from a place.
pub(super) const REGION: &str = "topology.kubernetes.io/region";
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
pub(super) const SUBZONE: &str = "topology.istio.io/subzone";
pub(super) const NETWORK: &str = "topology.istio.io/network";
pub(super) const HOSTNAME: &str = "kubernetes.io/hostname";
pub(super) const CLUSTER: &str = "topology.istio.io/cluster";

/// Istio's label for all three parts, with dots between them.
const LOCALITY: &str = "istio-locality";

/// `region/zone/subzone`; what is not known is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Locality<'a> {
    pub(super) region: &'a str,
    pub(super) zone: &'a str,
    pub(super) subzone: &'a str,
}

impl<'a> Locality<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let mut parts = text.split('/');
        let mut part = || parts.next().unwrap_or_default();
        Self { region: part(), zone: part(), subzone: part() }
    }

    /// The same as text, without slashes at its end.
    fn text(self) -> Arc<str> {
        let Self { region, zone, subzone } = self;
        match (region, zone, subzone) {
            ("", "", "") => Arc::default(),
            (_, "", "") => region.into(),
            (_, _, "") => format!("{region}/{zone}").into(),
            _ => format!("{region}/{zone}/{subzone}").into(),
        }
    }

    /// Whether it lies in `pattern`, which may end early or in `*`.
    pub(super) fn is_in(self, pattern: &str) -> bool {
        let Locality { region, zone, subzone } = Locality::parse(pattern);
        (region == "*" || region == self.region)
            && (matches!(zone, "*" | "") || zone == self.zone)
            && (matches!(subzone, "*" | "") || subzone == self.subzone)
    }

    /// 0 in the same subzone, 1 in the same zone, 2 in the same region, 3 elsewhere.
    pub(super) fn distance(self, other: Locality<'_>) -> u32 {
        if self.region != other.region {
            3
        } else if self.zone != other.zone {
            2
        } else {
            u32::from(self.subzone != other.subzone)
        }
    }
}

/// Of a WorkloadEntry: its field, or its labels.
pub(super) fn of_workload(field: &str, labels: &BTreeMap<String, String>, own: Locality<'_>) -> Arc<str> {
    if field.is_empty() { of_endpoint("", labels, own) } else { Locality::parse(field).text() }
}

/// Of an endpoint of Kubernetes, of which `zone` or nothing is known besides its `labels`. A zone lies in one region:
/// one that is ours in ours.
pub(super) fn of_endpoint(zone: &str, labels: &BTreeMap<String, String>, own: Locality<'_>) -> Arc<str> {
    let label = |key| labels.get(key).map(String::as_str).unwrap_or_default();
    match label(LOCALITY) {
        "" => {}
        slashes if slashes.contains('/') => return Locality::parse(slashes).text(),
        dots => return Locality::parse(&dots.replace('.', "/")).text(),
    }
    let zone = if zone.is_empty() { label(ZONE) } else { zone };
    let region = match label(REGION) {
        "" if !zone.is_empty() && zone == own.zone => own.region,
        region => region,
    };
    Locality { region, zone, subzone: label(SUBZONE) }.text()
}

/// Says that a setting looks for a place that this gateway doesn't know.
pub(super) fn report(setting: &LocalityLoadBalancerSetting, options: &Options, field: &Field<'_>, report: &mut Report) {
    let LocalityLoadBalancerSetting { distribute, failover, failover_priority, enabled } = setting;
    let asks_where = distribute.iter().any(|entry| !entry.from.starts_with('*'))
        || !failover.is_empty()
        || failover_priority.iter().any(|label| matches!(label.as_str(), REGION | ZONE | SUBZONE));
    let is_known = [REGION, ZONE, SUBZONE].into_iter().any(|key| options.label(key).is_some());
    if asks_where && !is_known && enabled.unwrap_or(true) {
        let message = "the locality of this gateway is unknown: every endpoint that has one counts as far away";
        let help = "start the gateway with `--locality region/zone/subzone`".to_owned();
        report.add(Severity::Warning, Code::Ignored, *field, message, Some(help));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (locality, pattern, expected) in [
            ("a/b/c", "*", true),
            ("", "*", true),
            ("a/b/c", "a", true),
            ("a/b/c", "a/*", true),
            ("a/b/c", "a/b", true),
            ("a/b/c", "a/b/*", true),
            ("a/b/c", "a/b/c", true),
            ("a/b/c", "a/b/d", false),
            ("a/b/c", "a/c", false),
            ("a/b/c", "b/*", false),
            ("a", "a/b", false),
            ("", "a", false),
        ] {
            assert_eq!(Locality::parse(locality).is_in(pattern), expected, "{locality} {pattern}");
        }
    }

    #[test]
    fn distances() {
        let own = Locality::parse("a/b/c");
        for (other, expected) in [("a/b/c", 0), ("a/b/d", 1), ("a/b", 1), ("a/c/c", 2), ("b/b/c", 3), ("", 3)] {
            assert_eq!(own.distance(Locality::parse(other)), expected, "{other}");
        }
    }

    #[test]
    fn places_of_endpoints() {
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let own = Locality::parse("r/z/s");
        let topology = [(REGION, "q"), (ZONE, "y"), (SUBZONE, "t")];
        for (zone, pairs, expected) in [
            ("", &[][..], ""),
            ("z", &[], "r/z"),
            ("y", &[], "/y"),
            ("z", &[(REGION, "q")], "q/z"),
            ("", &topology, "q/y/t"),
            ("", &[(ZONE, "z")], "r/z"),
            ("z", &[(LOCALITY, "a.b.c")], "a/b/c"),
            ("", &[(LOCALITY, "a/b.c/d")], "a/b.c/d"),
        ] {
            assert_eq!(&*of_endpoint(zone, &labels(pairs), own), expected, "{zone} {pairs:?}");
        }
        assert_eq!(&*of_workload("a/b", &labels(&topology), own), "a/b");
        assert_eq!(&*of_workload("", &labels(&topology), own), "q/y/t");
        // Of a gateway that doesn't know where it is no zone is the own one.
        assert_eq!(&*of_endpoint("z", &labels(&[]), Locality::default()), "/z");
    }
}
