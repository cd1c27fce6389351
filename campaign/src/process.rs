//! A real process that changes an index and says what it tries and what was acknowledged, and the
//! oracle of what it leaves behind. The journal goes through a pipe to the parent, so it outlives
//! whatever happens to the child and its file system.

use crate::data::Rng;
use crate::model::Model;
use crate::{METRICS, SHAPES, Shape};
use cellardb::{Durability, Error, Index, Maintenance, Metric, Options};
use clap::Args;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child as Process, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::RwLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

pub const DIM: usize = 16;

/// A child that is being started holds the locks of this process until it is another program, so
/// nothing is started while an index is open here.
static STARTS: RwLock<()> = RwLock::new(());

/// What is stored under an id: small integers, so that all distances are exact.
pub fn vector(id: usize, metric: Metric) -> Vec<f32> {
    crate::data::vector(&mut Rng::new(id as u64), DIM, metric)
}

/// Vectors of consecutive ids, row after row.
pub fn vectors(ids: std::ops::Range<usize>, metric: Metric) -> Vec<f32> {
    ids.flat_map(|id| vector(id, metric)).collect()
}

/// Makes an empty index of the `n`-th kind and metric.
pub fn create(path: &Path, n: usize) -> Result<Model, Error> {
    let _open = STARTS.read().unwrap();
    let (shape, metric): (Shape, Metric) = (SHAPES[n % 5], METRICS[n / 5 % 3]);
    shape.options(DIM, metric).train_at(128).create(path)?.close()?;
    Ok(Model::new(DIM, metric))
}

/// Changes an index until it is stopped. Runs in a process of its own.
#[derive(Debug, Clone, Args)]
pub struct Child {
    pub path: PathBuf,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Says something to the parent, in one write.
pub fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Other options at each opening; whether a change is durable when it returns.
fn reopening(rng: &mut Rng) -> (Options, bool) {
    let maintenance = [Maintenance::Background, Maintenance::Manual][rng.below(2)];
    let interval = [Duration::from_millis(3), Duration::from_secs(3600)][rng.below(2)];
    let options = Options::stored()
        .threads(1 + rng.below(2))
        .memory((16 + rng.below(3) * 24) << 20)
        .maintenance(maintenance);
    match rng.below(4) {
        0 => (options.durability(Durability::Interval(interval)), false),
        _ => (options, true),
    }
}

impl Child {
    /// Opens, works, closes, for ever. The first error is said, and ends the process with code 3.
    pub fn run(&self) {
        let mut rng = Rng::new(self.seed);
        loop {
            if let Err(e) = self.life(&mut rng) {
                say(&format!("error {e}"));
                std::process::exit(3);
            }
        }
    }

    fn life(&self, rng: &mut Rng) -> Result<(), Error> {
        let (options, durable) = reopening(rng);
        say("opening");
        let index = options.open(&self.path)?;
        say("opened");
        let metric = index.metric();
        let mut live = index.ids();
        let mut next = index.stats().next_id as usize;
        for _ in 0..5 + rng.below(60) {
            let insert = live.len() < 50 || (live.len() < 1200 && rng.below(10) < 7);
            if insert {
                let end = next + [1, 1, 1, 20, 150][rng.below(5)];
                say(&format!("try insert {next} {end}"));
                let found = index.insert_many(&vectors(next..end, metric))?;
                assert_eq!(found, next..end, "ids of an insert");
                live.extend(next..end);
                next = end;
            } else {
                let n = 1 + rng.below(40);
                let mut ids: Vec<usize> = (0..n).map(|_| live[rng.below(live.len())]).collect();
                ids.sort_unstable();
                ids.dedup();
                let words: Vec<String> = ids.iter().map(usize::to_string).collect();
                say(&format!("try remove {}", words.join(" ")));
                assert_eq!(index.remove_many(&ids)?, ids.len(), "rows removed");
                live.retain(|id| ids.binary_search(id).is_err());
            }
            if durable {
                say("ack");
            }
            self.upkeep(&index, rng)?;
            let probe = live[rng.below(live.len())];
            let hits = index.query(&vector(probe, metric)).k(1).exact().run()?;
            assert_eq!(hits.len(), 1, "a live row is found");
        }
        say("closing");
        index.close()?;
        say("ack");
        Ok(())
    }

