//! What the ledger asks of a front end, and how that can fail.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use daxwindow_shared::window::WindowRange;
use rustix::io::Errno;

use super::pending::Pending;

/// Why the front end did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrontEndError {
    /// It answered no; nothing has changed at its side.
    #[error("the front end refused")]
    Refused,
    /// It acknowledged the request, and answered the next, without a word of it
    /// in the memory table; what it did is not known.
    #[error("the front end acknowledged the request and did not announce it")]
    NotAnnounced,
    /// The wait was called off; what it will do is not known.
    #[error("the wait for the front end was called off")]
    Cancelled,
    /// The channel is closed or out of step.
    #[error("the channel to the front end is gone")]
    Gone,
    /// Another thread has ended the request meanwhile, for one of these
    /// reasons; whoever hears this leaves everything as it is.
    #[error("another thread has answered the request")]
    Abandoned,
}

impl FrontEndError {
    /// Whether the window is surely as it was before the request.
    pub fn is_certain(self) -> bool {
        self == FrontEndError::Refused
    }
}

impl From<FrontEndError> for Errno {
    /// Always `EIO`: the guest retries `EAGAIN` for ever, takes `ENOMEM` for
    /// its own shortage, and survives `EIO`.
    fn from(_: FrontEndError) -> Errno {
        Errno::IO
    }
}

/// What is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The file.
    pub fd: &'a Arc<OwnedFd>,
    /// Where in the file, bytes, page aligned.
    pub fd_offset: u64,
    /// Stores are allowed.
    pub writable: bool,
}

/// What is asked of the front end.
#[derive(Clone, Copy, Debug)]
pub enum Ask<'a> {
    /// To map as many bytes of this there.
    Map(WindowRange, Source<'a>),
    /// To unmap what is there.
    Unmap(WindowRange),
}

/// An answer, and what the request has held meanwhile.
pub type Answered = (Pending, Result<(), FrontEndError>);

/// Told of an answer to a request that was abandoned.
pub type Late<'a> = &'a dyn Fn(Result<(), FrontEndError>);

/// The window at the VMM's side.
pub trait FrontEnd: Send + Sync {
    /// Asks, and returns once the front end has answered, however long that
    /// takes, or cannot answer any more, or waits are called off.
    ///
    /// # Errors
    ///
    /// That it has not acknowledged, in one way or another.
    fn ask(&self, ask: &Ask<'_>) -> Result<(), FrontEndError>;

    /// The same where the calling thread need not come back, which may be
    /// quicker. If waits are called off, another thread abandons `pending` at
    /// once; `late` is told of the answer when it comes, before the front end is
    /// asked anything else, and this is nothing.
    fn ask_here(&self, ask: &Ask<'_>, pending: Pending, late: Late<'_>) -> Option<Answered> {
        let _ = late;
        Some((pending, self.ask(ask)))
    }

    /// Makes every wait for an answer end with [`FrontEndError::Cancelled`] at
    /// once, those that begin before as many calls of
    /// [`FrontEnd::allow_waits`] included.
    fn cancel_waits(&self) {}

    /// Takes back one [`FrontEnd::cancel_waits`].
    fn allow_waits(&self) {}

    /// The same for good: it is asked nothing more.
    fn close(&self) {
        self.cancel_waits();
    }

    /// Whether every further request fails with [`FrontEndError::Gone`].
    fn is_gone(&self) -> bool {
        false
    }
}
