//! The first-touch bitmap: what has been verified through a map need not be again.

use crate::sync::{AtomicU64, Ordering};

/// One bit per piece of a file: whether its checksum has been seen to hold through the map.
///
/// Relaxed is enough: a bit hands over no memory. It says that bytes hold which every thread reads
/// from the same map.
#[derive(Debug)]
pub(crate) struct Seen(Vec<AtomicU64>);

impl Seen {
    pub(crate) fn new(bits: usize) -> Self {
        Self((0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn has(&self, bit: usize) -> bool {
        self.0.get(bit / 64).is_some_and(|w| w.load(Ordering::Relaxed) >> (bit % 64) & 1 == 1)
    }

    pub(crate) fn set(&self, bit: usize) {
        if let Some(word) = self.0.get(bit / 64) {
            word.fetch_or(1 << (bit % 64), Ordering::Relaxed);
        }
    }

    /// Verifies a piece, unless that was done and `always` is not asked for; it counts as done once
    /// `verify` has held.
    pub(crate) fn check<E>(
        &self,
        bit: usize,
        always: bool,
        verify: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if always || !self.has(bit) {
            verify()?;
            self.set(bit);
        }
        Ok(())
    }
}
