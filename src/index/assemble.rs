//! Filling the lists of a new model: rows are encoded, gathered per cell and written; when memory
//! runs short what is gathered goes out in frames, and each list is brought together at the end.

use super::Inner;
use super::frames::{gather, write_cell};
use super::model::Model;
use super::snapshot::{Indexed, Snapshot};
use super::tail::Tail;
use crate::error::{Error, Result};
use crate::storage::directory::Directory;
use crate::storage::lists::{self, List, ListWriter, Together, Written};
use crate::storage::row_scan::RowBatch;
use cellardb_format::ListIdentity;
use rayon::prelude::*;
use std::sync::Arc;

pub(crate) struct Assembly<'a> {
    inner: &'a Inner,
    snapshot: &'a Snapshot,
    model: Arc<Model>,
    /// Rotated once, not for every row again.
    centroids: Vec<f32>,
    gathered: Tail,
    written: Vec<Written>,
    spills: usize,
}

impl<'a> Assembly<'a> {
    pub(crate) fn new(inner: &'a Inner, snapshot: &'a Snapshot, model: Arc<Model>) -> Self {
        let gathered = Tail::new(model.router.lists());
        let centroids = model.turned(inner.options.memory / 8);
        Self { inner, snapshot, model, centroids, gathered, written: Vec::new(), spills: 0 }
    }

    /// Adds rows; removed ones are left out.
    pub(crate) fn add(&mut self, batch: &RowBatch) -> Result<()> {
        let model = &*self.model;
        let scales: Vec<f32> = batch.rows.iter().map(|row| row.scale).collect();
        let cells = model.assign(self.inner.isa, &self.inner.searched(&batch.vectors, &scales));
        let encoded = model.encode_by(&self.centroids, &batch.vectors, &scales, cells);
        let rows = batch.rows.iter().zip(encoded.rows());
        let live = rows.filter(|(row, _)| !self.snapshot.dead.contains(row.id));
        let copies: Vec<_> =
            live.flat_map(|(row, copies)| copies.map(|copy| (row.id, copy))).collect();
        self.gathered.push_many(model, &copies);
        if self.gathered.bytes() > self.inner.options.memory / 2 {
            self.spill()?;
        }
        Ok(())
    }

    fn identity(&self, list: usize, revision: u32) -> ListIdentity {
        let (uuid, generation) = (self.snapshot.rows.shape().uuid, self.model.generation());
        ListIdentity { uuid, list: u32::try_from(list).unwrap_or(u32::MAX), generation, revision }
    }

    fn together(&self) -> Together<'a> {
        Together::new(&*self.inner.options.disk, &self.inner.dir, self.model.router.lists(), true)
    }

    fn create(&self, list: usize, revision: u32) -> Result<ListWriter<'a>> {
        let shape = (self.inner.dim, self.model.layout);
        self.together().create(self.identity(list, revision), shape, self.seq())
    }

    fn seq(&self) -> u64 {
        self.snapshot.state.seq + 1
    }

    /// Writes what is gathered.
    fn spill(&mut self) -> Result<()> {
        let mut before = std::mem::take(&mut self.written).into_iter();
        for list in 0..self.model.router.lists() {
            let mut writer = match before.next() {
                Some(written) => self.together().resume(written, self.seq()),
                None => {
                    if list % 64 == 0 {
                        self.create_folder(list)?;
                    }
                    self.create(list, 0)?
                }
            };
            for cell in self.gathered.cells(list) {
                write_cell(&mut writer, &self.model.layout, cell)?;
            }
            self.written.push(writer.finish()?);
        }
        self.gathered = Tail::new(self.model.router.lists());
        self.spills += 1;
        Ok(())
    }

    /// Writes the rest and makes all lists durable.
    pub(crate) fn finish(mut self) -> Result<Indexed> {
        self.spill()?;
        let mut written = std::mem::take(&mut self.written);
        if self.spills > 1 {
            let scattered = written;
            let fresh = scattered.par_iter().map(|list| self.bring_together(list));
            written = fresh.collect::<Result<Vec<Written>>>()?;
        }
        self.together().sync(&written)?;
        let open = |list: &Written| self.open(list).map(Arc::new);
        let lists: Vec<Arc<List>> = written.iter().map(open).collect::<Result<_>>()?;
        Ok(Indexed {
            model: self.model,
            lists: Arc::new(Directory::new(lists)),
            settings: Arc::default(),
        })
    }

    fn create_folder(&self, list: usize) -> Result<()> {
        let folder = lists::folder(&self.inner.dir, self.model.generation(), list as u32);
        self.inner.options.disk.create_dir(&folder).map_err(Error::io("create", folder))
    }

    fn open(&self, list: &Written) -> Result<List> {
        let (inner, router) = (self.inner, &self.model.router);
        let cells = router.cells_of(list.id.list);
        let (id, shape) = (list.id, (inner.dim, self.model.layout));
        List::open(&*inner.options.disk, &inner.dir, id, shape, cells, list.entry.clone())
    }

    /// The frames of each cell, scattered by spilling, as few frames in the next revision.
    fn bring_together(&self, list: &Written) -> Result<Written> {
        let (model, dead) = (&*self.model, &self.snapshot.dead);
        let old = Directory::new(vec![Arc::new(self.open(list)?)]);
        let mut writer = self.create(list.id.list as usize, list.id.revision + 1)?;
        for cell in model.router.cells_of(list.id.list) {
            let place = (cell, model.code_len());
            let rows = gather(&old, None, &model.layout, place, dead, u64::MAX)?;
            write_cell(&mut writer, &model.layout, &rows)?;
        }
        self.inner.unlink(&[old[0].path().to_owned()]);
        writer.finish()
    }
}
