//! One of each structure as bytes, computed from `SPEC.md` by a program that shares nothing with
//! this crate. If one of these fails, the format has changed: that is a new version.

use crate::common::{IDENTITY, UUID, hex};
use cellardb_format::{
    AskedRecord, BlockLayout, CodeKind, Config, Factors, FileHeader, FileKind, Frame, FrameEntry,
    Judges, KindCode, ListEntry, LockRecord, Many, MetricCode, ModelRecord, NEIGHBOURS, NONE,
    RoutingRecord, Row, RowLayout, Segment, Setting, Settings, State, Tombstones, encode_floats,
    encode_frame, parse_floats, parse_frame, seal, unseal, verify_payload,
};

const HEADER: &str = "
    8943454c4c41520a0500000002000000000102030405060708090a0b0c0d0e0f030000000000000002000000
    0800000080010000c0060000000000009e08479b
";

const LOCK: &str = "
    8943454c4c4f434b000102030405060708090a0b0c0d0e0f5544332211000000921000000000000000000000
    000000000000000000000000000000000ad4ce12
";

const ROW: &str = "
    0000803f000020c00000003f0000000000000000000000000000000000000000050000000000000002000000
    28000000ffffffff0000803e00000000ce83f812
";

const BLOCK: &str = "
    510203040000000000000000bf0e0d0c00000000000000000000000000000000000000000000000000000000
    00000000000000000000000000000000000000000000c03f0000807f0000807f000040bf0000807f0000807f
    0000807f0000807f0000807f0000807f0000807f0000807f0000807f0000807f0000807f0000807f00000040
    00000000000000000000003f0000000000000000000000000000000000000000000000000000000000000000
    000000000000000000000000000000000700000000000000ffffffffffffffffffffffffffffffff89674523
    01000000ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff
    ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff
    ffffffffffffffffffffffff
";

const FRAME: &str = "
    4d4152462800000004000000400100000500000000000000000000001c7cca3763e9b3c30000000000000000
    0000000000000000000000000000000000000000510203040000000000000000bf0e0d0c0000000000000000
    000000000000000000000000000000000000000000000000000000000000000000000000000000000000c03f
    0000807f0000807f000040bf0000807f0000807f0000807f0000807f0000807f0000807f0000807f0000807f
    0000807f0000807f0000807f0000807f0000004000000000000000000000003f000000000000000000000000
    0000000000000000000000000000000000000000000000000000000000000000000000000700000000000000
    ffffffffffffffffffffffffffffffff8967452301000000ffffffffffffffffffffffffffffffffffffffff
    ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff
    ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff
";

const CONFIG: &str = "
    05000000000102030405060708090a0b0c0d0e0f800100000203040030000000000400002a00000000000000
    10270000000000000000000800000000f8383fb0
";

const STATE: &str = "
    1100000000000000e803000000000000b603000000000000840300000000000004000000000000004d000000
    020000000300000010000000010000001e0000000000000014000000000000000b0000000000000004000000
    000000008d2ccb2e
";

const SEGMENT: &str = "
    f40100000000000020030000000000002c010000000000000075aee6d6
";

const SPARSE: &str = "
    e803000000000000f2030100000000000d00000000000000013b300100020000020001000900010002000300
    010000000900cba8d0e3
";

const LIST: &str = "
    0800000040050000000000002400000000000000020000002800000010000000010000000403020129000000
    140000000a0000006c29c4e92feec83a
";

const MODEL: &str = "
    020000000101000030000000080000000000803f000020401000000000010000e8030000000000004c040000
    000000001d97ce18
";

const CODEBOOK: &str = "
    0000803f000080bf0000003f000040406eff3e05
";

const ROUTING: &str = "
    28000000020000000000003f000080be000000400000003e0000803d01fe7f810005d5190831
";

const SETTINGS: &str = "
    01000000db030000c086fd6a000000004c04000000000000e803000000000000881300000000000000001040
    0000c03f020000006666663f0000000008000000640000000000a03f0000903f0000703f00409c450000d040
    000004420000803e000090400000003f000080410000403f00007042a4707d3f010000002000000090010000
    0000000000000000dbf97e3f0011a4460000f0410000f0420000000000000000000000000000000000000000
    000000009f668d76
