//! Who gets the next request: the endpoints of one moment, in the order in which they are to be used.
//!
//! A [`Balancer`] is immutable but for the positions of those who take turns. When endpoints come, go, are ejected or
//! return, the cluster makes a new one, in which equal endpoints go on taking turns where they were.
//!
//! Source: `reference/networking.md` §5.3, §5.4, §5.6; Envoy's load balancers.

mod schedule;
mod table;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use config::snapshot::balancing::{Balancing, BalancingPolicy, Placement, Warmup};
use tokio::time::Instant;

use super::endpoint::{Address, Endpoint};
use schedule::Schedule;
use table::Table;

/// A priority whose endpoints are all healthy has room for that much in percent: only when more than the rest fail does
/// the next priority get requests. Source: `reference/networking.md` §5.4.
const OVERPROVISIONING: u64 = 140;

/// An endpoint among the others of its cluster.
#[derive(Debug, Clone)]
pub struct Member {
    /// The endpoint itself.
    pub endpoint: Arc<Endpoint>,
    /// At least 1.
    pub weight: u32,
    /// Where it stands.
    pub placement: Placement,
}

/// All endpoints of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Members {
    /// `false` until names were resolved for the first time (or failed): requests answer 503 `NC` as in Envoy's warming.
    pub ready: bool,
    /// Each address once.
    pub list: Vec<Member>,
}

impl Members {
    /// Whether both have the same endpoints in the same places.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_same = |(a, b): (&Member, &Member)| {
            Arc::ptr_eq(&a.endpoint, &b.endpoint) && a.weight == b.weight && a.placement == b.placement
        };
        self.ready == other.ready
            && self.list.len() == other.list.len()
            && self.list.iter().zip(&other.list).all(is_same)
    }
}

/// What is asked of a balancer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pick<'p> {
    /// Like requests have like numbers; `None`: the request has no hash.
    pub hash: Option<u64>,
    /// Endpoints to avoid, as long as another one is found within `reselections` further picks.
    pub tried: &'p [Address],
    /// Further picks.
    pub reselections: u32,
}

/// The endpoints of a cluster at one moment.
#[derive(Debug, Default)]
pub struct Balancer {
    /// All of them.
    pub members: Arc<Members>,
    /// Of which ejections this knows, see [`super::cluster::Usage::ejections`].
    pub ejections: u64,
    policy: BalancingPolicy,
    warmup: Option<Warmup>,
    priorities: Vec<Priority>,
}

/// Endpoints of one priority.
#[derive(Debug)]
struct Priority {
    /// Percent of all requests; together they are 100.
    load: u32,
    /// Those that may be used, in groups. Without groups there is one.
    groups: Vec<Group>,
    /// Which group is next, where there are several.
    turns: Mutex<Schedule>,
    /// Over all groups, for consistent hashing.
    table: Option<Table>,
}

#[derive(Debug)]
struct Group {
    share: f64,
    members: Vec<Member>,
    has_equal_weights: bool,
    /// Whose turn it is, where all weights are equal. Handed on to the next balancer.
    position: Arc<AtomicUsize>,
    /// The same, where they differ.
    turns: Mutex<Schedule>,
    /// Until then some endpoint is so young that it gets less.
    warm_at: Option<Instant>,
}

impl Balancer {
    /// The balancer for `members`, as far as they aren't ejected. `panic_percent` is the share of usable endpoints below
    /// which ejections are ignored; `None`: they always are. Equal endpoints go on taking turns where they were in
    /// `previous`; all other turns begin anew, as `random` has it.
    ///
    /// Cost: O(endpoints), and for consistent hashing O(places).
    pub fn new(
        members: Arc<Members>,
        ejections: u64,
        balancing: &Balancing,
        panic_percent: Option<u32>,
        previous: Option<&Self>,
        random: usize,
    ) -> Self {
        let heeds_ejections = panic_percent.is_some();
        let count = members.list.iter().map(|member| member.placement.priority + 1).max().unwrap_or(0);
        let mut levels: Vec<Level<'_>> = (0..count).map(|_| Level::default()).collect();
        for member in &members.list {
            levels[member.placement.priority as usize].add(member, heeds_ejections);
        }
        let (loads, panics) = loads(&levels, panic_percent.unwrap_or(0));
        let priorities = levels.iter().zip(loads).zip(panics).enumerate().map(|(index, ((level, load), panics))| {
            let before = previous.and_then(|previous| previous.priorities.get(index));
            Priority::new(level, load, panics || !heeds_ejections, balancing, before, random)
        });
        let priorities = priorities.collect();
        Self { ejections, policy: balancing.policy, warmup: balancing.warmup, priorities, members }
    }

