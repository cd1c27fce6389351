//! Changing and reading single rows: insert, remove, get.

use super::Index;
use super::writer::{Batch, Done, Op};
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::ops::Range;
use std::time::Instant;

/// Batches up to this many values are copied into the queue, where they share a commit with others.
const GROUPED: usize = 1 << 16;

impl Index {
    /// Stores a vector and returns its id. Ids are given in order and never used again. Durable
    /// when it returns, unless relaxed durability was asked for.
    ///
    /// # Errors
    ///
    /// [`Error::Dimension`] and [`Error::Vector`] (NaN, infinity, length zero under cosine): nothing is
    /// stored. [`Error::ReadOnly`], [`Error::Closed`], [`Error::Io`] and, after a failed write,
    /// [`Error::Poisoned`].
    pub fn insert(&self, vector: &[f32]) -> Result<usize> {
        if vector.len() != self.inner.dim {
            return Err(Error::vector(self.inner.dim, vector.len()));
        }
        self.insert_many(vector).map(|ids| ids.start)
    }

    /// Stores any number of vectors, row-major, in one commit: all of them or none. Returns their
    /// ids.
    ///
    /// # Errors
    ///
    /// As [`Index::insert`], for all of the vectors or none.
    pub fn insert_many(&self, rows: &[f32]) -> Result<Range<usize>> {
        let inner = &self.inner;
        inner.here()?;
        let scales = inner.scales(rows)?;
        if scales.is_empty() {
            let next = inner.snapshot().state.next_id as usize;
            return Ok(next..next);
        }
        let (start, large) = (Instant::now(), rows.len() > GROUPED);
        let ids = loop {
            let (snapshot, scales) = (inner.snapshot(), scales.clone());
            let model = snapshot.indexed.as_ref().map(|i| &i.model);
            let encoded = inner.encode(model, rows, &scales)?;
            let done = if large {
                let vectors = Cow::Borrowed(rows);
                inner.submit_alone(&Op::Insert(Batch { vectors, scales, encoded }))?
            } else {
                let vectors = Cow::Owned(rows.to_vec());
                inner.submit(Op::Insert(Batch { vectors, scales, encoded }))?
            };
            match done {
                Done::Inserted(ids) => break ids,
                Done::Outdated => {}
                Done::Removed(_) => return Err(Error::Closed),
            }
        };
        inner.upkeep_if_due((start.elapsed(), large));
        Ok(ids.start as usize..ids.end as usize)
    }

    /// The vector of an id, bit for bit as it was inserted; `None` if it was removed or never
    /// given.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if the row is damaged.
    pub fn get(&self, id: usize) -> Result<Option<Vec<f32>>> {
        self.inner.here()?;
        self.inner.ask(self.inner.snapshot(), |snapshot| {
            if snapshot.dead.contains(id as u64) {
                return Ok(None);
            }
            let row = snapshot.rows.get(id as u64)?;
            Ok(row.map(|row| row.vector().into_owned()))
        })
    }

    /// Removes a vector; `false` if it was not there.
    ///
    /// # Errors
    ///
    /// As [`Index::remove_many`].
    pub fn remove(&self, id: usize) -> Result<bool> {
        self.remove_many(&[id]).map(|n| n == 1)
    }

    /// Removes any number of vectors in one commit. Returns how many were there.
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`], [`Error::Closed`], [`Error::Io`] and, after a failed write,
    /// [`Error::Poisoned`]; an id that is not there is none.
    pub fn remove_many(&self, ids: &[usize]) -> Result<usize> {
        self.inner.here()?;
        let ids = ids.iter().map(|id| *id as u64).collect();
        let start = Instant::now();
        let done = self.inner.submit(Op::Remove(Cow::Owned(ids)))?;
        self.inner.upkeep_if_due((start.elapsed(), false));
        match done {
            Done::Removed(n) => Ok(n as usize),
            Done::Inserted(_) | Done::Outdated => Err(Error::Closed),
        }
    }

    /// The ids of all rows that are there, in the order of their insertion.
    pub fn ids(&self) -> Vec<usize> {
        let snapshot = self.inner.snapshot();
        let mut ids = Vec::with_capacity(snapshot.state.live as usize);
        for segment in snapshot.rows.segments() {
            segment.each_id(|id| {
                if !snapshot.dead.contains(id) {
                    ids.push(id as usize);
                }
            });
        }
        ids
    }
}
