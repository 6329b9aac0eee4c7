//! `daxwindow-bench vm`: guests of the kit (`daxwindow-vm`) by command, and
//! two figures that need one.
//!
//! | file | owns |
//! | --- | --- |
//! | `commands` | the command line |
//! | `doctor` | what the kit has and lacks, printed |
//! | `surroundings` | what guests will run on and with |
//! | `mapping_cost` | what a mapping costs |
//! | `break_even` | from which size files gain by the window |

mod break_even;
mod commands;
mod doctor;
mod mapping_cost;
mod surroundings;

pub(crate) use commands::{Args, run};
pub(crate) use surroundings::Surroundings;

/// Exit status when the guest itself failed, not the command in it.
pub(crate) const VM_FAILED: u8 = 125;
/// Exit status when the command took too long.
const TOOK_TOO_LONG: u8 = 124;
