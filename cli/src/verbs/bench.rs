//! `bench`: recall and speed of an index, an operating point a line.

use super::note_untrained;
use super::search::{parse_reads, parse_recall};
use crate::failure::Failure;
use crate::output::Console;
use crate::vectors::{Input, VectorFile};
use cellardb::{Answer, Index, Query, QueryMany, Stats};
use clap::Args;
use serde::Serialize;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const K: usize = 10;
const PROBES: [usize; 19] =
    [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048];
const RERANKS: [usize; 5] = [20, 40, 80, 160, 320];
/// A point that takes less than this is measured again, to even out the clock and the scheduler.
const SHORTEST: Duration = Duration::from_millis(250);
/// Queries over which the work of a search is counted; it varies little.
const COUNTED: usize = 200;
/// More probes are not worth a measurement once recall is this high.
const ENOUGH: f64 = 0.999;
/// Nor once they have brought less than this, twice in a row; nor is a deeper rerank that does.
const LEAST_GAIN: f64 = 0.0005;

/// Measure recall@10 and queries per second, one line per operating point.
///
/// First the recall settings that the index has stored, then a grid of probes and rerank depths. Warm
/// unless `--cold`: every query is run once before the clock starts.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Bench {
    /// Directory of the index.
    dir: PathBuf,
    /// File of query vectors; - for standard input.
    file: PathBuf,
    #[command(flatten)]
    input: Input,
    /// The true neighbours: integers, a row per query with the 10 nearest ids first.
    #[arg(long, value_name = "FILE")]
    truth: PathBuf,
    /// Threads for handing over all queries at once; one at a time is always on one.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Longest time for one measurement of one point, in seconds.
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Time after which no further point is begun, in seconds.
    #[arg(long, value_name = "S", default_value_t = 200.0, value_parser = parse_seconds)]
    budget: f64,
    /// Use the first N queries only.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    queries: Option<u64>,
    /// Recalls to aim at [default: the stored 0.9, 0.95 and 0.99, then the grid]; if given, the
    /// grid is left out.
    #[arg(long, value_name = "R", num_args = 1.., value_parser = parse_recall)]
    recall: Vec<f32>,
    /// Let each query read at most so many places of lists and rows.
    #[arg(long, value_name = "N", value_parser = parse_reads)]
    max_reads: Option<usize>,
    /// Run every query once, with nothing before it: the first of several points is cold if the page
    /// cache was. None is handed over with others.
    #[arg(long)]
    cold: bool,
}

const EXAMPLES: &str = "\
Examples:
  cellardb search words queries.npy --exact -k 10 --out truth.npy
  cellardb bench words queries.npy --truth truth.npy
  cellardb bench words queries.npy --truth truth.npy --recall 0.9 0.99 --threads 2";

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds, up to a day".to_owned()),
    }
}

/// One operating point.
#[derive(Debug, Clone, Copy, Default)]
struct Point {
    recall: Option<f32>,
    probes: Option<usize>,
    rerank: Option<usize>,
}

impl Point {
    fn one<'a>(self, index: &'a Index, query: &'a [f32]) -> Query<'a> {
        let mut search = index.query(query).k(K);
        if let Some(recall) = self.recall {
            search = search.recall(recall);
        } else if let (Some(probes), Some(rerank)) = (self.probes, self.rerank) {
            search = search.probes(probes).rerank(rerank);
        }
        search
    }

    fn many<'a>(self, index: &'a Index, queries: &'a [f32]) -> QueryMany<'a> {
        let mut search = index.query_many(queries).k(K);
        if let Some(recall) = self.recall {
            search = search.recall(recall);
        } else if let (Some(probes), Some(rerank)) = (self.probes, self.rerank) {
            search = search.probes(probes).rerank(rerank);
        }
        search
    }
}

