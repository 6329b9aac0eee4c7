//! Files for the window.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{Access, AtFlags, OFlags};
use rustix::io::Errno;

use super::procfd::ProcFd;
use super::{HostInode, SharedDir};
use crate::dax::{MapFile, MapSource, NoDax, StoreRange};

/// statfs(2).
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;

impl SharedDir {
    /// Whether the file could be opened for writing with no other effect;
    /// found out without doing so. Immutable files, read-only mounts and
    /// files of others are reasons.
    ///
    /// # Errors
    ///
    /// [`NoDax::NotWritable`] and [`NoDax::CopiesUp`].
    pub fn opens_writable(&self, nodeid: u64) -> Result<(), NoDax> {
        let not = |_: Errno| NoDax::NotWritable;
        let inode = self.inode(nodeid).map_err(not)?;
        let fd = inode.fd().map_err(not)?;
        let link = ProcFd::link(fd.as_fd());
        let flags = AtFlags::EACCESS;
        rustix::fs::accessat(self.proc.dir(), link.as_c_str(), Access::WRITE_OK, flags)
            .map_err(not)?;
        match rustix::fs::fstatfs(&fd).map_err(not)?.f_type as u64 {
            OVERLAYFS_SUPER_MAGIC => Err(NoDax::CopiesUp),
            _ => Ok(()),
        }
    }
}

/// Files that the guest's front end refuses to map, of one session.
#[derive(Debug, Default)]
pub(super) struct Unmappable(Mutex<HashSet<HostInode>>);

impl Unmappable {
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

/// Files of which this is remembered; over that it is found out once more.
const MOST_UNMAPPABLE: usize = 4096;

impl SharedDir {
    /// Whether the front end was found to refuse the file. The node may be
    /// another than at the time: a guest drops an inode that has lost DAX.
    pub(super) fn is_unmappable(&self, nodeid: u64) -> bool {
        let known = self.unmappable.0.lock();
        !known.is_empty()
            && self
                .host_inode(nodeid)
                .is_some_and(|inode| known.contains(&inode))
    }
}

impl MapSource for SharedDir {
    fn refused(&self, nodeid: u64) {
        let Some(inode) = self.host_inode(nodeid) else {
            return;
        };
        let mut known = self.unmappable.0.lock();
        if known.len() >= MOST_UNMAPPABLE {
            known.clear();
        }
        known.insert(inode);
        drop(known);
        self.inodes.withdraw_dax(nodeid);
    }

    /// Opens a regular file by its node, so that it may have no name, no
    /// permission bits and no open handle.
    fn open_for_mapping(&self, nodeid: u64, writable: bool) -> Result<MapFile, Errno> {
        if writable {
            self.require_writable()?;
        }
        let inode = self.inode(nodeid)?;
        inode.require_regular()?;
        let access = if writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        let fd = self.reopen(&inode, access)?;
        Ok(MapFile { fd: Arc::new(fd) })
    }

    fn make_room(&self, range: &StoreRange, scarce: u64) -> Result<(), Errno> {
        self.allocate(range, scarce)
    }

    fn bytes(&self, nodeid: u64) -> Result<u64, Errno> {
        let inode = self.inode(nodeid)?;
        inode.require_regular()?;
        let stat = rustix::fs::fstat(inode.fd()?)?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }
}
