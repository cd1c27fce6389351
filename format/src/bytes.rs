//! A cursor over bytes: the one place where lengths are taken apart.

use crate::error::{FormatError, FormatErrorKind};

/// Bytes as a 64-bit number; exact on every host with addresses of up to 64 bits.
pub(crate) fn len_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// A count that was checked to be small, in the width it is stored with.
pub(crate) fn count_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A stored count in the width of an address; more than fits is as good as endless.
pub(crate) fn index(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Reads from the front, and knows where it is.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    at: u64,
    /// Where the last piece began, for errors about its value.
    piece: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, at: 0, piece: 0 }
    }

    /// Where the last piece began.
    pub(crate) fn piece(&self) -> u64 {
        self.piece
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let Some((piece, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.truncated());
        };
        self.advance(rest, len);
        Ok(piece)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let Some((piece, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.truncated());
        };
        self.advance(rest, N);
        Ok(*piece)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn f32(&mut self) -> Result<f32, FormatError> {
        self.array().map(f32::from_le_bytes)
    }

    /// `len` numbers, all finite; allocates nothing before it has them.
    pub(crate) fn floats(
        &mut self,
        len: usize,
        what: &'static str,
    ) -> Result<Vec<f32>, FormatError> {
        let (bytes, start) = (self.take(len.saturating_mul(4))?, self.piece);
        let values: Vec<f32> =
            bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => {
                let offset = start.saturating_add(len_u64(at).saturating_mul(4));
                Err(FormatError::new(offset, FormatErrorKind::Value(what)))
            }
        }
    }

    /// Refuses a count of entries that the remaining bytes do not hold.
    pub(crate) fn expect_entries(&self, count: usize, entry: usize) -> Result<(), FormatError> {
        if count.saturating_mul(entry) <= self.rest.len() { Ok(()) } else { Err(self.truncated()) }
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let piece = self.rest;
        self.advance(&[], piece.len());
        piece
    }

    /// An error about the piece read last.
    pub(crate) fn error(&self, kind: FormatErrorKind) -> FormatError {
        FormatError::new(self.piece, kind)
    }

    /// Refuses the piece read last unless `valid`.
    pub(crate) fn ensure(&self, valid: bool, what: &'static str) -> Result<(), FormatError> {
        if valid { Ok(()) } else { Err(self.error(FormatErrorKind::Value(what))) }
    }

    /// Refuses bytes that nothing asked for.
    pub(crate) fn finish(&self) -> Result<(), FormatError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(FormatError::new(self.at, FormatErrorKind::Length))
        }
    }

    fn advance(&mut self, rest: &'a [u8], len: usize) {
        self.rest = rest;
        self.piece = self.at;
        self.at = self.at.saturating_add(len_u64(len));
    }

    fn truncated(&self) -> FormatError {
        let end = self.at.saturating_add(len_u64(self.rest.len()));
        FormatError::new(end, FormatErrorKind::Truncated)
    }
}
