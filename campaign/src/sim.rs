//! A disk in memory that loses power. It knows, of every file, which bytes were synced and which
//! writes were not, and of every directory which names; a cut drops, keeps, tears or reorders what
//! was not synced. It also fails chosen operations, and records all of them so that one run of a
//! workload can be cut at every place.

use crate::data::Rng;
use crate::node::{Cut, Node, Op, Tree};
use cellardb::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a failing operation answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The power is off: this operation and all later ones fail, reads too.
    PowerOff,
    /// The device reports an error; a failed sync loses its writes at the next cut.
    Eio,
    /// The disk is full.
    Enospc,
}

/// Which operation fails, counted from 0, and whether the later ones do too.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub at: u64,
    pub fault: Fault,
    pub for_ever: bool,
}

#[derive(Debug, Default)]
struct State {
    tree: Tree,
    ops: u64,
    plan: Option<Plan>,
    faults: u64,
    journal: Option<Vec<Op>>,
    /// Per file: how many hold it shared, or -1 for exclusive.
    locks: BTreeMap<usize, i32>,
}

/// The simulated disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: usize,
    write: bool,
    held: Mutex<i32>,
}

impl SimDisk {
    pub fn new() -> Self {
        Self::default()
    }

    fn of(tree: Tree) -> Self {
        Self(Arc::new(Mutex::new(State { tree, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The disk as a power cut now would leave it.
    pub fn after_cut(&self, cut: Cut) -> Self {
        Self::of(self.state().tree.after_cut(cut))
    }

    /// The disk as a kill of the process leaves it: nothing lost, nothing more durable, no locks.
    pub fn after_kill(&self) -> Self {
        Self::of(self.state().tree.clone())
    }

    /// Power goes off at the `n`-th operation from now.
    pub fn cut_at(&self, n: u64) {
        self.fail(n, Fault::PowerOff, true);
    }

    /// The `n`-th operation from now fails, and if `for_ever` all after it.
    pub fn fail(&self, n: u64, fault: Fault, for_ever: bool) {
        let mut state = self.state();
        state.plan = Some(Plan { at: state.ops + n, fault, for_ever });
    }

    /// No further faults.
    pub fn heal(&self) {
        self.state().plan = None;
    }

    /// Operations that changed or synced something, failed ones included.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// How many operations failed by plan.
    pub fn faults(&self) -> u64 {
        self.state().faults
    }

    /// From now on every operation is recorded.
    pub fn record(&self) {
        self.state().journal = Some(Vec::new());
    }

    /// What was recorded; recording ends.
    pub fn recorded(&self) -> Vec<Op> {
        self.state().journal.take().unwrap_or_default()
    }

    /// Does what a recorded operation did.
    pub fn replay(&self, op: &Op) {
        let mut state = self.state();
        state.tree.apply(op);
        state.ops += 1;
    }

    /// All files by path, as a running process sees them.
    pub fn dump(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.state().tree.files()
    }

    /// A disk that durably holds these files.
    pub fn load(files: &BTreeMap<PathBuf, Vec<u8>>) -> Self {
        let mut tree = Tree::default();
        for (path, bytes) in files {
            tree.put(path, bytes.clone());
        }
        Self::of(tree)
    }

    /// Copies all files into a real directory, `root` in the place of `/`.
    pub fn export(&self, root: &Path) {
        for (path, bytes) in self.dump() {
            let path = root.join(path.strip_prefix("/").unwrap_or(&path));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            #[expect(clippy::disallowed_methods, reason = "a test lays out a real directory")]
            std::fs::write(path, bytes).unwrap();
        }
    }

    /// Counts an operation, lets it fail if it is planned to, else applies and records it.
    fn run(&self, op: Op) -> io::Result<()> {
        let mut state = self.state();
        let n = state.ops;
        state.ops += 1;
        if let Some(fault) = state.fault(n) {
            state.faults += 1;
            if fault == Fault::Eio {
                state.tree.lose(&op);
            }
            return Err(fault.error());
        }
        state.tree.apply(&op);
        if let Some(journal) = &mut state.journal {
            journal.push(op);
        }
        Ok(())
    }

    /// Reads fail only when the power is off.
    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        match state.plan {
            Some(p) if p.fault == Fault::PowerOff && state.ops > p.at => Err(p.fault.error()),
            _ => Ok(state),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Option<Node>> {
        Ok(self.powered()?.tree.find(path))
    }

    fn file(&self, inode: usize, write: bool) -> Box<dyn DiskFile> {
        Box::new(SimFile { disk: self.clone(), inode, write, held: Mutex::new(0) })
    }
}

impl State {
    fn fault(&self, n: u64) -> Option<Fault> {
        let plan = self.plan?;
        (n == plan.at || (plan.for_ever && n > plan.at)).then_some(plan.fault)
    }
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::PowerOff => io::Error::other("power is off"),
            Self::Eio => io::Error::from_raw_os_error(5),
            Self::Enospc => io::Error::from_raw_os_error(28),
        }
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = {
            let state = self.powered()?;
            if state.tree.find(path).is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.tree.parent(path)?;
            state.tree.next_inode()
        };
        self.run(Op::Create(path.to_owned(), inode))?;
        Ok(self.file(inode, true))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        match self.find(path)? {
            Some(Node::File(inode)) => Ok(self.file(inode, write)),
            Some(Node::Dir(_)) => Err(io::ErrorKind::InvalidData.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match self.find(path)? {
            Some(Node::Dir(_)) => return Ok(()),
            Some(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            None => {}
        }
        if let Some(parent) = path.parent() {
            self.create_dir(parent)?;
        }
        let inode = self.powered()?.tree.next_inode();
        self.run(Op::CreateDir(path.to_owned(), inode))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.powered()?;
        match state.tree.find(path) {
            Some(Node::Dir(dir)) => Ok(state.tree.names(dir).map(|n| path.join(n)).collect()),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Ok(Vec::new()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if from.parent() != to.parent() {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        if self.find(from)?.is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.run(Op::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.find(path)? {
            Some(Node::File(_)) => self.run(Op::Remove(path.to_owned())),
            Some(Node::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Ok(()),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match self.find(path)? {
            Some(Node::Dir(dir)) => self.run(Op::SyncDir(dir)),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn sync_all(&self, path: &Path) -> io::Result<()> {
        if self.find(path)?.is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.run(Op::SyncAll)
    }
}

impl SimFile {
    fn writable(&self) -> io::Result<()> {
        if self.write { Ok(()) } else { Err(io::Error::from_raw_os_error(9)) }
    }

    fn unlock(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        if held != 0 {
            let mut state = self.disk.state();
            let left = state.locks.get(&self.inode).copied().unwrap_or(0);
            state.locks.insert(self.inode, if held < 0 { 0 } else { left - 1 });
        }
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let len = self.disk.powered()?.tree.data(self.inode).len();
        u64::try_from(len).map_err(io::Error::other)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.powered()?;
        let data = state.tree.data(self.inode);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = start.checked_add(buf.len()).and_then(|end| data.get(start..end));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.writable()?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.disk.run(Op::Write(self.inode, offset, data.to_vec()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if len > 1 << 32 {
            return Err(Fault::Enospc.error());
        }
        self.disk.run(Op::SetLen(self.inode, len))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.run(Op::Sync(self.inode))
    }

    fn try_lock(&self, exclusive: bool) -> io::Result<bool> {
        self.unlock();
        let mut state = self.disk.powered()?;
        let now = state.locks.get(&self.inode).copied().unwrap_or(0);
        let free = if exclusive { now == 0 } else { now >= 0 };
        if free {
            let held = if exclusive { -1 } else { 1 };
            state.locks.insert(self.inode, now + held);
            drop(state);
            *self.held.lock().unwrap() = held;
        }
        Ok(free)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.unlock();
    }
}

/// The cuts that every place of a workload is tried with: nothing of what was not synced, all of
/// it, and `random` mixtures.
pub fn cuts(random: u64, seed: u64) -> Vec<Cut> {
    let mut rng = Rng::new(seed);
    let mut cuts = vec![Cut::Dropped, Cut::Kept];
    cuts.extend((0..random).map(|_| Cut::Random(rng.next_u64())));
    cuts
}
