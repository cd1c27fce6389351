//! What is left of a catalog, for a repair. Nothing here trusts that a part is there; each value that is
//! taken passes its seal, and so is of this index and was written under its key.

use super::catalog::{CONFIG, Catalog, NO_UUID, Table};
use super::disk::{Disk, pages};
use super::lock::Patience;
use super::tombstones::Tombstones;
use super::{CATALOG, damage, row_files};
use crate::error::{Error, Result};
use cellardb_format::{
    Config, FORMAT_VERSION, FileHeader, LockRecord, Segment, State, Tombstones as Chunk, unseal,
};
use roaring::RoaringBitmap;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

/// Bytes of a config and of a state, seals included.
const CONFIG_LEN: usize = 64;
const STATE_LEN: usize = 96;
/// A stored set of 65,536 ids is shorter, seal included.
const CHUNK_MAX: usize = 10_240;
/// So many chunks are looked for at most: of 2^32 ids.
const KEYS: usize = 1 << 16;

/// What is known of an index before its rows are read.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) uuid: [u8; 16],
    pub(crate) config: Option<Config>,
    /// The newest state that was found.
    pub(crate) state: Option<State>,
    /// The segments, if the catalog is whole in that and the newest there was: then no other rows
    /// count.
    pub(crate) segments: Option<BTreeMap<u64, Segment>>,
    pub(crate) dead: Tombstones,
    /// Whether there can be no further tombstones.
    pub(crate) all_dead: bool,
    /// The newest commit that anything tells of.
    pub(crate) seq: u64,
    /// Whether the state is that of the commit that `LOCK` tells of.
    newest: bool,
    /// Whether there is a file under the name of the catalog.
    pub(crate) file: bool,
    /// Its bytes.
    raw: Vec<u8>,
}

impl Known {
    /// Reads what there is. Whose files these are a catalog says that opens whole and that `LOCK` agrees
    /// with, or a segment where there is no mark; else most of the `headers` of segments, LOCK and catalog.
    pub(crate) fn read(
        disk: &dyn Disk,
        dir: &Path,
        mark: Option<&LockRecord>,
        headers: &[FileHeader],
    ) -> Result<Self> {
        let path = dir.join(CATALOG);
        let (raw, file) = bytes(disk, &path)?;
        let catalog = if file { open(disk, &path)? } else { None };
        let configs = configs(catalog.as_ref(), &path, &raw)?;
        let mut votes: BTreeMap<[u8; 16], usize> = BTreeMap::new();
        let voters = headers.iter().map(|h| h.uuid).chain(mark.map(|m| m.uuid));
        for uuid in voters.chain(configs.first().map(|c| c.uuid)) {
            *votes.entry(uuid).or_default() += 1;
        }
        let mine = |uuid: &[u8; 16]| configs.first().is_some_and(|c| c.uuid == *uuid);
        let most = votes.into_iter().max_by_key(|(uuid, votes)| (*votes, mine(uuid)));
        let sure = catalog.as_ref().and_then(|catalog| decides(catalog, mark, headers));
        let Some(uuid) = sure.or(most.map(|(uuid, _)| uuid)) else {
            let what = "no catalog, LOCK or row segment says which index this is";
            return Err(Error::corrupt(path, 0, what));
        };
        let config = configs.into_iter().find(|c| c.uuid == uuid);
        let mark = mark.filter(|m| m.uuid == uuid).map_or(0, |m| m.seq);
        let mut known = Self {
            uuid,
            config,
            state: None,
            segments: None,
            dead: Tombstones::default(),
            all_dead: false,
            seq: mark,
            newest: false,
            file,
            raw,
        };
        known.tables(catalog.as_ref());
        if known.state.is_none() {
            let states = carve(&known.raw, STATE_LEN, |value| {
                let body = unseal(&uuid, Table::Meta.name(), 1, value).ok()?;
                State::parse(body).ok()
            });
            known.state = states.into_iter().max_by_key(|state| state.seq);
        }
        known.newest = known.state.as_ref().is_some_and(|state| state.seq == mark);
        known.seq = known.seq.max(known.state.as_ref().map_or(0, |state| state.seq));
        Ok(known)
    }

    /// Notes for how many rows that are there a tombstone was found: if these are all, none came back.
    pub(crate) fn found_dead(&mut self, rows: u64) {
        let all = self.state.as_ref().is_some_and(|state| state.dead == rows);
        self.all_dead |= self.newest && all;
    }

    /// What the tables of an open catalog say.
    fn tables(&mut self, catalog: Option<&Catalog>) {
        let Some(catalog) = catalog else { return };
        let (meta, _) = catalog.salvage(&self.uuid, Table::Meta);
        let state = meta.iter().find(|(key, _)| *key == 1);
        self.state = state.and_then(|(_, value)| State::parse(value).ok());
        let (chunks, _) = catalog.salvage(&self.uuid, Table::Dead);
        let chunks = chunks.into_iter().filter_map(|(k, v)| Some((k, Chunk::parse(&v).ok()?.0)));
        self.dead = Tombstones::from_chunks(chunks);
        let Some(state) = &self.state else { return };
        if self.config.is_none() || self.seq > state.seq {
            return;
        }
        self.all_dead = self.dead.len() == state.dead;
        let (segments, all) = catalog.salvage(&self.uuid, Table::Segments);
        let whole = all && segments.len() == state.segments as usize;
        let parse = |(number, value): (u64, Vec<u8>)| Some((number, Segment::parse(&value).ok()?));
        let parsed: Option<BTreeMap<u64, Segment>> = segments.into_iter().map(parse).collect();
        self.segments = parsed.filter(|_| whole);
    }

