//! What happens when a page of a map is not there any more because another process truncated the file,
//! or cannot be read from the disk: the kernel sends SIGBUS. If the page is one of ours, zeros take its
//! place, the map counts as lost, and the access goes on; otherwise the signal is whose it was.
//!
//! `libc` and no crate for signals: the handler must run on the alternate stack where a thread has one
//! (the handler of Rust's standard library for an overflown stack does, and those of other runtimes ask
//! for it), and must die as the process would have died without it.

use libc::{c_int, c_void, siginfo_t};
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

/// What the handler knows of a map. It reads without locks, so that `version` is odd while the rest
/// changes, and never the same again.
#[derive(Debug, Default)]
struct Slot {
    version: AtomicU64,
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

const SLOTS: usize = 1024;
const CHUNKS: usize = 1024;

/// All slots. Chunks are never given back, so that the handler may look at any time.
static SLOTS_OF_ALL: [OnceLock<Box<[Slot]>>; CHUNKS] = [const { OnceLock::new() }; CHUNKS];
/// How many maps were ever lost in this process.
static LOST: AtomicU64 = AtomicU64::new(0);
static PAGE: AtomicUsize = AtomicUsize::new(4096);
/// What was to happen at SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
static FREE: Mutex<Free> = Mutex::new(Free { left: Vec::new(), next: 0 });

struct Free {
    /// Slots that were used before.
    left: Vec<usize>,
    next: usize,
}

/// How many maps were ever lost. Who compares it before and after reading from maps knows whether to
/// believe what was read.
pub(crate) fn lost_maps() -> u64 {
    fence(Acquire);
    LOST.load(Acquire)
}

/// The place of a map in the list of those that the handler knows.
#[derive(Debug)]
pub(super) struct Watch {
    number: usize,
    slot: &'static Slot,
}

impl Watch {
    pub(super) fn new(bytes: &[u8]) -> io::Result<Self> {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let number = free.left.last().copied().unwrap_or(free.next);
        let chunk = SLOTS_OF_ALL.get(number / SLOTS).ok_or(io::ErrorKind::OutOfMemory)?;
        let slots = chunk.get_or_init(|| (0..SLOTS).map(|_| Slot::default()).collect());
        let slot = slots.get(number % SLOTS).ok_or(io::ErrorKind::OutOfMemory)?;
        if free.left.pop().is_none() {
            free.next += 1;
        }
        let range = bytes.as_ptr_range();
        slot.put(range.start as usize, range.end as usize);
        Ok(Self { number, slot })
    }

    /// Of a process that never lost a map it is enough to look at one number.
    pub(super) fn is_lost(&self) -> bool {
        LOST.load(Acquire) > 0 && self.slot.lost.load(Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot.put(0, 0);
        free.left.push(self.number);
    }
}

impl Slot {
    /// Takes another range. The caller holds the lock of [`FREE`].
    fn put(&self, start: usize, end: usize) {
        let version = self.version.load(Relaxed);
        self.version.store(version + 1, Relaxed);
        fence(Release);
        self.start.store(start, Relaxed);
        self.end.store(end, Relaxed);
        self.lost.store(false, Relaxed);
        self.version.store(version + 2, Release);
    }

    /// The range, unless it is changing.
    fn range(&self) -> Option<(usize, usize)> {
        let version = self.version.load(Acquire);
        let range = (self.start.load(Relaxed), self.end.load(Relaxed));
        fence(Acquire);
        let still = version.is_multiple_of(2) && self.version.load(Relaxed) == version;
        still.then_some(range)
    }
}

/// Has the guard stand from now on. Once is for ever: a host that wants SIGBUS for itself says so before
/// the first map, or installs its own handler later, which may hand on to this one.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        PAGE.store(usize::try_from(page).unwrap_or(4096), Relaxed);
        let Some(before) = action(None) else { return };
        // Known before the handler can run.
        let mut ours = *BEFORE.get_or_init(|| before);
        ours.sa_sigaction = on_sigbus as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: clears a set that we own.
        unsafe { libc::sigemptyset(&raw mut ours.sa_mask) };
        action(Some(&ours));
    });
}

