//! Values of the catalog: ranges, counts and sums are checked when they are read.

use crate::common::{Rng, config, list, model, routing, segment, settings, state, tombstones};
use cellardb_format::{
    AskedRecord, BlockLayout, CodeKind, Config, FormatError, FormatErrorKind, FrameEntry,
    ListEntry, Many, ModelRecord, ROTATION_STEPS, RoutingRecord, Segment, Setting, Settings, State,
    Tombstones, encode_floats, frame_len, parse_floats,
};
use roaring::RoaringBitmap;

fn value<T>(what: &'static str) -> Result<T, FormatErrorKind> {
    Err(FormatErrorKind::Value(what))
}

fn kind<T>(answer: Result<T, FormatError>) -> Result<T, FormatErrorKind> {
    answer.map_err(|error| error.kind)
}

/// The same bytes with some of them replaced.
fn with(mut bytes: Vec<u8>, at: usize, change: &[u8]) -> Vec<u8> {
    bytes[at..at + change.len()].copy_from_slice(change);
    bytes
}

#[test]
fn every_value_is_read_back() {
    let mut rng = Rng::new(20);
    for _ in 0..300 {
        let (a, b, c) = (config(&mut rng), state(&mut rng), segment(&mut rng));
        assert_eq!(Config::parse(&a.encode()), Ok(a));
        assert_eq!(State::parse(&b.encode()), Ok(b));
        assert_eq!(Segment::parse(&c.encode()), Ok(c));
        let (a, b, c) = (list(&mut rng), model(&mut rng), settings(&mut rng));
        assert_eq!(ListEntry::parse(&a.encode()), Ok(a));
        assert_eq!(ModelRecord::parse(&b.encode()), Ok(b));
        assert_eq!(Settings::parse(&c.encode()), Ok(c));
        let dim = rng.size(40) + 1;
        let (a, b, c) = (routing(&mut rng, dim), tombstones(&mut rng), rng.floats(dim));
        assert_eq!(RoutingRecord::parse(&a.encode(), dim), Ok(a));
        assert_eq!(Tombstones::parse(&b.encode()), Ok(b));
        assert_eq!(parse_floats(&encode_floats(&c), dim), Ok(c));
    }
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let bytes = Config { dim: 100, m: 25, ..config(&mut Rng::new(21)) }.encode();
    let parse = |at, change: &[u8]| kind(Config::parse(&with(bytes.clone(), at, change)));
    assert_eq!(parse(0, &[99]), Err(FormatErrorKind::Version { found: 99 }));
    assert_eq!(parse(0, &[0]), Err(FormatErrorKind::Version { found: 0 }));
    assert_eq!(parse(20, &[0]), value("dimension"));
    assert_eq!(parse(22, &[1]), value("dimension"));
    assert_eq!(parse(24, &[3]), value("metric"));
    assert_eq!(parse(25, &[4]), value("kind of index"));
    assert_eq!(parse(26, &[5]), value("bits of a code"));
    assert_eq!(parse(27, &[1]), value("reserved field of the configuration"));
    assert_eq!(parse(28, &[101]), value("number of sub-quantizers"));
    assert_eq!(parse(32, &16_385_u32.to_le_bytes()), value("number of lists"));
    let newer = [&99_u32.to_le_bytes()[..], &bytes[4..30]].concat();
    assert_eq!(kind(Config::parse(&newer)), Err(FormatErrorKind::Version { found: 99 }));
}

