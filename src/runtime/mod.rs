//! What all indexes of a process share: threads for callers, threads for upkeep, and the scheduler of what
//! is done in the background. Nothing is started before it is needed, and nothing of it is in a forked
//! child, which has a runtime of its own.
//!
//! Upkeep computes in threads of its own, of low priority, so that no caller waits for a training to let go
//! of a thread, and a busy host is hardly slowed down. A thread of low priority must hold no lock that a
//! caller needs: it may not run again for long. So whoever commits, in the background too, does so on a thread of
//! normal priority, and hands only the work between commits to those threads.

mod scheduler;
mod shared;

pub(crate) use scheduler::{Lane, Next, Task};

use crate::error::{Error, Result};
use crate::storage::Process;
use crate::sync::lock;
use arc_swap::ArcSwapOption;
use rayon::{ThreadPool, ThreadPoolBuilder};
use scheduler::Scheduler;
use shared::Shared;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// What all indexes of a process share.
#[derive(Debug)]
pub(crate) struct Runtime {
    process: Process,
    pools: Mutex<Vec<(Purpose, usize, Weak<ThreadPool>)>>,
    scheduler: Arc<Scheduler>,
}

impl Runtime {
    /// That of the running process.
    pub(crate) fn current() -> Arc<Self> {
        static CURRENT: ArcSwapOption<Runtime> = ArcSwapOption::const_empty();
        let here = Process::current();
        loop {
            let known = CURRENT.load_full();
            if let Some(known) = known.as_ref().filter(|known| known.process == here) {
                return Arc::clone(known);
            }
            let fresh = Self { process: here, pools: Mutex::default(), scheduler: Arc::default() };
            let before = CURRENT.compare_and_swap(&known, Some(Arc::new(fresh)));
            // What is of the process that this one was forked from has its threads there.
            std::mem::forget((Option::clone(&before), known));
        }
    }

    /// The threads for a purpose; as many as there are processors if `n` is 0.
    pub(crate) fn threads(self: &Arc<Self>, purpose: Purpose, n: usize) -> Threads {
        Threads { runtime: Arc::clone(self), purpose, n, pool: OnceLock::new() }
    }

    /// A task of the scheduler.
    pub(crate) fn task(&self, job: impl Fn(Lane) -> Next + Send + Sync + 'static) -> Task {
        self.scheduler.task(job)
    }

    /// The pool for a purpose; indexes that ask for equally many threads share it.
    fn pool(&self, purpose: Purpose, n: usize) -> Result<Arc<ThreadPool>> {
        let mut pools = lock(&self.pools);
        pools.retain(|(.., pool)| pool.strong_count() > 0);
        let found = pools.iter().find(|(p, threads, _)| (*p, *threads) == (purpose, n));
        if let Some(pool) = found.and_then(|(.., pool)| pool.upgrade()) {
            return Ok(pool);
        }
        let name = purpose.name();
        let builder = ThreadPoolBuilder::new().thread_name(move |i| format!("cellar-{name}-{i}"));
        let builder = builder.num_threads(n).start_handler(move |_| {
            if purpose != Purpose::Calls {
                yield_to_callers();
            }
        });
        let pool = Arc::new(builder.build().map_err(|e| {
            Error::io("start the threads of", "the index")(std::io::Error::other(e.to_string()))
        })?);
        pools.push((purpose, n, Arc::downgrade(&pool)));
        Ok(pool)
    }
}

/// What threads are for. A fold must not wait until a training of another index is done with a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// What a caller waits for.
    Calls,
    /// Folding, and encoding what an open left plain.
    Folds,
    /// Training, measuring, compacting.
    Trainings,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Calls => "call",
            Self::Folds => "fold",
            Self::Trainings => "train",
        }
    }
}

/// Steps of niceness by which the threads of upkeep come after the others: a tenth of a busy processor is left
/// for them, so that upkeep ends some day.
const NICER: i32 = 10;

/// Lets threads of the host and of callers go before this one. A hint: failure is of no consequence.
fn yield_to_callers() {
    let own = rustix::process::getpriority_process(None).unwrap_or(0);
    let _ = rustix::process::setpriority_process(None, (own + NICER).min(19));
}

/// Threads of the process, which sleep until there is work for them.
#[derive(Debug)]
pub(crate) struct Threads {
    runtime: Arc<Runtime>,
    purpose: Purpose,
    n: usize,
    pool: OnceLock<Arc<ThreadPool>>,
}

