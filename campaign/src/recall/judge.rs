//! Builds the index of a case and says whether it keeps its word.

use super::cases::Case;
use super::lives::{self, Life};
use super::truth::{Rows, mean};
use crate::Shape;
use crate::data::Rng;
use cellardb::{Answer, Error, Index, Maintenance, Metric, Options};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::{Duration, Instant};

/// What is asked for.
pub const RECALLS: [f32; 3] = [0.90, 0.95, 0.99];
/// How far below it may be.
pub const BELOW: f64 = 0.01;
/// Where less recall must never cost more.
const ORDER: [f32; 8] = [0.5, 0.8, 0.9, 0.93, 0.95, 0.97, 0.99, 0.995];
/// The work of a search, in units of an exact one.
const MOST_WORK: f64 = 1.1;
/// The share of the true neighbours that an exact search has to find.
pub const EXACT: f64 = 0.9995;
/// Queries that the index is told of.
const TOLD: usize = 1000;
/// Neighbours.
const K: usize = 10;
const COUNTS: [usize; 3] = [1, 50, 200];

/// How recall is asked for.
pub type Ask = fn(&Index, &[f32], usize, f32) -> Result<Vec<Answer>, Error>;

/// Asks as a user does.
pub fn ask(index: &Index, queries: &[f32], k: usize, recall: f32) -> Result<Vec<Answer>, Error> {
    index.query_many(queries).k(k).recall(recall).explain()
}

/// Tells the index of queries, so that it measures on such ones.
fn calibrate(index: &Index, queries: &[f32]) -> Option<Result<(), Error>> {
    Some(index.calibrate(queries))
}

/// How large the cases are.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub rows: usize,
    pub queries: usize,
    pub seed: u64,
    pub ask: Ask,
}

/// What was reached.
#[derive(Debug, Clone, Copy)]
pub struct Reached {
    pub asked: f32,
    pub k: usize,
    pub recall: f64,
    /// The standard error of that.
    pub error: f64,
    /// Codes scanned and rows compared, of a mean query.
    pub codes: f64,
    pub compared: f64,
}

impl Reached {
    pub fn short(&self) -> f64 {
        f64::from(self.asked) - self.recall
    }

    pub fn holds(&self) -> bool {
        self.short() <= BELOW
    }
}

/// What does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub what: String,
    /// It is the recall of ten neighbours that falls short.
    pub short: bool,
}

/// What came out of a case.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub case: String,
    pub about: String,
    pub shape: &'static str,
    pub metric: Metric,
    /// Rows that there are.
    pub rows: usize,
    /// On queries that the index knows nothing of.
    pub held: Vec<Reached>,
    /// On others after it was told of some; `None` while it cannot be told.
    pub told: Option<Vec<Reached>>,
    /// Recall of one, of fifty and of two hundred neighbours.
    pub counts: Vec<Reached>,
    /// What an exact search finds.
    pub exact: f64,
    /// The most work of a search in units of an exact one.
    pub work: f64,
    /// Its time, for a recall of 0.95.
    pub time: f64,
    pub took: Duration,
    pub faults: Vec<Fault>,
    /// The queries come from elsewhere: what counts is what holds once it was told of some.
    pub elsewhere: bool,
}

impl Verdict {
    /// The recalls that count.
    pub fn judged(&self) -> &[Reached] {
        match &self.told {
            Some(told) if self.elsewhere => told,
            _ => &self.held,
        }
    }
}

/// The truth of the queries of a case: the same for every kind.
#[derive(Debug)]
pub struct Truth {
    of: u64,
    queries: Vec<f32>,
    nearest: Vec<Vec<f64>>,
}

fn fingerprint(life: &Life, queries: &[f32]) -> u64 {
    let mut hash = DefaultHasher::new();
    for values in [&life.rows[..], queries] {
        values.iter().for_each(|x| x.to_bits().hash(&mut hash));
    }
    life.gone.hash(&mut hash);
    hash.finish()
}

/// A case that has been built, with what is true of it.
struct Judge<'a> {
    plan: Plan,
    life: &'a Life,
    rows: Rows<'a>,
    truth: &'a Truth,
}

