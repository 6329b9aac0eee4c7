//! The back-end channel: SHMEM_MAP and SHMEM_UNMAP, one request at a time, in
//! the order in which they came.
//!
//! The thread that sends a request waits for the reply itself, until it is
//! there, the socket ends, or waits are called off. A front end replies in
//! order; so a reply for which nobody waits any more is the next one that is
//! read, and whoever reads it drops it.
//!
//! Laws: time that passes ends no wait, it is only told to the log; nothing is
//! locked that a message of the front end's needs; a request that was sent and
//! not waited for may still be done.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use daxwindow_shared::shmem::{MAP_WRITABLE, MapMessage, SHMEM_MAP, SHMEM_UNMAP};
use daxwindow_shared::vhost_user::{F_NEED_REPLY, F_REPLY, Header, VERSION};
use daxwindow_shared::virtiofs::SHMCAP_ID_CACHE;
use daxwindow_shared::window::WindowRange;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::front_end::{FrontEnd, FrontEndError, ShmemRequest};
use crate::logs::Throttle;

/// How long a front end may take over one request before the log tells of it.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Message {
    header: Header,
    body: [u8; size_of::<MapMessage>()],
}

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
struct Reply {
    header: Header,
    result: u64,
}
const REPLY_BYTES: usize = size_of::<Reply>();

/// A channel to one front end.
pub struct Channel {
    socket: UnixStream,
    /// Readable while waits are called off.
    cancel: OwnedFd,
    /// A wait that takes longer is told to the log.
    patience: Duration,
    stalls: Throttle,
    state: Mutex<State>,
    /// The queue has moved, or waits are called off.
    changed: Condvar,
    /// Of the thread whose turn it is.
    wire: Mutex<Wire>,
}

#[derive(Default)]
struct State {
    /// Threads with a request, by ticket, the one whose turn it is first.
    queue: VecDeque<u64>,
    tickets: u64,
    /// Times that waits were called off and not allowed again.
    forbidden: usize,
    gone: bool,
}

impl State {
    /// Why nothing may be sent now.
    fn check(&self) -> Result<(), FrontEndError> {
        match self.forbidden {
            _ if self.gone => Err(FrontEndError::Gone),
            0 => Ok(()),
            _ => Err(FrontEndError::Cancelled),
        }
    }
}

/// What is under way on the socket.
#[derive(Default)]
struct Wire {
    /// Requests without a reply, oldest first: that of the thread whose turn it
    /// is, and before it those whose wait was called off.
    unanswered: VecDeque<u32>,
    reply: Reply,
    /// Bytes of `reply` that are there.
    received: usize,
}

impl Channel {
    /// A channel to the front end at the other end of `socket`. A wait that
    /// takes longer than `patience` is told to the log.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn new(socket: UnixStream, patience: Duration) -> io::Result<Channel> {
        let cancel = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Channel {
            socket,
            cancel,
            patience,
            stalls: Throttle::new(Duration::from_secs(60)),
            state: Mutex::default(),
            changed: Condvar::new(),
            wire: Mutex::default(),
        })
    }

    /// Waits for this thread's turn; its ticket.
    fn enter(&self) -> Result<u64, FrontEndError> {
        let mut state = self.state.lock();
        state.check()?;
        let ticket = state.tickets;
        state.tickets += 1;
        state.queue.push_back(ticket);
        let waits =
            |state: &mut State| state.check().is_ok() && state.queue.front() != Some(&ticket);
        let late = self
            .changed
            .wait_while_for(&mut state, waits, self.patience);
        if late.timed_out() {
            MutexGuard::unlocked(&mut state, || self.note_stall());
            self.changed.wait_while(&mut state, waits);
        }
        match state.check() {
            Ok(()) => Ok(ticket),
            Err(error) => {
                self.leave(&mut state, ticket);
                Err(error)
            }
        }
    }

    fn leave(&self, state: &mut State, ticket: u64) {
        state.queue.retain(|other| *other != ticket);
        self.changed.notify_all();
    }

    /// Sends a request and waits for the reply to it.
    fn exchange(&self, request: &ShmemRequest<'_>) -> Result<(), FrontEndError> {
        let mut wire = self.wire.lock();
        let mut wait = Wait {
            channel: self,
            told_at: Some(Instant::now() + self.patience),
        };
        self.send(&mut wire, request, &mut wait)?;
        loop {
            let refused = self.receive(&mut wire, &mut wait)?;
            if wire.unanswered.is_empty() {
                return refused;
            }
            tracing::debug!(?refused, "dax: a late reply of the VMM is dropped");
        }
    }

    fn send(
        &self,
        wire: &mut Wire,
        request: &ShmemRequest<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<(), FrontEndError> {
        let (message, fd) = encode(request);
        let (code, bytes) = (message.header.request, message.as_bytes());
        let mut sent = 0;
        while sent < bytes.len() {
            let fd = fd.filter(|_| sent == 0);
            match send_part(&self.socket, &bytes[sent..], fd) {
                Ok(part) => sent += part,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match wait.until(PollFlags::OUT) {
                    // Nobody could read what comes behind half a message.
                    Err(_) if sent > 0 => return Err(FrontEndError::Gone),
                    waited => waited?,
                },
                // Of this process or the whole system, before anything was sent.
                Err(error @ (Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM)) if sent == 0 => {
                    tracing::warn!(%error, "dax: no request to map can be sent");
                    return Err(FrontEndError::Refused);
                }
                Err(_) => return Err(FrontEndError::Gone),
            }
        }
        wire.unanswered.push_back(code);
        Ok(())
    }

    /// The next reply: whether the front end has refused.
    fn receive(
        &self,
        wire: &mut Wire,
        wait: &mut Wait<'_>,
    ) -> Result<Result<(), FrontEndError>, FrontEndError> {
        while wire.received < REPLY_BYTES {
            // Descriptors, which no reply has, are closed by the kernel.
            let rest = &mut wire.reply.as_mut_bytes()[wire.received..];
            match rustix::net::recv(&self.socket, rest, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(FrontEndError::Gone),
                Ok((part, _)) => wire.received += part,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait.until(PollFlags::IN)?,
                Err(_) => return Err(FrontEndError::Gone),
            }
        }
        wire.received = 0;
        let Reply { header, result } = wire.reply;
        let expected = Header {
            request: wire.unanswered.pop_front().ok_or(FrontEndError::Gone)?,
            flags: VERSION | F_REPLY,
            size: size_of_val(&result) as u32,
        };
        let flags = header.flags & !F_NEED_REPLY;
        match (Header { flags, ..header } == expected, result) {
            (true, 0) => Ok(Ok(())),
            (true, _) => Ok(Err(FrontEndError::Refused)),
            (false, _) => Err(FrontEndError::Gone),
        }
    }

    fn note_stall(&self) {
        if let Some(held_back) = self.stalls.pass() {
            tracing::warn!(
                seconds = self.patience.as_secs(),
                held_back,
                "dax: the VMM has not answered a request to map for longer than \
                 --front-end-timeout; what needs the window waits for it"
            );
        }
    }

    /// Calls waits off, and returns once nobody waits.
    fn call_off(&self, state: &mut MutexGuard<'_, State>) {
        state.forbidden += 1;
        // Fails only after 2^64 times.
        let _ = rustix::io::write(&self.cancel, &1u64.to_ne_bytes());
        self.changed.notify_all();
        self.changed
            .wait_while(state, |state| !state.queue.is_empty());
    }

    /// So many threads have a request.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().queue.len()
    }
}

