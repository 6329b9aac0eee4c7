//! `compare`: our daemon against others, operation by operation, with the
//! same front end: requests without DAX, and against those that have a window
//! also the window.
//!
//! | file | owns |
//! | --- | --- |
//! | `contender`, `flags` | who is compared, with which flags |
//! | `plan` | operations and loads |
//! | `operations` | what each operation does |
//! | `driver` | many of them in flight from one thread |
//! | `measure`, `dax` | one measurement, and the proof that it is one |
//! | `contest` | everybody under one load, interleaved |
//! | `floor` | what an operation takes at least, whoever serves it |
//! | `memory`, `usage` | what a daemon uses |
//! | `share` | the files |
//! | `record` | contests on disk |
//! | `summary`, `print` | figures with goals, tables, JSON |

mod contender;
mod contest;
mod dax;
mod driver;
mod flags;
mod floor;
mod measure;
mod memory;
mod operations;
mod plan;
mod print;
mod record;
mod share;
mod summary;
mod usage;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use daxwindow_vm::cleanup::{self, Scratch};

use crate::daemon;
use crate::figures::Report;
use crate::machine::{COMMIT, Machine, Versions};
use crate::placement::Placement;
use crate::runs::{self, Header, Run};
use contender::{Contender, FrontEnd};
use contest::{Setting, hold};
use measure::{Load, Times};
use memory::Memory;
use print::{Comparison, Row};
use record::Results;
use share::Files;

/// How long one load may take with all contenders.
const LIMIT: Duration = Duration::from_secs(180);
/// What `--only` calls the memory measurement.
const MEMORY: &str = "memory";

/// Measure our daemon against others, operation by operation
///
/// All serve the same directory to the same front end: requests without DAX,
/// and those that have a window also with it. In each repetition everybody is
/// measured once, in random order; ratios are medians over the repetitions of
/// such pairs, spread is (max - min) / median of the ratios. A peer counts,
/// for each figure, with the flags that are best for it. "At best" is the ratio
/// that no daemon can better on this machine, by the host's system calls and
/// the front end's own time. Each finished load
/// is written down, and a run that was interrupted goes on. Exits with failure
/// when something could not be measured.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whom to compare with: virtiofsd (from Debian's packages, fetched if
    /// need be), alioth (from the crates registry, built if need be), or the
    /// path of one of them or of another daxwindowd; repeatable
    #[arg(long, required = true)]
    peer: Vec<PathBuf>,
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
    /// Try virtiofsd with six further flags
    #[arg(long)]
    all_flags: bool,
    /// Fetch nothing
    #[arg(long)]
    offline: bool,
    /// Results directory; a run that was interrupted goes on there
    #[arg(long, value_name = "DIR", default_value = runs::DIRECTORY)]
    out: PathBuf,
    /// Drop earlier results of this command in the results directory
    #[arg(long)]
    fresh: bool,
}

/// Compares; true when everything was measured.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let binary = daemon::find(args.daemon.as_deref())?;
    let (peers, versions) = args.peers()?;
    let parent = match &args.dir {
        Some(directory) => directory.clone(),
        None => std::env::current_dir()
            .context("find the current directory")?
            .join("target"),
    };
    let scratch = Scratch::below(&parent)?;
    let report = Report {
        command: "compare",
        figures: Vec::new(),
        machine: Machine::detect(scratch.path()),
        versions: Versions {
            daxwindow_bench: env!("CARGO_PKG_VERSION").into(),
            daxwindowd: daemon::version(&binary),
        },
        commit: COMMIT,
    };
    let mut run = Run::open(&args.out, args.header(&report, &versions), args.fresh)?;
    let windows = peers.iter().any(|peer| peer.dialect.has_window());
    let (entries, bytes, dax_bytes) = args.sizes(windows);
    run.say(&format!("writing {} test files", 2 * entries));
    let setting = Setting {
        files: Files::write(&scratch.path().join("share"), entries, bytes, dax_bytes)?,
        ours: Contender::ours(binary, &args.daemon_flag),
        front_end: FrontEnd {
            separate_headers: peers.iter().any(|peer| peer.dialect.is_partial()),
        },
        peers,
        repetitions: args.repetitions(),
        times: args.times(),
        placement: match args.one_cpu {
            true => Placement::OneCpu,
            false => Placement::Free,
        },
    };
    let loads: Vec<Load> = plan::loads()
        .into_iter()
        .filter(|load| args.wants(&load.name()) && setting.contenders(*load).len() > 1)
        .collect();
    let planned = loads.iter().flat_map(|load| record::cells(&setting, *load));
    run.plan_of(&planned.collect::<Vec<_>>());
    let mut results = Results::default();
    for &load in &loads {
        contest(&mut run, &setting, load, &mut results)?;
    }
    let memory = args.measure_memory(&setting, &mut results);
    let sums = summary::summary(&plan::loads(), &results.outcomes);
    record::record_sums(&mut run, &sums)?;
    record::record_memory(&mut run, &memory)?;
    let report = Report {
        figures: sums.iter().map(summary::Summed::figure).collect(),
        ..report
    };
    drop(run);
    print(args, &report, &versions.join(", "), &results, &memory)
}

