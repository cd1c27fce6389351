//! Reading the catalog at open: everything is checked against everything before it is believed.

use super::catalog::{Catalog, Table, damaged_value};
use super::disk::Disk;
use super::orphan;
use super::rows::{Rows, Segment, SegmentFile};
use super::tombstones::Tombstones;
use super::view::{absent, no_link};
use super::{lists, rows, shape};
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use cellardb_format::{
    AskedRecord, Config, FormatError, HEADER_LEN, ListEntry, ListIdentity, LockRecord, ModelRecord,
    RoutingRecord, Settings, State, parse_floats,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the catalog holds, checked.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) state: State,
    pub(crate) rows: Rows,
    pub(crate) dead: Tombstones,
    pub(crate) model: Option<ModelImage>,
    pub(crate) asked: Option<AskedRecord>,
}

/// A trained model and the entries of its lists, in the order of the lists.
#[derive(Debug)]
pub(crate) struct ModelImage {
    pub(crate) record: ModelRecord,
    pub(crate) center: Vec<f32>,
    pub(crate) codebook: Vec<f32>,
    pub(crate) routing: Vec<RoutingRecord>,
    pub(crate) entries: Vec<ListEntry>,
    pub(crate) settings: Settings,
}

struct Loader<'a> {
    catalog: &'a Catalog,
    path: &'a Path,
    uuid: [u8; 16],
}

impl Loader<'_> {
    fn damage(&self, what: impl ToString) -> Error {
        Error::corrupt(self.path, 0, what)
    }

    fn table(&self, table: Table) -> Result<Vec<(u64, Vec<u8>)>> {
        self.catalog.load(&self.uuid, table)
    }

    fn parse<T>(
        &self,
        table: Table,
        (key, value): &(u64, Vec<u8>),
        parse: impl FnOnce(&[u8]) -> Result<T, FormatError>,
    ) -> Result<T> {
        parse(value).map_err(|e| damaged_value(self.path, table, *key, e))
    }

    /// A table whose number of keys the state knows.
    fn counted(&self, table: Table, count: u64) -> Result<Vec<(u64, Vec<u8>)>> {
        let found = self.table(table)?;
        if found.len() as u64 != count {
            let what = format!("{} {} records, {count} were stored", found.len(), table.name());
            return Err(self.damage(what));
        }
        Ok(found)
    }
}

pub(super) fn load_state(catalog: &Catalog, path: &Path, uuid: &[u8; 16]) -> Result<State> {
    let loader = Loader { catalog, path, uuid: *uuid };
    let meta = loader.table(Table::Meta)?;
    let state = meta.iter().find(|(key, _)| *key == 1).ok_or_else(|| loader.damage("no state"))?;
    loader.parse(Table::Meta, state, State::parse)
}

pub(super) fn load(
    catalog: &Catalog,
    path: &Path,
    disk: &Arc<dyn Disk>,
    dir: &Path,
    mark: Option<LockRecord>,
) -> Result<(Config, Image)> {
    for path in folders(&**disk, dir) {
        no_link(&**disk, &path)?;
    }
    let mut loader = Loader { catalog, path, uuid: [0; 16] };
    // The config is sealed without the uuid that it brings; the rest needs it to be read at all.
    let config = catalog.load_config()?.ok_or_else(|| loader.damage("no config"))?;
    let config = Config::parse(&config).map_err(|e| super::damage(path, 0, e))?;
    loader.uuid = config.uuid;
    let state = load_state(catalog, path, &config.uuid)?;
    // Before the files: those of an older catalog may be gone, and that is not what is wrong.
    let mark = mark.filter(|mark| mark.uuid == config.uuid && mark.seq > state.seq);
    let mark = mark.filter(|_| !planted::on(Bug::MarkIgnored));
    if let Some(LockRecord { seq, .. }) = mark {
        return Err(loader.damage(format!(
            "the catalog ends with commit {}, commit {seq} was acknowledged: it was rolled back or \
             replaced by an older copy",
            state.seq
        )));
    }
    let rows = load_rows(&loader, &config, &state, disk, dir)?;
    let dead = load_dead(&loader, &state)?;
    let present: u64 = rows.segments().map(|s| s.rows).sum();
    if present.checked_sub(dead.len()) != Some(state.live) {
        let what =
            format!("{present} rows less {} removed are not {} live", dead.len(), state.live);
        return Err(loader.damage(what));
    }
    let model = load_model(&loader, &config, &state)?;
    let asked = loader.table(Table::Asked)?;
    let parse =
        |record| loader.parse(Table::Asked, record, |b| AskedRecord::parse(b, config.dim as usize));
    let asked = asked.first().map(parse).transpose()?;
    Ok((config, Image { state, rows, dead, model, asked }))
}

/// The directories that what is written and swept lies in: none may be a link.
pub(crate) fn folders(disk: &dyn Disk, dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.join("rows"), dir.join("lists")];
    for generation in disk.list(&dir.join("lists")).unwrap_or_default() {
        found.extend(disk.list(&generation).unwrap_or_default());
        found.push(generation);
    }
    found
}

