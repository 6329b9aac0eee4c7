//! A daemon with handling left out, to show what each is for: tests run it
//! where `daxwindowd` gets through. Not for use.
//!
//! `naive --leave-out NAME ... <flags of daxwindowd>`

use std::process::ExitCode;

use clap::Parser;
use daxwindow_host::cli::{Flags, Task};
use daxwindow_host::daemon;
use daxwindow_host::dax::TestFaults;

#[derive(Parser)]
struct NaiveFlags {
    /// Handling to leave out
    #[arg(long, value_name = "NAME")]
    leave_out: Vec<TestFaults>,

    #[command(flatten)]
    flags: Flags,
}

fn main() -> ExitCode {
    let NaiveFlags { leave_out, flags } = NaiveFlags::parse();
    let naive = leave_out
        .into_iter()
        .fold(TestFaults::default(), TestFaults::and);
    let mut task = flags.task().unwrap_or_else(|error| error.exit());
    if let Task::Serve(config) = &mut task {
        config.dax.test_faults = naive;
    }
    match daemon::run(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("naive: {error}");
            ExitCode::FAILURE
        }
    }
}
