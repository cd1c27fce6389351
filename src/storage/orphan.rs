//! A file in the place of one that is about to be written: what a transaction that was lost left there.

use super::disk::Disk;
use crate::error::{Error, Result};
use cellardb_format::{FileHeader, HEADER_LEN};
use std::path::Path;

/// Removes an orphan. What another index wrote is none: the directory is not ours any more.
pub(super) fn remove(disk: &dyn Disk, path: &Path, uuid: &[u8; 16]) -> Result<()> {
    if is_foreign(disk, path, uuid) {
        let what =
            "another index has written this file: its directory is in the place of this index";
        return Err(Error::corrupt(path, 0, what));
    }
    disk.remove(path).map_err(Error::io("remove", path))
}

/// Whether a file has the whole header of another index.
pub(super) fn is_foreign(disk: &dyn Disk, path: &Path, uuid: &[u8; 16]) -> bool {
    let mut bytes = [0; HEADER_LEN];
    let read = disk.open(path, false).and_then(|file| file.read_at(&mut bytes, 0));
    read.is_ok() && FileHeader::parse(&bytes).is_ok_and(|header| header.uuid != *uuid)
}
