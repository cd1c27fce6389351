//! What recall was measured to take, and the queries that it is measured on.

use crate::MAX_ID;
use crate::bytes::{Reader, count_u32, index};
use crate::error::{FormatError, FormatErrorKind};
use crate::record::encode_floats;

/// What a recall takes, as measured on the index itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// The recall asked for, 0 to 1.
    pub recall: f32,
    /// Whether comparing with every row costs less than cells do.
    pub exact: bool,
    /// Cells to visit.
    pub probes: u32,
    /// Candidates to compare exactly.
    pub rerank: u32,
    /// Cells whose squared distance is this many times that of the last candidate, or more, are not
    /// visited; 0 for no such bound.
    pub stop: f32,
    /// Candidates whose estimate is this many times the squared distance of the last neighbour so far,
    /// or more, are not compared; 0 for no such bound.
    pub slack: f32,
    /// The recall that was measured with this, 0 to 1.
    pub measured: f32,
    /// Codes that a query scans, on average.
    pub codes: f32,
    /// Cells that a query visits, on average.
    pub cells: f32,
    /// Rows that a query compares in full, on average.
    pub rows: f32,
    /// What a search for each of [`NEIGHBOURS`] takes beside that.
    pub many: [Many; NEIGHBOURS.len()],
}

/// Numbers of neighbours that tell what many of them take.
pub const NEIGHBOURS: [usize; 3] = [50, 200, 1000];

/// What a search for many neighbours takes. Section 7.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Many {
    /// How much wider it goes, beyond what their number gives.
    pub wide: f32,
    /// Its price in units of that of a search for ten; 0 if that was not measured.
    pub dear: f32,
}

/// What recall was measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Judges {
    /// Rows of the index that were kept out of training, each without itself.
    #[default]
    Rows,
    /// A sample of the queries that were asked.
    Asked,
    /// Queries that the host gave.
    Given,
}

impl Judges {
    /// The stored number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Rows => 0,
            Self::Asked => 1,
            Self::Given => 2,
        }
    }

    /// Of a stored number.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Rows),
            1 => Some(Self::Asked),
            2 => Some(Self::Given),
            _ => None,
        }
    }
}

/// All settings of a model, and what they were measured on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// Ascending by recall.
    pub each: Vec<Setting>,
    /// What the queries were.
    pub judges: Judges,
    /// How many there were.
    pub queries: u32,
    /// When, in seconds since 1970.
    pub time: u64,
    /// The id that the next row would have got then.
    pub next_id: u64,
    /// Rows that there were then.
    pub live: u64,
    /// Queries that had been asked by then.
    pub asked: u64,
    /// The squared distance to the centroid of its cell that one in twenty rows had, or more.
    pub far: f32,
    /// That which half of the rows had, or more.
    pub middle: f32,
}

impl Settings {
    /// Bytes of one setting.
    const ENTRY: usize = 64;

    /// The value as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.each.len().saturating_mul(Self::ENTRY));
        out.extend_from_slice(&[self.judges.code(), 0, 0, 0]);
        out.extend_from_slice(&self.queries.to_le_bytes());
        for field in [self.time, self.next_id, self.live, self.asked] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.far.to_le_bytes());
        out.extend_from_slice(&self.middle.to_le_bytes());
        out.extend_from_slice(&count_u32(self.each.len()).to_le_bytes());
        for setting in &self.each {
            let Setting { recall, exact, probes, rerank, stop, slack, .. } = *setting;
            let Setting { measured, codes, cells, rows, many, .. } = *setting;
            let [recall, stop, slack, measured, codes, cells, rows] =
                [recall, stop, slack, measured, codes, cells, rows].map(f32::to_bits);
            let fields = [
                recall,
                u32::from(exact),
                probes,
                rerank,
                stop,
                slack,
                measured,
                codes,
                cells,
                rows,
            ];
            out.extend_from_slice(fields.map(u32::to_le_bytes).as_flattened());
            for Many { wide, dear } in many {
                out.extend_from_slice([wide, dear].map(f32::to_le_bytes).as_flattened());
            }
        }
        out
    }

    /// Reads the value.
    ///
    /// # Errors
    ///
    /// `Truncated`, `Length` or `Value`.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let judges = Judges::from_code(reader.u8()?);
        let judges = judges.ok_or_else(|| reader.error(FormatErrorKind::Value("judges")))?;
        let reserved = reader.array::<3>()?;
        reader.ensure(reserved == [0; 3], "reserved field of settings")?;
        let queries = reader.u32()?;
        let time = reader.u64()?;
        let next_id = reader.u64()?;
        reader.ensure(next_id <= MAX_ID, "next row id of settings")?;
        let live = reader.u64()?;
        reader.ensure(live <= next_id, "rows of settings")?;
        let asked = reader.u64()?;
        let far = reader.f32()?;
        reader.ensure(far >= 0.0, "far distance of settings")?;
        let middle = reader.f32()?;
        reader.ensure((0.0..=far).contains(&middle), "middle distance of settings")?;
        let count = index(reader.u32()?);
        reader.expect_entries(count, Self::ENTRY)?;
        let mut each = Vec::with_capacity(count);
        for _ in 0..count {
            each.push(Self::setting(&mut reader)?);
        }
        reader.finish()?;
        Ok(Self { each, judges, queries, time, next_id, live, asked, far, middle })
    }

    fn setting(reader: &mut Reader<'_>) -> Result<Setting, FormatError> {
        let recall = reader.f32()?;
        reader.ensure((0.0..=1.0).contains(&recall), "recall")?;
        let exact = reader.u32()?;
        reader.ensure(exact <= 1, "mark of an exact setting")?;
        let exact = exact == 1;
        let probes = reader.u32()?;
        let rerank = reader.u32()?;
        let mut count = |what| -> Result<f32, FormatError> {
            let number = reader.f32()?;
            reader.ensure(number.is_finite() && number >= 0.0, what)?;
            Ok(number)
        };
        let stop = count("bound of a setting")?;
        let slack = count("slack of a setting")?;
        let measured = count("measured recall")?;
        let codes = count("number of codes of a setting")?;
        let cells = count("number of cells of a setting")?;
        let rows = count("number of rows of a setting")?;
        let mut many = [Many::default(); NEIGHBOURS.len()];
        for entry in &mut many {
            entry.wide = count("width of a setting")?;
            entry.dear = count("price of a setting")?;
        }
        reader.ensure(measured <= 1.0, "measured recall")?;
        Ok(Setting {
            recall,
            exact,
            probes,
            rerank,
            stop,
            slack,
            measured,
            codes,
            cells,
            rows,
            many,
        })
    }
}

/// A sample of the queries that were asked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AskedRecord {
    /// How many were asked in all.
    pub asked: u64,
    /// Those of the sample, as they were given: n x dim.
    pub queries: Vec<f32>,
}

impl AskedRecord {
    /// The value as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.asked.to_le_bytes().to_vec();
        out.extend(encode_floats(&self.queries));
        out
    }

    /// Reads the value.
    ///
    /// # Errors
    ///
    /// `Truncated`, `Length`; `Value` for an infinity or a NaN.
    pub fn parse(bytes: &[u8], dim: usize) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let asked = reader.u64()?;
        let floats = bytes.len().saturating_sub(8) / 4;
        let whole = floats.checked_rem(dim) == Some(0);
        let queries = reader.floats(floats, "number of a query")?;
        reader.finish()?;
        match whole {
            true => Ok(Self { asked, queries }),
            false => Err(reader.error(FormatErrorKind::Length)),
        }
    }
}
