//! Many threads on one index over a simulated disk that shakes their schedule.

use crate::contest::{Tally, round};
use clap::Args;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
}

/// A round takes milliseconds. One that takes this long waits for something that never comes.
const HANG: Duration = Duration::from_secs(120);

/// In the place of a seed: all rounds are done.
const OVER: u64 = u64::MAX;

impl Threads {
    pub fn run(&self) {
        let (start, mut rounds, mut all) = (Instant::now(), 0, Tally::default());
        let (mut cuts, mut failures) = (0, 0);
        let current = AtomicU64::new(self.seed);
        let limit = Duration::from_secs(self.seconds);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| watch(&current));
            for n in 0..self.count.saturating_mul(self.tries) {
                if start.elapsed() > limit {
                    break;
                }
                let seed = self.seed + n / self.tries;
                current.store(seed, Relaxed);
                let Ok(tally) = catch_unwind(|| round(seed)) else { fail(seed) };
                rounds += 1;
                all.inserts += tally.inserts;
                all.removals += tally.removals;
                cuts += u64::from(tally.cut);
                failures += u64::from(tally.failed);
                if rounds % 500 == 0 {
                    eprintln!("{rounds} rounds, {:.0?}", start.elapsed());
                }
            }
            current.store(OVER, Relaxed);
            watcher.thread().unpark();
            watcher.join().unwrap();
        });
        println!(
            "threads: {rounds} rounds from seed {}, {} rows inserted, {} removed, {cuts} power cuts, \
             {failures} failed operations, {:.1?}: as promised",
            self.seed,
            all.inserts,
            all.removals,
            start.elapsed()
        );
    }
}

fn fail(seed: u64) -> ! {
    eprintln!("repeat it: campaign threads --seed {seed} --count 1 --tries 10000 --seconds 600");
    std::process::exit(1)
}

/// Ends the process when a round does not.
fn watch(current: &AtomicU64) {
    let (mut last, mut since) = (OVER, Instant::now());
    loop {
        let seed = current.load(Relaxed);
        match seed {
            OVER => return,
            seed if seed != last => (last, since) = (seed, Instant::now()),
            seed if since.elapsed() > HANG => {
                eprintln!("round {seed} hangs");
                fail(seed);
            }
            _ => {}
        }
        std::thread::park_timeout(HANG / 8);
    }
}
