//! The first 64 bytes of a row segment or a list: which file this is. Section 4.

use crate::bytes::{Reader, count_u32};
use crate::checksum::crc;
use crate::error::{FormatError, FormatErrorKind};
use crate::{FORMAT_VERSION, HEADER_LEN, MAX_DIM};

/// The high byte and the line feed betray a transfer as text.
const MAGIC: [u8; 8] = *b"\x89CELLAR\n";

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Rows as inserted.
    Rows,
    /// Frames of one inverted list.
    List,
}

impl FileKind {
    const fn code(self) -> u32 {
        match self {
            Self::Rows => 1,
            Self::List => 2,
        }
    }
}

/// Which file of which index this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// What the file holds.
    pub kind: FileKind,
    /// Of the index.
    pub uuid: [u8; 16],
    /// Segment number, or list id.
    pub number: u64,
    /// Model generation of a list; 0 for rows.
    pub generation: u32,
    /// Revision of a list; 0 for rows.
    pub revision: u32,
    /// Dimensions of a vector.
    pub dim: u32,
    /// Bytes of a row, or of a block.
    pub unit: u32,
}

impl FileHeader {
    /// The header as bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.kind.code().to_le_bytes());
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&self.number.to_le_bytes());
        for field in [self.generation, self.revision, self.dim, self.unit, 0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        seal_64(&out)
    }

    /// Reads the header at the start of `bytes`; what follows it is not looked at.
    ///
    /// # Errors
    ///
    /// In this order: `Truncated`, `Magic`, `Checksum`, `Version`, `Value`. The first three fields
    /// that these look at keep their places in every version.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let header = Reader::new(bytes).array::<HEADER_LEN>()?;
        let mut reader = Reader::new(&header);
        if reader.array()? != MAGIC {
            return Err(reader.error(FormatErrorKind::Magic));
        }
        check_64(&header)?;
        let found = reader.u32()?;
        if found != FORMAT_VERSION {
            return Err(reader.error(FormatErrorKind::Version { found }));
        }
        let kind = match reader.u32()? {
            1 => FileKind::Rows,
            2 => FileKind::List,
            _ => return Err(reader.error(FormatErrorKind::Value("kind of file"))),
        };
        let uuid = reader.array()?;
        let number = reader.u64()?;
        let generation = reader.u32()?;
        let revision = reader.u32()?;
        let dim = reader.u32()?;
        reader.ensure((1..=count_u32(MAX_DIM)).contains(&dim), "dimension")?;
        let unit = reader.u32()?;
        let reserved = reader.u32()?;
        reader.ensure(reserved == 0, "reserved field of the file header")?;
        Ok(Self { kind, uuid, number, generation, revision, dim, unit })
    }

    /// Refuses the header of any file but the expected one.
    ///
    /// # Errors
    ///
    /// `Identity`, at the offset of the first field that differs.
    pub fn check(&self, expected: &Self) -> Result<(), FormatError> {
        let differs = [
            (12, self.kind != expected.kind),
            (16, self.uuid != expected.uuid),
            (32, self.number != expected.number),
            (40, self.generation != expected.generation),
            (44, self.revision != expected.revision),
            (48, self.dim != expected.dim),
            (52, self.unit != expected.unit),
        ];
        match differs.iter().find(|(_, differs)| *differs) {
            Some(&(offset, _)) => Err(FormatError::new(offset, FormatErrorKind::Identity)),
            None => Ok(()),
        }
    }
}

/// Sixty bytes and their checksum. Missing bytes are zeros.
pub(crate) fn seal_64(covered: &[u8]) -> [u8; 64] {
    let mut out = [0; 64];
    if let Some((body, sum)) = out.split_last_chunk_mut::<4>() {
        for (to, from) in body.iter_mut().zip(covered) {
            *to = *from;
        }
        *sum = crc(&[body]).to_le_bytes();
    }
    out
}

/// Checks the last four of 64 bytes against the others.
pub(crate) fn check_64(bytes: &[u8; 64]) -> Result<(), FormatError> {
    match bytes.split_last_chunk::<4>() {
        Some((body, sum)) if crc(&[body]) == u32::from_le_bytes(*sum) => Ok(()),
        // Which of them changed it does not say.
        _ => Err(FormatError::new(0, FormatErrorKind::Checksum)),
    }
}
