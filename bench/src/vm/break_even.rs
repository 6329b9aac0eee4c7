//! From which size a file gains by the window: whole files read through it
//! and by requests, in one guest, pass beside pass.
//!
//! Law: a time counts only if the guest's page cache stayed flat where the
//! window was to be used, and grew by the files where it was not.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use daxwindow_vm::cleanup::Scratch;
use daxwindow_vm::options::parse_window;
use daxwindow_vm::{AccelChoice, Dax, ShareOptions, Vm, VmOptions, preload_library};

use crate::figures::table;
use crate::stats::{Paired, Random};

/// Files of each size: enough for the guest's clock, and few enough that the
/// guest gives back no range while it reads them.
const SIZES: [(u64, usize); 7] = [
    (4 << 10, 64),
    (16 << 10, 64),
    (64 << 10, 64),
    (128 << 10, 64),
    (256 << 10, 64),
    (1 << 20, 32),
    (4 << 20, 16),
];
const WITHIN: Duration = Duration::from_secs(120);
const TAGS: [&str; 2] = ["dax", "requests"];

/// Measures from which size on files gain by the window: reads whole files of
/// seven sizes in a guest, for the first time and again, through the window and
/// by requests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Repetitions of every pass
    #[arg(long, value_name = "N", default_value_t = 7)]
    repeat: usize,

    /// Size of the window
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_window)]
    window: u64,

    /// The daemon; by default the one beside this program
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,

    /// Where the files are written, 130 MiB
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,

    /// What runs the guest's code
    #[arg(long, value_name = "KIND", default_value = "auto")]
    accel: AccelChoice,

    /// Fetch nothing
    #[arg(long)]
    offline: bool,
}

/// Passes over files of one size: the window against requests.
#[derive(Default)]
struct Row {
    bytes: u64,
    files: usize,
    first: Paired,
    again: Paired,
    /// Kilobytes by which the guest's page cache grew.
    memory: Paired,
}

/// One pass as the guest saw it.
struct Pass {
    first_ns: f64,
    again_ns: f64,
    cached_kb: f64,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let parent = args.directory.clone().unwrap_or_else(std::env::temp_dir);
    let files = Scratch::below(&parent)?;
    write_files(files.path())?;
    let mut vm = boot(args, files.path())?;
    vm.sh(PRELUDE)?.ok()?;
    let overhead_ns = overhead_ns(&mut vm, args.repeat)?;
    let mut rows: Vec<Row> = SIZES
        .iter()
        .map(|&(bytes, files)| Row {
            bytes,
            files,
            ..Row::default()
        })
        .collect();
    for repetition in 0..args.repeat {
        for row in &mut rows {
            measure(&mut vm, row, repetition, overhead_ns)?;
        }
    }
    let (kernel, accel) = (vm.release().to_owned(), vm.accel().name());
    vm.shutdown()?;
    print(&rows);
    println!(
        "guest {kernel} under {accel}; medians of {} repetitions, the ratio that of the pairs; \
         per file, less {:.1} ms a pass for starting the reader",
        args.repeat,
        overhead_ns / 1e6
    );
    Ok(ExitCode::SUCCESS)
}

fn boot(args: &Args, files: &Path) -> Result<Vm> {
    let share = |tag: &str, dax| ShareOptions {
        tag: tag.into(),
        mount_at: Some(format!("/{tag}")),
        window_bytes: args.window,
        daemon: args.daemon.clone(),
        ..ShareOptions::new(files, dax)
    };
    let shares = vec![share(TAGS[0], Dax::Always), share(TAGS[1], Dax::Never)];
    Vm::boot(&VmOptions {
        accel: args.accel,
        offline: args.offline,
        preload: Some(preload_library()?),
        memory_bytes: 1 << 30,
        ..VmOptions::new(shares)
    })
}

