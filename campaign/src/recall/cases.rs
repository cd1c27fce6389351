//! The cases: a distribution, and a life.

use super::lives::{self, Live};
use super::worlds::{self, Make, World};
use crate::METRICS;
use crate::data::Rng;
use cellardb::Metric;
use std::sync::Arc;

/// Makes a world of so many dimensions.
type Making = dyn Fn(&mut Rng, usize) -> World + Send + Sync;

/// How rows come to be, and what happens to them.
#[derive(Clone)]
pub struct Case {
    pub name: String,
    pub about: String,
    pub dim: usize,
    /// Rows, in units of what is asked for.
    pub times: f32,
    /// Rows at most.
    pub most: usize,
    /// Queries at most.
    pub queries: usize,
    pub metrics: Vec<Metric>,
    pub make: Arc<Making>,
    pub live: Live,
    /// The queries come from elsewhere than the rows: the recall holds once the index knows some of them.
    pub told: bool,
    /// Recalls of one, of fifty and of two hundred neighbours are judged too.
    pub counts: bool,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

fn case(name: &str, dim: usize, make: Make, about: &str) -> Case {
    Case {
        name: name.to_owned(),
        about: about.to_owned(),
        dim,
        times: 1.0,
        most: usize::MAX,
        queries: usize::MAX,
        metrics: METRICS.to_vec(),
        make: Arc::new(make),
        live: lives::plain,
        told: false,
        counts: false,
    }
}

impl Case {
    fn only(self, metrics: &[Metric]) -> Self {
        Self { metrics: metrics.to_vec(), ..self }
    }

    fn times(self, times: f32) -> Self {
        Self { times, ..self }
    }

    fn told(self) -> Self {
        Self { told: true, ..self }
    }

    fn counts(self) -> Self {
        Self { counts: true, ..self }
    }

