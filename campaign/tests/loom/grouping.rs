//! The queue of the group commit.

use crate::explore;
use crate::queue::Queue;
use loom::sync::atomic::{AtomicBool, Ordering::SeqCst};
use loom::sync::{Arc, Mutex, MutexGuard};
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What a commit answers: the change, and its place in the order of all changes.
type Done = Option<(u64, usize)>;

struct Committer {
    queue: Queue<u64, Done>,
    log: Mutex<Vec<u64>>,
}

impl Committer {
    fn new() -> Arc<Self> {
        Arc::new(Self { queue: Queue::new(|| None), log: Mutex::new(Vec::new()) })
    }

    fn submit(&self, op: u64) -> usize {
        let commit = |mut log: MutexGuard<'_, Vec<u64>>, ops: &[&u64]| {
            assert!(!ops.is_empty(), "a lead without a change");
            ops.iter()
                .map(|op| {
                    log.push(**op);
                    Some((**op, log.len() - 1))
                })
                .collect()
        };
        let done = self.queue.submit(op, || self.log.lock().unwrap(), commit);
        let (answered, place) = done.expect("the lead was lost");
        assert_eq!(answered, op, "the answer to another change");
        assert_eq!(self.log.lock().unwrap().get(place), Some(&op), "answered before it was done");
        place
    }
}

/// All of `callers` submit their changes at a time; each change is in the log once.
fn all_submit(preemptions: usize, callers: &'static [&'static [u64]]) {
    explore(preemptions, move || {
        let committer = Committer::new();
        let submit = |committer: &Committer, ops: &[u64]| {
            let places: Vec<usize> = ops.iter().map(|op| committer.submit(*op)).collect();
            assert!(places.is_sorted(), "a later change of one caller came first");
        };
        let (mine, others) = callers.split_first().unwrap();
        let others: Vec<_> = others
            .iter()
            .map(|ops| {
                let committer = Arc::clone(&committer);
                thread::spawn(move || submit(&committer, ops))
            })
            .collect();
        submit(&committer, mine);
        others.into_iter().for_each(|other| other.join().unwrap());
        let mut log = committer.log.lock().unwrap().clone();
        log.sort_unstable();
        let mut all: Vec<u64> = callers.concat();
        all.sort_unstable();
        assert_eq!(log, all);
    });
}

#[test]
fn two_callers_are_answered_for_their_own_changes_once_each() {
    all_submit(5, &[&[1, 2], &[3, 4]]);
}

#[test]
fn three_callers_hand_the_lead_on_until_nobody_waits() {
    all_submit(3, &[&[1], &[2], &[3]]);
}

#[test]
fn a_leader_who_panics_leaves_nobody_waiting() {
    explore(3, || {
        let queue: Arc<Queue<u64, Done>> = Arc::new(Queue::new(|| None));
        let panicked = Arc::new(AtomicBool::new(false));
        let submit = {
            let (queue, panicked) = (Arc::clone(&queue), Arc::clone(&panicked));
            move |op: u64| {
                let commit = |(), ops: &[&u64]| {
                    if !panicked.swap(true, SeqCst) {
                        resume_unwind(Box::new("on purpose"));
                    }
                    ops.iter().map(|op| Some((**op, 0))).collect()
                };
                let done = catch_unwind(AssertUnwindSafe(|| queue.submit(op, || (), commit)));
                // The own panic, that of another who led, or an answer.
                if let Ok(Some((answered, _))) = done {
                    assert_eq!(answered, op);
                }
            }
        };
        let others: Vec<_> = [2, 3]
            .into_iter()
            .map(|op| {
                let submit = submit.clone();
                thread::spawn(move || submit(op))
            })
            .collect();
        submit(1);
        others.into_iter().for_each(|other| other.join().unwrap());
        // The next one leads at once.
        let commit = |(), ops: &[&u64]| ops.iter().map(|op| Some((**op, 9))).collect();
        assert_eq!(queue.submit(4, || (), commit), Some((4, 9)));
    });
}
