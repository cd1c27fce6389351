//! Files of vectors, read by position: `.npy`, `.fvecs` and its kin, `.fbin` and its kin.

use crate::failure::Failure;
use crate::npy;
use cellardb::Error;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const DIM_LIMIT: u64 = 65_535;

/// The type of one value in a file, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F32,
    F64,
    U8,
    I8,
    I32,
    I64,
}

impl Element {
    fn bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    fn from_npy(descr: &str) -> Result<Self, String> {
        match descr {
            "<f4" => Ok(Self::F32),
            "<f8" => Ok(Self::F64),
            "|u1" => Ok(Self::U8),
            "|i1" => Ok(Self::I8),
            "<i4" => Ok(Self::I32),
            "<i8" => Ok(Self::I64),
            big if big.starts_with('>') => {
                Err(format!("{big:?} is big-endian; save it with x.astype('<f4')"))
            }
            other => Err(format!("elements of type {other:?}; f4, f8, u1, i1, i4 and i8 are read")),
        }
    }
}

/// How a file is laid out, once its header and its length have been found to agree.
#[derive(Debug)]
struct Layout {
    element: Element,
    /// Where the first row begins.
    start: u64,
    /// Bytes before each row: its dimension, or none.
    prefix: u64,
    rows: u64,
    dim: u64,
}

impl Layout {
    fn of(path: &Path, file: &File, len: u64) -> Result<Self, String> {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        let layout = match extension {
            "npy" => Self::npy(file, len)?,
            "fvecs" => Self::vecs(file, len, Element::F32)?,
            "bvecs" => Self::vecs(file, len, Element::U8)?,
            "ivecs" => Self::vecs(file, len, Element::I32)?,
            "fbin" => Self::bin(file, Element::F32)?,
            "u8bin" => Self::bin(file, Element::U8)?,
            "i8bin" => Self::bin(file, Element::I8)?,
            "ibin" => Self::bin(file, Element::I32)?,
            _ => {
                let known = ".npy, .fvecs, .bvecs, .ivecs, .fbin, .u8bin, .i8bin and .ibin";
                return Err(format!("the format is told by the extension, one of {known}"));
            }
        };
        if !(1..=DIM_LIMIT).contains(&layout.dim) {
            return Err(format!("rows of {} values; 1 to {DIM_LIMIT} are read", layout.dim));
        }
        let expected = layout.rows.checked_mul(layout.stride());
        match expected.and_then(|bytes| bytes.checked_add(layout.start)) {
            Some(expected) if expected == len => Ok(layout),
            Some(expected) => Err(format!(
                "{len} bytes long, but {} rows of {} values need {expected}",
                layout.rows, layout.dim
            )),
            None => {
                Err(format!("{} rows of {} values: no file is so long", layout.rows, layout.dim))
            }
        }
    }

    fn npy(file: &File, len: u64) -> Result<Self, String> {
        let mut start = vec![0; len.min(npy::HEADER_LIMIT as u64) as usize];
        file.read_exact_at(&mut start, 0).map_err(|e| e.to_string())?;
        let npy::Header { descr, rows, columns, start } = npy::parse(&start)?;
        Ok(Self { element: Element::from_npy(&descr)?, start, prefix: 0, rows, dim: columns })
    }

    fn vecs(file: &File, len: u64, element: Element) -> Result<Self, String> {
        let [dim] = words(file)?;
        let mut layout = Self { element, start: 0, prefix: 4, rows: 0, dim: u64::from(dim) };
        // A length that is no multiple shows when the caller compares it with what the rows need.
        layout.rows = len.div_ceil(layout.stride());
        Ok(layout)
    }

    fn bin(file: &File, element: Element) -> Result<Self, String> {
        let [rows, dim] = words(file)?;
        Ok(Self { element, start: 8, prefix: 0, rows: u64::from(rows), dim: u64::from(dim) })
    }

    /// Bytes from one row to the next. `dim` comes from 32 bits, or is checked before this is used.
    fn stride(&self) -> u64 {
        self.prefix.saturating_add(self.dim.saturating_mul(self.element.bytes()))
    }
}

/// The first little-endian 32-bit numbers of a file.
fn words<const N: usize>(file: &File) -> Result<[u32; N], String> {
    let mut words = [0; N];
    for (word, at) in words.iter_mut().zip((0..).step_by(4)) {
        let mut bytes = [0; 4];
        let read = file.read_exact_at(&mut bytes, at);
        read.map_err(|_| format!("too short for its header of {} bytes", 4 * N))?;
        *word = u32::from_le_bytes(bytes);
    }
    Ok(words)
}

