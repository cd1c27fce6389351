//! Which row segments a compaction writes anew, and which of them as one: those that hold removed rows, and
//! neighbours that are small. Size tiers, as of Lucene and RocksDB, over the bytes that live: what is
//! rewritten for nothing but to be fewer files comes into a segment of a higher tier, so that no row is
//! rewritten more often than there are tiers, and few segments of a tier are left.

use super::Inner;
use super::snapshot::Snapshot;
use crate::storage::Tombstones;
use crate::storage::rows::Segment;
use cellardb_format::HEADER_LEN;
use std::ops::Range;

/// Rows of the smallest tier: bringing together fewer takes no longer than the syncs of it.
const LEAST_ROWS: u64 = 1024;
/// How much larger the segments of each tier are.
const RATIO: u64 = 4;
/// A sparse segment keeps ids as 32 bits.
const MOST_IDS: u64 = 1 << 32;

/// How far a compaction brings segments together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// As is due: no more than pays for itself.
    Due,
    /// As was asked for: all up to an eighth of a full segment.
    Asked,
}

/// A segment, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    first_id: u64,
    end_id: u64,
    /// Bytes of the rows that live.
    live: u64,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Written anew in any case: it holds removed rows.
    Rewritten,
    /// Written anew if that makes fewer segments.
    Open,
    /// Left alone: the next rows are appended to it.
    Kept,
}

/// The sizes of segments.
#[derive(Debug, Clone, Copy)]
struct Tiers {
    /// Where the second tier begins.
    least: u64,
    /// Bytes of the rows of a whole segment.
    whole: u64,
}

impl Tiers {
    /// From half of a whole segment on nothing is written anew to be fewer.
    fn is_full(self, live: u64) -> bool {
        live >= self.whole / 2
    }

    fn new(segment_bytes: u64, stride: u64, merge: Merge) -> Self {
        let whole = segment_bytes.saturating_sub(HEADER_LEN as u64);
        let most = (whole / 2).max(1);
        let least = match merge {
            Merge::Due => LEAST_ROWS * stride,
            Merge::Asked => (LEAST_ROWS * stride).max(whole / 8),
        };
        Self { least: least.min(most), whole }
    }

    /// Where the tiers end, the full segments at last.
    fn ends(self) -> Vec<u64> {
        let (mut ends, mut end) = (Vec::new(), self.least);
        while !self.is_full(end) {
            ends.push(end);
            end = end.saturating_mul(RATIO);
        }
        ends.push(self.whole / 2);
        ends
    }
}

/// Runs of segments of which each is written anew as one.
fn plan(pieces: &[Piece], tiers: Tiers) -> Vec<Range<usize>> {
    let mut taken = vec![false; pieces.len()];
    let mut jobs = Vec::new();
    // The largest runs first: those of smaller segments lie in them. What holds removed rows is not brought
    // together with more than its tier allows, though it is written anyway: rows that stay would be written again
    // whenever some of those that go beside them are removed.
    for (tier, end) in tiers.ends().into_iter().enumerate().rev() {
        let belongs = |at: usize, taken: &[bool]| {
            let Piece { live, fate, .. } = pieces[at];
            !taken[at] && fate != Fate::Kept && live < end
        };
        let mut at = 0;
        while at < pieces.len() {
            let run = (at..pieces.len()).take_while(|at| belongs(*at, &taken)).count();
            let live: u64 = pieces[at..at + run].iter().map(|piece| piece.live).sum();
            // Of the least tier any two; of the others as many as make one of the next.
            if run > 1 && (tier == 0 || live >= end) {
                taken[at..at + run].fill(true);
                jobs.extend(split(pieces, at..at + run, tiers.whole));
            }
            at += run.max(1);
        }
    }
    let alone = |at: &usize| !taken[*at] && pieces[*at].fate == Fate::Rewritten;
    jobs.extend((0..pieces.len()).filter(alone).map(|at| at..at + 1));
    jobs.sort_by_key(|job| job.start);
    jobs
}

/// Splits a run into pieces that fit one segment each; leaves out those that stay what they are.
fn split(pieces: &[Piece], run: Range<usize>, whole: u64) -> Vec<Range<usize>> {
    let (mut jobs, mut start, mut live) = (Vec::new(), run.start, 0);
    for at in run.clone() {
        let ids = pieces[at].end_id - pieces[start].first_id;
        if at > start && (live + pieces[at].live > whole || ids > MOST_IDS) {
            jobs.push(start..at);
            (start, live) = (at, 0);
        }
        live += pieces[at].live;
    }
    jobs.push(start..run.end);
    jobs.retain(|job| job.len() > 1 || pieces[job.start].fate == Fate::Rewritten);
    jobs
}

