//! Whether the recall that is asked for is reached, whatever the vectors are.

use crate::recall::cases::{self, Case};
use crate::recall::judge::{self, Plan, RECALLS, Reached, Truth, Verdict};
use crate::recall::{npy, report};
use crate::scratch::scratch;
use crate::{METRICS, SHAPES, Shape, metric_name as name};
use cellardb::Metric;
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Distributions and lifetimes, kinds and metrics: the recall that is asked for, on queries that the index
/// never saw, against brute force in f64.
#[derive(Debug, Args)]
pub struct Recall {
    /// Cases, by the beginning of their names; all by default.
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    only: Vec<String>,
    /// Kinds: flat, pq4, pq8, rabitq; all by default.
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    kinds: Vec<String>,
    /// Metrics: l2, ip, cosine; all by default.
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    metrics: Vec<String>,
    /// Rows of a case; some have more.
    #[arg(long, default_value_t = 12_000)]
    rows: usize,
    /// Queries of a case.
    #[arg(long, default_value_t = 2_000)]
    queries: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cases with their metrics: every `n`-th from the `i`-th on, as `i/n`.
    #[arg(long, value_name = "I/N", value_parser = super::part, default_value = "0/1")]
    part: (usize, usize),
    /// Folders of real data: base.npy, query.npy and metric.txt.
    #[arg(long, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Where the indexes are made.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Writes the table to this file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Says which cases there are, and does nothing.
    #[arg(long)]
    list: bool,
}

impl Recall {
    pub fn run(&self) -> Result<String, String> {
        let start = Instant::now();
        let cases = self.cases()?;
        let shapes = chosen(&self.kinds, &SHAPES[1..], |shape| shape.name)?;
        let metrics = chosen(&self.metrics, &METRICS, |metric| name(*metric))?;
        let pairs = cases.iter().flat_map(|case| {
            let of = metrics.iter().filter(|metric| case.metrics.contains(metric));
            of.map(move |metric| (case, *metric))
        });
        let pairs: Vec<_> = pairs
            .enumerate()
            .filter(|(at, _)| at % self.part.1 == self.part.0)
            .map(|(_, pair)| pair)
            .collect();
        if self.list {
            let line = |(case, metric): &(&Case, Metric)| {
                format!("{:18} {:6} {:4}d  {}", case.name, name(*metric), case.dim, case.about)
            };
            return Ok(pairs.iter().map(line).collect::<Vec<_>>().join("\n"));
        }
        if self.data.is_empty() {
            eprintln!("real data: NOT RUN, no --data was given (base.npy, query.npy, metric.txt)");
        }
        let plan =
            Plan { rows: self.rows, queries: self.queries, seed: self.seed, ask: judge::ask };
        let (mut verdicts, mut broken) = (Vec::new(), Vec::new());
        for (case, metric) in pairs {
            let mut truth = None;
            for shape in &shapes {
                match self.one(case, (*shape, metric), plan, &mut truth) {
                    Ok(verdict) => {
                        println!("{}", line(&verdict));
                        verdicts.push(verdict);
                    }
                    Err(e) => {
                        let what = format!("{} {} {}: {e}", case.name, shape.name, name(metric));
                        println!("{what}");
                        broken.push(what);
                    }
                }
            }
        }
        self.conclude(&verdicts, &broken, start)
    }

    /// What came out of all of them.
    fn conclude(
        &self,
        verdicts: &[Verdict],
        broken: &[String],
        start: Instant,
    ) -> Result<String, String> {
        let failed = verdicts.iter().filter(|v| !v.faults.is_empty()).count() + broken.len();
        let told = format!(
            "{}\nrecall: {} cases of {} rows and {} queries, seed {}: {failed} fail; {:.0?}",
            worst(verdicts),
            verdicts.len() + broken.len(),
            self.rows,
            self.queries,
            self.seed,
            start.elapsed()
        );
        if let Some(path) = &self.write {
            let data: String =
                self.data.iter().map(|folder| format!(" --data {}", base_name(folder))).collect();
            let (rows, queries, seed) = (self.rows, self.queries, self.seed);
            let command =
                format!("campaign recall --rows {rows} --queries {queries} --seed {seed}{data}");
            report::write(path, &report::recalls(verdicts, broken, &command, &told))?;
        }
        match failed {
            0 if verdicts.is_empty() => Err("no case was chosen".into()),
            0 => Ok(told),
            _ => Err(told),
        }
    }

