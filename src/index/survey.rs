//! What every smaller effort would have found, told from one wide scan of each query: so the cheapest that
//! reaches a recall is chosen.

use super::Inner;
use super::measure::{Judge, K};
use super::plan::{Effort, Most, Prices, Work, within};
use super::snapshot::{Indexed, Snapshot};
use super::topk::Near;
use super::walk::{Trace, trace};
use crate::error::Result;
use rayon::prelude::*;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Rerank depths to choose from.
const DEPTHS: [usize; 11] = [20, 30, 40, 60, 80, 100, 120, 160, 240, 320, 640];
/// Bounds to choose from, in units of the squared distance of the last candidate; 0 for none.
const STOPS: [f32; 18] = [
    0.0, 0.85, 0.9, 0.95, 0.975, 1.0, 1.025, 1.05, 1.075, 1.1, 1.125, 1.15, 1.175, 1.2, 1.25, 1.3,
    1.4, 1.6,
];
/// Slacks to choose from: beyond them one in so many true neighbours is estimated.
const BEYOND: [usize; 3] = [300, 1000, 4000];
const DEEPEST: usize = DEPTHS[DEPTHS.len() - 1];

/// The scan of one query with some number of probes: enough to tell what any smaller number, with
/// any rerank depth and bound, would have found.
struct Sight {
    trace: Trace,
    /// Of each estimate of the trace the bit of the true neighbour that it is, if it is one.
    truth: Vec<u32>,
    /// The squared distance of the last true neighbour.
    last: f32,
}

impl Sight {
    /// What this query meets at a rerank depth, whatever ends its scan.
    fn reach(&self, rerank: usize, slacks: &Slacks, caps: &[usize]) -> Reach {
        let ends = self.ends(rerank);
        let stopped = ends.map(|end| self.found(rerank, slacks, end));
        let capped = caps.iter().map(|cap| self.found(rerank, slacks, *cap)).collect();
        Reach { ends, stopped, capped }
    }

    /// Where each bound ends the scan of this query: the number of cells visited.
    fn ends(&self, rerank: usize) -> [usize; STOPS.len()] {
        let Trace { near, cells, .. } = &self.trace;
        let mut of_cell: Vec<(u32, f32)> = near.iter().map(|n| (n.probe, n.distance)).collect();
        of_cell.sort_by_key(|(probe, _)| *probe);
        let (mut found, mut best) = (of_cell.into_iter().peekable(), BinaryHeap::new());
        let mut ends = [cells.len(); STOPS.len()];
        let mut open = STOPS.len();
        for (visited, from_cell) in cells.iter().enumerate() {
            while let Some((_, distance)) = found.next_if(|at| (at.0 as usize) < visited) {
                best.push(Sortable(distance));
                if best.len() > rerank {
                    best.pop();
                }
            }
            if best.len() < rerank {
                continue;
            }
            let last = best.peek().map_or(f32::INFINITY, |last| last.0);
            for (stop, end) in STOPS.iter().zip(&mut ends) {
                if *end == cells.len() && *stop > 0.0 && *from_cell >= stop * last {
                    (*end, open) = (visited, open - 1);
                }
            }
            if open == 1 {
                break; // But for the one without a bound.
            }
        }
        ends
    }

    /// True neighbours among the best `rerank` estimates of the first cells, as far as these are
    /// compared under each slack, and how many are.
    fn found(&self, rerank: usize, slacks: &Slacks, cells: usize) -> [Met; BEYOND.len()] {
        let rows = self.trace.near.iter().zip(&self.truth);
        let reached = rows.filter(|(near, _)| (near.probe as usize) < cells).take(rerank);
        let most = slacks.map(|slack| within(slack, self.last));
        let mut met = [(0_u32, 0); BEYOND.len()];
        for (near, bit) in reached {
            for (met, most) in met.iter_mut().zip(&most) {
                if near.distance < *most {
                    *met = (met.0 | bit, met.1 + 1);
                }
            }
        }
        // Of rows that are equally far any will do.
        let most = K as u32;
        met.map(|(truth, rows)| Met { truth: truth.count_ones().min(most), rows })
    }

