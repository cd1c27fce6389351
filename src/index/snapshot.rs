//! What a reader holds: one committed state, immutable, shared without locks.

use super::model::Model;
use super::tail::Tail;
use crate::storage::Tombstones;
use crate::storage::directory::Directory;
use crate::storage::rows::Rows;
use cellardb_format::{Setting, State};
use std::ops::Range;
use std::sync::Arc;

/// A trained model with its lists.
#[derive(Debug, Clone)]
pub(crate) struct Indexed {
    pub(crate) model: Arc<Model>,
    pub(crate) lists: Arc<Directory>,
    /// What each recall takes, as measured when the model was trained.
    pub(crate) settings: Arc<Vec<Setting>>,
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
}

impl Snapshot {
    /// Rows that are in no list, removed ones among them. Ids without a row are none.
    pub(crate) fn tail_rows(&self) -> u64 {
        self.rows.count_from(self.state.watermark)
    }
}
