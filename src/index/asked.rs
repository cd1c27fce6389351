//! A sample of the queries that are asked, to measure recall on: what rows stand in for until then.

use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use cellardb_format::AskedRecord;
use std::sync::atomic::AtomicBool;

/// Queries of the sample at most, and bytes of them.
const MOST: usize = 1000;
const MOST_BYTES: usize = 2 << 20;
/// Queries that were asked before recall is measured on them for the first time.
pub(super) const LEAST_ASKED: u64 = 1000;
/// Different ones among them that have to be there.
pub(super) const ENOUGH: usize = 300;
/// Once the sample is full, one query in so many takes the place of another at random: the chance that one
/// is still there halves with every 700 times so many (Aggarwal 2006, biased reservoirs).
const ONE_IN: u64 = 8;

/// The sample. Asking is the hot path: what is not kept costs one atomic number.
#[derive(Debug)]
pub(crate) struct Asked {
    keeps: bool,
    /// Queries in all.
    count: AtomicU64,
    full: AtomicBool,
    sample: Mutex<Vec<Box<[f32]>>>,
}

impl Asked {
    /// An empty sample; one that stays empty unless `keeps`.
    pub(crate) fn new(keeps: bool) -> Asked {
        let (count, full) = (AtomicU64::new(0), AtomicBool::new(false));
        Asked { keeps, count, full, sample: Mutex::default() }
    }

    /// Goes on with what was stored.
    pub(crate) fn restore(&self, record: &AskedRecord, dim: usize) {
        if self.keeps && dim > 0 {
            self.replace(record.queries.chunks_exact(dim).take(most(dim)), dim);
            self.count.store(record.asked, Ordering::Relaxed);
        }
    }

    /// Notes queries, row-major; whether to look if recall is to be measured on them.
    #[must_use]
    pub(crate) fn note(&self, queries: &[f32], dim: usize) -> bool {
        let n = (queries.len() / dim.max(1)) as u64;
        if !self.keeps || n == 0 {
            return false;
        }
        let first = self.count.fetch_add(n, Ordering::Relaxed);
        for (number, query) in (first..).zip(queries.chunks_exact(dim)) {
            let random = scramble(number);
            if self.full.load(Ordering::Relaxed) && !random.is_multiple_of(ONE_IN) {
                continue;
            }
            // Whoever comes while another keeps one is not kept.
            if let Ok(mut sample) = self.sample.try_lock() {
                // One that is asked again and again says no more than once what others take.
                if sample.iter().any(|kept| **kept == *query) {
                    continue;
                }
                if sample.len() < most(dim) {
                    sample.push(Box::from(query));
                    self.full.store(sample.len() == most(dim), Ordering::Relaxed);
                } else {
                    let at = (random >> 32) as usize % sample.len();
                    sample[at] = Box::from(query);
                }
            }
        }
        first / LEAST_ASKED != (first + n) / LEAST_ASKED
    }

    /// These are the sample from now on.
    pub(crate) fn give(&self, queries: &[f32], dim: usize) {
        if self.keeps {
            // Evenly from all of them.
            let step = (queries.len() / dim).div_ceil(most(dim)).max(1);
            self.replace(queries.chunks_exact(dim).step_by(step), dim);
        }
    }

    fn replace<'a>(&self, queries: impl Iterator<Item = &'a [f32]>, dim: usize) {
        let mut sample = lock(&self.sample);
        *sample = queries.map(Box::from).collect();
        self.full.store(sample.len() >= most(dim), Ordering::Relaxed);
    }

    /// How many were asked in all.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether the sample may say what others take.
    pub(super) fn is_enough(&self) -> bool {
        let sample = lock(&self.sample);
        sample.first().is_some_and(|query| sample.len() >= self.enough(query.len()))
    }

    /// How many different queries say what others take.
    pub(super) fn enough(&self, dim: usize) -> usize {
        ENOUGH.min(most(dim))
    }

    /// The sample as it is stored.
    pub(crate) fn record(&self) -> AskedRecord {
        let sample = lock(&self.sample);
        AskedRecord { asked: self.count(), queries: sample.concat() }
    }

    /// The sample, row-major.
    pub(crate) fn queries(&self) -> Vec<f32> {
        lock(&self.sample).concat()
    }
}

/// As many as fit into the bytes.
fn most(dim: usize) -> usize {
    (MOST_BYTES / (4 * dim.max(1))).clamp(1, MOST)
}

/// Numbers in a row made random (the finalizer of SplitMix64, Steele et al. 2014).
fn scramble(number: u64) -> u64 {
    let mut x = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::{Asked, MOST, ONE_IN};

    #[test]
    fn the_first_are_all_kept_and_later_ones_take_their_place() {
        let asked = Asked::new(true);
        let queries: Vec<f32> = (0..MOST).flat_map(|n| [n as f32, 1.0]).collect();
        let _ = asked.note(&queries, 2);
        assert_eq!(asked.record().queries, queries);
        let turns = 3 * MOST * ONE_IN as usize;
        for n in 0..turns {
            let _ = asked.note(&[(MOST + n) as f32, 1.0], 2);
        }
        assert_eq!(asked.count(), (MOST + turns) as u64);
        let kept = asked.record().queries;
        assert_eq!(kept.len(), 2 * MOST);
        let old = kept.chunks(2).filter(|query| (query[0] as usize) < MOST).count();
        // Of 1,000, e^-3 is 50.
        assert!((10..150).contains(&old), "{old}");
    }

    #[test]
    fn a_full_sample_that_was_given_or_stored_gives_way_as_slowly_as_one_that_was_asked() {
        let queries: Vec<f32> = (0..MOST).map(|n| n as f32).collect();
        let given = Asked::new(true);
        given.give(&queries, 1);
        let stored = Asked::new(true);
        stored.restore(&given.record(), 1);
        for asked in [given, stored] {
            for n in 0..MOST {
                let _ = asked.note(&[(MOST + n) as f32], 1);
            }
            let old = asked.queries().iter().filter(|query| (**query as usize) < MOST).count();
            // One in eight came in.
            assert!((850..930).contains(&old), "{old}");
        }
    }

    #[test]
    fn a_query_that_is_asked_again_counts_once() {
        let asked = Asked::new(true);
        for n in 0..300 {
            let _ = asked.note(&[(n % 3) as f32], 1);
        }
        assert_eq!(asked.queries(), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn nothing_is_kept_unless_it_is_wanted_and_long_queries_are_few() {
        let asked = Asked::new(false);
        let _ = asked.note(&[1.0; 50], 5);
        assert!(asked.record().queries.is_empty() && asked.count() == 0);
        let asked = Asked::new(true);
        let long: Vec<f32> = (0..65_535 * 20).map(|at| at as f32).collect();
        let _ = asked.note(&long, 65_535);
        assert_eq!(asked.record().queries.len(), 8 * 65_535);
    }
}
