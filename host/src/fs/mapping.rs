//! Files for the window.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::SharedDir;
use crate::dax::{MapFile, MapSource};

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
        let fd = self.proc.reopen(inode.fd()?, access)?;
        Ok(MapFile { fd: Arc::new(fd) })
    }
}
