//! Where an import begins: which rows of its files the index has already.
//!
//! An index does not know which files its rows came from, but rows are kept bit for bit and in order. An
//! import of these files that was interrupted, or has ended, left their first rows as the last rows of the
//! index. So the last row of the index is looked for in the files; where it is found, rows are compared from
//! there back to the first of the files.

use super::import::Skip;
use crate::failure::Failure;
use crate::output::grouped;
use crate::vectors::VectorFile;
use cellardb::Index;
use std::collections::VecDeque;
use std::path::Path;

/// Rows that are compared, evenly spread, beside the first and the last ones.
const SAMPLES: usize = 4096;
const ENDS: usize = 8;
/// Rows of the files equal to the last one of the index that are tried, the last ones first.
const PLACES: usize = 64;
/// Values read at a time.
const STEP: u64 = 1 << 21;

/// Where an import begins.
#[derive(Debug, Default)]
pub(super) struct Begin {
    /// Rows of the files that are left out.
    pub(super) skip: u64,
    /// What the user should know.
    pub(super) note: Option<String>,
}

/// Rows of one of the files.
pub(super) struct Piece<'a> {
    pub(super) file: &'a VectorFile,
    /// The place of the first of them in that file.
    pub(super) at: u64,
    pub(super) rows: Vec<f32>,
}

/// The rows of all files, counted through, beside an index.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) dir: &'a Path,
    pub(super) files: &'a [VectorFile],
    pub(super) index: &'a Index,
    /// Rows that cannot be compared were not inserted.
    pub(super) skip_invalid: bool,
}

/// What the files and the index have in common: the last rows of the index are the first of the files.
#[derive(Debug, Clone, Copy)]
struct Overlap {
    /// Rows of the index before those.
    before: u64,
    /// Rows of the index that are, or were, rows of the files.
    rows: u64,
    /// The row of the files behind them.
    next: u64,
}

/// The files, read as far as the index might reach.
#[derive(Debug, Default)]
struct Pass {
    /// Rows of the files that cannot be compared, in ascending order.
    invalid: Vec<u64>,
    /// Where the last row of the index was found, among the rows that can be compared.
    places: VecDeque<u64>,
    /// Rows that can be compared.
    valid: u64,
}

impl Pass {
    /// The row of the files that is the `n`th of those that can be compared.
    fn row(&self, n: u64) -> u64 {
        let mut row = n;
        loop {
            let before = self.invalid.partition_point(|at| *at <= row) as u64;
            if row == n + before {
                return row;
            }
            row = n + before;
        }
    }
}