/// What was to happen at SIGBUS so far; from now on `new` is, if there is one.
fn action(new: Option<&libc::sigaction>) -> Option<libc::sigaction> {
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    let mut old = std::mem::MaybeUninit::uninit();
    // SAFETY: `new` is null or an action whose handler lives as long as the process (ours, or the default),
    // `old` has room for one.
    if unsafe { libc::sigaction(libc::SIGBUS, new, old.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it has written the old action.
    Some(unsafe { old.assume_init() })
}

/// The handler. It calls nothing but `mmap` and `sigaction`, takes no lock and allocates nothing.
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid description of the signal (SA_SIGINFO).
    let description = unsafe { &*info };
    let code = description.si_code;
    // Not there, an error of the object, bad memory under the page. Else nothing is where the address of
    // a fault would be.
    let faulted = matches!(code, libc::BUS_ADRERR | libc::BUS_OBJERR | libc::BUS_MCEERR_AR);
    // SAFETY: with these codes the description holds the address.
    let address = if faulted { unsafe { description.si_addr() }.addr() } else { 0 };
    // SAFETY: asks where the error number of this thread is.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it is there as long as the thread is.
    let before = unsafe { *errno };
    if !(faulted && mend(address)) {
        hand_on(signal, info, context, code);
    }
    // SAFETY: as above. What was stopped may be about to look at it.
    unsafe { *errno = before };
}

/// Puts zeros in the place of a page of a map and of all behind it; false if it is of no map of ours.
fn mend(address: usize) -> bool {
    let mut slots = SLOTS_OF_ALL.iter().map_while(|chunk| chunk.get()).flatten();
    let page = PAGE.load(Relaxed);
    let whole = |(start, end): (usize, usize)| (start, end.next_multiple_of(page));
    let found = slots.find_map(|slot| {
        let range = slot.range().map(whole);
        range.filter(|(start, end)| (*start..*end).contains(&address)).map(|range| (slot, range))
    });
    let Some((slot, (start, end))) = found else { return false };
    // First known as lost, then zeros: whoever reads a zero finds it lost afterwards.
    if !slot.lost.swap(true, SeqCst) {
        LOST.fetch_add(1, SeqCst);
    }
    // A part of a map makes two of one, and there may be no more to have.
    zeros(address - address % page, end) || zeros(start, end)
}

fn zeros(start: usize, end: usize) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let at = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a map of ours, or the end of one, in whole pages: a slot names it, and a slot
    // forgets a range before its pages are given back. It stays while this runs, because the thread that
    // was stopped here reads from the map and so holds a borrow of it. It was readable before and is
    // readable after. Another thread that reads it meanwhile would have been killed, or finds zeros, as it
    // would if the file had been overwritten: no `unsafe` code relies on what the bytes are.
    let made = unsafe { libc::mmap(at, end - start, libc::PROT_READ, flags, -1, 0) };
    made != libc::MAP_FAILED
}

/// Does what would have been done without the guard.
fn hand_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, code: c_int) {
    let before = BEFORE.get();
    match before.map_or(libc::SIG_DFL, |before| before.sa_sigaction) {
        // Who ignores the signal ignores those that are sent; a fault cannot be ignored.
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: zeros are the default action.
            let default: libc::sigaction = unsafe { std::mem::zeroed() };
            action(Some(&default));
            if code <= 0 {
                // It was sent, and comes again as soon as this returns; a fault comes again by itself.
                // SAFETY: sends a signal to this thread.
                unsafe { libc::raise(signal) };
            }
        }
        handler if before.is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0) => {
            // SAFETY: with SA_SIGINFO the address is that of a function of this type.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO the address is that of a function of this type.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
