//! Operations of the simulated disk that fail, at every place of generated workloads.

use super::Pace;
use crate::faults::{self, Taken};
use crate::sim::Calls;
use crate::workload::Workload;
use clap::Args;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Lets every operation of generated workloads fail in turn, on the simulated disk.
#[derive(Debug, Args)]
pub struct Faults {
    #[command(flatten)]
    pace: Pace,
    /// Every so-many-th operation.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// A workload in words, instead of those of the seeds.
    #[arg(long, value_name = "WORDS")]
    workload: Option<Workload>,
}

impl Faults {
    pub fn run(&self) -> Result<String, String> {
        let counts: [AtomicU64; 3] = Default::default();
        let all = |workload: &Workload, seed: u32| -> Result<(), String> {
            let operations = faults::operations(workload)?;
            for (calls, n) in
                [Calls::Changes, Calls::Reads, Calls::Opens].into_iter().zip(operations)
            {
                for at in (0..n).skip(seed as usize % self.every).step_by(self.every) {
                    for case in faults::cases(calls, at) {
                        let taken = faults::check(workload, case)
                            .map_err(|e| format!("seed {seed}: {e}"))?;
                        counts[taken as usize].fetch_add(1, Relaxed);
                    }
                }
            }
            Ok(())
        };
        let spent = match &self.workload {
            Some(workload) => all(workload, 0).map(|()| Default::default())?,
            None => self.pace.each(|seed| all(&Workload::random(u64::from(seed)), seed))?,
        };
        let [unnoticed, clean, poisoned] = [Taken::Unnoticed, Taken::Clean, Taken::Poisoned]
            .map(|taken| counts[taken as usize].load(Relaxed));
        Ok(format!(
            "{} faults, {clean} of them a clean error after which writing went on, {poisoned} poisoned the \
             writer, {unnoticed} had no effect; no promise was broken; {:.0} s",
            unnoticed + clean + poisoned,
            spent.as_secs_f64()
        ))
    }
}
