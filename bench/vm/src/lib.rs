//! The kit: boots real Linux guests with a share, on a stock QEMU and without
//! root, from packages that it fetches into a folder of its own. Tests take
//! guests and single programs from it; `daxwindow-bench vm` is its command
//! line.
//!
//! | file | owns |
//! | --- | --- |
//! | [`kit`] | the folder with everything a guest needs |
//! | `apt` | packages, without touching the system's own |
//! | [`doctor`] | what is there, what is missing, how to get it |
//! | [`qemu`] | which QEMU |
//! | [`kernel`] | which kernel |
//! | `modules` | modules of that kernel |
//! | [`userland`] | busybox and tools |
//! | [`debian`] | a root directory to boot from |
//! | [`container`] | a root directory for programs that want a system around them |
//! | `root` | a share that is the root file system |
//! | `crates` | programs of the crates registry, built for the guest |
//! | [`peers`] | other people's daemons |
//! | [`browser`] | a browser for looking at pages |
//! | `program` | programs of the host in the guest |
//! | `initramfs`, [`script`] | the guest's first file system and what it runs |
//! | [`accel`] | kvm or tcg, by trial |
//! | [`options`] | what to boot |
//! | [`daemon`], `dialect` | where our daemon is, and any daemon in its dialect |
//! | `process`, `guard` | processes that end |
//! | [`processes`] | of which processes a daemon consists |
//! | [`cleanup`] | what must not outlive the program |
//! | [`guest`] | one guest |
//! | `machine` | its processes, and QEMU's command line |
//! | `monitor` | commands to QEMU |
//! | [`uml`] | a guest that is a process of the host's, for what needs no DAX |
//! | [`agent`], `console` | commands into it, and what its kernel says |
//! | [`terminal`] | a guest under somebody's hands |
//! | `daemon_status` | what a daemon says of itself |
//!
//! Law: no process, file or socket outlives the value or command it is for,
//! and nothing waits without a limit.

#![forbid(unsafe_code)]

pub mod accel;
pub mod agent;
mod apt;
pub mod browser;
pub mod cleanup;
mod console;
pub mod container;
mod crates;
pub mod daemon;
mod daemon_status;
pub mod debian;
mod dialect;
pub mod doctor;
mod guard;
pub mod guest;
mod initramfs;
pub mod kernel;
pub mod kit;
mod machine;
mod modules;
mod monitor;
pub mod options;
pub mod peers;
mod process;
pub mod processes;
mod program;
pub mod qemu;
mod root;
pub mod script;
pub mod terminal;
pub mod uml;
pub mod userland;

pub use agent::Output;
pub use container::{Container, Inmate};
pub use crates::crate_program;
pub use daemon_status::{daemon_status, whole_status};
pub use debian::Debian;
pub use guest::Vm;
pub use initramfs::initramfs_with_busybox;
pub use kit::Kit;
pub use machine::VmFailure;
pub use modules::{kernel_module, module_of};
pub use options::{AccelChoice, Dax, DeviceChoice, ShareOptions, VmOptions};
pub use program::{daemon_program, example, preload_library};
pub use uml::Uml;
pub use userland::{host_command, package_root, package_version};
