//! The corpora of the fuzz targets, replayed as plain tests. `CELLARDB_WRITE_CORPUS=1` writes the
//! seeds; findings of the fuzzer are added as they are. Then every seed is damaged at random.

use cellardb_campaign::data::Rng;
use cellardb_campaign::fuzz;
use cellardb_format as format;
use cellardb_format::{BlockLayout, CodeKind, ListIdentity};
use std::path::{Path, PathBuf};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Writes the seeds if it is asked for, then reads what is there.
fn inputs(target: &str, seeds: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let dir = corpus(target);
    if std::env::var_os("CELLARDB_WRITE_CORPUS").is_some() {
        std::fs::create_dir_all(&dir).unwrap();
        for (i, seed) in seeds.iter().enumerate() {
            #[expect(clippy::disallowed_methods, reason = "asked for by the environment")]
            std::fs::write(dir.join(format!("seed-{i:02}")), seed).unwrap();
        }
    }
    let mut inputs: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), std::fs::read(path).unwrap()))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= seeds.len(), "{target}: the corpus is missing");
    inputs
}

/// Replays the corpus and `rounds` random changes of each of its inputs.
fn replay(target: &str, seeds: &[Vec<u8>], rounds: usize, run: fn(&[u8])) {
    for (name, input) in inputs(target, seeds) {
        let mut rng = Rng::new(input.len() as u64);
        for round in 0..=rounds {
            let mut bytes = input.clone();
            for _ in 0..round.min(4) {
                match rng.below(4) {
                    0 => bytes.truncate(rng.below(bytes.len() + 1)),
                    1 => bytes.push(rng.next_u64() as u8),
                    _ if bytes.is_empty() => {}
                    _ => {
                        let at = rng.below(bytes.len());
                        bytes[at] = [0, 1, 0x7F, 0x80, 0xFF, rng.next_u64() as u8][rng.below(6)];
                    }
                }
            }
            let run = std::panic::AssertUnwindSafe(|| run(&bytes));
            let fine = std::panic::catch_unwind(run).is_ok();
            assert!(fine, "{name}, round {round}: {bytes:?}");
        }
    }
}

fn frames() -> Vec<Vec<u8>> {
    let identity = ListIdentity { uuid: [7; 16], list: 3, generation: 1, revision: 2 };
    let mut seeds = Vec::new();
    for (i, kind) in [CodeKind::Flat, CodeKind::Pq4, CodeKind::Pq8].into_iter().enumerate() {
        let layout = BlockLayout::new(kind, 6, 12);
        for blocks in [1, 20] {
            let mut payload = Vec::new();
            for _ in 0..blocks {
                let mut block = layout.empty_block();
                let code = vec![3; if kind == CodeKind::Flat { 48 } else { 6 }];
                let factors = format::Factors { add: 1.5, scale: 1.0 };
                (0..16).for_each(|lane| layout.put(&mut block, lane, &code, factors, lane as u64));
                payload.extend(block);
            }
            let mut seed = vec![(i as u8) << 1 | 1 << 4];
            format::encode_frame(&identity, 64, 5, blocks * 16 - 3, 9, &payload, &mut seed);
            seeds.push(seed.clone());
            seed[0] |= 1;
            seeds.push(seed);
        }
    }
    seeds
}

fn records() -> Vec<Vec<u8>> {
    let with = |which: u8, bytes: &[u8]| [&[which], bytes].concat();
    let state = format::State {
        seq: 5,
        next_id: 90,
        live: 80,
        watermark: 70,
        next_segment: 2,
        next_revision: 3,
        generation: 1,
        segments: 2,
        lists: 4,
        dead_keys: 1,
        dead: 10,
    };
    let setting = format::Setting {
        recall: 0.95,
        probes: 7,
        rerank: 40,
        stop: 1.1,
        slack: 1.2,
        measured: 0.951,
        codes: 120.0,
    };
    let segment = |ids| format::Segment { first_id: 10, end_id: 20, rows: 10, ids };
    let frame = format::FrameEntry { cell: 1, rows: 16, offset: 64, crc: 77 };
    let list = format::ListEntry { revision: 1, length: 1024, rows: 16, frames: vec![frame] };
    let dead = format::Tombstones((0..10u32).collect());
    let mut row = vec![0; format::RowLayout::new(4).stride()];
    let fields = format::Row { id: 12, generation: 1, cell: 3, spill: format::NONE, scale: 1.0 };
    format::RowLayout::new(4).encode(&mut row, &[1.0; 4], &fields, &[7; 16], 1, 2);
    let lock = format::LockRecord { uuid: [7; 16], seq: 9, pid: 100 };
    vec![
        with(1, &state.encode()),
        with(2, &segment(None).encode()),
        with(
            2,
            &format::Segment { rows: 3, ..segment(Some([0u32, 4, 9].into_iter().collect())) }
                .encode(),
        ),
        with(3, &list.encode()),
        with(6, &format::Settings(vec![setting]).encode()),
        with(7, &dead.encode()),
        with(8, &row),
        with(9, &lock.encode()),
        with(9, &format::encode_floats(&[1.0, -2.5])),
        with(0, &[0; 40]),
        with(4, &[1; 36]),
        with(5, &[0; 40]),
    ]
}

fn directories() -> Vec<Vec<u8>> {
    let patch = |file: u8, at: u32, bytes: &[u8]| {
        [&[file][..], &at.to_le_bytes(), &[bytes.len() as u8], bytes].concat()
    };
    let mut seeds = Vec::new();
    for kind in 0..4 {
        seeds.push(vec![kind]);
        seeds.push([&[kind | 4][..], &patch(2, 64 + 40, &[9, 9])].concat());
        seeds.push([&[kind][..], &patch(1, 4096, &[0xFF; 64]), &patch(0, 16, &[1])].concat());
        seeds.push([&[kind][..], &patch(1, 0, &[0x55; 16])].concat());
        seeds.push([&[kind | 4][..], &patch(3, 32, &[1]), &patch(2, 700, &[])].concat());
        seeds.push([&[kind | 4][..], &patch(6, 64 + 4, &[3]), &patch(7, 64 + 30, &[2])].concat());
    }
    seeds
}

#[test]
fn frames_never_panic() {
    replay("frame", &frames(), 300, fuzz::frame);
}

#[test]
fn records_never_panic() {
    replay("record", &records(), 1000, fuzz::record);
}

#[test]
fn directories_never_panic() {
    replay("directory", &directories(), 40, fuzz::directory);
}