fn load_rows(
    loader: &Loader<'_>,
    config: &Config,
    state: &State,
    disk: &Arc<dyn Disk>,
    dir: &Path,
) -> Result<Rows> {
    let shape = shape(config);
    let mut segments: Vec<Segment> = Vec::new();
    for record in loader.counted(Table::Segments, u64::from(state.segments))? {
        let number = record.0;
        let found = loader.parse(Table::Segments, &record, cellardb_format::Segment::parse)?;
        if found.end_id > state.next_id || number >= state.next_segment {
            return Err(loader.damage(format!("segment {number} is past the end")));
        }
        let len = found
            .rows
            .checked_mul(shape.layout.stride() as u64)
            .and_then(|n| n.checked_add(HEADER_LEN as u64))
            .ok_or_else(|| loader.damage(format!("segment {number} is too long")))?;
        let (first, ids) = (found.first_id, found.ids);
        let file = SegmentFile::open(&**disk, dir, &shape, number, first, ids, len)?;
        let (rows, end_id) = (found.rows, found.end_id);
        segments.push(Segment { file: Arc::new(file), rows, end_id });
    }
    segments.sort_by_key(|s| s.file.first_id());
    let overlap = segments.windows(2).find(|w| w[0].end_id > w[1].file.first_id());
    if let Some(pair) = overlap {
        let what =
            format!("segments {} and {} overlap", pair[0].file.number(), pair[1].file.number());
        return Err(loader.damage(what));
    }
    Ok(Rows::new(shape, segments))
}

fn load_dead(loader: &Loader<'_>, state: &State) -> Result<Tombstones> {
    let mut chunks = Vec::new();
    for record in loader.counted(Table::Dead, u64::from(state.dead_keys))? {
        chunks.push((
            record.0,
            loader.parse(Table::Dead, &record, cellardb_format::Tombstones::parse)?.0,
        ));
    }
    let dead = Tombstones::from_chunks(chunks.into_iter());
    if dead.len() != state.dead {
        let what = format!("{} tombstones, {} were stored", dead.len(), state.dead);
        return Err(loader.damage(what));
    }
    Ok(dead)
}

fn load_model(loader: &Loader<'_>, config: &Config, state: &State) -> Result<Option<ModelImage>> {
    let generation = state.generation;
    if generation == 0 {
        return Ok(None);
    }
    let of = |key: u64| (key >> 32) as u32 == generation;
    let mut parts = loader.table(Table::Model)?.into_iter().filter(|(key, _)| of(*key));
    let mut next = |part: u64| {
        let expected = u64::from(generation) << 32 | part;
        let found = parts.next().filter(|(key, _)| *key == expected);
        found.ok_or_else(|| loader.damage(format!("part {part} of the model is missing")))
    };
    let record = loader.parse(Table::Model, &next(0)?, ModelRecord::parse)?;
    if record.lists != state.lists {
        let what = format!("a model of {} lists, {} are stored", record.lists, state.lists);
        return Err(loader.damage(what));
    }
    let dim = config.dim as usize;
    let floats = dim + record.codebook_len();
    let mut center = loader.parse(Table::Model, &next(1)?, |b| parse_floats(b, floats))?;
    let codebook = center.split_off(dim);
    let mut routing = Vec::new();
    for list in 0..u64::from(record.lists) {
        routing
            .push(loader.parse(Table::Model, &next(2 + list)?, |b| RoutingRecord::parse(b, dim))?);
    }
    let mut entries = Vec::new();
    for (i, found) in loader.table(Table::Lists)?.iter().filter(|(key, _)| of(*key)).enumerate() {
        if found.0 != u64::from(generation) << 32 | i as u64 {
            return Err(loader.damage(format!("list {i} is missing")));
        }
        entries.push(loader.parse(Table::Lists, found, ListEntry::parse)?);
    }
    if entries.len() != record.lists as usize {
        return Err(loader.damage(format!("{} lists of {}", entries.len(), record.lists)));
    }
    let settings = loader.table(Table::Settings)?;
    let settings = match settings.iter().find(|(key, _)| *key == u64::from(generation)) {
        Some(found) => loader.parse(Table::Settings, found, Settings::parse)?,
        None => Settings::default(),
    };
    Ok(Some(ModelImage { record, center, codebook, routing, entries, settings }))
}

/// Removes the files of this index that no record names: what a crash left behind. Those of another are
/// not ours to remove.
pub(super) fn sweep(disk: &dyn Disk, dir: &Path, image: &Image) -> Result<()> {
    let mut known: BTreeSet<PathBuf> =
        image.rows.segments().map(|s| rows::path(dir, s.file.number())).collect();
    if let Some(model) = &image.model {
        let generation = model.record.generation;
        let uuid = image.rows.shape().uuid;
        known.extend(model.entries.iter().zip(0..).map(|(entry, list)| {
            lists::path(dir, &ListIdentity { uuid, list, generation, revision: entry.revision })
        }));
    }
    if planted::on(Bug::SweepNothing) {
        return Ok(());
    }
    if planted::on(Bug::SweepKnown) && image.model.as_ref().is_some_and(|m| m.entries.len() > 1) {
        known.pop_first();
    }
    let uuid = image.rows.shape().uuid;
    remove_others(disk, &dir.join("rows"), "rows", &known, &uuid)?;
    let lists = dir.join("lists");
    for generation in disk.list(&lists).map_err(absent(&lists))? {
        for folder in disk.list(&generation).unwrap_or_default() {
            // What is no directory holds no list.
            if disk.list(&folder).is_ok() {
                remove_others(disk, &folder, "list", &known, &uuid)?;
            }
        }
    }
    Ok(())
}

fn remove_others(
    disk: &dyn Disk,
    folder: &Path,
    extension: &str,
    known: &BTreeSet<PathBuf>,
    uuid: &[u8; 16],
) -> Result<()> {
    for path in disk.list(folder).map_err(absent(folder))? {
        let ours = path.extension().is_some_and(|e| e == extension);
        if ours && !known.contains(&path) && !orphan::is_foreign(disk, &path, uuid) {
            disk.remove(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}
