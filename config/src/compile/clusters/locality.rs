//! Which endpoints are used first, by where they are.
//!
//! Source: `reference/networking.md` §5.4; Istio, `pilot/pkg/networking/core/loadbalancer`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::locality::{CLUSTER, HOSTNAME, Locality, NETWORK, REGION, SUBZONE, ZONE};
use super::super::options::Options;
use super::super::services::{Backend, Places, TrafficDistribution};
use crate::resource::destination_rule::{Distribute, Failover, LocalityLoadBalancerSetting};

/// What `PreferClose` compares, the widest first: an endpoint is the nearer the more of them are the same.
const CLOSE: [&str; 4] = [NETWORK, REGION, ZONE, SUBZONE];
const SAME_NODE: [&str; 5] = [NETWORK, REGION, ZONE, SUBZONE, HOSTNAME];

/// How endpoints are put.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Strategy<'a> {
    /// All the same.
    None,
    /// By shares.
    Distribute(&'a [Distribute]),
    /// In the order in which they stand in for each other.
    Failover { labels: Vec<&'a str>, by_distance: Option<&'a [Failover]> },
}

impl<'a> Strategy<'a> {
    /// The setting of a rule counts before the wish of the service, and that before the setting of the mesh; they don't
    /// mix. Without ejections nobody needs somebody to stand in, so that all endpoints are one pool then, unless the
    /// service wishes otherwise.
    pub(super) fn new(
        rule: Option<&'a LocalityLoadBalancerSetting>,
        distribution: TrafficDistribution,
        mesh: Option<&'a LocalityLoadBalancerSetting>,
        ejects: bool,
    ) -> Self {
        let setting = match (rule, distribution) {
            (Some(rule), _) if rule.enabled == Some(false) => None,
            (Some(rule), _) => Some(rule),
            (None, TrafficDistribution::PreferClose) => {
                return Self::Failover { labels: CLOSE.to_vec(), by_distance: None };
            }
            (None, TrafficDistribution::PreferSameNode) => {
                return Self::Failover { labels: SAME_NODE.to_vec(), by_distance: None };
            }
            (None, TrafficDistribution::Any) => mesh,
        };
        let Some(setting) = setting else { return Self::None };
        let LocalityLoadBalancerSetting { distribute, failover, failover_priority, enabled: _ } = setting;
        if !distribute.is_empty() {
            return Self::Distribute(distribute);
        }
        if !ejects {
            return Self::None;
        }
        let labels: Vec<&str> = failover_priority.iter().map(String::as_str).collect();
        let by_distance = (labels.is_empty() || !failover.is_empty()).then_some(failover.as_slice());
        Self::Failover { labels, by_distance }
    }

    pub(super) fn place(&self, backends: &[&Backend], options: &Options) -> Places {
        match self {
            Self::None => in_one_pool(backends),
            Self::Distribute(entries) => {
                let own = options.locality();
                match entries.iter().find(|entry| own.is_in(&entry.from)) {
                    Some(entry) => by_shares(&entry.to, backends),
                    None => in_one_pool(backends),
                }
            }
            Self::Failover { labels, by_distance } => {
                let rank = |backend: &&Backend| {
                    let mismatch = rank_by_labels(labels, backend, options);
                    (mismatch, by_distance.map_or(0, |failover| rank_by_distance(failover, backend, options)))
                };
                let ranks: Vec<(usize, u32)> = backends.iter().map(rank).collect();
                // Without gaps, whatever the ranks are.
                let known: BTreeSet<(usize, u32)> = ranks.iter().copied().collect();
                let priorities: BTreeMap<(usize, u32), u32> = known.into_iter().zip(0..).collect();
                let places = ranks.iter().map(|rank| Some((priorities[rank], 0))).collect();
                Places { places, groups: Arc::default() }
            }
        }
    }
}

fn in_one_pool(backends: &[&Backend]) -> Places {
    Places { places: vec![Some((0, 0)); backends.len()], groups: Arc::default() }
}

/// A group for each locality; those that are in one entry of `to` have its share by the weights of their endpoints.
fn by_shares(to: &BTreeMap<String, u32>, backends: &[&Backend]) -> Places {
    let mut weights: BTreeMap<&str, u64> = BTreeMap::new();
    for backend in backends {
        *weights.entry(&backend.locality).or_default() += u64::from(backend.weight);
    }
    let mut shares: BTreeMap<&str, u32> = BTreeMap::new();
    for (pattern, share) in to {
        let is_in = |locality: &str| !shares.contains_key(locality) && Locality::parse(locality).is_in(pattern);
        let within: Vec<(&str, u64)> =
            weights.iter().map(|(locality, weight)| (*locality, *weight)).filter(|(name, _)| is_in(name)).collect();
        let total: u64 = within.iter().map(|(_, weight)| weight).sum();
        for (locality, weight) in within {
            let part = weight.saturating_mul(u64::from(*share)).div_ceil(total);
            shares.insert(locality, u32::try_from(part).unwrap_or(u32::MAX));
        }
    }
    let numbers: BTreeMap<&str, u32> = shares.keys().copied().zip(0..).collect();
    let places = backends.iter().map(|backend| Some((0, *numbers.get(&*backend.locality)?))).collect();
    Places { places, groups: shares.into_values().collect() }
}

/// How many of `labels` are lost with the first one that differs; `key=value` differs from another value, `key` from
/// our own.
fn rank_by_labels(labels: &[&str], backend: &Backend, options: &Options) -> usize {
    let differs = |label: &&str| {
        let (key, expected) = match label.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (*label, options.label(label)),
        };
        // All resources come from one cluster.
        let actual = backend.label(key).or_else(|| options.label(key).filter(|_| key == CLUSTER));
        actual.unwrap_or_default() != expected.unwrap_or_default()
    };
    labels.iter().position(differs).map_or(0, |position| labels.len() - position)
}

/// With an entry for our region the region that it names comes before all others.
fn rank_by_distance(failover: &[Failover], backend: &Backend, options: &Options) -> u32 {
    let (own, locality) = (options.locality(), Locality::parse(&backend.locality));
    match own.distance(locality) {
        3 => match failover.iter().find(|entry| entry.from == own.region) {
            Some(Failover { from: _, to }) if *to != locality.region => 4,
            _ => 3,
        },
        distance => distance,
    }
}
