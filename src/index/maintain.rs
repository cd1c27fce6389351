//! When something is done without being asked: folding, training, compacting, measuring.

use super::Inner;
use super::fold::Rewrite;
use super::snapshot::Snapshot;
use crate::callback;
use crate::error::{Error, Result};
use crate::options::Maintenance;
use std::time::Duration;

/// What a small insert waits at most for a fold that it does not do itself.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

impl Inner {
    /// How often the rows that wait for a fold fill the tail. It grows in proportion to the index, so
    /// that the work of all folds together stays in proportion too.
    pub(super) fn tails_due(snapshot: &Snapshot) -> u64 {
        let rows = if snapshot.indexed.is_some() { snapshot.tail_rows() } else { 0 };
        rows / (snapshot.state.live / 16).max(4096)
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
