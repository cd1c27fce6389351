//! The tree of a simulated disk: files and directories, each with what is durable and what is not.

use crate::data::Rng;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};

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

/// What becomes of everything that was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All of it is lost.
    Dropped,
    /// All of it is there.
    Kept,
    /// Each change by itself is lost, kept, torn, or kept as length without data.
    Random(u64),
}

/// A name leads to a file or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    File(usize),
    Dir(usize),
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

#[derive(Debug, Clone)]
enum Entry {
    Link(OsString, Node),
    Unlink(OsString, Node),
    Rename(OsString, OsString, Node),
}

type Names = BTreeMap<OsString, Node>;

#[derive(Debug, Clone)]
enum Inode {
    File { now: Vec<u8>, durable: Vec<u8>, changes: Vec<(Change, bool)> },
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
        Self::File { durable: bytes.clone(), now: bytes, changes: Vec::new() }
    }

    fn sync(&mut self) {
        match self {
            Self::File { durable, changes, .. } => changes.retain(|(change, forgotten)| {
                if !forgotten {
                    change.apply(durable);
                }
                *forgotten
            }),
            Self::Dir { durable, changes, .. } => {
                changes.drain(..).for_each(|entry| entry.apply(durable));
            }
        }
    }

    fn after_cut(&self, cut: Cut, rng: &mut Rng) -> Self {
        match (self, cut) {
            (Self::File { durable, .. }, Cut::Dropped) => Self::file(durable.clone()),
            (Self::File { now, .. }, Cut::Kept) => Self::file(now.clone()),
            (Self::File { durable, changes, .. }, Cut::Random(_)) => {
                let mut bytes = durable.clone();
                for (change, _) in changes.iter().filter(|(_, forgotten)| !forgotten) {
                    change.apply_some(&mut bytes, rng);
                }
                Self::file(bytes)
            }
            (Self::Dir { durable, changes, .. }, cut) => {
                let mut names = durable.clone();
                for entry in changes {
                    if cut == Cut::Kept || (cut != Cut::Dropped && rng.below(2) == 0) {
                        entry.apply(&mut names);
                    }
                }
                Self::Dir { now: names.clone(), durable: names, changes: Vec::new() }
            }
        }
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => put(bytes, *offset, data),
            Self::SetLen(len) => bytes.resize(*len, 0),
        }
    }

    /// Applies none, all or a part of the change.
    fn apply_some(&self, bytes: &mut Vec<u8>, rng: &mut Rng) {
        let Self::Write(offset, data) = self else {
            if rng.below(2) == 0 {
                self.apply(bytes);
            }
            return;
        };
        match rng.below(8) {
            0..=2 => {}
            3..=4 => self.apply(bytes),
            5 => {
                let end = offset + data.len();
                bytes.resize(bytes.len().max(end), 0);
            }
            6 => put(bytes, *offset, &data[..rng.below(data.len() + 1)]),
            _ => {
                let sector = if rng.below(2) == 0 { 512 } else { 4096 };
                let mut at = 0;
                while at < data.len() {
                    let end = ((offset + at) / sector * sector + sector - offset).min(data.len());
                    if rng.below(2) == 0 {
                        put(bytes, offset + at, &data[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

impl Entry {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Link(name, node) => {
                names.insert(name.clone(), *node);
            }
            Self::Unlink(name, node) => {
                if names.get(name) == Some(node) {
                    names.remove(name);
                }
            }
            Self::Rename(from, to, node) => {
                if names.get(from) == Some(node) {
                    names.remove(from);
                }
                names.insert(to.clone(), *node);
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
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

    pub fn data(&self, inode: usize) -> &Vec<u8> {
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
                        files.insert(path.join(name), self.data(*inode).clone());
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

    /// A sync that failed: the system keeps what it has in memory and forgets to write it.
    pub fn lose(&mut self, op: &Op) {
        let forget = |inode: &mut Inode| {
            if let Inode::File { changes, .. } = inode {
                changes.iter_mut().for_each(|(_, forgotten)| *forgotten = true);
            }
        };
        match op {
            Op::Sync(inode) => forget(&mut self.0[*inode]),
            Op::SyncAll => self.0.iter_mut().for_each(forget),
            _ => {}
        }
    }

    pub fn after_cut(&self, cut: Cut) -> Self {
        let mut rng = Rng::new(if let Cut::Random(seed) = cut { seed } else { 0 });
        Self(self.0.iter().map(|inode| inode.after_cut(cut, &mut rng)).collect())
    }

    fn link(&mut self, path: &Path, node: Node, inode: Inode) {
        let (Node::File(number) | Node::Dir(number)) = node;
        assert_eq!(number, self.0.len(), "inodes are numbered in order");
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
            change.apply(now);
            changes.push((change, false));
        }
    }
}
