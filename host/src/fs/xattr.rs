//! Extended attributes.
//!
//! The system calls take no `O_PATH` descriptor. Regular files and directories
//! are opened for reading; what must not be opened (links, devices), or cannot
//! be, is reached by its link in `/proc/self/fd`, which ends at the inode and
//! never behind it. Where that is out of reach the answer is `ENOTSUP`.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, OFlags, XattrFlags};
use rustix::io::Errno;

use super::SharedDir;
use super::inode::{Inode, NodeFd};
use super::xattrmap::Access;

/// Largest value and largest list Linux knows, in bytes.
const MAX_BYTES: usize = 64 << 10;

/// What a program may do that others may not. The host's kernel takes it from
/// a file at write(2), and not at a store into a mapping.
const CAPABILITY: &CStr = c"security.capability";

/// Answer to GETXATTR and LISTXATTR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XattrReply {
    /// Bytes needed, when that was asked.
    Size(u32),
    /// The value, or the names with a NUL after each.
    Value(Vec<u8>),
}

/// A way to an inode that the xattr calls accept.
enum Way<'a> {
    Open(OwnedFd),
    /// Its path in procfs, good while the descriptor is open.
    Link(NodeFd<'a>, String),
}

impl SharedDir {
    /// Whether the guest may use extended attributes.
    pub fn serves_xattrs(&self) -> bool {
        self.options.xattr
    }

    /// Sets an attribute. With `kill_sgid` the setgid bit goes as well, from
    /// whatever kind of inode: the guest's kernel has decided that it must.
    /// Errors: `E2BIG` above 64 KiB.
    pub fn setxattr(
        &self,
        nodeid: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
        kill_sgid: bool,
    ) -> Result<(), Errno> {
        self.require_writable()?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if value.len() > MAX_BYTES {
            return Err(Errno::TOOBIG);
        }
        let name = &*self.host_name(name, Access::Change)?;
        let inode = self.inode_to_change(nodeid)?;
        match self.way_to(&inode)? {
            Way::Open(fd) => rustix::fs::fsetxattr(fd, name, value, flags)?,
            Way::Link(_fd, path) => rustix::fs::setxattr(path, name, value, flags)?,
        }
        if kill_sgid {
            self.kill_sgid(&inode)?;
        }
        Ok(())
    }

    /// The value, at most `size` bytes (`ERANGE` if longer); `size` 0 asks for
    /// the length only.
    pub fn getxattr(&self, nodeid: u64, name: &CStr, size: usize) -> Result<XattrReply, Errno> {
        let name = &*self.host_name(name, Access::Read)?;
        let inode = self.inode(nodeid)?;
        match (self.way_to(&inode)?, size) {
            (Way::Open(fd), 0) => length(rustix::fs::fgetxattr_query(fd, name)),
            (Way::Link(_fd, path), 0) => length(rustix::fs::getxattr_query(path, name)),
            (Way::Open(fd), _) => value(size, |buf| {
                rustix::fs::fgetxattr(fd, name, spare_capacity(buf))
            }),
            (Way::Link(_fd, path), _) => value(size, |buf| {
                rustix::fs::getxattr(path, name, spare_capacity(buf))
            }),
        }
    }

    /// The names that the guest may see, under the rules of
    /// [`SharedDir::getxattr`].
    pub fn listxattr(&self, nodeid: u64, size: usize) -> Result<XattrReply, Errno> {
        let inode = self.inode(nodeid)?;
        // All of it, since what is hidden takes no room.
        let mut list = Vec::with_capacity(MAX_BYTES);
        match self.way_to(&inode)? {
            Way::Open(fd) => rustix::fs::flistxattr(fd, spare_capacity(&mut list))?,
            Way::Link(_fd, path) => rustix::fs::listxattr(path, spare_capacity(&mut list))?,
        };
        let seen = self.xattr_names.list_to_guest(&list, self.serves_acls());
        match size {
            0 => length(Ok(seen.len())),
            _ if size < seen.len() => Err(Errno::RANGE),
            _ => Ok(XattrReply::Value(seen)),
        }
    }