    /// How many times the distance of the last true neighbour each of them is estimated at.
    fn ratios(&self) -> impl Iterator<Item = f32> {
        let mut found = 0;
        let first = self.trace.near.iter().zip(&self.truth).filter(move |(_, bit)| {
            let new = **bit & !found;
            found |= new;
            new != 0
        });
        let sound = self.last > 0.0 && self.last.is_finite();
        first.filter(move |_| sound).map(|(near, _)| near.distance / self.last)
    }
}

/// One slack for each of [`BEYOND`].
type Slacks = [f32; BEYOND.len()];

/// What a query meets: true neighbours, and rows that it compares.
#[derive(Clone, Copy)]
struct Met {
    truth: u32,
    rows: u32,
}

/// What a query meets at one rerank depth where each bound and each cap ends it.
struct Reach {
    ends: [usize; STOPS.len()],
    stopped: [[Met; BEYOND.len()]; STOPS.len()],
    capped: Vec<[Met; BEYOND.len()]>,
}

impl Reach {
    /// Cells visited and what was met, by the bound or the cap, whichever comes first.
    fn at(&self, stop: usize, (at, cap): (usize, usize)) -> (usize, [Met; BEYOND.len()]) {
        let end = self.ends[stop];
        if cap < end { (cap, self.capped[at]) } else { (end, self.stopped[stop]) }
    }
}

/// An `f32` in its total order.
#[derive(PartialEq)]
struct Sortable(f32);

impl Eq for Sortable {}

impl PartialOrd for Sortable {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Sortable {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The scans of all queries with some number of probes.
pub(super) struct Survey {
    probes: usize,
    sights: Vec<Sight>,
    wanted: usize,
}

impl Survey {
    /// Scans for each query.
    pub(super) fn new(
        inner: &Inner,
        (snapshot, indexed): (&Snapshot, &Indexed),
        judges: &[Judge],
        probes: usize,
    ) -> Result<Survey> {
        let effort = Effort { probes, rerank: DEEPEST, stop: 0.0, slack: 0.0, most: Most::ANY };
        let one = |judge: &Judge| -> Result<Sight> {
            inner.go_on()?;
            let query = inner.prepare(&judge.vector)?.without(&judge.hidden);
            let trace = trace(snapshot, indexed, &query, effort)?;
            let bit = |near: &Near| match judge.truth.iter().position(|id| *id == near.id) {
                Some(at) => 1 << at,
                None => 0,
            };
            let (truth, last) =
                (trace.near.iter().map(bit).collect(), trace.scale.of_key(judge.last));
            Ok(Sight { trace, truth, last })
        };
        let sights = judges.par_iter().map(one).collect::<Result<_>>()?;
        let wanted = judges.iter().map(Judge::wanted).sum();
        Ok(Survey { probes, sights, wanted })
    }

    /// The most that any smaller effort finds.
    pub(super) fn most(&self) -> f32 {
        let none = [0.0; BEYOND.len()];
        let all = self.sights.par_iter().map(|s| s.found(DEEPEST, &none, self.probes)[0].truth);
        all.sum::<u32>() as f32 / self.wanted.max(1) as f32
    }

    /// Codes that a query scans on average.
    pub(super) fn codes(&self) -> f32 {
        let codes = self.sights.iter().filter_map(|sight| sight.trace.codes.last());
        codes.map(|codes| *codes as f32).sum::<f32>() / self.sights.len().max(1) as f32
    }

    /// The ratios that all but a few of the true neighbours that were met are estimated within.
    fn slacks(&self) -> Slacks {
        let mut ratios: Vec<f32> = self.sights.iter().flat_map(Sight::ratios).collect();
        ratios.sort_unstable_by(f32::total_cmp);
        let beyond = |few: usize| ratios.len().checked_sub(1 + ratios.len() / few);
        let slack = |at: usize| ratios[at].max(1.0) * (1.0 + f32::EPSILON);
        BEYOND.map(|few| beyond(few).map_or(0.0, slack))
    }

