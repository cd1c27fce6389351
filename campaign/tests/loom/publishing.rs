//! What readers may see while the writer commits, catches up and folds. Models: the writer's mutex,
//! those of upkeep and of catching up, and a cell in the place of the atomic pointer; the steps are those of
//! `Inner::commit_group`, `Inner::catch_up` and `Inner::commit_fold`.

use crate::explore;
use crate::queue::Queue;
use loom::sync::{Arc, Mutex, MutexGuard};
use loom::thread;
use std::ops::Range;

/// The pointer to what readers see.
struct Current<T>(Mutex<Arc<T>>);

impl<T> Current<T> {
    fn new(state: T) -> Self {
        Self(Mutex::new(Arc::new(state)))
    }

    fn store(&self, state: T) {
        *self.0.lock().unwrap() = Arc::new(state);
    }

    fn load(&self) -> Arc<T> {
        Arc::clone(&self.0.lock().unwrap())
    }
}

/// The disk fails the commit of a group with this change.
const BAD: u64 = 9;

struct Store {
    queue: Queue<u64, Result<(), ()>>,
    working: Mutex<Vec<u64>>,
    current: Current<Vec<u64>>,
    durable: Mutex<Vec<u64>>,
}

impl Store {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            queue: Queue::new(|| Err(())),
            working: Mutex::default(),
            current: Current::new(Vec::new()),
            durable: Mutex::default(),
        })
    }

    fn commit_group(
        &self,
        mut working: MutexGuard<'_, Vec<u64>>,
        ops: &[&u64],
    ) -> Vec<Result<(), ()>> {
        working.extend(ops.iter().copied());
        let done = if working.contains(&BAD) {
            Err(())
        } else {
            self.durable.lock().unwrap().clone_from(&working);
            Ok(())
        };
        match done {
            Ok(()) => self.current.store(working.clone()),
            Err(()) => *working = (*self.current.load()).clone(),
        }
        vec![done; ops.len()]
    }

    fn insert(&self, op: u64) {
        let done = self.queue.submit(
            op,
            || self.working.lock().unwrap(),
            |working, ops| self.commit_group(working, ops),
        );
        self.answered(op, done);
    }

    /// As a batch that is too large for the queue.
    fn insert_alone(&self, op: u64) {
        let done = self.commit_group(self.working.lock().unwrap(), &[&op]);
        self.answered(op, done[0]);
    }

    fn answered(&self, op: u64, done: Result<(), ()>) {
        assert_eq!(done.is_err(), op == BAD, "{op}");
        assert_eq!(self.seen().contains(&op), done.is_ok(), "a write that its caller cannot read");
    }

    /// What a reader sees; never more than is durable.
    fn seen(&self) -> Arc<Vec<u64>> {
        let seen = self.current.load();
        let durable = self.durable.lock().unwrap();
        assert!(durable.starts_with(&seen), "{seen:?} was seen, {durable:?} is durable");
        seen
    }
}

#[test]
fn readers_see_committed_states_in_their_order_and_callers_their_own_writes() {
    explore(3, || {
        let store = Store::new();
        let run = |job: fn(&Store)| {
            let store = Arc::clone(&store);
            thread::spawn(move || job(&store))
        };
        let others = [run(|store| store.insert(2)), run(|store| store.insert_alone(1))];
        let (first, second) = (store.seen(), store.seen());
        assert!(second.starts_with(&first), "{first:?}, then {second:?}");
        others.into_iter().for_each(|other| other.join().unwrap());
        store.insert(3);
        store.insert(BAD);
        store.insert(4);
        let (end, durable) = (store.seen(), store.durable.lock().unwrap());
        assert_eq!((*end).clone(), *durable);
        assert!(end.len() == 4 && end.ends_with(&[3, 4]), "{end:?}");
    });
}

/// A snapshot: where each row is.
#[derive(Clone)]
struct Places {
    next: u64,
    lists: Vec<u64>,
    tail: Vec<u64>,
    plain: Range<u64>,
}

impl Places {
    /// Every row is in one place, and in one only.
    fn check(&self) {
        let mut all = [&self.lists[..], &self.tail].concat();
        all.extend(self.plain.clone());
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..self.next), "{all:?} of {}", self.next);
    }
}

struct Engine {
    upkeep: Mutex<()>,
    catching_up: Mutex<()>,
    working: Mutex<Places>,
    current: Current<Places>,
}

impl Engine {
    fn insert(&self) {
        let mut working = self.working.lock().unwrap();
        let id = working.next;
        working.tail.push(id);
        working.next += 1;
        self.current.store(working.clone());
    }

    /// Without the upkeep, as a caller of many queries does it too.
    fn catch_up(&self) {
        let _catching_up = self.catching_up.lock().unwrap();
        let snapshot = self.current.load();
        if snapshot.plain.is_empty() {
            return;
        }
        let mut tail: Vec<u64> = snapshot.plain.clone().collect();
        // What has come by now is added ahead, and the rest when nothing more comes.
        let ahead = self.current.load();
        tail.extend(ahead.tail.iter().filter(|id| **id >= snapshot.plain.end));
        let mut working = self.working.lock().unwrap();
        tail.extend(working.tail.iter().filter(|id| **id >= ahead.next));
        (working.tail, working.plain) = (tail, 0..0);
        self.current.store(working.clone());
    }

    fn fold(&self) {
        let _upkeep = self.upkeep.lock().unwrap();
        self.catch_up();
        let snapshot = self.current.load();
        let watermark = snapshot.next;
        let written: Vec<u64> = [&snapshot.lists[..], &snapshot.tail].concat();
        let ahead = self.current.load();
        let mut left: Vec<u64> =
            ahead.tail.iter().filter(|id| **id >= watermark).copied().collect();
        let mut working = self.working.lock().unwrap();
        left.extend(working.tail.iter().filter(|id| **id >= ahead.next));
        (working.tail, working.lists) = (left, written);
        self.current.store(working.clone());
    }
}

#[test]
fn a_change_that_fails_beside_others_is_never_seen() {
    explore(3, || {
        let store = Store::new();
        let other = {
            let store = Arc::clone(&store);
            thread::spawn(move || store.insert_alone(BAD))
        };
        store.insert_alone(2);
        other.join().unwrap();
        store.insert(3);
        assert_eq!(**store.seen(), [2, 3]);
    });
}

#[test]
fn rows_that_come_while_the_tail_is_encoded_are_neither_lost_nor_doubled() {
    explore(3, || {
        let opened = Places { next: 2, lists: vec![0], tail: Vec::new(), plain: 1..2 };
        let engine = Arc::new(Engine {
            upkeep: Mutex::new(()),
            catching_up: Mutex::new(()),
            working: Mutex::new(opened.clone()),
            current: Current::new(opened),
        });
        let run = |job: fn(&Engine)| {
            let engine = Arc::clone(&engine);
            thread::spawn(move || job(&engine))
        };
        let jobs = [run(Engine::catch_up), run(Engine::fold), run(Engine::insert)];
        engine.current.load().check();
        engine.current.load().check();
        jobs.into_iter().for_each(|job| job.join().unwrap());
        let end = engine.current.load();
        end.check();
        assert_eq!((end.next, end.plain.clone()), (3, 0..0));
    });
}
