//! What tests run inside guests: loads and stores through mappings, each
//! verified. A wrong byte, an error and a time-out end with status 1.
//!
//! Built by `cargo test` as an example; `vm::example("guest_probe")` finds it
//! and `VmOptions::programs` brings it into a guest. It runs on the host too.

#![deny(unsafe_code)]

mod direct;
mod map;
mod pattern;
mod ranges;
mod threads;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use daxwindow_shared::size::parse_bytes;
use rustix::fs::{AtFlags, CWD, RenameFlags, StatxAttributes, StatxFlags, renameat_with, statx};

use map::{Access, Mapping};

/// Bytes of one of the Linux driver's ranges.
const RANGE_BYTES: u64 = 2 << 20;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Stores TEXT through a shared mapping, with no msync
    Store {
        path: PathBuf,
        #[arg(value_parser = parse_bytes)]
        offset: u64,
        text: String,
    },
    /// Prints bytes from a shared mapping
    Load {
        path: PathBuf,
        #[arg(value_parser = parse_bytes)]
        offset: u64,
        len: usize,
    },
    /// Looks at a mapping until TEXT is there; prints `waiting` if it is not
    /// at once
    Await {
        path: PathBuf,
        #[arg(value_parser = parse_bytes)]
        offset: u64,
        text: String,
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
    /// Writes files that `stress` and `upgrade` can check
    Pattern {
        folder: PathBuf,
        #[arg(long, default_value_t = 1)]
        files: usize,
        #[arg(long, value_parser = parse_bytes)]
        bytes: u64,
        /// Only the first bytes of each range, which are all that `touch` and
        /// `hold` look at
        #[arg(long)]
        sparse: bool,
    },
    /// Threads check random places of the pattern files in FOLDER
    Stress {
        folder: PathBuf,
        #[arg(long, default_value_t = 2)]
        threads: u64,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Also store the right bytes over themselves
        #[arg(long)]
        write: bool,
    },
    /// Threads read ranges of the pattern file PATH while they become
    /// writable; needs 2 MiB of file for each round, and changes it
    Upgrade {
        path: PathBuf,
        #[arg(long, default_value_t = 2)]
        threads: usize,
        #[arg(long, default_value_t = 8)]
        rounds: u64,
    },
    /// O_DIRECT read of SRC into mapped DST, then O_DIRECT write of the mapped
    /// pages, changed, to SRC; a system call's failure ends with status 3
    Direct {
        src: PathBuf,
        dst: PathBuf,
        #[arg(long, value_parser = parse_bytes)]
        len: u64,
    },
    /// Touches one byte in each range and prints the microseconds of each
    /// first touch; the bytes of pattern files are verified
    Touch(ranges::Args),
    /// Touches as above, prints `ready` and keeps the mapping: for each line of
    /// input it looks again and prints `same`; it ends with the input, or, if
    /// there never was any, with a signal
    Hold(ranges::Args),
    /// Renames with a flag of renameat2(2)
    Rename {
        from: PathBuf,
        to: PathBuf,
        how: How,
    },
    /// Prints the bits that statx(2) says are there, in hexadecimal, and the
    /// birth time, in nanoseconds since 1970
    Born { path: PathBuf },
    /// Says of each file whether the kernel has it for a DAX inode
    Dax { paths: Vec<PathBuf> },
}

