//! The system calls that have no safe wrapper.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Lists what this process has open, by number.
const DESCRIPTORS: &str = "/proc/self/fd";

/// Which of two processes this is.
pub(super) enum Fork {
    /// The one that was made.
    Child,
    /// The one that made it.
    Parent(Pid),
}

/// Makes a process like this one.
///
/// # Errors
///
/// `EBUSY` if the process has more than one thread, and what the kernel says.
pub(super) fn fork() -> io::Result<Fork> {
    // Locks that other threads hold would stay locked in the child for good.
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(Errno::BUSY.into());
    }
    // SAFETY: there is no other thread, as just seen, and none can have come
    // since; so the child finds everything as the parent left it.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid => match Pid::from_raw(pid).filter(|_| pid > 0) {
            Some(pid) => Ok(Fork::Parent(pid)),
            None => Err(io::Error::last_os_error()),
        },
    }
}

/// Leaves namespaces for new ones.
pub(super) fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    // SAFETY: only namespaces are left, never the table of descriptors
    // (`UnshareFlags::FILES`), whose sharing safe code relies on.
    unsafe { rustix::thread::unshare_unsafe(namespaces - UnshareFlags::FILES) }?;
    Ok(())
}

/// Has writes past the limit of a file's size fail with `EFBIG`, here and in
/// processes made from this one, where `SIGXFSZ` would end them.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed; nobody in this program installs one.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Whether this process has been told to ignore `signal`, as nohup tells it.
pub(super) fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is changed, and the kernel writes a whole structure
    // where it returns 0.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Whether a write to a descriptor returns at once, now or in a moment: one of
/// up to a page, for a pipe.
pub fn takes_writes(fd: RawFd) -> bool {
    const MOMENT_MS: i32 = 100;

    let mut asked = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure of ours; a number with nothing behind it is
    // answered as such.
    unsafe { libc::poll(&raw mut asked, 1, MOMENT_MS) > 0 }
}

/// Does `work` and says which descriptors have come by it.
///
/// # Errors
///
/// Those of `work`.
pub fn opened_by<E>(work: impl FnOnce() -> Result<(), E>) -> Result<Vec<RawFd>, E> {
    let before = open_descriptors().unwrap_or_default();
    work()?;
    let mut new = open_descriptors().unwrap_or_default();
    new.retain(|fd| !before.contains(fd));
    Ok(new)
}

fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    let listed = std::fs::read_dir(DESCRIPTORS);
    let listed = listed.map_err(|e| io::Error::new(e.kind(), format!("{DESCRIPTORS}: {e}")))?;
    for entry in listed {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    // The last is that of the listing itself, which is closed by now.
    // SAFETY: only looks at a number, and says so if nothing is behind it.
    found.retain(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0);
    Ok(found)
}

/// What this process was started with and has no use for: every descriptor
/// from 3 on but `keep`. Programs that it executes do not get them. To be
/// called before it opens any of its own.
///
/// # Errors
///
/// When procfs cannot be read, with a name.
pub fn inherited(keep: &[RawFd]) -> io::Result<Vec<RawFd>> {
    let mut strays = open_descriptors()?;
    // What is close-on-exec did not come through one.
    // SAFETY: only looks at a number, and says so if nothing is behind it.
    let came = |fd: RawFd| unsafe { libc::fcntl(fd, libc::F_GETFD) } & libc::FD_CLOEXEC == 0;
    strays.retain(|fd| *fd > 2 && !keep.contains(fd) && came(*fd));
    for fd in &strays {
        // SAFETY: sets a flag of a number, and fails if nothing is behind it.
        unsafe { libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(strays)
}

/// Closes what [`inherited`] found.
///
/// # Safety
///
/// Nobody in this process may own or use one of them.
pub(super) unsafe fn close_strays(strays: &[RawFd]) {
    for fd in strays {
        // SAFETY: as the caller promises.
        unsafe { libc::close(*fd) };
    }
}

/// Closes every descriptor from 3 on but these.
///
/// # Safety
///
/// Nobody may use or close a descriptor that is closed here afterwards: its
/// owners are never dropped.
pub(super) unsafe fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| (*fd).try_into().ok()).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().chain([u32::MAX]).filter(|fd| *fd >= 3) {
        if first < fd {
            let last = if fd == u32::MAX { fd } else { fd - 1 };
            // SAFETY: as the caller promises.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
        first = fd.saturating_add(1);
    }
}

/// `mount_setattr(2)`: sets attributes (`MOUNT_ATTR_*`) on a mount and all
/// mounts below it.
pub(super) fn mount_setattr(mount: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a string of ours, the structure is read only and of
    // the size that is passed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Drops supplementary groups of the process.
pub(super) fn drop_groups() -> io::Result<()> {
    // SAFETY: no list is read, as its length is zero.
    match unsafe { libc::setgroups(0, std::ptr::null()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes this user and group, whatever it was, in all of the process.
pub(super) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::setresgid(gid, gid, gid) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    match unsafe { libc::setresuid(uid, uid, uid) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
