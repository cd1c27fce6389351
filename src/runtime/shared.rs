//! Work in shares, which several threads take in turn.

use crate::error::{Error, Result};
use crate::sync::{lock, wait};
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex};

/// Shares of some work.
pub(super) struct Shared<T, F> {
    state: Mutex<State<T, F>>,
    /// Told when none is being done.
    over: Condvar,
}

struct State<T, F> {
    /// How one is done; none any more when it is over, so that a thread that comes late keeps nothing alive.
    one: Option<Arc<F>>,
    shares: Vec<Range<usize>>,
    next: usize,
    /// Shares that are being done.
    begun: usize,
    found: Vec<(usize, Vec<T>)>,
    /// What ended it early: an error, or a panic.
    failed: Option<Failed>,
}

enum Failed {
    Error(Error),
    Panic(Box<dyn Any + Send>),
}

impl<T, F: Fn(Range<usize>) -> Result<Vec<T>>> Shared<T, F> {
    pub(super) fn new(shares: Vec<Range<usize>>, one: F) -> Self {
        let (one, found) = (Some(Arc::new(one)), Vec::with_capacity(shares.len()));
        let state = State { one, shares, next: 0, begun: 0, found, failed: None };
        Self { state: Mutex::new(state), over: Condvar::new() }
    }

    /// Does shares until none is left.
    pub(super) fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            let (at, share) = (state.next, state.shares.get(state.next).cloned());
            let (Some(one), Some(share), None) = (state.one.clone(), share, &state.failed) else {
                return;
            };
            state.next += 1;
            state.begun += 1;
            drop(state);
            let done = catch_unwind(AssertUnwindSafe(|| one(share)));
            drop(one);
            state = lock(&self.state);
            state.begun -= 1;
            match done {
                Ok(Ok(found)) => state.found.push((at, found)),
                Ok(Err(e)) => state.failed = Some(Failed::Error(e)),
                Err(panic) => state.failed = Some(Failed::Panic(panic)),
            }
            if state.begun == 0 {
                self.over.notify_all();
            }
        }
    }

    /// What came of all of them, when those that were begun are done.
    pub(super) fn finish(&self) -> Result<Vec<T>> {
        let mut state = lock(&self.state);
        let one = state.one.take();
        while state.begun > 0 {
            state = wait(&self.over, state);
        }
        let (mut found, failed) = (std::mem::take(&mut state.found), state.failed.take());
        drop(state);
        drop(one);
        match failed {
            Some(Failed::Panic(panic)) => resume_unwind(panic),
            Some(Failed::Error(e)) => Err(e),
            None => {
                found.sort_unstable_by_key(|(at, _)| *at);
                Ok(found.into_iter().flat_map(|(_, found)| found).collect())
            }
        }
    }
}
