//! Other processes that truncate and replace the files under a query loop.
//!
//! Three processes: one that supervises, the host that searches on several threads and opens the index
//! again and again, and the neighbour that cuts, lengthens, replaces, overwrites, deletes and restores
//! the files at random. The host lives, and each of its answers is right or an error that names a file.

use crate::data::{self, Rng};
use crate::patience::HANGS;
use cellardb::{Error, Index, Kind, Maintenance, Metric, Options, Reads};
use clap::Args;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const DIM: usize = 32;
const ROWS: usize = 4000;
const K: usize = 8;

/// What the neighbour may do, and how the host reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Maps; files are cut between pages, lengthened, replaced and deleted. Every answer is right or an
    /// error.
    Map,
    /// Maps; files are overwritten and cut anywhere too, which maps cannot tell once a piece was
    /// verified. The host lives.
    Torn,
    /// No maps, and everything is done to the files. Every answer is right or an error.
    Copy,
}

const MODES: [Mode; 3] = [Mode::Map, Mode::Torn, Mode::Copy];

/// Other processes that truncate and replace the files under a query loop.
#[derive(Debug, Args)]
pub struct Hostile {
    /// How long, in all.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this mode.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// The part of a process that was started by this command.
    #[arg(long, hide = true)]
    part: Option<String>,
    #[arg(long, hide = true)]
    dir: Option<PathBuf>,
}

/// What happened.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub right: u64,
    pub wrong: u64,
    pub errors: u64,
    /// Errors of files that were cut under a map.
    pub cut: u64,
    pub opened: u64,
}

impl Hostile {
    pub fn run(&self) -> Result<String, String> {
        if let (Some(part), Some(dir), Some(mode)) = (&self.part, &self.dir, self.mode) {
            play(part, mode, dir, self.seed, Duration::from_secs(self.seconds));
            return Ok(String::new());
        }
        let mut told = Vec::new();
        let modes: Vec<Mode> =
            MODES.into_iter().filter(|m| self.mode.is_none_or(|w| w == *m)).collect();
        let time = Duration::from_secs(self.seconds.div_ceil(modes.len() as u64));
        for mode in modes {
            let start = |part: &str, dir: &Path| {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args([
                    "hostile",
                    "--part",
                    part,
                    "--mode",
                    &format!("{mode:?}").to_lowercase(),
                ]);
                command.args(["--seed", &self.seed.to_string()]);
                command.args(["--seconds", &time.as_secs().to_string()]).arg("--dir").arg(dir);
                command
            };
            match supervise(self.seed, time, start) {
                Ok(tally) => told.push(format!("hostile {mode:?}: {tally:?}")),
                Err(why) => {
                    let (seed, seconds) = (self.seed, time.as_secs());
                    let mode = format!("{mode:?}").to_lowercase();
                    let again =
                        format!("campaign hostile --mode {mode} --seconds {seconds} --seed {seed}");
                    return Err(format!("{why}\n  repeat it with: {again}"));
                }
            }
        }
        Ok(told.join("\n"))
    }
}

/// Plays the part of the host or of the neighbour.
pub fn play(part: &str, mode: Mode, dir: &Path, seed: u64, time: Duration) {
    match part {
        "host" => host(mode, dir, seed, time),
        "neighbour" => neighbour(mode, dir, seed),
        other => panic!("no part {other}"),
    }
}