#[test]
fn a_state_whose_counts_contradict_each_other_is_refused() {
    let good = State {
        seq: 9,
        next_id: 100,
        live: 60,
        watermark: 100,
        next_segment: 3,
        next_revision: 1,
        generation: 1,
        segments: 3,
        lists: 16_384,
        dead_keys: 1,
        dead: 40,
        since_measured: 30,
        since_beyond: 20,
        since_far: 7,
    };
    assert_eq!(State::parse(&good.encode()), Ok(good.clone()));
    let parse = |state: State| kind(State::parse(&state.encode()));
    let next_id = (1 << 63) + 1;
    assert_eq!(parse(State { next_id, ..good.clone() }), value("next row id"));
    let (seq, next_segment) = ((1 << 63) + 1, (1 << 63) + 1);
    assert_eq!(parse(State { seq, ..good.clone() }), value("number of the commit"));
    assert_eq!(parse(State { next_segment, ..good.clone() }), value("next segment"));
    let (next_revision, generation) = ((1 << 31) + 1, (1 << 31) + 1);
    assert_eq!(parse(State { next_revision, ..good.clone() }), value("next revision"));
    assert_eq!(parse(State { generation, ..good.clone() }), value("generation"));
    assert_eq!(parse(State { live: 101, ..good.clone() }), value("number of live rows"));
    assert_eq!(parse(State { watermark: 101, ..good.clone() }), value("watermark"));
    assert_eq!(parse(State { segments: 4, ..good.clone() }), value("number of segments"));
    assert_eq!(parse(State { lists: 16_385, ..good.clone() }), value("number of lists"));
    let what = "number of lists without a model";
    assert_eq!(parse(State { generation: 0, ..good.clone() }), value(what));
    assert_eq!(parse(State { dead: 41, ..good.clone() }), value("number of removed rows"));
    let what = "number of rows since recall was measured";
    assert_eq!(parse(State { since_measured: 101, ..good.clone() }), value(what));
    let what = "number of rows beyond the middle";
    assert_eq!(parse(State { since_beyond: 31, ..good.clone() }), value(what));
    let what = "number of rows far from their cells";
    assert_eq!(parse(State { since_far: 21, ..good }), value(what));
}

#[test]
fn a_segment_whose_ids_and_rows_disagree_is_refused() {
    let ids: RoaringBitmap = [0, 7, 9].into_iter().collect();
    let sparse = Segment { first_id: 5, end_id: 15, rows: 3, ids: Some(ids) };
    let dense = Segment { first_id: 5, end_id: 15, rows: 10, ids: None };
    assert_eq!(Segment::parse(&dense.encode()), Ok(dense.clone()));
    assert_eq!(Segment::parse(&sparse.encode()), Ok(sparse.clone()));
    let parse = |segment: &Segment| kind(Segment::parse(&segment.encode()));
    for segment in [&dense, &sparse] {
        let range = value("range of ids of a segment");
        assert_eq!(parse(&Segment { first_id: 16, ..segment.clone() }), range);
        assert_eq!(parse(&Segment { end_id: (1 << 63) + 1, ..segment.clone() }), range);
        let rows = value("number of rows of a segment");
        assert_eq!(parse(&Segment { rows: 11, ..segment.clone() }), rows);
    }
    let what = "number of rows of a dense segment";
    assert_eq!(parse(&Segment { rows: 9, ..dense.clone() }), value(what));
    let what = "number of ids of a segment";
    assert_eq!(parse(&Segment { rows: 4, ..sparse.clone() }), value(what));
    assert_eq!(parse(&Segment { end_id: 14, ..sparse.clone() }), value("ids of a segment"));
    let form = with(dense.encode(), 24, &[2]);
    assert_eq!(kind(Segment::parse(&form)), value("form of a segment"));
    let empty = Segment { first_id: 4, end_id: 9, rows: 0, ids: Some(RoaringBitmap::new()) };
    assert_eq!(Segment::parse(&empty.encode()), Ok(empty));
}

fn two_frames() -> ListEntry {
    let first = FrameEntry { cell: 1, rows: 16, offset: 64, crc: 9 };
    let second = FrameEntry { cell: 1, rows: 17, offset: 448, crc: 8 };
    ListEntry { revision: 1, length: 1152, rows: 33, frames: vec![first, second] }
}

