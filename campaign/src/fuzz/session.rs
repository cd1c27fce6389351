//! An index, the model of it, and the disk below, driven by the bytes of an input.

use super::bytes::Bytes;
use crate::change::Cut;
use crate::data::{self, Rng};
use crate::model::Model;
use crate::sim::SimDisk;
use crate::{HOME, METRICS, SHAPES, stored};
use cellardb::{Error, Index};
use std::sync::Arc;

/// Rows that an index of an input may have been given: what is slow finds no more than what is quick.
const MOST_ROWS: usize = 300;

#[derive(Debug)]
pub(super) struct Session {
    pub(super) disk: SimDisk,
    pub(super) index: Index,
    pub(super) model: Model,
    /// Trainings that the input may still ask for; they take by far the longest.
    pub(super) trainings: usize,
}

/// What is asked of an index: whether each answer is right, or the error.
pub(super) struct Answers;

impl Answers {
    pub(super) fn of(index: &Index, model: &Model) -> Vec<Result<bool, Error>> {
        let mut answers = vec![Ok(index.ids() == model.ids() && index.len() == model.rows.len())];
        for id in 0..model.next + 2 {
            answers.push(index.get(id).map(|row| row.as_ref() == model.rows.get(&id)));
        }
        let query = data::vector(&mut Rng::new(9), model.dim, model.metric);
        for k in [1, 7, model.rows.len() + 3] {
            let right = model.search(&query, k);
            answers.push(index.query(&query).k(k).exact().run().map(|hits| hits == right));
            let all = index.query(&query).k(k).probes(usize::MAX).rerank(1 << 20).run();
            answers.push(all.map(|hits| hits == right));
            let hits = index.search(&query, k);
            answers.push(hits.map(|hits| model.plausible(&query, k, &hits).is_ok()));
        }
        answers
    }
}

/// A change of the index.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Insert(Vec<f32>),
    Remove(Vec<usize>),
    Flush,
    Train,
    Compact,
}

impl Session {
    /// Makes an index of the kind, metric and dimension that the input asks for.
    pub(super) fn new(input: &mut Bytes<'_>) -> Self {
        let shape = SHAPES[input.below(SHAPES.len())];
        let metric = METRICS[input.below(METRICS.len())];
        let dim = [4, 8, 6, 1, 17][input.below(5)];
        let mut options = shape.options(dim, metric).train_at([64, 1, 16][input.below(3)]);
        if dim == 1 {
            options = options.pq_subquantizers(0);
        }
        let disk = SimDisk::new();
        let index = options.disk(Arc::new(disk.clone())).create(HOME).unwrap();
        Self { disk, index, model: Model::new(dim, metric), trainings: 2 }
    }

    /// The next change; `None` where it would make the index too large, or take too long.
    pub(super) fn step(&mut self, input: &mut Bytes<'_>) -> Option<Step> {
        Some(match input.below(8) {
            0..=2 => {
                let (rows, seed) = (input.below(48), u64::from(input.u8()));
                if self.model.next + rows > MOST_ROWS {
                    return None;
                }
                let (dim, metric) = (self.model.dim, self.model.metric);
                Step::Insert(data::vectors(&mut Rng::new(seed), rows, dim, metric))
            }
            3..=4 => {
                let (first, step, n) = (input.u8(), input.u8(), input.below(16));
                let next = self.model.next + 3;
                let id = |i: usize| (usize::from(first) + i * usize::from(step)) % next;
                Step::Remove((0..n).map(id).collect())
            }
            5 => Step::Flush,
            6 => {
                self.trainings = self.trainings.checked_sub(1)?;
                Step::Train
            }
            _ => Step::Compact,
        })
    }

    /// Does a change, and says what the model is then.
    pub(super) fn apply(&self, step: &Step) -> (Model, Result<(), Error>) {
        let mut after = self.model.clone();
        let done = match step {
            Step::Insert(rows) => {
                let ids = after.insert(rows);
                self.index.insert_many(rows).map(|found| assert_eq!(found, ids))
            }
            Step::Remove(ids) => {
                let removed = after.remove(ids);
                self.index.remove_many(ids).map(|found| assert_eq!(found, removed))
            }
            Step::Flush => self.index.flush(),
            Step::Train => self.index.train(),
            Step::Compact => self.index.compact().map(drop),
        };
        (after, done)
    }

    /// A query of any shape.
    pub(super) fn search(&self, input: &mut Bytes<'_>) {
        let Self { index, model, .. } = self;
        let seed = u64::from(input.u8());
        let query = data::vector(&mut Rng::new(seed), model.dim, model.metric);
        let k = [0, 1, 3, 10, 50, 1000][input.below(6)];
        let right = model.search(&query, k);
        assert_eq!(index.query(&query).k(k).exact().run().unwrap(), right);
        let all = index.query(&query).k(k).probes(usize::MAX).rerank(1 << 20).run().unwrap();
        assert_eq!(all, right, "with every cell probed and every row reranked it is exact");
        let query_of = index.query(&query).k(k);
        let hits = match input.below(4) {
            0 => query_of,
            1 => query_of.probes(input.below(6)).rerank(input.below(80)),
            2 => query_of.recall(f32::from(input.u8()) / 255.0),
            _ => query_of.max_reads(input.below(80)),
        };
        // Argument of a meaning that there is not are refused.
        let Ok(hits) = hits.run() else { return };
        if hits.len() == k.min(model.rows.len()) {
            model.plausible(&query, k, &hits).unwrap();
        }
    }

    /// What has no meaning is refused, and changes nothing.
    pub(super) fn mistake(&self, input: &mut Bytes<'_>) {
        let Self { index, model, .. } = self;
        let mut row = vec![1.0; model.dim];
        let refused = match input.below(4) {
            0 => index.insert(&vec![1.0; model.dim + 1]).is_err(),
            1 => {
                row[0] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][input.below(3)];
                index.insert_many(&[vec![1.0; model.dim], row].concat()).is_err()
            }
            2 => index.search(&vec![1.0; model.dim + 1], 1).is_err(),
            _ => {
                row[0] = f32::NAN;
                index.search(&row, 1).is_err()
            }
        };
        assert!(refused, "a mistake is refused");
    }

    /// Opens what is on the disk, and finds the model there.
    pub(super) fn open(disk: SimDisk, model: Model, trainings: usize) -> Self {
        let index = stored(&disk).open(HOME).unwrap_or_else(|e| panic!("{e}"));
        model.differs(&index, 1).unwrap_or_else(|e| panic!("{e}"));
        Self { disk, index, model, trainings }
    }

    /// Goes away as the input says and comes back on what is left: everything was acknowledged.
    pub(super) fn reopen(self, input: &mut Bytes<'_>) -> Self {
        let Self { disk, index, model, trainings } = self;
        let disk = match input.below(6) {
            0 | 1 => {
                index.close().unwrap();
                disk
            }
            2 => {
                drop(index);
                disk
            }
            3 => disk.after_kill(),
            4 => disk.after_cut(Cut::Dropped),
            _ => disk.after_cut(Cut::Random(u64::from(input.u16()))),
        };
        Self::open(disk, model, trainings)
    }
}
