//! What can be wrong with bytes. Allocates nothing.

/// Bytes that are not what they should be, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{kind} (at byte {offset})")]
pub struct FormatError {
    /// Bytes from the start of the slice that was parsed to the piece that is wrong.
    pub offset: u64,
    /// What is wrong.
    pub kind: FormatErrorKind,
}

/// What is wrong with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatErrorKind {
    /// The bytes end too early; the offset is where more were needed.
    #[error("unexpected end of data")]
    Truncated,
    /// Not this kind of file or structure.
    #[error("unknown file type (wrong magic number)")]
    Magic,
    /// A version that this program does not read.
    #[error("format version {found}, this program reads version {}", crate::FORMAT_VERSION)]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// A flipped bit, a torn write, or a piece of another index or position.
    #[error("checksum mismatch")]
    Checksum,
    /// Intact, but of another index, file or position.
    #[error("file header belongs to another index or file")]
    Identity,
    /// A length that does not agree with the others.
    #[error("inconsistent length")]
    Length,
    /// A value that is not allowed.
    #[error("invalid {0}")]
    Value(&'static str),
}

impl FormatError {
    /// An error of this kind at this offset.
    pub const fn new(offset: u64, kind: FormatErrorKind) -> Self {
        Self { offset, kind }
    }

    /// The same error, for a slice that starts `base` bytes into its file.
    pub const fn within(self, base: u64) -> Self {
        Self { offset: self.offset.saturating_add(base), kind: self.kind }
    }
}
