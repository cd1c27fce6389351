//! Cellar: an embedded vector store with on-disk inverted lists.
//!
//! A process links it in as its memory: it inserts embeddings, finds the nearest ones, and after a
//! crash, a kill or a power cut opens again at once with every acknowledged vector in place.
//!
//! ```
//! use cellardb::{Index, Metric};
//!
//! # fn main() -> cellardb::Result<()> {
//! # let dir = tempfile::tempdir().map_err(|e| cellardb::Error::Io {
//! #     op: "make", path: "a temporary directory".into(), source: e })?;
//! # let path = dir.path().join("memory.cellar");
//! let index = Index::options(3).metric(Metric::Cosine).create(&path)?;
//! let id = index.insert(&[0.1, 0.9, 0.2])?; // durable when it returns
//! index.insert_many(&[1.0, 0.0, 0.0, 0.0, 0.0, 1.0])?; // two rows, one commit
//! drop(index);
//!
//! let index = Index::open(&path)?; // no rebuild: some 40 ms for a million rows
//! let hits = index.search(&[0.0, 1.0, 0.0], 2)?; // ascending distance
//! assert_eq!(hits[0].0, id);
//! let hits = index.query(&[0.0, 1.0, 0.0]).k(1).recall(0.99).run()?;
//! assert_eq!(hits.len(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! One handle (and its clones) has an index open for writing, or any number have it open for reading;
//! a handle may be used from every thread, and readers never wait for the writer. Search compares
//! with every row until there are [`Options::train_at`] rows (10,000); then a thread of the index
//! trains it, and later folds, measures and compacts, unless [`Maintenance::Manual`] leaves that to
//! the caller. From then on a search goes as far as a mean recall of 0.95 takes, as measured on rows
//! of the index itself; [`Query::recall`], [`Query::probes`] and [`Query::exact`] say otherwise.
//!
//! The files, the commit protocol and why every crash is safe are in SPEC.md.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(target_endian = "big")]
compile_error!("the files are little-endian and read in place");

mod backend;
mod callback;
mod error;
mod index;
mod kernel;
mod options;
#[cfg(not(feature = "planted"))]
mod planted;
#[cfg(feature = "planted")]
#[doc(hidden)]
pub mod planted;
mod quantizer;
mod runtime;
mod storage;
mod sync;

pub use backend::IndexBackend;
pub use error::{Error, Given, Result};
pub use index::{
    Answer, Compacted, Damage, Index, Measured, MeasuredOn, Query, QueryMany, Repaired, Report,
    Setting, Stats,
};
pub use options::{Durability, Kind, Maintenance, Metric, Options, Progress, Reads};
pub use storage::disk::{Disk, DiskFile, FileSystem};
pub use storage::{Hold, Map};
