//! Operations on a disk that fails them, loses power or is killed, and what is found afterwards: all
//! that was acknowledged, of the change under way all or nothing. Then one place of one file is
//! damaged: the answers are right, or an error names the file.

use super::bytes::Bytes;
use super::image::right_or_named;
use super::session::{Session, Step};
use crate::change::Cut;
use crate::model::Model;
use crate::sim::{Fault, SimDisk};
use crate::{HOME, stored};
use cellardb::Index;

/// Operations of an input at the most.
const MOST: usize = 12;

pub(super) fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let mut session = Session::new(&mut input);
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        match input.below(8) {
            0..=3 => {
                let Some(step) = session.step(&mut input) else { continue };
                let (after, done) = session.apply(&step);
                done.unwrap_or_else(|e| panic!("{step:?}: {e}"));
                session.model = after;
            }
            4..=6 => {
                let Some(step) = session.step(&mut input) else { continue };
                session = failing(session, &step, &mut input);
            }
            _ => damage(&session, &mut input),
        }
    }
    damage(&session, &mut input);
    let Session { disk, index, model, .. } = session;
    index.close().unwrap();
    Session::open(disk, model, 0).index.verify().unwrap();
}

fn cut(input: &mut Bytes<'_>) -> Cut {
    match input.below(4) {
        0 => Cut::Dropped,
        1 => Cut::Kept,
        _ => Cut::Random(u64::from(input.u16())),
    }
}

/// A change whose `n`-th operation on the disk fails; then the process or the machine ends, and the
/// index is opened, which may itself be cut.
fn failing(session: Session, step: &Step, input: &mut Bytes<'_>) -> Session {
    let fault = [Fault::PowerOff, Fault::Eio, Fault::Enospc][input.below(3)];
    let for_ever = fault == Fault::PowerOff || input.below(2) == 0;
    session.disk.fail(input.below(64) as u64, fault, for_ever);
    let (after, done) = session.apply(step);
    let power = fault == Fault::PowerOff;
    let Session { disk, index, model, trainings } = session;
    if !power && done.is_err() {
        // Readers go on, on what was there or on all of the change.
        let differs = model.differs(&index, 5).and(after.differs(&index, 5));
        let either = model.differs(&index, 5).is_ok() || after.differs(&index, 5).is_ok();
        assert!(either, "after a failed {step:?}: {differs:?}");
    }
    let mut disk = match input.below(3) {
        0 if !power => disk.after_kill(),
        _ => disk.after_cut(cut(input)),
    };
    drop(index);
    for _ in 0..input.below(4) {
        disk.cut_at(input.below(24) as u64);
        drop(stored(&disk).open(HOME));
        disk = disk.after_cut(cut(input));
    }
    disk.heal();
    let acknowledged = done.is_ok();
    let (index, model) = settle(&disk, model, after, acknowledged, step);
    Session { disk, index, model, trainings }
}

/// What is found is the model after the change, or before it if it was not acknowledged.
fn settle(
    disk: &SimDisk,
    before: Model,
    after: Model,
    acknowledged: bool,
    step: &Step,
) -> (Index, Model) {
    let index = stored(disk).open(HOME).unwrap_or_else(|e| panic!("after {step:?}: {e}"));
    let model = match after.differs(&index, 6) {
        Ok(()) => after,
        Err(e) if acknowledged => panic!("{step:?} was acknowledged: {e}"),
        Err(e) => {
            let neither = |b| panic!("after {step:?}: neither is there ({e}) nor not ({b})");
            before.differs(&index, 6).unwrap_or_else(neither);
            before
        }
    };
    let report = index.verify().unwrap();
    assert!(report.damage.is_empty(), "after {step:?}: {:?}", report.damage);
    (index, model)
}

/// Damages up to four neighbouring bytes (every checksum finds that) of a copy of the files.
fn damage(session: &Session, input: &mut Bytes<'_>) {
    let disk = session.disk.after_kill();
    let mut files = disk.dump();
    if input.below(2) == 0 {
        stored(&disk).open(HOME).unwrap().close().unwrap();
        files = disk.dump();
    }
    let file = input.below(files.len());
    let (path, bytes) = files.iter_mut().nth(file).unwrap();
    let path = path.clone();
    let at = input.below(bytes.len());
    match input.below(8) {
        0 => bytes.truncate(at),
        way => {
            for byte in bytes.iter_mut().skip(at).take(way % 4 + 1) {
                *byte ^= input.u8();
            }
        }
    }
    right_or_named(&files, &session.model, &path, input.below(2) == 0);
}