impl Args {
    /// The contenders beside ours, and the peers' versions.
    fn peers(&self) -> Result<(Vec<Contender>, Vec<String>)> {
        let (mut contenders, mut versions) = (Vec::new(), Vec::new());
        for told in &self.peer {
            let peers = Contender::peers(told, self.offline, self.all_flags)?;
            contenders.extend(peers.contenders);
            versions.push(peers.version);
        }
        Ok((contenders, versions))
    }

    fn header(&self, report: &Report, peers: &[String]) -> Header {
        let study = if self.one_cpu {
            "compare-one-cpu"
        } else {
            "compare"
        };
        let mut header = Header::new(study, report.machine.clone());
        header.option("repetitions", self.repetitions());
        header.option("quick", self.quick);
        header.option("all_flags", self.all_flags);
        header.option("daemon_flags", self.daemon_flag.join(" "));
        header.version("daxwindowd", &report.versions.daxwindowd);
        for version in peers {
            let (name, number) = version.split_once(' ').unwrap_or((version, ""));
            let name = match name {
                "daxwindowd" => "daxwindowd, the peer",
                name => name,
            };
            header.version(name, number);
        }
        header
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.contains(only.as_str()))
    }

    fn repetitions(&self) -> usize {
        let default = if self.quick { 3 } else { 7 };
        self.repetitions.map_or(default, usize::from)
    }

    /// Entries of a directory, bytes of a file, bytes of the mapped one.
    fn sizes(&self, windows: bool) -> (usize, u64, u64) {
        let (entries, bytes) = match self.quick {
            true => (2_000, 16 << 20),
            false => (10_000, 64 << 20),
        };
        (entries, bytes, if windows { 4 * bytes } else { 0 })
    }

    fn times(&self) -> Times {
        let measure = Duration::from_millis(if self.quick { 40 } else { 200 });
        Times {
            warm_up: measure / 4,
            measure,
        }
    }

    fn measure_memory(&self, setting: &Setting, results: &mut Results) -> Vec<Memory> {
        if !self.wants(MEMORY) {
            return Vec::new();
        }
        let measured = bounded(setting, |setting| memory::memory(&setting));
        measured.unwrap_or_else(|error| {
            results.failures.push((MEMORY.into(), format!("{error:#}")));
            Vec::new()
        })
    }
}

/// One load with all contenders, unless an earlier run has it.
fn contest(run: &mut Run, setting: &Setting, load: Load, results: &mut Results) -> Result<()> {
    if let Some(held) = record::recall(run, setting, load) {
        results.add(setting, load, &held);
        return Ok(());
    }
    match bounded(setting, move |setting| hold(&setting, load)) {
        Ok(held) => {
            record::record(run, setting, load, &held)?;
            results.add(setting, load, &held);
        }
        Err(error) => {
            let told = format!("{error:#}");
            record::record_failure(run, setting, load, &told)?;
            results.failures.push((load.name(), told));
        }
    }
    Ok(())
}

fn bounded<T: Send + 'static>(
    setting: &Setting,
    work: impl FnOnce(Setting) -> Result<T> + Send + 'static,
) -> Result<T> {
    let setting = setting.clone();
    let done = cleanup::bounded(LIMIT, move || {
        setting.placement.apply()?;
        work(setting)
    });
    if done.is_err() {
        // What hangs still holds its daemons.
        cleanup::end_daemons();
    }
    done
}

fn print(
    args: &Args,
    report: &Report,
    peers: &str,
    results: &Results,
    memory: &[Memory],
) -> Result<bool> {
    let rows: Vec<Row> = results.outcomes.iter().flat_map(Row::of).collect();
    let comparison = Comparison {
        report,
        peer: peers,
        one_cpu: args.one_cpu,
        loads: &rows,
        memory,
        failures: &results.failures,
        not_served: &results.not_served,
    };
    match args.json {
        true => println!("{}", comparison.to_json()?),
        false => comparison.print(),
    }
    Ok(results.failures.is_empty())
}
