//! Which process this is, told in a nanosecond: a page that the kernel empties in every forked child.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::SeqCst};

/// The page: it holds the number of this process, 0 after a fork. Null until it is first wanted.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
/// Numbers of processes given so far, here and in those that this one was forked from.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// A process; a child that was forked from it is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u64);

impl Process {
    /// The running process.
    pub(crate) fn current() -> Self {
        let Some(page) = page().or_else(make) else { return Self(std::process::id().into()) };
        let fresh = NUMBERS.fetch_add(1, SeqCst) + 1;
        match page.compare_exchange(0, fresh, SeqCst, SeqCst) {
            Ok(_) => Self(fresh),
            Err(known) => Self(known),
        }
    }

    /// Whether this is still the running process.
    pub(crate) fn is_current(self) -> bool {
        match page() {
            Some(page) => page.load(SeqCst) == self.0,
            None => u64::from(std::process::id()) == self.0,
        }
    }
}

fn page() -> Option<&'static AtomicU64> {
    let page = NonNull::new(PAGE.load(SeqCst))?;
    // SAFETY: `make` put the address of a mapped page there, which is never given back; a new page is
    // zeros, which is a valid atomic, and page-aligned.
    Some(unsafe { page.as_ref() })
}

/// Makes the page; `None` where the kernel cannot (before Linux 4.14).
fn make() -> Option<&'static AtomicU64> {
    let (read_write, private) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let len = size_of::<AtomicU64>();
    // SAFETY: a new anonymous map at an address that the kernel chooses touches no other memory.
    let page = unsafe { libc::mmap(ptr::null_mut(), len, read_write, private, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the page was just made, and nobody else knows of it.
    if unsafe { libc::madvise(page, len, libc::MADV_WIPEONFORK) } != 0 {
        return None;
    }
    // Of two threads that come at the same time one leaves its page unused.
    let _ = PAGE.compare_exchange(ptr::null_mut(), page.cast(), SeqCst, SeqCst);
    self::page()
}
