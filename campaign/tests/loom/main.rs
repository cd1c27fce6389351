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

/// Runs a model in every order that `preemptions` allow, or as many as the environment asks for.
fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 10_000;
    builder.check(model);
}

/// What `src/sync.rs` is in the engine.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex};

    use std::ops::{Deref, DerefMut};
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

    /// A guard that knows its mutex, to let go of it and take it again.
    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        guard: loom::sync::MutexGuard<'a, T>,
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.guard
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.guard
        }
    }

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        MutexGuard { mutex, guard: mutex.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let MutexGuard { mutex, guard } = guard;
        let guard = condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
        MutexGuard { mutex, guard }
    }

    /// The time is up at any moment: the lock is let go of once, and whoever takes it meanwhile has
    /// come in time.
    pub(crate) fn wait_while<'a, T>(
        _condvar: &Condvar,
        mut guard: MutexGuard<'a, T>,
        _patience: Duration,
        mut missing: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        if !missing(&mut guard) {
            return guard;
        }
        let mutex = guard.mutex;
        drop(guard);
        lock(mutex)
    }
}
