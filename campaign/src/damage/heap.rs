//! An allocator that counts: how much a program holds at most, and the largest piece it asked for.
#![expect(
    unsafe_code,
    reason = "a global allocator is unsafe by nature; it hands on to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// Counts what the system's allocator gives, of all threads together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counting;

// Loads and stores instead of locked additions, which took a tenth of a campaign: a count is lost where
// two threads allocate at once, and the threads of an index wait for each other.
fn taken(size: usize) {
    let held = HELD.load(Relaxed).wrapping_add(size);
    HELD.store(held, Relaxed);
    if held > PEAK.load(Relaxed) && held < usize::MAX / 2 {
        PEAK.store(held, Relaxed);
    }
    if size > LARGEST.load(Relaxed) {
        LARGEST.store(size, Relaxed);
    }
}

fn given(size: usize) {
    HELD.store(HELD.load(Relaxed).wrapping_sub(size), Relaxed);
}

// SAFETY: every method hands its arguments on to `System` unchanged, whose contract is the same;
// counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        given(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // While it moves, both are there.
        taken(size);
        given(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Use {
    /// The most that was held at once, beyond what was held before.
    pub peak: usize,
    /// The largest single allocation.
    pub largest: usize,
}

/// What `job` takes. All zero where [`Counting`] is not the allocator of the program.
pub fn of<T>(job: impl FnOnce() -> T) -> (T, Use) {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    LARGEST.store(0, Relaxed);
    let done = job();
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    (done, Use { peak, largest: LARGEST.load(Relaxed) })
}

/// Whether [`Counting`] is the allocator of this program.
pub fn counts() -> bool {
    of(|| std::hint::black_box(vec![1u8; 100])).1.largest >= 100
}
