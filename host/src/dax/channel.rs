//! The back-end request channel: SHMEM_MAP and SHMEM_UNMAP with a time-out.
//!
//! What is asked and who asks is the `line`'s business; here is the thread that
//! it needs, and how many such there may be.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use daxwindow_shared::shmem::MAP_WRITABLE;
use daxwindow_shared::virtiofs::SHMCAP_ID_CACHE;
use daxwindow_shared::window::WindowRange;
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::VhostUserMMap;

use super::front_end::{Answered, Ask, FrontEnd, FrontEndError};
use super::line::Line;
use super::pending::Pending;

/// How long a front end may take over one request.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Lines that may exist at a time, each of which may have a thread stuck behind
/// a front end that never answers and never closes its socket.
const MAX_CHANNELS: usize = 256;
static CHANNELS: AtomicUsize = AtomicUsize::new(0);

/// One of [`MAX_CHANNELS`], until no thread is in it any more.
struct Counted(Line);

impl Counted {
    fn new(line: Line) -> std::io::Result<Counted> {
        let counted = Counted(line);
        if CHANNELS.fetch_add(1, Ordering::Relaxed) >= MAX_CHANNELS {
            return Err(std::io::Error::other(format!(
                "{MAX_CHANNELS} front ends hold a channel they do not answer on"
            )));
        }
        Ok(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        CHANNELS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A channel to one front end.
pub struct Channel(Arc<Counted>);

impl Channel {
    /// Starts the thread that keeps the time of what is asked through `backend`.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started, or too many earlier ones are stuck.
    pub fn new(backend: Backend, timeout: Duration) -> std::io::Result<Channel> {
        let counted = Arc::new(Counted::new(Line::new(backend, timeout))?);
        let (his, span) = (counted.clone(), tracing::Span::current());
        thread::Builder::new()
            .name("dax-channel".to_string())
            .spawn(move || span.in_scope(|| his.0.attend()))?;
        Ok(Channel(counted))
    }

    fn line(&self) -> &Line {
        &self.0.0
    }
}

impl FrontEnd for Channel {
    fn ask(&self, ask: &Ask<'_>) -> Result<(), FrontEndError> {
        let (message, fd) = message(ask);
        self.line().ask(message, fd.cloned())
    }

    fn ask_here(&self, ask: &Ask<'_>, pending: Pending) -> Option<Answered> {
        let (message, fd) = message(ask);
        self.line().ask_here(&message, fd, pending)
    }

    fn cancel_waits(&self) {
        self.line().cancel_waits();
    }

    fn close(&self) {
        self.line().close();
    }

    fn is_gone(&self) -> bool {
        self.line().is_gone()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Its thread ends by itself. It is not joined: a front end that neither
        // answers nor closes its socket must not hold up the daemon.
        self.close();
    }
}

fn message<'a>(ask: &Ask<'a>) -> (VhostUserMMap, Option<&'a Arc<OwnedFd>>) {
    let of = |range: WindowRange| VhostUserMMap {
        shmid: SHMCAP_ID_CACHE,
        shm_offset: range.start().0,
        len: range.len(),
        ..Default::default()
    };
    match *ask {
        Ask::Unmap(range) => (of(range), None),
        Ask::Map(range, source) => {
            let flags = if source.writable { MAP_WRITABLE } else { 0 };
            let message = VhostUserMMap {
                fd_offset: source.fd_offset,
                flags,
                ..of(range)
            };
            (message, Some(source.fd))
        }
    }
}

#[cfg(test)]
#[path = "channel_test.rs"]
mod tests;