    /// Removes an attribute.
    pub fn removexattr(&self, nodeid: u64, name: &CStr) -> Result<(), Errno> {
        self.require_writable()?;
        let name = &*self.host_name(name, Access::Change)?;
        let inode = self.inode_to_change(nodeid)?;
        match self.way_to(&inode)? {
            Way::Open(fd) => rustix::fs::fremovexattr(fd, name),
            Way::Link(_fd, path) => rustix::fs::removexattr(path, name),
        }
    }

    /// Whether an inode has an attribute; a file system that knows none has
    /// not.
    pub(super) fn has_xattr(&self, inode: &Inode, name: &CStr) -> Result<bool, Errno> {
        let queried = match self.way_to(inode)? {
            Way::Open(fd) => rustix::fs::fgetxattr_query(fd, name),
            Way::Link(_fd, path) => rustix::fs::getxattr_query(path, name),
        };
        match queried {
            Ok(_) => Ok(true),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn host_name<'n>(
        &self,
        name: &'n CStr,
        access: Access,
    ) -> Result<Cow<'n, CStr>, Errno> {
        self.xattr_names.to_host(name, access, self.serves_acls())
    }

    /// Takes the capabilities that the guest gave a file, before it is
    /// changed, where the host's kernel does not do so because it does not
    /// know them by their name.
    pub fn drop_capability_of(&self, file: impl AsFd) -> Result<(), Errno> {
        match self.xattr_names.mapped_capability() {
            Some(name) => unless_absent(rustix::fs::fremovexattr(file, name)),
            None => Ok(()),
        }
    }

    /// The same of a file that is not open.
    pub(super) fn drop_capability(&self, inode: &Inode) -> Result<(), Errno> {
        match self.xattr_names.mapped_capability() {
            Some(name) if inode.kind() == FileType::RegularFile => self.take(inode, name),
            _ => Ok(()),
        }
    }

    /// Takes from a file that is changed through the window what write(2)
    /// would take: the host's capabilities and the guest's.
    pub(super) fn drop_all_capabilities(&self, inode: &Inode) -> Result<(), Errno> {
        if self.has_xattr(inode, CAPABILITY).unwrap_or(false) {
            self.take(inode, CAPABILITY)?;
        }
        self.drop_capability(inode)
    }

    /// Removes an attribute, if it is there.
    fn take(&self, inode: &Inode, name: &CStr) -> Result<(), Errno> {
        unless_absent(match self.way_to(inode)? {
            Way::Open(fd) => rustix::fs::fremovexattr(fd, name),
            Way::Link(_fd, path) => rustix::fs::removexattr(path, name),
        })
    }

    fn way_to<'a>(&self, inode: &'a Inode) -> Result<Way<'a>, Errno> {
        if let FileType::RegularFile | FileType::Directory = inode.kind() {
            // NONBLOCK: a lease somebody holds is not worth waiting for.
            if let Ok(open) = self.reopen(inode, OFlags::RDONLY | OFlags::NONBLOCK) {
                return Ok(Way::Open(open));
            }
        }
        let fd = inode.fd()?;
        let path = self.proc.whole_path(fd.as_fd()).ok_or(Errno::NOTSUP)?;
        Ok(Way::Link(fd, path))
    }

    fn kill_sgid(&self, inode: &Inode) -> Result<(), Errno> {
        let mode = rustix::fs::fstat(inode.fd()?)?.st_mode;
        if mode & 0o2000 == 0 {
            return Ok(());
        }
        self.set_mode(inode.fd()?, mode & !0o2000)
    }
}

fn unless_absent(removed: Result<(), Errno>) -> Result<(), Errno> {
    match removed {
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        other => other,
    }
}

fn length(queried: Result<usize, Errno>) -> Result<XattrReply, Errno> {
    let bytes = u32::try_from(queried?).map_err(|_| Errno::TOOBIG)?;
    Ok(XattrReply::Size(bytes))
}

/// Reads into a buffer of the size asked for, or the largest that is of use.
fn value(
    size: usize,
    read: impl FnOnce(&mut Vec<u8>) -> Result<usize, Errno>,
) -> Result<XattrReply, Errno> {
    let mut buffer = Vec::with_capacity(size.min(MAX_BYTES));
    read(&mut buffer)?;
    Ok(XattrReply::Value(buffer))
}