impl<'a> Rows<'a> {
    /// At most `most` rows of one file, from row `at` of all on; `None` behind the last.
    pub(super) fn read(&self, at: u64, most: u64) -> Result<Option<Piece<'a>>, Failure> {
        let mut first = 0;
        for file in self.files {
            let within = at - first;
            let left = file.rows().map(|rows| rows.saturating_sub(within));
            if left != Some(0) {
                let rows = file.floats(within, most.min(left.unwrap_or(most)) as usize)?;
                if !rows.is_empty() {
                    return Ok(Some(Piece { file, at: within, rows }));
                }
            }
            // Whoever has not counted its rows is read once, and has just said how many there were.
            first += file.rows().unwrap_or(within);
        }
        Ok(None)
    }

    /// The rows that can be compared, and the places of the others.
    pub(super) fn valid(&self, rows: Vec<f32>) -> (Vec<f32>, Vec<u64>) {
        if !self.skip_invalid {
            return (rows, Vec::new());
        }
        let dim = self.index.dim();
        // The index decides, and is asked about those that look as if it might refuse them.
        let refused = |row: &[f32]| {
            let squared: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            !(squared.is_finite() && squared > 1e-60) && self.index.query(row).k(0).run().is_err()
        };
        let invalid: Vec<u64> = (0..)
            .zip(rows.chunks_exact(dim))
            .filter_map(|(at, row)| refused(row).then_some(at))
            .collect();
        if invalid.is_empty() {
            return (rows, invalid);
        }
        let kept =
            (0..).zip(rows.chunks_exact(dim)).filter(|(at, _)| invalid.binary_search(at).is_err());
        (kept.flat_map(|(_, row)| row).copied().collect(), invalid)
    }

    /// Rows read at a time.
    fn step(&self) -> u64 {
        (STEP / self.index.dim() as u64).max(1)
    }

    /// The files in a message.
    fn named(&self) -> String {
        match self.files {
            [file] => file.path().display().to_string(),
            _ => "the files".to_owned(),
        }
    }

    /// Where the import begins, or why it does not.
    pub(super) fn begin(&self, skip: Option<Skip>, total: Option<u64>) -> Result<Begin, Failure> {
        let there = self.index.stats().next_id;
        match skip {
            Some(Skip::Rows(rows)) if total.is_some_and(|total| rows > total) => {
                Err(Failure::Usage(format!(
                    "--skip {rows}: the files have {} rows",
                    total.unwrap_or(0)
                )))
            }
            Some(Skip::Rows(skip)) => Ok(Begin { skip, note: None }),
            _ if there == 0 => Ok(Begin::default()),
            // What is read once is compared as it passes, from its first row on.
            Some(Skip::Auto) if self.files.iter().any(VectorFile::is_once) => self.pass_by(there),
            None if self.files.iter().any(VectorFile::is_once) => self.refuse_beginning(there),
            Some(Skip::Auto) => self.resume(there),
            None => self.refuse_again(there),
        }
    }

    fn resume(&self, there: u64) -> Result<Begin, Failure> {
        let ids = self.index.ids();
        let pass = self.pass(ids.last().copied(), there)?;
        let Some(last) = ids.last() else {
            // Nothing is left to compare with: all of it may have been rows of these files.
            return match there <= pass.valid {
                true => Ok(Begin { skip: pass.row(there - 1) + 1, note: None }),
                false => Err(self.differ(there, &pass, &ids)),
            };
        };
        let Some(overlap) = self.overlap(&ids, *last as u64, there, &pass)? else {
            self.first_difference(there, &pass, &ids)?;
            return Err(self.differ(there, &pass, &ids));
        };
        let mut note = None;
        let again = overlap.before > 0 && self.same_at(&ids, 0, ENDS, &pass)?;
        if again {
            note = Some(format!(
                "the first rows of {} are in the index twice: as its rows from 0 on, and from {} on",
                self.named(),
                overlap.before
            ));
        }
        Ok(Begin { skip: overlap.next, note })
    }

    /// Fails if the index has rows of the files already and nobody said what to do about it.
    fn refuse_again(&self, there: u64) -> Result<Begin, Failure> {
        let ids = self.index.ids();
        let Some(last) = ids.last() else { return Ok(Begin::default()) };
        let pass = self.pass(Some(*last), there)?;
        let refuse = |what: String| {
            let dir = self.dir.display();
            Err(Failure::Usage(format!("{dir}: nothing was added: {what}")))
        };
        let append = "--append adds them again, under new ids";
        let files = self.named();
        if let Some(overlap) = self.overlap(&ids, *last as u64, there, &pass)? {
            let rows = grouped(overlap.rows);
            return match self.read(overlap.next, 1)? {
                None => refuse(format!(
                    "all {rows} rows of {files} are its last rows already; {append}"
                )),
                Some(_) => refuse(format!(
                    "its last {rows} rows are the first rows of {files}, as after an import that was \
                     interrupted; --resume adds those that are missing, --append all of them"
                )),
            };
        }
        let whole = self.read(pass.row(pass.valid), 1)?.is_none();
        if pass.valid > 0 && whole && self.same_at(&ids, 0, usize::MAX, &pass)? {
            let rows = grouped(pass.valid);
            return refuse(format!(
                "all {rows} rows of {files} are its first rows already; {append}"
            ));
        }
        Ok(Begin::default())
    }

    /// Reads the files as far as the index might reach, and looks for its last row.
    fn pass(&self, last: Option<usize>, most: u64) -> Result<Pass, Failure> {
        let last = match last {
            Some(id) => self.index.get(id)?,
            None => None,
        };
        let (dim, mut pass, mut at) = (self.index.dim(), Pass::default(), 0);
        while pass.valid < most {
            let Some(piece) = self.read(at, self.step().min(most - pass.valid))? else { break };
            let read = (piece.rows.len() / dim) as u64;
            let (rows, invalid) = self.valid(piece.rows);
            pass.invalid.extend(invalid.iter().map(|row| at + row));
            at += read;
            for row in rows.chunks_exact(dim) {
                if last.as_deref().is_some_and(|last| same(last, row)) {
                    if pass.places.len() == PLACES {
                        pass.places.pop_front();
                    }
                    pass.places.push_back(pass.valid);
                }
                pass.valid += 1;
            }
        }
        Ok(pass)
    }

    /// The longest beginning of the files that the index ends with. `last` is the last row that is there,
    /// `there` the number that were ever inserted.
    fn overlap(
        &self,
        ids: &[usize],
        last: u64,
        there: u64,
        pass: &Pass,
    ) -> Result<Option<Overlap>, Failure> {
        for place in pass.places.iter().rev().filter(|place| **place <= last) {
            let before = last - place;
            let rows = there - before;
            if rows <= pass.valid && self.same_at(ids, before, usize::MAX, pass)? {
                return Ok(Some(Overlap { before, rows, next: pass.row(rows - 1) + 1 }));
            }
        }
        Ok(None)
    }

    /// Whether the rows of the index from `before` on are the first rows of the files, as far as samples
    /// of at most `most` rows tell.
    fn same_at(
        &self,
        ids: &[usize],
        before: u64,
        most: usize,
        pass: &Pass,
    ) -> Result<bool, Failure> {
        let from = ids.partition_point(|id| (*id as u64) < before);
        let reached = ids.partition_point(|id| (*id as u64) < before.saturating_add(pass.valid));
        let ids = ids.get(from..reached.min(from.saturating_add(most))).unwrap_or_default();
        for id in samples(ids) {
            if !self.same(id, pass.row(id as u64 - before))? {
                return Ok(false);
            }
        }
        Ok(!ids.is_empty())
    }

    fn same(&self, id: usize, row: u64) -> Result<bool, Failure> {
        let (stored, given) = (self.index.get(id)?, self.read(row, 1)?);
        Ok(stored.zip(given).is_some_and(|(stored, given)| same(&stored, &given.rows)))
    }

    /// Names the first row of a sample that differs when the index is taken for a beginning of the files.
    fn first_difference(&self, there: u64, pass: &Pass, ids: &[usize]) -> Result<(), Failure> {
        if there > pass.valid {
            return Ok(());
        }
        for id in samples(ids) {
            let row = pass.row(id as u64);
            if self.same(id, row)? {
                continue;
            }
            let Some(piece) = self.read(row, 1)? else { continue };
            let what = format!("row {} is not row {id} of the index: {OTHERS}", piece.at);
            return Err(Failure::file(piece.file.path(), what));
        }
        Ok(())
    }

    fn differ(&self, there: u64, pass: &Pass, ids: &[usize]) -> Failure {
        let (there, valid, files) = (grouped(there), grouped(pass.valid), self.named());
        let last = ids.last().map_or(String::new(), |id| format!(" up to row {id}"));
        Failure::file(
            self.dir,
            format!(
                "{there} rows were inserted, there are {valid} in {files}, and the index{last} does not end with \
                 their first ones: {OTHERS}"
            ),
        )
    }

    /// Compares every row of the index with what passes; returns the row behind.
    fn pass_by(&self, there: u64) -> Result<Begin, Failure> {
        let (dim, mut id, mut at) = (self.index.dim(), 0, 0);
        while id < there {
            let Some(piece) = self.read(at, self.step().min(there - id))? else {
                let (there, id) = (grouped(there), grouped(id));
                let what = format!("{there} rows were inserted, but there are only {id}: {OTHERS}");
                return Err(Failure::file(self.dir, what));
            };
            let read = (piece.rows.len() / dim) as u64;
            let (rows, _) = self.valid(piece.rows);
            for row in rows.chunks_exact(dim) {
                let stored = self.index.get(id as usize)?;
                if stored.is_some_and(|stored| !same(&stored, row)) {
                    let what = format!("row {id} of the index is not among its rows: {OTHERS}");
                    return Err(Failure::file(piece.file.path(), what));
                }
                id += 1;
            }
            at += read;
        }
        Ok(Begin { skip: at, note: None })
    }

    /// Fails if the index begins with the first rows of what is read once.
    fn refuse_beginning(&self, there: u64) -> Result<Begin, Failure> {
        let Some(file) = self.files.first() else { return Ok(Begin::default()) };
        let most = (ENDS as u64).min(there).min(file.repeatable());
        let Some(piece) = self.read(0, most)? else { return Ok(Begin::default()) };
        let (rows, _) = self.valid(piece.rows);
        let mut compared = 0;
        for (id, row) in rows.chunks_exact(self.index.dim()).enumerate() {
            match self.index.get(id)? {
                Some(stored) if !same(&stored, row) => return Ok(Begin::default()),
                Some(_) => compared += 1,
                None => {}
            }
        }
        match compared {
            0 => Ok(Begin::default()),
            _ => Err(Failure::Usage(format!(
                "{}: nothing was added: it begins with the same rows as {}, as after an import that was \
                 interrupted; --resume adds those that are missing, --append all of them",
                self.dir.display(),
                file.path().display()
            ))),
        }
    }
}

