//! `inodes`: what it costs a daemon that its guest knows very many inodes.
//!
//! | file | owns |
//! | --- | --- |
//! | `forest` | the files, and picks of them |
//! | `watched` | memory, descriptors and processor time of the daemon |
//!
//! Law: no figure unless the daemon says that it knows as many inodes as it
//! should, and had fewer descriptors than it was allowed all the time.

mod forest;
mod watched;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::cleanup::Scratch;
use crate::daemon::{self, Dax, Share};
use crate::figures::{Figure, Goal, Report, table};
use crate::machine::{COMMIT, Machine, Versions};
use crate::stats::{Paired, median};
use forest::Forest;
use watched::{Cost, Watched};

/// Inodes to compare with.
const FEW: usize = 1000;
const REPETITIONS: u64 = 5;
const ALLOWED_BYTES: f64 = 256.0;

/// Measure a guest that knows a million inodes, with 1,024 descriptors
///
/// Makes that many files, has a guest list them all with attributes, so that
/// it knows them, and looks names up at random among the first thousand and
/// among all. Costs are processor time of the daemon; what the host's file
/// system takes longer over more files, as a process sees it that makes the
/// same system call for the same names, is taken off. Exits with failure when
/// something could not be measured.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many inodes
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(2000..))]
    count: u32,
    /// Descriptors that the daemon may have
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(256..))]
    descriptors: u64,
    /// Lookups to measure, each time
    #[arg(long, default_value_t = 40_000, value_parser = clap::value_parser!(u32).range(1000..))]
    lookups: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Where to make the files; by default target/ below the current directory
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The daemon's binary; by default daxwindowd beside this one
    #[arg(long)]
    daemon: Option<PathBuf>,
}

/// Measures and prints; whether every goal was kept.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let binary = daemon::find(args.daemon.as_deref())?;
    let parent = match &args.dir {
        Some(dir) => dir.clone(),
        None => PathBuf::from("target"),
    };
    let place = Scratch::below(&parent)?;
    let began = Instant::now();
    let forest = Forest::grow(place.path(), args.count as usize)?;
    tracing::info!("{} files made in {:?}", args.count, began.elapsed());
    // The daemon inherits it, and may not raise it.
    let limits = Rlimit {
        current: Some(args.descriptors),
        maximum: Some(args.descriptors),
    };
    setrlimit(Resource::Nofile, limits).context("limit the number of descriptors")?;
    let report = Report {
        command: "inodes",
        figures: measure(&binary, &forest, args)?,
        machine: Machine::detect(place.path()),
        versions: Versions {
            daxwindow_bench: env!("CARGO_PKG_VERSION").into(),
            daxwindowd: daemon::version(&binary),
        },
        commit: COMMIT,
    };
    if args.json {
        println!("{}", report.to_json()?);
    } else {
        println!("{}", table::figures(&report.figures));
    }
    Ok(report
        .figures
        .iter()
        .all(|figure| figure.met != Some(false)))
}

fn measure(binary: &Path, forest: &Forest, args: &Args) -> Result<Vec<Figure>> {
    let share = Share::readonly(forest.root(), Dax::Never, 0);
    let status = Scratch::for_sockets()?;
    let watched = Watched::start(
        binary,
        &share,
        &status.path().join("status"),
        args.descriptors,
    )?;
    let session = watched.attach()?;

    let few = 0..FEW;
    for number in few.clone() {
        forest.look_up(&session, number)?;
    }
    let few_costs = (0..REPETITIONS)
        .map(|seed| watched.look_up(&session, forest, &few, args.lookups as usize, seed))
        .collect::<Result<Vec<_>>>()?;

    // What the first requests of a kind take is not the inodes'.
    let before = watched.memory()?;
    let began = Instant::now();
    let known = forest.learn(&session)?;
    let directories = forest.enter(&session)?;
    let listing = began.elapsed();
    watched.expect_inodes(args.count as u64 + forest.directories() as u64)?;
    let full = watched.memory()?;
    let said = watched.status()?;
    let all = forest.all();
    let many_costs = (0..REPETITIONS)
        .map(|seed| watched.look_up(&session, forest, &all, args.lookups as usize, seed))
        .collect::<Result<Vec<_>>>()?;
    let descriptors = watched.descriptors()?;

    for id in known.iter().chain(&directories) {
        session.forget(*id, u64::MAX);
    }
    watched.expect_inodes(0)?;
    let after = watched.memory()?;

    let mut lookups = Paired::default();
    for (few, many) in few_costs.iter().zip(&many_costs) {
        lookups.push(
            many.daemon_ns - (many.syscall_ns - few.syscall_ns),
            few.daemon_ns,
        );
    }
    let count = f64::from(args.count);
    let mut memory = Paired::default();
    memory.push((full - before) / (count - FEW as f64), ALLOWED_BYTES);
    let mut returned = Paired::default();
    returned.push(after - before, full - before);
    let mean = |of: fn(&Cost) -> f64, costs: &[Cost]| {
        median(&costs.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    Ok(vec![
        Figure::paired(
            "lookup_cost",
            "processor time of the daemon, lookup among all inodes without what the file system takes longer / among a thousand",
            "ns",
            Some(Goal::AtMost(1.2)),
            &lookups,
        )
        .with("many_ns", mean(|cost| cost.daemon_ns, &many_costs))
        .with("statx_many_ns", mean(|cost| cost.syscall_ns, &many_costs))
        .with("statx_few_ns", mean(|cost| cost.syscall_ns, &few_costs)),
        Figure::paired(
            "memory_per_inode",
            "memory of the daemon, per inode, beyond what it had / 256 bytes",
            "B",
            Some(Goal::AtMost(1.0)),
            &memory,
        )
        .with("said_heap_bytes_per_inode", said.heap_bytes as f64 / count),
        Figure::paired(
            "memory_kept",
            "memory of the daemon after all were forgotten, beyond what it had / when all were known",
            "B",
            Some(Goal::AtMost(0.1)),
            &returned,
        ),
        Figure::plain("descriptors", "descriptors of the daemon, at most", "", descriptors as f64),
        Figure::plain(
            "listing",
            "READDIRPLUS of all, per inode",
            "ns",
            listing.as_nanos() as f64 / count,
        ),
    ])
}