    fn cases(&self) -> Result<Vec<Case>, String> {
        let mut cases = cases::all();
        cases.retain(|case| {
            self.only.is_empty() || self.only.iter().any(|only| case.name.starts_with(only))
        });
        for folder in &self.data {
            cases.push(npy::case(folder, None)?);
        }
        match cases.is_empty() {
            true => Err(format!("no case is called {:?}", self.only)),
            false => Ok(cases),
        }
    }

    fn one(
        &self,
        case: &Case,
        of: (Shape, Metric),
        plan: Plan,
        truth: &mut Option<Truth>,
    ) -> Result<Verdict, String> {
        let root = scratch(self.dir.as_deref())?;
        judge::judge(case, of, plan, &root.path().join("index"), truth)
    }
}

/// Those that are named; all if none is.
fn chosen<T: Copy>(
    named: &[String],
    all: &[T],
    name: impl Fn(&T) -> &'static str,
) -> Result<Vec<T>, String> {
    if let Some(unknown) = named.iter().find(|n| !all.iter().any(|one| name(one) == **n)) {
        return Err(format!("{unknown} is none of {:?}", all.iter().map(name).collect::<Vec<_>>()));
    }
    let wanted = |one: &&T| named.is_empty() || named.iter().any(|n| *n == name(one));
    Ok(all.iter().filter(wanted).copied().collect())
}

fn base_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn recalls(reached: &[Reached]) -> String {
    let each = reached.iter().map(|r| {
        let mark = if r.holds() { ' ' } else { '!' };
        format!("{:.4}{mark}", r.recall)
    });
    each.collect::<Vec<_>>().join(" ")
}

fn line(verdict: &Verdict) -> String {
    let Verdict { case, shape, metric, rows, held, told, counts, exact, work, time, took, .. } =
        verdict;
    let told = told.as_ref().map_or("absent".to_owned(), |told| recalls(told));
    let share =
        |r: &Reached| format!("{:.3}+{:.3}", r.codes / *rows as f64, r.compared / *rows as f64);
    let shares: Vec<_> = held.iter().map(share).collect();
    let mut line = format!(
        "{case:18} {shape:6} {:6} {rows:6} rows  {} ±{:.4}  told {told}  codes+rows {}  work {work:.2} time \
         {time:.2}  exact {exact:.4}  {:.1} s",
        name(*metric),
        recalls(held),
        held.first().map_or(0.0, |r| r.error),
        shares.join(" "),
        took.as_secs_f64()
    );
    for r in counts {
        line += &format!("  @{} {:.4}", r.k, r.recall);
    }
    for fault in &verdict.faults {
        line += &format!("\n    FAILS: {}", fault.what);
    }
    line
}

/// The cases that fall the furthest below what was asked, and how many fall short of what.
fn worst(verdicts: &[Verdict]) -> String {
    let mut all: Vec<(&Verdict, &Reached)> =
        verdicts.iter().flat_map(|v| v.judged().iter().map(move |r| (v, r))).collect();
    all.sort_by(|a, b| b.1.short().total_cmp(&a.1.short()));
    let mut lines = vec![format!("the worst of {} recalls:", all.len())];
    for (v, r) in all.iter().take(12) {
        let (case, shape, metric) = (&v.case, v.shape, name(v.metric));
        let (asked, recall, error) = (r.asked, r.recall, r.error);
        lines.push(format!(
            "    {case:18} {shape:6} {metric:6} asked {asked:.2}, reached {recall:.4} ± {error:.4}"
        ));
    }
    for asked in RECALLS {
        let of = all.iter().filter(|(_, r)| r.asked == asked);
        let short = of.clone().filter(|(_, r)| !r.holds()).count();
        let n = of.count();
        lines.push(format!("of {n} that asked for {asked:.2}, {short} fall short"));
    }
    let most = |of: fn(&Verdict) -> f64| verdicts.iter().map(of).fold(0.0, f64::max);
    let error = all.iter().map(|(_, r)| r.error).fold(0.0, f64::max);
    let has = |what: &str| {
        verdicts.iter().filter(|v| v.faults.iter().any(|f| f.what.contains(what))).count()
    };
    lines.push(format!("standard error {error:.4} at most"));
    lines.push(format!(
        "less recall costs more: {} cases; work over 1.1: {}, {:.2} at most (time {:.2}); exact search short: {}; \
         recall of 1, 50 or 200 short: {}",
        has(" costs "),
        has("times the work"),
        most(|v| v.work),
        most(|v| v.time),
        has("exact search finds"),
        has("of 1, ") + has("of 50, ") + has("of 200, ")
    ));
    match verdicts.iter().all(|v| v.told.is_none()) {
        true => lines.push("queries that the index is told of: ABSENT, it cannot be told".into()),
        false => lines.push("queries that the index is told of are judged too".into()),
    }
    lines.join("\n")
}
