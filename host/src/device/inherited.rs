//! A listening socket that whoever started the daemon has opened for it.
//!
//! Law: a descriptor is taken over only if it is what it is said to be.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

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
    if fd <= 2 {
        return Err(Errno::INVAL);
    }
    // SAFETY: borrowed for questions to the kernel only, which answers EBADF
    // if it is not open; nothing else of this process closes descriptors that
    // it did not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfd(borrowed)?;
    if flags.contains(FdFlags::CLOEXEC) {
        // Inherited descriptors are not: this one is the process's own.
        return Err(Errno::INVAL);
    }
    require_listening(borrowed)?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: open, as just seen, and inherited, so nobody else in this
    // process owns it; from here on it is close-on-exec, so that a second
    // call refuses it.
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
}