    /// An endpoint for a request; `None` if none can be used. `random` returns a number below the one that it is given.
    ///
    /// Cost: constant for equal weights, O(log endpoints) otherwise; no allocation.
    pub fn pick(&self, pick: Pick<'_>, mut random: impl FnMut(u64) -> u64) -> Option<Arc<Endpoint>> {
        let mut picked = None;
        for attempt in 0..=pick.reselections {
            let endpoint = self.pick_any(pick.hash, attempt, &mut random)?;
            let is_fresh = !pick.tried.contains(&endpoint.address);
            picked = Some(endpoint);
            if is_fresh {
                break;
            }
        }
        picked.map(Arc::clone)
    }

    fn pick_any(&self, hash: Option<u64>, attempt: u32, random: &mut impl FnMut(u64) -> u64) -> Option<&Arc<Endpoint>> {
        let is_consistent = self.policy.is_consistent();
        // What has no hash goes anywhere.
        let hash = if is_consistent { Some(hash.unwrap_or_else(|| random(u64::MAX))) } else { None };
        let priority = self.choose_priority(hash, random)?;
        if let (Some(hash), Some(table)) = (hash, &priority.table) {
            return Some(table.pick(hash, attempt));
        }
        let group = match priority.groups.as_slice() {
            [] => return None,
            [only] => only,
            groups => {
                let mut turns = priority.turns.lock().unwrap_or_else(PoisonError::into_inner);
                &groups[turns.next(|index| groups[index].share)?]
            }
        };
        group.pick(self.policy, self.warmup.as_ref(), random)
    }

    fn choose_priority(&self, hash: Option<u64>, random: &mut impl FnMut(u64) -> u64) -> Option<&Priority> {
        if let [only] = self.priorities.as_slice() {
            return Some(only);
        }
        let drawn = match hash {
            Some(hash) => hash % 100,
            None => random(100),
        };
        let mut below = 0;
        let mut priorities = self.priorities.iter();
        priorities.find(|priority| {
            below += u64::from(priority.load);
            drawn < below
        })
    }
}

/// The endpoints of a priority, sorted by whether they may be used.
#[derive(Default)]
struct Level<'m> {
    members: Vec<&'m Member>,
    usable: u64,
}

impl<'m> Level<'m> {
    fn add(&mut self, member: &'m Member, heeds_ejections: bool) {
        self.members.push(member);
        self.usable += u64::from(!(heeds_ejections && member.endpoint.health.is_ejected()));
    }

    /// In percent, with what is provided beyond need.
    fn health(&self) -> u64 {
        (OVERPROVISIONING * self.usable).checked_div(self.members.len() as u64).unwrap_or(0).min(100)
    }
}

/// Percent of the requests for each priority, and whether it ignores ejections.
///
/// Source: Envoy's `LoadBalancerBase::recalculatePerPriorityState` and `recalculatePerPriorityPanic`.
fn loads(levels: &[Level<'_>], panic_percent: u32) -> (Vec<u32>, Vec<bool>) {
    let total = levels.iter().map(Level::health).sum::<u64>().min(100);
    let is_panic = |level: &Level<'_>| {
        let all = level.members.len() as u64;
        total < 100 && level.usable * 100 < u64::from(panic_percent) * all.max(1)
    };
    let panics: Vec<bool> = levels.iter().map(is_panic).collect();
    if panic_percent > 0 && !levels.is_empty() && panics.iter().all(|&panics| panics) {
        // By the number of endpoints, since nothing is known of their health that counts.
        let all: u64 = levels.iter().map(|level| level.members.len() as u64).sum();
        let shares = levels.iter().map(|level| (level.members.len() as u64 * 100).checked_div(all).unwrap_or(0));
        return (distribute(shares.collect()), panics);
    }
    let mut left = 100;
    let mut shares = Vec::with_capacity(levels.len());
    for level in levels {
        let share = (level.health() * 100).checked_div(total).unwrap_or(0).min(left);
        left -= share;
        shares.push(share);
    }
    (distribute(shares), panics)
}

/// What rounding has left over belongs to the first priority that has something; without any, all to the first.
fn distribute(mut shares: Vec<u64>) -> Vec<u32> {
    let left = 100_u64.saturating_sub(shares.iter().sum());
    let first = shares.iter().position(|&share| share > 0).unwrap_or(0);
    if let Some(first) = shares.get_mut(first) {
        *first += left;
    }
    shares.into_iter().map(|share| u32::try_from(share).unwrap_or(100)).collect()
}

