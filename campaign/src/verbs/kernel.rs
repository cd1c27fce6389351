//! A real file system, shut down under a running process (needs root and a loop device).

use super::Until;
use crate::data::Rng;
use crate::image::{Image, system};
use crate::model::Model;
use crate::process::{self, Followed, Running};
use crate::scratch::scratch;
use clap::{Args, ValueEnum};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Cuts of one index before a new one is made.
const LIVES: u64 = 20;
/// Cuts, unless something else is said.
const CUTS: u64 = 10;
/// What the image takes.
const IMAGE: u64 = 320 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fs {
    Ext4,
    Xfs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// `data=ordered`
    Ordered,
    /// `data=writeback`
    Writeback,
    /// `data=journal`
    Journal,
    /// `data=ordered`, blocks allocated at once
    Nodelalloc,
}

/// Power cuts in a real kernel: a file system in an image is shut down without its journal being
/// flushed while a process works in it, mounted again, and checked. Needs root and a loop device. 10 cuts,
/// unless --count or --seconds say otherwise.
#[derive(Debug, Args)]
pub struct Kernel {
    #[command(flatten)]
    until: Until,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, value_enum, default_value = "ext4")]
    fs: Fs,
    /// How ext4 is mounted.
    #[arg(long, value_enum, default_value = "ordered")]
    mode: Mode,
    /// Where the image lies, best in memory.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
}

#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    acked: u64,
    late: u64,
    lost: u64,
}

impl Kernel {
    pub fn run(&self) -> Result<String, String> {
        let start = Instant::now();
        let root = scratch(Some(&self.dir))?;
        let mount = Image { image: root.path().join("image"), at: root.path().join("mount") };
        let mut tally = Tally::default();
        let done = self.all(&mount, start, &mut tally);
        drop(mount);
        drop(root);
        done.map_err(|e| format!("kernel: {e}\nrepeat: {}", self.command(tally.cuts + 1)))?;
        let told = format!(
            "kernel: {} cuts of {} ({}), {} acknowledged changes, {} more were durable, none lost or halved; \
             {} cuts lost what was not synced; {:.0?}{}",
            tally.cuts,
            self.name(),
            self.options(),
            tally.acked,
            tally.late,
            tally.lost,
            start.elapsed(),
            self.until.early(tally.cuts)
        );
        match tally.cuts == 0 || tally.lost * 2 < tally.cuts {
            true => Err(format!("{told}\nmost cuts lost nothing: they were none")),
            false => Ok(told),
        }
    }

    fn name(&self) -> &'static str {
        if self.fs == Fs::Ext4 { "ext4" } else { "xfs" }
    }

    fn options(&self) -> &'static str {
        match (self.fs, self.mode) {
            (Fs::Xfs, _) => "defaults",
            (_, Mode::Ordered) => "data=ordered",
            (_, Mode::Writeback) => "data=writeback",
            (_, Mode::Journal) => "data=journal",
            (_, Mode::Nodelalloc) => "data=ordered,nodelalloc",
        }
    }

    fn command(&self, cuts: u64) -> String {
        let mode = self.mode.to_possible_value().unwrap().get_name().to_owned();
        format!(
            "campaign kernel --fs {} --mode {mode} --seed {} --count {cuts} (a cut is real time: it may take several runs)",
            self.name(),
            self.seed,
        )
    }

    fn all(&self, mount: &Image, start: Instant, tally: &mut Tally) -> Result<(), String> {
        mount.create(IMAGE)?;
        let file = mount.image.to_str().unwrap_or_default();
        match self.fs {
            Fs::Ext4 => system("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0", file])?,
            Fs::Xfs => system("mkfs.xfs", &["-q", "-f", file])?,
        }
        mount.mount(self.options())?;
        let (path, mut model) = (mount.at.join("index"), None);
        for cut in 0..self.until.count(CUTS) {
            if self.until.over(start) {
                break;
            }
            let base = match model.take() {
                Some(model) if !cut.is_multiple_of(LIVES) => model,
                _ => {
                    let _ = std::fs::remove_dir_all(&path);
                    process::create(&path, (cut / LIVES + self.seed) as usize)
                        .map_err(|e| format!("create: {e}"))?
                }
            };
            let seed = self.seed << 32 | cut;
            let found = self.cut(mount, &path, base, seed, tally);
            model = Some(found.map_err(|e| format!("cut {cut}: {e}"))?);
            tally.cuts += 1;
            if (cut + 1).is_multiple_of(100) {
                eprintln!("{} cuts", cut + 1);
            }
        }
        Ok(())
    }

    /// Lets a child work, cuts, mounts and checks.
    fn cut(
        &self,
        mount: &Image,
        path: &Path,
        base: Model,
        seed: u64,
        tally: &mut Tally,
    ) -> Result<Model, String> {
        let mut rng = Rng::new(seed);
        let mut command = process::myself("child");
        command.arg(path).arg("--seed").arg(seed.to_string());
        let mut child = Running::start(command, base);
        let wait = Duration::from_micros(1_000 + rng.below(120_000) as u64);
        if child.follow(wait, |_| false) == Followed::Ended {
            return Err(format!("the child ended by itself: {:?}", child.end()));
        }
        // Written, not synced: a cut that does not lose it is none.
        let canary = mount.at.join("canary");
        let write = || {
            let _ = std::fs::remove_file(&canary);
            std::fs::File::create(&canary)?.write_all(&seed.to_le_bytes())
        };
        write().map_err(|e| format!("canary: {e}"))?;
        shutdown::now(&mount.at).map_err(|e| format!("the shutdown ioctl answered: {e}"))?;
        let (journal, _) = child.kill();
        mount.umount()?;
        mount.mount(self.options())?;
        tally.lost += u64::from(std::fs::read(&canary).ok() != Some(seed.to_le_bytes().to_vec()));
        let found = process::check(path, &journal, seed)
            .map_err(|e| format!("{e}\nthe child said: {:?}", journal.error))?;
        tally.acked += journal.acked as u64;
        tally.late += found.late as u64;
        Ok(found.model)
    }
}

#[allow(unsafe_code, reason = "an ioctl is a call that no type describes")]
mod shutdown {
    use rustix::ioctl::{Setter, ioctl, opcode};
    use std::path::Path;

    /// Ends a file system as a loss of power would: nothing more is written, its journal included.
    pub(super) fn now(mount: &Path) -> std::io::Result<()> {
        /// `EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN`.
        const GOING_DOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
        const NO_LOG_FLUSH: u32 = 2;
        let root = std::fs::File::open(mount)?;
        // SAFETY: the number is that of a call which reads one u32 through its pointer.
        let down = unsafe { Setter::<GOING_DOWN, u32>::new(NO_LOG_FLUSH) };
        // SAFETY: `down` passes a pointer to one u32, and a file system that has no such call refuses.
        Ok(unsafe { ioctl(root, down) }?)
    }
}
