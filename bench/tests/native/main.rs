//! Shares mounted on this machine by `daxwindow-bench mount`, with no virtual
//! machine: foreign test suites at native speed, and the tool's own laws.
//! Needs root, `/dev/fuse`, the daemon built in the same profile, and for the
//! first run apt with a Debian mirror and the crates registry.

mod ends;
mod exercisers;
#[path = "../common/fsx.rs"]
mod fsx;
mod pjdfstest;
mod requests;
mod share;
#[path = "../common/stress.rs"]
mod stress;
#[path = "../common/pjdfstest.rs"]
mod suite;
