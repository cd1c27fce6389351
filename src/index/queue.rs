//! The queue of a group commit. It knows of operations and their results only that they are handed on.

use crate::sync::{Arc, Condvar, Instant, Mutex, lock, wait, wait_while};
use std::time::Duration;

/// A caller's place in the queue.
#[derive(Debug)]
pub(super) struct Slot<O, R> {
    op: O,
    turn: Mutex<Turn<R>>,
    wake: Condvar,
}

#[derive(Debug)]
enum Turn<R> {
    Wait,
    /// The caller commits for itself and for all who wait by then.
    Lead,
    Done(R),
}

impl<O, R> Slot<O, R> {
    pub(super) fn new(op: O) -> Arc<Self> {
        Arc::new(Self { op, turn: Mutex::new(Turn::Wait), wake: Condvar::new() })
    }

    fn call(&self, turn: Turn<R>) {
        *lock(&self.turn) = turn;
        self.wake.notify_one();
    }

    /// Waits until another has committed the change, or it is this caller's turn to lead.
    fn wait(&self) -> Turn<R> {
        let mut turn = lock(&self.turn);
        loop {
            match std::mem::replace(&mut *turn, Turn::Wait) {
                Turn::Wait => turn = wait(&self.wake, turn),
                other => return other,
            }
        }
    }
}

/// Changes that wait for the writer. One of their callers leads: it commits for all, and hands the
/// lead to the first who came meanwhile.
#[derive(Debug)]
pub(crate) struct Queue<O, R> {
    waiting: Mutex<Waiting<O, R>>,
    /// Told when as many wait as are expected.
    complete: Condvar,
    /// What those get whose leader was lost.
    lost: fn() -> R,
}

#[derive(Debug)]
struct Waiting<O, R> {
    slots: Vec<Arc<Slot<O, R>>>,
    led: bool,
    /// Callers that there were when the last commit ended: served, or waiting already. Those who were
    /// served tend to come again at once.
    expected: usize,
    /// What the last commit took.
    took: Duration,
}

/// Waiting for less than this is not worth a switch of threads.
const SHORTEST_WAIT: Duration = Duration::from_micros(20);
/// A commit that took long once is no reason to wait for callers that may not come.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(5);

impl<O, R> Queue<O, R> {
    /// A queue whose callers get `lost()` if the one who led them panicked.
    pub(crate) fn new(lost: fn() -> R) -> Self {
        let waiting =
            Waiting { slots: Vec::new(), led: false, expected: 0, took: Duration::default() };
        Self { waiting: Mutex::new(waiting), complete: Condvar::new(), lost }
    }

    /// Has a change committed, alone or in the group that happens to form. Whoever leads takes the
    /// writer, then all who wait by then, and answers each in their order.
    pub(crate) fn submit<W>(
        &self,
        op: O,
        writer: impl FnOnce() -> W,
        commit: impl FnOnce(W, &[&O]) -> Vec<R>,
    ) -> R {
        let slot = Slot::new(op);
        if !self.enter(&slot)
            && let Turn::Done(done) = slot.wait()
        {
            return done;
        }
        self.lead(writer, commit);
        match slot.wait() {
            Turn::Done(done) => done,
            Turn::Wait | Turn::Lead => (self.lost)(),
        }
    }

    /// Commits for everyone who waits, the caller among them.
    fn lead<W>(&self, writer: impl FnOnce() -> W, commit: impl FnOnce(W, &[&O]) -> Vec<R>) {
        let mut leader = Leader { queue: self, group: Vec::new() };
        let writer = writer();
        leader.group = self.gather();
        let start = Instant::now();
        let ops: Vec<&O> = leader.group.iter().map(|slot| &slot.op).collect();
        let done = commit(writer, &ops);
        self.served(leader.group.len(), start.elapsed());
        for (slot, done) in leader.group.drain(..).zip(done) {
            slot.call(Turn::Done(done));
        }
    }

    /// Takes a place; `true` if the caller leads.
    pub(super) fn enter(&self, slot: &Arc<Slot<O, R>>) -> bool {
        let mut waiting = lock(&self.waiting);
        waiting.slots.push(Arc::clone(slot));
        if waiting.slots.len() == waiting.expected {
            self.complete.notify_one();
        }
        !std::mem::replace(&mut waiting.led, true)
    }

    /// Everyone who waits. For those who are expected and not here yet the leader waits too, a part
    /// of what a commit takes: it is cheaper to commit for all at once (PostgreSQL's `commit_delay`,
    /// by itself).
    pub(super) fn gather(&self) -> Vec<Arc<Slot<O, R>>> {
        let mut waiting = lock(&self.waiting);
        let patience = (waiting.took / 4).min(LONGEST_WAIT);
        if patience >= SHORTEST_WAIT {
            let missing = |waiting: &mut Waiting<O, R>| waiting.slots.len() < waiting.expected;
            waiting = wait_while(&self.complete, waiting, patience, missing);
        }
        std::mem::take(&mut waiting.slots)
    }

    /// Notes how a commit for so many went.
    pub(super) fn served(&self, group: usize, took: Duration) {
        let mut waiting = lock(&self.waiting);
        waiting.expected = group + waiting.slots.len();
        waiting.took = took;
    }
}

/// The lead over a group; however it ends, nobody is left waiting.
struct Leader<'a, O, R> {
    queue: &'a Queue<O, R>,
    group: Vec<Arc<Slot<O, R>>>,
}

impl<O, R> Drop for Leader<'_, O, R> {
    fn drop(&mut self) {
        for slot in self.group.drain(..) {
            slot.call(Turn::Done((self.queue.lost)()));
        }
        let mut waiting = lock(&self.queue.waiting);
        match waiting.slots.first() {
            Some(next) => next.call(Turn::Lead),
            None => waiting.led = false,
        }
    }
}