impl Judge<'_> {
    fn reached(&self, queries: usize, k: usize, asked: f32) -> Result<Reached, Error> {
        let queries = &self.truth.queries[..queries * self.life.dim];
        let answers = (self.plan.ask)(&self.life.index, queries, k, asked)?;
        let n = answers.len().max(1) as f64;
        let of = |count: fn(&Answer) -> usize| answers.iter().map(count).sum::<usize>() as f64 / n;
        // What compares every row scans no codes.
        let codes = of(|a| if a.exact { 0 } else { a.codes });
        let compared = of(|a| a.reranked + if a.exact { a.codes } else { 0 });
        let hits: Vec<_> = answers.into_iter().map(|answer| answer.hits).collect();
        let (recall, error) = mean(&self.rows.found(queries, (&self.truth.nearest, k), &hits));
        Ok(Reached { asked, k, recall, error, codes, compared })
    }

    fn all(&self, k: usize, recalls: &[f32]) -> Result<Vec<Reached>, Error> {
        let n = self.truth.nearest.len();
        recalls.iter().map(|asked| self.reached(n, k, *asked)).collect()
    }

    fn exact(&self) -> Result<f64, Error> {
        let n = self.truth.nearest.len().min(200);
        let queries = &self.truth.queries[..n * self.life.dim];
        let hits = self.life.index.query_many(queries).k(K).exact().run()?;
        Ok(mean(&self.rows.found(queries, (&self.truth.nearest, K), &hits)).0)
    }

    /// Rows compared, and codes by their part of the bytes of a row, in units of the rows.
    fn work(&self, reached: &Reached) -> f64 {
        let stats = self.life.index.stats();
        let row = 4.0 * self.life.dim as f64;
        let part = match stats.code {
            "pq4" => (stats.subquantizers as f64 / 2.0 + 8.0) / row,
            "pq8" => (stats.subquantizers as f64 + 8.0) / row,
            "rabitq" => (self.life.dim as f64 / 8.0 + 8.0) / row,
            _ => 1.0,
        };
        (reached.codes * part.min(1.0) + reached.compared) / stats.rows.max(1) as f64
    }

    /// What less recall costs more than more.
    fn disorder(&self) -> Result<Option<String>, Error> {
        let n = self.truth.nearest.len().min(400);
        let mut last: Option<(f32, f64)> = None;
        for asked in ORDER {
            let reached = self.reached(n, K, asked)?;
            let cost = self.work(&reached);
            // Where one cell holds fewer than ten rows a search begins again: of that a mean has some noise.
            if let Some((less, more)) = last.filter(|last| last.1 > 1.02 * cost) {
                let what = format!("{less} costs {more:.4} of an exact search, {asked} {cost:.4}");
                return Ok(Some(what));
            }
            last = Some((asked, cost));
        }
        Ok(None)
    }

    /// The time of searches one by one, in units of exact ones.
    fn time(&self) -> Result<f64, Error> {
        let (mut searches, mut exact) = (Duration::ZERO, Duration::ZERO);
        for query in self.truth.queries.chunks_exact(self.life.dim).take(60) {
            let start = Instant::now();
            self.life.index.query(query).k(K).recall(0.95).run()?;
            searches += start.elapsed();
            let start = Instant::now();
            self.life.index.query(query).k(K).exact().run()?;
            exact += start.elapsed();
        }
        Ok(searches.as_secs_f64() / exact.as_secs_f64().max(1e-9))
    }
}

