//! Whether the recall that is asked for is reached, whatever the vectors are.

use crate::recall::cases::{self, Case};
use crate::recall::judge::{self, Plan, RECALLS, Reached, Truth, Verdict};
use crate::recall::npy;
use crate::scratch::scratch;
use crate::{METRICS, SHAPES, Shape};
use cellardb::Metric;
use clap::Args;
use std::path::PathBuf;
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
    /// Says which cases there are, and does nothing.
    #[arg(long)]
    list: bool,
}

fn name(metric: Metric) -> &'static str {
    match metric {
        Metric::L2 => "l2",
        Metric::InnerProduct => "ip",
        _ => "cosine",
    }
}

impl Recall {
    pub fn run(&self) -> Result<String, String> {
        let start = Instant::now();
        let cases = self.cases()?;
        if self.list {
            let line = |case: &Case| format!("{:18} {:4}d  {}", case.name, case.dim, case.about);
            return Ok(cases.iter().map(line).collect::<Vec<_>>().join("\n"));
        }
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
        let failed = verdicts.iter().filter(|v| !v.faults.is_empty()).count() + broken.len();
        let told = format!(
            "{}\nrecall: {} cases of {} rows and {} queries, seed {}: {failed} fail; {:.0?}",
            worst(&verdicts),
            verdicts.len() + broken.len(),
            self.rows,
            self.queries,
            self.seed,
            start.elapsed()
        );
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
        line += &format!("  @{} {}", r.k, recalls(&[*r]).trim_end());
    }
    for fault in &verdict.faults {
        line += &format!("\n    FAILS: {fault}");
    }
    line
}

/// The cases that fall the furthest below what was asked.
fn worst(verdicts: &[Verdict]) -> String {
    let mut all: Vec<(&Verdict, &Reached)> =
        verdicts.iter().flat_map(|v| v.held.iter().map(move |r| (v, r))).collect();
    all.sort_by(|a, b| b.1.short().total_cmp(&a.1.short()));
    let mut lines = vec![format!("the worst of {} recalls:", all.len())];
    for (v, r) in all.iter().take(12) {
        let line = format!(
            "    {:18} {:6} {:6} asked {:.2}, reached {:.4} ± {:.4}",
            v.case,
            v.shape,
            name(v.metric),
            r.asked,
            r.recall,
            r.error
        );
        lines.push(line);
    }
    for asked in RECALLS {
        let of = all.iter().filter(|(_, r)| r.asked == asked);
        let short = of.clone().filter(|(_, r)| !r.holds()).count();
        lines.push(format!("    of {} that asked for {asked}, {short} fall short", of.count()));
    }
    lines.join("\n")
}
