//! Asking a question of a snapshot: again where its files changed under the answer, and not at all in a
//! process that was forked from ours.

use super::Inner;
use super::snapshot::Snapshot;
use crate::callback::{self, Callback};
use crate::error::{Error, Result};
use crate::storage::lost_maps;
use std::sync::Arc;

impl Inner {
    /// Refuses to work in a forked child: locks that other threads held are held for ever there, and what
    /// it would write is the parent's.
    ///
    /// A disk of the host is refused as well: whatever it asks for may wait for what called it.
    pub(crate) fn here(&self) -> Result<()> {
        match callback::inside() {
            _ if !self.process.is_current() => Err(Error::Forked),
            Some(Callback::Disk) => Err(Error::InCallback),
            Some(Callback::Observer) | None => Ok(()),
        }
    }

    /// [`Inner::here`] for a call that waits for upkeep: the observer is called by upkeep, of this index or of
    /// one whose threads are the same.
    pub(crate) fn may_wait(&self) -> Result<()> {
        self.here()?;
        if callback::inside().is_some() { Err(Error::InCallback) } else { Ok(()) }
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
            if whole && same_files(&newest, &snapshot) {
                return answer;
            }
            snapshot = newest;
        }
    }
}

/// Whether no file was replaced between two snapshots.
fn same_files(a: &Snapshot, b: &Snapshot) -> bool {
    let lists = |s: &Snapshot| (s.state.generation, s.state.next_revision);
    let segments = |s: &Snapshot| s.rows.segments().map(|s| s.file.number()).collect::<Vec<_>>();
    lists(a) == lists(b) && segments(a) == segments(b)
}

#[cfg(test)]
mod tests {
    use super::Snapshot;
    use crate::index::exact;
    use crate::{Error, Index, Kind, Maintenance, Reads};
    use std::sync::{Arc, Mutex};

    /// An exact index of many segments that reads files, not maps, and what it is asked.
    fn index(dir: &std::path::Path, observer: impl Fn() + Send + Sync + 'static) -> Index {
        let options = Index::options(2).kind(Kind::Exact).segment_bytes(4096).threads(1);
        let options = options.maintenance(Maintenance::Manual).reads(Reads::Copy);
        let options = options.progress(move |at| {
            if at.stage == "compacting rows" {
                observer()
            }
        });
        let index = options.create(dir.join("index")).unwrap();
        let rows: Vec<f32> = (0..20_000_u16).flat_map(|n| [f32::from(n), 1.0]).collect();
        index.insert_many(&rows).unwrap();
        assert!(index.stats().segments > 256, "more than are kept open");
        index
    }

    fn begins_anew(index: &Index, old: Arc<Snapshot>) {
        let (inner, query) = (&*index.inner, [9000.0, 1.0]);
        let ask = |snapshot: &Snapshot| {
            exact::answer(snapshot, &[inner.prepare(&query)?], 3, 1)
                .map(|mut found| found.remove(0).hits)
        };
        assert!(matches!(ask(&old), Err(Error::Corrupt { what, .. }) if what.contains("missing")));
        let found = inner.ask(old, ask).unwrap();
        assert_eq!(found, index.search(&query, 3).unwrap());
    }

    #[test]
    fn a_search_whose_files_were_removed_meanwhile_and_are_not_open_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let index = index(dir.path(), || {});
        let old = index.inner.snapshot();
        index.remove_many(&(0..20_000).step_by(2).collect::<Vec<_>>()).unwrap();
        index.compact().unwrap();
        begins_anew(&index, old);
    }

    #[test]
    fn a_search_that_began_while_a_compaction_was_under_way_begins_anew_too() {
        type Seen = Arc<Mutex<(Option<Index>, Option<Arc<Snapshot>>)>>;
        let dir = tempfile::tempdir().unwrap();
        let seen: Seen = Arc::default();
        let watch = Arc::clone(&seen);
        let index = index(dir.path(), move || {
            let mut seen = watch.lock().unwrap();
            seen.1 = seen.0.as_ref().map(|index| index.inner.snapshot());
        });
        index.remove_many(&(0..20_000).step_by(2).collect::<Vec<_>>()).unwrap();
        seen.lock().unwrap().0 = Some(index.clone());
        index.compact().unwrap();
        let (_, old) = std::mem::take(&mut *seen.lock().unwrap());
        begins_anew(&index, old.unwrap());
    }
}
