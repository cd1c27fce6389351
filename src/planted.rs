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
    SegmentNameNotSynced "the name of a new row segment is not made durable",
    ListsNotSynced "inverted lists are not synced before the commit",
    ListNamesNotSynced "the names of new inverted lists are not made durable",
    CatalogNotSynced "a sync of the catalog does nothing",
    CatalogNamedTooEarly "a new catalog gets its name before the directories are durable",
    CatalogNameNotSynced "the name of a new catalog is not made durable",
    CommitBeforeRows "the catalog is committed before the rows are synced",
    AckBeforeCommit "every fourth change is acknowledged without a commit",
    PublishBeforeCommit "readers see a change before it is durable",
    FailedSyncIgnored "an error of a sync of rows is ignored",
    FailedSyncRetried "a sync of rows that failed is tried again and believed",
    ShortWriteIgnored "an error of a write to a list is ignored",
    PoisonForgotten "the writer goes on after a commit that failed",
    AppendedKept "rows of a change that failed stay appended",
    UnlinkBeforeCommit "replaced lists are unlinked before the commit",
    SegmentUnlinkedEarly "compacted row segments are unlinked before the commit",
    SweepKnown "opening removes a list that is in use",
    SweepNothing "opening leaves the orphans of a crash",
    WatermarkTooHigh "a fold says that rows are in the lists that came after it began",
    WatermarkLost "a fold leaves the watermark where it was",
    RowCountTooLow "the catalog gets one row too few of a segment",
    ResumeTooEarly "writing goes on over the last committed row",
    GapIgnored "rows are appended to a segment that ends before their ids",
    TombstonesNotStored "removals are not stored",
    RemovedFound "searches return removed rows",
    RevisionReused "a rewritten list gets the number of an older revision",
    SegmentNumberReused "a compacted segment gets the number of a later one",
    CompactedTooMuch "compaction drops a row that lives",
    TailNotFolded "a fold forgets the rows of one cell",
    PendingNotClosed "closing forgets what relaxed durability has put off",
    RowUnverified "rows are not verified",
    FrameUnverified "the payload of frames is not verified",
    SeenTooEarly "a row counts as verified before it was",
    MarkIgnored "a catalog older than the acknowledged commits is opened",
    MarkNotSettled "the mark of acknowledged commits is never synced",
    NotWrittenAgain "after an unclean end the catalog is believed as the cache has it",
    SealIgnored "the seals of catalog values are not checked",
    LockIgnored "the lock of another writer is ignored",
    CatchUpForgets "rows that come while the tail is encoded are forgotten",
    GroupHalved "of a group of changes only the first is applied",
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
