//! `name_to_handle_at`, `open_by_handle_at`, `fchmodat2`, `sync_file_range` and
//! `malloc_trim`, which no library here offers.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// `MAX_HANDLE_SZ`, in bytes.
pub(super) const MAX_BYTES: usize = 128;

/// `AT_HANDLE_MNT_ID_UNIQUE`, since Linux 6.12.
const UNIQUE_MOUNT: libc::c_int = 0x001;

/// `AT_HANDLE_FID`, since Linux 6.6.
const NEED_NOT_OPEN: libc::c_int = 0x200;

/// `struct file_handle` of `linux/fs.h` with room for any.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct RawHandle {
    /// Bytes of `data` in use.
    pub(super) bytes: u32,
    pub(super) kind: i32,
    pub(super) data: [u8; MAX_BYTES],
}

const _: () = assert!(size_of::<RawHandle>() == size_of::<libc::file_handle>() + MAX_BYTES);

impl RawHandle {
    fn empty() -> RawHandle {
        RawHandle {
            bytes: MAX_BYTES as u32,
            kind: 0,
            data: [0; MAX_BYTES],
        }
    }
}

/// Handle of the inode behind a descriptor.
pub(super) fn handle_of(fd: BorrowedFd<'_>) -> Result<RawHandle, Errno> {
    let mut mount = 0;
    encode(fd, c"", libc::AT_EMPTY_PATH, &mut mount)
}

/// The same where no inode can be opened by handle, too. `EINVAL` before Linux
/// 6.6.
pub(super) fn handle_to_compare(fd: BorrowedFd<'_>) -> Result<RawHandle, Errno> {
    let mut mount = 0;
    encode(fd, c"", libc::AT_EMPTY_PATH | NEED_NOT_OPEN, &mut mount)
}

/// Handle of what a name in a directory stands for, and the unique id of the
/// mount it is on. A symbolic link is not followed. `EINVAL` before Linux
/// 6.12.
pub(super) fn handle_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<(RawHandle, u64), Errno> {
    let mut mount = 0;
    let handle = encode(dir, name, UNIQUE_MOUNT, &mut mount)?;
    Ok((handle, mount))
}

fn encode(
    dir: BorrowedFd<'_>,
    name: &CStr,
    flags: libc::c_int,
    mount: &mut u64,
) -> Result<RawHandle, Errno> {
    let mut raw = RawHandle::empty();
    // SAFETY: `dir` is open and `name` ends in NUL. The kernel writes a header
    // and at most `raw.bytes` bytes after it, for which RawHandle has room
    // (size asserted above), and to `mount` an int, or a u64 when it is told
    // UNIQUE_MOUNT: `mount` has room for either.
    let answer = unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            name.as_ptr(),
            std::ptr::from_mut(&mut raw).cast(),
            std::ptr::from_mut(mount).cast(),
            flags,
        )
    };
    match answer {
        -1 => Err(last_error()),
        _ if raw.bytes as usize > MAX_BYTES => Err(Errno::OVERFLOW),
        _ => Ok(raw),
    }
}

/// Opens the inode that a handle stands for; `mount` is any open descriptor
/// (not `O_PATH`) on its mount. `ESTALE` if there is no such inode any more,
/// `EPERM` without `CAP_DAC_READ_SEARCH`.
pub(super) fn open(
    mount: BorrowedFd<'_>,
    mut raw: RawHandle,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    // SAFETY: `mount` is open; the kernel reads a header and `raw.bytes` bytes,
    // which every maker of a RawHandle keeps within its data.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            std::ptr::from_mut(&mut raw).cast(),
            flags.bits() as libc::c_int,
        )
    };
    if fd == -1 {
        return Err(last_error());
    }
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else
    // owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Changes the mode of the inode behind a descriptor, which may be `O_PATH`.
/// `EOPNOTSUPP` for a symbolic link, `ENOSYS` before Linux 6.6.
pub(in crate::fs) fn change_mode(inode: BorrowedFd<'_>, mode: Mode) -> Result<(), Errno> {
    // SAFETY: `inode` is open and the name, which is all that the kernel reads,
    // ends in NUL.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_fchmodat2,
            inode.as_raw_fd(),
            c"".as_ptr(),
            mode.bits(),
            libc::AT_EMPTY_PATH,
        )
    };
    match answer {
        -1 => Err(last_error()),
        _ => Ok(()),
    }
}

/// Starts to write back all pages of a file that are dirty now, which makes
/// them clean; waits first for those that are being written back already.
pub(in crate::fs) fn start_write_back(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: `file` is open; the call takes no pointers.
    let answer = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    match answer {
        -1 => Err(last_error()),
        _ => Ok(()),
    }
}

/// Gives memory that was freed back to the kernel, as far as the C library
/// has kept it.
#[cfg(target_env = "gnu")]
pub(super) fn trim_heap() {
    // SAFETY: it may be called at any time by any thread, and touches no
    // memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries give it back by themselves or not at all.
#[cfg(not(target_env = "gnu"))]
pub(super) fn trim_heap() {}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
