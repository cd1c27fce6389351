//! `campaign`: the long proofs of what Cellar promises, each a command with a seed and a time limit. Any
//! failure prints the command that repeats it, and ends the process with a code that is not 0.

#![allow(clippy::print_stdout, reason = "the result of the command")]

use cellardb_campaign::damage::heap::Counting;
use cellardb_campaign::{process, script, verbs, year};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Damage must not make the engine ask for memory out of proportion.
#[global_allocator]
static HEAP: Counting = Counting;

/// Proves what Cellar promises, for as long as it is told to.
#[derive(Debug, Parser)]
#[command(name = "campaign", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Cuts(verbs::cuts::Cuts),
    Faults(verbs::faults::Faults),
    Damage(verbs::damage::Damage),
    Kills(verbs::kills::Kills),
    Kernel(verbs::kernel::Kernel),
    Syscalls(verbs::syscalls::Syscalls),
    Limits(verbs::limits::Limits),
    Hostile(verbs::hostile::Hostile),
    Planted(verbs::planted::Planted),
    Redb(verbs::redb::Redb),
    Recall(verbs::recall::Recall),
    Year(verbs::year::Year),
    /// The process that `kills` and `kernel` work with.
    #[command(hide = true)]
    Child(process::Child),
    /// The process that `syscalls` works with.
    #[command(hide = true)]
    Script(script::Script),
    /// The process that `limits` works with.
    #[command(hide = true)]
    Limited(verbs::limits::Limited),
    /// The process that `year` works with.
    #[command(hide = true)]
    YearChild(year::Year),
    Threads(verbs::threads::Threads),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Cuts(verb) => verb.run(),
        Verb::Faults(verb) => verb.run(),
        Verb::Damage(verb) => verb.run(),
        Verb::Kills(verb) => verb.run(),
        Verb::Kernel(verb) => verb.run(),
        Verb::Syscalls(verb) => verb.run(),
        Verb::Limits(verb) => verb.run(),
        Verb::Hostile(verb) => verb.run(),
        Verb::Planted(verb) => verb.run(),
        Verb::Redb(verb) => verb.run(),
        Verb::Recall(verb) => verb.run(),
        Verb::Year(verb) => verb.run(),
        Verb::Threads(verb) => verb.run(),
        Verb::Child(child) => part(|| child.run()),
        Verb::Script(script) => part(|| script.run()),
        Verb::Limited(limited) => part(|| limited.run()),
        Verb::YearChild(year) => part(|| year.run()),
    };
    match outcome {
        Ok(summary) => {
            if !summary.is_empty() {
                println!("{summary}");
            }
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("FAILED: {what}");
            ExitCode::FAILURE
        }
    }
}

/// For a process that a verb works with: what it has to tell goes to its parent.
fn part(run: impl FnOnce()) -> Result<String, String> {
    run();
    Ok(String::new())
}
