//! Bugs on purpose: one line each where the engine would have it, for the campaign to catch. Without
//! the feature `planted` [`on`] is `false` at compile time and nothing of them is left; a release
//! build with the feature does not compile.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!(
    "the feature `planted` plants bugs: it is for the campaign, never for a release build"
);

macro_rules! bugs {
    ($($name:ident $what:literal,)*) => {
        /// A bug that can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(
            missing_docs,
            dead_code,
            unreachable_pub,
            reason = "`Bug::what` says it; a build without the feature needs none of it"
        )]
        pub enum Bug {
            $($name,)*
        }

        #[cfg(feature = "planted")]
        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$name,)*];

            /// What it does.
            pub fn what(self) -> &'static str {
                match self {
                    $(Bug::$name => $what,)*
                }
            }
        }
    };
}

bugs! {
    RowsNotSynced "row segments are not synced before the commit",
}

/// Whether a bug is planted: never, in what a user compiles.
#[cfg(not(feature = "planted"))]
pub(crate) const fn on(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(usize::MAX);

/// Whether a bug is planted in this process.
#[cfg(feature = "planted")]
pub(crate) fn on(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as usize
}

/// Plants one bug in this process, or none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    let number = bug.map_or(usize::MAX, |bug| bug as usize);
    PLANTED.store(number, std::sync::atomic::Ordering::Relaxed);
}
