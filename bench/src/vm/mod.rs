//! Real guests on a stock QEMU: a kit that needs no root, and commands.
//!
//! | file | owns |
//! | --- | --- |
//! | [`kit`] | the folder with everything a guest needs |
//! | `apt` | packages, without touching the system's own |
//! | [`qemu`] | which QEMU |
//! | [`kernel`] | which kernel |
//! | [`userland`] | busybox and tools |
//! | `program` | programs of the host in the guest |
//! | `initramfs`, `script` | the guest's first file system and what it runs |
//! | [`accel`] | kvm or tcg, by trial |
//! | [`options`] | what to boot |
//! | `dialect`, `process`, `guard` | daemons in their dialect, processes that end |
//! | [`guest`] | one guest |
//! | `machine` | its processes, and QEMU's command line |
//! | `monitor` | commands to QEMU |
//! | [`agent`], `console` | commands into it, and what its kernel says |
//! | `commands`, `doctor`, `terminal` | the command line |
//! | `break_even` | from which size files gain by the window |
//!
//! Law: no process, file or socket outlives the value or command it is for,
//! and nothing waits without a limit.

pub mod accel;
pub mod agent;
mod apt;
mod break_even;
mod commands;
mod console;
mod dialect;
mod doctor;
mod guard;
pub mod guest;
mod initramfs;
pub mod kernel;
pub mod kit;
mod machine;
mod monitor;
pub mod options;
mod process;
mod program;
pub mod qemu;
mod script;
mod terminal;
pub mod userland;

pub use agent::Output;
pub(crate) use commands::{Args, run};
pub use guest::Vm;
pub use kit::Kit;

pub use options::{AccelChoice, Dax, DeviceChoice, ShareOptions, VmOptions};
pub use program::example;

/// Exit status when the guest itself failed, not the command in it.
pub const VM_FAILED: u8 = 125;
/// Exit status when the command took too long.
pub const TOOK_TOO_LONG: u8 = 124;
