//! Full disks, few descriptors, few maps, little address space.

use crate::image::{Image, system};
use crate::model::Model;
use crate::process::{self, Change, DIM, Journal, say, vectors};
use crate::scratch::scratch;
use crate::{METRICS, SHAPES};
use cellardb::{Error, Index, Kind, Maintenance, Options};
use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

/// Lists of the index that is opened under limits: more than there are descriptors.
const LISTS: usize = 300;
const ROWS: usize = 4000;

/// Few descriptors, few maps, little address space, short files; with `--full` a real disk without room
/// (needs root and a loop device). Errors are clean, readers go on, the index passes the oracle.
#[derive(Debug, Args)]
pub struct Limits {
    /// Fills a file system at each step of a workload.
    #[arg(long)]
    full: bool,
    /// The file systems to fill (`mkfs` of each is needed): ext4, xfs, tmpfs, btrfs.
    #[arg(long, value_delimiter = ',', default_value = "ext4,xfs,tmpfs")]
    fs: Vec<String>,
    /// Where the indexes are made.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// What is limited, and how an opening, changes and searches go then.
#[derive(Debug, Clone, Args)]
pub struct Limited {
    path: PathBuf,
    #[arg(long)]
    nofile: Option<u64>,
    /// Megabytes of address space beyond what the process has at first.
    #[arg(long)]
    address: Option<u64>,
    /// Kilobytes of a file.
    #[arg(long)]
    fsize: Option<u64>,
    /// Maps that are left.
    #[arg(long)]
    maps: Option<usize>,
}

/// The limits, and whether everything must go well under them. A process that has no maps or no memory
/// at all ends at its next allocation, whoever asks for it; that is not tried.
const CASES: [(&str, &str, bool); 7] = [
    ("--nofile", "64", true),
    ("--nofile", "24", false),
    ("--maps", "500", true),
    ("--address", "400", true),
    ("--address", "64", false),
    ("--fsize", "64", false),
    ("--fsize", "1", false),
];

impl Limits {
    pub fn run(&self) -> Result<String, String> {
        let start = Instant::now();
        let done = if self.full { self.disk() } else { self.process() };
        let full = if self.full { " --full" } else { "" };
        done.map(|line| format!("limits: {line}; {:.0?}", start.elapsed()))
            .map_err(|e| format!("limits: {e}\nrepeat: campaign limits{full}"))
    }

    fn process(&self) -> Result<String, String> {
        let root = scratch(self.dir.as_deref())?;
        let (mut met, mut findings) = (0, Vec::new());
        for (limit, value, well) in CASES {
            let path = root.path().join(format!("index{limit}{value}"));
            let what = format!("{limit} {value}");
            let model = many_lists(&path).map_err(|e| e.to_string())?;
            match limited(&path, limit, value, model) {
                Ok(faults) if well && !faults.is_empty() => {
                    findings.push(format!("{what}: {faults:?}"))
                }
                Ok(faults) => {
                    eprintln!("{what}: {} steps failed cleanly {:?}", faults.len(), faults.first());
                    met += faults.len();
                }
                Err(e) => findings.push(format!("{what}: {e}")),
            }
        }
        if findings.is_empty() {
            return Ok(format!("{} limits, {met} steps failed cleanly", CASES.len()));
        }
        Err(findings.join("\n"))
    }

    fn disk(&self) -> Result<String, String> {
        let root = scratch(Some(self.dir.as_deref().unwrap_or(Path::new("/dev/shm"))))?;
        let mut lines = Vec::new();
        for fs in &self.fs {
            let image =
                Image { image: root.path().join(format!("{fs}.image")), at: root.path().join(fs) };
            lines.push(full_disk(fs, &image).map_err(|e| format!("{fs}: {e}"))?);
        }
        Ok(lines.join("; "))
    }
}

/// An index of many lists.
fn many_lists(path: &Path) -> Result<Model, Error> {
    let mut model = Model::new(DIM, METRICS[0]);
    let options = Index::options(DIM).kind(Kind::IvfFlat).nlist(LISTS).train_at(1000).threads(1);
    let index = options.segment_bytes(64 << 10).maintenance(Maintenance::Manual).create(path)?;
    index.insert_many(&vectors(0..ROWS, model.metric))?;
    Change::Insert(0..ROWS).apply(&mut model);
    index.train()?;
    index.close()?;
    Ok(model)
}

/// Runs a child under a limit; the steps that failed.
fn limited(path: &Path, limit: &str, value: &str, model: Model) -> Result<Vec<String>, String> {
    // Files that become too long are an error to us and not the end, where the host says so.
    let mut command = std::process::Command::new("sh");
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    command.args(["-c", "trap '' XFSZ; exec \"$0\" limited \"$@\""]).arg(me).arg(path);
    command.args([limit, value]).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let out = process::spawn(&mut command).wait_with_output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        return Err(format!("the child ended with {}: {stderr} {said}", out.status));
    }
    let mut journal = Journal::new(model);
    said.lines().for_each(|line| journal.note(line));
    process::check(path, &journal, 1)?;
    Ok(said.lines().filter(|line| line.starts_with("fault")).map(str::to_owned).collect())
}

