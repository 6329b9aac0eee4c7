//! A channel: messages in, one after the other, and a reply to each out.
//!
//! Laws: a step makes at most one `recvmsg`, so that a peer decides neither
//! how long a step takes nor how many there are; nothing is read while a reply
//! waits to be taken, so that a peer that takes none is kept waiting and fills
//! no memory; after the end nothing is read or written any more.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::net::{RecvFlags, SendFlags};

use super::ServerOptions;
use super::service::{Answer, Service};
use super::stats::Counters;
use crate::error::ChannelError;
use crate::framing::{F_REPLY, Inbox, Outbox, Received};
use crate::window::Window;

pub(super) struct Channel {
    pub(super) socket: UnixStream,
    service: Service,
    inbox: Inbox,
    outbox: Outbox,
    is_closed: bool,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// With something done.
    Done,
    /// There is nothing to read.
    WouldRead,
    /// The peer has to take the reply first.
    WouldWrite,
    /// The channel is closed.
    Closed,
}

impl Channel {
    pub(super) fn new(socket: UnixStream, window: Arc<Window>, options: ServerOptions) -> Channel {
        Channel {
            socket,
            service: Service::new(window, options),
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            is_closed: false,
        }
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        self.service.counters()
    }

    /// Sends a reply that waits, or receives a part of a message and serves
    /// the message if that was the last one.
    pub(super) fn step(&mut self) -> Result<Step, ChannelError> {
        if self.is_closed {
            return Ok(Step::Closed);
        }
        let step = self.take_step();
        if matches!(step, Ok(Step::Closed) | Err(_)) {
            self.is_closed = true;
            self.inbox.clear();
            let _ = self.socket.shutdown(Shutdown::Both);
        }
        step
    }

    fn take_step(&mut self) -> Result<Step, ChannelError> {
        if !self.outbox.flush(&self.socket, SendFlags::DONTWAIT)? {
            return Ok(Step::WouldWrite);
        }
        match self.inbox.receive(&self.socket, RecvFlags::DONTWAIT)? {
            Received::Part => Ok(Step::Done),
            Received::Nothing => Ok(Step::WouldRead),
            Received::End => Ok(Step::Closed),
            Received::Message => self.serve(),
        }
    }

    fn serve(&mut self) -> Result<Step, ChannelError> {
        let message = self.inbox.message();
        let request = message.header.request;
        let answer = self.service.answer(message);
        self.inbox.clear();
        match answer {
            Answer::Value(value) => self.outbox.put(request, F_REPLY, value),
            Answer::Nothing => return Ok(Step::Done),
            Answer::HangUp => return Ok(Step::Closed),
            Answer::Lost => return Err(ChannelError::WindowLost),
        }
        match self.outbox.flush(&self.socket, SendFlags::DONTWAIT)? {
            true => Ok(Step::Done),
            false => Ok(Step::WouldWrite),
        }
    }
}
