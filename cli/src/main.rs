//! The command line of Cellar: reads arguments, calls the public API of `cellardb`, prints the result.

mod bytes;
mod element;
mod failure;
mod interrupt;
mod layout;
mod npy;
mod npz;
mod output;
mod target;
mod vectors;
mod verbs;

use clap::{Parser, Subcommand};
use failure::Failure;
use output::Console;
use std::process::ExitCode;

/// Keeps embedding vectors in a directory, where a crash loses none that was acknowledged, and finds the
/// nearest ones fast.
#[derive(Debug, Parser)]
#[command(name = "cellardb", version, max_term_width = 100,
          after_help = AFTER)]
struct Arguments {
    /// Print results as JSON: one object, or one per line for search, bench and get.
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// Print no notes and no progress bars.
    #[arg(long, short, global = true, help_heading = "Global options")]
    quiet: bool,
    /// Wait so long for an index that another process has open.
    #[arg(long, global = true, value_name = "SECONDS", default_value = "0", hide_default_value = true,
          value_parser = verbs::parse_seconds)]
    wait: std::time::Duration,
    /// Read the files of an index through maps, or copy what is read and verify it each time: where others
    /// write to them, on the file system of a network, under a limit of memory.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "HOW",
        default_value = "map",
        hide_default_value = true
    )]
    reads: verbs::ReadsName,
    #[command(subcommand)]
    verb: Verb,
}

const AFTER: &str = "\
Examples:
  cellardb create words --dim 384 --metric cosine
  cellardb import words embeddings.npy
  cellardb search words queries.npy -k 10 --recall 0.95

`cellardb VERB --help` says more of a verb. Exit codes: 0 done, 1 error, 2 usage, 3 corruption found, 4 locked by \
another process, 5 format of another version, 130 interrupted.";

#[derive(Debug, Subcommand)]
enum Verb {
    Create(verbs::create::Create),
    Import(verbs::import::Import),
    Train(verbs::maintain::Train),
    Calibrate(verbs::maintain::Calibrate),
    Search(verbs::search::Search),
    Bench(verbs::bench::Bench),
    Get(verbs::rows::Get),
    Remove(verbs::rows::Remove),
    Stats(verbs::inspect::ShowStats),
    Verify(verbs::inspect::Verify),
    Repair(verbs::repair::Repair),
    Compact(verbs::maintain::Compact),
    Export(verbs::export::Export),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    verbs::open_so(arguments.wait, arguments.reads);
    let console = Console::new(arguments.json, arguments.quiet);
    let outcome = match arguments.verb {
        Verb::Create(verb) => verb.run(&console),
        Verb::Import(verb) => verb.run(&console),
        Verb::Train(verb) => verb.run(&console),
        Verb::Calibrate(verb) => verb.run(&console),
        Verb::Search(verb) => verb.run(&console),
        Verb::Bench(verb) => verb.run(&console),
        Verb::Get(verb) => verb.run(&console),
        Verb::Remove(verb) => verb.run(&console),
        Verb::Stats(verb) => verb.run(&console),
        Verb::Verify(verb) => verb.run(&console),
        Verb::Repair(verb) => verb.run(&console),
        Verb::Compact(verb) => verb.run(&console),
        Verb::Export(verb) => verb.run(&console),
    };
    match outcome {
        Ok(()) | Err(Failure::ReaderGone) => ExitCode::SUCCESS,
        Err(failure) => {
            console.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}
