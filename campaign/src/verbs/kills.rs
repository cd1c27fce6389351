//! A real process, killed with SIGKILL again and again.

use super::{Until, share};
use crate::data::Rng;
use crate::patience::HANGS;
use crate::process::{self, Followed, Journal, Running};
use crate::scratch::scratch;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Kills of one index before a new one is made.
const LIVES: u64 = 20;
/// Kills, unless something else is said.
const KILLS: u64 = 200;

/// A real process, killed with SIGKILL again and again: at random moments of its life, while it
/// opens, closes, folds, trains and compacts. Each time the index must hold what was acknowledged.
/// 200 kills, unless --count or --seconds say otherwise.
#[derive(Debug, Args)]
pub struct Kills {
    #[command(flatten)]
    until: Until,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Children at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Where the indexes are made.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Tally {
    acked: u64,
    late: u64,
    opening: u64,
    closing: u64,
    upkeep: u64,
    opened: Vec<Duration>,
}

impl Kills {
    pub fn run(&self) -> Result<String, String> {
        let start = Instant::now();
        let mut root = scratch(self.dir.as_deref())?;
        let count = self.until.count(KILLS);
        let tally = Mutex::new(Tally::default());
        let done = share(self.jobs, |n| {
            let first = n * LIVES;
            if first >= count || self.until.over(start) {
                return Ok(false);
            }
            let path = root.path().join(format!("{first}.cellar"));
            self.lineage(&path, first..(first + LIVES).min(count), start, &tally)?;
            std::fs::remove_dir_all(&path).map_err(|e| e.to_string())?;
            Ok(true)
        });
        // What failed is kept.
        done.inspect_err(|_| root.disable_cleanup(true))?;
        let mut tally = tally.into_inner().unwrap();
        tally.opened.sort();
        let n = tally.opened.len();
        if n == 0 {
            return Err("no kill in the time".into());
        }
        let told = format!(
            "kills: {n} kills ({} while opening, {} while closing, {} during upkeep), {} acknowledged changes, \
             {} more were durable, none lost or halved; open after a kill {:.1?} median, {:.1?} at most; {:.0?}{}",
            tally.opening,
            tally.closing,
            tally.upkeep,
            tally.acked,
            tally.late,
            tally.opened[n / 2],
            tally.opened[n - 1],
            start.elapsed(),
            self.until.early(n as u64)
        );
        match tally.acked > n as u64 / 2 {
            true => Ok(told),
            false => Err(format!("{told}\nthe children hardly ran")),
        }
    }

    /// One index through many lives.
    fn lineage(
        &self,
        path: &Path,
        kills: std::ops::Range<u64>,
        start: Instant,
        tally: &Mutex<Tally>,
    ) -> Result<(), String> {
        let kind = (kills.start / LIVES + self.seed) as usize;
        let mut model = process::create(path, kind).map_err(|e| format!("create: {e}"))?;
        for kill in kills {
            if self.until.over(start) {
                break;
            }
            let seed = self.seed << 32 | kill;
            let (journal, moment) = kill_one(path, seed, model);
            let found = process::check(path, &journal, seed).map_err(|e| {
                format!(
                    "kill {kill} ({moment:?}): {e}\nthe index: {}\nrepeat (the moment of a kill is \
                     real time, it may take several runs): campaign kills --seed {} --count {}",
                    path.display(),
                    self.seed,
                    kill + 1
                )
            })?;
            let mut tally = tally.lock().unwrap();
            tally.acked += journal.acked as u64;
            tally.late += found.late as u64;
            tally.opened.push(found.opened);
            match moment {
                Moment::Opening => tally.opening += 1,
                Moment::Closing => tally.closing += 1,
                Moment::Upkeep => tally.upkeep += 1,
                Moment::Any => {}
            }
            if tally.opened.len().is_multiple_of(1000) {
                eprintln!("{} kills", tally.opened.len());
            }
            model = found.model;
        }
        Ok(())
    }
}

/// What a kill waits for.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Any,
    Opening,
    Closing,
    Upkeep,
}

/// Lets a child work and kills it; what it said, and when it died.
fn kill_one(path: &Path, seed: u64, model: crate::model::Model) -> (Journal, Moment) {
    let mut rng = Rng::new(seed);
    let mut command = process::myself("child");
    command.arg(path).arg("--seed").arg(seed.to_string());
    let mut child = Running::start(command, model);
    let moment = [Moment::Any, Moment::Opening, Moment::Closing, Moment::Upkeep][rng.below(4)];
    let (line, most) = match moment {
        Moment::Any => ("", 60_000),
        Moment::Opening => ("opening", 8_000),
        Moment::Closing => ("closing", 4_000),
        Moment::Upkeep => ("upkeep", 20_000),
    };
    let mut wait = Duration::from_micros(rng.below(most) as u64);
    let mut followed = Followed::Reached;
    if !line.is_empty() {
        followed = child.follow(HANGS, |said| said.starts_with(line));
    } else {
        wait += Duration::from_millis(1);
    }
    if followed == Followed::Reached {
        followed = child.follow(wait, |_| false);
    }
    assert_eq!(followed, Followed::TimeOut, "the child ended by itself, or hangs");
    let (journal, _) = child.kill();
    assert_eq!(journal.error, None, "the child failed");
    (journal, moment)
}
