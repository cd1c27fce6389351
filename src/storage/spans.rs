//! Sets of ids as ranges: what is missing may be as many ids as were ever given.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ids, as ranges that do not touch each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Spans(BTreeMap<u64, u64>);

impl Spans {
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        while let Some((&from, &to)) =
            self.0.range(..=end).next_back().filter(|(_, to)| **to >= start)
        {
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        let Range { start, end } = range;
        while start < end
            && let Some((&from, &to)) =
                self.0.range(..end).next_back().filter(|(_, to)| **to > start)
        {
            self.0.remove(&from);
            for (from, to) in [(from, start), (end, to)] {
                if from < to {
                    self.0.insert(from, to);
                }
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use std::collections::BTreeSet;

    #[test]
    fn spans_hold_what_a_set_holds() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for _ in 0..200 {
            let (mut spans, mut set) = (Spans::default(), BTreeSet::new());
            for _ in 0..30 {
                let start = rng.random_range(0..60_u64);
                let range = start..start + rng.random_range(0..12);
                if rng.random_bool(0.5) {
                    spans.insert(range.clone());
                    set.extend(range);
                } else {
                    spans.remove(range.clone());
                    set.retain(|id| !range.contains(id));
                }
                assert!(spans.iter().flatten().eq(set.iter().copied()), "{spans:?}");
                let apart = spans.iter().zip(spans.iter().skip(1)).all(|(a, b)| a.end < b.start);
                assert!(apart && spans.is_empty() == set.is_empty(), "{spans:?}");
            }
        }
        let mut spans = Spans::default();
        spans.insert(0..u64::MAX);
        spans.remove(1 << 40..1 << 63);
        assert_eq!(spans.iter().count(), 2);
    }
}
