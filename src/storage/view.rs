//! The committed bytes of one file, for reading: through a map, or by positioned reads where the
//! disk has none.

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
    source: Source,
}

#[derive(Debug)]
enum Source {
    Map(Map),
    File(Box<dyn DiskFile>),
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
        let file = disk.open(path, false).map_err(absent(path))?;
        let found = file.len().map_err(Error::io("read the length of", path))?;
        if found < len {
            let what = format!("the file has {found} bytes, {len} are committed");
            return Err(Error::corrupt(path, found, what));
        }
        let mut header = [0; HEADER_LEN];
        file.read_at(&mut header, 0).map_err(|e| short(path, 0, e))?;
        let header = FileHeader::parse(&header).and_then(|found| found.check(expected));
        header.map_err(|e| super::damage(path, 0, e))?;
        // Without a map (too many of them, or none on this disk) the file itself serves.
        let source = match file.map(len) {
            Ok(Some(map)) => {
                if access == Access::Random {
                    map.random();
                }
                Source::Map(map)
            }
            Ok(None) | Err(_) => Source::File(file),
        };
        Ok(Self { path: path.to_owned(), len, source })
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
        match &self.source {
            Source::Map(map) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let bytes = map.bytes().get(start..start.saturating_add(len));
                let bytes =
                    bytes.ok_or_else(|| Error::corrupt(&self.path, offset, "not mapped"))?;
                Ok(Cow::Borrowed(bytes))
            }
            Source::File(file) => {
                let mut buf = vec![0; len];
                file.read_at(&mut buf, offset).map_err(|e| short(&self.path, offset, e))?;
                Ok(Cow::Owned(buf))
            }
        }
    }

    /// Says that a range will be read soon.
    pub(crate) fn will_need(&self, offset: u64, len: usize) {
        if let (Source::Map(map), Ok(offset)) = (&self.source, usize::try_from(offset)) {
            map.will_need(offset, len);
        }
    }
}

/// A committed file that is not there is damage, not a failure of the system.
pub(crate) fn absent(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |e| match e.kind() {
        io::ErrorKind::NotFound => Error::corrupt(path, 0, "the file is missing"),
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
