//! daxwindow-bench: shows what the window does, and measures it.
//!
//! | room | owns |
//! | --- | --- |
//! | [`demo`] | one real directory, read every way, compared byte by byte |
//! | [`micro`] | the figures, each with its denominator from the same run |
//! | [`attach`] | a daemon with a guest, and the proof of whether DAX was in use |
//! | [`buffer`] | copy targets at a chosen place in a page |
//! | [`daemon`] | the daemon as a process of its own |
//! | [`report`] | figures, JSON, tables |
//! | [`host_memory`] | page cache by file, memory by process |
//! | [`raw`] | all unsafe code |

#![deny(unsafe_code)]

mod attach;
mod buffer;
mod cleanup;
mod daemon;
mod demo;
mod host_memory;
mod machine;
mod micro;
mod raw;
#[cfg(test)]
mod readme_test;
mod report;
mod stats;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
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
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The guest library warns of the maps it refuses, and the daemon tries a
    // few such on purpose when a guest attaches.
    let quiet = || EnvFilter::new("warn,daxwindow_guest::transport=error");
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| quiet()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let done = cleanup::watch_signals().and_then(|()| match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Micro(args) => micro::run(&args),
    });
    cleanup::end_everything();
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("daxwindow-bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}
