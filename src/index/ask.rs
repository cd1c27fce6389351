//! Asking a question of a snapshot: again where its files changed under the answer, and not at all in a
//! process that was forked from ours.

use super::Inner;
use super::snapshot::Snapshot;
use crate::error::{Error, Result};
use crate::storage::lost_maps;
use std::sync::Arc;

impl Inner {
    /// Refuses to work in a forked child: locks that other threads held are held for ever there, and what
    /// it would write is the parent's.
    pub(crate) fn here(&self) -> Result<()> {
        if self.process.is_current() { Ok(()) } else { Err(Error::Forked) }
    }

    /// Asks until nothing happened meanwhile that spoils the answer. A map that was lost gave zeros; from
    /// then on its file is read instead, every piece verified. A file of an older snapshot may have been
    /// replaced and removed; the newest one has it in another form.
    pub(crate) fn ask<T>(
        &self,
        mut snapshot: Arc<Snapshot>,
        ask: impl Fn(&Snapshot) -> Result<T>,
    ) -> Result<T> {
        loop {
            let lost = lost_maps();
            let answer = ask(&snapshot);
            let whole = lost_maps() == lost;
            if whole && answer.is_ok() {
                return answer;
            }
            let newest = self.snapshot();
            if whole && files(&newest) == files(&snapshot) {
                return answer;
            }
            snapshot = newest;
        }
    }
}

/// What changes whenever a file is replaced.
fn files(snapshot: &Snapshot) -> (u32, u32, u64) {
    let state = &snapshot.state;
    (state.generation, state.next_revision, state.next_segment)
}
