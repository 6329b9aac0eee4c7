//! Names to nodes, and back to nothing.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use daxwindow_shared::fuse::ROOT_ID;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Statx};
use rustix::io::Errno;

use super::attr::{key_of, kind_of, stat};
use super::inode::Inode;
use super::{Entry, Name, SharedDir};

/// How every name is resolved: beneath its parent, through no link of any
/// kind. The last component may be a link itself when it is opened with
/// `O_PATH | O_NOFOLLOW`.
pub(super) const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// An inode found by name, not yet known to the guest.
pub(super) struct Found {
    pub(super) fd: OwnedFd,
    pub(super) stat: Statx,
}

impl Found {
    /// Takes stock of an `O_PATH` descriptor.
    pub(super) fn new(fd: OwnedFd) -> Result<Found, Errno> {
        let stat = stat(&fd)?;
        Ok(Found { fd, stat })
    }

    pub(super) fn kind(&self) -> FileType {
        kind_of(&self.stat)
    }
}

/// Finds one name in a directory.
pub(super) fn find(dir: impl AsFd, name: Name<'_>) -> Result<Found, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(dir, name.as_c_str(), flags, Mode::empty(), RESOLVE)?;
    Found::new(fd)
}

impl SharedDir {
    /// Resolves one name in a directory and counts one lookup of what it
    /// names. A symbolic link is found itself.
    pub fn lookup(&self, parent: u64, name: Name<'_>) -> Result<Entry, Errno> {
        let dir = self.inode(parent)?;
        self.lookup_in(&dir, name)
    }

    pub(super) fn lookup_in(&self, dir: &Inode, name: Name<'_>) -> Result<Entry, Errno> {
        let found = find(dir.fd()?, name)?;
        self.bind(dir, found)
    }

    /// Makes an inode found in `dir` known to the guest, one lookup counted.
    pub(super) fn bind(&self, dir: &Inode, found: Found) -> Result<Entry, Errno> {
        let attr = self.attr_of(&found.stat);
        let (key, kind) = (key_of(&found.stat), found.kind());
        let submount = kind == FileType::Directory && key.mount != dir.mount();
        let (nodeid, dax) = self.inodes.bind(dir.session(), key, kind, found.fd)?;
        Ok(Entry {
            nodeid,
            generation: 0,
            attr,
            dax,
            submount,
        })
    }

    /// Whether a node has DAX. No node, or none decided about: no.
    pub fn is_dax(&self, nodeid: u64) -> bool {
        self.inodes.get(nodeid).and_then(|inode| inode.dax()) == Some(true)
    }

    /// Decides for as long as the node lives whether it has DAX, unless that
    /// is decided (by another of its names, at the same time); answers what
    /// holds.
    pub fn settle_dax(&self, nodeid: u64, dax: bool) -> bool {
        self.inodes
            .get(nodeid)
            .is_some_and(|inode| inode.settle_dax(dax))
    }

    /// Path of a name from the top of the share, as it is on the host now;
    /// none if the parent is known no more, has been moved out of the share,
    /// or is too deep for the host to say.
    pub fn path_in_share(&self, parent: u64, name: Name<'_>) -> Option<PathBuf> {
        let (root, dir) = (self.inodes.get(ROOT_ID)?, self.inodes.get(parent)?);
        let root = self.proc.path(root.fd().ok()?)?;
        let dir = self.proc.path(dir.fd().ok()?)?;
        let name = OsStr::from_bytes(name.as_c_str().to_bytes());
        Some(dir.strip_prefix(root).ok()?.join(name))
    }

    /// Takes back `count` lookups of a node; the last ends it. Nothing is
    /// wrong with an unknown node or a count too high.
    pub fn forget(&self, nodeid: u64, count: u64) {
        self.inodes.forget(nodeid, count);
    }

    /// Target of a symbolic link, as it is written; nobody here follows it.
    pub fn readlink(&self, nodeid: u64) -> Result<Vec<u8>, Errno> {
        let inode = self.inode(nodeid)?;
        if inode.kind() != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = rustix::fs::readlinkat(inode.fd()?, c"", Vec::new())?;
        Ok(target.into_bytes())
    }
}
