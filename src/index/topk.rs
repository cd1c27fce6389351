//! Keeping the nearest: bounded sets ordered by key or estimate, then by id.

use crate::quantizer::router::pack;
use cellardb_format::NO_ID;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A row and the estimate of its distance, ordered by the estimate, then by id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Near {
    pub(crate) distance: f32,
    /// In which of the probed cells it was found, nearest first.
    pub(crate) probe: u32,
    pub(crate) id: u64,
}

impl Eq for Near {}

impl PartialOrd for Near {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Near {
    fn cmp(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.id.cmp(&other.id))
    }
}

/// A row and the key of its exact distance, ordered by the key, then by id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ranked {
    pub(crate) key: f64,
    pub(crate) id: u64,
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.total_cmp(&other.key).then(self.id.cmp(&other.id))
    }
}

/// The `k` nearest of what was pushed.
#[derive(Debug, Clone, Default)]
pub(crate) struct TopK {
    k: usize,
    heap: BinaryHeap<Ranked>,
}

/// Room for so many neighbours is there from the beginning.
const FEW: usize = 128;

impl TopK {
    pub(crate) fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::with_capacity(k.min(FEW)) }
    }

    pub(crate) fn push(&mut self, row: Ranked) {
        if self.heap.len() < self.k {
            self.heap.push(row);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && row < *worst
        {
            *worst = row;
        }
    }

    /// Adds what another one kept.
    pub(crate) fn merge(&mut self, other: TopK) {
        other.heap.into_iter().for_each(|row| self.push(row));
    }

    /// How many are kept so far.
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Nothing farther than this is kept.
    pub(crate) fn limit(&self) -> f64 {
        let full = self.heap.len() == self.k;
        self.heap.peek().filter(|_| full).map_or(f64::INFINITY, |worst| worst.key)
    }

    /// Ascending.
    pub(crate) fn into_sorted(self) -> Vec<Ranked> {
        self.heap.into_sorted_vec()
    }
}

/// The best `keep` estimates of what was pushed, in batches: cheaper than a heap for many. What was
/// pushed names a slot of a run; the rows are looked up together, so that their cache misses overlap, and
/// where all rows live only those of the best at the end.
#[derive(Debug, Default)]
pub(crate) struct Survivors {
    keep: usize,
    /// Of each an estimate that sorts, over where it is in `near`: numbers are quicker to select from.
    keys: Vec<u64>,
    /// All that was pushed, for one query.
    near: Vec<Near>,
    /// How many of the keys are known to be of rows that live.
    settled: usize,
    /// Whether rows may be looked up at the end.
    late: bool,
    /// Estimates at or above this are not among the best any more.
    pub(crate) limit: f32,
    /// The best, each row once, and the ids of those, each in the first free slot from its own on.
    best: Vec<Near>,
    slots: Vec<u64>,
}

impl Survivors {
    /// Begins anew; with `all_live` what is pushed is never a row that was removed.
    pub(crate) fn reset(&mut self, keep: usize, all_live: bool) {
        self.keep = keep.max(1);
        self.keys.clear();
        self.near.clear();
        self.settled = 0;
        self.late = all_live;
        self.limit = f32::INFINITY;
    }

    /// Adds an estimate. `look_up` turns what was pushed into a row, or says that it is none.
    pub(crate) fn push(&mut self, near: Near, look_up: impl Fn(&mut Near) -> bool) {
        self.keys.push(pack(near.distance, self.near.len() as u32));
        self.near.push(near);
        let full = self.keys.len() >= self.keep.saturating_add(self.keep / 4).saturating_add(16);
        if full && !(self.late && self.cut()) {
            // Equal estimates are told apart by the ids of their rows.
            self.late = false;
            self.settle(look_up);
        }
    }

    /// Looks up what was pushed and keeps the best.
    pub(crate) fn settle(&mut self, look_up: impl Fn(&mut Near) -> bool) {
        let mut live = self.settled;
        for at in self.settled..self.keys.len() {
            let key = self.keys[at];
            self.keys[live] = key;
            live += usize::from(look_up(&mut self.near[key as u32 as usize]));
        }
        self.keys.truncate(live);
        if live > self.keep && !self.cut() {
            let id = |key: &u64| self.near[*key as u32 as usize].id;
            let order =
                |a: &u64, b: &u64| (a >> 32).cmp(&(b >> 32)).then_with(|| id(a).cmp(&id(b)));
            self.keys.select_nth_unstable_by(self.keep - 1, order);
            self.keys.truncate(self.keep);
        }
        self.settled = self.keys.len();
    }

