//! The scheduler of a process: what its indexes do in the background, on a few threads that all of them share.
//!
//! An index has a task, which sleeps until it is woken, runs in one thread at a time, and says when it wants to
//! run again. Threads are started when there is a task to run, and end when there was none for a while.

use crate::sync::{lock, wait};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Kinds of work that do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Commits that relaxed durability has put off: due at a time.
    Commit,
    /// Seconds: folding, and encoding what an open left plain.
    Short,
    /// Minutes: training, measuring, compacting.
    Long,
}

const LANES: [Lane; 3] = [Lane::Commit, Lane::Short, Lane::Long];

impl Lane {
    fn at(self) -> usize {
        self as usize
    }

    fn name(self) -> &'static str {
        match self {
            Self::Commit => "cellar-commit",
            Self::Short => "cellar-short",
            Self::Long => "cellar-long",
        }
    }

    /// Threads at most. They wait for a disk, or for the threads that compute.
    fn most(self) -> usize {
        match self {
            Self::Commit => 4,
            Self::Short | Self::Long => 2,
        }
    }
}

/// When a task wants to run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// When it is woken.
    Rest,
    /// After this time, however often it is woken.
    After(Duration, Lane),
}

type Job = dyn Fn(Lane) -> Next + Send + Sync;

/// A thread that had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Scheduler {
    state: Mutex<State>,
    /// Told of what has come for a lane.
    due: [Condvar; LANES.len()],
    /// Told when a task has run.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tasks: HashMap<u64, Entry>,
    /// What is due, of each lane: when, in which order it came, and which task.
    queues: [BTreeMap<(Instant, u64), u64>; LANES.len()],
    threads: [usize; LANES.len()],
    /// How many of those wait.
    idle: [usize; LANES.len()],
    /// Numbers of tasks and of places in a queue.
    numbers: u64,
}

struct Entry {
    job: Arc<Job>,
    phase: Phase,
    /// It was woken while it ran.
    again: Option<(Duration, Lane)>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("phase", &self.phase).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Asleep,
    Queued(Lane, (Instant, u64)),
    Running,
    /// It is running for the last time.
    Ending,
}

impl State {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn queue(&mut self, id: u64, (after, lane): (Duration, Lane)) {
        let place = (Instant::now() + after, self.number());
        if let Some(entry) = self.tasks.get_mut(&id) {
            entry.phase = Phase::Queued(lane, place);
            self.queues[lane.at()].insert(place, id);
        }
    }

    /// Takes the first task of a lane that is due, or says how long there is none.
    fn take(&mut self, lane: Lane) -> Result<(u64, Arc<Job>), Duration> {
        let Some(first) = self.queues[lane.at()].first_entry() else { return Err(IDLE) };
        let left = first.key().0.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Err(left);
        }
        let id = first.remove();
        let Some(entry) = self.tasks.get_mut(&id) else { return Err(Duration::ZERO) };
        entry.phase = Phase::Running;
        Ok((id, Arc::clone(&entry.job)))
    }

    /// Whether another thread of the lane is wanted; it then counts as started.
    fn wants_thread(&mut self, lane: Lane) -> bool {
        let at = lane.at();
        let wanted = !self.queues[at].is_empty() && self.idle[at] == 0;
        let wanted = wanted && self.threads[at] < lane.most();
        self.threads[at] += usize::from(wanted);
        wanted
    }
}

impl Scheduler {
    pub(super) fn task(
        self: &Arc<Self>,
        job: impl Fn(Lane) -> Next + Send + Sync + 'static,
    ) -> Task {
        let mut state = lock(&self.state);
        let id = state.number();
        let entry = Entry { job: Arc::new(job), phase: Phase::Asleep, again: None };
        state.tasks.insert(id, entry);
        Task { scheduler: Arc::clone(self), id }
    }

    /// Sees to it that somebody runs what is due.
    fn call(self: &Arc<Self>, lane: Lane) -> io::Result<()> {
        let wanted = {
            let mut state = lock(&self.state);
            self.due[lane.at()].notify_one();
            state.wants_thread(lane)
        };
        if wanted { self.start(lane) } else { Ok(()) }
    }

    /// Starts a thread that is counted already.
    fn start(self: &Arc<Self>, lane: Lane) -> io::Result<()> {
        let own = Arc::clone(self);
        let thread = std::thread::Builder::new().name(lane.name().into());
        let Err(e) = thread.spawn(move || own.work(lane)) else { return Ok(()) };
        let mut state = lock(&self.state);
        state.threads[lane.at()] -= 1;
        // Those that there are do it later.
        if state.threads[lane.at()] > 0 { Ok(()) } else { Err(e) }
    }

