//! `micro`: the figures of the window, each with its denominator measured in
//! the same run, repetition by repetition.
//!
//! Law: every cell runs under a time limit and under the proof that the
//! window was, or was not, in use; a cell that fails either has no value.

mod cold;
mod growth;
mod parts;
mod pressure;
mod reads;
mod record;
mod requests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use daxwindow_vm::cleanup::{self, Scratch};

use crate::daemon;
use crate::figures::{Figure, Goal, Report, table};
use crate::files::TestFile;
use crate::machine::{COMMIT, Machine, Versions};
use crate::placement::Placement;

/// Measure the window's figures, each against its denominator from the same run
///
/// Prints value, denominator, ratio (median over the repetitions of the
/// paired ratios), spread ((max - min) / median of the ratios) and goal.
/// Exits with failure when a figure could not be measured.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// A quarter of the bytes and five repetitions instead of nine
    #[arg(long)]
    quick: bool,
    /// Where to put the test files; by default target/ below the current
    /// directory
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The daemon's binary; by default daxwindowd beside this one
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// Measure only figures whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Write each figure into this results directory when it is finished, for
    /// `report`; what is there already is not measured again
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Drop the results that --out has
    #[arg(long)]
    fresh: bool,
}

/// What every cell needs. Cheap to clone: a cell runs on its own thread.
#[derive(Clone)]
struct Bench {
    binary: PathBuf,
    /// Holds `big`, a file of `bytes`.
    directory: PathBuf,
    big: Arc<TestFile>,
    bytes: u64,
    repetitions: usize,
    quick: bool,
}

/// A figure before it is measured.
struct Cell {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    goal: Goal,
    placement: Placement,
    limit: Duration,
    measure: fn(&Bench, &Cell) -> Result<Figure>,
}

const CELLS: [Cell; 12] = [
    Cell {
        name: "hot_read_at",
        what: "hot read_at, 1 MiB sequential / memcpy from host mmap",
        unit: "GB/s",
        goal: Goal::AtLeast(0.95),
        placement: Placement::Free,
        limit: Duration::from_secs(120),
        measure: reads::hot_read_at,
    },
    Cell {
        name: "hot_view_touch",
        what: "hot random 4 KiB-page touches, view / host mmap, time",
        unit: "ns",
        goal: Goal::AtMost(1.05),
        placement: Placement::Free,
        limit: Duration::from_secs(120),
        measure: reads::hot_view_touch,
    },
    Cell {
        name: "first_pass_view",
        what: "first pass, cached file, view / memcpy from a fresh host mmap",
        unit: "GB/s",
        goal: Goal::AtLeast(0.85),
        placement: Placement::Free,
        limit: Duration::from_secs(120),
        measure: reads::first_pass_view,
    },
    Cell {
        name: "cold_range",
        what: "cold range, fault to first byte, p50 / sum of its parts",
        unit: "us",
        goal: Goal::AtMost(1.6),
        placement: Placement::Free,
        limit: Duration::from_secs(120),
        measure: cold::cold_range,
    },
    Cell {
        name: "cold_range_one_cpu",
        what: "cold range, fault to first byte, p50 / sum of its parts; on one CPU",
        unit: "us",
        goal: Goal::AtMost(1.6),
        placement: Placement::OneCpu,
        limit: Duration::from_secs(120),
        measure: cold::cold_range,
    },
    Cell {
        name: "fuse_read_1m",
        what: "FUSE_READ 1 MiB hot / pread, throughput",
        unit: "GB/s",
        goal: Goal::AtLeast(0.6),
        placement: Placement::Free,
        limit: Duration::from_secs(120),
        measure: requests::fuse_read_1m,
    },
    Cell {
        name: "fuse_read_4k",
        what: "FUSE_READ 4 KiB p50 / (pread 4 KiB + queue round trip)",
        unit: "us",
        goal: Goal::AtMost(1.5),
        placement: Placement::Free,
        limit: Duration::from_secs(120),
        measure: requests::fuse_read_4k,
    },
    Cell {
        name: "fuse_read_4k_one_cpu",
        what: "FUSE_READ 4 KiB p50 / (pread 4 KiB + queue round trip); on one CPU",
        unit: "us",
        goal: Goal::AtMost(1.5),
        placement: Placement::OneCpu,
        limit: Duration::from_secs(120),
        measure: requests::fuse_read_4k,
    },
    Cell {
        name: "pressure",
        what: "4 threads, random 4 KiB read_at through a 16 MiB window / by FUSE_READ",
        unit: "reads/s",
        goal: Goal::AtLeast(0.8),
        placement: Placement::Free,
        limit: Duration::from_secs(180),
        measure: pressure::random,
    },
    Cell {
        name: "pressure_sequential",
        what: "sequential 1 MiB read_at through a 16 MiB window / by FUSE_READ",
        unit: "GB/s",
        goal: Goal::AtLeast(0.8),
        placement: Placement::Free,
        limit: Duration::from_secs(180),
        measure: pressure::sequential,
    },
    Cell {
        name: "mapping_growth",
        what: "time per mapping, 4,096 live ranges / 16",
        unit: "us",
        goal: Goal::AtMost(1.3),
        placement: Placement::Free,
        limit: Duration::from_secs(180),
        measure: growth::mapping_growth,
    },
    Cell {
        name: "mapping_growth_one_cpu",
        what: "time per mapping, 4,096 live ranges / 16; on one CPU",
        unit: "us",
        goal: Goal::AtMost(1.3),
        placement: Placement::OneCpu,
        limit: Duration::from_secs(180),
        measure: growth::mapping_growth,
    },
];