impl Threads {
    fn pool(&self) -> Result<&ThreadPool> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool);
        }
        let pool = self.runtime.pool(self.purpose, self.n)?;
        Ok(self.pool.get_or_init(|| pool))
    }

    /// Runs `f` where rayon's parallel iterators use these threads, never the global pool of the host.
    ///
    /// A thread of another pool does jobs of its own pool while it waits for one of ours: a call within the
    /// call, on one stack, under the locks that are held. So a thread of no pool waits there in its place.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let pool = self.pool()?;
        if rayon::current_thread_index().is_none() || pool.current_thread_index().is_some() {
            return pool.install(f);
        }
        std::thread::scope(|scope| match scope.spawn(|| pool.install(f)).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// So many threads as the caller says, but no more than there are; all of them for 0.
    pub(crate) fn count(&self, most: usize) -> Result<usize> {
        match most {
            1 => Ok(1),
            0 => Ok(self.pool()?.current_num_threads()),
            most => Ok(most.min(self.pool()?.current_num_threads())),
        }
    }

    /// Does each of some shares on so many threads, the caller's among them, and gives what came of them in their
    /// order. Whichever is free takes the next share: a caller never waits for a thread that has other work, only
    /// for shares that were begun.
    pub(crate) fn share<T: Send + 'static>(
        &self,
        threads: usize,
        shares: Vec<Range<usize>>,
        one: impl Fn(Range<usize>) -> Result<Vec<T>> + Send + Sync + 'static,
    ) -> Result<Vec<T>> {
        let threads = threads.min(shares.len());
        let shared = Arc::new(Shared::new(shares, one));
        if threads > 1 {
            let pool = self.pool()?;
            for _ in 1..threads {
                let own = Arc::clone(&shared);
                pool.spawn(move || own.work());
            }
        }
        shared.work();
        shared.finish()
    }
}

/// Splits `n` into `shares` ranges, none longer by more than one than another.
pub(crate) fn evenly(n: usize, shares: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    (0..shares).map(move |at| n * at / shares..n * (at + 1) / shares)
}

/// The mutex's value, whatever happened to those who held it; none if it is held now.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<std::sync::MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(std::sync::TryLockError::Poisoned(e)) => Some(PoisonError::into_inner(e)),
        Err(std::sync::TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Purpose, Runtime, evenly};
    use crate::Error;
    use std::collections::HashMap;
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Barrier, Mutex};

    #[test]
    fn every_thread_takes_its_part_of_any_number_of_shares() {
        for (threads, n) in [(2, 2), (2, 6), (2, 626), (3, 3), (3, 9), (4, 8)] {
            let pool = Runtime::current().threads(Purpose::Calls, threads);
            // A share ends when as many threads as there are have one each.
            let all = Barrier::new(threads);
            let taken = Arc::new(Mutex::new(HashMap::new()));
            let counted = Arc::clone(&taken);
            let done = pool.share(threads, evenly(3 * n + 1, n).collect(), move |share| {
                all.wait();
                *counted.lock().unwrap().entry(std::thread::current().id()).or_insert(0) += 1;
                Ok(share.collect())
            });
            assert_eq!(done.unwrap(), (0..3 * n + 1).collect::<Vec<_>>());
            let taken: Vec<usize> = taken.lock().unwrap().values().copied().collect();
            assert_eq!(taken, vec![n / threads; threads]);
        }
    }

    #[test]
    fn a_caller_does_by_itself_what_busy_threads_do_not_begin() {
        let pool = Runtime::current().threads(Purpose::Calls, 6);
        let (go, wait) = channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        for _ in 0..6 {
            let wait = Arc::clone(&wait);
            pool.pool().unwrap().spawn(move || {
                let _ = wait.lock().unwrap().recv();
            });
        }
        let held = Arc::new(());
        let own = Arc::clone(&held);
        let done = pool.share(6, evenly(100, 100).collect(), move |share| {
            assert_eq!(Arc::strong_count(&own), 2);
            Ok(share.collect())
        });
        assert_eq!(done.unwrap(), (0..100).collect::<Vec<_>>());
        // Threads that have not begun keep nothing of it alive, as the lock of an index.
        assert_eq!(Arc::strong_count(&held), 1);
        drop(go);
    }

    #[test]
    fn the_first_error_and_a_panic_end_the_shares() {
        let pool = Runtime::current().threads(Purpose::Calls, 2);
        for panics in [false, true] {
            let done = Arc::new(Mutex::new(0));
            let counted = Arc::clone(&done);
            let one = move |_| {
                *counted.lock().unwrap() += 1;
                if panics {
                    std::panic::resume_unwind(Box::new("on purpose"));
                }
                Err(Error::Closed)
            };
            let share = || pool.share::<()>(2, evenly(1000, 1000).collect(), one);
            let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(share));
            match failed {
                Err(_) => assert!(panics),
                Ok(failed) => assert!(!panics && matches!(failed, Err(Error::Closed))),
            }
            assert!(*done.lock().unwrap() <= 2);
        }
    }

    #[test]
    fn threads_of_upkeep_come_after_those_of_callers_and_are_others() {
        let runtime = Runtime::current();
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let of = |purpose| {
            let threads = runtime.threads(purpose, 5);
            threads.run(|| Ok((nice(), std::thread::current().name().unwrap().to_owned())))
        };
        let (calls, name) = of(Purpose::Calls).unwrap();
        assert!(calls == nice() && name.starts_with("cellar-call-"));
        for (purpose, of_purpose) in
            [(Purpose::Folds, "cellar-fold-"), (Purpose::Trainings, "cellar-train-")]
        {
            let (upkeep, name) = of(purpose).unwrap();
            assert_eq!(upkeep, (calls + 10).min(19));
            assert!(name.starts_with(of_purpose));
        }
        assert_eq!(nice(), calls, "the thread that asked");
    }
}
