//! File attributes as lsattr(1) and chattr(1) know them: `FS_IOC_GETFLAGS`
//! and its newer sibling `FS_IOC_FSGETXATTR`.
//!
//! Laws: these four commands and no other reach the host; a guest changes only
//! what concerns the file itself. Project ids and what hands them down are
//! the host's quota, allocation hints and encryption the host's business: to
//! change those is `EPERM`, to send them back as they are is not.

mod sys;

use std::os::fd::OwnedFd;

use daxwindow_shared::fuse::FsXattr;
use rustix::fs::{FileType, IFlags, OFlags};
use rustix::io::Errno;

use super::SharedDir;

/// `FS_*_FL` that a guest may change. Its kernel asks for
/// `CAP_LINUX_IMMUTABLE` there, and the host for the daemon's here.
const FLAGS: IFlags = IFlags::IMMUTABLE
    .union(IFlags::APPEND)
    .union(IFlags::NODUMP)
    .union(IFlags::NOATIME)
    .union(IFlags::SYNC)
    .union(IFlags::DIRSYNC)
    .union(IFlags::COMPRESSED)
    .union(IFlags::NOCOW)
    .union(IFlags::TOPDIR)
    .union(IFlags::NOTAIL)
    // FS_NOCOMP_FL.
    .union(IFlags::from_bits_retain(0x400));

/// `FS_XFLAG_*` with the same meaning: immutable, append, sync, noatime,
/// nodump.
const XFLAGS: u32 = 0x08 | 0x10 | 0x20 | 0x40 | 0x80;

impl SharedDir {
    /// `FS_IOC_GETFLAGS` by a handle of the node.
    pub fn file_flags(&self, nodeid: u64, fh: u64) -> Result<u32, Errno> {
        let flags = rustix::fs::ioctl_getflags(self.attr_fd(nodeid, fh)?);
        Ok(flags.map_err(no_attributes)?.bits())
    }

    /// `FS_IOC_SETFLAGS`.
    pub fn set_file_flags(&self, nodeid: u64, fh: u64, flags: u32) -> Result<(), Errno> {
        self.inode_to_change(nodeid)?;
        let fd = self.attr_fd(nodeid, fh)?;
        let now = rustix::fs::ioctl_getflags(&fd)?;
        let asked = IFlags::from_bits_retain(flags);
        if !FLAGS.contains(asked ^ now) {
            return Err(Errno::PERM);
        }
        rustix::fs::ioctl_setflags(fd, asked)
    }

    /// `FS_IOC_FSGETXATTR`.
    pub fn file_xattr(&self, nodeid: u64, fh: u64) -> Result<FsXattr, Errno> {
        sys::get(&self.attr_fd(nodeid, fh)?).map_err(no_attributes)
    }

    /// `FS_IOC_FSSETXATTR`.
    pub fn set_file_xattr(&self, nodeid: u64, fh: u64, asked: &FsXattr) -> Result<(), Errno> {
        self.inode_to_change(nodeid)?;
        let fd = self.attr_fd(nodeid, fh)?;
        let now = sys::get(&fd)?;
        if !is_allowed(&now, asked) {
            return Err(Errno::PERM);
        }
        sys::set(&fd, asked)
    }

    /// A descriptor for these commands, if the handle is one of the node. They
    /// need no more rights than reading.
    fn attr_fd(&self, nodeid: u64, fh: u64) -> Result<OwnedFd, Errno> {
        let inode = self.inode(nodeid)?;
        match inode.kind() {
            FileType::RegularFile => drop(self.handles.file(nodeid, fh)?),
            FileType::Directory => drop(self.handles.dir(nodeid, fh)?),
            _ => return Err(Errno::NOTTY),
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        self.reopen(&inode, flags)
    }
}

/// What a question for attributes answers where the host cannot say: `ENOTTY`,
/// as of a file that has none. CIFS and FUSE servers say so in other ways, and
/// an overlay in the guest, which asks before it copies a file up, goes on only
/// after this one.
fn no_attributes(errno: Errno) -> Errno {
    match errno {
        Errno::OPNOTSUPP | Errno::PERM | Errno::NOSYS => Errno::NOTTY,
        errno => errno,
    }
}

/// Whether no more than the allowed flags differ. The number of extents is
/// told, never set.
fn is_allowed(now: &FsXattr, asked: &FsXattr) -> bool {
    (now.xflags ^ asked.xflags) & !XFLAGS == 0
        && asked.projid == now.projid
        && asked.extsize == now.extsize
        && asked.cowextsize == now.cowextsize
        && asked.pad == [0; 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_and_hints_are_sent_back_and_not_changed() {
        let now = FsXattr {
            projid: 7,
            xflags: 0x8000_0000,
            extsize: 4096,
            ..Default::default()
        };
        assert!(is_allowed(&now, &now));
        let change = |change: fn(&mut FsXattr)| {
            let mut asked = now;
            change(&mut asked);
            is_allowed(&now, &asked)
        };
        assert!(change(|asked| asked.xflags |= 0x80));
        assert!(change(|asked| asked.nextents = 9), "not looked at");
        assert!(!change(|asked| asked.projid = 0));
        assert!(
            !change(|asked| asked.xflags |= 0x200),
            "project inheritance"
        );
        assert!(!change(|asked| asked.extsize = 0));
        assert!(!change(|asked| asked.cowextsize = 1));
        assert!(!change(|asked| asked.pad[3] = 1));
    }
}
