//! Whether inodes of a mount can be opened by handle: tried once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, FsWord, OFlags, Statx};
use rustix::io::Errno;
use tracing::{info, warn};

use super::super::super::{InodeFileHandles, attr};
use super::super::file_handle::FileHandle;
use super::super::identity::Key;
use super::super::sys;
use super::LASTING;
use crate::procfd::ProcFd;

/// An inode that was opened by its handle.
pub(super) struct Tried {
    /// Opened for reading: the system call takes no `O_PATH`.
    pub(super) fd: OwnedFd,
    pub(super) handle: FileHandle,
    /// Handles by name come with the mount's unique id.
    pub(super) by_name: bool,
}

/// Why inodes of a mount cannot be opened by handle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoHandles {
    #[error("nothing on it can be opened for reading: {0}")]
    Closed(Errno),
    #[error("its file system has no handles: {0}")]
    None(Errno),
    #[error("the daemon lacks CAP_DAC_READ_SEARCH in the initial user namespace")]
    Capability,
    #[error("its file system does not open its own handles: {0}")]
    Unopenable(Errno),
    #[error("its handles open another inode")]
    Another,
    #[error("handles of its file system (type {0:#x}) may be forgotten while the inode lives")]
    Forgetful(FsWord),
}

pub(super) fn try_handles(
    proc: &ProcFd,
    fd: BorrowedFd<'_>,
    (stat, fs): (&Statx, FsWord),
    wanted: InodeFileHandles,
) -> Result<Tried, NoHandles> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let opened = match attr::kind_of(stat) {
        FileType::Directory | FileType::RegularFile => proc.reopen(fd, flags),
        _ => Err(Errno::NOTDIR),
    };
    let opened = opened.map_err(NoHandles::Closed)?;
    let handle = FileHandle::of(fd).map_err(NoHandles::None)?;
    let again = sys::open(opened.as_fd(), handle.raw(), OFlags::PATH | OFlags::CLOEXEC).map_err(
        |errno| match errno {
            Errno::PERM => NoHandles::Capability,
            errno => NoHandles::Unopenable(errno),
        },
    )?;
    let again = attr::stat(again).map_err(NoHandles::Unopenable)?;
    let key = attr::key_of(stat);
    if attr::key_of(&again) != key {
        return Err(NoHandles::Another);
    }
    if wanted != InodeFileHandles::Mandatory && !LASTING.contains(&fs) {
        return Err(NoHandles::Forgetful(fs));
    }
    let by_name = FileHandle::at(opened.as_fd(), c".").is_ok_and(|(_, mount)| mount == key.mount);
    Ok(Tried {
        fd: opened,
        handle,
        by_name,
    })
}

pub(super) fn report(wanted: InodeFileHandles, key: &Key, why: &NoHandles) {
    let (major, minor) = key.device();
    if wanted == InodeFileHandles::Mandatory {
        warn!(
            mount = key.mount,
            major, minor, "no file handles on a mount: {why}"
        );
    } else {
        info!(
            mount = key.mount,
            major, minor, "no file handles on a mount, each inode takes a descriptor: {why}"
        );
    }
}
