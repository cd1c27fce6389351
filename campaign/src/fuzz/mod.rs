//! What the fuzz targets call, and the replay of their corpora. Bytes are decoded into something with a
//! structure (a file, a record, a sequence of operations), damaged there, and given the checksums
//! that they then need, so that what lies behind a checksum is reached.

mod bytes;
mod catalog;
mod directory;
mod frame;
mod image;
mod kernels;
mod operations;
mod record;
mod records;
mod reopen;
mod segment;
mod session;

/// The name of a target, which is that of its corpus, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 8] = [
    ("frame", frame::run),
    ("record", record::run),
    ("segment", segment::run),
    ("directory", directory::run),
    ("catalog", catalog::run),
    ("operations", operations::run),
    ("reopen", reopen::run),
    ("kernels", kernels::run),
];

/// Runs the target of this name.
pub fn run(name: &str, data: &[u8]) {
    image::keep_threads();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("{name} is no fuzz target")).1(data);
}

/// The engine answers for panics of redb over damaged bytes: it catches them. libFuzzer would end the
/// process at each, so its hook gives way to one that lets those pass that begin in redb.
pub fn redb_may_panic() {
    std::panic::set_hook(Box::new(|info| {
        let of_redb = |place: &std::panic::Location<'_>| place.file().contains("/redb-");
        if !info.location().is_some_and(of_redb) {
            eprintln!("{info}");
            std::process::abort();
        }
    }));
}
