//! `vm mapping-cost`: what a mapping costs on this VMM as more of them live.
//!
//! For each way, in one piece and range by range with the daemon's settings of
//! `--memory-slots`, one guest touches range after range of
//! a sparse file, is timed at some numbers of live ranges, and unmounts with
//! all of them live; others then read the file through windows that it does
//! not fit in. The guest's times are those of a fault in a mapped file; the
//! daemon's are from SETUPMAPPING to its reply, by the difference of two
//! status documents.
//!
//! Law: a point counts only if the daemon set up as many ranges as the guest
//! touched, and has as many live.

mod cells;
mod guest;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use daxwindow_vm::AccelChoice;
use daxwindow_vm::options::parse_window;
use serde::Serialize;

use crate::figures::table::{bytes, short, table};
use crate::machine::Machine;
use crate::runs::{Cell, Run};
use guest::Scene;

/// Measures what mapping a range costs in a guest, with few ranges live and
/// with many, what an unmount costs, and mappings a second in a window that is
/// too small.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Ways to compare: in one piece, range by range, and the same with
    /// --memory-slots off
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "whole,ranges,ranges-without-slots"
    )]
    way: Vec<Way>,

    /// Numbers of live ranges at which a first touch is timed; a guest keeps a
    /// fifth of the window's ranges free, so at most 400 with 1G
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "16,128,192,400"
    )]
    live: Vec<u64>,

    /// Window for that, offered whole whatever its slots
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_window)]
    window: u64,

    /// Windows to read a file of 1G through
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64M,128M,256M,512M",
        value_parser = parse_window)]
    pressure: Vec<u64>,

    /// The daemon
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,

    /// What runs the guest's code
    #[arg(long, value_name = "KIND", default_value = "auto")]
    accel: AccelChoice,

    /// Only the smallest window and the largest below 512M to read through
    #[arg(long)]
    quick: bool,

    /// Write what each guest found into this results directory when it is
    /// found, for `report`; what is there already is not measured again
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Drop the results that --out has
    #[arg(long, requires = "out")]
    fresh: bool,

    /// One JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// How a window is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    /// In one piece
    Whole,
    /// Each range by QEMU
    Ranges,
    /// The same, and regions are not announced one by one
    RangesWithoutSlots,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Whole => "in one piece",
            Way::Ranges => "by ranges",
            Way::RangesWithoutSlots => "by ranges without slots",
        }
    }
}

/// Everything measured.
#[derive(Debug, Serialize)]
struct Outcome {
    machine: Machine,
    commit: &'static str,
    accelerator: &'static str,
    guest_kernel: String,
    settings: Vec<Setting>,
}

/// One way.
#[derive(Debug, Serialize)]
struct Setting {
    way: Way,
    points: Vec<Point>,
    unmount: Option<Unmount>,
    pressure: Vec<Pressure>,
}

/// A first touch with so many ranges live.
#[derive(Debug, Serialize)]
struct Point {
    live: u64,
    samples: usize,
    guest_p50_us: f64,
    guest_p90_us: f64,
    daemon_p50_us: f64,
    daemon_p90_us: f64,
}

/// The end of a mount.
#[derive(Debug, Serialize)]
struct Unmount {
    live: u64,
    seconds: f64,
}

/// A file read through a window that it does not fit in.
#[derive(Debug, Serialize)]
struct Pressure {
    window_bytes: u64,
    mappings_per_second: f64,
    bytes_per_second: f64,
}

