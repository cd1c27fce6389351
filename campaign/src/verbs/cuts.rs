//! Power cuts at every operation of generated workloads, on the simulated disk.

use super::Pace;
use crate::cuts::{self, Broken, Case, Plan, Tally};
use crate::workload::Workload;
use clap::Args;
use std::sync::Mutex;
use std::time::Duration;

/// Cuts the power at every operation of generated workloads, on the simulated disk.
#[derive(Debug, Args)]
pub struct Cuts {
    #[command(flatten)]
    pace: Pace,
    /// Variants of the cut at each operation.
    #[arg(long, default_value_t = 8)]
    variants: u8,
    /// Repeats one case and tells what happens.
    #[arg(long, value_name = "NUMBER", value_parser = super::number)]
    case: Option<u64>,
    /// A workload in words, instead of those of the seeds.
    #[arg(long, value_name = "WORDS")]
    workload: Option<Workload>,
}

impl Cuts {
    pub fn run(&self) -> Result<String, String> {
        let plan = Plan { variants: self.variants, ..Plan::default() };
        if let Some(case) = self.case {
            let done = cuts::repeat(Case::of(case), plan).map_err(|e| e.to_string());
            return done.map(|()| format!("case {case:#x}: all is well"));
        }
        if let Some(workload) = &self.workload {
            let tally = cuts::cut_everywhere(workload, 0, plan).map_err(|e| e.to_string())?;
            return Ok(format!("{workload}: {tally:?}"));
        }
        let all = Mutex::new(Tally::default());
        let spent = self.pace.each(|seed| {
            let workload = Workload::random(u64::from(seed));
            let tally = cuts::cut_everywhere(&workload, seed, plan)
                .map_err(|broken| smaller(&broken, &workload))?;
            all.lock().unwrap().add(tally);
            Ok(())
        })?;
        let tally = all.into_inner().unwrap();
        let rate = tally.opened as f64 / spent.as_secs_f64() / self.pace.jobs as f64;
        Ok(format!(
            "{} workloads, {} power cuts, {} different disks opened and compared ({} cuts were of \
             recoveries, three deep), none broke a promise; {:.0} s, {rate:.0} disks a second of one core",
            tally.workloads,
            tally.states,
            tally.opened,
            tally.recoveries,
            spent.as_secs_f64()
        ))
    }
}

/// The failure, and the smallest workload that still fails.
fn smaller(broken: &Broken, workload: &Workload) -> String {
    let (small, why) = cuts::shrink(workload, Duration::from_secs(60));
    let why = why.map_or(String::new(), |why| format!(" ({})", why.what));
    format!("{broken}\n  shrunk, a line for campaign/regressions.txt{why}:\n  {small}")
}