impl Limited {
    pub fn run(&self) {
        let limit = |resource, most: Option<u64>| {
            if let Some(most) = most {
                setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).unwrap();
            }
        };
        let mut maps = Vec::new();
        if let Some(left) = self.maps {
            maps = take_maps(left);
        }
        limit(Resource::Nofile, self.nofile);
        limit(Resource::As, self.address.map(|more| address_space() + (more << 20)));
        limit(Resource::Fsize, self.fsize.map(|most| most << 10));
        if let Err(e) = self.work() {
            say(&format!("fault open: {e}"));
        }
        drop(maps);
    }

    fn work(&self) -> Result<(), Error> {
        let mut model = Model::new(DIM, METRICS[0]);
        Change::Insert(0..ROWS).apply(&mut model);
        let open =
            || Options::stored().maintenance(Maintenance::Manual).threads(1).open(&self.path);
        let index = open()?;
        for step in 0..6 {
            let before = model.clone();
            let done = match step {
                0 | 3 => insert(&index, &mut model),
                1 => remove(&index, &mut model),
                2 => index.flush(),
                4 => index.compact().map(drop),
                _ => index.train(),
            };
            match done {
                Ok(()) => say("ack"),
                Err(e) => {
                    say(&format!("fault step {step}: {e}"));
                    if matches!(step, 0 | 1 | 3) && index.stats().poisoned.is_none() {
                        say("dropped");
                    }
                    model = before;
                }
            }
            let ids = index.ids();
            assert_eq!(ids, model.ids(), "readers after step {step}");
            let probe = process::vector(ids[step], model.metric);
            match (index.search(&probe, 3), index.query(&probe).k(3).exact().run()) {
                (Ok(near), Ok(exact)) => {
                    assert_eq!(exact, model.search(&probe, 3), "exact search after step {step}");
                    model.plausible(&probe, 3, &near).unwrap();
                }
                (Err(e), _) | (_, Err(e)) => say(&format!("fault search {step}: {e}")),
            }
        }
        index.close()?;
        open()?.close()
    }
}

fn insert(index: &Index, model: &mut Model) -> Result<(), Error> {
    let ids = model.next..model.next + 120;
    say(&format!("try insert {} {}", ids.start, ids.end));
    assert_eq!(index.insert_many(&vectors(ids.clone(), model.metric))?, ids);
    Change::Insert(ids).apply(model);
    Ok(())
}

fn remove(index: &Index, model: &mut Model) -> Result<(), Error> {
    let ids: Vec<usize> = model.ids().into_iter().step_by(17).collect();
    let words: Vec<String> = ids.iter().map(usize::to_string).collect();
    say(&format!("try remove {}", words.join(" ")));
    assert_eq!(index.remove_many(&ids)?, ids.len());
    Change::Remove(ids).apply(model);
    Ok(())
}

fn address_space() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

/// Maps a file until few maps are left.
fn take_maps(left: usize) -> Vec<cellardb::Map> {
    let most: usize =
        std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 16).unwrap();
    let disk = cellardb::FileSystem;
    let now = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let open = cellardb::Disk::open(&disk, file.path(), false).unwrap();
    // Neighbouring maps of one range would be merged, these are not: each begins anew at 0.
    (0..most.saturating_sub(now + left)).map_while(|_| open.map(4096).ok().flatten()).collect()
}

