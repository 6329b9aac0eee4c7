//! What a daemon says to the library before its first reply to the VMM.
//!
//! Laws: nothing is taken from the socket but a preamble, and that whole; what
//! it says is checked before it is believed; the VMM gets what it would have
//! got, errors included.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use daxwindow_front_end::RegularFile;
use daxwindow_shared::preload::{MAGIC, Notes, Preamble};
use daxwindow_shared::window::RANGE_BYTES;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::net::{SocketType, sockopt};
use zerocopy::{FromZeros, IntoBytes};

/// The largest window. Its guest would need 16 GiB to describe it.
pub(crate) const LARGEST_BYTES: u64 = 1 << 40;

/// What comes next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Preamble,
    Other,
    End,
}

/// Waits as the VMM would, and says what comes next.
pub(crate) fn peek(socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<Next, Errno> {
    let mut bytes = [0; MAGIC.len()];
    let flags = (flags & RecvFlags::DONTWAIT) | RecvFlags::PEEK;
    let (len, _) = rustix::net::recv(socket, &mut bytes[..], flags)?;
    Ok(match len {
        0 => Next::End,
        _ if bytes == MAGIC => Next::Preamble,
        _ => Next::Other,
    })
}

/// What a preamble offers, checked.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) channel: UnixStream,
    pub(crate) memfd: OwnedFd,
    pub(crate) window_bytes: u64,
}

/// Takes the preamble, which `peek` has seen. Without an offer the daemon has no
/// window of this kind.
pub(crate) fn take(socket: BorrowedFd<'_>) -> Result<Option<Offer>, &'static str> {
    /// Those of a preamble, and a few so that too many are seen.
    const ROOM: usize = 4;
    let mut preamble = Preamble::new_zeroed();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(preamble.as_mut_bytes())];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(socket, &mut iov, &mut control, flags);
    let mut fds = Vec::with_capacity(ROOM);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.map(|received| received.bytes) != Ok(size_of::<Preamble>()) {
        return Err("it is cut off");
    }
    if preamble.window_bytes == 0 {
        return Ok(None);
    }
    let Ok([channel, memfd]) = <[OwnedFd; 2]>::try_from(fds) else {
        return Err("it needs two descriptors");
    };
    check(channel, memfd, preamble.window_bytes).map(Some)
}

fn check(channel: OwnedFd, memfd: OwnedFd, window_bytes: u64) -> Result<Offer, &'static str> {
    let is_stream = sockopt::socket_type(&channel) == Ok(SocketType::STREAM);
    if !is_stream || sockopt::socket_domain(&channel) != Ok(AddressFamily::UNIX) {
        return Err("its channel is no Unix stream socket");
    }
    if !window_bytes.is_multiple_of(RANGE_BYTES) {
        return Err("its window is no multiple of 2 MiB");
    }
    if window_bytes > LARGEST_BYTES {
        return Err("its window has more than 1 TiB");
    }
    RegularFile::check(memfd.as_fd()).map_err(|_| "its window is no memfd of ordinary pages")?;
    let stat = rustix::fs::fstat(&memfd).map_err(|_| "its memfd cannot be examined")?;
    let needed = window_bytes + size_of::<Notes>() as u64;
    match u64::try_from(stat.st_size).is_ok_and(|size| size >= needed) {
        true => Ok(Offer {
            channel: channel.into(),
            memfd,
            window_bytes,
        }),
        false => Err("its memfd is shorter than its window"),
    }
}
