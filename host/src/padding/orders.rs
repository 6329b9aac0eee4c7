//! What the client of a padded view tells its server, over a socket pair: one
//! packet for each order, with the descriptor of the file to be padded.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most bytes of a message, either way.
const MAX_MESSAGE: usize = 512;

/// An order. Numbers are in the order of bytes of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Order {
    /// The inode number in the view; used once.
    pub(super) number: u64,
    /// Whose file it is. Files of one share never wait for those of another.
    pub(super) share: u32,
    /// What is to be done.
    pub(super) what: u32,
}

impl Order {
    /// Let the file that comes along be opened for reading; so is any number
    /// that is none of the others.
    pub(super) const READ: u32 = 0;
    /// Let it be opened for reading and writing.
    pub(super) const WRITE: u32 = 1;
    /// Forget the order of that number.
    pub(super) const WITHDRAW: u32 = 2;
}

/// A packet that has come.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    /// The first descriptor that came along; others are closed.
    pub(super) fd: Option<OwnedFd>,
}

/// Sends a packet.
pub(super) fn send(line: &OwnedFd, bytes: &[u8], fd: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(AsFd::as_fd);
    if let Some(fd) = &fds {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    let data = [IoSlice::new(bytes)];
    sendmsg(line, &data, &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// Takes a packet. One without bytes is the end of the line.
pub(super) fn receive(line: &OwnedFd, flags: RecvFlags) -> Result<Message, Errno> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut data = [IoSliceMut::new(&mut bytes)];
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        match recvmsg(line, &mut data, &mut control, flags) {
            Err(Errno::INTR) => {}
            got => break got?,
        }
    };
    bytes.truncate(got.bytes);
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(Message { bytes, fd })
}
