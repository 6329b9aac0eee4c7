//! Host file systems that fail: full, failing reads and writes, read-only,
//! gone. The guest gets the right errno, what was acknowledged is there, and
//! the daemon goes on serving. Needs root, for mounts of the tests' own.

#[path = "../common/mod.rs"]
mod common;

mod failing;
mod failing_fs;
mod full;
mod gone;
mod mounted;
mod readonly;
mod unmappable;

use rustix::io::Errno;

/// The errno of what must have failed.
#[track_caller]
fn errno<T>(result: daxwindow_guest::Result<T>) -> Errno {
    result.err().expect("must fail").errno()
}
