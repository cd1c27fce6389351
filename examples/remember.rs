//! A memory that survives its process being killed.
//!
//! A child process inserts words one by one and acknowledges each. The parent kills it with SIGKILL
//! in the middle, opens the index again, proves that every acknowledged word is there bit for bit,
//! adds the rest, trains, and looks for neighbours. Exits with 1 if a proof fails.
//!
//! ```text
//! cargo run --release --example remember [-- --seed N]
//! ```
#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use cellardb::{Index, Maintenance, Metric, Options};
use cellardb_examples::{DIM, Words};
use std::env;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const QUERIES: usize = 300;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--child", dir] => child(Path::new(dir)),
        ["--seed", seed] => seed.parse().map_err(Into::into).and_then(parent),
        [] => parent(1),
        _ => Err("usage: remember [--seed N]".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "remember: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Inserts the words, and says so of each once it is durable.
fn child(dir: &Path) -> Outcome {
    let words = Words::load();
    let index = Index::options(DIM).metric(Metric::Cosine).create(dir)?;
    let mut out = std::io::stdout().lock();
    for id in 0..words.words.len() {
        let given = index.insert(words.vector(id))?;
        writeln!(out, "{given}")?;
    }
    Ok(())
}

fn parent(seed: u64) -> Outcome {
    let words = Words::load();
    println!("{} words of GloVe, {DIM} dimensions, cosine", words.words.len());
    let room = tempfile::tempdir()?;
    let dir = room.path().join("words.cellar");

    let acknowledged = insert_until_killed(&dir, 400 + (mix(seed) % 800) as usize)?;

    // By hand, so that training is not already under way when it is timed.
    let start = Instant::now();
    let index = Options::stored().maintenance(Maintenance::Manual).open(&dir)?;
    println!("open     {} after the kill", milliseconds(start.elapsed()));
    prove_all_there(&index, &words, acknowledged)?;

    let (start, there) = (Instant::now(), index.len());
    index.insert_many(&words.vectors[there * DIM..])?;
    let inserted = start.elapsed();
    index.train()?;
    println!(
        "rest     {} words in one commit of {}, trained in {}",
        words.words.len() - there,
        milliseconds(inserted),
        milliseconds(start.elapsed() - inserted)
    );
    index.close()?;

    let start = Instant::now();
    let index = Index::open(&dir)?;
    println!("open     {} with {} words", milliseconds(start.elapsed()), index.len());
    prove(index.len() == words.words.len(), "all words are there")?;
    let damage = index.verify()?.damage;
    prove(damage.is_empty(), "every checksum of every file is right")?;
    println!("verify   every checksum of every file is right");

    for word in ["king", "paris", "three", "guitar", "rain"] {
        let id = words.words.iter().position(|w| *w == word).ok_or("not among the words")?;
        let hits = index.search(words.vector(id), 7)?;
        prove(hits.first().is_some_and(|hit| hit.0 == id), "a word is nearest to itself")?;
        let near: Vec<_> = hits[1..].iter().map(|(id, _)| words.words[*id]).collect();
        println!("near     {word}: {}", near.join(", "));
    }
    measure(&index, &words)
}

/// Runs the child and kills it once it has acknowledged `enough` words; returns how many it did.
fn insert_until_killed(dir: &Path, enough: usize) -> Outcome<usize> {
    let mut command = Command::new(env::current_exe()?);
    let mut child = command.arg("--child").arg(dir).stdout(Stdio::piped()).spawn()?;
    let acks = BufReader::new(child.stdout.take().ok_or("the child has no standard output")?);
    let (start, mut count) = (Instant::now(), 0);
    for line in acks.lines() {
        // What is still in the pipe after the kill was acknowledged before it, and counts.
        let id: usize = line?.parse()?;
        prove(id == count, "ids are given in order")?;
        count += 1;
        if count == enough {
            child.kill()?;
        }
    }
    let (status, each) = (child.wait()?, start.elapsed() / count.max(1) as u32);
    prove(!status.success() && count >= enough, "the child was killed, in the middle")?;
    println!("child    killed after {count} acknowledged inserts, {} each", milliseconds(each));
    Ok(count)
}

fn prove_all_there(index: &Index, words: &Words, acknowledged: usize) -> Outcome {
    let there = index.len();
    // One more may have become durable and not been acknowledged yet.
    let expected = acknowledged..=acknowledged + 1;
    prove(expected.contains(&there), "no acknowledged word is lost, none is made up")?;
    for id in 0..there {
        let stored = index.get(id)?.ok_or(format!("{} is forgotten", words.words[id]))?;
        let same =
            stored.iter().map(|x| x.to_bits()).eq(words.vector(id).iter().map(|x| x.to_bits()));
        prove(same, "a word is what it was, bit for bit")?;
    }
    println!("proof    all {acknowledged} acknowledged words are there, bit for bit");
    Ok(())
}

/// Recall@10 of a plain search against an exact one, over words spread through the list.
fn measure(index: &Index, words: &Words) -> Outcome {
    let step = words.words.len() / QUERIES;
    let queries: Vec<_> = (0..QUERIES).map(|i| words.vector(i * step)).collect();
    let start = Instant::now();
    let found = queries.iter().map(|q| index.search(q, 10)).collect::<Result<Vec<_>, _>>()?;
    let fast = start.elapsed() / QUERIES as u32;
    let start = Instant::now();
    let exact = queries.iter().map(|q| index.query(q).k(10).exact().run());
    let exact = exact.collect::<Result<Vec<_>, _>>()?;
    let slow = start.elapsed() / QUERIES as u32;
    let in_both = found.iter().zip(&exact).map(|(found, exact)| {
        exact.iter().filter(|(id, _)| found.iter().any(|hit| hit.0 == *id)).count()
    });
    let recall = in_both.sum::<usize>() as f64 / (10 * QUERIES) as f64;
    println!(
        "recall   {recall:.3} of the 10 nearest over {QUERIES} words; {} us a search, {} us exact",
        fast.as_micros(),
        slow.as_micros()
    );
    prove(recall >= 0.9, "at least 0.9 of the nearest words are found")
}

fn prove(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(format!("not so: {what}").into()) }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// A number that looks random, from a seed (Steele, Lea and Flood 2014, `SplitMix64`).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
