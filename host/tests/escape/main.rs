//! No request leads out of the shared directory, whatever lies in it, whoever
//! moves it about and however the daemon is confined. Needs root.
//!
//! Beside each share lies what no guest may touch; at the end of a test it
//! has to be as it was, change times included.

#[path = "../common/mod.rs"]
mod common;

mod foreign;
mod links;
mod mounts;
mod races;
mod special;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use daxwindow_guest::Result;
use rustix::io::Errno;
use tempfile::TempDir;

/// What no guest may read.
const SECRET: &[u8] = b"nobody in the guest may read this";
/// What is in the share instead.
const INSIDE: &[u8] = b"this is the guest's";

/// With all that isolates the daemon, and with the file system room's own
/// checks alone.
const SANDBOXES: [&[&str]; 2] = [&[], &["--sandbox", "none"]];

/// `share/`, and beside it `outside/` with a file and a directory.
struct House {
    base: TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl House {
    fn new(base: TempDir) -> House {
        let outside = base.path().join("outside");
        std::fs::create_dir_all(outside.join("dir")).expect("directories");
        std::fs::write(outside.join("secret"), SECRET).expect("a file");
        std::fs::write(outside.join("dir/secret"), SECRET).expect("a file");
        std::fs::create_dir(base.path().join("share")).expect("a directory");
        let before = state_of(&outside);
        House { base, before }
    }

    fn share(&self) -> PathBuf {
        self.base.path().join("share")
    }

    fn outside(&self) -> PathBuf {
        self.base.path().join("outside")
    }

    /// Nobody has made, changed or removed anything outside.
    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(state_of(&self.outside()), self.before);
    }
}

/// All that a request could change below `dir`, `dir` included.
fn state_of(dir: &Path) -> BTreeMap<PathBuf, String> {
    let meta = std::fs::symlink_metadata(dir).expect("to be seen");
    let bytes = match meta.is_file() {
        true => std::fs::read(dir).expect("to be read"),
        false => Vec::new(),
    };
    let changed = (meta.ctime(), meta.ctime_nsec(), meta.mtime_nsec());
    let owner = (meta.uid(), meta.gid(), meta.nlink());
    let state = format!("{:o} {owner:?} {changed:?} {bytes:x?}", meta.mode());
    let mut all = BTreeMap::from([(dir.to_owned(), state)]);
    if meta.is_dir() {
        for entry in std::fs::read_dir(dir).expect("to be listed") {
            all.extend(state_of(&entry.expect("an entry").path()));
        }
    }
    all
}

/// A request that must fail, and with one of these.
#[track_caller]
fn refused<T>(result: Result<T>, errnos: &[Errno]) {
    let error = result.err().expect("refused").errno();
    assert!(errnos.contains(&error), "{error} is none of {errnos:?}");
}