impl FrontEnd for Channel {
    fn request(&self, request: &ShmemRequest<'_>) -> Result<(), FrontEndError> {
        let ticket = self.enter()?;
        let result = self.exchange(request);
        let mut state = self.state.lock();
        state.gone |= result == Err(FrontEndError::Gone);
        self.leave(&mut state, ticket);
        match result {
            Err(_) if state.gone => Err(FrontEndError::Gone),
            result => result,
        }
    }

    fn cancel_waits(&self) {
        self.call_off(&mut self.state.lock());
    }

    fn allow_waits(&self) {
        let mut state = self.state.lock();
        state.forbidden = state.forbidden.saturating_sub(1);
        if state.forbidden == 0 {
            let _ = rustix::io::read(&self.cancel, &mut [0; 8]);
        }
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.gone = true;
        self.call_off(&mut state);
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn is_gone(&self) -> bool {
        self.state.lock().gone
    }
}

/// A wait for the front end.
struct Wait<'a> {
    channel: &'a Channel,
    /// When the log is told, if it was not.
    told_at: Option<Instant>,
}

impl Wait<'_> {
    /// Until the socket is ready for one of `events`.
    fn until(&mut self, events: PollFlags) -> Result<(), FrontEndError> {
        let channel = self.channel;
        let mut fds = [
            PollFd::new(&channel.socket, events),
            PollFd::new(&channel.cancel, PollFlags::IN),
        ];
        loop {
            let left = self
                .told_at
                .map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => {
                    self.told_at = None;
                    channel.note_stall();
                }
                Ok(_) if !fds[1].revents().is_empty() => return Err(FrontEndError::Cancelled),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(_) => return Err(FrontEndError::Gone),
            }
        }
    }
}

fn send_part(
    socket: &UnixStream,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
}

fn encode<'a>(request: &ShmemRequest<'a>) -> (Message, Option<BorrowedFd<'a>>) {
    let of = |range: WindowRange| MapMessage {
        shmid: SHMCAP_ID_CACHE,
        shm_offset: range.start().0,
        len: range.len(),
        ..MapMessage::default()
    };
    let (request, body, fd) = match *request {
        ShmemRequest::Unmap(range) => (SHMEM_UNMAP, of(range), None),
        ShmemRequest::Map(range, source) => {
            let flags = if source.writable { MAP_WRITABLE } else { 0 };
            let body = MapMessage {
                fd_offset: source.fd_offset,
                flags,
                ..of(range)
            };
            (SHMEM_MAP, body, Some(source.fd.as_fd()))
        }
    };
    let header = Header {
        request,
        flags: VERSION | F_NEED_REPLY,
        size: size_of::<MapMessage>() as u32,
    };
    let body = zerocopy::transmute!(body);
    (Message { header, body }, fd)
}

#[cfg(test)]
#[path = "channel_test.rs"]
mod tests;
