//! What a front end is asked for, and how that can fail.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use daxwindow_shared::window::WindowRange;
use rustix::io::Errno;

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
}

impl FrontEndError {
    /// Whether the window is surely as it was before the request.
    pub fn leaves_window_unchanged(self) -> bool {
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

/// A request to the front end.
#[derive(Clone, Copy, Debug)]
pub enum ShmemRequest<'a> {
    /// To map as many bytes of this there.
    Map(WindowRange, Source<'a>),
    /// To unmap what is there.
    Unmap(WindowRange),
}

/// The window at the VMM's side.
pub trait FrontEnd: Send + Sync {
    /// Sends a request, and returns once the front end has replied, however long
    /// that takes, or cannot reply any more, or waits are called off.
    ///
    /// # Errors
    ///
    /// That it has not acknowledged, in one way or another.
    fn request(&self, request: &ShmemRequest<'_>) -> Result<(), FrontEndError>;

    /// Ends every wait for a reply with [`FrontEndError::Cancelled`], and returns
    /// once that is so; no other begins before as many calls of
    /// [`FrontEnd::allow_waits`].
    fn cancel_waits(&self) {}

    /// Takes back one [`FrontEnd::cancel_waits`].
    fn allow_waits(&self) {}

    /// The same for good: it is sent nothing more.
    fn close(&self) {
        self.cancel_waits();
    }

    /// Whether every further request fails with [`FrontEndError::Gone`].
    fn is_gone(&self) -> bool {
        false
    }
}
