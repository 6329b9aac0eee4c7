//! Real Linux guests on a stock QEMU. Needs Linux on x86-64, root for the
//! padded view, the daemon built in the same profile, and for the first run
//! apt with a Debian mirror; no KVM.
//!
//! A boot takes many seconds, so a test packs what it can into one. Tests are
//! begun in the order of their names, two at a time on two processors; the one
//! that takes longest is named so that nothing waits for it alone at the end.

mod at_work;
mod basics;
mod buffers;
mod counted;
mod databases;
mod exercisers;
mod forest;
#[path = "../common/fsx.rs"]
mod fsx;
mod full;
mod large;
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
#[path = "../common/stress.rs"]
mod stress;
#[path = "../common/pjdfstest.rs"]
mod suite;
mod together;
mod traps;
mod trees;
mod user_mode;
mod whole;
mod workshop;