    fn work(self: &Arc<Self>, lane: Lane) {
        let mut state = lock(&self.state);
        loop {
            let (id, job) = match state.take(lane) {
                Ok(due) => due,
                Err(left) => {
                    let nothing = state.queues[lane.at()].is_empty();
                    state.idle[lane.at()] += 1;
                    let waited = self.due[lane.at()].wait_timeout(state, left);
                    let (woken, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                    state = woken;
                    state.idle[lane.at()] -= 1;
                    let nothing = nothing && state.queues[lane.at()].is_empty();
                    if nothing && waited.timed_out() {
                        state.threads[lane.at()] -= 1;
                        return;
                    }
                    continue;
                }
            };
            // Others may be due as well.
            let more = state.wants_thread(lane);
            drop(state);
            if more {
                let _ = self.start(lane);
            }
            // A panic ends neither the thread nor the task.
            let next = catch_unwind(AssertUnwindSafe(|| job(lane))).unwrap_or(Next::Rest);
            drop(job);
            state = lock(&self.state);
            let elsewhere = self.ran(&mut state, id, next).filter(|to| *to != lane);
            if let Some(to) = elsewhere {
                drop(state);
                let _ = self.call(to);
                state = lock(&self.state);
            }
        }
    }

    /// Notes that a task has run; the lane that it is queued in again.
    fn ran(&self, state: &mut State, id: u64, next: Next) -> Option<Lane> {
        self.ended.notify_all();
        let entry = state.tasks.get_mut(&id)?;
        if entry.phase == Phase::Ending {
            state.tasks.remove(&id);
            return None;
        }
        let again = match (next, entry.again.take()) {
            (Next::After(after, lane), _) => Some((after, lane)),
            (Next::Rest, again) => again,
        };
        entry.phase = Phase::Asleep;
        let again = again?;
        state.queue(id, again);
        Some(again.1)
    }
}

/// What an index does in the background. Dropped, it does not run again.
#[derive(Debug)]
pub(crate) struct Task {
    scheduler: Arc<Scheduler>,
    id: u64,
}

impl Task {
    /// Has it run in a lane after some time, unless that is settled already: then it runs as it was to. One
    /// that is running runs again.
    ///
    /// # Errors
    ///
    /// That of the system if no thread could be started. It runs when one can.
    pub(crate) fn wake(&self, after: Duration, lane: Lane) -> io::Result<()> {
        let mut state = lock(&self.scheduler.state);
        let Some(entry) = state.tasks.get_mut(&self.id) else { return Ok(()) };
        let lane = match entry.phase {
            Phase::Ending => return Ok(()),
            Phase::Running => {
                entry.again.get_or_insert((after, lane));
                return Ok(());
            }
            Phase::Queued(lane, _) => lane,
            Phase::Asleep => {
                state.queue(self.id, (after, lane));
                drop(state);
                return self.scheduler.call(lane);
            }
        };
        // No thread could be started when it was queued.
        if state.threads[lane.at()] > 0 {
            return Ok(());
        }
        drop(state);
        self.scheduler.call(lane)
    }

    /// Ends it: when this returns it does not run and will not any more.
    pub(crate) fn end(&self) {
        self.end_soon();
        let mut state = lock(&self.scheduler.state);
        while state.tasks.contains_key(&self.id) {
            state = wait(&self.scheduler.ended, state);
        }
    }

    /// Ends it without waiting for where it is running.
    pub(crate) fn end_soon(&self) {
        let mut state = lock(&self.scheduler.state);
        let Some(entry) = state.tasks.get_mut(&self.id) else { return };
        match entry.phase {
            Phase::Running | Phase::Ending => entry.phase = Phase::Ending,
            Phase::Asleep => drop(state.tasks.remove(&self.id)),
            Phase::Queued(lane, place) => {
                state.queues[lane.at()].remove(&place);
                drop(state.tasks.remove(&self.id));
            }
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.end_soon();
    }
}

#[cfg(test)]
mod tests {
    use super::{Lane, Next, Scheduler};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    /// Longer than a busy machine takes for anything.
    const LONG: Duration = Duration::from_secs(20 * 60);

