//! `demo`: one real directory, read through the window and every other way,
//! compared byte by byte with the host.
//!
//! Law: it fails when a byte differs and when the window was not in fact in
//! use; it never writes below the directory it shows.

mod outcome;
mod passes;
mod readers;
mod select;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use daxwindow_shared::size::parse_bytes;
use daxwindow_shared::window::RANGE_BYTES;
use indicatif::{ProgressBar, ProgressStyle};

use crate::attach::Attached;
use crate::buffer::Buffer;
use crate::daemon::{self, Dax, Share};
use crate::figures::Report;
use crate::host_memory;
use crate::machine::{COMMIT, Machine, Versions};
use outcome::{Memory, Outcome, Peak};
use passes::BUFFER_BYTES;
use readers::{HOT_PASSES, Turn};
use select::{Candidate, Selection};

/// Read a directory through the window, check every byte, show the speed and
/// the memory
///
/// Starts the daemon read-only on DIR, attaches guests in this process, reads
/// every regular file through a faulted view, through read_at, with FUSE_READ
/// (DAX off) and from the host's own mmap, and compares each file's hash with
/// the host's. The files must not shrink meanwhile.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory to show; by default one of this machine's with at least
    /// 500 MB in its files
    dir: Option<PathBuf>,
    /// Most bytes to read; by default 1G of the default directory, and all of
    /// a directory that was named
    #[arg(long, value_parser = parse_bytes)]
    max_bytes: Option<u64>,
    /// Size of the window, for example 512M or 4G
    #[arg(long, default_value = "1G", value_parser = parse_bytes)]
    dax_window: u64,
    /// The daemon's binary; by default daxwindowd beside this one
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
}

/// Files held open at a time, well below usual descriptor limits.
const FILES_AT_A_TIME: usize = 200;

/// Runs the demo; true when every byte was right and the window was in use.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let binary = daemon::find(args.daemon.as_deref())?;
    let directory = match &args.dir {
        Some(directory) => directory.clone(),
        None => select::default_directory()?,
    };
    let directory = directory
        .canonicalize()
        .with_context(|| format!("find {}", directory.display()))?;
    let limit = args.max_bytes.unwrap_or(match args.dir {
        Some(_) => u64::MAX,
        None => 1 << 30,
    });
    let selection = select::select(&directory, limit)?;
    ensure!(
        selection.bytes > 0,
        "no readable bytes below {} ({})",
        directory.display(),
        selection.left_out(),
    );
    let demo = Demo {
        progress: progress(&selection, args.json),
        binary,
        directory,
        selection,
        window_bytes: args.dax_window,
    };
    let outcome = demo.run()?;
    demo.progress.finish_and_clear();
    demo.print(&outcome, args.json)
}

/// Everything that is settled before the first byte is read.
struct Demo {
    binary: PathBuf,
    directory: PathBuf,
    selection: Selection,
    window_bytes: u64,
    progress: ProgressBar,
}

impl Demo {
    fn run(&self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut buffer = Buffer::like_malloc(BUFFER_BYTES);
        let hashes = self.host_hashes(&mut buffer)?;
        outcome
            .memory
            .push(Memory::take("before", self.cached(), &[])?);
        self.views(&hashes, &mut buffer, &mut outcome)?;

        let guest = self.attach(Dax::Always).context("guest for read_at")?;
        let turn = self.turn("read_at", &guest, &hashes);
        outcome.read_at = turn.read_at(&mut buffer, &mut outcome)?;
        drop(guest);

        let guest = self.attach(Dax::Never).context("guest without DAX")?;
        let turn = self.turn("FUSE_READ", &guest, &hashes);
        outcome.plain = turn.requests(&mut buffer, &mut outcome)?;
        Ok(outcome)
    }