/// Measures and prints.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let scene = Scene::new(args)?;
    let mut outcome = Outcome {
        machine: Machine::detect(&scene.share()),
        commit: crate::machine::COMMIT,
        accelerator: "",
        guest_kernel: String::new(),
        settings: Vec::new(),
    };
    let mut run = open_run(args, &scene)?;
    for &way in &args.way {
        let mut setting = Setting {
            way,
            points: Vec::new(),
            unmount: None,
            pressure: Vec::new(),
        };
        let wants = |id: &str| !run.as_ref().is_some_and(|r| r.has(id, &cells::stack(way)));
        let many = wants(cells::UNMOUNT);
        let windows = args.windows().into_iter();
        let windows: Vec<u64> = windows.filter(|&w| wants(&cells::pressure_id(w))).collect();
        if many {
            let found = scene.boot(way, args.window).and_then(|guest| {
                (outcome.accelerator, outcome.guest_kernel) = guest.about();
                guest.with_many_ranges(&args.live)
            });
            let found = tell(&mut run, cells::UNMOUNT, way, found, |(points, unmount)| {
                let points = points.iter().flat_map(|p| cells::point(way, p));
                points.chain([cells::unmount(way, unmount)]).collect()
            })?;
            if let Some((points, unmount)) = found {
                (setting.points, setting.unmount) = (points, Some(unmount));
            }
        }
        for window in windows {
            let found = scene.boot(way, window).and_then(|guest| {
                (outcome.accelerator, outcome.guest_kernel) = guest.about();
                guest.with_a_small_window(window)
            });
            let id = cells::pressure_id(window);
            let cell = |found: &Pressure| vec![cells::pressure(way, found)];
            setting
                .pressure
                .extend(tell(&mut run, &id, way, found, cell)?);
        }
        outcome.settings.push(setting);
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&outcome)?),
        false => print(&outcome),
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn windows(&self) -> Vec<u64> {
        let mut windows = self.pressure.clone();
        if self.quick {
            let largest = windows.iter().copied().filter(|&w| w < 512 << 20).max();
            let smallest = windows.iter().copied().min();
            windows.retain(|&w| Some(w) == smallest || Some(w) == largest);
        }
        windows
    }
}

/// The results that `--out` asks for.
fn open_run(args: &Args, scene: &Scene<'_>) -> Result<Option<Run>> {
    let Some(directory) = &args.out else {
        return Ok(None);
    };
    let binary = crate::daemon::find(args.daemon.as_deref())?;
    let version = crate::daemon::version(&binary);
    let mut header = cells::header(&scene.share(), args.accel, &version)?;
    let ways: Vec<_> = args.way.iter().map(|way| way.name()).collect();
    header.option("way", ways.join(", "));
    header.option("live", format!("{:?}", args.live));
    header.option("window", args.window);
    header.option("pressure", format!("{:?}", args.windows()));
    let mut run = Run::open(directory, header, args.fresh)?;
    let each = args.live.len() * 2 + 1 + args.windows().len();
    run.plan(args.way.len() * each);
    Ok(Some(run))
}

/// Writes what a guest found, or why it found nothing. Without results to
/// write, a failure ends the whole.
fn tell<T>(
    run: &mut Option<Run>,
    id: &str,
    way: Way,
    found: Result<T>,
    cells_of: impl Fn(&T) -> Vec<Cell>,
) -> Result<Option<T>> {
    let Some(run) = run else {
        return found.map(Some);
    };
    match found {
        Ok(found) => {
            cells_of(&found)
                .into_iter()
                .try_for_each(|cell| run.record(cell))?;
            Ok(Some(found))
        }
        Err(error) => {
            run.record(cells::failed(id, way, &error))?;
            Ok(None)
        }
    }
}

fn print(outcome: &Outcome) {
    println!(
        "{}\nguest: Linux {}, {}; commit {}",
        outcome.machine, outcome.guest_kernel, outcome.accelerator, outcome.commit
    );
    let ms = |us: f64| format!("{} ms", short(us / 1e3));
    let mut points = table(&[
        "way, live ranges",
        "first touch p50",
        "p90",
        "of it the daemon p50",
        "p90",
    ]);
    let mut others = table(&["way", "measured", "value"]);
    for setting in &outcome.settings {
        let way = setting.way.name();
        for p in &setting.points {
            points.add_row([
                format!("{way}, {}", p.live),
                ms(p.guest_p50_us),
                ms(p.guest_p90_us),
                ms(p.daemon_p50_us),
                ms(p.daemon_p90_us),
            ]);
        }
        if let Some(unmount) = &setting.unmount {
            others.add_row([
                way.to_owned(),
                format!("unmount with {} ranges live", unmount.live),
                format!("{} s", short(unmount.seconds)),
            ]);
        }
        for p in &setting.pressure {
            others.add_row([
                way.to_owned(),
                format!("1G through a window of {}", bytes(p.window_bytes)),
                format!(
                    "{} mappings/s, {}/s",
                    short(p.mappings_per_second),
                    bytes(p.bytes_per_second as u64)
                ),
            ]);
        }
    }
    println!("{points}\n{others}");
}
