//! When something is done without being asked: folding, training, compacting, measuring.

use super::Inner;
use super::fold::Rewrite;
use super::snapshot::Snapshot;
use crate::callback;
use crate::error::{Error, Result};
use crate::options::{Kind, Maintenance};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a small insert waits at most for a fold that it does not do itself.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// The number of rows that recall was measured with last, as far as can be told of an index that is being
/// opened: nobody knows more than that it was trained, and what it grew by since.
pub(crate) fn measured_with(snapshot: &Snapshot) -> u64 {
    let live = snapshot.state.live;
    let mut rows = snapshot.indexed.as_ref().map_or(live, |i| i.model.record.trained_rows);
    if live <= rows / 2 {
        return live;
    }
    while grown(rows) <= live {
        rows = grown(rows);
    }
    rows
}

/// So many rows are so many more that recall has to be measured again: new ones may come from elsewhere
/// than the old, and are found by fewer probes or by more.
fn grown(rows: u64) -> u64 {
    rows.saturating_add((rows / 4).max(1))
}

impl Inner {
    /// Whether there are so many more rows, or fewer, that recall has to be measured again.
    pub(super) fn measure_due(&self, snapshot: &Snapshot) -> bool {
        let (live, then) = (snapshot.state.live, self.measured.load(Ordering::Relaxed));
        snapshot.indexed.is_some() && (live >= grown(then) || live <= then / 2)
    }

    /// How often the rows that wait for a fold fill the tail. It grows in proportion to the index, so
    /// that the work of all folds together stays in proportion too.
    pub(super) fn tails_due(snapshot: &Snapshot) -> u64 {
        let rows = if snapshot.indexed.is_some() { snapshot.tail_rows() } else { 0 };
        rows / (snapshot.state.live / 16).max(4096)
    }

    pub(super) fn train_due(&self, snapshot: &Snapshot) -> bool {
        let live = snapshot.state.live;
        let enough = live >= (self.options.train_at as u64).max(1);
        let trained = snapshot.indexed.as_ref().map(|i| i.model.record.trained_rows);
        // Four times the rows want twice the cells, and the old ones know nothing of the new rows.
        self.options.kind != Kind::Exact && enough && trained.is_none_or(|n| live / 4 >= n)
    }

    pub(super) fn compact_due(snapshot: &Snapshot) -> bool {
        let dead = snapshot.dead.len();
        dead >= 1024 && dead >= snapshot.state.live / 4
    }

    /// Called after each change, which took so long: wakes the background, or does what cannot wait.
    pub(crate) fn upkeep_if_due(&self, (took, large): (Duration, bool)) {
        let snapshot = self.snapshot();
        let tails = Self::tails_due(&snapshot);
        let background = self.options.maintenance == Maintenance::Background;
        let due = self.train_due(&snapshot)
            || tails >= 1
            || Self::compact_due(&snapshot)
            || self.measure_due(&snapshot);
        let folds = background && (!due || self.signal.notify());
        // The tail is in memory: whoever inserts faster than it is folded waits here. A failure is
        // not the insert's, which is durable; the next flush reports it.
        if tails < 4 || callback::inside().is_some() {
            return;
        }
        let full = large && snapshot.tail.bytes() > self.options.memory / 2;
        if full {
            let _ = self.fold();
        } else if !folds && let Some(_upkeep) = self.try_upkeep() {
            let _ = self.fold_now(Rewrite::Fragmented);
        } else {
            let share = took * u32::try_from(tails / 4).unwrap_or(u32::MAX).min(16) / 4;
            self.signal.pause(if large { share } else { share.min(LONGEST_PAUSE) });
        }
    }

    /// Ends long work early when the index is being closed.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.signal.stopped() { Err(Error::Closed) } else { Ok(()) }
    }
}
