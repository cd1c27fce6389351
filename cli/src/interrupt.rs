//! Ctrl-C and SIGTERM: the first finishes the commit under way, the second ends the process.

use crate::output::complain;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

const INTERRUPTED: i32 = 130;

/// Whether the user has asked to stop.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    asked: Arc<AtomicBool>,
    last_words: Arc<Mutex<Option<String>>>,
}

impl Interrupt {
    /// Takes over the signals of this process.
    pub(crate) fn install() -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let interrupt = Self { asked, last_words: Arc::default() };
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let listener = interrupt.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            for _ in signals.forever() {
                listener.heard();
            }
        })?;
        Ok(interrupt)
    }

    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// From here on a signal ends the process at once, with these words. Whatever is under way must
    /// be safe from a kill.
    pub(crate) fn end_at_once(&self, last_words: String) {
        *self.last_words.lock().unwrap_or_else(PoisonError::into_inner) = Some(last_words);
    }

    fn heard(&self) {
        let last_words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(words) = &last_words {
            complain(&format!("cellardb: {words}"));
        }
        if self.asked.swap(true, Ordering::Relaxed) || last_words.is_some() {
            std::process::exit(INTERRUPTED);
        }
        complain("cellardb: finishing the commit under way; interrupt again to stop at once");
    }
}
