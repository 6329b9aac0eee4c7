//! Re-opening an inode that is held by an `O_PATH` descriptor, by the kernel's
//! own link to it in `/proc/self/fd`. The directory is opened once and kept,
//! so that this goes on working when `/proc` is out of reach.

use std::ffi::{CStr, OsString};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, PROC_SUPER_MAGIC, StatxFlags};
use rustix::io::Errno;
use rustix::path::DecInt;

const PATH: &str = "/proc/self/fd";

/// The open directory `/proc/self/fd`, one for the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcFd {
    dir: &'static OwnedFd,
}

/// The directory of this process.
static DIR: OnceLock<OwnedFd> = OnceLock::new();
/// It is the working directory, too.
static IS_WORKING_DIRECTORY: AtomicBool = AtomicBool::new(false);

/// Name of an open descriptor's link.
#[derive(Debug)]
pub(crate) struct Link<'a> {
    name: DecInt,
    _fd: PhantomData<BorrowedFd<'a>>,
}

impl Link<'_> {
    pub(crate) fn as_c_str(&self) -> &CStr {
        self.name.as_c_str()
    }
}

impl ProcFd {
    /// Takes the directory from who gives `/proc` up: `dir`, which is the
    /// working directory of the process and stays so.
    pub(crate) fn is_working_directory(dir: OwnedFd) {
        let _ = DIR.set(dir);
        IS_WORKING_DIRECTORY.store(true, Ordering::Release);
    }

    /// Opens it, if nobody has: shares that come later need no `/proc`.
    pub(crate) fn open() -> std::io::Result<ProcFd> {
        if let Some(dir) = DIR.get() {
            return Ok(ProcFd { dir });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, PATH, flags, Mode::empty())?;
        if rustix::fs::fstatfs(&dir)?.f_type != PROC_SUPER_MAGIC {
            return Err(std::io::Error::other(format!("{PATH} is not procfs")));
        }
        let dir = DIR.get_or_init(|| dir);
        Ok(ProcFd { dir })
    }

    /// Opens the inode behind `fd` once more. The caller has checked that it
    /// is a regular file or a directory: opening anything else could block or
    /// reach a device.
    pub(crate) fn reopen(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = fd.as_fd();
        rustix::fs::openat(self.dir, ProcFd::link(fd).as_c_str(), flags, Mode::empty())
    }

    /// The directory in which [`ProcFd::link`] is a name.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Name of the link to the inode behind `fd`. Following it ends at that
    /// inode, also when the inode is a symbolic link itself. It lives no longer
    /// than `fd`, whose number may then be that of another inode.
    pub(crate) fn link(fd: BorrowedFd<'_>) -> Link<'_> {
        Link {
            name: DecInt::from_fd(fd),
            _fd: PhantomData,
        }
    }

    /// Where the host has the inode behind `fd` now, seen from the root of
    /// this process. Good for people and patterns, never to open it by.
    pub(crate) fn path(&self, fd: impl AsFd) -> Option<PathBuf> {
        let fd = fd.as_fd();
        let link = ProcFd::link(fd);
        let path = rustix::fs::readlinkat(self.dir, link.as_c_str(), Vec::new()).ok()?;
        Some(OsString::from_vec(path.into_bytes()).into())
    }

    /// The same as a path of its own, for the few system calls that take
    /// nothing else; none if `/proc/self/fd` is no longer what is held here.
    /// It is good for as long as `fd` is open.
    pub(crate) fn whole_path(&self, fd: BorrowedFd<'_>) -> Option<String> {
        if IS_WORKING_DIRECTORY.load(Ordering::Acquire) {
            return Some(DecInt::from_fd(fd).as_str().to_owned());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let now = rustix::fs::openat(CWD, PATH, flags, Mode::empty()).ok()?;
        let is_same = identity(self.dir)? == identity(&now)?;
        is_same.then(|| format!("{PATH}/{}", DecInt::from_fd(fd).as_str()))
    }
}

/// Device, inode and mount.
fn identity(fd: &OwnedFd) -> Option<(u32, u32, u64, u64)> {
    let mask = StatxFlags::INO | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask).ok()?;
    let (major, minor) = (stat.stx_dev_major, stat.stx_dev_minor);
    Some((major, minor, stat.stx_ino, stat.stx_mnt_id))
}
