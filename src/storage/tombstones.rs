//! Which ids are removed, in the chunks of 65,536 that the catalog stores.

use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A set of ids. Cloning shares the chunks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tombstones {
    chunks: BTreeMap<u64, Arc<RoaringBitmap>>,
    len: u64,
}

/// The chunk of an id, and the id within it.
pub(crate) fn chunk(id: u64) -> (u64, u32) {
    (id >> 16, (id & 0xFFFF) as u32)
}

impl Tombstones {
    pub(crate) fn from_chunks(chunks: impl Iterator<Item = (u64, RoaringBitmap)>) -> Self {
        let chunks: BTreeMap<_, _> = chunks.map(|(key, set)| (key, Arc::new(set))).collect();
        let len = chunks.values().map(|set| set.len()).sum();
        Self { chunks, len }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// How many chunks hold an id.
    pub(crate) fn keys(&self) -> usize {
        self.chunks.len()
    }

    /// All ids, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> {
        self.chunks
            .iter()
            .flat_map(|(key, set)| set.iter().map(move |low| key << 16 | u64::from(low)))
    }

    /// The chunks, as they are stored.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u64, &RoaringBitmap)> {
        self.chunks.iter().map(|(key, set)| (*key, &**set))
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        let (key, low) = chunk(id);
        self.len > 0 && self.chunks.get(&key).is_some_and(|set| set.contains(low))
    }

    pub(crate) fn insert(&mut self, id: u64) -> bool {
        let (key, low) = chunk(id);
        let fresh = Arc::make_mut(self.chunks.entry(key).or_default()).insert(low);
        self.len += u64::from(fresh);
        fresh
    }

    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let (key, low) = chunk(id);
        let Some(set) = self.chunks.get_mut(&key) else { return false };
        let gone = Arc::make_mut(set).remove(low);
        self.len -= u64::from(gone);
        if set.is_empty() {
            self.chunks.remove(&key);
        }
        gone
    }

    /// The set of one chunk; `None` if it is empty.
    pub(crate) fn get(&self, key: u64) -> Option<&RoaringBitmap> {
        self.chunks.get(&key).map(|set| &**set)
    }

    /// How many ids of `from..to` are in the set.
    pub(crate) fn count(&self, from: u64, to: u64) -> u64 {
        if from >= to {
            return 0;
        }
        let (last, _) = chunk(to - 1);
        let within = |key: u64, set: &RoaringBitmap| {
            let base = key << 16;
            let low = from.saturating_sub(base).min(0x1_0000) as u32;
            let high = (to - base).min(0x1_0000) as u32;
            set.range_cardinality(low..high)
        };
        self.chunks.range(chunk(from).0..=last).map(|(key, set)| within(*key, set)).sum()
    }
}
