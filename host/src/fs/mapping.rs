//! Files for the window.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::SharedDir;
use crate::dax::{MapFile, MapSource, StoreRange};

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
