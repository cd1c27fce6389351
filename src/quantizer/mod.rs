//! Training and encoding: what turns vectors into centroids and codes, and queries into tables.
//!
//! Never learns what a file is. Everything is deterministic in the seed and the data, on any number
//! of threads: work is cut into parts whose number does not depend on the threads, and parts are
//! added in order. Parallel work runs in the caller's rayon pool.

pub(crate) mod assign;
pub(crate) mod kmeans;
pub(crate) mod pq;
pub(crate) mod rotation;
pub(crate) mod rounded;
pub(crate) mod router;
mod rows;
mod sketch;
pub(crate) mod table;
pub(crate) mod tour;

/// Rows that one thread assigns and encodes by itself: in less time than others are woken in.
pub(crate) const FEW: usize = 16;
