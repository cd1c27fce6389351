//! An index that lives long.

use crate::data::Rng;
use crate::model::Model;
use crate::process::{Followed, Running, myself};
use crate::recall::judge::{BELOW, EXACT, RECALLS};
use crate::recall::report;
use crate::scratch::scratch;
use crate::year::{Found, Size};
use cellardb::{Index, Metric};
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes on the disk, in units of those of the rows.
const MOST_DISK: f64 = 2.0;
/// The most that one turnover may take.
const MOST: Duration = Duration::from_secs(1200);
/// From so many turnovers on, the last fifth of them is compared with the first.
const COMPARED: usize = 15;

/// A year in an hour: all rows are replaced again and again under changing topics, by age and at random, some
/// pinned, with reopenings (and kills). After each turnover recall, disk, time and memory are measured.
#[derive(Debug, Args)]
pub struct Year {
    #[command(flatten)]
    size: Size,
    /// Kills the process at random moments; another goes on.
    #[arg(long)]
    kills: bool,
    /// Where the index is made.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Writes the numbers to this file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

impl Year {
    pub fn run(&self) -> Result<String, String> {
        let start = Instant::now();
        let root = scratch(self.dir.as_deref())?;
        let path = root.path().join("index");
        let options = Index::options(self.size.dim).train_at(self.size.rows.min(10_000));
        options.create(&path).and_then(Index::close).map_err(|e| e.to_string())?;
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        let mut rng = Rng::new(self.size.seed);
        let mut kills = 0;
        let mut child = self.child(&path, 0);
        while found.len() <= self.size.turnovers {
            let kill = (self.kills && rng.below(3) == 0).then(|| rng.below(self.size.rows / 90));
            match self.follow(&mut child, kill)? {
                Some(turnover) => {
                    let broken = bounds(&turnover, self.size.dim);
                    println!("{}", line(found.len(), &turnover, self.size.dim));
                    for fault in broken {
                        println!("    FAILS: {fault}");
                        faults.push(format!("turnover {}: {fault}", found.len()));
                    }
                    found.push(turnover);
                }
                None => {
                    let (journal, _) = child.kill();
                    if let Some(e) = journal.error {
                        return Err(e);
                    }
                    kills += 1;
                    child = self.child(&path, found.len());
                }
            }
        }
        let (journal, status) = child.end();
        if let Some(e) = journal.error.or((!status.success()).then(|| status.to_string())) {
            return Err(format!("at the end: {e}"));
        }
        faults.extend(growth(&found));
        let told = format!(
            "{}year: {} turnovers of {} x {}, seed {}, {kills} kills: {} bounds broken; {:.0?}",
            summary(&found, self.size.dim),
            self.size.turnovers,
            self.size.rows,
            self.size.dim,
            self.size.seed,
            faults.len(),
            start.elapsed()
        );
        if let Some(path) = &self.write {
            let Size { rows, dim, seed, turnovers } = self.size;
            let kills = if self.kills { " --kills" } else { "" };
            let command = format!(
                "campaign year --turnovers {turnovers} --rows {rows} --dim {dim} --seed {seed}{kills}"
            );
            let text = faults.iter().map(|f| format!("FAILS: {f}\n")).collect::<String>() + &told;
            report::write(path, &report::year(&command, &text))?;
        }
        match faults.is_empty() {
            true => Ok(told),
            false => Err(format!("{}\n{told}", faults.join("\n"))),
        }
    }

    fn child(&self, path: &Path, measured: usize) -> Running {
        let Size { rows, dim, seed, turnovers } = self.size;
        let mut command = myself("year-child");
        command.arg(path);
        let numbers = [
            ("--rows", rows as u64),
            ("--dim", dim as u64),
            ("--seed", seed),
            ("--turnovers", turnovers as u64),
            ("--measured", measured as u64),
        ];
        for (name, number) in numbers {
            command.arg(name).arg(number.to_string());
        }
        Running::start(command, Model::new(dim, Metric::L2))
    }