    /// The cheapest effort for each recall, by the price of its mean query; the best there is where
    /// none reaches it. No part of the effort for less recall goes farther than that for more.
    pub(super) fn cheapest(&self, recalls: &[f32], prices: &Prices, flat: bool) -> Vec<Effort> {
        let caps = self.caps();
        let depths = if flat { &[K][..] } else { &DEPTHS[..] };
        // What is exact needs no comparing.
        let slacks = if flat { [0.0; BEYOND.len()] } else { self.slacks() };
        let measured: Vec<Trial> =
            depths.iter().flat_map(|depth| self.trials(*depth, &slacks, &caps, prices)).collect();
        let least =
            Effort { probes: self.probes, rerank: DEEPEST, stop: 0.0, slack: 0.0, most: Most::ANY };
        let mut chosen: Vec<Effort> = Vec::new();
        for recall in recalls.iter().rev() {
            let most = chosen.last().unwrap_or(&least);
            let within = || measured.iter().filter(|trial| trial.effort.is_within(most));
            let enough = within().filter(|trial| trial.recall >= *recall);
            let cheapest = enough.min_by(|a, b| a.price.total_cmp(&b.price));
            let better = |a: &&Trial, b: &&Trial| {
                a.recall.total_cmp(&b.recall).then(b.price.total_cmp(&a.price))
            };
            let best = cheapest.or_else(|| within().max_by(better));
            chosen.push(best.map_or(*most, |trial| trial.effort));
        }
        chosen.reverse();
        chosen
    }

    /// What all bounds, caps and slacks find at one rerank depth, and what that costs.
    fn trials(&self, depth: usize, slacks: &Slacks, caps: &[usize], prices: &Prices) -> Vec<Trial> {
        let sights = self.sights.par_iter().map(|sight| sight.reach(depth, slacks, caps));
        let reaches: Vec<Reach> = sights.collect();
        let mut trials = Vec::with_capacity(STOPS.len() * caps.len() * BEYOND.len());
        for (stop, bound) in STOPS.iter().enumerate() {
            for (at, cap) in caps.iter().enumerate() {
                let mut met = [(0, 0); BEYOND.len()];
                let (mut codes, mut cells) = (0.0, 0);
                for (sight, reach) in self.sights.iter().zip(&reaches) {
                    let (end, found) = reach.at(stop, (at, *cap));
                    met.iter_mut().zip(found).for_each(|(m, f)| *m = (m.0 + f.truth, m.1 + f.rows));
                    codes += end.checked_sub(1).map_or(0.0, |at| sight.trace.codes[at] as f32);
                    cells += end;
                }
                let n = self.sights.len().max(1) as f32;
                for (slack, (truth, rows)) in slacks.iter().zip(met) {
                    let work =
                        Work { codes: codes / n, cells: cells as f32 / n, rows: rows as f32 / n };
                    let (probes, rerank, stop, slack) = (*cap, depth, *bound, *slack);
                    trials.push(Trial {
                        recall: truth as f32 / self.wanted.max(1) as f32,
                        price: prices.of(*cap, work),
                        effort: Effort { probes, rerank, stop, slack, most: Most::ANY },
                    });
                }
            }
        }
        trials
    }

    /// Numbers of probes to choose from.
    fn caps(&self) -> Vec<usize> {
        let mut caps: Vec<usize> = std::iter::successors(Some(1), |cap| Some(cap + cap / 6 + 1))
            .take_while(|c| *c < self.probes)
            .collect();
        caps.push(self.probes);
        caps
    }
}

/// An effort, and what it would have found at what price.
struct Trial {
    recall: f32,
    price: f32,
    effort: Effort,
}
