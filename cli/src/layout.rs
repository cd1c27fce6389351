//! The formats of files of vectors, and how the rows of one are laid out.

use crate::bytes::Bytes;
use crate::element::{Element, Values};
use crate::npy;
use clap::ValueEnum;
use std::ffi::OsStr;
use std::path::Path;

const DIM_LIMIT: u64 = 65_535;

/// A format, named as the extension that tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Format {
    Npy,
    Npz,
    Fvecs,
    Bvecs,
    Ivecs,
    Fbin,
    U8bin,
    I8bin,
    Ibin,
}

impl Format {
    /// The format that the extension of a file tells.
    pub(crate) fn of(path: &Path) -> Result<Self, String> {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        Self::from_str(extension, true).map_err(|_| {
            "the format is told by the extension, one of .npy, .npz, .fvecs, .bvecs, .ivecs, .fbin, .u8bin, \
             .i8bin and .ibin, or by --format"
                .to_owned()
        })
    }
}

/// How the rows of a file are laid out, once its header and its length have been found to agree.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) values: Values,
    /// Where the first row begins.
    pub(crate) start: u64,
    /// Bytes before each row: its dimension, or none.
    pub(crate) prefix: u64,
    /// Not known where only the end of standard input tells it.
    pub(crate) rows: Option<u64>,
    pub(crate) dim: u64,
    /// The first values of all rows come first, then the second ones.
    pub(crate) fortran: bool,
}

impl Layout {
    pub(crate) fn of(format: Format, bytes: &Bytes) -> Result<Self, String> {
        let layout = match format {
            Format::Npy | Format::Npz => Self::npy(bytes)?,
            Format::Fvecs => Self::vecs(bytes, Element::F32)?,
            Format::Bvecs => Self::vecs(bytes, Element::U8)?,
            Format::Ivecs => Self::vecs(bytes, Element::I32)?,
            Format::Fbin => Self::bin(bytes, Element::F32)?,
            Format::U8bin => Self::bin(bytes, Element::U8)?,
            Format::I8bin => Self::bin(bytes, Element::I8)?,
            Format::Ibin => Self::bin(bytes, Element::I32)?,
        };
        let Self { rows, dim, start, .. } = layout;
        if !(1..=DIM_LIMIT).contains(&dim) {
            return Err(format!("rows of {dim} values; 1 to {DIM_LIMIT} are read"));
        }
        let Some(rows) = rows else { return Ok(layout) };
        let expected = rows.checked_mul(layout.stride()).and_then(|bytes| bytes.checked_add(start));
        match (expected, bytes.len()) {
            (None, _) => Err(format!("{rows} rows of {dim} values: no file is so long")),
            (Some(expected), Some(len)) if expected != len => Err(format!(
                "{len} bytes long, but {rows} rows of {dim} values need {expected}: was it cut short, or \
                 written as another format?"
            )),
            _ => Ok(layout),
        }
    }

    fn npy(bytes: &Bytes) -> Result<Self, String> {
        let mut start = vec![0; npy::HEADER_LIMIT];
        let found = bytes.read(0, &mut start).map_err(|e| e.to_string())?;
        start.truncate(found);
        let npy::Header { descr, fortran, shape, start } = npy::parse(&start)?;
        let values = Values::from_npy(&descr)?;
        let (rows, dim) = match *shape {
            [rows, columns] => (rows, columns),
            [] => return Err("a single number; vectors are rows of a 2-D array (rows, dim)".into()),
            [0] => return Err("an array of one dimension with nothing in it: no vector".into()),
            // One vector.
            [columns] => (1, columns),
            _ => {
                return Err(format!(
                    "{} dimensions; save it as a 2-D array (rows, dim), such as \
                     x.reshape(-1, x.shape[-1])",
                    shape.len()
                ));
            }
        };
        let fortran = fortran && rows > 1 && dim > 1;
        Ok(Self { values, start, prefix: 0, rows: Some(rows), dim, fortran })
    }

    fn vecs(bytes: &Bytes, element: Element) -> Result<Self, String> {
        let [dim] = words(bytes)?;
        let values = element.little();
        let dim = u64::from(dim);
        let mut layout = Self { values, start: 0, prefix: 4, rows: None, dim, fortran: false };
        // A length that is no multiple shows when it is compared with what the rows need.
        layout.rows = bytes.len().map(|len| len.div_ceil(layout.stride()));
        Ok(layout)
    }

    fn bin(bytes: &Bytes, element: Element) -> Result<Self, String> {
        let [rows, dim] = words(bytes)?.map(u64::from);
        let values = element.little();
        Ok(Self { values, start: 8, prefix: 0, rows: Some(rows), dim, fortran: false })
    }

    /// Bytes from one row to the next. `dim` comes from 32 bits, or is checked before this is used.
    pub(crate) fn stride(&self) -> u64 {
        self.prefix.saturating_add(self.dim.saturating_mul(self.values.element.bytes()))
    }
}

/// The first little-endian 32-bit numbers of a file.
fn words<const N: usize>(bytes: &Bytes) -> Result<[u32; N], String> {
    let mut words = [0; N];
    for (word, at) in words.iter_mut().zip((0..).step_by(4)) {
        let mut value = [0; 4];
        let read = bytes.read_exact(at, &mut value);
        read.map_err(|_| format!("too short for its header of {} bytes", 4 * N))?;
        *word = u32::from_le_bytes(value);
    }
    Ok(words)
}
