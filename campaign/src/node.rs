//! The tree of a simulated disk: files and directories, each with what is durable and what is not.

use crate::change::{Change, Cut, Entry, Fate, Names, Node};
use crate::data::Rng;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Something that changes or syncs the disk.
#[derive(Debug, Clone)]
pub enum Op {
    Create(PathBuf, usize),
    CreateDir(PathBuf, usize),
    Write(usize, usize, Vec<u8>),
    SetLen(usize, usize),
    Sync(usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir(usize),
    SyncAll,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(path, inode) => write!(f, "create {} as {inode}", path.display()),
            Self::CreateDir(path, inode) => write!(f, "create dir {} as {inode}", path.display()),
            Self::Write(inode, at, data) => write!(f, "write {inode}: {} at {at}", data.len()),
            Self::SetLen(inode, len) => write!(f, "set length {inode}: {len}"),
            Self::Sync(inode) => write!(f, "sync {inode}"),
            Self::Rename(from, to) => write!(f, "rename {} {}", from.display(), to.display()),
            Self::Remove(path) => write!(f, "remove {}", path.display()),
            Self::SyncDir(inode) => write!(f, "sync dir {inode}"),
            Self::SyncAll => write!(f, "sync all"),
        }
    }
}

/// What a system does with the writes of a file whose sync failed (Rebello et al., ATC 2020).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailedSync {
    /// It shows them until the power goes, and never writes them: ext4, XFS.
    #[default]
    Forgotten,
    /// It shows at once what was there before: Btrfs.
    Reverted,
    /// It writes them at the next sync that succeeds.
    Retried,
}

/// Told what a cut did to each change.
type Told<'a> = &'a mut dyn FnMut(String);

#[derive(Debug, Clone)]
enum Inode {
    File { now: Arc<Vec<u8>>, durable: Arc<Vec<u8>>, changes: Vec<(Change, bool)> },
    Dir { now: Names, durable: Names, changes: Vec<Entry> },
}

/// All inodes; number 0 is the root directory. The flag beside a change says that a sync of it
/// failed: the system forgot it, so no later sync writes it and only a running system sees it.
#[derive(Debug, Clone)]
pub struct Tree(Vec<Inode>);

impl Default for Tree {
    fn default() -> Self {
        Self(vec![Inode::dir()])
    }
}

impl Inode {
    fn dir() -> Self {
        Self::Dir { now: Names::new(), durable: Names::new(), changes: Vec::new() }
    }

    fn file(bytes: Vec<u8>) -> Self {
        Self::shared(&Arc::new(bytes))
    }

    fn shared(bytes: &Arc<Vec<u8>>) -> Self {
        Self::File { durable: Arc::clone(bytes), now: Arc::clone(bytes), changes: Vec::new() }
    }

    fn sync(&mut self) {
        match self {
            Self::File { durable, now, changes } => {
                if changes.iter().all(|(_, forgotten)| !forgotten) {
                    changes.clear();
                    *durable = Arc::clone(now);
                    return;
                }
                let bytes = Arc::make_mut(durable);
                changes.retain(|(change, forgotten)| {
                    if !forgotten {
                        change.apply(bytes);
                    }
                    *forgotten
                });
            }
            Self::Dir { durable, changes, .. } => {
                changes.drain(..).for_each(|entry| entry.apply(durable));
            }
        }
    }

    /// A sync failed, and the system did with the writes what it does.
    fn lose(&mut self, how: FailedSync) {
        let Self::File { now, durable, changes } = self else { return };
        match how {
            FailedSync::Forgotten => {
                changes.iter_mut().for_each(|(_, forgotten)| *forgotten = true);
            }
            FailedSync::Reverted => {
                changes.clear();
                *now = Arc::clone(durable);
            }
            FailedSync::Retried => {}
        }
    }

    fn after_cut(&self, number: usize, cut: Cut, rng: &mut Rng, told: Told<'_>) -> Self {
        // Of eight changes to this file, about so many are kept.
        let keep = [0, 1, 4, 7, 8][rng.below(5)];
        match self {
            Self::File { durable, now, changes } => {
                if cut == Cut::Kept || changes.is_empty() {
                    return Self::shared(now);
                }
                let mut bytes = durable.clone();
                for (change, forgotten) in changes {
                    let fate = if *forgotten { Fate::Lost } else { change.fate(cut, keep, rng) };
                    told(format!("file {number}: {change}: {fate:?}"));
                    change.apply_some(&mut bytes, fate);
                }
                Self::shared(&bytes)
            }
            Self::Dir { durable, changes, .. } => {
                let mut names = durable.clone();
                for entry in changes {
                    let fate = entry.fate(cut, keep, rng);
                    told(format!("directory {number}: {entry:?}: {fate:?}"));
                    entry.apply_some(&mut names, fate);
                }
                Self::Dir { now: names.clone(), durable: names, changes: Vec::new() }
            }
        }
    }
}

/// A quick digest of bytes, in the way of FNV with words for bytes.
fn mix(seed: u64, bytes: &[u8]) -> u64 {
    let step =
        |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let (words, rest) = bytes.as_chunks::<8>();
    let sum =
        words.iter().fold(seed ^ bytes.len() as u64, |sum, w| step(sum, u64::from_le_bytes(*w)));
    rest.iter().fold(step(sum, 1), |sum, byte| step(sum, u64::from(*byte)))
}

fn name(path: &Path) -> &OsStr {
    path.file_name().unwrap()
}

