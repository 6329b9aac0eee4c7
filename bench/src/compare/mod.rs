//! `compare`: our daemon against another one, operation by operation, with
//! the same front end and without DAX.
//!
//! | file | owns |
//! | --- | --- |
//! | `contender` | who is compared, with which flags |
//! | `plan` | operations and loads |
//! | `operations` | what each operation does |
//! | `driver` | many of them in flight from one thread |
//! | `measure` | one measurement, and the proof that it is one |
//! | `contest` | everybody under one load, interleaved |
//! | `memory`, `usage` | what a daemon uses |
//! | `share` | the files |
//! | `summary`, `print` | figures with goals, tables, JSON |

mod contender;
mod contest;
mod driver;
mod measure;
mod memory;
mod operations;
mod plan;
mod print;
mod share;
mod summary;
mod usage;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cleanup::{self, Scratch};
use crate::daemon;
use crate::figures::{Report, table};
use crate::machine::{COMMIT, Machine, Versions};
use crate::placement::Placement;
use contender::{Contender, Peers};
use contest::{Outcome, Setting, hold};
use measure::{Load, Times};
use memory::Memory;
use print::{Comparison, Row};
use share::Files;

/// How long one load may take with all contenders.
const LIMIT: Duration = Duration::from_secs(180);
/// What `--only` calls the memory measurement.
const MEMORY: &str = "memory";

/// Measure our daemon against another, operation by operation, without DAX
///
/// Both serve the same directory to the same front end. In each repetition
/// everybody is measured once, in random order; ratios are medians over the
/// repetitions of such pairs, spread is (max - min) / median of the ratios.
/// The peer counts, for each figure, with the flags that are best for it.
/// Exits with failure when something could not be measured.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whom to compare with: virtiofsd (from Debian's packages, fetched if
    /// need be), or the path of a virtiofsd or another daxwindowd
    #[arg(long)]
    peer: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Fewer files, three short repetitions instead of seven
    #[arg(long)]
    quick: bool,
    /// Measure only loads whose name contains this (memory: peak memory);
    /// repeatable
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Repetitions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    repetitions: Option<u16>,
    /// Everything on one processor: what is left is the cost of the software,
    /// and repeats on a machine with other work to do
    #[arg(long)]
    one_cpu: bool,
    /// Where to put the files; by default target/ below the current directory
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Our daemon's binary; by default daxwindowd beside this one
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// A flag for our daemon; repeatable
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    daemon_flag: Vec<String>,
    /// Try also those flags of virtiofsd that were found to make nothing
    /// faster
    #[arg(long)]
    all_flags: bool,
    /// Fetch nothing
    #[arg(long)]
    offline: bool,
}

/// Compares; true when everything was measured.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let binary = daemon::find(args.daemon.as_deref())?;
    let peers = Contender::peers(&args.peer, args.offline, args.all_flags)?;
    let parent = match &args.dir {
        Some(directory) => directory.clone(),
        None => std::env::current_dir()
            .context("find the current directory")?
            .join("target"),
    };
    let scratch = Scratch::below(&parent)?;
    let (entries, bytes) = match args.quick {
        true => (2_000, 16 << 20),
        false => (10_000, 64 << 20),
    };
    say(args, &format!("writing {} test files", 2 * entries));
    let setting = Setting {
        files: Files::write(&scratch.path().join("share"), entries, bytes)?,
        ours: Contender::ours(binary.clone(), &args.daemon_flag),
        peers: peers.contenders.clone(),
        repetitions: args
            .repetitions
            .map_or(args.default_repetitions(), usize::from),
        times: args.times(),
        placement: match args.one_cpu {
            true => Placement::OneCpu,
            false => Placement::Free,
        },
    };
    let (outcomes, memory, failures) = measure_all(args, &setting);
    let report = Report {
        command: "compare",
        figures: summary::summary(&plan::loads(), &outcomes),
        machine: Machine::detect(scratch.path()),
        versions: Versions {
            daxwindow_bench: env!("CARGO_PKG_VERSION").into(),
            daxwindowd: daemon::version(&binary),
        },
        commit: COMMIT,
    };
    print(args, &report, &peers, (&outcomes, &memory, &failures))
}

impl Args {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.contains(only.as_str()))
    }

    fn default_repetitions(&self) -> usize {
        if self.quick { 3 } else { 7 }
    }

    fn times(&self) -> Times {
        let measure = Duration::from_millis(if self.quick { 40 } else { 200 });
        Times {
            warm_up: measure / 4,
            measure,
        }
    }
}

type Failures = Vec<(String, String)>;

fn measure_all(args: &Args, setting: &Setting) -> (Vec<Outcome>, Vec<Memory>, Failures) {
    let (mut outcomes, mut failures) = (Vec::new(), Vec::new());
    let wanted = |load: &Load| args.wants(&load.name());
    for load in plan::loads().into_iter().filter(wanted) {
        let held = timed(args, &load.name(), || {
            let setting = setting.clone();
            cleanup::bounded(LIMIT, move || {
                setting.placement.apply()?;
                hold(&setting, load)
            })
        });
        match held {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => failures.push((load.name(), format!("{error:#}"))),
        }
    }
    let mut memory = Vec::new();
    if args.wants(MEMORY) {
        let measured = timed(args, MEMORY, || {
            let setting = setting.clone();
            cleanup::bounded(LIMIT, move || {
                setting.placement.apply()?;
                memory::memory(&setting)
            })
        });
        match measured {
            Ok(measured) => memory = measured,
            Err(error) => failures.push((MEMORY.into(), format!("{error:#}"))),
        }
    }
    (outcomes, memory, failures)
}

fn timed<T>(args: &Args, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let done = work();
    if done.is_err() {
        // What hangs still holds its daemons.
        cleanup::end_daemons();
    }
    let seconds = table::short(started.elapsed().as_secs_f64());
    say(args, &format!("{name} took {seconds} s"));
    done
}

fn say(args: &Args, what: &str) {
    if !args.json {
        eprintln!("{what}");
    }
}

fn print(
    args: &Args,
    report: &Report,
    peers: &Peers,
    (outcomes, memory, failures): (&[Outcome], &[Memory], &[(String, String)]),
) -> Result<bool> {
    let rows: Vec<Row> = outcomes.iter().filter_map(Row::of).collect();
    let comparison = Comparison {
        report,
        peer: &peers.version,
        one_cpu: args.one_cpu,
        loads: &rows,
        memory,
        failures,
    };
    match args.json {
        true => println!("{}", comparison.to_json()?),
        false => comparison.print(),
    }
    Ok(failures.is_empty())
}