    /// A job that says when it runs and goes on when it is told to.
    fn held(next: Next) -> (impl Fn(Lane) -> Next + Send + Sync, Receiver<Lane>, Sender<()>) {
        let ((runs, ran), (go, wait)) = (channel(), channel());
        let ends = Mutex::new((runs, wait));
        let job = move |lane| {
            let ends = ends.lock().unwrap();
            let _ = ends.0.send(lane);
            let _ = ends.1.recv();
            next
        };
        (job, ran, go)
    }

    #[test]
    fn a_task_that_is_woken_while_it_runs_runs_again_once() {
        let scheduler = Arc::<Scheduler>::default();
        let (job, ran, go) = held(Next::Rest);
        let task = scheduler.task(job);
        task.wake(Duration::ZERO, Lane::Short).unwrap();
        ran.recv_timeout(LONG).unwrap();
        (0..3).for_each(|_| task.wake(Duration::ZERO, Lane::Long).unwrap());
        go.send(()).unwrap();
        assert_eq!(ran.recv_timeout(LONG), Ok(Lane::Long));
        go.send(()).unwrap();
        assert!(ran.recv_timeout(Duration::from_millis(50)).is_err(), "three times");
    }

    #[test]
    fn what_is_to_run_later_is_not_hurried_and_ends_at_once() {
        let scheduler = Arc::<Scheduler>::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let task = scheduler.task(move |_| {
            counted.fetch_add(1, SeqCst);
            Next::After(LONG, Lane::Short)
        });
        task.wake(Duration::ZERO, Lane::Short).unwrap();
        while runs.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        (0..9).for_each(|_| task.wake(Duration::ZERO, Lane::Short).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(runs.load(SeqCst), 1);
        let start = Instant::now();
        task.end();
        assert!(start.elapsed() < LONG / 2);
    }

    #[test]
    fn a_task_ends_when_it_has_run_and_waits_for_no_other() {
        let scheduler = Arc::<Scheduler>::default();
        let (job, ran, go) = held(Next::After(Duration::ZERO, Lane::Long));
        let busy = Arc::new(scheduler.task(job));
        busy.wake(Duration::ZERO, Lane::Long).unwrap();
        ran.recv_timeout(LONG).unwrap();
        let other = scheduler.task(|_| Next::Rest);
        other.wake(LONG, Lane::Long).unwrap();
        other.end();
        other.wake(Duration::ZERO, Lane::Long).unwrap();
        let (ended, own) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&busy));
        let told = Arc::clone(&ended);
        let ending = std::thread::spawn(move || {
            own.end();
            told.store(1, SeqCst);
        });
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(ended.load(SeqCst), 0, "it runs still");
        go.send(()).unwrap();
        ending.join().unwrap();
        assert!(ran.recv_timeout(Duration::from_millis(20)).is_err(), "it has ended");
    }

    #[test]
    fn as_many_long_jobs_as_there_may_be_hold_up_no_short_one_and_a_panic_nobody() {
        let scheduler = Arc::<Scheduler>::default();
        let held: Vec<_> = (0..Lane::Long.most() + 3)
            .map(|_| {
                let (job, ran, go) = held(Next::Rest);
                let task = scheduler.task(job);
                task.wake(Duration::ZERO, Lane::Long).unwrap();
                (task, ran, go)
            })
            .collect();
        for (_, ran, _) in &held[..Lane::Long.most()] {
            ran.recv_timeout(LONG).unwrap();
        }
        let panics = scheduler.task(|_| std::panic::resume_unwind(Box::new("on purpose")));
        let (told, short) = channel();
        let told = Mutex::new(told);
        let tasks: Vec<_> = [Lane::Short, Lane::Commit]
            .into_iter()
            .map(|lane| {
                for _ in 0..2 * lane.most() {
                    panics.wake(Duration::ZERO, lane).unwrap();
                }
                let told = told.lock().unwrap().clone();
                let told = Mutex::new(told);
                let task = scheduler.task(move |lane| {
                    let _ = told.lock().unwrap().send(lane);
                    Next::Rest
                });
                task.wake(Duration::ZERO, lane).unwrap();
                assert_eq!(short.recv_timeout(LONG), Ok(lane));
                task
            })
            .collect();
        drop(tasks);
        // The others come one after the other; two threads in all.
        for (_, _, go) in &held {
            go.send(()).unwrap();
        }
        for (_, ran, _) in &held[Lane::Long.most()..] {
            ran.recv_timeout(LONG).unwrap();
        }
        let threads = super::lock(&scheduler.state).threads;
        assert!(threads.iter().zip([4, 2, 2]).all(|(n, most)| *n <= most), "{threads:?}");
    }
}
