//! What can go wrong at the guest end.

use std::time::Duration;

use rustix::io::Errno;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The daemon answered with an errno.
    #[error("{operation}: {errno}")]
    Remote {
        /// The request.
        operation: &'static str,
        /// The daemon's answer.
        errno: Errno,
    },
    /// A system call of our own failed.
    #[error("{operation}: {source}")]
    Local {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The daemon is gone; nothing more will be answered.
    #[error("the daemon closed the connection")]
    Disconnected,
    /// No answer in time.
    #[error("{operation}: no answer within {after:?}")]
    TimedOut {
        /// The request.
        operation: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The answer breaks the protocol.
    #[error("{operation}: {what}")]
    Protocol {
        /// The request.
        operation: &'static str,
        /// What is wrong with the answer.
        what: String,
    },
    /// The file shrank on the host while bytes of it were being copied.
    #[error("the file was truncated on the host during a copy, near byte {offset}")]
    Truncated {
        /// Offset in the file.
        offset: u64,
    },
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// The errno closest to this error.
    pub fn errno(&self) -> Errno {
        match self {
            Error::Remote { errno, .. } => *errno,
            Error::Local { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
            Error::Disconnected => Errno::NOTCONN,
            Error::TimedOut { .. } => Errno::TIMEDOUT,
            Error::Protocol { .. } => Errno::PROTO,
            Error::Truncated { .. } => Errno::IO,
            Error::Invalid(_) => Errno::INVAL,
        }
    }
}
