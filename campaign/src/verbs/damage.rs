//! Every bit of every byte of small indexes, and structural damage.

use super::{early, over};
use crate::damage::ask::Outcome;
use crate::damage::case::{Case, Change, Special, parse};
use crate::damage::heap::{self, Use};
use crate::damage::image::Image;
use crate::damage::stand::{Mode, Stand, cannot};
use crate::damage::structural::{self, Density};
use crate::{SHAPES, Shape, watch};
use clap::Args;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Every bit of every byte of small indexes, and structural damage.
#[derive(Debug, Clone, Args)]
pub struct Damage {
    /// Kinds of index: exact, flat, pq4, pq8, rabitq.
    #[arg(long, value_delimiter = ',', default_value = "exact,flat,pq4,pq8,rabitq")]
    kinds: Vec<String>,
    /// How it ended: in order, by a kill, or both.
    #[arg(long, value_parser = ["closed", "killed", "both"], default_value = "both")]
    image: String,
    /// How files are read: mapped (real files), by positioned reads (in memory), or both.
    #[arg(long, value_parser = ["map", "read", "both"], default_value = "both")]
    mode: String,
    /// Only every so-many-th byte (and length).
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// Makes the rows of the indexes, and chooses what is a sample.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also sets each byte to 00 and to FF.
    #[arg(long)]
    patterns: bool,
    /// Lengths, sectors and whole files instead of bytes.
    #[arg(long)]
    structural: bool,
    /// Pairs of sectors that change places, at most, of each file.
    #[arg(long, default_value_t = 2000)]
    pairs: usize,
    /// Only the i-th of n parts, as 0/2 and 1/2.
    #[arg(long, value_parser = part, default_value = "0/1")]
    part: (usize, usize),
    /// Ends after so many seconds, and says that it did.
    #[arg(long)]
    seconds: Option<u64>,
    /// Only these cases, as a failure printed them.
    #[arg(long)]
    case: Vec<String>,
}

/// This program in a folder where every user may make files.
fn copied() -> std::io::Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("campaign");
    std::fs::copy(std::env::current_exe()?, &program)?;
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o1777))?;
    Ok((folder, program))
}

fn part(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parsed.filter(|(i, n)| i < n).ok_or_else(|| "i/n with i < n, from 0 on".to_owned())
}

/// How often a file was damaged, and how often that was noticed.
#[derive(Debug, Default)]
struct Count {
    noticed: u64,
    harmless: u64,
}

/// What is under way, and what came of it.
struct Run<'a> {
    damage: &'a Damage,
    start: Instant,
    now: Arc<Mutex<String>>,
    cases: u64,
    counts: BTreeMap<(String, String), Count>,
    failures: Vec<String>,
    most: Use,
    slowest: Duration,
    ended: bool,
}

impl Damage {
    pub fn run(&self) -> Result<String, String> {
        assert!(heap::counts(), "the allocator of this program does not count");
        let now = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&now);
        watch::guard(move || shown.lock().map_or_else(|_| String::new(), |now| now.clone()));
        let mut run = Run {
            damage: self,
            start: Instant::now(),
            now,
            cases: 0,
            counts: BTreeMap::new(),
            failures: Vec::new(),
            most: Use::default(),
            slowest: Duration::ZERO,
            ended: false,
        };
        for (shape, closed, mode) in self.images()? {
            run.image(shape, closed, mode)?;
        }
        run.report()
    }

    fn images(&self) -> Result<Vec<(Shape, bool, Mode)>, String> {
        let known = |name: &String| {
            let known = SHAPES.into_iter().find(|shape| shape.name == name);
            known.ok_or_else(|| format!("{name} is no kind of index"))
        };
        let mut images = Vec::new();
        for shape in self.kinds.iter().map(known) {
            let shape = shape?;
            for (closed, word) in [(true, "closed"), (false, "killed")] {
                for (mode, name) in [(Mode::Read, "read"), (Mode::Map, "map")] {
                    let wanted = |option: &str, word| option == "both" || option == word;
                    if wanted(&self.image, word) && wanted(&self.mode, name) {
                        images.push((shape, closed, mode));
                    }
                }
            }
        }
        Ok(images)
    }
}

