//! The host's file systems under the daemon: what works on each, what is left
//! after a power cut, and what a used-up quota says.
//!
//! docs/lower-file-systems.md has the table that the first test makes. With
//! `DAXWINDOW_WRITE_DOCS` set it is written, else it is compared.
//!
//! Needs root, loop devices, ext4, xfs, btrfs, erofs and overlayfs in the
//! kernel, and for the first run apt with a Debian mirror: what makes file
//! systems comes from packages, and not from what is installed.

#[path = "../common/mod.rs"]
mod common;

mod copies;
mod copies_front_end;
mod features;
mod identity;
mod idle_mounts;
mod layers;
mod overlay;
mod places;
mod power_cut;
mod quota;
mod submounts;
mod table;

use rustix::io::Errno;

/// What a request was refused with.
fn refused<T>(result: daxwindow_guest::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| error.errno())
}