    /// Looks for tombstones in the bytes of the catalog, in the chunks of some ids. Whatever their age they
    /// are true: an id is never used again, and a row that was removed does not come back.
    pub(crate) fn carve_dead(&mut self, ids: impl Iterator<Item = Range<u64>>) {
        if self.all_dead {
            return;
        }
        let mut keys = BTreeSet::new();
        for key in ids.flat_map(|ids| ids.start >> 16..=ids.end.saturating_sub(1) >> 16) {
            if keys.len() == KEYS {
                break;
            }
            keys.insert(key);
        }
        let mut chunks: BTreeMap<u64, RoaringBitmap> =
            self.dead.chunks().map(|(key, set)| (key, set.clone())).collect();
        for at in 0..self.raw.len() {
            let rest = self.raw.get(at..self.raw.len().min(at + CHUNK_MAX)).unwrap_or_default();
            // How a bitmap begins: with run containers, or without and with one container.
            if !rest.starts_with(&[0x3B, 0x30, 0, 0]) && !rest.starts_with(&[0x3A, 0x30, 0, 0, 1]) {
                continue;
            }
            let sealed = Chunk::measure(rest).and_then(|len| rest.get(..len + 4));
            let Some(sealed) = sealed else { continue };
            for &key in &keys {
                if let Ok(body) = unseal(&self.uuid, Table::Dead.name(), key, sealed)
                    && let Ok(Chunk(set)) = Chunk::parse(body)
                {
                    *chunks.entry(key).or_default() |= set;
                }
            }
        }
        self.dead = Tombstones::from_chunks(chunks.into_iter());
    }
}

/// Whose catalog this is, if its state is whole and something else speaks for it.
fn decides(
    catalog: &Catalog,
    mark: Option<&LockRecord>,
    headers: &[FileHeader],
) -> Option<[u8; 16]> {
    let uuid = Config::parse(&catalog.load_config().ok().flatten()?).ok()?.uuid;
    let (meta, _) = catalog.salvage(&uuid, Table::Meta);
    State::parse(&meta.iter().find(|(key, _)| *key == 1)?.1).ok()?;
    let (segments, _) = catalog.salvage(&uuid, Table::Segments);
    let is_there = |(number, _): &(u64, Vec<u8>)| {
        headers.iter().any(|header| header.uuid == uuid && header.number == *number)
    };
    let agreed = match mark {
        Some(mark) => mark.uuid == uuid,
        None => segments.is_empty() || segments.iter().any(is_there),
    };
    agreed.then_some(uuid)
}

/// The catalog, if every page of it is whole.
fn open(disk: &dyn Disk, path: &Path) -> Result<Option<Catalog>> {
    match Catalog::open(disk, path, true, &Patience::none()) {
        Ok(catalog) => Ok(Some(catalog)),
        Err(Error::Corrupt { .. }) => Ok(None),
        Err(e) if row_files::unreadable(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The config of the catalog. It never changes, so any sealed copy among the bytes is as good.
fn configs(catalog: Option<&Catalog>, path: &Path, raw: &[u8]) -> Result<Vec<Config>> {
    let stored = catalog.and_then(|catalog| catalog.load_config().ok().flatten());
    if let Some(value) = stored {
        match Config::parse(&value).map_err(|e| damage(path, 0, e)) {
            Ok(config) => return Ok(vec![config]),
            Err(Error::Corrupt { .. }) => {}
            // Of another version: its files are not ours to repair.
            Err(e) => return Err(e),
        }
    }
    Ok(carve(raw, CONFIG_LEN, |value| {
        if !value.starts_with(&FORMAT_VERSION.to_le_bytes()) {
            return None;
        }
        let body = unseal(&NO_UUID, Table::Meta.name(), CONFIG, value).ok()?;
        Config::parse(body).ok()
    }))
}

/// Values of one length, wherever they lie.
fn carve<T>(raw: &[u8], len: usize, parse: impl Fn(&[u8]) -> Option<T>) -> Vec<T> {
    raw.windows(len).filter_map(parse).collect()
}

/// The bytes of a file that can be read, and whether there is one. Of zeros in a row no more than a value has:
/// a file may be long and empty.
fn bytes(disk: &dyn Disk, path: &Path) -> Result<(Vec<u8>, bool)> {
    let io = |op| move |e| Error::io(op, path)(e);
    let link = disk.is_link(path).map_err(io("look for"))?;
    let Some(file) = row_files::open(disk, path)?.filter(|_| !link) else {
        return Ok((Vec::new(), false));
    };
    let (mut raw, mut zeros, mut end) = (Vec::new(), 0_u64, 0);
    let some = |zeros: u64| usize::try_from(zeros).map_or(CHUNK_MAX, |n| n.min(CHUNK_MAX));
    for (at, page) in pages(&*file).map_err(io("read"))? {
        zeros += at - end;
        end = at + page.len() as u64;
        if page.iter().all(|byte| *byte == 0) {
            zeros += page.len() as u64;
            continue;
        }
        raw.resize(raw.len() + some(zeros), 0);
        raw.extend(page);
        zeros = 0;
    }
    raw.resize(raw.len() + some(zeros), 0);
    Ok((raw, true))
}
