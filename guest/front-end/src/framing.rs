//! vhost-user messages as bytes: what the vhost crate has no call for.
//!
//! Law: a message is taken from the socket whole, or the socket is given up;
//! however it is cut up, only a bounded number of descriptors is kept.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Header of every vhost-user message.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    pub request: u32,
    pub flags: u32,
    pub size: u32,
}
const _: () = assert!(size_of::<Header>() == 12);

/// Version in the low two bits of `flags`.
pub const VERSION: u32 = 1;
pub const VERSION_MASK: u32 = 3;
pub const F_REPLY: u32 = 1 << 2;
pub const F_NEED_REPLY: u32 = 1 << 3;
/// Largest body that is read; a longer one closes the channel.
const MAX_BODY: usize = 4096;
/// Most descriptors that any message carries.
pub const MAX_FDS: usize = 8;
/// Descriptors kept of one message: one more than any carries, so that a
/// message with too many is refused like one with too few.
const KEPT_FDS: usize = MAX_FDS + 1;

/// A message as received, complete but not checked.
pub struct Message {
    pub header: Header,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The number a reply to `request` carries; none if it is no such reply.
    pub fn number(&self, request: u32) -> Option<u64> {
        let is_reply = self.header.flags & (VERSION_MASK | F_REPLY) == VERSION | F_REPLY;
        let fits = is_reply && self.header.request == request && self.fds.is_empty();
        let bytes = self.body.as_slice().try_into().ok().filter(|_| fits)?;
        Some(u64::from_ne_bytes(bytes))
    }
}

/// The next message, or `None` at end of file. `body` is storage to use.
pub fn receive(socket: &UnixStream, mut body: Vec<u8>) -> io::Result<Option<Message>> {
    let mut header = Header::default();
    let mut fds = Vec::new();
    if !receive_all(socket, header.as_mut_bytes(), &mut fds)? {
        return Ok(None);
    }
    let size = header.size as usize;
    if size > MAX_BODY {
        let what = format!("a message of {size} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    body.clear();
    body.resize(size, 0);
    let complete = receive_all(socket, &mut body, &mut fds)?;
    Ok(complete.then_some(Message { header, body, fds }))
}

/// Fills `out`; false at end of file.
fn receive_all(socket: &UnixStream, out: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut filled = 0;
    while filled < out.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KEPT_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let rest = &mut out[filled..];
        let mut iov = [IoSliceMut::new(rest)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = match rustix::net::recvmsg(socket, &mut iov, &mut control, flags) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                let room = KEPT_FDS.saturating_sub(fds.len());
                // Those beyond it are closed.
                fds.extend(rights.take(room));
            }
        }
        if received.bytes == 0 {
            return Ok(false);
        }
        filled += received.bytes;
    }
    Ok(true)
}

/// Sends a message whose body is one number.
pub fn send_number(
    socket: &UnixStream,
    request: u32,
    flags: u32,
    value: u64,
) -> io::Result<()> {
    let header = Header {
        request,
        flags: VERSION | flags,
        size: size_of::<u64>() as u32,
    };
    let mut bytes = [0; size_of::<Header>() + size_of::<u64>()];
    bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    bytes[size_of::<Header>()..].copy_from_slice(&value.to_ne_bytes());
    send_all(socket, &bytes)
}

fn send_all(socket: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
