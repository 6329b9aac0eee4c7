//! Real guests on a stock QEMU: a kit that needs no root, and commands.
//!
//! | file | owns |
//! | --- | --- |
//! | [`kit`] | the folder with everything a guest needs |
//! | `apt` | packages, without touching the system's own |
//! | [`qemu`] | which QEMU |
//! | [`kernel`] | which kernel |
//! | `modules` | modules of that kernel |
//! | [`userland`] | busybox and tools |
//! | [`debian`] | a root directory to boot from |
//! | [`container`] | a root directory for programs that want a system around them |
//! | `root` | a share that is the root file system |
//! | `crates` | programs of the crates registry, built for the guest |
//! | [`peers`] | other people's daemons |
//! | `program` | programs of the host in the guest |
//! | `initramfs`, `script` | the guest's first file system and what it runs |
//! | [`accel`] | kvm or tcg, by trial |
//! | `surroundings` | what guests will run on and with |
//! | [`options`] | what to boot |
//! | `dialect`, `process`, `guard` | daemons in their dialect, processes that end |
//! | [`guest`] | one guest |
//! | `machine` | its processes, and QEMU's command line |
//! | `monitor` | commands to QEMU |
//! | [`uml`] | a guest that is a process of the host's, for what needs no DAX |
//! | [`agent`], `console` | commands into it, and what its kernel says |
//! | `daemon_status` | what a daemon says of itself |
//! | `mapping_cost` | what a mapping costs |
//! | [`browser`] | a browser for looking at pages |
//! | `commands`, `doctor`, `terminal` | the command line |
//! | `break_even` | from which size files gain by the window |
//!
//! Law: no process, file or socket outlives the value or command it is for,
//! and nothing waits without a limit.

pub mod accel;
pub mod agent;
mod apt;
mod break_even;
pub mod browser;
mod commands;
mod console;
pub mod container;
mod crates;
mod daemon_status;
pub mod debian;
mod dialect;
mod doctor;
mod guard;
pub mod guest;
mod initramfs;
pub mod kernel;
pub mod kit;
mod machine;
mod mapping_cost;
mod modules;
mod monitor;
pub mod options;
pub mod peers;
mod process;
mod program;
pub mod qemu;
mod root;
mod script;
mod surroundings;
mod terminal;
pub mod uml;
pub mod userland;

pub use agent::Output;
pub(crate) use commands::{Args, run};
pub use container::{Container, Inmate};
pub use crates::crate_program;
pub use daemon_status::daemon_status;
pub(crate) use daemon_status::whole_status;
pub use debian::Debian;
pub use guest::Vm;
pub use initramfs::initramfs_with_busybox;
pub use kit::Kit;
pub use modules::kernel_module;
pub(crate) use modules::module_of;
pub use options::{AccelChoice, Dax, DeviceChoice, ShareOptions, VmOptions};
pub use program::{daemon_program, example, preload_library};
pub(crate) use surroundings::Surroundings;
pub use uml::Uml;
pub(crate) use userland::package_version;
pub use userland::{host_command, package_root};

/// Exit status when the guest itself failed, not the command in it.
pub const VM_FAILED: u8 = 125;
/// Exit status when the command took too long.
pub const TOOK_TOO_LONG: u8 = 124;
