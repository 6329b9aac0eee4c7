//! `inodes`: what it costs a daemon that its guest knows very many inodes.
//!
//! | file | owns |
//! | --- | --- |
//! | `cost` | what a lookup takes, and which part is the host's |
//! | `forest` | the files, and picks of them |
//! | `watched` | memory, descriptors and processor time of the daemon |
//!
//! Law: no figure unless the daemon says that it knows as many inodes as it
//! should, and had fewer descriptors than it was allowed all the time.

mod cost;
mod forest;
mod watched;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use daxwindow_vm::cleanup::Scratch;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::daemon::{self, Dax, Share};
use crate::figures::{Figure, Goal, Report, table};
use crate::machine::{COMMIT, Machine, Versions};
use crate::placement::Placement;
use crate::stats::Paired;
use forest::Forest;
use watched::Watched;

/// Inodes to compare with.
const FEW: usize = 1000;
const REPETITIONS: u64 = 11;
const SETTLED_AFTER: Duration = Duration::from_secs(3);
const ALLOWED_BYTES: f64 = 256.0;

/// Measure a guest that knows a million inodes, with 1,024 descriptors
///
/// Makes that many files, has a guest list them all with attributes, so that
/// it knows them, and looks names up at random among all of them, in turn with
/// a second daemon whose guest knows a thousand, sixteen at a time and all on
/// one processor. Costs are processor time of the daemon. What the host's file
/// system takes longer over more files, as a process sees it that makes the
/// bare system call for other such names, is shown beside it, and taken off
/// for the goal. Exits with failure when
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
    // There nobody looks around for work while waiting, which would count.
    Placement::OneCpu.apply()?;
    // A daemon may look twice at what was made a moment ago.
    std::thread::sleep(SETTLED_AFTER);
    let share = Share::readonly(forest.root(), Dax::Never, 0);
    let status = Scratch::for_sockets()?;
    let start = |name: &str| {
        let status = status.path().join(name);
        Watched::start(binary, &share, &status, args.descriptors)
    };
    // A daemon whose guest knows few, beside it all the time.
    let beside = start("few")?;
    let beside_session = beside.attach()?;
    let few = 0..FEW;
    for number in few.clone() {
        forest.look_up(&beside_session, number)?;
    }
    let watched = start("all")?;
    let session = watched.attach()?;
    for number in few.clone() {
        forest.look_up(&session, number)?;
    }
    let lookups = args.lookups as usize;
    watched.look_up(&session, forest, &few, lookups, REPETITIONS)?;

    // What the first requests of a kind take is not the inodes'.
    let before = watched.memory()?;
    let began = Instant::now();
    let known = forest.learn(&session)?;
    let directories = forest.enter(&session)?;
    let listing = began.elapsed();
    watched.expect_inodes(args.count as u64 + forest.directories() as u64)?;
    let full = watched.memory()?;
    let said = watched.status()?;
    let mut costs = Vec::new();
    for seed in 0..REPETITIONS {
        let few = beside.look_up(&beside_session, forest, &few, lookups, seed)?;
        let all = watched.look_up(&session, forest, &forest.all(), lookups, seed)?;
        costs.push((few, all));
    }
    let descriptors = watched.descriptors()?;

    for id in known.iter().chain(&directories) {
        session.forget(*id, u64::MAX);
    }
    watched.expect_inodes(0)?;
    let after = watched.memory()?;

    let count = f64::from(args.count);
    let mut memory = Paired::default();
    memory.push((full - before) / (count - FEW as f64), ALLOWED_BYTES);
    let mut returned = Paired::default();
    returned.push(after - before, full - before);
    let mut figures = cost::figures(&costs);
    figures.extend([
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
    ]);
    Ok(figures)
}
