//! Directories and mounts of a campaign: they go with it, also when SIGINT or SIGTERM end it.

use crate::image::system;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

/// How the directories of campaigns begin, so that those of a killed one are known.
pub const PREFIX: &str = "cellardb-campaign-";

const INTERRUPTED: i32 = 130;

/// What there is to undo.
#[derive(Debug)]
pub struct Undo {
    roots: Vec<PathBuf>,
    pub mounts: Vec<PathBuf>,
}

/// Held while something is mounted or unmounted; an interrupted campaign never gives it back.
static UNDO: Mutex<Undo> = Mutex::new(Undo { roots: Vec::new(), mounts: Vec::new() });

pub fn undo() -> MutexGuard<'static, Undo> {
    UNDO.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory in `dir`, or in that for temporary files.
pub fn scratch(dir: Option<&Path>) -> Result<TempDir, String> {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        let mut signals = Signals::new([SIGINT, SIGTERM]).unwrap();
        std::thread::spawn(move || signals.forever().for_each(|_| end()));
    });
    let dir = dir.map_or_else(std::env::temp_dir, Path::to_owned);
    let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&dir);
    let made = made.map_err(|e| format!("the harness cannot use {}: {e}", dir.display()))?;
    undo().roots.push(made.path().to_owned());
    Ok(made)
}

fn end() {
    let undo = undo();
    eprintln!("interrupted");
    for at in &undo.mounts {
        let _ = system("umount", &["-q", "-l", &at.to_string_lossy()]);
    }
    for root in &undo.roots {
        // Children may be at work in it for a moment.
        for _ in 0..100 {
            if std::fs::remove_dir_all(root).is_ok() || !root.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    std::process::exit(INTERRUPTED);
}
