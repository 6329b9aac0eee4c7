//! Real Linux guests on a stock QEMU. Needs Linux on x86-64, root for the
//! padded view, the daemon built in the same profile, and for the first run
//! apt with a Debian mirror; no KVM.
//!
//! A boot takes many seconds, so a test packs what it can into one.

mod basics;
mod buffers;
mod counted;
mod databases;
mod exercisers;
mod forest;
mod full;
mod lifecycle;
mod lower;
mod mounted;
mod pjdfstest;
mod policy;
mod report;
mod root;
mod semantics;
mod several;
mod sqlite;
mod together;
mod traps;
mod trees;
mod work;
mod workshop;
