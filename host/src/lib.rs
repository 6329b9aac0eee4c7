//! The host side of daxwindow: a vhost-user-fs back end that serves a
//! directory over virtio-fs and lends its page cache through a DAX window.
//!
//! | room | owns |
//! | --- | --- |
//! | [`device`] | the vhost-user back end: features, configuration, queues, memory table, reset |
//! | [`server`] | one FUSE request: decode, call, encode |
//! | [`fs`] | the shared directory: inodes, handles, names, attributes |
//! | [`dax`] | the window: ledger, front-end capabilities, policy |
//! | [`guard`] | guest memory that vanishes while it is in use |
//! | [`isolation`] | what the daemon cannot do, even if it is made to |
//! | [`observe`] | logs and counters |
//! | [`shares`] | the shares of one process, and how they come and go |
//! | [`cli`] | the command line of `daxwindowd` |
//! | [`daemon`] | its life from flags to signals |
//!
//! Law of the whole crate: nothing from the guest or the VMM is trusted, and
//! nothing they send ends the process.

#![deny(unsafe_code)]

pub mod cli;
pub mod daemon;
pub mod dax;
pub mod device;
pub mod fs;
pub mod guard;
pub mod isolation;
pub mod log_writer;
pub mod observe;
pub mod server;
pub mod shares;
