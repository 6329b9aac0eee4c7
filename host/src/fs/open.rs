//! Opening regular files, and what of the guest's flags reaches the host.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::SharedDir;
use super::handle::Open;

/// An open file and the rights it was opened with.
#[derive(Debug)]
pub struct OpenFile {
    /// The descriptor. Its file position belongs to nobody: use offsets.
    pub file: File,
    /// Opened for reading.
    pub readable: bool,
    /// Opened for writing.
    pub writable: bool,
    /// Opened with `O_APPEND`, which the descriptor itself does not have.
    pub append: bool,
}

/// What the guest's open flags come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Access mode and synchronous writing: all that the host is told.
    pub(super) flags: OFlags,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) append: bool,
    pub(super) exclusive: bool,
    pub(super) truncate: bool,
}

impl Request {
    /// `EINVAL` for what has no meaning here: `O_PATH`, `O_TMPFILE`, access
    /// mode 3. `O_DIRECT` is left out, so that all access meets in the host's
    /// page cache.
    pub(super) fn parse(flags: u32) -> Result<Request, Errno> {
        let asked = OFlags::from_bits_retain(flags);
        if asked.contains(OFlags::PATH) || asked.contains(OFlags::TMPFILE) {
            return Err(Errno::INVAL);
        }
        let access = asked & OFlags::ACCMODE;
        let (readable, writable) = match access {
            OFlags::RDONLY => (true, false),
            OFlags::WRONLY => (false, true),
            OFlags::RDWR => (true, true),
            _ => return Err(Errno::INVAL),
        };
        Ok(Request {
            // Both bits of O_SYNC, of which O_DSYNC is one.
            flags: access | asked & OFlags::SYNC,
            readable,
            writable,
            append: asked.contains(OFlags::APPEND),
            exclusive: asked.contains(OFlags::EXCL),
            truncate: asked.contains(OFlags::TRUNC),
        })
    }

    pub(super) fn opened(self, file: impl Into<File>) -> Open {
        Open::File(Arc::new(OpenFile {
            file: file.into(),
            readable: self.readable,
            writable: self.writable,
            append: self.append,
        }))
    }
}

impl SharedDir {
    /// Opens a regular file and returns its handle; `flags` are the guest's
    /// open(2) flags. `O_TRUNC` is ignored: a guest that was not offered
    /// `ATOMIC_O_TRUNC` truncates by SETATTR. Errors: `EISDIR`, `ELOOP` and
    /// `ENXIO` for other kinds, `EROFS`, `EMFILE`.
    pub fn open_file(&self, nodeid: u64, flags: u32, kill_suidgid: bool) -> Result<u64, Errno> {
        let want = Request::parse(flags)?;
        if want.writable {
            self.require_writable()?;
        }
        let inode = self.inode(nodeid)?;
        inode.require_regular()?;
        let room = self.handles.reserve()?;
        let file = self.reopen(&inode, want.flags)?;
        if kill_suidgid && want.writable {
            self.kill_bits(&inode)?;
        }
        self.handles.add(room, &inode, want.opened(file))
    }

    /// Closes a file handle, and drops the locks that go with it.
    pub fn release(&self, nodeid: u64, fh: u64) -> Result<(), Errno> {
        self.drop_locks_by(nodeid, fh);
        self.handles.remove_file(nodeid, fh)
    }

    /// The open file behind a handle, if it is a handle of this inode; for
    /// READ, WRITE and friends.
    pub fn file(&self, nodeid: u64, fh: u64) -> Result<Arc<OpenFile>, Errno> {
        self.handles.file(nodeid, fh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_but_access_and_sync_reaches_the_host() {
        let noise = OFlags::CREATE
            | OFlags::EXCL
            | OFlags::TRUNC
            | OFlags::APPEND
            | OFlags::DIRECT
            | OFlags::NOCTTY
            | OFlags::NONBLOCK
            | OFlags::NOFOLLOW
            | OFlags::NOATIME;
        let want = Request::parse((OFlags::RDWR | OFlags::DSYNC | noise).bits()).unwrap();
        assert_eq!(want.flags, OFlags::RDWR | OFlags::DSYNC);
        assert!(want.readable && want.writable && want.append);
        assert!(want.exclusive && want.truncate);
    }

    proptest! {
        #[test]
        fn any_flags_come_to_an_allowed_request(bits: u32) {
            if let Ok(want) = Request::parse(bits) {
                let allowed = OFlags::ACCMODE | OFlags::SYNC;
                prop_assert!(allowed.contains(want.flags));
                prop_assert!(want.readable || want.writable);
                prop_assert!(bits & OFlags::PATH.bits() == 0);
            }
        }
    }
}
