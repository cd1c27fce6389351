//! The content of `LOCK`: the newest commit that this index is known to have reached. Section 7.

use crate::MAX_MARK;
use crate::bytes::Reader;
use crate::error::{FormatError, FormatErrorKind};
use crate::header::{check_64, seal_64};

const MAGIC: [u8; 8] = *b"\x89CELLOCK";

/// The high-water mark of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockRecord {
    /// Of the index.
    pub uuid: [u8; 16],
    /// A commit that was acknowledged; later ones may have been.
    pub seq: u64,
    /// The process that wrote it.
    pub pid: u32,
}

impl LockRecord {
    /// The record as bytes, the whole of the file.
    pub fn encode(&self) -> [u8; 64] {
        let mut out = Vec::with_capacity(36);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.pid.to_le_bytes());
        seal_64(&out)
    }

    /// Reads the record at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// `Truncated`, `Magic` or `Checksum`: the file was never written, or the last write was lost or
    /// torn. `Value` when the reserved bytes are not zero, or no writer comes to such a commit.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let record = Reader::new(bytes).array::<64>()?;
        let mut reader = Reader::new(&record);
        if reader.array()? != MAGIC {
            return Err(reader.error(FormatErrorKind::Magic));
        }
        check_64(&record)?;
        let uuid = reader.array()?;
        let seq = reader.u64()?;
        reader.ensure(seq <= MAX_MARK, "number of the commit")?;
        let pid = reader.u32()?;
        let reserved = reader.array::<24>()?;
        reader.ensure(reserved == [0; 24], "reserved field of the lock record")?;
        Ok(Self { uuid, seq, pid })
    }
}