impl Priority {
    fn new(
        level: &Level<'_>,
        load: u32,
        ignores_ejections: bool,
        balancing: &Balancing,
        previous: Option<&Self>,
        random: usize,
    ) -> Self {
        let is_usable = |member: &Member| ignores_ejections || !member.endpoint.health.is_ejected();
        let shares: &[u32] = if balancing.groups.is_empty() { &[1] } else { &balancing.groups };
        let mut groups = Vec::with_capacity(shares.len());
        for (index, &share) in shares.iter().enumerate() {
            let all: Vec<&Member> =
                level.members.iter().copied().filter(|member| member.placement.group as usize == index).collect();
            let members: Vec<Member> = all.iter().copied().filter(|member| is_usable(member)).cloned().collect();
            if members.is_empty() {
                continue;
            }
            // Not in whole percent: one usable endpoint of very many still has its share.
            #[allow(clippy::cast_precision_loss, reason = "no cluster has that many endpoints")]
            let usable = members.len() as f64 / all.len() as f64;
            let share = f64::from(share) * (usable * OVERPROVISIONING as f64 / 100.0).min(1.0);
            let position = previous.and_then(|previous| previous.groups.get(groups.len()));
            let position = match position {
                Some(group) => Arc::clone(&group.position),
                None => Arc::new(AtomicUsize::new(random)),
            };
            groups.push(Group::new(members, share, balancing, position, random));
        }
        let table = Table::new(balancing.policy, &groups);
        let turns = Mutex::new(Schedule::new(groups.len(), |index| groups[index].share, random));
        Self { load, groups, turns, table }
    }
}

impl Group {
    fn new(members: Vec<Member>, share: f64, balancing: &Balancing, position: Arc<AtomicUsize>, random: usize) -> Self {
        let has_equal_weights = members.iter().all(|member| member.weight == members[0].weight);
        let warm_at = balancing.warmup.and_then(|warmup| {
            let youngest = members.iter().map(|member| member.endpoint.since).max()?;
            Some(youngest + warmup.duration)
        });
        let needs_turns = !has_equal_weights || warm_at.is_some();
        let count = if needs_turns { members.len() } else { 0 };
        let turns = Schedule::new(count, |index| f64::from(members[index].weight), random);
        Self { share, members, has_equal_weights, position, turns: Mutex::new(turns), warm_at }
    }

    fn pick(
        &self,
        policy: BalancingPolicy,
        warmup: Option<&Warmup>,
        random: &mut impl FnMut(u64) -> u64,
    ) -> Option<&Arc<Endpoint>> {
        let count = self.members.len() as u64;
        let any = |random: &mut dyn FnMut(u64) -> u64| {
            let index = usize::try_from(random(count)).unwrap_or(0);
            self.members.get(index).map(|member| &member.endpoint)
        };
        let by_requests = match policy {
            BalancingPolicy::Random => return any(random),
            BalancingPolicy::RoundRobin => false,
            BalancingPolicy::LeastRequest | BalancingPolicy::RingHash { .. } | BalancingPolicy::Maglev { .. } => true,
        };
        let now = self.warm_at.map(|warm_at| (Instant::now(), warm_at)).filter(|(now, warm_at)| now < warm_at);
        if self.has_equal_weights && now.is_none() {
            if !by_requests {
                let turn = self.position.fetch_add(1, Ordering::Relaxed) % self.members.len();
                return Some(&self.members[turn].endpoint);
            }
            let (first, second) = (any(random)?, any(random)?);
            return Some(if second.active() < first.active() { second } else { first });
        }
        let weight = |index: usize| {
            let Member { endpoint, weight, .. } = &self.members[index];
            let mut weight = f64::from(*weight);
            if let (Some((now, _)), Some(warmup)) = (now, warmup) {
                weight *= warmth(warmup, now.saturating_duration_since(endpoint.since));
            }
            if by_requests { weight / f64::from(endpoint.active().saturating_add(1)) } else { weight }
        };
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.next(weight).map(|index| &self.members[index].endpoint)
    }
}

/// The share of its weight that an endpoint of this age has.
///
/// Source: Envoy's `EdfLoadBalancerBase::applySlowStartFactor`.
fn warmth(warmup: &Warmup, age: std::time::Duration) -> f64 {
    if age >= warmup.duration {
        return 1.0;
    }
    let age = age.max(std::time::Duration::from_millis(1)).as_secs_f64() / warmup.duration.as_secs_f64();
    age.powf(1.0 / warmup.aggression).max(warmup.minimum_percent / 100.0).min(1.0)
}

#[cfg(test)]
mod tests;
