//! vhost-user messages as bytes, as they come in and as they go out.
//!
//! Laws: a message is taken from the socket whole, or the socket is given up;
//! no byte behind it is taken; however it is cut up, only a bounded number of
//! bytes and descriptors is kept. One call takes what one system call gives,
//! so that a caller with other things to do can count.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::ChannelError;

/// Header of every vhost-user message.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Its number.
    pub request: u32,
    /// Version, [`F_REPLY`], [`F_NEED_REPLY`].
    pub flags: u32,
    /// Bytes of the body.
    pub size: u32,
}
const HEADER_BYTES: usize = size_of::<Header>();
const _: () = assert!(HEADER_BYTES == 12);

/// Version in the low two bits of `flags`.
pub(crate) const VERSION: u32 = 1;
pub(crate) const VERSION_MASK: u32 = 3;
/// In `flags`: the message is a reply.
pub const F_REPLY: u32 = 1 << 2;
/// In `flags`: the message wants a reply.
pub const F_NEED_REPLY: u32 = 1 << 3;
/// Largest body that is read; a longer one closes the channel.
pub(crate) const MAX_BODY: usize = 4096;
/// Most descriptors that any message carries.
pub(crate) const MAX_FDS: usize = 8;
/// Descriptors kept of one message: one more than any carries, so that a
/// message with too many is refused like one with too few.
const KEPT_FDS: usize = MAX_FDS + 1;

/// A message as received, not checked.
#[derive(Debug, Default)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// As many bytes as the header says.
    pub body: Vec<u8>,
    /// What came along, at most nine.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The number that a reply to `request` carries; none if it is no such reply.
    #[cfg(any(test, feature = "internals"))]
    pub fn number(&self, request: u32) -> Option<u64> {
        let is_reply = self.header.flags & (VERSION_MASK | F_REPLY) == VERSION | F_REPLY;
        let fits = is_reply && self.header.request == request && self.fds.is_empty();
        let bytes = self.body.as_slice().try_into().ok().filter(|_| fits)?;
        Some(u64::from_ne_bytes(bytes))
    }
}

/// What one call of [`Inbox::receive`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A part of a message.
    Part,
    /// The last part: [`Inbox::message`] is whole.
    Message,
    /// There is nothing now.
    Nothing,
    /// The peer has closed, between two messages.
    End,
}

/// The message that is coming in.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    message: Message,
    /// Bytes of header and body that are there.
    filled: usize,
}

impl Inbox {
    /// Takes what one `recvmsg` with `flags` gives. After a whole message, and
    /// before the next call: [`clear`](Self::clear).
    pub(crate) fn receive(
        &mut self,
        socket: &UnixStream,
        flags: RecvFlags,
    ) -> Result<Received, ChannelError> {
        let Message { header, body, fds } = &mut self.message;
        let rest = match self.filled.checked_sub(HEADER_BYTES) {
            None => header.as_mut_bytes().get_mut(self.filled..),
            Some(filled) => body.get_mut(filled..),
        };
        match receive_part(socket, rest.unwrap_or_default(), fds, flags) {
            Ok(0) if self.filled == 0 => return Ok(Received::End),
            Ok(0) => return Err(ChannelError::Incomplete),
            Ok(received) => self.filled += received,
            Err(Errno::INTR) => return Ok(Received::Part),
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(error) => return Err(ChannelError::Io(error.into())),
        }
        if self.filled == HEADER_BYTES {
            self.make_room()?;
        }
        let whole = HEADER_BYTES + self.message.body.len();
        match self.filled >= HEADER_BYTES && self.filled == whole {
            true => Ok(Received::Message),
            false => Ok(Received::Part),
        }
    }

    /// For the body that the header announces.
    fn make_room(&mut self) -> Result<(), ChannelError> {
        let bytes = self.message.header.size;
        let size = usize::try_from(bytes).unwrap_or(usize::MAX);
        if size > MAX_BODY {
            return Err(ChannelError::TooLong { bytes });
        }
        self.message.body.resize(size, 0);
        Ok(())
    }

    pub(crate) fn message(&self) -> &Message {
        &self.message
    }

    /// Closes the descriptors and begins anew.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
        self.message.body.clear();
        self.message.fds.clear();
    }
}

/// Takes what there is for `out`; zero at end of file.
fn receive_part(
    socket: &UnixStream,
    out: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: RecvFlags,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KEPT_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(out)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut iov, &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            let room = KEPT_FDS.saturating_sub(fds.len());
            // Those beyond it are closed.
            fds.extend(rights.take(room));
        }
    }
    Ok(received.bytes)
}

const NUMBER_BYTES: usize = HEADER_BYTES + size_of::<u64>();

/// The message that is going out, if there is one. Its body is a number.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: [u8; NUMBER_BYTES],
    /// How many of them, at the end, are still to be sent.
    left: usize,
}

impl Outbox {
    /// Begins with a message. The one before must have been sent.
    pub(crate) fn put(&mut self, request: u32, flags: u32, value: u64) {
        let header = Header {
            request,
            flags: VERSION | flags,
            size: size_of::<u64>() as u32,
        };
        let (head, body) = self.bytes.split_at_mut(HEADER_BYTES);
        head.copy_from_slice(header.as_bytes());
        body.copy_from_slice(&value.to_ne_bytes());
        self.left = NUMBER_BYTES;
    }

    /// Sends, with `flags`, what the socket takes; whether that was all.
    pub(crate) fn flush(&mut self, socket: &UnixStream, flags: SendFlags) -> io::Result<bool> {
        let flags = flags | SendFlags::NOSIGNAL;
        while self.left > 0 {
            let rest = self.bytes.get(NUMBER_BYTES - self.left..);
            match rustix::net::send(socket, rest.unwrap_or_default(), flags) {
                Ok(sent) => self.left = self.left.saturating_sub(sent),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// The next message, waited for, or `None` at end of file.
///
/// # Errors
///
/// The socket's, and [`ChannelError::TooLong`].
#[cfg(any(test, feature = "internals"))]
pub fn receive(socket: &UnixStream) -> io::Result<Option<Message>> {
    let mut inbox = Inbox::default();
    loop {
        match inbox.receive(socket, RecvFlags::empty()) {
            Ok(Received::Message) => return Ok(Some(inbox.message)),
            Ok(Received::Part) => {}
            // Only a socket that does not wait by its own mode has nothing.
            Ok(Received::Nothing) => return Err(Errno::AGAIN.into()),
            Ok(Received::End) | Err(ChannelError::Incomplete) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends a message whose body is one number.
///
/// # Errors
///
/// The socket's.
#[cfg(any(test, feature = "internals"))]
pub fn send_number(socket: &UnixStream, request: u32, flags: u32, value: u64) -> io::Result<()> {
    let mut outbox = Outbox::default();
    outbox.put(request, flags, value);
    match outbox.flush(socket, SendFlags::empty())? {
        true => Ok(()),
        false => Err(Errno::AGAIN.into()),
    }
}
