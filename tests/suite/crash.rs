//! Power cuts and failing operations at every place of a small workload. After each the index must
//! open to one of the states that the history allows. These are slices of what `campaign cuts` and
//! `campaign faults` do for hours; `CELLARDB_CRASH_SEEDS` scales them up.

use cellardb::{Disk, Durability, Error, Metric};
use cellardb_campaign::change::Cut;
use cellardb_campaign::cuts::{self, Plan, Recording};
use cellardb_campaign::data::Rng;
use cellardb_campaign::faults::{self, Taken};
use cellardb_campaign::oracle::recover;
use cellardb_campaign::sim::{Calls, SimDisk, cuts};
use cellardb_campaign::workload::{Run, Workload};
use cellardb_campaign::{HOME, SHAPES, parallel, scale, stored};
use std::sync::Arc;
use std::time::Duration;

/// Small, but with everything in it: the index trains, segments and lists fill up and are replaced,
/// rows are removed before and after a fold, and life goes on after a compaction.
const SCRIPT: &str = "insert 1, insert 40, remove 9, insert 30, train, insert 1, insert 5, flush, \
     insert 20, remove 7, flush, compact, insert 3, train, remove 5, compact";

fn script(head: &str) -> Workload {
    format!("{head} dim 4 segment 4096 train 64: {SCRIPT}").parse().unwrap()
}

/// Cuts the power after every operation of the workload, and some recoveries, three deep.
fn cut_everywhere(workload: &Workload, every: usize) {
    let seeds = scale("CELLARDB_CRASH_SEEDS", 1);
    let every = if seeds > 1 { 1 } else { every };
    let plan = Plan { variants: 2 + seeds.min(200) as u8, every, recovery: 37 };
    let tally = cuts::cut_everywhere(workload, 0, plan).unwrap_or_else(|broken| panic!("{broken}"));
    println!("{}: {tally:?}", workload.shape.name);
    assert!(tally.opened > 80 && tally.recoveries > 20, "the campaign did not run: {tally:?}");
}

#[test]
fn an_exact_index_survives_a_cut_at_every_operation() {
    cut_everywhere(&script("exact l2 nlist 0"), 1);
}

#[test]
fn a_flat_index_survives_a_cut_at_every_operation() {
    cut_everywhere(&script("flat ip nlist 4"), 1);
}

#[test]
fn a_pq4_index_survives_a_cut_at_every_operation() {
    cut_everywhere(&script("pq4 l2 nlist 4"), 1);
}

#[test]
fn a_pq8_index_survives_a_cut_at_every_operation() {
    cut_everywhere(&script("pq8 cosine nlist 4"), 1);
}

/// Between its commits the index is closed, or put to rest by others: each time the first commit after it is one.
#[test]
fn the_first_commit_after_an_opening_or_a_rest_survives_a_cut_at_every_operation() {
    let steps = "insert 1, reopen, insert 40, rest, remove 9, reopen, reopen, train, rest, insert 1, rest, flush, \
         kill, insert 20, rest, remove 7, rest, kill, rest, compact, insert 3, reopen, remove 5, rest, insert 9";
    for head in ["exact l2 nlist 0", "pq4 l2 nlist 4"] {
        let text = format!("{head} dim 4 segment 4096 train 64: {steps}");
        let plan = Plan { variants: 12, every: 1, recovery: 37 };
        let done = cuts::cut_everywhere(&text.parse().unwrap(), 0, plan);
        println!("{head}: {:?}", done.unwrap_or_else(|broken| panic!("{broken}")));
    }
}

#[test]
fn under_relaxed_durability_a_cut_loses_a_suffix_of_commits() {
    cut_everywhere(&script("pq4 l2 nlist 4 relaxed"), 2);
}

#[test]
fn workloads_of_random_seeds_survive_cuts() {
    let seeds: Vec<u32> = (100..100 + 4 * scale("CELLARDB_CRASH_SEEDS", 1) as u32).collect();
    parallel(&seeds, |seed| {
        let plan = Plan { variants: 3, every: 5, recovery: 60 };
        let workload = Workload::random(u64::from(*seed));
        let done = cuts::cut_everywhere(&workload, *seed, plan);
        done.unwrap_or_else(|broken| panic!("{broken}"));
    });
}

#[test]
fn what_broke_once_does_not_break_again() {
    let lines = include_str!("../../campaign/regressions.txt").lines();
    let lines: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(!lines.is_empty());
    for line in lines {
        let workload: Workload = line.parse().unwrap();
        // As many as it takes to meet one mixture in particular again.
        let plan = Plan { variants: 100, every: 1, recovery: 100 };
        let done = cuts::cut_everywhere(&workload, 0, plan);
        done.unwrap_or_else(|broken| panic!("{broken}"));
    }
}

