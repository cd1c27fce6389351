//! An index through many turnovers: a process that changes it, and measures it when each is over. What is
//! stored under an id follows from the id, so that a process that takes over from a killed one knows all.

use crate::data::Rng;
use crate::process::say;
use crate::recall::idle;
use crate::recall::judge::RECALLS;
use crate::recall::truth::{Rows, mean};
use cellardb::{Answer, Error, Index, Metric};
use clap::Args;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Topics of a turnover, and as many that some turnovers share.
const TOPICS: usize = 60;
/// So many turnovers share topics.
const EPOCH: usize = 3;
/// A row that is pinned stays for so many turnovers.
const PINNED: usize = 10;
const QUERIES: usize = 2000;
const K: usize = 10;

/// What is in the index, and how much of it.
#[derive(Debug, Clone, Args)]
pub struct Size {
    /// Rows that there are at all times; a turnover replaces as many.
    #[arg(long, default_value_t = 20_000)]
    pub rows: usize,
    #[arg(long, default_value_t = 64)]
    pub dim: usize,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[arg(long, default_value_t = 100)]
    pub turnovers: usize,
}

/// Changes an index from one turnover to the next, and says what it found.
#[derive(Debug, Clone, Args)]
pub struct Year {
    pub path: PathBuf,
    #[command(flatten)]
    pub size: Size,
    /// So many turnovers have been measured.
    #[arg(long, default_value_t = 0)]
    pub measured: usize,
}

fn mix(parts: [u64; 3]) -> Rng {
    let mixed = parts.iter().fold(0, |sum, part| Rng::new(sum ^ part).next_u64());
    Rng::new(mixed)
}

impl Size {
    /// The turnover that a row came with.
    fn turnover(&self, id: usize) -> usize {
        id / self.rows
    }

    /// A vector about what a turnover is about: half of it is its own, half that of its epoch.
    fn about(&self, turnover: usize, rng: &mut Rng) -> Vec<f32> {
        let (kind, of) = match rng.below(2) {
            0 => (1 << 32, turnover),
            _ => (2 << 32, turnover / EPOCH),
        };
        let topic = rng.below(TOPICS);
        let mut center = mix([self.seed, kind | of as u64, topic as u64]);
        (0..self.dim).map(|_| center.gauss() + 0.5 * rng.gauss()).collect()
    }

    pub fn vector(&self, id: usize) -> Vec<f32> {
        self.about(self.turnover(id), &mut mix([self.seed, 3 << 32, id as u64]))
    }

    /// Whether a row may go: some stay for ever, some for a time.
    fn may_go(&self, id: usize, next: usize) -> bool {
        let pinned = id.is_multiple_of(40) && self.turnover(next) < self.turnover(id) + PINNED;
        !pinned && id >= self.rows / 100
    }
}

impl Year {
    /// Works until all turnovers are done. The first error is said, and ends the process with code 3.
    pub fn run(&self) {
        if let Err(e) = self.work() {
            say(&format!("error {e}"));
            std::process::exit(3);
        }
    }

    fn work(&self) -> Result<(), String> {
        let text = |e: Error| e.to_string();
        let (mut index, mut opened) = self.open().map_err(text)?;
        let mut live = index.ids();
        let mut next = index.stats().next_id as usize;
        let mut measured = self.measured;
        let mut rng = mix([self.size.seed, 4 << 32, next as u64 + std::process::id() as u64]);
        loop {
            let full = (measured + 1) * self.size.rows;
            while next < full {
                let end = full.min(next + 1 + rng.below(200));
                let rows: Vec<f32> = (next..end).flat_map(|id| self.size.vector(id)).collect();
                let ids = index.insert_many(&rows).map_err(text)?;
                if ids != (next..end) {
                    return Err(format!("new rows got ids {ids:?}, should be {next}..{end}"));
                }
                live.extend(ids);
                next = end;
                let gone = self.leave(&mut live, next, &mut rng);
                if index.remove_many(&gone).map_err(text)? != gone.len() {
                    return Err("a row that was there was not removed".into());
                }
                say("batch");
            }
            if live != index.ids() {
                return Err("other rows are there than should be".into());
            }
            idle::wait(&index)?;
            let mut found = self.measure(&index, &live)?;
            index.close().map_err(text)?;
            found.disk = disk(&self.path).map_err(|e| e.to_string())?;
            // The first of a process is that after a kill.
            found.open = opened;
            (index, opened) = self.open().map_err(text)?;
            say(&format!("turnover {measured} {}", found.words()));
            measured += 1;
            if measured > self.size.turnovers {
                return index.close().map_err(text);
            }
        }
    }

