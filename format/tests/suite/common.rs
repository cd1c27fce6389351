//! Seeded values of every structure, and what is done to the bytes of each.

use cellardb_format::{
    AskedRecord, CodeKind, Config, FileHeader, FileKind, FrameEntry, Judges, KindCode, ListEntry,
    ListIdentity, Many, MetricCode, ModelRecord, NONE, RoutingRecord, Row, Segment, Setting,
    Settings, State, Tombstones, frame_len,
};
use roaring::RoaringBitmap;

pub(crate) const UUID: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
pub(crate) const IDENTITY: ListIdentity =
    ListIdentity { uuid: UUID, list: 3, generation: 2, revision: 8 };

/// Marsaglia's xorshift, 64 bits.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    pub(crate) fn size(&mut self, end: usize) -> usize {
        self.below(end as u64) as usize
    }

    pub(crate) fn u32(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    /// Finite, of many magnitudes.
    pub(crate) fn f32(&mut self) -> f32 {
        let value = f32::from_bits(self.u32());
        if value.is_finite() { value } else { 0.75 }
    }

    pub(crate) fn unit(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 24) as f32
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 24) as u8).collect()
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.f32()).collect()
    }

    /// Array, bit set and run containers.
    pub(crate) fn bitmap(&mut self, end: u32) -> RoaringBitmap {
        let mut bitmap = RoaringBitmap::new();
        let few = self.size(40) + 1;
        bitmap.extend((0..few).map(|_| self.below(u64::from(end)) as u32));
        if self.below(3) == 0 {
            let start = self.below(u64::from(end)) as u32;
            bitmap.insert_range(start..end.min(start + 9000));
        }
        if self.below(3) == 0 {
            bitmap.extend((0..5000).map(|_| self.below(u64::from(end)) as u32));
        }
        if self.below(2) == 0 {
            bitmap.optimize();
        }
        bitmap
    }
}

pub(crate) fn header(rng: &mut Rng) -> FileHeader {
    FileHeader {
        kind: if rng.below(2) == 0 { FileKind::Rows } else { FileKind::List },
        uuid: rng.bytes(16).try_into().unwrap(),
        number: rng.next(),
        generation: rng.u32(),
        revision: rng.u32(),
        dim: rng.below(65_535) as u32 + 1,
        unit: rng.u32(),
    }
}

pub(crate) fn row(rng: &mut Rng) -> Row {
    Row {
        id: rng.next() >> 1,
        generation: rng.u32(),
        cell: rng.below(1 << 24) as u32,
        spill: if rng.below(2) == 0 { NONE } else { rng.below(1 << 24) as u32 },
        scale: rng.f32().abs(),
    }
}

pub(crate) fn config(rng: &mut Rng) -> Config {
    let dim = rng.below(65_535) as u32 + 1;
    Config {
        uuid: rng.bytes(16).try_into().unwrap(),
        dim,
        metric: [MetricCode::L2, MetricCode::InnerProduct, MetricCode::Cosine][rng.size(3)],
        kind: [KindCode::Auto, KindCode::Exact, KindCode::IvfFlat, KindCode::IvfPq][rng.size(4)],
        bits: [0, 4, 8][rng.size(3)],
        m: rng.below(u64::from(dim) + 1) as u32,
        nlist: rng.below(16_385) as u32,
        seed: rng.next(),
        train_at: rng.next(),
        segment_bytes: rng.next(),
    }
}

pub(crate) fn state(rng: &mut Rng) -> State {
    let next_id = rng.next() >> 1;
    let live = rng.below(next_id + 1);
    let generation = rng.below(3) as u32;
    let since = rng.below(next_id + 1);
    let beyond = rng.below(since + 1);
    State {
        seq: rng.next() >> 1,
        next_id,
        live,
        watermark: rng.below(next_id + 1),
        next_segment: rng.next() >> 1 | 1 << 40,
        next_revision: rng.u32() >> 1,
        generation,
        segments: rng.u32(),
        lists: if generation == 0 { 0 } else { rng.below(16_385) as u32 },
        dead_keys: rng.u32(),
        dead: rng.below(next_id - live + 1),
        since_measured: since,
        since_beyond: beyond,
        since_far: rng.below(beyond + 1),
    }
}

