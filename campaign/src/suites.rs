//! The suites of the campaign in rounds of a second or two, for whoever wants a little of each: the
//! hunt for planted bugs, and a first look at a change.

use crate::alone::Backend;
use crate::change::Cut;
use crate::contest;
use crate::cuts::{Plan, Recording, caught, cut_everywhere};
use crate::damage::ask::named;
use crate::damage::case::Case;
use crate::damage::image::Image;
use crate::damage::shelf::Shelf;
use crate::damage::stand::{Mode, Stand};
use crate::damage::structural::{self, Density};
use crate::data::{self, Rng};
use crate::faults;
use crate::model::Model;
use crate::oracle::recover;
use crate::sim::{Calls, Fault, SimDisk};
use crate::workload::Workload;
use crate::{HOME, SHAPES, stored};
use cellardb::{Disk, Error, Index, Maintenance, Metric};
use cellardb_format::LockRecord;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A suite that is run a round at a time.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    pub name: &'static str,
    round: fn(u32) -> Result<(), String>,
}

impl Suite {
    /// One round, that of a seed. A panic is a failure.
    pub fn round(&self, seed: u32) -> Result<(), String> {
        caught(|| (self.round)(seed))
    }
}

/// All of them, the quickest first.
pub const ALL: &[Suite] = &[
    Suite { name: "seals", round: seals },
    Suite { name: "marks", round: marks },
    Suite { name: "gaps", round: gaps },
    Suite { name: "catch-up", round: catch_up },
    Suite { name: "model", round: model },
    Suite { name: "threads", round: threads },
    Suite { name: "damage", round: damage },
    Suite { name: "cuts", round: cuts },
    Suite { name: "faults", round: faults },
];

/// Workloads without any cut, compared with the model at each opening and at the end; and nobody else
/// may write meanwhile.
fn model(seed: u32) -> Result<(), String> {
    for n in 0..20 {
        let workload = Workload::random(u64::from(seed) * 20 + n);
        let Recording { ops, history } = Recording::of(&workload)?;
        let disk = SimDisk::new();
        ops.iter().for_each(|op| disk.replay(op));
        let last = history.models.len() - 1;
        recover(&disk, &history, last..=last, &mut Rng::new(n))?;
        let index = stored(&disk).open(HOME).map_err(|e| e.to_string())?;
        if n == 0 && !matches!(stored(&disk).open(HOME), Err(Error::Locked { .. })) {
            return Err("two have the index open for writing".into());
        }
        drop(index);
    }
    Ok(())
}

fn cuts(seed: u32) -> Result<(), String> {
    let plan = Plan { variants: 4, every: 2, recovery: 60 };
    let workload = Workload::random(u64::from(seed));
    cut_everywhere(&workload, seed, plan).map(drop).map_err(|broken| broken.what)
}

fn faults(seed: u32) -> Result<(), String> {
    let workload = Workload::random(u64::from(seed));
    let counts = faults::operations(&workload)?;
    for (calls, n) in [Calls::Changes, Calls::Reads, Calls::Opens].into_iter().zip(counts) {
        let step = 1 + n as usize / if calls == Calls::Changes { 60 } else { 10 };
        for at in (0..n).skip(seed as usize % step).step_by(step) {
            for case in faults::cases(calls, at) {
                faults::check(&workload, case)?;
            }
        }
    }
    Ok(())
}

fn image(seed: u32) -> Image {
    Image::new(SHAPES[seed as usize % SHAPES.len()], u64::from(seed), seed.is_multiple_of(2))
}

/// Bytes, lengths, sectors and whole files of a small index.
fn damage(seed: u32) -> Result<(), String> {
    let image = image(seed);
    let stand = Stand::new(&image, Mode::Read)?;
    let mut first = Ok(());
    let mut check = |case: Case<'_>| {
        if first.is_ok() && stand.can(&case) {
            first = stand.check(&case).map(drop).map_err(|e| format!("{case}: {e}"));
        }
    };
    structural::cases(&image, Density { lengths: 997, pairs: 10, seed: 1 }, &mut check);
    structural::bytes(&image, (seed as usize % 211, 211), &[], &mut check);
    first
}

/// Many threads on one index; a round is short and the order is chance, so each seed has some.
fn threads(seed: u32) -> Result<(), String> {
    for n in 0..120 {
        contest::round(u64::from(seed) * 120 + n);
    }
    Ok(())
}

/// Rows that are inserted while a thread encodes the tail are found through the lists when it is done.
fn catch_up(seed: u32) -> Result<(), String> {
    const DIM: usize = 8;
    let shape = SHAPES[1 + seed as usize % (SHAPES.len() - 1)];
    let (disk, text) = (SimDisk::new(), |e: Error| e.to_string());
    let options = shape.options(DIM, Metric::L2).segment_bytes(1 << 20);
    let index = options.disk(Arc::new(disk.clone())).create(HOME).map_err(text)?;
    let mut rng = Rng::new(u64::from(seed));
    index.insert_many(&data::vectors(&mut rng, 100, DIM, Metric::L2)).map_err(text)?;
    index.train().map_err(text)?;
    index.insert_many(&data::vectors(&mut rng, 1500, DIM, Metric::L2)).map_err(text)?;
    index.close().map_err(text)?;
    let files = disk.dump();
    for _ in 0..20 {
        let options = stored(&SimDisk::load(&files)).maintenance(Maintenance::Background);
        let index = options.open(HOME).map_err(text)?;
        let row = [100.0; DIM];
        let id = index.insert(&row).map_err(text)?;
        while index.stats().uncoded > 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
        let hits = index.query(&row).k(1).probes(1 << 20).rerank(1 << 20).run().map_err(text)?;
        if hits != [(id, 0.0)] {
            return Err(format!("row {id} came while the tail was encoded; found is {hits:?}"));
        }
    }
    Ok(())
}

