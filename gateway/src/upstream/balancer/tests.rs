use std::collections::BTreeMap;
use std::time::Duration;

use twox_hash::XxHash64;

use super::*;
use crate::upstream::outlier;

/// Endpoints on 127.0.0.1 with these ports, weights and places.
fn members(list: &[(u16, u32, u32, u32)]) -> Arc<Members> {
    let member = |&(port, weight, priority, group): &(u16, u32, u32, u32)| Member {
        endpoint: Arc::new(Endpoint::new(Address::Ip(([127, 0, 0, 1], port).into()))),
        weight,
        placement: Placement { priority, group, ..Placement::default() },
    };
    Arc::new(Members { ready: true, list: list.iter().map(member).collect() })
}

fn policy(policy: BalancingPolicy) -> Balancing {
    Balancing { policy, ..Balancing::default() }
}

fn balancer(members: &Arc<Members>, balancing: &Balancing) -> Balancer {
    Balancer::new(Arc::clone(members), 0, balancing, Some(0), None, 0)
}

fn random(bound: u64) -> u64 {
    rand::random::<u64>() % bound
}

fn port(endpoint: &Endpoint) -> u16 {
    match &endpoint.address {
        Address::Ip(address) => address.port(),
        _ => 0,
    }
}

/// How many of `count` requests each port gets.
fn shares(balancer: &Balancer, count: usize) -> BTreeMap<u16, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        if let Some(endpoint) = balancer.pick(Pick::default(), random) {
            *shares.entry(port(&endpoint)).or_default() += 1;
        }
    }
    shares
}

fn eject(members: &Members, port: u16) {
    let found = members.list.iter().find(|member| super::tests::port(&member.endpoint) == port);
    assert!(found.is_some_and(|member| outlier::eject(&member.endpoint, &members.list, &outlier::tests::settings())));
}

const EQUAL: [(u16, u32, u32, u32); 4] = [(1, 1, 0, 0), (2, 1, 0, 0), (3, 1, 0, 0), (4, 1, 0, 0)];

#[test]
fn round_robin_takes_turns() {
    let members = members(&EQUAL);
    let balancer = balancer(&members, &policy(BalancingPolicy::RoundRobin));
    assert_eq!(shares(&balancer, 200).into_values().collect::<Vec<_>>(), [50; 4]);
    let next =
        Balancer::new(Arc::clone(&members), 0, &policy(BalancingPolicy::RoundRobin), Some(0), Some(&balancer), 0);
    let order: Vec<_> = (0..6).filter_map(|_| next.pick(Pick::default(), random)).map(|it| port(&it)).collect();
    assert_eq!(order, [1, 2, 3, 4, 1, 2]);
}

#[test]
fn weights_are_exact() {
    for policy in [BalancingPolicy::RoundRobin, BalancingPolicy::LeastRequest] {
        let balancer = balancer(&members(&[(1, 1, 0, 0), (2, 3, 0, 0)]), &super::tests::policy(policy));
        assert_eq!(shares(&balancer, 200), [(1, 50), (2, 150)].into(), "{policy:?}");
    }
}

/// Idle endpoints are chosen evenly: 1000 requests, expected 250 each, six standard deviations are 82.
#[test]
fn random_choices_are_even() {
    for policy in [BalancingPolicy::Random, BalancingPolicy::LeastRequest] {
        let balancer = balancer(&members(&EQUAL), &super::tests::policy(policy));
        let shares = shares(&balancer, 1000);
        assert!(shares.len() == 4 && shares.values().all(|count| (168..332).contains(count)), "{policy:?} {shares:?}");
    }
}

#[test]
fn busy_endpoints_get_less() {
    let members = members(&EQUAL);
    let balancer = balancer(&members, &policy(BalancingPolicy::LeastRequest));
    let _busy: Vec<_> = (0..3).map(|_| members.list[0].endpoint.begin()).collect();
    // Only if both choices are the busy one: 1 of 16.
    let first = shares(&balancer, 1600).get(&1).copied().unwrap_or(0);
    assert!((40..160).contains(&first), "{first} of 1600");

    let weighted = self::members(&[(1, 1, 0, 0), (2, 2, 0, 0)]);
    let balancer = super::tests::balancer(&weighted, &policy(BalancingPolicy::LeastRequest));
    let _busy: Vec<_> = (0..3).map(|_| weighted.list[1].endpoint.begin()).collect();
    // Weights 1/1 and 2/4; the first turns have been dealt before the requests began.
    let shares = shares(&balancer, 300);
    assert!((198..=202).contains(&shares[&1]), "{shares:?}");
}

