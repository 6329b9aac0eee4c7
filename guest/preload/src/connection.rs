//! The VMM's connections: which of them are vhost-user, and which of these go
//! to a daemon of ours.
//!
//! Laws: only a stream socket that is about to be connected to a path is
//! touched; what was found out about a descriptor's number is believed no
//! longer than until somebody connects it again, and where it matters the
//! socket's own name has to agree, since a number that was closed may be
//! another file's by now.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

use daxwindow_shared::preload::MARK;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, sockopt};

/// What is known of a descriptor's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Nothing.
    Unknown,
    /// Connected under a name of ours; nothing was sent.
    Marked,
    /// The first message was vhost-user's; nothing was received.
    Vhost,
    /// The other end is a daemon of ours.
    Ours,
    /// The other end is a vhost-user back end of another kind.
    Other,
}

impl State {
    const ALL: [State; 5] = [
        State::Unknown,
        State::Marked,
        State::Vhost,
        State::Ours,
        State::Other,
    ];
}

/// Numbers from here on are not looked after.
const MOST: usize = 4096;
static STATES: [AtomicU8; MOST] = [const { AtomicU8::new(State::Unknown as u8) }; MOST];

fn place(fd: RawFd) -> Option<&'static AtomicU8> {
    STATES.get(usize::try_from(fd).ok()?)
}

/// What is known of `fd`.
pub(crate) fn state(fd: RawFd) -> State {
    let state = place(fd).map_or(0, |place| place.load(Ordering::Acquire));
    let state = State::ALL.get(usize::from(state));
    *state.unwrap_or(&State::Unknown)
}

pub(crate) fn set_state(fd: RawFd, state: State) {
    if let Some(place) = place(fd) {
        place.store(state as u8, Ordering::Release);
    }
}

/// Bytes of a name behind the mark.
const DIGITS: usize = 16;
/// How often another name is tried where one is taken.
const TRIES: usize = 8;

/// Before `fd` is connected to a path: gives it a name that begins with the
/// mark, if it is a stream socket whose state can be kept.
pub(crate) fn mark(fd: BorrowedFd<'_>) {
    if place(fd.as_raw_fd()).is_none() {
        return;
    }
    let is_stream = sockopt::socket_type(fd) == Ok(SocketType::STREAM);
    let is_unix = sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX);
    if !(is_stream && is_unix) {
        return;
    }
    for _ in 0..TRIES {
        let Some(name) = name() else { return };
        match rustix::net::bind(fd, &name) {
            Err(Errno::ADDRINUSE) => {}
            // A socket that cannot be named is not marked.
            _ => return,
        }
    }
}

fn name() -> Option<SocketAddrUnix> {
    let mut random = [0; DIGITS / 2];
    let flags = rustix::rand::GetRandomFlags::NONBLOCK;
    rustix::rand::getrandom(&mut random[..], flags).ok()?;
    let mut name = [0; MARK.len() + DIGITS];
    let (mark, digits) = name.split_at_mut(MARK.len());
    mark.copy_from_slice(MARK);
    let nibbles = random.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    for (place, nibble) in digits.iter_mut().zip(nibbles) {
        *place = b"0123456789abcdef"[usize::from(nibble)];
    }
    SocketAddrUnix::new_abstract_name(&name).ok()
}

/// Whether `fd` is a socket with a name of ours.
pub(crate) fn is_marked(fd: BorrowedFd<'_>) -> bool {
    let name = rustix::net::getsockname(fd).map(SocketAddrUnix::try_from);
    let Ok(Ok(name)) = name else { return false };
    let name = name.abstract_name();
    name.is_some_and(|name| name.starts_with(MARK) && name.len() == MARK.len() + DIGITS)
}

/// Bytes of a vhost-user message without a body.
pub(crate) const HEADER_BYTES: usize = 12;

/// After `fd` was connected to a path.
pub(crate) fn connected(socket: BorrowedFd<'_>) {
    let state = match is_marked(socket) {
        true => State::Marked,
        false => State::Unknown,
    };
    set_state(socket.as_raw_fd(), state);
}

/// Before the first message is sent over a marked connection.
pub(crate) fn first_sent(fd: RawFd, bytes: &[u8]) {
    /// GET_FEATURES in version 1, without a body.
    const GET_FEATURES: [u32; 3] = [1, 1, 0];
    let words = bytes.chunks_exact(4).map(|word| {
        let word = word.try_into().unwrap_or_default();
        u32::from_ne_bytes(word)
    });
    let is_vhost_user = bytes.len() == HEADER_BYTES && words.eq(GET_FEATURES);
    let state = match is_vhost_user {
        true => State::Vhost,
        false => State::Unknown,
    };
    set_state(fd, state);
}