impl Inner {
    /// What a compaction of these segments, which are all that there are, does: runs of segments, each of
    /// which is written anew as one.
    pub(super) fn merges(
        &self,
        segments: &[&Segment],
        removed: &Tombstones,
        merge: Merge,
    ) -> Vec<Range<usize>> {
        let Some(stride) = segments.first().map(|s| s.stride()) else { return Vec::new() };
        let piece = |(at, segment): (usize, &&Segment)| {
            let (first_id, end_id) = (segment.file.first_id(), segment.end_id);
            let dead = removed.count(first_id, end_id);
            let last = at + 1 == segments.len() && segment.file.ids().is_none();
            let fate = match (dead, last) {
                (0, true) => Fate::Kept,
                (0, false) => Fate::Open,
                _ => Fate::Rewritten,
            };
            Piece { first_id, end_id, live: (segment.rows - dead) * stride, fate }
        };
        let pieces: Vec<Piece> = segments.iter().enumerate().map(piece).collect();
        let tiers = Tiers::new(self.config.segment_bytes, stride, merge);
        let jobs = plan(&pieces, tiers);
        let left = pieces.len() - jobs.iter().map(|job| job.len() - 1).sum::<usize>();
        let live = pieces.iter().map(|piece| piece.live).sum();
        let next_id = segments.last().map_or(0, |s| s.end_id);
        if (left as u64) <= self.most_segments(live, next_id, stride) {
            return jobs;
        }
        // Where small ones and large ones take turns tiers do not bring them together.
        plan(&pieces, Tiers { least: (tiers.whole / 2).max(1), ..tiers })
    }

    /// More segments than these are too many for so many bytes: eight for each that would be full, one for each
    /// tier, and a few. Where all neighbours that fit one segment are in one there are fewer.
    fn most_segments(&self, live: u64, next_id: u64, stride: u64) -> u64 {
        let tiers = Tiers::new(self.config.segment_bytes, stride, Merge::Due);
        let full = live / tiers.whole.max(1);
        8 + tiers.ends().len() as u64 + 8 * full + 2 * (next_id / MOST_IDS)
    }

