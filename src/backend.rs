//! The seam for hosts that hold an enum of backends: `insert(&[f32]) -> usize` and
//! `search(&[f32], k) -> Vec<(usize, f32)>`.

use crate::error::{Error, Result};
use crate::index::Index;
use crate::options::{Kind, Options};
use std::path::Path;

/// An index behind the two calls that every backend of a host has.
///
/// The plain calls cannot fail by their signature, so they panic with the error's text; the `try_`
/// forms return it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum IndexBackend {
    /// Compares with every row.
    Exact(Index),
    /// Inverted lists of whole vectors.
    IvfFlat(Index),
    /// Inverted lists of product-quantized residuals.
    IvfPq(Index),
}

impl IndexBackend {
    /// Opens the index at `path`, or makes it with these options; which variant it is follows from
    /// the kind that is stored.
    ///
    /// # Errors
    ///
    /// As [`Options::open_or_create`].
    pub fn open(options: &Options, path: impl AsRef<Path>) -> Result<Self> {
        let index = options.open_or_create(path)?;
        Ok(match index.stats().kind {
            Kind::Exact => Self::Exact(index),
            Kind::IvfFlat => Self::IvfFlat(index),
            Kind::Auto | Kind::IvfPq => Self::IvfPq(index),
        })
    }

    /// The index behind it.
    pub fn index(&self) -> &Index {
        match self {
            Self::Exact(index) | Self::IvfFlat(index) | Self::IvfPq(index) => index,
        }
    }

    /// Stores a vector durably; its id.
    ///
    /// # Errors
    ///
    /// As [`Index::insert`].
    pub fn try_insert(&self, vector: &[f32]) -> Result<usize> {
        self.index().insert(vector)
    }

    /// The `k` nearest ids and distances, ascending.
    ///
    /// # Errors
    ///
    /// As [`Index::search`].
    pub fn try_search(&self, query: &[f32], k: usize) -> Result<Vec<(usize, f32)>> {
        self.index().search(query, k)
    }

    /// Stores a vector durably; its id.
    ///
    /// # Panics
    ///
    /// If the vector cannot be stored.
    #[expect(clippy::panic, reason = "the signature that hosts expect has no room for an error")]
    pub fn insert(&self, vector: &[f32]) -> usize {
        self.try_insert(vector).unwrap_or_else(|e: Error| panic!("{e}"))
    }

    /// The `k` nearest ids and distances, ascending.
    ///
    /// # Panics
    ///
    /// If the query has the wrong dimension or a file is damaged.
    #[expect(clippy::panic, reason = "the signature that hosts expect has no room for an error")]
    pub fn search(&self, query: &[f32], k: usize) -> Vec<(usize, f32)> {
        self.try_search(query, k).unwrap_or_else(|e: Error| panic!("{e}"))
    }
}
