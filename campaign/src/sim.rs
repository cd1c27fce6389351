//! A disk in memory that loses power. It knows, of every file, which bytes were synced and which
//! writes were not, and of every directory which names; a cut drops, keeps, tears or reorders what
//! was not synced. It also fails chosen operations, and records all of them so that one run of a
//! workload can be cut at every place.

use crate::change::{Cut, Node};
use crate::data::Rng;
use crate::node::{FailedSync, Op, Tree};
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
    /// The device reports an error; of a failed sync see [`FailedSync`].
    Eio,
    /// The disk is full. A part of a write may be there.
    Enospc,
    /// The process has too many files open.
    Emfile,
    /// A part of a write is there, then the device reports an error.
    Short,
    /// Reads only: a bit of what is read is another, and nobody says so.
    Rot,
}

/// Which operations a fault is counted over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// Those that change or sync something.
    Changes,
    /// Reads of a file.
    Reads,
    /// Files that are opened or created, lengths that are asked for, and directories that are listed.
    Opens,
}

/// Which operation fails, counted from 0, and whether the later ones do too.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub calls: Calls,
    pub at: u64,
    pub fault: Fault,
    pub for_ever: bool,
}

#[derive(Debug, Default)]
struct State {
    tree: Tree,
    /// Operations so far of each of [`Calls`].
    ops: [u64; 3],
    plan: Option<Plan>,
    faults: u64,
    failed_sync: FailedSync,
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

    /// The same, telling of each change that was not synced what became of it.
    pub fn after_cut_told(&self, cut: Cut, told: &mut dyn FnMut(String)) -> Self {
        Self::of(self.state().tree.after_cut_told(cut, told))
    }

    /// A number that tells these files from others.
    pub fn digest(&self) -> u64 {
        self.state().tree.digest()
    }

    /// All paths with the numbers of their inodes.
    pub fn paths(&self) -> Vec<(PathBuf, usize)> {
        self.state().tree.paths()
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
        self.plan(Plan { calls: Calls::Changes, at: n, fault, for_ever });
    }

    /// Plans a fault, counted from now.
    pub fn plan(&self, plan: Plan) {
        let mut state = self.state();
        let at = state.ops[plan.calls as usize] + plan.at;
        state.plan = Some(Plan { at, ..plan });
    }

    /// What the system does with the writes of a sync that fails.
    pub fn failed_sync(&self, how: FailedSync) {
        self.state().failed_sync = how;
    }

    /// Ends all that a process held: what a kill does.
    pub fn unlock_all(&self) {
        self.state().locks.clear();
    }

    /// No further faults.
    pub fn heal(&self) {
        self.state().plan = None;
    }

    /// Operations that changed or synced something, failed ones included.
    pub fn ops(&self) -> u64 {
        self.calls(Calls::Changes)
    }

    /// Operations so far of one sort.
    pub fn calls(&self, calls: Calls) -> u64 {
        self.state().ops[calls as usize]
    }

    /// How many operations failed by plan.
    pub fn faults(&self) -> u64 {
        self.state().faults
    }

    /// From now on every operation is recorded.
    pub fn record(&self) {
        self.state().journal = Some(Vec::new());
    }

    /// How many operations were recorded so far.
    pub fn recorded_len(&self) -> usize {
        self.state().journal.as_ref().map_or(0, Vec::len)
    }

    /// What was recorded; recording ends.
    pub fn recorded(&self) -> Vec<Op> {
        self.state().journal.take().unwrap_or_default()
    }

    /// Does what a recorded operation did.
    pub fn replay(&self, op: &Op) {
        let mut state = self.state();
        state.tree.apply(op);
        state.ops[0] += 1;
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
        self.state().run(op)
    }

    /// Counts an operation that changes nothing and lets it fail if it is planned to.
    fn ask(&self, calls: Calls) -> io::Result<(MutexGuard<'_, State>, bool)> {
        let mut state = self.state();
        let fault = state.fault(calls);
        match (fault, state.plan) {
            (Some(Fault::Rot), _) => Ok((state, true)),
            (Some(fault), _) => Err(fault.error()),
            (_, Some(Plan { fault: fault @ Fault::PowerOff, at, .. })) if state.ops[0] > at => {
                Err(fault.error())
            }
            _ => Ok((state, false)),
        }
    }

    /// The state, unless the power is off.
    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        match state.plan {
            Some(p) if p.fault == Fault::PowerOff && state.ops[0] > p.at => Err(p.fault.error()),
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
    fn run(&mut self, op: Op) -> io::Result<()> {
        let Some(fault) = self.fault(Calls::Changes) else {
            self.change(op);
            return Ok(());
        };
        match (fault, op) {
            (Fault::Eio, op) => self.tree.lose(&op, self.failed_sync),
            (Fault::Short | Fault::Enospc, Op::Write(inode, at, mut data)) => {
                data.truncate(Rng::new(self.ops[0]).below(data.len() + 1));
                if !data.is_empty() {
                    self.change(Op::Write(inode, at, data));
                }
            }
            _ => {}
        }
        Err(fault.error())
    }

    /// Counts an operation; whether it is planned to fail.
    fn fault(&mut self, calls: Calls) -> Option<Fault> {
        let n = self.ops[calls as usize];
        self.ops[calls as usize] += 1;
        let plan = self.plan.filter(|plan| plan.calls == calls)?;
        let fault = (n == plan.at || (plan.for_ever && n > plan.at)).then_some(plan.fault);
        self.faults += u64::from(fault.is_some());
        fault
    }

    fn change(&mut self, op: Op) {
        self.tree.apply(&op);
        if let Some(journal) = &mut self.journal {
            journal.push(op);
        }
    }
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::PowerOff => io::Error::other("power is off"),
            Self::Eio | Self::Short | Self::Rot => io::Error::from_raw_os_error(5),
            Self::Enospc => io::Error::from_raw_os_error(28),
            Self::Emfile => io::Error::from_raw_os_error(24),
        }
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        drop(self.ask(Calls::Opens)?);
        let mut state = self.powered()?;
        if state.tree.find(path).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.tree.parent(path)?;
        let inode = state.tree.next_inode();
        state.run(Op::Create(path.to_owned(), inode))?;
        drop(state);
        Ok(self.file(inode, true))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        drop(self.ask(Calls::Opens)?);
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
        let mut state = self.powered()?;
        if state.tree.find(path).is_some() {
            return Ok(());
        }
        let inode = state.tree.next_inode();
        state.run(Op::CreateDir(path.to_owned(), inode))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let (state, _) = self.ask(Calls::Opens)?;
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

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let state = self.powered()?;
        match state.tree.find(path) {
            Some(Node::Dir(dir)) if state.tree.names(dir).next().is_some() => {
                Err(io::ErrorKind::DirectoryNotEmpty.into())
            }
            Some(Node::Dir(_)) => {
                drop(state);
                self.run(Op::Remove(path.to_owned()))
            }
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
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
        let len = self.disk.ask(Calls::Opens)?.0.tree.data(self.inode).len();
        u64::try_from(len).map_err(io::Error::other)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let (state, rot) = self.disk.ask(Calls::Reads)?;
        let data = state.tree.data(self.inode);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = start.checked_add(buf.len()).and_then(|end| data.get(start..end));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        if rot && !buf.is_empty() {
            let mut rng = Rng::new(state.ops[Calls::Reads as usize]);
            let at = rng.below(buf.len());
            buf[at] ^= 1 << rng.below(8);
        }
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
