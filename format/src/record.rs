//! The small values of the catalog: what the index is, where it stands, and its model. Section 6.
//!
//! `encode` gives the value unsealed and `parse` takes it unsealed; see [`crate::seal`].

use crate::block::CodeKind;
use crate::bytes::{Reader, index};
use crate::error::{FormatError, FormatErrorKind};
use crate::{FORMAT_VERSION, MAX_CELLS, MAX_DIM, MAX_GENERATION, MAX_ID, MAX_LISTS, MAX_NUMBER};

/// How distances are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricCode {
    /// Squared Euclidean.
    L2,
    /// `1 - <q, v>`.
    InnerProduct,
    /// `1 - <q, v> / (|q| |v|)`.
    Cosine,
}

impl MetricCode {
    const fn code(self) -> u8 {
        match self {
            Self::L2 => 0,
            Self::InnerProduct => 1,
            Self::Cosine => 2,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::L2),
            1 => Some(Self::InnerProduct),
            2 => Some(Self::Cosine),
            _ => None,
        }
    }
}

/// How neighbours are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KindCode {
    /// Exact while small, then `IvfPq`.
    Auto,
    /// By comparing every row.
    Exact,
    /// Inverted lists of vectors.
    IvfFlat,
    /// Inverted lists of product-quantized residuals.
    IvfPq,
}

impl KindCode {
    const fn code(self) -> u8 {
        match self {
            Self::Auto => 0,
            Self::Exact => 1,
            Self::IvfFlat => 2,
            Self::IvfPq => 3,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Auto),
            1 => Some(Self::Exact),
            2 => Some(Self::IvfFlat),
            3 => Some(Self::IvfPq),
            _ => None,
        }
    }
}

/// What was decided when the index was created. Never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Of the index.
    pub uuid: [u8; 16],
    /// Dimensions of a vector.
    pub dim: u32,
    /// Distance.
    pub metric: MetricCode,
    /// Kind of index.
    pub kind: KindCode,
    /// Bits of a code for each sub-quantizer, 4 or 8; 1 for each dimension; 0 to choose.
    pub bits: u8,
    /// Sub-quantizers, at most `dim`; 0 to choose.
    pub m: u32,
    /// Lists; 0 to choose.
    pub nlist: u32,
    /// Of everything random.
    pub seed: u64,
    /// Rows at which the first model is trained.
    pub train_at: u64,
    /// Bytes at which a row segment is closed.
    pub segment_bytes: u64,
}

impl Config {
    /// The value as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(60);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&self.dim.to_le_bytes());
        out.extend_from_slice(&[self.metric.code(), self.kind.code(), self.bits, 0]);
        out.extend_from_slice(&self.m.to_le_bytes());
        out.extend_from_slice(&self.nlist.to_le_bytes());
        for field in [self.seed, self.train_at, self.segment_bytes] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out
    }

    /// Reads the value.
    ///
    /// # Errors
    ///
    /// `Version` first, when it is not ours; else `Truncated`, `Length` or `Value`.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let found = reader.u32()?;
        if found != FORMAT_VERSION {
            return Err(reader.error(FormatErrorKind::Version { found }));
        }
        let uuid = reader.array()?;
        let dim = reader.u32()?;
        reader.ensure((1..=MAX_DIM).contains(&index(dim)), "dimension")?;
        let metric = MetricCode::from_code(reader.u8()?);
        let metric = metric.ok_or_else(|| reader.error(FormatErrorKind::Value("metric")))?;
        let kind = KindCode::from_code(reader.u8()?);
        let kind = kind.ok_or_else(|| reader.error(FormatErrorKind::Value("kind of index")))?;
        let bits = reader.u8()?;
        reader.ensure(matches!(bits, 0 | 1 | 4 | 8), "bits of a code")?;
        let reserved = reader.u8()?;
        reader.ensure(reserved == 0, "reserved field of the configuration")?;
        let m = reader.u32()?;
        reader.ensure(m <= dim, "number of sub-quantizers")?;
        let nlist = reader.u32()?;
        reader.ensure(index(nlist) <= MAX_LISTS, "number of lists")?;
        let seed = reader.u64()?;
        let train_at = reader.u64()?;
        let segment_bytes = reader.u64()?;
        reader.finish()?;
        Ok(Self { uuid, dim, metric, kind, bits, m, nlist, seed, train_at, segment_bytes })
    }
}

