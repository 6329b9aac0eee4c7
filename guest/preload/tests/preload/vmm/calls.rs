//! Calls of the C library.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::with_exposed_provenance_mut;

use libc::c_void;

pub(super) fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A Unix stream socket.
pub(super) fn unbound() -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, None)?.into())
}

/// The same with a name of the program's own.
pub(super) fn bound(path: &str) -> io::Result<UnixStream> {
    let socket = unbound()?;
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

pub(super) fn connect(socket: &UnixStream, path: &str) -> io::Result<()> {
    // SAFETY: all zero is an address.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (place, byte) in address.sun_path.iter_mut().zip(path.bytes()) {
        *place = byte as libc::c_char;
    }
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address has that length.
    let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    checked(done as isize).map(drop)
}

const CONTROL_BYTES: usize = 64;

/// Sends `bytes`, with a descriptor if there is one.
pub(super) fn send(socket: &UnixStream, bytes: &[u8], fd: Option<RawFd>) -> io::Result<usize> {
    let iov = [IoSlice::new(bytes)];
    let mut control = [0u64; CONTROL_BYTES / 8];
    // SAFETY: all zero is a valid message.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = iov.as_ptr().cast_mut().cast();
    message.msg_iovlen = 1;
    if let Some(fd) = fd {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: arithmetic; the buffer has room for one descriptor.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(4) as usize;
            let head = libc::CMSG_FIRSTHDR(&message);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(head).cast::<RawFd>().write_unaligned(fd);
        }
    }
    // SAFETY: the message points to what lives until the end of the call.
    checked(unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) })
}

/// Receives at most as many bytes as `bytes` has, and a descriptor.
pub(super) fn receive(
    socket: &UnixStream,
    bytes: &mut [u8],
    flags: i32,
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut control = [0u64; CONTROL_BYTES / 8];
    // SAFETY: all zero is a valid message.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES;
    // SAFETY: the message points to what lives until the end of the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) };
    let received = checked(received)?;
    // SAFETY: the kernel has written what control data there is.
    let fd = unsafe {
        let head = libc::CMSG_FIRSTHDR(&message);
        match head.is_null() {
            true => None,
            false => {
                let fd = libc::CMSG_DATA(head).cast::<RawFd>().read_unaligned();
                Some(OwnedFd::from_raw_fd(fd))
            }
        }
    };
    Ok((received, fd))
}

fn map(at: usize, len: usize, prot: i32, flags: i32, fd: RawFd) -> io::Result<usize> {
    let at = with_exposed_provenance_mut(at);
    // SAFETY: of this program's own, by whoever asks for MAP_FIXED.
    match unsafe { libc::mmap(at, len, prot, flags, fd, 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        mapped => Ok(mapped.expose_provenance()),
    }
}

pub(super) const PAGE: usize = 4096;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Reserves address space as QEMU does for memory, and maps the file in it.
pub(super) fn map_as_qemu(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    let reserved = map(0, bytes + PAGE, libc::PROT_NONE, ANONYMOUS, -1)?;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    map(reserved, bytes, READ_WRITE, flags, fd.as_raw_fd())
}

/// Has the same address show memory of this program's own.
pub(super) fn map_over(at: usize, bytes: usize) -> io::Result<usize> {
    map(at, bytes, READ_WRITE, ANONYMOUS | libc::MAP_FIXED, -1)
}

/// Memory of this program's own, at an address if that is free.
pub(super) fn map_own(at: usize, bytes: usize) -> io::Result<usize> {
    map(at, bytes, READ_WRITE, ANONYMOUS, -1)
}

pub(super) fn map_file(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    map(0, bytes, READ_WRITE, libc::MAP_SHARED, fd.as_raw_fd())
}

pub(super) fn unmap(at: usize, len: usize) -> io::Result<()> {
    let at: *mut c_void = with_exposed_provenance_mut(at);
    // SAFETY: of this program's own.
    checked(unsafe { libc::munmap(at, len) } as isize).map(drop)
}

pub(super) fn load(address: usize) -> u8 {
    let address: *const u8 = with_exposed_provenance_mut(address);
    // SAFETY: mapped, or the test wants to see what becomes of it.
    unsafe { address.read_volatile() }
}

pub(super) fn store(address: usize, value: u8) {
    let address: *mut u8 = with_exposed_provenance_mut(address);
    // SAFETY: as in `load`.
    unsafe { address.write_volatile(value) };
}