#[test]
fn a_list_whose_frames_overlap_or_leave_the_file_is_refused() {
    let good = two_frames();
    assert_eq!(ListEntry::parse(&good.encode()), Ok(good.clone()));
    assert_eq!(ListEntry::parse(&ListEntry::default().encode()), Ok(ListEntry::default()));
    let parse = |change: &dyn Fn(&mut ListEntry)| {
        let mut list = good.clone();
        change(&mut list);
        kind(ListEntry::parse(&list.encode()))
    };
    let position = value("position of a frame");
    assert_eq!(parse(&|list| list.frames[0].offset = 0), position);
    assert_eq!(parse(&|list| list.frames[1].offset = 384), position);
    assert_eq!(parse(&|list| list.frames.swap(0, 1)), position);
    assert_eq!(parse(&|list| list.length = 1088), position);
    assert_eq!(parse(&|list| list.length = 1153), value("length of a list"));
    assert_eq!(parse(&|list| list.length = (1 << 38) + 64), value("length of a list"));
    assert_eq!(parse(&|list| list.rows = 34), value("number of rows of a list"));
    assert_eq!(parse(&|list| list.frames[0].rows = 0), value("number of rows of a frame"));
    assert_eq!(parse(&|list| list.frames[0].cell = 1 << 24), value("cell of a frame"));
    let endless = with(good.encode(), 20, &u32::MAX.to_le_bytes());
    assert_eq!(kind(ListEntry::parse(&endless)), Err(FormatErrorKind::Truncated));
}

#[test]
fn frames_have_room_for_their_blocks_or_are_refused() {
    let smallest = BlockLayout::new(CodeKind::Pq4, 8, 0);
    let larger = BlockLayout::new(CodeKind::Pq4, 16, 0);
    let list = two_frames();
    assert_eq!(list.check(&smallest), Ok(()));
    assert_eq!(list.frames[1].payload_len(&smallest), 640);
    assert_eq!(448 + frame_len(640), 1152);
    let what = FormatErrorKind::Value("extent of a frame");
    assert_eq!(list.check(&larger), Err(FormatError::new(24, what)));
    let mut moved = two_frames();
    moved.frames[1].offset = 512;
    moved.length = 1216;
    assert_eq!(moved.check(&larger), Err(FormatError::new(40, what)));
    moved.length = 512 + 64 + 768;
    assert_eq!(moved.check(&larger), Ok(()));
}

#[test]
#[should_panic(expected = "multiple of 64")]
fn a_frame_at_no_multiple_of_64_is_not_written() {
    let mut list = two_frames();
    list.frames[1].offset += 32;
    list.encode();
}

