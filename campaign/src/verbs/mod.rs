//! What `campaign` can be told to do, a file each.

pub mod cuts;
pub mod damage;
pub mod faults;
pub mod hostile;
pub mod kernel;
pub mod kills;
pub mod limits;
pub mod planted;
pub mod recall;
pub mod redb;
pub mod syscalls;
pub mod threads;
pub mod year;

use clap::Args;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Seeds, unless something else is said.
const SEEDS: u64 = 100;

/// How long a campaign goes on; for 100 seeds, if neither --count nor --seconds says otherwise.
#[derive(Debug, Args)]
pub struct Pace {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u32,
    #[command(flatten)]
    until: Until,
    /// Threads that share the seeds.
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
}

impl Pace {
    /// Runs a job for each seed until the count or the time is over, or one fails. Returns the time.
    pub fn each(&self, job: impl Fn(u32) -> Result<(), String> + Sync) -> Result<Duration, String> {
        let (start, count) = (Instant::now(), self.until.count(SEEDS).min(u64::from(u32::MAX)));
        share(self.jobs, |n| {
            if n >= count || self.until.over(start) {
                return Ok(false);
            }
            if n > 0 && n.is_multiple_of(100) {
                eprintln!("{n} seeds, {:.0} s", start.elapsed().as_secs_f64());
            }
            job(self.seed.wrapping_add(n as u32)).map(|()| true)
        })?;
        Ok(start.elapsed())
    }
}

/// How long a campaign goes on whose cases are counted.
#[derive(Debug, Args)]
pub struct Until {
    /// So many of them; as many as there is time for if only --seconds is given.
    #[arg(long)]
    count: Option<u64>,
    /// Ends after so many seconds, and says so if it is early.
    #[arg(long)]
    seconds: Option<u64>,
}

impl Until {
    /// How many there are to do.
    pub fn count(&self, default: u64) -> u64 {
        self.count.unwrap_or(if self.seconds.is_some() { u64::MAX } else { default })
    }

    pub fn over(&self, start: Instant) -> bool {
        over(self.seconds, start)
    }

    /// For the summary, after so many were done.
    pub fn early(&self, done: u64) -> &'static str {
        early(self.count.is_some_and(|count| done < count))
    }
}

/// Whether so many seconds have passed, if there is a limit.
pub fn over(seconds: Option<u64>, start: Instant) -> bool {
    seconds.is_some_and(|most| start.elapsed() >= Duration::from_secs(most))
}

/// How a summary says that the time was over before the work.
pub fn early(ended: bool) -> &'static str {
    if ended { ", ENDED EARLY" } else { "" }
}

/// Does a job for 0, 1, 2, ... on so many threads, until one says that nothing is left, or fails.
pub fn share(
    threads: usize,
    job: impl Fn(u64) -> Result<bool, String> + Sync,
) -> Result<(), String> {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while failed.lock().unwrap().is_none() {
                    match job(next.fetch_add(1, Relaxed)) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(e) => drop(failed.lock().unwrap().get_or_insert(e)),
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap().map_or(Ok(()), Err)
}

/// A number, also as `0x...`.
pub fn number(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .map_err(|e| e.to_string())
}

/// A part of some cases, as `1/4`.
pub fn part(text: &str) -> Result<(usize, usize), String> {
    let (i, n) = text.split_once('/').ok_or("not of the form 1/4")?;
    let number = |text: &str| text.parse::<usize>().map_err(|e| e.to_string());
    Ok((number(i)?, number(n)?.max(1)))
}
