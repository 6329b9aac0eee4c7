//! What the host daemon and the guest end both say.
//!
//! Wire layouts ([`fuse`], [`virtiofs`], [`shmem`], [`fs_map`], [`preload`]), the geometry of the DAX
//! window ([`window`]) and the latency recorder that both sides report with
//! ([`latency`]), and sizes as people type them ([`size`]). Laws of this crate: no I/O, no `unsafe`, and every wire
//! struct is a `zerocopy` type with its size asserted right beneath it.

#![forbid(unsafe_code)]

pub mod fs_map;
pub mod fuse;
pub mod latency;
pub mod preload;
pub mod shmem;
pub mod size;
pub mod vhost_user;
pub mod virtiofs;
pub mod window;
