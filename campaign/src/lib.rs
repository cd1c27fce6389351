//! What proves the promises of Cellar: a disk that loses power, a naive model of an index, workloads
//! and oracles. The tests take small slices of it, the binary `campaign` runs it for hours, the fuzz
//! targets feed it. Nothing here is in what a user of the library compiles.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::missing_errors_doc,
    reason = "a harness of tests: a panic is a finding, what is printed is the result"
)]

pub mod alone;
pub mod change;
pub mod contest;
pub mod cuts;
pub mod damage;
pub mod data;
pub mod faults;
pub mod fuzz;
pub mod image;
#[path = "../../src/kernel/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the fuzz target of the kernels calls them directly")]
mod kernel;
pub mod layer;
pub mod model;
pub mod node;
pub mod oracle;
pub mod patience;
pub mod process;
pub mod recall;
pub mod scratch;
pub mod script;
pub mod shaky;
pub mod sim;
pub mod suites;
pub mod verbs;
pub mod watch;
pub mod workload;
pub mod year;

use cellardb::{Disk, Error, Index, Kind, Maintenance, Metric, Options};
use std::path::Path;
use std::sync::Arc;

/// Where the index lives on a simulated disk.
pub const HOME: &str = "/index";

/// An index kind with its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub name: &'static str,
    pub kind: Kind,
    pub bits: u8,
}

/// Every kind of index that is stored in a different way.
pub const SHAPES: [Shape; 5] = [
    Shape { name: "exact", kind: Kind::Exact, bits: 0 },
    Shape { name: "flat", kind: Kind::IvfFlat, bits: 0 },
    Shape { name: "pq4", kind: Kind::IvfPq, bits: 4 },
    Shape { name: "pq8", kind: Kind::IvfPq, bits: 8 },
    Shape { name: "rabitq", kind: Kind::IvfPq, bits: 1 },
];

/// Every metric.
pub const METRICS: [Metric; 3] = [Metric::L2, Metric::InnerProduct, Metric::Cosine];

/// How a metric is called where one is chosen.
pub fn metric_name(metric: Metric) -> &'static str {
    match metric {
        Metric::L2 => "l2",
        Metric::InnerProduct => "ip",
        _ => "cosine",
    }
}

impl Shape {
    /// A tiny index of this kind that does only what it is told: it trains and closes segments
    /// after a few dozen rows.
    pub fn options(self, dim: usize, metric: Metric) -> Options {
        Index::options(dim)
            .metric(metric)
            .kind(self.kind)
            .pq_bits(self.bits)
            .pq_subquantizers(if self.bits > 1 { dim / 2 } else { 0 })
            .nlist(if self.kind == Kind::Exact { 0 } else { 4 })
            .train_at(64)
            .segment_bytes(4096)
            .seed(7)
            .threads(1)
            .memory(16 << 20)
            .maintenance(Maintenance::Manual)
    }
}

/// Options that open what is stored on `disk`, and do only what they are told.
pub fn stored(disk: &(impl Disk + Clone + 'static)) -> Options {
    Options::stored()
        .maintenance(Maintenance::Manual)
        .threads(1)
        .memory(16 << 20)
        .disk(Arc::new(disk.clone()))
}

/// Whether an error says which file is at fault.
pub fn blames(error: &Error, file: &Path) -> bool {
    let name = file.file_name().unwrap().to_str().unwrap();
    error.to_string().contains(name)
}

/// A number from the environment, to scale a campaign up.
pub fn scale(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Runs `job` for every item on two threads; a panic names the item.
pub fn parallel<T: Sync>(items: &[T], job: impl Fn(&T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(item) =
                    items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    job(item);
                }
            });
        }
    });
}
