//! A listening socket that the process that started the daemon has opened for it.
//!
//! Law: a descriptor is taken over only if it is what it is said to be.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use parking_lot::Mutex;
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// Takes over descriptor `fd`, once: it is closed with the listener.
///
/// # Errors
///
/// `EBADF` if it is not open, `EINVAL` if it is none to inherit (0 to 2), no
/// Unix socket or not listening.
pub(super) fn listener(fd: RawFd) -> Result<UnixListener, Errno> {
    // Inherited descriptors are not close-on-exec: one that is, is the
    // process's own, or was taken over before.
    take(fd, |flags| !flags.contains(FdFlags::CLOEXEC))
}

/// As [`listener`], for a descriptor that the service manager passed, which
/// was made close-on-exec when it was looked for.
pub(super) fn activated(fd: RawFd) -> Result<UnixListener, Errno> {
    /// Each can be taken over once.
    static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

    let mut taken = TAKEN.lock();
    let listener = take(fd, |_| !taken.contains(&fd))?;
    taken.push(fd);
    Ok(listener)
}

/// `is_free` says, by its flags, whether nobody in this process owns it.
fn take(fd: RawFd, is_free: impl FnOnce(FdFlags) -> bool) -> Result<UnixListener, Errno> {
    if fd <= 2 {
        return Err(Errno::INVAL);
    }
    // SAFETY: borrowed for questions to the kernel only, which answers EBADF
    // if it is not open; nothing else of this process closes descriptors that
    // it did not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    if !is_free(fcntl_getfd(borrowed)?) {
        return Err(Errno::INVAL);
    }
    require_listening(borrowed)?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: open, as just seen, and both callers have made sure that nobody
    // else in this process owns it, now or by a second call.
    Ok(UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// # Errors
///
/// `EINVAL` for what is no Unix stream socket that listens.
pub(super) fn require_listening(fd: impl AsFd) -> Result<(), Errno> {
    let listens = socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && socket_type(&fd) == Ok(SocketType::STREAM)
        && socket_acceptconn(&fd) == Ok(true);
    match listens {
        true => Ok(()),
        false => Err(Errno::INVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_what_was_inherited_and_listens_is_taken_over() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let own = UnixListener::bind(dir.path().join("s")).expect("listens");
        let refused = |fd| listener(fd).expect_err("refused");
        assert_eq!(refused(own.as_raw_fd()), Errno::INVAL);
        assert_eq!(refused(0), Errno::INVAL);
        assert_eq!(refused(-1), Errno::INVAL);
        assert_eq!(refused(1 << 20), Errno::BADF);
        let file = std::fs::File::open("/dev/null").expect("exists");
        fcntl_setfd(&file, FdFlags::empty()).expect("set");
        assert_eq!(refused(file.as_raw_fd()), Errno::INVAL);

        let given = rustix::io::dup(&own).expect("without close-on-exec");
        let fd = std::os::fd::IntoRawFd::into_raw_fd(given);
        let taken = listener(fd).expect("taken over");
        assert_eq!(refused(fd), Errno::INVAL);
        assert_eq!(taken.as_raw_fd(), fd);
    }

    #[test]
    fn what_the_service_manager_passed_is_taken_over_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let own = UnixListener::bind(dir.path().join("s")).expect("listens");
        let given = std::os::fd::IntoRawFd::into_raw_fd(own);
        let taken = activated(given).expect("taken over");
        assert_eq!(taken.as_raw_fd(), given);
        assert_eq!(activated(given).expect_err("refused"), Errno::INVAL);
        assert_eq!(activated(1 << 20).expect_err("refused"), Errno::BADF);
        assert_eq!(activated(1).expect_err("refused"), Errno::INVAL);
    }
}