/// Fills a file system at each step of a workload, leaving a little more each time.
fn full_disk(fs: &str, image: &Image) -> Result<String, String> {
    let len: u64 = if fs == "xfs" { 320 << 20 } else { 128 << 20 };
    let file = image.image.to_string_lossy();
    image.create(len)?;
    match fs {
        "tmpfs" => image.mount_as(&["-t", "tmpfs", "-o", "size=16m", "tmpfs"])?,
        "ext4" => system("mkfs.ext4", &["-q", "-F", "-m", "0", &file, "24M"])?,
        "btrfs" => system("mkfs.btrfs", &["-q", "--mixed", &file])?,
        _ => system(&format!("mkfs.{fs}"), &["-q", "-f", &file])?,
    }
    if fs != "tmpfs" {
        image.mount("rw")?;
    }
    let (mut met, mut cases) = (0, 0);
    for shape in [SHAPES[0], SHAPES[2]] {
        for leave in [0, 8, 40, 100, 300, 900] {
            let path = image.at.join("index");
            let _ = std::fs::remove_dir_all(&path);
            let what = |e| format!("{} with {leave} KiB left: {e}", shape.name);
            met += fill_each(&path, &image.at.join("filler"), shape, leave).map_err(what)?;
            cases += 1;
        }
    }
    image.umount()?;
    if met == 0 {
        return Err("no step met the full disk".into());
    }
    Ok(format!("{fs}: full at each of 8 steps in {cases} runs, {met} calls failed cleanly"))
}

fn fill_each(path: &Path, filler: &Path, shape: crate::Shape, leave: u64) -> Result<usize, String> {
    let text = |e: Error| e.to_string();
    let mut model = Model::new(DIM, METRICS[0]);
    let options = shape.options(DIM, METRICS[0]).train_at(128);
    let mut index = options.create(path).map_err(text)?;
    let mut met = 0;
    for step in 0..8 {
        let work = |index: &Index, model: &mut Model| match step {
            0 | 1 | 4 | 6 => insert_quietly(index, model, [200, 1, 0, 0, 40, 0, 900][step]),
            2 | 7 => index.train(),
            3 => index.flush(),
            _ => index.compact().map(drop),
        };
        fill(filler, leave << 10).map_err(|e| format!("filling: {e}"))?;
        for _ in 0..3 {
            match work(&index, &mut model) {
                Ok(()) => {}
                Err(e @ Error::Io { .. }) => {
                    met += 1;
                    model.differs(&index, 1).map_err(|r| format!("a reader after `{e}`: {r}"))?;
                }
                Err(e) => return Err(format!("step {step} on a full disk: {e}")),
            }
        }
        fill(filler, 0).map_err(|e| format!("filling: {e}"))?;
        if let Some(id) = model.ids().pop() {
            index.remove(id).map_err(|e| {
                let catalog = std::fs::metadata(path.join("catalog.redb"));
                let (len, room) = catalog.map_or((0, 0), |m| (m.len(), m.blocks() * 512));
                format!("removing on a full disk, step {step}: {e} ({len} bytes, room for {room})")
            })?;
            model.remove(&[id]);
        }
        if step % 2 == 1 {
            index.close().map_err(|e| format!("closing on a full disk, step {step}: {e}"))?;
            let stored = Options::stored().maintenance(Maintenance::Manual).threads(1);
            index = stored.open(path).map_err(|e| format!("opening on a full disk: {e}"))?;
        }
        model.differs(&index, 2)?;
        std::fs::remove_file(filler).map_err(|e| e.to_string())?;
        settle(filler)?;
        work(&index, &mut model).map_err(|e| format!("step {step} with room again: {e}"))?;
        model.differs(&index, 3)?;
    }
    index.close().map_err(text)?;
    process::check(path, &Journal::new(model), 1)?;
    Ok(met)
}

fn insert_quietly(index: &Index, model: &mut Model, n: usize) -> Result<(), Error> {
    let ids = model.next..model.next + n;
    index.insert_many(&vectors(ids.clone(), model.metric))?;
    Change::Insert(ids).apply(model);
    Ok(())
}

/// Writes a file until so many bytes are left.
fn fill(filler: &Path, leave: u64) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(filler)?;
    for piece in [1 << 20, 64 << 10, 4096, 512] {
        while file.write_all(&vec![1; piece]).is_ok() {}
        let _ = file.sync_all();
    }
    if leave > 0 {
        let len = file.metadata()?.len();
        file.set_len(len.saturating_sub(leave))?;
        file.sync_all()?;
    }
    Ok(())
}

/// Waits until freed blocks are free.
fn settle(filler: &Path) -> Result<(), String> {
    let dir = filler.parent().unwrap_or(filler);
    system("sync", &["-f", &dir.to_string_lossy()])
}
