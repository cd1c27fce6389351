//! A fixed small workload for a child process that meets a fault somewhere: after each failure its
//! readers must see a state that may be, and searches must answer.

use crate::model::Model;
use crate::process::{Change, DIM, say, vectors};
use crate::{SHAPES, Shape};
use cellardb::{Error, Index, Maintenance, Metric, Options};
use clap::Args;
use std::io::Read;
use std::path::PathBuf;

/// Makes an index, works on it, opens it again and goes on. Runs in a process of its own.
#[derive(Debug, Clone, Args)]
pub struct Script {
    pub path: PathBuf,
    /// Begins only when its standard input is closed.
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Insert(usize),
    /// Every so-many-th row.
    Remove(usize),
    Flush,
    Train,
    Compact,
    Reopen,
}

impl Step {
    fn changes(self) -> bool {
        matches!(self, Self::Insert(_) | Self::Remove(_))
    }
}

const SCRIPT: [Step; 12] = [
    Step::Insert(1),
    Step::Insert(70),
    Step::Train,
    Step::Insert(30),
    Step::Remove(7),
    Step::Flush,
    Step::Insert(9),
    Step::Reopen,
    Step::Remove(9),
    Step::Compact,
    Step::Insert(4),
    Step::Flush,
];

pub const SHAPE: Shape = SHAPES[2];
pub const METRIC: Metric = Metric::L2;

/// The index, and what it is known to hold.
struct Life {
    index: Option<Index>,
    model: Model,
    /// The change of which the next opening tells whether it is there.
    tried: Option<Change>,
    doubt: bool,
}

impl Script {
    pub fn run(&self) {
        if self.wait {
            say("ready");
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        }
        let created = SHAPE.options(DIM, METRIC).create(&self.path);
        let index = match created {
            Ok(index) => index,
            Err(e) => return say(&format!("fault Create: {e}")),
        };
        say("created");
        let mut life =
            Life { index: Some(index), model: Model::new(DIM, METRIC), tried: None, doubt: false };
        for step in SCRIPT {
            let Err(e) = self.step(step, &mut life) else { continue };
            say(&format!("fault {step:?}: {e}"));
            if matches!(e, Error::Corrupt { .. }) {
                say("corrupt");
            }
            let Some(index) = &life.index else { return };
            let refused = matches!(e, Error::Poisoned { .. });
            if step.changes() && (refused || index.stats().poisoned.is_none()) {
                // A change that was refused leaves the one before it in doubt.
                life.tried = life.tried.take().filter(|_| refused && life.doubt);
                say("dropped");
            } else if step.changes() {
                life.doubt = true;
            }
            readers_go_on(index, &life.model);
        }
        if let Some(Err(e)) = life.index.map(Index::close) {
            say(&format!("fault Close: {e}"));
        }
        say("done");
    }

    fn step(&self, step: Step, life: &mut Life) -> Result<(), Error> {
        if matches!(step, Step::Reopen) {
            if let Some(index) = life.index.take() {
                index.close()?;
            }
            let options = Options::stored().maintenance(Maintenance::Manual).threads(1);
            let index = options.open(&self.path)?;
            life.doubt = false;
            if let Some(change) = life.tried.take() {
                let there = index.ids() != life.model.ids();
                if there {
                    change.apply(&mut life.model);
                }
                say(if there { "ack" } else { "dropped" });
            }
            life.index = Some(index);
            return Ok(());
        }
        let (Some(index), model) = (&life.index, &mut life.model) else { return Ok(()) };
        match step {
            Step::Insert(n) => {
                let ids = model.next..model.next + n;
                say(&format!("try insert {} {}", ids.start, ids.end));
                let change = life.tried.get_or_insert(Change::Insert(ids.clone())).clone();
                assert_eq!(index.insert_many(&vectors(ids.clone(), METRIC))?, ids);
                change.apply(model);
                life.tried = None;
            }
            Step::Remove(every) => {
                let ids: Vec<usize> = model.ids().into_iter().step_by(every).collect();
                let words: Vec<String> = ids.iter().map(usize::to_string).collect();
                say(&format!("try remove {}", words.join(" ")));
                let change = life.tried.get_or_insert(Change::Remove(ids.clone())).clone();
                assert_eq!(index.remove_many(&ids)?, ids.len());
                change.apply(model);
                life.tried = None;
            }
            Step::Flush => index.flush()?,
            Step::Train => index.train()?,
            Step::Compact => drop(index.compact()?),
            Step::Reopen => {}
        }
        say("ack");
        Ok(())
    }
}

/// A failed step took nothing from the readers. One search more may meet the fault; then the next is
/// right.
fn readers_go_on(index: &Index, model: &Model) {
    if index.ids() != model.ids() {
        panic!("readers see {} rows, {} were acknowledged", index.len(), model.rows.len());
    }
    let first = model.differs(index, 1);
    if let Err(e) =
        first.and_then(|()| model.differs(index, 2)).or_else(|_| model.differs(index, 3))
    {
        panic!("a reader saw {e}");
    }
}
