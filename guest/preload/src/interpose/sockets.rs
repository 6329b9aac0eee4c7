//! `connect`, `sendmsg`, `recvmsg`.

use std::os::fd::{BorrowedFd, RawFd};

use libc::{c_int, msghdr, sockaddr, socklen_t, ssize_t};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::{borrowed, own};
use crate::connection::{self, HEADER_BYTES, State};
use crate::lines::{Cause, say};
use crate::others::{self, Other, admit};
use crate::preamble::{self, Next};
use crate::{real, serve, slot};

/// Whether an address is a Unix socket's path.
///
/// # Safety
/// `len` bytes of `address` can be read, unless it is null.
unsafe fn is_path(address: *const sockaddr, len: socklen_t) -> bool {
    const PATH_AT: usize = std::mem::offset_of!(libc::sockaddr_un, sun_path);
    if address.is_null() || len as usize <= PATH_AT {
        return false;
    }
    // SAFETY: both lie in the first bytes, of which there are more.
    let (family, first) = unsafe {
        let family = address.cast::<libc::sa_family_t>().read_unaligned();
        (family, address.cast::<u8>().add(PATH_AT).read())
    };
    libc::c_int::from(family) == libc::AF_UNIX && first != 0
}

/// Gives a Unix stream socket a name before it is connected to a path.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn connect(
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    let socket = borrowed(fd);
    // SAFETY: the caller's promise.
    let is_path = unsafe { is_path(address, len) };
    if let Some(socket) = socket.filter(|_| is_path) {
        own(|| connection::mark(socket));
    }
    // SAFETY: the caller's promise.
    let result = unsafe { real::connect(fd, address, len) };
    match socket.filter(|_| is_path && result == 0) {
        Some(socket) => own(|| connection::connected(socket)).unwrap_or_default(),
        None => connection::set_state(fd, State::Unknown),
    }
    result
}

/// The first bytes of a message, as many as a header has and one more.
///
/// # Safety
/// `message` is as `sendmsg` takes it.
unsafe fn first_bytes(message: *const msghdr) -> ([u8; HEADER_BYTES + 1], usize) {
    let (mut bytes, mut filled) = ([0; HEADER_BYTES + 1], 0);
    if message.is_null() {
        return (bytes, 0);
    }
    // SAFETY: the caller's promise.
    let message = unsafe { &*message };
    for n in 0..message.msg_iovlen {
        // SAFETY: there are that many vectors, as the caller promises.
        let part = unsafe { message.msg_iov.add(n).read() };
        let taken = part.iov_len.min(bytes.len() - filled);
        if taken == 0 {
            // Its address may be none.
            continue;
        }
        // SAFETY: the vector has no less to read, and the target has room.
        unsafe {
            let target = bytes.as_mut_ptr().add(filled);
            target.copy_from_nonoverlapping(part.iov_base.cast(), taken);
        }
        filled += taken;
    }
    (bytes, filled)
}

/// Whether a message carries a window's memfd.
///
/// # Safety
/// `message` is as `sendmsg` takes it.
unsafe fn carries_memfd(message: *const msghdr) -> bool {
    // SAFETY: the caller's promise.
    let has_control = !message.is_null() && unsafe { !(*message).msg_control.is_null() };
    if !has_control {
        return false;
    }
    // SAFETY: these walk the control data, as long as the caller says it is.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(message);
        while !head.is_null() {
            let is_rights =
                (*head).cmsg_level == libc::SOL_SOCKET && (*head).cmsg_type == libc::SCM_RIGHTS;
            let bytes = (*head).cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            let fds = libc::CMSG_DATA(head).cast::<RawFd>();
            let mut fds = (0..bytes / size_of::<RawFd>()).map(|n| fds.add(n).read_unaligned());
            if is_rights && fds.any(others::is_memfd) {
                return true;
            }
            head = libc::CMSG_NXTHDR(message, head);
        }
    }
    false
}

/// Before a window's memfd is sent to somebody: a daemon of ours knows what it
/// is.
fn let_memfd_leave(fd: RawFd) -> Result<(), Errno> {
    let is_ours = connection::state(fd) == State::Ours;
    match is_ours && borrowed(fd).is_some_and(connection::is_marked) {
        true => Ok(()),
        false => admit(Other::BackEnd),
    }
}

/// Looks at the first message of a marked connection, and at what leaves.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendmsg(
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> ssize_t {
    if connection::state(fd) == State::Marked {
        // SAFETY: the caller's promise.
        let (bytes, filled) = unsafe { first_bytes(message) };
        own(|| connection::first_sent(fd, &bytes[..filled]));
    }
    // SAFETY: the caller's promise.
    let memfd_leaves = || unsafe { carries_memfd(message) };
    if slot::any()
        && memfd_leaves()
        && let Some(Err(errno)) = own(|| let_memfd_leave(fd))
    {
        real::set_errno(errno.raw_os_error());
        return -1;
    }
    // SAFETY: the caller's promise.
    unsafe { real::sendmsg(fd, message, flags) }
}

/// Looks at what comes first over a vhost-user connection, and takes away what
/// is the library's.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    if connection::state(fd) == State::Vhost
        && let Some(socket) = borrowed(fd)
    {
        let looked = own(|| first_received(fd, socket, flags));
        if let Some(Err(errno)) = looked {
            real::set_errno(errno.raw_os_error());
            return -1;
        }
    }
    // SAFETY: the caller's promise.
    unsafe { real::recvmsg(fd, message, flags) }
}

/// Before the first answer over a vhost-user connection is received. An error
/// is what the caller gets: it waits again, and so does this.
fn first_received(fd: RawFd, socket: BorrowedFd<'_>, flags: c_int) -> Result<(), Errno> {
    if !connection::is_marked(socket) {
        connection::set_state(fd, State::Unknown);
        return Ok(());
    }
    let flags = RecvFlags::from_bits_retain(flags as u32);
    let state = match preamble::peek(socket, flags)? {
        Next::End => State::Unknown,
        Next::Other => {
            // Who is refused may try again, and is then looked at again.
            admit(Other::BackEnd).map_err(|_| Errno::CONNABORTED)?;
            State::Other
        }
        Next::Preamble => State::Ours,
    };
    connection::set_state(fd, state);
    if state == State::Ours {
        match preamble::take(socket) {
            Ok(None) => {}
            Ok(Some(offer)) => serve::start(offer),
            Err(why) => say(
                Cause::Preamble,
                format_args!("what daxwindowd said is ignored: {why}"),
            ),
        }
    }
    Ok(())
}
