//! `create`: a new, empty index.

use super::{kind_name, metric_name};
use crate::failure::Failure;
use crate::output::{Console, shown};
use cellardb::{Kind, Metric, Options};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

/// Make a new, empty index.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Create {
    /// Directory of the index; there must be no index in it.
    dir: PathBuf,
    /// Dimensions of the vectors.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    dim: u16,
    /// How far apart two vectors are; l2 is squared, ip and cosine are 1 - <q, v>.
    #[arg(long, value_enum, default_value = "l2")]
    metric: MetricName,
    #[command(flatten)]
    how: How,
}

const EXAMPLES: &str = "\
Examples:
  cellardb create words --dim 384 --metric cosine
  cellardb create faces --dim 512 --kind ivf-pq --bits 8 --train-at 50000";

/// What is stored beside dimension and metric.
#[derive(Debug, Args)]
pub(super) struct How {
    /// How neighbours are found; auto, the default, is exact while the index is small, then ivf-pq.
    #[arg(long, value_enum)]
    kind: Option<KindName>,
    /// Bits of a code of the product quantizer [default: chosen by the index].
    #[arg(long, value_parser = ["1", "4", "8"])]
    bits: Option<String>,
    /// Sub-quantizers of the product quantizer [default: chosen by the index].
    #[arg(long, value_name = "M")]
    subquantizers: Option<usize>,
    /// Inverted lists [default: chosen by the number of rows].
    #[arg(long, value_name = "N")]
    nlist: Option<usize>,
    /// Seed of training [default: 0].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Rows from which on the index trains itself [default: 10000].
    #[arg(long, value_name = "N")]
    train_at: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum MetricName {
    L2,
    Ip,
    Cosine,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindName {
    Auto,
    Exact,
    IvfFlat,
    IvfPq,
}

impl From<MetricName> for Metric {
    fn from(name: MetricName) -> Self {
        match name {
            MetricName::L2 => Self::L2,
            MetricName::Ip => Self::InnerProduct,
            MetricName::Cosine => Self::Cosine,
        }
    }
}

impl How {
    fn kind(&self) -> Kind {
        match self.kind {
            None | Some(KindName::Auto) => Kind::Auto,
            Some(KindName::Exact) => Kind::Exact,
            Some(KindName::IvfFlat) => Kind::IvfFlat,
            Some(KindName::IvfPq) => Kind::IvfPq,
        }
    }

    /// The options with these, as far as they were given.
    pub(super) fn apply(&self, mut options: Options) -> Options {
        if self.kind.is_some() {
            options = options.kind(self.kind());
        }
        if let Some(seed) = self.seed {
            options = options.seed(seed);
        }
        match self.bits.as_deref() {
            Some("1") => options = options.pq_bits(1),
            Some("4") => options = options.pq_bits(4),
            Some(_) => options = options.pq_bits(8),
            None => {}
        }
        if let Some(m) = self.subquantizers {
            options = options.pq_subquantizers(m);
        }
        if let Some(nlist) = self.nlist {
            options = options.nlist(nlist);
        }
        if let Some(rows) = self.train_at {
            options = options.train_at(rows);
        }
        options
    }
}

impl Create {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let metric = Metric::from(self.metric);
        let options = self.how.apply(super::stored().dim(usize::from(self.dim)).metric(metric));
        options.create(&self.dir)?.close()?;
        let (metric, kind) = (metric_name(metric), kind_name(self.how.kind()));
        let created =
            json!({ "path": shown(&self.dir), "dim": self.dim, "metric": metric, "kind": kind });
        console.result(&created, |_| {
            format!("{}: {} dimensions, {metric}, {kind}", self.dir.display(), self.dim)
        })
    }
}