#[test]
fn tried_endpoints_are_avoided_as_long_as_there_are_others() {
    let members = members(&EQUAL);
    let tried: Vec<Address> = members.list[..3].iter().map(|member| member.endpoint.address.clone()).collect();
    let pick = Pick { tried: &tried, reselections: 5, hash: Some(7) };
    let by_turns = balancer(&members, &policy(BalancingPolicy::RoundRobin));
    (0..8).for_each(|_| assert_eq!(by_turns.pick(pick, random).map(|it| port(&it)), Some(4)));
    let all: Vec<Address> = members.list.iter().map(|member| member.endpoint.address.clone()).collect();
    assert!(by_turns.pick(Pick { tried: &all, ..pick }, random).is_some());
    for policy in [BalancingPolicy::RingHash { minimum_size: 1024 }, BalancingPolicy::Maglev { table_size: 65_537 }] {
        let balancer = balancer(&members, &super::tests::policy(policy));
        let first = balancer.pick(Pick { tried: &[], ..pick }, random).map(|it| it.address.clone());
        let tried: Vec<Address> = first.into_iter().collect();
        let next = balancer.pick(Pick { tried: &tried, ..pick }, random).map(|it| it.address.clone());
        assert!(next.is_some_and(|next| next != tried[0]), "{policy:?}");
    }
}

/// `upstream/hash-users` of the observed data: users 0 to 39 by header over 127.0.0.1:21550 to 21553.
#[test]
fn hashes_lead_where_envoy_sends_them() {
    let members = members(&[(21_550, 1, 0, 0), (21_551, 1, 0, 0), (21_552, 1, 0, 0), (21_553, 1, 0, 0)]);
    for (policy, expected) in [
        (BalancingPolicy::RingHash { minimum_size: 1024 }, [6, 10, 16, 8]),
        (BalancingPolicy::Maglev { table_size: 65_537 }, [8, 11, 11, 10]),
    ] {
        let balancer = balancer(&members, &super::tests::policy(policy));
        let mut counts = [0; 4];
        for user in 0..40 {
            let hash = XxHash64::oneshot(0, format!("user-{user}").as_bytes());
            let endpoint = balancer.pick(Pick { hash: Some(hash), ..Pick::default() }, random);
            counts[endpoint.map_or(0, |it| usize::from(port(&it) - 21_550))] += 1;
        }
        assert_eq!(counts, expected, "{policy:?}");
    }
}

/// Where each of 10,000 keys leads.
fn keys(balancer: &Balancer) -> Vec<u16> {
    let port = |key: u32| {
        let hash = XxHash64::oneshot(0, &key.to_le_bytes());
        balancer.pick(Pick { hash: Some(hash), ..Pick::default() }, random).map_or(0, |it| port(&it))
    };
    (0..10_000).map(port).collect()
}

/// When one of 100 endpoints leaves, its keys must move; at most 2 % of all keys beyond them may.
#[test]
fn few_keys_move_when_an_endpoint_leaves() {
    let ports: Vec<(u16, u32, u32, u32)> = (1000..1100).map(|port| (port, 1, 0, 0)).collect();
    let all = members(&ports);
    let gone = 1042;
    let rest = Arc::new(Members {
        ready: true,
        list: all.list.iter().filter(|member| port(&member.endpoint) != gone).cloned().collect(),
    });
    for (policy, spread) in [
        (BalancingPolicy::RingHash { minimum_size: 1024 }, 4),
        (BalancingPolicy::RingHash { minimum_size: 100_000 }, 2),
        (BalancingPolicy::Maglev { table_size: 65_537 }, 2),
    ] {
        let (before, after) = (
            keys(&balancer(&all, &super::tests::policy(policy))),
            keys(&balancer(&rest, &super::tests::policy(policy))),
        );
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        let necessary = before.iter().filter(|&&port| port == gone).count();
        assert!(necessary > 0 && necessary < 100 * spread, "{policy:?}: {necessary} keys on one of 100");
        assert!(moved >= necessary && moved - necessary <= 200, "{policy:?}: {moved} moved, {necessary} had to");
    }
}

