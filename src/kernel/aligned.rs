//! Numbers that begin on a cache line, so that no load of a whole register crosses two, and in
//! large pages where there are many: a query touches them all over.

use std::ops::{Deref, DerefMut};

const LINE: usize = 64;
/// The size of a large page.
const LARGE: usize = 2 << 20;

/// A fixed number of numbers, zero at first.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    values: Vec<T>,
    start: usize,
}

impl<T: Copy + Default> Aligned<T> {
    pub(crate) fn new(len: usize) -> Aligned<T> {
        let bytes = len * size_of::<T>();
        let align = if bytes >= LARGE { LARGE } else { LINE };
        let spare = align / size_of::<T>();
        let mut values = vec![T::default(); len + spare];
        let start = values.as_ptr().align_offset(align).min(spare);
        values.truncate(start + len);
        if bytes >= LARGE {
            in_large_pages(&mut values[start..]);
        }
        Aligned { values, start }
    }
}

/// Asks for large pages. A hint: failure is of no consequence.
#[cfg(target_os = "linux")]
fn in_large_pages<T>(values: &mut [T]) {
    use rustix::mm::{Advice, madvise};
    let len = size_of_val(values) / LARGE * LARGE;
    // SAFETY: the exclusive reference covers the range, which is rounded down to whole pages, and
    // the advice changes no byte of it.
    let _ = unsafe { madvise(values.as_mut_ptr().cast(), len, Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn in_large_pages<T>(_: &mut [T]) {}

impl<T: Copy + Default> Default for Aligned<T> {
    fn default() -> Self {
        Self::new(0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_on_a_line_and_are_zero_whatever_their_number() {
        for len in [0, 1, 1000, LARGE - 1, LARGE + 5, 3 * LARGE] {
            let mut numbers = Aligned::<i8>::new(len);
            assert_eq!((numbers.len(), numbers.as_ptr().align_offset(LINE)), (len, 0));
            assert!(numbers.iter().all(|number| *number == 0));
            numbers.fill(7);
            assert!(numbers.iter().all(|number| *number == 7));
        }
    }
}
