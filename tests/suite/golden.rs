//! Files written by each released version open and answer as recorded. `CELLARDB_WRITE_GOLDEN=1`
//! writes those of the present version anew: a change of them is a change of the format, and goes
//! with its version number and SPEC.md.

use cellardb::{Index, Kind, Maintenance, Metric};
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::model::Model;
use cellardb_campaign::{METRICS, SHAPES, Shape};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const DIM: usize = 8;

/// What an index answered when it was written. Distances as bits.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Recorded {
    ids: Vec<usize>,
    rows: Vec<Vec<u32>>,
    exact: Vec<Vec<(usize, u32)>>,
    hits: Vec<Vec<(usize, u32)>>,
    generation: u32,
    code: String,
}

/// The golden indexes: every kind, the metrics in turn; each is closed with rows in its lists, rows
/// in its tail, removed rows and a compacted segment.
fn cases() -> Vec<(String, Shape, Metric)> {
    let metrics = METRICS.into_iter().cycle();
    let name = |shape: Shape, metric| format!("{}-{metric:?}", shape.name).to_lowercase();
    SHAPES.into_iter().zip(metrics).map(|(s, m)| (name(s, m), s, m)).collect()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v5")
}

fn queries(metric: Metric) -> Vec<f32> {
    data::vectors(&mut Rng::new(77), 5, DIM, metric)
}

fn record(index: &Index) -> Recorded {
    let bits = |hits: Vec<Vec<(usize, f32)>>| -> Vec<Vec<(usize, u32)>> {
        hits.into_iter().map(|h| h.into_iter().map(|(id, d)| (id, d.to_bits())).collect()).collect()
    };
    let queries = queries(index.metric());
    let ids = index.ids();
    let row = |id: &usize| index.get(*id).unwrap().unwrap().iter().map(|x| x.to_bits()).collect();
    let stats = index.stats();
    Recorded {
        rows: ids.iter().map(row).collect(),
        ids,
        exact: bits(index.query_many(&queries).k(7).exact().run().unwrap()),
        hits: bits(index.query_many(&queries).k(7).probes(100).rerank(1000).run().unwrap()),
        generation: stats.generation,
        code: stats.code.to_owned(),
    }
}

fn write(path: &Path, shape: Shape, metric: Metric) {
    let mut model = Model::new(DIM, metric);
    let mut rng = Rng::new(42);
    let index = shape.options(DIM, metric).create(path).unwrap();
    let mut insert = |model: &mut Model, n| {
        let rows = data::vectors(&mut rng, n, DIM, metric);
        assert_eq!(index.insert_many(&rows).unwrap(), model.insert(&rows));
    };
    insert(&mut model, 90);
    index.train().unwrap();
    let gone: Vec<usize> = (0..40).step_by(3).collect();
    assert_eq!(index.remove_many(&gone).unwrap(), model.remove(&gone));
    index.compact().unwrap();
    insert(&mut model, 10);
    index.flush().unwrap();
    insert(&mut model, 6);
    assert!(index.remove(95).unwrap());
    model.remove(&[95]);
    model.differs(&index, 1).unwrap();
    drop(index);
}

/// Copies an index, so that opening it for writing leaves the golden files as they are.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn files_of_version_5_open_and_answer_as_recorded() {
    let writing = std::env::var_os("CELLARDB_WRITE_GOLDEN").is_some();
    for (name, shape, metric) in cases() {
        let (path, answers) = (golden().join(&name), golden().join(format!("{name}.json")));
        if writing {
            if path.exists() {
                std::fs::remove_dir_all(&path).unwrap();
            }
            std::fs::create_dir_all(golden()).unwrap();
            write(&path, shape, metric);
        }
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("index");
        copy(&path, &home);
        let index = Index::open_read_only(&home).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = record(&index);
        if writing {
            let text = serde_json::to_string(&found).unwrap();
            #[expect(clippy::disallowed_methods, reason = "asked for by the environment")]
            std::fs::write(&answers, text).unwrap();
        }
        let recorded = serde_json::from_slice(&std::fs::read(&answers).unwrap()).unwrap();
        assert_eq!(found, recorded, "{name}");
        assert!(index.verify().unwrap().damage.is_empty(), "{name}");
        drop(index);
        goes_on(&home, &found, shape.kind);
    }
}

/// A golden index is not only read: it takes rows, and is trained and compacted by this version.
fn goes_on(home: &Path, found: &Recorded, kind: Kind) {
    let options = cellardb::Options::stored().maintenance(Maintenance::Manual);
    let index = options.open(home).unwrap();
    assert_eq!(record(&index), *found);
    assert_eq!(index.stats().kind, kind);
    assert_eq!(index.insert(&[1.0; DIM]).unwrap(), 106);
    index.flush().unwrap();
    index.train().unwrap();
    index.compact().unwrap();
    assert_eq!(index.len(), found.ids.len() + 1);
    assert!(index.verify().unwrap().damage.is_empty());
    let settled = index.query_many(&queries(index.metric())).k(7).exact().run().unwrap();
    for (settled, before) in settled.iter().zip(&found.exact) {
        let kept = |(id, d): &&(usize, f32)| before.contains(&(*id, d.to_bits()));
        assert!(settled.iter().filter(kept).count() >= 6, "one row came, no other changed");
    }
}
