//! What is done without being asked: folding, training, compacting, and the commits of relaxed
//! durability.

use super::Inner;
use super::snapshot::Snapshot;
use crate::error::{Error, Result};
use crate::options::{Durability, Kind, Maintenance};
use crate::sync::lock;
use std::sync::atomic::Ordering;
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
        self.wake.notify_one();
    }

    /// Ends the background thread, and long work wherever it is done.
    pub(crate) fn stop(&self) {
        lock(&self.state).stop = true;
        self.wake.notify_all();
    }

    pub(crate) fn stopped(&self) -> bool {
        lock(&self.state).stop
    }

    /// Keeps the failure of the background thread, for those who ask.
    fn failed(&self, e: &Error) {
        lock(&self.state).error = Some(e.to_string());
    }

    pub(crate) fn error(&self) -> Option<String> {
        lock(&self.state).error.clone()
    }

    /// Waits until there is something to do; `false` when it is time to end.
    fn wait(&self, at_most: Duration) -> bool {
        let mut state = lock(&self.state);
        if !state.stop && !state.due {
            let waited = self.wake.wait_timeout(state, at_most);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.due = false;
        !state.stop
    }
}

/// Ends the background thread and closes the index when the last handle goes.
#[derive(Debug)]
pub(crate) struct Keeper {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    pub(crate) fn start(inner: &Arc<Inner>, background: bool) -> Self {
        let interval = match inner.options.durability {
            Durability::Interval(interval) => Some(interval),
            Durability::Commit => None,
        };
        let mut thread = None;
        if background || interval.is_some() || !inner.snapshot().plain.is_empty() {
            let weak = Arc::downgrade(inner);
            let run = move || work(&weak, background, interval);
            thread = std::thread::Builder::new().name("cellar-upkeep".into()).spawn(run).ok();
        }
        Self { inner: Arc::clone(inner), thread: Mutex::new(thread) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.inner.here().is_err() {
            // All of it is the parent's: closing would write to its files, and its threads are not here.
            std::mem::forget(Arc::clone(&self.inner));
            std::mem::forget(self.thread.get_mut().map(Option::take));
            return;
        }
        self.inner.signal.stop();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
        // What was acknowledged is durable already; `close` reports what may fail here.
        let _ = self.inner.writer().close();
    }
}

fn work(inner: &Weak<Inner>, background: bool, interval: Option<Duration>) {
    let pause = interval.unwrap_or(Duration::from_secs(3600));
    if let Some(inner) = inner.upgrade()
        && let Err(e) = inner.catch_up()
    {
        inner.signal.failed(&e);
    }
    while background || interval.is_some() {
        let Some(inner) = inner.upgrade() else { return };
        if !inner.signal.wait(pause) {
            return;
        }
        let pending = inner.writer().commit_pending();
        let done = pending.and_then(|()| if background { inner.upkeep() } else { Ok(()) });
        if let Err(e) = done {
            inner.signal.failed(&e);
        }
    }
}

/// How the number of rows compares with the one that was trained on: half of it, about that, twice.
pub(crate) fn size(snapshot: &Snapshot) -> u8 {
    let live = snapshot.state.live;
    match snapshot.indexed.as_ref().map_or(live, |i| i.model.record.trained_rows) {
        trained if live >= 2 * trained => 2,
        trained if live > trained / 2 => 1,
        _ => 0,
    }
}

impl Inner {
    pub(crate) fn size(&self) -> u8 {
        size(&self.snapshot())
    }

    /// Whether there are so many more rows, or fewer, that recall has to be measured again.
    fn measure_due(&self, snapshot: &Snapshot) -> bool {
        snapshot.indexed.is_some() && size(snapshot) != self.measured.load(Ordering::Relaxed)
    }

    /// How often the rows that wait for a fold fill the tail. It grows in proportion to the index, so
    /// that the work of all folds together stays in proportion too.
    fn tails_due(snapshot: &Snapshot) -> u64 {
        let rows = if snapshot.indexed.is_some() { snapshot.tail_rows() } else { 0 };
        rows / (snapshot.state.live / 16).max(4096)
    }

    fn train_due(&self, snapshot: &Snapshot) -> bool {
        let live = snapshot.state.live;
        let enough = live >= (self.options.train_at as u64).max(1);
        let trained = snapshot.indexed.as_ref().map(|i| i.model.record.trained_rows);
        // Four times the rows want twice the cells, and the old ones know nothing of the new rows.
        self.options.kind != Kind::Exact && enough && trained.is_none_or(|n| live >= 4 * n)
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

    fn upkeep(&self) -> Result<()> {
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
            let size = self.size();
            self.measure()?;
            self.measured.store(size, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends long work early when the index is being closed.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.signal.stopped() { Err(Error::Closed) } else { Ok(()) }
    }
}
