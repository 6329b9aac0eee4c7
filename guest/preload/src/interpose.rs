//! The functions that stand in front of the C library's.
//!
//! Laws: each does what the C library's does, with the same result and errno,
//! but for what is written at it; no panic leaves them.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use libc::{c_int, c_ulong, c_void, msghdr, off_t, sigaction as Action, sigset_t, size_t};
use libc::{sockaddr, socklen_t, ssize_t};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::connection::{self, HEADER_BYTES, State};
use crate::kvm::{Entries, KVM_RUN};
use crate::lines::{Cause, say};
use crate::others::{self, Other, admit};
use crate::place::{self, Wish};
use crate::preamble::{self, Next};
use crate::{fault, real, serve, signals, slot, vfio};

/// A descriptor that the VMM has named: if it is none, system calls say so.
pub(crate) fn borrowed<'a>(fd: RawFd) -> Option<BorrowedFd<'a>> {
    // SAFETY: -1, which is no value of this type, is excluded. Whoever called
    // keeps the descriptor open during the call, and it is not kept longer.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Does what is the library's own in a call: keeps errno, and a panic inside.
fn own<T>(call: impl FnOnce() -> T) -> Option<T> {
    let errno = real::errno();
    let result = catch_unwind(AssertUnwindSafe(call)).ok();
    if result.is_none() {
        say(Cause::Panic, format_args!("a defect of the library"));
    }
    real::set_errno(errno);
    result
}

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

/// Sees where a window is mapped, and gives it a good place.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mmap(
    at: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    let wish = Wish {
        at,
        len,
        prot,
        flags,
        fd,
        offset,
    };
    // SAFETY: the caller's promise.
    unsafe {
        match slot::any() {
            true => place::map(wish),
            false => wish.make(),
        }
    }
}

/// The same by its other name.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mmap64(
    at: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { mmap(at, len, prot, flags, fd, offset) }
}

/// Sees that a window goes away.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munmap(at: *mut c_void, len: size_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        match slot::any() {
            true => place::unmap(at, len),
            false => real::munmap(at, len),
        }
    }
}

/// Keeps SIGBUS for the library, and gives the VMM what is not the library's.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const Action,
    old: *mut Action,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        match signal {
            libc::SIGBUS => fault::sigaction(new, old),
            _ => real::sigaction(signal, new, old),
        }
    }
}

/// Leaves SIGBUS out of what is blocked.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pthread_sigmask(
    how: c_int,
    set: *const sigset_t,
    old: *mut sigset_t,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let allowed = signals::allowed(how, set);
        real::pthread_sigmask(how, allowed.as_ref().map_or(set, |set| set), old)
    }
}

/// The same by its other name.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sigprocmask(
    how: c_int,
    set: *const sigset_t,
    old: *mut sigset_t,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let allowed = signals::allowed(how, set);
        real::sigprocmask(how, allowed.as_ref().map_or(set, |set| set), old)
    }
}

/// What a request of `ioctl` comes with.
#[derive(Clone, Copy)]
pub(crate) struct Argument(*mut c_void);

impl Argument {
    /// Copies what it points to.
    pub(crate) fn read(self, out: &mut [u8]) -> Result<(), Errno> {
        if self.0.is_null() {
            return Err(Errno::FAULT);
        }
        // SAFETY: only requests are read for that have the kernel read as many
        // bytes there, which the VMM has to have there.
        unsafe {
            out.as_mut_ptr()
                .copy_from_nonoverlapping(self.0.cast(), out.len())
        };
        Ok(())
    }
}

/// Looks at devices that pin memory, and mends what a guest's processor has met
/// in KVM.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // The kernel takes as much of it.
    let number = request as u32;
    if vfio::concerns(number)
        && let Some(Err(errno)) = own(|| vfio::look(number, Argument(argument)))
    {
        real::set_errno(errno.raw_os_error());
        return -1;
    }
    let mut entries = Entries::default();
    loop {
        // SAFETY: the caller's promise.
        let result = unsafe { real::ioctl(fd, request, argument) };
        let met_end = number == KVM_RUN && result == -1 && real::errno() == libc::EFAULT;
        if !met_end || !slot::any() || own(|| entries.again()) != Some(true) {
            return result;
        }
    }
}
