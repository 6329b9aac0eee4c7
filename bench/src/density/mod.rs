//! `density`: what guests on the same files cost the host, with the window
//! and without.
//!
//! | file | owns |
//! | --- | --- |
//! | `ask` | what is measured, and whether memory is enough for it |
//! | `pattern` | what each guest reads |
//! | `data` | the files |
//! | `reader` | a guest's reading program |
//! | `stage` | the daemon, and the proof of the path |
//! | `memory` | what processes hold |
//! | `point` | one point of a line |
//! | `userspace` | guests that are processes |
//! | `machines`, `vms` | guests that are virtual machines |
//! | `price` | what a window costs by itself |
//! | `regression`, `summary`, `print` | slopes, goals, tables |
//!
//! Laws: a point without proof of its path is an error; a point is in the
//! results before the next guest reads.

mod ask;
mod data;
mod machines;
mod memory;
mod pattern;
mod point;
mod price;
mod print;
mod reader;
mod regression;
mod stage;
mod study;
mod summary;
mod userspace;
mod vms;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use daxwindow_shared::size::parse_bytes;
use daxwindow_vm::AccelChoice;

use crate::daemon;
use ask::{Line, PATTERNS, Room};
use pattern::Pattern;
use point::{Kind, Series};
use stage::Stack;

pub(crate) use reader::{Args as ReaderArgs, run as read};

/// The subcommand that is a guest's reading program.
pub(crate) const READER: &str = "density-reader";

/// Numbers of userspace guests by default.
const GUESTS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const QUICK_GUESTS: usize = 5;
/// Virtual machines by default, if memory is enough.
const VMS: usize = 6;
const QUICK_VMS: usize = 3;
const QUICK_OVERLAYS: usize = 2;
/// Most of either.
const MOST_GUESTS: usize = 512;
const MIB: u64 = 1 << 20;

/// Measure what guests that read the same files cost the host, with DAX and
/// without
///
/// Userspace guests (processes with the guest library) and virtual machines
/// read by a pattern, one after the other, and keep what they have. After each
/// the host's page cache of the files, memory and page tables of every
/// process, guest memory and the daemon are summed up. Results go to
/// density.jsonl, point by point; an interrupted run goes on where it was.
/// Exits with failure when something could not be measured.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Numbers of userspace guests to stop at, ascending; 0 for none. By
    /// default up to 64, or as many as memory allows
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    guests: Option<Vec<usize>>,
    /// Virtual machines; 0 for none. By default up to 6, or as many as memory
    /// allows
    #[arg(long, value_name = "N")]
    vms: Option<usize>,
    /// Virtual machines that have an overlay each over one directory, as
    /// containers have over an image; 0 for none. By default as many as --vms,
    /// or 2 with --quick, if this is root
    #[arg(long, value_name = "N")]
    overlays: Option<usize>,
    /// Bytes of the files that userspace guests read
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_bytes)]
    bytes: u64,
    /// Bytes of those that virtual machines read
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_bytes)]
    vm_bytes: u64,
    /// Access pattern; repeatable, all by default
    #[arg(long)]
    pattern: Vec<Pattern>,
    /// With DAX, or without; both by default
    #[arg(long)]
    stack: Option<Stack>,
    /// Windows whose price is found, in a virtual machine each; 0 for none
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_bytes)]
    windows: Option<Vec<u64>>,
    /// What the random patterns follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Up to 16 userspace guests, 3 virtual machines with one pattern, one
    /// window
    #[arg(long)]
    quick: bool,
    /// Where results go
    #[arg(long, value_name = "DIR", default_value = crate::runs::DIRECTORY)]
    out: PathBuf,
    /// Drop results that are there
    #[arg(long)]
    fresh: bool,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Where to put the files; by default target/ below the current directory
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The daemon's binary; by default daxwindowd beside this one
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// What runs the virtual machines' code
    #[arg(long, value_name = "KIND", default_value = "auto")]
    accel: AccelChoice,
    /// Fetch nothing
    #[arg(long)]
    offline: bool,
}

/// What will be measured, in order.
struct Plan {
    lines: Vec<Line>,
    windows: Vec<u64>,
    /// What was left out.
    said: Vec<String>,
}

/// Measures; true when all was measured.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let binary = daemon::find(args.daemon.as_deref())?;
    let plan = args.plan(Room::now()?)?;
    let mut study = study::Study::open(args, &binary, &plan)?;
    let complete = study.measure()?;
    study.print(args.json)?;
    Ok(complete)
}

impl Args {
    fn plan(&self, room: Room) -> Result<Plan> {
        let mut said = Vec::new();
        let mut lines = Vec::new();
        for kind in Kind::ALL {
            let counts = self.counts(kind)?;
            let Some(&of) = counts.last() else {
                continue;
            };
            let bytes = self.bytes_of(kind);
            let flag = if kind.is_machine() {
                "--vm-bytes"
            } else {
                "--bytes"
            };
            ask::check_bytes(flag, bytes, of)?;
            for series in self.series(kind) {
                let mut line = Line {
                    series,
                    counts: counts.clone(),
                    of,
                    bytes,
                };
                match self.named(kind) {
                    true => line.check(room)?,
                    false => said.extend(line.cut(room)),
                }
                lines.push(line);
            }
        }
        lines.retain(|line| !line.counts.is_empty());
        let windows = self.price_windows()?;
        if lines.is_empty() && windows.is_empty() {
            bail!("there is nothing to measure: {}", said.join("; "));
        }
        Ok(Plan {
            lines,
            windows,
            said,
        })
    }

