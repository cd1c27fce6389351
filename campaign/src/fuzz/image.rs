//! Small indexes as files, with the model that says what is in them, and what is asked of one that
//! somebody tampered with.

use super::session::Answers;
use crate::data::{self, Rng};
use crate::model::Model;
use crate::sim::SimDisk;
use crate::{HOME, METRICS, SHAPES, Shape, stored};
use cellardb::{Error, Index};
use cellardb_format::{self as format, HEADER_LEN, crc};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub(super) const DIM: usize = 4;

/// All files by path.
pub(super) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// An index that was closed, or whose process was killed.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) files: Files,
    pub(super) model: Model,
}

/// Of each kind one that was closed and one that was killed. They have rows in lists and rows that
/// are in none yet, removed rows, dense segments and sparse ones.
pub(super) fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let shapes = SHAPES.into_iter().enumerate();
        shapes.flat_map(|(i, shape)| build(shape, i)).collect()
    })
}

fn build(shape: Shape, number: usize) -> [Image; 2] {
    let (disk, metric) = (SimDisk::new(), METRICS[number % METRICS.len()]);
    let index = shape.options(DIM, metric).disk(Arc::new(disk.clone())).create(HOME).unwrap();
    let mut model = Model::new(DIM, metric);
    let mut rng = Rng::new(1);
    let mut insert = |model: &mut Model, rows: usize| {
        let rows = data::vectors(&mut rng, rows, DIM, metric);
        index.insert_many(&rows).unwrap();
        model.insert(&rows);
    };
    let remove = |model: &mut Model, ids: &[usize]| {
        index.remove_many(ids).unwrap();
        model.remove(ids);
    };
    insert(&mut model, 110);
    remove(&mut model, &(0..60).step_by(2).collect::<Vec<_>>());
    index.train().unwrap();
    index.compact().unwrap();
    insert(&mut model, 10);
    remove(&mut model, &[3, 115]);
    let killed = Image { files: disk.after_kill().dump(), model: model.clone() };
    index.close().unwrap();
    [Image { files: disk.dump(), model }, killed]
}

/// Keeps an index open for ever, and with it the threads that all others of one thread share: to start
/// them takes longer than most of what an input does.
pub(super) fn keep_threads() {
    static KEPT: OnceLock<Index> = OnceLock::new();
    KEPT.get_or_init(|| {
        let options = SHAPES[0].options(DIM, METRICS[0]);
        options.disk(Arc::new(SimDisk::new())).create(HOME).unwrap()
    });
}

/// Opens what may be damaged in any way and asks everything of it, changes included. An error is fine,
/// as long as one that speaks of damage names a file.
pub(super) fn survives(files: &Files, rows: usize, train: bool) {
    let disk = SimDisk::load(files);
    let asked = stored(&disk).open(HOME).and_then(|index| {
        let done = ask(&index, rows, train);
        let closed = index.close();
        done.and(closed)
    });
    if let Err(Error::Corrupt { path, what, .. }) = asked {
        assert!(path != Path::new(HOME) && path.starts_with(HOME), "names no file: {what}");
    }
}

fn ask(index: &Index, rows: usize, train: bool) -> Result<(), Error> {
    let query = vec![1.0; index.dim()];
    index.search(&query, 5)?;
    index.query(&query).k(100).exact().run()?;
    index.query(&query).k(7).probes(usize::MAX).rerank(1 << 20).run()?;
    for id in 0..rows + 1 {
        index.get(id)?;
    }
    index.verify()?;
    let _ = (index.stats(), index.ids().len());
    index.insert(&query)?;
    index.flush()?;
    index.remove(1)?;
    if train {
        index.train()?;
    }
    index.compact().map(drop)
}

/// Opens an index of which one file (or what stands in its place) is damaged: every answer is right, or
/// an error that names the file.
pub(super) fn right_or_named(files: &Files, model: &Model, damaged: &Path, write: bool) {
    let disk = SimDisk::load(files);
    let options = stored(&disk);
    let index = if write { options.open(HOME) } else { options.open_read_only(HOME) };
    let named = |e: &Error| {
        assert!(crate::blames(e, damaged), "{} is damaged, the error is: {e}", damaged.display());
    };
    let index = match index {
        Ok(index) => index,
        Err(e) => return named(&e),
    };
    for answer in Answers::of(&index, model) {
        match answer {
            Ok(true) => {}
            Ok(false) => panic!("{} is damaged, and an answer is wrong", damaged.display()),
            Err(e) => named(&e),
        }
    }
    if let Err(e) = index.close() {
        named(&e);
    }
}

/// Gives the header of a file, and the rows behind it, the checksums of their bytes.
pub(super) fn seal_file(bytes: &mut [u8]) {
    if bytes.len() < HEADER_LEN || bytes[..8] != *b"\x89CELLAR\n" {
        return;
    }
    let sum = crc(&[&bytes[..60]]);
    bytes[60..64].copy_from_slice(&sum.to_le_bytes());
    if bytes[12..16] != [1, 0, 0, 0] {
        return;
    }
    let (header, rows) = bytes.split_at_mut(HEADER_LEN);
    let stride = format::RowLayout::new(DIM).stride();
    for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
        let (covered, sum) = row.split_at_mut(stride - 4);
        let i = (i as u64).to_le_bytes();
        sum.copy_from_slice(&crc(&[&header[16..32], &header[32..40], &i, covered]).to_le_bytes());
    }
}
