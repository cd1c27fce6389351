//! A real process, killed with SIGKILL at random moments while it inserts, removes, folds, trains and
//! compacts. After each kill the index must hold what was acknowledged, and of the change that was
//! under way all or nothing. `CELLARDB_KILLS` sets the number of kills.

use cellardb::{Index, Kind, Options};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const DIM: usize = 16;
const CHILD: &str = "CELLARDB_KILL_CHILD";
const SEED: &str = "CELLARDB_KILL_SEED";

/// A small generator, so that a seed is a workload.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// What is stored under an id.
fn vector(id: u64) -> Vec<f32> {
    (0..DIM as u64).map(|d| ((id * 31 + d * 17) % 101) as f32).collect()
}

fn options(kind: u64) -> Options {
    let kind = [Kind::Auto, Kind::IvfFlat, Kind::Exact][kind as usize % 3];
    Index::options(DIM).kind(kind).train_at(600).segment_bytes(64 << 10)
}

/// A change: ids that are inserted, or removed.
#[derive(Debug, Clone, Default)]
struct Change {
    insert: bool,
    ids: Vec<u64>,
}

impl Change {
    fn parse(words: &[&str]) -> Self {
        // The last line may be cut short; then the change was not begun.
        let ids = words.iter().skip(1).filter_map(|w| w.parse().ok()).collect();
        Self { insert: words.first() == Some(&"insert"), ids }
    }

    fn apply(&self, live: &mut BTreeSet<u64>) {
        for id in &self.ids {
            if self.insert {
                live.insert(*id);
            } else {
                live.remove(id);
            }
        }
    }
}

/// The child: changes the index for ever, and says what it tries and what was acknowledged.
fn work(path: &str) -> ! {
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let (mut rng, mut out) = (Rng(seed), std::io::stdout());
    let index = Options::stored().open(path).unwrap();
    let mut live: Vec<u64> = index.ids().iter().map(|id| *id as u64).collect();
    let mut next = index.stats().next_id;
    loop {
        let insert = live.len() < 50 || rng.below(10) < 7;
        let ids: Vec<u64> = if insert {
            let n = [1, 1, 1, 20, 300][rng.below(5) as usize];
            (next..next + n).collect()
        } else {
            let n = 1 + rng.below(40);
            let mut ids: Vec<u64> =
                (0..n).map(|_| live[rng.below(live.len() as u64) as usize]).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let words: Vec<String> = ids.iter().map(u64::to_string).collect();
        let verb = if insert { "insert" } else { "remove" };
        writeln!(out, "\ntry {verb} {}", words.join(" ")).unwrap();
        out.flush().unwrap();
        if insert {
            let rows: Vec<f32> = ids.iter().flat_map(|id| vector(*id)).collect();
            assert_eq!(index.insert_many(&rows).unwrap().start as u64, next);
            next += ids.len() as u64;
            live.extend(&ids);
        } else {
            let gone: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
            assert_eq!(index.remove_many(&gone).unwrap(), ids.len());
            live.retain(|id| ids.binary_search(id).is_err());
        }
        writeln!(out, "\nack").unwrap();
        out.flush().unwrap();
        match rng.below(40) {
            0 => index.flush().unwrap(),
            1 => drop(index.compact().unwrap()),
            2 => index.train().unwrap(),
            _ => {}
        }
    }
}

/// Compares the index with what it may hold; returns what it does hold.
fn check(path: &Path, acked: &BTreeSet<u64>, tried: Option<&Change>) -> BTreeSet<u64> {
    let index = Index::open(path).unwrap();
    let found: BTreeSet<u64> = index.ids().iter().map(|id| *id as u64).collect();
    let mut both = acked.clone();
    tried.into_iter().for_each(|change| change.apply(&mut both));
    assert!(
        found == *acked || found == both,
        "{} rows of {} or {}",
        found.len(),
        acked.len(),
        both.len()
    );
    assert_eq!(index.len(), found.len());
    for id in &found {
        assert_eq!(index.get(*id as usize).unwrap(), Some(vector(*id)), "row {id}");
    }
    let report = index.verify().unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    if let Some(id) = found.last() {
        let hits = index.query(&vector(*id)).k(1).exact().run().unwrap();
        assert_eq!(hits[0].1, 0.0);
    }
    index.close().unwrap();
    found
}

#[test]
fn a_killed_process_loses_no_acknowledged_change_and_halves_none() {
    if let Ok(path) = std::env::var(CHILD) {
        work(&path);
    }
    let kills: u64 = std::env::var("CELLARDB_KILLS").map_or(12, |n| n.parse().unwrap());
    let (root, mut rng) = (tempfile::tempdir().unwrap(), Rng(7));
    let (mut live, mut path) = (BTreeSet::new(), root.path().join("none"));
    let (mut acks, mut late) = (0_u64, 0_u64);
    let mut kill = 0;
    // More than asked for where a busy machine let the child do little.
    while kill < kills || acks <= kills {
        assert!(kill < 100 * kills, "the child hardly runs");
        if kill % 8 == 0 {
            path = root.path().join(format!("{kill}.cellar"));
            options(kill / 8).create(&path).unwrap().close().unwrap();
            live = BTreeSet::new();
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "kill::a_killed_process_loses_no_acknowledged_change_and_halves_none",
            ])
            .env(CHILD, &path)
            .env(SEED, kill.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            lines.lines().map_while(Result::ok).collect::<Vec<String>>()
        });
        std::thread::sleep(Duration::from_micros(5_000 + rng.below(300_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut tried = None;
        for line in reader.join().unwrap() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.first() {
                Some(&"try") => tried = Some(Change::parse(&words[1..])),
                Some(&"ack") => {
                    tried.take().unwrap().apply(&mut live);
                    acks += 1;
                }
                _ => {}
            }
        }
        let found = check(&path, &live, tried.as_ref());
        late += u64::from(found != live);
        live = found;
        kill += 1;
    }
    println!("{kill} kills, {acks} acknowledged changes, {late} more were durable, none was lost");
}