/// An open file of vectors.
#[derive(Debug)]
pub(crate) struct VectorFile {
    path: PathBuf,
    file: File,
    layout: Layout,
}

impl VectorFile {
    /// Opens a file and checks that its length is the one that its header promises.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let metadata = fs::metadata(path).map_err(Failure::io(path))?;
        // Asked before it is opened: a FIFO would keep us waiting for its other end.
        if !metadata.is_file() {
            return Err(Failure::file(path, "not a regular file"));
        }
        let file = File::open(path).map_err(Failure::io(path))?;
        if metadata.len() == 0 {
            return Err(Failure::file(path, "empty"));
        }
        let layout = Layout::of(path, &file, metadata.len());
        let layout = layout.map_err(|what| Failure::file(path, what))?;
        Ok(Self { path: path.to_owned(), file, layout })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn rows(&self) -> u64 {
        self.layout.rows
    }

    pub(crate) fn dim(&self) -> usize {
        self.layout.dim as usize
    }

    /// Fails unless the rows have `dim` values.
    pub(crate) fn expect_dim(&self, dim: usize) -> Result<(), Failure> {
        let found = self.dim();
        if found == dim {
            return Ok(());
        }
        Err(Failure::file(
            &self.path,
            format!("vectors of {found} dimensions, the index has {dim}"),
        ))
    }

    /// Says of a vector that was refused which row it is, `first` being that of the first one.
    pub(crate) fn blame(&self, error: Error, first: u64) -> Failure {
        match error {
            Error::Vector { position, why } => {
                Failure::file(&self.path, format!("row {} {why}", first + position as u64))
            }
            other => other.into(),
        }
    }

    /// Rows `first..first + count` as f32, row-major.
    pub(crate) fn floats(&self, first: u64, count: usize) -> Result<Vec<f32>, Failure> {
        let values = self.values(first, count)?;
        Ok(match self.layout.element {
            Element::F32 => fixed(&values, f32::from_le_bytes),
            Element::F64 => fixed(&values, |b| f64::from_le_bytes(b) as f32),
            Element::U8 => fixed(&values, |[b]| f32::from(b)),
            Element::I8 => fixed(&values, |b| f32::from(i8::from_le_bytes(b))),
            Element::I32 => fixed(&values, |b| i32::from_le_bytes(b) as f32),
            Element::I64 => fixed(&values, |b| i64::from_le_bytes(b) as f32),
        })
    }

    /// Rows `first..first + count` as integers, row-major; a file of floats is refused.
    pub(crate) fn integers(&self, first: u64, count: usize) -> Result<Vec<i64>, Failure> {
        let values = self.values(first, count)?;
        match self.layout.element {
            Element::I32 => Ok(fixed(&values, |b| i64::from(i32::from_le_bytes(b)))),
            Element::I64 => Ok(fixed(&values, i64::from_le_bytes)),
            _ => Err(Failure::file(&self.path, "row ids are needed, integers of 32 or 64 bits")),
        }
    }

    /// The bytes of the values of some rows, without the prefixes.
    fn values(&self, first: u64, count: usize) -> Result<Vec<u8>, Failure> {
        let Layout { start, prefix, rows, dim, .. } = self.layout;
        let end = first.checked_add(count as u64).filter(|end| *end <= rows);
        if end.is_none() {
            let asked =
                format!("{rows} rows, row {} was asked for", first.saturating_add(count as u64));
            return Err(Failure::file(&self.path, asked));
        }
        // Within the length of the file, which `open` has compared, so none of this overflows.
        let stride = self.layout.stride();
        let mut bytes = vec![0; count * stride as usize];
        let read = self.file.read_exact_at(&mut bytes, start + first * stride);
        read.map_err(Failure::io(&self.path))?;
        if prefix == 0 {
            return Ok(bytes);
        }
        let mut values = Vec::with_capacity(bytes.len());
        for (row, bytes) in (first..).zip(bytes.chunks_exact(stride as usize)) {
            let (found, row_values) = bytes.split_at(prefix as usize);
            if found != (dim as u32).to_le_bytes() {
                let what =
                    format!("row {row} does not have {dim} dimensions as the first row does");
                return Err(Failure::file(&self.path, what));
            }
            values.extend_from_slice(row_values);
        }
        Ok(values)
    }
}

/// Converts values of `N` bytes each.
fn fixed<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|value| convert(*value)).collect()
}
