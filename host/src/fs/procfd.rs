//! Re-opening an inode that is held by an `O_PATH` descriptor, by the kernel's
//! own link to it in `/proc/self/fd`. The directory is opened once and kept,
//! so that this goes on working when `/proc` is out of reach.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC};
use rustix::io::Errno;
use rustix::path::DecInt;

const PATH: &str = "/proc/self/fd";

/// The open directory `/proc/self/fd`.
#[derive(Debug)]
pub struct ProcFd {
    dir: OwnedFd,
    /// It is the working directory of the process as well.
    is_working_directory: bool,
}

impl ProcFd {
    /// `dir`, which is the working directory of the process, too, and stays
    /// so.
    pub fn of_working_directory(dir: OwnedFd) -> ProcFd {
        ProcFd {
            dir,
            is_working_directory: true,
        }
    }

    /// As it is found by its path.
    ///
    /// # Errors
    ///
    /// When there is no procfs.
    pub fn open() -> std::io::Result<ProcFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, PATH, flags, Mode::empty())?;
        if rustix::fs::fstatfs(&dir)?.f_type != PROC_SUPER_MAGIC {
            return Err(std::io::Error::other(format!("{PATH} is not procfs")));
        }
        Ok(ProcFd {
            dir,
            is_working_directory: false,
        })
    }

    /// Opens the inode behind `fd` once more. The caller has checked that it
    /// is a regular file or a directory: opening anything else could block or
    /// reach a device.
    pub(crate) fn reopen(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        let link = DecInt::from_fd(fd);
        rustix::fs::openat(&self.dir, link.as_c_str(), flags, Mode::empty())
    }

    /// The directory in which [`ProcFd::link`] is a name.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Name of the link to the inode behind `fd`. Following it ends at that
    /// inode, also when the inode is a symbolic link itself.
    pub(super) fn link(fd: impl AsFd) -> DecInt {
        DecInt::from_fd(fd)
    }

    /// Where the host has the inode behind `fd` now, seen from the root of
    /// this process. Good for people and patterns, never to open it by.
    pub(super) fn path(&self, fd: impl AsFd) -> Option<PathBuf> {
        let link = ProcFd::link(fd);
        let path = rustix::fs::readlinkat(&self.dir, link.as_c_str(), Vec::new()).ok()?;
        Some(OsString::from_vec(path.into_bytes()).into())
    }

    /// The same as a path of its own, for the few system calls that take
    /// nothing else; none if `/proc/self/fd` is no longer what is held here.
    pub(super) fn whole_path(&self, fd: impl AsFd) -> Option<String> {
        if self.is_working_directory {
            return Some(DecInt::from_fd(fd).as_str().to_owned());
        }
        let held = super::attr::stat(&self.dir).ok()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let now = rustix::fs::openat(CWD, PATH, flags, Mode::empty()).ok()?;
        let now = super::attr::stat(&now).ok()?;
        let same = super::attr::key_of(&held) == super::attr::key_of(&now);
        same.then(|| format!("{PATH}/{}", DecInt::from_fd(fd).as_str()))
    }
}