#[test]
fn a_workload_is_what_its_words_say() {
    for seed in 0..200 {
        let workload = Workload::random(seed);
        assert_eq!(workload.to_string().parse(), Ok(workload));
    }
    for wrong in ["", "exact l2", "exact l2 dim 4 segment 1 train 1 nlist 0 strict: fly", "pq5: x"]
    {
        assert!(wrong.parse::<Workload>().is_err(), "{wrong}");
    }
}

#[test]
fn a_cut_during_create_leaves_nothing_or_an_empty_index() {
    let options = |disk: &SimDisk| SHAPES[2].options(4, Metric::L2).disk(Arc::new(disk.clone()));
    let disk = SimDisk::new();
    disk.record();
    drop(options(&disk).create(HOME).unwrap());
    let walker = SimDisk::new();
    for (n, op) in disk.recorded().iter().enumerate() {
        walker.replay(op);
        for cut in cuts(4, n as u64) {
            let left = walker.after_cut(cut);
            let index = options(&left).open_or_create(HOME).unwrap_or_else(|e| {
                panic!("cut after operation {n} of create ({cut:?}): {e}");
            });
            assert!(index.is_empty());
            assert_eq!(index.insert(&[1.0; 4]).unwrap(), 0);
            drop(index);
            let index = stored(&left.after_cut(Cut::Dropped)).open(HOME).unwrap();
            assert_eq!(index.ids(), [0]);
        }
    }
}

#[test]
fn a_failed_operation_is_a_clean_error_and_costs_no_acknowledged_row() {
    let seeds = scale("CELLARDB_CRASH_SEEDS", 1);
    let heads = ["exact l2 nlist 0", "flat l2 nlist 4", "pq4 l2 nlist 4"].map(script);
    let mut all = Vec::new();
    for workload in &heads {
        let calls = [Calls::Changes, Calls::Reads, Calls::Opens];
        for (calls, n) in calls.into_iter().zip(faults::operations(workload).unwrap()) {
            let every = if seeds > 1 { 1 } else { 3 * (n as usize).div_ceil(300) };
            for at in (0..n).step_by(every) {
                let cases = faults::cases(calls, at);
                let turn = at as usize / every % cases.len();
                let chosen = cases.into_iter().enumerate().filter(|(i, _)| seeds > 1 || *i == turn);
                all.extend(chosen.map(|(_, case)| (workload, case)));
            }
        }
    }
    let noticed = std::sync::atomic::AtomicUsize::new(0);
    parallel(&all, |(workload, case)| {
        let taken = faults::check(workload, *case).unwrap_or_else(|e| panic!("{e}"));
        noticed.fetch_add(
            usize::from(taken != Taken::Unnoticed),
            std::sync::atomic::Ordering::Relaxed,
        );
    });
    let noticed = noticed.into_inner();
    println!("{} faults, {noticed} noticed", all.len());
    assert!(all.len() > 200 && noticed * 3 > all.len(), "{} faults, {noticed} noticed", all.len());
}

#[test]
fn the_oracle_notices_a_lost_commit_and_a_hole() {
    let workload = script("exact l2 nlist 0");
    let Recording { ops, history } = Recording::of(&workload).unwrap();
    let disk = SimDisk::new();
    ops.iter().for_each(|op| disk.replay(op));
    let (last, mut rng) = (history.models.len() - 1, Rng::new(1));
    assert_eq!(history.window(ops.len()), last..=last);
    // An older state than the acknowledged one.
    let mut run = Run::begin(&workload, SimDisk::new()).unwrap();
    for step in &workload.steps[..workload.steps.len() - 2] {
        run.step(*step).unwrap().unwrap();
    }
    run.index = None;
    let older = recover(&run.disk, &history, last..=last, &mut rng).unwrap_err();
    assert!(older.contains("none of the states"), "{older}");
    // A row too few.
    let index = stored(&disk).open(HOME).unwrap();
    let live = index.ids();
    index.remove(live[live.len() / 2]).unwrap();
    index.close().unwrap();
    let hole = recover(&disk, &history, 0..=last, &mut rng).unwrap_err();
    assert!(hole.contains("none of the states"), "{hole}");
    assert!(disk.list("/nowhere".as_ref()).unwrap().is_empty());
}

#[test]
fn a_failed_write_poisons_and_says_so() {
    let disk = SimDisk::new();
    let index = SHAPES[0].options(2, Metric::L2).disk(Arc::new(disk.clone())).create(HOME).unwrap();
    index.insert(&[1.0, 2.0]).unwrap();
    disk.fail(0, cellardb_campaign::sim::Fault::Eio, false);
    assert!(matches!(index.insert(&[3.0, 4.0]), Err(Error::Io { .. })));
    assert!(matches!(index.insert(&[3.0, 4.0]), Err(Error::Poisoned { .. })));
    assert!(index.stats().poisoned.is_some());
    assert_eq!(index.search(&[1.0, 2.0], 1).unwrap(), [(0, 0.0)]);
    let relaxed = Durability::Interval(Duration::from_secs(3600));
    drop(index);
    let index = stored(&disk).durability(relaxed).open(HOME).unwrap();
    assert_eq!(index.ids(), [0]);
}
