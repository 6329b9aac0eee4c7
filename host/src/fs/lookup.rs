//! Names to nodes, and back to nothing.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use daxwindow_shared::fuse::ROOT_ID;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Statx};
use rustix::io::Errno;

use super::attr::{key_of, kind_of, stat, stat_at};
use super::inode::{FileHandle, Identity, Inode, Known, Mount, NodeFd, Seen, Timestamp};
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
    /// A time at which it was alive.
    then: Timestamp,
}

impl Found {
    /// Takes stock of an `O_PATH` descriptor.
    pub(super) fn new(fd: OwnedFd) -> Result<Found, Errno> {
        let then = Timestamp::now();
        let stat = stat(&fd)?;
        Ok(Found { fd, stat, then })
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

    /// Tries the cheapest way first that may do: one system call for a node
    /// that is known, two for a new one on a file system that is known well,
    /// and else a descriptor. The directory remembers which kind was last.
    pub(super) fn lookup_in(&self, dir: &Inode, name: Name<'_>) -> Result<Entry, Errno> {
        let fd = dir.fd()?;
        if name.is_component() {
            if dir.hints().finds_known() && dir.mount().knows_by_number() {
                let next_id = self.inodes.next_id();
                let stat = stat_at(&fd, name)?;
                if let Some(known) = self.inodes.known(dir, &stat, next_id) {
                    return Ok(self.entry_of(dir, &stat, known));
                }
            }
            if dir.mount().pairs_by_name()
                && let Some(entry) = self.pair(dir, &fd, name)?
            {
                return Ok(entry);
            }
        }
        self.bind(dir, name.as_c_str(), find(&fd, name)?)
    }

    /// By handle and attributes of one name, if they are surely of one inode.
    fn pair(&self, dir: &Inode, fd: &NodeFd<'_>, name: Name<'_>) -> Result<Option<Entry>, Errno> {
        let then = Timestamp::now();
        let handle = match FileHandle::at(fd.as_fd(), name.as_c_str()) {
            Ok(handle) => handle,
            // No handle, or no longer the kernel of the trial.
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let stat = stat_at(fd, name)?;
        let Some(known) = self.inodes.bind_pair(dir, then, handle, &stat) else {
            return Ok(None);
        };
        let known = known?;
        dir.hints().note_lookup(known.before);
        Ok(Some(self.entry_of(dir, &stat, known)))
    }

    /// Makes an inode known to the guest, one lookup counted. It was found in
    /// `dir` by `name`, which is empty if it has none.
    pub(super) fn bind(&self, dir: &Inode, name: &CStr, found: Found) -> Result<Entry, Errno> {
        let mount = self.mount_of(dir, found.fd.as_fd(), &found.stat)?;
        let seen = Seen {
            mount: &mount,
            stat: &found.stat,
            then: found.then,
            identity: mount.identity_of(&found.fd, &found.stat, (dir.id(), name))?,
            fd: Some(found.fd),
        };
        let known = self.inodes.bind(dir.session(), seen)?;
        dir.hints().note_lookup(known.before);
        Ok(self.entry_of(dir, &found.stat, known))
    }

    /// The same for a file just created and open.
    pub(super) fn bind_created(
        &self,
        dir: &Inode,
        name: Name<'_>,
        file: &OwnedFd,
    ) -> Result<Entry, Errno> {
        let then = Timestamp::now();
        let stat = stat(file)?;
        let Some(handle) = dir.mount().handle_of(file)? else {
            let node = self.proc.reopen(file, OFlags::PATH)?;
            return self.bind(dir, name.as_c_str(), Found::new(node)?);
        };
        let seen = Seen {
            mount: &self.mount_of(dir, file.as_fd(), &stat)?,
            stat: &stat,
            then,
            identity: Identity::Handle(handle),
            fd: None,
        };
        let known = self.inodes.bind(dir.session(), seen)?;
        Ok(self.entry_of(dir, &stat, known))
    }

    /// Looks a name up that was just given to the node `inode`: it is the
    /// node's also where the file system below has another inode for each name.
    pub(super) fn linked(
        &self,
        dir: &Inode,
        name: Name<'_>,
        inode: &Inode,
    ) -> Result<Entry, Errno> {
        if dir.mount().knows_by_number() {
            return self.lookup_in(dir, name);
        }
        let found = find(dir.fd()?, name)?;
        match self.inodes.known_again(dir, inode, &found.stat) {
            Some(known) => Ok(self.entry_of(dir, &found.stat, known)),
            None => self.bind(dir, name.as_c_str(), found),
        }
    }

    /// The mount of an inode that was found in `dir`.
    fn mount_of(&self, dir: &Inode, fd: BorrowedFd<'_>, stat: &Statx) -> Result<Arc<Mount>, Errno> {
        match dir.mount().has(&key_of(stat)) {
            true => Ok(Arc::clone(dir.mount())),
            false => self.inodes.mounts().of(&self.proc, fd, stat),
        }
    }

    /// Opens a node's inode once more. The caller has checked that it is a
    /// regular file or a directory.
    pub(super) fn reopen(&self, inode: &Inode, flags: OFlags) -> Result<OwnedFd, Errno> {
        let opened = match inode.open_by_handle(flags) {
            Some(opened) => opened?,
            None => self.proc.reopen(inode.fd()?, flags)?,
        };
        if flags.intersects(OFlags::ACCMODE) {
            inode.note_copied();
        }
        Ok(opened)
    }

    /// Whether a node has DAX. No node, or none decided about: no.
    pub fn is_dax(&self, nodeid: u64) -> bool {
        self.inodes.get(nodeid).and_then(|inode| inode.dax()) == Some(true)
    }

    /// Decides for as long as the node lives whether it has DAX, unless that
    /// is decided (by another of its names, at the same time); answers what
    /// holds.
    pub fn settle_dax(&self, nodeid: u64, dax: bool) -> bool {
        let dax = dax && self.unmappable(nodeid).is_none();
        self.inodes.settle_dax(nodeid, dax)
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
        let known = self.knows_layers().then(|| self.host_inode(nodeid));
        self.inodes.forget(nodeid, count);
        if let Some(inode) = known.flatten() {
            self.forget_layer(inode, nodeid);
        }
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

    fn entry_of(&self, dir: &Inode, stat: &Statx, known: Known) -> Entry {
        let is_dir = kind_of(stat) == FileType::Directory;
        Entry {
            nodeid: known.id,
            generation: 0,
            attr: self.attr_of(stat),
            dax: known.dax,
            submount: is_dir && !dir.mount().has(&key_of(stat)),
        }
    }
}
