//! What is done without being asked: folding, training, compacting, and the commits of relaxed
//! durability.

use super::Inner;
use super::measure::Asking;
use super::snapshot::Snapshot;
use crate::error::{Error, Result};
use crate::options::{Durability, Maintenance};
use crate::sync::lock;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// Wakes the background thread.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    state: Mutex<SignalState>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct SignalState {
    stop: bool,
    due: bool,
    /// The last failure of the background thread.
    error: Option<String>,
}

impl Signal {
    pub(crate) fn notify(&self) {
        lock(&self.state).due = true;
        self.wake.notify_all();
    }

    /// Ends the background thread, and long work wherever it is done.
    pub(crate) fn stop(&self) {
        lock(&self.state).stop = true;
        self.wake.notify_all();
    }

    pub(crate) fn stopped(&self) -> bool {
        lock(&self.state).stop
    }

    /// Keeps the failure of a background thread, for those who ask.
    fn failed(&self, e: &str) {
        lock(&self.state).error = Some(e.to_owned());
    }

    pub(crate) fn error(&self) -> Option<String> {
        lock(&self.state).error.clone()
    }

    /// Waits until there is something to do; `false` when it is time to end.
    fn wait(&self) -> bool {
        let idle = |state: &mut SignalState| !state.stop && !state.due;
        let waited = self.wake.wait_while(lock(&self.state), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.due = false;
        !state.stop
    }

    /// Waits for so long, whatever there is to do; `false` when it is time to end.
    fn pause(&self, time: Duration) -> bool {
        let waited = self.wake.wait_timeout_while(lock(&self.state), time, |state| !state.stop);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }
}

/// Ends the background threads and closes the index when the last handle goes.
#[derive(Debug)]
pub(crate) struct Keeper {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Keeper {
    /// Starts the threads that the options ask for: one for upkeep, and one for the commits of relaxed
    /// durability, which must not wait for a training.
    pub(crate) fn start(inner: &Arc<Inner>, background: bool) -> Result<Self> {
        let keeper = Self { inner: Arc::clone(inner), threads: Mutex::default() };
        if background || !inner.snapshot().plain.is_empty() {
            let weak = Arc::downgrade(inner);
            keeper.spawn("cellar-upkeep", move || upkeep(&weak, background))?;
        }
        if let Durability::Interval(interval) = inner.options.durability
            && !inner.writer().is_read_only()
        {
            let weak = Arc::downgrade(inner);
            keeper.spawn("cellar-commit", move || commits(&weak, interval))?;
        }
        Ok(keeper)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let started = std::thread::Builder::new().name(name.into()).spawn(run);
        let started = started.map_err(Error::io("start a thread of", &self.inner.dir))?;
        lock(&self.threads).push(started);
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.inner.here().is_err() {
            // All of it is the parent's: closing would write to its files, and its threads are not here.
            std::mem::forget(Arc::clone(&self.inner));
            std::mem::forget(self.threads.get_mut().map(std::mem::take));
            return;
        }
        self.inner.signal.stop();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            let _ = thread.join();
        }
        // What was acknowledged is durable already; `close` reports what may fail here.
        let _ = self.inner.writer().close();
    }
}

/// What failed is tried again after this, and then after twice as long each time, up to the other:
/// a full disk is not filled over and over.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(64));

fn upkeep(inner: &Weak<Inner>, background: bool) {
    attempt(inner, Inner::catch_up);
    let mut rest = Duration::ZERO;
    let waited = |inner: &Inner, rest: Duration| match rest.is_zero() {
        true => inner.signal.wait(),
        false => inner.signal.pause(rest),
    };
    while let Some(inner) = inner.upgrade().filter(|inner| background && waited(inner, rest)) {
        rest = match attempt(&Arc::downgrade(&inner), Inner::upkeep) {
            true => Duration::ZERO,
            false => (rest * 2).clamp(REST.0, REST.1),
        };
    }
}

fn commits(inner: &Weak<Inner>, interval: Duration) {
    while let Some(inner) = inner.upgrade()
        && inner.signal.pause(interval)
    {
        attempt(&Arc::downgrade(&inner), |inner| inner.writer().commit_pending());
    }
}

/// Does a job in a background thread; whether it succeeded. The thread outlives a panic, as one of the
/// host's observer.
fn attempt(inner: &Weak<Inner>, job: impl FnOnce(&Inner) -> Result<()>) -> bool {
    let Some(inner) = inner.upgrade() else { return false };
    let failed = match catch_unwind(AssertUnwindSafe(|| job(&inner))) {
        Ok(Ok(())) => return true,
        Ok(Err(e)) => e.to_string(),
        Err(_) => "a thread panicked during upkeep".to_owned(),
    };
    inner.signal.failed(&failed);
    false
}

impl Inner {
    /// How often the rows that wait for a fold fill the tail. It grows in proportion to the index, so
    /// that the work of all folds together stays in proportion too.
    fn tails_due(snapshot: &Snapshot) -> u64 {
        let rows = if snapshot.indexed.is_some() { snapshot.tail_rows() } else { 0 };
        rows / (snapshot.state.live / 16).max(4096)
    }

    fn compact_due(snapshot: &Snapshot) -> bool {
        let dead = snapshot.dead.len();
        dead >= 1024 && dead >= snapshot.state.live / 4
    }

    /// Called after each change: wakes the background, or does what cannot wait.
    pub(crate) fn upkeep_if_due(&self) -> Result<()> {
        let snapshot = self.snapshot();
        let tails = Self::tails_due(&snapshot);
        let background = self.options.maintenance == Maintenance::Background;
        let due = self.train_due(&snapshot)
            || tails >= 1
            || Self::compact_due(&snapshot)
            || self.measure_due(&snapshot);
        if background && due {
            self.signal.notify();
        }
        // The tail is in memory: whoever inserts faster than it is folded waits here. A failure is
        // not the insert's, which is durable; the next flush reports it.
        if tails >= 4 {
            let _ = self.fold();
        }
        Ok(())
    }

    /// Does whatever is due.
    pub(super) fn upkeep(&self) -> Result<()> {
        let snapshot = self.snapshot();
        if self.train_due(&snapshot) {
            self.train()?;
        } else if Self::tails_due(&snapshot) >= 1 {
            self.fold()?;
        }
        if Self::compact_due(&self.snapshot()) {
            self.compact()?;
        }
        if self.measure_due(&self.snapshot()) {
            let _upkeep = lock(&self.upkeep);
            self.measure(&Asking::Known)?;
        }
        Ok(())
    }

    /// Ends long work early when the index is being closed.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.signal.stopped() { Err(Error::Closed) } else { Ok(()) }
    }
}
