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

#[cfg(test)]
mod tests {
    use crate::index::exact;
    use crate::{Error, Index, Kind, Maintenance, Reads};

    #[test]
    fn a_search_whose_files_were_removed_meanwhile_and_are_not_open_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let options = Index::options(2).kind(Kind::Exact).segment_bytes(4096).threads(1);
        let options = options.maintenance(Maintenance::Manual).reads(Reads::Copy);
        let index = options.create(dir.path().join("index")).unwrap();
        let rows: Vec<f32> = (0..20_000_u16).flat_map(|n| [f32::from(n), 1.0]).collect();
        index.insert_many(&rows).unwrap();
        assert!(index.stats().segments > 256, "more than are kept open");
        let inner = &*index.inner;
        let old = inner.snapshot();
        index.remove_many(&(0..20_000).step_by(2).collect::<Vec<_>>()).unwrap();
        index.compact().unwrap();
        let query = [9000.0, 1.0];
        let ask = |snapshot: &super::Snapshot| {
            exact::answer(snapshot, &[inner.prepare(&query)?], 3, 1)
                .map(|mut found| found.remove(0).hits)
        };
        assert!(matches!(ask(&old), Err(Error::Corrupt { what, .. }) if what.contains("missing")));
        let found = inner.ask(old, ask).unwrap();
        assert_eq!(found, index.search(&query, 3).unwrap());
    }
}