#[test]
fn a_model_that_cannot_be_is_refused() {
    let good = ModelRecord {
        generation: 1,
        code: CodeKind::Pq4,
        spilled: true,
        m: 48,
        dsub: 2,
        norm_weight: 1.0,
        squared: 7.5,
        lists: 16_384,
        cells: 1 << 24,
        trained_rows: 5,
        trained_next_id: 6,
    };
    assert_eq!(ModelRecord::parse(&good.encode()), Ok(good.clone()));
    assert_eq!(good.codebook_len(), 48 * 16 * 2);
    let flat = ModelRecord { code: CodeKind::Flat, spilled: false, m: 0, dsub: 0, ..good.clone() };
    assert_eq!(ModelRecord::parse(&flat.encode()), Ok(flat.clone()));
    assert_eq!(flat.codebook_len(), 0);
    assert_eq!(ModelRecord { code: CodeKind::Pq8, ..good.clone() }.codebook_len(), 48 * 256 * 2);
    let signs = ModelRecord { code: CodeKind::RaBitQ, ..good.clone() };
    assert_eq!(signs.codebook_len(), 48 * 2 * ROTATION_STEPS);
    let parse = |model: ModelRecord| kind(ModelRecord::parse(&model.encode()));
    assert_eq!(parse(ModelRecord { spilled: true, ..flat.clone() }), value("mark of spilled rows"));
    for squared in [f32::NAN, -0.5, f32::INFINITY] {
        assert_eq!(
            parse(ModelRecord { squared, ..good.clone() }),
            value("squared length of queries")
        );
    }
    assert_eq!(
        parse(ModelRecord { generation: 0, ..good.clone() }),
        value("generation of a model")
    );
    for (m, model) in [(0, &good), (65_536, &good), (1, &flat)] {
        let model = ModelRecord { m, ..model.clone() };
        assert_eq!(parse(model), value("number of sub-quantizers"));
    }
    for (dsub, model) in [(0, &good), (65_536, &good), (2731, &good), (1, &flat)] {
        assert_eq!(parse(ModelRecord { dsub, ..model.clone() }), value("sub-quantizer size"));
    }
    for norm_weight in [f32::NAN, -0.5, 1.5] {
        assert_eq!(parse(ModelRecord { norm_weight, ..good.clone() }), value("norm weight"));
    }
    for lists in [0, 16_385] {
        assert_eq!(parse(ModelRecord { lists, ..good.clone() }), value("number of lists"));
    }
    for cells in [0, (1 << 24) + 1] {
        assert_eq!(parse(ModelRecord { cells, ..good.clone() }), value("number of cells"));
    }
    let bytes = good.encode();
    let parse = |at, byte| kind(ModelRecord::parse(&with(bytes.clone(), at, &[byte])));
    assert_eq!(parse(4, 4), value("kind of code"));
    assert_eq!(parse(5, 2), value("mark of spilled rows"));
    assert_eq!(parse(7, 1), value("reserved field of a model"));
}

#[test]
fn numbers_that_are_not_finite_are_refused_where_they_stand() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = parse_floats(&encode_floats(&[1.0, 2.0, bad]), 3).unwrap_err();
        let what = FormatErrorKind::Value("number of a codebook");
        assert_eq!(error, FormatError::new(8, what));
        let good = RoutingRecord {
            first_cell: 4,
            centroid: vec![0.5; 3],
            scales: vec![0.25; 2],
            codes: vec![-128, 127, 0, 1, 2, 3],
        };
        let mut routing = good.clone();
        routing.centroid[1] = bad;
        let what = FormatErrorKind::Value("centroid of a list");
        assert_eq!(RoutingRecord::parse(&routing.encode(), 3), Err(FormatError::new(12, what)));
        let mut routing = good;
        routing.scales[1] = bad;
        let what = FormatErrorKind::Value("scale of a cell");
        assert_eq!(RoutingRecord::parse(&routing.encode(), 3), Err(FormatError::new(24, what)));
    }
}

#[test]
fn codebooks_and_routings_of_another_size_are_refused() {
    let bytes = encode_floats(&[1.0; 8]);
    assert_eq!(kind(parse_floats(&bytes, 7)), Err(FormatErrorKind::Length));
    assert_eq!(kind(parse_floats(&bytes, 9)), Err(FormatErrorKind::Truncated));
    assert_eq!(kind(parse_floats(&bytes, usize::MAX)), Err(FormatErrorKind::Truncated));
    let routing = routing(&mut Rng::new(22), 6);
    for dim in [0, 1, 5, 7, 65_535, usize::MAX] {
        assert!(RoutingRecord::parse(&routing.encode(), dim).is_err());
    }
    let cells = with(routing.encode(), 0, &(u32::MAX).to_le_bytes());
    assert_eq!(kind(RoutingRecord::parse(&cells, 6)), value("number of cells of a list"));
}

