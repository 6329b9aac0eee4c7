//! The back-end request channel: SHMEM_MAP and SHMEM_UNMAP.
//!
//! What is asked and who asks is the `line`'s business; here is the thread that
//! it needs, and how many such a share may have.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use daxwindow_shared::shmem::MAP_WRITABLE;
use daxwindow_shared::virtiofs::SHMCAP_ID_CACHE;
use daxwindow_shared::window::WindowRange;
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::VhostUserMMap;

use super::front_end::{Answered, Ask, FrontEnd, FrontEndError, Late};
use super::line::Line;
use super::pending::Pending;
use crate::budget::{Budget, Unit as BudgetUnit};

/// How long a front end may take over one request before the log tells of it.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);
/// Channels that one share may have at a time. One that is closed counts as long
/// as a thread is stuck in it, behind a front end that owes an answer and keeps
/// its end of the socket.
pub(super) const MAX_CHANNELS: usize = 16;

/// One of a share's channels, until no thread is in it any more.
struct Counted {
    line: Line,
    _unit: BudgetUnit,
}

/// A channel to one front end.
pub struct Channel(Arc<Counted>);

impl Channel {
    /// Starts the thread that asks for others through `backend`, one of the
    /// `channels` of a share. A wait that takes longer than `patience` is told
    /// to the log.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started, or too many earlier channels of the
    /// share have a thread stuck in them.
    pub(super) fn new(
        backend: Backend,
        patience: Duration,
        channels: &Arc<Budget>,
    ) -> std::io::Result<Channel> {
        let Some(unit) = channels.take_one() else {
            return Err(std::io::Error::other(format!(
                "{MAX_CHANNELS} earlier channels of this share are kept open by front ends that \
                 owe an answer; end those VMMs"
            )));
        };
        let counted = Arc::new(Counted {
            line: Line::new(backend, patience),
            _unit: unit,
        });
        let (his, span) = (counted.clone(), tracing::Span::current());
        thread::Builder::new()
            .name("dax-channel".to_string())
            .spawn(move || span.in_scope(|| his.line.attend()))?;
        Ok(Channel(counted))
    }

    fn line(&self) -> &Line {
        &self.0.line
    }
}

impl FrontEnd for Channel {
    fn ask(&self, ask: &Ask<'_>) -> Result<(), FrontEndError> {
        let (message, fd) = message(ask);
        self.line().ask(message, fd.cloned())
    }

    fn ask_here(&self, ask: &Ask<'_>, pending: Pending, late: Late<'_>) -> Option<Answered> {
        let (message, fd) = message(ask);
        self.line().ask_here(&message, fd, pending, late)
    }

    fn cancel_waits(&self) {
        self.line().cancel_waits();
    }

    fn allow_waits(&self) {
        self.line().allow_waits();
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
