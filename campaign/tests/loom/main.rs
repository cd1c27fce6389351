//! The small concurrent pieces of the engine in every order of events that a bounded number of
//! preemptions allows. The queue and the bitmap are the engine's own files, compiled over the types
//! of loom; publishing and catching up are models of what `writer.rs`, `open.rs` and `fold.rs` do.
//! `LOOM_MAX_PREEMPTIONS` and `LOOM_MAX_DURATION` (seconds) make it search further.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../../../src/index/queue.rs"]
mod queue;
#[path = "../../../src/storage/seen.rs"]
mod seen;

mod grouping;
mod publishing;
mod touching;

/// What `src/sync.rs` is in the engine.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};

    use std::sync::PoisonError;
    use std::time::Duration;

    /// A clock by which everything takes so long that it is worth waiting for others.
    #[derive(Debug)]
    pub(crate) struct Instant;

    impl Instant {
        pub(crate) fn now() -> Self {
            Self
        }

        pub(crate) fn elapsed(&self) -> Duration {
            Duration::from_secs(60)
        }
    }

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Time is up at any moment: the lock is let go once, and whoever gets it meanwhile has come in
    /// time.
    pub(crate) fn wait_while<'a, T>(
        _condvar: &Condvar,
        guard: MutexGuard<'a, T>,
        _patience: Duration,
        mut missing: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        let mut guard = guard;
        if missing(&mut guard) {
            GUARDS.with(|_| ());
        }
        guard
    }

    std::thread_local! {
        static GUARDS: () = const {};
    }
}
