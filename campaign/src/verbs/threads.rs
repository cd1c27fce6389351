//! Many threads on one index over a simulated disk that shakes their schedule.

use super::share;
use crate::contest::round;
use crate::watch;
use clap::Args;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Many threads on one small index over a simulated disk that shakes their schedule: inserts, removals,
/// searches, folds, trainings, compactions, power cuts and failures at random moments.
#[derive(Debug, Args)]
pub struct Threads {
    /// How long.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many rounds at most.
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
    /// The first round; each has its own seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often each seed is run: the threads meet in another order each time.
    #[arg(long, default_value_t = 1)]
    tries: u64,
    /// Rounds at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// What the rounds did.
#[derive(Debug, Default)]
struct Sum {
    rounds: u64,
    inserts: usize,
    removals: usize,
    cuts: usize,
    failures: usize,
}

impl Threads {
    pub fn run(&self) -> Result<String, String> {
        let (start, sum) = (Instant::now(), Mutex::new(Sum::default()));
        let (first, tries) = (self.seed, self.tries);
        watch::guard(move || repeat(first + watch::BEATS.load(Relaxed) / tries));
        share(self.jobs, |n| {
            let over = start.elapsed() >= Duration::from_secs(self.seconds);
            if over || n >= self.count.saturating_mul(self.tries) {
                return Ok(false);
            }
            let seed = self.seed + n / self.tries;
            let tally = catch_unwind(|| round(seed)).map_err(|_| repeat(seed))?;
            watch::BEATS.fetch_add(1, Relaxed);
            let mut sum = sum.lock().unwrap();
            sum.rounds += 1;
            sum.inserts += tally.inserts;
            sum.removals += tally.removals;
            sum.cuts += usize::from(tally.cut);
            sum.failures += usize::from(tally.failed);
            if sum.rounds.is_multiple_of(1000) {
                eprintln!("{} rounds, {:.0?}", sum.rounds, start.elapsed());
            }
            Ok(true)
        })?;
        let Sum { rounds, inserts, removals, cuts, failures } = sum.into_inner().unwrap();
        Ok(format!(
            "threads: {rounds} rounds from seed {}, {inserts} rows inserted, {removals} removed, \
             {cuts} power cuts, {failures} failed operations, {:.1?}: as promised",
            self.seed,
            start.elapsed()
        ))
    }
}

fn repeat(seed: u64) -> String {
    format!("repeat it: campaign threads --seed {seed} --count 1 --tries 10000 --seconds 600")
}
