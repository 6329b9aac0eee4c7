//! The shared directory as one guest sees it. (Interface; being filled in.)

use std::ffi::CStr;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use daxwindow_shared::fuse::{Attr, FallocateIn, KStatfs, OpenOut, SetattrIn};
use rustix::io::Errno;

/// Who sent the request, from its header.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// One checked path component: not empty, at most 255 bytes, no slash, not "." or "..".
#[derive(Clone, Copy, Debug)]
pub struct Name<'a>(&'a CStr);

/// Result of lookup and of all that create. `attr.flags` is zero here: DAX is the policy's business.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub nodeid: u64,
    pub generation: u64,
    pub attr: Attr,
}

/// One directory entry handed to a READDIR sink.
#[derive(Clone, Copy, Debug)]
pub struct DirItem<'a> {
    pub ino: u64,
    /// Cookie of the *next* entry.
    pub offset: u64,
    /// DT_* type.
    pub typ: u32,
    pub name: &'a CStr,
}

/// An open file and the rights it was opened with.
#[derive(Debug)]
pub struct OpenFile {
    pub file: File,
    pub readable: bool,
    pub writable: bool,
    pub append: bool,
}

#[derive(Clone, Debug)]
pub struct ShareOptions {
    pub readonly: bool,
}

pub struct SharedDir {}

#[allow(unused_variables)]
impl SharedDir {
    pub fn open(root: &Path, options: ShareOptions) -> std::io::Result<SharedDir> {
        todo!()
    }
    pub fn readonly(&self) -> bool {
        todo!()
    }
    /// Forgets every inode but the root and closes every handle.
    pub fn reset(&self) {
        todo!()
    }

    pub fn lookup(&self, parent: u64, name: Name<'_>) -> Result<Entry, Errno> {
        todo!()
    }
    pub fn forget(&self, nodeid: u64, count: u64) {
        todo!()
    }
    pub fn getattr(&self, nodeid: u64, fh: Option<u64>) -> Result<Attr, Errno> {
        todo!()
    }
    pub fn setattr(&self, caller: Caller, nodeid: u64, set: &SetattrIn) -> Result<Attr, Errno> {
        todo!()
    }
    pub fn readlink(&self, nodeid: u64) -> Result<Vec<u8>, Errno> {
        todo!()
    }
    pub fn symlink(
        &self,
        caller: Caller,
        parent: u64,
        name: Name<'_>,
        target: &CStr,
    ) -> Result<Entry, Errno> {
        todo!()
    }
    pub fn mknod(
        &self,
        caller: Caller,
        parent: u64,
        name: Name<'_>,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> Result<Entry, Errno> {
        todo!()
    }
    pub fn mkdir(
        &self,
        caller: Caller,
        parent: u64,
        name: Name<'_>,
        mode: u32,
        umask: u32,
    ) -> Result<Entry, Errno> {
        todo!()
    }
    pub fn unlink(&self, parent: u64, name: Name<'_>) -> Result<(), Errno> {
        todo!()
    }
    pub fn rmdir(&self, parent: u64, name: Name<'_>) -> Result<(), Errno> {
        todo!()
    }
    pub fn rename(
        &self,
        parent: u64,
        name: Name<'_>,
        new_parent: u64,
        new_name: Name<'_>,
        flags: u32,
    ) -> Result<(), Errno> {
        todo!()
    }
    pub fn link(&self, nodeid: u64, new_parent: u64, new_name: Name<'_>) -> Result<Entry, Errno> {
        todo!()
    }

    /// Returns the handle; `flags` are the guest's open(2) flags.
    pub fn open_file(&self, nodeid: u64, flags: u32, kill_suidgid: bool) -> Result<u64, Errno> {
        todo!()
    }
    pub fn create(
        &self,
        caller: Caller,
        parent: u64,
        name: Name<'_>,
        flags: u32,
        mode: u32,
        umask: u32,
    ) -> Result<(Entry, u64), Errno> {
        todo!()
    }
    pub fn release(&self, nodeid: u64, fh: u64) -> Result<(), Errno> {
        todo!()
    }
    /// The open file behind a handle, if it is a handle of this inode; for READ, WRITE and friends.
    pub fn file(&self, nodeid: u64, fh: u64) -> Result<Arc<OpenFile>, Errno> {
        todo!()
    }
    pub fn flush(&self, nodeid: u64, fh: u64) -> Result<(), Errno> {
        todo!()
    }
    pub fn fsync(&self, nodeid: u64, fh: u64, datasync: bool) -> Result<(), Errno> {
        todo!()
    }
    pub fn fallocate(&self, nodeid: u64, args: &FallocateIn) -> Result<(), Errno> {
        todo!()
    }
    pub fn lseek(&self, nodeid: u64, fh: u64, offset: u64, whence: u32) -> Result<u64, Errno> {
        todo!()
    }
    /// (nodeid, fh, offset) of source and target.
    pub fn copy_file_range(
        &self,
        from: (u64, u64, u64),
        to: (u64, u64, u64),
        len: u64,
        flags: u64,
    ) -> Result<u64, Errno> {
        todo!()
    }

    pub fn opendir(&self, nodeid: u64) -> Result<u64, Errno> {
        todo!()
    }
    pub fn releasedir(&self, nodeid: u64, fh: u64) -> Result<(), Errno> {
        todo!()
    }
    pub fn fsyncdir(&self, nodeid: u64, fh: u64, datasync: bool) -> Result<(), Errno> {
        todo!()
    }
    /// Feeds entries from the cookie `offset` on to `sink` until it answers false or the directory ends.
    /// For READDIRPLUS the sink itself calls `lookup` (never for "." and "..").
    pub fn readdir(
        &self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        sink: &mut dyn FnMut(DirItem<'_>) -> bool,
    ) -> Result<(), Errno> {
        todo!()
    }

    pub fn statfs(&self, nodeid: u64) -> Result<KStatfs, Errno> {
        todo!()
    }
    pub fn syncfs(&self, nodeid: u64) -> Result<(), Errno> {
        todo!()
    }
    pub fn setxattr(
        &self,
        nodeid: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
        kill_sgid: bool,
    ) -> Result<(), Errno> {
        todo!()
    }
    /// The value, at most `size` bytes (ERANGE if longer); `size` 0 asks for the length only.
    pub fn getxattr(&self, nodeid: u64, name: &CStr, size: usize) -> Result<XattrReply, Errno> {
        todo!()
    }
    pub fn listxattr(&self, nodeid: u64, size: usize) -> Result<XattrReply, Errno> {
        todo!()
    }
    pub fn removexattr(&self, nodeid: u64, name: &CStr) -> Result<(), Errno> {
        todo!()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XattrReply {
    Size(u32),
    Value(Vec<u8>),
}

#[allow(unused_variables)]
impl<'a> Name<'a> {
    pub fn new(bytes: &'a CStr) -> Result<Name<'a>, Errno> {
        todo!()
    }
}

impl crate::dax::MapSource for SharedDir {
    fn open_for_mapping(
        &self,
        _nodeid: u64,
        _writable: bool,
    ) -> Result<crate::dax::MapFile, Errno> {
        todo!()
    }
}

#[allow(dead_code)]
fn unused(_: OpenOut) {}