/// Real blocks, not holes, so that both ways cost the host the same.
fn write_files(directory: &Path) -> Result<()> {
    let mut random = Random::new(1);
    for (bytes, files) in SIZES {
        let folder = directory.join(bytes.to_string());
        std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        for file in 0..files {
            let path = folder.join(file.to_string());
            let words = (0..bytes / 8).flat_map(|_| random.next().to_le_bytes());
            std::fs::write(&path, words.collect::<Vec<u8>>())
                .with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

/// `now` sets `t`, nanoseconds; busybox's own clock counts seconds. `>>`
/// because busybox would send to a plain `/dev/null` without reading. Names
/// are listed before the clock starts, since that costs both ways the same.
const PRELUDE: &str = r#"cat >/run/measure <<'END'
now() {
    while read -r w1 w2 w3 w4; do [ "$w1" = now ] && break; done </proc/timer_list
    t=$w3
}
cached() {
    while read -r w1 w2 w3; do [ "$w1" = Cached: ] && break; done </proc/meminfo
    kb=$w2
}
pass() {
    now; t0=$t
    cat "$@" >>/dev/null || exit 1
    now; echo $((t - t0))
}
END
. /run/measure; now; [ -n "$t" ]
"#;

/// What a pass over nothing takes.
fn overhead_ns(vm: &mut Vm, repeat: usize) -> Result<f64> {
    let script = format!(
        ". /run/measure; for i in $(seq {}); do pass /dev/null; done",
        repeat.max(3)
    );
    let text = vm.sh_within(&script, WITHIN)?.ok()?;
    let times: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    crate::stats::median(&times).context("the guest told no times")
}

/// Both ways, in an order that changes with every repetition.
fn measure(vm: &mut Vm, row: &mut Row, repetition: usize, overhead_ns: f64) -> Result<()> {
    let (dax, requests) = match repetition % 2 {
        0 => {
            let dax = pass(vm, TAGS[0], row)?;
            (dax, pass(vm, TAGS[1], row)?)
        }
        _ => {
            let requests = pass(vm, TAGS[1], row)?;
            (pass(vm, TAGS[0], row)?, requests)
        }
    };
    let kilobytes = (row.bytes >> 10) as f64 * row.files as f64;
    // The first pass may load programs and pages of the guest's own.
    let noise = 512.0;
    ensure!(
        dax.cached_kb < kilobytes / 10.0 + noise,
        "the window was not used: {} kB of page cache for {kilobytes} kB",
        dax.cached_kb
    );
    ensure!(
        requests.cached_kb > kilobytes * 0.9 - noise,
        "the files did not come by requests: {} kB of page cache for {kilobytes} kB",
        requests.cached_kb
    );
    let each = |ns: f64| (ns - overhead_ns).max(1.0) / row.files as f64;
    row.first.push(each(dax.first_ns), each(requests.first_ns));
    row.again.push(each(dax.again_ns), each(requests.again_ns));
    let files = row.files as f64;
    row.memory
        .push(dax.cached_kb / files, requests.cached_kb / files);
    Ok(())
}

fn pass(vm: &mut Vm, tag: &str, row: &Row) -> Result<Pass> {
    let script = format!(
        ". /run/measure\ncd /{tag}/{}\nsync; echo 3 >/proc/sys/vm/drop_caches\n\
         set -- *; cached; before=$kb\n\
         pass \"$@\"; cached; echo $((kb - before)); pass \"$@\"; pass \"$@\"; pass \"$@\"\n",
        row.bytes
    );
    let text = vm.sh_within(&script, WITHIN)?.ok()?;
    let numbers: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let [first_ns, cached_kb, again @ ..] = numbers.as_slice() else {
        bail!("the guest answered {text:?}");
    };
    Ok(Pass {
        first_ns: *first_ns,
        cached_kb: *cached_kb,
        again_ns: crate::stats::median(again).context("the guest told no times")?,
    })
}

fn print(rows: &[Row]) {
    let mut out = table::table(&[
        "file size",
        "first read: DAX",
        "requests",
        "ratio",
        "again: DAX",
        "requests",
        "ratio",
        "guest memory: DAX",
        "requests",
    ]);
    for row in rows {
        let time = |ns: Option<f64>| match ns {
            Some(ns) => table::micros(ns as u64),
            None => "-".into(),
        };
        let ratio = |pairs: &Paired| match pairs.ratio() {
            Some(ratio) => format!("{:.2}", ratio.median),
            None => "-".into(),
        };
        let memory = |kb: Option<f64>| table::bytes((kb.unwrap_or(0.0).max(0.0) * 1024.0) as u64);
        out.add_row(vec![
            table::bytes(row.bytes),
            time(row.first.value()),
            time(row.first.base()),
            ratio(&row.first),
            time(row.again.value()),
            time(row.again.base()),
            ratio(&row.again),
            memory(row.memory.value()),
            memory(row.memory.base()),
        ]);
    }
    println!("{out}");
}