pub(crate) fn segment(rng: &mut Rng) -> Segment {
    let first_id = rng.next() >> 2;
    if rng.below(2) == 0 {
        let rows = rng.below(1 << 40);
        return Segment { first_id, end_id: first_id + rows, rows, ids: None };
    }
    let ids = rng.bitmap(200_000);
    Segment { first_id, end_id: first_id + 200_000, rows: ids.len(), ids: Some(ids) }
}

pub(crate) fn list(rng: &mut Rng) -> ListEntry {
    let mut offset = 64;
    let mut frames = Vec::new();
    for _ in 0..rng.size(20) {
        let rows = rng.below(300) as u32 + 1;
        offset += rng.below(3) * 64;
        frames.push(FrameEntry { cell: rng.below(1 << 24) as u32, rows, offset, crc: rng.u32() });
        offset += frame_len((rows as usize).div_ceil(16) * 320) as u64;
    }
    let rows = frames.iter().map(|frame| u64::from(frame.rows)).sum();
    ListEntry { revision: rng.u32(), length: offset + 64 * rng.below(2), rows, frames }
}

pub(crate) fn model(rng: &mut Rng) -> ModelRecord {
    let code = [CodeKind::Flat, CodeKind::Pq4, CodeKind::Pq8, CodeKind::RaBitQ][rng.size(4)];
    let flat = code == CodeKind::Flat;
    ModelRecord {
        generation: rng.u32() | 1,
        code,
        spilled: !flat && rng.size(2) == 1,
        m: if flat { 0 } else { rng.below(500) as u32 + 1 },
        dsub: if flat { 0 } else { rng.below(200) as u32 + 1 },
        norm_weight: rng.unit(),
        squared: rng.f32().abs(),
        lists: rng.below(16_384) as u32 + 1,
        cells: rng.below(1 << 24) as u32 + 1,
        trained_rows: rng.next() >> 2,
        trained_next_id: (rng.next() >> 2) + (1 << 62),
    }
}

pub(crate) fn routing(rng: &mut Rng, dim: usize) -> RoutingRecord {
    let cells = rng.size(20);
    RoutingRecord {
        first_cell: rng.below(1 << 23) as u32,
        centroid: rng.floats(dim),
        scales: rng.floats(cells),
        codes: rng.bytes(cells * dim).into_iter().map(|code| code as i8).collect(),
    }
}

pub(crate) fn settings(rng: &mut Rng) -> Settings {
    let count = rng.size(12);
    let each = (0..count).map(|_| Setting {
        recall: rng.unit(),
        exact: rng.below(2) == 1,
        probes: rng.u32(),
        rerank: rng.u32(),
        stop: rng.f32().abs(),
        slack: rng.f32().abs(),
        measured: rng.unit(),
        codes: rng.f32().abs(),
        cells: rng.f32().abs(),
        rows: rng.f32().abs(),
        many: [0; 3].map(|_| Many { wide: rng.f32().abs(), dear: rng.f32().abs() }),
    });
    let each = each.collect();
    let live = rng.next() >> 2;
    let far = rng.f32().abs();
    Settings {
        each,
        judges: [Judges::Rows, Judges::Asked, Judges::Given][rng.size(3)],
        queries: rng.u32(),
        time: rng.next(),
        next_id: live + (rng.next() >> 2),
        live,
        asked: rng.next(),
        far,
        middle: far / 2.0,
    }
}

pub(crate) fn asked(rng: &mut Rng, dim: usize) -> AskedRecord {
    let queries = rng.size(9) * dim;
    AskedRecord { asked: rng.next(), queries: rng.floats(queries) }
}

pub(crate) fn tombstones(rng: &mut Rng) -> Tombstones {
    Tombstones(rng.bitmap(65_536))
}

/// Calls `refused` with every copy of `bytes` that differs in one bit.
pub(crate) fn each_flip(bytes: &[u8], mut refused: impl FnMut(&[u8]) -> bool) {
    let mut copy = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        copy[bit / 8] ^= 1 << (bit % 8);
        assert!(refused(&copy), "a flip of bit {} of byte {} was accepted", bit % 8, bit / 8);
        copy[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Calls `refused` with every proper prefix of `bytes`.
pub(crate) fn each_prefix(bytes: &[u8], mut refused: impl FnMut(&[u8]) -> bool) {
    for len in 0..bytes.len() {
        assert!(refused(&bytes[..len]), "a prefix of {len} bytes was accepted");
    }
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}
