//! What an index does without being asked: its tasks in the scheduler of the process, and who holds the
//! upkeep of it.

use super::Inner;
use super::fold::Rewrite;
use super::measure::Asking;
use super::snapshot::Snapshot;
use crate::callback;
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::runtime::{Lane, Next, Runtime, Task, try_lock};
use crate::sync::{lock, wait_while};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// What callers and the background tell each other.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    stop: AtomicBool,
    /// The last failure of the background.
    error: Mutex<Option<String>>,
    upkeep: OnceLock<Task>,
    commits: OnceLock<Task>,
    /// The background found the upkeep held by another.
    refused: AtomicBool,
    /// How often the upkeep was let go of, and who waits for that.
    times: Mutex<u64>,
    over: Condvar,
}

impl Signal {
    /// Has the background look for what is due; whether it can.
    pub(crate) fn notify(&self) -> bool {
        let woken = self.upkeep.get().map_or(Ok(()), |task| task.wake(Duration::ZERO, Lane::Short));
        woken.inspect_err(|e| self.failed(&format!("cannot start a thread: {e}"))).is_ok()
    }

    /// Has the background commit after some time; whether it can.
    pub(super) fn commit_after(&self, time: Duration) -> bool {
        self.commits.get().is_some_and(|task| task.wake(time, Lane::Commit).is_ok())
    }

    /// Ends the background, and long work wherever it is done, without waiting for it.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.tasks().for_each(Task::end_soon);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.upkeep.get().into_iter().chain(self.commits.get())
    }

    /// Keeps a failure of the background, for those who ask.
    fn failed(&self, e: &str) {
        *lock(&self.error) = Some(e.to_owned());
    }

    pub(crate) fn error(&self) -> Option<String> {
        lock(&self.error).clone()
    }

    /// Waits until somebody lets go of the upkeep, but not for longer than that.
    pub(super) fn pause(&self, patience: Duration) {
        let times = lock(&self.times);
        let before = *times;
        drop(wait_while(&self.over, times, patience, |times| *times == before));
    }
}

/// The right to fold, train, measure, compact or verify.
#[derive(Debug)]
pub(crate) struct Upkeep<'a> {
    signal: &'a Signal,
    guard: Option<MutexGuard<'a, ()>>,
}

impl Drop for Upkeep<'_> {
    fn drop(&mut self) {
        self.guard.take();
        *lock(&self.signal.times) += 1;
        self.signal.over.notify_all();
        if self.signal.refused.swap(false, Ordering::SeqCst) {
            self.signal.notify();
        }
    }
}

/// Ends the tasks and closes the index when the last handle goes.
#[derive(Debug)]
pub(crate) struct Keeper {
    inner: Arc<Inner>,
}

impl Keeper {
    /// Makes the tasks that the options ask for: one for upkeep, and one for the commits of relaxed
    /// durability, which must not wait for a training.
    pub(crate) fn start(inner: &Arc<Inner>, background: bool) -> Result<Self> {
        let (runtime, signal) = (Runtime::current(), &inner.signal);
        let plain = !inner.snapshot().plain.is_empty();
        if background || plain {
            let (weak, rest) = (Arc::downgrade(inner), Mutex::new(Duration::ZERO));
            let task = runtime.task(move |lane| {
                let Some(inner) = weak.upgrade() else { return Next::Rest };
                let done = inner.attempt(|inner| inner.run_due(lane, background));
                let mut rest = lock(&rest);
                *rest =
                    if done.is_some() { Duration::ZERO } else { (*rest * 2).clamp(REST.0, REST.1) };
                done.unwrap_or(Next::After(*rest, Lane::Short))
            });
            let task = signal.upkeep.get_or_init(|| task);
            if plain {
                let woken = task.wake(Duration::ZERO, Lane::Short);
                woken.map_err(Error::io("start a thread of", &inner.dir))?;
            }
        }
        if let Durability::Interval(interval) = inner.options.durability
            && !inner.writer().is_read_only()
        {
            let weak = Arc::downgrade(inner);
            let task = runtime.task(move |_| {
                let Some(inner) = weak.upgrade() else { return Next::Rest };
                match inner.attempt(|inner| inner.writer().commit_pending()) {
                    None if inner.told.poison().is_none() => Next::After(interval, Lane::Commit),
                    _ => Next::Rest,
                }
            });
            signal.commits.get_or_init(|| task);
        }
        Ok(Self { inner: Arc::clone(inner) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let inner = &self.inner;
        if !inner.process.is_current() {
            // All of it is the parent's: closing would write to its files, and its threads are not here.
            std::mem::forget(Arc::clone(inner));
            return;
        }
        inner.signal.stop();
        if callback::inside().is_none() {
            inner.signal.tasks().for_each(Task::end);
            // What was acknowledged is durable already; `close` reports what may fail here.
            let _ = inner.writer().close();
            return;
        }
        // What called the host is what would be waited for. It fails soon, and then lets go of the lock.
        if let Some(mut writer) = try_lock(&inner.writer) {
            let _ = writer.close();
            return;
        }
        let own = Arc::clone(inner);
        let close = std::thread::Builder::new().name("cellar-close".into());
        let _ = close.spawn(move || own.writer().close());
    }
}

/// What failed is tried again after this, and then after twice as long each time, up to the other:
/// a full disk is not filled over and over.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(64));

/// What may be due, in the order in which it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    CatchUp,
    Train,
    Fold,
    Compact,
    Measure,
}

impl Due {
    fn lane(self) -> Lane {
        match self {
            Self::CatchUp | Self::Fold => Lane::Short,
            Self::Train | Self::Compact | Self::Measure => Lane::Long,
        }
    }
}

impl Inner {
    /// Waits for the upkeep, and holds it.
    pub(crate) fn hold_upkeep(&self) -> Upkeep<'_> {
        Upkeep { signal: &self.signal, guard: Some(lock(&self.upkeep)) }
    }