    fn open(&self) -> Result<(Index, f64), Error> {
        let start = Instant::now();
        let index = Index::open(&self.path)?;
        Ok((index, start.elapsed().as_secs_f64()))
    }

    /// Chooses who goes, so that there are no more rows than there should be: the oldest, or any.
    fn leave(&self, live: &mut Vec<usize>, next: usize, rng: &mut Rng) -> Vec<usize> {
        let mut gone = Vec::new();
        let by_age = rng.below(2) == 0;
        let mut oldest = 0;
        while live.len() > self.size.rows && oldest < live.len() {
            let at = if by_age { oldest } else { rng.below(live.len()) };
            if self.size.may_go(live[at], next) {
                gone.push(live.remove(at));
            } else if by_age {
                oldest += 1;
            }
        }
        gone
    }

    fn measure(&self, index: &Index, live: &[usize]) -> Result<Found, String> {
        let text = |e: Error| e.to_string();
        let size = &self.size;
        let rows: Vec<f32> = live.iter().flat_map(|id| size.vector(*id)).collect();
        for at in (0..live.len()).step_by(live.len() / 50 + 1) {
            let stored = index.get(live[at]).map_err(text)?;
            if stored.as_deref() != Some(&rows[at * size.dim..][..size.dim]) {
                return Err(format!("row {} is another", live[at]));
            }
        }
        let gone = vec![false; live.len()];
        let all = Rows { dim: size.dim, metric: Metric::L2, rows: &rows, gone: &gone };
        let place = |hit: &(usize, f32)| (live.binary_search(&hit.0).unwrap_or(!0), hit.1);
        let recall = |queries: &[f32], nearest: &[Vec<f64>], answers: &[Answer]| {
            let hits: Vec<Vec<_>> =
                answers.iter().map(|a| a.hits.iter().map(place).collect()).collect();
            mean(&all.found(queries, (nearest, K), &hits)).0
        };
        // About what the rows are about.
        let mut rng = mix([size.seed, 5 << 32, live[live.len() - 1] as u64]);
        let mut ask = |n: usize| -> Vec<f32> {
            let one = |_| size.about(size.turnover(live[rng.below(live.len())]), &mut rng);
            (0..n).flat_map(one).collect()
        };
        let mut found = Found { rows: live.len(), ..Found::default() };
        for (asked, reached) in RECALLS.iter().zip(&mut found.recall) {
            // Others each time: the index learns from those that it was asked.
            let queries = ask(QUERIES);
            let nearest = all.nearest(&queries, K);
            let answers = index.query_many(&queries).recall(*asked).explain().map_err(text)?;
            *reached = recall(&queries, &nearest, &answers);
            if *asked == 0.95 {
                let cost = answers.iter().map(|a| (a.codes + a.reranked) as f64);
                (_, found.cost) = middle_and_tail(cost.collect());
                let some = &queries[..200 * size.dim];
                let exact = index.query_many(some).exact().explain().map_err(text)?;
                found.exact = recall(some, &nearest, &exact);
            }
        }
        let queries = ask(1000);
        let mut times = Vec::new();
        for query in queries.chunks_exact(size.dim) {
            let start = Instant::now();
            index.search(query, K).map_err(text)?;
            times.push(start.elapsed().as_secs_f64());
        }
        (found.p50, found.p99) = middle_and_tail(times);
        found.of_process().map_err(|e| e.to_string())?;
        found.generation = f64::from(index.stats().generation);
        Ok(found)
    }
}

