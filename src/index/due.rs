//! What is due, by the rows that came and went: not by how many there are, which need not change while all
//! of them are replaced.

use super::Inner;
use super::asked::LEAST_ASKED;
use super::snapshot::Snapshot;
use cellardb_format::KindCode;

/// Rows that came, and rows that went, since some moment.
#[derive(Debug, Clone, Copy)]
struct Turnover {
    came: u64,
    went: u64,
}

impl Turnover {
    /// Since there were `live` rows and the next one would have got `next_id`.
    fn since(snapshot: &Snapshot, next_id: u64, live: u64) -> Turnover {
        let state = &snapshot.state;
        let gone = state.next_id.saturating_sub(state.live);
        Turnover {
            came: state.next_id.saturating_sub(next_id),
            went: gone.saturating_sub(next_id.saturating_sub(live)),
        }
    }
}

/// A part of so many rows; one at least.
fn part(rows: u64, of: u64) -> u64 {
    (rows / of).max(1)
}

impl Inner {
    /// Whether recall has to be measured again: a quarter of the rows came or went, or a sixteenth came from
    /// elsewhere, or enough was asked that was not measured on.
    pub(super) fn measure_due(&self, snapshot: &Snapshot) -> bool {
        let Some(indexed) = &snapshot.indexed else { return false };
        let settings = &indexed.settings;
        let Turnover { came, went } = Turnover::since(snapshot, settings.next_id, settings.live);
        let unlike = snapshot.drift.unlike() && came >= part(settings.live, 16);
        let rows = part(settings.live, 4);
        came >= rows || went >= rows || unlike || self.asked_due(settings.asked)
    }

    /// Whether so much more was asked that what it takes may have changed: first when there is enough,
    /// then at four times as much, and then now and then.
    fn asked_due(&self, measured: u64) -> bool {
        let (count, next) = (self.asked.count(), measured.saturating_mul(4));
        count >= measured + next.clamp(LEAST_ASKED, 64 * LEAST_ASKED) && self.asked.is_enough()
    }

    /// Whether to train: at the first time that there are enough rows, at four times as many, which want
    /// twice the cells, and when half of those that were trained on have been replaced.
    pub(super) fn train_due(&self, snapshot: &Snapshot) -> bool {
        let live = snapshot.state.live;
        let enough = live >= self.config.train_at.max(1);
        let Some(record) = snapshot.indexed.as_ref().map(|indexed| &indexed.model.record) else {
            return self.config.kind != KindCode::Exact && enough;
        };
        let (rows, next_id) = (record.trained_rows, record.trained_next_id);
        let Turnover { came, went } = Turnover::since(snapshot, next_id, rows);
        enough && (live / 4 >= rows || came.min(went) >= part(rows, 2))
    }
}
