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
use daxwindow_shared::window::RANGE_BYTES;
use indicatif::{ProgressBar, ProgressStyle};

use crate::daemon::{self, Dax, Share};
use crate::host_memory;
use crate::machine::{COMMIT, Machine, Versions};
use crate::report::Report;
use outcome::{Memory, Outcome};
use passes::{BUFFER_BYTES, hash};
use readers::{Readers, read_through_views};
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
        let hashes = self.host_hashes()?;
        outcome
            .memory
            .push(Memory::take("before", self.cached(), &[])?);
        let mut readers = Readers::start(self)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut done = 0;
        for batch in self.batches() {
            let hashes = &hashes[done..done + batch.len()];
            readers.batch(self, batch, hashes, &mut buffer, &mut outcome)?;
            done += batch.len();
        }
        let first = readers.finish(self, &mut outcome)?;
        let second = self.second_guest(&hashes, &mut buffer, &mut outcome)?;
        let daemons = [first.daemon().pid(), second.daemon().pid()];
        outcome
            .memory
            .push(Memory::take("second guest", self.cached(), &daemons)?);
        Ok(outcome)
    }

    /// Reads every file on the host, which also warms the page cache.
    fn host_hashes(&self) -> Result<Vec<blake3::Hash>> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let hash_one = |file: &Candidate| -> Result<blake3::Hash> {
            let path = self.directory.join(&file.path);
            let hash = hash_by_read(&path, &mut buffer)?;
            self.progress.inc(file.len);
            Ok(hash)
        };
        self.selection.files.iter().map(hash_one).collect()
    }

    /// A second guest with a daemon of its own reads the same files.
    fn second_guest(
        &self,
        hashes: &[blake3::Hash],
        buffer: &mut [u8],
        outcome: &mut Outcome,
    ) -> Result<crate::attach::Attached> {
        let guest = self.attach(Dax::Always)?;
        let mark = guest.mark()?;
        let mut done = 0;
        for batch in self.batches() {
            let (mut files, laps) = read_through_views(self, &guest, batch, buffer)?;
            outcome.second_pass.add(laps.first);
            for (i, file) in files.iter_mut().enumerate() {
                outcome.check(
                    "second guest",
                    &batch[i],
                    hash(file, buffer)?,
                    hashes[done + i],
                );
            }
            done += batch.len();
        }
        guest.prove_window(&mark, self.selection.bytes)?;
        Ok(guest)
    }

    fn attach(&self, dax: Dax) -> Result<crate::attach::Attached> {
        let share = Share::readonly(&self.directory, dax, self.window_bytes);
        crate::attach::Attached::start(&self.binary, &share, PREFETCH_RANGES)
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
const PREFETCH_RANGES: u32 = 4;

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
/// first, hot and compare for each of three guests; first and hot from the
/// host's mmap; first, hot and compare for the second guest.
fn progress(selection: &Selection, hidden: bool) -> ProgressBar {
    const PASSES: u64 = 1 + 3 * 3 + 2 + 3;
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

/// Bytes with an optional suffix K, M, G or T (powers of 1024).
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        other => return Err(format!("unknown unit {other}: use K, M, G or T")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("not a number of bytes: {text}"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("too large: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("2gib"), Ok(2 << 30));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        for bad in ["", "M", "1X", "-1", "99999999999T", "é"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
