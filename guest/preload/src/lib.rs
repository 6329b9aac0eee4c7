//! A library to preload into QEMU (`LD_PRELOAD`): it puts ranges of files into
//! the DAX window of a virtio-fs device that is one region of QEMU's, at the
//! daemon's request. It has no configuration.
//!
//! ```text
//! LD_PRELOAD=/usr/lib/daxwindow/libdaxwindow_preload.so qemu-system-x86_64 …
//! ```
//!
//! What it does for whom:
//! - `connection` marks QEMU's end of vhost-user connections, so that
//!   `daxwindowd` knows that the library is there, and takes out of what QEMU
//!   reads what the daemon says to the library
//!   ([`preload`](daxwindow_shared::preload)).
//! - `slot` and `serve` are the windows, each served by a thread of its own,
//!   on which the front end's checks are made ([`daxwindow_front_end`]).
//! - `place` sees where QEMU maps a window's memfd, and that it goes away.
//! - `fault` has the SIGBUS of a guest that reads where a file has ended mended
//!   (`mend`, `mended`, `pages`), and gives QEMU every other; `signals` keeps
//!   QEMU from blocking it. `kvm` does the same where KVM_RUN fails instead.
//! - `others` keeps files out of guest memory that somebody looks into who would
//!   not see them, and such others out where files are; `vfio` recognises
//!   devices.
//!
//! `interpose` has the functions that stand in front of the C library's;
//! `real` those of the C library.
//!
//! What it cannot do: it sees only connections that QEMU makes itself by
//! `connect`, not those that it inherits. Under KVM, a store into a page that
//! the file's file system has no room for ends the guest, as it does without
//! the library. What a guest stores behind the end of a file takes memory of
//! QEMU's, at most as much as the window has.
//!
//! Laws: a call that is not about a window of ours passes through, and costs a
//! load and a comparison; QEMU is never aborted, nor made to wait for a daemon;
//! one line at most on stderr for each cause.

#![deny(unsafe_code)]

mod connection;
mod fault;
mod held;
mod interpose;
mod kvm;
mod lines;
mod mend;
mod mended;
mod notes;
mod others;
mod pages;
mod pieces;
mod place;
mod preamble;
mod real;
mod serve;
mod signals;
mod slot;
mod vfio;