/// A flag of renameat2(2).
#[derive(Clone, Copy, clap::ValueEnum)]
enum How {
    Noreplace,
    Exchange,
    Whiteout,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Store { path, offset, text } => store(&path, offset, text.as_bytes()),
        Command::Load { path, offset, len } => load(&path, offset, len),
        Command::Await {
            path,
            offset,
            text,
            seconds,
        } => await_text(&path, offset, text.as_bytes(), seconds),
        Command::Pattern {
            folder,
            files,
            bytes,
            sparse,
        } => pattern::write(&folder, files, bytes, sparse),
        Command::Stress {
            folder,
            threads,
            seconds,
            write,
        } => threads::stress(&folder, threads, Duration::from_secs_f64(seconds), write),
        Command::Upgrade {
            path,
            threads,
            rounds,
        } => threads::upgrade(&path, threads, rounds),
        Command::Direct { src, dst, len } => return direct::run(&src, &dst, len),
        Command::Touch(args) => ranges::touch(&args),
        Command::Hold(args) => ranges::hold(&args),
        Command::Rename { from, to, how } => rename(&from, &to, how),
        Command::Born { path } => born(&path),
        Command::Dax { paths } => paths.iter().try_for_each(|path| dax(path)),
    };
    ended(done)
}

fn say(word: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{word}").and_then(|()| out.flush())?;
    Ok(())
}

fn ended(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest_probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn open(path: &Path, write: bool) -> Result<File> {
    let file = File::options().read(true).write(write).open(path);
    file.with_context(|| format!("open {}", path.display()))
}

/// A mapping that lies inside the file: past its end is a signal.
fn mapped(path: &Path, offset: u64, len: usize, access: Access) -> Result<Mapping> {
    let file = open(path, access == Access::LoadAndStore)?;
    let size = file.metadata()?.len();
    if offset.checked_add(len as u64).is_none_or(|end| end > size) {
        bail!("{} has only {size} bytes", path.display());
    }
    Mapping::new(&file, offset, len, access).with_context(|| format!("map {}", path.display()))
}

fn dax(path: &Path) -> Result<()> {
    let flags = StatxFlags::BASIC_STATS;
    let stat = statx(CWD, path, AtFlags::empty(), flags);
    let stat = stat.with_context(|| format!("look at {}", path.display()))?;
    let dax = stat.stx_attributes.contains(StatxAttributes::DAX);
    println!("{}", if dax { "dax" } else { "requests" });
    Ok(())
}

fn rename(from: &Path, to: &Path, how: How) -> Result<()> {
    let flags = match how {
        How::Noreplace => RenameFlags::NOREPLACE,
        How::Exchange => RenameFlags::EXCHANGE,
        How::Whiteout => RenameFlags::WHITEOUT,
    };
    renameat_with(CWD, from, CWD, to, flags).context("rename")
}

fn born(path: &Path) -> Result<()> {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = statx(CWD, path, AtFlags::empty(), flags);
    let stat = stat.with_context(|| format!("look at {}", path.display()))?;
    let nanos = i128::from(stat.stx_btime.tv_sec) * 1_000_000_000;
    let nanos = nanos + i128::from(stat.stx_btime.tv_nsec);
    println!("{:x} {nanos}", stat.stx_mask);
    Ok(())
}

fn store(path: &Path, offset: u64, text: &[u8]) -> Result<()> {
    mapped(path, offset, text.len(), Access::LoadAndStore)?.store_all(0, text);
    println!("stored {} bytes at {offset}", text.len());
    Ok(())
}

fn load(path: &Path, offset: u64, len: usize) -> Result<()> {
    let mapping = mapped(path, offset, len, Access::Load)?;
    let bytes = mapping.load_all(0, len);
    std::io::stdout().write_all(&bytes).context("print")
}

fn await_text(path: &Path, offset: u64, text: &[u8], seconds: f64) -> Result<()> {
    let mapping = mapped(path, offset, text.len(), Access::Load)?;
    let start = Instant::now();
    if mapping.load_all(0, text.len()) != text {
        say("waiting")?;
    }
    while mapping.load_all(0, text.len()) != text {
        if start.elapsed().as_secs_f64() > seconds {
            let found = mapping.load_all(0, text.len());
            let found = String::from_utf8_lossy(&found).into_owned();
            bail!("not there after {seconds} s; there is {found:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("seen after {} ms", start.elapsed().as_millis());
    Ok(())
}