    /// Holds the upkeep, unless another does.
    pub(super) fn try_upkeep(&self) -> Option<Upkeep<'_>> {
        let guard = try_lock(&self.upkeep)?;
        Some(Upkeep { signal: &self.signal, guard: Some(guard) })
    }

    /// Does a job in the background. A panic, as one of the host's observer, is a failure like others.
    fn attempt<T>(&self, job: impl FnOnce(&Self) -> Result<T>) -> Option<T> {
        let failed = match catch_unwind(AssertUnwindSafe(|| job(self))) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(e)) => e.to_string(),
            Err(_) => "a thread panicked during upkeep".to_owned(),
        };
        self.signal.failed(&failed);
        None
    }

    fn due(&self, snapshot: &Snapshot, background: bool) -> Option<Due> {
        let due = [
            (Due::CatchUp, !snapshot.plain.is_empty()),
            (Due::Train, background && self.train_due(snapshot)),
            (Due::Fold, background && Self::tails_due(snapshot) >= 1),
            (Due::Compact, background && Self::compact_due(snapshot)),
            (Due::Measure, background && self.measure_due(snapshot)),
        ];
        due.into_iter().find(|(_, is_due)| *is_due).map(|(due, _)| due)
    }

    /// Does it; the caller holds the upkeep.
    fn do_due(&self, due: Due) -> Result<()> {
        match due {
            Due::CatchUp => self.catch_up(&self.folds)?,
            Due::Train => self.train_now()?,
            Due::Fold => drop(self.fold_now(Rewrite::Fragmented)?),
            Due::Compact => drop(self.compact_now()?),
            Due::Measure => self.measure(&Asking::Known)?,
        }
        Ok(())
    }

    /// Does whatever is due, in the thread of the caller.
    pub(super) fn maintain(&self) -> Result<()> {
        let _upkeep = self.hold_upkeep();
        let mut done = None;
        // Each at most once: what is due still waits until somebody changes something.
        while let Some(due) = self.due(&self.snapshot(), true).filter(|due| Some(*due) > done) {
            self.do_due(due)?;
            done = Some(due);
        }
        Ok(())
    }

    /// Does what is due, if it is for this lane.
    fn run_due(&self, lane: Lane, background: bool) -> Result<Next> {
        let next = |due: Due| Next::After(Duration::ZERO, due.lane());
        let Some(due) = self.due(&self.snapshot(), background) else { return Ok(Next::Rest) };
        if due.lane() != lane {
            return Ok(next(due));
        }
        let upkeep = self.try_upkeep().or_else(|| {
            // Whoever holds it wakes us, unless it was let go of before it could know.
            self.signal.refused.store(true, Ordering::SeqCst);
            self.try_upkeep()
        });
        let Some(_upkeep) = upkeep else { return Ok(Next::Rest) };
        self.do_due(due)?;
        // What is due still, or again, waits until somebody changes something.
        let later = self.due(&self.snapshot(), background).filter(|later| *later > due);
        Ok(later.map_or(Next::Rest, next))
    }
}
