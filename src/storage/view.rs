//! The committed bytes of one file, for reading: through a map, or by positioned reads where there is
//! none.

use super::disk::{Disk, DiskFile};
use super::map::Map;
use crate::error::{Error, Result};
use cellardb_format::{FileHeader, HEADER_LEN};
use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

/// How a view will be read, a hint to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// A row here, a row there.
    Random,
    /// Runs of pages.
    Runs,
}

#[derive(Debug)]
pub(crate) struct View {
    path: PathBuf,
    len: u64,
    /// None where the disk has no maps, there are too many already, or they are not wanted.
    map: Option<Map>,
    /// Read where there is no map, or the map is lost.
    file: Box<dyn DiskFile>,
}

impl View {
    /// Opens the first `len` bytes of `path`. A shorter file is damage, and so is another header
    /// than the `expected` one. It is read past the map, so that opening touches no page of that.
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        len: u64,
        access: Access,
        expected: &FileHeader,
    ) -> Result<Self> {
        let file = disk.reader(path).map_err(absent(path))?;
        let found = file.len().map_err(Error::io("read the length of", path))?;
        if found < len {
            let what = format!("the file has {found} bytes, {len} are committed");
            return Err(Error::corrupt(path, found, what));
        }
        let mut header = [0; HEADER_LEN];
        file.read_at(&mut header, 0).map_err(|e| short(path, 0, e))?;
        let header = FileHeader::parse(&header).and_then(|found| found.check(expected));
        header.map_err(|e| super::damage(path, 0, e))?;
        let map = file.map(len).ok().flatten();
        if let Some(map) = map.as_ref().filter(|_| access == Access::Random) {
            map.random();
        }
        Ok(Self { path: path.to_owned(), len, map, file })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// `len` bytes at `offset`. Borrowed from the map, or read anew: then nothing that was verified
    /// before says anything about them.
    pub(crate) fn bytes(&self, offset: u64, len: usize) -> Result<Cow<'_, [u8]>> {
        let end = u64::try_from(len).ok().and_then(|n| offset.checked_add(n));
        if end.is_none_or(|end| end > self.len) {
            let what = format!("{len} bytes wanted, the committed length is {}", self.len);
            return Err(Error::corrupt(&self.path, offset, what));
        }
        let Some(map) = self.map.as_ref().filter(|map| !map.is_lost()) else {
            let mut buf = vec![0; len];
            self.file.read_at(&mut buf, offset).map_err(|e| self.unread(offset, e))?;
            return Ok(Cow::Owned(buf));
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = map.bytes().get(start..start.saturating_add(len));
        let bytes = bytes.ok_or_else(|| Error::corrupt(&self.path, offset, "not mapped"))?;
        Ok(Cow::Borrowed(bytes))
    }

    /// Where `len` bytes at `offset` are mapped: to ask for them ahead, not to believe them.
    pub(crate) fn mapped(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.map.as_ref()?.bytes().get(start..start.checked_add(len)?)
    }

    /// Why a committed piece cannot be read.
    fn unread(&self, offset: u64, e: io::Error) -> Error {
        let kind = e.kind();
        match kind {
            io::ErrorKind::UnexpectedEof if self.map.is_some() => {
                let what = "the file ends early: it was cut while it was open";
                Error::corrupt(&self.path, offset, what)
            }
            io::ErrorKind::UnexpectedEof => short(&self.path, offset, e),
            _ => match absent(&self.path)(e) {
                Error::Io { path, source, .. } => Error::Io { op: "read", path, source },
                missing => missing,
            },
        }
    }

    /// Says that a range will be read soon.
    pub(crate) fn will_need(&self, offset: u64, len: usize) {
        if let (Some(map), Ok(offset)) = (&self.map, usize::try_from(offset)) {
            map.will_need(offset, len);
        }
    }
}

/// Refuses a link in the place of a part of an index. Whoever made the directory may have it lead to the
/// files of another, which would be written and swept.
pub(crate) fn no_link(disk: &dyn Disk, path: &Path) -> Result<()> {
    match disk.is_link(path).map_err(Error::io("look for", path))? {
        false => Ok(()),
        true => {
            let what =
                "this is a link; move what it leads to here, or link the whole index instead";
            Err(Error::corrupt(path, 0, what))
        }
    }
}

/// What is said of a committed file that is not there.
pub(super) const MISSING: &str = "the file is missing";

/// A committed file that is not there is damage, not a failure of the system.
pub(crate) fn absent(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |e| match e.kind() {
        io::ErrorKind::NotFound => Error::corrupt(path, 0, MISSING),
        io::ErrorKind::InvalidData => Error::corrupt(path, 0, "this is no regular file"),
        io::ErrorKind::NotADirectory => Error::corrupt(path, 0, "this is in no directory"),
        _ => Error::io("open", path)(e),
    }
}

/// A committed file that ends early is damage too.
pub(crate) fn short(path: &Path, offset: u64, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::corrupt(path, offset, "the file ends early"),
        _ => Error::io("read", path)(e),
    }
}
