//! Whether this thread is inside code of the host that the engine called: its observer, or its disk. What
//! that code may ask of an index depends on it: a call that waits for the work that called would wait for
//! ever.

use std::cell::Cell;

/// What the engine called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Callback {
    /// The observer of progress. Work on some index waits for it, but no change and no search does.
    Observer,
    /// The disk. Anything may wait for it.
    Disk,
}

thread_local! {
    static INSIDE: Cell<Option<Callback>> = const { Cell::new(None) };
}

/// The callback that this thread is in; that of the disk if it is in both.
pub(crate) fn inside() -> Option<Callback> {
    INSIDE.get()
}

/// Calls code of the host.
pub(crate) fn call<T>(callback: Callback, f: impl FnOnce() -> T) -> T {
    /// Restores what was before, though the code panics.
    struct Left(Option<Callback>);
    impl Drop for Left {
        fn drop(&mut self) {
            INSIDE.set(self.0);
        }
    }
    let before = INSIDE.get();
    let _left = Left(before);
    INSIDE.set(before.max(Some(callback)));
    f()
}

#[cfg(test)]
mod tests {
    use super::{Callback, call, inside};

    #[test]
    fn a_thread_knows_which_callback_it_is_in_until_it_returns_or_panics() {
        assert_eq!(inside(), None);
        call(Callback::Disk, || {
            call(Callback::Observer, || assert_eq!(inside(), Some(Callback::Disk)));
            assert_eq!(inside(), Some(Callback::Disk));
        });
        let panicked = std::panic::catch_unwind(|| {
            call(Callback::Observer, || {
                assert_eq!(inside(), Some(Callback::Observer));
                assert_eq!(std::thread::spawn(inside).join().unwrap(), None);
                std::panic::resume_unwind(Box::new("on purpose"));
            })
        });
        assert!(panicked.is_err() && inside().is_none());
    }
}