/// Segments at the end are gone whole, and the one before them has room: what is inserted then is found
/// under its id, before and after the next opening.
fn gaps(seed: u32) -> Result<(), String> {
    const DIM: usize = 4;
    let shape = SHAPES[seed as usize % SHAPES.len()];
    let (disk, text) = (SimDisk::new(), |e: Error| e.to_string());
    let options = shape.options(DIM, Metric::L2).segment_bytes(1 << 20);
    let index = options.disk(Arc::new(disk.clone())).create(HOME).map_err(text)?;
    let (mut model, mut rng) = (Model::new(DIM, Metric::L2), Rng::new(u64::from(seed)));
    let mut some = |index: &Index, model: &mut Model| {
        let rows = data::vectors(&mut rng, 5, DIM, Metric::L2);
        let found = index.insert_many(&rows)?;
        Ok(if found == model.insert(&rows) { Ok(()) } else { Err(format!("the ids {found:?}")) })
    };
    some(&index, &mut model).map_err(text)??;
    // A shortage: the next rows begin a segment.
    disk.fail(0, Fault::Enospc, false);
    let before = model.clone();
    if some(&index, &mut model).is_ok() {
        return Err("no shortage was met".into());
    }
    disk.heal();
    model = before;
    some(&index, &mut model).map_err(text)??;
    let last: Vec<usize> = (model.next - 5..model.next).collect();
    index.remove_many(&last).map_err(text)?;
    model.remove(&last);
    index.compact().map_err(text)?;
    if seed.is_multiple_of(2) {
        index.close().map_err(text)?;
    }
    let disk = disk.after_kill();
    for turn in 0..2 {
        let index = stored(&disk).open(HOME).map_err(text)?;
        model.differs(&index, 1).map_err(|e| format!("opening {turn}: {e}"))?;
        some(&index, &mut model).map_err(text)??;
        model.differs(&index, 2).map_err(|e| format!("after a gap: {e}"))?;
        index.close().map_err(text)?;
    }
    let index = stored(&disk).open(HOME).map_err(text)?;
    let report = index.verify().map_err(text)?;
    model.differs(&index, 3).map_err(|e| format!("opened after a gap: {e}"))?;
    report.damage.first().map_or(Ok(()), |damage| Err(format!("after a gap: {damage:?}")))
}

/// After a flush the mark of the last commit outlives a power cut: an older catalog would be refused.
fn marks(seed: u32) -> Result<(), String> {
    let shape = SHAPES[seed as usize % SHAPES.len()];
    let disk = SimDisk::new();
    let text = |e: Error| e.to_string();
    let options = shape.options(2, Metric::L2).disk(Arc::new(disk.clone()));
    let index = options.create(HOME).map_err(text)?;
    for _ in 0..1 + seed % 3 {
        index.insert(&[1.0, 2.0]).map_err(text)?;
    }
    index.flush().map_err(text)?;
    let (files, seq) = (disk.after_cut(Cut::Dropped).dump(), index.stats().seq);
    let bytes = files.get(&Path::new(HOME).join("LOCK")).map_or(&[][..], Vec::as_slice);
    match LockRecord::parse(bytes) {
        Ok(mark) if mark.seq == seq => Ok(()),
        other => Err(format!("commit {seq} was flushed, after a cut the mark is {other:?}")),
    }
}

/// Values of the catalog that redb finds whole, but whose seals are not those of their bytes.
fn seals(seed: u32) -> Result<(), String> {
    let image = image(seed);
    let disk = Shelf::of(&image.files);
    let path = Path::new(HOME).join("catalog.redb");
    let text = |e: &dyn std::fmt::Display| format!("changing a value: {e}");
    {
        let file = disk.open(&path, true).map_err(|e| text(&e))?;
        let db = Database::builder().create_with_backend(Backend(file)).map_err(|e| text(&e))?;
        let names: Vec<String> = {
            let reading = db.begin_read().map_err(|e| text(&e))?;
            let names = reading.list_tables().map_err(|e| text(&e))?;
            names.map(|table| table.name().to_owned()).collect()
        };
        let writing = db.begin_write().map_err(|e| text(&e))?;
        for name in &names {
            let table: TableDefinition<'_, u64, &[u8]> = TableDefinition::new(name);
            let mut table = writing.open_table(table).map_err(|e| text(&e))?;
            let first = table.first().map_err(|e| text(&e))?;
            let first = first.map(|(key, value)| (key.value(), value.value().to_vec()));
            if let Some((key, mut value)) = first.filter(|(_, value)| value.len() > 4) {
                let at = Rng::new(u64::from(seed)).below(value.len() - 4);
                value[at] ^= 1;
                table.insert(key, value.as_slice()).map_err(|e| text(&e))?;
                break;
            }
        }
        writing.commit().map_err(|e| text(&e))?;
    }
    match stored(&disk).open_read_only(HOME) {
        Ok(_) => Err("a value under another seal was believed".into()),
        Err(e) if e.to_string().contains("checksum") => {
            named(&e, &crate::damage::ask::Blame::of(&path)).map(drop)
        }
        Err(e) => Err(format!("a value under another seal was looked into: {e}")),
    }
}