/// Where the index stands after a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Number of the commit.
    pub seq: u64,
    /// The id that the next row gets.
    pub next_id: u64,
    /// Rows that are not removed.
    pub live: u64,
    /// Rows below are in lists.
    pub watermark: u64,
    /// The number that the next row segment gets.
    pub next_segment: u64,
    /// The revision that the next list file gets.
    pub next_revision: u32,
    /// Of the model; 0 without one.
    pub generation: u32,
    /// Entries of the table of segments.
    pub segments: u32,
    /// Entries of the table of lists.
    pub lists: u32,
    /// Entries of the table of tombstones.
    pub dead_keys: u32,
    /// Rows with a tombstone.
    pub dead: u64,
    /// Rows that were assigned to cells since recall was measured.
    pub since_measured: u64,
    /// Those of them that lie farther from the centroids of their cells than half of the rows did then.
    pub since_beyond: u64,
    /// Those of these that lie far from them.
    pub since_far: u64,
}

impl State {
    /// The value as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(92);
        for field in [self.seq, self.next_id, self.live, self.watermark, self.next_segment] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        let counts =
            [self.next_revision, self.generation, self.segments, self.lists, self.dead_keys];
        for field in counts {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.dead, self.since_measured, self.since_beyond, self.since_far] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out
    }

    /// Reads the value.
    ///
    /// # Errors
    ///
    /// `Truncated`, `Length`; `Value` when the counts contradict each other.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let seq = reader.u64()?;
        reader.ensure(seq <= MAX_NUMBER, "number of the commit")?;
        let next_id = reader.u64()?;
        reader.ensure(next_id <= MAX_ID, "next row id")?;
        let live = reader.u64()?;
        reader.ensure(live <= next_id, "number of live rows")?;
        let watermark = reader.u64()?;
        reader.ensure(watermark <= next_id, "watermark")?;
        let next_segment = reader.u64()?;
        reader.ensure(next_segment <= MAX_NUMBER, "next segment")?;
        let next_revision = reader.u32()?;
        reader.ensure(next_revision <= MAX_GENERATION, "next revision")?;
        let generation = reader.u32()?;
        reader.ensure(generation <= MAX_GENERATION, "generation")?;
        let segments = reader.u32()?;
        reader.ensure(u64::from(segments) <= next_segment, "number of segments")?;
        let lists = reader.u32()?;
        reader.ensure(index(lists) <= MAX_LISTS, "number of lists")?;
        reader.ensure(lists == 0 || generation > 0, "number of lists without a model")?;
        let dead_keys = reader.u32()?;
        let dead = reader.u64()?;
        reader.ensure(dead <= next_id.saturating_sub(live), "number of removed rows")?;
        let since_measured = reader.u64()?;
        reader.ensure(since_measured <= next_id, "number of rows since recall was measured")?;
        let since_beyond = reader.u64()?;
        reader.ensure(since_beyond <= since_measured, "number of rows beyond the middle")?;
        let since_far = reader.u64()?;
        reader.ensure(since_far <= since_beyond, "number of rows far from their cells")?;
        reader.finish()?;
        Ok(Self {
            seq,
            next_id,
            live,
            watermark,
            next_segment,
            next_revision,
            generation,
            segments,
            lists,
            dead_keys,
            dead,
            since_measured,
            since_beyond,
            since_far,
        })
    }
}

/// Steps of a rotation, each with signs of its own. Section 5.
pub const ROTATION_STEPS: usize = 6;

