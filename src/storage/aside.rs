//! What is damaged is kept: under another name, beside its own.

use super::disk::{Disk, pages};
use super::row_files::open;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What is set aside is called so, and a number.
pub(super) const ASIDE: &str = "damaged-";

/// Gives a damaged file (or what is in its place) another name beside its own, and returns that.
pub(crate) fn set_aside(disk: &dyn Disk, path: &Path) -> Result<PathBuf> {
    let to = aside(disk, path)?;
    disk.rename(path, &to).map_err(Error::io("rename", path))?;
    Ok(to)
}

/// Sets aside what lies, and is no file, where a new file is to be written.
pub(crate) fn clear(disk: &dyn Disk, path: &Path) -> Result<Option<PathBuf>> {
    let special = |e: std::io::Error| e.kind() == std::io::ErrorKind::InvalidData;
    match disk.open(path, false).is_err_and(special) {
        true => set_aside(disk, path).map(Some),
        false => Ok(None),
    }
}

/// Copies a file to the name that it would have when set aside. What was never written is not.
pub(crate) fn copy_aside(disk: &dyn Disk, path: &Path) -> Result<Option<PathBuf>> {
    let Some(file) = open(disk, path)? else { return Ok(None) };
    let to = aside(disk, path)?;
    let copy = disk.create(&to).map_err(Error::io("create", &to))?;
    let len = file.len().map_err(Error::io("read the length of", path))?;
    let read = Error::io("read", path);
    for (at, page) in pages(&*file).map_err(read)? {
        copy.write_at(&page, at).map_err(Error::io("write", &to))?;
    }
    if copy.len().map_err(Error::io("read the length of", &to))? < len {
        copy.set_len(len).map_err(Error::io("set the length of", &to))?;
    }
    copy.sync().map_err(Error::io("sync", &to))?;
    Ok(Some(to))
}

fn aside(disk: &dyn Disk, path: &Path) -> Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let taken = disk.list(folder).map_err(Error::io("list", folder))?;
    let free = (1..).map(|n| path.with_extension(format!("{ASIDE}{n}")));
    Ok(free.into_iter().find(|to| !taken.contains(to)).unwrap_or_else(|| path.to_owned()))
}
