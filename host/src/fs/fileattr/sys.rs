//! `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`, which no library here offers.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use daxwindow_shared::fuse::FsXattr;
use daxwindow_shared::fuse::ioctl::{FSGETXATTR, FSSETXATTR};
use rustix::io::Errno;

pub(super) fn get(fd: &OwnedFd) -> Result<FsXattr, Errno> {
    let mut attr = FsXattr::default();
    // SAFETY: `fd` is open; the command writes one `struct fsxattr`, whose
    // layout and size (asserted) FsXattr has, and any bytes make a FsXattr.
    let answer = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            FSGETXATTR.into(),
            std::ptr::from_mut(&mut attr),
        )
    };
    done(answer).map(|()| attr)
}

pub(super) fn set(fd: &OwnedFd, attr: &FsXattr) -> Result<(), Errno> {
    // SAFETY: `fd` is open; the command reads one `struct fsxattr`, whose
    // layout and size (asserted) FsXattr has.
    let answer =
        unsafe { libc::ioctl(fd.as_raw_fd(), FSSETXATTR.into(), std::ptr::from_ref(attr)) };
    done(answer)
}

fn done(answer: i32) -> Result<(), Errno> {
    if answer == -1 {
        let error = io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}