fn middle_and_tail(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[values.len() * 99 / 100])
}

/// Bytes that a directory takes, as `du` counts, and the files and directories in it.
fn disk(path: &Path) -> std::io::Result<(f64, usize)> {
    let (mut bytes, mut entries) = (fs::metadata(path)?.blocks() as f64 * 512.0, 1);
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let below = disk(&entry.path())?;
            (bytes, entries) = (bytes + below.0, entries + below.1);
        } else {
            (bytes, entries) = (bytes + entry.metadata()?.blocks() as f64 * 512.0, entries + 1);
        }
    }
    Ok((bytes, entries))
}

/// What was found after a turnover.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    pub rows: usize,
    pub exact: f64,
    /// Of each of the recalls that are asked for.
    pub recall: [f64; 3],
    /// Bytes, and files and directories.
    pub disk: (f64, usize),
    /// Seconds.
    pub open: f64,
    pub p50: f64,
    pub p99: f64,
    /// Codes and rows of one search in a hundred, or more.
    pub cost: f64,
    /// Bytes of memory that is not of files.
    pub memory: f64,
    pub descriptors: f64,
    pub threads: f64,
    pub generation: f64,
}

impl Found {
    fn of_process(&mut self) -> std::io::Result<()> {
        let status = fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        self.memory = kilobytes.and_then(|n| n.parse().ok()).unwrap_or(f64::NAN) * 1024.0;
        self.descriptors = fs::read_dir("/proc/self/fd")?.count() as f64;
        self.threads = fs::read_dir("/proc/self/task")?.count() as f64;
        Ok(())
    }

    fn words(&self) -> String {
        let [low, middle, high] = self.recall;
        let numbers = [self.open, self.p50, self.p99, self.cost, self.memory, self.descriptors];
        let numbers = numbers.iter().chain([&self.threads, &self.generation]).map(f64::to_string);
        let numbers: Vec<_> = numbers.collect();
        let (bytes, entries) = self.disk;
        let Self { rows, exact, .. } = self;
        format!("{rows} {exact} {low} {middle} {high} {bytes} {entries} {}", numbers.join(" "))
    }

    /// What a process said, after the number of the turnover.
    pub fn parse(words: &str) -> Option<Self> {
        let numbers: Vec<f64> = words.split(' ').map_while(|word| word.parse().ok()).collect();
        let &[rows, exact, low, middle, high, bytes, entries, open, p50, p99, cost, ..] =
            &numbers[..]
        else {
            return None;
        };
        let &[memory, descriptors, threads, generation] = numbers.get(11..)? else { return None };
        Some(Self {
            rows: rows as usize,
            exact,
            recall: [low, middle, high],
            disk: (bytes, entries as usize),
            open,
            p50,
            p99,
            cost,
            memory,
            descriptors,
            threads,
            generation,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Size};

    #[test]
    fn what_is_said_is_understood() {
        let found = Found {
            rows: 9,
            exact: 1.0,
            recall: [0.9, 0.95, 0.99],
            disk: (4096.0, 3),
            open: 0.25,
            p50: 0.5,
            p99: 0.75,
            cost: 17.0,
            memory: 8192.0,
            descriptors: 5.0,
            threads: 4.0,
            generation: 2.0,
        };
        assert_eq!(Found::parse(&found.words()), Some(found));
        assert_eq!(Found::parse("1 2 3"), None);
    }

    #[test]
    fn pinned_rows_stay_for_a_time_and_the_first_for_ever() {
        let size = Size { rows: 1000, dim: 2, seed: 1, turnovers: 1 };
        assert!(!size.may_go(9, 1_000_000), "one of the first");
        assert!(!size.may_go(40, 9_999) && size.may_go(40, 10_000), "a pinned one");
        assert!(size.may_go(41, 1000));
        assert_eq!(size.vector(41), size.vector(41));
        assert_ne!(size.vector(41), size.vector(42));
    }
}