    pub fn size(&self, rows: usize) -> usize {
        ((rows as f32 * self.times) as usize).min(self.most)
    }
}

fn life(name: &str, live: Live, about: &str) -> Case {
    let heaps: Make = |rng, dim| worlds::heaps(rng, dim, 200, 0.5);
    Case { live, ..case(name, 32, heaps, about) }
}

const PRODUCT: &[Metric] = &[Metric::InnerProduct];
const ANGLES: &[Metric] = &[Metric::InnerProduct, Metric::Cosine];

/// All cases that need no data from elsewhere.
pub fn all() -> Vec<Case> {
    let mut cases = distributions();
    cases.extend(lengths());
    cases.extend(from_elsewhere());
    cases.extend(lifetimes());
    cases
}

fn distributions() -> Vec<Case> {
    let words = case("words", 50, worlds::words, "12,000 words of GloVe, every sixth of them asks");
    vec![
        Case { most: 10_000, queries: 1000, ..words }.counts(),
        case("gauss", 32, worlds::gauss, "one Gaussian heap"),
        case("gauss-2d", 2, worlds::gauss, "one Gaussian heap in two dimensions"),
        case("gauss-128d", 128, worlds::gauss, "one Gaussian heap in 128 dimensions"),
        case("uniform", 16, worlds::uniform, "a cube"),
        case("clusters", 48, worlds::clusters, "300 heaps on a sphere").counts(),
        case("widths", 32, worlds::widths, "1,000 heaps of many widths").times(2.0).counts(),
        case("zipf", 32, worlds::zipf, "1,000 heaps whose sizes fall as 1/n"),
        case("hierarchy", 32, worlds::hierarchy, "heaps of heaps of heaps"),
        case("text", 128, worlds::text, "24 factors in a cone, as embeddings of texts").counts(),
        case("spectrum", 96, worlds::spectrum, "variances that fall as 1/n^2, along no axis"),
        case("curve", 64, worlds::curve, "a curve with little noise"),
        case("images", 196, worlds::images, "pictures of strokes, 0 to 255, most of it 0"),
        case("sparse", 260, worlds::sparse, "ten of 260 entries are not 0"),
        case("sparse-256d", 256, worlds::sparse, "ten of 256 entries are not 0"),
        case("one-hot", 64, worlds::one_hot, "one entry is 1: 64 rows, each many times"),
        case("categories", 256, worlds::categories, "eight attributes, one-hot"),
        case("binary", 128, worlds::binary, "bits, 200 patterns with noise"),
        case("bytes", 128, worlds::bytes, "histograms of bytes, as SIFT"),
        case("tails", 32, worlds::tails, "Student's t, three degrees of freedom"),
        case("far-out", 32, worlds::far_out, "lengths of Student's t, two degrees of freedom"),
        case("constant", 48, worlds::constant, "half of the dimensions are constant"),
        case("offset", 32, worlds::offset, "100 from the origin, every eighth dimension 10,000"),
        case("uneven", 32, worlds::uneven, "one dimension in thousands, one in thousandths"),
        case("copies", 32, worlds::copies, "600 rows, each many times"),
        case("near-copies", 48, worlds::near_copies, "30 rows, each many times, 1e-4 apart"),
        case("heap", 32, worlds::heap, "a heap of width 0.01, one row of 150 a hundred away"),
    ]
}

fn lengths() -> Vec<Case> {
    let lengths = "lengths lognormal(0.3)";
    vec![
        case("lengths", 48, worlds::lengths_little, lengths).only(PRODUCT),
        case("query-lengths", 48, worlds::query_lengths, "queries of length 1e-6 to 1e6")
            .only(ANGLES),
        case("tiny", 48, worlds::tiny, "rows and queries of length 1e-6"),
        case("huge", 48, worlds::huge, "rows and queries of length 1e6"),
        case("mips", 48, worlds::mips, "lengths lognormal(0.5), queries of all directions").told(),
        case("mips-wide", 48, worlds::mips_wide, "lengths lognormal(1)").only(PRODUCT).told(),
    ]
}

fn from_elsewhere() -> Vec<Case> {
    let cones = "rows in a cone, queries in another (text to image)";
    let asks = |case: Case, name: &str| Case {
        name: name.to_owned(),
        about: format!("{}; 1,000 searches before", case.about),
        live: lives::asks,
        told: false,
        ..case
    };
    let (cones, between, rare) = (
        case("other-cone", 96, worlds::other_cone, cones).told(),
        case("between", 32, worlds::between, "queries between the heaps").told(),
        case("rare", 32, worlds::rare, "queries about what few rows are about").told(),
    );
    vec![
        asks(cones.clone(), "other-cone-asked"),
        asks(between.clone(), "between-asked"),
        asks(rare.clone(), "rare-asked"),
        cones,
        between,
        rare,
    ]
}

fn lifetimes() -> Vec<Case> {
    vec![
        life("tail", lives::tail, "a quarter of the rows after the training"),
        life("sorted", lives::sorted, "one region after another").times(2.0),
        life("growth", lives::growth, "ten times a tenth"),
        life(
            "drift-little",
            lives::drift_little,
            "a fifth more from elsewhere, queries from there",
        ),
        life("drift", lives::drift, "twice as many more from elsewhere").told(),
        life("turnover", lives::turnover, "all rows replaced by others about something else"),
        life("turnovers", lives::turnovers, "that three times"),
        life("half-turnover", lives::half_turnover, "half of the rows replaced"),
        life("thinned", lives::thinned, "nine of ten rows removed"),
        life("few-left", lives::few_left, "all but forty removed"),
        life("one-side", lives::one_side, "the rows of one side removed"),
        life("pinned", lives::pinned, "every eighth row stays, the others are replaced twice"),
    ]
}

#[cfg(test)]
mod tests {
    use super::all;
    use crate::data::Rng;
    use crate::recall::lives::draw;
    use std::collections::HashSet;

    #[test]
    fn every_case_draws_vectors_that_every_metric_takes_and_the_same_from_a_seed() {
        let cases = all();
        assert!(cases.len() >= 40);
        let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
        for case in cases {
            let drawn = || {
                let mut rng = Rng::new(9);
                let world = (case.make)(&mut rng, case.dim);
                let rows = draw(&world.rows, &mut rng, 60);
                (rows, draw(&world.queries, &mut rng, 60))
            };
            let (rows, queries) = drawn();
            assert_eq!((&rows, &queries), (&drawn().0, &drawn().1), "{case:?}");
            assert_eq!((rows.len(), queries.len()), (60 * case.dim, 60 * case.dim), "{case:?}");
            for vector in rows.chunks(case.dim).chain(queries.chunks(case.dim)) {
                let length: f32 = vector.iter().map(|x| x * x).sum();
                assert!(length.is_finite() && length > 0.0, "{case:?}: {vector:?}");
            }
            let held: HashSet<Vec<u32>> = rows
                .chunks(case.dim)
                .map(|row| row.iter().map(|x| x.to_bits()).collect())
                .collect();
            let asked = queries.chunks(case.dim).map(|q| q.iter().map(|x| x.to_bits()).collect());
            let seen = asked.filter(|query: &Vec<u32>| held.contains(query)).count();
            assert!(seen == 0 || case.name == "one-hot", "{case:?}: {seen} queries are rows");
        }
    }
}
