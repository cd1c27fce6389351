//! Numbers that begin on a cache line, so that no load of a whole register crosses two.

use std::ops::{Deref, DerefMut};

const LINE: usize = 64;

/// A fixed number of numbers, zero at first.
#[derive(Debug)]
pub(super) struct Aligned<T> {
    values: Vec<T>,
    start: usize,
}

impl<T: Copy + Default> Aligned<T> {
    pub(super) fn new(len: usize) -> Aligned<T> {
        let spare = LINE / size_of::<T>();
        let mut values = vec![T::default(); len + spare];
        let start = values.as_ptr().align_offset(LINE).min(spare);
        values.truncate(start + len);
        Aligned { values, start }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[self.start..]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.start..]
    }
}
