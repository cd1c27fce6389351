//! Many threads on one index over a simulated disk that shakes their schedule.

use crate::contest::round;
use clap::Args;
use std::panic::catch_unwind;
use std::sync::Mutex;
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
    /// Rounds at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// A round takes milliseconds. When none has ended for so long, one waits for what never comes.
const HANG: Duration = Duration::from_secs(120);

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
    pub fn run(&self) {
        let (start, next, sum) = (Instant::now(), AtomicU64::new(0), Mutex::new(Sum::default()));
        std::thread::scope(|scope| {
            let work = || self.work(start, &next, &sum);
            let workers: Vec<_> = (0..self.jobs.max(1)).map(|_| scope.spawn(work)).collect();
            let (mut last, mut since) = (0, Instant::now());
            while !workers.iter().all(|worker| worker.is_finished()) {
                std::thread::sleep(Duration::from_millis(20));
                let rounds = sum.lock().unwrap().rounds;
                if rounds > last {
                    (last, since) = (rounds, Instant::now());
                } else if since.elapsed() > HANG {
                    eprintln!("no round ends any more");
                    fail(self.seed + next.load(Relaxed).saturating_sub(1) / self.tries);
                }
            }
            workers.into_iter().for_each(|worker| worker.join().unwrap());
        });
        let Sum { rounds, inserts, removals, cuts, failures } = sum.into_inner().unwrap();
        println!(
            "threads: {rounds} rounds from seed {}, {inserts} rows inserted, {removals} removed, \
             {cuts} power cuts, {failures} failed operations, {:.1?}: as promised",
            self.seed,
            start.elapsed()
        );
    }

    fn work(&self, start: Instant, next: &AtomicU64, sum: &Mutex<Sum>) {
        while start.elapsed() < Duration::from_secs(self.seconds) {
            let n = next.fetch_add(1, Relaxed);
            if n >= self.count.saturating_mul(self.tries) {
                return;
            }
            let seed = self.seed + n / self.tries;
            let Ok(tally) = catch_unwind(|| round(seed)) else { fail(seed) };
            let mut sum = sum.lock().unwrap();
            sum.rounds += 1;
            sum.inserts += tally.inserts;
            sum.removals += tally.removals;
            sum.cuts += usize::from(tally.cut);
            sum.failures += usize::from(tally.failed);
            if sum.rounds.is_multiple_of(1000) {
                eprintln!("{} rounds, {:.0?}", sum.rounds, start.elapsed());
            }
        }
    }
}

fn fail(seed: u64) -> ! {
    eprintln!("repeat it: campaign threads --seed {seed} --count 1 --tries 10000 --seconds 600");
    std::process::exit(1)
}