/// What was measured at one operating point.
#[derive(Debug, Serialize)]
struct Line {
    setting: Option<String>,
    probes: Option<usize>,
    rerank: Option<usize>,
    recall: f64,
    qps: f64,
    qps_batch: Option<f64>,
    p50_us: f64,
    p99_us: f64,
    codes: f64,
    cells: f64,
    reranked: f64,
    /// Places of lists and rows that a query read, and bytes of them, from memory or from the disk.
    reads: f64,
    bytes: f64,
    /// What the system read from the disk for a query, where it tells.
    read_kib: Option<f64>,
    /// From before the index was opened until its first answer.
    open_s: f64,
    open_rss: u64,
    k: usize,
    queries: usize,
    threads: usize,
}

const HEADING: &str = "setting         probes rerank  recall       qps qps_batch   p50_us   p99_us     codes read_KiB";

impl Line {
    fn text(&self) -> String {
        let number = |n: Option<usize>| n.map_or("-".to_owned(), |n| n.to_string());
        format!(
            "{:<14} {:>7} {:>6} {:>7.4} {:>9.0} {:>9} {:>8.1} {:>8.1} {:>9.0} {:>8}",
            self.setting.as_deref().unwrap_or("-"),
            number(self.probes),
            number(self.rerank),
            self.recall,
            self.qps,
            self.qps_batch.map_or("-".to_owned(), |qps| format!("{qps:.0}")),
            self.p50_us,
            self.p99_us,
            self.codes,
            self.read_kib.map_or("-".to_owned(), |kib| format!("{kib:.1}"))
        )
    }
}

impl Bench {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let file = VectorFile::open_whole(&self.file, self.input)?;
        let count = self.queries.unwrap_or(u64::MAX).min(file.rows().unwrap_or(0));
        let truth = self.read_truth(count)?;
        let queries = file.floats(0, count as usize)?;
        let (before, start) = (resident(), Instant::now());
        let index = super::stored().open_read_only(&self.dir)?;
        note_untrained(console, &self.dir, &index.stats());
        file.expect_dim(index.dim())?;
        if let Some(first) = queries.chunks_exact(index.dim()).next() {
            index.search(first, K).map_err(|error| file.blame(error, 0))?;
        }
        let open_s = start.elapsed().as_secs_f64();
        let open_rss = resident().saturating_sub(before);
        // No neighbours are wanted yet, only a complaint about a query that cannot be compared.
        index.query_many(&queries).k(0).run().map_err(|error| file.blame(error, 0))?;
        console.heading(HEADING)?;
        let session = Session { bench: self, console, index, queries, truth, open_s, open_rss };
        session.measure_all()
    }

    /// The ten nearest ids of each query.
    fn read_truth(&self, count: u64) -> Result<Vec<[i64; K]>, Failure> {
        let truth = VectorFile::open_whole(&self.truth, Input { format: None })?;
        if count == 0 {
            return Err(Failure::file(&self.file, "there is no query in it"));
        }
        let rows = truth.rows().unwrap_or(0);
        if rows < count {
            let what = format!(
                "neighbours of {rows} queries, {count} are needed: `cellardb search --exact --out` makes them"
            );
            return Err(Failure::file(&self.truth, what));
        }
        let ids = truth.integers(0, count as usize)?;
        let rows = ids.chunks_exact(truth.dim()).map(|row| row.first_chunk::<K>().copied());
        let rows: Option<Vec<_>> = rows.collect();
        rows.ok_or_else(|| {
            Failure::file(
                &self.truth,
                format!("{} neighbours a query, {K} are needed", truth.dim()),
            )
        })
    }
}

struct Session<'a> {
    bench: &'a Bench,
    console: &'a Console,
    index: Index,
    queries: Vec<f32>,
    truth: Vec<[i64; K]>,
    open_s: f64,
    open_rss: u64,
}

