//! Opening regular files, and what of the guest's flags reaches the host.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::handle::Open;
use super::readiness::Readiness;
use super::store_times::Writer;
use super::{ShareOptions, SharedDir};

/// An open file and the rights it was opened with.
#[derive(Debug)]
pub struct OpenFile {
    /// The descriptor. Its file position belongs to nobody: use offsets.
    pub file: File,
    /// Opened for reading.
    pub readable: bool,
    /// Opened for writing.
    pub writable: bool,
    /// Opened with `O_APPEND`, which the descriptor itself has only of a file
    /// that can be written in no other way.
    pub append: bool,
    /// The descriptor has it.
    pub append_only: bool,
    /// Whether it can be read without waiting.
    pub readiness: Readiness,
    /// The descriptor has `O_DIRECT`.
    direct: AtomicBool,
    /// Stores through the window are expected while it is open.
    pub(super) writer: OnceLock<Writer>,
}

impl OpenFile {
    /// Whether reads and writes go past the host's page cache, and are refused
    /// with `EINVAL` where the device would have them aligned otherwise.
    pub fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }
}

/// What the guest's open flags come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Access mode, synchronous writing and, if allowed, `O_NOATIME`: all that
    /// the host is told.
    pub(super) flags: OFlags,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) append: bool,
    pub(super) exclusive: bool,
    pub(super) truncate: bool,
}

impl Request {
    /// `EINVAL` for what has no meaning here: `O_PATH`, `O_TMPFILE`, access
    /// mode 3. `O_DIRECT` is left out: see [`SharedDir::make_direct`].
    pub(super) fn parse(flags: u32, options: &ShareOptions) -> Result<Request, Errno> {
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
        let mut passed = OFlags::SYNC;
        passed.set(OFlags::NOATIME, options.noatime);
        Ok(Request {
            // Both bits of O_SYNC, of which O_DSYNC is one.
            flags: access | asked & passed,
            readable,
            writable,
            append: asked.contains(OFlags::APPEND),
            exclusive: asked.contains(OFlags::EXCL),
            truncate: asked.contains(OFlags::TRUNC),
        })
    }

    /// Opens by `open`, with `more` flags. The host refuses to write a file
    /// that is append-only by a descriptor that does not append.
    pub(super) fn open<T>(
        &mut self,
        more: OFlags,
        open: impl Fn(OFlags) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match open(self.flags | more) {
            Err(Errno::PERM) if self.writable && self.append => {
                let opened = open(self.flags | more | OFlags::APPEND)?;
                self.flags |= OFlags::APPEND;
                Ok(opened)
            }
            done => done,
        }
    }

    pub(super) fn opened(self, file: impl Into<File>) -> Open {
        Open::File(Arc::new(OpenFile {
            file: file.into(),
            readable: self.readable,
            writable: self.writable,
            append: self.append,
            append_only: self.flags.contains(OFlags::APPEND),
            readiness: Readiness::default(),
            direct: AtomicBool::new(false),
            writer: OnceLock::new(),
        }))
    }
}

impl SharedDir {
    /// Opens a regular file and returns its handle; `flags` are the guest's
    /// open(2) flags. `O_TRUNC` is ignored: a guest that was not offered
    /// `ATOMIC_O_TRUNC` truncates by SETATTR. Errors: `EISDIR`, `ELOOP` and
    /// `ENXIO` for other kinds, `EROFS`, `EMFILE`.
    pub fn open_file(&self, nodeid: u64, flags: u32, kill_suidgid: bool) -> Result<u64, Errno> {
        let mut want = Request::parse(flags, &self.options)?;
        let inode = match want.writable {
            true => self.inode_to_change(nodeid)?,
            false => self.inode(nodeid)?,
        };
        inode.require_regular()?;
        let room = self.handles.reserve()?;
        let file = want.open(OFlags::empty(), |flags| self.reopen(&inode, flags))?;
        if kill_suidgid && want.writable {
            self.kill_bits(&inode)?;
        }
        self.handles.add(room, &inode, want.opened(file))
    }

    /// Makes the reads and writes of a handle go past the host's page cache,
    /// if the file system can do that at all.
    pub fn make_direct(&self, nodeid: u64, fh: u64) {
        let Ok(open) = self.handles.file(nodeid, fh) else {
            return;
        };
        let now = rustix::fs::fcntl_getfl(&open.file);
        let set = now.and_then(|flags| rustix::fs::fcntl_setfl(&open.file, flags | OFlags::DIRECT));
        open.direct.store(set.is_ok(), Ordering::Relaxed);
    }

    /// Another descriptor of an open file, by way of the page cache: for what a
    /// direct one refuses. The kernel keeps both coherent.
    pub fn buffered(&self, nodeid: u64, open: &OpenFile) -> Result<File, Errno> {
        let flags = match (open.readable, open.writable) {
            (true, true) => OFlags::RDWR,
            (_, true) => OFlags::WRONLY,
            _ => OFlags::RDONLY,
        };
        let kept = rustix::fs::fcntl_getfl(&open.file)? & (OFlags::SYNC | OFlags::APPEND);
        let inode = self.inode(nodeid)?;
        Ok(self.reopen(&inode, flags | kept)?.into())
    }

    /// Whether a handle's file is append-only on the host, so that what is
    /// written goes to its end wherever the guest wants it.
    pub fn is_append_only(&self, nodeid: u64, fh: u64) -> bool {
        let open = self.handles.file(nodeid, fh);
        open.is_ok_and(|open| open.append_only)
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
        let flags = (OFlags::RDWR | OFlags::DSYNC | noise).bits();
        let mut options = ShareOptions::default();
        let want = Request::parse(flags, &options).unwrap();
        assert_eq!(want.flags, OFlags::RDWR | OFlags::DSYNC);
        assert!(want.readable && want.writable && want.append);
        assert!(want.exclusive && want.truncate);
        options.noatime = true;
        let want = Request::parse(flags, &options).unwrap();
        let asked = OFlags::RDWR | OFlags::DSYNC | OFlags::NOATIME;
        assert_eq!(want.flags, asked);
    }

    proptest! {
        #[test]
        fn any_flags_come_to_an_allowed_request(bits: u32) {
            if let Ok(want) = Request::parse(bits, &ShareOptions::default()) {
                let allowed = OFlags::ACCMODE | OFlags::SYNC;
                prop_assert!(allowed.contains(want.flags));
                prop_assert!(want.readable || want.writable);
                prop_assert!(bits & OFlags::PATH.bits() == 0);
            }
        }
    }
}