/// What a training made, without its numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelRecord {
    /// Counts trainings, from 1.
    pub generation: u32,
    /// What the codes in the lists are.
    pub code: CodeKind,
    /// Whether rows are in two cells each.
    pub spilled: bool,
    /// Sub-quantizers; 0 when `Flat`.
    pub m: u32,
    /// Dimensions of a sub-quantizer; 0 when `Flat`.
    pub dsub: u32,
    /// Of `|c|^2` in the order of cells, 0 to 1. Section 5.
    pub norm_weight: f32,
    /// The squared length that queries are brought to under inner product. Section 5.
    pub squared: f32,
    /// Lists.
    pub lists: u32,
    /// Cells of all lists together.
    pub cells: u32,
    /// Rows that the index had.
    pub trained_rows: u64,
    /// The id that the next row would have got.
    pub trained_next_id: u64,
}

impl ModelRecord {
    /// Numbers in the codebook: `m * 2^bits * dsub`, 0 for `Flat`; for `RaBitQ` the signs of the
    /// rotation, [`ROTATION_STEPS`] for each of `m * dsub` dimensions.
    pub fn codebook_len(&self) -> usize {
        let each = match self.code {
            CodeKind::RaBitQ => ROTATION_STEPS,
            _ => self.code.codewords(),
        };
        index(self.m).saturating_mul(each).saturating_mul(index(self.dsub))
    }

    /// The value as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(52);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&[self.code.code(), u8::from(self.spilled), 0, 0]);
        let (weight, squared) = (self.norm_weight.to_bits(), self.squared.to_bits());
        let fields = [self.m, self.dsub, weight, squared, self.lists, self.cells];
        for field in fields {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.trained_rows.to_le_bytes());
        out.extend_from_slice(&self.trained_next_id.to_le_bytes());
        out
    }

    /// Reads the value.
    ///
    /// # Errors
    ///
    /// `Truncated`, `Length` or `Value`.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let generation = reader.u32()?;
        reader.ensure(generation > 0, "generation of a model")?;
        let code = CodeKind::from_code(reader.u8()?);
        let code = code.ok_or_else(|| reader.error(FormatErrorKind::Value("kind of code")))?;
        let flat = code == CodeKind::Flat;
        let spilled = reader.u8()?;
        reader.ensure(spilled <= u8::from(!flat), "mark of spilled rows")?;
        let spilled = spilled == 1;
        let reserved = reader.array::<2>()?;
        reader.ensure(reserved == [0; 2], "reserved field of a model")?;
        let m = reader.u32()?;
        reader.ensure((m == 0) == flat && index(m) <= MAX_DIM, "number of sub-quantizers")?;
        let dsub = reader.u32()?;
        reader.ensure((dsub == 0) == flat && index(dsub) <= MAX_DIM, "sub-quantizer size")?;
        let product = index(m).saturating_mul(index(dsub));
        reader.ensure(product <= MAX_DIM.saturating_mul(2), "sub-quantizer size")?;
        let norm_weight = reader.f32()?;
        reader.ensure((0.0..=1.0).contains(&norm_weight), "norm weight")?;
        let squared = reader.f32()?;
        reader.ensure(squared.is_finite() && squared >= 0.0, "squared length of queries")?;
        let lists = reader.u32()?;
        reader.ensure((1..=MAX_LISTS).contains(&index(lists)), "number of lists")?;
        let cells = reader.u32()?;
        reader.ensure((1..=MAX_CELLS).contains(&index(cells)), "number of cells")?;
        let trained_rows = reader.u64()?;
        let trained_next_id = reader.u64()?;
        reader.ensure(trained_next_id <= MAX_ID, "next row id of a model")?;
        reader.ensure(trained_rows <= trained_next_id, "rows of a model")?;
        reader.finish()?;
        Ok(Self {
            generation,
            code,
            spilled,
            m,
            dsub,
            norm_weight,
            squared,
            lists,
            cells,
            trained_rows,
            trained_next_id,
        })
    }
}

/// Numbers as bytes; the codebook is stored so.
pub fn encode_floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Reads exactly `expected_len` finite numbers.
///
/// # Errors
///
/// `Truncated` or `Length` when there are fewer or more bytes, `Value` for an infinity or a NaN.
pub fn parse_floats(bytes: &[u8], expected_len: usize) -> Result<Vec<f32>, FormatError> {
    let mut reader = Reader::new(bytes);
    let values = reader.floats(expected_len, "number of a codebook")?;
    reader.finish()?;
    Ok(values)
}
