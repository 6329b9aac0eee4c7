//! File systems of the tests' own, gone with the value.

use std::ffi::CString;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

/// A tmpfs on a directory of its own.
pub(crate) struct Tmpfs {
    place: TempDir,
}

impl Tmpfs {
    /// With mount options as `size=4m`.
    pub(crate) fn new(options: &str) -> Tmpfs {
        let place = tempfile::tempdir().expect("a directory");
        let options = CString::new(options).expect("no zero");
        let flags = MountFlags::empty();
        mount("faults", place.path(), "tmpfs", flags, &*options)
            .expect("mounted, which needs root");
        Tmpfs { place }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }

    /// Makes it read-only or writable again.
    pub(crate) fn remount(&self, readonly: bool) -> rustix::io::Result<()> {
        let flags = match readonly {
            true => MountFlags::RDONLY,
            false => MountFlags::empty(),
        };
        mount_remount(self.path(), flags, "")
    }

    /// Takes it out of the tree, as `umount -l` does.
    pub(crate) fn detach(&self) {
        unmount(self.path(), UnmountFlags::DETACH).expect("detached");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // It may be detached already, or in use by a test that fails.
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}
