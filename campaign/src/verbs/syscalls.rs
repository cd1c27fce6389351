//! Every system call of a real process fails in turn (needs strace).

use super::{early, over, share};
use crate::model::Model;
use crate::patience::HANGS;
use crate::process::{self, DIM, Journal};
use crate::scratch::scratch;
use crate::script::{METRIC, SHAPE};
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What touches files. `write` is left out: the engine writes at offsets, only the child's report of
/// what it does goes through it.
const CALLS: [&str; 21] = [
    "openat",
    "pread64",
    "pwrite64",
    "fdatasync",
    "fsync",
    "syncfs",
    "ftruncate",
    "fallocate",
    "mmap",
    "rename",
    "renameat2",
    "unlink",
    "mkdir",
    "getdents64",
    "fstat",
    "statx",
    "newfstatat",
    "flock",
    "madvise",
    "close",
    "lseek",
];

/// The errors, and `none`: a call that does nothing and says 0.
const ERRORS: [&str; 6] = ["EIO", "ENOSPC", "EMFILE", "EINTR", "ENOMEM", "none"];

/// What is not an error where it is 0, as it is the whole of success.
const BYTES: [&str; 2] = ["pread64", "pwrite64"];

/// Every system call of a fixed workload fails in turn, with each of five errors (and reads and writes
/// of no bytes): clean errors, readers go on, and the index passes the oracle. Needs strace.
#[derive(Debug, Args)]
pub struct Syscalls {
    /// Only each so-many-th case.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// Ends after so many seconds, and says so if cases are left.
    #[arg(long)]
    seconds: Option<u64>,
    /// Children at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only this case, as a failure names it: `openat:EIO:7`.
    #[arg(long)]
    only: Option<String>,
    /// Where the indexes are made.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// One fault: the `n`-th call of a kind in a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Case {
    call: String,
    error: String,
    n: usize,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.call, self.error, self.n)
    }
}

#[derive(Debug, Default)]
struct Tally {
    faults: usize,
    failed: usize,
    unreached: usize,
    findings: Vec<String>,
}

impl Syscalls {
    pub fn run(&self) -> Result<String, String> {
        let start = Instant::now();
        let root = scratch(self.dir.as_deref())?;
        let places = Places::find(root.path())?;
        let cases = self.cases(&places);
        let tally = Mutex::new(Tally::default());
        share(self.jobs, |n| {
            let case = usize::try_from(n).ok().and_then(|n| cases.get(n));
            let case = case.filter(|_| !over(self.seconds, start));
            Ok(case.map(|case| one(root.path(), case, &places, &tally)).is_some())
        })?;
        let tally = tally.into_inner().unwrap();
        let calls: usize = places.calls.values().map(BTreeSet::len).sum();
        let told = format!(
            "syscalls: {} faults at {calls} places of {} system calls, {} were reported as errors, the others \
             overcome; {} places not reached; {} findings; {:.0?}{}",
            tally.faults,
            places.calls.len(),
            tally.failed,
            tally.unreached,
            tally.findings.len(),
            start.elapsed(),
            early(tally.faults + tally.unreached < cases.len())
        );
        match tally.faults > 0 && tally.findings.is_empty() {
            true => Ok(told),
            false => Err(told),
        }
    }

    fn cases(&self, places: &Places) -> Vec<Case> {
        let mut cases = Vec::new();
        for (call, places) in &places.calls {
            for n in places {
                for error in ERRORS {
                    if error != "none" || BYTES.contains(&call.as_str()) {
                        let (call, error) = (call.clone(), error.to_owned());
                        cases.push(Case { call, error, n: *n });
                    }
                }
            }
        }
        match &self.only {
            Some(only) => cases.into_iter().filter(|case| case.to_string() == *only).collect(),
            None => cases.into_iter().step_by(self.every.max(1)).collect(),
        }
    }
}

/// How a child ended.
struct Ended {
    lines: Vec<String>,
    code: Option<i32>,
    stderr: String,
    trace: String,
}