    /// Whether the number of guests was named.
    fn named(&self, kind: Kind) -> bool {
        match kind {
            Kind::Userspace => self.guests.is_some(),
            Kind::Vms => self.vms.is_some(),
            Kind::Overlays => self.overlays.is_some(),
        }
    }

    fn bytes_of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Userspace => self.bytes,
            Kind::Vms | Kind::Overlays => self.vm_bytes,
        }
    }

    fn counts(&self, kind: Kind) -> Result<Vec<usize>> {
        let machines = |told: Option<usize>| (1..=told.unwrap_or(VMS)).collect();
        let counts: Vec<usize> = match (kind, &self.guests) {
            (Kind::Userspace, Some(told)) => told.clone(),
            (Kind::Userspace, None) if self.quick => GUESTS[..QUICK_GUESTS].to_vec(),
            (Kind::Userspace, None) => GUESTS.to_vec(),
            (Kind::Vms, _) => machines(self.vms.or(self.quick.then_some(QUICK_VMS))),
            (Kind::Overlays, _) => machines(self.overlays.or_else(|| self.overlays_by_default())),
        };
        if counts.is_empty() || counts == [0] {
            return Ok(Vec::new());
        }
        let ascending = counts.windows(2).all(|pair| pair[0] < pair[1]);
        ensure!(
            ascending && counts.iter().all(|&n| (1..=MOST_GUESTS).contains(&n)),
            "--guests and --vms: numbers from 1 to {MOST_GUESTS}, ascending, or 0 alone"
        );
        Ok(counts)
    }

    fn overlays_by_default(&self) -> Option<usize> {
        if !rustix::process::geteuid().is_root() {
            return Some(0);
        }
        match self.quick {
            true => Some(self.vms.unwrap_or(QUICK_OVERLAYS).min(QUICK_OVERLAYS)),
            false => self.vms,
        }
    }

    fn series(&self, kind: Kind) -> Vec<Series> {
        let patterns = match (kind, self.quick) {
            _ if !self.pattern.is_empty() => self.pattern.clone(),
            (Kind::Vms, true) | (Kind::Overlays, _) => vec![Pattern::Everything],
            _ => PATTERNS.to_vec(),
        };
        let stacks = match self.stack {
            Some(stack) => vec![stack],
            None => vec![Stack::Dax, Stack::Plain],
        };
        let of = |pattern: &Pattern| {
            let pattern = *pattern;
            let series = |stack: &Stack| Series {
                kind,
                pattern,
                stack: *stack,
            };
            stacks.iter().map(series).collect::<Vec<_>>()
        };
        patterns.iter().flat_map(of).collect()
    }

    /// Windows whose price is found.
    fn price_windows(&self) -> Result<Vec<u64>> {
        let windows = match &self.windows {
            Some(told) if told[..] == [0] => Vec::new(),
            Some(told) => told.clone(),
            None if self.vms == Some(0) => Vec::new(),
            None if self.quick => vec![512 * MIB],
            None => [128, 256, 512].map(|mib| mib * MIB).to_vec(),
        };
        let good = |bytes: &u64| *bytes > 0 && bytes.is_multiple_of(2 * MIB);
        ensure!(
            windows.iter().all(good),
            "--windows: multiples of 2M, or 0 alone"
        );
        Ok(windows)
    }

    fn parent(&self) -> Result<PathBuf> {
        match &self.dir {
            Some(directory) => Ok(directory.clone()),
            None => {
                let here = std::env::current_dir().context("find the current directory")?;
                Ok(here.join("target"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn plan(words: &[&str], available: u64) -> Result<Plan> {
        let words = std::iter::once(&"density").chain(words);
        Cli::try_parse_from(words)?.args.plan(Room::of(available))
    }

    #[test]
    fn a_quick_plan_has_the_goals_figures() -> Result<()> {
        let plan = plan(&["--quick"], 18 << 30)?;
        let has = |kind, stack, count| {
            plan.lines.iter().any(|line| {
                line.series.kind == kind
                    && line.series.stack == stack
                    && line.series.pattern == Pattern::Everything
                    && line.counts.contains(&count)
            })
        };
        assert!(has(Kind::Userspace, Stack::Dax, 16));
        assert!(has(Kind::Vms, Stack::Dax, 2) && has(Kind::Vms, Stack::Plain, 2));
        assert_eq!(plan.windows, [512 * MIB]);
        Ok(())
    }

    #[test]
    fn what_was_named_is_refused_and_what_was_not_is_cut() -> Result<()> {
        let little = 8 << 30;
        let refused = plan(&["--guests", "1,16", "--vms", "0"], little).err();
        let told = format!("{:#}", refused.expect("17 GiB of copies"));
        assert!(
            told.contains("16 guests") && told.contains("dax=never"),
            "{told}"
        );
        assert!(plan(&["--vms", "16"], little).is_err());
        let cut = plan(&["--vms", "0"], little)?;
        assert!(
            cut.said
                .iter()
                .any(|said| said.contains("left out 4, 8, 16, 32, 64"))
        );
        let dax = plan(
            &["--guests", "1,16", "--vms", "0", "--stack", "dax"],
            little,
        )?;
        assert_eq!(dax.lines.len(), 3);
        assert!(plan(&["--guests", "0", "--vms", "0"], little).is_err());
        for words in [
            ["--guests", "4,2"],
            ["--guests", "0,1"],
            ["--bytes", "100000"],
        ] {
            assert!(plan(&words, little).is_err(), "{words:?}");
        }
        Ok(())
    }
}
