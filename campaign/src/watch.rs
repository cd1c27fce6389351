//! Nothing may panic, not even where a panic is caught; nothing may take long.

use crate::patience::HANGS;
use rustix::time::ClockId;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The most that one case may take, by the clock and of the processor.
pub const LIMIT: Duration = Duration::from_secs(1);

thread_local! {
    /// The panics of this thread while a case runs; `None` outside of one.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// From now on the panics of cases are noted instead of printed.
fn note_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let noted = PANICS.with_borrow_mut(|panics| {
                panics.as_mut().map(|panics| panics.push(info.to_string())).is_some()
            });
            if !noted {
                others(info);
            }
        }));
    });
}

/// Does a job. A panic in it is an error, also one that the job caught.
pub fn no_panic<T>(job: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    note_panics();
    PANICS.set(Some(Vec::new()));
    let done = catch_unwind(AssertUnwindSafe(job));
    let panics = PANICS.take().unwrap_or_default();
    match done {
        Ok(done) if panics.is_empty() => done,
        Ok(Ok(_)) => Err(format!("PANIC, caught: {}", panics.join("; "))),
        Ok(Err(e)) => Err(format!("PANIC, caught: {}; then {e}", panics.join("; "))),
        Err(_) => Err(format!("PANIC: {}", panics.join("; "))),
    }
}

/// The processor time that this process has taken, by all of its threads.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Does a job within the limit. On a busy machine the clock goes on while the job waits, and beside other
/// jobs of this process the processor counts theirs too: the less of the two counts. What took too long
/// is done `again`, thrice.
pub fn in_time<T>(job: impl Fn() -> Result<T, String>, again: impl Fn()) -> Result<T, String> {
    let mut took = Duration::ZERO;
    for turn in 0..4 {
        if turn > 0 {
            again();
        }
        let (start, before) = (Instant::now(), processor_time());
        let done = job();
        took = start.elapsed().min(processor_time().saturating_sub(before));
        if took < LIMIT || done.is_err() {
            return done;
        }
    }
    Err(format!("took {took:?} at the fourth time too"))
}

/// Counts up with each case; [`guard`] ends the process when it stops doing so.
pub static BEATS: AtomicU64 = AtomicU64::new(0);

/// Ends the process when a case hangs: a thread cannot be stopped.
pub fn guard(now: impl Fn() -> String + Send + 'static) {
    std::thread::spawn(move || {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(5));
            let beats = BEATS.load(Relaxed);
            if beats != last {
                (last, since) = (beats, Instant::now());
            }
            if since.elapsed() > HANGS {
                eprintln!("HANGS: {}", now());
                std::process::exit(1);
            }
        }
    });
}