/// Makes an index, starts the host and the neighbour by `start`, and says what the host found.
pub fn supervise(
    seed: u64,
    time: Duration,
    start: impl Fn(&str, &Path) -> Command,
) -> Result<Tally, String> {
    let root = tempfile::tempdir().map_err(|e| e.to_string())?;
    make(&root.path().join("index"), seed);
    copy(&root.path().join("index"), &root.path().join("pristine"));
    let mut host = start("host", root.path()).stdout(Stdio::piped()).spawn().unwrap();
    while !root.path().join("ready").exists() {
        if host.try_wait().unwrap().is_some() {
            return Err("the host ended before it began".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut neighbour = start("neighbour", root.path()).spawn().unwrap();
    let ended = wait(&mut host, time + 2 * HANGS);
    let left = neighbour.try_wait().unwrap();
    let _ = neighbour.kill();
    let _ = neighbour.wait();
    if let Some(status) = left {
        return Err(format!("the neighbour ended early: {status}"));
    }
    let Some(status) = ended else { return Err("the host hangs".into()) };
    if let Some(signal) = status.signal() {
        return Err(format!("the host was killed by signal {signal}"));
    }
    if !status.success() {
        return Err(format!("the host ended with {status}"));
    }
    let told = std::fs::read_to_string(root.path().join("tally")).map_err(|e| e.to_string())?;
    let n: Vec<u64> = told.split_whitespace().map(|n| n.parse().unwrap()).collect();
    if n[0] == 0 || n[2] == 0 {
        return Err(format!("the host met nothing: {told}"));
    }
    Ok(Tally { right: n[0], wrong: n[1], errors: n[2], cut: n[3], opened: n[4] })
}

fn wait(child: &mut Child, most: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < most {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn make(path: &Path, seed: u64) {
    let kind = [Kind::IvfPq, Kind::IvfFlat][seed as usize % 2];
    let options = Index::options(DIM).kind(kind).nlist(8).train_at(1000).segment_bytes(128 << 10);
    let index = options.maintenance(Maintenance::Manual).threads(1).create(path).unwrap();
    index.insert_many(&data::vectors(&mut Rng::new(seed), ROWS, DIM, Metric::L2)).unwrap();
    index.train().unwrap();
    index.close().unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            std::fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

/// An answer to compare with.
type Hits = Vec<(usize, f32)>;

fn host(mode: Mode, dir: &Path, seed: u64, time: Duration) {
    let path = dir.join("index");
    let reads = if mode == Mode::Copy { Reads::Copy } else { Reads::Map };
    let open = || Options::stored().threads(2).reads(reads).open_read_only(&path);
    let first = open().unwrap();
    let queries = data::vectors(&mut Rng::new(seed + 1), 64, DIM, Metric::L2);
    let ask = |index: &Index, at: usize| -> Result<Hits, Error> {
        let query = &queries[at * DIM..(at + 1) * DIM];
        match at % 4 {
            0 => index.query(query).k(K).exact().run(),
            1 => index.query(query).k(K).probes(64).rerank(100).threads(2).run(),
            _ => index.query(query).k(K).run(),
        }
    };
    let right: Vec<Hits> = (0..64).map(|at| ask(&first, at).unwrap()).collect();
    let rows: Vec<_> = (0..64).map(|at| first.get(at * 61).unwrap()).collect();
    OpenOptions::new().create(true).append(true).open(dir.join("ready")).unwrap();
    let current = std::sync::Mutex::new(first);
    let [good, bad, errors, cut, opened] = [const { AtomicU64::new(0) }; 5];
    let failed = |e: &Error| {
        let named = e.to_string().contains(path.to_str().unwrap());
        assert!(
            named && matches!(e, Error::Corrupt { .. } | Error::Io { .. }),
            "no file named: {e}"
        );
        errors.fetch_add(1, Relaxed);
        cut.fetch_add(u64::from(e.to_string().contains("cut while it was open")), Relaxed);
    };
    let start = Instant::now();
    // On a busy machine it takes longer until the neighbour has done something.
    let met = || good.load(Relaxed) > 0 && errors.load(Relaxed) > 0;
    let goes_on = || start.elapsed() < time || (!met() && start.elapsed() < HANGS);
    let search = |seed: u64| {
        let mut rng = Rng::new(seed);
        while goes_on() {
            let index = current.lock().unwrap().clone();
            let at = rng.below(64);
            let same = ask(&index, at).map(|hits| hits == right[at]);
            let row = index.get(at * 61).map(|row| row == rows[at]);
            for found in [same, row] {
                match found {
                    Ok(true) => good.fetch_add(1, Relaxed),
                    Ok(false) => bad.fetch_add(1, Relaxed),
                    Err(e) => {
                        failed(&e);
                        0
                    }
                };
            }
            assert!(mode == Mode::Torn || bad.load(Relaxed) == 0, "a wrong answer, no error");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let search = &search;
            scope.spawn(move || search(seed * 31 + thread));
        }
        while goes_on() {
            std::thread::sleep(Duration::from_millis(40));
            match open() {
                Ok(index) => {
                    opened.fetch_add(1, Relaxed);
                    *current.lock().unwrap() = index;
                }
                Err(e) => failed(&e),
            }
        }
    });
    let told = [good, bad, errors, cut, opened].map(|n| n.into_inner().to_string()).join(" ");
    write(&dir.join("tally"), told.as_bytes());
}

fn write(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

/// A file that the neighbour harms.
struct Victim {
    path: PathBuf,
    pristine: Vec<u8>,
    harmed: bool,
}

fn neighbour(mode: Mode, dir: &Path, seed: u64) -> ! {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut files = Vec::new();
    let (from, fresh) = (dir.join("pristine"), dir.join("fresh"));
    collect(&from, &mut files);
    let mut victims: Vec<Victim> = files
        .into_iter()
        .filter(|path| {
            mode == Mode::Copy || path.extension().is_some_and(|e| e == "rows" || e == "list")
        })
        .map(|path| {
            let pristine = std::fs::read(&path).unwrap();
            let path = dir.join("index").join(path.strip_prefix(&from).unwrap());
            Victim { path, pristine, harmed: false }
        })
        .collect();
    loop {
        let harms = 1 + rng.below(4);
        for _ in 0..harms {
            let at = rng.below(victims.len());
            harm(&mut victims[at], mode, &fresh, &mut rng);
            std::thread::sleep(Duration::from_micros(rng.below(3000) as u64));
        }
        for victim in victims.iter_mut().filter(|v| v.harmed) {
            put(&victim.path, &victim.pristine, &fresh);
            victim.harmed = false;
        }
        std::thread::sleep(Duration::from_micros(rng.below(6000) as u64));
    }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}

/// Puts another file in the place of one, at once.
fn put(path: &Path, bytes: &[u8], fresh: &Path) {
    write(fresh, bytes);
    #[expect(clippy::disallowed_methods, reason = "another process replaces a real file")]
    std::fs::rename(fresh, path).unwrap();
}

fn harm(victim: &mut Victim, mode: Mode, fresh: &Path, rng: &mut Rng) {
    let len = victim.pristine.len();
    let open = || OpenOptions::new().write(true).open(&victim.path);
    // A file that was cut is not lengthened again under maps: what was there would read as zeros.
    let any = mode != Mode::Map;
    if victim.harmed && !any {
        return;
    }
    match rng.below(if any { 8 } else { 4 }) {
        0 => drop(open().map(|file| file.set_len(rng.below(len.div_ceil(4096)) as u64 * 4096))),
        1 => drop(open().map(|file| file.write_all_at(&[7; 5000], len as u64))),
        2 => put(&victim.path, &vec![0xA5; rng.below(2 * len)], fresh),
        3 => drop(std::fs::remove_file(&victim.path)),
        4 => drop(open().map(|file| file.set_len(rng.below(len) as u64))),
        5 => drop(open().map(|file| file.set_len(len as u64))),
        6 => drop(open().map(|file| file.write_all_at(&[0xA5; 100], rng.below(len) as u64))),
        _ => drop(open().map(|file| file.write_all_at(&victim.pristine, 0))),
    }
    victim.harmed = true;
}
