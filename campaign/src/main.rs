//! `campaign`: the long proofs of what Cellar promises, each a command with a seed and a time limit. Any
//! failure prints the command that repeats it, and ends the process with a code that is not 0.

use cellardb_campaign::verbs;
use clap::{Parser, Subcommand};

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
    Damage(verbs::damage::Damage),
    Kills(verbs::kills::Kills),
    Kernel(verbs::kernel::Kernel),
    Syscalls(verbs::syscalls::Syscalls),
    Limits(verbs::limits::Limits),
    Hostile(verbs::hostile::Hostile),
    Planted(verbs::planted::Planted),
    Threads(verbs::threads::Threads),
}

fn main() {
    match Arguments::parse().verb {
        Verb::Cuts(verb) => verb.run(),
        Verb::Damage(verb) => verb.run(),
        Verb::Kills(verb) => verb.run(),
        Verb::Kernel(verb) => verb.run(),
        Verb::Syscalls(verb) => verb.run(),
        Verb::Limits(verb) => verb.run(),
        Verb::Hostile(verb) => verb.run(),
        Verb::Planted(verb) => verb.run(),
        Verb::Threads(verb) => verb.run(),
    }
}
