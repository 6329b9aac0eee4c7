//! The file system around a node.

use daxwindow_shared::fuse::KStatfs;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::SharedDir;

impl SharedDir {
    /// Totals of the file system a node is on.
    pub fn statfs(&self, nodeid: u64) -> Result<KStatfs, Errno> {
        let inode = self.inode(nodeid)?;
        let host = rustix::fs::fstatfs(inode.fd()?)?;
        Ok(KStatfs {
            blocks: host.f_blocks,
            bfree: host.f_bfree,
            bavail: host.f_bavail,
            files: host.f_files,
            ffree: host.f_ffree,
            bsize: host.f_bsize as u32,
            namelen: host.f_namelen as u32,
            frsize: host.f_frsize as u32,
            ..KStatfs::default()
        })
    }

    /// Makes the file system a node is on durable; that of the root if the
    /// node is nothing that is opened here. An error of writing back is told
    /// to each descriptor once, and to a fresh one only if nobody has heard of
    /// it: so each mount has one for this as long as nodes are there, or keeps
    /// what it was told when that was closed.
    pub fn syncfs(&self, nodeid: u64) -> Result<(), Errno> {
        let mut inode = self.inode(nodeid)?;
        let opened = [FileType::RegularFile, FileType::Directory];
        if !opened.contains(&inode.kind()) {
            inode = self.inode(daxwindow_shared::fuse::ROOT_ID)?;
        }
        let open = || self.reopen(&inode, OFlags::RDONLY);
        inode.mount().sync(open)
    }
}
