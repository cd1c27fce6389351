//! Nothing may panic, not even where a panic is caught; nothing may take long.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The most that one case may take.
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

/// Does a job within the limit. A machine may be busy: what took too long is done `again`, thrice.
pub fn in_time<T>(job: impl Fn() -> Result<T, String>, again: impl Fn()) -> Result<T, String> {
    let mut took = Duration::ZERO;
    for turn in 0..4 {
        if turn > 0 {
            again();
        }
        let start = Instant::now();
        let done = job();
        took = start.elapsed();
        if took < LIMIT || done.is_err() {
            return done;
        }
    }
    Err(format!("took {took:?} at the fourth time too"))
}

/// Counts up with each case; [`guard`] ends the process when it stops doing so.
pub static BEATS: AtomicU64 = AtomicU64::new(0);

/// Ends the process when a case has not ended for a minute: a thread that hangs cannot be stopped.
pub fn guard(now: impl Fn() -> String + Send + 'static) {
    std::thread::spawn(move || {
        let (mut last, mut same) = (0, 0);
        loop {
            std::thread::sleep(Duration::from_secs(5));
            let beats = BEATS.load(Relaxed);
            same = if beats == last { same + 1 } else { 0 };
            last = beats;
            if same == 12 {
                eprintln!("HANGS: {}", now());
                std::process::exit(1);
            }
        }
    });
}