impl Run<'_> {
    /// All cases of one image in one mode.
    fn image(&mut self, shape: Shape, closed: bool, mode: Mode) -> Result<(), String> {
        let word = if mode == Mode::Map { "map" } else { "read" };
        let end = if closed { "closed" } else { "killed" };
        let prefix = format!("{}:{end}:{word}:", shape.name);
        let named: Vec<&str> =
            self.damage.case.iter().filter_map(|case| case.strip_prefix(&prefix)).collect();
        if self.ended || named.is_empty() && !self.damage.case.is_empty() {
            return Ok(());
        }
        let image = Image::new(shape, self.damage.seed, closed);
        let stand = Stand::new(&image, mode).map_err(|e| format!("{prefix} {e}"))?;
        if !named.is_empty() {
            for text in named {
                let (path, change) = parse(text).ok_or_else(|| format!("{text} is no case"))?;
                self.case(&prefix, &image, &stand, Case { path: &path, change });
            }
            return Ok(());
        }
        let before = (self.cases, Instant::now());
        let damage = self.damage;
        let mut each = |case: Case<'_>| self.case(&prefix, &image, &stand, case);
        if damage.structural {
            let (lengths, pairs, seed) = (damage.every, damage.pairs, damage.seed);
            structural::cases(&image, Density { lengths, pairs, seed }, &mut each);
        } else {
            let first = damage.seed as usize % damage.every;
            let patterns: &[u8] = if damage.patterns { &[0, 0xFF] } else { &[] };
            structural::bytes(&image, (first, damage.every), patterns, &mut each);
        }
        if damage.structural && !stand.modes_are_heeded {
            self.denied(&prefix, &image)?;
        }
        let (cases, took) = (self.cases - before.0, before.1.elapsed());
        let each = took.as_micros() / u128::from(cases.max(1));
        eprintln!("{prefix} {cases} cases in {:.1} s, {each} us each", took.as_secs_f64());
        Ok(())
    }

    fn case(&mut self, prefix: &str, image: &Image, stand: &Stand<'_>, case: Case<'_>) {
        let (part, parts) = self.damage.part;
        let number = watch::BEATS.fetch_add(1, Relaxed) as usize;
        if self.ended || number % parts != part || !stand.can(&case) {
            return;
        }
        if number.is_multiple_of(64) && over(self.damage.seconds, self.start) {
            self.ended = true;
            return;
        }
        if let Ok(mut now) = self.now.lock() {
            now.clear();
            use std::fmt::Write;
            let _ = write!(now, "{prefix}{case}");
        }
        let start = Instant::now();
        let verdict = stand.check(&case);
        self.slowest = self.slowest.max(start.elapsed());
        self.cases += 1;
        match verdict {
            Ok(verdict) => {
                self.most.peak = self.most.peak.max(verdict.used.peak);
                self.most.largest = self.most.largest.max(verdict.used.largest);
                let file = case.path.file_name().unwrap().to_string_lossy();
                let file =
                    file.rsplit_once('.').map_or(file.to_string(), |(_, end)| end.to_owned());
                let shape = image.shape.name.to_owned();
                let count = self.counts.entry((shape, file)).or_default();
                match verdict.outcome {
                    Outcome::Named => count.noticed += 1,
                    Outcome::Unharmed => count.harmless += 1,
                }
            }
            Err(e) => self.fail(prefix, &case, &e),
        }
    }

    fn fail(&mut self, prefix: &str, case: &Case<'_>, why: &str) {
        let seed = self.damage.seed;
        let again = format!("campaign damage --seed {seed} --case {prefix}{case}");
        eprintln!("FAILED: {why}\n  again: {again}");
        self.failures.push(again);
        if self.failures.len() >= 100 {
            self.ended = true;
        }
    }

    /// Files without permissions, in a child of another user: root would open them.
    fn denied(&mut self, prefix: &str, image: &Image) -> Result<(), String> {
        let (folder, program) = copied().map_err(cannot("copy itself for another user"))?;
        let mut child = Command::new(program);
        child.arg("damage").args(["--seed", &self.damage.seed.to_string()]);
        for path in image.files.keys() {
            let case = Case { path, change: Change::Place(Special::Denied) };
            child.arg("--case").arg(format!("{prefix}{case}"));
        }
        let nobody = 65534;
        child.uid(nobody).gid(nobody).current_dir("/").env("TMPDIR", folder.path());
        let done = child.output().map_err(cannot("run as another user"))?;
        let (said, error) =
            (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        let ran = format!("{} cases", image.files.len());
        if done.status.success() && said.contains(&ran) {
            self.cases += image.files.len() as u64;
        } else if error.contains("  again: ") {
            self.failures.push(format!("{prefix} without permissions: {said}{error}"));
        } else {
            return Err(format!(
                "{prefix} the harness cannot do it as another user: {said}{error}"
            ));
        }
        Ok(())
    }

    fn report(self) -> Result<String, String> {
        println!("{:8} {:8} {:>10} {:>10}", "kind", "files", "noticed", "harmless");
        for ((shape, file), count) in &self.counts {
            println!("{shape:8} {file:8} {:>10} {:>10}", count.noticed, count.harmless);
        }
        let took = self.start.elapsed().as_secs_f64();
        let ended = early(self.ended);
        let told = format!(
            "damage: {} cases, {} failures in {took:.0} s ({:.0} a second){ended}; slowest {:?}; at most {} \
             bytes held, {} in one piece",
            self.cases,
            self.failures.len(),
            self.cases as f64 / took,
            self.slowest,
            self.most.peak,
            self.most.largest,
        );
        match self.failures.is_empty() && self.cases > 0 {
            true => Ok(told),
            false => Err(format!("{told}\n{}", self.failures.join("\n"))),
        }
    }
}