/// Runs the workload below strace, which is attached before it begins, so that nothing of the start of
/// the process is counted.
fn traced(path: &Path, inject: Option<&Case>, only: &[String]) -> Result<Ended, String> {
    let log = path.with_extension("strace");
    let mut child = process::spawn(
        process::myself("script")
            .arg(path)
            .arg("--wait")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    // Whoever starts the program has made its calls by then.
    let mut ready = [0; 6];
    if let Err(e) = child.stdout.as_mut().unwrap().read_exact(&mut ready) {
        let _ = child.wait();
        return Err(format!("the child does not begin: {e}"));
    }
    let mut strace = Command::new("strace");
    strace.args(["-f", "-p", &child.id().to_string(), "-o"]).arg(&log);
    match inject {
        None => strace.arg(format!("-etrace={}", CALLS.join(","))),
        Some(Case { call, error, n }) => {
            only.iter().filter(|_| call == "mmap").for_each(|name| {
                strace.arg("-P").arg(path.join(name));
            });
            let how = if error == "none" { "retval=0".into() } else { format!("error={error}") };
            strace.arg(format!("-etrace={call}")).arg(format!("-einject={call}:{how}:when={n}"))
        }
    };
    let tracer = strace.stderr(Stdio::piped()).spawn();
    let mut tracer = tracer.map_err(|e| {
        let _ = child.kill();
        let _ = child.wait();
        format!("strace: {e}; install it (Debian: apt install strace)")
    })?;
    let mut said = BufReader::new(tracer.stderr.take().unwrap());
    let mut line = String::new();
    let _ = said.read_line(&mut line);
    if !line.contains("attached") {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("strace does not attach: {line}"));
    }
    std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
    drop(child.stdin.take());
    let start = Instant::now();
    let hung = loop {
        if child.try_wait().unwrap().is_some() {
            break false;
        }
        if start.elapsed() > HANGS {
            let _ = child.kill();
            break true;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    let _ = tracer.wait();
    if hung {
        return Err("the child hangs".into());
    }
    Ok(Ended {
        lines: String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect(),
        code: out.status.code(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        trace: std::fs::read_to_string(&log).map_err(|e| e.to_string())?,
    })
}

/// What the workload does: the calls that can fail, as counts within a thread, and the files of its
/// index. Of maps only those of files count: a process without memory is not ours to save.
#[derive(Debug, Default)]
struct Places {
    calls: BTreeMap<String, BTreeSet<usize>>,
    files: Vec<String>,
}

impl Places {
    fn find(root: &Path) -> Result<Self, String> {
        let path = root.join("dry");
        let ended = traced(&path, None, &[])?;
        if ended.code != Some(0) || ended.lines.last().map(String::as_str) != Some("done") {
            let Ended { lines, stderr, .. } = ended;
            return Err(format!("the workload fails without a fault: {lines:?} {stderr}"));
        }
        let mut places = Self::default();
        places.count(&ended.trace, |call| call != "mmap");
        let inside = format!("{}/", path.display());
        let names = ended.trace.split('"').filter_map(|word| word.strip_prefix(&inside));
        let names: BTreeSet<&str> = names.filter(|name| name.contains('.')).collect();
        places.files = names.into_iter().map(str::to_owned).collect();
        // Maps by file: the fault is one that no call meets.
        let path = root.join("maps");
        let never = Case { call: "mmap".into(), error: "EIO".into(), n: 60_000 };
        let ended = traced(&path, Some(&never), &places.files)?;
        places.count(&ended.trace, |call| call == "mmap");
        Ok(places)
    }

    fn count(&mut self, trace: &str, wanted: impl Fn(&str) -> bool) {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for line in trace.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
            if CALLS.contains(&call) && wanted(call) {
                let n = counts.entry((thread, call)).or_default();
                *n += 1;
                self.calls.entry(call.to_owned()).or_default().insert(*n);
            }
        }
    }
}

/// Runs one case and checks all of it.
fn one(root: &Path, case: &Case, places: &Places, tally: &Mutex<Tally>) {
    let path = root.join(format!("{}-{}-{}", case.call, case.error, case.n));
    let judged = traced(&path, Some(case), &places.files);
    let judged = judged.and_then(|ended| judge(&path, case, &ended));
    let _ = std::fs::remove_file(path.with_extension("strace"));
    let mut tally = tally.lock().unwrap();
    match judged {
        Ok(None) => tally.unreached += 1,
        Ok(Some(failed)) => {
            tally.faults += 1;
            tally.failed += usize::from(failed);
        }
        Err(e) => {
            tally.faults += 1;
            eprintln!("{case}: {e}\nrepeat: campaign syscalls --only {case}");
            tally.findings.push(case.to_string());
        }
    }
    if tally.faults.is_multiple_of(500) {
        eprintln!("{} faults", tally.faults);
    }
    let _ = std::fs::remove_dir_all(&path);
}

/// Whether the fault was reported as an error; nothing if it was not reached.
fn judge(path: &Path, case: &Case, ended: &Ended) -> Result<Option<bool>, String> {
    let Ended { lines, code, stderr, trace } = ended;
    let faults: Vec<&String> = lines.iter().filter(|line| line.starts_with("fault ")).collect();
    let said = || format!("{faults:?}");
    if *code != Some(0) {
        return Err(format!("ended with {code:?}: {stderr} {}", said()));
    }
    if !trace.contains("INJECTED") {
        return Ok(None);
    }
    if case.error != "none" && lines.iter().any(|line| line == "corrupt") {
        return Err(format!("an error of the system is taken for damage: {}", said()));
    }
    // strace does not do the call that it lets fail, so a file of which closing failed is still open, and
    // locked.
    let open = case.call == "close" && faults.iter().all(|fault| fault.contains(": open in "));
    if case.error == "EINTR" && !faults.is_empty() && !open {
        return Err(format!("an interrupted call is not repeated: {}", said()));
    }
    // A sync that failed poisons whatever it says, and so may the opening of what is to be synced; but
    // there being no descriptor for it says that it was not tried.
    let sync = matches!(case.call.as_str(), "fdatasync" | "fsync" | "syncfs");
    let tried = |line: &String| line.contains("cannot sync") && case.error != "EMFILE";
    let short = matches!(case.error.as_str(), "ENOSPC" | "EMFILE" | "ENOMEM") && !sync;
    let poisoned = |line: &String| line.contains("an earlier write failed") && !tried(line);
    if short && faults.iter().any(|line| poisoned(line)) {
        return Err(format!("a shortage poisons: {}", said()));
    }
    let mut journal = Journal::new(Model::new(DIM, METRIC));
    lines.iter().for_each(|line| journal.note(line));
    if lines.iter().any(|line| line == "created") {
        process::check(path, &journal, case.n as u64)?;
    } else {
        process::check_created(path, SHAPE)?;
    }
    Ok(Some(!faults.is_empty()))
}
