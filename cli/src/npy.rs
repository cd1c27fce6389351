//! NumPy's `.npy` format, versions 1 to 3: the header from bytes, and a writer for 2-D arrays.

use crate::failure::Failure;
use crate::target::Target;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Bytes from the start of a file that hold the header of any array that is read here.
pub(crate) const HEADER_LIMIT: usize = 16 << 10;

/// What the header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Element type as NumPy spells it, such as `<f4`.
    pub(crate) descr: String,
    /// Whether columns come one after the other, instead of rows.
    pub(crate) fortran: bool,
    pub(crate) shape: Vec<u64>,
    /// Where the data begins.
    pub(crate) start: u64,
}

/// Reads the header from the first bytes of a file; `start` may be the whole file if it is short.
pub(crate) fn parse(start: &[u8]) -> Result<Header, String> {
    let short = || "too short for a .npy header".to_owned();
    if start.len() < 8 {
        return Err(short());
    }
    if start.starts_with(b"PK\x03\x04") {
        return Err(
            "not a .npy file but an archive, as .npz files are; --format npz reads it".into()
        );
    }
    if !start.starts_with(MAGIC) {
        return Err("not a .npy file".into());
    }
    let (length, at) = match start[6] {
        1 => (start.get(8..10).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))), 10),
        2 | 3 => {
            let length = start.get(8..12).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (length.map(|n| n as usize), 12)
        }
        other => return Err(format!("version {other} of the .npy format is not known")),
    };
    let length = length.ok_or_else(short)?;
    if length > HEADER_LIMIT - at {
        return Err(format!("a header of {length} bytes is not one of an array of numbers"));
    }
    let text = start.get(at..at + length).ok_or_else(short)?;
    let text = std::str::from_utf8(text).map_err(|_| "the header is not text".to_owned())?;
    Dict { rest: text }.header((at + length) as u64)
}

/// A reader for the dictionary in the header, a Python literal.
struct Dict<'a> {
    rest: &'a str,
}

impl<'a> Dict<'a> {
    fn header(mut self, start: u64) -> Result<Header, String> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.take('}') {
            let key = self.string()?;
            self.expect(':')?;
            let twice = match key {
                "descr" if self.peek('[') => {
                    return Err(
                        "a structured array; save the field of it that holds vectors".into()
                    );
                }
                "descr" => descr.replace(self.string()?).is_some(),
                "fortran_order" => fortran.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.numbers()?).is_some(),
                other => return Err(format!("the header has an unknown key {other:?}")),
            };
            if twice {
                return Err(format!("the header has {key:?} twice"));
            }
            if !self.take(',') {
                self.expect('}')?;
                break;
            }
        }
        if !self.rest.trim().is_empty() {
            return Err("the header goes on after its end".into());
        }
        let missing = |name| format!("the header has no {name:?}");
        Ok(Header {
            descr: descr.ok_or_else(|| missing("descr"))?.to_owned(),
            fortran: fortran.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            start,
        })
    }

    fn peek(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        self.rest.starts_with(c)
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.peek(c);
        if found {
            self.rest = &self.rest[c.len_utf8()..];
        }
        found
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.take(c) { Ok(()) } else { Err(format!("the header lacks a {c:?}")) }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.peek('"') { '"' } else { '\'' };
        self.expect(quote)?;
        let (text, rest) = self.rest.split_once(quote).ok_or("the header lacks a quote")?;
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err("the header's fortran_order is neither True nor False".into())
    }

    fn numbers(&mut self) -> Result<Vec<u64>, String> {
        let mut numbers = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            self.rest = self.rest.trim_start();
            let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at(end);
            numbers.push(digits.parse().map_err(|_| "the header's shape is not one".to_owned())?);
            self.rest = rest;
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(numbers)
    }
}

/// Writes an array row by row, so that it is never in memory as a whole.
#[derive(Debug)]
pub(crate) struct Writer {
    out: BufWriter<Target>,
    path: PathBuf,
}

impl Writer {
    /// Begins the file. `descr` is the element type as NumPy spells it.
    pub(crate) fn create(
        path: &Path,
        descr: &str,
        rows: u64,
        columns: Option<u64>,
    ) -> Result<Self, Failure> {
        let columns = columns.map(|n| n.to_string()).unwrap_or_default();
        let dict = format!(
            "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows},{columns}), }}"
        );
        // The data begins at a multiple of 64, and the header ends with a line feed.
        let length = (10 + dict.len() + 1).next_multiple_of(64) - 10;
        let length_field = u16::try_from(length).map_err(|e| Failure::file(path, e))?;
        let mut writer = Self {
            out: BufWriter::with_capacity(1 << 20, Target::create(path)?),
            path: path.to_owned(),
        };
        writer.put(MAGIC)?;
        writer.put(&[1, 0])?;
        writer.put(&length_field.to_le_bytes())?;
        writer.put(format!("{dict:0$}\n", length - 1).as_bytes())?;
        Ok(writer)
    }

    pub(crate) fn floats(&mut self, values: &[f32]) -> Result<(), Failure> {
        values.iter().try_for_each(|value| self.put(&value.to_le_bytes()))
    }

    pub(crate) fn integers(&mut self, values: &[i64]) -> Result<(), Failure> {
        values.iter().try_for_each(|value| self.put(&value.to_le_bytes()))
    }

    /// Brings everything to the disk and gives the file its name.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        let target = self.out.into_inner().map_err(|e| Failure::file(&self.path, e.error()))?;
        target.finish()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(Failure::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, dict: &str) -> Vec<u8> {
        let mut bytes = [MAGIC.as_slice(), &[version, 0]].concat();
        match version {
            1 => bytes.extend((dict.len() as u16).to_le_bytes()),
            _ => bytes.extend((dict.len() as u32).to_le_bytes()),
        }
        bytes.extend(dict.as_bytes());
        bytes
    }

    #[test]
    fn both_header_versions_and_any_order_of_keys_are_read() {
        let dict = "{\"shape\": (3,4) ,'fortran_order':False, 'descr': '<f4'}  \n";
        for version in [1, 2, 3] {
            let bytes = file(version, dict);
            let start = bytes.len() as u64;
            let (descr, shape) = ("<f4".to_owned(), vec![3, 4]);
            assert_eq!(parse(&bytes), Ok(Header { descr, fortran: false, shape, start }));
        }
    }

    #[test]
    fn hostile_headers_are_refused_with_a_reason() {
        let cases = [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, -4), }", "shape"),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 99999999999999999999)}",
                "shape",
            ),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3 4), }", "lacks"),
            ("{'descr': '<f4', 'fortran_order': 1, 'shape': (3, 4), }", "neither"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 4), }", "structured"),
            ("{'descr': '<f4', 'shape': (3, 4), }", "no \"fortran_order\""),
            ("{'descr': '<f4', 'descr': '<f4'}", "twice"),
            ("{'descr': '<f4', 'evil': 1}", "unknown key"),
            ("{'descr': '<f4", "quote"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)} x", "after its end"),
            ("", "lacks"),
        ];
        for (dict, reason) in cases {
            let refused = parse(&file(1, dict)).unwrap_err();
            assert!(refused.contains(reason), "{dict}: {refused}");
        }
    }

    #[test]
    fn no_prefix_of_a_header_is_taken_for_one() {
        let whole = file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }\n");
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end} bytes");
        }
        assert!(parse(&file(9, "")).unwrap_err().contains("version 9"));
        let mut endless = file(2, "{}");
        endless[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(&endless).unwrap_err().contains("4294967295 bytes"));
    }
}