    /// Keeps the least estimates; false, and all are still there, if the last of them has equals
    /// beyond.
    fn cut(&mut self) -> bool {
        let (_, last, rest) = self.keys.select_nth_unstable(self.keep - 1);
        let last = *last;
        self.limit = self.near[last as u32 as usize].distance;
        let apart = rest.iter().all(|key| key >> 32 != last >> 32);
        if apart {
            self.keys.truncate(self.keep);
        }
        apart
    }

    /// The best, once settled, in no order.
    pub(crate) fn best(&self) -> impl Iterator<Item = &Near> {
        self.keys.iter().map(|key| &self.near[*key as u32 as usize])
    }

    /// The best, each row once, the least estimates first.
    pub(crate) fn distinct(&mut self) -> &[Near] {
        self.keys.sort_unstable();
        let bits = (2 * self.keys.len()).next_power_of_two().max(2).ilog2();
        self.slots.clear();
        self.slots.resize(1 << bits, NO_ID);
        self.best.clear();
        for key in &self.keys {
            let near = self.near[*key as u32 as usize];
            // Half of the slots stay free.
            let mut at = (near.id.wrapping_mul(SPREAD) >> (64 - bits)) as usize;
            while self.slots[at] != NO_ID && self.slots[at] != near.id {
                at = (at + 1) % self.slots.len();
            }
            if self.slots[at] == NO_ID {
                self.slots[at] = near.id;
                self.best.push(near);
            }
        }
        &self.best
    }
}

/// Spreads ids over the upper bits: 2^64 over the golden ratio (Knuth, volume 3).
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes the distances as slots 0, 1, 2 and so on, of which the slot `s` is row `100 - s`.
    fn survivors(keep: usize, distances: &[f32], dead: &[u64]) -> Survivors {
        let look_up = |near: &mut Near| {
            near.id = 100 - near.id;
            !dead.contains(&near.id)
        };
        let mut survivors = Survivors::default();
        survivors.reset(keep, dead.is_empty());
        for (slot, distance) in (0..).zip(distances) {
            survivors.push(Near { distance: *distance, probe: 0, id: slot }, look_up);
        }
        survivors.settle(look_up);
        survivors
    }

    #[test]
    fn the_best_that_live_survive_and_the_worst_of_them_is_the_limit() {
        let distances: Vec<f32> = (0..90).map(|at| ((at * 37) % 90) as f32 - 20.0).collect();
        let dead = [100, 83];
        for keep in [1, 2, 7, 60] {
            let mut survivors = survivors(keep, &distances, &dead);
            let mut rows: Vec<(f32, u64)> =
                (0..90).map(|slot| (distances[slot], 100 - slot as u64)).collect();
            rows.retain(|row| !dead.contains(&row.1));
            rows.sort_by(|a, b| a.0.total_cmp(&b.0));
            rows.truncate(keep);
            assert_eq!(survivors.limit, rows[keep - 1].0);
            let found = survivors.distinct().iter().map(|near| (near.distance, near.id));
            assert_eq!(found.collect::<Vec<_>>(), rows);
        }
    }

    #[test]
    fn of_equal_estimates_the_first_ids_survive() {
        let mut survivors = survivors(3, &[5.0; 70], &[]);
        let mut ids: Vec<u64> = survivors.distinct().iter().map(|near| near.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [31, 32, 33]);
    }

    #[test]
    fn each_row_is_given_once_where_its_estimate_is_least() {
        let mut survivors = Survivors::default();
        survivors.reset(500, true);
        // Ids that lie close, and ids that lie a power of two apart.
        for at in 0..400_u64 {
            let row = at * 7 % 100;
            let id = if row < 50 { row } else { row << 20 };
            survivors.push(Near { distance: at as f32, probe: 0, id }, |_| true);
        }
        survivors.settle(|_| true);
        let found = survivors.distinct();
        assert!(found.len() == 100 && found.iter().zip(0..).all(|(f, at)| f.distance == at as f32));
    }

    #[test]
    fn fewer_than_are_kept_leave_no_limit() {
        let mut survivors = survivors(10, &[3.0, 1.0, 2.0], &[99]);
        assert_eq!((survivors.distinct().len(), survivors.limit), (2, f32::INFINITY));
    }
}