    fn upkeep(&self, index: &Index, rng: &mut Rng) -> Result<(), Error> {
        match rng.below(30) {
            0 | 1 => {
                say("upkeep flush");
                index.flush()?;
            }
            2 => {
                say("upkeep compact");
                index.compact()?;
            }
            3 => {
                say("upkeep train");
                index.train()?;
            }
            _ => return Ok(()),
        }
        say("ack");
        Ok(())
    }
}

/// A change that a child tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Insert(std::ops::Range<usize>),
    Remove(Vec<usize>),
}

impl Change {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("try ")?.split(' ');
        let verb = words.next()?;
        let ids: Vec<usize> = words.filter(|w| !w.is_empty()).map(|w| w.parse().unwrap()).collect();
        Some(if verb == "insert" { Self::Insert(ids[0]..ids[1]) } else { Self::Remove(ids) })
    }

    pub fn apply(&self, model: &mut Model) {
        match self {
            Self::Insert(ids) => {
                assert_eq!(model.insert(&vectors(ids.clone(), model.metric)), *ids);
            }
            Self::Remove(ids) => assert_eq!(model.remove(ids), ids.len()),
        }
    }
}

/// What was there, what was tried since, and how many of that were acknowledged.
#[derive(Debug, Clone)]
pub struct Journal {
    pub base: Model,
    pub tried: Vec<Change>,
    pub acked: usize,
    /// The error that the child ended with.
    pub error: Option<String>,
}

impl Journal {
    pub fn new(base: Model) -> Self {
        Self { base, tried: Vec::new(), acked: 0, error: None }
    }

    pub fn note(&mut self, line: &str) {
        if let Some(change) = Change::parse(line) {
            self.tried.push(change);
        } else if line == "ack" {
            self.acked = self.tried.len();
        } else if line == "dropped" {
            // It failed, and the index went on without it.
            self.tried.pop();
        } else if let Some(error) = line.strip_prefix("error ") {
            self.error = Some(error.to_owned());
        }
    }
}

/// A child at work.
#[derive(Debug)]
pub struct Running {
    process: Process,
    lines: Receiver<String>,
    pub journal: Journal,
}

/// How following a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    Reached,
    TimeOut,
    Ended,
}

/// This program again, as a hidden verb.
pub fn myself(verb: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(verb);
    command
}

/// Starts a process.
pub fn spawn(command: &mut Command) -> Process {
    let _starting = STARTS.write().unwrap();
    command.spawn().unwrap()
}

impl Running {
    /// Starts a child that works on what `base` says.
    pub fn start(mut command: Command, base: Model) -> Self {
        let mut process = spawn(command.stdout(Stdio::piped()));
        let (out, lines) = (process.stdout.take().unwrap(), channel());
        std::thread::spawn(move || forward(out, |line| lines.0.send(line).is_ok()));
        Self { process, lines: lines.1, journal: Journal::new(base) }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Takes in what the child says until `reached` a line, or for so long.
    pub fn follow(&mut self, most: Duration, mut reached: impl FnMut(&str) -> bool) -> Followed {
        let end = Instant::now() + most;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.journal.note(&line);
                    if reached(&line) {
                        return Followed::Reached;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Followed::TimeOut,
                Err(RecvTimeoutError::Disconnected) => return Followed::Ended,
            }
        }
    }

    /// Kills the child, if it still lives, and takes in the rest of what it said.
    pub fn kill(mut self) -> (Journal, ExitStatus) {
        let _ = self.process.kill();
        self.end()
    }

    /// Waits for the end of the child and takes in the rest of what it said.
    pub fn end(mut self) -> (Journal, ExitStatus) {
        let status = self.process.wait().unwrap();
        for line in self.lines.iter() {
            self.journal.note(&line);
        }
        (self.journal, status)
    }
}

