//! Waiting on a machine that may be busy: how long something takes is nobody's fault.

use std::time::{Duration, Instant};

/// What has not ended by then hangs.
pub const HANGS: Duration = Duration::from_secs(20 * 60);

/// Waits until it holds; says what was waited for if it never does.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANGS, "hangs: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
