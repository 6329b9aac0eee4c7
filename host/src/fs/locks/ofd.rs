//! Locks that belong to an open file description (`F_OFD_*`), which no
//! library here offers safely.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::range::{LockKind, LockRange};

/// Locks or unlocks without waiting. `EAGAIN`: somebody else holds it;
/// `EBADF`: not open for what the lock is about.
pub(super) fn set(
    fd: BorrowedFd<'_>,
    range: LockRange,
    kind: Option<LockKind>,
) -> Result<(), Errno> {
    let mut lock = to_kernel(range, kind);
    fcntl(fd, libc::F_OFD_SETLK, &mut lock)
}

/// A lock of somebody else that keeps this one from being taken.
pub(super) fn conflict(
    fd: BorrowedFd<'_>,
    range: LockRange,
    kind: LockKind,
) -> Result<Option<(LockRange, LockKind)>, Errno> {
    let mut lock = to_kernel(range, Some(kind));
    fcntl(fd, libc::F_OFD_GETLK, &mut lock)?;
    let kind = match i32::from(lock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => LockKind::Read,
        _ => LockKind::Write,
    };
    Ok(Some((from_kernel(&lock)?, kind)))
}

fn to_kernel(range: LockRange, kind: Option<LockKind>) -> libc::flock {
    let kind = match kind {
        None => libc::F_UNLCK,
        Some(LockKind::Read) => libc::F_RDLCK,
        Some(LockKind::Write) => libc::F_WRLCK,
    };
    // Length 0 is "to the end, wherever that is".
    let len = match range.end() {
        LockRange::LAST => 0,
        end => end - range.start() + 1,
    };
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        // A range ends below 2^63.
        l_start: range.start() as i64,
        l_len: len as i64,
        // Demanded by the kernel.
        l_pid: 0,
    }
}

fn from_kernel(lock: &libc::flock) -> Result<LockRange, Errno> {
    let start = u64::try_from(lock.l_start).map_err(|_| Errno::IO)?;
    let end = match u64::try_from(lock.l_len).map_err(|_| Errno::IO)? {
        0 => LockRange::LAST,
        len => start.checked_add(len - 1).ok_or(Errno::IO)?,
    };
    LockRange::new(start, end)
}

fn fcntl(fd: BorrowedFd<'_>, command: i32, lock: &mut libc::flock) -> Result<(), Errno> {
    // SAFETY: `fd` is open while it is borrowed. Both commands used here take
    // a pointer to a `struct flock`, which `lock` is for the length of the
    // call; the kernel writes nothing else.
    let answer = unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if answer == -1 {
        let error = io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}