/// What falls short.
fn faults(verdict: &Verdict) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut note = |what: &str, reached: &[Reached]| {
        for r in reached.iter().filter(|r| !r.holds()) {
            let what = format!("{what}{}: {:.4} ± {:.4}", r.asked, r.recall, r.error);
            faults.push(Fault { what, short: true });
        }
    };
    match &verdict.told {
        None if verdict.elsewhere => note("cannot be told; ", &verdict.held),
        None => note("", &verdict.held),
        Some(told) => {
            if !verdict.elsewhere {
                note("", &verdict.held);
            }
            note("told, ", told);
        }
    }
    let mut others = Vec::new();
    // Of one neighbour a mean is less sure: only what cannot be chance counts.
    for r in verdict.counts.iter().filter(|r| r.short() > BELOW + 2.0 * r.error) {
        others.push(format!("of {}, {}: {:.4} ± {:.4}", r.k, r.asked, r.recall, r.error));
    }
    if verdict.exact < EXACT {
        others.push(format!("exact search finds {:.4}", verdict.exact));
    }
    if verdict.work > MOST_WORK {
        others.push(format!("{:.2} times the work of an exact search", verdict.work));
    }
    faults.extend(others.into_iter().map(|what| Fault { what, short: false }));
    faults
}

/// Builds and judges one case.
pub fn judge(
    case: &Case,
    (shape, metric): (Shape, Metric),
    plan: Plan,
    dir: &Path,
    truth: &mut Option<Truth>,
) -> Result<Verdict, String> {
    let start = Instant::now();
    let text = |e: Error| e.to_string();
    let mut rng = Rng::new(plan.seed);
    let world = (case.make)(&mut rng, case.dim);
    let (size, dim) = (case.size(plan.rows), case.dim);
    let options = lives::options(case.live, size, (shape, dim, metric)).seed(plan.seed);
    let mut life = Life::begin((dir, options), (world, dim, size), rng)?;
    (case.live)(&mut life)?;
    if lives::learns(case.live) {
        life.index.close().map_err(text)?;
        let options = Options::stored().learn_queries(false).maintenance(Maintenance::Manual);
        life.index = options.open(dir).map_err(text)?;
    }
    let told = life.queries(TOLD);
    let queries = life.queries(plan.queries.min(case.queries));
    let of = fingerprint(&life, &queries);
    let rows = Rows { dim, metric, rows: &life.rows, gone: &life.gone };
    if truth.as_ref().is_none_or(|truth| truth.of != of) {
        let most = if case.counts { COUNTS[2] } else { K };
        *truth = Some(Truth { of, nearest: rows.nearest(&queries, most), queries });
    }
    let Some(truth) = truth else { return Err("no truth".into()) };
    let judge = Judge { plan, life: &life, rows, truth };
    let held = judge.all(K, &RECALLS).map_err(text)?;
    let mut counts = Vec::new();
    if case.counts {
        for k in COUNTS {
            counts.extend(judge.all(k, &[0.95]).map_err(text)?);
        }
    }
    let (exact, time) = (judge.exact().map_err(text)?, judge.time().map_err(text)?);
    let disorder = judge.disorder().map_err(text)?;
    let work = held.iter().map(|r| judge.work(r)).fold(0.0, f64::max);
    let told = match calibrate(&life.index, &told) {
        None => None,
        Some(done) => Some(done.and_then(|()| judge.all(K, &RECALLS)).map_err(text)?),
    };
    let mut verdict = Verdict {
        case: case.name.clone(),
        about: case.about.clone(),
        shape: shape.name,
        metric,
        rows: life.index.len(),
        held,
        told,
        counts,
        exact,
        work,
        time,
        took: start.elapsed(),
        faults: Vec::new(),
        elsewhere: case.told,
    };
    verdict.faults = faults(&verdict);
    verdict.faults.extend(disorder.map(|what| Fault { what, short: false }));
    life.index.close().map_err(text)?;
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::{Ask, Fault, Plan, Reached, Verdict, ask, faults, judge};
    use crate::recall::cases;
    use crate::{METRICS, SHAPES};
    use std::time::Duration;

    /// What a way to ask gets of a small case.
    fn verdict(ask: Ask) -> Verdict {
        let dir = tempfile::tempdir().unwrap();
        let case = cases::all().into_iter().find(|case| case.name == "clusters").unwrap();
        let plan = Plan { rows: 1500, queries: 150, seed: 3, ask };
        let of = (SHAPES[1], METRICS[0]);
        judge(&case, of, plan, &dir.path().join("index"), &mut None).unwrap()
    }

    fn told(verdict: &Verdict) -> Vec<&str> {
        verdict.faults.iter().map(|fault| fault.what.as_str()).collect()
    }

    #[test]
    fn a_search_that_finds_all_passes() {
        let verdict =
            verdict(|index, queries, k, _| index.query_many(queries).k(k).exact().explain());
        assert!(told(&verdict).is_empty(), "{:?}", told(&verdict));
        assert!(verdict.held.iter().all(|r| r.recall == 1.0 && r.error == 0.0));
        assert_eq!((verdict.exact, verdict.work, verdict.rows), (1.0, 1.0, 1500));
    }

    #[test]
    fn a_search_of_one_cell_is_reported_for_every_recall() {
        let verdict =
            verdict(|index, queries, k, _| index.query_many(queries).k(k).probes(1).explain());
        for asked in ["0.9: ", "0.95: ", "0.99: "] {
            assert!(told(&verdict).iter().any(|what| what.starts_with(asked)), "{verdict:?}");
        }
        assert!(verdict.held.iter().all(|r| !r.holds() && r.error > 0.0), "{:?}", verdict.held);
    }

    #[test]
    fn less_recall_that_costs_more_is_reported() {
        let verdict = verdict(|index, queries, k, recall| {
            ask(index, queries, k, if recall < 0.92 { 0.999 } else { recall })
        });
        assert!(told(&verdict).iter().any(|what| what.starts_with("0.9 costs ")), "{verdict:?}");
    }

    #[test]
    fn more_work_than_that_of_an_exact_search_is_reported() {
        let verdict = verdict(|index, queries, k, _| {
            let mut answers = index.query_many(queries).k(k).exact().explain()?;
            answers.iter_mut().for_each(|answer| answer.reranked += answer.codes / 5);
            Ok(answers)
        });
        assert_eq!(told(&verdict), ["1.20 times the work of an exact search"]);
    }

    #[test]
    fn each_promise_counts_and_chance_does_not() {
        let reached = |asked, recall| Reached {
            asked,
            k: 10,
            recall,
            error: 0.004,
            codes: 1.0,
            compared: 0.0,
        };
        let all = |below: f64| {
            [0.90, 0.95, 0.99].map(|asked| reached(asked, f64::from(asked) - below)).to_vec()
        };
        let fine = Verdict {
            case: "case".into(),
            about: "about".into(),
            shape: "flat",
            metric: METRICS[0],
            rows: 1000,
            held: all(0.0099),
            told: None,
            counts: vec![Reached { k: 1, ..reached(0.95, 0.933) }],
            exact: 1.0,
            work: 1.0,
            time: 1.0,
            took: Duration::ZERO,
            faults: Vec::new(),
            elsewhere: false,
        };
        assert_eq!(faults(&fine), []);
        let shorts = |verdict: Verdict| faults(&verdict).iter().filter(|f| f.short).count();
        assert_eq!(shorts(Verdict { held: all(0.0101), ..fine.clone() }), 3);
        assert_eq!(shorts(Verdict { told: Some(all(0.0101)), ..fine.clone() }), 3);
        // From elsewhere: once it was told, if it can be.
        let elsewhere = Verdict { held: all(0.3), elsewhere: true, ..fine.clone() };
        assert_eq!(shorts(elsewhere.clone()), 3);
        assert_eq!(shorts(Verdict { told: Some(all(0.0)), ..elsewhere.clone() }), 0);
        assert_eq!(shorts(Verdict { told: Some(all(0.3)), ..elsewhere }), 3);
        let others = |verdict: Verdict| {
            faults(&verdict).into_iter().map(|Fault { what, .. }| what).collect::<Vec<_>>()
        };
        let few = vec![Reached { k: 1, ..reached(0.95, 0.931) }];
        assert_eq!(
            others(Verdict { counts: few, ..fine.clone() }),
            ["of 1, 0.95: 0.9310 ± 0.0040"]
        );
        assert_eq!(others(Verdict { exact: 0.999, ..fine }), ["exact search finds 0.9990"]);
    }
}
