//! Weighted turns: the earliest deadline first, where a turn's deadline is the last one plus `1 / weight`.
//!
//! Over a round everyone gets turns in exact proportion to their weights, evenly spread, and weights may change with
//! every turn. Source: Envoy's `EdfScheduler`.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    turns: BinaryHeap<Turn>,
    now: f64,
    /// Numbers turns, so that of equal deadlines the older one comes first.
    count: u64,
}

#[derive(Debug)]
struct Turn {
    deadline: f64,
    number: u64,
    index: usize,
}

/// The lowest weight that counts: a deadline must stay a number.
const MIN_WEIGHT: f64 = 1e-9;

impl Schedule {
    /// Turns for `count` participants, of which some, up to `random`, have been taken: gateways that start together don't
    /// all begin with the same one.
    pub fn new(count: usize, weight: impl Fn(usize) -> f64, random: usize) -> Self {
        let mut schedule = Self { turns: BinaryHeap::with_capacity(count), now: 0.0, count: 0 };
        (0..count).for_each(|index| schedule.push(index, &weight));
        if count > 1 {
            (0..random % count).for_each(|_| _ = schedule.next(&weight));
        }
        schedule
    }

    /// Who is next; `None` without participants. `weight` is asked for the weight of the one chosen.
    pub fn next(&mut self, weight: impl Fn(usize) -> f64) -> Option<usize> {
        let Turn { deadline, index, .. } = self.turns.pop()?;
        self.now = deadline;
        self.push(index, &weight);
        Some(index)
    }

    fn push(&mut self, index: usize, weight: &impl Fn(usize) -> f64) {
        self.count += 1;
        let deadline = self.now + 1.0 / weight(index).max(MIN_WEIGHT);
        self.turns.push(Turn { deadline, number: self.count, index });
    }
}

impl Ord for Turn {
    /// The earliest is the greatest, as the heap gives that first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then_with(|| other.number.cmp(&self.number))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(weights: &[f64], turns: usize, random: usize) -> Vec<usize> {
        let mut schedule = Schedule::new(weights.len(), |index| weights[index], random);
        let mut counts = vec![0; weights.len()];
        for _ in 0..turns {
            if let Some(index) = schedule.next(|index| weights[index]) {
                counts[index] += 1;
            }
        }
        counts
    }

    #[test]
    fn turns_are_in_proportion_to_weights() {
        // reference/networking.md §5.3: weights 1:3 are exactly 50:150 of 200.
        for random in 0..5 {
            assert_eq!(counts(&[1.0, 3.0], 200, random), [50, 150], "{random}");
            assert_eq!(counts(&[80.0, 20.0], 300, random), [240, 60], "{random}");
        }
        assert_eq!(counts(&[7.0, 7.0, 7.0], 9, 0), [3, 3, 3]);
        assert_eq!(counts(&[1.0], 5, 3), [5]);
        assert_eq!(counts(&[], 5, 3), [0; 0]);
        assert_eq!(counts(&[0.0, 1.0], 100, 0), [0, 100], "no weight, no turn");
    }

    #[test]
    fn turns_are_spread() {
        let weights = [1.0, 2.0];
        let mut schedule = Schedule::new(2, |index| weights[index], 0);
        let order: Vec<_> = (0..6).filter_map(|_| schedule.next(|index| weights[index])).collect();
        assert_eq!(order.iter().filter(|&&index| index == 0).count(), 2);
        assert!(order.windows(3).all(|turns| turns.contains(&0) && turns.contains(&1)), "{order:?}");
    }
}
