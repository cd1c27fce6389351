//! Reading everything, and holding every part against every other.

use super::Index;
use super::snapshot::Snapshot;
use crate::error::{Error, Result};
use cellardb_format::{BLOCK_ROWS, NO_ID};
use roaring::RoaringTreemap;
use std::path::PathBuf;

/// A place that does not hold what was written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What was found.
    pub what: String,
}

/// What [`Index::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Rows that are whole; removed ones too, as long as their space was not given back.
    pub rows: u64,
    /// What is damaged; empty if nothing is.
    pub damage: Vec<Damage>,
}

impl Report {
    /// Notes a damage; other errors end the verification.
    pub(super) fn note(&mut self, e: Error) -> Result<()> {
        let (path, offset, what) = match e {
            Error::Corrupt { path, offset, what } => (path, offset, what),
            Error::Io { op, path, source } => (path, 0, format!("cannot {op}: {source}")),
            other => return Err(other),
        };
        self.damage.push(Damage { path, offset, what });
        Ok(())
    }
}

impl Index {
    /// Reads every byte that counts, whatever was verified before, and checks that the catalog,
    /// the rows and the lists agree. Damage is reported, not an error.
    ///
    /// # Errors
    ///
    /// Only for what is no finding, such as [`Error::Io`] on a lock.
    pub fn verify(&self) -> Result<Report> {
        let inner = &*self.inner;
        inner.may_wait()?;
        // Nothing folds or compacts meanwhile, so that the files of the snapshot stay.
        let _upkeep = inner.hold_upkeep();
        let mut report = Report::default();
        let snapshot = {
            let mut writer = inner.writer();
            report.files += 1;
            report.bytes += writer.store.catalog_bytes();
            if let Err(e) = writer.store.verify() {
                report.note(e)?;
            }
            if let Err(e) = writer.store.verify_names() {
                report.note(e)?;
            }
            inner.snapshot()
        };
        let total = snapshot.state.next_id;
        for segment in snapshot.rows.segments() {
            report.files += 1;
            report.bytes += segment.bytes();
            inner.progress("verifying rows", segment.file.first_id(), total);
            let mut found = Vec::new();
            let disk = &*inner.options.disk;
            report.rows += snapshot.rows.verify(disk, segment, &mut |e| found.push(e));
            found.into_iter().try_for_each(|e| report.note(e))?;
        }
        let Some(indexed) = &snapshot.indexed else { return Ok(report) };
        for (done, list) in (0..).zip(indexed.lists.iter()) {
            report.files += 1;
            report.bytes += list.entry().length;
            inner.progress("verifying lists", done, indexed.lists.len() as u64);
            let mut found = Vec::new();
            list.verify_all(&*inner.options.disk, |e| found.push(e))?;
            found.into_iter().try_for_each(|e| report.note(e))?;
        }
        if report.damage.is_empty() {
            members(&snapshot, &mut report)?;
        }
        Ok(report)
    }
}

/// Whether the lists hold each live row below the watermark, as often as the model has copies of it
/// at the most, and no row that is not there.
fn members(snapshot: &Snapshot, report: &mut Report) -> Result<()> {
    let Some(indexed) = &snapshot.indexed else { return Ok(()) };
    let layout = &indexed.model.layout;
    let (mut seen, mut twice) = (RoaringTreemap::new(), RoaringTreemap::new());
    let mut add = |id| seen.insert(id) || (indexed.model.copies() == 2 && twice.insert(id));
    let mut first = None;
    for list in indexed.lists.iter() {
        for place in list.cells().flat_map(|cell| indexed.lists.places(cell)) {
            for block in list.copy(place)?.chunks_exact(layout.block_bytes()) {
                for id in (0..BLOCK_ROWS).map(|lane| layout.id(block, lane)) {
                    let known = id < snapshot.state.watermark && snapshot.rows.holds(id);
                    if id != NO_ID && (!known || !add(id)) {
                        first.get_or_insert((list.path().to_owned(), id));
                    }
                }
            }
        }
    }
    if let Some((path, id)) = first {
        let what = format!("row {id} is in the lists too often, or in no row segment");
        report.note(Error::corrupt(path, 0, what))?;
    }
    for segment in snapshot.rows.segments() {
        let mut lost = None;
        segment.each_id(|id| {
            let expected = id < snapshot.state.watermark && !snapshot.dead.contains(id);
            if expected && !seen.contains(id) {
                lost.get_or_insert(id);
            }
        });
        if let Some(id) = lost {
            let what = format!("row {id} is in no list");
            report.note(Error::corrupt(segment.file.path(), 0, what))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Kind, Maintenance};
    use crate::storage::directory::Directory;
    use std::sync::Arc;

    #[test]
    fn a_row_in_three_lists_and_one_in_no_list_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let options = Index::options(4).kind(Kind::IvfPq).pq_bits(4).pq_subquantizers(2);
        let options = options.nlist(3).train_at(64).maintenance(Maintenance::Manual);
        let index = options.create(dir.path().join("index")).unwrap();
        let rows: Vec<f32> = (0..400).map(|i| (i * 37 % 101) as f32).collect();
        index.insert_many(&rows).unwrap();
        index.train().unwrap();
        let whole = index.inner.snapshot();
        let found = |lists: Vec<Arc<crate::storage::lists::List>>| {
            let mut snapshot = (*whole).clone();
            let indexed = snapshot.indexed.as_mut().unwrap();
            assert_eq!(indexed.model.copies(), 2);
            indexed.lists = Arc::new(Directory::new(lists));
            let mut report = Report::default();
            members(&snapshot, &mut report).unwrap();
            report.damage.into_iter().map(|damage| damage.what).collect::<Vec<_>>()
        };
        let lists = whole.indexed.as_ref().unwrap().lists.to_vec();
        assert!(found(lists.clone()).is_empty());
        let mut again = lists.clone();
        again.push(Arc::clone(&lists[0]));
        assert!(found(again)[0].contains("too often"));
        // A row has two copies, which may be in one list: of all but one list some row is in none.
        let rest = found(lists[..1].to_vec());
        assert!(rest.iter().any(|what| what.contains("in no list")), "{rest:?}");
    }
}