    /// The first guest, and while it stays, a second one with a daemon of its
    /// own, so that what the second adds can be seen.
    fn views(
        &self,
        hashes: &[blake3::Hash],
        buffer: &mut [u8],
        outcome: &mut Outcome,
    ) -> Result<()> {
        let first = self.attach(Dax::Always).context("first guest")?;
        let pids = [first.daemon().pid()];
        let mut peak = Peak::new("first guest");
        let turn = self.turn("view", &first, hashes);
        outcome.view = turn.views(buffer, outcome, || peak.note(self.cached(), &pids))?;
        outcome.mapper = first.guest().stats();
        outcome.memory.extend(peak.memory);

        let second = self.attach(Dax::Always).context("second guest")?;
        let pids = [first.daemon().pid(), second.daemon().pid()];
        let mut peak = Peak::new("second guest");
        let turn = self.turn("second guest", &second, hashes);
        outcome.second = turn.views(buffer, outcome, || peak.note(self.cached(), &pids))?;
        outcome.memory.extend(peak.memory);
        Ok(())
    }

    fn turn<'a>(
        &'a self,
        name: &'static str,
        guest: &'a Attached,
        hashes: &'a [blake3::Hash],
    ) -> Turn<'a> {
        Turn {
            demo: self,
            guest,
            name,
            hashes,
        }
    }

    /// Reads every file on the host, which also warms the page cache.
    fn host_hashes(&self, buffer: &mut [u8]) -> Result<Vec<blake3::Hash>> {
        self.progress.set_message("host");
        let hash_one = |file: &Candidate| -> Result<blake3::Hash> {
            let hash = hash_by_read(&self.directory.join(&file.path), buffer)?;
            self.progress.inc(file.len);
            Ok(hash)
        };
        self.selection.files.iter().map(hash_one).collect()
    }

    fn attach(&self, dax: Dax) -> Result<Attached> {
        let share = Share::readonly(&self.directory, dax, self.window_bytes);
        Attached::start(&self.binary, &share, PREFETCH_RANGES)
    }

    fn batches(&self) -> Vec<&[Candidate]> {
        // A batch leaves a quarter of the window free, so that its hot pass
        // meets no reclaim.
        let ranges = (self.window_bytes / RANGE_BYTES).saturating_mul(3) / 4;
        select::batches(
            &self.selection.files,
            RANGE_BYTES,
            ranges.max(1),
            FILES_AT_A_TIME,
        )
    }

    fn cached(&self) -> u64 {
        let paths: Vec<_> = self
            .selection
            .files
            .iter()
            .map(|f| self.directory.join(&f.path))
            .collect();
        host_memory::cached_bytes(paths.iter().map(PathBuf::as_path))
    }

    fn print(&self, outcome: &Outcome, json: bool) -> Result<bool> {
        let report = Report {
            command: "demo",
            figures: outcome.figures(&self.selection),
            machine: Machine::detect(&self.directory),
            versions: Versions {
                daxwindow_bench: env!("CARGO_PKG_VERSION").into(),
                daxwindowd: daemon::version(&self.binary),
            },
            commit: COMMIT,
        };
        if json {
            println!("{}", report.to_json()?);
        } else {
            print!("{}", outcome.text(self, &report));
        }
        for difference in &outcome.differences {
            eprintln!("daxwindow-bench: {difference}");
        }
        Ok(outcome.differences.is_empty())
    }
}

/// Ranges the demo's guests map ahead of a sequential reader.
const PREFETCH_RANGES: u32 = daxwindow_guest::GuestOptions::DEFAULT_PREFETCH_RANGES;

fn hash_by_read(path: &Path, buffer: &mut [u8]) -> Result<blake3::Hash> {
    use std::io::Read;
    let what = || format!("read {}", path.display());
    let mut file = std::fs::File::open(path).with_context(what)?;
    let mut hasher = blake3::Hasher::new();
    loop {
        match file.read(buffer).with_context(what)? {
            0 => return Ok(hasher.finalize()),
            n => hasher.update(&buffer[..n]),
        };
    }
}

/// On stderr, and only when that is a terminal. Passes: the host's hashes;
/// then for each of four guests the host's mmap, the guest and the comparison.
fn progress(selection: &Selection, hidden: bool) -> ProgressBar {
    const PASSES: u64 = 1 + 4 * (2 * (1 + HOT_PASSES as u64) + 1);
    if hidden {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(selection.bytes.saturating_mul(PASSES));
    let style = "{spinner} {msg:18} [{bar:32}] {bytes}/{total_bytes} {binary_bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