#[test]
fn places_are_in_proportion_to_weights() {
    let weighted = members(&[(1, 1, 0, 0), (2, 3, 0, 0)]);
    for policy in [BalancingPolicy::RingHash { minimum_size: 10_000 }, BalancingPolicy::Maglev { table_size: 65_537 }] {
        let second =
            keys(&balancer(&weighted, &super::tests::policy(policy))).iter().filter(|&&port| port == 2).count();
        assert!((7000..8000).contains(&second), "{policy:?}: {second} of 10,000");
    }
}

#[test]
fn without_a_hash_any_endpoint_will_do() {
    let balancer = balancer(&members(&EQUAL), &policy(BalancingPolicy::Maglev { table_size: 65_537 }));
    assert_eq!(shares(&balancer, 200).len(), 4);
}

/// §5.4: a priority takes 140 % of its healthy share; half ejected is 70 % / 30 %.
#[test]
fn lower_priorities_serve_as_higher_ones_fail() {
    let list = [(1, 1, 0, 0), (2, 1, 0, 0), (3, 1, 1, 0), (4, 1, 1, 0), (5, 1, 2, 0)];
    let members = members(&list);
    let balancing = policy(BalancingPolicy::RoundRobin);
    let first = balancer(&members, &balancing);
    assert_eq!(shares(&first, 100), [(1, 50), (2, 50)].into());

    eject(&members, 1);
    let half = Balancer::new(Arc::clone(&members), 1, &balancing, Some(0), Some(&first), 0);
    assert_eq!(half.priorities.iter().map(|priority| priority.load).collect::<Vec<_>>(), [70, 30, 0]);
    let seen = shares(&half, 2000);
    assert!((1200..1600).contains(&seen[&2]) && !seen.contains_key(&1) && !seen.contains_key(&5), "{seen:?}");

    eject(&members, 2);
    assert_eq!(shares(&balancer(&members, &balancing), 100), [(3, 50), (4, 50)].into());
    eject(&members, 3);
    eject(&members, 4);
    assert_eq!(shares(&balancer(&members, &balancing), 100), [(5, 100)].into());
    eject(&members, 5);
    let none = balancer(&members, &balancing);
    assert!(none.pick(Pick::default(), random).is_none());
}

/// However few are left of very many, they get all requests.
#[test]
fn few_of_many_endpoints_still_count() {
    let list: Vec<_> = (1..=300).map(|port| (port, 1, 0, u32::from(port > 150))).collect();
    let members = self::members(&list);
    (1..300).filter(|port| *port != 7).for_each(|port| eject(&members, port));
    let policies = [
        BalancingPolicy::RoundRobin,
        BalancingPolicy::RingHash { minimum_size: 1024 },
        BalancingPolicy::Maglev { table_size: 1009 },
    ];
    for policy in policies {
        let in_groups = Balancing { policy, groups: [50, 50].into(), ..Balancing::default() };
        let seen = shares(&balancer(&members, &in_groups), 200);
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [7, 300], "{policy:?}");
        let alone = shares(&balancer(&members, &Balancing { policy, groups: [1].into(), ..Balancing::default() }), 20);
        assert_eq!(alone, [(7, 20)].into(), "{policy:?}");
    }
}

/// §5.6: below the panic threshold ejections are ignored, unless another priority makes up for it.
#[test]
fn panic_ignores_ejections() {
    let balancing = policy(BalancingPolicy::RoundRobin);
    let panicking = |members: &Arc<Members>| Balancer::new(Arc::clone(members), 0, &balancing, Some(50), None, 0);
    let members = self::members(&EQUAL);
    eject(&members, 1);
    eject(&members, 2);
    assert_eq!(shares(&panicking(&members), 100).len(), 2, "half of them are enough");
    eject(&members, 3);
    assert_eq!(shares(&panicking(&members), 100).len(), 4);
    let two = self::members(&[(1, 1, 0, 0), (2, 1, 0, 0), (3, 1, 1, 0), (4, 1, 1, 0)]);
    eject(&two, 1);
    eject(&two, 2);
    assert_eq!(shares(&panicking(&two), 100), [(3, 50), (4, 50)].into(), "the next priority is healthy");
    eject(&two, 3);
    eject(&two, 4);
    assert_eq!(shares(&panicking(&two), 400).len(), 4);
}

