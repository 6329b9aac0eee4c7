//! Room on the host's file system for what will be stored through the window.
//!
//! A store through a mapping where the file has a hole takes a block when it
//! is too late to refuse: with none left the kernel raises SIGBUS in whoever
//! stores, which is the guest's VMM. So while room is scarce, the holes of a
//! range are filled before it is mapped, and where that fails the guest gets
//! the error. While there is plenty, sparse files stay sparse.

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

use super::SharedDir;
use crate::dax::StoreRange;

/// statfs(2). There a load from a hole takes a page as a store does.
const TMPFS_MAGIC: u64 = 0x0102_1994;

impl SharedDir {
    /// Makes sure that there is room for what `range` may be stored, if less
    /// than `scarce` bytes are left.
    pub(super) fn allocate(&self, range: &StoreRange, scarce: u64) -> Result<(), Errno> {
        let inode = self.inode(range.nodeid)?;
        inode.require_regular()?;
        let path = inode.fd()?;
        let system = rustix::fs::fstatvfs(&path)?;
        let left = system.f_bavail.saturating_mul(system.f_frsize);
        // Without blocks at all it has no limit, or tells nothing.
        if left >= scarce || system.f_blocks == 0 || self.readonly() {
            return Ok(());
        }
        let takes_room = range.write || rustix::fs::fstatfs(&path)?.f_type as u64 == TMPFS_MAGIC;
        let size = u64::try_from(rustix::fs::fstat(&path)?.st_size).unwrap_or(0);
        let end = range.offset.saturating_add(range.len).min(size);
        if !takes_room || end <= range.offset {
            return Ok(());
        }
        let Ok(file) = self.reopen(&inode, rustix::fs::OFlags::RDWR) else {
            // Then nobody stores, or mapping says why not.
            return Ok(());
        };
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(range.offset));
        if hole.is_ok_and(|hole| hole >= end) {
            return Ok(());
        }
        let len = end - range.offset;
        let keep = FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| rustix::fs::fallocate(&file, keep, range.offset, len)) {
            Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => Err(errno),
            // Where it cannot be asked for, it is as before.
            _ => Ok(()),
        }
    }
}
