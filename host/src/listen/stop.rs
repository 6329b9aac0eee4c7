//! What a thread that listens waits for, and how it is told to end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// A request to end, which any thread can make.
#[derive(Clone, Debug)]
pub struct Stop(Arc<OwnedFd>);

impl Stop {
    /// Not requested yet.
    pub fn new() -> io::Result<Stop> {
        Ok(Stop(Arc::new(event()?)))
    }

    /// Requests it; for good.
    pub fn request(&self) {
        ring(&self.0);
    }

    /// Waits until it is requested.
    pub fn wait(&self) {
        while !self.within(Duration::from_secs(3600)) {}
    }

    /// Whether it is requested, now or before `timeout` is over.
    pub fn within(&self, timeout: Duration) -> bool {
        is_rung_within(&self.0, timeout)
    }
}

/// What a waiting thread is woken for, most urgent first.
pub(crate) enum Wake {
    /// The daemon is to end.
    Stop,
    /// The client that is being served has gone.
    Over,
    /// Somebody connects.
    Client,
}

/// Waits for the first of these.
pub(crate) fn wait(
    listener: &UnixListener,
    stop: &Stop,
    over: Option<&OwnedFd>,
) -> io::Result<Wake> {
    let mut fds = vec![
        PollFd::from_borrowed_fd(stop.0.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
    ];
    fds.extend(over.map(|over| PollFd::from_borrowed_fd(over.as_fd(), PollFlags::IN)));
    loop {
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        if ready(0) {
            return Ok(Wake::Stop);
        } else if ready(2) {
            return Ok(Wake::Over);
        } else if ready(1) {
            return Ok(Wake::Client);
        }
    }
}

pub(crate) fn event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

pub(crate) fn ring(event: &OwnedFd) {
    // Fails only if the event is rung already, which is as good.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

pub(crate) fn is_rung_within(event: &OwnedFd, timeout: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    let mut fds = [PollFd::new(event, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}