    /// What the next turnover found; `None` when the child is to be killed, after so many changes.
    fn follow(&self, child: &mut Running, kill: Option<usize>) -> Result<Option<Found>, String> {
        let (mut batches, mut found) = (0, None);
        let followed = child.follow(MOST, |line| {
            batches += usize::from(line == "batch");
            let words = line.strip_prefix("turnover ").and_then(|line| line.split_once(' '));
            found = words.and_then(|(_, words)| Found::parse(words));
            found.is_some() || (batches > 0 && kill == Some(batches))
        });
        if followed == Followed::Reached && found.is_none() {
            // At some moment of the next changes, or of what the background does.
            let wait = Duration::from_micros(Rng::new(batches as u64).below(50_000) as u64);
            std::thread::sleep(wait);
        }
        match followed {
            Followed::Reached => Ok(found),
            other => {
                let error = child.journal.error.clone().unwrap_or_default();
                Err(format!("the process that changes the index: {other:?} {error}"))
            }
        }
    }
}

fn line(turnover: usize, found: &Found, dim: usize) -> String {
    let [low, middle, high] = found.recall;
    format!(
        "{turnover:4}  recall {low:.4} {middle:.4} {high:.4}  exact {:.4}  disk {:.2}x in {} files  open {:.1} ms  \
         search {:.0} us, p99 {:.0} us, p99 {:.0} codes and rows  memory {:.0} MiB  {} descriptors  {} threads  \
         {} trainings",
        found.exact,
        disk(found, dim),
        found.disk.1,
        found.open * 1e3,
        found.p50 * 1e6,
        found.p99 * 1e6,
        found.cost,
        found.memory / f64::from(1 << 20),
        found.descriptors,
        found.threads,
        found.generation
    )
}

/// Bytes on the disk in units of those of the rows.
fn disk(found: &Found, dim: usize) -> f64 {
    found.disk.0 / (found.rows * dim * 4).max(1) as f64
}

/// What does not hold after a turnover.
fn bounds(found: &Found, dim: usize) -> Vec<String> {
    let mut faults = Vec::new();
    for (asked, recall) in RECALLS.iter().zip(found.recall) {
        if recall < f64::from(*asked) - BELOW {
            faults.push(format!("asked for {asked}, reached {recall:.4}"));
        }
    }
    if found.exact < EXACT {
        faults.push(format!("exact search finds {:.4}", found.exact));
    }
    // A little index is hardly more than its catalog.
    let bytes = found.rows * dim * 4;
    let room = if bytes < 4 << 20 { 2_097_152.0 / bytes.max(1) as f64 } else { 0.0 };
    if disk(found, dim) > MOST_DISK + room {
        faults.push(format!("{:.2} times the bytes of the rows", disk(found, dim)));
    }
    faults
}

/// A number of a turnover, how many times as much at the end is still flat, and how much more.
type Flat = (&'static str, fn(&Found) -> f64, f64, f64);

const FLAT: [Flat; 7] = [
    ("seconds of an opening", |f| f.open, 3.0, 0.05),
    ("seconds of a search, p99", |f| f.p99, 3.0, 0.001),
    ("codes and rows of a search, p99", |f| f.cost, 1.5, 100.0),
    ("bytes of memory", |f| f.memory, 1.5, 16_777_216.0),
    ("files and directories", |f| f.disk.1 as f64, 1.5, 8.0),
    ("descriptors", |f| f.descriptors, 1.0, 4.0),
    ("threads", |f| f.threads, 1.0, 2.0),
];

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// What grows: the median of the last fifth of the turnovers beside that of the first. The turnover that
/// filled the index does not count.
fn growth(found: &[Found]) -> Vec<String> {
    let found = found.get(1..).unwrap_or(&[]);
    if found.len() < COMPARED {
        return Vec::new();
    }
    let part = found.len() / 5;
    let grown = |(what, of, times, more): &Flat| {
        let first = median(found[..part].iter().map(of));
        let last = median(found[found.len() - part..].iter().map(of));
        (last > first * times + more).then(|| format!("{what}: {first} at first, {last} at last"))
    };
    FLAT.iter().filter_map(grown).collect()
}

/// The first, the worst and the last of each number.
fn summary(found: &[Found], dim: usize) -> String {
    let (Some(first), Some(last)) = (found.get(1).or(found.first()), found.last()) else {
        return String::new();
    };
    let worst = |of: &dyn Fn(&Found) -> f64, most: bool| {
        let values = found.iter().skip(1).map(of);
        if most { values.fold(f64::MIN, f64::max) } else { values.fold(f64::MAX, f64::min) }
    };
    let mut lines = format!("{:34} {:>12} {:>12} {:>12}\n", "", "first", "worst", "last");
    let mut add = |what: &str, of: &dyn Fn(&Found) -> f64, most| {
        let numbers = [of(first), worst(of, most), of(last)].map(|n| match n {
            n if n >= 1000.0 => format!("{n:.0}"),
            n => format!("{n:.4}"),
        });
        let [first, worst, last] = numbers;
        lines += &format!("{what:34} {first:>12} {worst:>12} {last:>12}\n");
    };
    for (at, asked) in RECALLS.iter().enumerate() {
        add(&format!("recall, {asked} asked for"), &|f| f.recall[at], false);
    }
    add("disk, in bytes of the rows", &|f| disk(f, dim), true);
    for (what, of, ..) in FLAT {
        add(what, &of, true);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{bounds, growth};
    use crate::year::Found;

    fn fine() -> Found {
        Found {
            rows: 20_000,
            exact: 1.0,
            recall: [0.90, 0.95, 0.99],
            disk: (1.5 * 20_000.0 * 256.0, 90),
            open: 0.01,
            p50: 1e-4,
            p99: 2e-4,
            cost: 900.0,
            memory: 5e7,
            descriptors: 10.0,
            threads: 5.0,
            generation: 1.0,
        }
    }

    #[test]
    fn each_bound_of_a_turnover_bites() {
        assert_eq!(bounds(&fine(), 64), [""; 0]);
        let broken = [
            Found { recall: [0.889, 0.95, 0.99], ..fine() },
            Found { recall: [0.90, 0.939, 0.99], ..fine() },
            Found { recall: [0.90, 0.95, 0.979], ..fine() },
            Found { exact: 0.999, ..fine() },
            Found { disk: (2.2 * 20_000.0 * 256.0, 90), ..fine() },
        ];
        for found in broken {
            assert_eq!(bounds(&found, 64).len(), 1, "{found:?}");
        }
    }

    #[test]
    fn what_grows_is_told() {
        let year = |last: Found| {
            let mut found = vec![fine(); 21];
            found[16..].fill(last);
            growth(&found)
        };
        assert_eq!(year(fine()), [""; 0]);
        let grown = [
            Found { open: 0.1, ..fine() },
            Found { p99: 2e-3, ..fine() },
            Found { cost: 1500.0, ..fine() },
            Found { memory: 1e8, ..fine() },
            Found { disk: (fine().disk.0, 150), ..fine() },
            Found { descriptors: 15.0, ..fine() },
            Found { threads: 8.0, ..fine() },
        ];
        for found in grown {
            assert_eq!(year(found.clone()).len(), 1, "{found:?}");
        }
        assert_eq!(growth(&[fine(), Found { open: 9.0, ..fine() }]), [""; 0], "too few");
    }
}
