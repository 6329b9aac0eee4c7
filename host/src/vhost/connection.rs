//! One client's messages, handled one after the other in a thread of its own.
//!
//! The vhost crate reads and checks them. It keeps the descriptor of the
//! back-end channel to itself; so a message that hands one over is looked at
//! before it is read, and the descriptor duplicated.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use daxwindow_shared::vhost_user::{Header, SET_BACKEND_REQ_FD};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use vhost::vhost_user::{BackendReqHandler, Error};
use zerocopy::{FromZeros, IntoBytes};

use super::backend::Device;

/// A connected front end.
pub(super) struct Connection {
    socket: Arc<UnixStream>,
    messages: BackendReqHandler<Device>,
    device: Arc<Device>,
}

impl Connection {
    /// The one at the other end of `socket`.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub(super) fn new(socket: UnixStream, device: Arc<Device>) -> std::io::Result<Connection> {
        Ok(Connection {
            socket: Arc::new(socket.try_clone()?),
            messages: BackendReqHandler::from_stream(socket, Arc::clone(&device)),
            device,
        })
    }

    /// Ends the connection, from whichever thread.
    pub(super) fn hang_up(&self) -> impl Fn() + Send + Sync + Clone + use<> {
        let socket = Arc::clone(&self.socket);
        move || drop(socket.shutdown(Shutdown::Both))
    }

    /// Handles messages until the client goes.
    ///
    /// # Errors
    ///
    /// How it went.
    pub(super) fn serve(&mut self) -> Result<(), Error> {
        let ended = loop {
            self.device.negotiated.lock().channel = channel_of_next(&self.socket);
            if let Err(error) = self.messages.handle_request() {
                break error;
            }
        };
        let _ = self.socket.shutdown(Shutdown::Both);
        match ended {
            Error::SocketBroken(_) => Ok(()),
            error => Err(error),
        }
    }
}

/// Waits for the next message, and duplicates the descriptor that it carries
/// if it hands over a channel.
fn channel_of_next(socket: &UnixStream) -> Option<UnixStream> {
    let mut header = Header::new_zeroed();
    let bytes = loop {
        match rustix::net::recv(socket, header.as_mut_bytes(), RecvFlags::PEEK) {
            Err(Errno::INTR) => {}
            Ok((bytes, _)) => break bytes,
            Err(_) => return None,
        }
    };
    if bytes < size_of::<Header>() || header.request != SET_BACKEND_REQ_FD {
        return None;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let buffer = &mut [IoSliceMut::new(header.as_mut_bytes())];
    rustix::net::recvmsg(socket, buffer, &mut ancillary, flags).ok()?;
    let first: Option<OwnedFd> = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    first.map(UnixStream::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{IoSlice, Write};
    use std::os::fd::AsFd;

    use daxwindow_shared::vhost_user::VERSION;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    fn send(socket: &UnixStream, request: u32, fd: impl AsFd) {
        let header = Header {
            request,
            flags: VERSION,
            size: 0,
        };
        let fds = [fd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let bytes = [IoSlice::new(header.as_bytes())];
        let sent = rustix::net::sendmsg(socket, &bytes, &mut ancillary, SendFlags::empty());
        assert_eq!(sent, Ok(size_of::<Header>()));
    }

    #[test]
    fn the_channel_of_a_message_is_known_before_it_is_read_and_no_other_descriptor() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let (channel, mut other) = UnixStream::pair().expect("pair");
        send(&theirs, SET_BACKEND_REQ_FD + 1, &channel);
        assert!(channel_of_next(&ours).is_none(), "another message");
        let mut read = [0; size_of::<Header>()];
        rustix::net::recv(&ours, &mut read, RecvFlags::empty()).expect("still there");
        send(&theirs, SET_BACKEND_REQ_FD, &channel);
        drop(channel);
        let found = channel_of_next(&ours).expect("found");
        assert!(channel_of_next(&ours).is_some(), "nothing was taken");
        other.write_all(b"x").expect("written");
        let mut byte = [0];
        rustix::net::recv(&found, &mut byte, RecvFlags::empty()).expect("the same socket");
        assert_eq!(byte, *b"x");
        drop(theirs);
        rustix::net::recv(&ours, &mut read, RecvFlags::empty()).expect("still there");
        assert!(channel_of_next(&ours).is_none(), "the end");
    }
}
