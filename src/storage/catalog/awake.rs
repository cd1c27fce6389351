//! Which catalogs redb has open. It takes some 200 KB and a descriptor for each, so that of thousands of indexes
//! in a process only those that were written to last keep it; the others open it again for their next commit.

use super::backend::Backend;
use super::header;
use redb::Database;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// So many catalogs of a process stay open.
const MOST: usize = 16;

/// Those that are open, the one that was used last at the end.
static OPEN: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

/// The place of a database, empty while it is at rest.
#[derive(Debug, Default)]
pub(super) struct Slot {
    awake: Mutex<Option<Awake>>,
    /// Whether it is to stay open: between the opening and the use of it others may be opened.
    busy: AtomicBool,
}

/// An open database. Dropping it writes nothing: the file is as the last commit left it.
#[derive(Debug)]
pub(super) struct Awake {
    db: Database,
    backend: Option<Arc<Backend>>,
}

impl Slot {
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Awake>> {
        self.awake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps it open from now on, or does not.
    pub(super) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, SeqCst);
    }

    /// Takes the database out unless it is in use.
    fn take_idle(&self) -> Option<Awake> {
        let mut awake = self.awake.try_lock().ok()?;
        if self.busy.load(SeqCst) { None } else { awake.take() }
    }
}

/// Notes that a database was used. The one that was not for the longest time is dropped if there are too many.
pub(super) fn used(slot: &Arc<Slot>) {
    let all = || OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let oldest = {
        let mut all = all();
        all.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&Arc::downgrade(slot)));
        all.push(Arc::downgrade(slot));
        if all.len() > MOST { Some(all.remove(0)) } else { None }
    };
    let Some(oldest) = oldest.and_then(|oldest| oldest.upgrade()) else { return };
    // One that is in use comes back when it was used.
    retire(oldest.take_idle());
}

/// Drops a database, whatever it thinks of that.
pub(super) fn retire(awake: Option<Awake>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(awake)));
}

impl Awake {
    pub(super) fn new(db: Database, backend: Option<Arc<Backend>>) -> Self {
        Self { db, backend }
    }

    pub(super) fn db(&self) -> &Database {
        &self.db
    }

    /// The header that the file has, if it is written.
    pub(super) fn header(&self) -> Option<[u8; header::LEN]> {
        self.backend.as_ref().map(|backend| backend.file_header())
    }

    /// Keeps at least so much room ahead.
    pub(super) fn want(&self, room: u64) -> io::Result<()> {
        self.backend.as_ref().map_or(Ok(()), |backend| backend.want(room))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        // redb would write what its next opening need not find out; here every opening checks all.
        if let Some(backend) = &self.backend {
            backend.retire();
        }
    }
}
