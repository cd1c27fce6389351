//! Small indexes that have every structure of the format, and what they answer while they are whole.

use super::ask::{self, Answers, Outcome};
use super::live::{Contents, contents};
use super::shelf::Shelf;
use super::{DIM, Files};
use crate::data::{self, Rng};
use crate::model::Model;
use crate::{HOME, Shape, stored};
use cellardb::{Index, Kind, Metric};
use std::sync::Arc;

/// The files of an index and what it answers while they are whole.
#[derive(Debug)]
pub struct Image {
    pub name: String,
    pub shape: Shape,
    pub closed: bool,
    pub seed: u64,
    pub files: Files,
    /// The files as they were some commits earlier.
    pub stale: Files,
    /// Those of another index of the same shape.
    pub foreign: Files,
    pub contents: Contents,
    pub model: Model,
    pub answers: Answers,
}

/// The metric that an index of a shape gets: together they have all of them.
pub fn metric(shape: Shape) -> Metric {
    match shape.name {
        "flat" => Metric::InnerProduct,
        "pq8" | "rabitq" => Metric::Cosine,
        _ => Metric::L2,
    }
}

impl Image {
    /// Builds a small index; `seed` makes its rows, `closed` says whether it ends in order or by a kill.
    pub fn new(shape: Shape, seed: u64, closed: bool) -> Self {
        let (stale, files, model) = files(shape, seed, closed);
        let (_, foreign, _) = self::files(shape, seed + 1, closed);
        let index = stored(&Shelf::of(&files)).open(HOME).unwrap();
        model.differs(&index, 1).unwrap();
        drop(index);
        let name = format!("{}:{}", shape.name, if closed { "closed" } else { "killed" });
        let contents = contents(&files);
        complete(&contents, shape);
        let index = stored(&Shelf::of(&files)).open(HOME).unwrap();
        let Ok((answers, Outcome::Unharmed)) = ask::ask(&index, &model, &ask::Blame::default())
        else {
            panic!("{name}: the whole image is not in order")
        };
        Self { name, shape, closed, seed, files, stale, foreign, contents, model, answers }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> usize {
        self.files.values().map(|bytes| bytes.len()).sum()
    }
}

/// The files of an index some commits before its end and at its end, and its rows.
fn files(shape: Shape, seed: u64, closed: bool) -> (Files, Files, Model) {
    let (disk, metric) = (Shelf::default(), metric(shape));
    let mut options = shape.options(DIM, metric);
    if shape.kind != Kind::Exact {
        // Lists so long that a fold appends to them.
        options = options.nlist(2);
    }
    let index = options.disk(Arc::new(disk.clone())).create(HOME).unwrap();
    let mut model = Model::new(DIM, metric);
    let mut rng = Rng::new(seed);
    let mut insert = |model: &mut Model, n| {
        let rows = data::vectors(&mut rng, n, DIM, metric);
        assert_eq!(index.insert_many(&rows).unwrap(), model.insert(&rows));
    };
    insert(&mut model, 66);
    index.train().unwrap();
    remove(&index, &mut model, &[3, 20, 64]);
    index.compact().unwrap();
    insert(&mut model, 10);
    index.flush().unwrap();
    let stale = disk.dump();
    remove(&index, &mut model, &[5, 40, 75]);
    insert(&mut model, 9);
    index.flush().unwrap();
    insert(&mut model, 4);
    if closed {
        index.close().unwrap();
    }
    let files = disk.dump();
    (stale, files, model)
}

fn remove(index: &Index, model: &mut Model, ids: &[usize]) {
    assert_eq!(index.remove_many(ids).unwrap(), ids.len());
    model.remove(ids);
}

/// An image that lacks a structure would prove nothing of it.
fn complete(found: &Contents, shape: Shape) {
    let trained = shape.kind != Kind::Exact;
    let rows = found.segments >= 3 && found.sparse >= 1 && found.dead >= 3;
    let lists = found.frames >= 2 && found.settings >= 3 && found.tail >= 1;
    assert!(rows && (lists || !trained), "{}: something is missing: {found:?}", shape.name);
}