#[test]
fn a_setting_that_cannot_be_is_refused() {
    let good = Setting {
        recall: 0.9,
        exact: false,
        probes: 4,
        rerank: 50,
        stop: 1.1,
        slack: 1.2,
        measured: 0.92,
        codes: 800.5,
        cells: 3.5,
        rows: 40.0,
        many: [(0.1, 3.0), (0.2, 9.0), (0.3, 40.0)].map(|(wide, dear)| Many { wide, dear }),
    };
    let all = Settings { each: vec![good], next_id: 9, live: 8, ..Settings::default() };
    assert_eq!(Settings::parse(&all.encode()), Ok(all.clone()));
    let parse_all = |all: Settings| kind(Settings::parse(&all.encode()));
    let next_id = (1 << 63) + 1;
    assert_eq!(parse_all(Settings { next_id, ..all.clone() }), value("next row id of settings"));
    assert_eq!(parse_all(Settings { live: 10, ..all.clone() }), value("rows of settings"));
    for far in [f32::NAN, -1.0] {
        assert_eq!(parse_all(Settings { far, ..all.clone() }), value("far distance of settings"));
    }
    for middle in [f32::NAN, -1.0, 2.5] {
        let bad = Settings { far: 2.0, middle, ..all.clone() };
        assert_eq!(parse_all(bad), value("middle distance of settings"));
    }
    assert_eq!(kind(Settings::parse(&with(all.encode(), 0, &[3]))), value("judges"));
    let reserved = value("reserved field of settings");
    assert_eq!(kind(Settings::parse(&with(all.encode(), 2, &[1]))), reserved);
    let mark = value("mark of an exact setting");
    assert_eq!(kind(Settings::parse(&with(all.encode(), 56, &[2]))), mark);
    let parse = |setting| parse_all(Settings { each: vec![good, setting], ..all.clone() });
    for bad in [f32::NAN, -0.1, 1.1] {
        assert_eq!(parse(Setting { recall: bad, ..good }), value("recall"));
        assert_eq!(parse(Setting { measured: bad, ..good }), value("measured recall"));
    }
    for codes in [f32::NAN, -1.0, f32::INFINITY] {
        assert_eq!(parse(Setting { codes, ..good }), value("number of codes of a setting"));
        assert_eq!(parse(Setting { stop: codes, ..good }), value("bound of a setting"));
        assert_eq!(parse(Setting { slack: codes, ..good }), value("slack of a setting"));
        let what = "number of cells of a setting";
        assert_eq!(parse(Setting { cells: codes, ..good }), value(what));
        assert_eq!(parse(Setting { rows: codes, ..good }), value("number of rows of a setting"));
        for at in 0..good.many.len() {
            let mut many = good.many;
            many[at].wide = codes;
            assert_eq!(parse(Setting { many, ..good }), value("width of a setting"));
            many[at] = Many { wide: 0.0, dear: codes };
            assert_eq!(parse(Setting { many, ..good }), value("price of a setting"));
        }
    }
}

#[test]
fn a_sample_of_queries_is_of_whole_queries() {
    let sample = AskedRecord { asked: 12, queries: vec![1.0, -2.0, 0.5, 3.0] };
    for dim in [1, 2, 4] {
        assert_eq!(AskedRecord::parse(&sample.encode(), dim), Ok(sample.clone()));
    }
    for dim in [0, 3, 5, 65_535] {
        assert_eq!(kind(AskedRecord::parse(&sample.encode(), dim)), Err(FormatErrorKind::Length));
    }
    let cut = &sample.encode()[..23];
    assert!(AskedRecord::parse(cut, 1).is_err());
    let bad = AskedRecord { asked: 1, queries: vec![f32::NAN] };
    assert_eq!(kind(AskedRecord::parse(&bad.encode(), 1)), value("number of a query"));
}

#[test]
fn tombstones_are_sixteen_bits() {
    let good = Tombstones([0, 65_535].into_iter().collect());
    assert_eq!(Tombstones::parse(&good.encode()), Ok(good));
    let bad = Tombstones([0, 65_536].into_iter().collect());
    assert_eq!(kind(Tombstones::parse(&bad.encode())), value("removed row"));
    let full: RoaringBitmap = (0..65_536).collect();
    assert_eq!(Tombstones::parse(&Tombstones(full.clone()).encode()), Ok(Tombstones(full)));
}
