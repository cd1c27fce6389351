//! What all indexes of a process share: threads for callers, threads for upkeep, and the scheduler of what
//! is done in the background. Nothing is started before it is needed, and nothing of it is in a forked
//! child, which has a runtime of its own.
//!
//! Upkeep computes in threads of its own, of low priority, so that no caller waits for a training to let go
//! of a thread, and a busy host is hardly slowed down. A thread of low priority must hold no lock that a
//! caller needs: it may not run again for long. So whoever commits, in the background too, does so on a thread of
//! normal priority, and hands only the work between commits to those threads.

mod scheduler;

pub(crate) use scheduler::{Lane, Next, Task};

use crate::error::{Error, Result};
use crate::storage::Process;
use crate::sync::lock;
use arc_swap::ArcSwapOption;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use scheduler::Scheduler;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
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

    /// Does each of some shares on so many threads, and gives what came of them in their order. Whichever thread
    /// is free takes the next share, so that none waits for one that has other work.
    pub(crate) fn share<T: Send>(
        &self,
        threads: usize,
        shares: &[Range<usize>],
        one: impl Fn(Range<usize>) -> Result<Vec<T>> + Sync,
    ) -> Result<Vec<T>> {
        let (next, one) = (AtomicUsize::new(0), &one);
        let work = |_| -> Result<Vec<(usize, Vec<T>)>> {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(share) = shares.get(at) else { return Ok(done) };
                let found = one(share.clone()).inspect_err(|_| {
                    next.store(shares.len(), Ordering::Relaxed);
                })?;
                done.push((at, found));
            }
        };
        let threads = 0..threads.min(shares.len());
        let found = self.run(|| threads.into_par_iter().with_max_len(1).map(work).collect());
        let mut found: Vec<(usize, Vec<T>)> =
            found.map(|parts: Vec<Vec<(usize, Vec<T>)>>| parts.into_iter().flatten().collect())?;
        found.sort_unstable_by_key(|(at, _)| *at);
        Ok(found.into_iter().flat_map(|(_, found)| found).collect())
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
    use std::sync::{Barrier, Mutex};

    #[test]
    fn every_thread_takes_its_part_of_any_number_of_shares() {
        for (threads, n) in [(2, 2), (2, 6), (2, 626), (3, 3), (3, 9), (4, 8)] {
            let pool = Runtime::current().threads(Purpose::Calls, threads);
            // A share ends when as many threads as there are have one each.
            let (all, taken) = (Barrier::new(threads), Mutex::new(HashMap::new()));
            let shares: Vec<_> = evenly(3 * n + 1, n).collect();
            let done = pool.share(threads, &shares, |share| {
                all.wait();
                *taken.lock().unwrap().entry(std::thread::current().id()).or_insert(0) += 1;
                Ok(share.collect())
            });
            assert_eq!(done.unwrap(), (0..3 * n + 1).collect::<Vec<_>>());
            let taken: Vec<usize> = taken.into_inner().unwrap().into_values().collect();
            assert_eq!(taken, vec![n / threads; threads]);
        }
    }

    #[test]
    fn the_first_error_ends_the_shares() {
        let pool = Runtime::current().threads(Purpose::Calls, 2);
        let shares: Vec<_> = evenly(1000, 1000).collect();
        let done = Mutex::new(0);
        let failed = pool.share::<()>(2, &shares, |_| {
            *done.lock().unwrap() += 1;
            Err(Error::Closed)
        });
        assert!(matches!(failed, Err(Error::Closed)));
        assert!(*done.lock().unwrap() < 1000);
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
