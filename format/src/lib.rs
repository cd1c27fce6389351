//! The bytes of a Cellar index: what `SPEC.md` says, as types over `&[u8]`.
//!
//! Nothing here opens a file, reads a clock, or trusts a length. Parsing allocates no more than a
//! small multiple of its input, never panics, and answers damage with a [`FormatError`] whose
//! offset counts from the start of the slice that was handed in.
//!
//! | module | what | section of `SPEC.md` |
//! |---|---|---|
//! | `checksum` | CRC-32, sealed catalog values | 3, 6 |
//! | `header` | the first 64 bytes of a file | 4 |
//! | `row` | one row of a row segment | 4.1 |
//! | `frame` | one frame of an inverted list | 4.2 |
//! | `block` | sixteen codes, packed for the scan kernels | 4.3 |
//! | `record`, `entry`, `bitmap` | the values of the catalog | 6 |
//! | `lock` | the file `LOCK` | 7 |
//!
//! The writing side takes values that this program made, and asserts its contracts; the reading
//! side takes bytes that anyone may have made, and asserts nothing.

mod bitmap;
mod block;
mod bytes;
mod checksum;
mod entry;
mod error;
mod frame;
mod header;
mod lock;
mod record;
mod row;
mod settings;

pub use block::{BlockLayout, CodeKind, Factors};
pub use checksum::{crc, seal, unseal};
pub use entry::{FrameEntry, ListEntry, RoutingRecord, Segment, Tombstones};
pub use error::{FormatError, FormatErrorKind};
pub use frame::{
    Frame, ListIdentity, encode_frame, frame_crc, frame_len, parse_frame, payload_offset,
    verify_payload,
};
pub use header::{FileHeader, FileKind};
pub use lock::LockRecord;
pub use record::{
    Config, KindCode, MetricCode, ModelRecord, ROTATION_STEPS, State, encode_floats, parse_floats,
};
pub use row::{Row, RowLayout, floats};
pub use settings::{AskedRecord, Judges, Many, NEIGHBOURS, Setting, Settings};

/// The version that is written, and the one that is read.
pub const FORMAT_VERSION: u32 = 5;
/// In place of a cell: none.
pub const NONE: u32 = u32::MAX;
/// In place of a row id: none.
pub const NO_ID: u64 = u64::MAX;
/// One more than the greatest row id.
pub const MAX_ID: u64 = 1 << 63;
/// Greatest number of a commit or a segment: what is counted on from there still has a number.
pub const MAX_NUMBER: u64 = 1 << 63;
/// Greatest commit that `LOCK` may tell of: a repair goes on from it.
pub const MAX_MARK: u64 = 1 << 62;
/// Greatest generation of a model, and greatest revision of a list.
pub const MAX_GENERATION: u32 = 1 << 31;
/// Rows in a block.
pub const BLOCK_ROWS: usize = 16;
/// Frames start at multiples of this many bytes.
pub const FRAME_ALIGN: usize = 64;
/// Payload bytes under one checksum.
pub const CHUNK: usize = 8192;
/// Payload bytes of a frame, unless one block is longer.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Length of the header of a file.
pub const HEADER_LEN: usize = 64;
/// Greatest dimension.
pub const MAX_DIM: usize = 65_535;
/// Greatest number of lists.
pub const MAX_LISTS: usize = 16_384;
/// Greatest number of cells.
pub const MAX_CELLS: usize = 1 << 24;
/// Greatest length of a list file: offsets are stored in units of 64 bytes, in 32 bits.
pub const MAX_LIST_BYTES: u64 = 1 << 38;
