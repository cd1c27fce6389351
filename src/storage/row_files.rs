//! The files that a repair may find rows in, and what a repair does with one that it cannot read.

use super::aside::ASIDE;
use super::disk::{Disk, DiskFile};
use super::known::Known;
use super::view::absent;
use crate::error::{Error, Result};
use cellardb_format::{FileHeader, FileKind, HEADER_LEN};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// No writer comes to a segment of this number: who put the file there wants the numbers to end.
const MOST: u64 = 1 << 62;

/// Whether the system could not read what is there.
pub(crate) fn unreadable(e: &Error) -> bool {
    const EIO: i32 = 5;
    matches!(e, Error::Io { source, .. } if source.raw_os_error() == Some(EIO))
}

/// A file, if there is one that can be opened.
pub(super) fn open(disk: &dyn Disk, path: &Path) -> Result<Option<Box<dyn DiskFile>>> {
    match disk.open(path, false).map_err(absent(path)) {
        Ok(file) => Ok(Some(file)),
        Err(Error::Corrupt { .. }) => Ok(None),
        Err(e) if unreadable(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The files that rows may be read from.
#[derive(Debug)]
pub(crate) struct Files {
    /// By the number in their name, and by the one in their header.
    pub(super) of: BTreeMap<u64, Vec<PathBuf>>,
    /// The sealed headers.
    pub(crate) headers: Vec<FileHeader>,
}

impl Files {
    /// All row segments, those that were set aside among them: a crash may have ended a repair before
    /// what it read from them was committed.
    pub(crate) fn find(disk: &dyn Disk, dir: &Path) -> Result<Self> {
        let (mut of, mut headers) = (BTreeMap::<u64, Vec<PathBuf>>::new(), Vec::new());
        let folder = dir.join("rows");
        let mut names = disk.list(&folder).map_err(absent(&folder))?;
        let is_rows = |path: &Path| path.extension().is_some_and(|e| e == "rows");
        names.sort_by_key(|path| (!is_rows(path), path.clone()));
        for path in names {
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
            let sane = |number: &u64| *number < MOST;
            let Some(number) =
                number.filter(sane).filter(|_| extension == "rows" || extension.starts_with(ASIDE))
            else {
                continue;
            };
            let mut numbers = BTreeSet::from([number]);
            if let Some(file) = open(disk, &path)? {
                let mut bytes = [0; HEADER_LEN];
                let read = file.read_at(&mut bytes, 0).is_ok();
                match FileHeader::parse(&bytes).map_err(|e| super::damage(&path, 0, e)) {
                    Ok(header) if read && header.kind == FileKind::Rows && sane(&header.number) => {
                        numbers.insert(header.number);
                        headers.push(header);
                    }
                    Ok(_) | Err(Error::Corrupt { .. }) => {}
                    // Of another version: not ours to repair.
                    Err(e) => return Err(e),
                }
            }
            for number in numbers {
                of.entry(number).or_default().push(path.clone());
            }
        }
        Ok(Self { of, headers })
    }

    /// A number above all of those of this index that a file has.
    pub(super) fn next(&self, known: &Known) -> u64 {
        let named = self.of.iter().filter(|(number, files)| {
            files.iter().any(|f| f.file_stem().is_some_and(|s| *s == *format!("{number:010}")))
        });
        let held = self.headers.iter().filter(|h| h.uuid == known.uuid).map(|h| &h.number);
        let most = named.map(|(number, _)| number).chain(held).max();
        let next = known.state.as_ref().map_or(0, |state| state.next_segment);
        most.map_or(next, |most| next.max(most.saturating_add(1)))
    }
}