impl Tree {
    pub fn find(&self, path: &Path) -> Option<Node> {
        let mut at = Node::Dir(0);
        for part in path.components() {
            match part {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => match at {
                    Node::Dir(dir) => at = *self.entries(dir).get(name)?,
                    Node::File(_) => return None,
                },
                _ => return None,
            }
        }
        Some(at)
    }

    pub fn parent(&self, path: &Path) -> io::Result<usize> {
        match self.find(path.parent().unwrap_or(Path::new("/"))) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub fn next_inode(&self) -> usize {
        self.0.len()
    }

    pub fn data(&self, inode: usize) -> &Arc<Vec<u8>> {
        match &self.0[inode] {
            Inode::File { now, .. } => now,
            Inode::Dir { .. } => panic!("inode {inode} is a directory"),
        }
    }

    fn entries(&self, dir: usize) -> &Names {
        match &self.0[dir] {
            Inode::Dir { now, .. } => now,
            Inode::File { .. } => panic!("inode {dir} is a file"),
        }
    }

    pub fn names(&self, dir: usize) -> impl Iterator<Item = &OsString> {
        self.entries(dir).keys()
    }

    /// All files by path.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![(PathBuf::from("/"), 0)];
        while let Some((path, dir)) = dirs.pop() {
            for (name, node) in self.entries(dir) {
                match node {
                    Node::File(inode) => {
                        files.insert(path.join(name), self.data(*inode).to_vec());
                    }
                    Node::Dir(dir) => dirs.push((path.join(name), *dir)),
                }
            }
        }
        files
    }

    /// A durable file, with its directories.
    pub fn put(&mut self, path: &Path, bytes: Vec<u8>) {
        let mut dir = PathBuf::from("/");
        for part in path.parent().unwrap().components().skip(1) {
            dir.push(part);
            if self.find(&dir).is_none() {
                self.apply(&Op::CreateDir(dir.clone(), self.next_inode()));
            }
        }
        let inode = self.next_inode();
        self.apply(&Op::Create(path.to_owned(), inode));
        self.0[inode] = Inode::file(bytes);
        self.apply(&Op::SyncAll);
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(path, inode) => self.link(path, Node::File(*inode), Inode::file(Vec::new())),
            Op::CreateDir(path, inode) => self.link(path, Node::Dir(*inode), Inode::dir()),
            Op::Write(inode, offset, data) => {
                self.change(*inode, Change::Write(*offset, data.clone()));
            }
            Op::SetLen(inode, len) => self.change(*inode, Change::SetLen(*len)),
            Op::Sync(inode) | Op::SyncDir(inode) => self.0[*inode].sync(),
            Op::SyncAll => self.0.iter_mut().for_each(Inode::sync),
            Op::Remove(path) => {
                if let Some(node) = self.find(path) {
                    self.entry(path, Entry::Unlink(name(path).to_owned(), node));
                }
            }
            Op::Rename(from, to) => {
                if let Some(node) = self.find(from) {
                    let entry = Entry::Rename(name(from).to_owned(), name(to).to_owned(), node);
                    self.entry(from, entry);
                }
            }
        }
    }

    /// A sync that failed.
    pub fn lose(&mut self, op: &Op, how: FailedSync) {
        match op {
            Op::Sync(inode) => self.0[*inode].lose(how),
            Op::SyncAll => self.0.iter_mut().for_each(|inode| inode.lose(how)),
            _ => {}
        }
    }

    pub fn after_cut(&self, cut: Cut) -> Self {
        self.after_cut_told(cut, &mut |_| {})
    }

    /// What a power cut leaves; `told` hears of each change what became of it.
    pub fn after_cut_told(&self, cut: Cut, told: Told<'_>) -> Self {
        let mut rng = Rng::new(if let Cut::Random(seed) = cut { seed } else { 0 });
        let inodes = self.0.iter().enumerate();
        Self(inodes.map(|(n, inode)| inode.after_cut(n, cut, &mut rng, told)).collect())
    }

    /// All paths with the numbers of their inodes.
    pub fn paths(&self) -> Vec<(PathBuf, usize)> {
        let mut paths = vec![(PathBuf::from("/"), 0)];
        let mut at = 0;
        while let Some((path, number)) = paths.get(at).cloned() {
            if let Inode::Dir { now, .. } = &self.0[number] {
                let below = now.iter().map(|(name, node)| (path.join(name), node.number()));
                paths.extend(below);
            }
            at += 1;
        }
        paths
    }

    /// A number that tells this tree from others: of all names and bytes as a process sees them.
    pub fn digest(&self) -> u64 {
        let mut sum = 0;
        for (path, number) in self.paths() {
            let bytes: &[u8] = match &self.0[number] {
                Inode::File { now, .. } => now,
                Inode::Dir { .. } => &[],
            };
            sum = mix(mix(sum, path.as_os_str().as_encoded_bytes()), bytes);
        }
        sum
    }

    fn link(&mut self, path: &Path, node: Node, inode: Inode) {
        assert_eq!(node.number(), self.0.len(), "inodes are numbered in order");
        self.0.push(inode);
        self.entry(path, Entry::Link(name(path).to_owned(), node));
    }

    fn entry(&mut self, path: &Path, entry: Entry) {
        let Ok(dir) = self.parent(path) else { panic!("no directory for {}", path.display()) };
        if let Inode::Dir { now, changes, .. } = &mut self.0[dir] {
            entry.apply(now);
            changes.push(entry);
        }
    }

    fn change(&mut self, inode: usize, change: Change) {
        if let Inode::File { now, changes, .. } = &mut self.0[inode] {
            change.apply(Arc::make_mut(now));
            changes.push((change, false));
        }
    }
}