impl Session<'_> {
    fn measure_all(&self) -> Result<(), Failure> {
        let start = Instant::now();
        let stats = self.index.stats();
        if stats.code == "exact" {
            self.measure(Point::default(), Some("exact".to_owned()))?;
            return Ok(());
        }
        let chosen = &self.bench.recall;
        let targets = if chosen.is_empty() { &[0.90, 0.95, 0.99][..] } else { &chosen[..] };
        for target in targets {
            let point = stored(&stats, *target);
            self.measure(point, Some(format!("recall {target:.2}")))?;
        }
        if chosen.is_empty() { self.measure_grid(&stats, start) } else { Ok(()) }
    }

    /// All rerank depths at each number of probes, fewest first: a spent budget leaves out the
    /// slowest points.
    fn measure_grid(&self, stats: &Stats, start: Instant) -> Result<(), Failure> {
        let budget = Duration::from_secs_f64(self.bench.budget);
        let mut sweeps = RERANKS.map(|rerank| Sweep { rerank, best: 0.0, idle: 0 });
        for probes in PROBES.into_iter().filter(|probes| *probes as u64 <= stats.cells) {
            let mut shallower = 0.0;
            for sweep in sweeps.iter_mut().filter(|sweep| !sweep.is_done()) {
                if start.elapsed() > budget {
                    let what = "the time is spent, the points with most probes are left out";
                    self.console.note(&format!("{what}; --budget S allows more"));
                    return Ok(());
                }
                let rerank = Some(sweep.rerank);
                let point = Point { recall: None, probes: Some(probes), rerank };
                let recall = self.measure(point, None)?;
                sweep.add(recall);
                if recall < shallower + LEAST_GAIN {
                    break; // So few cells hold no more to rerank.
                }
                shallower = recall;
            }
        }
        Ok(())
    }

    /// Measures a point, prints its line and returns its recall.
    fn measure(&self, point: Point, setting: Option<String>) -> Result<f64, Failure> {
        let limit = Duration::from_secs_f64(self.bench.seconds);
        let rows = || self.queries.chunks_exact(self.index.dim());
        // Warm is how a long-lived process finds its index: pages mapped, checksums verified.
        let start = Instant::now();
        for query in rows().take_while(|_| !self.bench.cold && start.elapsed() < limit) {
            self.one(point, query).run()?;
        }

        let (mut nanos, mut first_pass) = (Vec::new(), Vec::with_capacity(self.truth.len()));
        let read_before = read_from_disk();
        let start = Instant::now();
        let mut last = start;
        'passes: loop {
            for query in rows() {
                let hits = self.one(point, query).run()?;
                let now = Instant::now();
                nanos.push((now - last).as_nanos() as u64);
                last = now;
                if first_pass.len() < self.truth.len() {
                    first_pass.push(hits);
                }
                if now - start > limit {
                    break 'passes;
                }
            }
            if self.bench.cold || last - start > SHORTEST {
                break;
            }
        }
        let read = read_from_disk().zip(read_before).map(|(after, before)| after - before);
        let seen = first_pass.len();
        let found: usize = first_pass.iter().zip(&self.truth).map(|(h, t)| in_truth(h, t)).sum();
        let qps = nanos.len() as f64 / (last - start).as_secs_f64();
        nanos.sort_unstable();

        let mut sums = [0; 5];
        let counted = seen.min(COUNTED);
        for query in rows().take(counted) {
            let answer = self.one(point, query).explain()?;
            let Answer { codes, cells, reranked, reads, bytes, .. } = answer;
            sums.iter_mut().zip([codes, cells, reranked, reads, bytes]).for_each(|(s, n)| *s += n);
        }
        let [codes, cells, reranked, reads, bytes] =
            sums.map(|sum| tenths(sum as f64 / counted as f64));
        let line = Line {
            setting,
            probes: point.probes,
            rerank: point.rerank,
            recall: (found as f64 / (seen * K) as f64 * 1e4).round() / 1e4,
            qps: tenths(qps),
            qps_batch: match self.bench.cold {
                true => None,
                false => Some(tenths(self.batch_rate(point, seen, limit)?)),
            },
            p50_us: percentile(&nanos, 50),
            p99_us: percentile(&nanos, 99),
            codes,
            cells,
            reranked,
            reads,
            bytes,
            read_kib: read.map(|bytes| tenths(bytes as f64 / 1024.0 / nanos.len() as f64)),
            open_s: self.open_s,
            open_rss: self.open_rss,
            k: K,
            queries: seen,
            threads: self.bench.threads,
        };
        self.console.result(&line, Line::text)?;
        Ok(line.recall)
    }

    fn one<'a>(&'a self, point: Point, query: &'a [f32]) -> Query<'a> {
        let search = point.one(&self.index, query);
        match self.bench.max_reads {
            Some(reads) => search.max_reads(reads),
            None => search,
        }
    }

    /// Queries per second when the first `count` are handed over at once.
    fn batch_rate(&self, point: Point, count: usize, limit: Duration) -> Result<f64, Failure> {
        let queries = &self.queries[..count * self.index.dim()];
        let (start, mut passes) = (Instant::now(), 0);
        loop {
            let search = point.many(&self.index, queries).threads(self.bench.threads);
            match self.bench.max_reads {
                Some(reads) => search.max_reads(reads).run()?,
                None => search.run()?,
            };
            passes += 1;
            let elapsed = start.elapsed();
            if elapsed > SHORTEST.min(limit) {
                return Ok((passes * count) as f64 / elapsed.as_secs_f64());
            }
        }
    }
}