/// Hands on whole lines; what a killed child did not end, it did not say.
fn forward(out: ChildStdout, mut send: impl FnMut(String) -> bool) {
    let mut out = BufReader::new(out);
    loop {
        let mut line = String::new();
        match out.read_line(&mut line) {
            Ok(n) if n > 0 && line.ends_with('\n') => {
                line.pop();
                if !send(line) {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// What was found after a child ended.
#[derive(Debug, Clone)]
pub struct Found {
    pub model: Model,
    /// Changes that were durable without being acknowledged.
    pub late: usize,
    /// What opening took.
    pub opened: Duration,
}

/// The oracle: the index holds what was acknowledged and a prefix of what was tried, is whole, opens
/// the same again, and takes changes.
pub fn check(path: &Path, journal: &Journal, seed: u64) -> Result<Found, String> {
    let _open = STARTS.read().unwrap();
    let mut found = reopen(path, journal, seed)?;
    let again = Journal::new(found.model.clone());
    reopen(path, &again, seed + 1).map_err(|e| format!("second open: {e}"))?;
    goes_on(path, &mut found.model, seed).map_err(|e| format!("going on: {e}"))?;
    Ok(found)
}

/// What a failed creation left is no obstacle: there is an empty index, or one can be made.
pub fn check_created(path: &Path, shape: Shape) -> Result<(), String> {
    let index = {
        let _open = STARTS.read().unwrap();
        let options = shape.options(DIM, Metric::L2);
        options.open_or_create(path).map_err(|e| format!("open or create: {e}"))?
    };
    let model = Model::new(DIM, Metric::L2);
    model.differs(&index, 1)?;
    index.close().map_err(|e| e.to_string())?;
    check(path, &Journal::new(model), 1).map(|_| ())
}

fn reopen(path: &Path, journal: &Journal, seed: u64) -> Result<Found, String> {
    let start = Instant::now();
    let options = Options::stored().maintenance(Maintenance::Manual).threads(1);
    let index = options.open(path).map_err(|e| format!("open: {e}"))?;
    let opened = start.elapsed();
    let ids = index.ids();
    let mut model = journal.base.clone();
    let mut at = 0;
    loop {
        if at >= journal.acked && model.ids() == ids {
            break;
        }
        let Some(change) = journal.tried.get(at) else {
            let (acked, tried) = (journal.acked, journal.tried.len());
            return Err(format!(
                "{} rows are the state after none of {acked} to {tried} changes ({} rows): {ids:?}",
                ids.len(),
                model.rows.len()
            ));
        };
        change.apply(&mut model);
        at += 1;
    }
    model.differs(&index, seed)?;
    let report = index.verify().map_err(|e| format!("verify: {e}"))?;
    if !report.damage.is_empty() {
        return Err(format!("verify found {:?}", report.damage));
    }
    index.close().map_err(|e| format!("close: {e}"))?;
    Ok(Found { model, late: at - journal.acked, opened })
}

fn goes_on(path: &Path, model: &mut Model, seed: u64) -> Result<(), String> {
    let text = |e: Error| e.to_string();
    let options = Options::stored().maintenance(Maintenance::Manual).threads(1);
    let index = options.open(path).map_err(text)?;
    let ids = model.next..model.next + 1 + seed as usize % 5;
    let found = index.insert_many(&vectors(ids.clone(), model.metric)).map_err(text)?;
    if found != ids {
        return Err(format!("new rows got ids {found:?}, should be {ids:?}"));
    }
    Change::Insert(ids.clone()).apply(model);
    index.remove(ids.start).map_err(text)?;
    Change::Remove(vec![ids.start]).apply(model);
    match seed % 4 {
        0 => index.flush().map_err(text)?,
        1 => drop(index.compact().map_err(text)?),
        _ => {}
    }
    let probe = vector(ids.start, model.metric);
    let (found, right) =
        (index.query(&probe).k(3).exact().run().map_err(text)?, model.search(&probe, 3));
    if found != right {
        return Err(format!("exact search found {found:?}, should be {right:?}"));
    }
    index.close().map_err(text)
}
