//! daxwindow-bench: shows what the window does, and measures it.
//!
//! | room | owns |
//! | --- | --- |
//! | `demo` | one real directory, read every way, compared byte by byte |
//! | `micro` | the figures, each with its denominator from the same run |
//! | `compare` | our daemon and another one, operation by operation |
//! | `inodes` | what very many inodes cost a daemon |
//! | `density` | what guests that read the same files cost the host |
//! | `guests` | what idle guests cost one daemon |
//! | `attach` | a daemon with a guest, and the proof of whether DAX was in use |
//! | `buffer` | copy targets at a chosen place in a page |
//! | `daemon` | the daemon as a process of its own |
//! | `fio` | fio in real guests, on every way to a file of the host |
//! | `files` | test files that can be checked |
//! | `vm` | commands for real guests, which `daxwindow-vm` boots |
//! | `mount` | a share in a directory of the host, without a virtual machine |
//! | `overlay` | an overlay of the host's, gone with the value |
//! | `placement` | on which processors a measurement runs |
//! | `figures` | figures with goals, JSON, tables |
//! | `report` | results as a page with pictures, and as files |
//! | `runs` | results on disk, cell by cell: progress, resume, reading |
//! | `host_memory` | page cache by file, memory by process |
//! | `raw` | all unsafe code |

#![deny(unsafe_code)]

mod attach;
mod buffer;
mod compare;
mod daemon;
mod demo;
mod density;
mod figures;
mod files;
mod fio;
mod guests;
mod host_memory;
mod inodes;
mod machine;
mod micro;
mod mount;
mod overlay;
mod placement;
mod raw;
#[cfg(test)]
mod readme_test;
mod report;
mod runs;
mod stats;
mod vm;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use daxwindow_vm::cleanup;
use tracing_subscriber::EnvFilter;

/// Demonstrates and measures daxwindow. Every number is taken together with a
/// proof that the window was, or was not, in use.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Micro(micro::Args),
    Compare(compare::Args),
    Inodes(inodes::Args),
    Guests(guests::Args),
    Density(density::Args),
    #[command(name = density::READER, hide = true)]
    DensityReader(density::ReaderArgs),
    Fio(Box<fio::Args>),
    Report(report::Args),
    Mount(mount::Args),
    Vm(Box<vm::Args>),
}

/// The program: parses the command line and runs what it names.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let failed = cli.command.failure();
    let done = run(cli.command);
    cleanup::end_everything();
    done.unwrap_or_else(|e| {
        eprintln!("daxwindow-bench: {e:#}");
        failed
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    // There a signal does not mean an end at once.
    if !matches!(command, Command::Mount(_)) {
        cleanup::watch_signals()?;
    }
    match command {
        Command::Mount(args) => mount::run(&args).map(|()| verdict(true)),
        Command::Demo(args) => demo::run(&args).map(verdict),
        Command::Micro(args) => micro::run(&args).map(verdict),
        Command::Compare(args) => compare::run(&args).map(verdict),
        Command::Inodes(args) => inodes::run(&args).map(verdict),
        Command::Guests(args) => guests::run(&args).map(verdict),
        Command::Density(args) => density::run(&args).map(verdict),
        Command::DensityReader(args) => density::read(&args).map(verdict),
        Command::Fio(args) => fio::run(&args).map(verdict),
        Command::Report(args) => report::run(&args).map(verdict),
        Command::Vm(args) => vm::run(*args),
    }
}

impl Command {
    /// What the program exits with when the command could not be done.
    fn failure(&self) -> ExitCode {
        match self {
            Command::Vm(_) => ExitCode::from(vm::VM_FAILED),
            Command::Demo(_)
            | Command::Micro(_)
            | Command::Compare(_)
            | Command::Guests(_)
            | Command::Density(_)
            | Command::DensityReader(_)
            | Command::Fio(_)
            | Command::Report(_)
            | Command::Mount(_)
            | Command::Inodes(_) => ExitCode::FAILURE,
        }
    }
}

fn verdict(good: bool) -> ExitCode {
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
