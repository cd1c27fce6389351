//! What a reader holds: one committed state, immutable, shared without locks.

use super::drift::Drift;
use super::model::Model;
use super::tail::Tail;
use crate::storage::Tombstones;
use crate::storage::directory::Directory;
use crate::storage::rows::Rows;
use cellardb_format::{Settings, State};
use std::ops::Range;
use std::sync::Arc;

/// A trained model with its lists.
#[derive(Debug, Clone)]
pub(crate) struct Indexed {
    pub(crate) model: Arc<Model>,
    pub(crate) lists: Arc<Directory>,
    /// What each recall takes, as measured last.
    pub(crate) settings: Arc<Settings>,
}

/// The index after some commit. Cloning shares everything that is large.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) state: State,
    pub(crate) rows: Rows,
    pub(crate) dead: Tombstones,
    pub(crate) indexed: Option<Indexed>,
    /// Rows `state.watermark..state.next_id` but for `plain`, encoded; empty without a model.
    pub(crate) tail: Tail,
    /// Rows that are in no list and not encoded yet: a search compares with each of them.
    pub(crate) plain: Range<u64>,
    /// Rows since recall was measured, and how unlike those they are.
    pub(crate) drift: Drift,
}

/// Which rows the cells may bring into an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visible<'a> {
    dead: &'a Tombstones,
    /// Ascending; these are left out as if they had been removed.
    hidden: &'a [u64],
    /// Rows from here on are compared in full.
    below: u64,
}

impl Visible<'_> {
    /// Whether it is every row that there is.
    pub(crate) fn all(&self) -> bool {
        self.dead.len() == 0 && self.hidden.is_empty() && self.below == u64::MAX
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        id < self.below && !self.dead.contains(id) && self.hidden.binary_search(&id).is_err()
    }
}

impl Snapshot {
    /// Rows that are in no list, removed ones among them. Ids without a row are none.
    pub(crate) fn tail_rows(&self) -> u64 {
        self.rows.count_from(self.state.watermark)
    }

    /// What the cells may bring into an answer, but for `hidden` ids, which ascend.
    pub(crate) fn visible<'a>(&'a self, hidden: &'a [u64]) -> Visible<'a> {
        let below = self.drift.apart().unwrap_or(u64::MAX);
        Visible { dead: &self.dead, hidden, below }
    }

    /// The rows that every search compares with in full, beside those that its cells hold.
    pub(crate) fn in_full(&self) -> [Range<u64>; 2] {
        match self.drift.apart() {
            None => [self.plain.clone(), 0..0],
            Some(from) => [
                self.plain.start..self.plain.end.min(from).max(self.plain.start),
                from..self.state.next_id,
            ],
        }
    }
}
