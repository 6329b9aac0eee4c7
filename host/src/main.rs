//! `daxwindowd`: see the crate's documentation and `--help`.

use std::process::ExitCode;

use clap::Parser;
use daxwindow_host::cli::Flags;
use daxwindow_host::daemon;
use daxwindow_host::logs::writer;

fn main() -> ExitCode {
    let task = Flags::parse().task().unwrap_or_else(|error| error.exit());
    let code = match daemon::run(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writer::say(&format!("daxwindowd: {error}\n"));
            ExitCode::FAILURE
        }
    };
    writer::flush();
    code
}
