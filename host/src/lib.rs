//! The host side of daxwindow: a vhost-user-fs back end that serves a
//! directory over virtio-fs and lends its page cache through a DAX window.
//!
//! | room | owns |
//! | --- | --- |
//! | [`listen`] | Unix sockets that listen, their files, and who waits there |
//! | [`vhost`] | the vhost-user back end: clients, messages, configuration, memory table, reset |
//! | [`queue`] | the queues of a device and the threads that serve them |
//! | [`fuse`] | one FUSE request: decode, call, encode |
//! | [`fs`] | the shared directory: inodes, handles, names, attributes |
//! | [`dax`] | the window: ledger, front-end capabilities, policy |
//! | [`padding`] | files that look longer than they are, and the process that makes them |
//! | [`sigbus`] | guest memory that vanishes while it is in use |
//! | [`isolation`] | what the daemon cannot do, even if it is made to |
//! | [`logs`], [`metrics`] | what is logged, and what is counted |
//! | `budget`, `procfd` | what one guest may spend; re-opening what is held by `O_PATH` |
//! | [`shares`] | the shares of one process, and how they come and go |
//! | [`status`] | the status document, and the socket that tells it |
//! | [`config`] | what a daemon is started with |
//! | [`cli`] | the command line of `daxwindowd` |
//! | [`daemon`] | its life from flags to signals |
//!
//! The rooms use each other in one direction: those below never name those
//! above, which a test checks.
//!
//! Law of the whole crate: nothing from the guest or the VMM is trusted, and
//! nothing they send ends the process.

#![deny(unsafe_code)]

mod budget;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dax;
pub mod fs;
pub mod fuse;
pub mod isolation;
pub mod listen;
pub mod logs;
pub mod metrics;
pub mod padding;
mod procfd;
pub mod queue;
pub mod shares;
pub mod sigbus;
pub mod status;
pub mod vhost;

#[cfg(test)]
mod rooms_test;
