//! The program of the crate; see its documentation and `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    daxwindow_bench::main()
}
