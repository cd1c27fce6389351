//! Whether there is room for another map: where the address space of a process is limited, what maps take is
//! missing where memory is asked for, and a process that gets none is aborted.

use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};

/// Whether a map of so many bytes leaves half of the address space of this process to all else: to the
/// stacks and the heap of the host, and to what training may use.
pub(crate) fn has_room(len: u64) -> bool {
    let Some(limit) = getrlimit(Resource::As).current else { return true };
    // Without knowing what is taken, none is.
    taken().is_some_and(|taken| taken.saturating_add(len) <= limit / 2)
}

/// The address space that this process has taken.
fn taken() -> Option<u64> {
    let sizes = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = sizes.split_whitespace().next()?.parse().ok()?;
    pages.checked_mul(page_size() as u64)
}
