//! When the background of an index has nothing left to do.

use cellardb::Index;
use std::time::{Duration, Instant};

/// How long nothing may happen before it is called idle, and how often that is looked at.
const STILL: u32 = 6;
const LOOK: Duration = Duration::from_millis(60);
/// The most that the background may take.
const MOST: Duration = Duration::from_secs(900);

/// Threads of this process but for the calling one: the processor time that they had, and whether one of
/// them works or waits for a processor or the disk.
fn others() -> std::io::Result<(u64, bool)> {
    let me = std::fs::read_link("/proc/thread-self")?;
    let (mut time, mut busy) = (0, false);
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?;
        // One may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        if me.file_name() == Some(&task.file_name()) {
            continue;
        }
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |at| at.1).split_whitespace().collect();
        busy |= fields.first() != Some(&"S");
        time += fields[11].parse::<u64>().unwrap_or(0) + fields[12].parse::<u64>().unwrap_or(0);
    }
    Ok((time, busy))
}

/// Waits until the state of the index stays as it is while its threads sleep.
pub fn wait(index: &Index) -> Result<(), String> {
    let start = Instant::now();
    let look = || others().map(|(time, busy)| (index.stats(), time, busy));
    let mut last = look().map_err(|e| e.to_string())?;
    let mut still = 0;
    while still < STILL {
        if start.elapsed() > MOST {
            return Err(format!("the background is not idle after {MOST:?}"));
        }
        std::thread::sleep(LOOK);
        let now = look().map_err(|e| e.to_string())?;
        still = if now == last && !now.2 { still + 1 } else { 0 };
        last = now;
    }
    match last.0.maintenance_error {
        Some(e) => Err(format!("the background failed: {e}")),
        None => Ok(()),
    }
}
