//! Damage of every kind to every file of small indexes. The answer is right, or an error that names
//! the file; never a panic, never another answer, never an allocation out of proportion.

pub mod ask;
pub mod case;
pub mod heap;
pub mod image;
pub mod live;
pub mod shelf;
pub mod stand;
pub mod structural;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The dimensions of the indexes.
pub const DIM: usize = 4;
pub const CATALOG: &str = "/index/catalog.redb";
pub const LOCK: &str = "/index/LOCK";

/// Files by path, shared with whoever does not change them.
pub type Files = BTreeMap<PathBuf, Arc<Vec<u8>>>;
