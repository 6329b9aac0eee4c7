//! What the ledger asks of a front end, and how that can fail.

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
    /// It gave no answer in time; what it will do is not known.
    #[error("the front end gave no answer in time")]
    TimedOut,
    /// The wait was called off; what it will do is not known.
    #[error("the wait for the front end was called off")]
    Cancelled,
    /// The channel is closed or out of step.
    #[error("the channel to the front end is gone")]
    Gone,
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

/// The window at the VMM's side.
pub trait FrontEnd: Send + Sync {
    /// Maps `range.len()` bytes of `fd` from `fd_offset` (bytes, page
    /// aligned) at `range`. Returns once the front end has acknowledged.
    fn map(
        &self,
        range: WindowRange,
        fd: &Arc<OwnedFd>,
        fd_offset: u64,
        writable: bool,
    ) -> Result<(), FrontEndError>;

    /// Unmaps `range`.
    fn unmap(&self, range: WindowRange) -> Result<(), FrontEndError>;

    /// Makes everybody who waits for an answer return
    /// [`FrontEndError::Cancelled`] at once.
    fn cancel_waits(&self) {}

    /// Whether every further request fails with [`FrontEndError::Gone`].
    fn is_gone(&self) -> bool {
        false
    }
}