/// `endpoints_dns/locality-weights` of the observed data: 240 of 300 to a, and 30 to each of two in b.
#[test]
fn groups_have_their_shares() {
    let balancing = Balancing { groups: [80, 20].into(), ..policy(BalancingPolicy::RoundRobin) };
    let members = members(&[(1, 1, 0, 0), (2, 1, 0, 1), (3, 1, 0, 1)]);
    assert_eq!(shares(&balancer(&members, &balancing), 300), [(1, 240), (2, 30), (3, 30)].into());
    eject(&members, 1);
    assert_eq!(shares(&balancer(&members, &balancing), 300), [(2, 150), (3, 150)].into());
    // Half of a group has 70 % of its share: 80 : 14.
    let members = self::members(&[(1, 1, 0, 0), (2, 1, 0, 1), (3, 1, 0, 1)]);
    eject(&members, 2);
    assert_eq!(shares(&balancer(&members, &balancing), 940), [(1, 800), (3, 140)].into());
    let hashed = Balancing { policy: BalancingPolicy::Maglev { table_size: 65_537 }, ..balancing };
    let first = keys(&balancer(&self::members(&[(1, 1, 0, 0), (2, 1, 0, 1), (3, 1, 0, 1)]), &hashed));
    let first = first.iter().filter(|&&port| port == 1).count();
    assert!((7700..8300).contains(&first), "{first} of 10,000");
}

#[tokio::test(start_paused = true)]
async fn young_endpoints_are_spared() {
    let warmup = Warmup { duration: Duration::from_secs(100), minimum_percent: 10.0, aggression: 1.0 };
    for policy in [BalancingPolicy::RoundRobin, BalancingPolicy::LeastRequest] {
        let balancing = Balancing { warmup: Some(warmup), ..super::tests::policy(policy) };
        let old = members(&[(1, 1, 0, 0)]);
        tokio::time::advance(Duration::from_secs(200)).await;
        let young = members(&[(2, 1, 0, 0)]);
        let list = old.list.iter().chain(&young.list).cloned().collect();
        let both = Arc::new(Members { ready: true, list });
        let balancer = balancer(&both, &balancing);
        let young_of = |count| shares(&balancer, count).get(&2).copied().unwrap_or(0);
        tokio::time::advance(Duration::from_secs(1)).await;
        // 1:0.1, after the first turn that was dealt with what the weight was then.
        assert!((98..=102).contains(&young_of(1100)), "{policy:?}");
        tokio::time::advance(Duration::from_secs(49)).await;
        let half = young_of(1500);
        assert!((495..=505).contains(&half), "{policy:?}: {half}");
        tokio::time::advance(Duration::from_secs(50)).await;
        let warm = young_of(1000);
        assert!((418..=582).contains(&warm), "{policy:?}: {warm}");
    }
}

#[test]
fn warmth_grows_as_configured() {
    let warmth = |seconds: u64, minimum_percent: f64, aggression: f64| {
        let warmup = Warmup { duration: Duration::from_secs(100), minimum_percent, aggression };
        super::warmth(&warmup, Duration::from_secs(seconds))
    };
    for (seconds, minimum, aggression, expected) in [
        (0, 10.0, 1.0, 0.1),
        (5, 10.0, 1.0, 0.1),
        (25, 10.0, 1.0, 0.25),
        (25, 10.0, 2.0, 0.5),
        (25, 0.0, 0.5, 0.0625),
        (100, 10.0, 1.0, 1.0),
    ] {
        assert!((warmth(seconds, minimum, aggression) - expected).abs() < 1e-9, "{seconds} {minimum} {aggression}");
    }
}
