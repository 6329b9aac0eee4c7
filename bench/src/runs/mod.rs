//! Results on disk: what a study has measured, cell by cell.
//!
//! A *study* (`fio`, `density`, ...) writes one file `STUDY.jsonl` into a
//! results directory: a [`Header`] on the first line, then one [`Cell`] a
//! line. A *cell* is one measurement on one stack, with its repetitions.
//!
//! Laws: a finished cell is in the file before the next one begins; a run
//! that was interrupted goes on where it was, and only under the very
//! conditions it began with; a failed cell carries its reason and no value.

mod cell;
mod header;
mod progress;
mod read;
mod run;

pub(crate) use cell::{Better, Cell, Latency};
pub(crate) use header::Header;
pub(crate) use read::{Study, read};
pub(crate) use run::Run;

/// The default results directory, below the current one.
pub(crate) const DIRECTORY: &str = "target/results";
