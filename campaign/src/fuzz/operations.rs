//! A sequence of operations, held against the naive model after each.

use super::bytes::Bytes;
use super::session::Session;
use crate::{HOME, stored};

/// Operations of an input at the most.
const MOST: usize = 20;

pub(super) fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let mut session = Session::new(&mut input);
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        match input.below(16) {
            0..=8 => {
                let Some(step) = session.step(&mut input) else { continue };
                let (after, done) = session.apply(&step);
                done.unwrap_or_else(|e| panic!("{step:?}: {e}"));
                session.model = after;
            }
            9..=11 => session.search(&mut input),
            12 => session.mistake(&mut input),
            13 => session.model.differs(&session.index, 2).unwrap(),
            14 => session = session.reopen(&mut input),
            _ => {
                let report = session.index.verify().unwrap();
                assert!(report.damage.is_empty(), "{:?}", report.damage);
            }
        }
    }
    session.model.differs(&session.index, 3).unwrap();
    let Session { disk, index, model, .. } = session;
    index.close().unwrap();
    let index = stored(&disk).open_read_only(HOME).unwrap();
    model.differs(&index, 4).unwrap();
}
