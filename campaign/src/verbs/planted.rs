//! Plants one bug after the other and demands that a suite notices it. Needs the feature `planted`,
//! which no release build takes: `cargo run --profile test -p cellardb-campaign --features planted --
//! planted`.

use clap::Args;
use std::time::Duration;

/// Plants one bug after the other and demands that a suite notices it.
#[derive(Debug, Args)]
pub struct Planted {
    /// Only bugs whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Each is to be found within so many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Bugs at a time: every `n`-th from the `i`-th on, as `i/n`.
    #[arg(long, value_name = "I/N", value_parser = super::part, default_value = "0/1")]
    part: (usize, usize),
    /// Writes the table to docs/planted.md.
    #[arg(long)]
    write: bool,
}

#[cfg(not(feature = "planted"))]
impl Planted {
    pub fn run(&self) -> Result<String, String> {
        let Self { only, seconds, part, write } = self;
        let asked = format!("{only:?} {:?} {part:?} {write}", Duration::from_secs(*seconds));
        Err(format!("built without the feature `planted` there is no bug to find ({asked})"))
    }
}

#[cfg(feature = "planted")]
impl Planted {
    pub fn run(&self) -> Result<String, String> {
        use crate::suites;
        use bugs::hunt;
        use cellardb::planted::{Bug, plant};
        // Panics of planted bugs are findings; they need not be told.
        std::panic::set_hook(Box::new(|_| {}));
        let limit = Duration::from_secs(self.seconds);
        for suite in suites::ALL {
            let clean = suite.round(0).and_then(|()| suite.round(1));
            clean.map_err(|e| format!("suite {} fails without any bug: {e}", suite.name))?;
        }
        let (mut table, mut missed, mut n) = (String::new(), Vec::new(), 0);
        let wanted = Bug::ALL.iter().filter(|bug| format!("{bug:?}").contains(&self.only));
        for bug in
            wanted.enumerate().filter(|(i, _)| i % self.part.1 == self.part.0).map(|(_, b)| b)
        {
            n += 1;
            plant(Some(*bug));
            let found = hunt(limit);
            plant(None);
            let line = match &found {
                Some((suite, time, what)) => {
                    let what = what.lines().next().unwrap_or_default().replace('|', "/");
                    let what: String = what.chars().take(110).collect();
                    format!(
                        "| {bug:?} | {} | {suite} | {:.1} s | {what} |",
                        bug.what(),
                        time.as_secs_f64()
                    )
                }
                None => format!("| {bug:?} | {} | none | | |", bug.what()),
            };
            eprintln!("{line}");
            table.push_str(&line);
            table.push('\n');
            missed.extend(found.is_none().then_some(format!("{bug:?}")));
        }
        if self.write {
            bugs::write(&table)?;
        }
        match missed.is_empty() && n > 0 {
            true => Ok(format!("{n} planted bugs, each noticed within {} s", self.seconds)),
            false => {
                Err(format!("of {n} planted bugs these were not noticed: {}", missed.join(", ")))
            }
        }
    }
}

#[cfg(feature = "planted")]
mod bugs {
    use crate::suites;
    use std::time::{Duration, Instant};

    /// The suites in turns, a round each, until one fails.
    pub(super) fn hunt(limit: Duration) -> Option<(&'static str, Duration, String)> {
        let start = Instant::now();
        for seed in 0.. {
            for suite in suites::ALL {
                if let Err(what) = suite.round(seed) {
                    let time = start.elapsed();
                    return (time <= limit).then_some((suite.name, time, what));
                }
            }
            if start.elapsed() > limit {
                return None;
            }
        }
        None
    }

    pub(super) fn write(table: &str) -> Result<(), String> {
        let head = "# Planted bugs\n\nBugs on purpose (`src/planted.rs`), and the suite that noticed each first. \
             The suites take turns, a round each; so the time\nis that of all of them. Made by `cargo run \
             --profile test -p cellardb-campaign --features planted -- planted --write`.\n\n| bug | what it \
             does | noticed by | after | how |\n|---|---|---|---|---|\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/planted.md");
        #[expect(clippy::disallowed_methods, reason = "asked for by --write")]
        std::fs::write(path, format!("{head}{table}")).map_err(|e| e.to_string())
    }
}