";

const ASKED: &str = "
    88130000000000000000003f0000c0bf0000004000000041e01afba2
";

const DEAD: &str = "
    3a3000000100000000000200100000000300f401ffff367e6e45
";

#[test]
fn file_header() {
    let header = FileHeader {
        kind: FileKind::List,
        uuid: UUID,
        number: 3,
        generation: 2,
        revision: 8,
        dim: 384,
        unit: 1728,
    };
    assert_eq!(header.encode()[..], hex(HEADER));
    assert_eq!(FileHeader::parse(&hex(HEADER)), Ok(header));
}

#[test]
fn lock_record() {
    let record = LockRecord { uuid: UUID, seq: 0x11_2233_4455, pid: 4242 };
    assert_eq!(record.encode()[..], hex(LOCK));
    assert_eq!(LockRecord::parse(&hex(LOCK)), Ok(record));
}

#[test]
fn row_of_a_segment() {
    let layout = RowLayout::new(3);
    let row = Row { id: 5, generation: 2, cell: 40, spill: NONE, scale: 0.25 };
    let mut bytes = vec![0xAA; layout.stride()];
    layout.encode(&mut bytes, &[1.0, -2.5, 0.5], &row, &UUID, 6, 11);
    assert_eq!(bytes, hex(ROW));
    assert_eq!(layout.parse(&hex(ROW), &UUID, 6, 11), Ok(row));
    assert_eq!(*layout.vector(&hex(ROW)).unwrap(), [1.0, -2.5, 0.5]);
}

#[test]
fn block_of_a_frame() {
    let layout = BlockLayout::new(CodeKind::Pq4, 5, 384);
    let mut block = layout.empty_block();
    layout.put(&mut block, 0, &[1, 2, 3, 4, 5], Factors { add: 1.5, scale: 2.0 }, 7);
    let factors = Factors { add: -0.75, scale: 0.5 };
    layout.put(&mut block, 3, &[15, 14, 13, 12, 11], factors, 0x01_2345_6789);
    assert_eq!(block, hex(BLOCK));

    let mut bytes = Vec::new();
    let sum = encode_frame(&IDENTITY, 640, 40, 4, 5, &block, &mut bytes);
    assert_eq!(bytes, hex(FRAME));
    assert_eq!(sum, 0x37ca_7c1c);
    let frame = Frame { cell: 40, rows: 4, seq: 5, payload_len: 320 };
    assert_eq!(parse_frame(&IDENTITY, 640, &bytes, &layout), Ok(frame));
    assert_eq!(verify_payload(&bytes, &frame), Ok(()));
}

/// Whether a value, sealed, is these bytes; and what is under their seal.
fn sealed(uuid: &[u8; 16], table: &str, key: u64, mut value: Vec<u8>, golden: &str) -> Vec<u8> {
    seal(uuid, table, key, &mut value);
    assert_eq!(value, hex(golden), "{table} {key}");
    unseal(uuid, table, key, &hex(golden)).unwrap().to_vec()
}

#[test]
fn config() {
    let config = Config {
        uuid: UUID,
        dim: 384,
        metric: MetricCode::Cosine,
        kind: KindCode::IvfPq,
        bits: 4,
        m: 48,
        nlist: 1024,
        seed: 42,
        train_at: 10_000,
        segment_bytes: 128 << 20,
    };
    let bytes = sealed(&[0; 16], "meta", 0, config.encode(), CONFIG);
    assert_eq!(Config::parse(&bytes), Ok(config));
}

#[test]
fn state() {
    let state = State {
        seq: 17,
        next_id: 1000,
        live: 950,
        watermark: 900,
        next_segment: 4,
        next_revision: 77,
        generation: 2,
        segments: 3,
        lists: 16,
        dead_keys: 1,
        dead: 30,
        since_measured: 20,
        since_beyond: 11,
        since_far: 4,
    };
    let bytes = sealed(&UUID, "meta", 1, state.encode(), STATE);
    assert_eq!(State::parse(&bytes), Ok(state));
}