    /// Whether there are so many segments that some have to be brought together, whether rows were removed
    /// or not.
    pub(super) fn is_scattered(&self, snapshot: &Snapshot) -> bool {
        let stride = snapshot.rows.shape().layout.stride() as u64;
        let (live, next) = (snapshot.state.live * stride, snapshot.state.next_id);
        snapshot.rows.segments().count() as u64 > self.most_segments(live, next, stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const TIERS: Tiers = Tiers { least: 10, whole: 1000 };

    fn pieces(live: &[u64], fate: impl Fn(usize) -> Fate) -> Vec<Piece> {
        let piece = |(at, live): (usize, &u64)| {
            let first_id = at as u64 * 100;
            Piece { first_id, end_id: first_id + 100, live: *live, fate: fate(at) }
        };
        live.iter().enumerate().map(piece).collect()
    }

    /// Where each run of the plan begins and ends.
    fn runs(pieces: &[Piece], tiers: Tiers) -> Vec<(usize, usize)> {
        plan(pieces, tiers).into_iter().map(|run| (run.start, run.end)).collect()
    }

    fn open(live: &[u64], tiers: Tiers) -> Vec<(usize, usize)> {
        runs(&pieces(live, |_| Fate::Open), tiers)
    }

    #[test]
    fn neighbours_become_one_of_a_higher_tier_or_stay() {
        assert_eq!(open(&[4, 5], TIERS), [(0, 2)], "two of the least tier");
        assert_eq!(open(&[10, 11, 12], TIERS), [], "not as many as make one of the next");
        assert_eq!(open(&[10, 11, 12, 10], TIERS), [(0, 4)]);
        assert_eq!(open(&[10, 3, 11, 3, 12, 3], TIERS), [(0, 6)], "smaller ones go along");
        assert_eq!(
            open(&[400, 10, 11, 12, 10, 400], TIERS),
            [(0, 6)],
            "and larger ones to full ones"
        );
        assert_eq!(open(&[500, 4, 700, 5, 1000], TIERS), [], "no full one is written anew");
        assert_eq!(open(&[4, 5, 500, 5, 5], TIERS), [(0, 2), (3, 5)]);
        assert_eq!(
            open(&[400, 400, 400, 400, 400], TIERS),
            [(0, 2), (2, 4)],
            "no more than fit one"
        );
        assert_eq!(open(&[], TIERS), []);
    }

    #[test]
    fn what_holds_removed_rows_is_written_anew_with_what_is_small_beside_it() {
        let rewritten = |live: &[u64], at: &[usize]| {
            let fate = |n| if at.contains(&n) { Fate::Rewritten } else { Fate::Open };
            runs(&pieces(live, fate), TIERS)
        };
        assert_eq!(rewritten(&[900], &[0]), [(0, 1)]);
        assert_eq!(rewritten(&[900, 900, 900], &[1]), [(1, 2)]);
        assert_eq!(rewritten(&[900, 300, 600, 20], &[1, 2]), [(1, 2), (2, 3)]);
        assert_eq!(rewritten(&[900, 300, 800, 9, 0], &[1, 2, 4]), [(1, 2), (2, 3), (3, 5)]);
        assert_eq!(rewritten(&[300, 300, 4], &[1]), [(0, 3)]);
        let kept = |n| if n == 1 { Fate::Kept } else { Fate::Open };
        assert_eq!(runs(&pieces(&[4, 5], kept), TIERS), [], "rows are still appended to it");
    }

    #[test]
    fn ids_that_32_bits_do_not_tell_apart_stay_in_segments_of_their_own() {
        let far = |first_id, end_id| Piece { first_id, end_id, live: 1, fate: Fate::Open };
        let (half, most) = (MOST_IDS / 2, MOST_IDS);
        let run = [far(0, half), far(half, most), far(most, most + 1), far(most + 9, most + 10)];
        assert_eq!(runs(&run, TIERS), [(0, 2), (2, 4)]);
    }

    /// Segments as they come and go: rows are appended, removed, and compacted.
    struct World {
        live: Vec<u64>,
        /// Rows that were written to be fewer files.
        moved: u64,
        appended: u64,
    }

    impl World {
        fn compact(&mut self, tiers: Tiers) {
            let before = self.live.clone();
            let jobs = plan(&pieces(&before, |_| Fate::Open), tiers);
            let mut after = before.clone();
            for job in jobs.iter().rev() {
                let sum: u64 = before[job.clone()].iter().sum();
                assert!(sum <= tiers.whole && job.len() > 1);
                assert!(before[job.clone()].iter().all(|live| !tiers.is_full(*live)));
                self.moved += sum;
                after.splice(job.clone(), [sum]);
            }
            after.retain(|live| *live > 0);
            self.live = after;
        }
    }

    #[test]
    fn segments_stay_few_and_no_row_is_moved_more_often_than_there_are_tiers() {
        let tiers = Tiers { least: 64, whole: 1 << 16 };
        for removed in [0, 1, 50] {
            let mut rng = ChaCha8Rng::seed_from_u64(removed);
            let mut world = World { live: Vec::new(), moved: 0, appended: 0 };
            for _ in 0..20_000 {
                let rows = rng.random_range(1..100);
                world.live.push(rows);
                world.appended += rows;
                for live in &mut world.live {
                    // Some segments shrink, whichever.
                    if removed > 0 && rng.random_range(0..1000) < removed {
                        *live /= 2;
                    }
                }
                world.compact(tiers);
            }
            let (count, total) = (world.live.len() as u64, world.live.iter().sum::<u64>());
            let ends = tiers.ends().len() as u64;
            assert!(count <= 3 * ends + 8 * (total / tiers.whole) + 8, "{count} for {total}");
            let most = world.appended * (ends + 1);
            assert!(world.moved <= most, "{} of {}", world.moved, world.appended);
        }
    }

    #[test]
    fn small_and_large_ones_in_turns_fit_the_bound_once_all_are_brought_together() {
        let tiers = Tiers { least: 10, whole: 100_000 };
        let turns: Vec<u64> =
            (1..2000_u64).map(|n| 11 << (2 * n.trailing_zeros().min(5))).collect();
        let left = |tiers| {
            let gone = open(&turns, tiers).into_iter().map(|(from, to)| to - from - 1);
            turns.len() - gone.sum::<usize>()
        };
        let full = turns.iter().sum::<u64>() as usize / 100_000;
        let all = left(Tiers { least: tiers.whole / 2, ..tiers });
        assert!(all <= 2 * full + 1, "{all} of {full}");
    }
}