impl Cell {
    fn paired(&self, pairs: &crate::stats::Paired) -> Figure {
        Figure::paired(self.name, self.what, self.unit, Some(self.goal), pairs)
    }

    fn run(&'static self, bench: &Bench) -> Figure {
        let cell_bench = bench.clone();
        let measured = cleanup::bounded(self.limit, move || {
            self.placement.apply()?;
            (self.measure)(&cell_bench, self)
        });
        measured.unwrap_or_else(|e| {
            // A cell that hangs still holds its daemons.
            cleanup::end_daemons();
            Figure::failed(
                self.name,
                self.what,
                self.unit,
                Some(self.goal),
                format!("{e:#}"),
            )
        })
    }
}

/// Measures; true when every figure has a value.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let binary = daemon::find(args.daemon.as_deref())?;
    let parent = match &args.dir {
        Some(directory) => directory.clone(),
        None => std::env::current_dir()
            .context("find the current directory")?
            .join("target"),
    };
    let scratch = Scratch::below(&parent)?;
    let bytes: u64 = if args.quick { 256 << 20 } else { 1 << 30 };
    let shared = scratch.path().join("share");
    std::fs::create_dir(&shared).with_context(|| format!("make {}", shared.display()))?;
    say(
        args,
        &format!("writing {} of test files", table::bytes(bytes)),
    );
    let bench = Bench {
        binary,
        big: Arc::new(TestFile::write(&shared.join("big"), bytes, 1)?),
        directory: shared,
        bytes,
        repetitions: if args.quick { 5 } else { 9 },
        quick: args.quick,
    };
    let wanted = |cell: &&Cell| {
        args.only
            .as_ref()
            .is_none_or(|o| cell.name.contains(o.as_str()))
    };
    let wanted: Vec<&'static Cell> = CELLS.iter().filter(wanted).collect();
    let mut run = record::open(args, &bench, wanted.len())?;
    let mut figures = Vec::new();
    for cell in wanted {
        if run.as_ref().is_some_and(|run| record::has(run, cell)) {
            continue;
        }
        let started = Instant::now();
        let figure = cell.run(&bench);
        if let Some(run) = &mut run {
            record::record(run, &figure, cell.goal)?;
        }
        figures.push(figure);
        if run.is_none() {
            let took = started.elapsed().as_secs_f64();
            say(args, &format!("{} took {took:.1} s", cell.name));
        }
    }
    print(args, &bench, figures)
}

fn say(args: &Args, what: &str) {
    if !args.json {
        eprintln!("{what}");
    }
}

fn print(args: &Args, bench: &Bench, figures: Vec<Figure>) -> Result<bool> {
    let report = Report {
        command: "micro",
        figures,
        machine: Machine::detect(&bench.directory),
        versions: Versions {
            daxwindow_bench: env!("CARGO_PKG_VERSION").into(),
            daxwindowd: daemon::version(&bench.binary),
        },
        commit: COMMIT,
    };
    if args.json {
        println!("{}", report.to_json()?);
    } else {
        println!("{}\n{}", report.machine, table::figures(&report.figures));
        for figure in &report.figures {
            print_details(figure);
        }
    }
    Ok(!report.has_failures())
}

fn print_details(figure: &Figure) {
    if let Some(error) = &figure.error {
        println!("{}: {error}", figure.name);
    }
    if !figure.detail.is_empty() {
        let part = |(name, value): (&String, &f64)| format!("{name} {}", table::short(*value));
        let parts: Vec<_> = figure.detail.iter().map(part).collect();
        println!("{}: {}", figure.name, parts.join(", "));
    }
}

/// How long `work` took, in seconds.
fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

/// Runs the two in turn, swapping who goes first, so that neither profits
/// from its place.
fn interleaved<T>(
    repetition: usize,
    one: impl FnOnce() -> Result<T>,
    other: impl FnOnce() -> Result<T>,
) -> Result<(T, T)> {
    if repetition.is_multiple_of(2) {
        let first = one()?;
        Ok((first, other()?))
    } else {
        let second = other()?;
        Ok((one()?, second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_cell_has_a_limit() {
        let names: std::collections::BTreeSet<_> = CELLS.iter().map(|c| c.name).collect();
        assert_eq!(names.len(), CELLS.len());
        assert!(CELLS.iter().all(|c| c.limit >= Duration::from_secs(1)));
    }

    #[test]
    fn the_order_alternates_and_the_results_do_not() -> Result<()> {
        let order = std::cell::RefCell::new(Vec::new());
        let note = |n| {
            order.borrow_mut().push(n);
            Ok(n)
        };
        for repetition in 0..2 {
            let pair = interleaved(repetition, || note(1), || note(2))?;
            assert_eq!(pair, (1, 2));
        }
        assert_eq!(*order.borrow(), [1, 2, 2, 1]);
        Ok(())
    }
}
