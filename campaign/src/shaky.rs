//! A simulated disk on which every operation takes its time: before and after it the thread may give
//! way or sleep, as a seed says, so that the threads of an engine meet in ever new orders.

use crate::data::Rng;
use crate::layer::{Call, Layer};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What decides it; clones go on with each other's rolls.
#[derive(Debug, Clone)]
pub struct Dice {
    rolled: Arc<AtomicU64>,
    /// How many of 64 operations let others go first.
    polite: u64,
}

impl Dice {
    pub fn new(seed: u64) -> Self {
        let polite = [0, 1, 4, 16][(seed % 4) as usize];
        Self { rolled: Arc::new(AtomicU64::new(seed)), polite }
    }

    /// Gives way now and then, and seldom sleeps a moment.
    fn roll(&self) {
        let n = Rng::new(self.rolled.fetch_add(1, Ordering::Relaxed)).next_u64();
        match n % 64 {
            face if face >= self.polite => {}
            _ if n >> 32 & 31 == 0 => std::thread::sleep(Duration::from_micros(n >> 40 & 63)),
            _ => std::thread::yield_now(),
        }
    }
}

impl Layer for Dice {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if let Call::CreateDir(_) | Call::Lock | Call::Map { .. } = call {
            return job();
        }
        self.roll();
        let done = job();
        self.roll();
        done
    }
}
