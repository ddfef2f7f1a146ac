//! Consistent hashing: tables in which like requests find the same endpoint, and few find another when endpoints change.
//!
//! Both tables hash an endpoint's address and its number with xxHash64 as Envoy does, so that a fleet of both sends the
//! same user to the same endpoint. Source: Envoy's `RingHashLoadBalancer` and `MaglevLoadBalancer`.

use std::sync::Arc;

use config::snapshot::balancing::BalancingPolicy;
use twox_hash::XxHash64;

use super::super::endpoint::Endpoint;
use super::Group;

/// The largest ring. Source: Envoy's `maximum_ring_size`.
const MAX_RING: f64 = 8_388_608.0;

/// Where a hash leads.
#[derive(Debug)]
pub(super) enum Table {
    /// Places in order of their hash.
    Ring { endpoints: Vec<Arc<Endpoint>>, places: Vec<(u64, u32)> },
    /// Indexes of endpoints.
    Maglev { endpoints: Vec<Arc<Endpoint>>, places: Vec<u32> },
}

/// An endpoint with its share of all requests; the shares together are 1.
struct Weighted<'g> {
    endpoint: &'g Arc<Endpoint>,
    share: f64,
}

impl Table {
    /// The table for the endpoints of all groups; `None` without endpoints that have a share, and for other policies.
    pub fn new(policy: BalancingPolicy, groups: &[Group]) -> Option<Self> {
        let shares = || Some(shares(groups)).filter(|shares| !shares.is_empty());
        match policy {
            BalancingPolicy::RingHash { minimum_size } => Some(ring(&shares()?, minimum_size)),
            BalancingPolicy::Maglev { table_size } => Some(maglev(shares()?, table_size)),
            _ => None,
        }
    }

    /// The endpoint for `hash`. Another `attempt` leads to another place, and mostly to another endpoint.
    pub fn pick(&self, hash: u64, attempt: u32) -> &Arc<Endpoint> {
        let attempt = u64::from(attempt);
        match self {
            Self::Ring { endpoints, places } => {
                let place = places.partition_point(|(place, _)| *place < hash) % places.len();
                let place = (place as u64 + attempt) % places.len() as u64;
                &endpoints[places[place as usize].1 as usize]
            }
            Self::Maglev { endpoints, places } => {
                let hash = if attempt > 0 { hash ^ (u64::MAX - attempt + 1) } else { hash };
                let place = hash % places.len() as u64;
                &endpoints[places[place as usize] as usize]
            }
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "no cluster has that many endpoints")]
fn shares(groups: &[Group]) -> Vec<Weighted<'_>> {
    let total: f64 = groups.iter().map(|group| group.share).sum();
    let weighted = groups.iter().filter(|group| group.share > 0.0).flat_map(|group| {
        let sum: f64 = group.members.iter().map(|member| f64::from(member.weight)).sum();
        let share = group.share / total.max(f64::MIN_POSITIVE) / sum.max(f64::MIN_POSITIVE);
        group
            .members
            .iter()
            .map(move |member| Weighted { endpoint: &member.endpoint, share: share * f64::from(member.weight) })
    });
    weighted.collect()
}

#[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn ring(weighted: &[Weighted<'_>], minimum_size: u64) -> Table {
    let smallest = weighted.iter().map(|entry| entry.share).fold(f64::INFINITY, f64::min);
    // The endpoint with the least weight gets a whole number of places.
    let scale = ((smallest * minimum_size as f64).ceil() / smallest).min(MAX_RING);
    let mut places = Vec::with_capacity(scale.ceil() as usize);
    let (mut current, mut target) = (0.0, 0.0);
    for (index, entry) in (0_u32..).zip(weighted) {
        target += scale * entry.share;
        let mut key = format!("{}_", entry.endpoint.address);
        let length = key.len();
        let mut number = 0_u64;
        while current < target {
            key.truncate(length);
            key.push_str(&number.to_string());
            places.push((XxHash64::oneshot(0, key.as_bytes()), index));
            number += 1;
            current += 1.0;
        }
    }
    places.sort_by_key(|(hash, _)| *hash);
    Table::Ring { endpoints: weighted.iter().map(|entry| Arc::clone(entry.endpoint)).collect(), places }
}

/// An endpoint's way through the table.
struct Walk {
    offset: u64,
    skip: u64,
    next: u64,
    share: f64,
    target: f64,
}

fn maglev(mut weighted: Vec<Weighted<'_>>, size: u64) -> Table {
    let size = size.max(1);
    // The order decides who has a place, so it must not depend on the order in which endpoints are known.
    weighted.sort_by_cached_key(|entry| entry.endpoint.address.to_string());
    let largest = weighted.iter().map(|entry| entry.share).fold(0.0, f64::max);
    let mut walks: Vec<Walk> = weighted
        .iter()
        .map(|entry| {
            let key = entry.endpoint.address.to_string();
            Walk {
                offset: XxHash64::oneshot(0, key.as_bytes()) % size,
                skip: XxHash64::oneshot(1, key.as_bytes()) % (size - 1).max(1) + 1,
                next: 0,
                share: entry.share,
                target: 0.0,
            }
        })
        .collect();
    const FREE: u32 = u32::MAX;
    let mut places = vec![FREE; usize::try_from(size).unwrap_or(1)];
    let mut taken = 0;
    let mut round = 0.0;
    'rounds: loop {
        round += 1.0;
        for (index, walk) in (0_u32..).zip(&mut walks) {
            // Whoever has a third of the largest weight takes a place in every third round.
            if round * walk.share < walk.target {
                continue;
            }
            walk.target += largest;
            loop {
                let place = (walk.offset + walk.skip * walk.next) % size;
                walk.next += 1;
                let place = &mut places[place as usize];
                if *place == FREE {
                    *place = index;
                    break;
                }
            }
            taken += 1;
            if taken == size {
                break 'rounds;
            }
        }
    }
    Table::Maglev { endpoints: weighted.iter().map(|entry| Arc::clone(entry.endpoint)).collect(), places }
}