/// What to do when the files are not those of the import to be resumed.
const OTHERS: &str = "other files, a changed one, or rows left out by --skip-invalid then and not now; \
                      --skip N leaves out N rows of the files, --append none";

/// Some of them: the first, the last, and others evenly spread.
fn samples(ids: &[usize]) -> Vec<usize> {
    let step = (ids.len() / SAMPLES).max(1);
    let last = ids.len().saturating_sub(ENDS);
    let wanted = |(at, _): &(usize, &usize)| *at < ENDS || *at >= last || at.is_multiple_of(step);
    ids.iter().enumerate().filter(wanted).map(|(_, id)| *id).collect()
}

/// Bit for bit.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_without_those_that_cannot_be_compared() {
        let pass = Pass { invalid: vec![0, 2, 3, 7], ..Pass::default() };
        let rows: Vec<u64> = (0..5).map(|n| pass.row(n)).collect();
        assert_eq!(rows, [1, 4, 5, 6, 8]);
        assert_eq!(Pass::default().row(3), 3);
    }

    #[test]
    fn samples_hold_both_ends_and_never_more_than_a_few() {
        let ids: Vec<usize> = (0..100_000).map(|n| 3 * n).collect();
        let some = samples(&ids);
        assert!(some.is_sorted() && some.len() < 5000, "{}", some.len());
        assert!(some.starts_with(&[0, 3, 6]) && some.ends_with(&[299_994, 299_997]));
        assert_eq!(samples(&ids[..5]), [0, 3, 6, 9, 12]);
        assert!(samples(&[]).is_empty());
    }
}
