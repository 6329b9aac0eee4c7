//! Files for the window.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, OFlags};
use rustix::io::Errno;

use super::SharedDir;
use super::procfd::ProcFd;
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

impl MapSource for SharedDir {
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