#[test]
fn segments() {
    let dense = Segment { first_id: 500, end_id: 800, rows: 300, ids: None };
    let bytes = sealed(&UUID, "segments", 2, dense.encode(), SEGMENT);
    assert_eq!(Segment::parse(&bytes), Ok(dense));
    let mut ids: roaring::RoaringBitmap = [1, 2, 3].into_iter().chain(65_536..65_546).collect();
    ids.optimize();
    let sparse = Segment { first_id: 1000, end_id: 66_546, rows: 13, ids: Some(ids) };
    let bytes = sealed(&UUID, "segments", 3, sparse.encode(), SPARSE);
    assert_eq!(Segment::parse(&bytes), Ok(sparse));
}

#[test]
fn list() {
    let first = FrameEntry { cell: 40, rows: 16, offset: 64, crc: 0x0102_0304 };
    let second = FrameEntry { cell: 41, rows: 20, offset: 640, crc: 0xe9c4_296c };
    let list = ListEntry { revision: 8, length: 1344, rows: 36, frames: vec![first, second] };
    let bytes = sealed(&UUID, "lists", 2 << 32 | 3, list.encode(), LIST);
    assert_eq!(ListEntry::parse(&bytes), Ok(list));
}

#[test]
fn model() {
    let model = ModelRecord {
        generation: 2,
        code: CodeKind::Pq4,
        spilled: true,
        m: 48,
        dsub: 8,
        norm_weight: 1.0,
        squared: 2.5,
        lists: 16,
        cells: 256,
        trained_rows: 1000,
        trained_next_id: 1100,
    };
    let bytes = sealed(&UUID, "model", 2 << 32, model.encode(), MODEL);
    assert_eq!(ModelRecord::parse(&bytes), Ok(model));

    let codebook = vec![1.0, -1.0, 0.5, 3.0];
    let bytes = sealed(&UUID, "model", 2 << 32 | 1, encode_floats(&codebook), CODEBOOK);
    assert_eq!(parse_floats(&bytes, 4), Ok(codebook));

    let routing = RoutingRecord {
        first_cell: 40,
        centroid: vec![0.5, -0.25, 2.0],
        scales: vec![0.125, 0.0625],
        codes: vec![1, -2, 127, -127, 0, 5],
    };
    let bytes = sealed(&UUID, "model", 2 << 32 | 5, routing.encode(), ROUTING);
    assert_eq!(RoutingRecord::parse(&bytes, 3), Ok(routing));
}

#[test]
fn recall_settings() {
    let each = vec![
        Setting {
            recall: 0.9,
            exact: false,
            probes: 8,
            rerank: 100,
            stop: 1.25,
            slack: 1.125,
            measured: 0.9375,
            codes: 5000.0,
            cells: 6.5,
            rows: 33.0,
            many: [(0.25, 4.5), (0.5, 16.0), (0.75, 60.0)].map(|(wide, dear)| Many { wide, dear }),
        },
        Setting {
            recall: 0.99,
            exact: true,
            probes: 32,
            rerank: 400,
            stop: 0.0,
            slack: 0.0,
            measured: 0.996,
            codes: 21_000.5,
            cells: 30.0,
            rows: 120.0,
            many: [Many::default(); NEIGHBOURS.len()],
        },
    ];
    let settings = Settings {
        each,
        judges: Judges::Asked,
        queries: 987,
        time: 1_795_000_000,
        next_id: 1100,
        live: 1000,
        asked: 5000,
        far: 2.25,
        middle: 1.5,
    };
    let bytes = sealed(&UUID, "settings", 2, settings.encode(), SETTINGS);
    assert_eq!(Settings::parse(&bytes), Ok(settings));
}

#[test]
fn asked_queries() {
    let sample = AskedRecord { asked: 5000, queries: vec![0.5, -1.5, 2.0, 8.0] };
    let bytes = sealed(&UUID, "asked", 0, sample.encode(), ASKED);
    assert_eq!(AskedRecord::parse(&bytes, 2), Ok(sample));
}

#[test]
fn tombstones() {
    let dead = Tombstones([3, 500, 65_535].into_iter().collect());
    let bytes = sealed(&UUID, "dead", 1, dead.encode(), DEAD);
    assert_eq!(Tombstones::parse(&bytes), Ok(dead));
}