/// A search for this recall, with its stored setting if one was measured for just this recall.
fn stored(stats: &Stats, target: f32) -> Point {
    let setting = stats.settings.iter().find(|s| (s.recall - target).abs() < 1e-6);
    Point {
        recall: Some(target),
        probes: setting.map(|s| s.probes),
        rerank: setting.map(|s| s.rerank),
    }
}

/// One rerank depth while probes grow.
struct Sweep {
    rerank: usize,
    best: f64,
    /// Steps in a row that brought next to nothing.
    idle: u32,
}

impl Sweep {
    fn is_done(&self) -> bool {
        self.best >= ENOUGH || self.idle >= 2
    }

    fn add(&mut self, recall: f64) {
        self.idle = if recall > self.best + LEAST_GAIN { 0 } else { self.idle + 1 };
        self.best = self.best.max(recall);
    }
}

fn in_truth(hits: &[(usize, f32)], truth: &[i64; K]) -> usize {
    truth.iter().filter(|id| hits.iter().any(|(hit, _)| *hit as i64 == **id)).count()
}

/// A percentile of sorted nanoseconds, in microseconds.
fn percentile(sorted: &[u64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    tenths(sorted.get(at).copied().unwrap_or(0) as f64 / 1e3)
}

fn tenths(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

/// Resident bytes of this process; 0 where the system does not tell.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Bytes that this process had read from disks so far, pages that were mapped included.
fn read_from_disk() -> Option<u64> {
    let io = fs::read_to_string("/proc/self/io").ok()?;
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_ends_when_recall_is_high_or_stands_still() {
        let mut sweep = Sweep { rerank: 20, best: 0.0, idle: 0 };
        for recall in [0.5, 0.7, 0.8, 0.8002] {
            sweep.add(recall);
            assert!(!sweep.is_done());
        }
        sweep.add(0.8003);
        assert!(sweep.is_done());
        let mut sweep = Sweep { rerank: 20, best: 0.0, idle: 0 };
        sweep.add(0.9991);
        assert!(sweep.is_done());
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let nanos: Vec<u64> = (1..=100).map(|i| i * 1000).collect();
        assert_eq!(percentile(&nanos, 50), 51.0);
        assert_eq!(percentile(&nanos, 99), 100.0);
        assert_eq!(percentile(&nanos[..1], 99), 1.0);
        assert_eq!(percentile(&[], 99), 0.0);
    }

    #[test]
    fn only_true_neighbours_count() {
        let truth = [1, 2, 3, 4, 5, 6, 7, 8, 9, -1];
        assert_eq!(in_truth(&[(1, 0.0), (9, 0.1), (77, 0.2)], &truth), 2);
        assert_eq!(in_truth(&[], &truth), 0);
    }
}
