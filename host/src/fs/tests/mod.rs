//! The room against real directories. Each file tests one kind of promise.
//! Whoever runs the tests is the daemon's user: root switches to its callers,
//! anybody else creates everything as themselves, and either is asserted.

mod create;
mod dax;
mod dir;
mod escape;
mod handles;
mod lifetime;
mod locks;
mod mapping;
mod names;
mod odd_lower;
mod open;
mod readonly;
mod setattr;
mod xattr;

use std::ffi::CStr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use daxwindow_shared::fuse::{ROOT_ID, SetattrIn};
use rustix::fs::Mode;
use tempfile::TempDir;

use super::{Caller, Entry, InodeFileHandles, Name, ShareOptions, SharedDir};

/// The caller that is root in the guest.
const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};
/// A caller that is an ordinary user.
const USER: Caller = Caller {
    uid: 1000,
    gid: 1000,
    pid: 2,
};

const O_RDONLY: u32 = libc::O_RDONLY as u32;
const O_WRONLY: u32 = libc::O_WRONLY as u32;
const O_RDWR: u32 = libc::O_RDWR as u32;

/// A shared directory with a place outside of it.
struct Share {
    all: TempDir,
    fs: SharedDir,
}

impl Share {
    fn new() -> Share {
        Share::with(ShareOptions::default())
    }

    fn with(options: ShareOptions) -> Share {
        Share::within(tempfile::tempdir().unwrap(), options)
    }

    fn within(all: TempDir, options: ShareOptions) -> Share {
        // As main does; the umask is the process's, and zero in all tests.
        rustix::process::umask(Mode::empty());
        std::fs::create_dir(all.path().join("share")).unwrap();
        std::fs::create_dir(all.path().join("outside")).unwrap();
        let fs = SharedDir::open(&all.path().join("share"), options).unwrap();
        Share { all, fs }
    }

    /// A path in the shared directory, as the host sees it.
    fn path(&self, name: &str) -> PathBuf {
        self.all.path().join("share").join(name)
    }

    fn outside(&self, name: &str) -> PathBuf {
        self.all.path().join("outside").join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn mode(&self, name: &str) -> u32 {
        std::fs::symlink_metadata(self.path(name)).unwrap().mode() & 0o7777
    }

    fn owner(&self, name: &str) -> (u32, u32) {
        let meta = std::fs::symlink_metadata(self.path(name)).unwrap();
        (meta.uid(), meta.gid())
    }

    /// Looks a name in the root up.
    fn find(&self, name: &CStr) -> Entry {
        self.fs.lookup(ROOT_ID, n(name)).unwrap()
    }

    /// Writes a file and looks it up.
    fn file(&self, name: &CStr, content: &str) -> u64 {
        self.write(name.to_str().unwrap(), content);
        self.find(name).nodeid
    }
}

fn n(name: &CStr) -> Name<'_> {
    Name::new(name).unwrap()
}

fn set(valid: u32, change: impl FnOnce(&mut SetattrIn)) -> SetattrIn {
    let mut set = SetattrIn {
        valid,
        ..SetattrIn::default()
    };
    change(&mut set);
    set
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Who owns what `caller` creates.
fn creator(caller: Caller) -> (u32, u32) {
    if is_root() {
        return (caller.uid, caller.gid);
    }
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    (uid.as_raw(), gid.as_raw())
}
